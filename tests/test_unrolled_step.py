"""The unrolled step in the engine: real networks and terms, whole batches, recipes, and what it leaves untouched."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from duskfuse.data.class_conventions import convention_named
from duskfuse.data.errors import InputError, TrainingError
from duskfuse.data.priors.cache_masks import cache_masks
from duskfuse.data.priors.sources import MaskSourceName
from duskfuse.data.scenes.write import write_scenes
from duskfuse.distill import engine as engine_module
from duskfuse.distill.context import Batch, BatchContext
from duskfuse.distill.distill import distill
from duskfuse.distill.engine import Engine, StepResult
from duskfuse.distill.learning_rate_range import sweep_rates
from duskfuse.distill.recipe import FusionField, Owner
from duskfuse.distill.recipe_files import load_recipe
from duskfuse.distill.terms import TermName
from duskfuse.distill.unrolled import Functional, Hypergradient, Parameters, hypergradient
from duskfuse.students.unet import UNetStudent
from duskfuse.tasks.encoders import filter_encoder
from duskfuse.tasks.open_segmenter import new_segmenter
from duskfuse.tasks.task_network import Task
from duskfuse.teachers.main_network import MainNetwork

SHORT = ("phases.0.batches=2", "phases.1.batches=8")
LONG_LOOK = "steps.student.unroll.xi=0.01"
UNCLIPPED = "optimisers.student.clip_norm=1.0e+9"
"""Then a parameter's ``grad`` after the step is h itself."""


def make_batch(seed: int = 0, size: int = 16, samples: int = 2) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    ir, vis = (torch.rand(samples, channels, size, size, generator=generator) for channels in (1, 3))
    masks = torch.rand(samples, 4, size, size, generator=generator) > 0.5
    label = torch.randint(9, (samples, size, size), generator=generator)
    names = tuple("abcdefgh"[:samples])
    return Batch(ir=ir, vis=vis, masks_ir=masks, masks_vis=masks.flip(0), names=names, label=label)


def make_engine(*changes: str, recipe: str = "paper_sage_unrolled") -> Engine:
    torch.manual_seed(0)
    networks = {Owner.TEACHER: MainNetwork(), Owner.STUDENT: UNetStudent()}
    critic = new_segmenter(convention_named("MFNet-9")).freeze()
    resolved = load_recipe(recipe, [*SHORT, *changes])
    return Engine(resolved, networks, filter_encoder(), torch.device("cpu"), critics={Task.SEGMENTATION: critic})


def run(engine: Engine, numbers: Sequence[int]) -> list[StepResult]:
    return [engine.step(number, make_batch(number), make_batch(number + 1)) for number in numbers]


def values_of(state: Any) -> list[Any]:
    """Every leaf of nested plain data, in order."""
    if isinstance(state, dict):
        return [leaf for key in state for leaf in (key, *values_of(state[key]))]
    if isinstance(state, list | tuple):
        return [leaf for value in state for leaf in values_of(value)]
    return [state]


def assert_same(first: Any, second: Any) -> None:
    """Bit for bit."""
    left, right = values_of(first), values_of(second)
    assert len(left) == len(right) > 0
    assert all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in zip(left, right, strict=True))


def gradient_of(engine: Engine, owner: Owner = Owner.STUDENT) -> Tensor:
    gradients = [p.grad for p in engine.networks[owner].parameters()]
    return torch.cat([gradient.flatten().double() for gradient in gradients if gradient is not None])


def relative(value: Tensor, exact: Tensor) -> float:
    return float((value - exact).norm() / exact.norm())


# The denoiser takes no part; two untrained pictures are not alike, which the affine match says with a scale of 0.
@pytest.mark.parametrize(
    "name", sorted({term for term in TermName if term.compares} - {TermName.DENOISING, TermName.PIXEL_AFFINE})
)
@pytest.mark.parametrize("owner", [Owner.STUDENT, Owner.TEACHER])
def test_in_a_coupled_context_every_term_reaches_both_networks(name: TermName, owner: Owner) -> None:
    """No term detaches by itself: then v or the mixed derivative would silently be zero."""
    torch.manual_seed(0)
    networks = {Owner.TEACHER: MainNetwork(), Owner.STUDENT: UNetStudent()}
    context = BatchContext(
        make_batch(), networks, filter_encoder(), coupled=True, perceptual=filter_encoder(), adapters=lambda taps: taps
    )
    twin = FusionField.TEACHER_SG if owner is Owner.STUDENT else FusionField.STUDENT_SG
    live = FusionField(owner.value)
    assert context.field(twin) is context.field(FusionField(twin.value.removesuffix("_sg")))
    name.function(context.field(live), context.field(twin), context).backward()
    for other, network in networks.items():
        reached = [p.grad for p in network.parameters() if p.grad is not None]
        assert reached, f"{name} does not reach the {other}"
        assert sum(float(gradient.abs().sum()) for gradient in reached) > 0


