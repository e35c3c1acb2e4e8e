"""Boxes as other programs write them: VOC XML, Caltech text (KAIST), COCO JSON; all become ``[N, 5]`` normalised rows.

Coordinates are taken as pixels from the upper left corner; boxes are cut at the edge of the picture, and those that
keep no area are left out. XML with a document type is refused, so entities cannot be expanded.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from duskfuse.data.class_tables import ClassTable
from duskfuse.data.containers import Size
from duskfuse.data.errors import InputError
from duskfuse.data.read_files import LARGEST_TEXT, read_bytes, read_text

if TYPE_CHECKING:
    from torch import Tensor

WHITE_BORDER = 100
"""Pixels of white around every picture of DroneVehicle; its boxes are measured with it."""

CALTECH_HEADER = "% bbGt"
"""How Caltech text files begin."""

_LARGEST_JSON = 2**30
_DEEPEST = 32


class Corners(NamedTuple):
    """A box in pixels of its picture."""

    kind: int
    left: float
    top: float
    right: float
    bottom: float


def voc_boxes(path: Path, classes: ClassTable, size: Size, border: int = 0) -> Tensor:
    """Read a VOC annotation of a picture of ``size`` (height, width); of an oriented object, the upright box around it.

    Boxes are scaled where the annotation states another size. Where that is larger by the white border of DroneVehicle
    on every side, they are moved instead: the border was cut from the picture, here (``border``) or before.

    Raises:
        InputError: malformed or hostile XML, no number where one must be, an unknown class.
    """
    root = _element(path)
    stated = _stated_size(root) or (size[0] + 2 * border, size[1] + 2 * border)
    bordered = stated == (size[0] + 2 * WHITE_BORDER, size[1] + 2 * WHITE_BORDER)
    margin, frame = (WHITE_BORDER, size) if bordered else (0, stated)
    rows = []
    for item in root.iter("object"):
        kind = _kind(path, classes, item.findtext("name") or "")
        corners = None if kind is None else _corners(path, item)
        if kind is not None and corners is not None:
            rows.append(Corners(kind, *(value - margin for value in corners)))
    return _normalised(rows, frame)


def caltech_boxes(path: Path, classes: ClassTable, size: Size) -> Tensor:
    """Read Caltech text (``name left top width height …`` per line, after a header) of a picture of ``size``.

    Raises:
        InputError: names the file and the line that is malformed, or the unknown class.
    """
    rows = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        words = line.split()
        if not words or line.startswith("%"):
            continue
        numbers = _numbers(words[1:5])
        if len(numbers) < 4:
            raise InputError(
                f"{path}, line {number}: {line[:60]!r}",
                rule="an object is `name left top width height …` in pixels",
                remedy="correct or remove the line",
            )
        kind = _kind(path, classes, words[0])
        if kind is not None:
            left, top, width, height = numbers
            rows.append(Corners(kind, left, top, left + width, top + height))
    return _normalised(rows, size)


class _CocoPicture(NamedTuple):
    size: Size | None
    boxes: list[tuple[str, tuple[float, ...]]]
    """Category name; left, top, width, height."""


def coco_names(path: Path) -> frozenset[str]:
    """The file names, without folders, of the pictures in a COCO file; empty where the JSON is something else.

    Raises:
        InputError: unreadable, or malformed.
    """
    return frozenset(_coco(path))


def coco_boxes(path: Path, classes: ClassTable, names: Iterable[str], size: Size) -> Tensor:
    """Read the boxes of the picture of ``size`` that has one of the file ``names``; crowds are left out.

    Raises:
        InputError: no such picture, malformed entries, an unknown category.
    """
    pictures = _coco(path)
    picture = next((pictures[name] for name in names if name in pictures), None)
    if picture is None:
        raise InputError(f"{path}: no picture {' or '.join(names)}", remedy="give the annotation of these pictures")
    rows = []
    for name, (left, top, width, height) in picture.boxes:
        kind = _kind(path, classes, name)
        if kind is not None:
            rows.append(Corners(kind, left, top, left + width, top + height))
    return _normalised(rows, picture.size or size)


def _normalised(rows: Iterable[Corners], size: Size) -> Tensor:
    import torch

    height, width = size
    boxes = []
    for kind, *pixels in rows:
        left, right = (min(max(value / width, 0), 1) for value in sorted(pixels[0::2]))
        top, bottom = (min(max(value / height, 0), 1) for value in sorted(pixels[1::2]))
        if right > left and bottom > top:
            boxes.append([kind, (left + right) / 2, (top + bottom) / 2, right - left, bottom - top])
    return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 5)


def _kind(path: Path, classes: ClassTable, name: str) -> int | None:
    try:
        return classes.id_of(name.strip())
    except InputError as error:
        raise InputError(f"{path}: {error.seen}", rule=error.rule, remedy=error.remedy) from error


def _numbers(words: Iterable[str | None]) -> list[float]:
    """The numbers that the words say, up to the first that says none."""
    numbers = []
    for word in words:
        try:
            number = float(word or "")
        except ValueError:
            break
        if not isfinite(number):
            break
        numbers.append(number)
    return numbers


def _element(path: Path) -> Element:
    """Parse XML without a document type; nothing in it is expanded or fetched."""
    builder, depth = TreeBuilder(), 0

    def refuse(*_: object) -> NoReturn:
        raise InputError(
            f"{path}: XML with a document type",
            rule="annotations need none, and entities declared there could expand without end",
            remedy="remove the <!DOCTYPE …> from the file",
        )

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > _DEEPEST:
            raise InputError(f"{path}: elements nested more than {_DEEPEST} deep", remedy="give a VOC annotation")
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(read_bytes(path, LARGEST_TEXT), True)
    except (expat.ExpatError, ValueError, LookupError) as error:
        raise InputError(f"{path}: not readable as XML ({error})", remedy="correct or remove the file") from error
    return builder.close()


def _stated_size(root: Element) -> Size | None:
    numbers = _numbers(root.findtext(f"size/{name}") for name in ("height", "width"))
    if len(numbers) < 2 or min(numbers) < 1:
        return None
    return int(numbers[0]), int(numbers[1])


def _corners(path: Path, item: Element) -> tuple[float, float, float, float] | None:
    """Left, top, right, bottom in pixels; None for an object that is marked by a point only."""
    box, polygon = item.find("bndbox"), item.find("polygon")
    if box is not None:
        numbers = _numbers(box.findtext(name) for name in ("xmin", "ymin", "xmax", "ymax"))
        if len(numbers) == 4:
            return numbers[0], numbers[1], numbers[2], numbers[3]
    if polygon is not None:
        across = _numbers(polygon.findtext(f"x{corner}") for corner in range(1, 5))
        down = _numbers(polygon.findtext(f"y{corner}") for corner in range(1, 5))
        if len(across) == len(down) == 4:
            return min(across), min(down), max(across), max(down)
    if box is None and polygon is None and item.find("point") is not None:
        return None
    raise InputError(
        f"{path}: an object {item.findtext('name')!r} without a complete box",
        rule="an object has a <bndbox> of xmin ymin xmax ymax, or a <polygon> of x1 y1 … x4 y4",
        remedy="correct or remove the object",
    )


def _coco(path: Path) -> Mapping[str, _CocoPicture]:
    try:
        seen = path.stat()
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror})", remedy="check the name and the folder"
        ) from error
    return _parsed_coco(path, seen.st_size, seen.st_mtime_ns)


@lru_cache(maxsize=8)
def _parsed_coco(path: Path, size: int, changed_ns: int) -> Mapping[str, _CocoPicture]:
    """All pictures of a COCO file by their file name, read once as long as its size and time of change stay."""
    try:
        content = json.loads(read_text(path, _LARGEST_JSON))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error})", remedy="correct or remove the file") from error
    if not (isinstance(content, dict) and content.keys() >= {"images", "annotations", "categories"}):
        return {}
    try:
        categories = {item["id"]: str(item["name"]) for item in content["categories"]}
        pictures = {item["id"]: (_file_name(item), _CocoPicture(_coco_size(item), [])) for item in content["images"]}
        for item in content["annotations"]:
            if not item.get("iscrowd"):
                pictures[item["image_id"]][1].boxes.append((categories[item["category_id"]], _coco_box(item)))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path}: no COCO annotation ({type(error).__name__}: {error})",
            rule="images, annotations and categories refer to each other by id; a bbox is left, top, width, height",
            remedy="correct or remove the file",
        ) from error
    return dict(pictures.values())


def _file_name(item: Mapping[str, Any]) -> str:
    return str(item["file_name"]).replace("\\", "/").rpartition("/")[2]


def _coco_size(item: Mapping[str, Any]) -> Size | None:
    height, width = item.get("height"), item.get("width")
    return (int(height), int(width)) if height and width else None


def _coco_box(item: Mapping[str, Any]) -> tuple[float, ...]:
    box = tuple(float(value) for value in item["bbox"])
    if len(box) != 4 or not all(map(isfinite, box)):
        raise ValueError(f"bbox {item['bbox']!r:.60}")
    return box


def is_caltech(path: Path) -> bool:
    """Whether a text file of boxes is Caltech's rather than YOLO's."""
    return read_text(path).startswith(CALTECH_HEADER)
