"""The verb ``cache-masks``: the region masks of every picture of a dataset, made once and kept in the PriorCache.

Infrared and visible picture have mask lists of their own, keyed by the hash of the picture file: what is there already
is never made again, and a changed picture is; so are the masks of a changed label map.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from duskfuse.data.errors import InputError
from duskfuse.data.images import file_sha256, to_u8
from duskfuse.data.priors.cache import JsonValue, PriorCache, PriorKind, PriorStore, stored_bytes
from duskfuse.data.priors.masks import KEPT_MASKS, MaskSet
from duskfuse.data.priors.pipeline import Engine, Tally, Work, processes, run, unmade
from duskfuse.data.priors.sources import MaskSource, MaskSourceName, open_mask_source
from duskfuse.data.progress import say, track

if TYPE_CHECKING:
    from duskfuse.data.pair_files import PairFiles
    from duskfuse.data.reading import Reading

_WITHOUT_MODEL = {"regions", "labels", "random-crops"}
"""Sources that compute without a network."""
_SAMPLE = 3
"""Pictures measured by a dry run; one where a network computes."""
_NAMED = 5


@dataclass(frozen=True)
class MaskCacheReport:
    """What `cache_masks` did, or with ``dry_run`` would do."""

    source: str
    settings: dict[str, JsonValue]
    folder: str
    """Where the masks are."""
    pairs: int
    images: int
    """Different pictures among them."""
    done: int
    """Pictures whose masks were made now; with ``dry_run``, would be made."""
    already: int
    """Pictures whose masks were there."""
    failed: list[str]
    """With ``dry_run``, a message for each picture that could not be read."""
    unlabelled: list[str]
    """Pairs without a label map, left out by the source ``labels``."""
    seconds: float
    """Elapsed; with ``dry_run``, expected."""
    seconds_per_pair: float
    """0 when nothing was done."""
    bytes_per_pair: float
    """On disk."""
    dry_run: bool
    todo: list[str]
    """With ``dry_run``, the first pictures whose masks would be made."""

    def to_json(self) -> dict[str, JsonValue]:
        """The report as plain data."""
        return asdict(self)


class PictureOf(StrEnum):
    """Which of a pair's pictures masks are for."""

    INFRARED = "infrared"
    VISIBLE = "visible"


class MaskJob(NamedTuple):
    """One picture of a pair."""

    files: PairFiles
    side: PictureOf


class MaskInput(NamedTuple):
    """What the masks of a picture are made from."""

    image: NDArray[Any]
    """``[H, W, 3]`` uint8 RGB, infrared repeated; or the ids of a label map ``[H, W]``."""
    made_from: str = ""
    """Hash of the label map."""


class MaskWork(Work[MaskJob, MaskInput]):
    """The masks of pictures by a source, which every process opens for itself.

    Args:
        opening: makes the source ready.
    """

    def __init__(self, opening: Callable[[], MaskSource]) -> None:
        self._opening = opening
        self._source: MaskSource | None = opening()
        self.source, self.settings = self._source.name, self._source.settings
        self.title = f"masks by {self.source}"
        self.holds_model = self.source not in _WITHOUT_MODEL

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_source": None}

    def name(self, job: MaskJob, /) -> str:
        """The path of the picture."""
        return str(job.files.ir if job.side is PictureOf.INFRARED else job.files.vis)

    def key(self, job: MaskJob, /) -> str:
        """The key of the picture in the prior cache."""
        return job.files.ir_key() if job.side is PictureOf.INFRARED else job.files.vis_key()

    def is_current(self, job: MaskJob, key: str, store: PriorStore, /) -> bool:
        """Whether the label map, which the key of the picture leaves out, is still the one of the record."""
        if self.source != MaskSourceName.LABELS:
            return True
        made_from = file_sha256(_label(job))
        with suppress(InputError):  # a record that turned out to be damaged
            record = store.get(key)
            return isinstance(record, MaskSet) and record.made_from == made_from
        return False

    def load(self, job: MaskJob, /) -> MaskInput:
        """Read the picture, or the label map in its place."""
        from duskfuse.data.pair_files import read_ir, read_label, read_vis

        if self.source == MaskSourceName.LABELS:
            label = _label(job)
            ids: NDArray[np.int64] = read_label(label, job.files.vis.size(), job.files.label_classes).numpy()
            return MaskInput(ids, file_sha256(label))
        rounded = to_u8(read_ir(job.files) if job.side is PictureOf.INFRARED else read_vis(job.files))
        return MaskInput(rounded if rounded.ndim == 3 else np.repeat(rounded[..., None], 3, axis=2))

    def make(self, loaded: MaskInput, /) -> MaskSet:
        """The masks that the source finds."""
        return replace(self._opened().masks(loaded.image), made_from=loaded.made_from)

    def _opened(self) -> MaskSource:
        if self._source is None:
            self._source = self._opening()
            if self._source.settings != self.settings:
                raise InputError(
                    f"{self.source} has other settings in this process: {self._source.settings}",
                    rule=f"all processes make the same masks, by {self.settings}",
                    remedy="give every machine the same checkpoint and the same version of duskfuse",
                )
        return self._source


