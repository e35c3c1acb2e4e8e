"""The recipe that trains a conditional diffusion teacher: whose gradients, which noise, exact resume, refusals."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from duskfuse.data.errors import InputError
from duskfuse.data.images import write_picture
from duskfuse.data.layout import find_pairs
from duskfuse.data.weights import read_card
from duskfuse.distill.context import Batch, BatchContext
from duskfuse.distill.dataset import TrainingPairs, load_batches
from duskfuse.distill.distill import distill
from duskfuse.distill.engine import Engine, needed_owners
from duskfuse.distill.preview import preview_batch, sample_grid
from duskfuse.distill.pseudo_label import pseudo_label
from duskfuse.distill.recipe import DataConfig, FusionField, Owner, Recipe
from duskfuse.distill.recipe_files import load_recipe
from duskfuse.distill.terms import TermName
from duskfuse.students.unet import UNetStudent
from duskfuse.teachers.cache_teacher import cache_teacher
from duskfuse.teachers.conditional_diffusion import ConditionalDiffusionTeacher, sample_fused
from duskfuse.teachers.denoiser import ARCHITECTURE, ConditionalDenoiser, load_denoiser
from duskfuse.teachers.denoiser_sizes import DenoiserConfig, Prediction
from duskfuse.teachers.teacher import TeacherJob

pytest.importorskip("diffusers")

SMALL = ("data.crop=[16, 24]", "data.batch=2", "phases.0.batches=6", "save_every=4", "sample_every=6")


def tiny(prediction: Prediction = Prediction.PICTURE) -> ConditionalDenoiser:
    torch.manual_seed(0)
    network = ConditionalDenoiser(DenoiserConfig(widths=(8, 16), blocks=1, prediction=prediction))
    torch.nn.init.normal_(network.unet.conv_out.weight, std=0.1)
    return network


def make_batch(samples: int = 2, size: int = 16, teacher: bool = True) -> Batch:
    generator = torch.Generator().manual_seed(0)
    ir, vis = (torch.rand(samples, channels, size, size, generator=generator) for channels in (1, 3))
    masks = torch.zeros(samples, 1, size, size, dtype=torch.bool)
    return Batch(
        ir=ir,
        vis=vis,
        masks_ir=masks,
        masks_vis=masks,
        names=tuple("abcdefgh"[:samples]),
        teacher_y=torch.rand(samples, 1, size, size, generator=generator) if teacher else None,
        noise=torch.randn(samples, 1, size, size, generator=generator),
        timestep=torch.randint(1000, (samples,), generator=generator),
    )


def make_engine(recipe: Recipe | None = None) -> Engine:
    networks = {Owner.DENOISER: tiny(), Owner.STUDENT: UNetStudent()}
    return Engine(recipe or load_recipe("diffusion_teacher"), networks, None, torch.device("cpu"))


def test_the_recipe_needs_the_denoiser_and_cached_pictures_alone() -> None:
    recipe = load_recipe("diffusion_teacher")
    assert needed_owners(recipe) == {Owner.DENOISER}
    assert recipe.needs_teacher_pictures
    assert not load_recipe("diffusion_teacher", ["diffusion.target=pseudo_label"]).needs_teacher_pictures
    assert not load_recipe("default").needs_teacher_pictures
    assert load_recipe("cached_teacher").needs_teacher_pictures


@pytest.mark.parametrize("prediction", list(Prediction))
def test_denoising_is_the_error_of_what_the_network_says(prediction: Prediction) -> None:
    """Written out: MSE to the noise, or to the picture's difference from the brighter source in units of 0.2."""
    network, batch = tiny(prediction), make_batch()
    context = BatchContext(batch, {Owner.DENOISER: network})
    fused, target = context.field(FusionField.DENOISER), context.field(FusionField.DENOISER_TARGET)
    value = TermName.DENOISING.function(fused, target, context)
    assert batch.teacher_y is not None
    assert batch.noise is not None
    assert batch.timestep is not None
    assert target.y is batch.teacher_y
    signal = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)[batch.timestep].float()
    signal = signal[:, None, None, None]
    noisy = signal.sqrt() * (2 * batch.teacher_y - 1) + (1 - signal).sqrt() * batch.noise
    said = network.unet(torch.cat([noisy, 2 * batch.vis_y - 1, 2 * batch.ir - 1], 1), batch.timestep).sample
    difference = (2 * batch.teacher_y - 2 * torch.maximum(batch.vis_y, batch.ir)) / 0.2
    expected = (said - (batch.noise if prediction is Prediction.NOISE else difference)).square().mean()
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "terms",
    ["{denoising: 1}", "{pixel_reference: 1}", "{ssim_reference: 1, gradient_reference: 1}", "{gradient_max: 1}"],
)
def test_a_step_moves_the_denoiser_and_nothing_else(terms: str) -> None:
    engine = make_engine(load_recipe("diffusion_teacher", [f"steps.denoise.terms={terms}"]))
    before = {o: {k: v.clone() for k, v in network.state_dict().items()} for o, network in engine.networks.items()}
    result = engine.step(0, make_batch(size=24))
    assert result.owner is Owner.DENOISER
    for owner, network in engine.networks.items():
        changed = [k for k, v in network.state_dict().items() if not torch.equal(v, before[owner][k])]
        assert bool(changed) == (owner is Owner.DENOISER)
    assert all(parameter.grad is None for parameter in engine.networks[Owner.STUDENT].parameters())
    idle = [n for n, p in engine.networks[Owner.DENOISER].named_parameters() if p.grad is None]
    assert idle == []


