"""Tell which public dataset a folder holds: by names that no other dataset has, or by what the folder is called."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from os.path import splitext
from pathlib import Path

from duskfuse.data.datasets.folder_rules import FLIR_ENDINGS, GENERIC, SPLITS, DatasetKind, Side
from duskfuse.data.datasets.tree import Folder, Tree
from duskfuse.data.errors import InputError
from duskfuse.data.images import PICTURE_SUFFIXES, picture_size

_FMB_SIZE = (600, 800)
_TNO_CAMERAS = {"athena_images", "dhv_images", "fel_images", "triclobs_images"}
_MFNET_STEM = re.compile(r"\d{5}[DN](_flip)?")
_PNG_COLOUR_TYPE, _RGBA = 25, 6


def recognise(data: Path) -> DatasetKind | None:
    """The dataset that a folder holds, whole or one split of it; None for a folder of one's own, or of several sets.

    Raises:
        InputError: there is no such folder.
    """
    found = datasets_in(Tree.of(data))
    return found[0][1] if len(found) == 1 else None


def datasets_in(tree: Tree) -> list[tuple[Tree, DatasetKind | None]]:
    """The tree and its dataset; or, where it is a folder of several datasets, each subfolder with its own."""
    own, below = _kind(tree), tree.subtrees()
    if any(child.root.name.lower() in GENERIC.side_of for child in below):
        return [(tree, own)]
    found = [dataset for child in below for dataset in datasets_in(child)]
    kinds = {kind for _, kind in found if kind}
    return found if len(kinds) > 1 or (kinds and own is None) else [(tree, own)]


def _kind(tree: Tree) -> DatasetKind | None:
    return next((kind for kind, seen in _signs(tree) if seen), None)


def _signs(tree: Tree) -> Iterator[tuple[DatasetKind, bool]]:
    """Kinds in the order in which they are tried, and whether the tree is one."""
    names = set().union(*tree.siblings.values()) | {tree.way[-1].lower()}

    def side_by_side(*wanted: str) -> bool:
        return any(set(wanted) <= held for held in tree.siblings.values())

    yield DatasetKind.DRONEVEHICLE, any(side_by_side(f"{s}img", f"{s}imgr") for s in ("train", "val", "test"))
    yield DatasetKind.M3SVD, bool(names & {"infrared_enhance", "visible_enhance", "infrared_noise", "visible_blur"})
    yield DatasetKind.MFNET, any(_is_rgbt(folder) for folder in tree.folders if folder.path.name.lower() == "images")
    yield DatasetKind.ROADSCENE, bool(names & {"cropinfrared", "crop_lr_visible"}) or _called(tree, "road[-_]?scene")
    yield DatasetKind.FLIR, _has_stem(tree, rf"{FLIR_ENDINGS[Side.IR]}$") or _called(tree, "flir")
    yield DatasetKind.KAIST, side_by_side("lwir", "visible") or _called(tree, "kaist")
    yield DatasetKind.VT5000, side_by_side("rgb", "t", "gt") or _called(tree, r"vt(?:5000|1000|821)")
    above = {part.lower() for part in tree.way}
    yield DatasetKind.TNO, bool((names | above) & _TNO_CAMERAS) or _called(tree, "tno")
    yield DatasetKind.M3FD, _called(tree, "m3fd") or side_by_side("ir", "vi", "labels", "meta")
    yield DatasetKind.M3FD, side_by_side("ir", "annotation") or side_by_side("vis", "annotation")
    yield DatasetKind.MSRS, _called(tree, "msrs") or side_by_side("ir", "vi", "segmentation_labels")
    yield (
        DatasetKind.LLVIP,
        _called(tree, "llvip") or (side_by_side("infrared", "visible", "annotations") and _has_stem(tree, r"^\d{6}$")),
    )
    yield (
        DatasetKind.FMB,
        _called(tree, "fmb") or (side_by_side("infrared", "visible", "label") and _first_size(tree) == _FMB_SIZE),
    )


def _called(tree: Tree, name: str) -> bool:
    """Whether the folder, or where it is one split of a dataset the folder above it, has ``name`` for a word."""
    titles = tree.way[-2:] if tree.way[-1].lower() in SPLITS | {"detection"} else tree.way[-1:]
    return any(re.search(rf"(?<![a-z0-9]){name}(?![a-z])", title.lower()) for title in titles)


def _has_stem(tree: Tree, pattern: str) -> bool:
    """Whether the first picture of a folder, or the last, has a stem like that."""
    ends = (next(_pictures(names), "") for folder in tree.folders for names in (folder.names, folder.names[::-1]))
    return any(re.search(pattern, splitext(name)[0]) for name in ends)


def _is_rgbt(folder: Folder) -> bool:
    """Whether a folder holds MFNet's pictures: their names, and four channels in the first."""
    first = next((name for name in _pictures(folder.names) if _MFNET_STEM.fullmatch(splitext(name)[0])), None)
    if first is None or not first.lower().endswith(".png"):
        return False
    try:
        with (folder.path / first).open("rb") as stream:
            return stream.read(_PNG_COLOUR_TYPE + 1)[_PNG_COLOUR_TYPE:] == bytes([_RGBA])
    except OSError:
        return False


def _first_size(tree: Tree) -> tuple[int, int] | None:
    path = next((folder.path / name for folder in tree.folders for name in _pictures(folder.names)), None)
    try:
        return picture_size(path) if path else None
    except InputError:
        return None  # reading the pair says what is wrong with it


def _pictures(names: Iterable[str]) -> Iterator[str]:
    return (name for name in names if splitext(name)[1].lower() in PICTURE_SUFFIXES)
