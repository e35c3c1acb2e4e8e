"""The blocks that can make one pyramid of two cameras, by name."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from duskfuse.tasks.feature_fusion import Addition, Concatenation, FeatureFusion
from duskfuse.tasks.irdfusion import PyramidFusion
from duskfuse.tasks.slgnet.fusion_block import StructuralAlignment

TOKENS = (16, 20)
"""(rows, columns) of IRDFusion's tokens at every level: cells of 4×4 and 2×2 of a 640×512 picture's maps."""


class FusionBlock(StrEnum):
    """The blocks that there are."""

    CONCAT = "concat"
    """A 1×1 convolution of both."""
    ADD = "add"
    """Their sum."""
    IRDFUSION = "irdfusion"
    """Iterated differential feedback (arXiv 2509.09085)."""
    SLGNET = "slgnet"
    """The structural alignment of SLGNet (arXiv 2601.02249), without its transformer; no parameters."""


def new_fusion(block: FusionBlock, channels: Sequence[int], tokens: tuple[int, int] = TOKENS) -> FeatureFusion:
    """An untrained block for maps of these channels, finest first; ``tokens`` is IRDFusion's (rows, columns)."""
    match block:
        case FusionBlock.CONCAT:
            return Concatenation(channels)
        case FusionBlock.ADD:
            return Addition()
        case FusionBlock.IRDFUSION:
            return PyramidFusion(channels, [tokens] * len(channels))
        case FusionBlock.SLGNET:
            return StructuralAlignment()
