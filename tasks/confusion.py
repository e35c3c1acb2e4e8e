"""The confusion matrix of label maps, and what is computed from it: one matrix of a whole dataset gives its IoU.

IoU averaged over pictures is another number: a class that one picture barely shows would weigh as much as in any.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from duskfuse.data.class_tables import IGNORED

Counts = NDArray[np.int64]
"""Confusion matrix ``[classes, classes + 1]``: label by prediction, last the predictions of no class (255)."""


def confusion(truth: NDArray[np.integer[Any]], predicted: NDArray[np.integer[Any]], classes: int) -> Counts:
    """Count the pixels of one picture by label and prediction.

    Args:
        truth: ids ``[H, W]``, below ``classes`` or 255, which is not counted.
        predicted: ids ``[H, W]``, below ``classes`` or 255 for none.
        classes: how many there are.
    """
    counted = truth != IGNORED
    pairs = truth[counted].astype(np.int64) * (classes + 1) + np.minimum(predicted[counted], classes)
    return np.bincount(pairs, minlength=classes * (classes + 1)).reshape(classes, classes + 1).astype(np.int64)


@dataclass(frozen=True)
class ClassPixels:
    """Pixels ``[…, classes]`` that are right, of the label, and of the prediction."""

    right: Counts
    truth: Counts
    predicted: Counts

    @classmethod
    def of(cls, matrices: Counts, counted: Sequence[int]) -> ClassPixels:
        """From matrices ``[…, classes, classes + 1]``, of the ``counted`` classes only."""
        ids = np.array(counted)
        rows = matrices[..., ids, :]
        mine = rows[..., ids]
        return cls(np.diagonal(mine, axis1=-2, axis2=-1), rows.sum(axis=-1), mine.sum(axis=-2))

    def total(self) -> ClassPixels:
        """The sum over the first axis, the pictures."""
        return ClassPixels(self.right.sum(axis=0), self.truth.sum(axis=0), self.predicted.sum(axis=0))

    def iou(self) -> NDArray[np.float64]:
        """TP / (TP + FP + FN) of every class; nan where the labels have none of it."""
        return present_ratio(self.right, self.truth + self.predicted - self.right, self.truth)

    def accuracy(self) -> NDArray[np.float64]:
        """TP / (TP + FN) of every class; nan where the labels have none of it."""
        return present_ratio(self.right, self.truth, self.truth)

    def pixel_accuracy(self) -> float:
        """Share of all counted pixels that are right; nan where there are none."""
        pixels = self.truth.sum()
        return float(self.right.sum() / pixels) if pixels else float("nan")


def present_ratio(
    part: NDArray[np.generic], whole: NDArray[np.generic], present: NDArray[np.generic]
) -> NDArray[np.float64]:
    """part / whole where the class is present in the labels, else nan."""
    undefined = np.full(np.shape(part), np.nan)
    ratio: NDArray[np.float64] = np.divide(part, whole, out=undefined, where=np.asarray(present) > 0)
    return ratio


def defined_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the last axis of what is defined; nan without any."""
    defined = ~np.isnan(values)
    count = defined.sum(axis=-1)
    total = np.where(defined, values, 0.0).sum(axis=-1)
    mean: NDArray[np.float64] = np.divide(total, count, out=np.full(np.shape(total), np.nan), where=count > 0)
    return mean
