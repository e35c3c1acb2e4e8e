"""The conditional diffusion teacher: its sampler against a slow one, the forms of its network, sizes, and refusals."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from duskfuse.data.colour import luminance
from duskfuse.data.errors import InputError
from duskfuse.data.images import write_picture
from duskfuse.data.pair_files import PairFiles, SourcePicture, read_pair
from duskfuse.data.weights import ModelCard, save_weights
from duskfuse.teachers.conditional_diffusion import ConditionalDiffusionTeacher, sample_fused, sampling_steps
from duskfuse.teachers.denoiser import (
    ARCHITECTURE,
    TRAINED_STEPS,
    ConditionalDenoiser,
    load_denoiser,
    signal_levels,
)
from duskfuse.teachers.denoiser_sizes import DenoiserConfig, DenoiserSize, Prediction, denoiser_config
from duskfuse.teachers.teacher import Teacher, TeacherJob, ValueTransform

diffusers = pytest.importorskip("diffusers")

Array = NDArray[np.float64]
TINY = DenoiserConfig(widths=(8, 16), blocks=1, patch=2)


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are compared in single precision."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def lively(config: DenoiserConfig = TINY) -> ConditionalDenoiser:
    """A denoiser whose last convolution, zero in a fresh one, says something."""
    torch.manual_seed(0)
    network = ConditionalDenoiser(config)
    nn.init.normal_(network.unet.conv_out.weight, std=0.1)
    return network.eval()


def sources(height: int, width: int, batch: int = 1) -> tuple[Tensor, Tensor]:
    """Visible luminance and infrared, ``[B, 1, H, W]`` in [0, 1]."""
    vis_y, ir = torch.rand(2, batch, 1, height, width, generator=torch.Generator().manual_seed(height + width))
    return vis_y, ir


def toy_prediction(noisy: Tensor, vis_y: Tensor, ir: Tensor, timestep: Tensor) -> Tensor:
    """Something like a predictor of clean pictures, beyond [−1, 1] in places."""
    share = timestep.view(-1, 1, 1, 1) / TRAINED_STEPS
    return 1.5 * share * noisy + 2 * torch.maximum(vis_y, ir) - 1 + 0.2 * noisy.roll(1, -1) * vis_y


def reference_sample(vis_y: Tensor, ir: Tensor, noises: list[Array], times: list[int], eta: float) -> Array:
    """DDIM of one picture, ᾱ as a running product and ε spelled out; ``noises`` are those of start and steps."""
    signal, product = [], 1.0
    for t in range(1000):
        product *= 1 - (1e-4 + (0.02 - 1e-4) * t / 999)
        signal.append(product)
    x = noises[0]
    for number, t in enumerate(times):
        a = signal[t]
        b = signal[times[number + 1]] if number + 1 < len(times) else 1.0
        clean = toy_prediction(torch.from_numpy(x)[None, None], vis_y, ir, torch.tensor([t]))[0, 0].numpy()
        clean = np.minimum(np.maximum(clean, -1), 1)
        epsilon = (x - np.sqrt(a) * clean) / np.sqrt(1 - a)
        sigma = eta * np.sqrt((1 - b) / (1 - a)) * np.sqrt(1 - a / b)
        x = np.sqrt(b) * clean + np.sqrt(1 - b - sigma**2) * epsilon
        if sigma > 0:
            x = x + sigma * noises[number + 1]
    return (x + 1) / 2


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_sampler_equals_the_slow_one(eta: float) -> None:
    """Within the single precision of ᾱ, for each picture of a batch."""
    vis_y, ir = (picture.double() for picture in sources(9, 12, batch=2))
    sampled = sample_fused(toy_prediction, vis_y, ir, steps=5, seed=11, eta=eta)
    generator = torch.Generator().manual_seed(11)
    noises = [torch.randn(1, 1, 9, 12, generator=generator)[0, 0].double().numpy() for _ in range(5)]
    for n in range(2):
        one = vis_y[n : n + 1], ir[n : n + 1]
        expected = reference_sample(*one, noises, [800, 600, 400, 200, 0], eta)
        assert np.abs(sampled[n, 0].numpy() - expected).max() < 1e-5


def test_the_sampler_equals_that_of_diffusers() -> None:
    vis_y, ir = sources(8, 8)
    scheduler = diffusers.DDIMScheduler(1000, 1e-4, 0.02, "linear", prediction_type="sample", clip_sample=True)
    scheduler.set_timesteps(5)
    x = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(3407))
    for time in scheduler.timesteps:
        said = toy_prediction(x, vis_y, ir, time[None])
        x = scheduler.step(said, time, x, use_clipped_model_output=True).prev_sample
    torch.testing.assert_close(sample_fused(toy_prediction, vis_y, ir), (x + 1) / 2, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("steps", "times"), [(5, [800, 600, 400, 200, 0]), (2, [500, 0]), (3, [666, 333, 0]), (1000, None)]
)
def test_steps_are_equal_strides_down_to_time_0(steps: int, times: list[int] | None) -> None:
    chosen = sampling_steps(steps)
    assert [step.time for step in chosen] == (times or list(reversed(range(1000))))
    assert chosen[-1].next_signal == 1
    assert all(a.next_signal == b.signal for a, b in pairwise(chosen))


def test_noise_is_added_as_by_single_steps() -> None:
    """√ᾱ_t·x_0 and the variance 1 − ᾱ_t are those of t steps x ← √(1 − β)·x + √β·ε (Ho et al. 2020, eqs. 2 and 4)."""
    network = ConditionalDenoiser(TINY)
    scale, variance = 1.0, 0.0
    for t in range(TRAINED_STEPS):
        beta = 1e-4 + (0.02 - 1e-4) * t / 999
        scale, variance = scale * (1 - beta) ** 0.5, variance * (1 - beta) + beta
        if t in (0, 1, 200, 999):
            x = network.add_noise(torch.full((1, 1, 1, 2), 0.5), torch.tensor([[[[0.0, 2.0]]]]), torch.tensor([t]))
            assert x.flatten().tolist() == pytest.approx([0.5 * scale, 0.5 * scale + 2 * variance**0.5], rel=1e-5)


def test_a_fresh_denoiser_says_the_brighter_source() -> None:
    vis_y, ir = sources(16, 20, batch=2)
    said = ConditionalDenoiser(TINY)(torch.randn(2, 1, 16, 20), vis_y, ir, torch.tensor([10, 900]))
    torch.testing.assert_close(said, 2 * torch.maximum(vis_y, ir) - 1)
    torch.testing.assert_close(sample_fused(ConditionalDenoiser(TINY), vis_y, ir), torch.maximum(vis_y, ir))


def test_a_denoiser_that_says_the_noise_finds_the_picture() -> None:
    """x̂_0 = (x_t − √(1 − ᾱ)·ε̂)/√ᾱ gives x_0 back where ε̂ is the noise; here both are constant."""
    network = ConditionalDenoiser(DenoiserConfig(widths=(8,), blocks=1, prediction=Prediction.NOISE))
    nn.init.constant_(network.unet.conv_out.bias, 0.7)
    timestep = torch.tensor([3, 400])
    noisy = network.add_noise(torch.full((2, 1, 8, 8), -0.3), torch.full((2, 1, 8, 8), 0.7), timestep)
    clean = network(noisy, *sources(8, 8, batch=2), timestep)
    torch.testing.assert_close(clean, torch.full_like(clean, -0.3), rtol=0, atol=1e-5)


@pytest.mark.parametrize("prediction", list(Prediction))
def test_output_gain_is_the_change_of_the_picture(prediction: Prediction) -> None:
    network = lively(DenoiserConfig(widths=(8,), blocks=1, prediction=prediction))
    inputs = (torch.randn(3, 1, 8, 8), *sources(8, 8, batch=3), torch.tensor([0, 300, 700]))
    before = network(*inputs)
    with torch.no_grad():
        network.unet.conv_out.bias += 1
    moved = (network(*inputs) - before).abs().mean(dim=(1, 2, 3), keepdim=True)
    torch.testing.assert_close(moved, network.output_gain(inputs[-1]), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(33, 47), (517, 389), (5, 3), (8, 64)])
def test_every_size_is_fused_whole(height: int, width: int) -> None:
    y = sample_fused(lively(), *sources(height, width), steps=2)
    assert y.shape == (1, 1, height, width)
    assert y.isfinite().all()
    assert (y.min(), y.max()) >= (0, 0)
    assert y.max() <= 1


def test_odd_sizes_are_continued_by_reflection() -> None:
    network = lively()
    inputs = (torch.randn(1, 1, 33, 46, generator=torch.Generator().manual_seed(1)), *sources(33, 46))
    by_hand = (F.pad(x, (0, 2, 0, 3), mode="reflect") for x in inputs)
    timestep = torch.tensor([500])
    torch.testing.assert_close(network(*inputs, timestep), network(*by_hand, timestep)[..., :33, :46])


def test_a_picture_depends_on_its_seed_and_not_on_its_neighbours() -> None:
    network = lively()
    vis_y, ir = sources(24, 32, batch=3)
    together = sample_fused(network, vis_y, ir, eta=1)
    assert torch.equal(together, sample_fused(network, vis_y, ir, eta=1))
    alone = sample_fused(network, vis_y[1:2], ir[1:2], eta=1)
    torch.testing.assert_close(alone, together[1:2], rtol=0, atol=1e-5)  # sums of another batch size
    assert not torch.allclose(together, sample_fused(network, vis_y, ir, eta=1, seed=1), atol=1e-3)


def test_gradients_reach_every_weight() -> None:
    network = lively().train()
    network(torch.randn(2, 1, 16, 16), *sources(16, 16, batch=2), torch.tensor([5, 500])).square().mean().backward()
    idle = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert idle == []


@pytest.mark.parametrize(
    ("size", "parameters"),
    [(DenoiserSize.SMALL, 1_758_468), (DenoiserSize.DIFF_IF, 23_655_025), (DenoiserSize.MASK_DIFUSER, 86_764_161)],
)
def test_sizes(size: DenoiserSize, parameters: int) -> None:
    with torch.device("meta"), torch.no_grad():
        network = ConditionalDenoiser(denoiser_config(size))
        picture = torch.empty(1, 1, 64, 96)
        assert network(picture, picture, picture, torch.zeros(1, dtype=torch.int64)).shape == picture.shape
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


@pytest.mark.parametrize(
    "wrong", [{"widths": ()}, {"widths": (8, 6)}, {"attention": (2,)}, {"blocks": 0}, {"patch": 0}]
)
def test_impossible_sizes_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DenoiserConfig(**({"widths": (8, 16), "blocks": 1} | wrong))  # type: ignore[arg-type]


def write(path: Path, network: nn.Module, architecture: str = ARCHITECTURE, **settings: object) -> Path:
    card = ModelCard(architecture, {**getattr(network, "settings", {}), **settings}, "luma", "0.1.0", "nothing")
    save_weights(path, network, card)
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("weights") / "denoiser.safetensors", lively())


@pytest.fixture
def job(tmp_path: Path) -> TeacherJob:
    """A pair of 45×38 pixels on disk."""
    rng = np.random.default_rng(0)
    write_picture(tmp_path / "ir.png", rng.integers(0, 256, (38, 45), dtype=np.uint8))
    write_picture(tmp_path / "vis.png", rng.integers(0, 256, (38, 45, 3), dtype=np.uint8))
    files = PairFiles("pair", SourcePicture(tmp_path / "ir.png"), SourcePicture(tmp_path / "vis.png"))
    return TeacherJob(files, ("ir", "vis"))


@pytest.mark.parametrize("config", [TINY, DenoiserConfig((8, 16), 2, (1,), 1, Prediction.NOISE)])
def test_a_checkpoint_rebuilds_its_network(tmp_path: Path, config: DenoiserConfig) -> None:
    network = lively(config)
    again, card = load_denoiser(write(tmp_path / "d.safetensors", network))
    assert again.config == config
    assert card.architecture == ARCHITECTURE
    inputs = (torch.randn(1, 1, 16, 16), *sources(16, 16), torch.tensor([77]))
    assert torch.equal(again(*inputs), network(*inputs))


def test_the_teacher_keeps_size_and_brightness(weights: Path, job: TeacherJob) -> None:
    teacher: Teacher = ConditionalDiffusionTeacher(weights)
    picture = teacher.fuse(job)
    assert (picture.crop, picture.transform) == ((0, 0, 38, 45), ValueTransform.IDENTITY)
    assert picture.y.dtype == np.float32
    pair = read_pair(job.files)
    expected = sample_fused(lively(), luminance(pair.vis)[None], pair.ir[None], steps=5, seed=3407)
    assert np.array_equal(picture.y, expected[0, 0].numpy())
    assert np.array_equal(picture.y, ConditionalDiffusionTeacher(weights).fuse(job).y)


def test_settings_tell_what_changes_a_picture(weights: Path, job: TeacherJob, tmp_path: Path) -> None:
    options: list[dict[str, float]] = [{}, {"steps": 4}, {"seed": 1}, {"eta": 1.0}]
    teachers = [ConditionalDiffusionTeacher(weights, **option) for option in options]  # type: ignore[arg-type]
    torch.manual_seed(1)
    teachers.append(ConditionalDiffusionTeacher(write(tmp_path / "other.safetensors", ConditionalDenoiser(TINY))))
    for one, other in pairwise(teachers):
        assert one.settings != other.settings
        assert not np.array_equal(one.fuse(job).y, other.fuse(job).y)


@pytest.mark.parametrize("options", [{"steps": 1}, {"steps": 1001}, {"eta": -0.1}, {"eta": 1.5}])
def test_impossible_samplers_are_refused(weights: Path, options: dict[str, float]) -> None:
    with pytest.raises(InputError, match=r"2 to 1000|from 0"):
        ConditionalDiffusionTeacher(weights, **options)  # type: ignore[arg-type]


def test_checkpoints_of_other_networks_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'unet'.*'conditional-diffusion' is wanted"):
        ConditionalDiffusionTeacher(checkpoint)
    for settings in ({"widths": [8, 6]}, {"prediction": "velocity"}, {"blocks": "many"}):
        wrong = write(tmp_path / "wrong.safetensors", lively(), **settings)
        with pytest.raises(InputError, match=rf"wrong\.safetensors: card with .*{next(iter(settings))}"):
            ConditionalDiffusionTeacher(wrong)
    with pytest.raises(InputError, match="must be those of its network"):
        ConditionalDiffusionTeacher(write(tmp_path / "wider.safetensors", lively(), widths=[16, 32]))


def test_without_diffusers_the_remedy_is_named(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(InputError, match=r"pip install 'duskfuse\[diffusion\]'"):
        ConditionalDiffusionTeacher(weights)


def test_results_that_are_not_finite_are_refused(job: TeacherJob, tmp_path: Path) -> None:
    network = lively()
    nn.init.constant_(network.unet.conv_in.weight, 3e38)
    with pytest.raises(InputError, match="pair: the fused picture has NaN"):
        ConditionalDiffusionTeacher(write(tmp_path / "wild.safetensors", network)).fuse(job)


def test_a_picture_too_large_for_the_gpu_names_its_size(
    weights: Path, job: TeacherJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = ConditionalDiffusionTeacher(weights)

    def full(*_: object) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(ConditionalDenoiser, "forward", full)
    with pytest.raises(InputError, match="does not hold a picture of 45×38"):
        teacher.fuse(job)


def test_the_first_of_five_steps_multiplies_errors_of_the_noise_by_twenty_five() -> None:
    """Why pictures are predicted."""
    signal = float(signal_levels()[800])
    assert ((1 - signal) / signal) ** 0.5 == pytest.approx(25.7, abs=0.1)
