"""The unrolled gradient against exact differentiation through the look-ahead, in float64 on small networks."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from duskfuse.distill import unrolled
from duskfuse.distill.unrolled import Loss, Parameters, hypergradient

XI = 0.5


class Tiny(nn.Module):
    """Two convolutions with batch normalisation between them: smooth, so that differences meet derivatives."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(inputs, 5, 3, padding=1), nn.BatchNorm2d(5), nn.Conv2d(5, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.last(torch.tanh(self.norm(self.first(x)))))


class Problem:
    """Two tiny networks, their losses in each other and two batches, as SAGE couples them."""

    def __init__(self) -> None:
        torch.manual_seed(3)
        self.student, self.teacher = Tiny(2).double(), Tiny(3).double()
        self.batches = [torch.rand(2, 3, 8, 8, dtype=torch.float64) for _ in range(2)]
        self.upper, self.lower = (dict(net.named_parameters()) for net in (self.student, self.teacher))

    def outputs(self, batch: Tensor, upper: Parameters, lower: Parameters) -> tuple[Tensor, Tensor]:
        student, teacher = (
            functional_call(net, (dict(values), {k: b.clone() for k, b in net.named_buffers()}), (inputs,))
            for net, values, inputs in ((self.student, upper, batch[:, :2]), (self.teacher, lower, batch))
        )
        return student, teacher

    def upper_loss(self, upper: Parameters, lower: Parameters) -> Tensor:
        student, teacher = self.outputs(self.batches[0], upper, lower)
        return 3 * F.mse_loss(student, self.batches[0][:, :1]) + 4 * F.mse_loss(student, teacher)

    def lower_loss(self, upper: Parameters, lower: Parameters) -> Tensor:
        student, teacher = self.outputs(self.batches[1], upper, lower)
        sources = F.mse_loss(teacher, self.batches[1][:, :1]) + F.mse_loss(teacher, self.batches[1][:, 1:2])
        return sources + 2 * F.mse_loss(teacher, student)

    def exact(self, xi: float) -> tuple[Parameters, Parameters]:
        """h and its direct term by differentiating through ω' itself."""
        gradients = torch.autograd.grad(
            self.lower_loss(self.upper, self.lower), list(self.lower.values()), create_graph=True
        )
        ahead = {k: w - xi * g for (k, w), g in zip(self.lower.items(), gradients, strict=True)}
        total = torch.autograd.grad(self.upper_loss(self.upper, ahead), list(self.upper.values()))
        fixed = {k: w.detach() for k, w in ahead.items()}
        direct = torch.autograd.grad(self.upper_loss(self.upper, fixed), list(self.upper.values()))
        return dict(zip(self.upper, total, strict=True)), dict(zip(self.upper, direct, strict=True))

    def state(self) -> list[Tensor]:
        networks = (self.student, self.teacher)
        return [t.clone() for net in networks for t in net.state_dict().values()] + [torch.get_rng_state()]


def flat(parameters: Parameters) -> Tensor:
    return torch.cat([parameters[name].flatten() for name in sorted(parameters)])


def relative(value: Tensor, exact: Tensor) -> float:
    return float((value - exact).norm() / exact.norm())


@pytest.fixture
def problem() -> Problem:
    return Problem()


def test_it_equals_exact_differentiation(problem: Problem) -> None:
    """SAGE §10.10: within 1e-5 (measured 3e-6), where first order is 4 % off."""
    h = hypergradient([problem.upper_loss], [problem.lower_loss], problem.upper, problem.lower, XI)
    total, direct = problem.exact(XI)
    assert relative(flat(h.total), flat(total)) < 1e-5
    assert relative(flat(h.direct), flat(direct)) < 1e-12
    assert relative(flat(direct), flat(total)) > 1e-3


@pytest.mark.parametrize(("perturbation", "tolerance"), [(0.01, 2e-4), (0.001, 2e-6)])
def test_the_correction_alone_equals_its_exact_value(
    problem: Problem, monkeypatch: pytest.MonkeyPatch, perturbation: float, tolerance: float
) -> None:
    """A central difference is off by the square of its step (measured 8.6e-5 and 8.6e-7): nothing else is off."""
    assert perturbation <= unrolled.PERTURBATION
    monkeypatch.setattr(unrolled, "PERTURBATION", perturbation)
    h = hypergradient([problem.upper_loss], [problem.lower_loss], problem.upper, problem.lower, XI)
    total, direct = problem.exact(XI)
    exact = flat(total) - flat(direct)
    assert relative(flat(h.correction), exact) < tolerance
    assert h.correction_ratio == pytest.approx(float(exact.norm() / flat(direct).norm()), rel=tolerance)


def test_the_loss_is_the_one_behind_the_look_ahead(problem: Problem) -> None:
    h = hypergradient([problem.upper_loss], [problem.lower_loss], problem.upper, problem.lower, XI)
    gradients = torch.autograd.grad(problem.lower_loss(problem.upper, problem.lower), list(problem.lower.values()))
    ahead = {k: w - XI * g for (k, w), g in zip(problem.lower.items(), gradients, strict=True)}
    assert float(h.loss) == float(problem.upper_loss(problem.upper, ahead).detach())
    assert not h.loss.requires_grad


def test_zero_xi_is_the_first_order_gradient_and_never_asks_for_the_lower_loss(problem: Problem) -> None:
    def never(upper: Parameters, lower: Parameters) -> Tensor:
        raise AssertionError("the lower loss was computed")

    h = hypergradient([problem.upper_loss], [never], problem.upper, problem.lower, 0.0)
    first_order = torch.autograd.grad(problem.upper_loss(problem.upper, problem.lower), list(problem.upper.values()))
    assert all(torch.equal(h.total[name], g) for name, g in zip(problem.upper, first_order, strict=True))
    assert h.correction_ratio == 0


