"""Automatic masks of one picture: segment-anything's generator and duskfuse's, seconds and memory.

    python benchmarks/sam_masks.py --networks spots random --out benchmarks/results/sam_masks.json

Every measurement is a process of its own with one thread; the weights are random. ``spots`` answers with a spot around
each point and measures what comes after the network; ``random`` is a small SAM of which every answer counts, ``vit_b``
one of the published size, of which none does.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from tiny_sam import Spots, discs, spotting_sam, tiny_sam

from duskfuse.data.priors.automatic_masks import AutomaticMasks, SamSettings
from duskfuse.data.priors.sam import PRESETS, SamPreset
from duskfuse.data.priors.sam_network import SamNetwork

MAKERS = ("segment-anything", "duskfuse")
NETWORKS = ("spots", "random", "vit_b")


def main() -> None:
    """Measure both generators around each network and print the numbers as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=["spots", "random"])
    parser.add_argument("--preset", choices=[*SamPreset], default=SamPreset.FAST)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(*arguments.measure, arguments.preset)))
        return
    result = {"picture": "640x480", "preset": arguments.preset, "threads": 1, "runs": []}
    for network in arguments.networks:
        for maker in MAKERS:
            command = [sys.executable, __file__, "--preset", arguments.preset, "--measure", maker, network]
            result["runs"].append(json.loads(subprocess.run(command, capture_output=True, check=True).stdout))
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text + "\n")


def measure(maker: str, network: str, preset: str) -> dict[str, Any]:
    """Processor seconds and peak memory (MB, and how much of it was taken before the picture) of one picture."""
    torch.set_num_threads(1)
    find, picture = generator(maker, network, PRESETS[SamPreset(preset)]), discs(480, 640)
    before, started, clock = peak_mb(), time.process_time(), time.perf_counter()
    masks = find(picture)
    return {
        "maker": maker,
        "network": network,
        "masks": len(masks),
        "cpu_s": round(time.process_time() - started, 1),
        "elapsed_s": round(time.perf_counter() - clock, 1),
        "peak_mb": peak_mb(),
        "peak_mb_before": before,
    }


def generator(maker: str, network: str, settings: SamSettings) -> Callable[[np.ndarray], Any]:
    """What finds the masks of a picture."""
    if network == "spots":
        sam, settings = spotting_sam(1024), replace(settings, pred_iou_thresh=0.75, stability_score_thresh=0.5)
    elif network == "random":
        sam, settings = tiny_sam(1024), replace(settings, pred_iou_thresh=-99.0, stability_score_thresh=0.0)
    else:
        from segment_anything import sam_model_registry

        torch.manual_seed(0)
        sam = sam_model_registry[network]().eval()
    if maker == "segment-anything":
        from segment_anything import SamAutomaticMaskGenerator

        generate: Callable[[np.ndarray], Any] = SamAutomaticMaskGenerator(sam, **asdict(settings)).generate
        return generate
    prompted = SamNetwork(sam, torch.device("cpu"))
    if network == "spots":
        prompted.decode = lambda embedding, position, prompts: Spots()(embedding, position, prompts, None, True)
    return AutomaticMasks(prompted, settings)


def peak_mb() -> int:
    """Largest resident memory so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    main()
