"""The steadiness of videos for readers: a section of a report page, and a table for the terminal."""

from __future__ import annotations

from math import isnan
from typing import TYPE_CHECKING

from duskfuse import __version__
from duskfuse.evaluate.report import (
    Body,
    Cell,
    Html,
    Page,
    definitions,
    folded,
    join,
    line_chart_svg,
    note,
    paragraph,
    subheading,
    table,
)
from duskfuse.evaluate.scores import Kind
from duskfuse.evaluate.video import WARPED, Measure, SequenceStability, VideoStability

if TYPE_CHECKING:
    from rich.table import Table

_DECIMALS = 2
_FEW_SEEN = 0.5
_DRAWN = 500
"""Frames in a chart."""
_MEANINGS = (
    ("E_vis ↓", "mean |frame − frame before, moved along the optical flow of the visible frames|, where seen before"),
    ("E_ir ↓", "the same along the optical flow of the infrared frames"),
    ("flicker ↓", "standard deviation of the differences of consecutive frame means"),
    ("excess ↓", "what a number has beyond the mean of the same number of the two sources"),
)
_LEAD = (
    "In grey levels of the 8-bit luminance. Noise, exposure control and motion that the flow misses are in the sources "
    "as well, so the excess is what to look at. A blend of the sources has none; taking the livelier source everywhere "
    "has some, as the trivial rows show: what a method has beyond these is its own. Low contrast lowers all numbers."
)


def video_page(found: VideoStability) -> Page:
    """The page of a measurement alone."""
    frames = sum(len(sequence.frames) for sequence in found.sequences)
    stamp = f"duskfuse {__version__} · {frames} frames in {len(found.sequences)} sequences · flow: OpenCV DIS, medium"
    page = Page(f"Video stability on {found.data}", stamp=stamp)
    add_video(page, found)
    return page


def add_video(page: Page, found: VideoStability) -> None:
    """Add a measurement to a page as one section."""
    page.section("Stability in time", video_section(found))


def video_section(found: VideoStability) -> Html:
    """The content of the section: means, sequences, frame means over time, definitions."""
    parts = [paragraph(_LEAD), _table(found), _notes(found)]
    for sequence in found.sequences:
        parts.append(subheading(sequence.name, f"{len(sequence.frames)} frames of {_size(sequence)}"))
        parts.append(folded("Numbers and frame means", join([_table(found, sequence), _chart(found, sequence)])))
    parts.append(definitions(_MEANINGS))
    return join(parts)


def video_table(found: VideoStability) -> Table:
    """Means over the sequences for the terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    shown = Table(
        title=f"Stability in time, mean over {len(found.sequences)} sequences of {found.data}; grey levels",
        caption=f"report: {found.out / 'video.html'}",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    shown.add_column("")
    for measure in Measure:
        shown.add_column(f"↓ {measure}", justify="right")
        shown.add_column("excess", justify="right")
    for row, kind in found.rows.items():
        shown.add_row(Text(row), *_cells(found, row), style="dim" if kind is Kind.TRIVIAL else "")
    return shown


def _table(found: VideoStability, sequence: SequenceStability | None = None) -> Html:
    header: list[str | Cell] = ["method"]
    for measure in Measure:
        header += [f"{measure} ↓", "excess"]
    methods = [row for row, kind in found.rows.items() if kind is not Kind.TRIVIAL]
    rest = [row for row in found.rows if row not in methods]
    bodies = [Body([[row, *_cells(found, row, sequence)] for row in methods])] if methods else []
    trivial = Body([[row, *_cells(found, row, sequence)] for row in rest], heading="trivial rows", aside=True)
    return table(header, *bodies, trivial)


def _cells(found: VideoStability, row: str, sequence: SequenceStability | None = None) -> list[str]:
    """Value and excess of every measure, of one sequence or the mean over all."""
    if sequence is not None:
        pairs = [(sequence.value(row, measure), sequence.excess(row, measure)) for measure in Measure]
    else:
        pairs = [(found.mean(row, measure), found.mean_excess(row, measure)) for measure in Measure]
    return [cell for value, excess in pairs for cell in (_number(value), _number(excess, signed=True))]


def _notes(found: VideoStability) -> Html:
    notes = []
    for sequence in found.sequences:
        for measure in WARPED:
            seen, left_out = sequence.seen(measure), sequence.left_out(measure)
            if seen < _FEW_SEEN:
                notes.append(
                    f"{measure} of {sequence.name}: only {seen:.0%} of the pixels were seen in the frame before."
                )
            if left_out:
                notes.append(f"{measure} of {sequence.name} leaves out {_steps(left_out)} where hardly anything was.")
    return note(" ".join(notes)) if notes else Html("")


def _chart(found: VideoStability, sequence: SequenceStability) -> Html:
    """Frame means over time."""
    drawn = sequence.frames[:_DRAWN]
    series = {row: [(float(place), frame.levels[row]) for place, frame in enumerate(drawn)] for row in found.rows}
    more = note(f"The first {_DRAWN} frames; all are in video.csv.") if len(sequence.frames) > _DRAWN else Html("")
    return join([line_chart_svg(series, "frame", "mean grey level"), more])


def _size(sequence: SequenceStability) -> str:
    height, width = sequence.size
    return f"{width}×{height}"


def _steps(count: int) -> str:
    return "1 step" if count == 1 else f"{count} steps"


def _number(value: float, signed: bool = False) -> str:
    if isnan(value):
        return "–"
    return (f"{value:+.{_DECIMALS}f}" if signed else f"{value:.{_DECIMALS}f}").replace("-", "−")
