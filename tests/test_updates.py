"""One update, whatever it is made of: optimisers, running averages, micro batches, gradient norms, want of memory."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from duskfuse.data.errors import InputError, TrainingError
from duskfuse.data.fuser import FusionOutput
from duskfuse.distill.context import Batch, BatchContext
from duskfuse.distill.engine import Engine
from duskfuse.distill.optimisers import build_average, build_optimiser
from duskfuse.distill.recipe import OptimiserConfig, OptimiserKind, Owner, Recipe
from duskfuse.distill.recipe_files import load_recipe
from duskfuse.distill.schedule import learning_rate
from duskfuse.distill.terms import TermName
from duskfuse.students.unet import UNetStudent
from duskfuse.teachers.main_network import MainNetwork

CPU = torch.device("cpu")
TEACHER_STEP = "steps={fuse: {owner: teacher, terms: {source_mse: 1, gradient_max: 2, intensity_max: 1}}}"
STUDENT_STEP = "steps={fuse: {owner: student, terms: {source_mse: 1, gradient_max: 2, intensity_max: 1}}}"
PHASES = "phases=[{name: only, batches: 40, cycle: [fuse]}]"


def make_recipe(*changes: str, owner: Owner = Owner.STUDENT) -> Recipe:
    step = STUDENT_STEP if owner is Owner.STUDENT else TEACHER_STEP
    return load_recipe("paper_sage", [step, PHASES, *changes])


def make_engine(recipe: Recipe, owner: Owner = Owner.STUDENT) -> Engine:
    torch.manual_seed(0)
    network: nn.Module = UNetStudent() if owner is Owner.STUDENT else MainNetwork()
    return Engine(recipe, {owner: network}, None, CPU)


def make_batch(seed: int = 0, samples: int = 2, size: int = 16) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    ir, vis = (torch.rand(samples, channels, size, size, generator=generator) for channels in (1, 3))
    masks = torch.rand(samples, 4, size, size, generator=generator) > 0.5
    return Batch(ir=ir, vis=vis, masks_ir=masks, masks_vis=masks.flip(0), names=tuple("abcdefgh"[:samples]))


def gradients(engine: Engine, owner: Owner) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in engine.networks[owner].named_parameters() if p.grad is not None}


@given(
    lr=st.floats(1e-5, 1),
    share=st.floats(1e-4, 1),
    warmup=st.integers(0, 80),
    total=st.integers(2, 300),
)
def test_rates_rise_fall_and_end_exactly_where_the_recipe_says(lr: float, share: float, warmup: int, total: int):
    config = OptimiserConfig(lr=lr, final_lr=lr * share, warmup=warmup)
    rates = [learning_rate(config, step, total) for step in range(total)]
    assert rates[-1] == config.final_lr
    assert max(rates) <= lr * (1 + 1e-12)
    rising, falling = rates[: min(warmup, total - 1)], rates[warmup:]
    assert all(a < b for a, b in itertools.pairwise(rising))
    assert all(a >= b for a, b in itertools.pairwise(falling))
    if warmup < total - 1:
        assert max(rates) == pytest.approx(lr)


def test_a_final_rate_above_the_first_is_refused() -> None:
    with pytest.raises(InputError, match="final_lr"):
        make_recipe("optimisers.student={lr: 1.0e-6}")


def test_decay_leaves_biases_and_norms_alone() -> None:
    """One update with zero gradients: AdamW shrinks exactly the convolutions' kernels."""
    network = UNetStudent()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(1.0)
    optimiser = build_optimiser(OptimiserConfig(kind=OptimiserKind.ADAMW, lr=0.1, weight_decay=0.5), network)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    norms = {id(p) for m in network.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()}
    assert norms
    for name, parameter in network.named_parameters():
        decayed = not (id(parameter) in norms or name.endswith("bias"))
        assert torch.allclose(parameter, torch.tensor(0.95 if decayed else 1.0)), name


def test_an_average_follows_its_equation_and_counters_are_copied() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    averaged = build_average(network, 0.9)
    expected: dict[str, Tensor] = {}
    for step in range(4):
        network(torch.rand(2, 1, 5, 5))
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(step)
        averaged.update_parameters(network)
        for name, value in network.state_dict().items():
            keep = 0.9 if step and value.is_floating_point() else 0.0
            expected[name] = keep * expected.get(name, 0) + (1 - keep) * value
    for name, value in averaged.module.state_dict().items():
        assert torch.allclose(value, expected[name].to(value.dtype), atol=1e-6), name


def test_the_average_is_shown_and_goes_on_exactly_after_a_checkpoint(tmp_path: Path) -> None:
    recipe = make_recipe("optimisers.student.ema=0.5")
    straight, first, second = (make_engine(recipe) for _ in range(3))
    for number in range(4):
        straight.step(number, make_batch(number))
    for number in range(2):
        first.step(number, make_batch(number))
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for number in range(2, 4):
        second.step(number, make_batch(number))
    expected, got = (engine.shown(Owner.STUDENT).state_dict() for engine in (straight, second))
    assert all(torch.equal(got[name], value) for name, value in expected.items())
    live = second.networks[Owner.STUDENT].state_dict()
    assert any(not torch.equal(live[name], value) for name, value in got.items())
    batch = make_batch(9)
    with torch.no_grad():
        picture = second.preview(batch).field(recipe.steps["fuse"].live).y
        assert torch.equal(picture, second.shown(Owner.STUDENT).eval()(batch.vis_y, batch.ir).y)


