"""Pictures as a task network gets them, and what it gives brought back to the picture.

A network of a fixed size gets pictures resized to it (bilinear, antialiased), or, where boxes are found, resized in
proportion and centred on grey, as YOLO's own program does. One of free size gets pictures continued at the bottom and
right to a multiple of 32, by reflection, where boxes are found with grey.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from duskfuse.data.containers import Size
from duskfuse.data.geometry import pad_reflected
from duskfuse.tasks.segmenter import SIDE_MULTIPLE

Rgb = NDArray[np.uint8]
"""``[H, W, 3]``."""

_FILL = 114 / 255


@dataclass(frozen=True)
class Placed:
    """A picture as the network gets it."""

    values: Tensor
    """``[1, 3, h, w]`` in [0, 1]."""
    top: int
    left: int
    inside: Size
    """(height, width) of the picture there; around it is what was added."""
    size: Size
    """Of the picture itself."""


def placed_for(rgb: Rgb, fixed: Size | None, *, boxed: bool = False) -> Placed:
    """A picture at the size that the network takes; ``boxed`` keeps its proportions and fills up with grey."""
    values = unit_values(rgb)
    height, width = rgb.shape[:2]
    if fixed is None:
        whole = tuple(-(-side // SIDE_MULTIPLE) * SIDE_MULTIPLE for side in (height, width))
        if boxed:
            return Placed(_on_grey(values, whole, 0, 0), 0, 0, (height, width), (height, width))
        return Placed(pad_reflected(values, (whole[0], whole[1])), 0, 0, (height, width), (height, width))
    if not boxed:
        return Placed(_resized(values, fixed), 0, 0, fixed, (height, width))
    scale = min(fixed[0] / height, fixed[1] / width)
    inside = max(1, round(height * scale)), max(1, round(width * scale))
    top, left = (fixed[0] - inside[0]) // 2, (fixed[1] - inside[1]) // 2
    return Placed(_on_grey(_resized(values, inside), fixed, top, left), top, left, inside, (height, width))


def unit_values(rgb: Rgb) -> Tensor:
    """``[1, 3, H, W]`` in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(rgb)).permute(2, 0, 1)[None].float() / 255


def _resized(values: Tensor, size: Size) -> Tensor:
    if tuple(values.shape[-2:]) == size:
        return values
    return F.interpolate(values, size, mode="bilinear", align_corners=False, antialias=True).clamp(0, 1)


def _on_grey(values: Tensor, size: Sequence[int], top: int, left: int) -> Tensor:
    whole = torch.full((1, 3, size[0], size[1]), _FILL)
    whole[..., top : top + values.shape[-2], left : left + values.shape[-1]] = values
    return whole


def brought_back(found: Tensor, placed: Placed, mode: str = "bilinear") -> Tensor:
    """A dense output ``[1, C, h, w]`` at the size of the picture, ``[1, C, H, W]``."""
    whole = tuple(placed.values.shape[-2:])
    corners = {"align_corners": False} if mode == "bilinear" else {}
    if whole != placed.inside:
        if tuple(found.shape[-2:]) != whole:
            found = F.interpolate(found, whole, mode=mode, **corners)
        return found[..., : placed.inside[0], : placed.inside[1]]
    if tuple(found.shape[-2:]) != placed.size:
        found = F.interpolate(found, placed.size, mode=mode, **corners)
    return found
