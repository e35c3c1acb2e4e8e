"""Find the pairs of a dataset on disk, whatever its folders are called.

A folder is taken for a modality by its name alone; what the rest of its path says is its group, and pictures of one
group and one stem are one pair. Public datasets are recognised (``data/datasets``): their own names, lists, borders,
four-channel pictures and videos are understood, and what was recognised is said.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

from duskfuse.data.annotations import coco_names
from duskfuse.data.datasets.folder_rules import FolderRules, Side, rules_of, split_named
from duskfuse.data.datasets.groups import Dataset, FoundPair, Group, dataset_of
from duskfuse.data.datasets.lists import list_files, list_of_split, listed, some
from duskfuse.data.datasets.recognise import datasets_in
from duskfuse.data.datasets.scenes import is_without_infrared
from duskfuse.data.datasets.tree import Parts, Tree
from duskfuse.data.errors import InputError
from duskfuse.data.images import PICTURE_SUFFIXES
from duskfuse.data.pair_files import PairFiles, Part, SourcePicture, has_white_border
from duskfuse.data.progress import say_once
from duskfuse.data.reading import Reading, reading_of

_SHOWN_FOLDERS = 10
_COCO_NAME = re.compile(r"annot|coco|instances|train|val|test", re.IGNORECASE)


def find_pairs(
    data: Path,
    *,
    split: str | None = None,
    list_file: Path | None = None,
    reading: Reading | Path | None = None,
) -> list[PairFiles]:
    """Find all pairs under a folder, sorted by name.

    Args:
        data: the dataset, or one split of it, or a folder of several datasets.
        split: only the pairs of the folder of this name above or below the modality folders; where there is none, of
            the dataset's own list of this name (``train.txt``, ``meta/train.txt``, ``align_train.txt``).
        list_file: text file with one name, stem, file name or ``folder/stem`` per line; only those are given.
        reading: how the infrared pictures are read, see :func:`duskfuse.data.reading.reading_of`.

    Raises:
        InputError: folder missing or empty, no modality folder recognised, pictures without partner, two pictures of
            one stem in one modality, unknown split, names of the list that are not found.
    """
    tree = Tree.of(data)
    datasets = [dataset_of(part, kind, tree.root) for part, kind in datasets_in(tree)]
    if not any(dataset.groups for dataset in datasets):
        raise _nothing_recognised(tree, datasets)
    groups, lists = _chosen(datasets, split)
    named = _named_pairs(groups, split)
    pairs: list[FoundPair] = []
    for dataset in datasets:
        mine = [pair for pair in named if pair.group.dataset is dataset]
        if mine:
            pairs += _completed(dataset, mine, split, lists.get(dataset.tree.root))
    if list_file is not None:
        pairs = listed(pairs, list_file)
    read_as = reading_of(data, reading)
    return sorted((replace(pair.files, reading=read_as) for pair in pairs), key=lambda files: files.name)


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


def _nothing_recognised(tree: Tree, datasets: Sequence[Dataset]) -> InputError:
    counts = {"/".join(folder.parts) or ".": len(folder.names) for folder in tree.folders if folder.names}
    remedy = "; ".join(dataset.remedy for dataset in datasets if dataset.kind) or rules_of(None).accepted()
    if not counts:
        return InputError(
            f"{tree.root}: the folder is empty", rule="a dataset holds infrared and visible pictures", remedy=remedy
        )
    shown = ", ".join(f"{name} ({count} files)" for name, count in list(counts.items())[:_SHOWN_FOLDERS])
    return InputError(
        f"{tree.root}: no infrared or visible folder with pictures; found {shown}",
        rule="folders are recognised by name",
        remedy=remedy,
    )


def _chosen(datasets: Sequence[Dataset], split: str | None) -> tuple[list[Group], Mapping[Path, Path]]:
    """The groups of a split; and the root and list of every dataset whose list has still to choose from its groups."""
    if split is None:
        return [group for dataset in datasets for group in dataset.groups], {}
    groups: list[Group] = []
    lists: dict[Path, Path] = {}
    for dataset in datasets:
        mine = _groups_of_split(dataset, split)
        if not mine and dataset.groups and (path := list_of_split(dataset, split)):
            lists[dataset.tree.root] = path
            mine = dataset.groups
        groups += mine
    if not groups:
        raise _no_split(datasets, split)
    return groups, lists


def _groups_of_split(dataset: Dataset, split: str) -> list[Group]:
    called_so = [group for group in dataset.groups if split.lower() in (part.lower() for part in group.parts)]
    if called_so:
        return called_so
    return [group for group in dataset.groups if split_named(group.split or "") == split_named(split)]


def _no_split(datasets: Sequence[Dataset], split: str) -> InputError:
    known: set[str] = set()
    for dataset in datasets:
        known |= {part for group in dataset.groups for part in (*group.parts, group.split) if part}
        known |= list_files(dataset).keys()
    return InputError(
        f"{datasets[0].tree.root}: no split {split!r}",
        rule="a split is a folder above or below the modality folders, or a list that came with the dataset",
        remedy=f"choose from {', '.join(sorted(known))}" if known else "leave the split away: the folder has none",
    )


def _named_pairs(groups: Sequence[Group], split: str | None) -> list[FoundPair]:
    """The pairs of all groups; their names begin where the places of the groups begin to differ."""
    levels = zip(*(group.parts for group in groups), strict=False)
    common = sum(1 for _ in takewhile(lambda level: len(set(level)) == 1, levels))
    pairs = [pair for group in groups for pair in _pairs_of(group, group.parts[common:], split)]
    first: dict[str, PairFiles] = {}
    for pair in (pair.files for pair in pairs):
        if pair.name in first:
            raise InputError(
                f"{first[pair.name].ir} and {pair.ir} would both be called {pair.name}",
                rule="folders and stem are joined by two underscores into a unique name",
                remedy="rename one of them",
            )
        first[pair.name] = pair
    return pairs


def _pairs_of(group: Group, words: Parts, split: str | None) -> Iterator[FoundPair]:
    rules = group.dataset.rules
    sides = {side: group.by_stem(side) for side in Side}
    _check_partners(group, sides)

    def path(side: Side, stem: str) -> Path | None:
        return sides[side][stem].path if stem in sides[side] else None

    for stem, ir in sides[Side.IR].items():
        files = PairFiles(
            name="__".join((*words, stem)),
            ir=ir,
            vis=sides[Side.VIS][stem],
            label=path(Side.LABEL, stem),
            boxes=path(Side.BOXES, stem),
            split=split or group.split,
            saliency=path(Side.SALIENCY, stem),
            label_classes=rules.label_classes,
            box_classes=rules.box_classes,
        )
        yield FoundPair(files, group, stem)


def _check_partners(group: Group, sides: Mapping[Side, Mapping[str, SourcePicture]]) -> None:
    for here, there in ((Side.IR, Side.VIS), (Side.VIS, Side.IR)):
        missing = sorted(sides[here].keys() - sides[there].keys())
        if missing:
            folder = sides[here][missing[0]].path.parent
            raise InputError(
                f"{folder}: {len(missing)} {here} pictures without {there} partner: {some(missing)}",
                rule="the two pictures of a pair have the same stem, in an infrared and a visible folder",
                remedy=f"add the {there} pictures or remove the {here} ones; {group.dataset.remedy}",
            )


def _completed(dataset: Dataset, pairs: list[FoundPair], split: str | None, by_list: Path | None) -> list[FoundPair]:
    """The pairs of one dataset: chosen by its own list, borders cut, boxes out of COCO files put to them."""
    if by_list is not None:
        pairs = listed(pairs, by_list)
    if dataset.rules.border:
        pairs = _without_borders(pairs, dataset.rules.border)
    if dataset.rules.box_classes is not None and not any(pair.files.boxes for pair in pairs):
        pairs = _with_coco_boxes(dataset, pairs)
    if dataset.kind is not None:
        topic = f"{dataset.tree.root.resolve()} {split}"
        say_once(topic, _what_was_recognised(dataset, [pair.files for pair in pairs], by_list))
    return pairs


def _without_borders(pairs: Sequence[FoundPair], width: int) -> list[FoundPair]:
    """Cut the white border from all pictures of a group where the first, middle or last has it; reading checks each."""
    groups: dict[Parts, list[FoundPair]] = defaultdict(list)
    for pair in pairs:
        groups[pair.group.parts].append(pair)
    done: list[FoundPair] = []
    for group in groups.values():
        samples = [group[0], group[len(group) // 2], group[-1]]
        framed = any(_is_framed(picture, width) for pair in samples for picture in (pair.files.ir, pair.files.vis))
        done += [_cut(pair, width) for pair in group] if framed else group
    return done


def _is_framed(picture: SourcePicture, width: int) -> bool:
    try:
        return has_white_border(picture.read(), width)
    except InputError:
        return False  # reading the pair says what is wrong with it


def _cut(pair: FoundPair, width: int) -> FoundPair:
    ir, vis = (replace(picture, border=width) for picture in (pair.files.ir, pair.files.vis))
    return pair._replace(files=replace(pair.files, ir=ir, vis=vis))


def _with_coco_boxes(dataset: Dataset, pairs: Sequence[FoundPair]) -> list[FoundPair]:
    """Put to every pair the COCO file of the dataset that has its infrared picture, else its visible one."""
    file_of: dict[str, Path] = {}
    for folder in dataset.tree.folders:
        for name in folder.names:
            if name.lower().endswith(".json") and _COCO_NAME.search(name):
                path = folder.path / name
                file_of |= dict.fromkeys(coco_names(path) - file_of.keys(), path)
    boxes = [file_of.get(pair.files.ir.path.name) or file_of.get(pair.files.vis.path.name) for pair in pairs]
    return [pair._replace(files=replace(pair.files, boxes=path)) for pair, path in zip(pairs, boxes, strict=True)]


def _what_was_recognised(dataset: Dataset, pairs: Sequence[PairFiles], by_list: Path | None) -> str:
    """``M3FD (Ir/, Vis/): 4,200 pairs, boxes in Annotation/``."""
    root, rules = dataset.tree.root, dataset.rules
    first = pairs[0]
    held = list(dict.fromkeys(_where(picture.path, root, rules) for picture in (first.ir, first.vis)))
    held += ["4 channels"] if first.ir.part is Part.FOURTH else []
    held += ["frames of videos"] if first.ir.frame is not None else []
    said = [f"{dataset.kind} ({', '.join(held)}): {len(pairs):,} pair{'s' * (len(pairs) > 1)}"]
    if by_list is not None:
        said.append(f"chosen by {by_list.relative_to(root).as_posix()}")
    if first.ir.border:
        said.append(f"the white border of {first.ir.border} pixels cut away")
    for what, files in (
        ("labels", [pair.label for pair in pairs]),
        ("boxes", [pair.boxes for pair in pairs]),
        ("saliency maps", [pair.saliency for pair in pairs]),
    ):
        there = [path for path in files if path is not None]
        if there:
            count = f" of {len(there):,}" if len(there) < len(pairs) else ""
            said.append(f"{what}{count} in {_where(there[0], root, rules)}")
    without = sum(is_without_infrared(folder.names) for folder in dataset.tree.folders) if rules.scenes else 0
    if without:
        said.append(f"{without} scene{'s' * (without > 1)} without an infrared picture left out")
    return ", ".join(said)


def _where(path: Path, root: Path, rules: FolderRules) -> str:
    """The folder that says what a file is, or the file itself where none does."""
    parts = path.relative_to(root).parent.parts
    place = rules.side_place(parts)
    if place is not None:
        return f"{parts[place]}/"
    return f"{parts[-1]}/" if path.suffix.lower() in PICTURE_SUFFIXES and parts else path.name
