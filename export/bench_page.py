"""The page that compares devices: one file with times, energy, steadiness, and everything the numbers depend on.

What makes runs incomparable stands before the numbers. Times are sorted, the network's and the whole way's apart;
energy is shown by rail, and no total is made of rails that do not add up.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from statistics import median
from typing import Any

from duskfuse import __version__
from duskfuse.data.errors import InputError
from duskfuse.evaluate.report import COLOURS, Body, Html, Page, folded, join, line_chart_svg, note, paragraph, table
from duskfuse.export.device_runs import DeviceRun, RunResult, incomparable

_ASSETS = "duskfuse.evaluate.report_page"
_POINTS = 60
"""Points of a line over one run."""
_SHOWN_LAYERS = 12
_PRECISIONS = {"int8": 8, "fp16": 16, "fp32": 32}
_STYLE = """
.bars { display: grid; grid-template-columns: minmax(9rem, 17rem) minmax(0, 1fr); gap: .5rem 1rem; font-size: .85rem;
  align-items: center; margin: 1rem 0; }
.bars .name { line-height: 1.3; overflow-wrap: anywhere; }
.bars .name small { display: block; color: var(--soft); }
.bars svg { width: 100%; height: 1.5rem; display: block; overflow: visible; }
.bars .track { display: grid; grid-template-columns: minmax(0, 1fr) 9.5rem; gap: .6rem; align-items: center; }
.bars .value { font-variant-numeric: tabular-nums; white-space: nowrap; line-height: 1.3; }
.bars .value small { color: var(--soft); display: block; }
.bars .ends { stroke: var(--ink); stroke-width: 1.5; }
.times tbody th { font-weight: 600; }
.times small { color: var(--soft); font-weight: 400; display: block; }
.times thead button { all: unset; cursor: pointer; font-weight: 600; white-space: nowrap; border-radius: .2rem; }
.times thead button:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
.times thead button::after { content: "\\2002"; }
.times [aria-sort="ascending"] button::after { content: "▴"; color: var(--accent); }
.times [aria-sort="descending"] button::after { content: "▾"; color: var(--accent); }
.times td { vertical-align: top; }
.times td sup { position: static; }
ul.plain { margin: .3rem 0; padding-left: 1.1rem; max-width: 60rem; }
@media (max-width: 36rem) { .bars { grid-template-columns: minmax(0, 1fr); gap: .2rem; }
  .bars .track { margin-bottom: .7rem; grid-template-columns: minmax(0, 1fr) 7.5rem; } }
