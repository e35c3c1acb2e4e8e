"""Which object each point of a pyramid answers for: task-aligned assignment (TOOD, Feng et al. 2021).

A point is good for an object where it both names its class and finds its box: t = s^α · u^β, with the score s of the
object's class and the IoU u of the predicted box. Each object takes the best points inside it. A point that several
take goes to the one that its box overlaps most. The target of a point's score is t, scaled for every object so that
its largest value is the largest IoU: the point that is to win is the one that sees best.

Beyond the paper: an object so small that no point lies inside it takes the point next to its centre, where it would
have had none.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from duskfuse.tasks.box_geometry import iou, within

TOP, ALPHA, BETA = 13, 1.0, 6.0
"""Points per object, and the exponents of score and overlap (TOOD §4)."""
NO_OBJECT = -1
_LEAST = 1e-30


class Assigned(NamedTuple):
    """What every point answers for."""

    owner: Tensor
    """Number of its object, ``[A]`` int64; −1 for none."""
    quality: Tensor
    """Target of its score for the object's class, ``[A]`` from 0 to 1; 0 without object."""


@torch.no_grad()
def task_aligned(
    scores: Tensor,
    boxes: Tensor,
    points: Tensor,
    kinds: Tensor,
    corners: Tensor,
    *,
    top: int = TOP,
    alpha: float = ALPHA,
    beta: float = BETA,
) -> Assigned:
    """Assign the objects of one picture to its points.

    Args:
        scores: of every class at every point, ``[A, C]`` from 0 to 1.
        boxes: predicted at every point, ``[A, 4]`` corners in pixels.
        points: ``[A, 2]`` (x, y) in pixels.
        kinds: class of every object, ``[N]``.
        corners: of every object, ``[N, 4]``.
        top: points that an object takes at most.
        alpha: exponent of the score.
        beta: exponent of the overlap.
    """
    count = len(points)
    if not len(kinds):
        return Assigned(torch.full((count,), NO_OBJECT, device=points.device), scores.new_zeros(count))
    overlap = iou(corners[:, None], boxes)
    alignment = scores[:, kinds].T ** alpha * overlap**beta
    taken = _best_inside(alignment, _candidates(points, corners), top)
    owner = torch.where(taken, overlap, -1.0).argmax(dim=0)  # of several objects, the one with the largest overlap
    owner = torch.where(taken.any(dim=0), owner, NO_OBJECT)
    own = owner == torch.arange(len(kinds), device=owner.device)[:, None]
    largest_alignment = (alignment * own).amax(dim=1, keepdim=True).clamp_min(_LEAST)
    quality = own * alignment / largest_alignment * (overlap * own).amax(dim=1, keepdim=True)
    return Assigned(owner, quality.sum(dim=0))


def _candidates(points: Tensor, corners: Tensor) -> Tensor:
    """Points that an object may take, ``[N, A]``: those inside it, or else the one next to its centre."""
    inside = within(points, corners)
    centres = (corners[:, :2] + corners[:, 2:]) / 2
    nearest = (points - centres[:, None]).square().sum(dim=2).argmin(dim=1)
    missed = ~inside.any(dim=1)
    inside[missed, nearest[missed]] = True
    return inside


def _best_inside(alignment: Tensor, candidates: Tensor, top: int) -> Tensor:
    best = torch.where(candidates, alignment, -1.0).topk(min(top, alignment.shape[1]), dim=1).indices
    return torch.zeros_like(candidates).scatter_(1, best, True) & candidates