def test_the_loss_decreases_on_one_pair_and_sampling_finds_its_picture() -> None:
    """The target is no function of one source: the infrared where it is brighter than 0.5, else the visible."""
    recipe = load_recipe("diffusion_teacher", ["phases.0.batches=120", "optimisers.denoiser.lr=4.0e-3"])
    engine = make_engine(recipe)
    sources, generator = make_batch(samples=8), torch.Generator().manual_seed(1)
    ir, vis = sources.ir[:1].expand(8, -1, -1, -1), sources.vis[:1].expand(8, -1, -1, -1)
    target = torch.where(ir > 0.5, ir, sources.vis_y[:1])
    losses = []
    for number in range(120):
        noise = torch.randn(8, 1, 16, 16, generator=generator)
        timestep = torch.randint(1000, (8,), generator=generator)
        masks = sources.masks_ir
        batch = Batch(ir, vis, masks, masks, sources.names, target, noise, timestep)
        losses.append(engine.step(number, batch).loss)
    assert np.mean(losses[-20:]) < np.mean(losses[:20]) / 5
    y = sample_fused(engine.networks[Owner.DENOISER].eval(), batch.vis_y[:1], ir[:1])
    brighter = torch.maximum(batch.vis_y[:1], ir[:1])
    assert (y - target[:1]).square().mean() < (brighter - target[:1]).square().mean() / 4


def test_without_cached_pictures_the_target_is_made_by_rule() -> None:
    batch = make_batch(teacher=False)
    target = BatchContext(batch, {Owner.DENOISER: tiny()}).field(FusionField.DENOISER_TARGET).y
    assert torch.equal(target, pseudo_label(batch.vis_y, batch.ir))


def test_the_rule_keeps_bright_areas_and_the_busier_detail() -> None:
    stripes = 0.1 * (torch.arange(64) % 2).float().expand(1, 1, 64, 64)
    flat = torch.full((1, 1, 64, 64), 0.4)
    fused = pseudo_label(stripes, flat)
    inner = fused[..., 16:48, 16:48]
    assert float(inner.mean()) == pytest.approx(0.4, abs=1e-3)
    assert float(inner[..., ::2].mean() - inner[..., 1::2].mean()) == pytest.approx(-0.1, abs=1e-2)
    assert torch.equal(pseudo_label(flat, flat), flat)
    torch.testing.assert_close(pseudo_label(stripes, flat), pseudo_label(flat, stripes))
    one = torch.rand(1, 1, 5, 3)
    torch.testing.assert_close(pseudo_label(one, one), one)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("steps.denoise.terms={features: 1}", "feature maps"),
        ("steps.denoise.terms={denoising: {weight: 1, reference: teacher_cached}}", "own target"),
        ("steps.denoise.terms={pixel_reference: {weight: 1, reference: denoiser}}", "itself"),
        ("steps.denoise={owner: student, terms: {denoising: 1}}", "own target"),
        ("steps.denoise={owner: student, terms: {pixel_reference: {weight: 1, reference: denoiser}}}", "cache-teacher"),
        ("diffusion.size=huge", "diffusion.size"),
        ("diffusion.steps=5", "diffusion.steps"),
        (
            "diffusion.target=pseudo_label steps.denoise.terms.pixel_reference={weight: 1, reference: teacher_cached}",
            "then cached, too",
        ),
    ],
)
def test_impossible_recipes_are_refused(change: str, said: str) -> None:
    changes = change.split(" ", 1) if change.startswith("diffusion.target") else [change]
    with pytest.raises(InputError, match=said):
        load_recipe("diffusion_teacher", changes)


