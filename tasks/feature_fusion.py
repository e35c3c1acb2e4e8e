"""Where a detector of two cameras makes one pyramid of two: between its two encoders and its neck.

A block is a module from the maps of both cameras to fused maps, see `FeatureFusion`; a new one is a file of its own and
a line in `FusionBlock` and `new_fusion`, see `duskfuse.tasks.fusion_blocks`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class FeatureFusion(nn.Module, ABC):
    """Fuses the maps of two encoders, level by level."""

    @abstractmethod
    def forward(self, ir: Sequence[Tensor], vis: Sequence[Tensor]) -> list[Tensor]:
        """One fused map per level.

        Args:
            ir: infrared maps ``[B, C_k, h_k, w_k]``, finest first, with the channels that the block was made for.
            vis: visible maps of the same shapes.

        Returns:
            Maps of the same shapes.
        """


class Concatenation(FeatureFusion):
    """A 1×1 convolution of both maps beside each other, and SiLU: the plain baseline that other blocks are held to."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.mix = nn.ModuleList(nn.Conv2d(2 * count, count, 1, bias=False) for count in channels)

    def forward(self, ir: Sequence[Tensor], vis: Sequence[Tensor]) -> list[Tensor]:
        """See `FeatureFusion.forward`."""
        pairs = zip(self.mix, vis, ir, strict=True)
        return [nn.functional.silu(mix(torch.cat([ours, theirs], dim=1))) for mix, ours, theirs in pairs]


class Addition(FeatureFusion):
    """The sum of both maps: no parameters."""

    def forward(self, ir: Sequence[Tensor], vis: Sequence[Tensor]) -> list[Tensor]:
        """See `FeatureFusion.forward`."""
        return [ours + theirs for ours, theirs in zip(vis, ir, strict=True)]
