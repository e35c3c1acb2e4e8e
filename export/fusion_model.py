"""A student in a program: ``duskfuse.load("edge").fuse(ir, vis)`` on arrays or tensors, single or in batches."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from duskfuse.data.colour import luminance, recombine
from duskfuse.data.errors import InputError
from duskfuse.data.fuser import Colour, FusionOutput
from duskfuse.data.images import visible_from
from duskfuse.data.reading import AS_STORED, Reading
from duskfuse.data.weights import ModelCard
from duskfuse.students.fold import fold_batchnorm
from duskfuse.students.zoo import DEFAULT, load_student


class ChannelOrder(StrEnum):
    """Order of the colour channels of an array; OpenCV gives ``bgr``."""

    RGB = "rgb"
    BGR = "bgr"


@dataclass(frozen=True)
class FusionModel:
    """A student with its card, ready to fuse on one device."""

    module: nn.Module
    """In evaluation mode, its training branches and BatchNorms folded."""
    card: ModelCard
    device: torch.device

    @overload
    def fuse(
        self,
        ir: NDArray[Any],
        vis: NDArray[Any],
        *,
        order: ChannelOrder | str = ChannelOrder.RGB,
        reading: Reading = AS_STORED,
    ) -> NDArray[Any]: ...
    @overload
    def fuse(self, ir: Tensor, vis: Tensor) -> Tensor: ...
    def fuse(
        self,
        ir: NDArray[Any] | Tensor,
        vis: NDArray[Any] | Tensor,
        *,
        order: ChannelOrder | str = ChannelOrder.RGB,
        reading: Reading = AS_STORED,
    ) -> NDArray[Any] | Tensor:
        """Fuse one pair or a batch.

        Args:
            ir: infrared: an array ``[H, W]``, or ``[N, H, W]`` for a batch, with or without a last axis of one or three
                equal channels, of any depth; or a float tensor ``[B, 1, H, W]`` in [0, 1].
            vis: visible picture: an array ``[H, W]`` or ``[H, W, 3]``, or ``[N, H, W, 3]`` for a batch, uint8, uint16
                or float in [0, 1]; or a float tensor ``[B, 1 or 3, H, W]`` in [0, 1], in RGB.
            order: of the channels of an array, which the result has, too.
            reading: how the infrared array is scaled; by default 8-bit values are divided by 255, and deeper ones
                scaled by the percentiles 0.1 and 99.9 of each picture. For video give a ``thermal_range``.

        Returns:
            What ``vis`` is, with the fused luminance: an array of its shape and type, or a tensor of its shape.

        Raises:
            InputError: shapes, types or values that do not fit.
        """
        if isinstance(ir, Tensor) and isinstance(vis, Tensor):
            return self._fuse_tensors(ir, vis)
        if isinstance(ir, Tensor) or isinstance(vis, Tensor):
            raise InputError("an array and a tensor", rule="both pictures are of one kind")
        return self._fuse_arrays(ir, vis, ChannelOrder(order), reading)

    def _fuse_tensors(self, ir: Tensor, vis: Tensor) -> Tensor:
        fits = ir.dim() == vis.dim() == 4 and ir.shape[1] == 1 and vis.shape[1] in (1, 3)
        if not fits or ir.shape[0] != vis.shape[0] or ir.shape[2:] != vis.shape[2:]:
            raise InputError(
                f"tensors {tuple(ir.shape)} and {tuple(vis.shape)}",
                rule="infrared is [B, 1, H, W] and visible [B, 1 or 3, H, W], of one size",
                remedy="add or remove axes, or register the pictures",
            )
        if not (ir.is_floating_point() and vis.is_floating_point()):
            raise InputError(f"tensors of {ir.dtype} and {vis.dtype}", rule="tensors are float in [0, 1]")
        ir, vis = ir.to(self.device, torch.float32), vis.to(self.device, torch.float32)
        colours = vis.expand(-1, 3, -1, -1)
        with torch.inference_mode():
            by_colour = getattr(self.module, "colour", Colour.LUMA) == Colour.RGB
            made: FusionOutput = self.module(colours if by_colour else luminance(colours), ir)
            if vis.shape[1] == 1:
                return made.y
            return made.rgb if made.rgb is not None else recombine(made.y, colours)

    def _fuse_arrays(self, ir: NDArray[Any], vis: NDArray[Any], order: ChannelOrder, reading: Reading) -> NDArray[Any]:
        if vis.ndim == 4:
            if len(ir) != len(vis):
                raise InputError(f"{len(ir)} infrared and {len(vis)} visible pictures", rule="a batch is of pairs")
            return np.stack([self._fuse_arrays(*pair, order, reading) for pair in zip(ir, vis, strict=True)])
        grey = vis.ndim == 2
        if not grey and (vis.ndim != 3 or vis.shape[2] != 3):
            raise InputError(
                f"a visible array {vis.shape}",
                rule="it is [H, W], [H, W, 3] or a batch [N, H, W, 3]",
                remedy="cut off an alpha channel, or give a grey picture without a last axis",
            )
        colours = visible_from(vis if order is ChannelOrder.RGB or grey else vis[..., ::-1])
        plane = reading.align(reading.plane(ir).ir, (vis.shape[0], vis.shape[1]))
        fused = self._fuse_tensors(_tensor(plane[..., None]), _tensor(colours[..., :1] if grey else colours))
        picture = fused[0].permute(1, 2, 0).cpu().numpy()
        picture = picture[..., 0] if grey else picture if order is ChannelOrder.RGB else picture[..., ::-1]
        return _as_stored(picture, vis.dtype)


def load(model: str | Path = DEFAULT, device: str | torch.device = "cpu") -> FusionModel:
    """Open a packaged student by name, or a student's checkpoint; nothing is downloaded.

    Raises:
        InputError: an unknown name, or a file that is no student.
    """
    module, card = load_student(model)
    place = torch.device(device)
    return FusionModel(fold_batchnorm(module).to(place).requires_grad_(False), card, place)


def _tensor(picture: NDArray[np.float32]) -> Tensor:
    """``[H, W, C]`` to ``[1, C, H, W]``."""
    return torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))[None]


def _as_stored(picture: NDArray[np.float32], kind: np.dtype[Any]) -> NDArray[Any]:
    """A picture in [0, 1] in the type of another, rounded, not cut off."""
    if not np.issubdtype(kind, np.integer):
        return np.ascontiguousarray(picture, kind)
    return np.ascontiguousarray(np.rint(picture.astype(np.float64) * np.iinfo(kind).max), kind)
