"""The critics: what a frozen task network sees in the fused picture, against the ground truth.

L_task = loss(network(RGB(o)), truth); for a segmenter, SAGE §5. RGB(o) is the fused luminance with the visible chroma,
as users see it. A detector of two cameras is given it in the place of the visible picture, beside the infrared one.

Corrections to the published code (SAGE specification §8, rows 1 to 3): tensors throughout, so that there is a gradient;
labels are ids, never scaled; the segmenter gives logits, whatever its network ends in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from duskfuse.data.colour import recombine
from duskfuse.data.fuser import FusionOutput
from duskfuse.tasks.task_network import RGB, Task

if TYPE_CHECKING:
    from duskfuse.distill.context import BatchContext


def segmentation(fused: FusionOutput, context: BatchContext) -> Tensor:
    """L_seg, the mean over the pixels of the batch that have a label; exactly 0 with zero gradient where none has."""
    return _judged(fused, context, Task.SEGMENTATION, context.batch.label)


def detection(fused: FusionOutput, context: BatchContext) -> Tensor:
    """Loss of a detector on the boxes of the batch; exactly 0 with zero gradient where no pair has a file of boxes."""
    return _judged(fused, context, Task.DETECTION, context.batch.objects)


def saliency(fused: FusionOutput, context: BatchContext) -> Tensor:
    """Cross-entropy and 1 − IoU of a saliency network's maps; exactly 0 with zero gradient where no pair has a map."""
    return _judged(fused, context, Task.SALIENCY, context.batch.salient)


def _judged(fused: FusionOutput, context: BatchContext, task: Task, truth: Tensor | None) -> Tensor:
    critic = context.critics.get(task)
    if critic is None or truth is None:
        raise ValueError(f"the {task} term needs a network and ground truth")
    picture = recombine(fused.y, context.batch.vis) if fused.rgb is None else fused.rgb
    if critic.channels > RGB:
        picture = torch.cat([picture, context.batch.ir], dim=1)
    return critic.loss(critic(picture), truth)
