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

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

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
    upper_loss: Loss,
    lower_loss: Loss,
    upper: Parameters,
    lower: Parameters,
    xi: float,
    *,
    difference_loss: Loss | None = None,
) -> Hypergradient:
    """Gradient of ``upper_loss`` behind one step of size ``xi`` down ``lower_loss``; ``xi`` = 0 is first order.

    ``lower_loss`` is called once, then ``upper_loss`` once, then ``difference_loss`` twice: L_m in an arithmetic that
    resolves a ten-thousandth of a weight, by default ``lower_loss`` itself. With ``xi`` = 0 only ``upper_loss`` is
    called.
    """
    upper, lower = _leaves(upper), _leaves(lower)
    if xi == 0:
        loss = upper_loss(upper, _constants(lower))
        return Hypergradient(loss.detach(), _gradients(loss, upper), {})
    descent = _gradients(lower_loss(_constants(upper), lower), lower)
    ahead = _leaves(_add(lower, descent, -xi))
    loss = upper_loss(upper, ahead)
    direct, response = _two_gradients(loss, upper, ahead)
    correction = _mixed_derivative(difference_loss or lower_loss, upper, lower, response)
    return Hypergradient(loss.detach(), direct, {name: -xi * value for name, value in correction.items()})


def _mixed_derivative(loss: Loss, upper: Parameters, lower: Parameters, direction: Parameters) -> Parameters:
    """(∂²L/∂upper∂lower)·direction by a central difference; empty for a direction of no length."""
    length = _norm(direction)
    if length < SHORTEST:
        return {}
    reach = PERTURBATION / length
    plus = _gradients(loss(upper, _constants(_add(lower, direction, reach))), upper)
    minus = _gradients(loss(upper, _constants(_add(lower, direction, -reach))), upper)
    return {name: value / (2 * reach) for name, value in _add(plus, minus, -1).items()}


def _leaves(parameters: Parameters) -> Parameters:
    """The same values as leaves of a new graph."""
    return {name: tensor.detach().requires_grad_() for name, tensor in parameters.items()}


def _constants(parameters: Parameters) -> Parameters:
    return {name: tensor.detach() for name, tensor in parameters.items()}


def _gradients(loss: Tensor, parameters: Parameters) -> Parameters:
    return _two_gradients(loss, parameters, {})[0]


def _two_gradients(loss: Tensor, first: Parameters, second: Parameters) -> tuple[Parameters, Parameters]:
    """Gradients for two networks out of one backward pass; what the loss does not reach is left out."""
    if not loss.requires_grad:
        return {}, {}
    gradients = torch.autograd.grad(loss, [*first.values(), *second.values()], allow_unused=True)
    named = list(zip([*first, *second], gradients, strict=True))
    split = len(first)
    reached = [{name: g for name, g in part if g is not None} for part in (named[:split], named[split:])]
    return reached[0], reached[1]


def _add(first: Parameters, second: Parameters, scale: float = 1) -> Parameters:
    """``first + scale * second`` over the names of either."""
    with torch.no_grad():
        scaled = {name: value if scale == 1 else scale * value for name, value in second.items()}
        return {**scaled, **{k: v + scaled[k] if k in scaled else v for k, v in first.items()}}


def _norm(tensors: Parameters) -> float:
    """Euclidean norm of all values together."""
    squares = [torch.linalg.vector_norm(t, dtype=torch.float64).square() for t in tensors.values()]
    return float(torch.stack(squares).sum().sqrt()) if squares else 0.0
