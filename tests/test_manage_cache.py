"""The verbs that look after a prior cache, as functions and as commands."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
import tracemalloc
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from typer.testing import CliRunner

from duskfuse.cli import app
from duskfuse.data.atomic import sole, write_atomically
from duskfuse.data.errors import InputError, StorageError, VerificationError
from duskfuse.data.images import write_picture
from duskfuse.data.layout import find_pairs
from duskfuse.data.priors import export_coco as export_module
from duskfuse.data.priors.cache import PriorCache, PriorKind, PriorStore, TeacherImage, pair_key
from duskfuse.data.priors.cache_masks import cache_masks
from duskfuse.data.priors.export_coco import export_coco
from duskfuse.data.priors.manage_cache import cache_stats, collect_garbage, verify_cache
from duskfuse.data.priors.masks import MaskSet
from duskfuse.data.progress import set_quiet


@pytest.fixture(autouse=True)
def _loud_again() -> object:
    yield
    set_quiet(False)


def call(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["cache", *map(str, arguments)], env={"COLUMNS": "100"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    return result.exit_code, result.stdout, result.stderr


def some_masks(seed: int) -> MaskSet:
    generator = np.random.default_rng(seed)
    return MaskSet.from_masks(generator.random((4, 40, 56)) < 0.3, predicted_iou=generator.random(4))


def make_pairs(folder: Path, names: str, seed: int = 0) -> Path:
    """Pairs of 40×56, every picture another one."""
    generator = np.random.default_rng(seed)
    for name in names:
        write_picture(folder / "ir" / f"{name}.png", generator.integers(0, 256, (40, 56), np.uint8))
        write_picture(folder / "vis" / f"{name}.png", generator.integers(0, 256, (40, 56, 3), np.uint8))
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_pairs(tmp_path / "pairs", "abc")


@pytest.fixture
def cache(tmp_path: Path, data: Path) -> Path:
    """Region-like masks and teacher pictures of the pairs, merged, and one mask set that is not merged yet."""
    root = PriorCache(tmp_path / "cache")
    masks = root.store(PriorKind.MASKS, "regions", {"keep": 4})
    teacher = root.store(PriorKind.TEACHER, "ddfm", {"steps": 10, "weights": "ab" * 32})
    for i, files in enumerate(find_pairs(data)):
        ir, vis = files.prior_keys()
        masks.put(ir, some_masks(2 * i))
        masks.put(vis, some_masks(2 * i + 1))
        teacher.put(pair_key(ir, vis), TeacherImage(np.full((40, 56), i, np.uint8)))
    masks.compact()
    teacher.compact()
    masks.put("single", some_masks(99))
    return root.root


def mask_store(cache: Path) -> PriorStore:
    return PriorCache(cache).store(PriorKind.MASKS, "regions", {"keep": 4})


def teacher_store(cache: Path) -> PriorStore:
    return PriorCache(cache).store(PriorKind.TEACHER, "ddfm", {"steps": 10, "weights": "ab" * 32})


def shard_of(store: PriorStore) -> Path:
    (path,) = store.folder.glob("shard-*.parquet")
    return path


def bits(store: PriorStore) -> dict[str, tuple[bytes, ...]]:
    """All masks of a store."""
    keys = store.keys()
    found = {key: store.get(key) for key in keys}
    return {key: record.bits for key, record in found.items() if isinstance(record, MaskSet)}


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 16
    path.write_bytes(content)


def state(cache: Path) -> dict[str, bytes]:
    return {str(p.relative_to(cache)): p.read_bytes() for p in sorted(cache.rglob("*")) if p.is_file()}


# verify


def test_a_sound_cache_is_left_as_it_is(cache: Path):
    before = state(cache)
    report = verify_cache(cache=cache)
    assert [(s.kind, s.records, s.damaged) for s in report.stores] == [("masks", 7, []), ("teacher", 3, [])]
    assert report.stores[0].bytes == mask_store(cache).size_bytes()
    report.raise_for_damage()
    assert state(cache) == before
    code, out, _ = call("verify", "--cache", cache)
    assert code == 0
    assert mask_store(cache).folder.name in out


@pytest.mark.parametrize(
    ("place", "kept"), [(20, 6), (2000, 5), (-20, 6)], ids=["table", "record", "footer of other programs"]
)
def test_damage_is_found_named_and_set_aside(cache: Path, place: int, kept: int):
    shard = shard_of(mask_store(cache))
    flip(shard, place)
    code, _, said = call("verify", "--cache", cache)
    assert code == 1
    assert str(shard) in said
    assert f"{kept} records kept" in said
    assert "cache-masks" in said
    report = verify_cache(cache=cache)
    assert report.damaged == []
    assert report.stores[0].records == kept + 1
    assert shard.with_name(f"{shard.name}.damaged").exists()
    assert call("verify", "--cache", cache)[0] == 0


def test_damage_as_json(cache: Path):
    flip(shard_of(teacher_store(cache)), 900)
    code, out, _ = call("verify", "--cache", cache, "--json")
    assert code == 1
    report = json.loads(out)
    assert [len(store["damaged"]) for store in report["stores"]] == [0, 1]
    assert report["stores"][1]["records"] == 2


def test_one_store_only(cache: Path):
    flip(shard_of(teacher_store(cache)), 900)
    name = mask_store(cache).folder.name
    report = verify_cache(cache=cache, store=name)
    assert [s.store for s in report.stores] == [name]
    assert report.damaged == []
    code, _, said = call("verify", "--cache", cache, "--store", "sam-000000000000")
    assert code == 2
    assert name in said
    with pytest.raises(VerificationError, match="1 files"):
        verify_cache(cache=cache).raise_for_damage()


def test_damaged_settings_are_named_and_mended_by_the_next_run(data: Path, tmp_path: Path):
    cache = tmp_path / "made"
    cache_masks(data, cache=cache)
    (path,) = cache.rglob("settings.json")
    good = json.loads(path.read_bytes())
    path.write_text(path.read_text().replace("20", "21"))
    code, _, said = call("verify", "--cache", cache)
    assert code == 1
    assert str(path) in said
    assert cache_stats(cache=cache).damaged_settings == [str(path)]
    assert cache_masks(data, cache=cache).already == 6  # nothing is lost, and nothing has to be made again
    assert json.loads(path.read_bytes()) == good
    assert verify_cache(cache=cache).damaged == []


def test_an_empty_or_missing_cache(tmp_path: Path):
    for verb in ("verify", "stats", "gc"):
        assert call(verb, "--cache", tmp_path / "none")[0] == 0
    assert not (tmp_path / "none").exists()


# stats


def test_stats(cache: Path):
    flip(shard_of(teacher_store(cache)), 900)
    teacher_store(cache).keys()
    verify_cache(cache=cache)
    unfinished = mask_store(cache).folder / ".item-x.parquet.01.tmp"
    unfinished.write_bytes(b"12345")
    os.utime(unfinished, (time.time() - 9, time.time() - 9))
    mask_store(cache).put("single", some_masks(98))
    stats = cache_stats(cache=cache)
    masks, teacher = stats.stores
    assert (masks.kind, masks.source, masks.settings, masks.records) == ("masks", "regions", {"keep": 4}, 7)
    assert (masks.shards, masks.single_records, masks.leftovers, masks.damaged) == (1, 1, 1, 0)
    assert masks.bytes_per_record == pytest.approx(masks.bytes / 7, abs=0.1)
    assert masks.rubbish_bytes == 5
    assert 0 <= masks.age_s < 60
    assert (teacher.records, teacher.damaged, teacher.superseded) == (2, 1, 0)
    code, out, _ = call("stats", "--cache", cache, "--json")
    assert code == 0
    said = json.loads(out)
    assert said["records"] == 9
    assert said["bytes"] == masks.bytes + teacher.bytes
    code, out, _ = call("stats", "--cache", cache)
    assert code == 0
    assert masks.store in out
    assert "steps 10" in out


# gc


def wait_in_the_middle(path: Path, ready: Event) -> None:
    def wait(*_: object) -> None:
        ready.set()
        time.sleep(60)

    os.replace = wait  # type: ignore[assignment]
    write_atomically(path, b"x" * 1000)


def test_only_rubbish_goes_by_default(cache: Path):
    store = mask_store(cache)
    flip(shard_of(store), 2000)
    verify_cache(cache=cache)
    context = multiprocessing.get_context("fork")
    ready = [context.Event(), context.Event()]
    writers = [
        context.Process(target=wait_in_the_middle, args=(store.folder / f"item-{i}.parquet", event), daemon=True)
        for i, event in enumerate(ready)
    ]
    for writer, event in zip(writers, ready, strict=True):
        writer.start()
        assert event.wait(30)
    writers[0].kill()
    writers[0].join()
    orphan = cache / "masks" / "sam-0123" / ".settings.json.ab.tmp"
    write_atomically(orphan, b"{")
    for path in (*store.folder.glob(".*.tmp"), orphan):
        os.utime(path, (time.time() - 9, time.time() - 9))
    before = bits(store)
    plan = collect_garbage(cache=cache, dry_run=True)
    assert len(list(cache.rglob("*.tmp"))) == 3
    report = collect_garbage(cache=cache)
    for found in (plan, report):
        masks, _, other = found.stores
        assert (masks.leftovers, masks.damaged, masks.superseded, masks.unwanted) == (1, 1, 0, 0)
        assert (masks.kept, other.leftovers) == (len(before), 1)
        assert masks.freed_bytes > 1000
    assert [path.name[:13] for path in store.folder.glob(".*.tmp")] == [".item-1.parqu"]  # its writer is alive
    assert not orphan.exists()
    assert not list(cache.rglob("*.damaged"))
    assert bits(mask_store(cache)) == before
    writers[1].kill()
    writers[1].join()


def test_duplicates_and_replaced_records_go(cache: Path):
    store = mask_store(cache)
    shard = shard_of(store)
    again = sorted(store.keys() - {"single"})[:3]
    for key in again[:2]:
        store.put(key, some_masks(50))
    (store.folder / "shard-copy.parquet").write_bytes(shard.read_bytes())  # as after a crash while merging
    assert cache_stats(cache=cache).stores[0].superseded == 8
    (masks, _) = collect_garbage(cache=cache).stores
    assert (masks.superseded, masks.kept, masks.busy) == (8, 7, False)
    assert cache_stats(cache=cache).stores[0].superseded == 0
    left = bits(mask_store(cache))
    assert len(left) == 7
    assert [left[key] == some_masks(50).bits for key in again] == [True, True, False]


def test_records_of_other_pictures_go_only_where_datasets_are_named(cache: Path, data: Path, tmp_path: Path):
    more = make_pairs(tmp_path / "more", "d", seed=9)
    (files,) = find_pairs(more)
    mask_store(cache).put(files.vis_key(), some_masks(7))
    (data / "ir" / "c.png").unlink()
    (data / "vis" / "c.png").unlink()
    before = state(cache)
    plan = collect_garbage(cache=cache, data=[data, more], dry_run=True)
    assert state(cache) == before
    assert [(s.unwanted, s.kept) for s in plan.stores] == [(3, 5), (1, 2)]
    assert all(0 < s.unwanted_bytes <= s.freed_bytes for s in plan.stores)
    code, _, said = call("gc", "--cache", cache, "--data", data, "--data", more)
    assert code == 0
    assert "3 of 8 records" in said
    wanted = {key for folder in (data, more) for f in find_pairs(folder) for key in f.prior_keys()}
    assert mask_store(cache).keys() == wanted - {files.ir_key()}
    assert teacher_store(cache).keys() == {pair_key(*f.prior_keys()) for f in find_pairs(data)}
    assert verify_cache(cache=cache).damaged == []
    assert collect_garbage(cache=cache, data=[data, more]).freed_bytes == 0


def test_the_reading_of_a_dataset_is_a_part_of_its_keys(tmp_path: Path, data: Path):
    """Masks made with a reading stay where the dataset says it, or the command does."""
    cache = tmp_path / "made"
    (data / "duskfuse.yaml").write_text("black_hot: true\n")
    cache_masks(data, cache=cache)
    assert [s.unwanted for s in collect_garbage(cache=cache, data=[data], dry_run=True).stores] == [0]
    (data / "duskfuse.yaml").rename(tmp_path / "rig.yaml")
    assert [s.unwanted for s in collect_garbage(cache=cache, data=[data], dry_run=True).stores] == [3]
    code, out, _ = call("gc", "--cache", cache, "--data", data, "--reading", tmp_path / "rig.yaml", "--json")
    assert code == 0
    assert [store["unwanted"] for store in json.loads(out)["stores"]] == [0]


def test_nothing_goes_where_a_dataset_cannot_be_read(cache: Path, data: Path, tmp_path: Path):
    before = state(cache)
    (tmp_path / "empty").mkdir()
    (data / "ir" / "a.png").unlink()
    (data / "ir" / "a.png").symlink_to(tmp_path / "gone.png")
    for folder in (tmp_path / "empty", tmp_path / "none", data):
        code, _, said = call("gc", "--cache", cache, "--data", folder)
        assert code == 2, said
        assert state(cache) == before


def test_gc_waits_for_nobody(cache: Path):
    store = mask_store(cache)
    store.put(min(store.keys() - {"single"}), some_masks(50))
    with sole(store.folder / ".lock"):
        (masks, _) = collect_garbage(cache=cache).stores
        assert masks.busy
        assert len(store.keys()) == 7
    assert not collect_garbage(cache=cache).stores[0].busy
    assert cache_stats(cache=cache).stores[0].superseded == 0


# export


def test_a_coco_file_that_pycocotools_reads(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    cache = tmp_path / "made"
    cache_masks(data, cache=cache)
    code, out, _ = call("export", data, "--coco", tmp_path / "masks.json", "--cache", cache, "--json")
    assert code == 0
    report = json.loads(out)
    assert (report["images"], report["missing"]) == (6, [])
    coco = COCO(tmp_path / "masks.json")
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == ["region"]
    (store,) = PriorCache(cache).stores(PriorKind.MASKS)
    names = {f"{side}/{name}.png" for side in ("ir", "vis") for name in "abc"}
    assert {image["file_name"] for image in coco.imgs.values()} == names
    assert report["annotations"] == len(coco.anns) == sum(map(len, bits(store).values()))
    keys = {f"ir/{files.name}.png": files.ir_key() for files in find_pairs(data)}
    keys |= {f"vis/{files.name}.png": files.vis_key() for files in find_pairs(data)}
    for image in coco.imgs.values():
        assert (image["width"], image["height"]) == (56, 40)
        assert image["key"] == keys[image["file_name"]]
        assert image["modality"] == ("infrared" if image["file_name"].startswith("ir") else "visible")
        record = store.get(image["key"])
        assert isinstance(record, MaskSet)
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=image["id"]))
        planes = np.array([coco.annToMask(annotation) for annotation in annotations], bool).reshape(-1, 40, 56)
        assert np.array_equal(planes, record.decode())
        assert [a["area"] for a in annotations] == record.area.tolist()
        assert [a["bbox"] for a in annotations] == record.boxes.tolist()
        assert all(a["predicted_iou"] is None and a["stability_score"] is None for a in annotations)


def test_scores_and_missing_pictures(cache: Path, data: Path, tmp_path: Path):
    make_pairs(data, "d", seed=3)
    with pytest.raises(InputError, match="2 of 8 pictures have no cached masks"):
        export_coco(data, tmp_path / "masks.json", cache=cache)
    name = mask_store(cache).folder.name
    report = export_coco(data, tmp_path / "masks.json", cache=cache, store=name)
    assert sorted(report.missing) == ["ir/d.png", "vis/d.png"]
    assert (report.images, report.annotations) == (6, 24)
    coco = COCO(tmp_path / "masks.json")
    first = mask_store(cache).get(coco.imgs[1]["key"])
    assert isinstance(first, MaskSet)
    seen = [annotation["predicted_iou"] for annotation in coco.imgToAnns[1]]
    assert seen == pytest.approx(first.predicted_iou.tolist())
    with pytest.raises(InputError, match="none of the 2 pictures"):
        export_coco(make_pairs(tmp_path / "other", "x", seed=5), tmp_path / "other.json", cache=cache, store=name)
    with pytest.raises(InputError, match=f"choose from {name}"):
        export_coco(data, tmp_path / "other.json", cache=cache, store="sam-0")


def test_a_file_is_replaced_only_when_asked_and_never_by_half(
    cache: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "masks.json"
    path.write_text("mine")
    code, _, said = call("export", data, "--coco", path, "--cache", cache)
    assert code == 2
    assert "--overwrite" in said
    with monkeypatch.context() as patch:
        patch.setattr(export_module, "_annotations", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            export_coco(data, path, cache=cache, overwrite=True)
    assert path.read_text() == "mine"
    assert [p.name for p in tmp_path.iterdir() if p.name.endswith(".tmp")] == []
    assert call("export", data, "--coco", path, "--cache", cache, "--overwrite")[0] == 0
    assert json.loads(path.read_text())["images"]
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"Not a directory|File exists"):
        export_coco(data, tmp_path / "file" / "masks.json", cache=cache)


def test_memory_does_not_grow_with_the_pictures(tmp_path: Path):
    peaks, sizes = [], []
    for count in (4, 60):
        data = make_pairs(tmp_path / f"set{count}", "".join(chr(0x4E00 + i) for i in range(count)))
        store = PriorCache(tmp_path / f"cache{count}").store(PriorKind.MASKS, "regions", {})
        for files in find_pairs(data):
            for key in files.prior_keys():
                store.put(key, MaskSet.from_masks(np.random.default_rng(0).random((12, 90, 100)) < 0.5))
        tracemalloc.start()
        export_coco(data, tmp_path / f"{count}.json", cache=tmp_path / f"cache{count}")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        sizes.append((tmp_path / f"{count}.json").stat().st_size)
    assert sizes[1] - sizes[0] > 4_000_000
    assert peaks[1] - peaks[0] < 1_000_000
