"""Many processes on one store: nothing is lost, nothing half-written is seen, whoever is killed whenever."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
import pytest

from duskfuse.data.atomic import abandoned, sole, write_atomically
from duskfuse.data.priors import cache as cache_module
from duskfuse.data.priors.cache import PriorCache, PriorKind, PriorStore
from duskfuse.data.priors.masks import MaskSet
from duskfuse.data.priors.store_folder import StoreFolder

KEYS = 150
FORK = multiprocessing.get_context("fork")


def masks_of(number: int) -> MaskSet:
    return MaskSet.from_masks(np.random.default_rng(number).random((3, 24, 30)) < 0.4)


def number_of(key: str) -> int:
    return int(key.removeprefix("k"))


def is_right(store: PriorStore, key: str) -> bool:
    seen = store.get(key)
    return isinstance(seen, MaskSet) and seen.bits == masks_of(number_of(key)).bits


@pytest.fixture(autouse=True)
def _small_shards_and_no_power_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "SHARD_ROWS", 8)
    monkeypatch.setattr(cache_module, "FULL_ROWS", 40)
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def store(tmp_path: Path) -> PriorStore:
    return PriorCache(tmp_path).store(PriorKind.MASKS, "sam", {"points": 32})


@pytest.fixture
def start() -> Iterator[Callable[..., BaseProcess]]:
    """Starts a process; those still running are ended after the test."""
    processes = []

    def call(function: Callable[..., None], *arguments: object) -> BaseProcess:
        processes.append(FORK.Process(target=function, args=arguments, daemon=True))
        processes[-1].start()
        return processes[-1]

    yield call
    for process in processes:
        process.kill()
        process.join()


def write(store: PriorStore, numbers: list[int], seed: int, compacting: bool) -> None:
    random.Random(seed).shuffle(numbers)
    for position, number in enumerate(numbers):
        store.put(f"k{number}", masks_of(number))
        if compacting and position % 20 == 19:
            store.compact()


def write_until_killed(store: PriorStore, seed: int) -> None:
    chosen = random.Random(seed)
    while True:
        number = chosen.randrange(KEYS)
        store.put(f"k{number}", masks_of(number))
        if chosen.random() < 0.1:
            store.compact()


def read(store: PriorStore, stop: Event) -> None:
    """Every key that was there once stays there, with its record."""
    known: set[str] = set()
    while not stop.is_set():
        seen = store.keys()
        assert known <= seen, known - seen
        known = seen
        for key in random.sample(sorted(known), min(10, len(known))):
            assert key in store
            assert is_right(store, key), key


def compact(store: PriorStore, stop: Event) -> None:
    while not stop.is_set():
        store.compact()


def test_writers_readers_compactors_and_the_killed_on_one_folder(
    store: PriorStore, start: Callable[..., BaseProcess], capfd: pytest.CaptureFixture[str]
):
    stop = FORK.Event()
    numbers = [list(range(first, first + 60)) for first in (0, 30, 60, 90)]
    writers = [start(write, store, part, seed, seed == 0) for seed, part in enumerate(numbers)]
    others = [start(read, store, stop), start(read, store, stop), start(compact, store, stop)]
    moments = random.Random(5)
    for seed in range(25):
        victim = start(write_until_killed, store, seed)
        time.sleep(moments.uniform(0.001, 0.15))
        assert victim.pid is not None
        os.kill(victim.pid, signal.SIGKILL)
        victim.join()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    stop.set()
    for other in others:
        other.join(60)
        assert other.exitcode == 0
    reader = PriorStore(store.folder, store.kind, store.source, store.settings)
    keys = {f"k{i}" for i in range(KEYS)}
    assert reader.keys() == keys
    assert all(is_right(reader, key) for key in keys)
    assert "damaged" not in capfd.readouterr().err
    assert not list(store.folder.glob("*.damaged"))
    reader.compact()
    assert len(list(store.folder.glob("*.parquet"))) <= KEYS // 40 + 25
    assert all(is_right(reader, key) for key in keys)


def test_one_compacts_and_the_others_go_on(store: PriorStore):
    for i in range(5):
        store.put(f"k{i}", masks_of(i))
    with sole(store.folder / ".lock") as ours:
        assert ours
        store.compact()
        assert len(list(store.folder.glob("item-*"))) == 5
        for i in range(5, 20):  # writing never waits for a compaction
            store.put(f"k{i}", masks_of(i))
        assert len(list(store.folder.glob("item-*"))) == 20
    for i in range(20, 24):
        store.put(f"k{i}", masks_of(i))
    assert len(list(store.folder.glob("item-*"))) == 0
    assert len(store.keys()) == 24
    store.compact()
    assert len(list(store.folder.glob("*.parquet"))) == 1
    assert all(is_right(store, f"k{i}") for i in range(24))


def hold(lock: Path, ready: Event) -> None:
    with sole(lock) as ours:
        assert ours
        ready.set()
        time.sleep(60)


def test_a_killed_process_gives_its_lock_back(store: PriorStore, start: Callable[..., BaseProcess]):
    store.put("k0", masks_of(0))
    ready = FORK.Event()
    holder = start(hold, store.folder / ".lock", ready)
    assert ready.wait(30)
    store.compact()
    assert len(list(store.folder.glob("item-*"))) == 1
    holder.kill()
    holder.join()
    store.compact()
    assert len(list(store.folder.glob("item-*"))) == 0


def stop_in_the_middle(path: Path, ready: Event) -> None:
    def wait(*_: object) -> None:
        ready.set()
        time.sleep(60)

    os.replace = wait  # type: ignore[assignment]
    write_atomically(path, b"x" * 1000)


def test_only_temporary_files_of_the_dead_are_abandoned(tmp_path: Path, start: Callable[..., BaseProcess]):
    ready = FORK.Event()
    writer = start(stop_in_the_middle, tmp_path / "a.parquet", ready)
    assert ready.wait(30)
    (unfinished,) = tmp_path.glob(".*.tmp")
    os.utime(unfinished, (time.time() - 500, time.time() - 500))
    assert list(abandoned(tmp_path)) == []  # its writer is alive, however old it is
    writer.kill()
    writer.join()
    assert list(abandoned(tmp_path)) == [unfinished]
    os.utime(unfinished)
    assert list(abandoned(tmp_path)) == []  # so young that its writer may not have locked it yet


def test_a_record_that_moves_past_a_listing_is_found(store: PriorStore, monkeypatch: pytest.MonkeyPatch):
    """Between two names of a listing its single record goes and the shard with it comes."""
    for i in range(3):
        store.put(f"k{i}", masks_of(i))
    other = PriorStore(store.folder, store.kind, store.source, store.settings)
    listing = StoreFolder.names
    torn = []

    def tear(self: StoreFolder) -> set[str]:
        names = listing(self)
        if self is other._files and not torn:
            torn.append(names)
            store.compact()
            return set()  # neither: what a listing that the merge overtakes may give
        return names

    monkeypatch.setattr(StoreFolder, "names", tear)
    assert is_right(other, "k1")
    assert other.keys() == {"k0", "k1", "k2"}
    assert torn
