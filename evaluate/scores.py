"""The result of an evaluation: scores per method, pair and metric, their summaries, and what they were made with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from math import inf, isfinite, isnan, nan
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from duskfuse import __version__
from duskfuse.evaluate.metrics import DEFAULT, MetricInfo

STAMP = {
    "definitions": "definition",
    "grey": "8-bit BT.601 luminance by OpenCV's integer conversion; a model's luminance is rounded to 8 bit",
    "stretched": False,
    "sources": "A infrared, B visible, F fused; SSIM is the mean over the two sources, VIF and MI the sum",
}
"""How the numbers were made; ``definitions`` is "definition" where metrics follow their articles, no compatibility."""


class Kind(StrEnum):
    """Where the fused pictures of a row come from."""

    MODEL = "model"
    FOLDER = "folder"
    TRIVIAL = "trivial"


@dataclass(frozen=True)
class Summary:
    """One metric of one method over all pairs."""

    mean: float
    """Over the pairs where the metric is defined and finite; inf where it is infinite on all, nan without any."""
    median: float
    least: float
    most: float
    undefined: int
    """Pairs left out because the metric is undefined there."""
    identical: int
    """Pairs left out because PSNR is infinite: the pictures are identical."""

    @classmethod
    def of(cls, values: Iterable[float]) -> Summary:
        """Summarise the values of one metric, nan and inf included."""
        values = list(values)
        defined = [value for value in values if not isnan(value)]
        finite = [value for value in defined if isfinite(value)]
        undefined, identical = len(values) - len(defined), len(defined) - len(finite)
        if not finite:
            level = inf if identical else nan
            return cls(level, level, level, level, undefined, identical)
        return cls(fmean(finite), median(finite), min(finite), max(finite), undefined, identical)


@dataclass(frozen=True)
class Row:
    """One method: a model, a folder of fused pictures, or a trivial rule."""

    name: str
    kind: Kind
    scores: Mapping[str, Mapping[str, float]]
    """Pair name → metric name → value."""

    def summary(self, metric: str) -> Summary:
        """Summarise a metric over the pairs; empty (mean nan) where the row does not have it."""
        return Summary.of(scores[metric] for scores in self.scores.values() if metric in scores)


@dataclass(frozen=True)
class GalleryPair:
    """Small pictures of one pair for a report: infrared, visible, then one per method."""

    name: str
    brightness: float
    """Mean grey level of the visible picture, 0 to 255."""
    pictures: Mapping[str, NDArray[np.uint8]]
    """Caption → ``[H, W]`` grey or ``[H, W, 3]`` RGB uint8."""


@dataclass(frozen=True)
class Evaluation:
    """Everything that ``evaluate`` found."""

    data: str
    """Name of the data folder."""
    out: Path
    rows: tuple[Row, ...]
    reference: str | None = None
    gallery: tuple[GalleryPair, ...] = field(default=(), repr=False)

    @property
    def pairs(self) -> int:
        """How many pairs were scored."""
        return len(self.rows[0].scores)

    @property
    def metrics(self) -> tuple[MetricInfo, ...]:
        """The columns: the default metrics, and PSNR to the reference row where there is one."""
        return DEFAULT if self.reference is None else (*DEFAULT, reference_metric(self.reference))

    @property
    def methods(self) -> tuple[Row, ...]:
        """The rows that are not trivial."""
        return tuple(row for row in self.rows if row.kind is not Kind.TRIVIAL)

    @property
    def trivial(self) -> tuple[Row, ...]:
        """The rows that copying, averaging or taking the maximum gives."""
        return tuple(row for row in self.rows if row.kind is Kind.TRIVIAL)

    def best(self, metric: MetricInfo) -> tuple[str, ...]:
        """Names of the methods with the best mean; empty where fewer than two methods compete."""
        means = {row.name: row.summary(metric.name).mean for row in self.methods}
        means = {name: mean for name, mean in means.items() if not isnan(mean)}
        if len(means) < 2:
            return ()
        best = max(means.values()) if metric.higher_is_better else min(means.values())
        return tuple(name for name, mean in means.items() if mean == best)

    def better_trivial(self, metric: MetricInfo) -> tuple[str, ...]:
        """Names of the trivial rows that beat every method in one of the default metrics."""
        if metric not in DEFAULT:
            return ()
        means = [row.summary(metric.name).mean for row in self.methods]
        means = [mean for mean in means if not isnan(mean)]
        if not means:
            return ()
        sign = 1 if metric.higher_is_better else -1
        best = max(sign * mean for mean in means)
        return tuple(row.name for row in self.trivial if sign * row.summary(metric.name).mean > best)

    def to_json(self) -> dict[str, Any]:
        """Stamp, definitions and summaries as plain data; undefined and infinite numbers are null, and counted."""
        return {
            "duskfuse": __version__,
            "data": self.data,
            "pairs": self.pairs,
            **STAMP,
            "reference": self.reference,
            "report": str(self.out / "report.html"),
            "metrics": {
                metric.name: {"higher_is_better": metric.higher_is_better, "meaning": metric.meaning}
                for metric in self.metrics
            },
            "rows": [self._row_json(row) for row in self.rows],
        }

    def _row_json(self, row: Row) -> dict[str, Any]:
        found = {metric.name: row.summary(metric.name) for metric in self.metrics}
        return {
            "name": row.name,
            "kind": str(row.kind),
            "mean": {name: _finite(summary.mean) for name, summary in found.items()},
            "median": {name: _finite(summary.median) for name, summary in found.items()},
            "min": {name: _finite(summary.least) for name, summary in found.items()},
            "max": {name: _finite(summary.most) for name, summary in found.items()},
            "undefined": {name: summary.undefined for name, summary in found.items() if summary.undefined},
            "identical": {name: summary.identical for name, summary in found.items() if summary.identical},
        }


def reference_metric(reference: str) -> MetricInfo:
    """Describe the column that compares every row with one of them."""
    meaning = f"10 log₁₀(255²/MSE) in dB between a row's 8-bit picture and that of {reference}, mean over the pairs"
    return MetricInfo(f"PSNR to {reference}", True, meaning, 2)


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None
