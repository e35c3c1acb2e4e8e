"""Why `edge` and `nano` have the shape they have: the speed of designs beside each other, and a training of each.

    python benchmarks/students_study.py DATA --val VAL --cache CACHE --published FILE --work FOLDER [--batches 500]

Speed: ONNX Runtime, one thread, fixed-size fp32 files that take turns; median processor time of the thread, which does
not count waiting for the core, as a ratio to `unet`. Training: recipe `edge` for the same batches from the same seed,
from pairs whose teacher pictures are cached (`duskfuse cache-teacher DATA --teacher seafusion`), then the scores of
`benchmarks/quality.py`. So short a training ranks designs that differ clearly, and no others. Every design is added to
the results as it ends, and the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import onnxruntime
import torch
from quality import METRICS, fuse_with, mean_ranks, scores_of_pairs
from torch import nn

from duskfuse.data.progress import set_quiet
from duskfuse.distill.distill import distill
from duskfuse.evaluate.fusers import open_fuser
from duskfuse.export.onnx_graph import DeployedStudent, build_graph
from duskfuse.students.edge import EdgeStudent, NanoStudent, Plan
from duskfuse.students.unet import UNetStudent
from duskfuse.students.zoo import ARCHITECTURES

RESULTS = Path(__file__).parent / "results" / "students_study.json"
DESIGNS = {
    "edge": EdgeStudent.plan,
    "edge, 2 context layers": Plan(16, 32, 2, 2, "gwvr"),
    "edge, 1 fine layer": Plan(16, 32, 4, 1, "gwvr"),
    "edge, context of 64, 2 layers, 1 fine": Plan(16, 64, 2, 1, "gwvr"),
    "edge, stem of 32, 2 layers, 1 fine": Plan(32, 32, 2, 1, "gwvr"),
    "nano": NanoStudent.plan,
    "nano, context of 32, 1 layer": Plan(16, 32, 1, 0, "wvr"),
    "nano, context of 32, 2 layers": Plan(16, 32, 2, 0, "wvr"),
    "nano, 2 context layers": Plan(16, 16, 2, 0, "wvr"),
    "nano, all coefficients": Plan(16, 16, 3, 0, "gwvr"),
    "nano, affine": Plan(16, 16, 3, 0, "gwr"),
}
TRAINED = (
    "edge",
    "edge, 2 context layers",
    "edge, 1 fine layer",
    "nano",
    "nano, all coefficients",
    "nano, 2 context layers",
)
SIZES = ((480, 640), (1024, 1280))


def main() -> None:
    """Time the designs, train what is missing and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--val", type=Path, required=True)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--published", type=Path, required=True, help="JSON: method → metric → mean over VAL")
    parser.add_argument("--work", type=Path, default=Path("students-study"))
    parser.add_argument("--batches", type=int, default=500)
    parser.add_argument("--runs", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    set_quiet(True)
    result: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    if "speed" not in result:
        result |= {"load": os.getloadavg()[0], "speed": {f"{w}x{h}": _speed((h, w), arguments.runs) for h, w in SIZES}}
        _write(result)
    scores = result.setdefault("scores", {})
    result["batches"] = arguments.batches
    published = json.loads(arguments.published.read_text(encoding="utf-8"))
    rivals = {name: row for name, row in published.items() if isinstance(row, dict)}
    for name in TRAINED:
        if name not in scores:
            scores[name] = _trained_scores(name, arguments)
        result["mean_rank"] = {design: mean_ranks(rivals | {design: scores[design]})[design] for design in scores}
        _write(result)
        print(name, result["mean_rank"][name], flush=True)


def _write(result: dict[str, Any]) -> None:
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _trained_scores(name: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Train a design by the recipe; mean of every metric over the held-out pairs."""
    ARCHITECTURES[name] = type("Design", (EdgeStudent,), {"plan": DESIGNS[name]})
    out = arguments.work / name.replace(", ", "-").replace(" ", "-")
    changes = [f"student.architecture={name}", f"phases.0.batches={arguments.batches}"]
    distill(arguments.data, out=out, recipe="edge", changes=changes, cache=arguments.cache, overwrite=True)
    columns = scores_of_pairs({name: fuse_with(open_fuser(out / "student.safetensors"))}, arguments.val)[name]
    return {metric: fmean(columns[metric]) for metric in METRICS}


def _student(design: Plan) -> EdgeStudent:
    class Designed(EdgeStudent):
        plan = design

    torch.manual_seed(0)
    return Designed()


def _speed(size: tuple[int, int], runs: int) -> dict[str, Any]:
    networks: dict[str, nn.Module] = {"unet": UNetStudent(), **{name: _student(plan) for name, plan in DESIGNS.items()}}
    random = np.random.default_rng(0)
    planes = {name: random.random((1, 1, *size), dtype=np.float32) for name in ("ir", "vis_y")}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    sessions = {
        name: onnxruntime.InferenceSession(
            build_graph(DeployedStudent(network.eval()), size=size).SerializeToString(),
            options,
            providers=["CPUExecutionProvider"],
        )
        for name, network in networks.items()
    }
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for index in range(-2, runs):
        for name, session in sessions.items():
            started = time.thread_time()
            session.run(None, planes)
            if index >= 0:
                times[name].append(1000 * (time.thread_time() - started))
    base = median(times["unet"])
    return {
        name: {"median_ms": round(median(ms), 3), "times_faster_than_unet": round(base / median(ms), 1)}
        for name, ms in times.items()
    }


if __name__ == "__main__":
    main()
