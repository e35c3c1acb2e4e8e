"""How a teacher's picture agrees with its pair: definitions against slow ones, limits against real teachers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from duskfuse.data.colour import luminance
from duskfuse.data.images import read_grey_u8
from duskfuse.data.layout import find_pairs
from duskfuse.data.pair_files import read_pair
from duskfuse.evaluate.metrics import SourceStatistics, fusion_metrics
from duskfuse.teachers.agreement import (
    DETAIL_FLOOR,
    GAIN_LIMITS,
    Agreement,
    detail_correlation,
    match_brightness,
    measure,
    ssim,
)

Plane = NDArray[np.float32]


def textures(count: int, size: tuple[int, int] = (48, 60), seed: int = 0) -> list[Plane]:
    """Unrelated pictures with structure at several scales."""
    rng = np.random.default_rng(seed)
    pictures = []
    for _ in range(count):
        coarse = np.kron(rng.random((size[0] // 6, size[1] // 6)), np.ones((6, 6)))
        pictures.append((0.6 * coarse + 0.3 * rng.random(size) + 0.05).astype(np.float32))
    return pictures


def slow_detail(picture: Plane) -> NDArray[np.float64]:
    """Picture minus its Gaussian mean, pixel by pixel, where the 11×11 window fits."""
    axis = np.arange(-5, 6)
    weights = np.exp(-(axis[:, None] ** 2 + axis**2) / (2 * 1.5**2))
    weights /= weights.sum()
    height, width = picture.shape
    rows = [
        [picture[i, j] - (weights * picture[i - 5 : i + 6, j - 5 : j + 6]).sum() for j in range(5, width - 5)]
        for i in range(5, height - 5)
    ]
    return np.array(rows).ravel()


def test_detail_correlation_equals_a_regression_on_the_detail_of_both_sources_and_their_maximum() -> None:
    ir, vis, noise = textures(3)
    y = (0.5 * ir + 0.2 * vis + 0.3 * noise).astype(np.float32)
    given = np.stack([slow_detail(plane) for plane in (ir, vis, np.maximum(ir, vis))], axis=1)
    wanted = slow_detail(y)
    left = wanted - given @ np.linalg.lstsq(given, wanted, rcond=None)[0]
    expected = np.sqrt(1 - (left @ left) / (wanted @ wanted))
    assert detail_correlation(y, ir, vis) == pytest.approx(expected, abs=1e-4)


def test_brightness_is_matched_by_least_squares() -> None:
    y, target = textures(2)
    gain, offset = np.polyfit(y.ravel().astype(float), target.ravel().astype(float), 1)
    assert match_brightness(y, target) == pytest.approx((gain, offset), abs=1e-6)
    assert match_brightness(np.full_like(y, 0.5), target) == pytest.approx((0, target.mean()), abs=1e-6)


def test_ssim_is_that_of_the_metrics() -> None:
    ir, vis, fused = (np.rint(plane * 255).astype(np.uint8) for plane in textures(3))
    expected = fusion_metrics(SourceStatistics(ir, vis), fused)["SSIM"]
    found = [ssim(np.float32(source / 255), np.float32(fused / 255)) for source in (ir, vis)]
    assert sum(found) / 2 == pytest.approx(expected, abs=1e-5)


def test_a_stretched_teacher_is_brought_back_to_what_it_was() -> None:
    """Gain and offset undo any stretch of contrast: the matched picture does not depend on it."""
    ir, vis = textures(2)
    y = (0.7 * np.maximum(ir, vis) + 0.3 * vis).astype(np.float32)
    stretched = ((y - y.min()) / (y.max() - y.min())).astype(np.float32)
    plain, other = measure(y, ir, vis), measure(stretched, ir, vis)
    np.testing.assert_allclose(other.matched(stretched), plain.matched(y), atol=1e-5)
    assert other.residual == pytest.approx(plain.residual, abs=1e-6)
    assert other.detail == pytest.approx(plain.detail, abs=1e-4)
    assert (other.ssim_ir, other.ssim_vis) == pytest.approx((plain.ssim_ir, plain.ssim_vis), abs=1e-4)


def test_fusions_pass_and_pictures_of_other_scenes_shifted_mirrored_or_noise_are_refused() -> None:
    ir, vis, other = textures(3)
    for fused in ((ir + vis) / 2, np.maximum(ir, vis), ir, vis, 0.3 * ir + 0.2):
        assert measure(fused, ir, vis).refusal() is None
    shifted, mirrored = np.roll((ir + vis) / 2, 3, axis=1), np.ascontiguousarray(vis[:, ::-1])
    for wrong in (other, shifted, mirrored, np.random.default_rng(0).random(ir.shape, np.float32)):
        assert "detail" in str(measure(wrong, ir, vis).refusal())
    assert "SSIM" in str(Agreement(1, 0, 0, 0.2, 0.1, 0.9).refusal())


def test_brightness_limits() -> None:
    def of(gain: float) -> Agreement:
        return Agreement(gain, 0, 0, 1, 1, 1)

    low, high = GAIN_LIMITS
    assert all(of(gain).brightness_refusal() is None for gain in (low, 1.0, high))
    assert all(of(gain).brightness_refusal() for gain in (-1.0, 0.0, 0.9 * low, 1.1 * high))


@pytest.mark.parametrize("size", [(4, 4), (4, 30), (10, 7), (11, 11)])
def test_small_pictures_and_flat_sources_are_measured_without_nan(size: tuple[int, int]) -> None:
    y, ir, vis = np.random.default_rng(0).random((3, *size), np.float32)
    flat = np.zeros(size, np.float32)
    for sources in ((ir, vis), (flat, vis), (flat, flat)):
        found = measure(y, *sources)
        assert np.isfinite([found.gain, found.offset, found.residual, found.ssim, found.detail]).all()
    assert measure(y, y, vis).detail == pytest.approx(1, abs=1e-3)


def test_without_detail_there_is_none_to_share_and_without_any_in_the_sources_nothing_is_proven() -> None:
    ir, vis = textures(2)
    rows, columns = (np.float32(axis / 255) for axis in np.indices(ir.shape))
    assert detail_correlation(np.full_like(ir, 0.5), ir, vis) == 0
    assert detail_correlation(ir, rows, columns) == 1


@pytest.mark.realdata
def test_every_real_teacher_passes_and_a_mismatched_one_is_refused(shared_data: Path) -> None:
    """SeAFusion on every sixth pair, beside the picture of a pair of another place, mirrored and four pixels off."""
    pairs = find_pairs(shared_data / "train")[::6]
    teachers = [read_grey_u8(shared_data / "train/teacher/seafusion" / files.vis.path.name) for files in pairs]
    mistaken = wrong = 0
    for files, teacher in zip(pairs, teachers, strict=True):
        pair = read_pair(files)
        ir, vis = pair.ir[0].numpy(), luminance(pair.vis)[0].numpy()
        y = teacher.astype(np.float32) / 255
        own = measure(y, ir, vis)
        assert own.refusal() is None, files.name
        assert own.brightness_refusal() is None, files.name
        places = [other.name.rsplit("_", 1)[0] for other in pairs]
        others = [
            other.astype(np.float32) / 255
            for place, other in zip(places, teachers, strict=True)
            if other.shape == y.shape and place != files.name.rsplit("_", 1)[0]
        ]
        for picture in (*others[:1], np.ascontiguousarray(y[:, ::-1]), np.roll(y, 4, axis=1)):
            wrong += 1
            mistaken += measure(picture, ir, vis).detail >= DETAIL_FLOOR
    assert wrong > 100
    assert mistaken <= 0.03 * wrong
