"""Cached teacher pictures as training takes them: of the right size and place, their brightness matched or trusted.

Geometry was judged when the picture was cached (`duskfuse.teachers.agreement`) and what was found is recorded with it,
so that here only the record is checked: that it says so, and fits the pair and the pixels. Nothing is ever resized.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from duskfuse.data.errors import InputError
from duskfuse.data.pair_files import PairFiles
from duskfuse.data.priors.cache import PriorCache, PriorKind, PriorStore, TeacherImage, pair_key
from duskfuse.data.progress import say, track
from duskfuse.teachers.teacher import Crop, ValueTransform
from duskfuse.teachers.teacher_item import TeacherItem

_NAMED = 5


class Brightness(StrEnum):
    """What is done about the brightness of a teacher's pictures."""

    MATCH = "match"
    """Pictures that are not known to be fused luminance are brought to max(ir, vis luminance) by gain and offset."""
    TRUST = "trust"
    """All are taken as they are."""


@dataclass(frozen=True, eq=False)
class LoadedTeacher:
    """A teacher's picture as a student sees it."""

    y: NDArray[np.float32]
    """Luminance ``[h, w]`` in [0, 1]."""
    crop: Crop
    """The part of the pair that it shows."""


@dataclass(frozen=True)
class TeacherImages:
    """The pictures of one store, checked and with the brightness that is wanted."""

    store: PriorStore
    brightness: Brightness = Brightness.MATCH

    def get(self, key: str) -> LoadedTeacher:
        """The picture of the pair with this key; InputError where there is none or it cannot be used."""
        record = self.store.get(key)
        assert isinstance(record, TeacherImage)
        return usable(record, self.brightness)


def usable(record: TeacherImage, brightness: Brightness = Brightness.MATCH) -> LoadedTeacher:
    """Take a cached picture out of its record.

    Raises:
        InputError: the record does not say what is needed, or not of these pixels, or its brightness is to be matched
            and cannot be; ``seen`` says which, for one picture or many.
    """
    item = TeacherItem.of(record)
    if item is None:
        raise InputError("another version of duskfuse recorded it", remedy="run duskfuse cache-teacher again")
    if record.y.shape != item.crop[2:]:
        height, width = record.y.shape
        raise InputError(f"{width}×{height} pixels are recorded as {item.crop[3]}×{item.crop[2]}")
    y = record.y.astype(np.float32) / np.float32(255)
    if brightness is Brightness.TRUST or item.transform is ValueTransform.IDENTITY:
        return LoadedTeacher(y, item.crop)
    refusal = item.agreement.brightness_refusal()
    if refusal is not None:
        raise InputError(refusal, remedy="leave it out, or trust its brightness with data.brightness=trust")
    return LoadedTeacher(item.agreement.matched(y), item.crop)


def open_teacher_images(
    cache: Path | None,
    pairs: Sequence[PairFiles],
    teacher: str | None = None,
    brightness: Brightness = Brightness.MATCH,
) -> tuple[list[PairFiles], TeacherImages]:
    """The newest store of teacher pictures for these pairs, and the pairs of which it has a usable one.

    Pairs without a picture, and pictures that cannot be used, are counted, named and left out.

    Args:
        cache: root folder of the cache.
        pairs: to be trained on.
        teacher: name of a teacher, or of one store where a teacher has several; by default any.
        brightness: what is done about it.

    Raises:
        InputError: there is no store, or no usable picture in it.
    """
    keys = [pair_key(*files.prior_keys()) for files in pairs]
    stores = PriorCache(cache).stores(PriorKind.TEACHER)
    wanted = [store for store in stores if teacher in (None, store.source, store.folder.name)]
    store = next((store for store in reversed(wanted) if not store.keys().isdisjoint(keys)), None)
    if store is None:
        known = sorted({store.source for store in stores})
        raise InputError(
            f"no cached teacher pictures{f' of {teacher}' if teacher else ''} for these pairs",
            rule="this recipe learns from cached teacher pictures",
            remedy="run: duskfuse cache-teacher DATA --teacher FILE|FOLDER|NAME"
            + (f"; teachers in the cache: {', '.join(known)}" if known else ""),
        )
    images = TeacherImages(store, brightness)
    present = [(files, key) for files, key in zip(pairs, keys, strict=True) if key in store]
    if len(present) < len(pairs):
        say(f"{len(pairs) - len(present)} of {len(pairs)} pairs have no picture of {store.source}: left out")
    return _usable_pairs(images, present), images


def _usable_pairs(images: TeacherImages, present: Sequence[tuple[PairFiles, str]]) -> list[PairFiles]:
    """Read every picture once, before hours of training depend on it."""
    chosen, refused = [], defaultdict(list)
    for files, key in track(present, f"checking {images.store.source}"):
        try:
            _check_place(images.get(key).crop, files)
            chosen.append(files)
        except InputError as error:
            refused[str(error)].append(files.name)
    reasons = "; ".join(f"{_some(names)}: {reason}" for reason, names in refused.items())
    if not chosen:
        raise InputError(
            f"no picture of {images.store.source} can be used: {reasons}",
            rule="a teacher shows the scene of its pair",
            remedy="cache another teacher",
        )
    if refused:
        say(f"{len(present) - len(chosen)} of {len(present)} pictures of {images.store.source} left out: {reasons}")
    return chosen


def _check_place(crop: Crop, files: PairFiles) -> None:
    top, left, height, width = crop
    high, wide = files.vis.size()
    if min(crop) < 0 or top + height > high or left + width > wide:
        raise InputError(
            f"shows {width}×{height} pixels from row {top} and column {left} of a pair of {wide}×{high}",
            rule="a teacher's picture is a part of its pair, never resized",
            remedy="run duskfuse cache-teacher again",
        )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
