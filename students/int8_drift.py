"""What INT8 costs, layer by layer: each convolution alone, and all that were chosen together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from duskfuse.students.fake_quantise import HIGHEST, SMALLEST_SCALE, QuantisedStudent

EXACT_DB = 99.0
"""Said of equal pictures."""

Source = tuple[Tensor, Tensor]
"""Visible picture and infrared as the student takes them, ``[B, C, H, W]`` and ``[B, 1, H, W]`` in [0, 1]."""
Range = tuple[float, float]


@dataclass(frozen=True)
class LayerDrift:
    """What INT8 does to one convolution, and that convolution alone to the picture."""

    layer: str
    """Its name in the deployed form."""
    kind: str
    """Kernel, stride and channels."""
    macs_share: float
    """Its part of the multiplications of all convolutions."""
    largest_weight: float
    input_low: float
    input_high: float
    """Range of its input over the calibration pictures."""
    alone_db: float
    """PSNR of the pictures when only this convolution is in INT8: mean over the trial pictures."""
    alone_worst_db: float
    """The least of them."""
    snr_db: float
    """Signal to error of its output when all chosen layers are in INT8."""
    int8: bool
    """Whether it is one of them."""


@dataclass(frozen=True)
class Drift:
    """Every convolution of a student, and the pictures of the chosen ones together."""

    layers: tuple[LayerDrift, ...]
    pictures: int
    """Trial pictures that this was measured on."""
    mean_db: float
    worst_db: float
    """PSNR of pictures rounded to 8 bit, INT8 beside float."""

    @property
    def float_layers(self) -> tuple[str, ...]:
        """Names of the convolutions that stay float."""
        return tuple(entry.layer for entry in self.layers if not entry.int8)

    @property
    def int8_macs_share(self) -> float:
        """Part of the multiplications that is in INT8."""
        return sum(entry.macs_share for entry in self.layers if entry.int8)


class Switch:
    """Puts convolutions of a student into INT8 and back into float, each with the bias that belongs to that state."""

    def __init__(
        self, network: QuantisedStudent, scales: Mapping[str, float], corrections: Mapping[str, Tensor]
    ) -> None:
        self.network, self.scales = network, dict(scales)
        self._biases = {
            name: (bias.detach().clone(), bias.detach() - corrections[name])
            for name, layer in network.layers.items()
            if (bias := layer.bias) is not None and name in corrections
        }

    @torch.no_grad()
    def use(self, names: Collection[str]) -> None:
        """Put exactly the named convolutions into INT8."""
        self.network.quantise({name: self.scales[name] for name in names})
        for name, layer in self.network.layers.items():
            if name in self._biases and layer.bias is not None:
                layer.bias.copy_(self._biases[name][name in names])


class Trials:
    """Trial pictures and what the float student makes of them."""

    def __init__(self, switch: Switch, sources: Sequence[Source]) -> None:
        self.switch, self.sources = switch, sources
        network = switch.network
        self._wanted = [network.in_float(*source).y for source in sources]
        self.layers = list(network.layers)

    def errors(self, names: Collection[str], *, seen: bool = False) -> Tensor:
        """Mean squared error of each picture, ``[pictures]``, with the named layers in INT8; ``seen``: in 8 bit."""
        self.switch.use(names)
        with torch.no_grad():
            made = [self.switch.network(*source).y for source in self.sources]
        pairs = zip(made, self._wanted, strict=True)
        return torch.stack([(_seen(a) - _seen(b) if seen else a - b).double().square().mean() for a, b in pairs])

    def drift(self, chosen: Collection[str], alone: Mapping[str, Tensor], ranges: Mapping[str, Range]) -> Drift:
        """The report; ``alone`` are the errors of each layer alone. The chosen layers are left in INT8."""
        shares, snr = macs_shares(self.switch.network, self.sources[0]), self._snr(chosen)
        entries = []
        for name, layer in self.switch.network.layers.items():
            kernel = "×".join(map(str, layer.kernel_size))
            stride = f", stride {layer.stride[0]}" if layer.stride[0] > 1 else ""
            grouped = f", {layer.groups} groups" if layer.groups > 1 else ""
            entries.append(
                LayerDrift(
                    layer=name,
                    kind=f"{kernel}{stride}, {layer.in_channels}→{layer.out_channels}{grouped}",
                    macs_share=shares[name],
                    largest_weight=float(layer.weight.abs().max()),
                    input_low=ranges[name][0],
                    input_high=ranges[name][1],
                    alone_db=float(decibels(alone[name]).mean()),
                    alone_worst_db=float(decibels(alone[name]).min()),
                    snr_db=snr[name],
                    int8=name in chosen,
                )
            )
        together = decibels(self.errors(chosen, seen=True))
        return Drift(tuple(entries), len(self.sources), float(together.mean()), float(together.min()))

    def _snr(self, chosen: Collection[str]) -> dict[str, float]:
        """Signal to error of every layer's output on the first picture."""
        network, source = self.switch.network, self.sources[0]
        kept: dict[str, list[Tensor]] = {name: [] for name in self.layers}
        outputs = []
        for names in ((), chosen):
            self.switch.use(names)
            kept = {name: [] for name in self.layers}
            with shown(network, lambda name, _, y, kept=kept: kept[name].append(y)):  # type: ignore[misc]
                network(*source)
            outputs.append(kept)
        return {name: _snr_db(outputs[0][name], outputs[1][name]) for name in self.layers}


