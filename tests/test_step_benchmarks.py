"""benchmarks/steps.py and step_shares.py: the literal step is the published one, and parts of a step are the whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from duskfuse.data.fuser import FusionOutput
from duskfuse.distill.context import BatchContext
from duskfuse.distill.engine import Engine
from duskfuse.distill.recipe import Owner
from duskfuse.distill.recipe_files import load_recipe
from duskfuse.distill.terms.distillation import features, pixel_triplet
from duskfuse.distill.terms.fusion import sobel_magnitude
from duskfuse.students.unet import UNetStudent
from duskfuse.tasks.encoders import filter_encoder
from duskfuse.teachers.main_network import MainNetwork

SIZE = (32, 48)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "benchmarks"))
    import steps

    return steps


def test_literal_terms_are_those_of_the_engine_where_nothing_was_corrected(steps: ModuleType):
    batch = steps.scenes(SIZE, 2)
    generator = torch.Generator().manual_seed(0)
    fused, reference = (
        FusionOutput(torch.rand(2, 1, *SIZE, generator=generator), (torch.rand(2, 32, *SIZE, generator=generator),))
        for _ in range(2)
    )
    context = BatchContext(batch, {})
    torch.testing.assert_close(steps.pixels(fused.y, reference.y, batch), pixel_triplet(fused, reference, context))
    torch.testing.assert_close(
        steps.feature_distance(fused.taps, reference.taps), features(fused, reference, context), atol=1e-5, rtol=1e-4
    )
    inside = (..., slice(1, -1), slice(1, -1))  # the borders are where the published code differs
    torch.testing.assert_close(steps.sobel(fused.y)[inside], sobel_magnitude(fused.y)[inside])


def test_attention_in_full_is_the_same_attention(steps: ModuleType):
    steps.check_attention(steps.scenes(SIZE, 1))


def test_literal_updates_encode_25_times_and_move_their_own_network(steps: ModuleType):
    loop = steps.LiteralLoop(filter_encoder(), attention_in_full=True, channels_last=False)
    calls: list[Any] = []
    loop.encoder.register_forward_hook(lambda *_: calls.append(1))
    for step, moved, other in (
        (loop.student_step, loop.student, loop.teacher),
        (loop.teacher_step, loop.teacher, loop.student),
    ):
        calls.clear()
        before = [[p.clone() for p in network.parameters()] for network in (moved, other)]
        step(steps.scenes(SIZE, 2))
        assert len(calls) == 25
        changed, kept = (
            [not torch.equal(a, b) for a, b in zip(old, network.parameters(), strict=True)]
            for old, network in zip(before, (moved, other), strict=True)
        )
        assert any(changed)
        assert not any(kept)
    assert loop.encoder.bank.grad is not None


def test_parts_of_a_timed_update_are_the_whole_and_change_nothing(steps: ModuleType):
    import step_shares

    recipe = load_recipe("paper_sage", ["precision=float32", "steps.teacher.terms.segmentation.weight=0"])
    batch = steps.scenes(SIZE, 2)

    def built(engine: type[Engine]) -> Any:
        torch.manual_seed(0)
        networks = {Owner.STUDENT: UNetStudent(), Owner.TEACHER: MainNetwork(steps.MASKS)}
        return engine(recipe, networks, filter_encoder(), torch.device("cpu"))

    timed, plain = built(step_shares.TimedEngine), built(Engine)
    for step in ("student", "teacher"):
        parts = timed.timed_update(step, replace(batch))
        plain.update(step, 0, replace(batch), phase="benchmark")
        other = {"student": "teacher", "teacher": "student"}[step]
        terms = {f"{name}: {way}" for name in recipe.steps[step].active for way in ("forward", "backward")}
        networks = {f"{step}: forward", f"{step}: backward", f"{other}: forward"}
        assert set(parts) == terms | networks | {step_shares.MOVING, step_shares.REST}
        assert all(seconds >= 0 for seconds in parts.values())
        assert parts[f"{step}: backward"] > parts["pixel_triplet: backward"]
    for owner, network in plain.networks.items():
        for name, value in network.state_dict().items():
            torch.testing.assert_close(timed.networks[owner].state_dict()[name], value, rtol=0, atol=0)
