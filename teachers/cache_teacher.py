"""The verb ``cache-teacher``: fused pictures of slow teachers, made or read once and kept in the PriorCache.

Only luminance is kept, with a record of where it comes from and how it agrees with its pair. A picture that is not of
its pair is refused before anybody learns from it. Of several teachers each keeps its own pictures, and the
combination is one more teacher made of them.
"""

from __future__ import annotations

import copy
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from duskfuse.data.colour import luminance
from duskfuse.data.errors import InputError
from duskfuse.data.images import to_u8, write_picture
from duskfuse.data.layout import find_pairs
from duskfuse.data.pair_files import PairFiles
from duskfuse.data.priors.cache import (
    JsonValue,
    PriorCache,
    PriorKind,
    PriorStore,
    TeacherImage,
    pair_key,
    stored_bytes,
)
from duskfuse.data.priors.pipeline import Engine, Tally, Todo, Work, processes, run, unmade
from duskfuse.data.priors.sources import MaskSourceName
from duskfuse.data.progress import say, track
from duskfuse.data.reading import Reading
from duskfuse.teachers.agreement import SAME_SHADE, measure
from duskfuse.teachers.combine_teachers import Combination, CombinedTeacher, QualityScore
from duskfuse.teachers.ddfm import DdfmForm, DdfmTeacher
from duskfuse.teachers.open_teacher import TeacherOpening, open_teacher
from duskfuse.teachers.teacher import Teacher, TeacherJob, TeacherPicture
from duskfuse.teachers.teacher_item import TeacherItem

_SAMPLE = 3
"""Pictures measured by a dry run; one where a network computes."""
_TIMED_STEPS = 2
"""Sampling steps of that one, from which the time of all is reckoned."""
_NAMED = 5


@runtime_checkable
class ReadyTeacher(Protocol):
    """A teacher that computes with no network, and has pictures of some pairs only."""

    def has(self, job: TeacherJob) -> bool:
        """Whether it has a picture of this pair."""
        ...


@dataclass(frozen=True)
class TeacherCacheReport:
    """What `cache_teacher` did for one teacher or a combination, or with ``dry_run`` would do."""

    teacher: str
    """Its name, for ``distill --teacher``."""
    settings: dict[str, JsonValue]
    folder: str
    """Where the pictures are."""
    pairs: int
    done: int
    """Pictures made or read now; with ``dry_run``, that would be."""
    already: int
    """Pictures that were there."""
    seconds: float
    """Elapsed; with ``dry_run``, expected."""
    dry_run: bool
    missing: list[str] = field(default_factory=list)
    """Pairs of which the teacher has no picture; they are left out."""
    failed: list[str] = field(default_factory=list)
    """A message for each other pair without a picture."""
    seconds_per_pair: float = 0.0
    """0 when nothing was done."""
    bytes_per_pair: float = 0.0
    """On disk."""
    todo: list[str] = field(default_factory=list)
    """With ``dry_run``, the first pairs that would be done."""
    shares: dict[str, float] = field(default_factory=dict)
    """Of a combination: the share of each teacher in the pictures."""
    ingredients: list[TeacherCacheReport] = field(default_factory=list)
    """Of a combination: what was done for each of its teachers."""

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return asdict(self)


