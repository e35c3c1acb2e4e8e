"""Object detection: average precision as COCO defines it, computed by faster-coco-eval.

AP is the mean precision at 101 recalls, of at most 100 boxes per picture and class, objects of every size; AP50:95 is
its mean over IoU 0.50, 0.55, …, 0.95. A class without any object in the ground truth has none and is in no mean.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from duskfuse.data.class_conventions import ObjectClasses
from duskfuse.data.containers import Size
from duskfuse.data.errors import InputError
from duskfuse.data.pair_files import PairFiles, pair_boxes, text_lines
from duskfuse.data.progress import track
from duskfuse.data.read_files import read_text
from duskfuse.evaluate.metrics import MetricInfo
from duskfuse.evaluate.prediction_files import files_sha256, stems_of, text_predictions
from duskfuse.evaluate.task_results import ClassScores, MethodScores, mean_of
from duskfuse.tasks.detection_scores import AT_50, AT_75, Boxes, average_precision, scoring_library

MEASURES = (
    MetricInfo("AP50:95", True, "mean over the classes and IoU 0.50, 0.55, …, 0.95 of COCO's average precision", 4),
    MetricInfo("AP50", True, "mean over the classes of COCO's average precision at IoU 0.50", 4),
    MetricInfo("AP75", True, "mean over the classes of COCO's average precision at IoU 0.75", 4),
)
_LARGEST_JSON = 2**30
_MOST_CLASSES = 2**24
_SHOWN = 5


def score_detection(
    sources: Mapping[str, Path], pairs: Sequence[PairFiles], scored: Sequence[PairFiles], classes: ObjectClasses
) -> list[MethodScores]:
    """Score predicted boxes.

    Args:
        sources: row name → folder of YOLO text with confidences (``class cx cy width height confidence``, normalised),
            or a file of COCO results (``image_id``: name or stem of the pair; ``category_id``: class number from 0).
        pairs: all pairs of the data.
        scored: those with boxes.
        classes: which classes there are.

    Raises:
        InputError: files are missing or malformed, a class is unknown, faster-coco-eval is not installed.
    """
    scoring_library()
    folders = {row: path for row, path in sources.items() if not _is_results(path)}
    files = text_predictions(folders, pairs, scored)
    predicted: dict[str, dict[str, Boxes]] = {}
    hashes: dict[str, str] = {}
    for row, path in sources.items():
        if row in files:
            predicted[row] = {pair.name: _yolo_boxes(files[row][pair.name], pair, classes) for pair in scored}
            hashes[row] = files_sha256(files[row])
        else:
            predicted[row] = _coco_results(path, pairs, classes)
            hashes[row] = files_sha256({path.name: path})
    truth = [_true_boxes(pair, classes) for pair in track(scored, "Reading boxes")]
    rows = {row: [boxes.get(pair.name, Boxes.of([])) for pair in scored] for row, boxes in predicted.items()}
    sizes = [pair.vis.size() for pair in scored]
    kinds = _numbers(classes, [truth, *rows.values()])
    return [_scores(row, truth, boxes, sizes, classes, kinds, hashes[row]) for row, boxes in rows.items()]


def _scores(
    name: str,
    truth: Sequence[Boxes],
    predicted: Sequence[Boxes],
    sizes: Sequence[Size],
    classes: ObjectClasses,
    kinds: Sequence[int],
    sha256: str,
) -> MethodScores:
    true_counts, counts = _counts(truth), _counts(predicted)
    ap = average_precision(truth, predicted, sizes, kinds)
    found = tuple(
        ClassScores(
            classes.text(kind),
            {"AP50:95": float(column.mean()), "AP50": float(column[AT_50]), "AP75": float(column[AT_75])},
            true_counts.get(kind, 0),
            counts.get(kind, 0),
        )
        for kind, column in zip(kinds, ap.T, strict=True)
    )
    totals = {measure.name: mean_of([kind.values[measure.name] for kind in found]) for measure in MEASURES}
    return MethodScores(name, totals, {}, found, sha256=sha256)


def _numbers(classes: ObjectClasses, sets: Sequence[Sequence[Boxes]]) -> list[int]:
    """The classes to score; where they have no names, those of any box in these sets of pictures."""
    if classes.names is not None:
        return list(range(len(classes.names)))
    return sorted({kind for pictures in sets for kind in _counts(pictures)})


def _counts(pictures: Sequence[Boxes]) -> dict[int, int]:
    kinds, counts = np.unique(np.concatenate([boxes.kinds for boxes in pictures]), return_counts=True)
    return {int(kind): int(count) for kind, count in zip(kinds, counts, strict=True)}


def _true_boxes(pair: PairFiles, classes: ObjectClasses) -> Boxes:
    if pair.boxes is None:
        raise ValueError(f"{pair.name} has no boxes")
    size = pair.vis.size()
    rows = pair_boxes(pair, pair.boxes, size).double().tolist()
    for row in rows:
        classes.check(pair.boxes, int(row[0]))
    return Boxes.of([[*_in_pixels(row, size), 1.0] for row in rows])


def _in_pixels(row: Sequence[float], size: Size) -> list[float]:
    kind, across, down, width, height = row
    return [
        kind,
        (across - width / 2) * size[1],
        (down - height / 2) * size[0],
        width * size[1],
        height * size[0],
    ]


def _yolo_boxes(path: Path, pair: PairFiles, classes: ObjectClasses) -> Boxes:
    size = pair.vis.size()
    rows = []
    for number, line in text_lines(path):
        try:
            row = [float(word) for word in line.split()]
        except ValueError:
            row = []
        if not (len(row) == 6 and all(0 <= value <= 1 for value in row[1:]) and _is_class(row[0])):
            raise InputError(
                f"{path}, line {number}: {line[:60]!r}",
                rule="a predicted box is `class cx cy width height confidence`: a whole number and five from 0 to 1",
                remedy="write normalised boxes with their confidence",
            )
        classes.check(path, int(row[0]))
        rows.append([*_in_pixels(row[:5], size), row[5]])
    return Boxes.of(rows)


def _is_results(path: Path) -> bool:
    return path.suffix.lower() == ".json" and not path.is_dir()


def _coco_results(path: Path, pairs: Sequence[PairFiles], classes: ObjectClasses) -> dict[str, Boxes]:
    """The boxes of every pair in a file of COCO results; a pair that the file does not name has none."""
    try:
        entries = json.loads(read_text(path, _LARGEST_JSON))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error})", remedy="give COCO results") from error
    if not isinstance(entries, list):
        raise InputError(
            f"{path}: no list", rule="COCO results are a list of boxes", remedy="give the list itself, not a dataset"
        )
    names = _names_by_image_id(pairs)
    rows: dict[str, list[list[float]]] = defaultdict(list)
    unknown: dict[str, None] = {}
    for number, entry in enumerate(entries, start=1):
        image, row = _result(path, number, entry)
        classes.check(path, int(row[0]))
        if image in names:
            rows[names[image]].append(row)
        else:
            unknown[str(image)] = None
    if unknown:
        more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
        raise InputError(
            f"{path}: {len(unknown)} image_id without a pair: {', '.join(list(unknown)[:_SHOWN])}{more}",
            rule="image_id is the name or stem of a pair, or its number where the stem is a number",
            remedy="write the stems as image_id, and predict on these pairs only",
        )
    return {name: Boxes.of(found) for name, found in rows.items()}


def _names_by_image_id(pairs: Sequence[PairFiles]) -> dict[str | int, str]:
    """What COCO results may call a pair → its name; numbers only where they are one pair's."""
    names: dict[str | int, str] = {}
    by_number: dict[int, set[str]] = defaultdict(set)
    for name, stems in stems_of(pairs).items():
        for stem in stems:
            names.setdefault(stem, name)
            if stem.isdecimal():
                by_number[int(stem)].add(name)
    return names | {number: next(iter(found)) for number, found in by_number.items() if len(found) == 1}


def _result(path: Path, number: int, entry: Any) -> tuple[str | int, list[float]]:
    """What an entry calls its picture; class, left, top, width, height, confidence."""
    try:
        image, row = entry["image_id"], [entry["category_id"], *entry["bbox"], entry["score"]]
        row = [float(value) for value in row]
    except (KeyError, TypeError, ValueError):
        image, row = None, []
    valid = len(row) == 6 and all(map(isfinite, row)) and _is_class(row[0]) and min(row[3:5]) >= 0 and 0 <= row[5] <= 1
    if not (valid and isinstance(image, str | int)):
        raise InputError(
            f"{path}, entry {number}: {str(entry)[:80]}",
            rule="an entry has image_id, category_id, bbox (left, top, width, height in pixels) and score (0 to 1)",
            remedy="correct or remove the entry",
        )
    return image, row


def _is_class(value: float) -> bool:
    return 0 <= value < _MOST_CLASSES and value.is_integer()
