"""One random draw per sample moves every tensor of the sample: pictures, label, masks and teacher image alike."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class GeometricDraw:
    """A crop box in the source picture and a horizontal flip, applied in this order."""

    top: int
    left: int
    height: int
    width: int
    flip: bool

    @property
    def window(self) -> tuple[int, int, int, int]:
        """(top, left, height, width): what a store needs to decode only the part that is used."""
        return self.top, self.left, self.height, self.width

    def shifted(self, rows: int, columns: int) -> GeometricDraw:
        """The same draw in a picture whose corner lies elsewhere."""
        return replace(self, top=self.top + rows, left=self.left + columns)

    def crop(self, tensor: Tensor) -> Tensor:
        """Cut the box out of ``[..., H, W]`` and flip it; works for any dtype."""
        box = tensor[..., self.top : self.top + self.height, self.left : self.left + self.width]
        return self.orient(box)

    def orient(self, box: Tensor) -> Tensor:
        """Flip a tensor that was already cut to the box."""
        return box.flip(-1) if self.flip else box


def draw_crop(
    size: tuple[int, int], crop: tuple[int, int], generator: torch.Generator, *, flip: float = 0.5
) -> GeometricDraw:
    """Draw a box of at most ``crop`` (height, width) in a picture of ``size``, and a flip with probability ``flip``.

    Where the picture is smaller than the crop, the box is the whole side; ``pad_to`` then fills it up.
    """
    height, width = min(size[0], crop[0]), min(size[1], crop[1])
    top = int(torch.randint(size[0] - height + 1, (), generator=generator))
    left = int(torch.randint(size[1] - width + 1, (), generator=generator))
    return GeometricDraw(top, left, height, width, bool(torch.rand((), generator=generator) < flip))


def pad_to(tensor: Tensor, crop: tuple[int, int]) -> Tensor:
    """Repeat the last row and column of ``[C, h, w]`` until it has the size of the crop."""
    missing_rows, missing_columns = crop[0] - tensor.shape[-2], crop[1] - tensor.shape[-1]
    if missing_rows <= 0 and missing_columns <= 0:
        return tensor
    padding = (0, max(missing_columns, 0), 0, max(missing_rows, 0))
    return F.pad(tensor[None].float(), padding, mode="replicate")[0].to(tensor.dtype)


def pad_reflected(tensor: Tensor, size: tuple[int, int]) -> Tensor:
    """Continue ``[..., H, W]`` by reflection at the bottom and right to ``size``, back and forth where it is smaller.

    The border itself is not repeated: 1 2 3 becomes 1 2 3 2 1 2.
    """
    for dim, padded in zip((-2, -1), size, strict=True):
        side = tensor.shape[dim]
        if padded > side:
            period = max(2 * (side - 1), 1)
            position = torch.arange(padded, device=tensor.device) % period
            tensor = tensor.index_select(dim, torch.minimum(position, period - position) if side > 1 else position)
    return tensor
