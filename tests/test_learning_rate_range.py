"""find-lr: rates rise, the loss falls and turns, and nothing of what was measured stays in the networks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from duskfuse.cli import app
from duskfuse.data.class_conventions import objects_named
from duskfuse.data.errors import InputError
from duskfuse.data.images import read_picture
from duskfuse.data.scenes.write import write_scenes
from duskfuse.data.weights import ModelCard, save_weights
from duskfuse.distill.context import Batch
from duskfuse.distill.engine import Engine
from duskfuse.distill.learning_rate_range import find_lr, smooth, suggest, sweep_rates
from duskfuse.distill.recipe import Owner
from duskfuse.distill.recipe_files import load_recipe
from duskfuse.students.unet import UNetStudent
from duskfuse.tasks.detector import ARCHITECTURE, detector_settings, new_detector
from duskfuse.tasks.detector_network import HeadKind
from duskfuse.tasks.trunk import Trunk

RECIPE = """
name: short
data: {crop: [24, 24], batch: 2, workers: 0}
optimisers: {student: {lr: 1.0e-3, ema: 0.9}}
steps: {fuse: {owner: student, terms: {source_mse: 1, gradient_max: 2}}}
phases: [{name: only, batches: 8, cycle: [fuse]}]
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "short.yaml"
    path.write_text(RECIPE)
    return path


def batches(count: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    empty = torch.zeros(2, 4, 16, 16, dtype=torch.bool)
    made = []
    for _ in range(count):
        ir, vis = (torch.rand(2, channels, 16, 16, generator=generator) for channels in (1, 3))
        made.append(Batch(ir=ir, vis=vis, masks_ir=empty, masks_vis=empty, names=("a", "b")))
    return made


def flat(state: Any) -> list[Any]:
    """Every leaf of a state dict, tensors as lists of bits."""
    if isinstance(state, dict):
        return [leaf for key, value in state.items() for leaf in (key, *flat(value))]
    if isinstance(state, list | tuple):
        return [leaf for value in state for leaf in flat(value)]
    return [state.clone()] if isinstance(state, Tensor) else [state]


def same(one: list[Any], other: list[Any]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("updates_before", [0, 2])
def test_everything_is_afterwards_as_it_was(recipe: Path, updates_before: int) -> None:
    torch.manual_seed(0)
    engine = Engine(load_recipe(recipe), {Owner.STUDENT: UNetStudent()}, None, torch.device("cpu"))
    for number in range(updates_before):
        engine.step(number, batches(1)[0])
    before, generator = flat(engine.state_dict()), torch.get_rng_state()
    losses = sweep_rates(engine, "fuse", batches(12), [10 ** (i - 6) for i in range(12)])
    assert len(losses) >= 3
    assert same(flat(engine.state_dict()), before)
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(parameter.grad is None for parameter in engine.networks[Owner.STUDENT].parameters())


def test_rates_beyond_all_reason_end_the_test(recipe: Path) -> None:
    torch.manual_seed(0)
    engine = Engine(load_recipe(recipe), {Owner.STUDENT: UNetStudent()}, None, torch.device("cpu"))
    rates = [1e30] * 8
    before = flat(engine.state_dict())
    assert 1 <= len(sweep_rates(engine, "fuse", batches(8), rates)) < 8
    assert same(flat(engine.state_dict()), before)


def test_a_running_mean_of_equal_losses_is_that_loss() -> None:
    assert smooth([2.0] * 5) == pytest.approx([2.0] * 5)
    assert smooth([1.0, 3.0]) == pytest.approx([1.0, (0.9 * 0.1 * 1 + 0.1 * 3) / 0.19])


def test_the_suggestion_lies_a_tenth_below_the_lowest_loss() -> None:
    rates = [10 ** (-6 + i / 10) for i in range(60)]
    valley = [abs(i - 40) / 40 + 1 for i in range(60)]
    suggestion, lowest = suggest(rates, valley)
    assert lowest == pytest.approx(1e-2)
    assert suggestion == pytest.approx(1e-3)
    assert suggest(rates, [1 + i / 60 for i in range(60)])[0] is None


def test_the_verb_writes_numbers_and_a_plot(recipe: Path, tmp_path: Path) -> None:
    write_scenes(tmp_path / "data", count=3, size=(32, 40), seed=0)
    report = find_lr(tmp_path / "data", owner=Owner.STUDENT, out=tmp_path / "range", recipe=recipe)
    assert report.suggestion is not None
    assert 1e-5 < report.suggestion < 0.1
    written = json.loads(Path(report.json_file).read_text())
    assert written["step"] == "fuse"
    assert len(written["rates"]) == len(written["losses"]) == len(written["smoothed"])
    assert all(b > a for a, b in zip(written["rates"], written["rates"][1:], strict=False))
    plot = read_picture(Path(report.plot))
    assert plot.shape == (480, 800, 3)
    assert len({tuple(colour) for colour in plot.reshape(-1, 3)}) > 10
    with pytest.raises(InputError, match="--overwrite"):
        find_lr(tmp_path / "data", owner=Owner.STUDENT, out=tmp_path / "range", recipe=recipe)


def test_an_owner_that_no_step_moves_is_refused(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no step .* moves the teacher; one of student"):
        find_lr(tmp_path, owner=Owner.TEACHER, out=tmp_path / "range", recipe=recipe)


def test_a_critic_is_asked_as_in_distill(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The losses change with a critic's term; without the network the term is left out, and that is said."""
    monkeypatch.setattr("duskfuse.distill.learning_rate_range.UPDATES", 3)
    write_scenes(tmp_path / "data", count=3, size=(32, 40), seed=0)
    torch.manual_seed(0)
    classes, critic = objects_named("scenes-4"), tmp_path / "detector.safetensors"
    settings = detector_settings(classes, Trunk.RESIDUAL, HeadKind.DENSE, None)
    save_weights(critic, new_detector(classes).network, ModelCard(ARCHITECTURE, settings, "rgb", "0.1.0", "nothing"))
    text = RECIPE.replace("gradient_max: 2", "gradient_max: 2, detection: 1")
    recipe.write_text(text.replace("crop: [24, 24]", "crop: [32, 32]"))
    command = ["find-lr", str(tmp_path / "data"), "--owner", "student", "--recipe", str(recipe), "--json"]
    judged = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "judged"), "--critic", str(critic)])
    assert judged.exit_code == 0, judged.output
    alone = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "alone")])
    assert alone.exit_code == 0, alone.output
    assert json.loads(judged.stdout)["losses"][0] > json.loads(alone.stdout)["losses"][0]
    recipe.write_text(RECIPE)
    refused = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "refused"), "--critic", str(critic)])
    assert refused.exit_code == 2
    assert "no step of the recipe short has the term detection" in refused.stderr
