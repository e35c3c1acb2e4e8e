"""Which part of a training update takes how long: networks and terms there and back, optimiser, loading.

    python benchmarks/step_shares.py --encoder-weights WEIGHTS --out benchmarks/results/step_shares.json

Nothing in the product is timed by itself: hooks of torch on networks and tensors, and wrappers around the terms'
functions, tell a stopwatch what begins. Autograd goes through the nodes latest first, so that in the backward pass the
terms come one after the other, in reverse, and the owner's network after the last of them; a hook on the value of each
term and on the network's outputs says when. Loading is measured by itself, on scenes that are written to a temporary
folder with their masks: the first look at a pair, which decodes its files, and later ones.

Processor seconds of one thread, medians over updates of float32, after two that warm up.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median
from time import process_time
from typing import Any
from unittest.mock import patch

import torch
from contrastive import build, machine
from steps import MASKS, scenes
from torch import Tensor, nn

from duskfuse.data.fuser import FusionOutput
from duskfuse.data.layout import find_pairs
from duskfuse.data.priors.cache_masks import cache_masks, open_masks
from duskfuse.data.priors.sources import MaskSourceName
from duskfuse.data.scenes import write_scenes
from duskfuse.distill.context import Batch
from duskfuse.distill.dataset import TrainingPairs
from duskfuse.distill.engine import Engine, needed_owners
from duskfuse.distill.recipe import Owner, Recipe
from duskfuse.distill.recipe_files import load_recipe
from duskfuse.distill.terms import TermName
from duskfuse.students.unet import UNetStudent
from duskfuse.teachers.main_network import MainNetwork

WARM_UPS = 2
CASES = (
    ("paper_sage", "student", "image"),
    ("paper_sage", "student", "feature"),
    ("paper_sage", "teacher", "image"),
    ("paper_sage", "teacher", "feature"),
    ("default", "student", "feature"),
    ("default", "teacher", "feature"),
    ("cached_teacher", "student", "feature"),
)
"""Recipe, step and ``contrastive.masking``."""
REST = "everything else"
MOVING = "gradient norm, clipping, optimiser"
SCENES, SCENE_SIZE = 8, (480, 640)


def main() -> None:
    """Measure every case and the loading, print tables and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crop", type=int, nargs=2, default=(96, 96), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--updates", type=int, default=7)
    parser.add_argument("--encoder", choices=("squeezenet", "filters"), default="squeezenet")
    parser.add_argument("--encoder-weights", type=Path, help="safetensors of SqueezeNet's trunk; random without")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {
        "machine": machine(),
        "crop": arguments.crop,
        "batch": arguments.batch,
        "encoder": arguments.encoder,
        "threads": 1,
        "updates": [case_of(*case, arguments) for case in CASES],
        "loading": loading(arguments),
    }
    result["machine"]["load_afterwards"] = machine()["load"]
    show(result)
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")


