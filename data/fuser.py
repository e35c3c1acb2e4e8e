"""What every fusion network takes and returns, whichever folder it lives in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class Colour(StrEnum):
    """What a network sees of the visible picture, and makes."""

    LUMA = "luma"
    """Luminance; the result gets the chroma of the visible picture."""
    RGB = "rgb"
    """Three colour channels, both ways."""


@dataclass(frozen=True)
class FusionOutput:
    """Fused luminance and the feature maps that other networks may look at."""

    y: Tensor
    """Fused luminance, ``[B, 1, H, W]`` in [0, 1]."""
    taps: tuple[Tensor, ...] = ()
    """Feature maps from input to output; for SAGE five maps of 32 channels at scales 1, 1/2, 1/4, 1/2, 1."""
    rgb: Tensor | None = None
    """The fused picture of a network that makes colours itself, ``[B, 3, H, W]`` in [0, 1]; ``y`` is its luminance."""

    def each_tensor(self, change: Callable[[Tensor], Tensor]) -> FusionOutput:
        """The same output with every tensor changed."""
        rgb = None if self.rgb is None else change(self.rgb)
        return FusionOutput(change(self.y), tuple(change(tap) for tap in self.taps), rgb)
