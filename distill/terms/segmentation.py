"""The segmentation critic: what a frozen segmenter sees in the fused picture, against the label.

L_seg = CE(segmenter(RGB(o)), label) (SAGE §5). RGB(o) is the fused luminance with the visible chroma, as users see it.

Corrections to the published code (SAGE specification §8, rows 1 to 3): tensors throughout, so that there is a gradient;
labels are ids, never scaled; the segmenter gives logits, whatever its network ends in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from duskfuse.data.colour import recombine
from duskfuse.data.fuser import FusionOutput

if TYPE_CHECKING:
    from duskfuse.distill.context import BatchContext


def segmentation(fused: FusionOutput, context: BatchContext) -> Tensor:
    """L_seg, the mean over the pixels of the batch that have a label; exactly 0 with zero gradient where none has."""
    if context.segmenter is None or context.batch.label is None:
        raise ValueError("the segmentation term needs a segmenter and labels")
    picture = recombine(fused.y, context.batch.vis) if fused.rgb is None else fused.rgb
    return context.segmenter.loss(context.segmenter(picture), context.batch.label)
