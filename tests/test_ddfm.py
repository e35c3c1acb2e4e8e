"""The DDFM teacher: its sampler against a slow double-precision one, and each slip of the published form beside its
correction, on the real network class with random weights.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from duskfuse.data.colour import luminance, recombine
from duskfuse.data.errors import InputError
from duskfuse.data.geometry import pad_reflected
from duskfuse.data.images import write_picture
from duskfuse.data.layout import find_pairs
from duskfuse.data.pair_files import PairFiles, SourcePicture, read_pair
from duskfuse.teachers import ddfm
from duskfuse.teachers.ddfm import DdfmForm, DdfmTeacher, respaced, sample_fused
from duskfuse.teachers.teacher import Teacher, TeacherJob, ValueTransform
from duskfuse.teachers.unconditional_unet import load_unconditional_unet

diffusers = pytest.importorskip("diffusers")

Array = NDArray[np.float64]
STUDIO = np.array([[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]])
FULL = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
TOTAL_VARIATION = 1e-3


def toy_noise(x: Tensor, time: int) -> Tensor:
    """Something like a predictor of noise: of the pixel, its colours and its neighbours."""
    return 0.9 * x + 0.3 * x.flip(1) * x.roll(1, -1) / (1 + x**2) + 0.1 * (time / 1000)


def reference_schedule(steps: int) -> list[tuple[int, float, float]]:
    """Time, ᾱ and the next ᾱ by respaced β, as guided-diffusion makes them."""
    betas = [1e-4 + (0.02 - 1e-4) * t / 999 for t in range(1000)]
    kept, position = [], 0.0
    for _ in range(steps):
        kept.append(round(position))
        position += 999 / (steps - 1)
    product, last, new_betas = 1.0, 1.0, []
    for time, beta in enumerate(betas):
        product *= 1 - beta
        if time in kept:
            new_betas.append(1 - product / last)
            last = product
    products = np.cumprod([1 - beta for beta in new_betas])
    return [(kept[n], products[n], products[n - 1] if n else 1.0) for n in reversed(range(steps))]


def reference_em(f: Array, ir: Array, vis: Array, state: list[Any], mirrored: bool) -> Array:
    """The fusion step of one picture ``[H, W]`` by numpy's FFT; changes ``state``: F1, F2, τ_a, τ_b."""
    f1, f2, tau_a, tau_b = state
    y, x = ir - vis, f - vis
    c = np.sqrt(2 / tau_a / (y - x + 1e-6) ** 2)
    d = np.minimum(np.sqrt(2 / tau_b / (x**2 + 1e-6)), 2 * c)
    k1, k2 = np.zeros_like(f), np.zeros_like(f)
    k1[0, 0], k1[0, -1], k2[0, 0], k2[-1, 0] = -1, 1, -1, 1
    k1, k2 = np.fft.fft2(k1), np.fft.fft2(k2)
    right = np.fft.fft2(y - x) + k1.conj() * np.fft.fft2(f1) + k2.conj() * np.fft.fft2(f2)
    h = np.fft.ifft2(right / (1 + abs(k1) ** 2 + abs(k2) ** 2)).real
    shrink = 0.001 / 1.001
    state[0] = shrink * (h - np.pad(h[:, 1:], ((0, 0), (0, 1))))
    state[1] = shrink * (h - np.pad(h[1:], ((0, 1), (0, 0))))
    state[2], state[3] = np.mean(1 / c + tau_a / 2), np.mean(1 / d + tau_b / 2)
    x = (2 * c * y + 0.001 * (y - h)) / (2 * c + 2 * d + 0.001)
    return ir - x if mirrored else vis + x


