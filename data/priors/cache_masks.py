"""The verb ``cache-masks``: the region masks of every picture of a dataset, made once and kept in the PriorCache.

Infrared and visible picture have mask lists of their own, keyed by the hash of the picture file: what is there already
is never made again, and a changed picture is.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from duskfuse.data.errors import InputError
from duskfuse.data.images import to_u8
from duskfuse.data.priors.cache import JsonValue, PriorCache, PriorKind, PriorStore, stored_bytes
from duskfuse.data.priors.masks import MaskSet
from duskfuse.data.priors.sources import MaskSource, MaskSourceName, open_mask_source
from duskfuse.data.progress import say, track

if TYPE_CHECKING:
    from duskfuse.data.pair_files import PairFiles

_WORKERS = 2
_WORTH_WORKERS = 24
"""Pictures from which on starting processes takes less time than it saves."""
_SAMPLE = 3
"""Pictures measured by a dry run; one for SAM."""
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

    def to_json(self) -> dict[str, JsonValue]:
        """The report as plain data."""
        return asdict(self)


class _Kind(StrEnum):
    INFRARED = "infrared"
    VISIBLE = "visible"
    LABEL = "label"


class _Job(NamedTuple):
    """One picture: its key, its pair, and which of the pair's pictures the masks are made from."""

    key: str
    files: PairFiles
    kind: _Kind


def cache_masks(
    data: Path,
    *,
    source: MaskSourceName | None = None,
    checkpoint: Path | None = None,
    preset: str = "fast",
    cache: Path | None = None,
    dry_run: bool = False,
) -> MaskCacheReport:
    """Make and keep the masks of all pictures of a dataset that have none yet.

    Args:
        data: folder of pairs.
        source: where masks come from; by default SAM when a checkpoint is given or downloaded, else classical regions.
        checkpoint: SAM's.
        preset: SAM's settings, ``fast`` or ``paper``.
        cache: root folder of the cache, ``$DUSKFUSE_HOME/cache`` by default.
        dry_run: measure a few pictures and report the expected work, writing nothing.

    Raises:
        InputError: no pairs, no usable checkpoint; or pictures that cannot be read, after all others are done.
    """
    from duskfuse.data.layout import find_pairs

    started = time.monotonic()
    pairs = find_pairs(data)
    maker = open_mask_source(*_choose(source, checkpoint), preset)
    store = PriorCache(cache).store(PriorKind.MASKS, maker.name, maker.settings)
    unlabelled: list[str] = []
    if maker.name == MaskSourceName.LABELS:
        unlabelled = _without_label(data, pairs)
    failed: list[str] = []
    jobs = _jobs(pairs, MaskSourceName(maker.name), failed)
    present = store.keys()
    todo = [job for job in jobs if job.key not in present]
    images = len(jobs) + len(failed)
    if dry_run:
        done = len(todo)
        making, size = _expected(maker, todo, failed)
    else:
        working = time.monotonic()
        done = _make(maker, store, todo, failed)
        making, size = time.monotonic() - working, store.size_bytes() / max(1, len(store.keys()))
    if failed and not dry_run:
        raise InputError(
            f"{len(failed)} of {images} pictures have no masks: {_some(failed)}",
            rule="every picture must be readable; the masks of all others are kept",
            remedy="repair or remove these pictures and run the same command again",
        )
    return MaskCacheReport(
        source=maker.name,
        settings=maker.settings,
        folder=str(store.folder),
        pairs=len(pairs),
        images=images,
        done=done,
        already=len(jobs) - len(todo),
        failed=failed,
        unlabelled=unlabelled,
        seconds=round(making if dry_run else time.monotonic() - started, 3),
        seconds_per_pair=round(2 * making / done, 4) if done else 0.0,
        bytes_per_pair=round(2 * size, 1),
        dry_run=dry_run,
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


def _jobs(pairs: Sequence[PairFiles], source: MaskSourceName, failed: list[str]) -> list[_Job]:
    """One job for each different picture; ``failed`` gets a message for each that cannot be read."""
    jobs: dict[str, _Job] = {}
    for pair in track(pairs, "hashing"):
        if source is MaskSourceName.LABELS and pair.label is None:
            continue
        for key_of, kind in ((pair.ir_key, _Kind.INFRARED), (pair.vis_key, _Kind.VISIBLE)):
            try:
                job = _Job(key_of(), pair, _Kind.LABEL if source is MaskSourceName.LABELS else kind)
            except InputError as error:
                failed.append(str(error))
                continue
            jobs.setdefault(job.key, job)
    return list(jobs.values())


def _make(maker: MaskSource, store: PriorStore, todo: Sequence[_Job], failed: list[str]) -> int:
    """Make and keep the masks of ``todo``, one by one; the number of pictures done."""
    done = 0
    for job, made in track(_results(maker, todo), f"masks by {maker.name}", len(todo)):
        if isinstance(made, MaskSet):
            store.put(job.key, made)
            done += 1
        else:
            failed.append(made)
    store.compact()
    return done


def _results(maker: MaskSource, todo: Sequence[_Job]) -> Iterator[tuple[_Job, MaskSet | str]]:
    """Masks of each picture, or the message why there are none, in the order in which they are ready."""
    workers = min(_WORKERS, os.cpu_count() or 1)
    if maker.name == MaskSourceName.SAM or workers == 1 or len(todo) < _WORTH_WORKERS:
        yield from ((job, _masks(maker, job)) for job in todo)
        return
    context = multiprocessing.get_context("spawn")  # OpenCV's threads do not survive a fork
    with ProcessPoolExecutor(workers, context, _start_worker) as pool:
        jobs = {pool.submit(_masks, maker, job): job for job in todo}
        try:
            for future in as_completed(jobs):
                yield jobs[future], future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends the pool
    cv2.setNumThreads(1)


def _masks(maker: MaskSource, job: _Job) -> MaskSet | str:
    try:
        return maker.masks(_picture(job))
    except InputError as error:
        return str(error)


def _picture(job: _Job) -> NDArray[Any]:
    """``[H, W, 3]`` uint8 RGB, infrared repeated; or the ids of a label map ``[H, W]``."""
    from duskfuse.data.pair_files import read_ir, read_label, read_vis

    if job.kind is _Kind.LABEL:
        assert job.files.label is not None
        ids: NDArray[np.int64] = read_label(job.files.label, job.files.vis.size()).numpy()
        return ids
    rounded = to_u8(read_ir(job.files) if job.kind is _Kind.INFRARED else read_vis(job.files))
    return rounded if rounded.ndim == 3 else np.repeat(rounded[..., None], 3, axis=2)


def _expected(maker: MaskSource, todo: Sequence[_Job], failed: list[str]) -> tuple[float, float]:
    """Seconds for all of ``todo`` and bytes per picture, measured on a few spread over it."""
    count = min(len(todo), 1 if maker.name == MaskSourceName.SAM else _SAMPLE)
    sample = [todo[i * len(todo) // count] for i in range(count)]
    started = time.monotonic()
    made = [_masks(maker, job) for job in sample]
    elapsed = time.monotonic() - started
    failed.extend(message for message in made if isinstance(message, str))
    sizes = [stored_bytes(masks) for masks in made if isinstance(masks, MaskSet)]
    return elapsed / max(1, count) * len(todo), sum(sizes) / max(1, len(sizes))


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
