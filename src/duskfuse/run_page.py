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
    return f"{len(records)} updates in {sum(r['seconds'] for r in records):.0f} s: {stretches}."


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
        batches = [update["batch"] for update in updates]
        series = {"loss": _smoothed(batches, [update["loss"] for update in updates])}
        for term in updates[-1]["terms"]:  # a term may come in later than others
            having = [update for update in updates if term in update["terms"]]
            series[term] = _smoothed([u["batch"] for u in having], [u["terms"][term] for u in having])
        parts += [subheading(step), line_chart_svg(series, "batch", "weighted loss and terms before their weights")]
    compared = [
        record for record in records if record["psnr_to_reference"] is not None and record["owner"] == "student"
    ]
    if compared:
        curve = _smoothed([r["batch"] for r in compared], [r["psnr_to_reference"] for r in compared])
        parts += [subheading("student"), line_chart_svg({"PSNR to its reference": curve}, "batch", "dB on the batch")]
        parts.append(note("The reference itself moves while main network and student alternate."))
    return parts


def _smoothed(batches: Sequence[int], values: Sequence[float]) -> list[tuple[float, float]]:
    """Means over equal stretches, as (batch, value)."""
    count = min(POINTS, max(len(values) // 5, 1))
    edges = [round(i * len(values) / count) for i in range(count + 1)]
    return [(_mean(batches[a:b]), _mean(values[a:b])) for a, b in pairwise(edges)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
