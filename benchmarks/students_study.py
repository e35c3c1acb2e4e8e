"""Why `edge` and `nano` have the shape they have: the speed of designs beside each other, and a short training of each.

    python benchmarks/students_study.py DATA/train DATA/val --out benchmarks/results/students_study.json

Speed: ONNX Runtime, one thread, fixed-size fp32 files that take turns; median processor time of the thread, which does
not count waiting for the core, as a ratio to `unet`. Training: the same processor seconds for each design, L1 to the
brighter source + L1 to the stronger gradient + 1 − SSIM with both sources, then the mean scores of validation pairs.
So short a training ranks designs that differ clearly, and no others; it says nothing about the final quality.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from duskfuse.data.colour import luminance
from duskfuse.data.layout import find_pairs
from duskfuse.data.pair_files import read_pair
from duskfuse.data.progress import set_quiet
from duskfuse.distill.terms.fusion import sobel_magnitude, structural_similarity
from duskfuse.evaluate.metrics import SourceStatistics, fusion_metrics
from duskfuse.export.calibration import evenly
from duskfuse.export.onnx_graph import DeployedStudent, build_graph
from duskfuse.students.edge import EdgeStudent, NanoStudent, Plan
from duskfuse.students.unet import UNetStudent

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
TRAINED = ("edge", "nano", "nano, context of 32, 1 layer", "nano, affine")
SIZES = ((480, 640), (1024, 1280))
SCORES = ["EN", "SF", "MI", "SCD", "VIF", "VIFF", "Qabf", "Nabf", "SSIM", "Qcv"]
CROP, BATCH, RATE = 128, 8, 4e-3

Planes = tuple[Tensor, Tensor]
"""Visible luminance and infrared, ``[1, H, W]`` in [0, 1]."""


def main() -> None:
    """Time and train the designs and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("val", type=Path)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=35, help="processor seconds of training per design")
    parser.add_argument("--pairs", type=int, default=8, help="validation pairs")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    set_quiet(True)
    result: dict[str, Any] = {
        "load": os.getloadavg()[0],
        "speed": {f"{width}x{height}": _speed((height, width), arguments.runs) for height, width in SIZES},
    }
    print(json.dumps(result["speed"], indent=1), flush=True)
    train, val = _read(arguments.train, 150), _read(arguments.val, arguments.pairs)
    result["training"] = {"seconds": arguments.seconds, "validation_pairs": len(val), "designs": {}}
    result["training"]["designs"]["brighter source"] = _scores(_Brighter(), val)
    for name in TRAINED:
        student, steps = _trained(_student(DESIGNS[name]), train, arguments.seconds)
        result["training"]["designs"][name] = {"steps": steps, **_scores(student, val)}
        print(name, result["training"]["designs"][name], flush=True)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


class _Brighter(EdgeStudent):
    def forward(self, vis: Tensor, ir: Tensor) -> Any:
        output = super().forward(vis, ir)
        return type(output)(torch.maximum(vis, ir))


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


def _read(folder: Path, most: int) -> list[Planes]:
    pairs = (read_pair(files) for files in evenly(find_pairs(folder), most))
    return [(luminance(pair.vis), pair.ir) for pair in pairs if min(pair.ir.shape[-2:]) >= CROP]


def _trained(student: EdgeStudent, pairs: Sequence[Planes], seconds: float) -> tuple[EdgeStudent, int]:
    """Train for so many processor seconds; return the student and the steps made."""
    random = np.random.default_rng(0)
    optimiser = torch.optim.AdamW(student.train().parameters(), lr=RATE)
    started, steps = time.thread_time(), 0
    while (done := (time.thread_time() - started) / seconds) < 1:
        for group in optimiser.param_groups:
            group["lr"] = RATE * (0.02 + 0.49 * (1 + np.cos(np.pi * done)))
        vis, ir = _crops(pairs, random)
        loss = _loss(student(vis, ir).y, vis, ir)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        steps += 1
    return student.eval(), steps


def _crops(pairs: Sequence[Planes], random: np.random.Generator) -> Planes:
    crops = []
    for _ in range(BATCH):
        pair = torch.stack(pairs[random.integers(len(pairs))])
        top, left = (int(random.integers(side - CROP + 1)) for side in pair.shape[-2:])
        crops.append(pair[..., top : top + CROP, left : left + CROP])
    vis, ir = torch.stack(crops, dim=1)
    return vis, ir


def _loss(fused: Tensor, vis: Tensor, ir: Tensor) -> Tensor:
    edges = torch.maximum(sobel_magnitude(vis), sobel_magnitude(ir))
    alike = structural_similarity(fused, vis) + structural_similarity(fused, ir)
    return (
        F.l1_loss(fused, torch.maximum(vis, ir))
        + 0.5 * F.l1_loss(sobel_magnitude(fused), edges)
        + 0.5 * (1 - alike / 2)
    )


def _scores(student: EdgeStudent, pairs: Sequence[Planes]) -> dict[str, float]:
    rows = []
    for vis, ir in pairs:
        with torch.inference_mode():
            fused = student(vis[None], ir[None]).y
            loss = _loss(fused, vis[None], ir[None]).item()
        sources = SourceStatistics(_grey(ir), _grey(vis))
        rows.append({"loss": loss, **fusion_metrics(sources, _grey(fused[0]), SCORES)})
    return {name: round(fmean(row[name] for row in rows), 4) for name in rows[0]}


def _grey(plane: Tensor) -> np.ndarray:
    return (plane[0] * 255).round().byte().numpy()


if __name__ == "__main__":
    main()
