"""One prediction for every object: the matching of least cost (Kuhn 1955), as DETR trains by (Carion et al. 2020)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from duskfuse.tasks.box_geometry import corners_of, generalised_iou

CLASS_COST, L1_COST, GIOU_COST = 2.0, 5.0, 2.0
_ALPHA, _GAMMA = 0.25, 2.0
_LEAST = 1e-8
_WORST = 1e6
"""Cost in place of a number that is not finite: such a prediction is matched last, and its loss says what it is."""


class Matching(NamedTuple):
    """Pairs of a prediction and an object, min(Q, N) of them."""

    queries: Tensor
    """``[M]`` int64, rising."""
    objects: Tensor
    """``[M]`` int64."""


@torch.no_grad()
def match(logits: Tensor, boxes: Tensor, kinds: Tensor, centred: Tensor) -> Matching:
    """Match the queries of one picture with its objects.

    The cost of a pair is 2 · focal + 5 · L1 + 2 · (1 − GIoU), with the focal loss (Lin et al. 2017) of naming the
    object's class less that of not naming it.

    Args:
        logits: ``[Q, C]``.
        boxes: centre and size in parts of the picture, ``[Q, 4]``.
        kinds: class of every object, ``[N]``.
        centred: centre and size of every object in parts of the picture, ``[N, 4]``.
    """
    from scipy.optimize import linear_sum_assignment

    cost = matching_cost(logits, boxes, kinds, centred)
    cost = torch.nan_to_num(cost, nan=_WORST, posinf=_WORST, neginf=-_WORST)
    queries, objects = linear_sum_assignment(cost.cpu().double().numpy())
    return Matching(*(torch.from_numpy(np.asarray(part)).to(logits.device) for part in (queries, objects)))


def matching_cost(logits: Tensor, boxes: Tensor, kinds: Tensor, centred: Tensor) -> Tensor:
    """Cost of every pair, ``[Q, N]``; arguments as for `match`."""
    score = logits.sigmoid()[:, kinds]
    named = _ALPHA * (1 - score) ** _GAMMA * -(score + _LEAST).log()
    unnamed = (1 - _ALPHA) * score**_GAMMA * -(1 - score + _LEAST).log()
    distance = (boxes[:, None] - centred).abs().sum(dim=2)
    overlap = generalised_iou(corners_of(boxes)[:, None], corners_of(centred))
    return CLASS_COST * (named - unnamed) + L1_COST * distance + GIOU_COST * (1 - overlap)
