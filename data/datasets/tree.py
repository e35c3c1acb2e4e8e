"""One look at a dataset folder: all that may hold sources, without opening a file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from duskfuse.data.errors import InputError

_NOT_SOURCES = frozenset({"teacher", "teachers", "fused", "fusion", "output", "outputs", "result", "results"})
_DEEPEST = 6

Parts = tuple[str, ...]


class Folder(NamedTuple):
    """A folder and its visible files."""

    path: Path
    parts: Parts
    """The names that lead to it from the root of the tree."""
    names: tuple[str, ...]
    """Of its files, sorted."""


@dataclass(frozen=True)
class Tree:
    """The folders below a root, hidden ones and those of fused pictures apart."""

    root: Path
    way: Parts
    """The names of all folders that lead to the root, the root itself last."""
    folders: tuple[Folder, ...]

    @classmethod
    def of(cls, root: Path) -> Tree:
        """Walk a folder.

        Raises:
            InputError: there is no such folder.
        """
        if not root.is_dir():
            seen = "is not a folder" if root.exists() else "no such folder"
            raise InputError(f"{root}: {seen}", rule="a dataset is a folder", remedy="check the path")
        return cls(root, root.resolve().parts, tuple(_walk(root)))

    def subtrees(self) -> list[Tree]:
        """The tree of every folder directly below the root, in the order of their names."""
        folders: dict[str, list[Folder]] = {}
        for folder in self.folders:
            if folder.parts:
                folders.setdefault(folder.parts[0], []).append(folder._replace(parts=folder.parts[1:]))
        return [Tree(self.root / name, (*self.way, name), tuple(below)) for name, below in sorted(folders.items())]

    @cached_property
    def siblings(self) -> dict[Parts, set[str]]:
        """For every folder that has some, the lower-case names of its subfolders."""
        found: dict[Parts, set[str]] = {}
        for folder in self.folders:
            if folder.parts:
                found.setdefault(folder.parts[:-1], set()).add(folder.parts[-1].lower())
        return found


def _walk(root: Path) -> Iterator[Folder]:
    for place, subfolders, names in os.walk(root, followlinks=True):
        path = Path(place)
        parts = path.relative_to(root).parts
        subfolders[:] = sorted(
            name
            for name in subfolders
            if len(parts) < _DEEPEST and not name.startswith(".") and name.lower() not in _NOT_SOURCES
        )
        yield Folder(path, parts, tuple(sorted(name for name in names if not name.startswith("."))))
