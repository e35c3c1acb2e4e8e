"""Ready pictures as a teacher: every layout, every container, crops found, everything else refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from duskfuse.data.errors import InputError
from duskfuse.data.images import write_picture
from duskfuse.data.layout import find_pairs
from duskfuse.data.pair_files import PairFiles
from duskfuse.teachers.folder_teacher import FolderTeacher, ReadyFolder, find_method, method_names
from duskfuse.teachers.teacher import TeacherJob, ValueTransform

SIZE = (70, 100)


def textured(seed: int, size: tuple[int, int] = SIZE) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    coarse = np.kron(rng.integers(0, 200, (size[0] // 10 + 1, size[1] // 10 + 1)), np.ones((10, 10)))
    return np.asarray(coarse[: size[0], : size[1]] + rng.integers(0, 55, size), np.uint8)


def write_pair(folder: Path, name: str, seed: int, *, parts: Sequence[str] = ()) -> NDArray[np.uint8]:
    """A pair of grey textures; returns its fusion, the mean."""
    ir, vis = textured(seed), textured(seed + 1000)
    write_picture(folder.joinpath(*parts, "ir", f"{name}.png"), ir)
    write_picture(folder.joinpath(*parts, "vis", f"{name}.png"), vis)
    return np.asarray(((ir.astype(int) + vis) // 2), np.uint8)


def job(files: PairFiles) -> TeacherJob:
    return TeacherJob(files, files.prior_keys())


def fused_by(teacher: FolderTeacher, files: PairFiles) -> NDArray[np.uint8]:
    return np.asarray(np.rint(teacher.fuse(job(files)).y * 255), np.uint8)


@pytest.mark.parametrize(
    ("method", "places"),
    [
        ("TEACHER_FUSED", {"train": "train/TEACHER_FUSED", "val": "val/TEACHER_FUSED"}),
        ("teacher_fused", {"train": "train/TEACHER_FUSED", "val": "val/TEACHER_FUSED"}),
        ("Fuse_ref", {"train": "Fuse_ref/train", "val": "Fuse_ref/val"}),
        ("seafusion", {"train": "teacher/seafusion/train", "val": "teacher/seafusion/val"}),
        ("seafusion", {"train": "train/teacher/seafusion", "val": "val/teachers/SeaFusion"}),
    ],
)
def test_a_method_inside_the_dataset_is_found_in_every_split(
    tmp_path: Path, method: str, places: dict[str, str]
) -> None:
    """Stems repeat across splits: each pair gets the picture of its own split."""
    expected = {}
    for seed, (split, place) in enumerate(places.items()):
        for stem in ("00001", "00002"):
            fused = write_pair(tmp_path, stem, 10 * seed + int(stem), parts=(split,))
            expected[f"{split}__{stem}"] = fused
            write_picture(tmp_path / place / f"{stem}.png", fused)
    pairs = find_pairs(tmp_path)
    teacher = FolderTeacher(find_method(tmp_path, method), tmp_path, pairs)
    assert [files.name for files in pairs] == sorted(expected)
    for files in pairs:
        np.testing.assert_array_equal(fused_by(teacher, files), expected[files.name])
    assert method.lower() in [name.lower() for name in method_names(tmp_path)]


@pytest.mark.parametrize("named", ["train__00001", "00001"], ids=["pair name", "stem"])
def test_a_flat_folder_is_matched_by_pair_name_or_by_a_stem_that_one_pair_has(tmp_path: Path, named: str) -> None:
    data, ready = tmp_path / "data", tmp_path / "ready"
    fused = write_pair(data, "00001", 1, parts=("train",))
    write_pair(data, "00002", 2, parts=("val",))
    write_picture(ready / f"{named}.png", fused)
    pairs = find_pairs(data)
    teacher = FolderTeacher([ReadyFolder(ready)], data, pairs)
    assert [teacher.has(job(files)) for files in pairs] == [True, False]
    np.testing.assert_array_equal(fused_by(teacher, pairs[0]), fused)


def test_a_stem_that_two_pairs_have_belongs_to_neither(tmp_path: Path) -> None:
    data, ready = tmp_path / "data", tmp_path / "ready"
    for split in ("train", "val"):
        fused = write_pair(data, "00001", len(split), parts=(split,))
    write_picture(ready / "00001.png", fused)
    with pytest.raises(InputError, match=r"none of its 1 pictures belongs to a pair.*00001.png and train__00001"):
        FolderTeacher([ReadyFolder(ready)], data, find_pairs(data))


def as_colour(fused: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.stack([fused, np.roll(fused, 1), fused // 2], axis=-1)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp", "jpg"])
def test_any_container_in_grey_or_colour(tmp_path: Path, suffix: str) -> None:
    fused = write_pair(tmp_path, "a", 1)
    colour = as_colour(fused)
    write_pair(tmp_path, "b", 2)
    write_picture(tmp_path / "TEACHER_FUSED" / f"a.{suffix}", fused)
    write_picture(tmp_path / "TEACHER_FUSED" / f"b.{suffix}", colour)
    pairs = find_pairs(tmp_path)
    teacher = FolderTeacher(find_method(tmp_path, "TEACHER_FUSED"), tmp_path, pairs)
    grey = colour @ [0.299, 0.587, 0.114]
    for files, expected in zip(pairs, (fused, grey), strict=True):
        picture = teacher.fuse(job(files))
        error = np.abs(picture.y * 255 - expected)
        assert error.mean() < (4 if suffix in ("jpg", "webp") else 1e-3)
        assert picture.transform is ValueTransform.UNKNOWN
        assert picture.made_from[0].source == f"TEACHER_FUSED/{files.name}.{suffix}"


def test_16_bit_pictures_keep_their_brightness(tmp_path: Path) -> None:
    fused = write_pair(tmp_path, "a", 1)
    (tmp_path / "TEACHER_FUSED").mkdir()
    cv2.imwrite(str(tmp_path / "TEACHER_FUSED" / "a.png"), fused.astype(np.uint16) * 100)
    pairs = find_pairs(tmp_path)
    teacher = FolderTeacher(find_method(tmp_path, "TEACHER_FUSED"), tmp_path, pairs)
    np.testing.assert_allclose(teacher.fuse(job(pairs[0])).y, fused * (100 / 65535), atol=1e-6)


@pytest.mark.parametrize("corner", [(0, 0), (3, 2)], ids=["top left", "middle"])
def test_a_crop_to_a_multiple_of_32_is_found_by_its_detail(tmp_path: Path, corner: tuple[int, int]) -> None:
    fused = write_pair(tmp_path, "a", 1)
    top, left = corner
    write_picture(tmp_path / "TEACHER_FUSED" / "a.png", fused[top : top + 64, left : left + 96])
    pairs = find_pairs(tmp_path)
    picture = FolderTeacher(find_method(tmp_path, "TEACHER_FUSED"), tmp_path, pairs).fuse(job(pairs[0]))
    assert picture.crop == (top, left, 64, 96)


@pytest.mark.parametrize(
    ("size", "said"), [((69, 98), "resized"), ((35, 50), "resized"), ((140, 200), "larger"), ((70, 101), "larger")]
)
def test_resized_pictures_are_refused(tmp_path: Path, size: tuple[int, int], said: str) -> None:
    fused = write_pair(tmp_path, "a", 1)
    resized = cv2.resize(fused, size[::-1], interpolation=cv2.INTER_AREA)
    write_picture(tmp_path / "TEACHER_FUSED" / "a.png", np.asarray(resized, np.uint8))
    pairs = find_pairs(tmp_path)
    teacher = FolderTeacher(find_method(tmp_path, "TEACHER_FUSED"), tmp_path, pairs)
    with pytest.raises(
        InputError, match=rf"{size[1]}×{size[0]}, its pair 100×70, and it (was|is) {said}.*never resized"
    ):
        teacher.fuse(job(pairs[0]))


def test_a_picture_from_elsewhere_in_the_pair_is_refused(tmp_path: Path) -> None:
    fused = write_pair(tmp_path, "a", 1)
    write_picture(tmp_path / "TEACHER_FUSED" / "a.png", fused[6:, 4:])
    pairs = find_pairs(tmp_path)
    teacher = FolderTeacher(find_method(tmp_path, "TEACHER_FUSED"), tmp_path, pairs)
    with pytest.raises(InputError, match="neither the top left corner nor the middle"):
        teacher.fuse(job(pairs[0]))


def test_settings_change_with_the_pictures_and_with_nothing_else(tmp_path: Path) -> None:
    data, ready = tmp_path / "data", tmp_path / "seafusion"
    fused = {name: write_pair(data, name, seed) for seed, name in enumerate("ab")}
    for name, picture in fused.items():
        write_picture(ready / f"{name}.png", picture)
    pairs = find_pairs(data)

    def settings(chosen: Sequence[PairFiles]) -> object:
        return FolderTeacher([ReadyFolder(ready)], data, chosen).settings

    before = settings(pairs)
    assert settings(pairs[:1]) == before
    write_picture(ready / "b.png", fused["a"])
    assert settings(pairs) != before


def test_names_that_are_no_file_names_are_made_ones(tmp_path: Path) -> None:
    fused = write_pair(tmp_path, "a", 1)
    write_picture(tmp_path / "teacher" / "U2 Fusion (v2)" / "a.png", fused)
    pairs = find_pairs(tmp_path)
    assert FolderTeacher(find_method(tmp_path, "u2 fusion (V2)"), tmp_path, pairs).name == "U2-Fusion-v2"