def test_without_a_look_ahead_it_is_the_first_order_step_bit_for_bit() -> None:
    """SAGE §10.10: weights, buffers, optimisers and what is reported."""
    unrolled, first_order = make_engine("steps.student.unroll.xi=0"), make_engine(recipe="paper_sage")
    results, expected = run(unrolled, range(6)), run(first_order, range(6))
    assert_same(unrolled.state_dict(), first_order.state_dict())
    assert [result.correction_ratio for result in results] == [None, None, 0.0, None, 0.0, None]
    assert [replace(result, correction_ratio=None) for result in results] == expected


def test_a_look_ahead_of_no_length_goes_the_whole_way_round_to_the_first_order_gradient() -> None:
    """To rounding: the main network's kernels differ in the last bit where it keeps a graph."""
    unrolled, first_order = make_engine("steps.student.unroll.xi=1.0e-30"), make_engine(recipe="paper_sage")
    run(unrolled, range(3))
    run(first_order, range(3))
    assert relative(gradient_of(unrolled), gradient_of(first_order)) < 1e-5


def test_an_unrolled_step_leaves_everything_but_its_owner_as_it_is() -> None:
    """Also random numbers, modes and, from its own pass alone, the student's BatchNorm: as after a first-order step."""
    unrolled, first_order = make_engine(LONG_LOOK), make_engine(recipe="paper_sage")
    for engine in (unrolled, first_order):
        run(engine, range(2))
    teacher = unrolled.networks[Owner.TEACHER]
    before = [t.clone() for t in values_of(teacher.state_dict()) if isinstance(t, Tensor)]
    pretrained = gradient_of(unrolled, Owner.TEACHER)
    states = []
    for engine in (unrolled, first_order):
        run(engine, [2])
        states.append(torch.get_rng_state())
        assert engine.networks[Owner.STUDENT].training
        assert not engine.networks[Owner.TEACHER].training
        assert not any(p.requires_grad for p in engine.networks[Owner.TEACHER].parameters())
        assert all(p.grad is None for critic in engine.critics.values() for p in critic.parameters())
    assert torch.equal(*states)
    after, other = unrolled.state_dict(), first_order.state_dict()
    assert_same([t for t in values_of(teacher.state_dict()) if isinstance(t, Tensor)], before)
    assert torch.equal(gradient_of(unrolled, Owner.TEACHER), pretrained)
    assert_same(after["optimisers"]["teacher"], other["optimisers"]["teacher"])
    buffers = [name for name, _ in unrolled.networks[Owner.STUDENT].named_buffers()]
    assert_same(*({name: s["networks"]["student"][name] for name in buffers} for s in (after, other)))
    weights = "stage1.0.weight"
    assert not torch.equal(after["networks"]["student"][weights], other["networks"]["student"][weights])


def exact_gradient(engine: Engine, batch: Batch, following: Batch, xi: float) -> Tensor:
    """h by differentiating through ω' itself."""
    student, teacher = engine.networks[Owner.STUDENT], engine.networks[Owner.TEACHER]

    def loss(step: str, seen: Batch, s: Parameters, m: Parameters) -> Tensor:
        config = engine.recipe.steps[step]
        student.train(config.owner is Owner.STUDENT)
        teacher.train(config.owner is Owner.TEACHER)
        networks = {
            owner: Functional(network, parameters, dict(network.named_buffers()))
            for owner, network, parameters in ((Owner.STUDENT, student, s), (Owner.TEACHER, teacher, m))
        }
        context = BatchContext(seen, networks, engine.encoder, critics=engine.critics, coupled=True)
        total = torch.zeros((), dtype=torch.float64)
        for name, term in config.terms.items():
            reference, live = config.reference(name), context.field(config.live)
            if reference is None:
                total = total + term.weight * name.function(live, context)
            else:
                total = total + term.weight * name.function(live, context.field(reference), context)
        return total

    s = {name: p.detach().requires_grad_() for name, p in student.named_parameters()}
    m = {name: p.detach().requires_grad_() for name, p in teacher.named_parameters()}
    with sdpa_kernel(SDPBackend.MATH):
        descent = torch.autograd.grad(loss("teacher", following, s, m), list(m.values()), create_graph=True)
        ahead = {name: w - xi * g for (name, w), g in zip(m.items(), descent, strict=True)}
        h = torch.autograd.grad(loss("student", batch, s, ahead), list(s.values()))
    return torch.cat([gradient.flatten() for gradient in h])


