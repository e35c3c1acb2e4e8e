"""A disk that refuses: the message says what and why and how much is free, and what was finished stays."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from duskfuse.data.errors import StorageError
from duskfuse.data.priors import cache as cache_module
from duskfuse.data.priors.cache import PriorCache, PriorKind, PriorStore, TeacherImage


def noise(seed: int, side: int = 200) -> TeacherImage:
    """About 40 kB on disk."""
    return TeacherImage(np.random.default_rng(seed).integers(0, 256, (side, side), np.uint8))


def open_store(root: Path) -> PriorStore:
    return PriorCache(root).store(PriorKind.TEACHER, "ddfm", {})


def is_right(store: PriorStore, seed: int) -> bool:
    seen = store.get(f"k{seed}")
    return isinstance(seen, TeacherImage) and np.array_equal(seen.y, noise(seed).y)


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mounts a file system in memory, or mounts it anew, and gives its folder; skips where that is not allowed."""
    place = tmp_path / "mounted"
    place.mkdir()
    mounted = False

    def call(options: str) -> Path:
        nonlocal mounted
        again = ["-o", f"remount,{options}"] if mounted else ["-t", "tmpfs", "-o", options, "tmpfs"]
        command = ["mount", *again, str(place)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("mounting is not allowed here")
        mounted = True
        return place

    yield call
    if mounted:
        subprocess.run(["umount", str(place)], check=True)


def put_all(store: PriorStore, seeds: Iterator[int]) -> None:
    for seed in seeds:
        store.put(f"k{seed}", noise(seed))


def fill(store: PriorStore) -> int:
    """Put until the disk is full; how many records were finished."""
    seeds = iter(range(1000))
    with pytest.raises(StorageError) as caught:
        put_all(store, seeds)
    for part in (str(store.folder), "No space left on device", "bytes are free", "free some space"):
        assert part in str(caught.value)
    assert caught.value.exit_code == 1
    return next(seeds) - 1


def test_a_full_disk(mount: Callable[..., Path], capsys: pytest.CaptureFixture[str]):
    place = mount("size=1m")
    store = open_store(place)
    done = fill(store)
    assert 15 < done < 30
    assert not list(store.folder.glob(".*.tmp"))
    with pytest.raises(StorageError, match="No space left"):
        store.compact()  # the new shard finds no place beside what it is made from
    for reader in (store, open_store(place)):
        assert len(reader.keys()) == done
        assert all(is_right(reader, i) for i in range(done))
    mount("size=4m")
    store.put("more", noise(1))
    store.compact()
    assert len(list(store.folder.glob("*.parquet"))) == 1
    assert all(is_right(open_store(place), i) for i in range(done))


def test_a_merge_that_finds_no_room_does_not_fail_the_put(
    mount: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(cache_module, "SHARD_ROWS", 14)
    store = open_store(mount("size=1m"))
    done = fill(store)
    assert done > 14
    assert "not merged for now" in capsys.readouterr().err
    assert all(is_right(open_store(store.folder.parents[1]), i) for i in range(done))


def test_a_folder_that_became_read_only(mount: Callable[..., Path]):
    place = mount("size=4m")
    store = open_store(place)
    for i in range(3):
        store.put(f"k{i}", noise(i))
    mount("ro")
    for act in (lambda: store.put("more", noise(9)), store.compact, lambda: open_store(place).compact()):
        with pytest.raises(StorageError, match=r"Read-only file system.*mount it writable"):
            act()
    assert all(is_right(open_store(place), i) for i in range(3))
    with pytest.raises(StorageError, match="Read-only file system"):
        PriorCache(place).store(PriorKind.TEACHER, "new", {}).put("k", noise(0))
    mount("rw")
    store.put("more", noise(9))
    assert len(open_store(place).keys()) == 4


LIMITED = """
import resource, sys
from pathlib import Path
import numpy as np
from duskfuse.data.errors import StorageError
from duskfuse.data.priors.cache import PriorCache, PriorKind, TeacherImage
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
store = PriorCache(Path(sys.argv[1])).store(PriorKind.TEACHER, "ddfm", {})
rng = np.random.default_rng(0)
for i in range(4):
    store.put(f"k{i}", TeacherImage(rng.integers(0, 256, (200, 200), np.uint8)))
for act in (store.compact, lambda: store.put("large", TeacherImage(rng.integers(0, 256, (600, 600), np.uint8)))):
    try:
        act()
    except StorageError as error:
        assert "File too large" in str(error), error
    else:
        raise AssertionError("no error")
assert store.keys() == {"k0", "k1", "k2", "k3"}
store.get("k3")
"""


def test_a_limit_on_the_size_of_files(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.rglob(".*.tmp"))


def test_a_file_in_the_place_of_the_folder(tmp_path: Path):
    for place in (tmp_path / "cache", tmp_path / "other" / "teacher"):
        place.parent.mkdir(exist_ok=True)
        place.write_text("not a folder")
        store = open_store(tmp_path / place.relative_to(tmp_path).parts[0])
        assert store.keys() == set()
        with pytest.raises(StorageError, match="check the path"):
            store.put("k", noise(0))
        assert place.read_text() == "not a folder"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="file permissions do not bind root")
def test_a_folder_of_another_user(tmp_path: Path):
    store = open_store(tmp_path)
    store.put("k0", noise(0))
    store.folder.chmod(0o500)
    try:
        with pytest.raises(StorageError, match="make it writable"):
            store.put("k1", noise(1))
        assert is_right(open_store(tmp_path), 0)
    finally:
        store.folder.chmod(0o700)


def test_a_folder_that_vanished(tmp_path: Path):
    """Unmounted, or deleted: writing on would fill whatever is below it."""
    store = open_store(tmp_path)
    store.put("k0", noise(0))
    other = open_store(tmp_path)
    assert other.keys() == {"k0"}
    shutil.rmtree(store.folder)
    for writer in (store, other):
        with pytest.raises(StorageError, match=r"No such file or directory.*check the path"):
            writer.put("k1", noise(1))
        assert not store.folder.exists()
        writer.compact()
        assert writer.keys() == set()
    open_store(tmp_path).put("k1", noise(1))  # who starts anew may
    assert store.keys() == {"k1"}


@pytest.mark.parametrize(
    ("number", "remedy"), [(errno.EDQUOT, "quota"), (errno.EIO, "check the disk"), (errno.EPERM, "writable")]
)
def test_other_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, remedy: str):
    store = open_store(tmp_path)
    store.put("k0", noise(0))

    def refuse(_: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        for act in (lambda: store.put("k1", noise(1)), store.compact):
            with pytest.raises(StorageError, match=remedy):
                act()
    assert not list(store.folder.glob(".*.tmp"))
    assert is_right(open_store(tmp_path), 0)
    assert open_store(tmp_path).keys() == {"k0"}
