"""Built-in scenes: deterministic, exactly labelled, and physically what their condition says."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import pytest

from duskfuse.data.errors import InputError
from duskfuse.data.layout import find_pairs
from duskfuse.data.pair_files import read_pair
from duskfuse.data.scenes import BoxClass, Condition, Scene, SceneClass, render_scene, write_scenes

SIZE = (240, 320)
BOX_OF = {
    SceneClass.PERSON: BoxClass.PERSON,
    SceneClass.BICYCLE: BoxClass.BICYCLE,
    SceneClass.CAR: BoxClass.CAR,
    SceneClass.TRUCK: BoxClass.TRUCK,
}


@lru_cache(maxsize=64)
def scene(seed: int, condition: Condition) -> Scene:
    return render_scene(seed, size=SIZE, condition=condition)


def grey(picture: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float64)


def person_contrast(one: Scene) -> list[tuple[float, float]]:
    """Mean infrared difference and absolute visible difference of every larger person to the ring around them."""
    nobody = one.seg != SceneClass.PERSON
    differences = []
    for row, mask in zip(one.boxes, one.masks, strict=True):
        if row[0] == BoxClass.PERSON and mask.sum() > 120:
            ring = cv2.dilate(mask.astype(np.uint8), np.ones((13, 13), np.uint8)).astype(bool) & nobody
            if ring.sum() > 60:
                ir, vis = one.ir.astype(np.float64), grey(one.vis)
                differences.append((ir[mask].mean() - ir[ring].mean(), abs(vis[mask].mean() - vis[ring].mean())))
    return differences


@pytest.mark.parametrize("condition", [*Condition])
def test_shapes_and_types(condition: Condition) -> None:
    one = scene(3, condition)
    count = len(one.boxes)
    assert count > 0
    assert (one.ir.dtype, one.ir.shape) == (np.uint8, SIZE)
    assert (one.vis.dtype, one.vis.shape) == (np.uint8, (*SIZE, 3))
    assert (one.seg.dtype, one.seg.shape) == (np.uint8, SIZE)
    assert (one.boxes.dtype, one.boxes.shape) == (np.float32, (count, 5))
    assert (one.masks.dtype, one.masks.shape) == (np.bool_, (count, *SIZE))
    assert one.condition is condition
    assert one.name == f"scene_0003_{condition}"


@pytest.mark.parametrize("condition", [*Condition])
def test_same_seed_same_bytes_other_seed_other_scene(condition: Condition) -> None:
    first, again = scene(5, condition), render_scene(5, size=SIZE, condition=condition)
    for field in ("ir", "vis", "seg", "boxes", "masks"):
        assert np.array_equal(getattr(first, field), getattr(again, field))
    other = scene(6, condition)
    assert np.mean(first.seg != other.seg) > 0.1
    assert np.mean(first.vis != other.vis) > 0.5


def test_seeds_go_round_the_conditions() -> None:
    assert [render_scene(seed, size=(64, 64)).condition for seed in range(4)] == [*Condition]


@pytest.mark.parametrize("condition", [*Condition])
@pytest.mark.parametrize("seed", range(3))
def test_boxes_are_tight_around_masks_and_masks_agree_with_labels(seed: int, condition: Condition) -> None:
    one = scene(seed, condition)
    height, width = SIZE
    assert (one.masks.sum(axis=0) <= 1).all(), "two objects own one pixel"
    for (kind, cx, cy, w, h), mask in zip(one.boxes, one.masks, strict=True):
        assert mask.any()
        (seg,) = np.unique(one.seg[mask])
        assert BOX_OF[SceneClass(seg)] == kind
        rows, columns = np.nonzero(mask)
        edges = [columns.min() / width, rows.min() / height, (columns.max() + 1) / width, (rows.max() + 1) / height]
        np.testing.assert_allclose([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], edges, atol=1e-5)


def test_masks_cover_what_the_labels_call_objects() -> None:
    seen = covered = 0
    for seed in range(4):
        one = scene(seed, Condition.NIGHT)
        objects = np.isin(one.seg, [int(kind) for kind in BOX_OF])
        assert not (one.masks.any(axis=0) & ~objects).any()
        seen, covered = seen + objects.sum(), covered + one.masks.any(axis=0).sum()
    assert covered / seen > 0.97, "only slivers of objects may go without a mask"


def test_every_class_appears() -> None:
    seen = set()
    for seed in range(12):
        seen |= set(np.unique(scene(seed, Condition.DAY).seg).tolist())
    assert seen == {int(kind) for kind in SceneClass}


def test_at_night_people_glow_in_infrared_and_hide_in_visible() -> None:
    contrasts = [pair for seed in range(8) for pair in person_contrast(scene(seed, Condition.NIGHT))]
    assert len(contrasts) >= 10
    ir, vis = np.array(contrasts).T
    assert ir.mean() > 70
    assert np.median(vis) < 20
    assert ir.mean() > 4 * vis.mean()
    assert np.mean(ir > 25) > 0.9


def test_day_shows_people_in_visible_better_than_night() -> None:
    day = [vis for seed in range(8) for _, vis in person_contrast(scene(seed, Condition.DAY))]
    night = [vis for seed in range(8) for _, vis in person_contrast(scene(seed, Condition.NIGHT))]
    assert np.mean(day) > 2 * np.mean(night)


def test_fog_lowers_visible_contrast_more_than_thermal() -> None:
    def contrast(condition: Condition) -> tuple[float, float]:
        """Mean spread of the grey levels of everything that is neither sky nor road, visible and infrared."""
        spreads = []
        for seed in range(8):
            one = scene(seed, condition)
            solid = ~np.isin(one.seg, (SceneClass.SKY, SceneClass.ROAD))
            spreads.append((grey(one.vis)[solid].std(), one.ir[solid].astype(np.float64).std()))
        vis, ir = np.mean(spreads, axis=0)
        return float(vis), float(ir)

    (day_vis, day_ir), (fog_vis, fog_ir) = contrast(Condition.DAY), contrast(Condition.FOG)
    assert fog_vis < 0.55 * day_vis
    assert fog_ir / day_ir > 1.4 * fog_vis / day_vis


def test_glare_saturates_an_area_that_the_infrared_picture_does_not_have() -> None:
    for seed in range(6):
        one = scene(seed, Condition.GLARE)
        blind = (one.vis > 250).all(axis=2)
        assert 0.004 < blind.mean() < 0.3
        assert (one.ir[blind] > 250).mean() < 0.5


def test_pictures_use_their_range_and_have_colour_and_texture() -> None:
    for seed in range(4):
        one = scene(seed, Condition.DAY)
        assert one.ir.min() < 10
        assert one.ir.max() > 245
        vis = one.vis.astype(np.float64)
        assert (vis.max(axis=2) - vis.min(axis=2)).mean() > 8
        for kind in (SceneClass.ROAD, SceneClass.BUILDING, SceneClass.VEGETATION):
            inside = cv2.erode((one.seg == kind).astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool)
            detail = np.abs(cv2.Laplacian(grey(one.vis), cv2.CV_64F))
            assert inside.sum() < 50 or detail[inside].mean() > 1.5


@pytest.mark.parametrize("size", [(64, 64), (64, 200), (300, 90), (32, 32), (97, 131)])
@pytest.mark.parametrize("condition", [*Condition])
def test_any_size(size: tuple[int, int], condition: Condition) -> None:
    one = render_scene(2, size=size, condition=condition)
    assert one.vis.shape == (*size, 3)
    assert one.ir.shape == one.seg.shape == one.masks.shape[1:] == size
    assert (one.seg == SceneClass.ROAD).mean() > 0.05


def test_content_scales_with_the_size() -> None:
    small, large = scene(7, Condition.DAY), render_scene(7, size=(480, 640), condition=Condition.DAY)
    reduced = cv2.resize(large.seg, SIZE[::-1], interpolation=cv2.INTER_NEAREST)
    assert np.mean(reduced == small.seg) > 0.95


@pytest.mark.parametrize(("seed", "size"), [(-1, (64, 64)), (0, (16, 64)), (0, (64, 31))])
def test_refuses_negative_seeds_and_tiny_pictures(seed: int, size: tuple[int, int]) -> None:
    with pytest.raises(InputError):
        render_scene(seed, size=size)


def test_written_scenes_are_read_back_as_a_dataset(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "scenes"
    names = write_scenes(out, count=5, size=(96, 128), seed=3)
    assert names == [
        "scene_0003_glare",
        "scene_0004_day",
        "scene_0005_night",
        "scene_0006_fog",
        "scene_0007_glare",
    ]
    assert sorted(path.name for path in out.iterdir()) == ["boxes", "ir", "label", "vis"]
    assert [path.name for path in out.parent.iterdir()] == ["scenes"], "temporary files were left behind"
    pairs = find_pairs(out)
    assert [pair.name for pair in pairs] == names
    for seed, files in enumerate(pairs, start=3):
        rendered, pair = render_scene(seed, size=(96, 128)), read_pair(files)
        assert pair.seg is not None
        assert pair.boxes is not None
        np.testing.assert_array_equal(np.rint(pair.ir[0].numpy() * 255), rendered.ir)
        np.testing.assert_array_equal(np.rint(pair.vis.permute(1, 2, 0).numpy() * 255), rendered.vis)
        np.testing.assert_array_equal(pair.seg.numpy(), rendered.seg)
        np.testing.assert_allclose(pair.boxes.numpy(), rendered.boxes, atol=1e-6)


def test_refuses_a_folder_that_holds_something(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match=r"not empty.*overwrite"):
        write_scenes(tmp_path, count=1, size=(64, 64))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_refuses_a_file_and_no_scenes(tmp_path: Path) -> None:
    file = tmp_path / "out"
    file.write_text("", encoding="utf-8")
    with pytest.raises(InputError, match="is a file"):
        write_scenes(file, count=1)
    with pytest.raises(InputError, match="0 scenes"):
        write_scenes(tmp_path / "new", count=0)


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    out = tmp_path / "empty"
    out.mkdir()
    assert write_scenes(out, count=1, size=(64, 64), seed=1) == ["scene_0001_night"]
    assert (out / "ir" / "scene_0001_night.png").is_file()


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        write_scenes(tmp_path / "scenes", count=1, size=(8, 8))
    assert not list(tmp_path.iterdir())
