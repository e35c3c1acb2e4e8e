"""Average precision of object detection, as COCO defines it, computed by faster-coco-eval."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from duskfuse.data.containers import Size
from duskfuse.data.errors import InputError

AT_50, AT_75 = 0, 5
"""Rows of IoU 0.50 and 0.75 among the thresholds."""


class Boxes(NamedTuple):
    """Boxes of one picture, in pixels."""

    kinds: NDArray[np.int64]
    """Class numbers, ``[N]``."""
    places: NDArray[np.float64]
    """Left, top, width, height, ``[N, 4]``."""
    confidences: NDArray[np.float64]
    """``[N]``, 0 to 1; 1 for the ground truth."""

    @classmethod
    def of(cls, rows: Sequence[Sequence[float]]) -> Boxes:
        """Rows of class, left, top, width, height, confidence."""
        table = np.array(rows, dtype=np.float64).reshape(-1, 6)
        return cls(table[:, 0].astype(np.int64), table[:, 1:5], table[:, 5])


def average_precision(
    truth: Sequence[Boxes], predicted: Sequence[Boxes], sizes: Sequence[Size], kinds: Sequence[int]
) -> NDArray[np.float64]:
    """COCO's average precision, ``[10, classes]``: IoU 0.50, 0.55, …, 0.95 by class; nan for a class without object.

    Args:
        truth: boxes of each picture.
        predicted: boxes of the same pictures.
        sizes: (height, width) of the pictures.
        kinds: numbers of the classes.
    """
    library = scoring_library()
    known = library.COCO(_coco_dataset(truth, sizes, kinds))
    found = library.COCO(_coco_dataset(predicted, sizes, kinds))
    evaluation = library.COCOeval_faster(known, found, "bbox", print_function=_say_nothing)
    evaluation.evaluate()
    evaluation.accumulate()
    precision = np.asarray(evaluation.eval["precision"], dtype=np.float64)[:, :, :, 0, -1]  # every size, 100 boxes
    ap: NDArray[np.float64] = precision.mean(axis=1)
    ap[(precision < 0).any(axis=1)] = np.nan
    return ap


def scoring_library() -> Any:
    """What computes the scores; InputError where it is not installed."""
    try:
        return import_module("faster_coco_eval")
    except ImportError as error:
        raise InputError(
            "faster-coco-eval is not installed",
            rule="detection is scored with it",
            remedy="pip install 'duskfuse[tasks]'",
        ) from error


def _say_nothing(*_: object) -> None:
    """Stdout belongs to the result."""


def _coco_dataset(pictures: Sequence[Boxes], sizes: Sequence[Size], kinds: Sequence[int]) -> dict[str, Any]:
    annotations: list[dict[str, Any]] = []
    for image, boxes in enumerate(pictures, start=1):
        for kind, place, confidence in zip(*boxes, strict=True):
            left, top, width, height = map(float, place)
            annotations.append(
                {
                    "id": len(annotations) + 1,  # COCO's matching takes 0 for no match
                    "image_id": image,
                    "category_id": int(kind),
                    "bbox": [left, top, width, height],
                    "area": width * height,
                    "iscrowd": 0,
                    "score": float(confidence),
                }
            )
    return {
        "images": [{"id": image, "height": size[0], "width": size[1]} for image, size in enumerate(sizes, start=1)],
        "annotations": annotations,
        "categories": [{"id": kind, "name": str(kind)} for kind in kinds],
    }
