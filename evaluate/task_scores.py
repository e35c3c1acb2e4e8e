"""``evaluate --task``: score what a task network predicted from each method's fused pictures.

The networks ran elsewhere, each in its own framework, or here (`network_scores`); what they wrote is scored by one code
for all methods, with the pairs' own labels, boxes or saliency maps as ground truth.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from duskfuse.data.atomic import write_atomically
from duskfuse.data.class_conventions import convention_for, object_classes
from duskfuse.data.errors import InputError
from duskfuse.data.layout import find_pairs
from duskfuse.data.pair_files import PairFiles
from duskfuse.evaluate import detection, saliency, segmentation
from duskfuse.evaluate.measurement_files import check_free, csv_text
from duskfuse.evaluate.metrics import MetricInfo
from duskfuse.evaluate.prediction_files import files_sha256, picture_predictions
from duskfuse.evaluate.task_results import MethodScores, TaskScores
from duskfuse.tasks.task_network import Task


def task_scores(
    data: Path,
    *,
    task: Task,
    predictions: Mapping[str, Path],
    out: Path,
    classes: str | None = None,
    split: str | None = None,
    overwrite: bool = False,
) -> TaskScores:
    """Score predictions on all pairs that have ground truth; write ``TASK.json``, ``TASK.csv`` and per-image scores.

    Args:
        data: folder of pairs, see :func:`duskfuse.data.layout.find_pairs`.
        task: what was predicted.
        predictions: row name → folder. Segmentation: label pictures of ids, or in the dataset's colours. Detection:
            YOLO text with confidences, or a file of COCO results. Saliency: 8-bit grey maps.
        out: folder to write to, made where missing; files of other names in it stay.
        classes: name of the class convention; by default the dataset's.
        split: one split of the data only.
        overwrite: replace the files of an earlier run.

    Raises:
        InputError: the data have no ground truth for the task, predictions are missing, superfluous, malformed or of
            another size, no such convention, files are there already, the library of the task is not installed.
    """
    check_free(out, task_files(task), overwrite)
    if not predictions:
        raise InputError(
            f"--task {task} without predictions",
            remedy="say --predictions NAME=FOLDER, once per method, or --network FILE",
        )
    check_classes(task, classes)
    pairs = find_pairs(data, split=split)
    return score_predictions(
        data,
        task=task,
        predictions=predictions,
        pairs=pairs,
        scored=with_truth(task, pairs, data),
        out=out,
        classes=classes,
        split=split,
    )


def score_predictions(
    data: Path,
    *,
    task: Task,
    predictions: Mapping[str, Path],
    pairs: Sequence[PairFiles],
    scored: Sequence[PairFiles],
    out: Path,
    classes: str | None,
    split: str | None,
    network: Mapping[str, Any] | None = None,
) -> TaskScores:
    """Score predictions on the pairs ``scored``, which have ground truth, and write the files; see `task_scores`.

    ``network`` says what predicted, where it ran here.
    """
    scorers = {Task.SEGMENTATION: _segmentation, Task.DETECTION: _detection, Task.SALIENCY: _saliency}
    scores = scorers[task](predictions, pairs, scored, classes)
    truth = {pair.name: path for pair in scored if (path := _truth_file(task, pair)) is not None}
    found = TaskScores(
        task=task,
        data=data.resolve().name,
        out=out,
        classes=scores.classes,
        meaning=scores.meaning,
        measures=scores.measures,
        image_measures=scores.image_measures,
        pairs=tuple(truth),
        rows=scores.rows,
        libraries={name: version(name) for name in _LIBRARIES[task]},
        truth_sha256=files_sha256(truth),
        left_out=tuple(pair.name for pair in pairs if pair.name not in truth),
        split=split,
        network=network,
    )
    _write(found)
    return found


def with_truth(task: Task, pairs: Sequence[PairFiles], data: Path) -> list[PairFiles]:
    """The pairs that have ground truth for the task; InputError where none has."""
    scored = [pair for pair in pairs if _truth_file(task, pair) is not None]
    if not scored:
        raise InputError(
            f"{data}: none of {len(pairs)} pairs has {_TRUTH[task]}",
            rule=f"{task} is scored against them",
            remedy=f"add {_TRUTH[task]} to the dataset; docs/datasets.md says where they lie",
        )
    return scored


def check_classes(task: Task, classes: str | None) -> None:
    """Raise InputError where a task without classes is given some."""
    if task is Task.SALIENCY and classes is not None:
        raise InputError(f"--classes {classes}", rule="saliency has no classes", remedy="leave it away")


def task_files(task: Task) -> tuple[str, str, str]:
    """What scoring a task writes."""
    return f"{task}.json", f"{task}.csv", f"{task}_per_image.csv"


class _Scored(NamedTuple):
    """What scoring one task gives."""

    rows: tuple[MethodScores, ...]
    measures: tuple[MetricInfo, ...]
    image_measures: tuple[MetricInfo, ...]
    meaning: str
    classes: str = ""


_TRUTH = {Task.SEGMENTATION: "labels", Task.DETECTION: "boxes", Task.SALIENCY: "saliency maps"}
_LIBRARIES = {
    Task.SEGMENTATION: ("numpy",),
    Task.DETECTION: ("numpy", "faster-coco-eval"),
    Task.SALIENCY: ("numpy", "pysodmetrics"),
}


def _truth_file(task: Task, pair: PairFiles) -> Path | None:
    match task:
        case Task.SEGMENTATION:
            return pair.label
        case Task.DETECTION:
            return pair.boxes
        case Task.SALIENCY:
            return pair.saliency


def _segmentation(
    predictions: Mapping[str, Path],
    pairs: Sequence[PairFiles],
    scored: Sequence[PairFiles],
    classes: str | None,
) -> _Scored:
    convention = convention_for(classes, [pair.label_classes for pair in scored])
    files = picture_predictions(predictions, pairs, scored)
    return _Scored(
        classes=convention.name,
        meaning=f"{convention.meaning}; one confusion matrix of the dataset; pixels of other labels do not count, "
        "predictions of other classes are wrong; classes absent from the labels are in no mean",
        measures=segmentation.MEASURES,
        image_measures=(segmentation.IMAGE_MIOU,),
        rows=_hashed(segmentation.score_segmentation(files, scored, convention), files),
    )


def _detection(
    predictions: Mapping[str, Path],
    pairs: Sequence[PairFiles],
    scored: Sequence[PairFiles],
    classes: str | None,
) -> _Scored:
    objects = object_classes(classes, [pair.box_classes for pair in scored])
    return _Scored(
        classes=objects.name,
        meaning="COCO's average precision: 101 recalls, at most 100 boxes per picture and class, objects of every "
        "size; classes without object are in no mean",
        measures=detection.MEASURES,
        image_measures=(),
        rows=tuple(detection.score_detection(predictions, pairs, scored, objects)),
    )


def _saliency(
    predictions: Mapping[str, Path],
    pairs: Sequence[PairFiles],
    scored: Sequence[PairFiles],
    classes: str | None,
) -> _Scored:
    files = picture_predictions(predictions, pairs, scored)
    return _Scored(
        meaning="every map is stretched to 0 … 1; ground truth above 128 of 255 is salient; F is undefined where "
        "nothing is",
        measures=saliency.MEASURES,
        image_measures=saliency.IMAGE_MEASURES,
        rows=_hashed(saliency.score_saliency(files, scored), files),
    )


def _hashed(rows: Sequence[MethodScores], files: Mapping[str, Mapping[str, Path]]) -> tuple[MethodScores, ...]:
    return tuple(replace(row, sha256=files_sha256(files[row.name])) for row in rows)


def _write(found: TaskScores) -> None:
    as_json, as_csv, per_image = task_files(found.task)
    if found.image_measures:
        write_atomically(found.out / per_image, _per_image_csv(found))
    write_atomically(found.out / as_csv, _csv(found))
    write_atomically(found.out / as_json, json.dumps(found.to_json(), indent=2, allow_nan=False) + "\n")


def _csv(found: TaskScores) -> str:
    """One line per row and measure: over the dataset (class empty), then of every class; undefined values are empty."""
    lines: list[tuple[str, str, str, float]] = []
    for row in found.rows:
        lines += [(row.name, "", measure.name, row.totals[measure.name]) for measure in found.measures]
        lines += [(row.name, kind.name, name, value) for kind in row.classes for name, value in kind.values.items()]
    return csv_text(["method", "class", "measure", "value"], lines)


def _per_image_csv(found: TaskScores) -> str:
    columns = [measure.name for measure in found.image_measures]
    lines: list[list[str | float]] = [
        [pair, row.name, *(row.per_image[pair][column] for column in columns)]
        for pair in found.pairs
        for row in found.rows
    ]
    return csv_text(["pair", "method", *columns], lines)
