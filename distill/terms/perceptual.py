"""The perceptual term: two pictures compared by what a classification network sees in them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from duskfuse.data.fuser import FusionOutput
from duskfuse.distill.terms.distillation import compared_pictures

if TYPE_CHECKING:
    from duskfuse.distill.context import BatchContext

_RGB = 3


def perceptual(fused: FusionOutput, reference: FusionOutput, context: BatchContext) -> Tensor:
    """L_perc = Σ_k mean|φ_k(o) − φ_k(ref)| over the maps of a frozen network (Johnson et al. 2016, with L1).

    The maps are those of RGB normalised by the mean and deviation of ImageNet, for VGG-16 relu1_2, 2_2, 3_3 and 4_3;
    luminance is seen as grey.
    """
    if context.perceptual is None:
        raise ValueError("the perceptual term needs a network")
    ours, theirs = (
        context.perceptual.raw(picture.expand(-1, _RGB, -1, -1))
        for picture in compared_pictures(fused, reference, context)
    )
    return torch.stack([F.l1_loss(a, b) for a, b in zip(ours, theirs, strict=True)]).sum()
