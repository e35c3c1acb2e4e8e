"""Augmentation: what moves with what, who sees which view, the laws of the faults, and that all draws are reproducible.

Coordinate images prove the geometry (acceptance checks 8 of the student and 11 of SAGE): infrared holds the row,
visible the column of every pixel, the teacher's picture their mean, the masks and labels are blocks of 16 pixels.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from duskfuse.data.camera_faults import add_glare, add_noise, add_normal_noise, darken, darken_quickly
from duskfuse.data.class_conventions import Convention
from duskfuse.data.class_tables import IGNORED, ClassTable
from duskfuse.data.colour import luminance
from duskfuse.data.errors import InputError
from duskfuse.data.geometry import draw_crop, pad_to
from duskfuse.data.images import write_picture
from duskfuse.data.layout import find_pairs
from duskfuse.data.pair_files import PairFiles, read_pair
from duskfuse.data.priors.cache import PriorStore
from duskfuse.data.priors.cache_masks import cache_masks, open_masks
from duskfuse.data.priors.masks import MaskSet
from duskfuse.data.priors.sources import MaskSourceName
from duskfuse.distill.augment_config import AugmentConfig, InfraredFaults, Misalignment, VisibleFaults
from duskfuse.distill.augmentation import Change, augmented, faulty_infrared, faulty_visible, jittered, misaligned
from duskfuse.distill.context import Batch
from duskfuse.distill.dataset import TrainingPairs, _mix, load_batches
from duskfuse.distill.engine import Engine
from duskfuse.distill.ground_truth import WantedTruth
from duskfuse.distill.recipe import DataConfig, Owner
from duskfuse.distill.recipe_files import load_recipe
from duskfuse.students.unet import UNetStudent
from duskfuse.teachers.cache_teacher import cache_teacher
from duskfuse.teachers.teacher_images import Brightness, TeacherImages, open_teacher_images

SIZE = (96, 120)
BLOCK = 16
EVERYTHING = AugmentConfig(
    zoom=(0.6, 1.2),
    jitter=0.1,
    infrared=InfraredFaults(p=0.7),
    visible=VisibleFaults(p=0.7),
    misalignment=Misalignment(p=0.7),
    dropout=0.3,
)


BLOCKS = Convention("blocks", ClassTable("blocks", tuple(f"block {i}" for i in range(60))), "every block a class")


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Coordinate images with label maps of blocks, and the mean of both sources beside them."""
    folder = tmp_path_factory.mktemp("grid")
    rows, columns = np.indices(SIZE)
    blocks = 1 + rows // BLOCK * (-(-SIZE[1] // BLOCK)) + columns // BLOCK
    for name in "abc":
        write_picture(folder / "data" / "ir" / f"{name}.png", np.asarray(2 * rows + (name == "b"), np.uint8))
        write_picture(folder / "data" / "vis" / f"{name}.png", np.asarray(2 * columns + (name == "c"), np.uint8))
        write_picture(folder / "data" / "label" / f"{name}.png", np.asarray(blocks, np.uint8))
        write_picture(folder / "mean" / f"{name}.png", np.asarray(rows + columns, np.uint8))
    return folder


class Opened:
    """The coordinate images with their cached masks and teacher pictures."""

    def __init__(self, grid: Path) -> None:
        cache_masks(grid / "data", source=MaskSourceName.LABELS, cache=grid / "cache")
        cache_teacher(grid / "data", teacher=grid / "mean", cache=grid / "cache")
        self.pairs: list[PairFiles]
        self.teacher: TeacherImages
        self.pairs, self.teacher = open_teacher_images(
            grid / "cache", find_pairs(grid / "data"), brightness=Brightness.TRUST
        )
        self.masks: PriorStore = open_masks(grid / "cache", {k for p in self.pairs for k in p.prior_keys()}, None)

    def samples(
        self, augment: AugmentConfig, *, teacher: bool = True, seed: int = 3, labels: Convention | None = None
    ) -> TrainingPairs:
        config = DataConfig(crop=(48, 64), masks=6, mask_pool=60, augment=augment)
        pictures = self.teacher if teacher else None
        return TrainingPairs(
            self.pairs, config, seed, masks=self.masks, teacher=pictures, truth=WantedTruth(labels=labels)
        )


