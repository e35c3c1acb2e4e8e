"""The engine: who owns which gradient, the NaN guard, schedules, and a run that resumes exactly."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from duskfuse.data.class_conventions import convention_named, objects_named
from duskfuse.data.errors import TrainingError
from duskfuse.distill.adapters import FeatureAdapters
from duskfuse.distill.context import Batch, source_patches
from duskfuse.distill.engine import Engine, needed_owners, ramped_weight
from duskfuse.distill.recipe import FusionField, Owner, Recipe, TermConfig
from duskfuse.distill.recipe_files import load_recipe
from duskfuse.distill.terms import TermName
from duskfuse.distill.terms.fusion import sobel_magnitude
from duskfuse.students.unet import UNetStudent
from duskfuse.tasks.detector import new_detector
from duskfuse.tasks.encoders import filter_encoder
from duskfuse.tasks.fusion_blocks import FusionBlock
from duskfuse.tasks.open_segmenter import new_segmenter
from duskfuse.tasks.saliency import new_saliency
from duskfuse.tasks.task_network import Task
from duskfuse.teachers.main_network import MainNetwork

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load_recipe("paper_sage", ["phases.0.batches=2", "phases.1.batches=6"])


def make_engine(recipe: Recipe) -> Engine:
    torch.manual_seed(0)
    networks = {Owner.TEACHER: MainNetwork(), Owner.STUDENT: UNetStudent()}
    critics = {
        Task.SEGMENTATION: new_segmenter(convention_named("MFNet-9")).freeze(),
        Task.DETECTION: new_detector(objects_named("MSRS-3"), fusion=FusionBlock.IRDFUSION).freeze(),
        Task.SALIENCY: new_saliency().freeze(),
    }
    return Engine(
        recipe,
        networks,
        filter_encoder(),
        CPU,
        critics=critics,
        perceptual=filter_encoder(),
        adapters=FeatureAdapters([32] * 5, [32] * 5),
    )


def make_batch(seed: int = 0, size: int = 16) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    ir, vis = (torch.rand(2, channels, size, size, generator=generator) for channels in (1, 3))
    masks = torch.rand(2, 4, size, size, generator=generator) > 0.5
    label = torch.randint(9, (2, size, size), generator=generator).to(torch.uint8)
    objects = torch.tensor([[[0.0, 2, 3, 12, 14], [2, 5, 1, 9, 9]], [[1, 0, 0, 8, 16], [-1, 0, 0, 0, 0]]])
    return Batch(
        ir=ir,
        vis=vis,
        masks_ir=masks,
        masks_vis=masks.flip(0),
        names=("a", "b"),
        label=label,
        objects=objects,
        salient=masks[:, :1].float(),
    )


@pytest.mark.parametrize(("number", "owner"), [(2, Owner.STUDENT), (3, Owner.TEACHER)])
def test_a_step_moves_its_owner_and_nothing_else(recipe: Recipe, number: int, owner: Owner) -> None:
    engine = make_engine(recipe)
    before = {o: {k: v.clone() for k, v in network.state_dict().items()} for o, network in engine.networks.items()}
    critics = nn.ModuleDict({task.value: critic for task, critic in engine.critics.items()})
    untouched = {k: v.clone() for k, v in critics.state_dict().items()}
    result = engine.step(number, make_batch())
    assert result.owner is owner
    for other, network in engine.networks.items():
        changed = [k for k, v in network.state_dict().items() if not torch.equal(v, before[other][k])]
        assert bool(changed) == (other is owner), f"{other} changed: {changed[:3]}"
        if other is not owner:
            assert all(parameter.grad is None for parameter in network.parameters())
    assert engine.encoder is not None
    for frozen in (engine.encoder, critics):
        assert all(parameter.grad is None for parameter in frozen.parameters())
    assert all(torch.equal(v, untouched[k]) for k, v in critics.state_dict().items())


@pytest.mark.parametrize("owner", [Owner.STUDENT, Owner.TEACHER])
def test_every_single_term_moves_only_its_owner(recipe: Recipe, owner: Owner) -> None:
    """Term by term, so that no sum hides a leak: gradients reach the owner and stop at every twin (SAGE §10.9)."""
    engine = make_engine(recipe)
    batch = make_batch()
    live = FusionField(owner.value)
    other = FusionField.TEACHER_SG if owner is Owner.STUDENT else FusionField.STUDENT_SG
    for name in (term for term in TermName if term is not TermName.DENOISING):
        for network in engine.networks.values():
            network.zero_grad(set_to_none=True)
        context = engine.context(batch, owner)
        for network in engine.networks.values():
            network.requires_grad_(True)  # only the twins keep gradients apart now
        if not name.compares:
            value = name.function(context.field(live), context)
        else:
            value = name.function(context.field(live), context.field(other), context)
        value.backward()
        for candidate, network in engine.networks.items():
            moved = any(p.grad is not None for p in network.parameters())
            assert moved == (candidate is owner), f"{name} moved {candidate}"
        assert all(p.grad is None for critic in engine.critics.values() for p in critic.parameters())


def test_fields_are_computed_once_and_twins_share_the_forward(recipe: Recipe) -> None:
    engine = make_engine(recipe)
    context = engine.context(make_batch(), Owner.STUDENT)
    live = context.field(FusionField.STUDENT)
    assert context.field(FusionField.STUDENT) is live
    twin = context.field(FusionField.STUDENT_SG)
    assert twin.y.data_ptr() == live.y.data_ptr()
    assert not twin.y.requires_grad
    assert live.y.requires_grad


def recorded_inputs(engine: Engine, number: int, batch: Batch) -> dict[Owner, tuple[torch.Tensor, ...]]:
    """What each network was given in step ``number``."""
    given: dict[Owner, tuple[torch.Tensor, ...]] = {}
    hooks = [
        network.register_forward_pre_hook(lambda _, arguments, owner=owner: given.update({owner: arguments}))
        for owner, network in engine.networks.items()
    ]
    engine.step(number, batch)
    for hook in hooks:
        hook.remove()
    return given


def test_only_the_student_in_its_own_step_is_given_degraded_pictures(recipe: Recipe) -> None:
    """The main network's picture is the target of the degraded input, so it is made of the clean pair."""
    engine, clean = make_engine(recipe), make_batch()
    degraded = replace(clean, degraded_ir=clean.ir.flip(-1), degraded_vis=clean.vis.flip(-1))
    assert recipe.step_at(2)[1] == "student"
    given = recorded_inputs(engine, 2, degraded)
    assert torch.equal(given[Owner.STUDENT][0], clean.vis_y.flip(-1))
    assert torch.equal(given[Owner.STUDENT][1], clean.ir.flip(-1))
    for expected, seen in zip((clean.vis_y, clean.ir), given[Owner.TEACHER], strict=False):
        assert torch.equal(seen, expected)
    assert torch.equal(given[Owner.TEACHER][3], source_patches(clean.ir, clean.masks_ir))
    given = recorded_inputs(engine, 3, degraded)
    for owner in (Owner.STUDENT, Owner.TEACHER):
        for expected, seen in zip((clean.vis_y, clean.ir), given[owner], strict=False):
            assert torch.equal(seen, expected)