class _Result(NamedTuple):
    """What was done, or would be."""

    done: int
    already: int
    failed: list[str]
    seconds: float
    bytes_per_picture: float
    todo: list[str]

    @property
    def images(self) -> int:
        return self.done + self.already + len(self.failed)


def _label(job: MaskJob) -> Path:
    assert job.files.label is not None
    return job.files.label


def cache_masks(
    data: Path,
    *,
    source: MaskSourceName | None = None,
    checkpoint: Path | None = None,
    preset: str = "fast",
    keep: int = KEPT_MASKS,
    cache: Path | None = None,
    engine: Engine = Engine.LOCAL,
    workers: int | None = None,
    reading: Reading | Path | None = None,
    dry_run: bool = False,
) -> MaskCacheReport:
    """Make and keep the masks of all pictures of a dataset that have none yet.

    Args:
        data: folder of pairs.
        source: where masks come from; by default SAM when a checkpoint is given or downloaded, else classical regions.
        checkpoint: SAM's.
        preset: SAM's settings, ``fast`` or ``paper``.
        keep: masks of a picture at most.
        cache: root folder of the cache, ``$DUSKFUSE_HOME/cache`` by default.
        engine: where the masks are computed.
        workers: processes that compute, see :func:`duskfuse.data.priors.pipeline.run`.
        reading: how the infrared pictures are read, or a file that says it; by default the dataset's ``duskfuse.yaml``.
        dry_run: measure a few pictures and report the expected work, writing nothing.

    Raises:
        InputError: no pairs, no usable checkpoint; or pictures that cannot be read, after all others are done.
    """
    from duskfuse.data.layout import find_pairs

    started = time.monotonic()
    pairs = find_pairs(data, reading=reading)
    work = MaskWork(partial(open_mask_source, *_choose(source, checkpoint), preset, keep))
    store = PriorCache(cache).store(PriorKind.MASKS, work.source, work.settings)
    unlabelled = _without_label(data, pairs) if work.source == MaskSourceName.LABELS else []
    left_out = set(unlabelled)
    jobs = [MaskJob(files, side) for files in pairs if files.name not in left_out for side in PictureOf]
    if dry_run:
        result = _planned(work, jobs, store, workers, engine)
    else:
        report = run(work, jobs, store, engine=engine, workers=workers)
        size = store.size_bytes() / max(1, len(store.keys()))
        result = _Result(report.done, report.already, report.failed, report.seconds, size, [])
    if result.failed and not dry_run:
        raise InputError(
            f"{len(result.failed)} of {result.images} pictures have no masks: {_some(result.failed)}",
            rule="every picture must be readable; the masks of all others are kept",
            remedy="repair or remove these pictures and run the same command again",
        )
    return MaskCacheReport(
        source=work.source,
        settings=work.settings,
        folder=str(store.folder),
        pairs=len(pairs),
        images=result.images,
        done=result.done,
        already=result.already,
        failed=result.failed,
        unlabelled=unlabelled,
        seconds=round(result.seconds if dry_run else time.monotonic() - started, 3),
        seconds_per_pair=round(2 * result.seconds / result.done, 4) if result.done else 0.0,
        bytes_per_pair=round(2 * result.bytes_per_picture, 1),
        dry_run=dry_run,
        todo=result.todo,
    )