def doubled(batch: Batch) -> Batch:
    return batch.each_tensor(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)


def test_the_real_networks_meet_exact_differentiation() -> None:
    """U-Net student, main network, all terms of SAGE: 2e-6 off, first order 7e-2 (measured).

    Kinks (max-pooling, leaky units, clamps) that the difference steps over would cost up to some 1e-4.
    """
    engine = make_engine(LONG_LOOK, UNCLIPPED)
    run(engine, range(2))  # the main network's zero-initialised projections need a step before gradients flow
    assert engine.encoder is not None
    for network in (*engine.networks.values(), engine.encoder, *engine.critics.values()):
        network.double()
    batch, following = doubled(make_batch(2)), doubled(make_batch(3))
    exact = exact_gradient(engine, batch, following, 0.01)
    first_order = exact_gradient(engine, batch, following, 0.0)
    result = engine.step(2, batch, following)
    assert relative(gradient_of(engine), exact) < 2e-3
    assert relative(first_order, exact) > 2e-2
    assert result.correction_ratio is not None
    assert result.correction_ratio > 0


def test_bfloat16_leaves_the_correction_nearly_what_it_is_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Although bfloat16 keeps three digits of a weight: 2 % off here (measured)."""
    warm, found = make_engine(), []
    run(warm, range(6))

    def listen(*arguments: Any, **options: Any) -> Hypergradient:
        found.append(hypergradient(*arguments, **options))
        return found[-1]

    monkeypatch.setattr(engine_module, "hypergradient", listen)
    for precision in ("float32", "bfloat16"):
        engine = make_engine(LONG_LOOK, f"precision={precision}")
        engine.load_state_dict(warm.state_dict())
        run(engine, [6])
    exact, rounded = (torch.cat([t.flatten() for t in h.correction.values()]) for h in found)
    assert relative(rounded, exact) < 0.2


def test_micro_batches_share_one_look_ahead() -> None:
    """Two identical halves joined by ``data.accumulate`` give the gradient of one."""
    single, double = make_engine(LONG_LOOK, UNCLIPPED), make_engine(LONG_LOOK, UNCLIPPED, "data.accumulate=2")
    single.update("teacher", 0, make_batch(9), phase="alternate")
    double.update("teacher", 0, twice(make_batch(9)), phase="alternate")
    single.step(2, make_batch(2), make_batch(3))
    double.step(2, twice(make_batch(2)), twice(make_batch(3)))
    assert relative(gradient_of(double), gradient_of(single)) < 1e-5


def twice(batch: Batch) -> Batch:
    return replace(batch.each_tensor(lambda tensor: torch.cat([tensor, tensor])), names=batch.names * 2)


def test_without_a_following_batch_it_says_so() -> None:
    with pytest.raises(ValueError, match="the batch after its own"):
        make_engine().step(2, make_batch())


def test_nan_in_the_look_ahead_names_the_term_and_the_following_pair() -> None:
    engine, following = make_engine(), make_batch(3)
    following.ir[1, 0, 3, 3] = float("nan")
    with pytest.raises(TrainingError, match=r"term \w+ became nan at batch 3 \(a, b\)"):
        engine.step(2, make_batch(2), following)


def test_a_resumed_run_goes_on_bit_for_bit() -> None:
    straight, first, second = make_engine(), make_engine(), make_engine()
    expected = run(straight, range(6))
    results = run(first, range(3))
    second.load_state_dict(first.state_dict())
    assert results + run(second, range(3, 6)) == expected
    assert_same(second.state_dict(), straight.state_dict())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["steps.student.unroll.through=teachr"], "through 'teachr'; steps are pretrain_teacher, student, teacher"),
        (["steps.student.unroll.through=student"], "both move the student: name a step of another network"),
        (["steps.student.unroll.through=pretrain_teacher"], "the teacher's terms never look at the student"),
        (["steps.student.terms={source_mse: 1}"], "the student's terms never look at the teacher"),
        (["steps.student.terms={pixel_triplet: {weight: 1, reference: teacher_cached}}"], "never look at the teacher"),
        (["phases.1.cycle=[student]"], "which phase alternate does not make: put it in the cycle"),
        (["precision=float16"], "use bfloat16 or float32"),
        (["steps.student.terms.feature_adapters=0.3"], "moves adapters besides: remove one of the two"),
        (["steps.student.unroll.xi=-1"], "steps.student.unroll.xi: Input should be greater than or equal to 0"),
        (["steps.student.unroll.xi=.inf"], "steps.student.unroll.xi: Input should be a finite number"),
        (["steps.student.unroll.steps=2"], "steps.student.unroll.steps"),
    ],
)
def test_recipes_that_cannot_unroll_say_why(changes: list[str], said: str) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        load_recipe("paper_sage_unrolled", changes)


def test_automatic_float16_is_refused_before_anything_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``precision: auto`` is on an old GPU."""
    monkeypatch.setattr(engine_module, "autocast_dtype", lambda precision, device: torch.float16)
    with pytest.raises(InputError, match=r"float16 on this device.*set precision=float32"):
        make_engine()