"""


@dataclass(frozen=True)
class _Row:
    """One network on one device."""

    run: DeviceRun
    result: RunResult
    place: int
    """Of the device, from 0."""

    @property
    def colour(self) -> str:
        return f"var(--c{self.place % COLOURS})"

    @property
    def network(self) -> str:
        return f"{self.result.model} ({self.result.backend})"

    @property
    def device(self) -> str:
        mode = f", {self.run.power_mode}" if self.run.power_mode else ""
        return f"{self.run.name}{mode}"


def bench_page(runs: Sequence[DeviceRun]) -> Page:
    """Compare devices on one page; raises InputError where none of them gave a number."""
    rows = [_Row(run, result, place) for place, run in enumerate(runs) for result in run.results]
    if not rows:
        raise InputError("no run holds a number", remedy="see the reasons in the failures of the documents")
    rows.sort(key=lambda row: row.result.network["p50"])
    names = list(dict.fromkeys(run.name for run in runs))
    lead = f"{_counted(len({r.result.model for r in rows}), 'network')} on {', '.join(names)}."
    page = Page("Benchmark of devices", lead=lead, stamp=f"duskfuse {__version__} · batch 1 · milliseconds per picture")
    assets = files(_ASSETS)
    script, style = (assets.joinpath(name).read_text(encoding="utf-8") for name in ("page.js", "page.css"))
    page.answer_with(script, style + _STYLE)
    if warnings := incomparable(runs):
        page.section("Before you compare", _callout(warnings))
    page.section("Time per picture", _times(rows), note(_meaning(rows)), *_bars_of_times(rows))
    if any(row.result.energy_mj for row in rows):
        page.section("Energy per picture", *_energy(rows))
    page.section("Over the run", *_over_time(rows))
    if any(row.result.layers for row in rows):
        page.section("Where the GPU's time goes", *_layers(rows))
    page.section("The devices", _devices(runs))
    if remarks := _remarks(rows, runs):
        page.section("Remarks on single runs", remarks)
    page.section("How this was measured", *_method(runs))
    return page


def _times(rows: Sequence[_Row]) -> Html:
    heads = ["network", "device", "precision", "size", "p50", "p90", "p99", "jitter", "varies", "whole p50", "per s"]
    tips = {
        "p50": "median time of the network alone",
        "jitter": "how far the 99th percentile lies above the median",
        "varies": "coefficient of variation: standard deviation over mean",
        "whole p50": "8-bit pictures in, 8-bit colours out",
        "per s": "pictures per second of the whole way, one after the other",
    }
    head = "".join(
        f'<th scope="col" class="{"n" if place > 3 else ""}" data-better="{"higher" if name == "per s" else "lower"}"'
        f"{f' data-tip={_quoted(tips[name])}' if name in tips else ''}>{name}</th>"
        for place, name in enumerate(heads)
    )
    body = "".join(_times_row(row) for row in rows)
    return Html(
        '<div class="scroll" tabindex="0" role="region" aria-label="Times"><table class="times" data-sortable>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _times_row(row: _Row) -> str:
    result = row.result
    mark = "<sup>!</sup>" if result.warnings else ""
    name = f"{escape(result.model)}{mark}<small>{escape(result.backend)}</small>"
    cells = [
        f'<th scope="row" title="{escape("; ".join(result.warnings))}">{name}</th>',
        f'<td data-sort="{row.place}"><i class="key" style="background: {row.colour}"></i>{escape(row.device)}</td>',
        f'<td data-sort="{_PRECISIONS.get(result.precision, 0)}">{escape(result.precision)}</td>',
        f'<td data-sort="{_pixels(result.size)}">{escape(result.size)}</td>',
    ]
    numbers: list[tuple[float | None, str]] = [
        *((result.network[name], _ms(result.network[name])) for name in ("p50", "p90", "p99", "jitter")),
        (result.network["variation"], f"{100 * result.network['variation']:.1f} %"),
        (None, "–") if result.whole is None else (result.whole["p50"], _ms(result.whole["p50"])),
        (None, "–") if result.fps is None else (result.fps, f"{result.fps:.1f}"),
    ]
    cells += [f'<td class="n" data-sort="{"" if value is None else value}">{text}</td>' for value, text in numbers]
    return f"<tr>{''.join(cells)}</tr>"


def _meaning(rows: Sequence[_Row]) -> str:
    text = "Network: float planes in, fused plane out. Whole: 8-bit pictures in, 8-bit colours out."
    if any(row.result.backend == "trtexec" for row in rows):
        text += " trtexec times the GPU alone, without transfers and without the way in and out."
    if any(row.result.warnings for row in rows):
        text += " ! A remark on this run stands below."
    return text


def _bars_of_times(rows: Sequence[_Row]) -> list[Html]:
    parts = []
    for title, kind in (("The network alone", "network"), ("The whole way", "whole")):
        shown = [(row, times) for row in rows if (times := getattr(row.result, kind)) is not None]
        shown.sort(key=lambda item: item[1]["p50"])
        if not shown:
            continue
        most = max(times["p99"] for _, times in shown)
        bars = [
            _bar(row, times["p50"] / most, times["p99"] / most, f"{_ms(times['p50'])} ms", f"p99 {_ms(times['p99'])}")
            for row, times in shown
        ]
        parts += [Html(f"<h3>{title} <small>bar: median; line: to the 99th percentile</small></h3>"), _bars(bars)]
    return parts


def _energy(rows: Sequence[_Row]) -> list[Html]:
    whole = [row for row in rows if row.result.input_rail is not None]
    parts = [row for row in rows if row.result.energy_mj and row.result.input_rail is None]
    content = []
    if whole:
        values = [(row, row.result.energy_mj[row.result.input_rail or ""]) for row in whole]
        values.sort(key=lambda item: item[1]["per_picture"] or 0)
        most = max((energy["per_picture"] or 0) for _, energy in values) or 1
        bars = []
        for row, energy in values:
            spent, above = energy["per_picture"] or 0, energy["above_idle"]
            shown = "" if above is None else f"{above:.1f} above idle"
            bars.append(_bar(row, spent / most, spent / most, f"{spent:.1f} mJ", shown))
        content += [
            Html("<h3>The whole module <small>its input rail; mean power times time per picture</small></h3>"),
            _bars(bars),
        ]
    if parts:
        lines = [
            [row.network, row.device, rail, f"{energy['per_picture'] or 0:.1f}", _or_none(energy["above_idle"])]
            for row in parts
            for rail, energy in row.result.energy_mj.items()
        ]
        head = ["network", "device", "rail", "mJ per picture", "mJ above idle"]
        content += [
            Html("<h3>Parts of the module <small>modules without an input rail</small></h3>"),
            table(head, Body(lines)),
            note("No sum is shown: the rails of these modules are not known to be disjoint and complete."),
        ]
    left = [row.network for row in rows if not row.result.energy_mj]
    if left:
        content.append(note(f"Without a measurement of power: {', '.join(dict.fromkeys(left))}."))
    return content


def _over_time(rows: Sequence[_Row]) -> list[Html]:
    """Medians over the run: a rise is a device that slows down."""
    series: dict[str, list[tuple[float, float]]] = {}
    for row in rows[:COLOURS]:
        name = f"{row.network} on {row.device}"
        series[f"{name} #{len(series) + 1}" if name in series else name] = _course(row.result)
    text = (
        "A line that rises is a device that slows down as it gets warm. A run too short to warm it says nothing about "
        "a day's work."
    )
    more = f" The {COLOURS} fastest of {len(rows)} are drawn." if len(rows) > COLOURS else ""
    return [paragraph(text + more), line_chart_svg(series, "seconds", "network, ms (median of neighbours)")]


def _course(result: RunResult) -> list[tuple[float, float]]:
    times = list(result.times_ms)
    size = max(1, -(-len(times) // _POINTS))
    groups = [times[start : start + size] for start in range(0, len(times), size)]
    step = result.seconds / len(times) if times else 0
    return [((place + 0.5) * size * step, median(group)) for place, group in enumerate(groups)]


def _layers(rows: Sequence[_Row]) -> list[Html]:
    content = [
        paragraph("The slowest layers of each engine, as trtexec profiled them in a run apart, where they take longer.")
    ]
    for row in rows:
        slowest = sorted(row.result.layers, key=lambda layer: -layer.mean_ms)[:_SHOWN_LAYERS]
        if slowest:
            lines = [[layer.name, _ms(layer.mean_ms), f"{layer.percent:.1f} %"] for layer in slowest]
            shown = table(["layer", "mean, ms", "share"], Body(lines))
            content.append(folded(f"{row.network} on {row.device}", shown))
    return content


def _devices(runs: Sequence[DeviceRun]) -> Html:
    lines = [
        ("module", "module"),
        ("processor", "processor"),
        ("system", "system"),
        ("L4T", "l4t"),
        ("JetPack", "jetpack"),
        ("TensorRT", "tensorrt"),
        ("power mode", "power_mode"),
        ("GPU clock locked", "gpu_clock_locked"),
        ("governor", "governor"),
        ("cores", "cores"),
        ("memory, MB", "memory_mb"),
    ]
    rows = [[label, *(_fact(run, name) for run in runs)] for label, name in lines]
    rows += [["GPU clock, MHz", *(_gpu_range(run) for run in runs)]]
    for package in ("python", "numpy", "onnxruntime"):
        rows.append([package, *(str(run.device.get("versions", {}).get(package, "–")) for run in runs)])
    rows.append(["measured", *(run.made for run in runs)])
    return table(["", *(run.name for run in runs)], Body(rows))


def _fact(run: DeviceRun, name: str) -> str:
    value = run.device.get(name)
    if name == "power_mode":
        number = value.get("number") if isinstance(value, dict) else None
        return f"{run.power_mode}{'' if number is None else f' ({number})'}" or "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "–" if value in (None, "") else str(value)


def _gpu_range(run: DeviceRun) -> str:
    found = [seen for result in run.results if (seen := result.seen.get("gpu_mhz"))]
    if not found:
        return "–"
    low, high = min(seen["lowest"] for seen in found), max(seen["highest"] for seen in found)
    return f"{low:.0f}" if low == high else f"{low:.0f} to {high:.0f}"


def _remarks(rows: Sequence[_Row], runs: Sequence[DeviceRun]) -> Html | None:
    items = [f"{row.network} on {row.device}: {text}" for row in rows for text in row.result.warnings]
    items += [
        f"{row.network}: trtexec warns: {text.lstrip('* ')}"
        for row in rows
        if row.result.trtexec is not None
        for text in row.result.trtexec.warnings
    ]
    items += [f"{model} on {run.name} gave no numbers: {reason}" for run in runs for model, reason in run.failures]
    return _list(dict.fromkeys(items)) if items else None


def _method(runs: Sequence[DeviceRun]) -> list[Html]:
    settings = [_settings(run) for run in runs]
    return [
        paragraph(
            "Each network warms up for at least 200 ms and 50 runs and is then run for a fixed time over several "
            "different pictures, one after the other, while power, temperatures and clocks are watched. The device "
            "rests for two seconds before each network. Every single time is in the documents."
        ),
        _list(dict.fromkeys(settings)),
        note(
            "These are measurements of the devices named above and of nothing else: another power mode, another "
            "release of TensorRT or a warmer day gives other numbers."
        ),
    ]


def _settings(run: DeviceRun) -> str:
    settings: dict[str, Any] = dict(run.document.get("settings") or {})
    threads = settings.get("threads") or "all"
    return f"{run.name}: {settings.get('seconds', '–')} s per network, {threads} CPU threads."


def _bar(row: _Row, middle: float, end: float, value: str, aside: str) -> str:
    low, high = f"{100 * middle:.2f}%", f"{100 * end:.2f}%"
    line = f'<line class="ends" x1="{low}" x2="{high}" y1="50%" y2="50%"/>' if end > middle else ""
    tick = f'<line class="ends" x1="{high}" x2="{high}" y1="25%" y2="75%"/>' if end > middle else ""
    label = escape(f"{row.network} on {row.device}: {value} {aside}")
    return (
        f'<div class="name">{escape(row.network)}<small>{escape(row.device)} · {escape(row.result.size)}</small></div>'
        f'<div class="track"><svg role="img" aria-label="{label}"><rect width="{low}" y="15%" height="70%" rx="2" '
        f'style="fill: {row.colour}"/>{line}{tick}</svg>'
        f'<span class="value">{escape(value)} <small>{escape(aside)}</small></span></div>'
    )


def _bars(bars: Iterable[str]) -> Html:
    return Html(f'<div class="bars">{"".join(bars)}</div>')


def _callout(items: Sequence[str]) -> Html:
    return Html(
        f'<div class="callout">{join([paragraph("These runs differ in more than the device:"), _list(items)])}</div>'
    )


def _list(items: Iterable[str]) -> Html:
    return Html(f'<ul class="plain">{"".join(f"<li>{escape(item)}</li>" for item in items)}</ul>')


def _quoted(text: str) -> str:
    return f'"{escape(text)}"'


def _pixels(size: str) -> int:
    width, _, height = size.partition("x")
    return int(width) * int(height) if width.isdigit() and height.isdigit() else 0


def _ms(value: float) -> str:
    """Three digits that count."""
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 100 else f"{value:.0f}"


def _or_none(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _counted(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"