class TeacherWork(Work[TeacherJob, TeacherJob]):
    """The pictures of a teacher, which every process opens for itself.

    Args:
        opening: makes the teacher ready.
    """

    def __init__(self, opening: TeacherOpening) -> None:
        self._opening = opening
        self._teacher: Teacher | None = opening()
        self.teacher, self.settings = self._teacher.name, self._teacher.settings
        self.title = f"teacher {self.teacher}"
        self.holds_model = not isinstance(self._teacher, ReadyTeacher)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_teacher": None}

    def name(self, job: TeacherJob, /) -> str:
        """The name of the pair."""
        return job.files.name

    def key(self, job: TeacherJob, /) -> str:
        """The key of the pair in the prior cache."""
        return pair_key(*job.keys)

    def load(self, job: TeacherJob, /) -> TeacherJob:
        """The job with its pair."""
        return replace(job, pair=job.read())

    def make(self, job: TeacherJob, /) -> TeacherImage:
        """The picture with its record; InputError where it is not one of this pair."""
        picture = self.opened().fuse(job)
        _check(picture, job)
        top, left, height, width = picture.crop
        pair, rows, columns = job.read(), slice(top, top + height), slice(left, left + width)
        ir, vis_y = (plane[0, rows, columns].numpy() for plane in (pair.ir, luminance(pair.vis)))
        agreement = measure(np.ascontiguousarray(picture.y, np.float32), ir, vis_y)
        refusal = agreement.refusal()
        if refusal is not None:
            raise _refused(job, refusal)
        return TeacherImage(to_u8(picture.y), TeacherItem.describe(job, picture, agreement).to_meta())

    def opened(self) -> Teacher:
        """The teacher of this process."""
        if self._teacher is None:
            self._teacher = self._opening()
            if self._teacher.settings != self.settings:
                raise InputError(
                    f"{self.teacher} has other settings in this process: {self._teacher.settings}",
                    rule=f"all processes make the same pictures, by {self.settings}",
                    remedy="give every machine the same weights and the same version of duskfuse",
                )
        return self._teacher

    def quick(self) -> tuple[TeacherWork, float]:
        """The same work with the fewest sampling steps, and how many times longer this one takes."""
        if not isinstance(self._teacher, DdfmTeacher) or self._teacher.steps <= _TIMED_STEPS:
            return self, 1.0
        quick, teacher = copy.copy(self), copy.copy(self._teacher)
        factor, teacher.steps = teacher.steps / _TIMED_STEPS, _TIMED_STEPS
        quick._teacher = teacher
        return quick, factor


def cache_teacher(
    data: Path,
    *,
    teacher: str | Path | Sequence[str | Path],
    combine: Combination | None = None,
    score: QualityScore | None = None,
    steps: int | None = None,
    ddfm_form: DdfmForm = DdfmForm.MIRRORED,
    cache: Path | None = None,
    masks: MaskSourceName | None = None,
    split: str | None = None,
    limit: int | None = None,
    pictures: Path | None = None,
    strict: bool = False,
    engine: Engine = Engine.LOCAL,
    workers: int | None = None,
    reading: Reading | Path | None = None,
    dry_run: bool = False,
) -> TeacherCacheReport:
    """Keep one teacher picture per pair of a dataset.

    Args:
        data: folder of pairs.
        teacher: one or several, see :func:`duskfuse.teachers.open_teacher.open_teacher`.
        combine: what becomes of several.
        score: by which pictures are compared then.
        steps: of a diffusion teacher's sampler; by default what its paper has.
        ddfm_form: how much of the published program DDFM repeats.
        cache: root folder of the cache, ``$DUSKFUSE_HOME/cache`` by default.
        masks: which cached masks a main network takes.
        split: use one split of the dataset only.
        limit: take that many pairs, spread evenly.
        pictures: a folder that also gets each picture as a grey PNG, to look at or to score with ``evaluate``.
        strict: a pair of which a folder has no picture is an error, before anything is done.
        engine: where networks compute.
        workers: processes that compute, see :func:`duskfuse.data.priors.pipeline.run`.
        reading: how the infrared pictures are read, or a file that says it; by default the dataset's ``duskfuse.yaml``.
        dry_run: measure a few pairs and report the expected work, writing nothing.

    Raises:
        InputError: no pairs, no usable teacher; or pairs without a picture, after all others are done.
    """
    names = list(dict.fromkeys([teacher] if isinstance(teacher, str | Path) else teacher))
    _check_combination(names, combine)
    found = find_pairs(data, split=split, reading=reading)
    pairs = _spread(found, limit)
    jobs, unreadable = _jobs(pairs)
    caching = _Caching(PriorCache(cache), jobs, strict, engine, workers, dry_run)
    opening = partial(open_teacher, data=data, pairs=found, jobs=jobs, cache=cache, masks=masks)
    reports = [caching.run(opening(name, steps=steps, ddfm_form=ddfm_form)) for name in names]
    report = reports[0]
    if combine is not None:
        if score is None:
            raise ValueError("pictures are chosen by a score: give one")
        report = caching.combine(reports, combine, score)
    if pictures is not None and not dry_run:
        _write_pictures(pictures, jobs, caching.store(report))
    messages = (message for each in (*report.ingredients, report) for message in each.failed)
    failed = list(dict.fromkeys((*unreadable, *messages)))
    if failed and not dry_run:
        raise InputError(
            f"{len(failed)} teacher pictures of {len(pairs)} pairs could not be kept: " + "; ".join(failed[:_NAMED]),
            rule="all others are cached",
            remedy="mend these or leave them out, and run the same command again",
        )
    return replace(report, pairs=len(pairs), failed=failed)


