"""Whatever happens to the files of a prior cache, a record is the one that was written, or it is missing and named."""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from duskfuse.data.errors import InputError
from duskfuse.data.images import encode_png
from duskfuse.data.layout import find_pairs
from duskfuse.data.pair_files import read_ir, read_vis
from duskfuse.data.priors import records
from duskfuse.data.priors.cache import PriorCache, PriorKind, PriorStore, TeacherImage
from duskfuse.data.priors.masks import MAX_PIXELS, MaskSet
from duskfuse.data.priors.records import DamagedError, Record, decode_record, encode_record
from duskfuse.data.priors.regions import Regions
from duskfuse.data.scenes import render_scene

Records = dict[str, Record]


@pytest.fixture(autouse=True)
def _no_power_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of files are written here, and none has to survive the machine."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def key(number: int) -> str:
    return f"{number:064x}"


def rgb_u8(picture: NDArray[np.float32]) -> NDArray[np.uint8]:
    rounded = np.rint(picture * 255).astype(np.uint8)
    return rounded if rounded.ndim == 3 else np.repeat(rounded[..., None], 3, axis=2)


def priors_of(kind: PriorKind, pictures: list[NDArray[np.uint8]]) -> Records:
    made: list[Record] = [
        Regions().masks(picture) if kind is PriorKind.MASKS else TeacherImage(picture[..., 1].copy(), {"number": i})
        for i, picture in enumerate(pictures)
    ]
    return {key(i): record for i, record in enumerate(made)}


@pytest.fixture(scope="module")
def scene_priors() -> dict[PriorKind, Records]:
    """Region masks and luminances of sixteen small pictures: four synthetic scenes, each also mirrored."""
    scenes = [rgb_u8(render_scene(seed, size=(96, 128)).vis.astype(np.float32) / 255) for seed in range(4)]
    pictures = [np.ascontiguousarray(s[::y, ::x]) for s in scenes for y in (1, -1) for x in (1, -1)]
    return {kind: priors_of(kind, pictures) for kind in PriorKind}


def same(a: Record, b: Record) -> bool:
    if isinstance(a, TeacherImage) and isinstance(b, TeacherImage):
        return np.array_equal(a.y, b.y) and a.meta == b.meta
    assert isinstance(a, MaskSet)
    assert isinstance(b, MaskSet)
    arrays = ("boxes", "area", "predicted_iou", "stability")
    equal = all(np.array_equal(getattr(a, name), getattr(b, name), equal_nan=name != "boxes") for name in arrays)
    return equal and (a.height, a.width, a.bits, a.made_from) == (b.height, b.width, b.bits, b.made_from)


class Shard:
    """One shard on disk that can be damaged again and again."""

    def __init__(self, root: Path, kind: PriorKind, priors: Records) -> None:
        self.priors, self.root, self.kind = priors, root, kind
        store = PriorCache(root / "whole").store(kind, "regions", {})
        for name, record in priors.items():
            store.put(name, record)
        store.compact()
        (self.path,) = store.folder.glob("*.parquet")
        self.content = self.path.read_bytes()
        self.store = store
        self.table = records.read_shard(self.content, len(self.content), kind, store._name)

    def damaged(self, content: bytes, name: str = "shard-0.parquet") -> PriorStore:
        """A store whose only shard has this content."""
        shutil.rmtree(self.root / "damaged", ignore_errors=True)
        store = PriorCache(self.root / "damaged").store(self.kind, "regions", {})
        store.folder.mkdir(parents=True)
        (store.folder / name).write_bytes(content)
        return store

    def missing(self, store: PriorStore) -> set[str]:
        """The keys that have no record any more, after all others were compared with what was written."""
        lost = set()
        for name, record in self.priors.items():
            try:
                seen = store.get(name)
            except InputError:
                lost.add(name)
                continue
            assert same(seen, record), name
        assert store.keys() == self.priors.keys() - lost
        return lost

    def touched(self, position: int) -> set[str]:
        """The key of the record that has the byte at ``position``."""
        starts, lengths = self.table.offsets.astype(int), self.table.lengths.astype(int)
        inside = (starts <= position) & (position < starts + lengths)
        return {name for name, hit in zip(self.table.key_list(), inside, strict=True) if hit}


