"""SLGNet's structural alignment between the two encoders of any detector; its adapters need a transformer."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from duskfuse.tasks.feature_fusion import FeatureFusion
from duskfuse.tasks.slgnet.alignment import align


class StructuralAlignment(FeatureFusion):
    """Each map weighed by how much its edges resemble the stronger ones of both; no parameters."""

    def forward(self, ir: Sequence[Tensor], vis: Sequence[Tensor]) -> list[Tensor]:
        """See `FeatureFusion.forward`."""
        return [align(ours, theirs).fused for ours, theirs in zip(vis, ir, strict=True)]
