"""An evaluation for readers: sections of a report page."""

from __future__ import annotations

from math import isfinite, isinf, isnan

from duskfuse import __version__
from duskfuse.evaluate.metrics import MetricInfo
from duskfuse.evaluate.report import (
    Body,
    Cell,
    Html,
    Page,
    definitions,
    figure,
    folded,
    join,
    note,
    paragraph,
    pictures,
    subheading,
    table,
)
from duskfuse.evaluate.scores import GREY, Evaluation, Row
from duskfuse.evaluate.statistics import Summary

BEATEN = "†"
_WHY_TRIVIAL = (
    "The trivial rows are what copying a source, averaging or taking the brighter pixel scores. Many metrics reward "
    "them, so a method's number means something only beside theirs."
)
_BEATEN_NOTE = f"{BEATEN} better than every method: on its own this metric does not show good fusion."


def evaluation_page(evaluation: Evaluation) -> Page:
    """The report page of the ``evaluate`` verb."""
    page = Page(f"Fusion metrics on {evaluation.data}", lead=_lead(evaluation), stamp=stamp_line(evaluation))
    add_evaluation(page, evaluation)
    return page


def add_evaluation(page: Page, evaluation: Evaluation) -> None:
    """Add the sections of an evaluation to a page: means, pictures, spread, meaning of the metrics."""
    page.section("Mean over the pairs", *_means(evaluation))
    if evaluation.gallery:
        page.section("Pictures", *_gallery(evaluation))
    page.section("Spread over the pairs", *_spread(evaluation))
    page.section("What the metrics mean", *_meanings(evaluation))


def stamp_line(evaluation: Evaluation) -> str:
    """One line that says what the numbers were made with."""
    return (
        f"duskfuse {__version__} · {_pairs(evaluation.pairs)} of {evaluation.data} · metrics: "
        f"{evaluation.mode} · grey: {GREY} · outputs not stretched"
    )


def mean_text(summary: Summary, metric: MetricInfo) -> str:
    """Write the mean of a metric: – where it is undefined, ∞ where the pictures are identical."""
    return _number(summary.mean, metric)


def _lead(evaluation: Evaluation) -> str:
    methods = [row.name for row in evaluation.methods]
    if not methods:
        return f"What the trivial rules score on {_pairs(evaluation.pairs)}. No method was given."
    *most, last = methods
    listed = f"{', '.join(most)} and {last} fuse" if most else f"{last} fuses"
    return f"How well {listed} {_pairs(evaluation.pairs)}."


def _means(evaluation: Evaluation) -> list[Html]:
    header: list[str | Cell] = ["method"]
    header += [Cell(f"{metric.name}\u00a0{_arrow(metric)}", title=metric.meaning) for metric in evaluation.metrics]
    bodies = []
    if evaluation.methods:
        bodies.append(Body([_mean_row(evaluation, row) for row in evaluation.methods]))
    trivial = [_mean_row(evaluation, row) for row in evaluation.trivial]
    bodies.append(Body(trivial, heading="trivial rows", aside=True))
    return [table(header, *bodies), note(" ".join(_table_notes(evaluation))), note(_WHY_TRIVIAL)]


def _mean_row(evaluation: Evaluation, row: Row) -> list[str | Cell]:
    cells: list[str | Cell] = [row.name]
    for metric in evaluation.metrics:
        summary = row.summary(metric.name)
        cell = Cell(
            mean_text(summary, metric),
            best=row.name in evaluation.best(metric),
            mark=BEATEN if row.name in evaluation.better_trivial(metric) else "",
            title=_left_out(summary),
        )
        cells.append(cell)
    return cells


def _table_notes(evaluation: Evaluation) -> list[str]:
    notes = [
        "↑ higher is better, ↓ lower is better."
        + (" Highlighted: the best method." if len(evaluation.methods) > 1 else "")
    ]
    if any(evaluation.better_trivial(metric) for metric in evaluation.metrics):
        notes.append(_BEATEN_NOTE)
    columns = [(row, metric, row.summary(metric.name)) for row in evaluation.rows for metric in evaluation.metrics]
    if any(isnan(summary.mean) for _, _, summary in columns):
        notes.append("– undefined.")
    counts = [
        f"{metric.name} of {row.name} {_left_out(summary)}"
        for row, metric, summary in columns
        if _left_out(summary) and isfinite(summary.mean)
    ]
    if counts:
        notes.append(f"Means leave out: {'; '.join(counts)}.")
    return [*notes, *evaluation.notes]


def _left_out(summary: Summary) -> str:
    parts = []
    if summary.undefined:
        parts.append(f"undefined on {_pairs(summary.undefined)}")
    if summary.identical:
        parts.append(f"∞ on {_pairs(summary.identical)} (identical pictures)")
    return ", ".join(parts)


def _gallery(evaluation: Evaluation) -> list[Html]:
    count = f"{len(evaluation.gallery)} of {_pairs(evaluation.pairs)}"
    intro = paragraph(
        f"{count}, the darkest first, the others spread over the range of brightness. Every fused luminance is "
        "shown in the visible picture's colours; the metrics look at the luminance only."
    )
    blocks = [intro]
    for pair in evaluation.gallery:
        figures = (figure(picture, caption) for caption, picture in pair.pictures.items())
        blocks += [subheading(pair.name, f"visible brightness {pair.brightness:.0f} of 255"), pictures(figures)]
    return blocks


def _spread(evaluation: Evaluation) -> list[Html]:
    header: list[str | Cell] = ["metric", *(row.name for row in evaluation.rows)]
    rows = []
    for metric in evaluation.metrics:
        cells = [_spread_text(row.summary(metric.name), metric) for row in evaluation.rows]
        rows.append([f"{metric.name} {_arrow(metric)}", *cells])
    content = join([table(header, Body(rows)), note("Single values are in per_image.csv.")])
    return [folded("Median and, in brackets, smallest and largest value", content)]


def _spread_text(summary: Summary, metric: MetricInfo) -> str:
    if isnan(summary.median) or isinf(summary.median):
        return _number(summary.median, metric)
    low, high = _number(summary.least, metric), _number(summary.most, metric)
    return f"{_number(summary.median, metric)} ({low} … {high})"


def _meanings(evaluation: Evaluation) -> list[Html]:
    terms = [(f"{metric.name} {_arrow(metric)}", metric.meaning) for metric in evaluation.metrics]
    intro = paragraph(
        "A is the infrared, B the visible, F the fused picture, all 8-bit grey. Numbers of other tables compare only "
        "where the same definitions were used: SD and VIF on saturating integers, SSIM with the constants of another "
        "range and PSNR 48 dB higher are all in print."
    )
    return [intro, definitions(terms)]


def _arrow(metric: MetricInfo) -> str:
    return "↑" if metric.higher_is_better else "↓"


def _number(value: float, metric: MetricInfo) -> str:
    if isnan(value):
        return "–"
    return "∞" if isinf(value) else f"{value:.{metric.decimals}f}"


def _pairs(count: int) -> str:
    return "1 pair" if count == 1 else f"{count} pairs"
