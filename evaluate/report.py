"""Report pages: one HTML file each that needs nothing else, no network and no other file.

Pictures are inlined, charts are SVG, colours follow the reader's light or dark scheme, wide tables scroll inside
themselves so that a page can be read on a phone. Text is escaped by the functions that take ``str``; they return
:data:`Html`, the only thing a page accepts. A page has no script unless a section asks for one of the package's own,
and it forbids the browser every other script and every connection.

>>> page = Page("Results", lead="Two runs & what they cost.")
>>> page.section("Cost", table(["run", "ms"], Body([["first", "12.5"], ["second", Cell("9.1", best=True)]])))
>>> "Two runs &amp; what they cost." in page.html()
True
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import cycle
from math import ceil, floor, isfinite, log10
from pathlib import Path
from typing import NewType

import cv2
import numpy as np
from numpy.typing import NDArray

from duskfuse.data.atomic import write_atomically

Html = NewType("Html", str)
"""Finished markup; everything of a user's in it has been escaped."""

JPEG_QUALITY = 88
COLOURS = 9
"""Colours of lines: the variables --c0 to --c8 of the page's style."""
_NUMBER = re.compile(r"[-−+]?\d|[–∞]|$")
_FEWEST_LINKS = 4
"""Sections from which on a page begins with links to them."""

_LIGHT = """color-scheme: light; --ground: #fdfdfc; --ink: #1d2024; --soft: #5d646d; --line: #dcdfe3;
  --edge: #8b929b; --panel: #f3f4f5; --accent: #b4470b; --best: #fbe9dc;
  --c0: #b4470b; --c1: #2563a8; --c2: #2e7d4f; --c3: #8a3f9c; --c4: #8a6d00; --c5: #50606e;
  --c6: #00838f; --c7: #c2185b; --c8: #6d4c41;"""
_DARK = """color-scheme: dark; --ground: #15171a; --ink: #e4e6e9; --soft: #9aa2ac; --line: #33383f;
  --edge: #6d7681; --panel: #1d2024; --accent: #ff9a55; --best: #3d2817;
  --c0: #ff9a55; --c1: #6fb1f5; --c2: #66c78d; --c3: #cf8be0; --c4: #dcb940; --c5: #a3b1be;
  --c6: #4fd0dc; --c7: #ff7fb0; --c8: #c9a48f;"""
_COLOUR_STYLE = f"""
:root {{ {_LIGHT} }}
@media (prefers-color-scheme: dark) {{ :root:not([data-theme="light"]) {{ {_DARK} }} }}
:root[data-theme="dark"] {{ {_DARK} }}
"""
_STYLE = """
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1.5rem 1.25rem 4rem; background: var(--ground); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .5rem 0 .4rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.6rem 0 .5rem; font-weight: 600; overflow-wrap: anywhere; }
h3 small { font-weight: 400; color: var(--soft); }
p { max-width: 48rem; margin: .5rem 0; }
.stamp { color: var(--soft); font-size: .875rem; max-width: none; }
.scroll { position: relative; overflow-x: auto; margin: .8rem 0; border: 1px solid var(--line); border-radius: .4rem; }
table { border-collapse: separate; border-spacing: 0; width: 100%; font-size: .9rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .65rem; text-align: left; white-space: nowrap; }
th { font-weight: 600; }
thead th { border-bottom: 1px solid var(--line); background: var(--panel); vertical-align: bottom;
  white-space: normal; }
th:first-child { position: sticky; left: 0; background: var(--ground); min-width: 8rem; max-width: 14rem;
  overflow-wrap: break-word; white-space: normal; }
thead th:first-child, tr.heading th { background: var(--panel); }
.n { text-align: right; }
tbody + tbody > tr:first-child > * { border-top: 1px solid var(--line); }
tbody.aside td, tbody.aside th { color: var(--soft); font-weight: 400; }
tr.heading th { color: var(--soft); font-weight: 400; font-size: .8rem; padding: .25rem .65rem; }
td.best { background: var(--best); font-weight: 700; color: var(--ink); }
td sup { color: var(--accent); font-weight: 700; font-size: .75em; line-height: 1.2; position: absolute; }
.note { color: var(--soft); font-size: .875rem; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(17rem, 46%), 1fr)); gap: .75rem; }
figure { margin: 0; min-width: 0; }
figure img { width: 100%; height: auto; display: block; border-radius: .25rem; background: var(--panel); }
figcaption { font-size: .85rem; color: var(--soft); padding-top: .2rem; overflow-wrap: anywhere; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; font-size: .875rem; margin: 1rem 0 0; }
nav a { color: var(--soft); text-underline-offset: .2em; text-decoration-color: var(--edge); }
nav a:hover { color: var(--ink); }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .25rem 1rem; font-size: .9rem;
  margin: .6rem 0; }
dt { font-weight: 600; max-width: 14rem; overflow-wrap: anywhere; } dd { margin: 0; overflow-wrap: anywhere; }
details { margin: .8rem 0; } summary { cursor: pointer; }
.chart { max-width: 44rem; margin: .8rem 0; }
.chart svg { width: 100%; height: auto; display: block; }
.chart text { fill: var(--soft); font-size: 12px; }
.chart .grid { stroke: var(--line); stroke-width: 1; }
.chart polyline { fill: none; stroke-width: 2; stroke-linejoin: round; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; font-size: .85rem; }
.legend i { display: inline-block; width: 1.1rem; height: .2rem; margin-right: .4rem; vertical-align: middle; }
@media (max-width: 36rem) { body { padding: 1rem .8rem 3rem; } th:first-child { min-width: 6.5rem; max-width: 8rem; }
  dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .5rem; color: var(--soft); } }
"""


