"""One direction out of the gradients of several tasks: conflict-averse gradient descent (CAGrad, Liu et al. 2021).

With g₀ the mean of the gradients gᵢ, the direction d maximises the least progress of any task, minᵢ ⟨gᵢ, d⟩, within the
ball ‖d − g₀‖ ≤ c ‖g₀‖. Its dual is small and convex: w minimises g_wᵀ g₀ + c ‖g₀‖ ‖g_w‖ over the simplex, with
g_w = Σ wᵢ gᵢ, and d = g₀ + c ‖g₀‖ g_w / ‖g_w‖. Only the Gram matrix is needed to find w.

What CLDyN's code calls CAGrad is another rule, without the ball: minimise αᵀGα − 2c αᵀr over the simplex, where G is
the unscaled Gram matrix and r its row minima, by steps of 0.1, and take Σ αᵢ gᵢ. It is here for comparison; the number
of its steps, 20, is a choice of ours.
"""

from __future__ import annotations

import math
from enum import StrEnum

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_STEPS = 2000
_SMALLEST = 1e-12
_PUBLISHED_STEPS, _PUBLISHED_RATE = 20, 0.1

Vector = NDArray[np.float64]


class Combination(StrEnum):
    """How the gradients of the tasks become one."""

    CAGRAD = "cagrad"
    """The direction that is best for the task it helps least."""
    MEAN = "mean"
    """Their mean."""
    PUBLISHED = "published"
    """What CLDyN's code computes."""


def combined(gradients: Tensor, rule: Combination = Combination.CAGRAD, radius: float = 0.5) -> Tensor:
    """One direction ``[P]`` out of the gradients ``[T, P]`` of T tasks; gradients that are 0 take no part.

    Args:
        gradients: one row per task.
        rule: how.
        radius: c, of the ball around the mean.
    """
    present = gradients[gradients.abs().amax(dim=1) > 0]
    if not len(present):
        return torch.zeros_like(gradients[0])
    if rule is Combination.MEAN:
        return present.mean(dim=0)
    gram = (present.double() @ present.double().T).cpu().numpy()
    weights = _published_weights(gram, radius) if rule is Combination.PUBLISHED else _cagrad_weights(gram, radius)
    return torch.from_numpy(weights).to(gradients) @ present


def _cagrad_weights(gram: Vector, radius: float) -> Vector:
    """The weights of the gradients in d."""
    count = len(gram)
    gram = gram / np.trace(gram) * count
    length = _length(np.full(count, 1 / count), gram)
    w = _dual_minimum(gram, radius * length)
    w_length = _length(w, gram)
    push = radius * length / w_length if w_length > _SMALLEST else 0.0
    weights: Vector = 1 / count + push * w
    return weights


def _dual_minimum(gram: Vector, weight: float) -> Vector:
    """The w on the simplex that minimises wᵀb + weight · sqrt(wᵀ G w), with b = G·1/T.

    Projected gradient descent; the step doubles where it was taken and halves where it would not lower the value.
    """
    count = len(gram)
    means = gram.mean(axis=1)

    def value(w: Vector) -> float:
        return float(w @ means) + weight * math.sqrt(_length(w, gram) ** 2 + _SMALLEST)

    w, step = np.full(count, 1 / count), 1.0
    now = value(w)
    for _ in range(_STEPS):
        slope = means + weight * (gram @ w) / math.sqrt(_length(w, gram) ** 2 + _SMALLEST)
        while True:
            further = on_simplex(w - step * slope)
            moved = further - w
            reached = value(further)
            if reached <= now + slope @ moved / 2 or step < _SMALLEST:
                break
            step /= 2
        if np.abs(moved).max() < _SMALLEST or step < _SMALLEST:
            break
        w, now, step = further, reached, step * 2
    return w


def _length(w: Vector, gram: Vector) -> float:
    """Of the combination of gradients with the weights ``w``."""
    return math.sqrt(max(float(w @ gram @ w), 0.0))


def on_simplex(point: Vector) -> Vector:
    """The nearest point whose coordinates are at least 0 and sum up to 1 (Duchi et al. 2008)."""
    falling = np.sort(point)[::-1]
    excess = (np.cumsum(falling) - 1) / np.arange(1, len(point) + 1)
    last = np.nonzero(falling > excess)[0][-1]
    nearest: Vector = np.maximum(point - excess[last], 0)
    return nearest


def _published_weights(gram: Vector, weight: float) -> Vector:
    least = gram.min(axis=1)
    alpha = np.full(len(gram), 1 / len(gram))
    for _ in range(_PUBLISHED_STEPS):
        alpha = on_simplex(alpha - _PUBLISHED_RATE * (2 * gram @ alpha - 2 * weight * least))
    return alpha
