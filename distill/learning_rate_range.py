"""The verb ``find-lr``: which learning rate an owner's step bears (Smith 2017, learning rate range test).

The rate rises exponentially from update to update, each with fresh samples, until the loss explodes. The smoothed loss
falls where the rate is high enough and turns where it is too high; a tenth of the rate at its lowest point is
suggested. Networks, optimisers and running averages are afterwards what they were before.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import torch

from duskfuse.data.atomic import write_atomically
from duskfuse.data.errors import DivergenceError, InputError
from duskfuse.data.images import write_picture
from duskfuse.data.layout import find_pairs
from duskfuse.data.priors.sources import MaskSourceName
from duskfuse.data.progress import say, track
from duskfuse.data.reading import Reading
from duskfuse.distill.context import Batch
from duskfuse.distill.critics import naming_critics, with_critics
from duskfuse.distill.dataset import load_batches
from duskfuse.distill.distill import build_engine, check_given, initial_weights, open_dataset, with_encoder
from duskfuse.distill.engine import Engine
from duskfuse.distill.learning_rate_plot import plot_rates
from duskfuse.distill.perceptual_network import with_perceptual
from duskfuse.distill.quantised import make_ready
from duskfuse.distill.recipe import EncoderName, Owner, Recipe
from duskfuse.distill.recipe_files import load_recipe

LOWEST, HIGHEST, UPDATES = 1e-6, 1.0, 100
SMOOTHING = 0.9
"""Decay of the running mean of the losses."""
EXPLODED = 4.0
"""The test ends when the smoothed loss is so many times its lowest value."""
SETTLED = 10
"""Updates before the running mean is looked at."""
MARGIN = 10.0
"""The suggestion lies so far below the rate with the lowest loss."""


@dataclass(frozen=True)
class RateReport:
    """What was tried, what it gave, and what follows."""

    recipe: str
    owner: Owner
    step: str
    suggestion: float | None
    """None where the loss never fell."""
    lowest_loss_at: float
    """Rate at which the smoothed loss was lowest."""
    rates: list[float]
    losses: list[float]
    smoothed: list[float]
    json_file: str
    plot: str

    def to_json(self) -> dict[str, object]:
        """Plain data for ``--json``."""
        return asdict(self)


def find_lr(
    data: Path,
    *,
    owner: Owner,
    out: Path,
    recipe: str | Path = "default",
    changes: Sequence[str] = (),
    overwrite: bool = False,
    init: Sequence[Path] = (),
    cache: Path | None = None,
    masks: MaskSourceName | None = None,
    teacher: str | None = None,
    encoder: EncoderName | None = None,
    encoder_weights: Path | None = None,
    critics: Sequence[Path] = (),
    backbone: Path | None = None,
    split: str | None = None,
    reading: Reading | Path | None = None,
) -> RateReport:
    """Try rising rates on the first kind of step that moves ``owner``; write numbers and a plot to ``out``.

    The other arguments are those of ``distill``. Raises ``InputError`` where no step moves the owner.
    """
    resolved = with_encoder(load_recipe(recipe, changes), encoder, encoder_weights)
    resolved = naming_critics(resolved, critics, backbone)
    init = initial_weights(init)
    step = _first_step(resolved, owner)
    files = [out / f"learning_rate_{owner.value}.{suffix}" for suffix in ("json", "png")]
    if not overwrite and (there := [file for file in files if file.exists()]):
        raise InputError(f"{there[0]} exists", remedy="say --overwrite to replace it, or name another --out")
    pairs = find_pairs(data, split=split, reading=reading)
    check_given(resolved, init)
    resolved, perceptual = with_perceptual(resolved)
    resolved, judges = with_critics(resolved, pairs)
    dataset = open_dataset(pairs, resolved, cache, masks, teacher, judges)
    engine = build_engine(resolved, init, critics=judges, perceptual=perceptual)
    if resolved.quantise is not None:
        make_ready(engine.networks[Owner.STUDENT], dataset, resolved.quantise)
    rates = [float(rate) for rate in np.geomspace(LOWEST, HIGHEST, UPDATES)]
    batches = load_batches(dataset, resolved.data, 0, len(rates) + resolved.unrolls)
    losses = sweep_rates(engine, step, track(batches, f"find-lr {owner}", total=len(rates)), rates)
    rates = rates[: len(losses)]
    smoothed = smooth(losses)
    suggestion, lowest = suggest(rates, smoothed)
    report = RateReport(
        resolved.name, owner, step, suggestion, lowest, rates, losses, smoothed, *(str(file) for file in files)
    )
    write_atomically(files[0], json.dumps(report.to_json(), indent=2) + "\n")
    write_picture(files[1], plot_rates(rates, losses, smoothed, suggestion, f"{resolved.name}: step {step}"))
    if suggestion is None:
        say("the loss never fell: look at the plot, or start from other weights with --init")
    return report


def _first_step(recipe: Recipe, owner: Owner) -> str:
    names = [name for phase in recipe.phases for name in phase.cycle if recipe.steps[name].owner is owner]
    if not names:
        owners = sorted({recipe.steps[name].owner.value for phase in recipe.phases for name in phase.cycle})
        raise InputError(f"no step of recipe {recipe.name} moves the {owner}", rule=f"one of {', '.join(owners)}")
    return names[0]


def sweep_rates(engine: Engine, step: str, batches: Iterable[Batch], rates: Sequence[float]) -> list[float]:
    """Losses of updates at these rates, up to where they explode; the engine is as before afterwards."""
    before = copy.deepcopy(engine.state_dict())
    generator = torch.get_rng_state()
    losses: list[float] = []
    try:
        pairs = pairwise(chain(batches, [None]))
        for number, ((batch, following), rate) in enumerate(zip(pairs, rates, strict=False)):
            assert batch is not None
            losses.append(engine.update(step, number, batch, following, phase="range", lr=rate).loss)
            smoothed = smooth(losses)
            if number >= SETTLED and smoothed[-1] > EXPLODED * min(smoothed):
                break
    except DivergenceError as error:
        if not losses:
            raise
        say(f"the test ends here: {error.seen}")
    finally:
        engine.load_state_dict(before)
        for network in engine.networks.values():
            network.zero_grad(set_to_none=True)
        torch.set_rng_state(generator)
    return losses


def smooth(losses: Sequence[float]) -> list[float]:
    """Running mean with decay SMOOTHING, without the pull of its start (as Adam's moments are corrected)."""
    mean, smoothed = 0.0, []
    for count, loss in enumerate(losses, start=1):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        smoothed.append(mean / (1 - SMOOTHING**count))
    return smoothed


def suggest(rates: Sequence[float], smoothed: Sequence[float]) -> tuple[float | None, float]:
    """The suggested rate, None where the loss never fell, and the rate with the lowest smoothed loss."""
    first = min(SETTLED, len(smoothed) - 1)
    lowest = min(range(first, len(smoothed)), key=smoothed.__getitem__)
    fell = lowest > first and smoothed[lowest] < smoothed[first]
    return (_rounded(rates[lowest] / MARGIN) if fell else None), rates[lowest]


def _rounded(rate: float) -> float:
    """Two digits: the test knows no more."""
    return round(rate, 1 - math.floor(math.log10(rate)))