@dataclass(frozen=True)
class Cell:
    """One cell of a table."""

    text: str
    best: bool = False
    """Marked as the best of its column."""
    mark: str = ""
    """A sign after the text, such as †, that a note below the table explains."""
    title: str = ""
    """Shown when the pointer rests on the cell."""


@dataclass(frozen=True)
class Body:
    """A group of rows of a table, set apart from the next group by a line."""

    rows: Sequence[Sequence[str | Cell]]
    heading: str = ""
    aside: bool = False
    """Less prominent than the other groups."""


class Page:
    """A report page that grows by sections."""

    def __init__(self, title: str, *, lead: str = "", stamp: str = "") -> None:
        """Start a page; ``lead`` says what it is about, ``stamp`` what it was made with."""
        self.title, self._lead, self._stamp = title, lead, stamp
        self._sections: list[Html] = []
        self._links: list[str] = []
        self._style = self._script = ""

    def section(self, title: str, *content: Html) -> None:
        """Add a section with a heading."""
        place = f"section-{len(self._sections) + 1}"
        self._links.append(f'<a href="#{place}">{escape(title)}</a>')
        self._sections.append(Html(f'<section id="{place}"><h2>{escape(title)}</h2>\n{join(content)}</section>'))

    def answer_with(self, script: str, style: str) -> None:
        """Let one of the package's own scripts, with the style of what it makes, answer to the reader."""
        self._script, self._style = script, style

    def html(self) -> str:
        """The whole page."""
        lead = paragraph(self._lead) if self._lead else ""
        stamp = f'<p class="stamp">{escape(self._stamp)}</p>' if self._stamp else ""
        links = f'<nav aria-label="Sections">{"".join(self._links)}</nav>' if len(self._links) >= _FEWEST_LINKS else ""
        script = f"<script>{self._script}</script>\n" if self._script else ""
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{_policy(self._script)}">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{escape(self.title)}</title>\n<style>{_COLOUR_STYLE}{_STYLE}{self._style}</style>\n</head>\n"
            f"<body>\n<header><h1>{escape(self.title)}</h1>\n{lead}{stamp}{links}</header>\n<main>\n"
            f"{join(self._sections)}\n</main>\n{script}</body>\n</html>\n"
        )

    def write(self, path: Path) -> None:
        """Write the page as UTF-8, whole or not at all."""
        write_atomically(path, self.html())