@pytest.mark.parametrize("name", [term for term in TermName if term is not TermName.DENOISING])
def test_no_term_looks_at_degraded_pictures(recipe: Recipe, name: TermName) -> None:
    engine, clean = make_engine(recipe), make_batch()
    degraded = replace(clean, degraded_ir=1 - clean.ir, degraded_vis=1 - clean.vis)
    fused, reference = (engine.context(make_batch(seed), Owner.STUDENT).field(FusionField.STUDENT) for seed in (1, 2))
    values = []
    for batch in (clean, degraded):
        context = engine.context(batch, Owner.STUDENT)
        value = name.function(fused, *([reference] if name.compares else []), context)
        values.append(float(value.detach()))
    assert values[0] == values[1]


def test_the_frozen_student_keeps_its_batch_norm_statistics(recipe: Recipe) -> None:
    engine = make_engine(recipe)
    before = {k: v.clone() for k, v in engine.networks[Owner.STUDENT].state_dict().items() if "running" in k}
    engine.step(3, make_batch())
    after = engine.networks[Owner.STUDENT].state_dict()
    assert before
    assert all(torch.equal(after[k], v) for k, v in before.items())


def test_nan_names_the_term_and_the_pair(recipe: Recipe) -> None:
    engine = make_engine(recipe)
    batch = make_batch()
    batch.ir[1, 0, 3, 3] = float("nan")
    with pytest.raises(TrainingError, match=r"term \w+ became nan at batch 2 \(a, b\)"):
        engine.step(2, batch)


