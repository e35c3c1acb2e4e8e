"""Losses of detectors: quality focal loss for scores, generalised IoU for boxes."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from duskfuse.tasks.box_geometry import generalised_iou

BETA = 2.0
"""Exponent of the quality focal loss (Li et al. 2020)."""
CLASS_WEIGHT, L1_WEIGHT, GIOU_WEIGHT = 1.0, 5.0, 2.0


class DetectionLosses(NamedTuple):
    """The parts of a detector's loss, before their weights."""

    classes: Tensor
    giou: Tensor
    l1: Tensor | None = None
    """Of centre and size, in parts of the picture; None for heads that are trained without it."""

    def weighted(self) -> Tensor:
        """Their weighted sum."""
        total = CLASS_WEIGHT * self.classes + GIOU_WEIGHT * self.giou
        return total if self.l1 is None else total + L1_WEIGHT * self.l1


def quality_focal_loss(logits: Tensor, targets: Tensor, beta: float = BETA) -> Tensor:
    """|q − σ(x)|^β · BCE(σ(x), q) of every element (Li et al. 2020); 0 where the score is the target.

    Args:
        logits: x, of any shape.
        targets: quality q of the box for its class, 0 to 1; 0 for every other class.
        beta: how strongly scores that are nearly right are passed over.
    """
    distance = (targets - logits.sigmoid()).abs()
    return distance**beta * F.binary_cross_entropy_with_logits(logits, targets, reduction="none")


def giou_loss(predicted: Tensor, truth: Tensor) -> Tensor:
    """1 − GIoU of boxes ``[M, 4]`` (corners) with their own: ``[M]``, 0 to 2."""
    return 1 - generalised_iou(predicted, truth)