@pytest.mark.parametrize("kind", ["adam", "adamw"])
def test_micro_batches_give_the_update_of_the_joined_batch(kind: str) -> None:
    """The main network has no batch statistics. Adam divides by |g|, so updates are compared where g is not noise."""
    changes = (f"optimisers.teacher.kind={kind}", "optimisers.teacher.weight_decay=0.01")
    joined = make_engine(make_recipe(*changes, owner=Owner.TEACHER), Owner.TEACHER)
    parted = make_engine(make_recipe(*changes, "data.accumulate=4", owner=Owner.TEACHER), Owner.TEACHER)
    batch = make_batch(samples=4)
    one, other = joined.step(0, batch), parted.step(0, batch)
    assert other.loss == pytest.approx(one.loss, abs=1e-6)
    assert other.terms == pytest.approx(one.terms, abs=1e-6)
    assert other.gradient_norm == pytest.approx(one.gradient_norm, rel=1e-5)
    expected, got = gradients(joined, Owner.TEACHER), gradients(parted, Owner.TEACHER)
    weights = dict(parted.networks[Owner.TEACHER].named_parameters())
    assert expected.keys() == got.keys()
    compared = 0
    trained = dict(joined.networks[Owner.TEACHER].named_parameters())
    for name in expected:  # without a features term the taps have none
        parameter = trained[name]
        assert torch.allclose(got[name], expected[name], atol=1e-6), name
        sure = expected[name].abs() > 1e-4
        compared += int(sure.sum())
        assert torch.allclose(weights[name][sure], parameter[sure], atol=1e-6), name
    assert compared > 10_000


def test_compiled_networks_keep_their_names() -> None:
    plain, compiled = make_engine(make_recipe()), make_engine(make_recipe("compile=true", "optimisers.student.ema=0.9"))
    keys = [list(engine.state_dict()["networks"]["student"]) for engine in (plain, compiled)]
    assert keys[0] == keys[1]
    assert list(compiled.shown(Owner.STUDENT).state_dict()) == keys[0]


@pytest.mark.slow
def test_a_compiled_update_is_that_of_the_plain_network() -> None:
    losses = []
    for change in ("compile=false", "compile=true"):
        engine = make_engine(make_recipe(change))
        losses.append([engine.step(number, make_batch(number)).loss for number in range(3)])
    assert losses[1][0] == pytest.approx(losses[0][0], rel=1e-5)
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)  # Adam's first updates are signs of noise here and there


def test_term_gradient_norms_are_those_of_one_term_at_a_time() -> None:
    """Slow reference: a backward pass per weighted term. It is measured every second update and changes nothing."""
    measured, silent = make_engine(make_recipe("gradient_norms_every=2")), make_engine(make_recipe())
    batch = make_batch()
    expected = {}
    for name, term in measured.recipe.steps["fuse"].terms.items():
        engine = make_engine(measured.recipe)
        context = engine.context(batch, Owner.STUDENT)
        (term.weight * name.function(context.field(measured.recipe.steps["fuse"].live), context)).backward()
        parts = [p.grad.flatten() for p in engine.networks[Owner.STUDENT].parameters() if p.grad is not None]
        expected[name] = float(torch.cat(parts).norm())
    first, second = (measured.step(number, batch) for number in range(2))
    assert first.term_gradient_norms == pytest.approx(expected, rel=1e-4)
    assert second.term_gradient_norms is None
    assert [first.loss, second.loss] == [silent.step(number, batch).loss for number in range(2)]


def test_a_gradient_norm_does_not_depend_on_the_micro_batches() -> None:
    norms = []
    for accumulate in (1, 2):
        changes = ("gradient_norms_every=1", f"data.accumulate={accumulate}")
        engine = make_engine(make_recipe(*changes, owner=Owner.TEACHER), Owner.TEACHER)
        norms.append(engine.step(0, make_batch()).term_gradient_norms)
    assert norms[0] is not None
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)


def test_want_of_memory_names_the_term_and_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A real allocation that no machine can serve, made where a term computes."""

    def vast(output: FusionOutput, context: BatchContext) -> Tensor:
        return output.y.mean() + torch.empty(2**60, dtype=torch.uint8).sum()

    monkeypatch.setattr(TermName.GRADIENT_MAX, "function", vast)
    engine = make_engine(make_recipe())
    before = {k: v.clone() for k, v in engine.networks[Owner.STUDENT].named_parameters()}
    with pytest.raises(TrainingError, match=r"out of memory in term gradient_max at batch 7.*data\.accumulate"):
        engine.step(7, make_batch())
    assert all(torch.equal(p, before[k]) for k, p in engine.networks[Owner.STUDENT].named_parameters())
    assert engine.steps_done[Owner.STUDENT] == 0


def test_other_errors_of_torch_are_not_called_want_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TermName.GRADIENT_MAX, "function", lambda o, c: o.y @ o.y[:, :, :3])
    with pytest.raises(RuntimeError, match="Expected size"):
        make_engine(make_recipe()).step(0, make_batch())
