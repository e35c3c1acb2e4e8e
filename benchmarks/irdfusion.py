"""Parameters, MACs and milliseconds of IRDFusion beside the plain convolution of both maps, at 640×512.

    python benchmarks/irdfusion.py --runs 7 --out benchmarks/results/irdfusion.json

The block of each level of the in-tree detector, and whole detectors that differ in their fusion alone. All take turns
within each run, on one thread; beside the clock stands the processor time of the thread, which does not count waiting
while other programs have the core. Medians are reported, every time is kept. Weights are untrained: they do not change
the speed. MACs are torch's counter's, halved: products of matrices and convolutions. The blocks that the article
measures, with 1024 channels and 1600 tokens and at the levels of YOLOv5l, are counted on tensors without data.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from duskfuse.data.class_conventions import objects_named
from duskfuse.tasks.detector import new_detector
from duskfuse.tasks.detector_network import FUSED_CHANNELS, FUSED_STRIDES, HeadKind
from duskfuse.tasks.fusion_blocks import TOKENS, FusionBlock, new_fusion
from duskfuse.tasks.irdfusion import IrdFusion

WIDTH, HEIGHT = 640, 512
WARMUP = 1
PUBLISHED = {
    "1024 channels, 40×40": (1024, (40, 40), (40, 40)),
    "YOLOv5l P3": (256, (20, 20), (80, 80)),
    "YOLOv5l P4": (512, (16, 16), (40, 40)),
    "YOLOv5l P5": (1024, (10, 10), (20, 20)),
}
"""Channels, tokens and map of the blocks that the article measures, for pictures of 640×640."""

Run = Callable[[], object]


def main() -> None:
    """Measure everything and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    made = {**_blocks(), **_detectors()}
    result = {
        "machine": {"processor": platform.processor() or platform.machine(), "torch": torch.__version__, "threads": 1},
        "size": f"{WIDTH}x{HEIGHT}",
        "tokens": list(TOKENS),
        "runs": arguments.runs,
        "in_tree": _measured(made, arguments.runs),
        "as_published": {name: _counted(*sizes) for name, sizes in PUBLISHED.items()},
    }
    text = json.dumps(result, indent=1) + "\n"
    if arguments.out is not None:
        arguments.out.write_text(text)
    print(text)


def _blocks() -> dict[str, tuple[nn.Module, Run]]:
    """Every fusion at each level of the detector."""
    blocks: dict[str, tuple[nn.Module, Run]] = {}
    for channels, stride in zip(FUSED_CHANNELS, FUSED_STRIDES, strict=True):
        ir, vis = torch.rand(2, 1, channels, HEIGHT // stride, WIDTH // stride)
        for kind in FusionBlock:
            block = new_fusion(kind, [channels]).eval().requires_grad_(False)
            blocks[f"stride {stride}, {kind}"] = block, _run(block, [ir], [vis])
    return blocks


def _detectors() -> dict[str, tuple[nn.Module, Run]]:
    """Whole detectors of two cameras, from pictures to the head's prediction."""
    detectors: dict[str, tuple[nn.Module, Run]] = {}
    pictures = torch.rand(1, 4, HEIGHT, WIDTH)
    for head in HeadKind:
        for kind in FusionBlock:
            detector = new_detector(objects_named("MSRS-3"), head=head, fusion=kind).eval().requires_grad_(False)
            detectors[f"detector {head}, {kind}"] = detector, _run(detector, pictures)
    return detectors


def _run(network: nn.Module, *inputs: list[Tensor] | Tensor) -> Run:
    def run() -> object:
        with torch.inference_mode():
            return network(*inputs)

    return run


def _measured(made: dict[str, tuple[nn.Module, Run]], runs: int) -> dict[str, Any]:
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in made}
    for number in range(-WARMUP, runs):
        for name, (_, run) in made.items():
            clock, processor = time.perf_counter(), time.thread_time()
            run()
            if number >= 0:
                times[name].append((time.perf_counter() - clock, time.thread_time() - processor))
    return {
        name: {**_size(network), "macs": _macs(run), **_summary(times[name])} for name, (network, run) in made.items()
    }


def _summary(samples: list[tuple[float, float]]) -> dict[str, Any]:
    summary: dict[str, Any] = {}
    for kind, seconds in zip(("clock", "processor"), zip(*samples, strict=True), strict=True):
        summary[f"{kind}_median_ms"] = round(1000 * median(seconds), 2)
        summary[f"{kind}_ms"] = [round(1000 * value, 2) for value in seconds]
    return summary


def _counted(width: int, tokens: tuple[int, int], size: tuple[int, int]) -> dict[str, dict[str, int]]:
    """Parameters and MACs of our block and of the published one, which repeats more than is counted here."""
    counts = {}
    for name, published in (("ours", False), ("published form", True)):
        with torch.device("meta"):
            block, feature = IrdFusion(width, tokens, published=published).eval(), torch.empty(1, width, *size)
        counts[name] = {**_size(block), "macs": _macs(_run(block, feature, feature))}
    return counts


def _size(network: nn.Module) -> dict[str, int]:
    return {"parameters": sum(parameter.numel() for parameter in network.parameters())}


def _macs(run: Run) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops()) // 2


if __name__ == "__main__":
    main()
