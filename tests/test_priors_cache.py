"""The prior cache: round trips, crashes in the middle, damage, concurrent use."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from duskfuse.data.atomic import write_atomically
from duskfuse.data.errors import InputError, StorageError
from duskfuse.data.priors import cache as cache_module
from duskfuse.data.priors import records
from duskfuse.data.priors.cache import (
    SHARD_ROWS,
    PriorCache,
    PriorKind,
    PriorStore,
    TeacherImage,
    encode_record,
    pair_key,
    stored_bytes,
)
from duskfuse.data.priors.masks import MAX_PIXELS, MaskSet


def some_masks(seed: int, height: int = 12, width: int = 17) -> MaskSet:
    generator = np.random.default_rng(seed)
    masks = generator.random((4, height, width)) < 0.3
    return MaskSet.from_masks(masks, predicted_iou=generator.random(4))


def same(a: object, b: MaskSet) -> bool:
    assert isinstance(a, MaskSet)
    assert np.isnan(a.stability).all()
    fields = ("boxes", "area", "predicted_iou")
    size = (a.height, a.width, a.bits) == (b.height, b.width, b.bits)
    return size and all(np.array_equal(getattr(a, name), getattr(b, name)) for name in fields)


@pytest.fixture
def store(tmp_path: Path) -> PriorStore:
    return PriorCache(tmp_path).store(PriorKind.MASKS, "sam", {"points": 32, "checkpoint": "ab"})


def again(store: PriorStore) -> PriorStore:
    """The same folder as another process sees it."""
    return PriorStore(store.folder, store.kind, store.source, store.settings)


def parquet(store: PriorStore, prefix: str = "") -> list[Path]:
    return sorted(store.folder.glob(f"{prefix}*.parquet"))


def test_round_trip_before_and_after_compacting(store: PriorStore):
    records = {f"k{i}": some_masks(i) for i in range(5)}
    empty = MaskSet.from_masks(np.zeros((2, 6, 7), bool))
    for key, record in records.items():
        store.put(key, record)
    store.put("empty", empty)
    for reader in (store, again(store)):
        assert reader.keys() == {*records, "empty"}
        assert all(same(reader.get(key), record) for key, record in records.items())
    store.compact()
    assert len(parquet(store)) == 1
    for reader in (store, again(store)):
        assert reader.keys() == {*records, "empty"}
        assert all(same(reader.get(key), record) for key, record in records.items())
        nothing = reader.get("empty")
        assert isinstance(nothing, MaskSet)
        assert (len(nothing), nothing.height, nothing.width) == (0, 6, 7)
    assert 0 < store.size_bytes() < 2 * sum(stored_bytes(record) for record in records.values())


def test_teacher_images_are_kept_exactly(tmp_path: Path):
    store = PriorCache(tmp_path).store(PriorKind.TEACHER, "sage-main", {"weights": "01"})
    y = np.random.default_rng(0).integers(0, 256, (13, 9), np.uint8)
    key = pair_key("a" * 64, "b" * 64)
    store.put(key, TeacherImage(y, {"name": "p1", "range": [0, 1.5]}))
    seen = again(store).get(key)
    assert isinstance(seen, TeacherImage)
    assert np.array_equal(seen.y, y)
    assert seen.meta == {"name": "p1", "range": [0, 1.5]}
    with pytest.raises(TypeError, match="MaskSet"):
        store.put(key, some_masks(0))


def test_what_could_not_be_read_again_is_not_written(tmp_path: Path):
    store = PriorCache(tmp_path).store(PriorKind.TEACHER, "ddfm", {})
    with pytest.raises(ValueError, match=r"want \[H,W\]"):
        store.put("k", TeacherImage(np.zeros((4, 4, 3), np.uint8)))
    with pytest.raises(ValueError, match="float32"):
        store.put("k", TeacherImage(np.zeros((4, 4), np.float32)))  # type: ignore[arg-type]
    giant = np.broadcast_to(np.uint8(0), (MAX_PIXELS, 2))
    with pytest.raises(InputError, match=r"at most 67,108,864 pixels.*tiles"):
        store.put("k", TeacherImage(giant))
    with pytest.raises(InputError, match="tiles"):
        MaskSet.from_masks(np.broadcast_to(False, (1, MAX_PIXELS, 2)))
    assert not store.folder.exists()


def test_records_of_another_parquet_writer_are_merged(store: PriorStore, monkeypatch: pytest.MonkeyPatch):
    """Another version of the library makes other bytes of the same row; here another compression level does."""
    store.put("k0", some_masks(0, 60, 80))
    with monkeypatch.context() as patch:
        patch.setattr(records, "_ZSTD_LEVEL", 1)
        store.put("k1", some_masks(1, 60, 80))
        store.put("k2", some_masks(2, 60, 80))
        single = (store.folder / "item-k1.parquet").read_bytes()
    store.compact()
    assert row_groups(store) == [3]
    assert all(same(again(store).get(f"k{i}"), some_masks(i, 60, 80)) for i in range(3))
    copies = store._copies("k1")
    assert copies is not None
    ((_, merged),) = copies
    assert merged != single
    assert records.written_ns(merged) == records.written_ns(single)


def test_pair_key_depends_on_order_and_both():
    keys = {pair_key("a", "b"), pair_key("b", "a"), pair_key("a", "c"), pair_key("c", "b")}
    assert len(keys) == 4
    assert pair_key("a", "b") == pair_key("a", "b")


def row_groups(store: PriorStore) -> list[int]:
    return sorted(pq.ParquetFile(path).metadata.num_row_groups for path in parquet(store))


def test_one_row_group_per_picture_and_full_shards(store: PriorStore, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cache_module, "FULL_ROWS", 40)
    for i in range(46):
        store.put(f"k{i:03}", some_masks(i, 5, 6))
    store.compact()
    assert row_groups(store) == [6, 40]
    assert all(pq.ParquetFile(path).metadata.row_group(0).num_rows == 1 for path in parquet(store))
    for i in range(3):
        store.put(f"new{i}", some_masks(i))
    store.compact()  # the part-filled shard grows, the full one stays
    assert row_groups(store) == [9, 40]
    assert len(again(store).keys()) == 49
    before = {path.name: path.stat().st_mtime_ns for path in parquet(store)}
    store.compact()
    assert {path.name: path.stat().st_mtime_ns for path in parquet(store)} == before


def test_a_shard_of_large_records_is_full_earlier(store: PriorStore, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cache_module, "FULL_BYTES", 3 * stored_bytes(some_masks(0)))
    for i in range(7):
        store.put(f"k{i}", some_masks(i))
    store.compact()
    assert row_groups(store) in ([1, 3, 3], [3, 4], [2, 3, 2])
    assert again(store).keys() == {f"k{i}" for i in range(7)}


def test_files_stay_few_while_records_are_put(store: PriorStore, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cache_module, "FULL_ROWS", 3 * SHARD_ROWS)
    for i in range(4 * SHARD_ROWS + 5):
        store.put(f"k{i:03}", some_masks(i, 5, 6))
        assert len(parquet(store)) <= SHARD_ROWS + 3
    assert row_groups(store) == [1] * 5 + [SHARD_ROWS, 3 * SHARD_ROWS]
    assert len(again(store).keys()) == len(store.keys()) == 4 * SHARD_ROWS + 5
    assert same(again(store).get("k077"), some_masks(77, 5, 6))


def test_other_programs_read_the_files_too(store: PriorStore):
    for i in range(3):
        store.put(f"k{i}", some_masks(i))
    store.compact()
    table = pq.read_table(parquet(store)[0])
    assert table["key"].to_pylist() == ["k0", "k1", "k2"]
    assert table["area"].to_pylist() == [some_masks(i).area.tolist() for i in range(3)]


def test_settings_choose_the_folder(tmp_path: Path, store: PriorStore):
    store.put("k", some_masks(1))
    reordered = PriorCache(tmp_path).store(PriorKind.MASKS, "sam", {"checkpoint": "ab", "points": 32})
    changed = PriorCache(tmp_path).store(PriorKind.MASKS, "sam", {"points": 64, "checkpoint": "ab"})
    assert "k" in reordered
    assert "k" not in changed
    assert not changed.folder.exists()
    assert json.loads((store.folder / "settings.json").read_text())["settings"] == {"points": 32, "checkpoint": "ab"}


def test_stores_are_listed_newest_last(tmp_path: Path):
    cache = PriorCache(tmp_path)
    assert cache.stores(PriorKind.MASKS) == []
    for i, source in enumerate(("sam", "regions", "labels")):
        made = cache.store(PriorKind.MASKS, source, {"n": i})
        made.put("k", some_masks(i))
        os.utime(made.folder / "settings.json", (1000 + i, 1000 + i))
    assert [s.source for s in cache.stores(PriorKind.MASKS)] == ["sam", "regions", "labels"]
    assert cache.stores(PriorKind.MASKS)[1].settings == {"n": 1}
    assert same(cache.stores(PriorKind.MASKS)[2].get("k"), some_masks(2))


def test_default_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("DUSKFUSE_HOME", str(tmp_path))
    assert PriorCache().root == tmp_path / "cache"


def test_unreadable_settings_are_named(store: PriorStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    store.put("k", some_masks(0))
    (store.folder / "settings.json").write_text('{"source": "sa')
    assert PriorCache(tmp_path).stores(PriorKind.MASKS) == []
    assert str(store.folder / "settings.json") in capsys.readouterr().err


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_an_interrupted_write_leaves_nothing(store: PriorStore, monkeypatch: pytest.MonkeyPatch, failing: str):
    store.put("kept", some_masks(0))

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cache_module.os, failing, crash)
        with pytest.raises(KeyboardInterrupt):
            store.put("lost", some_masks(1))
    assert sorted(path.name for path in store.folder.iterdir()) == ["item-kept.parquet", "settings.json"]
    assert again(store).keys() == {"kept"}


def test_a_killed_write_is_never_read(store: PriorStore):
    """What kill -9 leaves behind: part of a file under its temporary name."""
    store.put("kept", some_masks(0))
    content = parquet(store)[0].read_bytes()
    (store.folder / ".item-lost.parquet.0123.tmp").write_bytes(content[: len(content) // 2])
    assert again(store).keys() == {"kept"}
    store.compact()
    assert again(store).keys() == {"kept"}


def test_a_crash_after_writing_the_shard_leaves_harmless_duplicates(store: PriorStore, monkeypatch: pytest.MonkeyPatch):
    for i in range(4):
        store.put(f"k{i}", some_masks(i))

    def crash(name: str) -> None:
        if name.startswith("item-"):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store._index, "remove", crash)  # the first of four items is deleted, then the process dies
        with pytest.raises(KeyboardInterrupt):
            store.compact()
    assert len(parquet(store, "item-")) == 3
    assert len(parquet(store, "shard-")) == 1
    reader = again(store)
    assert all(same(reader.get(f"k{i}"), some_masks(i)) for i in range(4))
    reader.compact()
    assert len(parquet(store)) == 1
    assert all(same(reader.get(f"k{i}"), some_masks(i)) for i in range(4))


def test_a_truncated_item_is_set_aside_and_rebuilt(store: PriorStore, capsys: pytest.CaptureFixture[str]):
    store.put("good", some_masks(0))
    store.put("bad", some_masks(1))
    bad = store.folder / "item-bad.parquet"
    bad.write_bytes(bad.read_bytes()[:-20])
    reader = again(store)
    assert reader.keys() == {"good"}
    assert str(bad) in capsys.readouterr().err
    assert (store.folder / "item-bad.parquet.damaged").exists()
    reader.put("bad", some_masks(1))
    assert reader.keys() == {"good", "bad"}
    assert same(reader.get("bad"), some_masks(1))


def test_a_file_of_another_version_is_left_alone(
    store: PriorStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    with monkeypatch.context() as patch:
        patch.setattr(records, "FORMAT_VERSION", 99)
        data = records.encode_record(store.kind, "k", some_masks(0))
        path = store.folder / "item-k.parquet"
        write_atomically(path, records.bind(data, store._name, 0))
    assert again(store).keys() == set()
    assert "format 99" in capsys.readouterr().err
    assert path.exists()


def test_a_file_of_format_1_is_left_alone(store: PriorStore, capsys: pytest.CaptureFixture[str]):
    """Format 1 was a Parquet file with the version and the keys in its footer."""
    store.put("new", some_masks(0))
    path = store.folder / "shard-0123456789abcdef.parquet"
    table = pa.table({"key": ["k"], "height": pa.array([12], pa.int32())})
    with pq.ParquetWriter(path, table.schema, store_schema=False) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({"duskfuse": '{"version": 1, "kind": "masks", "keys": ["k"]}'})
    content = path.read_bytes()
    assert again(store).keys() == {"new"}
    assert "format 1" in capsys.readouterr().err
    store.compact()
    assert path.read_bytes() == content


def test_the_disks_refusal_is_not_taken_for_damage(store: PriorStore, monkeypatch: pytest.MonkeyPatch):
    store.put("k", some_masks(0))

    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        with pytest.raises(StorageError, match="Permission denied"):
            again(store).keys()
    assert again(store).keys() == {"k"}


@pytest.mark.parametrize("kind", list(PriorKind))
def test_records_are_encoded_elsewhere_and_written_here(tmp_path: Path, kind: PriorKind):
    record = some_masks(3) if kind is PriorKind.MASKS else TeacherImage(np.eye(9, dtype=np.uint8), {"name": "p"})
    other = some_masks(4) if kind is PriorKind.MASKS else TeacherImage(np.ones((9, 9), np.uint8))
    store = PriorCache(tmp_path).store(kind, "sam", {})
    data = encode_record(kind, "k", record)
    store.put_encoded("k", data)
    store.put("same", record)
    seen = again(store).get("k")
    if isinstance(record, MaskSet):
        assert same(seen, record)
    else:
        assert isinstance(seen, TeacherImage)
        assert np.array_equal(seen.y, record.y)
        assert seen.meta == record.meta
    bound = (store.folder / "item-k.parquet").read_bytes()
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    wrong = [b"", data[:-1], data + b"x", bytes(flipped), encode_record(kind, "other", other)]
    for bad in wrong:
        with pytest.raises(InputError, match="make the record again"):
            store.put_encoded("k", bad)
    with pytest.raises(InputError, match="another store"):
        PriorCache(tmp_path).store(kind, "regions", {}).put_encoded("k", bound)
    store.put_encoded("k", bound)  # of this very store
    assert again(store).keys() == {"k", "same"}


def test_the_latest_of_several_records_counts(store: PriorStore, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cache_module, "FULL_ROWS", 3)
    for i in range(3):
        store.put(f"k{i}", some_masks(i))
    store.compact()  # k0 is in a full shard now
    for seed in (10, 11):
        store.put("k0", some_masks(seed))
        assert same(store.get("k0"), some_masks(seed))
        store.put("other", some_masks(seed))
        store.compact()
        for reader in (store, again(store)):
            assert same(reader.get("k0"), some_masks(seed))
            assert same(reader.get("k1"), some_masks(1))
    assert store.keys() == {"k0", "k1", "k2", "other"}


def test_two_stores_on_one_folder(store: PriorStore):
    other = again(store)
    store.put("a", some_masks(1))
    assert "a" in other
    other.put("b", some_masks(2))
    assert store.keys() == {"a", "b"}
    assert same(other.get("a"), some_masks(1))
    store.compact()  # the item that `other` has indexed is gone now
    assert same(other.get("b"), some_masks(2))
    other.put("c", some_masks(3))
    store.put("c", some_masks(3))
    other.compact()
    assert same(store.get("c"), some_masks(3))
    assert store.keys() == other.keys() == {"a", "b", "c"}


def write_some(store: PriorStore, first: int) -> None:
    for i in range(first, first + 12):
        store.put(f"k{i}", some_masks(i))
        if i % 5 == 0:
            store.compact()


def test_two_processes_write_and_compact_one_folder(store: PriorStore):
    context = multiprocessing.get_context("spawn")
    other = context.Process(target=write_some, args=(store, 6))
    other.start()
    write_some(store, 0)
    other.join(60)
    assert other.exitcode == 0
    assert again(store).keys() == {f"k{i}" for i in range(18)}
    assert all(same(store.get(f"k{i}"), some_masks(i)) for i in range(18))
    assert not list(store.folder.glob("*.damaged"))


def read_one(store: PriorStore, key: str, answer: object) -> None:
    answer.put(store.get(key).bits)  # type: ignore[attr-defined]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_used_store_goes_to_loading_processes(store: PriorStore, method: str):
    store.put("k", some_masks(7))
    store.get("k")
    assert len(pickle.dumps(store)) < 500
    context = multiprocessing.get_context(method)
    answer = context.SimpleQueue()
    process = context.Process(target=read_one, args=(store, "k", answer))
    process.start()
    assert answer.get() == some_masks(7).bits
    process.join(30)


def test_names_that_would_leave_the_folder_are_refused(store: PriorStore, tmp_path: Path):
    for key in ("../k", "", "a/b", ".hidden"):
        with pytest.raises(ValueError, match="file name"):
            store.put(key, some_masks(0))
    with pytest.raises(ValueError, match="file name"):
        PriorCache(tmp_path).store(PriorKind.MASKS, "a/b", {})


def test_no_pickle_on_disk_or_in_the_code(store: PriorStore):
    store.put("k", some_masks(0))
    store.compact()
    for path in store.folder.iterdir():
        content = path.read_bytes()
        assert content[:4] == b"PAR1" or path.name == ".lock" or json.loads(content)
    for name in ("masks", "records", "record_index", "cache", "cache_masks", "regions", "labels"):
        code = Path(cache_module.__file__).with_name(f"{name}.py").read_text()
        assert "import pickle" not in code
        assert "np.load" not in code
