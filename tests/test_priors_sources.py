"""Classical regions, label maps and random rectangles as mask sources."""

from __future__ import annotations

import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from duskfuse.data.errors import InputError
from duskfuse.data.images import read_infrared
from duskfuse.data.priors.labels import Labels
from duskfuse.data.priors.masks import KEPT_MASKS, MaskSet
from duskfuse.data.priors.random_crops import RandomCrops
from duskfuse.data.priors.regions import Regions, _basins, _boundaries, _merge_tree
from duskfuse.data.priors.sources import MaskSourceName, open_mask_source


def thermal_scene(height: int = 240, width: int = 320) -> tuple[NDArray[np.uint8], dict[str, NDArray[np.bool_]]]:
    """Warm ground under a cold sky, a hot person with a cooler waist, a small hot lamp; noise of 2 grey levels."""
    things = {name: np.zeros((height, width), np.uint8) for name in ("sky", "person", "lamp")}
    things["sky"][: height // 3] = 1
    cv2.rectangle(things["person"], (100, 120), (124, 190), 1, -1)
    cv2.circle(things["lamp"], (240, 130), 8, 1, -1)
    picture = np.full((height, width), 90.0)
    picture[things["sky"] > 0] = 40
    picture[things["person"] > 0] = 210
    picture[150:158, 100:125] = 170
    picture[things["lamp"] > 0] = 230
    picture += np.random.default_rng(0).normal(0, 2, picture.shape)
    grey = np.rint(picture).clip(0, 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2), {name: mask.astype(bool) for name, mask in things.items()}


def best_iou(masks: MaskSet, wanted: NDArray[np.bool_]) -> float:
    planes = masks.decode()
    return float(((planes & wanted).sum((1, 2)) / (planes | wanted).sum((1, 2))).max())


@pytest.mark.parametrize("scale", [1, 2])
def test_regions_find_what_stands_out(scale: int):
    picture, things = thermal_scene()
    if scale > 1:
        size = (picture.shape[1] * scale, picture.shape[0] * scale)
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_CUBIC)
        things = {name: cv2.resize(m.astype(np.uint8), size) > 0 for name, m in things.items()}
    masks = Regions().masks(picture)
    assert {name: best_iou(masks, mask) > 0.8 for name, mask in things.items()} == dict.fromkeys(things, True)
    assert len(masks) <= KEPT_MASKS
    assert masks.area.min() >= 100


def test_regions_are_the_same_every_time_and_no_two_alike():
    picture, _ = thermal_scene()
    masks = Regions().masks(picture)
    again = Regions().masks(picture.copy())
    assert masks.bits == again.bits
    planes = masks.decode().reshape(len(masks), -1).astype(int)
    both = planes @ planes.T
    iou = both / (masks.area[:, None] + masks.area[None] - both)
    assert np.triu(iou, 1).max() < 0.9


@pytest.mark.parametrize("size", [(4, 4), (4, 300), (300, 5), (33, 47), (90, 400)])
def test_regions_of_any_size(size: tuple[int, int]):
    generator = np.random.default_rng(1)
    for picture in (generator.integers(0, 256, (*size, 3), np.uint8), np.full((*size, 3), 80, np.uint8)):
        masks = Regions().masks(picture)
        assert (masks.height, masks.width) == size
    assert len(masks) == 0  # nothing stands out of a constant picture


def test_merging_follows_the_energy():
    """The first and last merge of four flat quarters, against the formula worked out by hand."""
    picture = np.zeros((8, 8, 3), np.uint8)
    basins = np.zeros((8, 8), np.int32)
    for number, (rows, columns, grey) in enumerate(
        [(slice(0, 4), slice(0, 4), 10), (slice(0, 4), slice(4, 8), 13), (slice(4, 8), slice(0, 4), 100)]
    ):
        picture[rows, columns] = grey
        basins[rows, columns] = number
    picture[4:, 4:], basins[4:, 4:] = 140, 3
    assert _boundaries(basins, 4)[0] == {1: 4, 2: 4}
    tree = _merge_tree(picture, basins)
    assert tree.children == [(0, 1), (2, 3), (4, 5)]
    assert tree.died[0] == pytest.approx(16 * 16 / 32 * 3 * 3**2 / 4)
    assert tree.died[2] == pytest.approx(16 * 16 / 32 * 3 * 40**2 / 4)
    assert tree.died[4] == pytest.approx(32 * 32 / 64 * 3 * (120 - 11.5) ** 2 / 8)
    assert tree.area == [16, 16, 16, 16, 32, 32, 64]
    assert np.array_equal(tree.mask(basins, 5), basins >= 2)


def test_basins_cover_the_picture_once():
    picture, _ = thermal_scene(60, 80)
    basins = _basins(picture)
    assert basins.shape == (60, 80)
    assert np.array_equal(np.unique(basins), np.arange(basins.max() + 1))
    for number in range(basins.max() + 1):
        assert cv2.connectedComponents((basins == number).astype(np.uint8), connectivity=8)[0] == 2


