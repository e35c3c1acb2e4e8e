"""What a task's predictions score: over the dataset, per class and per image, and as tables and plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import isfinite, isnan, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duskfuse import __version__
from duskfuse.evaluate.metrics import MetricInfo
from duskfuse.evaluate.statistics import (
    CONFIDENCE,
    FEWEST_PAIRS,
    RESAMPLES,
    SEED,
    Interval,
    PairedTest,
    Scores,
    paired_tests,
)
from duskfuse.tasks.task_network import Task

if TYPE_CHECKING:
    from rich.table import Table

STATISTICS = (
    f"intervals: {CONFIDENCE:.0%} bootstrap over pairs, {RESAMPLES} samples, seed {SEED}; tests: Wilcoxon's "
    "signed-rank test of two methods on the scores of the same pairs, two-sided, corrected together (Holm); both from "
    f"{FEWEST_PAIRS} pairs on; pairs are taken as independent"
)
ABSENT = "absent"
"""What a table says of a class that the ground truth does not have."""
_SHOWN_ABSENT = 6
_SHOWN_COLUMNS = 6
"""Beyond these a terminal breaks numbers, and only the first measure of each row is shown of the classes."""


@dataclass(frozen=True)
class ClassScores:
    """One class of one method over the dataset."""

    name: str
    values: Mapping[str, float]
    """nan where the class is absent from the ground truth."""
    truth: int
    """Pixels, or boxes, of the ground truth."""
    predicted: int
    """Pixels, or boxes, predicted as the class; a class that is absent from the ground truth may have some."""


@dataclass(frozen=True)
class MethodScores:
    """One row: the predictions made from one method's pictures."""

    name: str
    totals: Mapping[str, float]
    """Name of the measure → its value over the dataset."""
    per_image: Mapping[str, Mapping[str, float]]
    """Pair name → measure → value; empty where the task has no score of a single picture."""
    classes: tuple[ClassScores, ...] = ()
    intervals: Mapping[str, Interval | None] = field(default_factory=dict)
    undefined: Mapping[str, int] = field(default_factory=dict)
    """Pairs that a measure leaves out, where there are any."""
    sha256: str = ""
    """Of the names and hashes of the prediction files."""

    @property
    def absent(self) -> tuple[str, ...]:
        """Names of the classes that the ground truth does not have."""
        return tuple(kind.name for kind in self.classes if not kind.truth)


