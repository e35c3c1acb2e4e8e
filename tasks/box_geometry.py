"""Overlap of boxes given by their corners: left, top, right, bottom in pixels, in the last axis."""

from __future__ import annotations

import torch
from torch import Tensor

_LEAST_AREA = 1e-9


def iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of ``[..., 4]`` and ``[..., 4]``, broadcast; 0 to 1, and 0 for boxes without area."""
    return _iou_and_union(first, second)[0]


def generalised_iou(first: Tensor, second: Tensor) -> Tensor:
    """GIoU = IoU − (hull − union) / hull, −1 to 1, broadcast (Rezatofighi et al. 2019); hull encloses both boxes."""
    shared, union = _iou_and_union(first, second)
    sides = torch.maximum(first[..., 2:], second[..., 2:]) - torch.minimum(first[..., :2], second[..., :2])
    hull = sides.prod(dim=-1).clamp_min(_LEAST_AREA)
    return shared - (hull - union) / hull


def within(points: Tensor, boxes: Tensor) -> Tensor:
    """Whether points ``[A, 2]`` (x, y) lie inside boxes ``[N, 4]``: ``[N, A]`` bool."""
    return ((points > boxes[:, None, :2]) & (points < boxes[:, None, 2:])).all(dim=-1)


def corners_of(centred: Tensor) -> Tensor:
    """Corners ``[..., 4]`` of boxes given by centre and size (x, y, width, height)."""
    centre, half = centred[..., :2], centred[..., 2:] / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def centred_of(corners: Tensor) -> Tensor:
    """Centre and size ``[..., 4]`` of boxes given by their corners."""
    low, high = corners[..., :2], corners[..., 2:]
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def _iou_and_union(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    low = torch.maximum(first[..., :2], second[..., :2])
    high = torch.minimum(first[..., 2:], second[..., 2:])
    shared = (high - low).clamp_min(0).prod(dim=-1)
    areas = [(boxes[..., 2:] - boxes[..., :2]).clamp_min(0).prod(dim=-1) for boxes in (first, second)]
    union = (areas[0] + areas[1] - shared).clamp_min(_LEAST_AREA)
    return shared / union, union
