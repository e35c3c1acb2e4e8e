"""How far fusion holds when a camera fails: scores over degradations of rising severity.

Models and the trivial rules get the degraded pair; what they make of it is scored against the *clean* pair. Against the
degraded sources, a method that hands on all the noise and haze would score best; the question is how much of the scene
arrives. Two degradations need a word:

- A shifted infrared picture is scored against the infrared where it belongs. No method without registration can put it
  back, so the trivial rows fall as well, and only what a model loses beyond them is its own.
- A dead camera's content cannot arrive at all. What is left to ask is that the living picture passes untouched, as the
  maximum with black lets it: beside a black picture, that row is the living picture itself.

EN, SD and SF look at the fused picture alone, so noise and stripes *raise* them: a negative drop there is no merit.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite, nan
from pathlib import Path
from statistics import fmean
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from duskfuse import __version__
from duskfuse.data.atomic import sole, write_atomically
from duskfuse.data.errors import InputError
from duskfuse.data.images import to_u8
from duskfuse.data.layout import find_pairs
from duskfuse.data.pair_files import PairFiles
from duskfuse.data.priors.pipeline import cores
from duskfuse.data.reading import Reading
from duskfuse.evaluate.degradations import CLEAN, DEGRADATIONS, Condition, Degradation, Side
from duskfuse.evaluate.degraded_scores import DegradedScores, computed_by, degraded
from duskfuse.evaluate.kept_scores import KeptScores
from duskfuse.evaluate.measurement_files import csv_text, finite
from duskfuse.evaluate.methods import Method, check_names, models, trivial
from duskfuse.evaluate.metrics import ALL, MetricInfo
from duskfuse.evaluate.score_pairs import Rule, fused_grey
from duskfuse.evaluate.scores import Kind
from duskfuse.evaluate.source_pictures import SourcePictures, look_at_sources

SWEPT_METRICS = ("EN", "SD", "SF", "VIF", "VIFF", "Qabf", "SSIM", "Qcb", "Qcv", "Nabf")
DEFAULT_PAIRS = 12
SCORES_FILE = "robustness_scores.jsonl"
_TRIVIAL = (Rule.AVERAGE, Rule.MAXIMUM)
_EXAMPLE_SIDE = 320

PairScores = Mapping[str, Mapping[str, float]]
"""Name of the pair → name of the metric → value."""


@dataclass(frozen=True)
class RobustnessRow:
    """One method under all conditions."""

    name: str
    kind: Kind
    scores: Mapping[Condition, PairScores]

    def mean(self, metric: MetricInfo, condition: Condition) -> float:
        """Mean score over the pairs where it is finite; nan without any."""
        return _mean([scores[metric.name] for scores in self.scores[condition].values()])

    def drop(self, metric: MetricInfo, condition: Condition) -> float:
        """How much worse the metric is than on the clean pairs, mean over the pairs where both are finite.

        Positive is worse, whichever direction the metric has; nan without any pair.
        """
        clean, worse = self.scores[CLEAN], self.scores[condition]
        losses = [clean[pair][metric.name] - scores[metric.name] for pair, scores in worse.items()]
        return _mean(losses) * (1 if metric.higher_is_better else -1)

    def mean_drop(self, metric: MetricInfo, degradation: Degradation) -> float:
        """Mean of `drop` over the severities of a degradation where it is defined; nan without any."""
        return _mean([self.drop(metric, condition) for condition in degradation.conditions])

    def curve(self, metric: MetricInfo, degradation: Degradation) -> list[tuple[float, float]]:
        """(severity, mean score) from the clean pairs, severity 0, to the worst."""
        return [(place.severity, self.mean(metric, place)) for place in (CLEAN, *degradation.conditions)]


@dataclass(frozen=True)
class Example:
    """One pair under one condition and what the models made of it, small."""

    condition: Condition
    pictures: Mapping[str, NDArray[np.uint8]]
    """Caption → ``[H, W]`` grey or ``[H, W, 3]`` RGB uint8; the degraded picture (of the clean pair both) first."""


@dataclass(frozen=True)
class Robustness:
    """Everything that a sweep found."""

    data: str
    """Name of the data folder."""
    out: Path
    pairs: tuple[str, ...]
    """Names of the pairs that were degraded."""
    found: int
    """Pairs in the folder, of which `pairs` were chosen."""
    metrics: tuple[MetricInfo, ...]
    rows: tuple[RobustnessRow, ...]
    """Models, then average and maximum of the degraded pictures."""
    degradations: tuple[Degradation, ...] = DEGRADATIONS
    example: str = ""
    """Name of the pair of `examples`."""
    examples: tuple[Example, ...] = field(default=(), repr=False)

    def to_json(self) -> dict[str, Any]:
        """Parameters, means and drops as plain data; undefined numbers are null."""
        return {
            "duskfuse": __version__,
            "data": self.data,
            "pairs": list(self.pairs),
            "pairs_found": self.found,
            "scored_against": "the clean sources",
            "drop": "how much worse than on the clean pairs, positive is worse; mean over pairs",
            "report": str(self.out / "robustness.html"),
            "metrics": {
                metric.name: {"higher_is_better": metric.higher_is_better, "meaning": metric.meaning}
                for metric in self.metrics
            },
            "degradations": [
                {
                    "name": degradation.name,
                    "picture": str(degradation.side),
                    "meaning": degradation.meaning,
                    "severities": [dict(parameters) for parameters in degradation.severities],
                }
                for degradation in self.degradations
            ],
            "rows": [self._row_json(row) for row in self.rows],
        }

    def _row_json(self, row: RobustnessRow) -> dict[str, Any]:
        return {
            "name": row.name,
            "kind": str(row.kind),
            "clean": {metric.name: finite(row.mean(metric, CLEAN)) for metric in self.metrics},
            "degraded": {
                degradation.name: [
                    {
                        "severity": condition.severity,
                        "mean": {metric.name: finite(row.mean(metric, condition)) for metric in self.metrics},
                        "drop": {metric.name: finite(row.drop(metric, condition)) for metric in self.metrics},
                    }
                    for condition in degradation.conditions
                ]
                for degradation in self.degradations
            },
        }


def robustness(
    data: Path,
    *,
    model: Sequence[str | Path] = (),
    out: Path,
    limit: int | None = DEFAULT_PAIRS,
    metrics: Sequence[str] = SWEPT_METRICS,
    split: str | None = None,
    reading: Reading | Path | None = None,
    workers: int | None = None,
    overwrite: bool = False,
    leave_out: Collection[str] = (),
) -> Robustness:
    """Score models under every degradation and severity; write ``robustness.json``, ``.csv`` and ``.html``.

    Scores are kept as they come: the same command goes on where a killed one stopped, and with one more model it
    computes that model only.

    Args:
        data: folder of pairs, see :func:`duskfuse.data.layout.find_pairs`.
        model: zoo names, checkpoints and ONNX files; average and maximum are always beside them.
        out: folder to write to, made where missing; other files in it stay.
        limit: take that many pairs, spread evenly; None for all.
        metrics: names of :data:`duskfuse.evaluate.metrics.ALL`; tables have them in its order.
        split: only the pairs of this split.
        reading: how the infrared pictures are read, or a file that says it; by default the dataset's ``duskfuse.yaml``.
        workers: processes that compute metrics; one per core by default.
        overwrite: forget the scores of an earlier sweep.
        leave_out: names of pairs that are never degraded.

    Raises:
        InputError: a picture or model cannot be read, sources differ in size or a model does not take it, an unknown
            metric, ``limit`` below 1, two models of one name, a sweep of other data is kept in ``out``.
        StorageError: scores cannot be written.
    """
    from duskfuse.evaluate.robustness_report import robustness_page

    chosen_metrics = _in_table_order(metrics)
    if workers is not None and workers < 1:
        raise InputError(f"{workers} workers", rule="at least one process computes")
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file", rule="results go to a folder", remedy="name another --out")
    pairs = [files for files in find_pairs(data, split=split, reading=reading) if files.name not in leave_out]
    chosen = _spread(pairs, limit)
    seen = {files.name: look_at_sources(files) for files in chosen}
    methods = [*models(model, seen), *(method for method in trivial() if method.name in _TRIVIAL)]
    check_names(methods, reference=None)
    _check_sizes(methods)
    scores = DegradedScores(chosen, seen, methods, tuple(metric.name for metric in chosen_metrics))
    name = data.resolve().name
    out.mkdir(parents=True, exist_ok=True)
    with sole(out / SCORES_FILE) as mine:
        if not mine:
            raise InputError(f"another sweep is writing to {out}", remedy="wait for it, or name another --out")
        if overwrite:
            (out / SCORES_FILE).write_bytes(b"")
        kept = KeptScores(out / SCORES_FILE, name if split is None else f"{name}, split {split}", computed_by())
        scores.compute(kept, workers or cores())
        found = Robustness(
            data=name,
            out=out,
            pairs=tuple(files.name for files in chosen),
            found=len(pairs),
            metrics=chosen_metrics,
            rows=tuple(RobustnessRow(method.name, method.kind, scores.of(method, kept)) for method in methods),
            example=chosen[len(chosen) // 2].name,
            examples=_examples(chosen[len(chosen) // 2], methods),
        )
        write_atomically(out / "robustness.json", json.dumps(found.to_json(), indent=2, allow_nan=False) + "\n")
        write_atomically(out / "robustness.csv", _csv(found))
        robustness_page(found).write(out / "robustness.html")
    return found


def _in_table_order(names: Sequence[str]) -> tuple[MetricInfo, ...]:
    known = [metric.name for metric in ALL]
    if unknown := [name for name in names if name not in known]:
        raise InputError(f"unknown metric {unknown[0]!r}", rule=f"metrics are {', '.join(known)}")
    return tuple(metric for metric in ALL if metric.name in names)


def _spread(pairs: list[PairFiles], limit: int | None) -> list[PairFiles]:
    if limit is not None and limit < 1:
        raise InputError(f"--limit {limit}", rule="at least one pair is needed")
    if limit is None or limit >= len(pairs):
        return pairs
    return [pairs[place] for place in np.linspace(0, len(pairs) - 1, limit).round().astype(int)]


def _check_sizes(methods: Sequence[Method]) -> None:
    for method in methods:
        for finding in method.findings:
            raise InputError(
                f"{method.name}: {finding.text}",
                rule="every model takes every pair",
                remedy="export it for this size or without --size, or leave it away",
            )


def _examples(files: PairFiles, methods: Sequence[Method]) -> tuple[Example, ...]:
    """A pair as it is, and under the middle severity of every degradation."""
    clean = SourcePictures(files)
    shown = [method for method in methods if method.kind is not Kind.TRIVIAL]
    found = [_example(CLEAN, clean, {"infrared": to_u8(clean.ir), "visible": to_u8(clean.vis)}, shown)]
    for degradation in DEGRADATIONS:
        condition = degradation.conditions[len(degradation.severities) // 2]
        given = degraded(clean, degradation, condition.severity)
        worse = to_u8(given.ir if degradation.side is Side.INFRARED else given.vis)
        caption = f"{degradation.side}, {degradation.parameters(condition.severity)}"
        found.append(_example(condition, given, {caption: worse}, shown))
    return tuple(found)


def _example(
    condition: Condition, given: SourcePictures, shown: Mapping[str, NDArray[np.uint8]], methods: Sequence[Method]
) -> Example:
    pictures = {**shown, **{method.name: fused_grey(method.picture(given), given) for method in methods}}
    return Example(condition, {name: _smaller(picture) for name, picture in pictures.items()})


def _smaller(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = picture.shape[:2]
    scale = min(1.0, _EXAMPLE_SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _csv(found: Robustness) -> str:
    """One line per pair, condition and method; undefined values are empty."""
    names = [metric.name for metric in found.metrics]
    places = [CLEAN, *(place for degradation in found.degradations for place in degradation.conditions)]
    rows = (
        [pair, row.name, row.kind, *place, *(row.scores[place][pair][name] for name in names)]
        for pair in found.pairs
        for place in places
        for row in found.rows
    )
    return csv_text(["pair", "method", "kind", "degradation", "severity", *names], rows)


def _mean(values: Sequence[float]) -> float:
    defined = [value for value in values if isfinite(value)]
    return fmean(defined) if defined else nan