def test_only_recipes_with_an_unrolled_step_need_the_following_batch() -> None:
    assert load_recipe("paper_sage_unrolled").unrolls
    assert not load_recipe("paper_sage").unrolls
    spare = load_recipe("paper_sage_unrolled", ["phases=[{name: only, batches: 2, cycle: [pretrain_teacher]}]"])
    assert not spare.unrolls


TINY = (
    "data={crop: [32, 32], batch: 1, workers: 0}",
    "phases.0.batches=1",
    "phases.1.batches=5",
    "save_every=2",
    "sample_every=6",
)


def distilled(data: Path, out: Path, cache: Path, **options: bool) -> list[dict[str, Any]]:
    """Metrics of a run, without its times."""
    distill(data, out=out, recipe="paper_sage_unrolled", changes=TINY, cache=cache, **options)  # type: ignore[arg-type]
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if "seconds" not in key} for record in records]


def test_a_whole_run_on_drawn_scenes_resumes_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped before its last batch, an unrolled one, whose look-ahead lies behind the end of the run."""
    write_scenes(tmp_path / "data", count=3, size=(48, 64), seed=0)
    cache = tmp_path / "cache"
    cache_masks(tmp_path / "data", source=MaskSourceName.REGIONS, cache=cache)
    straight = distilled(tmp_path / "data", tmp_path / "straight", cache)
    assert [record["step"] for record in straight] == ["pretrain_teacher", *["student", "teacher"] * 2, "student"]
    ratios = [record["correction_ratio"] for record in straight]
    assert [ratio is not None and ratio > 0 for ratio in ratios] == [False, True, False, True, False, True]

    real_step = Engine.step

    def interrupted(self: Engine, number: int, batch: Batch, following: Batch | None = None) -> StepResult:
        if number == 5:
            raise KeyboardInterrupt
        return real_step(self, number, batch, following)

    monkeypatch.setattr(Engine, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        distilled(tmp_path / "data", tmp_path / "broken", cache)
    monkeypatch.undo()
    assert distilled(tmp_path / "data", tmp_path / "broken", cache, resume=True) == straight
    for owner in ("student", "teacher"):
        first, second = (load_file(tmp_path / out / f"{owner}.safetensors") for out in ("straight", "broken"))
        assert_same(first, second)


def test_the_learning_rate_range_of_an_unrolled_step_can_be_swept() -> None:
    engine = make_engine()
    before = [t.clone() for t in values_of(engine.state_dict()) if isinstance(t, Tensor)]
    batches = [make_batch(number) for number in range(3)]
    assert len(sweep_rates(engine, "student", batches, [1e-6, 1e-5])) == 2
    assert_same([t for t in values_of(engine.state_dict()) if isinstance(t, Tensor)], before)
