"""A folder of fused pictures: matched with the pairs, and looked at whole before anything is scored.

Results of other programs come in every state: a picture is missing or of another size, a run was cut off, alpha or 16
bits crept in, every picture was stretched to full contrast. All of it is found at once, and nothing is mended silently.
"""

from __future__ import annotations

import hashlib
import io
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from duskfuse.data.containers import Size
from duskfuse.data.errors import InputError
from duskfuse.data.images import PICTURE_SUFFIXES, StoredPicture, grey_u8, open_picture, read_picture
from duskfuse.data.pair_files import PairFiles
from duskfuse.evaluate.fusers import size_text
from duskfuse.evaluate.metrics import Grey
from duskfuse.evaluate.scores import Finding, Oddity
from duskfuse.evaluate.source_pictures import SeenSources, Span

_PER_STEP = 257
"""Steps of a 16-bit picture in one of an 8-bit picture: 65535 / 255."""
_FULL_RANGE = 2**15
"""A folder whose 16-bit values stay below holds fewer than 16 bits, of which nobody says where white is."""
_TELLING_PAIRS = 2
_TRANSPARENT_MODES = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})


class FusedPicture(NamedTuple):
    """A fused picture on disk."""

    path: Path
    sha256: str


@dataclass(frozen=True)
class FusedFolder:
    """What a folder holds for the pairs."""

    pictures: Mapping[str, FusedPicture]
    """Usable picture of each pair, by the pair's name."""
    findings: tuple[Finding, ...]
    stretched: bool
    """Every picture spans 0 to 255, also where its two sources together do not."""


def read_fused(path: Path) -> Grey:
    """Read a fused picture as ``[H, W]`` 8-bit luminance; 16-bit values are divided by 257, alpha is dropped."""
    return grey_u8(_in_8_bit(read_picture(path)))


def read_fused_rgb(path: Path) -> NDArray[np.uint8]:
    """Read a fused picture as ``[H, W, 3]`` 8-bit RGB; a grey one has three equal channels, else as `read_fused`."""
    stored = _in_8_bit(read_picture(path))
    return stored if stored.ndim == 3 else np.repeat(stored[..., None], 3, axis=2)


def look_at_folder(
    folder: Path, pairs: Sequence[PairFiles], seen: Mapping[str, SeenSources], executor: Executor
) -> FusedFolder:
    """Match a folder with the pairs and read every picture.

    Args:
        folder: the fused pictures, none in subfolders; InputError where it is missing.
        pairs: all pairs of the data.
        seen: the sources of the pairs that are usable, by name; the others' pictures are not looked at.
        executor: reads the pictures.
    """
    by_stem = _pictures(folder)
    matched = _match(by_stem, pairs)
    found = _Found()
    used = {stem for stem in matched.values() if stem is not None}
    found.add(Oddity.EXTRA, *(path.name for stem in by_stem.keys() - used for path in by_stem[stem]))
    todo: dict[str, Path] = {}
    for name, stem in matched.items():
        if stem is None:
            found.add(Oddity.MISSING, name)
        elif len(by_stem[stem]) > 1:
            found.add(Oddity.TWICE, name, example=" and ".join(path.name for path in by_stem[stem]))
        elif name in seen:
            todo[name] = by_stem[stem][0]
    looks = executor.map(_look, todo.values(), [seen[name].size for name in todo])
    looked = dict(zip(todo, looks, strict=True))
    _add_oddities(found, looked)
    bad = found.bad_names()
    good = {name: look for name, look in looked.items() if name not in bad}
    return FusedFolder(
        {name: FusedPicture(todo[name], look.sha256) for name, look in good.items()},
        found.findings(),
        _looks_stretched(good, seen),
    )


@dataclass(frozen=True)
class _Look:
    """What one picture is like."""

    sha256: str
    oddities: Mapping[Oddity, str] = field(default_factory=dict)
    """With what is to be said of each."""
    span: Span | None = None
    deepest: int = 0
    """Its largest value where it has 16 bits."""


