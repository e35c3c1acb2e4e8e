"""The result of an evaluation: scores per method, pair and metric, what they say, and what they were made with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from math import isfinite, isnan, nan
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from duskfuse import __version__
from duskfuse.evaluate.metrics import DEFAULT, MetricInfo, Mode
from duskfuse.evaluate.report_page.shown_pairs import ShownPairs
from duskfuse.evaluate.statistics import (
    CONFIDENCE,
    FEWEST_PAIRS,
    RESAMPLES,
    SEED,
    PairedTest,
    Scores,
    Summary,
    paired_tests,
    ranks,
    summarise,
)

if TYPE_CHECKING:
    from duskfuse.evaluate.robustness import Robustness

GREY = "8-bit BT.601 luminance by OpenCV's integer conversion; a model's luminance is rounded to 8 bit"
"""What is scored of a picture."""
SOURCES = "A infrared, B visible, F fused; SSIM is the mean over the two sources, VIF and MI the sum"
STATISTICS = (
    f"intervals: {CONFIDENCE:.0%} bootstrap (BCa) of the mean over pairs, {RESAMPLES} samples, seed {SEED}; "
    "ranks: of the mean, methods and trivial rows apart; "
    "tests: Wilcoxon's signed-rank test of two methods on the same pairs, two-sided, corrected together over all "
    f"metrics and methods (Holm); from {FEWEST_PAIRS} pairs on; pairs are taken as independent"
)
"""What was done to the scores."""

_SHOWN_NAMES = 5


class Kind(StrEnum):
    """Where the fused pictures of a row come from."""

    MODEL = "model"
    FOLDER = "folder"
    TRIVIAL = "trivial"


class Oddity(StrEnum):
    """What is unusual about a fused picture, as it is printed."""

    MISSING = "missing"
    TWICE = "two pictures of one stem"
    OTHER_SIZE = "of another size than the pair"
    UNREADABLE = "unreadable"
    UNCLEAR_DEPTH = "16-bit or float with an unclear range"
    BAD_SOURCES = "with unusable sources"
    EXTRA = "without a pair"
    GREY = "grey"
    ALPHA = "with alpha, which was dropped"
    DEEP = "16-bit, scaled by 1/257"

    @property
    def is_bad(self) -> bool:
        """Whether the pair cannot be scored; the others are only told."""
        return self not in (Oddity.EXTRA, Oddity.GREY, Oddity.ALPHA, Oddity.DEEP)


@dataclass(frozen=True)
class Finding:
    """All pictures of one row, or sources of the data, with one oddity."""

    oddity: Oddity
    names: tuple[str, ...]
    """Names of the pairs, sorted; file names of pictures without a pair."""
    example: str = ""
    """What is wrong with the first, in full."""

    @property
    def text(self) -> str:
        """Count, oddity and the first names in one line.

        >>> Finding(Oddity.MISSING, ("a", "b")).text
        '2 missing: a, b'
        """
        more = "" if len(self.names) <= _SHOWN_NAMES else ", …"
        example = f" ({self.example})" if self.example else ""
        return f"{len(self.names)} {self.oddity}: {', '.join(self.names[:_SHOWN_NAMES])}{more}{example}"

    def to_json(self) -> dict[str, Any]:
        """Count and names as plain data."""
        return {"oddity": str(self.oddity), "count": len(self.names), "names": list(self.names)}


@dataclass(frozen=True)
class Row:
    """One method: a model, a folder of fused pictures, or a trivial rule."""

    name: str
    kind: Kind
    scores: Mapping[str, Mapping[str, float]]
    """Pair name → metric name → value."""
    origin: str = ""
    """The model or folder as the user named it; empty for a trivial rule."""
    sha256: str | None = None
    """Of a model's file; of the names and hashes of a folder's pictures; None for a trivial rule."""
    stretched: bool = False
    """The pictures look stretched one by one: all span 0 to 255, which their sources do not."""
    findings: tuple[Finding, ...] = ()

    @cached_property
    def summaries(self) -> Mapping[str, Summary]:
        """Summary of each metric that the row has, over the pairs."""
        names = list(dict.fromkeys(name for scores in self.scores.values() for name in scores))
        columns = [[scores[name] for scores in self.scores.values() if name in scores] for name in names]
        return dict(zip(names, summarise(columns), strict=True))

    def summary(self, metric: str) -> Summary:
        """Summary of a metric over the pairs; empty (mean nan) where the row does not have it."""
        return self.summaries.get(metric, _NO_SCORES)

    def values(self, metric: str) -> list[float]:
        """The scores in one metric in the order of the pairs, nan where the row does not have it."""
        return [scores.get(metric, nan) for scores in self.scores.values()]


@dataclass(frozen=True)
class Evaluation:
    """Everything that ``evaluate`` found."""

    data: str
    """Name of the data folder."""
    out: Path
    rows: tuple[Row, ...]
    """Models, then folders, then trivial rows; all on the same pairs in the same order."""
    chosen: tuple[MetricInfo, ...] = DEFAULT
    """The metrics that were computed."""
    mode: Mode = Mode.DEFINITION
    split: str | None = None
    reference: str | None = None
    left_out: tuple[str, ...] = ()
    """Names of pairs that no row was scored on, because a source or a fused picture was bad (``--on-bad skip``)."""
    findings: tuple[Finding, ...] = ()
    """What was unusual about the sources."""
    sha256: str | None = None
    """Of the names and hashes of the scored pairs."""
    arithmetic: Mapping[str, str] = field(default_factory=dict)
    """What computed the metrics: hash of their code, versions of its libraries."""
    shown: ShownPairs | None = field(default=None, repr=False)
    """Pictures for the report."""
    robustness: Robustness | None = field(default=None, repr=False)
    """How the models do on degraded pairs, where that was asked for."""

    @property
    def pairs(self) -> int:
        """How many pairs were scored."""
        return len(self.rows[0].scores)

    @property
    def metrics(self) -> tuple[MetricInfo, ...]:
        """The columns: the chosen metrics, and PSNR to the reference row where there is one."""
        return self.chosen if self.reference is None else (*self.chosen, reference_metric(self.reference))

    @property
    def methods(self) -> tuple[Row, ...]:
        """The rows that are not trivial."""
        return tuple(row for row in self.rows if row.kind is not Kind.TRIVIAL)

    @property
    def trivial(self) -> tuple[Row, ...]:
        """The rows that copying, averaging or taking the maximum gives."""
        return tuple(row for row in self.rows if row.kind is Kind.TRIVIAL)

    @cached_property
    def ranks(self) -> Mapping[str, Mapping[str, float]]:
        """Row → chosen metric → rank of its mean from 1, the best; methods and trivial rows apart; nan undefined."""
        found: dict[str, dict[str, float]] = {row.name: {} for row in self.rows}
        for group in (self.methods, self.trivial):
            for metric in self.chosen:
                means = [row.summary(metric.name).mean for row in group]
                for row, rank in zip(group, ranks(means, metric.higher_is_better), strict=True):
                    found[row.name][metric.name] = rank
        return found

    def mean_rank(self, row: str) -> float:
        """Mean of a row's ranks over the chosen metrics where it has one; nan without any."""
        given = [rank for rank in self.ranks[row].values() if not isnan(rank)]
        return fmean(given) if given else nan

    @cached_property
    def tests(self) -> tuple[PairedTest, ...]:
        """Every two methods compared in every chosen metric; trivial rows are not tested."""
        methods = self.methods
        scores = [
            (metric.name, metric.higher_is_better, [Scores(row.name, row.values(metric.name)) for row in methods])
            for metric in self.chosen
        ]
        return paired_tests(scores)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader has to know beside the numbers: pairs left out, pictures that look stretched or are unusual."""
        notes = []
        if self.left_out:
            names = ", ".join(self.left_out[:_SHOWN_NAMES]) + (", …" if len(self.left_out) > _SHOWN_NAMES else "")
            notes.append(f"Pairs left out for all rows, because a picture is bad: {len(self.left_out)} ({names}).")
        notes += [
            f"{row.name} looks stretched per picture: every picture spans 0 to 255, also where its sources do not. "
            "That raises EN, SD, SF and AG."
            for row in self.rows
            if row.stretched
        ]
        told = [("data", finding) for finding in self.findings]
        told += [(row.name, finding) for row in self.rows for finding in row.findings]
        return (*notes, *(f"{who}: {f.text}." for who, f in told if f.oddity is not Oddity.GREY))

    def best(self, metric: MetricInfo) -> tuple[str, ...]:
        """Names of the methods with the best mean; empty where fewer than two methods compete."""
        means = {row.name: row.summary(metric.name).mean for row in self.methods}
        means = {name: mean for name, mean in means.items() if not isnan(mean)}
        if len(means) < 2:
            return ()
        best = max(means.values()) if metric.higher_is_better else min(means.values())
        return tuple(name for name, mean in means.items() if mean == best)

    def better_trivial(self, metric: MetricInfo) -> tuple[str, ...]:
        """Names of the trivial rows that beat every method in one of the chosen metrics."""
        if metric not in self.chosen:
            return ()
        means = [row.summary(metric.name).mean for row in self.methods]
        means = [mean for mean in means if not isnan(mean)]
        if not means:
            return ()
        sign = 1 if metric.higher_is_better else -1
        best = max(sign * mean for mean in means)
        return tuple(row.name for row in self.trivial if sign * row.summary(metric.name).mean > best)

    def to_json(self) -> dict[str, Any]:
        """Stamp, summaries and tests as plain data; undefined and infinite numbers are null, and counted."""
        return {
            **self.stamp(),
            "report": str(self.out / "report.html"),
            "rows": [self._row_json(row) for row in self.rows],
            "tests": [_test_json(test) for test in self.tests],
            "robustness": None if self.robustness is None else self.robustness.to_json(),
        }

    def stamp(self) -> dict[str, Any]:
        """What was scored, how, by what: all that has to be equal for two numbers to be compared."""
        return {
            "duskfuse": __version__,
            "data": self.data,
            "split": self.split,
            "pairs": self.pairs,
            "sources_sha256": self.sha256,
            "left_out": list(self.left_out),
            "source_findings": [finding.to_json() for finding in self.findings],
            "mode": str(self.mode),
            "arithmetic": dict(self.arithmetic),
            "grey": GREY,
            "sources": SOURCES,
            "stretched": False,
            "look_stretched": [row.name for row in self.rows if row.stretched],
            "statistics": STATISTICS,
            "reference": self.reference,
            "metrics": {
                metric.name: {"higher_is_better": metric.higher_is_better, "meaning": metric.meaning}
                for metric in self.metrics
            },
        }

    def _row_json(self, row: Row) -> dict[str, Any]:
        found = {metric.name: row.summary(metric.name) for metric in self.metrics}
        return {
            "name": row.name,
            "kind": str(row.kind),
            "origin": row.origin,
            "sha256": row.sha256,
            "looks_stretched": row.stretched,
            "findings": [finding.to_json() for finding in row.findings],
            "mean": {name: _finite(summary.mean) for name, summary in found.items()},
            "interval": {name: summary.interval and list(summary.interval) for name, summary in found.items()},
            "median": {name: _finite(summary.median) for name, summary in found.items()},
            "sd": {name: _finite(summary.deviation) for name, summary in found.items()},
            "min": {name: _finite(summary.least) for name, summary in found.items()},
            "max": {name: _finite(summary.most) for name, summary in found.items()},
            "rank": {name: _finite(rank) for name, rank in self.ranks[row.name].items()},
            "mean_rank": _finite(self.mean_rank(row.name)),
            "undefined": {name: summary.undefined for name, summary in found.items() if summary.undefined},
            "identical": {name: summary.identical for name, summary in found.items() if summary.identical},
        }


def reference_metric(reference: str) -> MetricInfo:
    """Describe the column that compares every row with one of them."""
    meaning = f"10 log₁₀(255²/MSE) in dB between a row's 8-bit picture and that of {reference}, mean over the pairs"
    return MetricInfo(f"PSNR to {reference}", True, meaning, 2)


_NO_SCORES = Summary.of([])


def _test_json(test: PairedTest) -> dict[str, Any]:
    return {
        "metric": test.metric,
        "first": test.first,
        "second": test.second,
        "pairs": test.pairs,
        "mean_difference": _finite(test.difference),
        "p": test.p,
        "p_corrected": test.p_corrected,
        "better": test.better,
    }


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None