def join(parts: Iterable[Html]) -> Html:
    """Put pieces of markup one after the other."""
    return Html("\n".join(parts))


def paragraph(text: str) -> Html:
    """A paragraph of text."""
    return Html(f"<p>{escape(text)}</p>")


def note(text: str) -> Html:
    """A paragraph in smaller, quieter type."""
    return Html(f'<p class="note">{escape(text)}</p>')


def subheading(text: str, aside: str = "") -> Html:
    """A heading within a section, with a quieter remark after it."""
    return Html(f"<h3>{escape(text)} <small>{escape(aside)}</small></h3>")


def folded(summary: str, content: Html) -> Html:
    """Content that is shown when the reader opens it."""
    return Html(f"<details><summary>{escape(summary)}</summary>\n{content}</details>")


def definitions(items: Iterable[tuple[str, str]]) -> Html:
    """A list of terms and what they mean."""
    return Html("<dl>" + "".join(f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in items) + "</dl>")


def table(header: Sequence[str | Cell], *bodies: Body) -> Html:
    """A table whose first column names the rows; a column of numbers (and – for none) is set to the right.

    Raises ValueError where a row is not as long as the header.
    """
    rows = [row for body in bodies for row in body.rows]
    if any(len(row) != len(header) for row in rows):
        raise ValueError(f"rows of {sorted({len(row) for row in rows})} cells under a header of {len(header)}")
    right = [all(_is_number(row[column]) for row in rows) for column in range(len(header))]
    head = "".join(_cell("th", cell, numbers, 'scope="col"') for cell, numbers in zip(header, right, strict=True))
    groups = "".join(_body(body, right) for body in bodies)
    return Html(f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead>{groups}</table></div>')


def figure(picture: NDArray[np.uint8], caption: str) -> Html:
    """A picture, ``[H, W]`` grey or ``[H, W, 3]`` RGB uint8, inlined as JPEG, with its caption."""
    height, width = picture.shape[:2]
    stored = picture if picture.ndim == 2 else cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    done, data = cv2.imencode(".jpg", stored, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    if not done:
        raise ValueError(f"a picture of {picture.dtype} {picture.shape} cannot be inlined")
    source = "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode("ascii")
    text = escape(caption)
    return Html(
        f'<figure><img src="{source}" alt="{text}" width="{width}" height="{height}" loading="lazy">'
        f"<figcaption>{text}</figcaption></figure>"
    )


def pictures(figures: Iterable[Html]) -> Html:
    """Figures side by side, as many in a row as fit."""
    return Html(f'<div class="pictures">{join(figures)}</div>')


def line_chart_svg(series: Mapping[str, Sequence[tuple[float, float]]], x_label: str, y_label: str) -> Html:
    """Lines over common axes, with a legend: name → (x, y) points in the order they are joined.

    Points that are nan or infinite are left out; without any finite point a sentence says so.
    """
    finite = {name: [(x, y) for x, y in points if isfinite(x) and isfinite(y)] for name, points in series.items()}
    flat = [point for points in finite.values() for point in points]
    if not flat:
        return note(f"{y_label}: there is nothing to draw.")
    x_ticks, y_ticks = _ticks([x for x, _ in flat]), _ticks([y for _, y in flat])
    canvas = _Canvas(x_ticks[0], x_ticks[-1], y_ticks[0], y_ticks[-1])
    parts = [canvas.axes(x_ticks, y_ticks, x_label, y_label)]
    legend = []
    for colour, (name, points) in zip(cycle(range(COLOURS)), finite.items(), strict=False):
        parts.append(canvas.line(points, colour))
        missing = "" if points else " (no finite value)"
        legend.append(f'<span><i style="background: var(--c{colour})"></i>{escape(name)}{missing}</span>')
    label = escape(f"{y_label} over {x_label}")
    return Html(
        f'<div class="chart"><svg viewBox="0 0 {canvas.width} {canvas.height}" role="img" aria-label="{label}">'
        f'{"".join(parts)}</svg><div class="legend">{"".join(legend)}</div></div>'
    )


def _policy(script: str) -> str:
    """What the browser may load: inlined pictures and styles, this one script, nothing else."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    scripts = f" script-src 'sha256-{digest}';" if script else ""
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline';{scripts} base-uri 'none'; form-action 'none'"


def _body(body: Body, right: Sequence[bool]) -> str:
    rows = []
    if body.heading:
        heading = f'<th colspan="{len(right)}" scope="rowgroup">{escape(body.heading)}</th>'
        rows.append(f'<tr class="heading">{heading}</tr>')
    for name, *cells in body.rows:
        values = "".join(_cell("td", cell, numbers) for cell, numbers in zip(cells, right[1:], strict=True))
        label = _cell("th", name, False, 'scope="row"')
        rows.append(f"<tr>{label}{values}</tr>")
    opening = '<tbody class="aside">' if body.aside else "<tbody>"
    return f"{opening}{''.join(rows)}</tbody>"


def _cell(tag: str, cell: str | Cell, right: bool, attributes: str = "") -> str:
    cell = Cell(cell) if isinstance(cell, str) else cell
    classes = " ".join(name for name, wanted in (("n", right), ("best", cell.best)) if wanted)
    opening = " ".join(
        part
        for part in (
            tag,
            attributes,
            f'class="{classes}"' if classes else "",
            f'title="{escape(cell.title)}"' if cell.title else "",
        )
        if part
    )
    mark = f"<sup>{escape(cell.mark)}</sup>" if cell.mark else ""
    return f"<{opening}>{escape(cell.text)}{mark}</{tag}>"


def _is_number(cell: str | Cell) -> bool:
    return bool(_NUMBER.match(cell if isinstance(cell, str) else cell.text))


@dataclass(frozen=True)
class _Canvas:
    """Maps data to SVG units."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float
    width: int = 640
    height: int = 300
    left: int = 64
    right: int = 30
    top: int = 26
    bottom: int = 44

    def place(self, x: float, y: float) -> tuple[float, float]:
        across = (x - self.x_low) / (self.x_high - self.x_low)
        up = (y - self.y_low) / (self.y_high - self.y_low)
        column = self.left + across * (self.width - self.left - self.right)
        row = self.height - self.bottom - up * (self.height - self.top - self.bottom)
        return round(column, 2), round(row, 2)

    def axes(self, x_ticks: Sequence[float], y_ticks: Sequence[float], x_label: str, y_label: str) -> str:
        foot, end = self.height - self.bottom, self.width - self.right
        parts = [f'<text x="2" y="14">{escape(y_label)}</text>']
        parts.append(f'<text x="{end}" y="{self.height - 4}" text-anchor="end">{escape(x_label)}</text>')
        for value in y_ticks:
            _, row = self.place(self.x_low, value)
            parts.append(f'<line class="grid" x1="{self.left}" x2="{end}" y1="{row}" y2="{row}"/>')
            parts.append(f'<text x="{self.left - 8}" y="{row + 4}" text-anchor="end">{value:g}</text>')
        for value in x_ticks:
            column, _ = self.place(value, self.y_low)
            parts.append(f'<text x="{column}" y="{foot + 18}" text-anchor="middle">{value:g}</text>')
        return "".join(parts)

    def line(self, points: Sequence[tuple[float, float]], colour: int) -> str:
        places = [self.place(x, y) for x, y in points]
        style = f"var(--c{colour})"
        if not places:
            return ""
        if len(places) == 1:
            return f'<circle cx="{places[0][0]}" cy="{places[0][1]}" r="3.5" style="fill: {style}"/>'
        joined = " ".join(f"{column},{row}" for column, row in places)
        return f'<polyline points="{joined}" style="stroke: {style}"/>'


def _ticks(values: Sequence[float]) -> list[float]:
    """Three to seven round numbers whose first and last enclose the values."""
    low, high = min(values), max(values)
    if low == high:
        room = abs(low) / 2 or 1.0
        low, high = low - room, high + room
    raw = (high - low) / 4
    power = 10.0 ** floor(log10(raw))
    step = power * next(factor for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = floor(low / step + 1e-9), ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]
