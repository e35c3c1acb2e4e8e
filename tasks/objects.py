"""Objects of a batch as the truth has them, objects found in a picture, and what every detector ends in.

The truth of a batch is one tensor ``[B, N, 5]``: rows of kind, left, top, right, bottom in pixels of the picture. The
kind is a class number, `IGNORED` (255) for a region in which nothing counts, or `EMPTY` (−1) for a slot without object.
A picture of which nobody knows the objects is one region of its whole size, and so moves nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Generic, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from duskfuse.data.class_tables import IGNORED
from duskfuse.tasks.box_geometry import corners_of

EMPTY = -1
"""Kind of a slot that holds no object."""
FIELDS = 5

Prediction = TypeVar("Prediction")


class Detections(NamedTuple):
    """Objects found in one picture, the surest first."""

    kinds: Tensor
    """Class numbers, ``[N]`` int64."""
    corners: Tensor
    """Left, top, right, bottom in pixels, inside the picture, ``[N, 4]``."""
    confidences: Tensor
    """``[N]``, 0 to 1."""


class TrueObjects(NamedTuple):
    """The objects of one picture."""

    kinds: Tensor
    """``[N]`` int64."""
    corners: Tensor
    """``[N, 4]``."""
    ignored: Tensor
    """Regions where nothing counts, ``[M, 4]``."""


class ObjectHead(nn.Module, ABC, Generic[Prediction]):
    """What a detector ends in: from maps of a feature pyramid to objects."""

    @abstractmethod
    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Prediction:
        """The prediction from maps ``[B, C, h, w]``, finest first, of pictures of ``size`` (height, width).

        The maps may cover more than the picture, at the bottom and right: that part is not looked at.
        """

    @abstractmethod
    def loss(self, prediction: Prediction, truth: Tensor) -> Tensor:
        """One scalar for the batch, see the module for ``truth [B, N, 5]``; exactly 0 where nothing counts."""

    @abstractmethod
    def detections(self, prediction: Prediction) -> list[Detections]:
        """The objects of every picture of the batch."""


def objects_in_pixels(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Rows of truth ``[N, 5]`` from ``[N, 5]`` class, centre x, centre y, width, height, normalised to [0, 1]."""
    height, width = size
    scale = boxes.new_tensor([width, height, width, height])
    return torch.cat([boxes[:, :1], corners_of(boxes[:, 1:] * scale)], dim=1)


def nothing_known(size: tuple[int, int]) -> Tensor:
    """The truth ``[1, 5]`` of a picture of ``size`` (height, width) whose objects nobody knows."""
    return torch.tensor([[float(IGNORED), 0, 0, size[1], size[0]]])


def stacked_objects(pictures: Sequence[Tensor]) -> Tensor:
    """Truth ``[B, N, 5]`` of a batch from ``[N_i, 5]`` of each picture, filled up by empty slots."""
    most = max(len(rows) for rows in pictures)
    return torch.stack([F.pad(rows, (0, 0, 0, most - len(rows)), value=EMPTY) for rows in pictures])


def true_objects(rows: Tensor, classes: int) -> TrueObjects:
    """The truth ``[N, 5]`` of one picture, parted; boxes without area are left out.

    Raises:
        ValueError: a kind is no class, no region and no empty slot.
    """
    kinds, corners = rows[:, 0].long(), rows[:, 1:].float()
    has_area = (corners[:, 2:] > corners[:, :2]).all(dim=1)
    ignored = kinds == IGNORED
    known = ~ignored & (kinds != EMPTY)
    if (known & ((kinds < 0) | (kinds >= classes))).any():
        raise ValueError(f"classes {sorted(set(kinds[known].tolist()))} in the truth of a head of {classes} classes")
    return TrueObjects(kinds[known & has_area], corners[known & has_area], corners[ignored & has_area])
