"""Milliseconds per picture of every student and of two plain fusions, on one thread of a CPU and on a GPU where one is.

    python benchmarks/students.py --runs 31 --out benchmarks/results/students.json

`two_layers` is the smallest useful network at full resolution, two 3×3 convolutions 2→4→1 (the size of MMDRFuse, Deng
et al. 2024); `max` is the brighter source. All take turns within each run, so that a machine that slows down slows all
of them alike; medians are reported, every time is kept. Beside the clock stands the processor time of the thread,
which does not count waiting while other programs have the core. Weights are untrained: they do not change the speed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from duskfuse.data.fuser import FusionOutput
from duskfuse.data.progress import set_quiet
from duskfuse.export.calibration import calibration_pairs
from duskfuse.export.onnx_graph import DeployedStudent, build_graph
from duskfuse.export.quantise import quantise
from duskfuse.students.fold import fold_batchnorm
from duskfuse.students.zoo import ARCHITECTURES, build_student

SIZES = ("640x480", "1280x1024")
BASE = "unet"
"""Ratios are to this student in fp32."""
EVERY_WAY = ("edge", "nano")
"""Students that also run in int8 and in PyTorch."""
WARMUP = 3

Run = Callable[[], object]


def main() -> None:
    """Time everything at every size and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=31)
    parser.add_argument("--size", action="append", help=f"WIDTHxHEIGHT, default {' and '.join(SIZES)}")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    set_quiet(True)
    result: dict[str, Any] = {"machine": _machine(), "runs": arguments.runs, "cpu_one_thread": {}}
    for size in arguments.size or SIZES:
        width, height = map(int, size.split("x"))
        before = os.getloadavg()[0]
        table = _interleaved(_on_cpu((height, width)), arguments.runs)
        result["cpu_one_thread"][size] = {"load": [before, os.getloadavg()[0]], "models": table}
        if torch.cuda.is_available():
            result.setdefault("gpu", {"name": torch.cuda.get_device_name(), "copy_gb_per_s": _copy_bandwidth()})
            result["gpu"][size] = _on_gpu((height, width), arguments.runs, result["gpu"]["copy_gb_per_s"])
        _show(size, table)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


