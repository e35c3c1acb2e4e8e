"""Parameters, MACs and milliseconds of a student alone, steered by constants, and in the live closed loop, at 640×512.

    python benchmarks/steering.py --runs 9 --out benchmarks/results/steering.json

The files that `export` writes in FP32, run by ONNX Runtime on one thread; all take turns within each run, and beside
the clock stands the processor time of the thread. The network that looks is the in-tree detector with SqueezeNet as
encoder. Steering and detector are untrained, which does not change the speed, except that a trained need may choose
other configurations in the fixed form. MACs are torch's counter's, halved.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from duskfuse.data.class_conventions import objects_named
from duskfuse.data.fuser import Colour
from duskfuse.distill.closed_loop.live import LiveSteering
from duskfuse.export.onnx_graph import DeployedStudent, build_graph
from duskfuse.students.steering.fixed import FixedSteering
from duskfuse.students.steering.steered import SteeredStudent, Steering
from duskfuse.students.steering.taps import taps_of
from duskfuse.students.zoo import load_student
from duskfuse.tasks.detector import new_detector
from duskfuse.tasks.trunk import Trunk

WIDTH, HEIGHT = 640, 512
WARMUP = 1
STUDENTS = ("edge", "nano", "unet", "mobile")


def main() -> None:
    """Measure everything and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--students", nargs="+", default=list(STUDENTS), choices=STUDENTS)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    made = {name: module for student in options.students for name, module in forms(student).items()}
    result = {
        "machine": {"processor": platform.processor() or platform.machine(), "onnxruntime": onnxruntime.__version__},
        "size": f"{WIDTH}x{HEIGHT}",
        "runs": options.runs,
        "forms": measured(made, options.runs),
    }
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(table(result["forms"]))


def forms(name: str) -> dict[str, nn.Module]:
    """A student alone and both steered forms."""
    student, _ = load_student(name)
    steered = SteeredStudent(student, Steering(taps_of(student), ("detection",))).eval()
    detector = new_detector(objects_named("MSRS-3"), Trunk.SQUEEZENET).freeze()
    return {
        f"{name}, alone": student.eval(),
        f"{name}, fixed": FixedSteering(steered, "detection"),
        f"{name}, live": LiveSteering(steered, detector),
    }


def measured(made: dict[str, nn.Module], runs: int) -> dict[str, dict[str, Any]]:
    """Every form's size and times."""
    sessions = {name: session(module) for name, module in made.items()}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in made}
    for number in range(-WARMUP, runs):
        for name, module in made.items():
            feed = {key: value.numpy() for key, value in pictures(module).items()}
            clock, processor = time.perf_counter(), time.thread_time()
            sessions[name].run(None, feed)
            if number >= 0:
                times[name].append((time.perf_counter() - clock, time.thread_time() - processor))
    return {name: {**counted(module), **summary(times[name])} for name, module in made.items()}


def pictures(module: nn.Module) -> dict[str, torch.Tensor]:
    """Inputs of a form's file; pictures without content, which cost as much."""
    rgb = getattr(module, "colour", Colour.LUMA) == Colour.RGB
    vis = torch.full((1, 3 if rgb else 1, HEIGHT, WIDTH), 0.5)
    return {"ir": torch.full((1, 1, HEIGHT, WIDTH), 0.4), ("vis" if rgb else "vis_y"): vis}


def session(module: nn.Module) -> onnxruntime.InferenceSession:
    """The form as a file, on one thread."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    graph = build_graph(DeployedStudent(module), size=(HEIGHT, WIDTH)).SerializeToString()
    return onnxruntime.InferenceSession(graph, settings, providers=["CPUExecutionProvider"])


@torch.inference_mode()
def counted(module: nn.Module) -> dict[str, int]:
    """Parameters, and MACs of one pair."""
    ir, vis = pictures(module).values()
    with FlopCounterMode(display=False) as counter:
        module(vis, ir)
    parameters = sum(parameter.numel() for parameter in module.parameters())
    return {"parameters": parameters, "macs": int(counter.get_total_flops()) // 2}


def summary(samples: list[tuple[float, float]]) -> dict[str, Any]:
    """Medians, and every time."""
    found: dict[str, Any] = {}
    for kind, seconds in zip(("clock", "processor"), np.transpose(samples), strict=True):
        found[f"{kind}_median_ms"] = round(1000 * median(seconds.tolist()), 2)
        found[f"{kind}_ms"] = [round(1000 * value, 2) for value in seconds.tolist()]
    return found


def table(forms_: dict[str, dict[str, Any]]) -> str:
    """Markdown."""
    lines = ["| | parameters | MACs, 10⁹ | processor time, ms |", "|---|---|---|---|"]
    for name, found in forms_.items():
        size = f"{found['parameters']:,} | {found['macs'] / 1e9:.2f}"
        lines.append(f"| {name} | {size} | {found['processor_median_ms']:.1f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