def test_a_grid_shows_what_the_denoiser_draws() -> None:
    batch = preview_batch(make_batch(samples=6))
    assert len(batch.names) == len(batch.ir) == 4
    context = BatchContext(batch, {Owner.DENOISER: tiny().eval()})
    assert sample_grid(context).shape[1] == 4 * (16 + 4)  # infrared, visible, denoiser, cached teacher


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pairs of 40×48, and pictures of a teacher that takes the maximum and darkens it."""
    folder = tmp_path_factory.mktemp("pairs")
    rng = np.random.default_rng(0)
    for index in range(3):
        vis = np.clip(rng.normal(90, 12, (40, 48, 3)) + 60 * (np.arange(48) // 8 % 2)[None, :, None], 0, 255)
        ir = np.clip(rng.normal(50, 5, (40, 48)), 0, 255)
        ir[8:24, 20:36] = 220
        write_picture(folder / "vis" / f"{index}.png", vis.astype(np.uint8))
        write_picture(folder / "ir" / f"{index}.png", ir.astype(np.uint8))
        fused = 0.9 * np.maximum(vis @ [0.299, 0.587, 0.114], ir)
        write_picture(folder / "teacher" / "darkened" / f"{index}.png", fused.astype(np.uint8))
    return folder


@pytest.fixture(scope="module")
def cache(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    cache_teacher(dataset, teacher=dataset / "teacher" / "darkened", cache=folder)
    return folder


def run(dataset: Path, cache: Path, out: Path, *changes: str, **options: object) -> list[float]:
    """Losses of a run."""
    changes = (*SMALL, *changes)
    distill(dataset, out=out, recipe="diffusion_teacher", changes=changes, cache=cache, **options)  # type: ignore[arg-type]
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(dataset: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    run(dataset, cache, out)
    return out


def test_noise_depends_on_the_seed_and_the_sample_alone(dataset: Path) -> None:
    pairs, drawn = find_pairs(dataset), {}
    for workers, size, seed in ((0, 2, 5), (2, 4, 5), (0, 2, 6)):
        config = DataConfig(crop=(16, 24), batch=size, workers=workers)
        samples = TrainingPairs(pairs, config, seed, masks=None, noise=True)
        batches = list(load_batches(samples, config, 4 // size, 12 // size))
        drawn[workers, seed] = [torch.cat([getattr(b, name) for b in batches]) for name in ("noise", "timestep")]
    (noise, timestep), (noise_again, timestep_again), (other, _) = drawn.values()
    assert noise.shape == (8, 1, 16, 24)
    assert torch.equal(noise, noise_again)
    assert torch.equal(timestep, timestep_again)
    assert not torch.equal(noise, other)
    assert len(set(timestep.tolist())) > 4
    assert float(noise.std()) == pytest.approx(1, abs=0.05)


def test_pairs_are_cut_the_same_with_and_without_noise(dataset: Path) -> None:
    config = DataConfig(crop=(16, 24), batch=2, workers=0)
    with_noise, without = (TrainingPairs(find_pairs(dataset), config, 5, masks=None, noise=n) for n in (True, False))
    for number in range(6):
        assert torch.equal(with_noise[number]["vis"], without[number]["vis"])
        assert "noise" not in without[number]


def test_a_run_leaves_a_teacher_behind(dataset: Path, finished: Path, tmp_path: Path) -> None:
    card = read_card(finished / "denoiser.safetensors")
    assert card.architecture == ARCHITECTURE
    assert card.training_data.startswith("3 pairs of the folder")
    assert "darkened" in card.training_data
    assert (finished / "samples" / "0000006.png").is_file()
    files = find_pairs(dataset)[0]
    picture = ConditionalDiffusionTeacher(finished / "denoiser.safetensors").fuse(TeacherJob(files, ("a", "b")))
    assert picture.y.shape == (40, 48)
    report = cache_teacher(dataset, teacher=finished / "denoiser.safetensors", cache=tmp_path)
    assert (report.teacher, report.done) == (ARCHITECTURE, 3)


def test_the_same_seed_gives_the_same_losses(dataset: Path, cache: Path, finished: Path, tmp_path: Path) -> None:
    first = [json.loads(line)["loss"] for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert run(dataset, cache, tmp_path / "again", "data.workers=1") == first


def test_an_interrupted_run_resumes_to_the_same_curve_and_weights(
    dataset: Path, cache: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, real_step = tmp_path / "broken", Engine.step

    def interrupted(self: Engine, number: int, batch: Batch, following: Batch | None) -> object:
        if number == 3:
            raise KeyboardInterrupt
        return real_step(self, number, batch, following)

    monkeypatch.setattr(Engine, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(dataset, cache, out)
    monkeypatch.undo()
    resumed = run(dataset, cache, out, resume=True)
    assert resumed == [json.loads(line)["loss"] for line in (finished / "metrics.jsonl").read_text().splitlines()]
    expected, got = (load_denoiser(folder / "denoiser.safetensors")[0].state_dict() for folder in (finished, out))
    assert all(torch.equal(got[key], value) for key, value in expected.items())


def test_a_run_starts_from_given_weights_and_without_cached_pictures(
    dataset: Path, finished: Path, tmp_path: Path
) -> None:
    start = finished / "denoiser.safetensors"
    fresh, continued = (
        run(dataset, tmp_path / "empty", tmp_path / name, "diffusion.target=pseudo_label", init=init)
        for name, init in (("fresh", []), ("continued", [start]))
    )
    assert fresh[0] != continued[0]
    with pytest.raises(InputError, match="cache-teacher"):
        run(dataset, tmp_path / "empty", tmp_path / "cached")


def test_wrong_weights_and_a_missing_package_leave_folders_alone(
    dataset: Path, cache: Path, finished: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = (finished / "metrics.jsonl").read_bytes()
    with pytest.raises(InputError, match="has no student"):
        run(dataset, cache, finished, init=[checkpoint], overwrite=True)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(InputError, match=r"duskfuse\[diffusion\]"):
        run(dataset, cache, finished, overwrite=True)
    assert (finished / "metrics.jsonl").read_bytes() == kept