def test_labels_are_taken_apart_by_class_and_place():
    ids = np.zeros((60, 80), np.uint8)
    ids[5:25, 5:25] = 3
    ids[30:55, 30:40] = 3
    ids[30:55, 40:60] = 7
    ids[:3, :3] = 9
    ids[:, 70:] = 255
    masks = Labels().masks(ids)
    assert masks.area.tolist() == [60 * 70 - 400 - 250 - 500 - 9, 500, 400, 250]
    assert np.array_equal(masks.decode([1])[0], ids == 7)
    assert Labels().masks(np.repeat(ids[..., None], 3, axis=2)).bits == masks.bits
    assert len(Labels().masks(np.full((20, 20), 255, np.int64))) == 0


def test_only_the_largest_labels_are_kept():
    ids = np.zeros((200, 400), np.int64)
    for i in range(30):
        ids[10 : 20 + i, i * 13 : i * 13 + 12] = 1 + i
    masks = Labels().masks(ids)
    assert len(masks) == KEPT_MASKS
    assert masks.area[1:].tolist() == [12 * (39 - i) for i in range(KEPT_MASKS - 1)]


def test_rectangles_are_those_of_the_picture_and_the_seed():
    picture, _ = thermal_scene()
    masks = RandomCrops().masks(picture)
    assert len(masks) == KEPT_MASKS
    assert RandomCrops().masks(np.asfortranarray(picture)).bits == masks.bits
    other = picture.copy()
    other[0, 0, 0] ^= 1
    for differently in (RandomCrops().masks(other), RandomCrops(seed=1).masks(picture)):
        assert differently.boxes.tolist() != masks.boxes.tolist()
    assert RandomCrops(seed=1).settings != RandomCrops().settings


def test_rectangles_follow_their_distribution():
    """Shares log-uniform in 1 % to 50 %, ratios log-uniform in 1/2 to 2, all full and inside; 2,000 of them."""
    picture = np.zeros((150, 200, 3), np.uint8)
    masks = RandomCrops(keep=2000).masks(picture)
    x, y, width, height = masks.boxes.astype(np.int64).T
    assert np.array_equal(masks.area, width * height)
    share = np.log(masks.area / picture[..., 0].size / 0.01) / np.log(50)
    whole = (width < 200) & (height < 150)
    ratio = np.log2(width / height)[whole]
    assert -0.02 < share.min() < 0.01
    assert 0.97 < share.max() < 1.02
    assert -1.1 < ratio.min() < ratio.max() < 1.1
    assert abs(share.mean() - 0.5) < 0.03
    assert abs(np.quantile(share, 0.25) - 0.25) < 0.03
    assert abs(np.median(ratio[share[whole] < 0.5])) < 0.1
    for start, room in ((x, 200 - width), (y, 150 - height)):
        assert abs((start[whole] / room[whole]).mean() - 0.5) < 0.05


@pytest.mark.parametrize("size", [(4, 4), (4, 300), (300, 5)])
def test_rectangles_in_any_picture(size: tuple[int, int]):
    masks = RandomCrops().masks(np.zeros((*size, 3), np.uint8))
    assert len(masks) == KEPT_MASKS
    assert masks.area.min() >= 1


@pytest.mark.parametrize("keep", [1, 3, 40])
def test_as_many_masks_are_kept_as_wanted(keep: int):
    picture, things = thermal_scene()
    ids = np.zeros((200, 400), np.int64)
    for i in range(30):
        ids[10 : 20 + i, i * 13 : i * 13 + 12] = 1 + i
    for name, image in (("regions", picture), ("random-crops", picture), ("labels", ids)):
        source = open_mask_source(MaskSourceName(name), keep=keep)
        assert source.settings["keep"] == keep
        assert 0 < len(source.masks(image)) <= keep
    assert len(open_mask_source(MaskSourceName.LABELS, keep=keep).masks(ids)) == min(keep, 31)
    if keep >= 3:
        assert best_iou(open_mask_source(MaskSourceName.REGIONS, keep=keep).masks(picture), things["person"]) > 0.8


def test_sources_open_by_name():
    assert open_mask_source(MaskSourceName.REGIONS).name == "regions"
    assert open_mask_source(MaskSourceName.LABELS).name == "labels"
    assert open_mask_source(MaskSourceName.RANDOM_CROPS).name == "random-crops"
    with pytest.raises(InputError, match="at least one"):
        open_mask_source(MaskSourceName.REGIONS, keep=0)
    with pytest.raises(InputError, match="takes a checkpoint"):
        open_mask_source(MaskSourceName.REGIONS, Path("sam.pth"))
    with pytest.raises(InputError, match="fast and paper"):
        open_mask_source(MaskSourceName.SAM, Path("sam.pth"), "slow")


@pytest.mark.realdata
def test_people_in_real_thermal_pictures_become_masks(shared_data: Path):
    """Two people stand in this picture; their outlines by a threshold are the reference."""
    grey = np.rint(read_infrared(shared_data / "val/ir/MSRS_train__00633D.png") * 255).astype(np.uint8)
    bright = cv2.morphologyEx((grey > 90).astype(np.uint8), cv2.MORPH_CLOSE, np.ones((9, 9), np.uint8))
    count, labels, stats, _ = cv2.connectedComponentsWithStats(bright)
    people = [labels == i for i in range(1, count) if 1500 < stats[i, cv2.CC_STAT_AREA] < 9000]
    start = time.process_time()
    masks = Regions().masks(np.repeat(grey[..., None], 3, axis=2))
    assert time.process_time() - start < 0.6
    assert len(people) == 2
    assert all(best_iou(masks, person) > 0.6 for person in people)
