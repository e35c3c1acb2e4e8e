"""An evaluation on the terminal: means with intervals and ranks, and which differences between methods are shown.

Files have all metrics; the terminal has the fourteen that most papers print, in as many blocks as its width asks for.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import isinf, isnan

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.table import Table
from rich.text import Text

from duskfuse.evaluate.metrics import MetricInfo
from duskfuse.evaluate.scores import Evaluation, Row
from duskfuse.evaluate.statistics import FEWEST_PAIRS, LEVEL, PairedTest

SHOWN = ("EN", "SD", "SF", "AG", "MI", "SCD", "CC", "VIF", "VIFF", "Qabf", "Nabf", "SSIM", "Qcb", "Qcv")
BEATEN = "†"
_DIGITS = 5
_LEAST_NAME = 10
_RANK_WIDTH = 6
_MOST_COMPARED = 4
"""Methods of which every two are compared on the terminal; of more, the first in rank with the others."""


def terminal_tables(evaluation: Evaluation) -> list[RenderableType]:
    """The tables and notes for `rich` to print."""
    shown: list[RenderableType] = [_Means(evaluation)]
    if len(evaluation.methods) > 1:
        shown.append(_comparisons(evaluation))
    return [*shown, Text("\n".join(_notes(evaluation)) + f"\nreport: {evaluation.out / 'report.html'}")]


@dataclass(frozen=True)
class _Means:
    """The table of means; `rich` asks for it with the width it has."""

    evaluation: Evaluation

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        shown = _shown(self.evaluation)
        names = max(len(row.name) for row in self.evaluation.rows)
        room = options.max_width - _LEAST_NAME - _RANK_WIDTH
        first = True
        while shown:
            block: list[MetricInfo] = []
            room_left = room
            while shown and (not block or _width(shown[0]) <= room_left):
                room_left -= _width(shown[0])
                block.append(shown.pop(0))
            yield self._block(block, min(names + 1, _LEAST_NAME + room_left), first)
            first = False

    def _block(self, metrics: Sequence[MetricInfo], name_width: int, is_first: bool) -> Table:
        evaluation = self.evaluation
        pairs = "1 pair" if evaluation.pairs == 1 else f"{evaluation.pairs} pairs"
        title = f"Mean over {pairs} of {evaluation.data} (mode {evaluation.mode})"
        table = Table(title=title if is_first else None, box=None, padding=0, pad_edge=False, header_style="underline")
        table.add_column("", width=name_width, overflow="fold")
        for metric in metrics:
            table.add_column(_cell(_heading(metric), metric), no_wrap=True, width=_width(metric))
        table.add_column("rank", justify="right", no_wrap=True, width=_RANK_WIDTH)
        for row in evaluation.methods:
            table.add_row(Text(row.name), *(self._mean(row, metric) for metric in metrics), self._rank(row))
            if any(row.summary(metric.name).interval for metric in metrics):
                table.add_row("", *(_half_interval(row, metric) for metric in metrics), "", style="dim")
        table.add_row("trivial:" if evaluation.methods else "", style="dim")
        for row in evaluation.trivial:
            cells = (self._mean(row, metric) for metric in metrics)
            table.add_row(Text(row.name), *cells, self._rank(row), style="dim")
        return table

    def _mean(self, row: Row, metric: MetricInfo) -> Text:
        mark = BEATEN if row.name in self.evaluation.better_trivial(metric) else ""
        style = "bold green" if row.name in self.evaluation.best(metric) else ""
        return _cell(_short(row.summary(metric.name).mean, metric), metric, mark, style)

    def _rank(self, row: Row) -> Text:
        rank = self.evaluation.mean_rank(row.name)
        return Text("–" if isnan(rank) else f"{rank:.1f}")


def _shown(evaluation: Evaluation) -> list[MetricInfo]:
    """The usual metrics among the chosen ones, others where there is room among as many, and the reference."""
    usual = [metric for metric in evaluation.chosen if metric.name in SHOWN]
    others = [metric for metric in evaluation.chosen if metric not in usual]
    kept = [*usual, *others[: max(0, len(SHOWN) - len(usual))]]
    return [metric for metric in evaluation.metrics if metric in kept or metric not in evaluation.chosen]


def _heading(metric: MetricInfo) -> str:
    return f"{metric.name}{'↑' if metric.higher_is_better else '↓'}"


def _width(metric: MetricInfo) -> int:
    """Five digits or the heading, and a mark."""
    return max(_DIGITS, len(_heading(metric))) + 1


def _cell(text: str, metric: MetricInfo, mark: str = "", style: str = "") -> Text:
    """Right-aligned by hand: `rich` would shift what has no mark by the place of the mark."""
    return Text(text.rjust(_width(metric) - 1) + mark, style=style)


def _short(value: float, metric: MetricInfo) -> str:
    """In at most five characters where that is possible."""
    if isnan(value):
        return "–"
    return "∞" if isinf(value) else _shortest([f"{value:.{digits}f}" for digits in range(metric.decimals, -1, -1)])


def _shortest(texts: Sequence[str]) -> str:
    return next((text for text in texts if len(text) <= _DIGITS), texts[-1])


def _half_interval(row: Row, metric: MetricInfo) -> Text:
    interval = row.summary(metric.name).interval
    if interval is None:
        return Text("")
    half = (interval.high - interval.low) / 2
    texts = [f"±{half:.{digits}f}".replace("±0.", "±.") for digits in range(metric.decimals, -1, -1)]
    return _cell(_shortest(texts), metric)


def _comparisons(evaluation: Evaluation) -> RenderableType:
    """Which of two methods is better in which metrics, where the tests show it."""
    tests: dict[tuple[str, str], list[PairedTest]] = defaultdict(list)
    for test in evaluation.tests:
        tests[test.first, test.second].append(test)
    if all(test.p is None for test in evaluation.tests):
        return Text(f"Fewer than {FEWEST_PAIRS} pairs: no difference between methods is claimed.\n")
    count = sum(test.p is not None for test in evaluation.tests)
    title = f"Differences shown by {count} paired tests (Wilcoxon signed-rank, Holm, {LEVEL:.0%})"
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0), pad_edge=False)
    for heading in ("first", "second", "first is better in", "second is better in", "not shown"):
        table.add_column(heading, overflow="fold", justify="right" if heading == "not shown" else "left")
    for first, second in _compared(evaluation):
        found = tests.get((first, second), []) or tests.get((second, first), [])
        better, worse = (_names(found, name) for name in (first, second))
        unclear = sum(test.better is None for test in found)
        table.add_row(Text(first), Text(second), better, worse, f"{unclear} of {len(found)}")
    return table


def _compared(evaluation: Evaluation) -> list[tuple[str, str]]:
    names = [row.name for row in evaluation.methods]
    if len(names) <= _MOST_COMPARED:
        return list(combinations(names, 2))
    first, *others = sorted(names, key=lambda name: (isnan(rank := evaluation.mean_rank(name)), rank))
    return [(first, other) for other in others]


def _names(tests: Sequence[PairedTest], better: str) -> Text:
    return Text(" ".join(test.metric for test in tests if test.better == better) or "–")


def _notes(evaluation: Evaluation) -> list[str]:
    notes = ["↑ higher is better, ↓ lower is better; ± half of the 95 % interval of the mean."]
    notes.append(f"rank: mean over {len(evaluation.chosen)} metrics, of methods and of trivial rows apart.")
    if any(evaluation.better_trivial(metric) for metric in evaluation.chosen):
        notes.append(f"{BEATEN} better than every method: on its own this metric does not show good fusion.")
    partial = [
        f"{metric.name} of {row.name} ({summary.pairs})"
        for row in evaluation.rows
        for metric in _shown(evaluation)
        if 0 < (summary := row.summary(metric.name)).pairs < len(row.scores)
    ]
    if partial:
        notes.append(f"Means over fewer pairs, the others being undefined or infinite: {', '.join(partial)}.")
    hidden = len(evaluation.metrics) - len(_shown(evaluation))
    if hidden:
        notes.append(f"{hidden} more metrics are in summary.csv.")
    return [*notes, *evaluation.notes]
