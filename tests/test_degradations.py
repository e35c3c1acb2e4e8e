"""Degradations are what their names and parameters say, get worse with severity, and never depend on an order."""

from __future__ import annotations

from itertools import pairwise
from math import exp, log10
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from duskfuse.data.camera_faults import (
    Picture,
    add_haze,
    add_noise,
    add_stripes,
    add_thermal_noise,
    blur,
    darken,
    freeze,
    overexpose,
    shift,
)
from duskfuse.data.scenes import Condition, render_scene
from duskfuse.evaluate.degradations import CLEAN, DEGRADATIONS, Degradation, Side

RANDOM = {"darkness", "noise", "infrared stripes", "infrared noise"}
DEAD = {"infrared black", "infrared grey", "visible black", "visible grey"}
EVERY = [
    pytest.param(degradation, severity, id=f"{degradation.name} {severity}")
    for degradation in DEGRADATIONS
    for _, severity in degradation.conditions
]


@pytest.fixture(scope="module")
def pair() -> tuple[Picture, Picture]:
    """Infrared and visible picture of a built-in scene in daylight, 96 by 128."""
    scene = render_scene(3, size=(96, 128), condition=Condition.DAY)
    return scene.ir / np.float32(255), scene.vis / np.float32(255)


def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def psnr(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    return -10 * log10(float(((first - second) ** 2).mean()))


def degraded(degradation: Degradation, pair: tuple[Picture, Picture], severity: int, name: str = "a") -> Picture:
    ir, vis = degradation.apply(*pair, severity, name)
    return ir if degradation.side is Side.INFRARED else vis


def test_all_are_there_with_their_severities():
    names = [degradation.name for degradation in DEGRADATIONS]
    assert names == [
        "darkness",
        "over-exposure",
        "noise",
        "haze",
        "blur",
        "infrared stripes",
        "infrared noise",
        "infrared shift",
        "infrared black",
        "infrared grey",
        "visible black",
        "visible grey",
    ]
    assert {degradation.name: len(degradation.severities) for degradation in DEGRADATIONS} == {
        name: 1 if name in DEAD else 5 for name in names
    }
    for degradation in DEGRADATIONS:
        assert degradation.side is (Side.INFRARED if "infrared" in degradation.name else Side.VISIBLE)
        assert [condition.severity for condition in degradation.conditions] == list(
            range(1, len(degradation.severities) + 1)
        )
    assert [values["pixels"] for values in DEGRADATIONS[7].severities] == [1, 2, 4, 8, 16]
    assert CLEAN.severity == 0


@pytest.mark.parametrize(("degradation", "severity"), EVERY)
def test_shape_type_range_and_the_other_picture(degradation: Degradation, severity: int, pair: tuple[Picture, Picture]):
    before = [picture.copy() for picture in pair]
    ir, vis = degradation.apply(*pair, severity, "a")
    kept, clean, worse = (vis, pair[0], ir) if degradation.side is Side.INFRARED else (ir, pair[1], vis)
    assert any(kept is picture for picture in pair)
    assert worse.shape == clean.shape
    assert worse.dtype == np.float32
    assert worse.min() >= 0
    assert worse.max() <= 1
    assert np.isfinite(worse).all()
    assert all(np.array_equal(old, new) for old, new in zip(before, pair, strict=True))


@pytest.mark.parametrize("degradation", DEGRADATIONS, ids=lambda d: d.name)
def test_every_severity_is_worse_than_the_last(degradation: Degradation, pair: tuple[Picture, Picture]):
    clean = pair[0] if degradation.side is Side.INFRARED else pair[1]
    levels = [psnr(clean, degraded(degradation, pair, severity)) for _, severity in degradation.conditions]
    assert all(before > after + 0.5 for before, after in pairwise(levels)), levels
    assert levels[0] < 40


@pytest.mark.parametrize("degradation", DEGRADATIONS, ids=lambda d: d.name)
def test_a_pair_and_a_degradation_are_all_that_chance_depends_on(
    degradation: Degradation, pair: tuple[Picture, Picture]
):
    severities = [severity for _, severity in degradation.conditions]
    first = {severity: degraded(degradation, pair, severity) for severity in severities}
    np.random.default_rng().random(5)
    for severity in reversed(severities):
        assert np.array_equal(first[severity], degraded(degradation, pair, severity))
    other = degraded(degradation, pair, severities[0], "another pair")
    assert np.array_equal(other, first[severities[0]]) is (degradation.name not in RANDOM)


def test_two_degradations_of_a_pair_draw_different_numbers(pair: tuple[Picture, Picture]):
    grey = np.full((40, 60), 0.5, np.float32)
    given = grey, pair[1]
    stripes, noise = (
        degraded(each, given, 1) - grey for each in DEGRADATIONS if each.name in RANDOM and each.side is Side.INFRARED
    )
    assert abs(np.corrcoef(stripes[0], noise[0])[0, 1]) < 0.5


@pytest.mark.parametrize("severity", [0, 6, -1])
def test_a_severity_that_is_not_there(severity: int, pair: tuple[Picture, Picture]):
    with pytest.raises(ValueError, match="darkness, which has 5"):
        DEGRADATIONS[0].apply(*pair, severity, "a")


def test_darkness_counts_photons():
    flat = np.full((200, 200, 3), 0.6, np.float32)
    light = 0.6**2.2
    assert darken(flat, rng(), exposure=0.25, photons=1e9) == pytest.approx((light / 4) ** (1 / 2.2), rel=1e-3)
    caught = darken(flat, rng(), exposure=0.25, photons=400) ** 2.2
    assert caught.mean() == pytest.approx(light / 4, rel=0.01)
    assert caught.var() == pytest.approx(light / 4 / 400, rel=0.03)  # Poisson: the variance of a count is its mean
    assert (darken(np.zeros((5, 5, 3), np.float32), rng(), exposure=0.25, photons=400) == 0).all()


def test_over_exposure_multiplies_light_and_loses_the_rest():
    levels = np.array([[[0.0, 0.2, 0.5], [0.7, 0.8, 1.0]]], np.float32)
    expected = [[min(1.0, value**2.2 * 3) ** (1 / 2.2) for value in pixel] for pixel in levels[0].tolist()]
    assert overexpose(levels, rng(), gain=3)[0] == pytest.approx(np.array(expected), rel=1e-5)


def test_noise_has_the_variance_of_its_parameters():
    flat = np.full((200, 200, 3), 0.4, np.float32)
    noise = add_noise(flat, rng(), photons=50, deviation=0.05) - flat
    assert noise.mean() == pytest.approx(0, abs=2e-3)
    assert noise.var() == pytest.approx(0.4 / 50 + 0.05**2, rel=0.03)
    assert np.corrcoef(noise[..., 0].ravel(), noise[..., 1].ravel())[0, 1] == pytest.approx(0, abs=0.02)


def test_haze_follows_koschmieder_row_by_row():
    vis = np.random.default_rng(0).random((5, 7, 3), dtype=np.float32)
    lumas = sorted(float(0.299 * r + 0.587 * g + 0.114 * b) for r, g, b in vis.reshape(-1, 3))
    place = 0.95 * (len(lumas) - 1)
    low = int(place)
    airlight = (lumas[low] + (place - low) * (lumas[low + 1] - lumas[low])) ** 2.2
    hazy = add_haze(vis, rng(), density=0.8)
    for row in range(5):
        passed = exp(-0.8 * (1 - 0.75 * row / 4))
        for column in range(7):
            for channel in range(3):
                light = float(vis[row, column, channel]) ** 2.2 * passed + airlight * (1 - passed)
                assert hazy[row, column, channel] == pytest.approx(light ** (1 / 2.2), rel=1e-4)


def test_blur_is_a_gaussian():
    spot = np.zeros((41, 41, 3), np.float32)
    spot[20, 20] = 1
    weights = np.exp(-((np.arange(41) - 20) ** 2) / (2 * 2.5**2))
    weights /= weights.sum()
    expected = np.repeat(np.outer(weights, weights)[..., None], 3, axis=2)
    assert np.abs(blur(spot, rng(), sigma=2.5) - expected).max() < 1e-5


def test_stripes_are_one_offset_per_column():
    flat = np.full((30, 4000), 0.5, np.float32)
    offsets = add_stripes(flat, rng(), deviation=0.05) - flat
    assert np.ptp(offsets, axis=0).max() == 0
    assert offsets[0].std() == pytest.approx(0.05, rel=0.05)
    stripes = DEGRADATIONS[5]
    mild, strong = (stripes.apply(flat, flat, severity, "a")[0] - 0.5 for severity in (1, 2))
    assert strong == pytest.approx(2 * mild, abs=1e-6)  # the camera keeps its pattern


def test_thermal_noise_is_independent():
    flat = np.full((200, 200), 0.5, np.float32)
    noise = add_thermal_noise(flat, rng(), deviation=0.07) - flat
    assert noise.std() == pytest.approx(0.07, rel=0.02)
    assert np.corrcoef(noise[:, 0], noise[:, 1])[0, 1] == pytest.approx(0, abs=0.2)


@pytest.mark.parametrize(("pixels", "expected"), [(1, [1, 1, 2, 3]), (2, [1, 1, 1, 2]), (16, [1, 1, 1, 1])])
def test_shift_moves_to_the_right(pixels: int, expected: list[int]):
    row = np.array([[1, 2, 3, 4]], np.float32)
    assert shift(row, rng(), pixels=pixels).tolist() == [expected]


def test_a_dead_camera_shows_one_level(pair: tuple[Picture, Picture]):
    for degradation in DEGRADATIONS:
        if degradation.name in DEAD:
            level = 0.5 if "grey" in degradation.name else 0
            assert (degraded(degradation, pair, 1) == level).all()
    assert freeze(pair[1], rng(), level=0.5).shape == pair[1].shape


def test_the_metrics_page_states_the_parameters():
    page = (Path(__file__).resolve().parents[1] / "docs" / "metrics.md").read_text(encoding="utf-8")
    for degradation in DEGRADATIONS:
        given = [degradation.parameters(severity) for _, severity in degradation.conditions]
        assert f"| {degradation.name} | {degradation.side} | {' | '.join(given)} |" in page