class Stopwatch:
    """Processor seconds of parts that follow or contain each other; what is contained counts by itself."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._running: list[str] = [REST]
        self._since = process_time()

    def now(self, part: str) -> None:
        """From here on the innermost part is ``part``."""
        self._settle()
        self._running[-1] = part

    @contextmanager
    def inside(self, part: str) -> Iterator[None]:
        """The body is ``part``."""
        self._settle()
        self._running.append(part)
        try:
            yield
        finally:
            self._settle()
            self._running.pop()

    def _settle(self) -> None:
        moment = process_time()
        self.seconds[self._running[-1]] += moment - self._since
        self._since = moment


class TimedEngine(Engine):
    """The engine with a stopwatch beside it."""

    watch: Stopwatch

    def timed_update(self, step: str, batch: Batch) -> dict[str, float]:
        """One update; seconds of its parts."""
        with ExitStack() as stack:
            self.watch = Stopwatch()
            for owner, network in self.networks.items():
                stack.enter_context(patch.object(network, "forward", self._forward_of(owner, network)))
            for name in self.recipe.steps[step].active:
                stack.enter_context(patch.object(name, "function", self._value_of(name)))
            self.update(step, 0, batch, phase="benchmark")
            self.watch.now(REST)
        return dict(self.watch.seconds)

    def _forward_of(self, owner: Owner, network: nn.Module) -> Callable[..., FusionOutput]:
        forward = network.forward

        def timed(*pictures: Tensor) -> FusionOutput:
            with self.watch.inside(f"{owner}: forward"):
                output: FusionOutput = forward(*pictures)
            for tensor in (output.y, *output.taps):
                self._when_reached(tensor, f"{owner}: backward")
            return output

        return timed

    def _value_of(self, name: TermName) -> Callable[..., Tensor]:
        function = name.function

        def timed(*inputs: Any) -> Tensor:
            with self.watch.inside(f"{name}: forward"):
                value = function(*inputs)
            self._when_reached(value, f"{name}: backward")
            return value

        return timed

    def _when_reached(self, tensor: Tensor, part: str) -> None:
        """Note when the backward pass comes to a tensor: what follows it is ``part``."""
        if tensor.requires_grad:
            tensor.register_hook(lambda _: self.watch.now(part))  # type: ignore[no-untyped-call]

    def _update(self, owner: Owner, lr: float | None) -> tuple[float, float]:
        self.watch.now(MOVING)
        moved = super()._update(owner, lr)
        self.watch.now(REST)
        return moved


def case_of(name: str, step: str, masking: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Median seconds of every part of one kind of update."""
    changes = [f"contrastive.masking={masking}", "precision=float32"]
    if name == "paper_sage":
        changes.append("steps.teacher.terms.segmentation.weight=0")
    recipe: Recipe = load_recipe(name, changes)
    torch.manual_seed(0)
    networks: dict[Owner, nn.Module] = {}
    for owner in sorted(needed_owners(recipe)):
        networks[owner] = UNetStudent() if owner is Owner.STUDENT else MainNetwork(MASKS)
    encoder = build(arguments.encoder, arguments.encoder_weights)
    engine = TimedEngine(recipe, networks, encoder, torch.device("cpu"))
    batch = scenes(arguments.crop, arguments.batch)
    batch = replace(batch, teacher_y=batch.ir)
    rounds = [engine.timed_update(step, replace(batch)) for _ in range(WARM_UPS + arguments.updates)][WARM_UPS:]
    parts = {part: median(seconds.get(part, 0.0) for seconds in rounds) for part in rounds[-1]}
    total = sum(parts.values())
    uses_masks = TermName.CONTRASTIVE in recipe.steps[step].active
    return {
        "recipe": name,
        "step": step,
        "masking": masking if uses_masks else None,
        "cpu_s": round(median(sum(seconds.values()) for seconds in rounds), 4),
        "parts": {
            part: {"cpu_s": round(seconds, 5), "share": round(seconds / total, 4)}
            for part, seconds in sorted(parts.items(), key=lambda item: -item[1])
        },
    }


def loading(arguments: argparse.Namespace) -> dict[str, Any]:
    """Mean seconds of one sample, at the first look at a pair and later; scenes of 640×480 with region masks."""
    recipe = load_recipe("default", [f"data.crop=[{arguments.crop[0]},{arguments.crop[1]}]"])
    with tempfile.TemporaryDirectory() as folder:
        data, cache = Path(folder) / "scenes", Path(folder) / "cache"
        write_scenes(data, count=SCENES, size=SCENE_SIZE)
        cache_masks(data, source=MaskSourceName.REGIONS, cache=cache, workers=1)
        pairs = find_pairs(data)
        masks = open_masks(cache, {key for files in pairs for key in files.prior_keys()}, None)
        dataset = TrainingPairs(pairs, recipe.data, recipe.seed, masks=masks)
        seconds = []
        for number in range(4 * SCENES):
            started = process_time()
            dataset[number]
            seconds.append(process_time() - started)
    return {
        "pictures": list(SCENE_SIZE),
        "first_look_at_a_pair_s": round(fmean(seconds[:SCENES]), 5),
        "later_s": round(fmean(seconds[SCENES:]), 5),
    }


def show(result: dict[str, Any]) -> None:
    """Print a table per update."""
    print(f"crop {result['crop'][0]}×{result['crop'][1]}, batch {result['batch']}, encoder {result['encoder']}")
    for case in result["updates"]:
        print(f"\n{case['recipe']}/{case['step']} {case['masking'] or ''}: {case['cpu_s']:.3f} s")
        for part, row in case["parts"].items():
            print(f"  {part:36} {row['cpu_s']:8.4f} s {row['share']:7.1%}")
    load = result["loading"]
    print(f"\na sample: {load['first_look_at_a_pair_s']:.4f} s at first, {load['later_s']:.4f} s later")


if __name__ == "__main__":
    main()