def test_rates_follow_each_owners_own_steps(recipe: Recipe) -> None:
    engine = make_engine(recipe)
    rates: dict[Owner, list[float]] = {Owner.TEACHER: [], Owner.STUDENT: []}
    for number in range(recipe.total_batches):
        result = engine.step(number, make_batch(number))
        rates[result.owner].append(result.lr)
    assert {owner: len(values) for owner, values in rates.items()} == {Owner.TEACHER: 5, Owner.STUDENT: 3}
    for owner, values in rates.items():
        assert values[0] == recipe.optimisers[owner].lr
        assert values[-1] == pytest.approx(1e-5)


def test_state_round_trip_continues_bit_for_bit(recipe: Recipe, tmp_path: Path) -> None:
    straight = make_engine(recipe)
    expected = [straight.step(number, make_batch(number)).loss for number in range(8)]
    first = make_engine(recipe)
    losses = [first.step(number, make_batch(number)).loss for number in range(4)]
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = make_engine(recipe)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    losses += [second.step(number, make_batch(number)).loss for number in range(4, 8)]
    assert losses == expected


def test_ramp_grows_linearly() -> None:
    term = TermConfig(weight=2.0, ramp=(10, 20))
    assert [ramped_weight(term, step) for step in (0, 10, 15, 20, 99)] == [0, 0, 1, 2, 2]


def test_a_student_only_recipe_needs_no_main_network() -> None:
    assert needed_owners(load_recipe("cached_teacher")) == {Owner.STUDENT}


def toy_batch(seed: int) -> Batch:
    """Visible stripes without the hot square, infrared with the square alone: a target that VIS cannot see."""
    generator = torch.Generator().manual_seed(seed)
    top, left = (int(torch.randint(4, 14, (), generator=generator)) for _ in range(2))
    ir = torch.full((2, 1, 24, 24), 0.1)
    ir[..., top : top + 6, left : left + 6] = 0.9
    stripes = 0.3 + 0.2 * ((torch.arange(24) // 3) % 2).float()
    vis = stripes.expand(2, 3, 24, 24).clone()
    masks = torch.zeros(2, 4, 24, 24, dtype=torch.bool)
    masks[:, 0] = ir[:, 0] > 0.5
    return Batch(ir=ir, vis=vis, masks_ir=masks, masks_vis=masks, names=("a", "b"))


def trained_on_toys(terms: str) -> tuple[torch.Tensor, Batch]:
    """Fused luminance of a held-out toy after 60 student steps with these terms."""
    step = f"steps={{fusion: {{owner: student, terms: {terms}}}}}"
    phases = "phases=[{name: only, batches: 60, cycle: [fusion]}]"
    recipe = load_recipe("cached_teacher", [step, phases, "optimisers.student={lr: 5.0e-3}"])
    torch.manual_seed(0)
    engine = Engine(recipe, {Owner.STUDENT: UNetStudent()}, None, CPU)
    for number in range(recipe.total_batches):
        engine.step(number, toy_batch(number))
    batch = toy_batch(1000)
    with torch.no_grad():
        return engine.networks[Owner.STUDENT].eval()(batch.vis_y, batch.ir).y, batch


def test_ablation_without_the_gradient_term_edges_are_weaker() -> None:
    """SAGE §10.16: one seed, one term apart."""
    with_term, _ = trained_on_toys("{source_mse: 1, gradient_max: 2}")
    without, _ = trained_on_toys("{source_mse: 1}")
    assert float(sobel_magnitude(with_term).mean()) > 1.1 * float(sobel_magnitude(without).mean())


def test_ablation_without_the_infrared_the_hot_target_fades(monkeypatch: pytest.MonkeyPatch) -> None:
    """SAGE §10.16: removing MSE(o, ir) from the source term lowers the contrast of target and background."""
    contrasts = []
    for visible_alone in (False, True):
        if visible_alone:
            monkeypatch.setattr(TermName.SOURCE_MSE, "function", lambda o, c: (o.y - c.batch.vis_y).square().mean())
        y, batch = trained_on_toys("{source_mse: 1}")
        hot = batch.masks_ir[:, :1]
        contrasts.append(float(y[hot].mean() - y[~hot].mean()))
    assert contrasts[0] > contrasts[1] + 0.15