@torch.no_grad()
def measure_int8(network: QuantisedStudent, trials: Sequence[Source]) -> Drift:
    """What the convolutions that ``network`` has in INT8 cost, and what the others would; nothing is changed."""
    chosen = network.scales
    ranges = input_ranges(network, trials)
    measured = Trials(Switch(network, scales_of(ranges) | chosen, {}), trials)
    return measured.drift(chosen.keys(), {name: measured.errors({name}) for name in measured.layers}, ranges)


@torch.no_grad()
def input_ranges(network: QuantisedStudent, sources: Sequence[Source]) -> dict[str, Range]:
    """Lowest and highest input of every convolution over ``sources``, all in the state that ``network`` is in."""
    ranges: dict[str, Range] = {}

    def note(name: str, x: Tensor, _: Tensor) -> None:
        low, high = ranges.get(name, (float("inf"), float("-inf")))
        ranges[name] = min(low, float(x.min())), max(high, float(x.max()))

    with shown(network, note):
        for source in sources:
            network(*source)
    return ranges


def scales_of(ranges: Mapping[str, Range]) -> dict[str, float]:
    """Scale of each input: 127 steps reach the end that is farther from 0."""
    return {name: max(-low, high, HIGHEST * SMALLEST_SCALE) / HIGHEST for name, (low, high) in ranges.items()}


@torch.no_grad()
def macs_shares(network: QuantisedStudent, source: Source) -> dict[str, float]:
    """Part of every convolution in the multiplications of all of them."""
    macs: Counter[str] = Counter()
    weights = {name: layer.weight[0].numel() for name, layer in network.layers.items()}
    with shown(network, lambda name, _, y: macs.update({name: y.numel() * weights[name]})):
        network(*source)
    return {name: macs[name] / macs.total() for name in weights}


@contextmanager
def shown(network: QuantisedStudent, to: Callable[[str, Tensor, Tensor], None]) -> Iterator[None]:
    """Show ``to`` the name, input and output of every convolution as it is computed."""

    def hook(name: str, _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        to(name, inputs[0], output)

    handles = [layer.register_forward_hook(partial(hook, name)) for name, layer in network.layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def decibels(errors: Tensor) -> Tensor:
    """PSNR of mean squared errors of pictures in [0, 1], at most `EXACT_DB`."""
    return (-10 * errors.log10()).clamp_max(EXACT_DB)


def _seen(picture: Tensor) -> Tensor:
    return (picture.clamp(0, 1) * 255).round() / 255


def _snr_db(wanted: Sequence[Tensor], made: Sequence[Tensor]) -> float:
    signal = sum(float(a.double().square().sum()) for a in wanted)
    error = sum(float((a - b).double().square().sum()) for a, b in zip(wanted, made, strict=True))
    ratio = torch.tensor(signal / error if error and signal else 1e99, dtype=torch.float64)
    return min(float(10 * ratio.log10()), EXACT_DB)
