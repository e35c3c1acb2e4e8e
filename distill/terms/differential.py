"""A term where the cameras differ: errors count by the differential saliency of a frozen IRDFusion detector.

The saliency s is where the detector's two guided loops find something that only one camera sees; what both see alike
cancels out (IRDFusion, arXiv 2509.09085). By linearity a loss weighted by 1 + κ s is the loss and κ times this term
beside each other, so that κ is a weight in the recipe.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from duskfuse.data.fuser import FusionOutput
from duskfuse.distill.terms.fusion import sobel_magnitude, source_gradient
from duskfuse.tasks.detector import Detector
from duskfuse.tasks.task_network import Task

if TYPE_CHECKING:
    from duskfuse.distill.context import BatchContext

_KEPT = "differential saliency"


def salient_gradient(fused: FusionOutput, context: BatchContext) -> Tensor:
    """Mean of s · |g(o) − ∇max(vis, ir)|: `gradient_max` where an IRDFusion detector finds the cameras different."""
    errors = (sobel_magnitude(fused.y) - source_gradient(context)).abs()
    return (differential_saliency(context) * errors).mean()


def differential_saliency(context: BatchContext) -> Tensor:
    """s of the batch, ``[B, 1, H, W]`` in [0, 1], without a graph; computed once for all terms that look at it."""
    kept = context.batch.derived
    if _KEPT not in kept:
        detector = context.critics.get(Task.DETECTION)
        if not isinstance(detector, Detector):
            raise ValueError("differential saliency needs a detector")
        kept[_KEPT] = detector.differences(torch.cat([context.batch.vis, context.batch.ir], dim=1))
    saliency: Tensor = kept[_KEPT]
    return saliency
