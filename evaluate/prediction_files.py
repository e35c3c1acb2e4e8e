"""Folders of predictions: matched with the pairs, and everything that is wrong with them said at once."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from duskfuse.data.errors import InputError
from duskfuse.data.images import PICTURE_SUFFIXES, file_sha256, picture_size
from duskfuse.data.pair_files import PairFiles

_SHOWN = 5

Predictions = Mapping[str, Path]
"""Pair name → file with its prediction."""


def picture_predictions(
    folders: Mapping[str, Path], pairs: Sequence[PairFiles], scored: Sequence[PairFiles]
) -> dict[str, Predictions]:
    """Match folders of predicted pictures with the pairs, see :func:`_matched`; row name → predictions.

    Raises:
        InputError: pictures are missing, superfluous, twice, unreadable or of another size than their pair; all folders
            are looked through before.
    """
    sizes = {pair.name: pair.vis.size() for pair in scored}
    found: dict[str, Predictions] = {}
    faults: list[str] = []
    for row, folder in folders.items():
        matched, wrong = _matched(folder, pairs, scored, PICTURE_SUFFIXES)
        unreadable, other_size = [], []
        for name, path in matched.items():
            try:
                size = picture_size(path)
            except InputError as error:
                unreadable.append(error.seen)
                continue
            if size != sizes[name]:
                expected = sizes[name]
                other_size.append(f"{path.name} is {size[1]}x{size[0]}, its pair {expected[1]}x{expected[0]}")
        wrong += _fault("unreadable", unreadable) + _fault("of another size", other_size)
        faults += [f"{row} ({folder}): {fault}" for fault in wrong]
        found[row] = matched
    _raise_for(faults, "every pair has one picture of its own size, called as the pair or one of its pictures")
    return found


def text_predictions(
    folders: Mapping[str, Path], pairs: Sequence[PairFiles], scored: Sequence[PairFiles]
) -> dict[str, Predictions]:
    """Match folders of text files with the pairs; errors as `picture_predictions`."""
    found: dict[str, Predictions] = {}
    faults: list[str] = []
    for row, folder in folders.items():
        found[row], wrong = _matched(folder, pairs, scored, {".txt"})
        faults += [f"{row} ({folder}): {fault}" for fault in wrong]
    _raise_for(faults, "every pair has one text file, empty where nothing was detected")
    return found


def stems_of(pairs: Sequence[PairFiles]) -> dict[str, tuple[str, ...]]:
    """Pair name → what its prediction may be called: the pair's name, and each of its stems that no other pair has."""
    shared = Counter(stem for pair in pairs for stem in {pair.ir.stem, pair.vis.stem})
    return {
        pair.name: (pair.name, *(stem for stem in (pair.vis.stem, pair.ir.stem) if shared[stem] == 1)) for pair in pairs
    }


def files_sha256(files: Mapping[str, Path]) -> str:
    """Hash of the names and the contents of files; several pairs may share one, such as a COCO file."""
    known = {path: file_sha256(path) for path in dict.fromkeys(files.values())}
    lines = [f"{name} {known[path]}" for name, path in sorted(files.items())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _matched(
    folder: Path, pairs: Sequence[PairFiles], scored: Sequence[PairFiles], suffixes: Collection[str]
) -> tuple[dict[str, Path], list[str]]:
    """The files of the scored pairs, and what is missing, superfluous or there twice.

    Predictions for pairs without ground truth are no fault.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder", rule="predictions are given as a folder", remedy="check the path")
    by_stem: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in suffixes and not path.name.startswith("."):
            by_stem[path.stem].append(path)
    wanted = {name: next((stem for stem in stems if stem in by_stem), None) for name, stems in stems_of(pairs).items()}
    mine = {pair.name: wanted[pair.name] for pair in scored}
    extra = by_stem.keys() - {stem for stem in wanted.values() if stem is not None}
    twice = [" and ".join(path.name for path in by_stem[stem]) for stem in mine.values() if stem and by_stem[stem][1:]]
    faults = _fault("missing for", [name for name, stem in mine.items() if stem is None])
    faults += _fault("without a pair", [path.name for stem in sorted(extra) for path in by_stem[stem]])
    faults += _fault("of one stem", twice)
    return {name: by_stem[stem][0] for name, stem in mine.items() if stem is not None}, faults


def _fault(what: str, names: Sequence[str]) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return [f"{len(names)} {what}: {', '.join(names[:_SHOWN])}{more}"]


def _raise_for(faults: Sequence[str], rule: str) -> None:
    if faults:
        remedy = "add, remove or rename the files; predict at full size, without resizing"
        raise InputError("predictions do not fit the pairs: " + "; ".join(faults), rule=rule, remedy=remedy)
