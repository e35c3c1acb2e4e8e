#!/usr/bin/env python3
"""Kill `duskfuse distill` with SIGKILL at random moments, go on with --resume, and compare the bits.

    python benchmarks/killed_anywhere_distill.py --kills 20 --out benchmarks/results/killed_anywhere_distill.json

One run is left alone. Then the same run is begun again and again, each time killed (its whole process group) at a
random moment between 30 and 90 % of what the uninterrupted one needs, and resumed in the same folder. What it ends with
must be bit-identical: the weights of both networks, and every recorded loss. Main network and student alternate, the
student's weights are averaged, a loading process works ahead, and checkpoints are frequent.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from offline_data import write_pairs
from safetensors import safe_open

RECIPE = """
name: killed
main_network: {width: 8}
data: {crop: [16, 16], batch: 2, workers: 1}
optimisers:
  teacher: {lr: 1.0e-3, warmup: 2}
  student: {kind: adamw, lr: 2.0e-3, weight_decay: 1.0e-2, ema: 0.9}
steps:
  student: {owner: student, terms: {pixel_triplet: 3, gradient_triplet: 3, features: 0.3}}
  teacher: {owner: teacher, terms: {source_mse: 1, gradient_max: 2, features: 0.01}}
phases: [{name: both, batches: 40, cycle: [student, teacher]}]
save_every: 3
sample_every: 10
"""


def main() -> int:
    """Run the harness; 0 where every run ended in the bits of the uninterrupted one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = _Harness(Path(folder), random.Random(arguments.seed)).run(arguments.kills)
    text = json.dumps({"kills": arguments.kills, "seed": arguments.seed, **result}, indent=2)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")
    return 1 if result["different_weights"] or result["different_metrics"] else 0


class _Harness:
    def __init__(self, folder: Path, chance: random.Random) -> None:
        self._folder, self._chance = folder, chance
        self._log = folder / "stderr"
        write_pairs(folder / "data", 6)
        (folder / "killed.yaml").write_text(RECIPE)
        self._command = ["distill", str(folder / "data"), "--recipe", str(folder / "killed.yaml"), "--json"]
        self._command += ["--cache", str(folder / "cache")]
        masks = ["cache-masks", str(folder / "data"), "--source", "regions", "--cache", str(folder / "cache")]
        subprocess.run([sys.executable, "-m", "duskfuse", *masks], check=True, capture_output=True)

    def run(self, kills: int) -> dict[str, Any]:
        whole = self._folder / "whole"
        started = time.monotonic()
        self._start(whole).wait()
        seconds = uninterrupted = time.monotonic() - started
        wanted = _results(whole)
        moments: Counter[str] = Counter()
        different_weights = different_metrics = ended = 0
        while sum(moments.values()) < kills:
            out = self._folder / f"run{ended}"
            begun = time.monotonic()
            while not self._lives_until_killed(out, seconds, moments, kills):
                begun = time.monotonic()
            # of a machine that has become less busy: or no kill would ever come in time
            seconds = min(seconds, time.monotonic() - begun)
            weights, metrics = _results(out)
            different_weights += weights != wanted[0]
            different_metrics += metrics != wanted[1]
            ended += 1
        return {
            "runs_ended": ended,
            "weight_tensors": len(wanted[0]),
            "seconds_uninterrupted": round(uninterrupted, 1),
            "killed_after_batches": dict(sorted(moments.items())),
            "different_weights": different_weights,
            "different_metrics": different_metrics,
        }

    def _lives_until_killed(self, out: Path, seconds: float, moments: Counter[str], kills: int) -> bool:
        """Start or resume a run and kill it, unless it ends first; True where it has ended by itself."""
        process = self._start(out)
        if sum(moments.values()) < kills:
            with suppress(subprocess.TimeoutExpired):
                process.wait(self._chance.uniform(0.3 * seconds, 0.9 * seconds))
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                moments[_batches(out)] += 1
                return False
        if process.wait() != 0:
            raise SystemExit(f"the run ended by itself with status {process.returncode}: {self._log.read_text()}")
        return True

    def _start(self, out: Path) -> subprocess.Popen[bytes]:
        """Begin a run, or go on with it as soon as its folder is one of a run."""
        resume = ["--resume"] if (out / "recipe.yaml").exists() else []
        return subprocess.Popen(
            [sys.executable, "-m", "duskfuse", *self._command, "--out", str(out), *resume],
            stdout=subprocess.DEVNULL,
            stderr=self._log.open("wb"),
            start_new_session=True,
        )


def _results(out: Path) -> tuple[dict[str, bytes], list[tuple[Any, ...]]]:
    """The bits of the written weights, and what was recorded of every update, clocks apart."""
    weights = {}
    for owner in ("student", "teacher"):
        with safe_open(out / f"{owner}.safetensors", framework="numpy") as file:
            weights |= {f"{owner}.{key}": file.get_tensor(key).tobytes() for key in file.keys()}  # noqa: SIM118
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    metrics = [(r["batch"], r["step"], r["loss"], r["lr"], r["gradient_norm"], str(r["terms"])) for r in records]
    return weights, metrics


def _batches(out: Path) -> str:
    """How many batches of ten a killed run had recorded."""
    with suppress(OSError):
        count = (out / "metrics.jsonl").read_bytes().count(b"\n")
        return f"{count // 10 * 10:02d} to {count // 10 * 10 + 9:02d}"
    return "none: starting"


if __name__ == "__main__":
    sys.exit(main())
