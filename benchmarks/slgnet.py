"""What SLGNet's parts cost on ViT-B: parameters, multiplications, and processor seconds of one forward pass.

    python benchmarks/slgnet.py --out benchmarks/results/slgnet.json

Random weights, one pair of 640×512, one thread, float32. Multiplications are torch's count of linear layers,
convolutions and attention; sampling and element-wise work are not in it. Times are processor seconds, the median of
the rounds.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from duskfuse.tasks.slgnet.network import SlgNet, count_parameters
from duskfuse.tasks.slgnet.vit import FrozenVit

HEIGHT, WIDTH = 512, 640


def cost(work: Callable[[], object], rounds: int) -> dict[str, float]:
    """Multiplications, and the median of processor seconds after one call to warm up, which counts."""
    with FlopCounterMode(display=False) as counter:
        work()
    seconds = []
    for _ in range(rounds):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return {"gmacs": round(counter.get_total_flops() / 2e9, 3), "cpu_s": round(median(seconds), 3)}


def parts(network: SlgNet, visible: Tensor, infrared: Tensor) -> dict[str, tuple[int, Callable[[], object]]]:
    """Parameters and one forward pass of each part, and of the whole."""
    adapters, backbone = network.adapters, network.backbone
    structure = adapters.structure(visible, infrared).maps
    tokens, grid = backbone.embed(visible)
    patches = tokens[:, backbone.prefix :]
    centres = torch.rand(patches.shape[1], 2) * torch.tensor([WIDTH, HEIGHT])
    maps, text = backbone.finish(tokens, grid), torch.randn(1, 4, network.settings.text_width)
    first, second = adapters.stages[:2]
    return {
        "frozen transformer": (backbone.weights_count, lambda: backbone(visible)),
        "structure encoder": (count_parameters(adapters.structure), lambda: adapters.structure(visible, infrared)),
        "first adapter": (count_parameters(first), lambda: first(patches, centres, structure)),
        "later adapter": (count_parameters(second), lambda: second(patches, centres, structure)),
        "language": (
            count_parameters(adapters.language),
            lambda: adapters.language(maps, *adapters.language.parameters_of(text)),
        ),
        "all": (
            backbone.weights_count + count_parameters(adapters),
            lambda: network(visible, infrared[:, :1], text),
        ),
    }


def main() -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = SlgNet(FrozenVit()).eval()
    visible = torch.rand(1, 3, HEIGHT, WIDTH)
    infrared = torch.rand(1, 1, HEIGHT, WIDTH).expand(-1, 3, -1, -1)
    with torch.no_grad():
        measured = {
            name: {"parameters": count, **cost(work, chosen.rounds)}
            for name, (count, work) in parts(network, visible, infrared).items()
        }
    record = {"size": [HEIGHT, WIDTH], "torch": torch.__version__, "machine": platform.machine(), "parts": measured}
    chosen.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
