"""Several teachers for one pair: the best picture by a quality score, or the mean of the two best.

Pictures are compared, and blended, in the brightness in which a student would see them, on the part of the pair that
all of them show. Which teachers there were, their scores and their shares are recorded with every picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from duskfuse.data.colour import luminance
from duskfuse.data.errors import InputError
from duskfuse.data.images import SMALLEST_SIDE, to_u8
from duskfuse.data.priors.cache import JsonValue, PriorStore, TeacherImage, pair_key
from duskfuse.teachers.teacher import Crop, Ingredient, TeacherJob, TeacherPicture, ValueTransform
from duskfuse.teachers.teacher_images import LoadedTeacher, usable
from duskfuse.teachers.teacher_item import TeacherItem

Grey = NDArray[np.uint8]
"""One channel, ``[h, w]`` uint8."""

QualityScore = Callable[[Grey, Grey, Grey], float]
"""How good a fused picture is: infrared, visible luminance, fused; higher is better."""

BLENDED = 2
"""Pictures of which a blend is the mean."""


class Combination(StrEnum):
    """How one picture comes out of several."""

    BEST = "best"
    """The one with the highest score."""
    BLEND = "blend"
    """The mean of the two with the highest scores."""


@dataclass(frozen=True, eq=False)
class _Candidate:
    store: PriorStore
    record: TeacherImage
    item: TeacherItem
    seen: LoadedTeacher

    def cut(self, crop: Crop) -> NDArray[np.float32]:
        """The part of the picture that shows ``crop`` of the pair."""
        top, left = crop[0] - self.seen.crop[0], crop[1] - self.seen.crop[1]
        return np.ascontiguousarray(self.seen.y[top : top + crop[2], left : left + crop[3]])


class CombinedTeacher:
    """Chooses among, or blends, cached pictures; a teacher that has no usable one of a pair is passed over.

    Args:
        stores: one of each teacher, in the order that decides between equal scores.
        combination: how.
        score: by what.
    """

    def __init__(self, stores: Sequence[PriorStore], combination: Combination, score: QualityScore) -> None:
        self.name = combination.value
        self._stores, self._combination, self._score = list(stores), combination, score

    @property
    def settings(self) -> dict[str, JsonValue]:
        """What the pictures depend on."""
        return {
            "teachers": [{"source": store.source, "settings": dict(store.settings)} for store in self._stores],
            "score": getattr(self._score, "__name__", type(self._score).__name__),
        }

    def has(self, job: TeacherJob) -> bool:
        """Whether any of the teachers has a picture of this pair."""
        return any(pair_key(*job.keys) in store for store in self._stores)

    def fuse(self, job: TeacherJob) -> TeacherPicture:
        """Choose or blend; InputError where no teacher has a usable picture, or two show no common part."""
        candidates = self._candidates(job)
        common = _common(job.files.name, [candidate.seen.crop for candidate in candidates])
        scores = self._scores(job, candidates, common)
        order = sorted(range(len(candidates)), key=lambda i: -scores[i])
        chosen = order[: 1 if self._combination is Combination.BEST else BLENDED]
        made_from = tuple(
            Ingredient(candidate.store.folder.name, score=score, weight=1 / len(chosen) if i in chosen else 0.0)
            for i, (candidate, score) in enumerate(zip(candidates, scores, strict=True))
        )
        if len(chosen) == 1:
            only = candidates[chosen[0]]
            stored = only.record.y.astype(np.float32) / np.float32(255)
            return TeacherPicture(stored, only.item.crop, only.item.transform, made_from)
        shown = _common(job.files.name, [candidates[i].seen.crop for i in chosen])
        mean = np.mean([candidates[i].cut(shown) for i in chosen], axis=0)
        return TeacherPicture(np.asarray(mean, np.float32), shown, ValueTransform.IDENTITY, made_from)

    def _candidates(self, job: TeacherJob) -> list[_Candidate]:
        found, refused = [], []
        for store in self._stores:
            if pair_key(*job.keys) not in store:
                continue
            record = store.get(pair_key(*job.keys))
            assert isinstance(record, TeacherImage)
            item = TeacherItem.of(record)
            try:
                seen = usable(record)
            except InputError as error:
                refused.append(f"{store.source}: {error.seen}")
                continue
            assert item is not None
            found.append(_Candidate(store, record, item, seen))
        if not found:
            raise InputError(
                f"{job.files.name}: no teacher has a usable picture ({'; '.join(refused) or 'none was cached'})",
                rule="one is enough",
                remedy="leave the pair out, or give another teacher",
            )
        return found

    def _scores(self, job: TeacherJob, candidates: Sequence[_Candidate], common: Crop) -> list[float]:
        pair = job.read()
        top, left, height, width = common
        planes = (pair.ir[0], luminance(pair.vis)[0])
        ir, vis = (to_u8(plane[top : top + height, left : left + width].numpy()) for plane in planes)
        return [self._score(ir, vis, to_u8(candidate.cut(common))) for candidate in candidates]


def _common(name: str, crops: Sequence[Crop]) -> Crop:
    """The part of the pair that all crops show."""
    top, left = max(crop[0] for crop in crops), max(crop[1] for crop in crops)
    bottom, right = min(crop[0] + crop[2] for crop in crops), min(crop[1] + crop[3] for crop in crops)
    if min(bottom - top, right - left) < SMALLEST_SIDE:
        raise InputError(f"{name}: its teachers show no common part", remedy="leave one of them away")
    return top, left, bottom - top, right - left
