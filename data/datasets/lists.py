"""Text files that say which pairs are meant: the user's, or those that come with a dataset as its splits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from duskfuse.data.datasets.folder_rules import FolderRules, split_named
from duskfuse.data.datasets.groups import Dataset, FoundPair
from duskfuse.data.errors import InputError
from duskfuse.data.images import PICTURE_SUFFIXES
from duskfuse.data.pair_files import text_lines

_NO_LISTS = ("readme", "license", "black_list", "classes", "requirements")
_NAMED = 5
_LONGEST_KEY = 6


def list_files(dataset: Dataset) -> dict[str, Path]:
    """The lists of a dataset by the name of the split: text files outside the folders of pictures and annotations.

    ``align_train.txt``, ``meta/train.txt`` and ``ImageSets/Main/train.txt`` are all called ``train``.
    """
    found: dict[str, Path] = {}
    rules = dataset.rules
    for folder in sorted(dataset.tree.folders, key=lambda folder: len(folder.parts)):
        if rules.side_place(folder.parts) is None and not rules.passes_over(folder.parts):
            for name in folder.names:
                if name.lower().endswith(".txt") and not name.lower().startswith(_NO_LISTS):
                    found.setdefault(Path(name).stem.lower().removeprefix("align_"), folder.path / name)
    return found


def list_of_split(dataset: Dataset, split: str) -> Path | None:
    """The list of a split, called exactly so, else in another spelling (``val`` for ``validation``)."""
    lists = list_files(dataset)
    other = (path for name, path in lists.items() if split_named(name) == split_named(split))
    return lists.get(split.lower()) or next(other, None)


def listed(pairs: Sequence[FoundPair], list_file: Path) -> list[FoundPair]:
    """The pairs that a list names.

    A line is a name, a stem or a file name, with as many of the folders before it as make it one pair; the folders of
    the modality may be left out.

    Raises:
        InputError: the list is unreadable, or names pairs that are not there or several at once.
    """
    by_key: dict[str, dict[str, FoundPair]] = defaultdict(dict)
    for pair in pairs:
        for said in _keys(pair):
            by_key[said][pair.files.name] = pair
    rules = pairs[0].group.dataset.rules
    meant = (_key(line, rules) for _, line in text_lines(list_file))
    keys = [key for key in meant if key is not None]
    unknown = [key for key in keys if key not in by_key]
    if unknown:
        raise InputError(
            f"{list_file}: {some(unknown)} not found among {len(pairs)} pairs",
            rule="a list holds one stem, file name or folder/stem per line",
            remedy=f"correct the list; the first pair here is {min(pair.files.name for pair in pairs)}",
        )
    ambiguous = [key for key in keys if len(by_key[key]) > 1]
    if ambiguous:
        raise InputError(
            f"{list_file}: {some(ambiguous)} in several folders",
            rule="a line of a list means one pair",
            remedy=f"write the folder too: {min(by_key[ambiguous[0]])}",
        )
    return list({name: pair for key in keys for name, pair in by_key[key].items()}.values())


def some(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _keys(pair: FoundPair) -> Iterator[str]:
    """What a line may say for a pair: its name, its stem, its stem after one or more of the folders before it."""
    yield pair.files.name
    rules, picture = pair.group.dataset.rules, pair.files.ir
    words = [part for part in picture.path.absolute().parent.parts if part.lower() not in rules.side_of]
    words = [*words[1 - _LONGEST_KEY :], *([picture.path.stem] if picture.frame is not None else []), pair.stem]
    for start in range(len(words)):
        yield "__".join(words[start:])


def _key(line: str, rules: FolderRules) -> str | None:
    """``train/ir/00012.png`` to ``train__00012``; None for a line that names what is left out."""
    path = Path(line.replace("\\", "/"))
    stem = rules.stem(path.stem if path.suffix.lower() in PICTURE_SUFFIXES else path.name)
    if rules.skips(stem):
        return None
    return "__".join((*(part for part in path.parts[:-1] if part.lower() not in rules.side_of), stem))