@pytest.fixture(scope="module")
def opened(grid: Path) -> Opened:
    return Opened(grid)


def same(one: dict[str, Tensor], other: dict[str, Tensor], keys: Sequence[str]) -> bool:
    return all(torch.equal(one[key], other[key]) for key in keys)


def test_by_default_samples_are_what_they_always_were(opened: Opened) -> None:
    """Written out: the draws of the plain crop, in their order, and nothing beside it."""
    assert DataConfig().augment == AugmentConfig()
    samples = opened.samples(AugmentConfig())
    for number in range(12):
        sample = samples[number]
        files = opened.pairs[samples.position(number)]
        generator = torch.Generator().manual_seed(_mix(3, number, 2))
        draw = draw_crop(SIZE, (48, 64), generator, flip=0.5)
        pair = read_pair(files)
        assert set(sample) == {"ir", "vis", "masks_ir", "masks_vis", "position", "teacher_y"}
        assert torch.equal(sample["ir"], pad_to(draw.crop(pair.ir), (48, 64)))
        assert torch.equal(sample["vis"], pad_to(draw.crop(pair.vis), (48, 64)))
        for key, masks in zip(files.prior_keys(), ("masks_ir", "masks_vis"), strict=True):
            record = opened.masks.get(key)
            assert isinstance(record, MaskSet)
            pool = record.decode(range(len(record)), window=draw.window)
            present = np.flatnonzero(pool.any(axis=(1, 2)))
            chosen = present[torch.randperm(len(present), generator=generator)[:6].numpy()]
            assert torch.equal(sample[masks][: len(chosen)], draw.orient(torch.from_numpy(pool[chosen])))
            assert not sample[masks][len(chosen) :].any()


@pytest.mark.parametrize("zoom", [(1.0, 1.0), (0.6, 1.0), (1.0, 1.4)], ids=["plain", "enlarged", "shrunk"])
def test_all_tensors_of_a_sample_share_one_geometry(opened: Opened, zoom: tuple[float, float]) -> None:
    samples = opened.samples(AugmentConfig(zoom=zoom))
    sizes, seen = set(), 0
    for number in range(12):
        sample = samples[number]
        rows, columns = sample["ir"][0] * 255 / 2, sample["vis"][0] * 255 / 2
        sizes.add(round(float(rows[-3, 0] - rows[2, 0]), 1))
        assert float((sample["teacher_y"] - (sample["ir"] + sample["vis"][:1]) / 2).abs().max()) < 0.51 / 255
        places = [place[2:-2, 2:-2] for place in (rows, columns)]
        for mask in (*sample["masks_ir"][:, 2:-2, 2:-2], *sample["masks_vis"][:, 2:-2, 2:-2]):
            if not mask.any() or min(float(np.ptp(place[mask].numpy())) for place in places) < 3:
                continue  # a sliver at the border does not tell its block
            seen, inside = seen + 1, torch.ones_like(mask)
            for place in places:
                first = torch.floor(place[mask].median() / BLOCK) * BLOCK
                # Half a pixel to the nearest, half a pixel that the last bit of the level makes, 0.15 of the average.
                assert first - 0.65 <= place[mask].min() <= place[mask].max() <= first + BLOCK - 1 + 1.15
                inside &= (place > first + 0.15) & (place < first + BLOCK - 0.65)
            assert mask[inside].all()
    assert seen > 60
    assert (len(sizes) > 4) == (zoom != (1.0, 1.0))


