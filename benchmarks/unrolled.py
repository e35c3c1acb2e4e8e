"""The student's step of ``paper_sage``, first order and unrolled: seconds and memory of one update.

    python benchmarks/unrolled.py --out benchmarks/results/unrolled.json

The forms take turns; seconds are medians. Memory is the highest resident set of a process of its own that makes a few
updates of one form, the main network's own step included, since a run holds both.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from duskfuse.distill.context import Batch
from duskfuse.distill.engine import Engine
from duskfuse.distill.recipe import Owner, TermName
from duskfuse.distill.recipe_files import load_recipe
from duskfuse.students.unet import UNetStudent
from duskfuse.tasks.encoders import filter_encoder
from duskfuse.teachers.main_network import MainNetwork

FORMS = {"first order": "paper_sage", "unrolled": "paper_sage_unrolled"}
MEMORY_UPDATES = 2


def main() -> None:
    """Measure both forms and print the numbers as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crop", type=int, default=64)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--memory", choices=FORMS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.memory:
        print(_peak_mb(arguments.memory, arguments.crop, arguments.batch))
        return
    # First, while this process is small: what it holds would count as its children's peak.
    peaks = {form: _in_a_process(form, arguments.crop, arguments.batch) for form in FORMS}
    seconds = _seconds(arguments.crop, arguments.batch, arguments.runs)
    result: dict[str, Any] = {
        "machine": {
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "load": os.getloadavg()[0],
            "threads": 1,
            "torch": torch.__version__,
        },
        "crop": [arguments.crop, arguments.crop],
        "batch": arguments.batch,
        "median_s": {name: round(median(times), 3) for name, times in seconds.items()},
        "times_s": seconds,
        "peak_mb": peaks,
    }
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text + "\n")


def _engine(form: str) -> Engine:
    torch.manual_seed(0)
    recipe = load_recipe(FORMS[form]).without(TermName.SEGMENTATION)
    networks = {Owner.TEACHER: MainNetwork(), Owner.STUDENT: UNetStudent()}
    return Engine(recipe, networks, filter_encoder(), torch.device("cpu"))


def _batch(seed: int, crop: int, samples: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    ir, vis = (torch.rand(samples, channels, crop, crop, generator=generator) for channels in (1, 3))
    masks = torch.rand(samples, 4, crop, crop, generator=generator) > 0.5
    return Batch(ir=ir, vis=vis, masks_ir=masks, masks_vis=masks.flip(0), names=("random",) * samples)


def _update(engine: Engine, step: str, crop: int, samples: int) -> None:
    engine.update(step, 0, _batch(0, crop, samples), _batch(1, crop, samples), phase="alternate")


def _seconds(crop: int, samples: int, runs: int) -> dict[str, list[float]]:
    engines = {form: _engine(form) for form in FORMS}
    updates = {f"student, {form}": (engine, "student") for form, engine in engines.items()}
    updates["teacher"] = (engines["first order"], "teacher")
    times: dict[str, list[float]] = {name: [] for name in updates}
    for run in range(runs + 1):  # the first warms up
        for name, (engine, step) in updates.items():
            started = time.perf_counter()
            _update(engine, step, crop, samples)
            if run:
                times[name].append(round(time.perf_counter() - started, 3))
    return times


def _peak_mb(form: str, crop: int, samples: int) -> float:
    engine = _engine(form)
    for _ in range(MEMORY_UPDATES):
        for step in ("student", "teacher"):
            _update(engine, step, crop, samples)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def _in_a_process(form: str, crop: int, samples: int) -> float:
    command = [sys.executable, __file__, "--memory", form, "--crop", str(crop), "--batch", str(samples)]
    return float(subprocess.run(command, capture_output=True, check=True, text=True).stdout)


if __name__ == "__main__":
    main()
