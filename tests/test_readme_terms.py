"""The losses of the real-time README: affine pixels, perceptual network, adapters, stages, a teacher that is online."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from duskfuse.data.colour import luminance, recombine
from duskfuse.data.errors import InputError
from duskfuse.data.fuser import Colour, FusionOutput
from duskfuse.data.images import write_picture
from duskfuse.data.priors.cache_masks import cache_masks
from duskfuse.data.priors.sources import MaskSourceName
from duskfuse.data.weights import ModelCard, load_weights, save_weights
from duskfuse.distill.adapters import FeatureAdapters, build_adapters
from duskfuse.distill.context import Batch, BatchContext
from duskfuse.distill.distill import distill
from duskfuse.distill.engine import Engine, ramped_weight
from duskfuse.distill.perceptual_network import with_perceptual
from duskfuse.distill.recipe import FusionField, Owner, Recipe
from duskfuse.distill.recipe_files import load_recipe
from duskfuse.distill.run_folder import RunFolder
from duskfuse.distill.terms import TermName
from duskfuse.distill.terms.distillation import compared_pictures, feature_adapters, pixel_affine, pixel_reference
from duskfuse.distill.terms.perceptual import perceptual
from duskfuse.run_page import write_run_page
from duskfuse.students.mobile import MobileStudent
from duskfuse.students.unet import OutputHead, UNetStudent
from duskfuse.students.zoo import load_student
from duskfuse.tasks.encoders import filter_encoder, squeezenet_encoder
from duskfuse.tasks.vgg import Vgg16Encoder, vgg_encoder
from duskfuse.teachers import main_network
from duskfuse.teachers.cache_teacher import cache_teacher
from duskfuse.teachers.main_network import MainNetwork

CPU = torch.device("cpu")


def rand(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def make_batch(size: int = 32, samples: int = 2, dtype: torch.dtype = torch.float32) -> Batch:
    masks = rand(samples, 2, size, size, seed=3) > 0.5
    pictures = {name: rand(samples, c, size, size, seed=c, dtype=dtype) for name, c in (("ir", 1), ("vis", 3))}
    teacher = rand(samples, 1, size, size, seed=7, dtype=dtype)
    return Batch(**pictures, masks_ir=masks, masks_vis=masks, names=("a", "b")[:samples], teacher_y=teacher)


# pixel_affine


def test_affine_term_equals_least_squares_per_sample() -> None:
    o, ref = rand(3, 1, 6, 7, seed=1), rand(3, 1, 6, 7, seed=2)
    o = 0.6 * ref + 0.2 + 0.1 * o
    want = []
    for one, other in zip(o.double().numpy(), ref.double().numpy(), strict=True):
        design = np.stack([other.ravel(), np.ones(other.size)], axis=1)
        solution = np.linalg.lstsq(design, one.ravel(), rcond=None)[0]
        want.append(np.abs(one.ravel() - design @ solution).mean())
    context = BatchContext(make_batch(), {})
    got = float(pixel_affine(FusionOutput(o), FusionOutput(ref), context))
    assert got == pytest.approx(np.mean(want), rel=1e-4)


def test_affine_term_ignores_stretched_brightness_and_no_inversion() -> None:
    o, ref, context = rand(2, 1, 16, 16, seed=1), rand(2, 1, 16, 16, seed=2), BatchContext(make_batch(), {})
    ref = 0.5 * ref + 0.5 * o
    value = float(pixel_affine(FusionOutput(o), FusionOutput(ref), context))
    for scale, offset in ((2.5, -0.4), (0.1, 0.7)):
        stretched = float(pixel_affine(FusionOutput(o), FusionOutput(scale * ref + offset), context))
        assert stretched == pytest.approx(value, rel=1e-4)
    assert float(pixel_affine(FusionOutput(0.3 * ref + 0.2), FusionOutput(ref), context)) == pytest.approx(0, abs=1e-6)
    inverted = float(pixel_affine(FusionOutput(1 - ref), FusionOutput(ref), context))
    assert inverted == pytest.approx(float((ref - ref.mean(dim=(2, 3), keepdim=True)).abs().mean()), rel=1e-4)
    assert float(pixel_affine(FusionOutput(o), FusionOutput(torch.full_like(o, 0.4)), context)) < 1


def test_affine_term_has_the_gradient_of_constant_coefficients() -> None:
    o, ref = rand(2, 1, 8, 8, seed=1).requires_grad_(), rand(2, 1, 8, 8, seed=2)
    pixel_affine(FusionOutput(o), FusionOutput(ref), BatchContext(make_batch(), {})).backward()
    assert o.grad is not None
    assert torch.equal(o.grad.abs(), torch.full_like(o, 1 / o.numel()))  # L1: ±1/n everywhere, nothing through a and b


# Pictures in colour


def test_a_reference_of_luminance_gets_the_visible_chroma() -> None:
    batch = make_batch()
    context, grey = BatchContext(batch, {}), FusionOutput(batch.vis_y)
    coloured = FusionOutput(batch.vis_y, rgb=batch.vis)
    assert float(pixel_reference(coloured, grey, context)) == pytest.approx(0, abs=1e-6)
    assert float(pixel_reference(FusionOutput(batch.vis_y, rgb=batch.vis_y.expand(-1, 3, -1, -1)), grey, context)) > 0.1
    assert compared_pictures(grey, coloured, context) == (batch.vis_y, batch.vis_y)


# perceptual


def test_vgg_layers_are_torchvisions() -> None:
    from torchvision.models.vgg import cfgs, make_layers

    torch.manual_seed(0)
    encoder, theirs = Vgg16Encoder().freeze(), make_layers(cfgs["D"])
    state = {key.removeprefix("features."): value for key, value in encoder.state_dict().items()}
    theirs.load_state_dict({key: state[key] for key in theirs.state_dict() if key in state}, strict=False)
    image, maps = rand(1, 3, 32, 40), []
    x = (image - encoder.mean) / encoder.std
    for position, module in enumerate(theirs[:23]):
        x = module(x)
        if position in (3, 8, 15, 22):
            maps.append(x)
    got = encoder.raw(image)
    assert [tuple(m.shape[1:]) for m in got] == [(64, 32, 40), (128, 16, 20), (256, 8, 10), (512, 4, 5)]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(got, maps, strict=True))
    assert not any(p.requires_grad for p in encoder.parameters())


def test_vgg_weights_come_from_either_kind_of_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = {k: v for k, v in Vgg16Encoder().state_dict().items() if k.startswith("features.")}
    torch.save(state | {"classifier.0.bias": torch.zeros(3)}, tmp_path / "vgg.pth")
    save_file(state, tmp_path / "vgg.safetensors")
    for name in ("vgg.pth", "vgg.safetensors"):
        read = vgg_encoder(tmp_path / name).state_dict()
        assert all(torch.equal(read[key], value) for key, value in state.items())
    save_file({"features.0.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=r"20 of 20 weights are missing"):
        vgg_encoder(tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="no such file"):
        vgg_encoder(tmp_path / "none.pth")


def test_perceptual_term_sums_the_mean_differences_of_raw_maps() -> None:
    encoder = filter_encoder()
    context = BatchContext(make_batch(24), {}, perceptual=encoder)
    o, ref = FusionOutput(rand(2, 1, 24, 24, seed=1).requires_grad_()), FusionOutput(rand(2, 1, 24, 24, seed=2))
    maps = [encoder.layers((x.y.expand(-1, 3, -1, -1) - encoder.mean) / encoder.std) for x in (o, ref)]
    want = sum(float((a - b).abs().mean().detach()) for a, b in zip(*maps, strict=True))
    value = perceptual(o, ref, context)
    assert float(value.detach()) == pytest.approx(want, rel=1e-5)
    value.backward()
    assert o.y.grad is not None
    assert (o.y.grad != 0).any(dim=(1, 2, 3)).all()
    assert float(perceptual(ref, ref, context)) == 0
    colours = FusionOutput(o.y.detach(), rgb=rand(2, 3, 24, 24, seed=4))
    assert float(perceptual(colours, ref, context)) > 0


@pytest.mark.realdata
def test_perceptual_term_through_real_squeezenet_prefers_the_near_picture(squeezenet_weights: Path) -> None:
    context = BatchContext(make_batch(64), {}, perceptual=squeezenet_encoder(squeezenet_weights))
    ref = F.interpolate(rand(1, 1, 8, 8), size=64, mode="bicubic").clamp(0, 1)
    noise = rand(1, 1, 64, 64, seed=5) - 0.5
    near, far = (float(perceptual(FusionOutput(ref + s * noise), FusionOutput(ref), context)) for s in (0.05, 0.5))
    assert 0 < near < far


def test_without_weights_the_perceptual_term_is_left_out_loudly(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from torchvision.models import VGG16_Weights

    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(type(VGG16_Weights.IMAGENET1K_V1), "get_state_dict", unreachable)
    recipe = load_recipe("realtime_readme")
    left, encoder = with_perceptual(recipe)
    assert encoder is None
    assert TermName.PERCEPTUAL not in left.terms_used()
    assert left.terms_used() == recipe.terms_used() - {TermName.PERCEPTUAL}
    said = capsys.readouterr().err
    assert said.count("perceptual is left out") == 1
    assert "no network" in said
    alone = load_recipe("realtime_readme", ["steps.student.terms={perceptual: {weight: 1, reference: teacher_cached}}"])
    with pytest.raises(InputError, match="no term but perceptual"):
        with_perceptual(alone)
    with pytest.raises(InputError, match="no such file"):
        with_perceptual(load_recipe("realtime_readme", [f"perceptual.weights={tmp_path / 'none.pth'}"]))


# feature_adapters


def adapted_recipe(*changes: str) -> Recipe:
    terms = "steps.student.terms={feature_adapters: {weight: 0.5, reference: teacher_sg}}"
    return load_recipe("realtime_readme", [terms, "data.masks=2", "optimisers.student.ema=null", *changes])


def adapted_engine(recipe: Recipe) -> Engine:
    torch.manual_seed(0)
    networks = {Owner.STUDENT: MobileStudent(), Owner.TEACHER: MainNetwork(masks=2)}
    return Engine(recipe, networks, None, CPU, adapters=build_adapters(recipe, networks))


def test_adapters_fit_the_taps_of_both_networks_and_move_with_the_student() -> None:
    engine = adapted_engine(adapted_recipe("optimisers.student.warmup=0", "optimisers.student.lr=1.0e-2"))
    assert engine.adapters is not None
    shapes = [tuple(c.weight.shape[:2]) for c in engine.adapters.convolutions]
    assert shapes == [(32, 48), (32, 80), (32, 256), (32, 48), (32, 16)]
    before = {name: value.clone() for name, value in engine.adapters.state_dict().items()}
    first = [engine.step(number, make_batch()).terms[TermName.FEATURE_ADAPTERS] for number in range(12)]
    assert first[-1] < first[0]
    assert all(not torch.equal(value, before[name]) for name, value in engine.adapters.state_dict().items())
    assert all(parameter.grad is None for parameter in engine.networks[Owner.TEACHER].parameters())


def test_adapters_are_in_checkpoints_and_a_continued_run_is_the_same() -> None:
    engine = adapted_engine(adapted_recipe())
    engine.step(0, make_batch())
    state = engine.state_dict()
    again = adapted_engine(adapted_recipe())
    again.load_state_dict(torch.load(_saved(state), weights_only=True))
    assert again.step(1, make_batch()).loss == engine.step(1, make_batch()).loss
    assert engine.adapters is not None
    assert again.adapters is not None
    for one, other in zip(engine.adapters.parameters(), again.adapters.parameters(), strict=True):
        assert torch.equal(one, other)
    assert not any("adapter" in name for name in engine.shown(Owner.STUDENT).state_dict())


def _saved(state: object) -> object:
    import io

    stream = io.BytesIO()
    torch.save(state, stream)
    stream.seek(0)
    return stream


def test_adapted_features_by_hand() -> None:
    adapters = FeatureAdapters([2], [3])
    ours, theirs = rand(2, 2, 4, 5, seed=1), rand(2, 3, 8, 10, seed=2)
    context = BatchContext(make_batch(), {}, adapters=adapters)
    value = feature_adapters(FusionOutput(ours, (ours,)), FusionOutput(ours, (theirs,)), context)
    pooled = theirs.view(2, 3, 4, 2, 5, 2).mean(dim=(3, 5)).flatten(1)
    adapted = F.conv2d(ours, adapters.convolutions[0].weight, adapters.convolutions[0].bias).flatten(1)  # type: ignore[arg-type]
    want = 1 - F.cosine_similarity(adapted, pooled).mean()
    assert float(value.detach()) == pytest.approx(float(want.detach()), rel=1e-5)


def test_features_that_cannot_be_compared_are_refused_before_the_run() -> None:
    with pytest.raises(InputError, match=r"feature_adapters needs feature maps.*teacher_cached has none"):
        load_recipe("realtime_readme", ["steps.student.terms.feature_adapters={weight: 1, reference: teacher_cached}"])
    with pytest.raises(InputError, match="moves the student and its adapters"):
        load_recipe("default", ["steps.teacher.terms.feature_adapters=1"])
    with pytest.raises(InputError, match="feature_adapters moves adapters besides"):
        load_recipe("paper_sage_unrolled", ["steps.student.terms.feature_adapters=1"])
    equal_shapes = "steps.student.terms={features: {weight: 1, reference: teacher_sg}}"
    recipe = load_recipe("realtime_readme", [equal_shapes])
    with pytest.raises(InputError, match="use the term feature_adapters"):
        build_adapters(recipe, {Owner.STUDENT: MobileStudent(), Owner.TEACHER: MainNetwork()})
    assert build_adapters(recipe, {Owner.STUDENT: UNetStudent(), Owner.TEACHER: MainNetwork()}) is None


# Stages


def test_stages_of_the_readme() -> None:
    terms = load_recipe("realtime_readme").steps["student"].terms

    def weighted(step: int) -> set[str]:
        return {name.value for name, term in terms.items() if ramped_weight(term, step)}

    assert weighted(0) == weighted(1360) == {"pixel_reference"}
    assert weighted(1361) == weighted(2720) == {"pixel_reference", "ssim_reference"}
    assert weighted(2721) == {term.value for term in terms} - {"feature_adapters"}
    full = {name.value: ramped_weight(term, 16_319) for name, term in terms.items()}
    assert (full["pixel_reference"], full["perceptual"], full["ssim_reference"]) == (1.0, 0.1, 1.0)
    assert (full["gradient_reference"], full["feature_adapters"]) == (0.5, 0)


def test_terms_without_weight_are_neither_computed_nor_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    for name in TermName:
        counted = lambda *given, name=name, term=name.function: (called.append(name), term(*given))[1]  # noqa: E731
        monkeypatch.setattr(name, "function", counted)
    recipe = load_recipe("realtime_readme", ["steps.student.terms.ssim_reference.ramp=[1, 2]"])
    engine = Engine(recipe, {Owner.STUDENT: UNetStudent()}, None, CPU)
    result = engine.step(0, make_batch())
    assert called == ["pixel_reference"] == [name.value for name in result.terms]
    assert result.loss == pytest.approx(result.terms[TermName.PIXEL_REFERENCE])
    engine.step(1, make_batch())
    assert list(engine.step(2, make_batch()).terms) == ["pixel_reference", "ssim_reference"]


def test_a_step_before_every_ramp_moves_nothing() -> None:
    changes = ["steps.student.terms={pixel_reference: {weight: 1, reference: teacher_cached, ramp: [5, 6]}}"]
    engine = Engine(load_recipe("realtime_readme", changes), {Owner.STUDENT: UNetStudent()}, None, CPU)
    result = engine.step(0, make_batch())
    assert (result.loss, result.terms, result.gradient_norm) == (0, {}, 0)


# The teacher online, cached, and both


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    rng = np.random.default_rng(0)
    for index in range(3):
        vis, ir = (np.clip(rng.normal(m, 40, (40, 48)), 0, 255).astype(np.uint8) for m in (90, 140))
        write_picture(folder / "vis" / f"{index}.png", np.repeat(vis[..., None], 3, axis=2))
        write_picture(folder / "ir" / f"{index}.png", ir)
        write_picture(folder / "ready" / f"{index}.png", np.maximum(vis, ir))
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    path, network = tmp_path_factory.mktemp("teacher") / "teacher.safetensors", MainNetwork(masks=2)
    save_weights(path, network, ModelCard(main_network.ARCHITECTURE, network.settings, "luma", "0", "none"))
    return path


TINY = (
    "data.crop=[32, 32]",
    "data.batch=2",
    "data.workers=0",
    "data.masks=2",
    "phases.0.batches=3",
    "optimisers.student.warmup=0",
    "student={}",
    "steps.student.terms.perceptual.weight=0",
)


def logged(out: Path) -> list[dict[str, float]]:
    return [json.loads(line)["terms"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_cached_pictures_need_neither_masks_nor_a_main_network(pairs: Path, tmp_path: Path) -> None:
    cache_teacher(pairs, teacher=pairs / "ready", cache=tmp_path / "cache")
    report = distill(pairs, out=tmp_path / "run", recipe="realtime_readme", changes=TINY, cache=tmp_path / "cache")
    assert set(report.weights) == {"student"}
    assert [set(terms) for terms in logged(tmp_path / "run")] == [{"pixel_reference"}] * 3


def test_a_trained_main_network_is_looked_at_online_and_stays_as_it_is(
    pairs: Path, teacher: Path, tmp_path: Path
) -> None:
    online = (
        *TINY,
        "steps.student.terms={pixel_reference: {weight: 1, reference: teacher_sg}, feature_adapters: 0.5}",
        "optimisers.student.ema=null",
    )
    run = {"recipe": "realtime_readme", "cache": tmp_path / "cache"}
    with pytest.raises(InputError, match="cache-masks"):
        distill(pairs, out=tmp_path / "a", changes=online, init=[teacher], **run)  # type: ignore[arg-type]
    cache_masks(pairs, source=MaskSourceName.REGIONS, cache=tmp_path / "cache")
    with pytest.raises(InputError, match=r"compares with the teacher and does not.*--init teacher.safetensors"):
        distill(pairs, out=tmp_path / "a", changes=online, **run)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"masks 2, the recipe builds one of masks 3.*data\.masks=2"):
        distill(pairs, out=tmp_path / "a", changes=(*online, "data.masks=3"), init=[teacher], **run)  # type: ignore[arg-type]
    report = distill(pairs, out=tmp_path / "run", changes=online, init=[teacher], **run)  # type: ignore[arg-type]
    assert set(report.weights) == {"student"}
    assert [set(terms) for terms in logged(tmp_path / "run")] == [{"pixel_reference", "feature_adapters"}] * 3
    checkpoint = RunFolder(tmp_path / "run").load()
    assert checkpoint is not None
    state = checkpoint["engine"]
    given = MainNetwork(masks=2)
    load_weights(teacher, given, main_network.ARCHITECTURE)
    assert all(torch.equal(value, state["networks"]["teacher"][key]) for key, value in given.state_dict().items())
    load_student(tmp_path / "run" / "student.safetensors")  # nothing of the adapters in it


def test_cached_pictures_and_an_online_teacher_at_once(pairs: Path, teacher: Path, tmp_path: Path) -> None:
    cache_teacher(pairs, teacher=pairs / "ready", cache=tmp_path / "cache")
    cache_masks(pairs, source=MaskSourceName.REGIONS, cache=tmp_path / "cache")
    both = (
        *TINY,
        "steps.student.terms.ssim_reference={weight: 1, reference: teacher_sg}",
        "steps.student.terms.feature_adapters={weight: 0.5, reference: teacher_sg, ramp: [1, 2]}",
    )
    out = tmp_path / "run"
    distill(pairs, out=out, recipe="realtime_readme", changes=both, cache=tmp_path / "cache", init=[teacher])
    names = {"pixel_reference", "ssim_reference"}
    assert [set(terms) for terms in logged(out)] == [names, names, names | {"feature_adapters"}]
    assert "feature_adapters" in write_run_page(out).read_text()  # though no curve begins with the run


def test_weights_of_other_settings_are_refused(pairs: Path, tmp_path: Path) -> None:
    cache_teacher(pairs, teacher=pairs / "ready", cache=tmp_path / "cache")
    student = UNetStudent(OutputHead.TANH)
    save_weights(tmp_path / "s.safetensors", student, ModelCard("unet", student.settings, "luma", "0", "none"))
    with pytest.raises(InputError, match=r"head tanh.*student\.settings\.head=tanh"):
        distill(
            pairs,
            out=tmp_path / "run",
            recipe="realtime_readme",
            changes=TINY,
            cache=tmp_path / "cache",
            init=[tmp_path / "s.safetensors"],
        )


# Overfitting


@pytest.mark.slow
@pytest.mark.parametrize(("colour", "updates"), [(Colour.LUMA, 150), (Colour.RGB, 220)])
def test_one_pair_of_128_is_learned_to_35_db(colour: Colour, updates: int) -> None:
    """Acceptance check 13; the teacher's picture is the brighter source."""
    changes = [
        "steps.student.terms={pixel_reference: {weight: 1, reference: teacher_cached}}",
        "optimisers.student={lr: 3.0e-3, warmup: 10}",
        f"phases.0.batches={updates}",
        "data.batch=1",
    ]
    torch.manual_seed(0)
    engine = Engine(load_recipe("realtime_readme", changes), {Owner.STUDENT: MobileStudent(colour)}, None, CPU)
    vis, ir = (F.interpolate(rand(1, c, 16, 16, seed=c), size=128, mode="bicubic").clamp(0, 1) for c in (3, 1))
    masks = torch.zeros(1, 1, 128, 128, dtype=torch.bool)
    teacher = luminance(vis).maximum(ir)
    batch = Batch(ir=ir, vis=vis, masks_ir=masks, masks_vis=masks, names=("one",), teacher_y=teacher)
    for number in range(updates):
        engine.step(number, batch)
    shown = engine.preview(batch).field(FusionField.STUDENT_SG)  # with the statistics that are exported
    pictures = [(shown.y, teacher)] if shown.rgb is None else [(shown.y, teacher), (shown.rgb, recombine(teacher, vis))]
    assert all(-10 * float(torch.log10((a - b).square().mean())) > 35 for a, b in pictures)