def reference_sample(noise: Array, ir: Array, vis: Array, steps: int, form: DdfmForm) -> Array:
    """DDIM without new noise for one picture: ``noise [3, H, W]``, sources ``[H, W]``; colour by its matrices."""
    matrix, offset = (
        (STUDIO / 255, np.array([16, 128, 128]) / 255) if form is DdfmForm.PUBLISHED else (FULL, np.zeros(3))
    )
    state, x = [np.zeros_like(ir), np.zeros_like(ir), 1.0, 1.0], noise
    for time, signal, next_signal in reference_schedule(steps):
        predicted = toy_noise(torch.from_numpy(x)[None], time)[0].numpy()
        clean = np.clip(np.sqrt(1 / signal) * x - np.sqrt(1 / signal - 1) * predicted, -1, 1)
        ycbcr = np.einsum("ij,jhw->ihw", matrix, clean) + offset[:, None, None]
        ycbcr[0] = reference_em(ycbcr[0], ir, vis, state, form is not DdfmForm.CORRECTED)
        clean = np.einsum("ij,jhw->ihw", np.linalg.inv(matrix), ycbcr - offset[:, None, None])
        again = (np.sqrt(1 / signal) * x - clean) / np.sqrt(1 / signal - 1)
        x = np.sqrt(next_signal) * clean + np.sqrt(1 - next_signal) * again
    return x


def smooth_sources(height: int, width: int, batch: int = 1) -> tuple[Tensor, Tensor]:
    """Infrared and visible luminance ``[B, 1, H, W]`` in [−1, 1], float64."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(2 * batch, 1, 4, 4, generator=generator, dtype=torch.float64) * 2 - 1
    fine = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear", align_corners=True)
    ir, vis = fine.chunk(2)
    return ir, vis


@pytest.mark.parametrize("steps", [2, 3, 7, 21, 55, 100, 1000])
def test_the_schedule_is_that_of_respaced_betas(steps: int) -> None:
    expected = reference_schedule(steps)
    assert [step.time for step in respaced(steps)] == [time for time, _, _ in expected]
    for step, (_, signal, next_signal) in zip(respaced(steps), expected, strict=True):
        assert (step.signal, step.next_signal) == pytest.approx((signal, next_signal), rel=1e-10)


def test_a_hundred_steps_go_from_the_first_to_the_last_time() -> None:
    steps = respaced(100)
    assert len(steps) == 100
    assert (steps[0].time, steps[-1].time) == (999, 0)
    assert steps[-1].next_signal == 1
    assert all(a.next_signal == b.signal and a.time > b.time for a, b in pairwise(steps))


@pytest.mark.parametrize("form", DdfmForm)
def test_the_sampler_equals_the_slow_one(form: DdfmForm) -> None:
    """In double precision, for each picture of a batch; the noise is single precision's."""
    ir, vis = smooth_sources(9, 12, batch=2)
    sampled = sample_fused(toy_noise, ir, vis, steps=25, seed=11, form=form)
    noise = torch.randn(1, 3, 9, 12, generator=torch.Generator().manual_seed(11))[0].double().numpy()
    for n in range(2):
        expected = reference_sample(noise, ir[n, 0].numpy(), vis[n, 0].numpy(), 25, form)
        assert np.abs(sampled[n].numpy() - expected).max() < 1e-9


