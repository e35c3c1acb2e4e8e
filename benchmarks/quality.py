"""Students beside published methods and trivial rules: metrics, mean ranks, steps, and people at night.

    python benchmarks/quality.py unet edge runs/x/student.safetensors --val VAL --published FILE --detect DETECT

FILE is JSON: method → metric → mean over VAL. DETECT has boxes of people (class 0). Contrast is the mean luminance in a
person's box (of at least 200 pixels) minus that of the ring around it (half a box wider and a quarter higher on each
side, other boxes left out), in grey levels, over the pairs whose visible picture is dark. Steps are the mean difference
of pixels on two sides of a border between blocks of 4×4, over that of pixels inside: 1 where no grid is to be seen;
pictures that were compressed have one themselves.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from duskfuse.data.images import to_u8
from duskfuse.data.layout import find_pairs
from duskfuse.data.pair_files import PairFiles, read_boxes
from duskfuse.evaluate.fusers import Fuser, open_fuser
from duskfuse.evaluate.metrics import SourceStatistics, fusion_metrics
from duskfuse.evaluate.source_pictures import SourcePictures
from duskfuse.evaluate.statistics import summarise

METRICS = ("EN", "SD", "SF", "AG", "MI", "SCD", "CC", "VIF", "VIFF", "Qabf", "Nabf", "SSIM", "Qcb", "Qcv")
LOWER_IS_BETTER = frozenset({"Nabf", "Qcv"})
TRIVIAL = ("average", "maximum", "visible")
DARK = 80.0
"""Mean grey level of the visible picture below which a pair counts as night."""
SMALLEST_BOX = 200
PERSON = 0
BLOCK = 4

Grey = NDArray[np.uint8]
Fuse = Callable[[SourcePictures], Grey]


def main() -> None:
    """Score the models and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*")
    parser.add_argument("--val", type=Path)
    parser.add_argument("--published", type=Path)
    parser.add_argument("--detect", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    cv2.setNumThreads(1)
    fuses = {_named(model): fuse_with(open_fuser(model)) for model in arguments.models}
    result: dict[str, Any] = {}
    if arguments.val:
        columns = scores_of_pairs(fuses, arguments.val)
        rows = {name: {m: fmean(values) for m, values in column.items()} for name, column in columns.items()}
        published = json.loads(arguments.published.read_text(encoding="utf-8")) if arguments.published else {}
        rows = {name: row for name, row in published.items() if isinstance(row, dict)} | rows
        result["scores"], result["mean_rank"] = rows, mean_ranks(rows)
        result["intervals"] = {name: _intervals(column) for name, column in columns.items()}
        result["block_steps"] = block_steps(fuses, arguments.val)
        print(table(rows))
        print("\nsteps between blocks: " + ", ".join(f"{k} {v:.3f}" for k, v in result["block_steps"].items()))
    if arguments.detect:
        result["night_contrast"] = night_contrast(fuses, arguments.detect)
        print("\npeople at night, grey levels above their surroundings:")
        print("\n".join(f"  {name}: {value:.1f}" for name, value in result["night_contrast"].items()))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _named(model: str) -> str:
    path = Path(model)
    return f"{path.parent.name}/{path.stem}" if path.suffix else model


def fuse_with(fuser: Fuser) -> Fuse:
    """Fuse sources as 8-bit grey pictures with an opened model."""
    return lambda sources: to_u8(fuser.fuse(sources.ir, sources.vis_u8.astype(np.float32) / 255))


def scores_of_pairs(fuses: Mapping[str, Fuse], val: Path) -> dict[str, dict[str, list[float]]]:
    """Every metric of every pair, by method."""
    found: dict[str, dict[str, list[float]]] = {name: {metric: [] for metric in METRICS} for name in fuses}
    for files in find_pairs(val):
        sources = SourcePictures(files)
        statistics = SourceStatistics(sources.ir_u8, sources.vis_u8)
        for name, fuse in fuses.items():
            for metric, value in fusion_metrics(statistics, fuse(sources), METRICS).items():
                found[name][metric].append(value)
    return found


def _intervals(column: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    """95 % intervals of the means over the pairs."""
    return {
        m: list(summary.interval or ()) for m, summary in zip(column, summarise(list(column.values())), strict=True)
    }


def block_steps(fuses: Mapping[str, Fuse], val: Path) -> dict[str, float]:
    """Mean over the pairs of how much stronger differences are between blocks than inside, for every method."""
    every = {"maximum": lambda s: np.maximum(s.ir_u8, s.vis_u8)} | dict(fuses)
    found: dict[str, list[float]] = {name: [] for name in every}
    for files in find_pairs(val):
        sources = SourcePictures(files)
        for name, fuse in every.items():
            found[name].append(_steps(fuse(sources).astype(np.float64)))
    return {name: fmean(values) for name, values in found.items()}


def _steps(picture: NDArray[np.float64]) -> float:
    between, inside = [], []
    for differences in (np.abs(np.diff(picture, axis=1)), np.abs(np.diff(picture, axis=0)).T):
        border = np.arange(differences.shape[1]) % BLOCK == BLOCK - 1
        between.append(differences[:, border].mean())
        inside.append(differences[:, ~border].mean())
    return float(sum(between) / sum(inside))


def mean_ranks(rows: Mapping[str, Mapping[str, float | None]]) -> dict[str, float]:
    """Mean rank over the metrics among methods that are not trivial."""
    methods = [name for name in rows if name not in TRIVIAL]
    ranks: dict[str, list[int]] = {name: [] for name in methods}
    for metric in METRICS:
        for name in methods:
            ranks[name].append(1 + sum(_better(rows[other], rows[name], metric) for other in methods))
    return {name: fmean(found) for name, found in ranks.items()}


def _better(first: Mapping[str, float | None], second: Mapping[str, float | None], metric: str) -> bool:
    """Whether the first is ahead; what is undefined is behind everything."""
    one, other = first[metric], second[metric]
    if one is None or other is None:
        return other is None and one is not None
    return one < other if metric in LOWER_IS_BETTER else one > other


def table(rows: Mapping[str, Mapping[str, float | None]]) -> str:
    """Markdown, best mean rank first, trivial rows last; wins are metrics in which a row is ahead of another."""
    ranks = mean_ranks(rows)
    order = [*sorted(ranks, key=ranks.__getitem__), *(name for name in TRIVIAL if name in rows)]
    rivals = [name for name in ("sage", "seafusion", "sfdfusion") if name in rows]
    heads = [f"{metric}{'↓' if metric in LOWER_IS_BETTER else ''}" for metric in METRICS]
    lines = ["| method | rank | " + " | ".join([*heads, *(f"> {rival}" for rival in rivals)]) + " |"]
    lines.append("|---" * (len(heads) + len(rivals) + 2) + "|")
    for name in order:
        cells = [_figures(rows[name][metric]) for metric in METRICS]
        wins = [str(sum(_better(rows[name], rows[rival], metric) for metric in METRICS)) for rival in rivals]
        rank = f"{ranks[name]:.2f}" if name in ranks else "–"
        lines.append(f"| {name} | {rank} | {' | '.join([*cells, *wins])} |")
    return "\n".join(lines)


def _figures(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.2f}" if abs(value) >= 10 else f"{value:.3f}"


def night_contrast(fuses: Mapping[str, Fuse], detect: Path) -> dict[str, float]:
    """Mean over all people of the dark pairs, for both sources and every method."""
    sources_alone: dict[str, Fuse] = {"infrared alone": lambda s: s.ir_u8, "visible alone": lambda s: s.vis_u8}
    every, found = sources_alone | dict(fuses), dict[str, list[float]]()
    for files in find_pairs(detect):
        sources = SourcePictures(files)
        people = _people(files, sources.vis_u8.shape)
        if sources.vis_u8.mean() >= DARK or not people:
            continue
        for name, fuse in every.items():
            fused = fuse(sources).astype(np.float64)
            found.setdefault(name, []).extend(_contrast(fused, box, people) for box in people if _area(box))
    return {name: fmean(values) for name, values in found.items()}


Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels."""


def _people(files: PairFiles, size: Sequence[int]) -> list[Box]:
    if files.boxes is None:
        return []
    height, width = size
    rows = read_boxes(files.boxes).tolist()
    return [
        (
            max(round((x - w / 2) * width), 0),
            max(round((y - h / 2) * height), 0),
            min(round((x + w / 2) * width), width),
            min(round((y + h / 2) * height), height),
        )
        for kind, x, y, w, h in rows
        if int(kind) == PERSON
    ]


def _area(box: Box) -> bool:
    return (box[2] - box[0]) * (box[3] - box[1]) >= SMALLEST_BOX


def _contrast(picture: NDArray[np.float64], box: Box, others: Sequence[Box]) -> float:
    left, top, right, bottom = box
    wide, high = (right - left) // 2, (bottom - top) // 4
    ring = np.zeros(picture.shape, bool)
    ring[max(top - high, 0) : bottom + high, max(left - wide, 0) : right + wide] = True
    for x0, y0, x1, y1 in others:
        ring[y0:y1, x0:x1] = False
    inside = picture[top:bottom, left:right]
    return float(inside.mean() - picture[ring].mean()) if ring.any() else 0.0


if __name__ == "__main__":
    main()