def test_nothing_is_changed(problem: Problem) -> None:
    before = problem.state()
    hypergradient([problem.upper_loss], [problem.lower_loss], problem.upper, problem.lower, XI)
    assert all(torch.equal(a, b) for a, b in zip(before, problem.state(), strict=True))
    assert all(p.grad is None and p.requires_grad for p in (*problem.upper.values(), *problem.lower.values()))


@pytest.mark.parametrize("scale", [0.0, 1e-320])
def test_an_upper_loss_that_the_lower_network_cannot_move_has_no_correction(problem: Problem, scale: float) -> None:
    """‖v‖ = 0, and so small that ε would overflow."""

    def alone(upper: Parameters, lower: Parameters) -> Tensor:
        student, teacher = problem.outputs(problem.batches[0], upper, lower)
        return student.square().mean() + scale * teacher.mean()

    h = hypergradient([alone], [problem.lower_loss], problem.upper, problem.lower, XI)
    assert h.correction == {}
    assert all(torch.isfinite(g).all() for g in h.total.values())
    assert h.correction_ratio == 0


def test_a_lower_loss_that_ignores_the_upper_network_has_no_correction(problem: Problem) -> None:
    def alone(upper: Parameters, lower: Parameters) -> Tensor:
        return problem.outputs(problem.batches[1], upper, lower)[1].square().mean()

    h = hypergradient([problem.upper_loss], [alone], problem.upper, problem.lower, XI)
    assert h.correction == {}
    assert flat(h.total).norm() > 0


def test_parameters_that_a_loss_does_not_reach_are_left_out_or_come_from_the_other(problem: Problem) -> None:
    def partly(names: set[str], loss: Loss) -> Loss:
        return lambda upper, lower: loss({k: w if k in names else w.detach() for k, w in upper.items()}, lower)

    upper_loss = partly({"first.weight", "last.weight"}, problem.upper_loss)
    lower_loss = partly({"first.weight", "last.bias"}, problem.lower_loss)
    h = hypergradient([upper_loss], [lower_loss], problem.upper, problem.lower, XI)
    assert set(h.direct) == {"first.weight", "last.weight"}
    assert set(h.correction) == {"first.weight", "last.bias"}
    assert torch.equal(h.total["first.weight"], h.direct["first.weight"] + h.correction["first.weight"])
    assert torch.equal(h.total["last.bias"], h.correction["last.bias"])
    assert set(h.total) == {"first.weight", "last.weight", "last.bias"}


def test_not_a_number_is_not_hidden(problem: Problem) -> None:
    def broken(upper: Parameters, lower: Parameters) -> Tensor:
        return problem.lower_loss(upper, lower) * float("nan")

    h = hypergradient([problem.upper_loss], [broken], problem.upper, problem.lower, XI)
    assert not torch.isfinite(flat(h.total)).all()


def halves(loss: Loss) -> list[Loss]:
    """Two different losses whose mean is ``loss``."""

    def anchor(upper: Parameters, lower: Parameters) -> Tensor:
        return flat(upper).square().sum() * flat(lower).sum()

    def part(weight: float) -> Loss:
        return lambda upper, lower: weight * loss(upper, lower) + (weight - 1) * anchor(upper, lower)

    return [part(0.5), part(1.5)]


def test_micro_batches_give_the_gradient_of_the_joined_batch(problem: Problem) -> None:
    """Look-ahead, response and differences are means over all parts, so parts are no approximation."""

    parameters = (problem.upper, problem.lower, XI)
    whole = hypergradient([problem.upper_loss], [problem.lower_loss], *parameters)
    parts = hypergradient(halves(problem.upper_loss), halves(problem.lower_loss), *parameters)
    assert relative(flat(parts.total), flat(whole.total)) < 1e-9
    assert float(parts.loss) == pytest.approx(float(whole.loss))


def test_processes_meet_at_one_look_ahead(problem: Problem) -> None:
    """Each of two threads stands for a process with one half of both losses; together they have the joined gradient.

    As processes have, each has networks of its own: functional_call exchanges parameters inside a module for its time.
    """
    meeting, posted = Barrier(2, timeout=20), [[], []]  # type: ignore[var-annotated]

    def process(rank: int, upper_loss: Loss, lower_loss: Loss) -> Tensor:
        def average(tensors: Sequence[Tensor]) -> None:
            posted[rank] = [tensor.clone() for tensor in tensors]
            meeting.wait()
            for tensor, *both in zip(tensors, *posted, strict=True):
                tensor.copy_((both[0] + both[1]) / 2)
            meeting.wait()

        h = hypergradient([upper_loss], [lower_loss], problem.upper, problem.lower, XI, average=average)
        return flat(h.total)

    twins = problem, Problem()
    uppers, lowers = (
        [halves(getattr(twin, loss))[rank] for rank, twin in enumerate(twins)] for loss in ("upper_loss", "lower_loss")
    )
    with ThreadPoolExecutor(2) as pool:
        parts = list(pool.map(process, range(2), uppers, lowers))
    whole = flat(hypergradient([problem.upper_loss], [problem.lower_loss], problem.upper, problem.lower, XI).total)
    alone = flat(hypergradient(uppers[:1], lowers[:1], problem.upper, problem.lower, XI).total)
    assert relative((parts[0] + parts[1]) / 2, whole) < 1e-9
    assert relative(parts[0], alone) > 1e-3
