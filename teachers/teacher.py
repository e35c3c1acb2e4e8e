"""What a slow teacher is to the offline stage: something that makes the fused luminance of one pair.

A teacher says with every picture which part of the pair it shows and what it did to brightness, because published
methods crop to multiples of their stride and stretch contrast; whoever loads the picture undoes both or refuses it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from duskfuse.data.pair import Pair
from duskfuse.data.pair_files import PairFiles, read_pair
from duskfuse.data.priors.cache import JsonValue

Crop = tuple[int, int, int, int]
"""Top, left, height and width in pixels of the visible picture."""


class ValueTransform(StrEnum):
    """What a teacher did to brightness."""

    IDENTITY = "identity"
    """Nothing: its values are fused luminance."""
    STRETCHED = "stretched"
    """Each picture was stretched from its darkest to its brightest value."""
    UNKNOWN = "unknown"
    """Pictures of somebody else's program."""


@dataclass(frozen=True)
class Ingredient:
    """One thing that a teacher's picture was made from, besides its pair."""

    source: str
    """Folder and name of a file, or the store of another teacher."""
    sha256: str | None = None
    """Of the file."""
    score: float | None = None
    """Quality by which it was chosen among others."""
    weight: float = 1.0
    """Its share of the picture; 0 where another one was chosen."""


@dataclass(frozen=True, eq=False)
class TeacherPicture:
    """What a teacher made of a pair."""

    y: NDArray[np.float32]
    """Fused luminance ``[h, w]`` in [0, 1]."""
    crop: Crop
    """The part of the pair that ``y`` shows; h and w are its height and width."""
    transform: ValueTransform = ValueTransform.IDENTITY
    made_from: tuple[Ingredient, ...] = ()
    """The files or pictures of other teachers that it was made from, where there are any."""


@dataclass(frozen=True)
class TeacherJob:
    """One pair to fuse."""

    files: PairFiles
    keys: tuple[str, str]
    """Keys of its infrared and visible picture in the prior cache."""
    pair: Pair | None = None
    """Its pictures, where they were read already."""

    def read(self) -> Pair:
        """The pair; InputError where it is unusable."""
        return self.pair or read_pair(self.files)


class Teacher(Protocol):
    """Makes fused pictures, always the same one for the same pair and settings."""

    name: str
    """Of its store in the prior cache, such as ``sage-main``."""

    @property
    def settings(self) -> dict[str, JsonValue]:
        """All that its pictures depend on besides the pair: weights, version, steps, seed, form."""
        ...

    def fuse(self, job: TeacherJob) -> TeacherPicture:
        """Fuse one pair; InputError where this pair cannot be fused."""
        ...