@pytest.fixture(params=list(PriorKind))
def shard(request: pytest.FixtureRequest, tmp_path: Path, scene_priors: dict[PriorKind, Records]) -> Shard:
    return Shard(tmp_path, request.param, scene_priors[request.param])


def check_flips(shard: Shard, count: int, capsys: pytest.CaptureFixture[str]) -> None:
    generator = np.random.default_rng(0)
    for position in generator.integers(0, len(shard.content), count).tolist():
        content = bytearray(shard.content)
        content[position] ^= int(generator.integers(1, 256))
        store = shard.damaged(bytes(content))
        lost = shard.missing(store)
        assert lost == shard.touched(position)
        said = capsys.readouterr().err
        noticed = bool(lost) or position < shard.table.offsets[0]
        assert ("shard-0.parquet: damaged" in said) == noticed
        assert (store.folder / "shard-0.parquet.damaged").exists() == noticed
        if noticed and position % 8 == 0:
            assert shard.missing(again(store)) == lost


def again(store: PriorStore) -> PriorStore:
    return PriorStore(store.folder, store.kind, store.source, store.settings)


def test_a_flipped_byte_costs_the_record_it_is_in_and_no_other(shard: Shard, capsys: pytest.CaptureFixture[str]):
    check_flips(shard, 120, capsys)