@dataclass(frozen=True)
class TaskScores:
    """Everything that scoring a task found."""

    task: Task
    data: str
    """Name of the data folder."""
    out: Path
    classes: str
    """Name of the class convention; empty for a task without classes."""
    meaning: str
    """How the ground truth and the predictions were read."""
    measures: tuple[MetricInfo, ...]
    """Over the dataset."""
    image_measures: tuple[MetricInfo, ...]
    """Of a single picture."""
    pairs: tuple[str, ...]
    rows: tuple[MethodScores, ...]
    libraries: Mapping[str, str]
    """Name → version of what computed the scores."""
    truth_sha256: str
    """Of the names and hashes of the files with the ground truth."""
    left_out: tuple[str, ...] = ()
    """Names of pairs without ground truth."""
    split: str | None = None
    network: Mapping[str, Any] | None = None
    """What predicted and from which pictures, as plain data; None where predictions were given."""

    @cached_property
    def tests(self) -> tuple[PairedTest, ...]:
        """Every two rows compared in every measure that a single picture has."""
        return paired_tests(
            [(measure.name, measure.higher_is_better, self._scores_in(measure)) for measure in self.image_measures]
        )

    def _scores_in(self, measure: MetricInfo) -> list[Scores]:
        return [Scores(row.name, [scores[measure.name] for scores in row.per_image.values()]) for row in self.rows]

    def to_json(self) -> dict[str, Any]:
        """Stamp, definitions and scores as plain data; undefined numbers are null."""
        return {
            "duskfuse": __version__,
            "task": str(self.task),
            "data": self.data,
            "split": self.split,
            "pairs": len(self.pairs),
            "without_ground_truth": list(self.left_out),
            "ground_truth_sha256": self.truth_sha256,
            "classes": self.classes or None,
            "meaning": self.meaning,
            "libraries": dict(self.libraries),
            "network": None if self.network is None else dict(self.network),
            "statistics": STATISTICS,
            "measures": {
                measure.name: {"higher_is_better": measure.higher_is_better, "meaning": measure.meaning}
                for measure in dict.fromkeys((*self.measures, *self.image_measures))
            },
            "rows": [_row_json(row) for row in self.rows],
            "tests": [_test_json(test) for test in self.tests],
        }

    def tables(self) -> list[Table]:
        """For the terminal: the dataset's scores, then those of the classes."""
        return [self._summary_table(), *([self._class_table()] if self.rows[0].classes else [])]

    def _summary_table(self) -> Table:
        from rich.text import Text

        shown = _table(
            f"{self.task.capitalize()} on {len(self.pairs)} pairs of {self.data}" + _bracketed(self.classes),
            [*self._notes(), f"written to {self.out}"],
        )
        shown.add_column("")
        for measure in self.measures:
            shown.add_column(f"{measure.name} {'↑' if measure.higher_is_better else '↓'}", justify="right")
        for row in self.rows:
            shown.add_row(Text(row.name), *(_total_text(row, measure) for measure in self.measures))
        return shown

    def _notes(self) -> list[str]:
        notes = []
        if self.network is not None:
            notes.append("Predicted by {file} on {runs_on}, input {input}.".format_map(self.network))
        if self.left_out:
            notes.append(f"{len(self.left_out)} pairs without ground truth are left out.")
        absent = self.rows[0].absent
        if absent:
            more = f" and {len(absent) - _SHOWN_ABSENT} more" if len(absent) > _SHOWN_ABSENT else ""
            notes.append(f"Absent from the ground truth, in no mean: {', '.join(absent[:_SHOWN_ABSENT])}{more}.")
        for row in self.rows:
            notes += [f"{name} of {row.name} leaves out {count} pairs." for name, count in row.undefined.items()]
        if any(interval for row in self.rows for interval in row.intervals.values()):
            notes.append(f"In brackets: {CONFIDENCE:.0%} bootstrap interval.")
        return notes

    def _class_table(self) -> Table:
        from rich.text import Text

        columns = list(self.rows[0].classes[0].values)
        if len(self.rows) * len(columns) > _SHOWN_COLUMNS:
            columns = columns[:1]
        shown = _table("Classes" if columns[1:] else f"Classes: {columns[0]}", [])
        shown.add_column("")
        for row in self.rows:
            for column in columns:
                head = f"{row.name} {column}" if columns[1:] else row.name
                shown.add_column(Text(head), justify="right", overflow="fold")
        for place, kind in enumerate(self.rows[0].classes):
            values = (row.classes[place].values[column] for row in self.rows for column in columns)
            shown.add_row(Text(kind.name), *(ABSENT if isnan(value) else f"{value:.4f}" for value in values))
        return shown


def mean_of(values: Sequence[float]) -> float:
    """The mean of the values that are defined; nan without any."""
    defined = [value for value in values if not isnan(value)]
    return sum(defined) / len(defined) if defined else nan


def _table(title: str, notes: Sequence[str]) -> Table:
    from rich import box
    from rich.table import Table

    return Table(
        title=title,
        caption="\n".join(notes) or None,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )


def _bracketed(text: str) -> str:
    return f" ({text})" if text else ""


def _total_text(row: MethodScores, measure: MetricInfo) -> str:
    value, interval = row.totals[measure.name], row.intervals.get(measure.name)
    if isnan(value):
        return "–"
    text = f"{value:.{measure.decimals}f}"
    if interval is None:
        return text
    return f"{text} ({interval.low:.{measure.decimals}f} … {interval.high:.{measure.decimals}f})"


def _row_json(row: MethodScores) -> dict[str, Any]:
    return {
        "name": row.name,
        "sha256": row.sha256,
        "scores": {name: _finite(value) for name, value in row.totals.items()},
        "interval": {name: interval and list(interval) for name, interval in row.intervals.items()},
        "undefined": dict(row.undefined),
        "absent": list(row.absent),
        "classes": {
            kind.name: {
                **{name: _finite(value) for name, value in kind.values.items()},
                "truth": kind.truth,
                "predicted": kind.predicted,
            }
            for kind in row.classes
        },
    }


def _test_json(test: PairedTest) -> dict[str, Any]:
    return {
        "measure": test.metric,
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