def test_single_precision_follows_double() -> None:
    ir, vis = smooth_sources(24, 31)
    double = sample_fused(toy_noise, ir, vis, steps=50)
    single = sample_fused(toy_noise, ir.float(), vis.float(), steps=50)
    assert single.dtype is torch.float32
    assert (double - single).abs().max() < 1e-4


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are compared in single precision."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny network of six levels, so that sizes are multiples of 32 as the published one's."""
    torch.manual_seed(0)
    network = diffusers.UNet2DModel(
        out_channels=6, block_out_channels=(32,) * 4 + (64,) * 2, layers_per_block=1, attention_head_dim=64,
        down_block_types=("ResnetDownsampleBlock2D",) * 5 + ("AttnDownBlock2D",),
        up_block_types=("AttnUpBlock2D",) + ("ResnetUpsampleBlock2D",) * 5,
        attn_norm_num_groups=32, resnet_time_scale_shift="scale_shift",
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("unet")
    network.save_pretrained(folder)
    return folder


def job(folder: Path, ir: Array, vis: Array, name: str = "pair") -> TeacherJob:
    """A pair on disk: infrared ``[H, W]``, visible ``[H, W, 3]``, both in [0, 1]."""
    paths = [folder / side / f"{name}.png" for side in ("ir", "vis")]
    for path, picture in zip(paths, (ir, vis), strict=True):
        write_picture(path, picture)
    files = PairFiles(name, *map(SourcePicture, paths))
    return TeacherJob(files, ("ir", "vis"))


@pytest.fixture
def scene(tmp_path: Path) -> TeacherJob:
    """70×45 pixels (height × width) of two unlike sources."""
    ir, vis = (((source[0, 0] + 1) / 2).numpy() for source in smooth_sources(70, 45))
    return job(tmp_path, ir, np.stack([vis, vis**2, 1 - vis], axis=2))


def sources(scene: TeacherJob) -> tuple[Tensor, Tensor]:
    """Infrared and visible luminance ``[1, 1, H, W]`` in [−1, 1]."""
    pair = read_pair(scene.files)
    return 2 * pair.ir[None] - 1, 2 * luminance(pair.vis)[None] - 1


def test_the_corrected_form_keeps_size_brightness_and_sources(checkpoint: Path, scene: TeacherJob) -> None:
    """Slips b, c, d: infrared is infrared, nothing is cropped, nothing is stretched."""
    teacher: Teacher = DdfmTeacher(checkpoint, steps=4, form=DdfmForm.CORRECTED)
    picture = teacher.fuse(scene)
    assert (picture.crop, picture.transform) == ((0, 0, 70, 45), ValueTransform.IDENTITY)
    assert picture.y.shape == (70, 45)
    assert picture.y.dtype == np.float32
    ir, vis = sources(scene)
    padded = (pad_reflected(source, (96, 64)) for source in (ir, vis))
    rgb = sample_fused(load_unconditional_unet(checkpoint), *padded, steps=4, seed=3407)
    assert np.abs(picture.y - (luminance(rgb)[0, 0, :70, :45] + 1).numpy() / 2).max() < 1e-6
    low, high = (extreme(ir, vis)[0, 0] for extreme in (torch.minimum, torch.maximum))
    assert (2 * picture.y - 1 > low.numpy() - TOTAL_VARIATION).all()
    assert (2 * picture.y - 1 < high.numpy() + TOTAL_VARIATION).all()


def test_slips_b_c_d_the_published_form_exchanges_crops_and_stretches(checkpoint: Path, scene: TeacherJob) -> None:
    picture = DdfmTeacher(checkpoint, steps=4, form=DdfmForm.PUBLISHED).fuse(scene)
    assert (picture.crop, picture.transform) == ((0, 0, 64, 32), ValueTransform.STRETCHED)
    assert (picture.y.min(), picture.y.max()) == (0, 1)
    ir, vis = (source[..., :64, :32] for source in sources(scene))
    network = load_unconditional_unet(checkpoint)
    exchanged, as_named = (
        luminance(sample_fused(network, first, second, steps=4, form=DdfmForm.PUBLISHED))[0, 0].numpy()
        for first, second in ((vis, ir), (ir, vis))
    )
    assert np.abs(picture.y - (exchanged - exchanged.min()) / np.ptp(exchanged)).max() < 1e-6
    assert np.abs(picture.y - (as_named - as_named.min()) / np.ptp(as_named)).max() > 0.01


def test_slip_e_colour_is_sampled_but_luminance_is_kept(checkpoint: Path, scene: TeacherJob) -> None:
    """Colour is the network's invention; what is kept gets the visible chroma, and keeps its luminance."""
    rgb = sample_fused(load_unconditional_unet(checkpoint), *(s[..., :64, :32] for s in sources(scene)), steps=4)
    assert (rgb[:, 0] - rgb[:, 1]).abs().max() > 0.05
    y = torch.from_numpy(DdfmTeacher(checkpoint, steps=4).fuse(scene).y)[None]
    assert torch.allclose(luminance(recombine(y, read_pair(scene.files).vis)), y, atol=1e-5)


def test_slip_f_the_published_form_denoises_in_studio_range() -> None:
    """Where both sources agree, the corrected form has their luminance; the published one expands it by 255/219."""
    ir, _ = smooth_sources(16, 16)
    full, studio = (
        luminance(sample_fused(toy_noise, ir, ir, steps=20, form=form))
        for form in (DdfmForm.CORRECTED, DdfmForm.PUBLISHED)
    )
    assert (full - ir).abs().max() < TOTAL_VARIATION
    assert (studio - (255 * ir - 16) / 219).abs().max() < 2 * TOTAL_VARIATION


def coordinates(folder: Path, size: tuple[int, int]) -> tuple[TeacherJob, Array]:
    """A pair of two equal pictures whose grey levels tell the place, and that picture."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    ramp = np.asarray((3 * rows + 2 * columns) % 256 / 255)
    return job(folder, ramp, np.repeat(ramp[..., None], 3, axis=2)), ramp


def linear_noise(x: Tensor, time: int) -> Tensor:
    """What the best linear denoiser takes for noise in pictures whose power falls with the square of frequency."""
    signal = float(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[time])
    rows, columns = (torch.fft.fftfreq(side, dtype=x.dtype)[:, None] for side in x.shape[-2:])
    power = 0.02 / (rows**2 + columns.T**2 + 1e-4)
    clean = torch.fft.ifft2(torch.fft.fft2(x) * signal**0.5 * power / (signal * power + 1 - signal)).real
    return (x - signal**0.5 * clean) / (1 - signal) ** 0.5


def test_one_source_wins_unless_the_step_is_mirrored() -> None:
    """Share of infrared in the fused picture where the denoiser is for neither source; a half is the average."""
    ir, vis = smooth_sources(48, 64, batch=4)
    shares = {}
    for form in (DdfmForm.CORRECTED, DdfmForm.MIRRORED):
        fused = luminance(sample_fused(linear_noise, ir, vis, form=form))
        shares[form] = ((fused - vis) * (ir - vis)).sum(dim=(1, 2, 3)) / ((ir - vis) ** 2).sum(dim=(1, 2, 3))
    assert (shares[DdfmForm.CORRECTED] - 0.5).abs().mean() > 0.2
    assert (shares[DdfmForm.MIRRORED] - 0.5).abs().max() < 0.02


@pytest.mark.parametrize("size", [(70, 45), (32, 64), (5, 9)])
def test_every_pixel_stays_at_its_place(checkpoint: Path, tmp_path: Path, size: tuple[int, int]) -> None:
    """What both sources show is found again as it was, whatever the network says."""
    same, ramp = coordinates(tmp_path, size)
    picture = DdfmTeacher(checkpoint, steps=3).fuse(same)
    assert picture.crop == (0, 0, *size)
    assert np.abs(picture.y - ramp).max() < TOTAL_VARIATION


def test_the_crop_box_of_the_published_form_says_what_it_shows(checkpoint: Path, tmp_path: Path) -> None:
    same, ramp = coordinates(tmp_path, (70, 45))
    picture = DdfmTeacher(checkpoint, steps=3, form=DdfmForm.PUBLISHED).fuse(same)
    top, left, height, width = picture.crop
    shown = ramp[top : top + height, left : left + width]
    assert np.abs(picture.y - (shown - shown.min()) / np.ptp(shown)).max() < 2 * TOTAL_VARIATION


def test_the_same_pair_gives_the_same_picture_and_leaves_the_random_state(checkpoint: Path, scene: TeacherJob) -> None:
    before = torch.random.get_rng_state()
    pictures = [DdfmTeacher(checkpoint, steps=3).fuse(scene).y for _ in range(2)]
    assert np.array_equal(*pictures)
    assert torch.equal(before, torch.random.get_rng_state())
    assert not np.array_equal(pictures[0], DdfmTeacher(checkpoint, steps=3, seed=1).fuse(scene).y)


def test_half_precision_is_near(checkpoint: Path, scene: TeacherJob) -> None:
    """The network computes in half as on a GPU, the fusion step in single."""
    single, half = DdfmTeacher(checkpoint, steps=2), DdfmTeacher(checkpoint, steps=2)
    half._network.half()
    assert half.settings == {**single.settings, "precision": "float16"}
    difference = np.abs(half.fuse(scene).y - single.fuse(scene).y)
    assert 0 < difference.mean() < 2e-3


def test_settings_name_all_that_the_pictures_depend_on(checkpoint: Path) -> None:
    settings = DdfmTeacher(checkpoint).settings
    assert (settings["steps"], settings["seed"], settings["form"]) == (100, 3407, "mirrored")
    assert settings["precision"] == "float32"
    assert len(str(settings["weights_sha256"])) == 64
    others: list[dict[str, Any]] = [{"steps": 50}, {"seed": 1}, {"form": DdfmForm.CORRECTED}]
    assert all(DdfmTeacher(checkpoint, **other).settings != settings for other in others)


def test_estimate_counts_the_padded_picture(checkpoint: Path) -> None:
    teacher = DdfmTeacher(checkpoint, steps=7)
    small, padded, double = (teacher.estimate(size) for size in ((33, 32), (64, 32), (64, 64)))
    assert small == padded
    assert small.passes == 7
    assert double.multiply_adds == pytest.approx(2 * padded.multiply_adds, rel=0.02)
    weights = 4 * sum(parameter.numel() for parameter in load_unconditional_unet(checkpoint).parameters())
    assert padded.memory_bytes == weights + 4 * 10 * 32 * 64 * 32
    assert double.memory_bytes == weights + 2 * (padded.memory_bytes - weights)


def test_steps_that_cannot_be_spaced_are_refused(checkpoint: Path) -> None:
    for steps in (-1, 0, 1, 1001):
        with pytest.raises(InputError, match=f"{steps} steps; the sampler takes 2 to 1000"):
            DdfmTeacher(checkpoint, steps=steps)


def test_the_published_form_refuses_pictures_of_which_nothing_is_left(checkpoint: Path, tmp_path: Path) -> None:
    narrow = job(tmp_path, np.random.default_rng(0).random((40, 31)), np.zeros((40, 31, 3)))
    with pytest.raises(InputError, match=r"pair: 31×40 pixels; .*multiples of 32"):
        DdfmTeacher(checkpoint, steps=2, form=DdfmForm.PUBLISHED).fuse(narrow)


def test_the_published_form_refuses_a_constant_picture(checkpoint: Path, tmp_path: Path) -> None:
    black = job(tmp_path, np.zeros((32, 32)), np.zeros((32, 32, 3)))
    with pytest.raises(InputError, match="pair: the fused picture is constant"):
        DdfmTeacher(checkpoint, steps=2, form=DdfmForm.PUBLISHED).fuse(black)


def test_a_network_that_overflows_is_named(checkpoint: Path, scene: TeacherJob, tmp_path: Path) -> None:
    network = load_unconditional_unet(checkpoint).network
    with torch.no_grad():
        network.conv_out.weight.fill_(3e38)
    network.save_pretrained(tmp_path / "overflows")
    with pytest.raises(InputError, match=r"pair: \d+ of 3150 values of the fused picture are NaN"):
        DdfmTeacher(tmp_path / "overflows", steps=2).fuse(scene)


def test_a_picture_too_large_for_the_gpu_is_named(
    checkpoint: Path, scene: TeacherJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(ddfm, "sample_fused", full)
    with pytest.raises(InputError, match=r"45×70; pictures are fused whole; this one takes about \d+\.\d GiB"):
        DdfmTeacher(checkpoint, steps=2).fuse(scene)


@pytest.mark.realdata
def test_a_real_pair_is_fused_between_its_sources(checkpoint: Path, shared_data: Path, tmp_path: Path) -> None:
    """A night street, every fourth pixel of it."""
    files = next(files for files in find_pairs(shared_data / "val") if files.name == "MSRS_train__00881N")
    whole = read_pair(files)
    small = job(tmp_path, whole.ir[0, ::4, ::4].numpy(), whole.vis[:, ::4, ::4].permute(1, 2, 0).numpy())
    y = torch.from_numpy(DdfmTeacher(checkpoint, steps=5).fuse(small).y)
    pair = read_pair(small.files)
    low, high = (extreme(pair.ir, luminance(pair.vis))[0] for extreme in (torch.minimum, torch.maximum))
    assert y.shape == (120, 160)
    assert (low - TOTAL_VARIATION < y).all()
    assert (y < high + TOTAL_VARIATION).all()
