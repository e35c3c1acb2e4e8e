"""The one sample type: an aligned infrared and visible picture with whatever is known about them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class PairMeta:
    """Where a pair came from, kept so that results can be written back in the source's own terms."""

    bit_depth_ir: int = 8
    bit_depth_vis: int = 8
    original_size: tuple[int, int] | None = None
    """(height, width) of the infrared file where it was brought to another, visible size; None when it was not."""
    hot_is_bright: bool = True
    """Polarity of the thermal camera: True for white-hot. The pair itself is always white-hot."""
    thermal_range: tuple[float, float] | None = None
    """The stored infrared values that became 0 and 1 (1 and 0 where the camera is black-hot); None where unknown or
    where a picture had one value only."""


@dataclass(frozen=True)
class Pair:
    """One aligned sample; pictures are float32 in [0, 1]."""

    ir: Tensor
    """Infrared, ``[1, H, W]``."""
    vis: Tensor
    """Visible RGB, ``[3, H, W]``."""
    name: str
    meta: PairMeta = field(default_factory=PairMeta)
    seg: Tensor | None = None
    """Label map, ``[H, W]`` int64 ids; 255 is ignored."""
    boxes: Tensor | None = None
    """Objects, ``[N, 5]`` float32: class, centre x, centre y, width, height, normalised to [0, 1]."""
    saliency: Tensor | None = None
    """Saliency map, ``[1, H, W]``."""

    def __post_init__(self) -> None:
        height, width = self.ir.shape[-2:]
        if self.ir.shape != (1, height, width) or self.vis.shape != (3, height, width):
            raise ValueError(
                f"{self.name}: ir {tuple(self.ir.shape)} and vis {tuple(self.vis.shape)}, want [1,H,W] and [3,H,W]"
            )
        if self.ir.dtype != torch.float32 or self.vis.dtype != torch.float32:
            raise ValueError(f"{self.name}: ir {self.ir.dtype} and vis {self.vis.dtype}, want float32")

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return int(self.ir.shape[-2]), int(self.ir.shape[-1])