@pytest.mark.parametrize("zoom", [(0.6, 1.0), (1.0, 1.4)], ids=["enlarged", "shrunk"])
def test_labels_are_zoomed_with_their_pair(opened: Opened, zoom: tuple[float, float]) -> None:
    """Within each block, the label is the block's number; ids are picked, never mixed."""
    samples = opened.samples(AugmentConfig(zoom=zoom, misalignment=Misalignment(p=1)), labels=BLOCKS)
    for number in range(8):
        sample = samples[number]
        places = [sample[name][0][2:-2, 2:-2] * 255 / 2 for name in ("ir", "vis")]
        label = sample["label"][2:-2, 2:-2]
        inner = torch.ones_like(label, dtype=torch.bool)
        for place in places:
            inner &= (place % BLOCK > 0.65) & (place % BLOCK < BLOCK - 0.65)
        row, column = (torch.floor(place / BLOCK).long() for place in places)
        assert inner.float().mean() > 0.5
        assert torch.equal(label.long()[inner], (1 + row * -(-SIZE[1] // BLOCK) + column)[inner])


def test_misalignment_moves_the_given_infrared_and_nothing_else(opened: Opened) -> None:
    still, moving = (
        opened.samples(AugmentConfig(zoom=(0.7, 1.0), misalignment=Misalignment(p=p, shift_pixels=3))) for p in (0, 1)
    )
    for number in range(12):
        one, other = still[number], moving[number]
        assert "degraded_ir" not in one
        assert "degraded_vis" not in other
        assert same(one, other, list(one))
        moved = (other["degraded_ir"] - other["ir"]).abs() * 255 / 2
        assert float(moved.max()) > 0.2
        # Rows: shift 3, elastic 1, and turn, shear and scale at the far end of the crop.
        assert float(moved.max()) < 3 + 1 + 32 * np.sin(np.radians(1.5)) + 24 * 0.022 + 1.5


def test_misalignment_strikes_as_often_as_told(opened: Opened) -> None:
    samples = opened.samples(AugmentConfig(misalignment=Misalignment(p=0.3)))
    struck = sum(not torch.equal(s["degraded_ir"], s["ir"]) for s in map(samples.__getitem__, range(200)))
    assert 40 <= struck <= 80


def sampled_positions(config: Misalignment, seed: int, size: tuple[int, int] = (80, 100)) -> NDArray[np.float64]:
    """Where every pixel of a misaligned picture was read, ``[2, H, W]`` (x, y), seen on two coordinate images."""
    y, x = np.indices(size) / 400 + 0.2
    seen = [misaligned(plane.astype(np.float32), np.random.default_rng(seed), config) for plane in (x, y)]
    return (np.stack(seen).astype(np.float64) - 0.2) * 400


@pytest.mark.parametrize("seed", range(20))
def test_the_affine_part_of_a_misalignment_keeps_its_limits(seed: int) -> None:
    """Turn, scale and shear out of the fitted matrix, the shift out of where the centre was read."""
    config = Misalignment(p=1, elastic=0, shift=0.03)
    read = sampled_positions(config, seed)[:, 12:-12, 12:-12].reshape(2, -1)
    y, x = np.indices((80, 100))[:, 12:-12, 12:-12].reshape(2, -1)
    design = np.stack([x - 49.5, y - 39.5, np.ones_like(x)], axis=1)
    (a, b, across), (c, d, down) = np.linalg.lstsq(design, read.T, rcond=None)[0].T
    np.testing.assert_allclose(design @ [[a, c], [b, d], [across, down]], read.T, atol=0.05)
    scale, turn = np.hypot(a, c), np.degrees(np.arctan2(c, a))
    shear = np.degrees(np.arctan2(a * b + c * d, a * d - b * c))
    assert abs(scale - 1) <= 0.02 + 1e-3
    assert abs(turn) <= 1.5 + 0.05
    assert abs(shear) <= 1 + 0.1
    assert abs(across - 49.5) <= 3 + 0.05
    assert abs(down - 39.5) <= 2.4 + 0.05


def test_a_shift_in_pixels_and_reflection_at_the_border() -> None:
    """All but the shift switched off: a plain translation, checked against the picture read at its place."""
    config = Misalignment(p=1, rotation=0, scale=0, shear=0, elastic=0, shift_pixels=8)
    drawn = []
    for seed in range(40):
        read = sampled_positions(config, seed)
        y, x = np.indices(read.shape[1:])
        across, down = np.median(read[0] - x), np.median(read[1] - y)
        for positions, place, by, last in ((read[0], x, across, 99), (read[1], y, down, 79)):
            expected = np.abs(place + by)
            expected = last - np.abs(last - expected)
            inner = (np.abs(place + by) > 1) & (np.abs(place + by - last) > 1)
            np.testing.assert_allclose(positions[inner], expected[inner], atol=0.05)
        drawn.append((across, down))
    assert np.abs(drawn).max() <= 8.05
    assert np.abs(drawn).max(axis=0).min() > 6


def test_the_elastic_part_is_smooth_and_limited() -> None:
    config = Misalignment(p=1, rotation=0, scale=0, shear=0, shift=0, elastic=2)
    for seed in range(10):
        read = sampled_positions(config, seed, (150, 200))
        y, x = np.indices((150, 200))
        moved = (read - np.stack([x, y]))[:, 4:-4, 4:-4]
        assert 0.3 < np.abs(moved).max() <= 2.05
        assert np.abs(np.diff(moved, axis=2)).max() < 2 * 2 / 40
        assert np.std(moved) > 0.1


def test_without_strength_nothing_moves() -> None:
    config = Misalignment(p=1, rotation=0, scale=0, shear=0, shift=0, elastic=0)
    picture = np.random.default_rng(0).random((50, 61), dtype=np.float32)
    np.testing.assert_allclose(misaligned(picture, np.random.default_rng(1), config), picture, atol=1e-6)


def test_the_wildest_settings_stay_in_range(opened: Opened) -> None:
    wild = AugmentConfig(
        zoom=(1e-4, 1e4),
        jitter=0.5,
        infrared=InfraredFaults(p=1, noise=50, stripes=50, gain=0.99, offset=50),
        visible=VisibleFaults(p=1, noise=50, darkness=16, exposure=16, glare=1e6, haze=1e6),
        misalignment=Misalignment(p=1, rotation=360, scale=0.49, shift_pixels=1e6, shear=44, elastic=1e4),
    )
    samples = opened.samples(wild, teacher=False)
    for sample in map(samples.__getitem__, range(30)):
        for name in ("ir", "vis", "degraded_ir", "degraded_vis"):
            assert 0 <= float(sample[name].min()) <= float(sample[name].max()) <= 1


def test_jitter_takes_all_targets_along_or_none(opened: Opened) -> None:
    """Without a cached picture both views are jittered; beside one, which cannot follow, the student's alone."""
    config = AugmentConfig(jitter=0.1)
    for number in range(6):
        plain, follows, beside = (
            opened.samples(a, teacher=t)[number] for a, t in ((AugmentConfig(), True), (config, False), (config, True))
        )
        assert "degraded_vis" not in follows
        assert same(plain, follows, ["ir", "masks_ir", "masks_vis"])
        assert float((plain["vis"] - follows["vis"]).abs().max()) > 0.005
        assert same(plain, beside, list(plain))
        assert torch.equal(beside["degraded_vis"], follows["vis"])


def test_strong_jitter_beside_a_cached_teacher_is_refused() -> None:
    with pytest.raises(InputError, match=r"jitter 0\.2 beside cached teacher pictures.* at most 0\.1"):
        load_recipe("cached_teacher", ["data.augment.jitter=0.2"])
    assert load_recipe("cached_teacher", ["data.augment.jitter=0.1"]).data.augment.jitter == 0.1
    assert load_recipe("default", ["data.augment.jitter=0.3"]).data.augment.jitter == 0.3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("data.augment.zoom=[1.0, 0.6]", "the smaller number comes first"),
        ("data.augment.zoom=[0, 1]", "data.augment.zoom.0"),
        ("data.augment.dropout=1.5", "data.augment.dropout"),
        ("data.augment.misalignment.shift=-1", "data.augment.misalignment.shift"),
        ("data.augment.infrared.noise=.inf", "data.augment.infrared.noise"),
        ("data.augment.visible.exposure=2000", "data.augment.visible.exposure"),
        ("data.augment.fog=1", "data.augment.fog"),
    ],
)
def test_wrong_settings_name_the_key(change: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        load_recipe("default", [change])


def test_jitter_is_a_tone_curve_within_its_strength() -> None:
    """One curve per channel, rising, and on a grey ramp no further from it than strength allows."""
    ramp = np.repeat(np.linspace(0.1, 0.8, 256, dtype=np.float32)[None, :, None], 3, axis=2)
    curves = np.stack([jittered(ramp, np.random.default_rng(seed), 0.1)[0] for seed in range(60)])
    assert (np.diff(curves, axis=1) > 0).all()
    assert 0.08 < np.abs(curves / ramp - 1).max() < 1.1**2.5 * (0.8 / 0.1) ** 0.1 - 1
    assert np.abs(curves.mean(axis=0) - ramp).max() < 0.02
    assert np.abs(curves[..., 0] - curves[..., 1]).max() > 0.02


@pytest.fixture(scope="module")
def picture() -> NDArray[np.float32]:
    rng = np.random.default_rng(5)
    coarse = np.kron(rng.random((12, 16, 3)), np.ones((8, 8, 1)))
    return coarse.astype(np.float32)


def test_quick_photons_follow_the_law_of_the_sweep() -> None:
    """Mean and spread of the Poisson law, at dark, middle and bright."""
    for level in (0.05, 0.3, 0.9):
        flat = np.full((120, 160, 3), level, np.float32)
        for photons, deviation in ((250, 0.02), (30, 0.09)):
            slow = add_noise(flat, np.random.default_rng(0), photons=photons, deviation=deviation)
            fast = add_normal_noise(flat, np.random.default_rng(1), photons=photons, deviation=deviation)
            assert fast.dtype == np.float32
            assert abs(fast.mean() - slow.mean()) < 0.005
            assert abs(fast.std() / slow.std() - 1) < 0.02
        for exposure in (1 / 2, 1 / 16):
            slow, fast = (
                rule(flat, np.random.default_rng(2), exposure=exposure, photons=2000)
                for rule in (darken, darken_quickly)
            )
            assert abs(fast.mean() - slow.mean()) < 0.01
            assert abs(fast.std() - slow.std()) < 0.01


def test_glare_adds_light_around_one_place(picture: NDArray[np.float32]) -> None:
    """Against the light of every pixel written out, with the centre that the same numbers give."""
    worse = add_glare(picture, np.random.default_rng(3), light=2, radius=0.1)
    rng = np.random.default_rng(3)
    row, column = rng.uniform(0, 96), rng.uniform(0, 128)
    for y, x in ((0, 0), (int(row), int(column)), (50, 100), (95, 3)):
        veil = 2 / (1 + ((y - row) ** 2 + (x - column) ** 2) / (0.1 * 128) ** 2)
        np.testing.assert_allclose(worse[y, x], np.minimum(picture[y, x] ** 2.2 + veil, 1) ** (1 / 2.2), atol=1e-5)
    assert (worse >= picture - 1e-6).all()


@pytest.mark.parametrize("kind", ["noise", "darkness", "exposure", "glare", "haze"])
def test_every_fault_of_the_visible_camera_alone(picture: NDArray[np.float32], kind: str) -> None:
    off = dict.fromkeys(("noise", "darkness", "exposure", "glare", "haze"), 0.0)
    strength = VisibleFaults.model_fields[kind].default
    faults = VisibleFaults(p=1, **{**off, kind: strength})
    changes = []
    for seed in range(10):
        worse = faulty_visible(picture, np.random.default_rng(seed), faults)
        assert worse.dtype == np.float32
        assert worse.shape == picture.shape
        assert worse.min() >= 0
        assert worse.max() <= 1
        changes.append(float(worse.mean() - picture.mean()))
    assert {"darkness": max(changes) < 0, "noise": max(map(abs, changes)) < 0.05}.get(kind, min(changes) > 0)
    assert np.array_equal(faulty_visible(picture, np.random.default_rng(0), VisibleFaults(p=1, **off)), picture)


def test_faults_of_the_infrared_camera() -> None:
    """A flat picture shows gain and offset as its mean, stripes as lines in one direction, and noise in the rest."""
    flat, lines = np.full((60, 80), 0.5, np.float32), set()
    levels = []
    for seed in range(30):
        worse = faulty_infrared(flat, np.random.default_rng(seed), InfraredFaults(p=1, noise=0, stripes=0.04))
        upright, lying = np.ptp(worse, axis=0).max() < 1e-6, np.ptp(worse, axis=1).max() < 1e-6
        assert upright != lying
        lines.add(bool(upright))
        levels.append(float(worse.mean()) - 0.5)
        noisy = faulty_infrared(flat, np.random.default_rng(seed), InfraredFaults(p=1, noise=0.02, stripes=0))
        assert noisy.std() < 0.021
    assert lines == {True, False}
    assert 0.08 < np.abs(levels).max() <= 0.15 + 0.02


def test_a_dead_camera_asks_for_the_living_picture(opened: Opened) -> None:
    samples = opened.samples(AugmentConfig(dropout=0.6), labels=BLOCKS)
    plain = opened.samples(AugmentConfig(), labels=BLOCKS)
    seen: dict[str, list[str]] = {"ir": [], "vis": [], "none": []}
    for number in range(120):
        sample, before = samples[number], plain[number]
        dead_ir = not torch.equal(sample["degraded_ir"], before["ir"])
        dead_vis = not torch.equal(sample["degraded_vis"], before["vis"])
        assert not (dead_ir and dead_vis)
        if not dead_ir and not dead_vis:
            assert same(sample, before, list(before))
            seen["none"].append("alive")
            continue
        living = luminance(before["vis"]) if dead_ir else before["ir"]
        torch.testing.assert_close(sample["ir"], living, atol=1e-6, rtol=0)
        torch.testing.assert_close(luminance(sample["vis"]), living, atol=1e-6, rtol=0)
        torch.testing.assert_close(sample["teacher_y"], living, atol=1e-6, rtol=0)
        assert not sample["masks_ir"].any()
        assert not sample["masks_vis"].any()
        assert (sample["label"] == IGNORED).all()
        given = sample["degraded_ir" if dead_ir else "degraded_vis"]
        kind = "noise" if float(given.std()) > 0.2 else "black" if not given.any() else "grey"
        assert kind == "noise" or float(given.max()) == float(given.min())
        seen["ir" if dead_ir else "vis"].append(kind)
    assert 48 <= len(seen["ir"]) + len(seen["vis"]) <= 96
    assert set(seen["ir"]) == set(seen["vis"]) == {"black", "grey", "noise"}


def test_one_change_does_not_touch_the_draws_of_another(opened: Opened) -> None:
    alone = opened.samples(AugmentConfig(misalignment=Misalignment(p=0.7)))
    beside = opened.samples(
        EVERYTHING.model_copy(update={"zoom": (1.0, 1.0), "dropout": 0, "infrared": InfraredFaults()})
    )
    for number in range(8):
        one, other = alone[number], beside[number]
        assert same(one, other, ["ir", "masks_ir", "degraded_ir"])


def test_samples_with_everything_depend_on_seed_and_number_alone(opened: Opened) -> None:
    """With any number of workers, from any batch on, and in [0, 1]; another epoch shows a pair otherwise."""
    runs: list[list[Batch]] = []
    for workers, first in ((0, 0), (2, 0), (0, 3)):
        config = DataConfig(crop=(48, 64), batch=2, workers=workers, augment=EVERYTHING)
        samples = TrainingPairs(opened.pairs, config, 4, masks=opened.masks, teacher=opened.teacher)
        runs.append(list(load_batches(samples, config, first, 6)))
    names = ("ir", "vis", "masks_ir", "masks_vis", "teacher_y", "degraded_ir", "degraded_vis")
    for one, *others in zip(runs[0][3:], runs[1][3:], runs[2], strict=True):
        for other in others:
            assert all(torch.equal(getattr(one, name), getattr(other, name)) for name in names)
    for batch in runs[0]:
        for name in ("ir", "vis", "teacher_y", "degraded_ir", "degraded_vis"):
            value = getattr(batch, name)
            assert value.dtype is torch.float32
            assert 0 <= float(value.min()) <= float(value.max()) <= 1
    assert not torch.equal(opened.samples(EVERYTHING, seed=4)[0]["ir"], opened.samples(EVERYTHING, seed=5)[0]["ir"])


def test_drawing_samples_leaves_the_random_numbers_of_everybody_else_alone(opened: Opened) -> None:
    """SAGE §8 row 14: a sample draws from generators of its own, and seeds no other."""
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    samples = opened.samples(EVERYTHING)
    assert [samples[number]["ir"].shape for number in range(4)] == [(1, 48, 64)] * 4
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert random.getstate() == states[2]


def test_a_sample_is_not_changed_in_place(opened: Opened) -> None:
    sample = opened.samples(AugmentConfig())[0]
    before = {key: value.clone() for key, value in sample.items()}
    for seed in range(8):
        augmented(sample, EVERYTHING, lambda kind, seed=seed: np.random.default_rng([seed, kind]))  # type: ignore[misc]
    assert same(sample, before, list(before))
    assert len({int(kind) for kind in Change} & {1, 2, 3}) == 0


def toy_batch(seed: int, config: Misalignment | None) -> Batch:
    """A hot square in the infrared that the visible camera shows as a faint patch, on stripes."""
    rng = np.random.default_rng(seed)
    ir = np.full((4, 1, 32, 32), 0.1, np.float32)
    vis = np.broadcast_to(0.25 + 0.1 * (np.arange(32) // 4 % 2), (4, 3, 32, 32)).astype(np.float32)
    for index in range(4):
        top, left = rng.integers(8, 16, 2)
        ir[index, 0, top : top + 8, left : left + 8] = 0.9
        vis[index, :, top : top + 8, left : left + 8] += 0.15
    given = ir if config is None else np.stack([misaligned(p, rng, config)[None] for p in ir[:, 0]])
    masks = torch.zeros(4, 1, 32, 32, dtype=torch.bool)
    clean, moved = torch.from_numpy(ir), torch.from_numpy(given)
    return Batch(clean, torch.from_numpy(vis.copy()), masks, masks, tuple("abcd"), degraded_ir=moved)


def errors_aligned_and_shifted(config: Misalignment | None) -> tuple[float, float]:
    """Mean error to the brighter source after a short training, with aligned infrared and 4 pixels beside."""
    step = "steps={fusion: {owner: student, terms: {intensity_max: 1}}}"
    phases = "phases=[{name: only, batches: 80, cycle: [fusion]}]"
    recipe = load_recipe("cached_teacher", [step, phases, "optimisers.student={lr: 5.0e-3}"])
    torch.manual_seed(0)
    engine = Engine(recipe, {Owner.STUDENT: UNetStudent()}, None, torch.device("cpu"))
    for number in range(recipe.total_batches):
        engine.step(number, toy_batch(number, config))
    student, batch = engine.networks[Owner.STUDENT].eval(), toy_batch(1000, None)
    target = torch.maximum(batch.vis_y, batch.ir)
    with torch.no_grad():
        fused = [student(batch.vis_y, batch.ir.roll(by, -1)).y for by in (0, 4)]
    return float((fused[0] - target).abs().mean()), float((fused[1] - target).abs().mean())


def test_training_on_misaligned_infrared_lowers_the_error_under_a_shift() -> None:
    """Acceptance check 9, on toys."""
    (plain_aligned, plain_shifted), (aligned, shifted) = (
        errors_aligned_and_shifted(config) for config in (None, Misalignment(p=1, shift_pixels=6))
    )
    assert shifted - aligned < (plain_shifted - plain_aligned) / 2
    assert shifted < plain_shifted
