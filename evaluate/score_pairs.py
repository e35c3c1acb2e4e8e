"""Scoring many pairs on many cores: what is asked of one pair, answering it, and processes that do so side by side.

A job is one pair with all fused pictures that have no score yet, so that what the metrics need of the sources is
computed once. Processes are used, not threads: numpy and OpenCV let go of the interpreter only while they compute, and
every metric also interprets Python. They import no torch unless LPIPS is wanted; a model's picture comes to them
ready-made. Every process computes with one OpenCV thread, because sums of another number of threads differ in their
last bit: the scores are the same for any number of processes.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from duskfuse.data import homography, images, pair_files, reading
from duskfuse.data.errors import DuskfuseError
from duskfuse.data.pair_files import PairFiles
from duskfuse.evaluate import (
    feature_information,
    fused_folder,
    gradients,
    information,
    learned_similarity,
    local_moments,
    metrics,
    moments,
    perception,
    source_pictures,
    structure,
    visual_information,
    weighted_similarity,
)
from duskfuse.evaluate.fused_folder import read_fused
from duskfuse.evaluate.learned_similarity import LpipsWeights
from duskfuse.evaluate.metrics import Grey, Mode, SourceStatistics, fusion_metrics
from duskfuse.evaluate.moments import psnr_between
from duskfuse.evaluate.source_pictures import SourcePictures

_COMPUTE = (
    metrics,
    feature_information,
    gradients,
    information,
    learned_similarity,
    local_moments,
    moments,
    perception,
    structure,
    visual_information,
    weighted_similarity,
    fused_folder,
    source_pictures,
    images,
    pair_files,
    reading,
    homography,
)
"""Modules whose code decides about a score."""
BYTES_PER_PIXEL = 800
"""Memory of a process while it scores a pair, measured at 640×480 to 1280×1024, rounded up."""
BYTES_PER_PROCESS = 100 * 2**20
"""The rest of its memory, rounded up."""
_WORTH_PROCESSES = 12
"""Pairs from which on starting processes takes less time than it saves."""
_AHEAD = 2
"""Jobs that wait ready-made while every process computes."""


class Rule(StrEnum):
    """A trivial fusion rule; its value is the name of its row."""

    AVERAGE = "average"
    """Rounded down."""
    MAXIMUM = "maximum"
    VISIBLE = "visible only"
    INFRARED = "infrared only"


Picture = Grey | Path | Rule
"""A fused picture, or where it comes from: a file, or a rule over the sources."""


class Wanted(NamedTuple):
    """A fused picture to score."""

    picture: Picture
    metrics: tuple[str, ...]
    """Names of `METRICS`."""
    to_reference: bool
    """Whether its PSNR to the reference is wanted."""


@dataclass(frozen=True)
class Job:
    """One pair and what is wanted of it."""

    files: PairFiles
    mode: Mode
    wanted: Mapping[str, Wanted]
    """By any key of the caller's."""
    reference: Picture | None = None
    lpips_weights: LpipsWeights | None = None


class Answer(NamedTuple):
    """The scores of one fused picture."""

    scores: dict[str, float]
    """By name of metric."""
    to_reference: float | None
    """PSNR to the reference, where wanted."""


def arithmetic() -> dict[str, str]:
    """What computes the scores: a hash of the code, and the versions of the libraries it stands on."""
    code = hashlib.sha256()
    for module in _COMPUTE:
        code.update(Path(module.__file__ or "").read_bytes())
    return {"code": code.hexdigest()[:16], "numpy": np.__version__, "opencv": cv2.__version__}


def score(job: Job) -> dict[str, Answer]:
    """Answer one job; InputError where a picture has become unreadable."""
    sources = SourcePictures(job.files)
    statistics = SourceStatistics(sources.ir_u8, sources.vis_u8, job.mode, job.lpips_weights)
    reference = None if job.reference is None else fused_grey(job.reference, sources)
    return {key: _answer(wanted, sources, statistics, reference) for key, wanted in job.wanted.items()}


