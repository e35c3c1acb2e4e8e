"""A robustness sweep for readers: a section of a report page, and tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from math import isnan
from typing import TYPE_CHECKING

from duskfuse import __version__
from duskfuse.evaluate.degradations import CLEAN, Degradation
from duskfuse.evaluate.metrics import MetricInfo
from duskfuse.evaluate.report import (
    Body,
    Cell,
    Html,
    Page,
    figure,
    folded,
    join,
    line_chart_svg,
    note,
    paragraph,
    pictures,
    subheading,
    table,
)
from duskfuse.evaluate.robustness import Robustness, RobustnessRow
from duskfuse.evaluate.scores import Kind

if TYPE_CHECKING:
    from rich.table import Table

_WHY_CLEAN = (
    "Every method gets the degraded pair and is scored against the clean one: against the degraded sources, handing on "
    "all the noise would score best. Average and maximum of the degraded pictures stand beside the models."
)
_HOW_TO_READ = (
    "EN, SD and SF look at the fused picture alone, so noise and stripes raise them: a negative drop is no merit. "
    "Nobody without registration can put a shifted infrared picture back: what counts is the loss beyond the trivial "
    "rows'. Of a dead camera nothing can arrive; the best that is left is the living picture, which the maximum with "
    "black is."
)


_TELLING = ("SSIM", "VIFF", "Qabf")
_GRID = "display: grid; grid-template-columns: repeat(auto-fill, minmax(min(26rem, 100%), 1fr)); gap: .75rem"


def robustness_page(found: Robustness) -> Page:
    """The page of a sweep alone."""
    pairs = f"{len(found.pairs)} of {found.found} pairs of {found.data}"
    page = Page(f"Robustness on {found.data}", stamp=f"duskfuse {__version__} · {pairs} · metrics by definition")
    add_robustness(page, found)
    return page


def add_robustness(page: Page, found: Robustness) -> None:
    """Add a sweep to a page as one section."""
    page.section("Robustness", robustness_section(found))


def robustness_section(found: Robustness) -> Html:
    """The content of the section: drops, curves per degradation, examples, and the exact parameters."""
    parts = [paragraph(_WHY_CLEAN), _drops(found), note(_HOW_TO_READ)]
    parts += [
        subheading("clean", f"{found.example}, the pair of the pictures below"),
        _example(found, CLEAN.degradation),
    ]
    for degradation in found.degradations:
        parts.append(subheading(degradation.name, degradation.meaning))
        parts.append(_example(found, degradation.name))
        single = len(degradation.severities) == 1
        parts.append(_dead(found, degradation) if single else folded("Curves", _curves(found, degradation)))
    parts.append(subheading("Parameters", "of every severity; pictures are in [0, 1]"))
    parts.append(_parameters(found))
    return join(parts)


def robustness_tables(found: Robustness) -> list[Table]:
    """Mean drops for the terminal: a table per telling metric, one line per degradation, one column per method."""
    telling = [metric for metric in found.metrics if metric.name in _TELLING] or list(found.metrics[: len(_TELLING)])
    return [_terminal_table(found, metric, last=metric is telling[-1]) for metric in telling]


def _terminal_table(found: Robustness, metric: MetricInfo, last: bool) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    shown = Table(
        title=f"{metric.name}: mean drop, {len(found.pairs)} of {found.found} pairs",
        caption=f"Positive is worse. All metrics and curves: {found.out / 'robustness.html'}" if last else None,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    shown.add_column("", no_wrap=True)
    for row in found.rows:
        style = "dim" if row.kind is Kind.TRIVIAL else ""
        shown.add_column(Text(row.name), justify="right", overflow="fold", style=style, header_style=style)
    for degradation in found.degradations:
        shown.add_row(degradation.name, *(_number(row.mean_drop(metric, degradation), metric) for row in found.rows))
    return shown


def _drops(found: Robustness) -> Html:
    header: list[str | Cell] = ["mean drop over the severities"]
    header += [Cell(degradation.name, title=degradation.meaning) for degradation in found.degradations]
    bodies = [
        Body(
            [
                [row.name, *(_number(row.mean_drop(metric, degradation), metric) for degradation in found.degradations)]
                for row in found.rows
            ],
            heading=f"{metric.name}: {metric.meaning}",
        )
        for metric in found.metrics
    ]
    return join([table(header, *bodies), note("Positive is worse, for every metric. – undefined.")])


def _curves(found: Robustness, degradation: Degradation) -> Html:
    charts = join(
        line_chart_svg(
            {row.name: row.curve(metric, degradation) for row in found.rows},
            "severity (0: clean)",
            f"{metric.name} {'↑' if metric.higher_is_better else '↓'}",
        )
        for metric in found.metrics
    )
    return Html(f'<div style="{_GRID}">{charts}</div>')


def _dead(found: Robustness, degradation: Degradation) -> Html:
    """Clean and degraded means of a degradation that has one severity."""
    header: list[str | Cell] = ["method", *(Cell(metric.name, title=metric.meaning) for metric in found.metrics)]
    rows = [cells for row in found.rows for cells in _clean_and_dead(found, row, degradation)]
    return folded("Scores", table(header, Body(rows)))


def _clean_and_dead(found: Robustness, row: RobustnessRow, degradation: Degradation) -> Iterator[list[str | Cell]]:
    for place in (CLEAN, *degradation.conditions):
        means = (_number(row.mean(metric, place), metric) for metric in found.metrics)
        yield [f"{row.name}, {place.degradation}", *means]


def _example(found: Robustness, degradation: str) -> Html:
    shown = (example for example in found.examples if example.condition.degradation == degradation)
    return pictures(figure(picture, caption) for example in shown for caption, picture in example.pictures.items())


def _parameters(found: Robustness) -> Html:
    most = max(len(degradation.severities) for degradation in found.degradations)
    header = ["degradation", "picture", *(f"severity {place + 1}" for place in range(most))]
    rows = []
    for degradation in found.degradations:
        given = [degradation.parameters(place.severity) for place in degradation.conditions]
        rows.append([degradation.name, str(degradation.side), *given, *[""] * (most - len(given))])
    return table(header, Body(rows))


def _number(value: float, metric: MetricInfo) -> str:
    return "–" if isnan(value) else f"{value:.{metric.decimals}f}".replace("-", "−")
