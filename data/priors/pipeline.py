"""Offline work: jobs become records of the prior cache, once each, whatever happens on the way.

Both verbs that fill the cache run on it. Jobs are looked up, read, computed and written in overlap, with a bounded
number in flight, so that memory does not grow with the number of jobs. A record is on disk as soon as it is made:
after an interrupt, a crash or a kill the same call goes on where the last one stopped.

Work that holds a model computes in this process, with threads that read ahead and write behind it. Work that needs
none is spread over processes, started by spawn because OpenCV's threads do not survive a fork. Each has a pipe of its
own: when one dies, as by the kernel when memory runs out, it is known which job it was at.
"""

from __future__ import annotations

import copy
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import chain, islice, repeat
from multiprocessing import connection, resource_tracker
from multiprocessing.connection import Connection
from typing import Any, Generic, NamedTuple, ParamSpec, Protocol, TypeVar

import cv2

from duskfuse.data.errors import DuskfuseError, InputError
from duskfuse.data.priors.cache import PriorKind, PriorStore, TeacherImage, encode_record
from duskfuse.data.priors.masks import MaskSet
from duskfuse.data.progress import track

Record = MaskSet | TeacherImage
Job = TypeVar("Job")
Job_contra = TypeVar("Job_contra", contravariant=True)
Loaded = TypeVar("Loaded")
Item = TypeVar("Item")
Result = TypeVar("Result")
P = ParamSpec("P")

READERS = 2
"""Threads that hash, and threads that read and decode, ahead of the computation."""
WRITERS = 4
"""Threads that write, mostly waiting for the disk to confirm."""
AHEAD = 4
"""Jobs that are hashed, read or written while one is computed."""
WORTH_PROCESSES = 24
"""Jobs from which on starting processes takes less time than it saves."""
RETRIES = 2
"""How often a job is tried again after a process died on it."""
_LAST_WORDS_S = 5.0
_GIVEN = 2
"""Jobs in the hands of a process: the one it is at, and the next."""


class Engine(StrEnum):
    """Where the work is done."""

    LOCAL = "local"
    """On this machine."""
    RAY = "ray"
    """On the machines of a Ray cluster."""


class Work(Protocol[Job_contra, Loaded]):
    """One stage of offline work: a job becomes a record. Implementations subclass it.

    It is pickled into the processes that compute, so a model is opened on its first use there and left out of the
    pickle. `key` and `load` are called from several threads at a time, `make` from one.
    """

    title: str
    """For progress, such as ``masks by regions``."""
    holds_model: bool
    """Whether `make` needs a network: then one process per device computes; else a pool of processes."""

    def name(self, job: Job_contra, /) -> str:
        """What to call the job in a message."""
        ...

    def key(self, job: Job_contra, /) -> str:
        """Key of its record in the store; InputError where a file is unreadable."""
        ...

    def is_current(self, job: Job_contra, key: str, store: PriorStore, /) -> bool:
        """Whether the record that the store has under ``key`` may stay; true unless the key leaves something out."""
        return True

    def load(self, job: Job_contra, /) -> Loaded:
        """Read and decode what the record is made from; InputError where that is impossible."""
        ...

    def make(self, loaded: Loaded, /) -> Record:
        """Compute the record; DuskfuseError where that is impossible."""
        ...


@dataclass(frozen=True)
class RunReport:
    """What `run` did."""

    done: int
    """Records made and written."""
    already: int
    """Records that were there."""
    failed: list[str]
    """A message for each job that has no record."""
    seconds: float


class Todo(NamedTuple, Generic[Job]):
    """A job whose record has to be made."""

    key: str
    job: Job
    deaths: int = 0
    """Processes that died on it."""


class Failure(str):
    """The message why a job has no record."""


class Outcome(NamedTuple):
    """What became of a job."""

    key: str
    result: Record | Failure


class Encoded(NamedTuple):
    """The same as it travels between processes and is written."""

    key: str
    result: bytes | Failure


@dataclass
class Tally:
    """The jobs that are finished, counted as the work goes on."""

    done: int = 0
    already: int = 0
    repeated: int = 0
    """With the key of an earlier one."""
    failed: list[str] = field(default_factory=list)

    @property
    def finished(self) -> int:
        """All of them."""
        return self.done + self.already + self.repeated + len(self.failed)


def run(
    work: Work[Job, Any],
    jobs: Iterable[Job],
    store: PriorStore,
    *,
    engine: Engine = Engine.LOCAL,
    workers: int | None = None,
) -> RunReport:
    """Make and keep the record of every job that has none in ``store``; a job that fails stops no other.

    Args:
        work: what is to be done.
        jobs: any number; they are taken in as the work goes on. Of several with one key the first counts.
        store: where the records go; it is compacted at the end.
        engine: where the work is done.
        workers: processes that compute; by default one per core, and this one alone where that is no slower.

    Raises:
        InputError: the engine is missing, or ``workers`` does not suit it.
    """
    started, tally = time.monotonic(), Tally()
    total = len(jobs) if isinstance(jobs, Sized) else None
    todo = unmade(work, jobs, store, tally)
    with closing(_outcomes(work, todo, store.kind, engine, workers)) as outcomes, ThreadPoolExecutor(WRITERS) as pool:
        kept = _ahead(pool, _Writer(store).keep, outcomes)
        for _ in track(_finished(kept, tally), work.title, total):
            pass
    store.compact()
    return RunReport(tally.done, tally.already, tally.failed, round(time.monotonic() - started, 3))