@pytest.mark.realdata
@pytest.mark.slow
@pytest.mark.parametrize("kind", list(PriorKind))
def test_flipped_bytes_in_priors_of_real_pairs(
    kind: PriorKind, shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    pairs = find_pairs(shared_data / "train")[::48]
    pictures = [rgb_u8(read(files)) for files in pairs for read in (read_ir, read_vis)]
    check_flips(Shard(tmp_path, kind, priors_of(kind, pictures)), 200, capsys)


def test_one_flipped_byte_in_a_full_small_shard_loses_one_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    generator = np.random.default_rng(0)
    priors: Records = {key(i): MaskSet.from_masks(generator.random((3, 20, 30)) < 0.4) for i in range(64)}
    shard = Shard(tmp_path, PriorKind.MASKS, priors)
    content = bytearray(shard.content)
    content[int(shard.table.offsets[17]) + 600] ^= 4
    store = shard.damaged(bytes(content))
    assert shard.missing(store) == {shard.table.key_list()[17]}
    assert "63 intact records" in capsys.readouterr().err
    assert len(list(store.folder.glob("*.parquet"))) == 1


def test_a_truncated_shard_keeps_what_is_before_the_cut(shard: Shard, capsys: pytest.CaptureFixture[str]):
    ends = shard.table.offsets.astype(int) + shard.table.lengths
    near = [int(end) + step for end in ends for step in (-1, 0, 1)]
    lengths = [0, 1, 3, 4, 11, 12, 83, 84, 200, *near, len(shard.content) - 1, len(shard.content) - 8]
    lengths += np.random.default_rng(1).integers(0, len(shard.content), 30).tolist()
    for length in lengths:
        store = shard.damaged(shard.content[:length])
        whole = {name for name, end in zip(shard.table.key_list(), ends, strict=True) if end <= length}
        assert shard.missing(store) == shard.priors.keys() - whole, length
        assert (store.folder / "shard-0.parquet.damaged").stat().st_size == length
        assert "shard-0.parquet: damaged" in capsys.readouterr().err


def test_damage_of_many_bytes(shard: Shard):
    """Blocks that a dying disk returns as zeros, swapped halves, bytes gone or added in the middle, a shard twice."""
    middle, zeros = len(shard.content) // 2, bytes(4096)
    content = shard.content
    for bad in (
        content[: middle - 2048] + zeros + content[middle + 2048 :],
        zeros + content[4096:],
        content[middle:] + content[:middle],
        content[:middle] + content[middle + 1 :],
        content[:middle] + b"\0" + content[middle:],
    ):
        assert 0 < len(shard.missing(shard.damaged(bad))) <= 10
    assert shard.missing(shard.damaged(content + content)) == set()
    assert shard.missing(shard.damaged(b"junk" + content)) == set()


def test_single_records_under_flips_and_cuts(tmp_path: Path, scene_priors: dict[PriorKind, Records]):
    generator = np.random.default_rng(2)
    for kind, priors in scene_priors.items():
        store = PriorCache(tmp_path).store(kind, "regions", {})
        name, record = next(iter(priors.items()))
        for i in range(60):
            store.put(name, record)
            path = store.folder / f"item-{name}.parquet"
            content = bytearray(path.read_bytes())
            if i % 2:
                content[int(generator.integers(len(content)))] ^= int(generator.integers(1, 256))
            else:
                del content[int(generator.integers(len(content))) :]
            path.write_bytes(content)
            reader = again(store)
            assert reader.keys() == set()
            with pytest.raises(InputError, match="no "):
                reader.get(name)
            with pytest.raises(InputError, match="no "):
                store.get(name)  # has it in its index already
            assert not path.exists()


def test_a_record_that_becomes_damaged_after_it_was_listed(shard: Shard):
    store = shard.damaged(shard.content)
    assert len(store.keys()) == len(shard.priors)
    content = bytearray(shard.content)
    content[int(shard.table.offsets[3]) + 300] ^= 1
    path = store.folder / "shard-0.parquet"
    with path.open("r+b") as stream:
        stream.write(content)
    assert shard.missing(store) == {shard.table.key_list()[3]}


def foreign_png(path: Path) -> None:
    path.write_bytes(encode_png(np.zeros((40, 50), np.uint8)))


def foreign_parquet(path: Path) -> None:
    pq.write_table(pa.table({"key": [key(0)], "height": [4], "width": [4]}), path)


def text(path: Path) -> None:
    path.write_text("shopping list\n" * 500)


def folder(path: Path) -> None:
    (path / "sub").mkdir(parents=True)


def pipe(path: Path) -> None:
    os.mkfifo(path)


def own_link(path: Path) -> None:
    path.symlink_to(path.name)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def listener(path: Path) -> None:
    here = Path.cwd()
    try:
        os.chdir(path.parent)  # the path of a socket is short
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def hole(path: Path) -> None:
    """A terabyte of nothing."""
    with path.open("wb") as stream:
        stream.truncate(2**40)


@pytest.mark.parametrize(
    "foreign",
    [foreign_png, foreign_parquet, text, folder, pipe, own_link, device, listener, hole],
    ids=lambda f: f.__name__,
)
@pytest.mark.parametrize("name", ["item-a.parquet", "shard-a.parquet", "a.parquet"])
def test_foreign_files_are_set_aside(
    tmp_path: Path, foreign: Callable[[Path], None], name: str, capsys: pytest.CaptureFixture[str]
):
    store = PriorCache(tmp_path).store(PriorKind.MASKS, "regions", {})
    record = MaskSet.from_masks(np.ones((1, 4, 4), bool))
    store.put("good", record)
    foreign(store.folder / name)
    started = time.monotonic()
    reader = again(store)
    assert reader.keys() == {"good"}
    assert same(reader.get("good"), record)
    reader.compact()
    assert reader.keys() == {"good"}
    assert time.monotonic() - started < 5
    assert f"{name}: damaged" in capsys.readouterr().err
    assert [path.name for path in store.folder.glob("*.damaged")] == [f"{name}.damaged"]


def test_a_shard_or_record_of_another_store_is_not_served(shard: Shard, capsys: pytest.CaptureFixture[str]):
    """Same pictures, same keys, other settings: only the store in the seal tells them apart."""
    single = encode_record(shard.kind, key(0), shard.priors[key(0)])
    for source, settings in (("regions", {"keep": 5}), ("sam", {})):
        other = PriorCache(shard.root).store(shard.kind, source, settings)  # type: ignore[arg-type]
        other.folder.mkdir(parents=True)
        shutil.copy(shard.path, other.folder)
        (other.folder / "item-a.parquet").write_bytes(records.bind(single, shard.store._name, 1))
        assert other.keys() == set()
        with pytest.raises(InputError, match="no "):
            again(other).get(key(0))
        assert capsys.readouterr().err.count("damaged (") == 2
        assert len(list(other.folder.glob("*.damaged"))) == 2


def test_a_record_under_another_name_keeps_its_own_key(tmp_path: Path):
    store = PriorCache(tmp_path).store(PriorKind.MASKS, "regions", {})
    first, second = (MaskSet.from_masks(np.ones((1, 4, 4 + i), bool)) for i in range(2))
    store.put("a", first)
    store.put("b", second)
    os.replace(store.folder / "item-a.parquet", store.folder / "item-b.parquet")
    for reader in (again(store), store):
        with pytest.raises(InputError, match="no "):
            reader.get("b")
        assert reader.keys() == {"a"}
        assert same(reader.get("a"), first)


def test_changed_settings_are_named_and_their_store_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    store = PriorCache(tmp_path).store(PriorKind.MASKS, "regions", {"keep": 5})
    store.put("k", MaskSet.from_masks(np.ones((1, 4, 4), bool)))
    path = store.folder / "settings.json"
    good = path.read_text()
    deep = "[" * 100_000
    for bad in (good.replace("5", "6"), good.replace("regions", "../regions"), "[]", "null", deep, "", '{"source": 1}'):
        path.write_text(bad)
        assert PriorCache(tmp_path).stores(PriorKind.MASKS) == []
        assert str(path) in capsys.readouterr().err
    path.write_bytes(b"\xff\xfe\x00")
    assert PriorCache(tmp_path).stores(PriorKind.MASKS) == []
    path.write_text(good)
    assert [s.folder for s in PriorCache(tmp_path).stores(PriorKind.MASKS)] == [store.folder]


# Content that was sealed on purpose


def sealed(kind: PriorKind, row: dict[str, object], schema: pa.Schema | None = None) -> bytes:
    table = pa.Table.from_pydict({name: [value] for name, value in row.items()}, schema or records.SCHEMAS[kind])
    return records._sealed_record(kind, "k", records.UNBOUND, 0, table)


def mask_row(**changes: object) -> dict[str, object]:
    one = {"key": "k", "height": 4, "width": 8, "boxes": [0, 0, 8, 4], "bits": [bytes(8)], "area": [32]}
    return {**one, "predicted_iou": [0.5], "stability": [0.5], "made_from": "", **changes}


BIG = 2**31 - 1


@pytest.mark.parametrize(
    "changes",
    [
        {"height": BIG, "width": BIG},
        {"height": MAX_PIXELS, "width": 2},
        {"height": 0},
        {"width": -8},
        {"height": None},
        {"boxes": [BIG, 0, BIG, 4]},
        {"boxes": [0, 0, BIG, BIG]},
        {"boxes": [-1, 0, 8, 4]},
        {"boxes": [0, 0, 0, 4]},
        {"boxes": [0, 0, 8]},
        {"boxes": None},
        {"boxes": [0, 0, None, 4]},
        {"bits": [bytes(9)]},
        {"bits": [None]},
        {"bits": []},
        {"area": [0]},
        {"area": [33]},
        {"area": [BIG]},
        {"area": [32, 32]},
        {"stability": []},
    ],
    ids=str,
)
def test_absurd_masks_are_refused(changes: dict[str, object]):
    assert isinstance(decode_record(sealed(PriorKind.MASKS, mask_row()), PriorKind.MASKS), MaskSet)
    with pytest.raises(DamagedError):
        decode_record(sealed(PriorKind.MASKS, mask_row(**changes)), PriorKind.MASKS)


def giant_png(width: int, height: int) -> bytes:
    """A complete PNG that declares a giant size, with nothing in it."""
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"")), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize(
    "changes",
    [
        {"y_png": giant_png(100_000, 100_000)},
        {"y_png": giant_png(MAX_PIXELS, 2)},
        {"y_png": giant_png(BIG, BIG)},
        {"y_png": encode_png(np.zeros((4, 4, 3), np.uint8))},
        {"y_png": encode_png(np.zeros((40, 40), np.uint8))[:-20]},
        {"y_png": b"\xff\xd8\xff\xe0 no PNG"},
        {"y_png": b""},
        {"y_png": None},
        {"meta": "{"},
        {"meta": "[" * 100_000},
        {"meta": None},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_absurd_teacher_images_are_refused(changes: dict[str, object]):
    row = {"key": "k", "y_png": encode_png(np.zeros((4, 4), np.uint8)), "meta": "{}"}
    assert isinstance(decode_record(sealed(PriorKind.TEACHER, row), PriorKind.TEACHER), TeacherImage)
    started = time.monotonic()
    with pytest.raises(DamagedError):
        decode_record(sealed(PriorKind.TEACHER, {**row, **changes}), PriorKind.TEACHER)
    assert time.monotonic() - started < 2


def test_other_columns_are_another_version():
    """Who changes the columns raises FORMAT_VERSION, so that old records are left out and not taken for damaged."""
    columns = {kind.value: records.SCHEMAS[kind].names for kind in PriorKind}
    assert (records.FORMAT_VERSION, columns) == (
        2,
        {
            "masks": ["key", "height", "width", "boxes", "bits", "area", "predicted_iou", "stability", "made_from"],
            "teacher": ["key", "y_png", "meta"],
        },
    )


def test_a_sealed_table_of_other_columns_is_refused():
    text_key = pa.schema({"key": pa.string(), "y_png": pa.binary(), "meta": pa.int64()})
    row = {"key": "k", "y_png": b"", "meta": 3}
    schemas = records.SCHEMAS.copy()
    try:
        records.SCHEMAS[PriorKind.TEACHER] = text_key
        data = sealed(PriorKind.TEACHER, row, text_key)
    finally:
        records.SCHEMAS.update(schemas)
    with pytest.raises(DamagedError, match="another table"):
        decode_record(data, PriorKind.TEACHER)


def test_a_sealed_record_that_is_none_is_set_aside_and_not_met_again(shard: Shard):
    """Its digest is right, so that only decoding tells; it must not be rescued again and again."""
    bad = sealed(PriorKind.MASKS, mask_row(area=[0]))
    store = PriorCache(shard.root).store(PriorKind.MASKS, "regions", {"other": 1})
    good = MaskSet.from_masks(np.ones((1, 4, 4), bool))
    store.put("good", good)
    (store.folder / "item-k.parquet").write_bytes(records.bind(bad, store._name, 1))
    with pytest.raises(InputError, match="no masks"):
        store.get("k")
    assert again(store).keys() == {"good"}
    assert (store.folder / "item-k.parquet.damaged").exists()


def test_a_sealed_table_that_lies_about_its_records_ends(shard: Shard):
    """Every record in it is intact, its own seal is right, and yet nothing is where the table says."""
    content = bytearray(shard.content)
    first, second = (int(shard.table.lengths[row]) for row in (0, 1))
    rows = len(shard.table.lengths)
    at = records._LABEL_AT + records._head(bytes(content)).label_bytes + 32 + 8 * rows
    struct.pack_into("<II", content, at, first + 1, second - 1)
    records._write_digest(content, int(shard.table.offsets[0]))
    assert shard.missing(shard.damaged(bytes(content))) == set()


def test_a_file_of_openings_that_all_claim_the_rest_takes_no_time(tmp_path: Path):
    """Hashing what each of 50,000 openings claims would be 100 GB."""
    count = 50_000
    size = records._LABEL_AT
    content = bytearray(count * size)
    for i in range(count):
        left = len(content) - i * size
        head = (b"PAR1", b"duskfuse", records.FORMAT_VERSION, 1, 0, left, left, 0, bytes(records.STORE_BYTES))
        records._HEAD.pack_into(content, i * size, *head)
    store = PriorCache(tmp_path).store(PriorKind.MASKS, "regions", {})
    store.folder.mkdir(parents=True)
    (store.folder / "shard-a.parquet").write_bytes(content)
    started = time.monotonic()
    assert store.keys() == set()
    assert time.monotonic() - started < 10


# A folder that cannot be written


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mounts a small file system in memory and gives its folder; skips where that is not allowed."""
    place = tmp_path / "mounted"
    place.mkdir()
    mounted = False

    def call(options: str) -> Path:
        nonlocal mounted
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("mounting is not allowed here")
        mounted = True
        return place

    yield call
    if mounted:
        subprocess.run(["umount", str(place)], check=True)


def test_intact_records_of_a_damaged_shard_are_served_from_a_read_only_folder(
    shard: Shard, mount: Callable[..., Path], capsys: pytest.CaptureFixture[str]
):
    place = mount("size=16m")
    store = PriorCache(place).store(shard.kind, "regions", {})
    store.folder.mkdir(parents=True)
    for n, position in enumerate((int(shard.table.offsets[5]) + 300, 20)):  # in a record; in the seal of the shard
        content = bytearray(shard.content)
        content[position] ^= 8
        subprocess.run(["mount", "-o", "remount,rw", str(place)], check=True)
        (store.folder / f"shard-{n}.parquet").write_bytes(content)
    subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
    listing = sorted(path.name for path in store.folder.iterdir())
    reader = again(store)
    assert shard.missing(reader) == set()  # the second shard has what the first lost
    for name, record in shard.priors.items():
        assert same(reader.get(name), record)
    assert "cannot be set aside (Read-only file system)" in capsys.readouterr().err
    assert sorted(path.name for path in store.folder.iterdir()) == listing


# Fuzzing


FUZZ = """
import resource, sys, time
from pathlib import Path
import numpy as np
from duskfuse.data.errors import InputError
from duskfuse.data.priors import records
from duskfuse.data.priors.cache import PriorCache, PriorKind

memory = 3 << 30
resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
kind, root, count, seed = PriorKind(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
whole = PriorCache(root / "whole").store(kind, "regions", {})
(path,) = whole.folder.glob("*.parquet")
content, expected = path.read_bytes(), {key: records.encode_record(kind, key, whole.get(key)) for key in whole.keys()}
spans = records.read_shard(content, len(content), kind, whole._name)
interesting = (0, 1, 4, 12, 20, 127, 128, 255)
generator = np.random.default_rng(seed)
slowest, left = 0.0, 0
for turn in range(count):
    mutant = bytearray(content)
    for _ in range(generator.integers(1, 9)):
        a, b = sorted(generator.integers(0, len(mutant), 2).tolist())
        b = min(b, a + int(2 ** generator.uniform(0, 12)))
        match int(generator.integers(7)):
            case 0: mutant[a] ^= 1 << int(generator.integers(8))
            case 1: mutant[a] = interesting[int(generator.integers(8))]
            case 2: mutant[a:b] = generator.bytes(b - a)
            case 3: del mutant[a:b]
            case 4: mutant[a:a] = mutant[a:b]
            case 5: mutant[a:b] = bytes(b - a)
            case 6: mutant[a % 200 % len(mutant)] = int(generator.integers(256))
    resealed = turn % 2 == 1
    if resealed:  # on purpose: the digests are right again, so that everything behind them is met
        for start, length in zip(spans.offsets.tolist(), spans.lengths.tolist()):
            part = mutant[start : start + length]
            if len(part) == length and part[:12] == b"PAR1duskfuse":
                records._write_digest(part, length)
                mutant[start : start + length] = part
        end = int(spans.offsets[0])
        if len(mutant) > end:
            head = mutant[:end]
            records._write_digest(head, end)
            mutant[:end] = head
    store = PriorCache(root / f"fuzz{seed}-{turn}").store(kind, "regions", {})
    store.folder.mkdir(parents=True)
    (store.folder / "shard-0.parquet").write_bytes(mutant)
    started = time.perf_counter()
    for key in expected:
        try:
            seen = store.get(key)
        except InputError:
            continue
        left += 1
        if not resealed:
            assert records.encode_record(kind, key, seen) == expected[key], (turn, key)
    store.keys()
    store.compact()
    slowest = max(slowest, time.perf_counter() - started)
    for file in store.folder.iterdir():
        file.unlink()
# not ru_maxrss, which begins at that of the process that started this one
peak = int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))) >> 10
print(f"{count} mutants, {left} records left, slowest {slowest:.2f} s, peak {peak} MiB", file=sys.stderr)
assert slowest < 5 and peak < 1024 and left > 0
"""


def fuzz(shard: Shard, count: int, seed: int) -> None:
    command = [sys.executable, "-c", FUZZ, shard.kind.value, str(shard.root), str(count), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_mutated_shards_never_crash_a_reader(shard: Shard):
    fuzz(shard, 40, 0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_thousand_mutated_shards_never_crash_a_reader(shard: Shard, seed: int):
    fuzz(shard, 400, seed)
