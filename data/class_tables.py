"""The classes of published datasets: which id means what, in which colour label pictures show it.

The ids are those of the published label pictures; box classes are numbered as the copies with YOLO text number them.
Names are compared without regard to case, spaces, hyphens and underscores.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from duskfuse.data.errors import InputError

Colour = tuple[int, int, int]
"""Red, green, blue, 0 to 255."""

IGNORED = 255
"""The id of pixels that neither train nor count."""


@dataclass(frozen=True)
class ClassTable:
    """The classes of a dataset in the order of their ids."""

    title: str
    names: tuple[str, ...]
    colours: tuple[Colour, ...] = ()
    """One for each class where label pictures are published in colour."""
    other_colours: tuple[tuple[Colour, int], ...] = ()
    """Colours of copies that circulate, and the ids they mean."""
    other_names: tuple[tuple[str, int], ...] = ()
    """Spellings found in annotation files, and the ids they mean."""
    left_out: frozenset[str] = frozenset()
    """Names in annotation files that are no class: their boxes are left out."""
    ignore_id: int = IGNORED
    """Pixels of this id neither train nor count; no published label has it."""
    background: int | None = None
    """The id of what is no class. Some publications count it as one, some do not."""
    levels: tuple[tuple[int, int], ...] = ()
    """Grey levels in label pictures that are no ids, and the ids they mean."""

    def __len__(self) -> int:
        return len(self.names)

    def id_of(self, name: str) -> int | None:
        """The id of a name in an annotation file; None for one that is left out.

        >>> FLIR_OBJECTS.id_of("Person"), FLIR_OBJECTS.id_of("dog")
        (0, None)

        Raises:
            InputError: the table does not know the name.
        """
        plain = _plain(name)
        if plain in self._ids:
            return self._ids[plain]
        if plain in {_plain(left) for left in self.left_out}:
            return None
        raise InputError(
            f"class {name[:40]!r}",
            rule=f"the classes of {self.title} are {', '.join(self.names)}",
            remedy="rename the class, or remove its boxes",
        )

    def ids_from_colours(self, picture: NDArray[np.uint8], path: Path) -> NDArray[np.int64]:
        """Decode a label picture in colour, ``[H, W, 3]`` RGB, to ids ``[H, W]``.

        Raises:
            InputError: a colour is not in the table; ``path`` names the picture.
        """
        known, ids = self._packed_colours
        packed = _packed(picture)
        place = np.searchsorted(known, packed).clip(max=len(known) - 1)
        unknown = known[place] != packed
        if unknown.any():
            row, column = (int(index[0]) for index in unknown.nonzero())
            colour = tuple(int(value) for value in picture[row, column])
            raise InputError(
                f"{path}: the label has the colour {colour} at row {row}, column {column}, and {int(unknown.sum()):,} "
                "such pixels in all",
                rule=f"a label in colour has the colours of {self.title} and no others",
                remedy="give the label picture with ids, or one that was neither resized nor saved as JPEG",
            )
        decoded: NDArray[np.int64] = ids[place]
        return decoded

    @cached_property
    def _ids(self) -> dict[str, int]:
        named = [*((name, number) for number, name in enumerate(self.names)), *self.other_names]
        return {_plain(name): number for name, number in named}

    @cached_property
    def _packed_colours(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        pairs = [*((colour, number) for number, colour in enumerate(self.colours)), *self.other_colours]
        known = _packed(np.array([colour for colour, _ in pairs], np.uint8))
        order = np.argsort(known)
        return known[order], np.array([number for _, number in pairs], np.int64)[order]


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name).lower()


def _packed(colours: NDArray[np.uint8]) -> NDArray[np.int64]:
    """RGB in the last axis to one number."""
    packed: NDArray[np.int64] = colours.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])
    return packed


_FMB_COLOURS: tuple[Colour, ...] = (
    (0, 0, 0),
    (179, 228, 228),
    (181, 57, 133),
    (67, 162, 177),
    (200, 178, 50),
    (132, 45, 199),
    (66, 172, 84),
    (179, 73, 79),
    (76, 99, 166),
    (66, 121, 253),
    (137, 165, 91),
    (155, 97, 152),
    (105, 153, 140),
    (222, 215, 158),
    (135, 113, 90),
)
FMB_LABELS = ClassTable(
    "FMB",
    (
        "background",
        "road",
        "sidewalk",
        "building",
        "traffic lamp",
        "traffic sign",
        "vegetation",
        "sky",
        "person",
        "car",
        "truck",
        "bus",
        "motorcycle",
        "bicycle",
        "pole",
    ),
    colours=_FMB_COLOURS,
    other_colours=(
        *((colour[::-1], number) for number, colour in enumerate(_FMB_COLOURS) if number),
        ((6, 6, 6), 10),
        ((12, 12, 12), 11),
    ),
    background=0,
)
"""FMB-15. Copies in colour circulate with red and blue exchanged, and (Road-Former) with near-black truck and bus."""

MFNET_LABELS = ClassTable(
    "MFNet and MSRS",
    ("unlabelled", "car", "person", "bike", "curve", "car stop", "guardrail", "colour cone", "bump"),
    colours=(
        (0, 0, 0),
        (64, 0, 128),
        (64, 64, 0),
        (0, 128, 192),
        (0, 0, 192),
        (128, 128, 0),
        (64, 64, 128),
        (192, 128, 128),
        (192, 64, 0),
    ),
    background=0,
)
"""MFNet-9, also the labels of MSRS."""

SCENE_LABELS = ClassTable(
    "the built-in scenes",
    (
        "sky",
        "road",
        "sidewalk",
        "building",
        "vegetation",
        "person",
        "car",
        "truck",
        "bicycle",
        "lamp",
        "sign",
    ),
    colours=(
        (120, 170, 220),
        (110, 110, 120),
        (180, 160, 150),
        (160, 90, 70),
        (70, 140, 60),
        (230, 50, 60),
        (50, 80, 220),
        (20, 180, 200),
        (240, 140, 30),
        (250, 230, 60),
        (200, 60, 200),
    ),
)
"""What `duskfuse.data.scenes` paints; the labels it writes are ids."""

SCENE_OBJECTS = ClassTable("the built-in scenes", ("person", "bicycle", "car", "truck"))
"""What `duskfuse.data.scenes` draws boxes around."""

TARGET_LABELS = ClassTable(
    "target masks",
    ("background", "target"),
    colours=((0, 0, 0), (255, 255, 255)),
    levels=((255, 1),),
    background=0,
)
"""Black and white masks of what is hot: saved as 0 and 255, so that here 255 is a class in the file."""

MSRS_OBJECTS = ClassTable("MSRS", ("person", "bicycle", "car"))
"""The boxes of MSRS ``detection/``."""

M3FD_OBJECTS = ClassTable("M3FD", ("People", "Car", "Bus", "Lamp", "Motorcycle", "Truck"))
"""M3FD-6, in the order of the copies with YOLO text."""

LLVIP_OBJECTS = ClassTable("LLVIP", ("person",))
"""LLVIP-1."""

FLIR_OBJECTS = ClassTable("FLIR-aligned", ("person", "bicycle", "car"), left_out=frozenset({"dog", "other vehicle"}))
"""FLIR-3, in the order of FLIR's own category numbers; dogs, too few to learn from, are left out as everyone does."""

KAIST_OBJECTS = ClassTable(
    "KAIST", ("person", "people", "cyclist"), left_out=frozenset({"person?", "person?a", "people?", "cyclist?"})
)
"""KAIST-3; uncertain objects (with a question mark) are left out."""

DRONEVEHICLE_OBJECTS = ClassTable(
    "DroneVehicle",
    ("car", "truck", "bus", "van", "freight car"),
    other_names=(("feright car", 4), ("feright", 4), ("freight", 4), ("truvk", 1)),
    left_out=frozenset({"*"}),
)
"""DroneVehicle-5, with the misspellings of its annotation files."""
