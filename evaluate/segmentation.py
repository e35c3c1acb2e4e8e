"""Semantic segmentation: mean IoU from one confusion matrix of the whole dataset.

Pixels of all pictures go into one matrix; IoU is computed once from its counts, not averaged over pictures. Which
classes a publication counts differs, so every number carries the name of its convention. Pixels whose label is 255, or
a class that the convention leaves out, do not count; a prediction of such a class elsewhere is a wrong one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from duskfuse.data.class_conventions import Convention, check_ids
from duskfuse.data.class_tables import ClassTable
from duskfuse.data.pair_files import PairFiles, read_label
from duskfuse.data.progress import track
from duskfuse.evaluate.metrics import MetricInfo
from duskfuse.evaluate.statistics import CONFIDENCE, FEWEST_PAIRS, RESAMPLES, SEED, Interval
from duskfuse.evaluate.task_results import ClassScores, MethodScores
from duskfuse.tasks.confusion import ClassPixels, Counts, confusion, defined_mean, present_ratio

MIOU = MetricInfo("mIoU", True, "mean of the classes' TP / (TP + FP + FN) over the dataset", 4)
ACCURACY = MetricInfo("mean accuracy", True, "mean of the classes' TP / (TP + FN) over the dataset", 4)
PIXELS = MetricInfo("pixel accuracy", True, "share of the counted pixels that are right", 4)
IMAGE_MIOU = MetricInfo("image mIoU", True, "mean IoU of one picture over the classes in its label", 4)
MEASURES = (MIOU, ACCURACY, PIXELS)
_DRAWN_AT_ONCE = 2_000_000


def score_segmentation(
    rows: Mapping[str, Mapping[str, Path]], pairs: Sequence[PairFiles], convention: Convention
) -> list[MethodScores]:
    """Score predicted label pictures.

    Args:
        rows: row name → pair name → picture of ids, or in the colours of the table.
        pairs: the pairs, all with a label.
        convention: which classes count.

    Raises:
        InputError: a label or prediction is unreadable or has ids that are no class.
    """
    matrices: dict[str, list[Counts]] = {row: [] for row in rows}
    for pair in track(pairs, "Scoring labels"):
        truth = _ids(pair, pair.label, convention.table)
        for row, files in rows.items():
            predicted = _ids(pair, files[pair.name], convention.table)
            matrices[row].append(confusion(truth, predicted, len(convention.table)))
    names = [pair.name for pair in pairs]
    return [_scores(row, names, np.stack(found), convention) for row, found in matrices.items()]


def _ids(pair: PairFiles, path: Path | None, table: ClassTable) -> NDArray[np.int64]:
    if path is None:
        raise ValueError(f"{pair.name} has no label")
    label = read_label(path, pair.vis.size(), table)
    check_ids(label, path, table)
    ids: NDArray[np.int64] = label.numpy()
    return ids


def _scores(name: str, pairs: Sequence[str], matrices: Counts, convention: Convention) -> MethodScores:
    """The scores of one row from the matrices of its pictures, ``[pictures, classes, classes + 1]``."""
    counts = ClassPixels.of(matrices, convention.counted)
    whole = counts.total()
    iou, accuracy = whole.iou(), whole.accuracy()
    classes = tuple(
        ClassScores(
            convention.table.names[number],
            {"IoU": float(iou[place]), "accuracy": float(accuracy[place])},
            int(whole.truth[place]),
            int(whole.predicted[place]),
        )
        for place, number in enumerate(convention.counted)
    )
    return MethodScores(
        name=name,
        totals={
            MIOU.name: float(defined_mean(iou)),
            ACCURACY.name: float(defined_mean(accuracy)),
            PIXELS.name: whole.pixel_accuracy(),
        },
        per_image={
            pair: {IMAGE_MIOU.name: float(value)} for pair, value in zip(pairs, defined_mean(counts.iou()), strict=True)
        },
        classes=classes,
        intervals={MIOU.name: miou_interval(counts.right, counts.truth, counts.predicted)},
    )


def miou_interval(right: Counts, truth: Counts, predicted: Counts) -> Interval | None:
    """95 % percentile bootstrap of the dataset's mIoU over pictures; None for fewer than six.

    A sample that misses a class altogether has its mean over the others.

    Args:
        right: pixels ``[pictures, classes]`` that are right.
        truth: pixels of the label.
        predicted: pixels of the prediction.
    """
    if len(right) < FEWEST_PAIRS:
        return None
    samples = np.concatenate(
        [
            defined_mean(present_ratio(drawn @ right, drawn @ (truth + predicted - right), drawn @ truth))
            for drawn in _resamples(len(right))
        ]
    )
    samples = samples[~np.isnan(samples)]
    if not samples.size:
        return None
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(samples, [tail, 1 - tail])
    return Interval(float(low), float(high))


def _resamples(pictures: int) -> Iterator[NDArray[np.float64]]:
    """How often each picture is drawn, ``[samples, pictures]``, `RESAMPLES` samples in all."""
    rng = np.random.default_rng(SEED)
    step = max(1, _DRAWN_AT_ONCE // pictures)
    for start in range(0, RESAMPLES, step):
        samples = min(step, RESAMPLES - start)
        drawn = rng.integers(pictures, size=(samples, pictures)) + pictures * np.arange(samples)[:, None]
        yield np.bincount(drawn.ravel(), minlength=samples * pictures).reshape(samples, pictures).astype(np.float64)