class _TwoLayers(nn.Module):
    """Two 3×3 convolutions at full resolution."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 1, 3, padding=1))

    def forward(self, vis: Tensor, ir: Tensor) -> FusionOutput:
        return FusionOutput(self.layers(torch.cat([vis, ir], dim=1)))


class _Maximum(nn.Module):
    """The brighter source."""

    def forward(self, vis: Tensor, ir: Tensor) -> FusionOutput:
        return FusionOutput(torch.maximum(vis, ir))


def _networks() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    students = {name: build_student(name, {}) for name in ARCHITECTURES}
    return {name: network.eval() for name, network in (students | _plain()).items()}


def _plain() -> dict[str, nn.Module]:
    return {"two_layers": _TwoLayers(), "max": _Maximum()}


def _on_cpu(size: tuple[int, int]) -> dict[str, Run]:
    """What is timed: fp32 and int8 files in ONNX Runtime, the folded network in PyTorch."""
    random = np.random.default_rng(0)
    planes = {name: random.random((1, 1, *size), dtype=np.float32) for name in ("ir", "vis_y")}
    runs: dict[str, Run] = {}
    for name, network in _networks().items():
        graph = build_graph(DeployedStudent(network), size=size)
        runs[f"{name} fp32"] = _in_onnxruntime(graph, planes)
        if name in EVERY_WAY:
            runs[f"{name} int8"] = _in_onnxruntime(
                quantise(network, calibration_pairs(None, size, most=2), size)[0], planes
            )
            folded = fold_batchnorm(network)
            runs[f"{name} torch eager"] = _in_torch(folded, planes)
            runs[f"{name} torch.compile"] = _in_torch(torch.compile(folded), planes)
    return runs


def _in_onnxruntime(graph: onnx.ModelProto, planes: dict[str, np.ndarray]) -> Run:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, planes)


def _in_torch(network: Callable[..., FusionOutput], planes: dict[str, np.ndarray]) -> Run:
    ir, vis = (torch.from_numpy(planes[name]) for name in ("ir", "vis_y"))

    def run() -> Tensor:
        with torch.inference_mode():
            return network(vis, ir).y

    return run


def _interleaved(runs: dict[str, Run], count: int) -> dict[str, Any]:
    for run in runs.values():
        for _ in range(WARMUP):
            run()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(count):
        for name, run in runs.items():
            clock, processor = time.perf_counter(), time.thread_time()
            run()
            times[name].append((time.perf_counter() - clock, time.thread_time() - processor))
    base = [median(column) for column in zip(*times[f"{BASE} fp32"], strict=True)]
    return {name: _summary(zip(*samples, strict=True), base) for name, samples in times.items()}


def _summary(columns: Iterable[tuple[float, ...]], base: list[float]) -> dict[str, Any]:
    summary: dict[str, Any] = {}
    for kind, seconds, of_base in zip(("clock", "processor"), columns, base, strict=True):
        summary[kind] = {
            "median_ms": round(1000 * median(seconds), 3),
            "times_faster_than_unet": round(of_base / median(seconds), 1),
            "ms": [round(1000 * value, 3) for value in seconds],
        }
    return summary


def _on_gpu(size: tuple[int, int], count: int, bandwidth: float) -> dict[str, Any]:
    """Eager and compiled, single and half precision; CUDA events around one picture each, models taking turns.

    The share of the bandwidth counts only what any fusion must move: two planes read and one written.
    """
    runs, bytes_moved = {}, {}
    for name, network in _networks().items():
        for kind, dtype in (("fp32", torch.float32), ("fp16", torch.float16)):
            folded = fold_batchnorm(network).to("cuda", dtype)
            ir, vis = torch.rand(2, 1, 1, *size, device="cuda").to(dtype).unbind(0)
            for how, called in (("eager", folded), ("compile", torch.compile(folded, mode="max-autotune"))):
                runs[f"{name} {kind} {how}"] = _gpu_run(called, vis, ir)
                bytes_moved[f"{name} {kind} {how}"] = 3 * ir.numel() * ir.element_size()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for index in range(-WARMUP, count):
        for name, run in runs.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            end.record()
            end.synchronize()
            if index >= 0:
                times[name].append(start.elapsed_time(end))
    return {
        name: {
            "median_ms": round(median(ms), 4),
            "share_of_copy_bandwidth": round(bytes_moved[name] / median(ms) * 1e-6 / bandwidth, 4),
            "ms": [round(value, 4) for value in ms],
        }
        for name, ms in times.items()
    }


def _gpu_run(network: Callable[..., FusionOutput], vis: Tensor, ir: Tensor) -> Run:
    def run() -> Tensor:
        with torch.inference_mode():
            return network(vis, ir).y

    return run


def _copy_bandwidth() -> float:
    """Gigabytes per second that a plain copy of 1 GiB reads and writes on this GPU."""
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target, seconds = torch.empty_like(source), []
    for _ in range(10):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        target.copy_(source)
        end.record()
        end.synchronize()
        seconds.append(start.elapsed_time(end) / 1000)
    return round(2 * 2**30 / median(seconds) / 1e9, 1)


def _machine() -> dict[str, Any]:
    cpus = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return {
        "cpu": cpus[0] if cpus else platform.machine(),
        "cores": os.cpu_count(),
        **{name: metadata.version(name) for name in ("numpy", "onnxruntime", "torch")},
    }


def _show(size: str, table: dict[str, Any]) -> None:
    for name, row in table.items():
        clock, processor = row["clock"], row["processor"]
        print(
            f"{size:>10} {name:22} {clock['median_ms']:9.3f} ms {clock['times_faster_than_unet']:7.1f}x"
            f"   processor {processor['median_ms']:9.3f} ms {processor['times_faster_than_unet']:7.1f}x"
        )


if __name__ == "__main__":
    main()
