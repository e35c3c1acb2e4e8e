"""One random draw per sample moves every tensor of the sample: pictures, label, masks and teacher image alike."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class GeometricDraw:
    """A crop box in the source picture, a horizontal flip and a new size, applied in this order."""

    top: int
    left: int
    height: int
    width: int
    flip: bool
    size: tuple[int, int] | None = None
    """(height, width) to which the box is resized; None leaves it as it is."""

    @property
    def window(self) -> tuple[int, int, int, int]:
        """(top, left, height, width): what a store needs to decode only the part that is used."""
        return self.top, self.left, self.height, self.width

    def shifted(self, rows: int, columns: int) -> GeometricDraw:
        """The same draw in a picture whose corner lies elsewhere."""
        return replace(self, top=self.top + rows, left=self.left + columns)

    def crop(self, tensor: Tensor) -> Tensor:
        """Cut the box out of ``[..., H, W]``, flip and resize it; works for any dtype, see `resized`."""
        box = tensor[..., self.top : self.top + self.height, self.left : self.left + self.width]
        return self.orient(box)

    def orient(self, box: Tensor) -> Tensor:
        """Flip and resize a tensor that was already cut to the box."""
        box = box.flip(-1) if self.flip else box
        return box if self.size is None else resized(box, self.size)


def resized(tensor: Tensor, size: tuple[int, int]) -> Tensor:
    """``[..., H, W]`` in another (height, width): pictures (floats) bilinearly, masks and labels by nearest neighbour.

    Pixels are areas, whose centres lie at whole numbers plus one half. A picture that shrinks is averaged, so that
    nothing aliases, and no value leaves the range of the picture.
    """
    height, width = tensor.shape[-2:]
    if tensor.is_floating_point():
        planes = tensor.reshape(1, -1, height, width)
        planes = F.interpolate(planes, size, mode="bilinear", align_corners=False, antialias=True)
        return planes.clamp(float(tensor.min()), float(tensor.max())).reshape(*tensor.shape[:-2], *size)
    rows, columns = (
        ((torch.arange(new) + 0.5) * (old / new)).long() for new, old in zip(size, (height, width), strict=True)
    )
    return tensor.index_select(-1, columns).index_select(-2, rows)


def draw_crop(
    size: tuple[int, int],
    crop: tuple[int, int],
    generator: torch.Generator,
    *,
    flip: float = 0.5,
    zoom: tuple[float, float] = (1.0, 1.0),
) -> GeometricDraw:
    """Draw a box of at most ``crop`` (height, width) in a picture of ``size``, and a flip with probability ``flip``.

    Where the picture is smaller than the crop, the box is the whole side; ``pad_to`` then fills it up. With a ``zoom``
    other than (1, 1) the sides of the box are a drawn multiple of the crop's, at most what fits the picture, and the
    box is resized to the crop. The multiple is as likely to lie in [a, 2a] as in [b, 2b].
    """
    box, resize = crop, zoom != (1.0, 1.0)
    if resize:
        low, high = zoom
        drawn = low * (high / low) ** float(torch.rand((), generator=generator))
        factor = min(drawn, size[0] / crop[0], size[1] / crop[1])
        box = max(round(factor * crop[0]), 1), max(round(factor * crop[1]), 1)
    height, width = min(size[0], box[0]), min(size[1], box[1])
    top = int(torch.randint(size[0] - height + 1, (), generator=generator))
    left = int(torch.randint(size[1] - width + 1, (), generator=generator))
    flipped = bool(torch.rand((), generator=generator) < flip)
    return GeometricDraw(top, left, height, width, flipped, crop if resize else None)


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
