"""Offline work: in overlap, with few jobs in flight, and whatever dies on the way costs no more than itself."""

from __future__ import annotations

import hashlib
import importlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from duskfuse.data.errors import DuskfuseError, InputError
from duskfuse.data.images import write_picture
from duskfuse.data.priors import pipeline
from duskfuse.data.priors.cache import PriorCache, PriorKind, PriorStore, TeacherImage
from duskfuse.data.priors.pipeline import AHEAD, RETRIES, Engine, Work, processes, run

WAIT_S = 20.0


class Square(NamedTuple):
    number: int
    kills: int = 0
    """Processes that it kills before it can be made."""
    folder: Path = Path()
    """Where it counts them."""


class Squares(Work[Square, Square]):
    """Pictures of one shade."""

    title = "squares"
    holds_model = False

    def name(self, job: Square, /) -> str:
        return f"square {job.number}"

    def key(self, job: Square, /) -> str:
        if job.number == 5:
            raise InputError("square 5 has no file")
        return hashlib.sha256(str(job.number).encode()).hexdigest()

    def load(self, job: Square, /) -> Square:
        if job.number == 6:
            raise InputError("square 6 cannot be read")
        return job

    def make(self, job: Square, /) -> TeacherImage:
        if job.number == 7:
            raise ZeroDivisionError("by nothing")
        if job.kills > len(list(job.folder.iterdir() if job.kills else ())):
            (job.folder / f"{time.monotonic_ns()}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return TeacherImage(np.full((8, 8), job.number % 256, np.uint8), {"number": job.number})


class Unopenable(Squares):
    def __reduce__(self) -> tuple[Any, ...]:
        return importlib.import_module, ("not_on_this_machine",)


@pytest.fixture
def store(tmp_path: Path) -> PriorStore:
    return PriorCache(tmp_path / "cache").store(PriorKind.TEACHER, "squares", {})


def numbers(store: PriorStore) -> list[int]:
    records = [store.get(key) for key in store.keys()]  # noqa: SIM118 - not a mapping
    return sorted(int(record.y[0, 0]) for record in records if isinstance(record, TeacherImage))


@pytest.mark.parametrize("workers", [1, 2])
def test_every_job_becomes_a_record_once_and_failures_are_named(store: PriorStore, workers: int):
    jobs = [Square(number) for number in (*range(12), 3, 4)]
    report = run(Squares(), iter(jobs), store, workers=workers)
    assert (report.done, report.already) == (9, 0)
    failed = {"square 5 has no file", "square 6 cannot be read", "square 7: ZeroDivisionError: by nothing"}
    assert set(report.failed) == failed
    assert numbers(store) == [0, 1, 2, 3, 4, 8, 9, 10, 11]
    again = run(Squares(), jobs, store, workers=workers)
    assert (again.done, again.already, set(again.failed)) == (0, 9, failed)


def test_a_record_that_is_no_longer_right_is_made_again(store: PriorStore):
    class Doubtful(Squares):
        def is_current(self, job: Square, key: str, store: PriorStore, /) -> bool:
            assert key in store
            return job.number != 2

    jobs = [Square(number) for number in range(4)]
    run(Squares(), jobs, store, workers=1)
    report = run(Doubtful(), jobs, store, workers=1)
    assert (report.done, report.already) == (1, 3)
    assert numbers(store) == [0, 1, 2, 3]


@dataclass
class Watched(Squares):
    """Holds a model that is slow enough to see what happens beside it."""

    holds_model = True
    made: list[int] = field(default_factory=list)
    threads: set[int] = field(default_factory=set)
    loaded: dict[int, threading.Event] = field(default_factory=lambda: {n: threading.Event() for n in range(6)})
    written: dict[str, threading.Event] = field(default_factory=dict)

    def load(self, job: Square, /) -> Square:
        self.threads.add(threading.get_ident())
        self.loaded[job.number].set()
        return job

    def make(self, job: Square, /) -> TeacherImage:
        assert job.number == 5 or self.loaded[job.number + 1].wait(WAIT_S), "the next is not read meanwhile"
        before = self.key(Square(job.number - 1))
        assert job.number == 0 or self.written[before].wait(WAIT_S), "the one before is not written meanwhile"
        self.made.append(job.number)
        return super().make(job)

    def key(self, job: Square, /) -> str:
        return hashlib.sha256(str(job.number).encode()).hexdigest()


def test_reading_and_writing_go_on_while_a_model_computes(store: PriorStore, monkeypatch: pytest.MonkeyPatch):
    work = Watched()
    work.written = {work.key(Square(number)): threading.Event() for number in range(6)}
    put = PriorStore.put_encoded

    def seen(self: PriorStore, key: str, data: bytes) -> None:
        put(self, key, data)
        work.threads.add(threading.get_ident())
        work.written[key].set()

    monkeypatch.setattr(PriorStore, "put_encoded", seen)
    report = run(work, [Square(number) for number in range(6)], store)
    assert (report.done, report.failed) == (6, [])
    assert work.made == [0, 1, 2, 3, 4, 5]
    assert threading.get_ident() not in work.threads


@pytest.mark.parametrize("workers", [1, 2])
def test_few_jobs_are_in_flight_however_many_there_are(
    store: PriorStore, workers: int, monkeypatch: pytest.MonkeyPatch
):
    put, lock = PriorStore.put_encoded, threading.Lock()
    taken = written = most = 0

    def jobs() -> Iterator[Square]:
        nonlocal taken, most
        for number in range(8, 408):
            taken += 1
            most = max(most, taken - written)
            yield Square(number)

    def slow(self: PriorStore, key: str, data: bytes) -> None:
        nonlocal written
        time.sleep(0.002)
        with lock:
            written += 1

    monkeypatch.setattr(PriorStore, "put_encoded", slow)
    assert run(Squares(), jobs(), store, workers=workers).done == 400
    assert put is not slow
    # hashed, read, computed and written ahead, and the jobs looked at to see whether processes are worth it
    assert most <= 3 * (AHEAD + 1) + 2 * workers + pipeline.WORTH_PROCESSES


def test_a_process_that_dies_costs_one_job_a_retry(store: PriorStore, tmp_path: Path):
    (tmp_path / "once").mkdir()
    (tmp_path / "always").mkdir()
    jobs = [Square(number) for number in range(20, 50)]
    jobs[4] = jobs[4]._replace(kills=1, folder=tmp_path / "once")
    jobs[11] = jobs[11]._replace(kills=99, folder=tmp_path / "always")
    report = run(Squares(), jobs, store, workers=2)
    assert report.done == 29
    assert len(report.failed) == 1
    assert report.failed[0].startswith("square 31: every process died on it")
    assert len(list((tmp_path / "always").iterdir())) == 1 + RETRIES
    assert numbers(store) == [number for number in range(20, 50) if number != 31]


def test_processes_that_cannot_start_end_the_run(store: PriorStore, capfd: pytest.CaptureFixture[str]):
    with pytest.raises(DuskfuseError, match="died before it was ready"):
        run(Unopenable(), [Square(number) for number in range(10, 20)], store, workers=2)
    assert "not_on_this_machine" in capfd.readouterr().err


def test_workers_must_suit_the_work(store: PriorStore):
    with pytest.raises(InputError, match="0 workers"):
        run(Squares(), [Square(1)], store, workers=0)
    with pytest.raises(InputError, match=r"2 workers for squares.*one process holds the model.*--engine ray"):
        run(Watched(), [Square(1)], store, workers=2)
    assert processes(Watched(), 1000, None) == 1
    assert processes(Squares(), 3, None) == 1
    assert processes(Squares(), 3, 8) == 3
    assert processes(Squares(), 1000, None) == pipeline.cores()
    assert processes(Watched(), 1000, 4, Engine.RAY) == 4


def test_a_full_disk_ends_the_run_and_keeps_what_was_written(store: PriorStore, monkeypatch: pytest.MonkeyPatch):
    put = PriorStore.put_encoded

    def full(self: PriorStore, key: str, data: bytes) -> None:
        if len(list(store.folder.glob("*.parquet"))) >= 3:
            raise OSError(28, "No space left on device")
        put(self, key, data)

    monkeypatch.setattr(PriorStore, "put_encoded", full)
    with pytest.raises(OSError, match="No space left"):
        run(Squares(), [Square(number) for number in range(8, 40)], store, workers=1)
    kept = len(store.keys())
    assert 3 <= kept < 3 + pipeline.WRITERS
    monkeypatch.undo()
    assert run(Squares(), [Square(number) for number in range(8, 40)], store, workers=1).already == kept


def test_no_process_that_makes_masks_waits_for_torch():
    code = "import sys, duskfuse.data.layout, duskfuse.data.priors.cache_masks; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class Command:
    """``cache-masks`` over 40 pairs in two worker processes, in a process group of its own; takes seconds anywhere."""

    PAIRS = 40

    def __init__(self, folder: Path) -> None:
        generator = np.random.default_rng(0)
        for number in range(self.PAIRS):
            for side in ("ir", "vis"):
                coarse = generator.integers(0, 255, (15, 20), dtype=np.uint8)
                picture = np.kron(coarse, np.ones((32, 32), np.uint8))
                write_picture(folder / "data" / side / f"{number}.png", picture)
        self.cache = folder / "cache"
        self.arguments = ["cache-masks", str(folder / "data"), "--source", "regions", "--workers", "2"]

    def start(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "duskfuse", *self.arguments, "--cache", str(self.cache)]
        return subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)

    def await_records(self) -> None:
        limit = time.monotonic() + WAIT_S
        while not list(self.cache.rglob("item-*")):
            assert time.monotonic() < limit, "nothing was written"
            time.sleep(0.01)

    def records(self) -> int:
        return sum(len(store.keys()) for store in PriorCache(self.cache).stores(PriorKind.MASKS))


def members(group: int) -> list[str]:
    """The running processes of a process group."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, owner = entry.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(owner) == group and state != "Z":
            found.append(entry.parent.name)
    return found


def await_end(group: int) -> None:
    limit = time.monotonic() + WAIT_S
    while members(group):
        assert time.monotonic() < limit, f"left behind: {members(group)}"
        time.sleep(0.02)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_an_interrupt_ends_all_processes_and_keeps_finished_work(tmp_path: Path):
    command = Command(tmp_path)
    process = command.start()
    command.await_records()
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=WAIT_S)
    assert process.returncode == 130
    assert "interrupted; finished work is kept" in said
    assert "Traceback" not in said
    await_end(process.pid)
    kept = command.records()
    assert 0 < kept < 2 * Command.PAIRS
    second = command.start()
    assert second.communicate(timeout=60) is not None
    assert second.returncode == 0
    assert command.records() == 2 * Command.PAIRS


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_worker_processes_do_not_outlive_a_killed_parent(tmp_path: Path):
    command = Command(tmp_path)
    process = command.start()
    command.await_records()
    assert len(members(process.pid)) >= 3
    process.kill()
    process.communicate(timeout=WAIT_S)
    await_end(process.pid)
