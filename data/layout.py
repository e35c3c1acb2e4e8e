"""Find the pairs of a dataset on disk, whatever its folders are called, and read them.

Published sets agree on one file per modality under the same stem, and on nothing else: ``ir``, ``Infrared``, ``T`` or
``lwir``; the split above (``train/ir``) or below (``infrared/train``) the modality; one folder with two endings
(FLIR-aligned). A folder is taken for a modality by its name alone; what the rest of its path says is its group, and
pictures of one group and one stem are one pair.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import takewhile
from pathlib import Path

from duskfuse.data.errors import InputError
from duskfuse.data.images import PICTURE_SUFFIXES
from duskfuse.data.pair_files import PairFiles, SourcePicture, text_lines


class Side(StrEnum):
    """What a folder holds."""

    IR = "infrared"
    VIS = "visible"
    LABEL = "label"
    BOXES = "boxes"


FOLDERS = {
    Side.IR: [
        "ir",
        "infrared",
        "thermal",
        "t",
        "lwir",
        "tir",
        "inf",
        "infrared_enhance",
        "cropinfrared",
        "trainimgr",
        "valimgr",
        "testimgr",
    ],
    Side.VIS: ["vis", "vi", "visible", "rgb", "visible_enhance", "crop_lr_visible", "trainimg", "valimg", "testimg"],
    Side.LABEL: ["label", "labels", "labels-with-images", "segmentation_labels", "segmentation", "seg", "mask"],
    Side.BOXES: ["boxes", "labels-with-txt"],
}
"""Accepted folder names in lower case. Text files in a label folder are boxes."""

ENDINGS = {Side.IR: "_PreviewData", Side.VIS: "_RGB"}
"""Endings of the stem where one folder holds both modalities (FLIR-aligned ``JPEGImages``)."""

SPLITS = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})
_CROPPED_TO_FIT = frozenset({"cropinfrared", "crop_lr_visible"})  # RoadScene keeps the uncropped ones beside them
_NOT_SOURCES = frozenset({"teacher", "teachers", "fused", "fusion", "output", "outputs", "result", "results"})
_DEEPEST = 5
_NAMED = 5

_SIDE_OF = {name: side for side, names in FOLDERS.items() for name in names}


@dataclass
class _Group:
    """The folders that belong together: same place in the tree, different modality."""

    parts: tuple[str, ...]
    files: dict[Side, dict[Path, list[Path]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))

    @property
    def split(self) -> str | None:
        return next((part for part in self.parts if part.lower() in SPLITS), None)


def find_pairs(data: Path, *, split: str | None = None, list_file: Path | None = None) -> list[PairFiles]:
    """Find all pairs under a folder, sorted by name.

    Args:
        data: the dataset, or one split of it.
        split: name of a folder above or below the modality folders; only its pairs are given.
        list_file: text file with one name, stem, file name or ``folder/stem`` per line; only those are given.

    Raises:
        InputError: folder missing or empty, no modality folder recognised, pictures without partner, two pictures of
            one stem in one modality, unknown split, names of the list that are not found.
    """
    groups = _groups(data)
    if split is not None:
        groups = _of_split(data, groups, split)
    pairs = _named_pairs(groups, split)
    if list_file is not None:
        pairs = _listed(pairs, list_file)
    return sorted(pairs, key=lambda pair: pair.name)


def pictures_by_stem(folder: Path) -> dict[str, Path]:
    """The pictures of one folder of fused results by their stem; raises InputError where a stem occurs twice."""
    if not folder.is_dir():
        raise InputError(
            f"{folder}: no such folder", rule="fused pictures are given as a folder", remedy="check the path"
        )
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in PICTURE_SUFFIXES or path.name.startswith("."):
            continue
        if path.stem in found:
            raise InputError(
                f"{folder}: {found[path.stem].name} and {path.name}",
                rule="pictures are matched by stem, so a stem may occur once",
                remedy="remove one of the two",
            )
        found[path.stem] = path
    return found


def _groups(data: Path) -> list[_Group]:
    if not data.is_dir():
        seen = "is not a folder" if data.exists() else "no such folder"
        raise InputError(f"{data}: {seen}", rule="a dataset is a folder", remedy="check the path")
    groups: dict[tuple[str, ...], _Group] = {}
    folders = list(_folders(data))
    for folder, parts, names in folders:
        for side, rest, path in _sources(folder, parts, names):
            groups.setdefault(rest, _Group(rest)).files[side][folder].append(path)
    found = [group for group in groups.values() if Side.IR in group.files or Side.VIS in group.files]
    if not found:
        raise _nothing_recognised(data, folders)
    return found


def _folders(data: Path) -> Iterator[tuple[Path, tuple[str, ...], list[str]]]:
    """Every folder that may hold sources: its path, its parts below ``data``, and its visible file names."""
    for place, subfolders, names in os.walk(data, followlinks=True):
        folder = Path(place)
        parts = folder.relative_to(data).parts
        subfolders[:] = sorted(
            name
            for name in subfolders
            if len(parts) < _DEEPEST and not name.startswith(".") and name.lower() not in _NOT_SOURCES
        )
        yield folder, parts, sorted(name for name in names if not name.startswith("."))


def _sources(
    folder: Path, parts: tuple[str, ...], names: Iterable[str]
) -> Iterator[tuple[Side, tuple[str, ...], Path]]:
    """Side, group and path of every file that belongs to a pair."""
    place = next((i for i, part in enumerate(parts) if part.lower() in _SIDE_OF), None)
    for name in names:
        path = folder / name
        suffix = path.suffix.lower()
        if place is None:
            for side, ending in ENDINGS.items():
                if suffix in PICTURE_SUFFIXES and path.stem.endswith(ending):
                    yield side, parts, path
            continue
        side, rest = _SIDE_OF[parts[place].lower()], parts[:place] + parts[place + 1 :]
        if suffix in PICTURE_SUFFIXES and side is not Side.BOXES:
            yield side, rest, path
        elif suffix == ".txt" and side in (Side.LABEL, Side.BOXES):
            yield Side.BOXES, rest, path


def _nothing_recognised(data: Path, folders: list[tuple[Path, tuple[str, ...], list[str]]]) -> InputError:
    counts = {"/".join(parts) or ".": len(names) for _, parts, names in folders if names}
    if not counts:
        return InputError(
            f"{data}: the folder is empty", rule="a dataset holds infrared and visible pictures", remedy=_accepted()
        )
    shown = ", ".join(f"{name} ({count} files)" for name, count in list(counts.items())[: 2 * _NAMED])
    return InputError(
        f"{data}: no infrared or visible folder with pictures; found {shown}",
        rule="folders are recognised by name",
        remedy=_accepted(),
    )


def _accepted() -> str:
    return (
        f"name them one of: infrared {' '.join(FOLDERS[Side.IR])}, visible {' '.join(FOLDERS[Side.VIS])} "
        "(any case; a split folder may be above or below)"
    )


def _of_split(data: Path, groups: list[_Group], split: str) -> list[_Group]:
    chosen = [group for group in groups if split.lower() in (part.lower() for part in group.parts)]
    if not chosen:
        known = sorted({part for group in groups for part in group.parts})
        raise InputError(
            f"{data}: no split {split!r}",
            rule="a split is a folder above or below the modality folders",
            remedy=f"choose from {', '.join(known)}" if known else "leave the split away: the folder has none",
        )
    return chosen


def _named_pairs(groups: list[_Group], split: str | None) -> list[PairFiles]:
    levels = zip(*(group.parts for group in groups), strict=False)
    common = sum(1 for _ in takewhile(lambda level: len(set(level)) == 1, levels))
    pairs = []
    for group in groups:
        sides = {side: _by_stem(side, group.files.get(side, {})) for side in Side}
        _check_partners(sides)
        for stem, ir in sides[Side.IR].items():
            pairs.append(
                PairFiles(
                    name="__".join((*group.parts[common:], stem)),
                    ir=SourcePicture(ir),
                    vis=SourcePicture(sides[Side.VIS][stem]),
                    label=sides[Side.LABEL].get(stem),
                    boxes=sides[Side.BOXES].get(stem),
                    split=split or group.split,
                )
            )
    _check_names(pairs)
    return pairs


def _check_names(pairs: list[PairFiles]) -> None:
    first: dict[str, PairFiles] = {}
    for pair in pairs:
        if pair.name in first:
            raise InputError(
                f"{first[pair.name].ir} and {pair.ir} would both be called {pair.name}",
                rule="folders and stem are joined by two underscores into a unique name",
                remedy="rename one of them",
            )
        first[pair.name] = pair


def _by_stem(side: Side, folders: dict[Path, list[Path]]) -> dict[str, Path]:
    """The one folder of a side as stem → path; a crop made to fit goes before the picture it was cut from."""
    fitting = [folder for folder in folders if folder.name.lower() in _CROPPED_TO_FIT] or list(folders)
    if len(fitting) > 1:
        raise InputError(
            f"two {side} folders: {fitting[0]} and {fitting[1]}",
            rule="a pair has one picture of each side",
            remedy="move one of them away or give the folder of one dataset",
        )
    files: dict[str, Path] = {}
    for path in (path for folder in fitting for path in folders[folder]):
        stem = _stem(side, path)
        if stem in files:
            raise InputError(
                f"{path.parent}: {files[stem].name} and {path.name}",
                rule="files are matched by stem, so a stem may occur once in a folder",
                remedy="remove one of the two",
            )
        files[stem] = path
    return files


def _check_partners(sides: dict[Side, dict[str, Path]]) -> None:
    for here, there in ((Side.IR, Side.VIS), (Side.VIS, Side.IR)):
        missing = sorted(sides[here].keys() - sides[there].keys())
        if missing:
            folder = sides[here][missing[0]].parent
            raise InputError(
                f"{folder}: {len(missing)} {here} pictures without {there} partner: {_some(missing)}",
                rule="the two pictures of a pair have the same stem, in an infrared and a visible folder",
                remedy=f"add the {there} pictures or remove the {here} ones; {_accepted()}",
            )


def _listed(pairs: list[PairFiles], list_file: Path) -> list[PairFiles]:
    by_key: dict[str, dict[str, PairFiles]] = defaultdict(dict)
    for pair in pairs:
        for key in (pair.name, _stem(Side.IR, pair.ir.path)):
            by_key[key][pair.name] = pair
    listed = [_list_key(line) for _, line in text_lines(list_file)]
    unknown = [key for key in listed if key not in by_key]
    if unknown:
        raise InputError(
            f"{list_file}: {_some(unknown)} not found among {len(pairs)} pairs",
            rule="a list holds one stem, file name or folder/stem per line",
            remedy=f"correct the list; the first pair here is {min(pair.name for pair in pairs)}",
        )
    ambiguous = [key for key in listed if len(by_key[key]) > 1]
    if ambiguous:
        raise InputError(
            f"{list_file}: {_some(ambiguous)} in several folders",
            rule="a line of a list means one pair",
            remedy=f"write the folder too: {min(by_key[ambiguous[0]])}",
        )
    return list({pair.name: pair for key in listed for pair in by_key[key].values()}.values())


def _list_key(line: str) -> str:
    """``train/ir/00012.png`` to the name or stem of its pair, ``train__00012``."""
    path = Path(line.replace("\\", "/"))
    stem = path.stem if path.suffix.lower() in PICTURE_SUFFIXES else path.name
    for ending in ENDINGS.values():
        stem = stem.removesuffix(ending)
    return "__".join((*(part for part in path.parts[:-1] if part.lower() not in _SIDE_OF), stem))


def _stem(side: Side, path: Path) -> str:
    return path.stem.removesuffix(ENDINGS.get(side, ""))


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
