"""What the class numbers of a task network mean in the data."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from duskfuse.data.class_tables import IGNORED, ClassTable
from duskfuse.data.errors import InputError


@dataclass(frozen=True)
class NetworkClasses:
    """What the class numbers of a network mean in the data."""

    path: Path
    table: ClassTable | None
    stated: tuple[str, ...] | None
    """Names of the classes, where the file says them."""
    ours: NDArray[np.int64] | None
    """Number of the network → number in the data, 255 for none; None where they are the same."""

    @property
    def count(self) -> int | None:
        """How many the network must have; None where nobody says it."""
        if self.stated is not None:
            return len(self.stated)
        return None if self.table is None else len(self.table)

    def check_count(self, seen: int) -> None:
        """Raise InputError where the network has another number of classes."""
        if self.count is None or seen == self.count:
            return
        if self.stated is not None:
            rule = f"its metadata name {self.count}"
        else:
            assert self.table is not None
            rule = f"without names in its metadata, its classes are the {self.count} of {self.table.title}, in order"
        raise InputError(
            f"{self.path} has {seen} classes",
            rule=rule,
            remedy="put `names` into its metadata, or name other --classes",
        )

    def ids(self, numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Label ids of the data from the network's numbers; 255 for none."""
        known = numbers[numbers != IGNORED]
        most = self.count
        if known.size and (known.min() < 0 or (most is not None and known.max() >= most)):
            raise self._unknown(int(known.min() if known.min() < 0 else known.max()))
        if self.ours is None:
            return numbers.astype(np.uint8)
        full = np.full(IGNORED + 1, IGNORED, np.int64)
        full[: len(self.ours)] = self.ours
        return full[numbers].astype(np.uint8)

    def kinds(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Classes of boxes from the network's numbers; -1 for none."""
        if numbers.size and (numbers.min() < 0 or (self.count is not None and numbers.max() >= self.count)):
            raise self._unknown(int(numbers.min() if numbers.min() < 0 else numbers.max()))
        if self.ours is None:
            return numbers
        ours = self.ours[numbers]
        return np.where(ours == IGNORED, -1, ours)

    def facts(self) -> dict[str, Any]:
        """Class of the network → class of the data, None for none; nothing where they are the same."""
        if self.ours is None or self.stated is None or self.table is None:
            return {}
        names = self.table.names
        pairs = zip(self.stated, self.ours, strict=True)
        return {"classes": {stated: None if our == IGNORED else names[our] for stated, our in pairs}}

    def _unknown(self, number: int) -> InputError:
        return InputError(
            f"{self.path} predicts class {number}",
            rule=f"there are {self.count} classes, numbered from 0",
            remedy="put `names` into its metadata (for a network whose first class is background, name it so)",
        )


def network_classes(path: Path, metadata: Mapping[str, str], table: ClassTable | None) -> NetworkClasses:
    """The classes of a network in the file ``path``, matched by name with ``table`` where its metadata name them.

    Raises:
        InputError: the names are malformed, or none is a class of the data.
    """
    stated = _stated_names(path, metadata)
    if stated is None or table is None:
        return NetworkClasses(path, table, stated, None)
    ours = np.array([_id_of(name, table) for name in stated], np.int64)
    nothing_is_none = IGNORED in dict(table.levels)  # 255 in a picture is a class there
    if (ours == IGNORED).all() or (nothing_is_none and (ours == IGNORED).any()):
        raise InputError(
            f"{path} names the classes {', '.join(stated[:8])}{', …' if stated[8:] else ''}",
            rule=f"classes are matched by name with those of {table.title}: {', '.join(table.names)}",
            remedy="correct `names` in its metadata, or name other --classes",
        )
    return NetworkClasses(path, table, stated, ours)


def _id_of(name: str, table: ClassTable) -> int:
    try:
        found = table.id_of(name)
    except InputError:
        return IGNORED
    return IGNORED if found is None else found


def _stated_names(path: Path, metadata: Mapping[str, str]) -> tuple[str, ...] | None:
    text = metadata.get("names")
    if text is None:
        return None
    try:
        names = json.loads(text)
    except ValueError:
        try:
            names = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            names = None
    if isinstance(names, dict):
        by_number = {str(number): name for number, name in names.items()}
        names = [by_number.get(str(number)) for number in range(len(by_number))]
    if not (
        isinstance(names, list | tuple) and names and len(names) < IGNORED and all(isinstance(n, str) for n in names)
    ):
        raise InputError(
            f"{path}: its metadata say names {text[:60]!r}",
            rule="names are a list of texts, or a dictionary of them by number from 0; fewer than 255",
            remedy="correct or remove this entry of the metadata",
        )
    return tuple(names)