def fused_grey(picture: Picture, sources: SourcePictures) -> Grey:
    """The fused picture as ``[H, W]`` 8-bit luminance."""
    if isinstance(picture, np.ndarray):
        return picture
    match picture:
        case Rule.AVERAGE:
            return ((sources.ir_u8.astype(np.uint16) + sources.vis_u8) // 2).astype(np.uint8)
        case Rule.MAXIMUM:
            return np.maximum(sources.ir_u8, sources.vis_u8)
        case Rule.VISIBLE:
            return sources.vis_u8
        case Rule.INFRARED:
            return sources.ir_u8
        case Path():
            return read_fused(picture)


def _answer(wanted: Wanted, sources: SourcePictures, statistics: SourceStatistics, reference: Grey | None) -> Answer:
    picture = fused_grey(wanted.picture, sources)
    scores = fusion_metrics(statistics, picture, wanted.metrics) if wanted.metrics else {}
    return Answer(scores, psnr_between(picture, reference) if wanted.to_reference and reference is not None else None)


def worker_count(pairs: int, pixels: int) -> int:
    """Processes that score so many pairs of at most ``pixels`` in the shortest time: one per core, if memory allows."""
    from duskfuse.data.priors.pipeline import cores  # brings more than the processes need

    if pairs < _WORTH_PROCESSES:
        return 1
    affordable = _free_memory() // (BYTES_PER_PIXEL * pixels + BYTES_PER_PROCESS)
    return max(1, min(cores(), pairs, affordable))


def _free_memory() -> int:
    """Bytes that this machine, or the container, has left; where neither says so (not Linux) any number."""
    free = 2**62
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = 1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])
    with suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        most, used = (int((group / f"memory.{name}").read_text(encoding="ascii")) for name in ("max", "current"))
        free = min(free, most - used)
    return free


def answered(jobs: Iterator[Job], workers: int) -> Iterator[tuple[str, dict[str, Answer]]]:
    """Score jobs in ``workers`` processes, or beside this thread where it is one; pair names and answers as they come.

    Jobs are taken from the iterator when they can soon be computed, so that few are in memory.

    Raises:
        DuskfuseError: a process died, or a job could not be answered; what was yielded before is right.
    """
    with _pool(workers) as executor:
        running: dict[Future[dict[str, Answer]], str] = {}
        for job in jobs:
            running[executor.submit(score, job)] = job.files.name
            if len(running) >= workers + _AHEAD:
                yield from _finished(running)
        while running:
            yield from _finished(running)


def _finished(running: dict[Future[dict[str, Answer]], str]) -> Iterator[tuple[str, dict[str, Answer]]]:
    """Wait for a job at least, and give those that are done, before the error of one that failed."""
    done, _ = wait(running, return_when=FIRST_COMPLETED)
    for future in sorted(done, key=lambda future: future.exception() is not None):
        name = running.pop(future)
        try:
            answer = future.result()
        except BrokenProcessPool as error:
            raise DuskfuseError(
                "a process that computes scores died",
                rule=f"each needs some {BYTES_PER_PIXEL} bytes of memory per pixel of a pair",
                remedy="run the same again with fewer --workers: finished scores are kept; a script of your own must "
                'call it under `if __name__ == "__main__":`',
            ) from error
        yield name, answer


@contextmanager
def _pool(workers: int) -> Iterator[Executor]:
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        if workers == 1:
            with ThreadPoolExecutor(1) as thread:
                try:
                    yield thread
                finally:
                    thread.shutdown(cancel_futures=True)
        else:
            with _processes(workers) as processes:
                yield processes
    finally:
        cv2.setNumThreads(before)


@contextmanager
def _processes(count: int) -> Iterator[Executor]:
    """Processes that end at once, whatever they are at, where the block is left by an error, or this process dies."""
    context = multiprocessing.get_context("spawn")
    theirs, ours = context.Pipe(duplex=False)
    executor = ProcessPoolExecutor(count, context, initializer=_start_process, initargs=(theirs,))
    try:
        yield executor
        executor.shutdown()
    finally:
        ours.close()
        executor.shutdown(cancel_futures=True)
        theirs.close()


def _start_process(parent: Connection) -> None:
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: Connection) -> None:
    """Nothing is ever sent: the pipe ends when the parent closes its end, or dies."""
    with suppress(EOFError, OSError):
        parent.recv()
    os._exit(1)