@dataclass(frozen=True)
class _Caching:
    """What is the same for all teachers of a call."""

    cache: PriorCache
    jobs: Sequence[TeacherJob]
    strict: bool
    engine: Engine
    workers: int | None
    dry_run: bool

    def run(self, opening: TeacherOpening) -> TeacherCacheReport:
        """Make and keep the pictures of one teacher that are not there."""
        started = time.monotonic()
        work = TeacherWork(opening)
        jobs, missing = self._with_picture(work)
        store = self.cache.store(PriorKind.TEACHER, work.teacher, work.settings)
        todo: list[str] = []
        if self.dry_run:
            tally = Tally()
            unfinished = list(unmade(work, jobs, store, tally))
            count = processes(work, len(unfinished), self.workers, self.engine)
            seconds, size = _expected(work, unfinished, tally.failed, count)
            done, already, failed = len(unfinished), tally.already, tally.failed
            todo = [item.job.files.name for item in unfinished[:_NAMED]]
            _say_expected(work, unfinished, seconds, size)
        else:
            made = run(work, jobs, store, engine=self.engine, workers=self.workers)
            done, already, failed = made.done, made.already, made.failed
            seconds, size = time.monotonic() - started, store.size_bytes() / max(1, len(store.keys()))
        return TeacherCacheReport(
            teacher=work.teacher,
            settings=work.settings,
            folder=str(store.folder),
            pairs=len(self.jobs),
            done=done,
            already=already,
            missing=missing,
            failed=failed,
            seconds=round(seconds, 3),
            seconds_per_pair=round(seconds / done, 4) if done else 0.0,
            bytes_per_pair=round(size, 1),
            dry_run=self.dry_run,
            todo=todo,
        )

    def combine(
        self, reports: Sequence[TeacherCacheReport], combination: Combination, score: QualityScore
    ) -> TeacherCacheReport:
        """Make and keep the combination of teachers whose pictures are there; a dry run only counts."""
        stores = [self.store(report) for report in reports]
        opening = partial(CombinedTeacher, stores, combination, score)
        teacher = opening()
        if not self.dry_run and any(teacher.has(job) for job in self.jobs):
            report = replace(self, strict=False).run(opening)
            return replace(report, shares=self._shares(report), ingredients=list(reports))
        store = self.cache.store(PriorKind.TEACHER, teacher.name, teacher.settings)
        todo = [job.files.name for job in self.jobs if pair_key(*job.keys) not in store]
        return TeacherCacheReport(
            teacher=teacher.name,
            settings=teacher.settings,
            folder=str(store.folder),
            pairs=len(self.jobs),
            done=len(todo) if self.dry_run else 0,
            already=len(self.jobs) - len(todo),
            seconds=sum(report.seconds for report in reports),
            dry_run=self.dry_run,
            todo=todo[:_NAMED],
            ingredients=list(reports),
        )

    def store(self, report: TeacherCacheReport) -> PriorStore:
        """Where the pictures of a report are."""
        return self.cache.store(PriorKind.TEACHER, report.teacher, report.settings)

    def _with_picture(self, work: TeacherWork) -> tuple[list[TeacherJob], list[str]]:
        """The jobs that the teacher has a picture of, and the names of the other pairs, also said."""
        teacher = work.opened()
        if not isinstance(teacher, ReadyTeacher):
            return list(self.jobs), []
        jobs = [job for job in self.jobs if teacher.has(job)]
        missing = [job.files.name for job in self.jobs if not teacher.has(job)]
        if missing:
            seen = f"{len(missing)} of {len(self.jobs)} pairs have no picture of {work.teacher}: {_some(missing)}"
            if self.strict or not jobs:
                raise InputError(seen, rule="every pair needs one", remedy="add the pictures, or give another teacher")
            say(f"{seen}; left out")
        return jobs, missing

    def _shares(self, report: TeacherCacheReport) -> dict[str, float]:
        store, shares, pictures = self.store(report), defaultdict[str, float](float), 0
        for job in self.jobs:
            item = _item(store, job)
            if item is not None:
                pictures += 1
                for ingredient in item.made_from:
                    shares[ingredient.source] += ingredient.weight
        return {source: round(share / pictures, 4) for source, share in sorted(shares.items())}