def unmade(work: Work[Job, Any], jobs: Iterable[Job], store: PriorStore, tally: Tally) -> Iterator[Todo[Job]]:
    """The jobs that have no record yet, hashed a few ahead; ``tally`` counts what passes by."""
    store = copy.copy(store)  # read here while other threads write
    present, seen = store.keys(), set[str]()

    def identified(job: Job) -> tuple[Job, str]:
        return job, _tried(work, job, work.key, job)

    with ThreadPoolExecutor(READERS) as readers:
        for job, key in _ahead(readers, identified, jobs):
            if isinstance(key, Failure):
                tally.failed.append(key)
                continue
            if key in seen:
                tally.repeated += 1
                continue
            seen.add(key)
            current = key in present and _tried(work, job, work.is_current, job, key, store)
            if isinstance(current, Failure):
                tally.failed.append(current)
            elif current:
                tally.already += 1
            else:
                yield Todo(key, job)


def _ahead(executor: ThreadPoolExecutor, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Results of ``function`` in the order of ``items``.

    While the caller is busy with a result the next item, and where that takes longer a few more, are in the hands of
    the executor.
    """
    pending: deque[Future[Result]] = deque()
    for item in items:
        pending.append(executor.submit(function, item))
        while len(pending) > AHEAD or (len(pending) > 1 and pending[0].done()):
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _finished(kept: Iterable[Failure | None], tally: Tally) -> Iterator[None]:
    """Count what became of each job, and yield once for every one that is finished."""
    shown = 0
    for failure in kept:
        if failure is None:
            tally.done += 1
        else:
            tally.failed.append(failure)
        yield from repeat(None, tally.finished - shown)
        shown = tally.finished
    yield from repeat(None, tally.finished - shown)


class _Writer(threading.local):
    """A store as each thread has it for itself: any number may write into one folder."""

    def __init__(self, store: PriorStore) -> None:
        self._store = copy.copy(store)

    def keep(self, outcome: Outcome | Encoded) -> Failure | None:
        """Write the record; the message where there is none."""
        key, result = encoded(outcome, self._store.kind)
        if isinstance(result, Failure):
            return result
        self._store.put_encoded(key, result)
        return None


def _outcomes(
    work: Work[Job, Any], todo: Iterator[Todo[Job]], kind: PriorKind, engine: Engine, workers: int | None
) -> Generator[Outcome | Encoded]:
    if engine is Engine.RAY:
        from duskfuse.data.priors.ray_engine import in_cluster

        processes(work, 0, workers, engine)
        yield from in_cluster(work, todo, kind, workers)
        return
    first = list(islice(todo, max(WORTH_PROCESSES, workers or cores())))
    count = processes(work, len(first), workers)
    if count == 1:
        yield from in_this_process(work, chain(first, todo))
    else:
        yield from _in_processes(work, chain(first, todo), kind, count)


def processes(work: Work[Job, Any], jobs: int, workers: int | None, engine: Engine = Engine.LOCAL) -> int:
    """Processes in which `run` computes that many jobs; 1 is this one, and of a cluster what is sure.

    Raises:
        InputError: ``workers`` is not positive, or more than the work allows.
    """
    if workers is not None and workers < 1:
        raise InputError(f"{workers} workers", rule="at least one process computes")
    if engine is Engine.RAY:
        return max(1, min(workers or 1, jobs))
    if work.holds_model:
        if workers not in (None, 1):
            raise InputError(
                f"{workers} workers for {work.title}",
                rule="on one machine, one process holds the model",
                remedy="leave --workers away, or choose --engine ray to compute on several devices",
            )
        return 1
    if workers is None and jobs < WORTH_PROCESSES:
        return 1
    return max(1, min(workers or cores(), jobs))


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _tried(
    work: Work[Job, Any], job: Job, function: Callable[P, Result], *arguments: P.args, **named: P.kwargs
) -> Result | Failure:
    """What ``function`` gives, or why it failed: hours of work do not end because of one picture."""
    try:
        return function(*arguments, **named)
    except DuskfuseError as error:
        return Failure(error)
    except Exception as error:  # of a library, such as too little memory for this picture
        return Failure(f"{work.name(job)}: {type(error).__name__}: {error}")


def in_this_process(work: Work[Job, Loaded], todo: Iterable[Todo[Job]]) -> Iterator[Outcome]:
    """Compute in this thread; other threads read and decode ahead of it."""

    def loaded(item: Todo[Job]) -> tuple[Todo[Job], Loaded | Failure]:
        return item, _tried(work, item.job, work.load, item.job)

    with ThreadPoolExecutor(READERS) as readers:
        for item, ready in _ahead(readers, loaded, todo):
            yield _computed(work, item, ready)


def _computed(work: Work[Job, Loaded], todo: Todo[Job], loaded: Loaded | Failure) -> Outcome:
    return Outcome(todo.key, loaded if isinstance(loaded, Failure) else _tried(work, todo.job, work.make, loaded))


def encoded(outcome: Outcome | Encoded, kind: PriorKind) -> Encoded:
    """Encode the record, unless there is none or it is encoded already."""
    key, result = outcome
    if isinstance(result, bytes | Failure):
        return Encoded(key, result)
    try:
        return Encoded(key, encode_record(kind, key, result))
    except InputError as error:
        return Encoded(key, Failure(error))


class _Process(Generic[Job]):
    """A process that computes, and the jobs it was given and has not answered, the one it is at first."""

    def __init__(self, work: Work[Job, Any], kind: PriorKind) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.given: deque[Todo[Job]] = deque()
        self.ready = False
        self._process = context.Process(target=_serve, args=(theirs, work, kind), daemon=True)
        with _interrupt_held():
            self._process.start()
        theirs.close()  # so that the pipe ends when the process does

    def give(self, todo: Todo[Job]) -> None:
        """Hand over one more job; a process that has died is noticed when its answer is read."""
        self.given.append(todo)
        with suppress(BrokenPipeError, ConnectionResetError):
            self.pipe.send(todo)

    def answer(self) -> Encoded | None:
        """The next outcome; None where the process is ready for the first.

        Raises:
            EOFError: the process has died.
        """
        try:
            outcome: Encoded | None = self.pipe.recv()
        except OSError as error:
            raise EOFError from error
        if outcome is None:
            self.ready = True
        else:
            self.given.popleft()
        return outcome

    def bury(self) -> None:
        """Let a process whose pipe has closed say why and end by itself; its pipe can close before its last words."""
        self._process.join(_LAST_WORDS_S)
        self.kill()

    def kill(self) -> None:
        """End the process whatever it does."""
        self._process.kill()
        self._process.join()
        self.pipe.close()


def _in_processes(work: Work[Job, Any], todo: Iterable[Todo[Job]], kind: PriorKind, count: int) -> Iterator[Encoded]:
    """Compute in ``count`` processes; one that dies is replaced, and the job it was at tried again."""
    again: deque[Todo[Job]] = deque()
    waiting = iter(todo)
    processes = [_Process(work, kind) for _ in range(count)]
    try:
        while True:
            for process in processes:
                while (
                    len(process.given) < _GIVEN
                    and (item := again.popleft() if again else next(waiting, None)) is not None
                ):
                    process.give(item)
            busy = {process.pipe: process for process in processes if process.given}
            if not busy:
                return
            for process in (busy[pipe] for pipe in connection.wait(list(busy)) if isinstance(pipe, Connection)):
                try:
                    outcome = process.answer()
                except EOFError:
                    outcome = _after_death(work, process, again)
                    processes[processes.index(process)] = _Process(work, kind)
                if outcome is not None:
                    yield outcome
    finally:
        for process in processes:
            process.kill()


def _after_death(work: Work[Job, Any], process: _Process[Job], again: deque[Todo[Job]]) -> Encoded | None:
    """Put back the jobs of a process that has died; a failure where it was not the first to die on its job."""
    process.bury()
    if not process.ready:
        raise DuskfuseError(
            "a process died before it was ready",
            rule="every process that computes needs memory of its own",
            remedy="run the same command again with fewer workers; finished work is kept",
        )
    struck, *others = process.given
    again.extend(others)
    if struck.deaths < RETRIES:
        again.append(struck._replace(deaths=struck.deaths + 1))
        return None
    return Encoded(struck.key, died(work, struck.job))


def died(work: Work[Job, Any], job: Job) -> Failure:
    """The failure of a job on which every process died that took it on."""
    return Failure(f"{work.name(job)}: every process died on it; mostly memory was too small; try fewer workers")


def _serve(pipe: Connection, work: Work[Job, Any], kind: PriorKind) -> None:
    """Answer jobs until the other side closes the pipe, or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends this process
    cv2.setNumThreads(1)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        pipe.send(None)
        while True:
            todo: Todo[Job] = pipe.recv()
            loaded = _tried(work, todo.job, work.load, todo.job)
            pipe.send(encoded(_computed(work, todo, loaded), kind))


@contextmanager
def _interrupt_held() -> Iterator[None]:
    """Hold Ctrl-C back while a process starts, which keeps it from that process for good; it comes later here."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # would lift the mask if it had to be started inside
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
