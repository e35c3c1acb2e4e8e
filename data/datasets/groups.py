"""From the folders of a dataset to groups: what lies in one place of the tree, side by side, ready to be paired."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from os.path import splitext
from pathlib import Path
from typing import NamedTuple

from duskfuse.data.datasets.folder_rules import DatasetKind, FolderRules, Side, rules_of
from duskfuse.data.datasets.scenes import scene_pictures
from duskfuse.data.datasets.tree import Folder, Parts, Tree
from duskfuse.data.errors import InputError
from duskfuse.data.images import PICTURE_SUFFIXES
from duskfuse.data.pair_files import PairFiles, Part, SourcePicture
from duskfuse.data.video_frames import VIDEO_SUFFIXES, frame_count


class Place(NamedTuple):
    """A folder of one side. Of several in a group the nearest counts, and of these the lowest rank."""

    distance: int
    """0 in the group itself, more where an annotation folder serves several groups."""
    rank: int
    folder: Path


class Source(NamedTuple):
    """One file, or one selection out of a file, that belongs to a pair."""

    side: Side
    group: Parts
    place: Place
    stem: str
    picture: SourcePicture


@dataclass
class Group:
    """The folders that belong together: same place in the tree, different modality."""

    parts: Parts
    """Names of the place, from the folder that the user gave."""
    dataset: Dataset
    files: dict[Side, dict[Place, list[Source]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))

    @property
    def has_pictures(self) -> bool:
        """Whether there is anything to pair; else it holds annotations."""
        return Side.IR in self.files or Side.VIS in self.files

    @property
    def split(self) -> str | None:
        """The split that the group belongs to, as its folder says it."""
        return self.dataset.rules.split_of(self.parts)

    def by_stem(self, side: Side) -> dict[str, SourcePicture]:
        """The pictures of one side; annotations may be in several folders, of which the first that has a stem counts.

        Raises:
            InputError: two folders are equally good, or a stem occurs twice in one.
        """
        places = sorted(self.files.get(side, {}))
        for place, following in pairwise(places):
            if place[:2] == following[:2]:
                raise InputError(
                    f"two {side} folders: {place.folder} and {following.folder}",
                    rule="a pair has one picture of each side",
                    remedy="move one of them away or give the folder of one dataset",
                )
        found: dict[str, SourcePicture] = {}
        for place in places[:1] if side in (Side.IR, Side.VIS) else places:
            found = _unique(self.files[side][place]) | found
        return found


@dataclass(frozen=True)
class Dataset:
    """One dataset on disk: a tree, its kind, and its groups that have pictures."""

    kind: DatasetKind | None
    tree: Tree
    groups: list[Group] = field(default_factory=list)

    @property
    def rules(self) -> FolderRules:
        """What its folders hold."""
        return rules_of(self.kind)

    @property
    def remedy(self) -> str:
        """What to say to somebody whose folder does not fit."""
        return f"this looks like {self.kind}: {self.rules.accepted()}" if self.kind else self.rules.accepted()


class FoundPair(NamedTuple):
    """A pair, the group it was found in, and its stem there."""

    files: PairFiles
    group: Group
    stem: str


def dataset_of(tree: Tree, kind: DatasetKind | None, root: Path) -> Dataset:
    """Sort the files of a tree into groups; ``root`` is the folder that the user gave, the tree's own or one above.

    Of a known dataset, annotations kept in one folder for several groups (LLVIP) are put to each of them.
    """
    dataset = Dataset(kind, tree)
    above = tree.root.relative_to(root).parts
    groups: dict[Parts, Group] = {}
    for folder in tree.folders:
        for source in _sources(folder, dataset.rules):
            group = groups.setdefault(source.group, Group((*above, *source.group), dataset))
            group.files[source.side][source.place].append(source)
    dataset.groups.extend(group for group in groups.values() if group.has_pictures)
    if kind is not None:
        for group in dataset.groups:
            _share_annotations(group, groups.values())
    return dataset


def _sources(folder: Folder, rules: FolderRules) -> Iterator[Source]:
    """Everything in a folder that belongs to a pair."""
    if rules.passes_over(folder.parts):
        return
    way, group = rules.side_place(folder.parts), rules.group(folder.parts)
    if way is None:
        yield from _told_by_name(folder, rules, group)
        return
    title = folder.parts[way]
    for name in folder.names:
        stored, suffix = splitext(name)
        stem = rules.stem(stored)
        for side, picture in _held(rules.side_of[title.lower()], folder.path / name, suffix.lower(), rules):
            place = Place(0, rules.rank(side, title), folder.path)
            if picture.frame is not None:
                yield Source(side, (*group, stored), place, f"{picture.frame + 1:06d}", picture)
            elif not rules.skips(stem):
                yield Source(side, group, place, stem, picture)


def _held(side: Side, path: Path, suffix: str, rules: FolderRules) -> Iterator[tuple[Side, SourcePicture]]:
    """What a file in a folder of ``side`` is."""
    if suffix in PICTURE_SUFFIXES:
        if side is Side.RGBT:
            yield Side.IR, SourcePicture(path, Part.FOURTH)
            yield Side.VIS, SourcePicture(path, Part.COLOUR)
        elif side is not Side.BOXES:
            yield side, SourcePicture(path)
    elif side in (Side.LABEL, Side.BOXES):
        if suffix == ".txt" or (suffix == ".xml" and rules.box_classes is not None):
            yield Side.BOXES, SourcePicture(path)
    elif suffix in VIDEO_SUFFIXES and rules.videos:
        for number in range(frame_count(path)):
            yield side, SourcePicture(path, frame=number)


def _told_by_name(folder: Folder, rules: FolderRules, group: Parts) -> Iterator[Source]:
    """The pictures of a folder that holds both modalities."""
    for name in folder.names:
        stored, suffix = splitext(name)
        for side, ending in rules.endings.items():
            if stored.endswith(ending) and suffix.lower() in PICTURE_SUFFIXES:
                place, picture = Place(0, 0, folder.path), SourcePicture(folder.path / name)
                yield Source(side, group, place, rules.stem(stored), picture)
    for name, side, scene in scene_pictures(folder.names) if rules.scenes else ():
        picture = SourcePicture(folder.path / name)
        if scene:
            yield Source(side, group, Place(0, 0, folder.path), scene, picture)
        else:
            yield Source(side, group[:-1], Place(0, 0, folder.path.parent), folder.path.name, picture)


def _share_annotations(group: Group, groups: Iterable[Group]) -> None:
    """Put annotations to a group that lie where fewer folders lead to, as one folder for all splits."""
    for other in groups:
        if not other.has_pictures and _leads_through(other.parts, group.parts) and other.parts != group.parts:
            distance = len(group.parts) - len(other.parts)
            for side, places in other.files.items():
                group.files[side] |= {place._replace(distance=distance): held for place, held in places.items()}


def _leads_through(some: Parts, parts: Parts) -> bool:
    remaining = iter(parts)
    return all(part in remaining for part in some)


def _unique(sources: Iterable[Source]) -> dict[str, SourcePicture]:
    files: dict[str, SourcePicture] = {}
    for source in sources:
        if source.stem in files:
            path = source.picture.path
            raise InputError(
                f"{path.parent}: {files[source.stem].path.name} and {path.name}",
                rule="files are matched by stem, so a stem may occur once in a folder",
                remedy="remove one of the two",
            )
        files[source.stem] = source.picture
    return files