def open_masks(cache: Path | None, keys: Iterable[str], source: MaskSourceName | None) -> PriorStore:
    """The newest mask store, of ``source`` where given, that holds all ``keys``.

    Raises:
        InputError: there is none; says how many the fullest store lacks.
    """
    wanted = set(keys)
    stores = [store for store in PriorCache(cache).stores(PriorKind.MASKS) if source in (None, store.source)]
    fewest = len(wanted)
    for store in reversed(stores):
        missing = len(wanted - store.keys())
        if missing == 0:
            return store
        fewest = min(fewest, missing)
    of_source = f" of the source {source}" if source else ""
    raise InputError(
        f"{fewest} of {len(wanted)} pictures have no cached masks{of_source} in {PriorCache(cache).root}",
        rule="masks are made once, before they are used",
        remedy="run duskfuse cache-masks DATA" + (f" --source {source}" if source else ""),
    )


def _choose(source: MaskSourceName | None, checkpoint: Path | None) -> tuple[MaskSourceName, Path | None]:
    if source is not None:
        return source, checkpoint
    if checkpoint is None:
        from duskfuse.data.priors.sam import downloaded_checkpoint

        checkpoint = downloaded_checkpoint()
    if checkpoint is not None:
        say(f"masks by SAM, {checkpoint}")
        return MaskSourceName.SAM, checkpoint
    say("masks by classical regions: there is no SAM checkpoint (--source sam downloads one, --checkpoint names one)")
    return MaskSourceName.REGIONS, None


def _without_label(data: Path, pairs: Sequence[PairFiles]) -> list[str]:
    """Names of the pairs without a label map, also said; all of them is an error."""
    names = [pair.name for pair in pairs if pair.label is None]
    if len(names) == len(pairs):
        raise InputError(
            f"{data}: no pair has a label map",
            rule="the source labels makes masks out of label maps",
            remedy="choose --source regions or sam",
        )
    if names:
        say(f"{len(names)} of {len(pairs)} pairs have no label map and are left out: {_some(names)}")
    return names


def _planned(
    work: MaskWork, jobs: Sequence[MaskJob], store: PriorStore, workers: int | None, engine: Engine
) -> _Result:
    """What a run would do, reckoned from a few pictures spread over it; also said."""
    tally = Tally()
    todo = list(unmade(work, track(jobs, "hashing"), store, tally))
    names = [work.name(item.job) for item in todo]
    count = min(len(todo), 1 if work.holds_model else _SAMPLE)
    sizes, broken = [], []
    started = time.monotonic()
    for i in range(count):
        try:
            sizes.append(stored_bytes(work.make(work.load(todo[i * len(todo) // count].job))))
        except InputError as error:
            broken.append(str(error))
    seconds = (time.monotonic() - started) / max(1, count) * len(todo) / processes(work, len(todo), workers, engine)
    size = sum(sizes) / max(1, len(sizes))
    infrared = sum(item.job.side is PictureOf.INFRARED for item in todo)
    say(
        f"would make {work.title} for {infrared} infrared and {len(todo) - infrared} visible pictures: about "
        f"{seconds / 3600:.2g} hours and {size * len(todo) / 1e6:.2g} MB" + (f": {_some(names)}" if names else "")
    )
    done = len(todo) - len(broken)
    return _Result(done, tally.already, tally.failed + broken, seconds, size, names[:_NAMED])


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
