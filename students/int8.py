"""A student made ready for INT8 without training: ranges, equalised channels, corrected biases, layers left in float.

Ranges are the minimum and maximum over calibration pictures; clipping them costs more than it saves in networks that
make pictures. Two changes keep the float function, or its mean. Where a map reaches its readers through operations that
scale with their input (a ReLU, a sum), its channels are brought to one range and the readers' weights take the factors
back (after the cross-layer equalisation of Nagel et al. 2019, §4.1). And the mean error that rounding adds to each
output channel is taken off its bias (bias correction, §4.2 there, measured on pictures).

Then every convolution is put into INT8 alone, which says what it costs, and those that cost most quality per
multiplication stay float until the pictures are good enough.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from duskfuse.students.fake_quantise import QuantisedStudent
from duskfuse.students.int8_drift import (
    Drift,
    Source,
    Switch,
    Trials,
    input_ranges,
    macs_shares,
    scales_of,
    shown,
)

GOAL_DB = 48.0
"""Least PSNR of a trial picture, INT8 beside float, both in 8 bit; unseen pictures may come out worse."""
MOST_FLOAT = 0.5
"""Largest part of the multiplications that may stay float for the goal: beyond it INT8 saves too little."""
WORTH = 0.9
"""Layers stay float for less than the goal only where that takes a tenth of the worst picture's error away."""
MOST_FACTOR = 32.0
"""Channels that are nearly empty are not stretched further."""


class Link(NamedTuple):
    """Convolutions whose output, or its sum, reaches ``readers`` alone, through operations that scale with it."""

    writers: tuple[str, ...]
    readers: tuple[str, ...]


@runtime_checkable
class Equalisable(Protocol):
    """A student that names the links in which channels may be scaled without changing what it computes."""

    links: Sequence[Link]
    """By names in the deployed form."""


@torch.no_grad()
def prepare_int8(
    network: QuantisedStudent,
    calibration: Sequence[Source],
    trials: Sequence[Source],
    goal_db: float = GOAL_DB,
    float_layers: Collection[str] | None = None,
) -> Drift:
    """Give ``network`` scales, equalised channels and corrected biases, with as few layers in float as the goal allows.

    Ranges and biases come from ``calibration``, the cost of layers from the few pictures of ``trials``. Where the goal
    is out of reach with `MOST_FLOAT` of the multiplications in float, what was reached within them stands. Where
    ``float_layers`` are given, exactly they stay float.
    """
    network.quantise({})
    equalise(network, calibration)
    ranges = input_ranges(network, calibration)
    scales = scales_of(ranges)
    measured = Trials(Switch(network, scales, rounding_means(network, scales, calibration)), trials)
    alone = {name: measured.errors({name}) for name in measured.layers}
    if float_layers is None:
        float_layers = _choose_float(measured, alone, macs_shares(network, trials[0]), 10 ** (-goal_db / 10))
    return measured.drift([name for name in measured.layers if name not in float_layers], alone, ranges)


@torch.no_grad()
def equalise(network: QuantisedStudent, sources: Sequence[Source]) -> None:
    """Bring the channels of every link that the student names to one range; in float nothing changes.

    The factors of a link change no map but its own, so that all are found at once.
    """
    links = network.student.links if isinstance(network.student, Equalisable) else ()
    highest = _highest(network, {name for link in links for name in link.readers}, sources) if links else {}
    for link in links:
        most = torch.stack([highest[name] for name in link.readers]).amax(dim=0)
        factors = (most.max() / most.clamp_min(1e-12)).clamp_max(MOST_FACTOR)
        for layer in (network.layers[name] for name in link.writers):
            layer.weight.mul_(factors[:, None, None, None])
            if layer.bias is not None:
                layer.bias.mul_(factors)
        for layer in (network.layers[name] for name in link.readers):
            layer.weight.div_(factors[None, :, None, None])


def _highest(network: QuantisedStudent, names: Collection[str], sources: Sequence[Source]) -> dict[str, Tensor]:
    """Largest absolute value of every channel, ``[C]``, in the input of each of the named layers."""
    most: dict[str, Tensor] = {}

    def note(name: str, x: Tensor, _: Tensor) -> None:
        if name in names:
            here = x.abs().amax(dim=(0, 2, 3))
            most[name] = torch.maximum(most.get(name, here), here)

    with shown(network, note):
        for source in sources:
            network(*source)
    return most


@torch.no_grad()
def rounding_means(
    network: QuantisedStudent, scales: Mapping[str, float], sources: Sequence[Source]
) -> dict[str, Tensor]:
    """Mean error that rounding its input and weights adds to each output channel of every layer, ``[O]``."""
    sums: dict[str, Tensor] = {}
    counts = dict.fromkeys(scales, 0)

    def note(name: str, x: Tensor, y: Tensor) -> None:
        error = network.layers[name].rounded(x, x.new_tensor(scales[name])) - y
        sums[name] = sums.get(name, x.new_zeros(1)) + error.mean(dim=(0, 2, 3))
        counts[name] += 1

    with shown(network, note):
        for source in sources:
            network(*source)
    return {name: total / counts[name] for name, total in sums.items()}


def _choose_float(
    trials: Trials, alone: Mapping[str, Tensor], shares: Mapping[str, float], most_error: float
) -> set[str]:
    """The layers to leave in float.

    Errors of layers hardly depend on one another, so that their sum foretells the error of several: the choice starts
    from there, and is then measured.
    """
    kept: set[str] = set()
    foretold = torch.stack(list(alone.values())).sum(dim=0)
    while foretold.max() > most_error and (name := _dearest(alone, shares, kept, foretold)):
        kept.add(name)
        foretold = foretold - alone[name]
    for name in sorted(kept, key=lambda name: -shares[name]):  # an early choice may not be needed beside a later one
        if (foretold + alone[name]).max() <= most_error:
            kept.remove(name)
            foretold = foretold + alone[name]
    best, least = kept, float("inf")
    while True:
        errors = trials.errors([name for name in trials.layers if name not in kept], seen=True)
        if float(errors.max()) < WORTH * least:
            best, least = set(kept), float(errors.max())
        name = _dearest(alone, shares, kept, errors)
        if least <= most_error or name is None:
            return best
        kept = kept | {name}


def _dearest(
    alone: Mapping[str, Tensor], shares: Mapping[str, float], kept: Collection[str], errors: Tensor
) -> str | None:
    """The layer that costs the worst picture most error per multiplication, of those that may still stay float."""
    worst, used = int(errors.argmax()), sum(shares[name] for name in kept)
    free = [name for name in alone if name not in kept and used + shares[name] <= MOST_FLOAT]
    return max(free, key=lambda name: float(alone[name][worst]) / shares[name], default=None)
