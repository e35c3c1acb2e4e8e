"""CAGrad against a convex solver, and what it promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from duskfuse.distill.closed_loop.cagrad import Combination, combined, on_simplex


def gradients(seed: int, tasks: int = 3, spread: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(tasks, 12, generator=generator, dtype=torch.float64)
    return rows * (1 + spread * torch.arange(tasks, dtype=torch.float64))[:, None]


def solved(rows: Tensor, radius: float) -> NDArray[np.float64]:
    """The primal problem: the d in the ball whose least progress is largest, by sequential quadratic programming."""
    g = rows.numpy()
    mean = g.mean(axis=0)
    size = np.linalg.norm(mean)
    start = np.append(mean, (g @ mean).min())
    result = minimize(
        lambda x: -x[-1],
        start,
        constraints=[
            {"type": "ineq", "fun": lambda x: g @ x[:-1] - x[-1]},
            {"type": "ineq", "fun": lambda x: (radius * size) ** 2 - ((x[:-1] - mean) ** 2).sum()},
        ],
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 2000},
    )
    direction: NDArray[np.float64] = result.x[:-1]
    return direction


@pytest.mark.parametrize("seed", range(6))
def test_it_solves_the_convex_problem(seed: int) -> None:
    rows, radius = gradients(seed, tasks=2 + seed % 3), 0.5
    ours, reference = combined(rows, radius=radius), torch.from_numpy(solved(rows, radius))
    assert float((rows @ ours).min()) == pytest.approx(float((rows @ reference).min()), rel=1e-5, abs=1e-6)
    torch.testing.assert_close(ours, reference, atol=1e-3 * float(reference.norm()), rtol=0)


@pytest.mark.parametrize("seed", range(5))
def test_it_stays_in_the_ball_and_helps_the_worst_task_more_than_the_mean(seed: int) -> None:
    rows, radius = gradients(10 + seed, spread=3), 0.4
    mean, direction = rows.mean(dim=0), combined(rows, radius=radius)
    assert float((direction - mean).norm()) <= radius * float(mean.norm()) * (1 + 1e-9)
    assert float((rows @ direction).min()) >= float((rows @ mean).min()) - 1e-9


def test_equal_gradients_are_lengthened_and_one_task_stands_alone() -> None:
    row = gradients(1, tasks=1)
    torch.testing.assert_close(combined(row.repeat(3, 1), radius=0.5), 1.5 * row[0])
    torch.testing.assert_close(combined(row, radius=0.3), 1.3 * row[0])
    torch.testing.assert_close(combined(gradients(2), radius=0), gradients(2).mean(dim=0))


def test_the_order_and_the_unit_of_the_tasks_do_not_matter() -> None:
    rows = gradients(3)
    torch.testing.assert_close(combined(rows[[2, 0, 1]]), combined(rows), atol=1e-8, rtol=0)
    torch.testing.assert_close(combined(1e-6 * rows), 1e-6 * combined(rows), atol=1e-13, rtol=0)


def test_tasks_without_gradient_take_no_part() -> None:
    rows = gradients(4)
    with_nothing = torch.cat([rows[:2], torch.zeros(1, 12, dtype=torch.float64)])
    for rule in Combination:
        assert torch.equal(combined(with_nothing, rule), combined(rows[:2], rule))
        assert torch.equal(combined(torch.zeros(2, 12), rule), torch.zeros(12))


def test_opposite_gradients_give_a_finite_direction() -> None:
    rows = torch.stack([torch.ones(4), -torch.ones(4)])
    assert torch.equal(combined(rows), torch.zeros(4))
    assert bool(torch.isfinite(combined(torch.stack([torch.ones(4), -0.5 * torch.ones(4)]))).all())


def test_the_published_rule_is_another_one_and_helps_the_worst_task_less_in_a_conflict() -> None:
    """A long and a short gradient at an obtuse angle."""
    rows = torch.tensor([[10.0, 0.0], [-1.0, 3.0]], dtype=torch.float64)
    worst = {rule: float((rows @ combined(rows, rule)).min()) for rule in Combination}
    assert worst[Combination.CAGRAD] > worst[Combination.MEAN]
    assert worst[Combination.CAGRAD] > worst[Combination.PUBLISHED]


@pytest.mark.parametrize("seed", range(4))
def test_the_nearest_point_of_the_simplex(seed: int) -> None:
    point = np.random.default_rng(seed).normal(size=4)
    simplex = {"type": "eq", "fun": lambda w: w.sum() - 1}
    found = minimize(
        lambda w: ((w - point) ** 2).sum(), np.full(4, 0.25), bounds=[(0, None)] * 4, constraints=simplex, tol=1e-14
    )
    np.testing.assert_allclose(on_simplex(point), found.x, atol=1e-5)
