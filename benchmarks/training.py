#!/usr/bin/env python3
"""Seconds and peak memory of one training update, per kind of step, arithmetic and compilation.

    python benchmarks/training.py --out benchmarks/results/training.json

Every case is a process of its own with one thread, warmed up first; then the cases take turns, one update each, so that
a busy moment of the machine hits all alike. Medians are given. Peak memory is that of the whole process during the
timed updates, PyTorch itself included (Linux; elsewhere it is left out). The main network is compiled with
--compile-all only: on one core that takes many minutes.

The crops are small so that a run takes minutes; updates of training size take longer about in proportion to pixels, the
main network's attention more than that.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

CROP, BATCH = 64, 2
_COLUMNS = ("step", "precision", "compiled", "median s", "fastest s", "peak MiB", "first two s")


@dataclass(frozen=True)
class Case:
    """One kind of update."""

    step: str
    """As ``recipe/step``."""
    precision: str
    compile: bool


STUDENT_ALONE, STUDENT, TEACHER = "cached_teacher/student", "default/student", "default/teacher"


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=7, help="timed updates of every case")
    parser.add_argument("--compile-all", action="store_true", help="also compile steps with the main network")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        _work(Case(**json.loads(arguments.case)))
        return 0
    compiled = (STUDENT_ALONE, STUDENT, TEACHER) if arguments.compile_all else (STUDENT_ALONE,)
    precisions = ("float32", "bfloat16")
    cases = [Case(step, p, False) for step in (STUDENT_ALONE, STUDENT, TEACHER) for p in precisions]
    cases += [Case(step, p, True) for step in compiled for p in precisions]
    workers = [_Worker(case) for case in cases]
    load = os.getloadavg()[0]
    for _ in range(arguments.updates):
        for worker in workers:
            worker.update()
    result = {
        "machine": _machine() | {"load_before_the_updates": round(load, 1)},
        "crop": [CROP, CROP],
        "batch": BATCH,
        "threads": 1,
        "cases": [worker.result() for worker in workers],
    }
    _print(result["cases"])  # type: ignore[arg-type]
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    return 0


class _Worker:
    """A process that makes one update whenever it is asked."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--case", json.dumps(asdict(case))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        self._warm_up_s = self._read()["seconds"]
        self._answers: list[dict[str, float]] = []

    def update(self) -> None:
        assert self._process.stdin is not None
        print("update", file=self._process.stdin, flush=True)
        self._answers.append(self._read())

    def _read(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self._case} ended with status {self._process.wait()}")
        answer: dict[str, float] = json.loads(line)
        return answer

    def result(self) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        seconds = [answer["seconds"] for answer in self._answers]
        return {
            **asdict(self._case),
            "median_s": round(statistics.median(seconds), 4),
            "fastest_s": round(min(seconds), 4),
            "seconds": [round(value, 4) for value in seconds],
            "first_updates_s": round(self._warm_up_s, 1),
            "peak_memory_mib": max(
                (answer["peak_mib"] for answer in self._answers if "peak_mib" in answer), default=None
            ),
        }


def _work(case: Case) -> None:
    """Warm up, then answer every line of stdin with one update."""
    import torch

    from duskfuse.distill.context import Batch
    from duskfuse.distill.engine import Engine, needed_owners
    from duskfuse.distill.recipe import Owner
    from duskfuse.distill.recipe_files import load_recipe
    from duskfuse.students.unet import UNetStudent
    from duskfuse.tasks.encoders import filter_encoder
    from duskfuse.teachers.main_network import MainNetwork

    torch.set_num_threads(1)
    torch.manual_seed(0)
    name, _, step = case.step.partition("/")
    recipe = load_recipe(name, [f"precision={case.precision}", f"compile={str(case.compile).lower()}"])
    builders = {Owner.STUDENT: UNetStudent, Owner.TEACHER: MainNetwork}
    networks = {owner: builders[owner]() for owner in sorted(needed_owners(recipe))}
    engine = Engine(recipe, networks, filter_encoder(), torch.device("cpu"))
    ir, vis = (torch.rand(BATCH, channels, CROP, CROP) for channels in (1, 3))
    masks = torch.zeros(BATCH, 4, CROP, CROP, dtype=torch.bool)
    for slot in range(4):
        masks[:, slot, 8 * slot : 8 * slot + 24, 10 : 10 + 8 * (slot + 1)] = True
    names = tuple(str(number) for number in range(BATCH))
    batch = Batch(ir=ir, vis=vis, masks_ir=masks, masks_vis=masks.flip(1), names=names, teacher_y=ir)

    def update() -> float:
        started = time.perf_counter()
        engine.update(step, 0, batch, phase="benchmark")
        return time.perf_counter() - started

    print(json.dumps({"seconds": update() + update()}), flush=True)
    for _ in sys.stdin:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew
        seconds = update()
        status = Path("/proc/self/status")
        peak = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
        print(json.dumps({"seconds": seconds, **({"peak_mib": int(peak[1]) // 1024} if peak else {})}), flush=True)


def _machine() -> dict[str, Any]:
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    return {
        "cpu": names[0] if names else platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": metadata.version("torch"),
    }


def _print(cases: list[dict[str, Any]]) -> None:
    print(f"crop {CROP}×{CROP}, batch {BATCH}, one thread")
    print("{:24} {:10} {:9} {:>9} {:>9} {:>9} {:>12}".format(*_COLUMNS))
    for case in cases:
        compiled, peak = "yes" if case["compile"] else "no", case["peak_memory_mib"] or "-"
        print(
            f"{case['step']:24} {case['precision']:10} {compiled:9} {case['median_s']:9.3f} "
            f"{case['fastest_s']:9.3f} {peak:>9} {case['first_updates_s']:12.1f}"
        )


if __name__ == "__main__":
    sys.exit(main())
