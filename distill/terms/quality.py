"""Fusion metrics themselves as a loss: what a student is judged by, learned directly.

Each metric alone is cheated by something (docs/metrics.md), so a recipe names several that pull in different directions
and puts terms beside them that know what the pictures are for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from duskfuse.data.fuser import FusionOutput
from duskfuse.tasks.fusion_quality import LOWER_IS_BETTER, fusion_quality

if TYPE_CHECKING:
    from duskfuse.distill.context import BatchContext


def quality(fused: FusionOutput, context: BatchContext) -> Tensor:
    """Σ of the recipe's ``quality`` weights times the metrics, negative where higher is better.

    Each metric is a mean over the samples on which it is defined.
    """
    wanted = context.quality
    found = fusion_quality(context.batch.ir, context.batch.vis_y, fused.y, list(wanted))
    total = fused.y.sum() * 0
    for name, weight in wanted.items():
        values, defined = found[name], found[name].isfinite()
        if not defined.all():
            # once more without the others: through a selection, the gradient of an undefined value is undefined, too
            values = _of_samples(fused.y, context, name, defined)
        if len(values):
            total = total + (weight if name in LOWER_IS_BETTER else -weight) * values.mean()
    return total


def _of_samples(fused: Tensor, context: BatchContext, name: str, chosen: Tensor) -> Tensor:
    if not chosen.any():
        return torch.empty(0)
    batch = context.batch
    return fusion_quality(batch.ir[chosen], batch.vis_y[chosen], fused[chosen], [name])[name]
