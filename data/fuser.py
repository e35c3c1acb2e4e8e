"""What every fusion network returns, whichever folder it lives in."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class FusionOutput:
    """Fused luminance and the feature maps that other networks may look at."""

    y: Tensor
    """Fused luminance, ``[B, 1, H, W]`` in [0, 1]."""
    taps: tuple[Tensor, ...] = ()
    """Feature maps from input to output; for SAGE five maps of 32 channels at scales 1, 1/2, 1/4, 1/2, 1."""
