"""Class tables, and boxes and labels in the formats that datasets come with."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from duskfuse.data import class_tables
from duskfuse.data.annotations import caltech_boxes, coco_boxes, coco_names, voc_boxes
from duskfuse.data.class_tables import (
    DRONEVEHICLE_OBJECTS,
    FLIR_OBJECTS,
    FMB_LABELS,
    KAIST_OBJECTS,
    M3FD_OBJECTS,
    MFNET_LABELS,
    MSRS_OBJECTS,
    ClassTable,
)
from duskfuse.data.errors import InputError
from duskfuse.data.images import write_picture
from duskfuse.data.pair_files import read_label, read_saliency

TABLES = [table for table in vars(class_tables).values() if isinstance(table, ClassTable)]


def voc(path: Path, *objects: str, size: tuple[int, int] | None = (100, 200)) -> Path:
    stated = f"<size><width>{size[1]}</width><height>{size[0]}</height><depth>3</depth></size>" if size else ""
    path.write_text(f"<annotation><filename>a</filename>{stated}{''.join(objects)}</annotation>")
    return path


def item(name: str, *corners: float) -> str:
    tags = zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
    box = "".join(f"<{tag}>{value}</{tag}>" for tag, value in tags)
    return f"<object><name>{name}</name><difficult>0</difficult><bndbox>{box}</bndbox></object>"


def polygon(name: str, *corners: float) -> str:
    tags = "".join(f"<{'xy'[i % 2]}{i // 2 + 1}>{value}</{'xy'[i % 2]}{i // 2 + 1}>" for i, value in enumerate(corners))
    return f"<object><name>{name}</name><polygon>{tags}</polygon></object>"


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.title)
def test_tables_are_sound(table: ClassTable):
    assert len({name.lower() for name in table.names}) == len(table)
    assert len(table.colours) in (0, len(table))
    colours = [*table.colours, *(colour for colour, _ in table.other_colours)]
    assert len(set(colours)) == len(colours)
    assert [table.id_of(name.upper().replace(" ", "_")) for name in table.names] == list(range(len(table)))
    assert all(table.id_of(name) is None for name in table.left_out)
    assert table.ignore_id >= len(table)


def test_published_orders():
    assert len(TABLES) == 11
    assert M3FD_OBJECTS.names == ("People", "Car", "Bus", "Lamp", "Motorcycle", "Truck")
    assert (FMB_LABELS.names[8], FMB_LABELS.names[13], len(FMB_LABELS)) == ("person", "bicycle", 15)
    assert (MFNET_LABELS.names[2], MFNET_LABELS.colours[2], len(MFNET_LABELS)) == ("person", (64, 64, 0), 9)
    assert MSRS_OBJECTS.names == ("person", "bicycle", "car")
    assert [DRONEVEHICLE_OBJECTS.id_of(name) for name in ("feright car", "freight_car", "truvk", "*")] == [
        4,
        4,
        1,
        None,
    ]


@pytest.mark.parametrize(("table", "reverse"), [(FMB_LABELS, False), (FMB_LABELS, True), (MFNET_LABELS, False)])
def test_label_in_colour_becomes_ids(tmp_path: Path, table: ClassTable, reverse: bool):
    ids = np.random.default_rng(0).integers(0, len(table), (20, 30))
    picture = np.array(table.colours, np.uint8)[ids]
    write_picture(tmp_path / "a.png", picture[..., ::-1] if reverse else picture)
    assert torch.equal(read_label(tmp_path / "a.png", (20, 30), table), torch.from_numpy(ids))


def test_near_black_truck_and_bus_of_road_former(tmp_path: Path):
    picture = np.array([[(6, 6, 6), (12, 12, 12), (66, 121, 253), (0, 0, 0)]] * 4, np.uint8)
    write_picture(tmp_path / "a.png", picture)
    assert read_label(tmp_path / "a.png", (4, 4), FMB_LABELS)[0].tolist() == [10, 11, 9, 0]


def test_unknown_colour_is_named(tmp_path: Path):
    picture = np.zeros((6, 8, 3), np.uint8)
    picture[2, 5] = (1, 2, 3)
    picture[3] = (64, 64, 0)
    write_picture(tmp_path / "a.png", picture)
    with pytest.raises(InputError, match=r"colour \(1, 2, 3\) at row 2, column 5, and 1 such pixels.*MFNet"):
        read_label(tmp_path / "a.png", (6, 8), MFNET_LABELS)
    with pytest.raises(InputError, match="colour picture"):
        read_label(tmp_path / "a.png", (6, 8), None)
    with pytest.raises(InputError, match="colour picture"):
        read_label(tmp_path / "a.png", (6, 8), M3FD_OBJECTS)


@pytest.mark.parametrize("white", [1, 255])
def test_saliency(tmp_path: Path, white: int):
    map_ = np.random.default_rng(0).integers(0, 2, (6, 8)).astype(np.uint8)
    write_picture(tmp_path / "a.png", map_ * white)
    read = read_saliency(tmp_path / "a.png", (6, 8))
    assert read.dtype == torch.float32
    assert torch.equal(read[0], torch.from_numpy(map_).float())
    with pytest.raises(InputError, match="saliency map is 8×6, the pictures are 9×6"):
        read_saliency(tmp_path / "a.png", (6, 9))


def test_voc(tmp_path: Path):
    path = voc(
        tmp_path / "a.xml", item("Car", 20, 10, 60, 50), item("people", -5, 90, 30, 120), item("Bus", 250, 10, 260, 20)
    )
    boxes = voc_boxes(path, M3FD_OBJECTS, (100, 200))
    assert boxes.dtype == torch.float32
    torch.testing.assert_close(boxes, torch.tensor([[1, 0.2, 0.3, 0.2, 0.4], [0, 0.075, 0.95, 0.15, 0.1]]))
    torch.testing.assert_close(voc_boxes(path, M3FD_OBJECTS, (50, 100)), boxes)  # a resized copy of the picture
    voc(path, item("Car", 20, 10, 60, 50), size=None)
    torch.testing.assert_close(voc_boxes(path, M3FD_OBJECTS, (100, 200)), boxes[:1])
    assert voc_boxes(voc(path, item("dog", 1, 1, 9, 9)), FLIR_OBJECTS, (100, 200)).shape == (0, 5)


@pytest.mark.parametrize(("stated", "border"), [((300, 400), 100), ((300, 400), 0), (None, 100)])
def test_oriented_objects_within_a_white_border(tmp_path: Path, stated: tuple[int, int] | None, border: int):
    objects = (
        polygon("feright car", 150, 110, 180, 130, 160, 160, 130, 140),
        polygon("van", 20, 20, 90, 20, 90, 60, 20, 60),
        "<object><name>car</name><point><x>120</x><y>130</y></point></object>",
    )
    boxes = voc_boxes(voc(tmp_path / "a.xml", *objects, size=stated), DRONEVEHICLE_OBJECTS, (100, 200), border)
    torch.testing.assert_close(boxes, torch.tensor([[4, 0.275, 0.35, 0.25, 0.5]]))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("<annotation><object></annotation>", "not readable as XML"),
        ("", "not readable as XML"),
        ("<annotation><object><name>ship</name></object></annotation>", "class 'ship'; the classes of M3FD are People"),
        ("<annotation><object><name>car</name></object></annotation>", "'car' without a complete box"),
        (f"<annotation>{item('car', 1, 2, 3, float('nan'))}</annotation>", "without a complete box"),
        ("<a>" * 4000 + "</a>" * 4000, "nested more than"),
    ],
)
def test_malformed_voc_names_the_file(tmp_path: Path, content: str, words: str):
    (tmp_path / "b.xml").write_text(content)
    with pytest.raises(InputError, match=rf"b\.xml.*{words}"):
        voc_boxes(tmp_path / "b.xml", M3FD_OBJECTS, (100, 200))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_hostile_voc_is_refused_at_once(tmp_path: Path, encoding: str):
    laughs = "".join(f'<!ENTITY l{i + 1} "{f"&l{i};" * 10}">' for i in range(12))
    text = f'<?xml version="1.0"?><!DOCTYPE annotation [<!ENTITY l0 "lol">{laughs}]><annotation>&l12;</annotation>'
    (tmp_path / "b.xml").write_text(text, encoding=encoding)
    (tmp_path / "c.xml").write_text(
        f'<!DOCTYPE annotation [<!ENTITY x SYSTEM "file://{tmp_path}/b.xml">]><annotation>&x;</annotation>'
    )
    started = time.monotonic()
    for name in ("b.xml", "c.xml"):
        with pytest.raises(InputError, match="document type"):
            voc_boxes(tmp_path / name, M3FD_OBJECTS, (100, 200))
    assert time.monotonic() - started < 2


def test_caltech(tmp_path: Path):
    path = tmp_path / "I00000.txt"
    path.write_text(
        "% bbGt version=3\nperson 20 10 40 40 0 0 0 0 0 0 0\nperson? 1 1 5 5 0 0 0 0 0 0 0\ncyclist 0 0 10 20\n"
    )
    boxes = caltech_boxes(path, KAIST_OBJECTS, (100, 200))
    torch.testing.assert_close(boxes, torch.tensor([[0, 0.2, 0.3, 0.2, 0.4], [2, 0.025, 0.1, 0.05, 0.2]]))
    path.write_text("% bbGt version=3\n\nperson 20 10 40\n")
    with pytest.raises(InputError, match=r"I00000\.txt, line 3: 'person 20 10 40'"):
        caltech_boxes(path, KAIST_OBJECTS, (100, 200))


def coco(path: Path, **changes: object) -> Path:
    content: dict[str, object] = {
        "images": [
            {"id": 7, "file_name": "train/FLIR_1_PreviewData.jpeg", "height": 100, "width": 200},
            {"id": 8, "file_name": "FLIR_2_PreviewData.jpeg"},
        ],
        "categories": [{"id": 3, "name": "car"}, {"id": 1, "name": "person"}, {"id": 18, "name": "dog"}],
        "annotations": [
            {"image_id": 7, "category_id": 3, "bbox": [20, 10, 40, 40]},
            {"image_id": 7, "category_id": 1, "bbox": [0, 0, 200, 100], "iscrowd": 1},
            {"image_id": 7, "category_id": 18, "bbox": [0, 0, 20, 10]},
            {"image_id": 8, "category_id": 1, "bbox": [0, 0, 10, 20]},
        ],
    }
    path.write_text(json.dumps(content | changes))
    return path


def test_coco(tmp_path: Path):
    path = coco(tmp_path / "a.json")
    assert coco_names(path) == {"FLIR_1_PreviewData.jpeg", "FLIR_2_PreviewData.jpeg"}
    first, second = (
        coco_boxes(path, FLIR_OBJECTS, ("FLIR_x_RGB.jpg", f"FLIR_{i}_PreviewData.jpeg"), (100, 200)) for i in (1, 2)
    )
    torch.testing.assert_close(first, torch.tensor([[2, 0.2, 0.3, 0.2, 0.4]]))
    torch.testing.assert_close(second, torch.tensor([[0, 0.025, 0.1, 0.05, 0.2]]))
    with pytest.raises(InputError, match=r"a\.json: no picture x or y"):
        coco_boxes(path, FLIR_OBJECTS, ("x", "y"), (100, 200))
    path.write_text('{"labels": []}')
    assert coco_names(path) == frozenset()


@pytest.mark.parametrize(
    "annotation",
    [
        {"image_id": 9, "category_id": 1, "bbox": [0, 0, 1, 1]},
        {"image_id": 7, "category_id": 1, "bbox": [0, 0, 1]},
        {"image_id": 7, "category_id": 1, "bbox": [0, 0, 1, "NaN"]},
        {"image_id": 7, "category_id": 1},
        [],
    ],
)
def test_malformed_coco_names_the_file(tmp_path: Path, annotation: object):
    with pytest.raises(InputError, match=r"a\.json: no COCO annotation"):
        coco_names(coco(tmp_path / "a.json", annotations=[annotation]))
    (tmp_path / "b.json").write_text('{"images": ')
    with pytest.raises(InputError, match=r"b\.json: not JSON"):
        coco_names(tmp_path / "b.json")