class _Found:
    """Oddities of a folder, gathered by kind."""

    def __init__(self) -> None:
        self._names: dict[Oddity, set[str]] = defaultdict(set)
        self._examples: dict[Oddity, dict[str, str]] = defaultdict(dict)

    def add(self, oddity: Oddity, *names: str, example: str = "") -> None:
        if names:
            self._names[oddity].update(names)
            self._examples[oddity][names[0]] = example

    def bad_names(self) -> set[str]:
        return {name for oddity, names in self._names.items() if oddity.is_bad for name in names}

    def findings(self) -> tuple[Finding, ...]:
        kinds = [(oddity, sorted(self._names[oddity])) for oddity in Oddity if oddity in self._names]
        return tuple(Finding(oddity, tuple(names), self._examples[oddity].get(names[0], "")) for oddity, names in kinds)


def _pictures(folder: Path) -> dict[str, list[Path]]:
    """The pictures of a folder by stem."""
    if not folder.is_dir():
        raise InputError(
            f"{folder}: no such folder", rule="fused pictures are given as a folder", remedy="check the path"
        )
    by_stem: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in PICTURE_SUFFIXES and not path.name.startswith("."):
            by_stem[path.stem].append(path)
    return by_stem


def _match(by_stem: Mapping[str, object], pairs: Sequence[PairFiles]) -> dict[str, str | None]:
    """Pair name → stem of its fused picture: the pair's name, else its visible or infrared stem if no other has it."""
    shared = Counter(stem for pair in pairs for stem in {pair.ir.stem, pair.vis.stem})
    matched = {}
    for pair in pairs:
        stems = [pair.name, *(stem for stem in (pair.vis.stem, pair.ir.stem) if shared[stem] == 1)]
        matched[pair.name] = next((stem for stem in stems if stem in by_stem), None)
    return matched


def _look(path: Path, size: Size) -> _Look:
    """Read one picture, which should have ``size``."""
    try:
        stored = open_picture(path)
        digest = hashlib.sha256(stored.data).hexdigest()
        if stored.size != size:
            said = f"{path.name} is {size_text(stored.size)}, its pair is {size_text(size)}"
            return _Look(digest, {Oddity.OTHER_SIZE: said})
        picture = read_picture(path)
    except InputError as error:
        return _Look("", {Oddity.UNREADABLE: str(error.seen)})
    if picture.dtype not in (np.uint8, np.uint16):
        return _Look(digest, {Oddity.UNCLEAR_DEPTH: f"{path.name} holds {picture.dtype}"})
    oddities = {Oddity.GREY: ""} if picture.ndim == 2 else {}
    if _has_alpha(stored):
        oddities[Oddity.ALPHA] = ""
    deepest = 0
    if picture.dtype == np.uint16:
        oddities[Oddity.DEEP] = ""
        deepest = int(picture.max())
    return _Look(digest, oddities, Span.of(_in_8_bit(picture)), deepest)


def _in_8_bit(picture: NDArray[Any]) -> NDArray[np.uint8]:
    if picture.dtype == np.uint8:
        return picture
    if picture.dtype != np.uint16:
        raise ValueError(f"a fused picture of {picture.dtype}, want 8 or 16 bit")
    return np.rint(picture / _PER_STEP).astype(np.uint8)


def _has_alpha(stored: StoredPicture) -> bool:
    try:
        with Image.open(io.BytesIO(stored.data), formats=[stored.container.upper()]) as picture:
            return picture.mode in _TRANSPARENT_MODES or "transparency" in picture.info
    except Exception:  # what Pillow cannot open although OpenCV can, such as rare kinds of TIFF
        return False


def _add_oddities(found: _Found, looked: Mapping[str, _Look]) -> None:
    deepest = max((look.deepest for look in looked.values()), default=0)
    for name, look in looked.items():
        for oddity, said in look.oddities.items():
            if oddity is Oddity.DEEP and deepest < _FULL_RANGE:
                found.add(Oddity.UNCLEAR_DEPTH, name, example=f"16 bit, but no value of the folder is above {deepest}")
            else:
                found.add(oddity, name, example=said)


def _looks_stretched(looked: Mapping[str, _Look], seen: Mapping[str, SeenSources]) -> bool:
    if not all(look.span is not None and look.span.is_full for look in looked.values()):
        return False
    return sum(not seen[name].span.is_full for name in looked) >= _TELLING_PAIRS
