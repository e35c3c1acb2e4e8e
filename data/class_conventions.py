"""Which classes of a label map, or of boxes, count, and under which name.

Publications on one dataset count different classes, so an mIoU, and a network that was trained, is that of a named
convention. Pixels whose label is 255, or a class that the convention leaves out, neither train nor count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from duskfuse.data.class_tables import (
    DRONEVEHICLE_OBJECTS,
    FLIR_OBJECTS,
    FMB_LABELS,
    IGNORED,
    KAIST_OBJECTS,
    LLVIP_OBJECTS,
    M3FD_OBJECTS,
    MFNET_LABELS,
    MSRS_OBJECTS,
    SCENE_LABELS,
    SCENE_OBJECTS,
    TARGET_LABELS,
    ClassTable,
)
from duskfuse.data.errors import InputError
from duskfuse.data.pair_files import PairFiles, read_label

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ObjectClasses:
    """Which classes of boxes count."""

    name: str
    """Of the convention, or of where the numbers come from."""
    names: tuple[str, ...] | None
    """None where nobody says what the numbers mean."""

    def __len__(self) -> int:
        return len(self.names or ())

    def check(self, path: Path, kind: int) -> None:
        """Raise InputError where there is no class of this number."""
        if self.names is not None and not 0 <= kind < len(self.names):
            raise InputError(
                f"{path}: class {kind}",
                rule=f"the classes of {self.name} are {', '.join(self.names)}, numbered from 0",
                remedy="renumber the classes, or name another convention with --classes",
            )

    def text(self, kind: int) -> str:
        """The name of a class."""
        return f"class {kind}" if self.names is None else self.names[kind]


@dataclass(frozen=True)
class Convention:
    """Which classes of a table count."""

    name: str
    table: ClassTable
    meaning: str
    left_out: frozenset[int] = frozenset()

    @property
    def counted(self) -> tuple[int, ...]:
        """The ids that count."""
        return tuple(number for number in range(len(self.table)) if number not in self.left_out)


OBJECT_TABLES = {
    "MSRS-3": MSRS_OBJECTS,
    "M3FD-6": M3FD_OBJECTS,
    "LLVIP-1": LLVIP_OBJECTS,
    "FLIR-3": FLIR_OBJECTS,
    "KAIST-3": KAIST_OBJECTS,
    "DroneVehicle-5": DRONEVEHICLE_OBJECTS,
    "scenes-4": SCENE_OBJECTS,
}
"""Conventions of boxes by name."""
_BICYCLE = FMB_LABELS.names.index("bicycle")
CONVENTIONS = (
    Convention("FMB-15", FMB_LABELS, "all classes, background too"),
    Convention("FMB-14", FMB_LABELS, "without background", frozenset({0})),
    Convention(
        "FMB-13",
        FMB_LABELS,
        "the classes that the official test labels have: without background and bicycle",
        frozenset({0, _BICYCLE}),
    ),
    Convention("MFNet-9", MFNET_LABELS, "all classes, unlabelled too"),
    Convention("scenes-11", SCENE_LABELS, "all classes of the built-in scenes"),
    Convention("targets-2", TARGET_LABELS, "targets (255, or 1, in the label) and background"),
)


def convention_named(name: str) -> Convention:
    """The convention of this name, upper and lower case alike; InputError where there is none."""
    for convention in CONVENTIONS:
        if convention.name.lower() == name.lower():
            return convention
    raise InputError(f"--classes {name}", rule=f"segmentation counts {_known()}", remedy="name one of them")


def convention_for(classes: str | None, tables: Sequence[ClassTable | None]) -> Convention:
    """The convention of this name; without one, the first of the table that all label pictures have.

    Raises:
        InputError: no such convention, or none is named and the dataset is not a known one.
    """
    if classes is not None:
        return convention_named(classes)
    for convention in CONVENTIONS:
        if all(table is convention.table for table in tables):
            return convention
    raise InputError(
        "the data do not say what the ids of their labels mean",
        rule="an mIoU is that of a class convention",
        remedy=f"say --classes with one of {_known()}",
    )


def object_classes(classes: str | None, tables: Sequence[ClassTable | None]) -> ObjectClasses:
    """The convention of this name; without one, the table of the dataset, or numbers where it is not a known one.

    Raises:
        InputError: no such convention, or datasets of several tables.
    """
    if classes is not None:
        for name, table in OBJECT_TABLES.items():
            if name.lower() == classes.lower():
                return ObjectClasses(name, table.names)
        raise InputError(
            f"--classes {classes}",
            rule=f"detection knows {', '.join(OBJECT_TABLES)}",
            remedy="name one, or leave it away",
        )
    found = list({id(table): table for table in tables}.values())
    if len(found) > 1:
        raise InputError(
            "datasets with different classes of boxes",
            rule="one score is for one set of classes",
            remedy="give one dataset at a time",
        )
    if found[0] is None:
        return ObjectClasses("numbers as in the boxes", None)
    return next(ObjectClasses(name, table.names) for name, table in OBJECT_TABLES.items() if table is found[0])


def objects_named(name: str) -> ObjectClasses:
    """The convention of this name, upper and lower case alike; InputError where there is none."""
    return object_classes(name, [])


def check_labels(pairs: Sequence[PairFiles], convention: Convention) -> None:
    """Raise InputError where a pair is known to be labelled with the ids of another dataset."""
    for pair in pairs:
        known = pair.label_classes
        if pair.label is not None and known is not None and known is not convention.table:
            names = ", ".join(other.name for other in CONVENTIONS if other.table is known)
            raise InputError(
                f"{pair.label}: a label of {known.title}, and the classes are {convention.name}",
                rule="one id means one class",
                remedy=f"take the classes {names}" if names else "choose other data",
            )


def check_objects(pairs: Sequence[PairFiles], classes: ObjectClasses) -> None:
    """Raise InputError where a pair is known to have boxes of another dataset's classes."""
    for pair in pairs:
        known = pair.box_classes
        if pair.boxes is not None and known is not None and known is not OBJECT_TABLES.get(classes.name):
            raise InputError(
                f"{pair.boxes}: boxes of {known.title}, and the classes are {classes.name}",
                rule="one number means one class",
                remedy="choose other data, or train a detector on these",
            )


def read_counted_label(files: PairFiles, convention: Convention) -> Tensor:
    """The label of a pair as ``[H, W]`` uint8 ids of the convention's table; 255 where nothing counts.

    Raises:
        InputError: the label is unreadable, or has ids that are no class.
    """
    import torch

    if files.label is None:
        raise ValueError(f"{files.name} has no label")
    ids = read_label(files.label, files.vis.size(), convention.table)
    check_ids(ids, files.label, convention.table)
    for number in convention.left_out:
        ids[ids == number] = IGNORED
    return ids.to(torch.uint8)


def check_ids(ids: Tensor, path: Path, table: ClassTable) -> None:
    """Raise InputError where a label map has ids that are neither a class of the table nor 255."""
    other = (ids >= len(table)) & (ids != IGNORED)
    if other.any():
        raise InputError(
            f"{path}: {int(other.sum()):,} pixels of class {int(ids[other].min())}",
            rule=f"the classes of {table.title} are 0 to {len(table) - 1}; {IGNORED} is none",
            remedy="save class ids, not grey levels or the ids of another table",
        )


def _known() -> str:
    return ", ".join(convention.name for convention in CONVENTIONS)
