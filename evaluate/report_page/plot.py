"""Methods over metrics as parallel coordinates, on the scale that the trivial rows of each metric give.

Metrics have no common unit. What each of them gives without any fusion is known, though: 0 is the worst trivial row, 1
the best one. Beyond 1 a method does what no copying, averaging or taking the maximum can.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from math import isfinite

from duskfuse.evaluate.metrics import MetricInfo
from duskfuse.evaluate.report import Html, note
from duskfuse.evaluate.report_page.summary import colour
from duskfuse.evaluate.report_page.wording import arrow, number
from duskfuse.evaluate.scores import Evaluation, Row

_LOW, _HIGH = -1.0, 2.0
"""Beyond these a method stands at the edge, with an arrow."""
_LINE_HEIGHT = 26
_HEAD = 24
_MARKS = (
    "M-4 0A4 4 0 1 0 4 0A4 4 0 1 0-4 0Z",
    "M-4-4H4V4H-4Z",
    "M0-5.5 5.5 0 0 5.5-5.5 0Z",
    "M0-5 5 4H-5Z",
    "M0 5 5-4H-5Z",
)
_LEFTWARDS, _RIGHTWARDS = "M-6 0 2-5V5Z", "M6 0-2-5V5Z"


@dataclass(frozen=True)
class Scale:
    """The scale of one metric: 0 its worst trivial row, 1 its best."""

    metric: MetricInfo
    worst: float
    best: float

    def of(self, mean: float) -> float:
        """Place of a mean; above 1 it is better than every trivial row."""
        return (mean - self.worst) / (self.best - self.worst)


def scales(evaluation: Evaluation) -> list[Scale]:
    """Scales of the chosen metrics in which at least two trivial rows are defined and differ."""
    found = []
    for metric in evaluation.chosen:
        means = [row.summary(metric.name).mean for row in evaluation.trivial]
        means = [mean for mean in means if isfinite(mean)]
        if means and min(means) < max(means):
            ends = (min(means), max(means)) if metric.higher_is_better else (max(means), min(means))
            found.append(Scale(metric, *ends))
    return found


def plot(evaluation: Evaluation) -> list[Html]:
    """The content of the section; empty without methods or scales."""
    found = scales(evaluation)
    if not found or not evaluation.methods:
        return []
    canvas = _Canvas.around(evaluation, found)
    labels = "".join(f"<div>{escape(s.metric.name)} {arrow(s.metric)}</div>" for s in found)
    lines = "".join(canvas.line(row, place, found) for place, row in enumerate(evaluation.methods))
    height = _HEAD + _LINE_HEIGHT * len(found)
    picture = (
        f'<svg height="{height}" role="img" aria-label="Methods over metrics; the table above has the numbers">'
        f"{canvas.ground(found)}{canvas.trivial(evaluation, found)}{lines}</svg>"
    )
    names = "".join(_legend(row, place) for place, row in enumerate(evaluation.methods))
    text = (
        "Right is better. Each metric is scaled by its trivial rows (ticks): the band reaches from the worst of them "
        "to the best, so to its right lies what no copying, averaging or maximum reaches."
    )
    missing = [metric.name for metric in evaluation.chosen if metric.name not in {s.metric.name for s in found}]
    if missing:
        text += f" Without {', '.join(missing)}, where the trivial rows give no scale."
    if canvas.is_cut:
        text += " A triangle at the edge stands for a mean beyond it."
    return [
        Html(f'<div class="plot"><div class="labels" style="padding-top: {_HEAD}px">{labels}</div>{picture}</div>'),
        Html(f'<div class="legend">{names}</div>'),
        note(text),
    ]


def _legend(row: Row, place: int) -> str:
    mark = f'<svg><path transform="translate(7 7)" d="{_mark(place)}" style="fill: {colour(place)}"/></svg>'
    return f'<button type="button" data-row="{place}">{mark}{escape(row.name)}</button>'


def _mark(place: int) -> str:
    return _MARKS[place % len(_MARKS)]


@dataclass(frozen=True)
class _Canvas:
    """Maps scaled means to percentages of the width, so that letters and marks keep their size at any width."""

    low: float
    high: float
    is_cut: bool

    @classmethod
    def around(cls, evaluation: Evaluation, found: list[Scale]) -> _Canvas:
        means = [scale.of(row.summary(scale.metric.name).mean) for scale in found for row in evaluation.methods]
        means = [mean for mean in means if isfinite(mean)] or [0.0]
        low, high = max(_LOW, min(0.0, *means)), min(_HIGH, max(1.0, *means))
        room = (high - low) * 0.04
        return cls(low - room, high + room, min(means) < _LOW or max(means) > _HIGH)

    def x(self, value: float) -> str:
        return f"{100 * (value - self.low) / (self.high - self.low):.2f}%"

    def ground(self, found: list[Scale]) -> str:
        foot = _HEAD + _LINE_HEIGHT * len(found)
        width = f"{100 / (self.high - self.low):.2f}%"
        parts = [f'<rect class="band" x="{self.x(0)}" y="{_HEAD}" width="{width}" height="{foot - _HEAD}"/>']
        parts += [
            f'<line class="rule" x1="0" x2="100%" y1="{_y(place)}" y2="{_y(place)}"/>' for place in range(len(found))
        ]
        for value, text in ((0, "worst"), (1, "best")):
            parts.append(f'<text x="{self.x(value)}" y="14" text-anchor="middle">{text}</text>')
        return "".join(parts)

    def trivial(self, evaluation: Evaluation, found: list[Scale]) -> str:
        parts = []
        for place, scale in enumerate(found):
            for row in evaluation.trivial:
                mean = row.summary(scale.metric.name).mean
                if isfinite(mean):
                    title = _title(row, scale.metric, mean)
                    tick = f'<path class="trivial" d="M0-5V5">{title}</path>'
                    parts.append(f'<svg x="{self.x(scale.of(mean))}" y="{_y(place)}">{tick}</svg>')
        return "".join(parts)

    def line(self, row: Row, number_of_row: int, found: list[Scale]) -> str:
        """One method: its marks, joined where neighbouring metrics are both defined."""
        attributes = f'class="line" data-row="{number_of_row}"'
        paint = colour(number_of_row)
        joins, marks = [], []
        before: tuple[str, int] | None = None
        for place, scale in enumerate(found):
            mean = row.summary(scale.metric.name).mean
            if not isfinite(mean):
                before = None
                continue
            value = scale.of(mean)
            mark = _LEFTWARDS if value < _LOW else _RIGHTWARDS if value > _HIGH else _mark(number_of_row)
            here = (self.x(min(_HIGH, max(_LOW, value))), _y(place))
            if before is not None:
                ends = f'x1="{before[0]}" y1="{before[1]}" x2="{here[0]}" y2="{here[1]}"'
                joins.append(f'<line {attributes} {ends} style="stroke: {paint}"/>')
            shape = f'<path d="{mark}" style="fill: {paint}">{_title(row, scale.metric, mean)}</path>'
            marks.append(f'<svg {attributes} x="{here[0]}" y="{here[1]}">{shape}</svg>')
            before = here
        return "".join(joins + marks)


def _y(place: int) -> int:
    return _HEAD + _LINE_HEIGHT * place + _LINE_HEIGHT // 2


def _title(row: Row, metric: MetricInfo, mean: float) -> str:
    return f"<title>{escape(f'{row.name}: {metric.name} {number(mean, metric)}')}</title>"
