"""Draw docs/students-pareto.svg: mean rank of the students and of the designs tried, against their time per picture.

    python docs/make_pareto_plot.py

Reads benchmarks/results/{students,students_study,quality}.json.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
sys.path.insert(0, str(ROOT / "benchmarks"))
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 860, 470, 70, 30, 40, 56
TIMES_MS, RANKS = (1.5, 500.0), (2.5, 4.75)
SHIPPED, TRIED = "#c8501e", "#6b7a90"


def main() -> None:
    """Write the plot."""
    picture = drawing(*(_read(name) for name in ("students", "students_study", "quality")))
    (ROOT / "docs" / "students-pareto.svg").write_text(picture, encoding="utf-8")


def _read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def drawing(students: Mapping[str, Any], study: Mapping[str, Any], quality: Mapping[str, Any]) -> str:
    """SVG; the study's times are scaled by `unet`, which both runs measured."""
    measured = students["cpu_one_thread"]["640x480"]["models"]
    milliseconds = {name.removesuffix(" fp32"): entry["clock"]["median_ms"] for name, entry in measured.items()}
    shipped = [(name, milliseconds[name], rank) for name, rank in _ranks_alone(quality).items()]
    tried = [
        (f"{name}", milliseconds["unet"] / study["speed"]["640x480"][name]["times_faster_than_unet"], rank)
        for name, rank in study["mean_rank"].items()
    ]
    parts = [*_axes(study["batches"])]
    for index, point in enumerate(sorted(tried, key=lambda point: point[1])):
        parts.append(_tried(*point, level=index))
    parts += [_shipped(*point) for point in shipped]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="13"><rect width="100%" height="100%" fill="white"/>{"".join(parts)}</svg>\n'
    )


def _ranks_alone(quality: Mapping[str, Any]) -> dict[str, float]:
    """Mean rank of each of our models beside the published methods only."""
    from quality import mean_ranks

    ours = quality["intervals"]
    published = {name: row for name, row in quality["scores"].items() if name not in ours}
    return {name: mean_ranks(published | {name: quality["scores"][name]})[name] for name in ours}


def _place(milliseconds: float, rank: float) -> tuple[float, float]:
    across = math.log(milliseconds / TIMES_MS[0]) / math.log(TIMES_MS[1] / TIMES_MS[0])
    down = (rank - RANKS[0]) / (RANKS[1] - RANKS[0])
    return LEFT + across * (WIDTH - LEFT - RIGHT), TOP + down * (HEIGHT - TOP - BOTTOM)


def _axes(batches: int) -> list[str]:
    parts = []
    for tick in (2, 5, 10, 20, 50, 100, 200, 400):
        x, _ = _place(tick, RANKS[0])
        parts.append(f'<path d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="#e4e7ec"/>')
        parts.append(_text(x, HEIGHT - BOTTOM + 18, str(tick), anchor="middle"))
    for rank in (2.5, 3, 3.5, 4, 4.5):
        _, y = _place(TIMES_MS[0], rank)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#e4e7ec"/>')
        parts.append(_text(LEFT - 10, y + 4, str(rank), anchor="end"))
    parts.append(_text(LEFT, 24, "Mean rank over 14 metrics among eight published methods and itself; 1 is best"))
    below = f"milliseconds at 640×480 on one CPU thread; filled: shipped, rings: designs after {batches} batches"
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 14, below, anchor="middle"))
    return parts


def _shipped(name: str, milliseconds: float, rank: float) -> str:
    x, y = _place(milliseconds, rank)
    circle = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" fill="{SHIPPED}"/>'
    return circle + _text(x, y - 12, name, anchor="middle", colour=SHIPPED, weight="bold")


def _tried(name: str, milliseconds: float, rank: float, *, level: int) -> str:
    """A ring with its name below it, each lower than the one to its left, since many stand close together."""
    x, y = _place(milliseconds, rank)
    below = HEIGHT - BOTTOM - 10 - 17 * (5 - level)
    line = f'<path d="M{x:.1f} {y + 6:.1f}V{below - 12:.1f}" stroke="{TRIED}" stroke-opacity="0.4"/>'
    ring = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" fill="white" stroke="{TRIED}" stroke-width="2"/>'
    return line + ring + _text(x, below, name, colour=TRIED)


def _text(x: float, y: float, text: str, *, anchor: str = "start", colour: str = "#333", weight: str = "normal") -> str:
    style = f'text-anchor="{anchor}" fill="{colour}" font-weight="{weight}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(text)}</text>'


if __name__ == "__main__":
    main()
