"""The one-step unrolled bi-level gradient (SAGE §7 B): the upper network's gradient, the lower one's answer included.

min over ω_s of L_s(ω_s, ω_m*) with ω_m* minimising L_m(ω_m, ω_s). First-order alternation takes ω_m* for a constant.
Here one gradient step stands for the minimisation, ω' = ω_m − ξ∇_{ω_m}L_m(ω_m, ω_s), and the chain rule through it is

    h = ∇_{ω_s}L_s(ω_s, ω') − ξ (∂²L_m/∂ω_s∂ω_m) v,   v = ∇_{ω'}L_s(ω_s, ω').

The second term is a central difference of two gradients, as in DARTS (Liu et al. 2019, eq. 8):
(∂²L_m/∂ω_s∂ω_m) v ≈ [∇_{ω_s}L_m(ω_m + εv, ω_s) − ∇_{ω_s}L_m(ω_m − εv, ω_s)] / 2ε with ε = 0.01/‖v‖. Its two passes
need no graph of the lower network.

Parameters are plain dictionaries and losses plain functions of them: nothing is changed in place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

Parameters = Mapping[str, Tensor]
Loss = Callable[[Parameters, Parameters], Tensor]
"""(parameters of the upper network, of the lower one) → scalar with a graph to those of them that require gradients."""

PERTURBATION = 0.01
"""‖εv‖: how far all parameters of the lower network together are moved, either way."""
SHORTEST = 1e-30
"""A shorter v counts as zero: float32 could not hold its ε."""


@dataclass(frozen=True)
class Hypergradient:
    """h = direct + correction, by names of the upper network's parameters; those that no loss reaches are absent."""

    loss: Tensor
    """L_s(ω_s, ω'), without a graph."""
    direct: Parameters
    """∇_{ω_s}L_s(ω_s, ω') with ω' held fixed."""
    correction: Parameters
    """−ξ (∂²L_m/∂ω_s∂ω_m) v; empty where ξ or v is zero, for then h is the direct term."""

    @property
    def total(self) -> Parameters:
        """h, the gradient to step with."""
        return _add(self.direct, self.correction)

    @property
    def correction_ratio(self) -> float:
        """‖correction‖ / ‖direct‖."""
        return _norm(self.correction) / max(_norm(self.direct), SHORTEST)


def hypergradient(
    upper_losses: Sequence[Loss],
    lower_losses: Sequence[Loss],
    upper: Parameters,
    lower: Parameters,
    xi: float,
    *,
    average: Callable[[Sequence[Tensor]], None] = lambda _: None,
) -> Hypergradient:
    """Gradient of L_s behind one step of size ``xi`` down L_m; ``xi`` = 0 is first order.

    L_s and L_m are the means of ``upper_losses`` and ``lower_losses``, each over one micro batch; memory is that of one
    of them. ``lower_losses`` are called once, then ``upper_losses`` once, then ``lower_losses`` twice; with ``xi`` = 0
    only ``upper_losses``. ``average`` replaces tensors by their means over all processes; h is not averaged yet.
    """
    upper = _leaves(upper)
    if xi == 0:
        value, direct, _ = _differentiate(upper_losses, upper, _constants(lower))
        return Hypergradient(value, direct, {})
    _, _, descent = _differentiate(lower_losses, _constants(upper), _leaves(lower))
    average(list(descent.values()))
    value, direct, response = _differentiate(upper_losses, upper, _leaves(_add(lower, descent, -xi)))
    average(list(response.values()))
    mixed = _mixed_derivative(lower_losses, upper, lower, response)
    return Hypergradient(value, direct, {name: -xi * product for name, product in mixed.items()})


def _mixed_derivative(
    losses: Sequence[Loss], upper: Parameters, lower: Parameters, direction: Parameters
) -> Parameters:
    """(∂²L/∂upper∂lower)·direction by a central difference; empty for a direction of no length."""
    length = _norm(direction)
    if length < SHORTEST:
        return {}
    reach = PERTURBATION / length
    _, plus, _ = _differentiate(losses, upper, _constants(_add(lower, direction, reach)))
    _, minus, _ = _differentiate(losses, upper, _constants(_add(lower, direction, -reach)))
    return {name: difference / (2 * reach) for name, difference in _add(plus, minus, -1).items()}


def _leaves(parameters: Parameters) -> Parameters:
    """The same values as leaves of a new graph."""
    return {name: tensor.detach().requires_grad_() for name, tensor in parameters.items()}


def _constants(parameters: Parameters) -> Parameters:
    return {name: tensor.detach() for name, tensor in parameters.items()}


def _differentiate(
    losses: Sequence[Loss], upper: Parameters, lower: Parameters
) -> tuple[Tensor, Parameters, Parameters]:
    """Mean loss and its gradients with respect to the leaves of either network; what it does not reach is left out."""
    values: list[Tensor] = []
    gradients: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
    for loss in losses:
        value = loss(upper, lower)
        values.append(value.detach())
        for total, part in zip(gradients, _gradients(value / len(losses), upper, lower), strict=True):
            total.update(_add(total, part))
    return torch.stack(values).mean(), *gradients


def _gradients(loss: Tensor, *groups: Parameters) -> Sequence[Parameters]:
    """One group of gradients per group of parameters, from one backward pass."""
    leaves = [(group, name) for group, tensors in enumerate(groups) for name, t in tensors.items() if t.requires_grad]
    found: list[dict[str, Tensor]] = [{} for _ in groups]
    if leaves and loss.requires_grad:
        tensors = [groups[group][name] for group, name in leaves]
        for (group, name), gradient in zip(leaves, torch.autograd.grad(loss, tensors, allow_unused=True), strict=True):
            if gradient is not None:
                found[group][name] = gradient
    return found


def _add(first: Parameters, second: Parameters, scale: float = 1) -> Parameters:
    """``first + scale * second`` over the names of either."""
    with torch.no_grad():
        scaled = {name: value if scale == 1 else scale * value for name, value in second.items()}
        return {**scaled, **{k: v + scaled[k] if k in scaled else v for k, v in first.items()}}


def _norm(tensors: Parameters) -> float:
    """Euclidean norm of all values together."""
    squares = [torch.linalg.vector_norm(t, dtype=torch.float64).square() for t in tensors.values()]
    return float(torch.stack(squares).sum().sqrt()) if squares else 0.0


class Functional:
    """A network under other parameters than its own and on copies of ``buffers``: it stays as it is.

    Without ``buffers`` it works on its own, so that BatchNorm learns.
    """

    def __init__(self, network: nn.Module, parameters: Parameters, buffers: Parameters | None = None) -> None:
        self._network, self._parameters, self._buffers = network, dict(parameters), buffers or {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)

    def __call__(self, *inputs: Tensor) -> Any:
        """Output of the network for ``inputs``."""
        copies = {name: buffer.clone() for name, buffer in self._buffers.items()}
        return functional_call(self._network, self._parameters | copies, inputs)


class Randomness:
    """What torch's generators on the CPU and on ``device`` were about to draw when this was made."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._states = device, _random_states(device)

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Draw it again; afterwards the generators stand where they stood."""
        before = _random_states(self._device)
        _set_random_states(self._device, self._states)
        try:
            yield
        finally:
            _set_random_states(self._device, before)


def _random_states(device: torch.device) -> list[Tensor]:
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _set_random_states(device: torch.device, states: Sequence[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
