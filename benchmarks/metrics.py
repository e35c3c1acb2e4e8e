"""Seconds per fusion metric on one 800×600 pair, and of the default set for the first and for later methods.

    python benchmarks/metrics.py --runs 9 --out benchmarks/results/metrics.json

The pair is a built-in scene and its fused picture by the packaged student, so that anybody can repeat it. Metrics take
turns within each run; medians are reported and every time is kept. One thread, then two pairs at a time in two
processes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from concurrent.futures import ProcessPoolExecutor
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from duskfuse.data.images import grey_u8
from duskfuse.data.scenes import render_scene
from duskfuse.evaluate.metrics import ALL, SourceStatistics, fusion_metrics

HEIGHT, WIDTH = 600, 800
Grey = NDArray[np.uint8]


def main() -> None:
    """Time every metric alone, the default set for two methods, and two pairs side by side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    pictures = _pictures()
    result = {
        "machine": _machine(),
        "picture": f"{WIDTH}x{HEIGHT}",
        "metrics_s": _each(pictures, arguments.runs),
        "default_set": _default_set(pictures, arguments.runs),
        "two_processes": _two_processes(arguments.runs),
    }
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text + "\n")


def _pictures() -> tuple[Grey, Grey, Grey]:
    scene = render_scene(7, size=(HEIGHT, WIDTH))
    vis = grey_u8(scene.vis)
    fused = np.maximum(scene.ir, vis) // 2 + vis // 2
    return scene.ir, vis, fused


def _machine() -> dict[str, Any]:
    cpus = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return {
        "cpu": cpus[0] if cpus else platform.machine(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        **{name: metadata.version(name) for name in ("numpy", "opencv-python")},
    }


def _each(pictures: tuple[Grey, Grey, Grey], runs: int) -> dict[str, Any]:
    times: dict[str, list[float]] = {metric.name: [] for metric in ALL}
    for _ in range(runs):
        for name, seconds in times.items():
            started = time.perf_counter()
            fusion_metrics(SourceStatistics(*pictures[:2]), pictures[2], [name])
            seconds.append(round(time.perf_counter() - started, 4))
    return {name: {"median": median(seconds), "times": seconds} for name, seconds in times.items()}


def _default_set(pictures: tuple[Grey, Grey, Grey], runs: int) -> dict[str, Any]:
    """The first method pays for what belongs to the sources, later ones do not."""
    first, later = [], []
    for _ in range(runs):
        started = time.perf_counter()
        sources = SourceStatistics(*pictures[:2])
        fusion_metrics(sources, pictures[2])
        between = time.perf_counter()
        fusion_metrics(sources, pictures[2])
        first.append(round(between - started, 4))
        later.append(round(time.perf_counter() - between, 4))
    return {"first_s": median(first), "later_s": median(later), "times": {"first": first, "later": later}}


def _score_once(_: int) -> float:
    cv2.setNumThreads(1)
    ir, vis, fused = _pictures()
    started = time.perf_counter()
    fusion_metrics(SourceStatistics(ir, vis), fused)
    return time.perf_counter() - started


def _two_processes(runs: int) -> dict[str, Any]:
    with ProcessPoolExecutor(2) as pool:
        seconds = [round(value, 4) for value in pool.map(_score_once, range(2 * runs))]
    return {"median_s": median(seconds), "pairs_per_s": round(2 / median(seconds), 2), "times": seconds}


if __name__ == "__main__":
    main()
