"""Ready pictures as a teacher: a folder of anyone's results, or a method that lies inside the dataset.

Inside a dataset a method is found by name: ``teacher/<method>``, ``TEACHER_FUSED`` or ``Fuse_ref``, at the top, in each
split, or with the splits below. A picture belongs to the pair of its split and stem; pictures that lie in no split
belong to the pair of their name (``train__00012``), or of their stem where only one pair has it.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from duskfuse.data.colour import BLUE, GREEN, RED
from duskfuse.data.errors import InputError
from duskfuse.data.images import file_sha256, read_visible
from duskfuse.data.layout import pictures_by_stem
from duskfuse.data.pair import Pair
from duskfuse.data.pair_files import PairFiles
from duskfuse.data.priors.cache import JsonValue
from duskfuse.teachers.agreement import DETAIL_FLOOR, detail_correlation
from duskfuse.teachers.teacher import Crop, Ingredient, TeacherJob, TeacherPicture, ValueTransform

METHOD_FOLDERS = frozenset({"teacher", "teachers"})
"""Lower-case names of folders that hold one folder per method."""
RESULT_FOLDERS = frozenset({"teacher_fused", "fuse_ref"})
"""Lower-case names of folders that hold the results of one method."""

_DEEPEST = 6
_WEIGHTS = np.array([RED, GREEN, BLUE], np.float32)

Group = tuple[str, ...]
"""Folders that say where in the dataset a picture belongs, such as ``("train",)``."""


@dataclass(frozen=True)
class ReadyFolder:
    """A folder of results."""

    path: Path
    group: Group = ()
    """Where it lies in the dataset."""

    def pictures(self) -> dict[tuple[Group, str], Path]:
        """Its pictures and those of the folders in it, by group and stem; InputError where a stem occurs twice."""
        found = {}
        for place, _, _ in os.walk(self.path, followlinks=True):
            folder = Path(place)
            group = (*self.group, *folder.relative_to(self.path).parts)
            found.update({(group, stem): path for stem, path in pictures_by_stem(folder).items()})
        return found


class FolderTeacher:
    """Gives the luminance of ready pictures, grey or colour, in any container.

    A picture smaller than its pair is taken for a crop where its detail says so: of the top left corner, as programs
    make that cut off what is no multiple of their stride, or of the middle.

    Args:
        folders: where the pictures are; a method may have one in every split.
        data: the dataset.
        pairs: all that a picture may belong to.

    Raises:
        InputError: no picture belongs to a pair; a stem occurs twice in a folder.
    """

    def __init__(self, folders: Sequence[ReadyFolder], data: Path, pairs: Sequence[PairFiles]) -> None:
        self.name = _store_name(folders[0].path.name)
        self._label = _label(folders)
        self._all = {key: path for folder in folders for key, path in folder.pictures().items()}
        self._pictures = _Matching(self._all, data, pairs).pictures()
        if not self._pictures:
            raise _no_picture(folders, self._all, pairs)

    @cached_property
    def settings(self) -> dict[str, JsonValue]:
        """What the pictures depend on: one hash of all files, since a changed picture is a changed teacher."""
        files = sorted(("/".join((*group, stem)), file_sha256(path)) for (group, stem), path in self._all.items())
        return {"folder": self._label, "pictures_sha256": hashlib.sha256(repr(files).encode()).hexdigest()}

    def has(self, job: TeacherJob) -> bool:
        """Whether there is a picture of this pair."""
        return job.files.name in self._pictures

    def fuse(self, job: TeacherJob) -> TeacherPicture:
        """The ready picture of one pair.

        Raises:
            InputError: there is none, it is unreadable, or neither of the pair's size nor a crop of it.
        """
        path = self._pictures.get(job.files.name)
        if path is None:
            raise InputError(f"{self._label}: no picture of {job.files.name}", remedy="add it, or leave the pair out")
        y = np.ascontiguousarray(read_visible(path) @ _WEIGHTS)
        origin = Ingredient("/".join(path.parts[-2:]), file_sha256(path))
        return TeacherPicture(y, _crop_of(path, y, job), ValueTransform.UNKNOWN, (origin,))


def find_method(data: Path, name: str) -> list[ReadyFolder]:
    """The folders of a method inside a dataset, any case; empty where there is none."""
    return [folder for folder in _ready_folders(data) if folder.path.name.lower() == name.lower()]


def method_names(data: Path) -> list[str]:
    """Names of the methods whose results lie inside a dataset."""
    return sorted({folder.path.name for folder in _ready_folders(data)})


def _ready_folders(data: Path) -> Iterator[ReadyFolder]:
    for place, subfolders, _ in os.walk(data, followlinks=True):
        parts = Path(place).relative_to(data).parts
        subfolders[:] = sorted(name for name in subfolders if len(parts) < _DEEPEST and not name.startswith("."))
        if parts and parts[-1].lower() in RESULT_FOLDERS:
            yield ReadyFolder(Path(place), parts[:-1])
            subfolders.clear()
        elif len(parts) > 1 and parts[-2].lower() in METHOD_FOLDERS:
            yield ReadyFolder(Path(place), parts[:-2])
            subfolders.clear()


@dataclass
class _Matching:
    """Which picture belongs to which pair."""

    by_place: dict[tuple[Group, str], Path]
    data: Path
    pairs: Sequence[PairFiles]
    _owners: Counter[str] = field(init=False)
    """Number of pairs that have a stem."""

    def __post_init__(self) -> None:
        self._owners = Counter(stem for files in self.pairs for stem in set(_stems(files)))

    def pictures(self) -> dict[str, Path]:
        """Pair name → picture."""
        matched = ((files.name, self._of(files)) for files in self.pairs)
        return {name: path for name, path in matched if path is not None}

    def _of(self, files: PairFiles) -> Path | None:
        stems = _stems(files)
        alone = [stem for stem in stems if self._owners[stem] == 1]
        places = [(group, stem) for group in self._groups(files) for stem in stems]
        places += [((), stem) for stem in (files.name, *alone)]
        return next((self.by_place[place] for place in places if place in self.by_place), None)

    def _groups(self, files: PairFiles) -> list[Group]:
        """The folders above the visible picture, without the one that names the modality, which may be any."""
        folder = files.vis.path.parent
        parts = folder.relative_to(self.data).parts if folder.is_relative_to(self.data) else ()
        return [parts[:i] + parts[i + 1 :] for i in reversed(range(len(parts)))]


def _stems(files: PairFiles) -> list[str]:
    """What a picture of the pair may be called: as its sources, as the pair, or as the pair without its groups."""
    words = files.name.split("__")
    named = ("__".join(words[i:]) for i in range(len(words)))
    return list(dict.fromkeys((files.vis.stem, files.ir.stem, *named)))


def _crop_of(path: Path, y: NDArray[np.float32], job: TeacherJob) -> Crop:
    """The part of the pair that a picture shows."""
    pair = job.read()
    (height, width), (high, wide) = y.shape, pair.size
    if (height, width) == (high, wide):
        return 0, 0, height, width
    if height > high or width > wide:
        raise _other_size(path, y, pair, "it is larger")
    whole = _Planes.of(pair)
    corners = dict.fromkeys([(0, 0), ((high - height) // 2, (wide - width) // 2)])
    crops = [(top, left, height, width) for top, left in corners]
    details = [whole.cut(crop).detail(y) for crop in crops]
    best = int(np.argmax(details))
    if whole.resized((height, width)).detail(y) > details[best]:
        raise _other_size(path, y, pair, "it was resized")
    if details[best] < DETAIL_FLOOR:
        raise _other_size(path, y, pair, "it shows neither the top left corner nor the middle")
    return crops[best]


@dataclass(frozen=True)
class _Planes:
    """Infrared and visible luminance, ``[h, w]`` each."""

    ir: NDArray[np.float32]
    vis_y: NDArray[np.float32]

    @classmethod
    def of(cls, pair: Pair) -> _Planes:
        return cls(pair.ir[0].numpy(), np.ascontiguousarray(pair.vis.permute(1, 2, 0).numpy() @ _WEIGHTS))

    def cut(self, crop: Crop) -> _Planes:
        top, left, height, width = crop
        rows, columns = slice(top, top + height), slice(left, left + width)
        return _Planes(*(np.ascontiguousarray(plane[rows, columns]) for plane in (self.ir, self.vis_y)))

    def resized(self, size: tuple[int, int]) -> _Planes:
        small = (cv2.resize(plane, size[::-1], interpolation=cv2.INTER_AREA) for plane in (self.ir, self.vis_y))
        return _Planes(*(np.asarray(plane, np.float32) for plane in small))

    def detail(self, y: NDArray[np.float32]) -> float:
        return detail_correlation(y, self.ir, self.vis_y)


def _other_size(path: Path, y: NDArray[np.float32], pair: Pair, why: str) -> InputError:
    return InputError(
        f"{path} is {y.shape[1]}×{y.shape[0]}, its pair {pair.size[1]}×{pair.size[0]}, and {why}",
        rule="teacher pictures are never resized",
        remedy="fuse the pair at its own size",
    )


def _no_picture(
    folders: Sequence[ReadyFolder], found: dict[tuple[Group, str], Path], pairs: Sequence[PairFiles]
) -> InputError:
    folder = folders[0].path
    if not found:
        return InputError(f"{folder} holds no pictures", remedy="name the folder that holds the fused pictures")
    first = min(path.name for path in found.values())
    return InputError(
        f"{folder}: none of its {len(found)} pictures belongs to a pair; the first are {first} and {pairs[0].name}",
        rule="pictures belong to the pair of their stem",
        remedy="name the folder that holds the fused pictures of this dataset",
    )


def _label(folders: Sequence[ReadyFolder]) -> str:
    """Name and parent of the one folder; of several, what they have in common."""
    paths = [folder.path.resolve().parts[-2:] for folder in folders]
    return "/".join(paths[0]) if len(set(paths)) == 1 else paths[0][-1]


def _store_name(folder: str) -> str:
    """A folder's name as that of a store in the cache."""
    return re.sub(r"[^0-9A-Za-z._-]+", "-", folder).strip("-._")[:64] or "folder"
