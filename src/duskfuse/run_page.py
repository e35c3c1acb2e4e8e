"""The page of a training run: what it did, its loss curves and its last sample grid, out of the run folder's files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from duskfuse.data.images import read_picture
from duskfuse.evaluate.report import Body, Html, Page, figure, line_chart_svg, note, paragraph, subheading, table

POINTS = 200
"""A curve is shown as the means of at most so many stretches."""


def write_run_page(run: Path) -> Path:
    """Write ``RUN/report.html`` and return its path."""
    environment = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    stamp = f"duskfuse {environment['duskfuse']} · torch {environment['torch']} · {environment['device']}"
    page = Page(f"Training run {run.name}", stamp=stamp)
    add_training(page, run)
    page.write(run / "report.html")
    return run / "report.html"


def add_training(page: Page, run: Path) -> None:
    """Add the sections of a training run to a page."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    page.section("Training", paragraph(_summary(records)), _steps_table(records), *_curves(records))
    samples = sorted((run / "samples").glob("*.png"))
    if samples:
        caption = f"After {int(samples[-1].stem)} batches: sources, region masks, and what each network makes of them"
        page.section("Samples of the last batch", figure(read_picture(samples[-1]), caption))


def _summary(records: Sequence[dict[str, Any]]) -> str:
    phases: dict[str, int] = {}
    for record in records:
        phases[record["phase"]] = phases.get(record["phase"], 0) + 1
    stretches = ", ".join(f"{name} ({count} batches)" for name, count in phases.items())
    seconds, waiting = (sum(record[key] for record in records) for key in ("seconds", "waiting_seconds"))
    share = f", {100 * waiting / seconds:.0f} % of the time waiting for data" if seconds else ""
    return f"{len(records)} updates in {seconds:.0f} s{share}: {stretches}."


def _by_step(records: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    steps: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        steps.setdefault(record["step"], []).append(record)
    return steps


def _steps_table(records: Sequence[dict[str, Any]]) -> Html:
    rows = []
    for step, updates in _by_step(records).items():
        seconds = sorted(update["seconds"] for update in updates)[len(updates) // 2]
        first, last = (_mean([u["loss"] for u in part]) for part in (updates[:20], updates[-20:]))
        rows.append([step, updates[0]["owner"], str(len(updates)), f"{seconds:.3f}", f"{first:.4f}", f"{last:.4f}"])
    header = ["step", "moves", "updates", "median s", "loss, first 20", "loss, last 20"]
    return table(header, Body(rows))


def _curves(records: Sequence[dict[str, Any]]) -> list[Html]:
    parts: list[Html] = []
    for step, updates in _by_step(records).items():
        series = {"loss": _smoothed([(update["batch"], update["loss"]) for update in updates])}
        series |= _by_term(updates, "terms")
        parts += [subheading(step), line_chart_svg(series, "batch", "weighted loss and terms before their weights")]
        parts += _gradient_curves(updates)
    compared = [
        (record["batch"], record["psnr_to_reference"])
        for record in records
        if record["psnr_to_reference"] is not None and record["owner"] == "student"
    ]
    if compared:
        series = {"PSNR to its reference": _smoothed(compared)}
        parts += [subheading("student"), line_chart_svg(series, "batch", "dB on the batch")]
        parts.append(note("The reference itself moves while main network and student alternate."))
    return [*parts, subheading("data"), _waiting_curve(records)]


def _gradient_curves(updates: Sequence[dict[str, Any]]) -> list[Html]:
    """What was measured of a step's gradient: the norm of each term's own, and how much a look-ahead adds."""
    parts: list[Html] = []
    measured = [update for update in updates if "term_gradient_norms" in update]
    if measured:
        together = [(u["batch"], u["gradient_norm"]) for u in measured if u["gradient_norm"] is not None]
        norms = {"loss": _smoothed(together)} | _by_term(measured, "term_gradient_norms")
        parts.append(line_chart_svg(norms, "batch", "norm of the gradient of the loss and of each weighted term"))
    ratios = [(u["batch"], u["correction_ratio"]) for u in updates if u["correction_ratio"] is not None]
    if ratios:
        label = "norm of what the look-ahead adds to the gradient, over the norm of the rest"
        parts.append(line_chart_svg({"correction / direct": _smoothed(ratios)}, "batch", label))
    return parts


def _waiting_curve(records: Sequence[dict[str, Any]]) -> Html:
    waiting, whole = (_smoothed([(r["batch"], r[key]) for r in records]) for key in ("waiting_seconds", "seconds"))
    share = [(batch, 100 * part / total) for (batch, part), (_, total) in zip(waiting, whole, strict=True) if total]
    return line_chart_svg({"waiting": share}, "batch", "share of the time waiting for data, %")


def _by_term(updates: Sequence[dict[str, Any]], key: str) -> dict[str, list[tuple[float, float]]]:
    """A curve for each term of the last update; a term may come in later than others."""
    return {
        term: _smoothed([(update["batch"], update[key][term]) for update in updates if term in update[key]])
        for term in updates[-1][key]
    }


def _smoothed(values: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Means of (batch, value) over equal stretches; nothing of nothing."""
    count = min(POINTS, max(len(values) // 5, 1))
    edges = [round(i * len(values) / count) for i in range(count + 1)]
    stretches = [values[a:b] for a, b in pairwise(edges) if b > a]
    return [(_mean([batch for batch, _ in part]), _mean([value for _, value in part])) for part in stretches]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
