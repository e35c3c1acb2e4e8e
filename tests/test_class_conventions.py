"""Class conventions: labels are read as the ids that count, and never those of another dataset."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from duskfuse.data.class_conventions import check_labels, convention_named, read_counted_label
from duskfuse.data.class_tables import FMB_LABELS, MFNET_LABELS, SCENE_LABELS
from duskfuse.data.errors import InputError
from duskfuse.data.layout import find_pairs
from duskfuse.data.pair_files import PairFiles
from duskfuse.data.scenes.kinds import SceneClass
from duskfuse.data.scenes.write import write_scenes


def pair_with_label(folder: Path, label: np.ndarray) -> PairFiles:
    picture = np.random.default_rng(0).integers(0, 255, (*label.shape, 3)).astype(np.uint8)
    for side, shown in (("ir", picture[..., 0]), ("vis", picture), ("label", label)):
        (folder / side).mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / side / "a.png"), shown)
    return find_pairs(folder)[0]


def test_the_scenes_table_has_the_names_that_the_scenes_paint(tmp_path: Path) -> None:
    assert SCENE_LABELS.names == tuple(kind.name.lower() for kind in SceneClass)
    assert len(SCENE_LABELS.colours) == len(SCENE_LABELS)
    write_scenes(tmp_path / "scenes", count=2, size=(48, 64))
    ids = read_counted_label(find_pairs(tmp_path / "scenes")[0], convention_named("SCENES-11"))
    assert len(ids.unique()) > 2
    assert int(ids.max()) < 11


def test_ids_survive_and_left_out_classes_are_ignored(tmp_path: Path) -> None:
    """SAGE §10.12: ids are not scaled; the convention alone decides which count."""
    label = np.arange(16, dtype=np.uint8).reshape(4, 4)
    label[-1, -1] = 255
    files = pair_with_label(tmp_path, label)
    assert read_counted_label(files, convention_named("FMB-15")).unique().tolist() == [*range(15), 255]
    assert read_counted_label(files, convention_named("FMB-13")).unique().tolist() == [*range(1, 13), 14, 255]


def test_target_masks_hold_a_class_at_255(tmp_path: Path) -> None:
    files = pair_with_label(tmp_path, np.tile(np.array([[0, 255], [1, 0]], np.uint8), (2, 2)))
    assert read_counted_label(files, convention_named("targets-2")).tolist() == [[0, 1, 0, 1], [1, 0, 1, 0]] * 2


def test_labels_of_another_table_are_refused(tmp_path: Path) -> None:
    files = pair_with_label(tmp_path, np.full((4, 4), 12, np.uint8))
    with pytest.raises(InputError, match="16 pixels of class 12; the classes of MFNet and MSRS are 0 to 8"):
        read_counted_label(files, convention_named("MFNet-9"))
    check_labels([files, replace(files, label_classes=FMB_LABELS)], convention_named("FMB-14"))
    with pytest.raises(InputError, match="take the classes MFNet-9"):
        check_labels([replace(files, label_classes=MFNET_LABELS)], convention_named("FMB-15"))


@pytest.mark.realdata
def test_real_labels_are_of_their_conventions(shared_data: Path) -> None:
    for folder, name in (("train", "targets-2"), ("detect/val", "MFNet-9")):
        labelled = [pair for pair in find_pairs(shared_data / folder) if pair.label is not None]
        seen = set().union(
            *(read_counted_label(pair, convention_named(name)).unique().tolist() for pair in labelled[:8])
        )
        assert {0, 1} <= seen <= set(range(9))
