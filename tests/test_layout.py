from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from duskfuse.data.errors import InputError
from duskfuse.data.images import ThermalRange, write_picture
from duskfuse.data.layout import find_pairs
from duskfuse.data.pair_files import PairFiles, SourcePicture, read_boxes, read_pair
from duskfuse.data.reading import AS_STORED, Reading

PICTURE = np.full((8, 8), 90, np.uint8)

Tree = Callable[..., Path]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Make a dataset from file names; pictures are small and real, other files hold text."""

    def make(*names: str) -> Path:
        for name in names:
            path = tmp_path / "set" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix.lower() in (".txt", ".db", ".xml"):
                path.write_text("0 0.5 0.5 0.2 0.2\n")
            else:
                write_picture(path, PICTURE)
        return tmp_path / "set"

    return make


def found(pairs: list[PairFiles], root: Path) -> list[tuple[str, str, str, str | None]]:
    return [
        (pair.name, pair.ir.path.relative_to(root).as_posix(), pair.vis.path.relative_to(root).as_posix(), pair.split)
        for pair in pairs
    ]


@pytest.mark.parametrize(
    ("ir", "vis"),
    [
        ("ir", "vis"),
        ("Ir", "Vis"),
        ("Infrared", "Visible"),
        ("T", "RGB"),
        ("lwir", "visible"),
        ("thermal", "vi"),
        ("IR", "VIS"),
        ("cropinfrared", "crop_LR_visible"),
        ("infrared_Enhance", "visible_Enhance"),
    ],
)
def test_folder_names_of_published_sets(tree: Tree, ir: str, vis: str):
    root = tree(f"{ir}/b.png", f"{vis}/b.jpg", f"{ir}/a.bmp", f"{vis}/a.png")
    assert found(find_pairs(root), root) == [
        ("a", f"{ir}/a.bmp", f"{vis}/a.png", None),
        ("b", f"{ir}/b.png", f"{vis}/b.jpg", None),
    ]


@pytest.mark.parametrize("pattern", ["{split}/{side}", "{side}/{split}"])
def test_split_above_or_below_the_modality(tree: Tree, pattern: str):
    files = [
        pattern.format(split=split, side=side) + "/1.png" for split in ("train", "test") for side in ("infrared", "vi")
    ]
    root = tree(*files)
    both = find_pairs(root)
    assert [(pair.name, pair.split) for pair in both] == [("test__1", "test"), ("train__1", "train")]
    assert all(pair.ir.path.parent != pair.vis.path.parent and pair.split in pair.ir.path.parts for pair in both)
    (train,) = find_pairs(root, split="train")
    assert (train.name, train.split, train.ir) == ("1", "train", both[1].ir)
    with pytest.raises(InputError, match=r"no split 'val'.*test, train"):
        find_pairs(root, split="val")


def test_split_that_does_not_exist_in_a_flat_folder(tree: Tree):
    with pytest.raises(InputError, match=r"no split 'train'.*leave the split away"):
        find_pairs(tree("ir/1.png", "vis/1.png"), split="train")


def test_kaist_tree(tree: Tree):
    frames = [f"set0{s}/V00{v}/{side}/I00000.jpg" for s in (0, 1) for v in (0, 1) for side in ("visible", "lwir")]
    root = tree(*frames)
    assert [pair.name for pair in find_pairs(root)] == [f"set0{s}__V00{v}__I00000" for s in (0, 1) for v in (0, 1)]
    assert [pair.name for pair in find_pairs(root, split="set01")] == ["V000__I00000", "V001__I00000"]


def test_flir_pairs_in_one_folder(tree: Tree):
    root = tree(
        "JPEGImages/FLIR_00002_RGB.jpg",
        "JPEGImages/FLIR_00002_PreviewData.jpeg",
        "JPEGImages/Thumbs.db",
        "Annotations/FLIR_00002_PreviewData.xml",
    )
    assert found(find_pairs(root), root) == [
        ("FLIR_00002", "JPEGImages/FLIR_00002_PreviewData.jpeg", "JPEGImages/FLIR_00002_RGB.jpg", None)
    ]


def test_roadscene_takes_the_crops_and_ignores_what_is_no_picture(tree: Tree):
    root = tree(
        "cropinfrared/FLIR_1.jpg",
        "cropinfrared/Thumbs.db",
        "crop_LR_visible/FLIR_1.jpg",
        "crop_HR_visible/FLIR_1.jpg",
        "infrared/FLIR_1.png",
    )
    assert found(find_pairs(root), root) == [("FLIR_1", "cropinfrared/FLIR_1.jpg", "crop_LR_visible/FLIR_1.jpg", None)]


def test_annotations_by_kind_of_file(tree: Tree):
    root = tree(
        "ir/1.png", "vis/1.png", "ir/2.png", "vis/2.png", "labels/1.txt", "Segmentation_labels/2.png", "vis/notes.txt"
    )
    one, two = find_pairs(root)
    assert one.boxes == root / "labels" / "1.txt"
    assert one.label is None
    assert two.label == root / "Segmentation_labels" / "2.png"
    assert two.boxes is None


def test_teacher_fused_and_hidden_folders_are_no_sources(tree: Tree):
    root = tree(
        "ir/1.png",
        "vis/1.png",
        "ir/.2.png",
        "teacher/seafusion/1.png",
        "teacher/ir/1.png",
        "fused/vis/1.png",
        ".cache/ir/1.png",
        "preview/1.png",
    )
    assert found(find_pairs(root), root) == [("1", "ir/1.png", "vis/1.png", None)]


def test_names_stay_unique_and_colliding_ones_are_refused(tree: Tree):
    root = tree("ir/a__1.png", "vis/a__1.png", "a/ir/1.png", "a/vis/1.png")
    with pytest.raises(InputError, match="would both be called a__1"):
        find_pairs(root)


def test_list_file(tree: Tree, tmp_path: Path):
    root = tree(*(f"{split}/{side}/{i}.png" for split in ("a", "b") for side in ("ir", "vis") for i in (1, 2)))
    root = tree("b/ir/3.png", "b/vis/3.png")
    listing = tmp_path / "list.txt"
    listing.write_text("3.png\n\na/1\r\nb\\ir\\2.png\na__1\n")
    assert [pair.name for pair in find_pairs(root, list_file=listing)] == ["a__1", "b__2", "b__3"]
    listing.write_text("1\n")
    with pytest.raises(InputError, match=r"1 in several folders.*a__1"):
        find_pairs(root, list_file=listing)
    assert [pair.name for pair in find_pairs(root, split="a", list_file=listing)] == ["1"]
    listing.write_text("".join(f"missing{i}\n" for i in range(7)))
    with pytest.raises(InputError, match=r"missing0, .*missing4 and 2 more not found among 5 pairs"):
        find_pairs(root, list_file=listing)
    with pytest.raises(InputError, match="no such file"):
        find_pairs(root, list_file=tmp_path / "absent.txt")


def test_pairs_are_read_as_the_file_in_their_folder_says(tree: Tree):
    root = tree("ir/1.png", "vis/1.png")
    assert find_pairs(root)[0].reading == AS_STORED
    (root / "duskfuse.yaml").write_text("black_hot: true\n")
    assert find_pairs(root)[0].reading == Reading(black_hot=True)
    assert find_pairs(root, reading=Reading(resize_ir=True))[0].reading == Reading(resize_ir=True)


def test_flir_list_names(tree: Tree, tmp_path: Path):
    root = tree(*(f"JPEGImages/FLIR_{i}_{end}" for i in (1, 2) for end in ("RGB.jpg", "PreviewData.jpeg")))
    (tmp_path / "align_train.txt").write_text("FLIR_2_PreviewData\n")
    assert [pair.name for pair in find_pairs(root, list_file=tmp_path / "align_train.txt")] == ["FLIR_2"]


def test_folder_errors(tree: Tree, tmp_path: Path):
    with pytest.raises(InputError, match="no such folder"):
        find_pairs(tmp_path / "absent")
    (tmp_path / "empty" / "ir").mkdir(parents=True)
    with pytest.raises(InputError, match="empty"):
        find_pairs(tmp_path / "empty")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="not a folder"):
        find_pairs(tmp_path / "file")
    root = tree("night/1.png", "day/1.png", "day/2.png")
    with pytest.raises(InputError, match=r"found day \(2 files\), night \(1 files\).*lwir.*visible"):
        find_pairs(root)


def test_missing_partners(tree: Tree):
    root = tree(*(f"vis/{i}.png" for i in range(9)), "ir/0.png", "ir/1.png")
    with pytest.raises(InputError, match="7 visible pictures without infrared partner: 2, 3, 4, 5, 6 and 2 more"):
        find_pairs(root)


@pytest.mark.parametrize(("present", "absent"), [("ir", "visible"), ("vis", "infrared")])
def test_missing_modality(tree: Tree, present: str, absent: str):
    with pytest.raises(InputError, match=f"1 .* pictures without {absent} partner: 1;"):
        find_pairs(tree(f"train/{present}/1.png"))


def test_duplicate_stems_and_folders(tree: Tree):
    with pytest.raises(InputError, match=r"1\.jpg and 1\.png.*matched by stem"):
        find_pairs(tree("ir/1.png", "ir/1.jpg", "vis/1.png"))


def test_two_folders_of_one_side(tree: Tree):
    with pytest.raises(InputError, match="two visible folders"):
        find_pairs(tree("ir/1.png", "vis/1.png", "rgb/1.png"))


def files(root: Path, *, label: str | None = None, boxes: str | None = None, reading: Reading = AS_STORED) -> PairFiles:
    labelled, boxed = (root / name if name else None for name in (label, boxes))
    ir, vis = (SourcePicture(root / name) for name in ("ir.png", "vis.png"))
    return PairFiles("p", ir, vis, labelled, boxed, None, reading)


@pytest.fixture
def rgb(tmp_path: Path) -> np.ndarray:
    """A random visible picture, written as vis.png."""
    picture = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    write_picture(tmp_path / "vis.png", picture)
    return picture


def test_read_pair(tmp_path: Path, rgb: np.ndarray):
    counts = np.arange(192, dtype=np.uint16).reshape(12, 16) + 30000
    cv2.imwrite(str(tmp_path / "ir.png"), counts)
    (tmp_path / "b.txt").write_text("2 0.5 0.25 0.1 0.2\n")
    pair = read_pair(files(tmp_path, boxes="b.txt", reading=Reading(ThermalRange(30000, 30191))))
    assert pair.name == "p"
    assert (pair.ir.dtype, pair.vis.dtype) == (torch.float32, torch.float32)
    assert torch.equal(pair.vis, torch.from_numpy(rgb).permute(2, 0, 1) / 255)
    assert torch.allclose(pair.ir[0], torch.arange(192).reshape(12, 16) / 191, atol=1e-6)
    assert (pair.meta.bit_depth_ir, pair.meta.bit_depth_vis, pair.meta.original_size) == (16, 8, None)
    assert pair.boxes is not None
    assert torch.allclose(pair.boxes, torch.tensor([[2, 0.5, 0.25, 0.1, 0.2]]))
    assert pair.seg is None


@pytest.mark.parametrize("size", [(6, 8), (24, 32), (13, 16)])
def test_unequal_sizes(tmp_path: Path, rgb: np.ndarray, size: tuple[int, int]):
    rows = np.linspace(20, 220, size[0]).round().astype(np.uint8)
    write_picture(tmp_path / "ir.png", np.repeat(rows[:, None], size[1], axis=1))
    with pytest.raises(InputError, match=rf"infrared is {size[1]}×{size[0]}, visible is 16×12"):
        read_pair(files(tmp_path))
    pair = read_pair(files(tmp_path, reading=Reading(resize_ir=True)))
    assert pair.size == (12, 16)
    assert pair.meta.original_size == size
    centres = (torch.arange(12) + 0.5) / 12
    smooth = (20 + (centres * size[0] - 0.5) / (size[0] - 1) * 200) / 255
    assert (pair.ir[0, 1:-1] - smooth[1:-1, None]).abs().max() < 0.01


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "1", "I;16"])
def test_label_ids_survive(tmp_path: Path, rgb: np.ndarray, mode: str):
    write_picture(tmp_path / "ir.png", rgb[..., 0])
    ids = np.random.default_rng(1).integers(0, 2 if mode == "1" else 15, (12, 16)).astype(np.uint8)
    if mode == "P":
        label = Image.fromarray(ids)
        label.putpalette([(7 * i + 3) % 256 for i in range(768)])
    elif mode == "I;16":
        label = Image.fromarray(ids.astype(np.uint16))
    else:
        label = Image.fromarray(ids * 255).convert("1") if mode == "1" else Image.fromarray(ids).convert(mode)
    label.save(tmp_path / "label.png")
    assert Image.open(tmp_path / "label.png").mode == mode
    seg = read_pair(files(tmp_path, label="label.png")).seg
    assert seg is not None
    assert seg.dtype == torch.int64
    assert torch.equal(seg, torch.from_numpy(ids.astype(np.int64)))


def test_label_errors(tmp_path: Path, rgb: np.ndarray):
    write_picture(tmp_path / "ir.png", rgb[..., 0])
    write_picture(tmp_path / "small.png", rgb[:8, :, 0])
    write_picture(tmp_path / "lossy.jpg", rgb[..., 0])
    for name, words in {
        "vis.png": "colour picture",
        "small.png": "label is 16×8, the pictures are 16×12",
        "lossy.jpg": "JPEG",
        "absent.png": "no such file",
    }.items():
        with pytest.raises(InputError, match=words):
            read_pair(files(tmp_path, label=name))


def test_boxes(tmp_path: Path):
    path = tmp_path / "b.txt"
    path.write_text("")
    assert read_boxes(path).shape == (0, 5)
    path.write_text("\ufeff0 0.5 0.5 1 1\r\n\n3 0 1 0.25 0.125\n", encoding="utf-8")
    assert read_boxes(path).tolist() == [[0, 0.5, 0.5, 1, 1], [3, 0, 1, 0.25, 0.125]]


@pytest.mark.parametrize(
    "line", ["0 0.5 0.5 0.1", "0 0.5 0.5 0.1 0.1 0.9", "car 0.5 0.5 0.1 0.1", "0.5 0.5 0.5 0.1 0.1", "-1 0 0 0 0",
             "0 320 240 20 20", "0 nan 0.5 0.1 0.1", "0 -0.1 0.5 0.1 0.1"]
)  # fmt: skip
def test_malformed_box_names_file_and_line(tmp_path: Path, line: str):
    (tmp_path / "b.txt").write_text(f"0 0.5 0.5 0.1 0.1\n\n{line}\n")
    with pytest.raises(InputError, match=r"b\.txt, line 3: "):
        read_boxes(tmp_path / "b.txt")


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("folder", "pairs", "labels", "boxes"),
    [
        ("train", 287, 8, 14),
        ("val", 25, 0, 5),
        ("detect/train", 279, 279, 279),
        ("detect/val", 60, 60, 60),
        ("golden", 6, 0, 0),
        ("video/0111_1716", 20, 0, 0),
        ("video/0111_1803", 20, 0, 0),
        ("video/0115_1831", 20, 0, 0),
    ],
)
def test_real_sets(shared_data: Path, folder: str, pairs: int, labels: int, boxes: int):
    got = find_pairs(shared_data / folder)
    assert len(got) == len({pair.name for pair in got}) == pairs
    assert all(pair.ir.path.parent.name == "ir" and pair.vis.path.parent.name == "vis" for pair in got)
    assert sum(pair.label is not None for pair in got) == labels
    assert sum(pair.boxes is not None for pair in got) == boxes
    for pair in (got[0], got[-1]):
        read = read_pair(pair)
        assert read.vis.std() > 0.01
        assert read.ir.std() > 0.01
        assert (read.seg is None) == (pair.label is None)
        assert read.seg is None or int(read.seg.max()) <= 8 or folder == "train"
        assert read.boxes is None or read.boxes.shape[1] == 5


@pytest.mark.realdata
def test_several_real_sets_together(shared_data: Path):
    got = find_pairs(shared_data)
    assert len(got) == len({pair.name for pair in got}) == 287 + 25 + 279 + 60 + 6 + 60
    assert {pair.split for pair in got} == {"train", "val", None}
    assert len(find_pairs(shared_data, split="train")) == 287 + 279