def _item(store: PriorStore, job: TeacherJob) -> TeacherItem | None:
    key = pair_key(*job.keys)
    if key not in store:
        return None
    record = store.get(key)
    assert isinstance(record, TeacherImage)
    return TeacherItem.of(record)


def _check_combination(names: Sequence[str | Path], combine: Combination | None) -> None:
    several = len(names) > 1
    if several and combine is None:
        raise InputError(
            f"{len(names)} teachers",
            rule="training takes one picture per pair",
            remedy="say how they become one: --combine best or --combine blend",
        )
    if combine is not None and not several:
        raise InputError(f"--combine {combine} with one teacher", remedy="give two or more, or leave --combine away")


def _jobs(pairs: Sequence[PairFiles]) -> tuple[list[TeacherJob], list[str]]:
    """One job per pair, and a message for each whose files cannot be read."""
    jobs, failed = [], []
    for files in track(pairs, "hashing"):
        try:
            jobs.append(TeacherJob(files, files.prior_keys()))
        except InputError as error:
            failed.append(str(error))
    return jobs, failed


def _check(picture: TeacherPicture, job: TeacherJob) -> None:
    """Refuse pictures that nothing can be measured on."""
    top, left, height, width = picture.crop
    high, wide = job.read().size
    if picture.y.shape != (height, width) or min(picture.crop) < 0 or top + height > high or left + width > wide:
        seen = f"its crop {picture.crop} does not fit {picture.y.shape[1]}×{picture.y.shape[0]} pixels"
        raise _refused(job, f"{seen} and a pair of {wide}×{high}")
    broken = int((~np.isfinite(picture.y)).sum())
    if broken:
        raise _refused(job, f"{broken} of {picture.y.size} values are NaN or infinite")
    if picture.y.std() < SAME_SHADE:
        raise _refused(job, "it is constant")


def _refused(job: TeacherJob, why: str) -> InputError:
    return InputError(f"teacher picture of {job.files.name}: {why}")


def _expected(
    work: TeacherWork, todo: Sequence[Todo[TeacherJob]], failed: list[str], count: int
) -> tuple[float, float]:
    """Seconds for all of ``todo`` in ``count`` processes and bytes per picture, measured on a few spread over it."""
    quick, factor = work.quick()
    sampled = min(len(todo), 1 if work.holds_model else _SAMPLE)
    sizes = []
    started = time.monotonic()
    for i in range(sampled):
        try:
            sizes.append(stored_bytes(quick.make(quick.load(todo[i * len(todo) // sampled].job))))
        except InputError as error:
            failed.append(str(error))
    seconds = factor * (time.monotonic() - started) / max(1, sampled) * len(todo) / count
    return seconds, sum(sizes) / max(1, len(sizes))


def _say_expected(work: TeacherWork, todo: Sequence[Todo[TeacherJob]], seconds: float, size: float) -> None:
    first = _some([item.job.files.name for item in todo])
    say(
        f"would keep the picture of {work.title} for {len(todo)} pairs: about {seconds / 3600:.2g} hours and "
        f"{size * len(todo) / 1e6:.2g} MB{': ' if first else ''}{first}"
    )


def _write_pictures(folder: Path, jobs: Sequence[TeacherJob], store: PriorStore) -> None:
    for job in jobs:
        if pair_key(*job.keys) in store:
            record = store.get(pair_key(*job.keys))
            assert isinstance(record, TeacherImage)
            write_picture(folder / f"{job.files.name}.png", record.y)


def _spread(pairs: list[PairFiles], limit: int | None) -> list[PairFiles]:
    if limit is None or limit >= len(pairs):
        return pairs
    if limit < 1:
        raise InputError(f"--limit {limit}", rule="at least one pair is needed")
    return [pairs[i] for i in np.linspace(0, len(pairs) - 1, limit).round().astype(int)]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
