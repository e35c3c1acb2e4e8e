"""One cache on disk for everything that is derived once from a picture or a pair.

``<root>/<kind>/<source>-<settings hash>/`` holds ``settings.json`` and Parquet files with one row group per picture.
A new record is a file of its own (temporary name, fsync, rename), so that nothing finished is ever lost; `compact`
merges such items into shards. Keys are hashes of the picture's bytes: a changed picture has another key, changed
settings have another folder, so nothing stale is ever read. Several processes may read and write one folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import JsonValue as JsonValue

from duskfuse.data.atomic import write_atomically
from duskfuse.data.errors import InputError
from duskfuse.data.images import decode_png, encode_png
from duskfuse.data.priors.masks import MaskSet
from duskfuse.data.progress import say

FORMAT_VERSION = 1
SHARD_ROWS = 64
"""Row groups, that is pictures, of a full shard."""

_SETTINGS = "settings.json"
_ITEM = "item-"
_METADATA = b"duskfuse"
_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,127}")
_OPEN_FILES = 32
_CLOCK_GRAIN_NS = 100_000_000
"""A folder changed less than this before it was listed may have changed again without a newer time of change."""


class PriorKind(StrEnum):
    """What a store holds."""

    MASKS = "masks"
    TEACHER = "teacher"


@dataclass(frozen=True, eq=False)
class TeacherImage:
    """What a teacher made of a pair, kept without loss."""

    y: NDArray[np.uint8]
    """Fused luminance, ``[H, W]``."""
    meta: dict[str, JsonValue] = field(default_factory=dict)


def pair_key(ir_sha256: str, vis_sha256: str) -> str:
    """Key of a prior that belongs to a pair: one hash out of the hashes of its two files."""
    return hashlib.sha256(f"{ir_sha256}:{vis_sha256}".encode()).hexdigest()


def stored_bytes(record: MaskSet | TeacherImage) -> int:
    """Bytes that a record takes on disk before it is compacted."""
    kind = PriorKind.MASKS if isinstance(record, MaskSet) else PriorKind.TEACHER
    return len(_parquet(kind, [("", _encode(kind, "", record))]))


def home() -> Path:
    """Folder of caches and downloaded weights: ``$DUSKFUSE_HOME``, else ``~/.cache/duskfuse``."""
    configured = os.environ.get("DUSKFUSE_HOME")
    return Path(configured).expanduser() if configured else Path.home() / ".cache" / "duskfuse"


class PriorCache:
    """All stores under one root folder, ``$DUSKFUSE_HOME/cache`` by default."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = home() / "cache" if root is None else root

    def store(self, kind: PriorKind, source: str, settings: Mapping[str, JsonValue]) -> PriorStore:
        """The store of what ``source`` makes under ``settings``; nothing is written before the first `put`."""
        if not _NAME.fullmatch(source):
            raise ValueError(f"source {source!r} is no file name")
        canonical = json.dumps(dict(settings), sort_keys=True, separators=(",", ":"), allow_nan=False)
        digest = hashlib.sha256(canonical.encode()).hexdigest()[:12]
        return PriorStore(self.root / kind / f"{source}-{digest}", kind, source, json.loads(canonical))

    def stores(self, kind: PriorKind) -> list[PriorStore]:
        """The stores on disk, newest last; one whose ``settings.json`` cannot be read is named and left out."""
        found = []
        for path in (self.root / kind).glob(f"*/{_SETTINGS}"):
            try:
                said = json.loads(path.read_bytes())
                store = PriorStore(path.parent, kind, str(said["source"]), dict(said["settings"]))
            except (ValueError, KeyError, TypeError):
                say(f"{path}: damaged, its folder is left out; remove the folder and cache again")
                continue
            found.append((path.stat().st_mtime_ns, store.folder.name, store))
        return [store for *_, store in sorted(found, key=lambda item: item[:2])]


class _Place(NamedTuple):
    """Where a record is: file name and row group."""

    file: str
    row: int


class PriorStore:
    """The records of one kind, source and settings: a mapping on disk from a key to a mask set or a teacher image.

    May be pickled or forked into loading processes: files are opened where they are read.
    """

    def __init__(self, folder: Path, kind: PriorKind, source: str, settings: dict[str, JsonValue]) -> None:
        self.folder, self.kind, self.source, self.settings = folder, kind, source, settings
        self._forget()

    def __repr__(self) -> str:
        return f"PriorStore({str(self.folder)!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "kind": self.kind, "source": self.source, "settings": self.settings}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def keys(self) -> set[str]:
        """The keys of all readable records; damaged files are named, set aside and do not count."""
        self._refresh()
        return set(self._index)

    def __contains__(self, key: str) -> bool:
        if key not in self._index:
            self._refresh()
        return key in self._index

    def get(self, key: str) -> MaskSet | TeacherImage:
        """Read one record.

        Raises:
            InputError: the key is not here, or its file turned out to be damaged (it is then set aside).
        """
        while key in self:
            place = self._index[key]
            with self._reading(place.file):
                return _decode(self.kind, self._open(place.file).read_row_group(place.row, use_threads=False))
        raise InputError(
            f"{self.folder.name}: no {self.kind} for {key[:12]}…",
            rule="priors are cached before they are used",
            remedy=f"run duskfuse cache-{self.kind} DATA",
        )

    def put(self, key: str, record: MaskSet | TeacherImage) -> None:
        """Write one record; once this returns it survives a crash."""
        if not _NAME.fullmatch(key):
            raise ValueError(f"key {key!r} is no file name")
        self._write_settings()
        name = f"{_ITEM}{key}.parquet"
        write_atomically(self.folder / name, _parquet(self.kind, [(key, _encode(self.kind, key, record))]))
        self._drop(name)

    def compact(self) -> None:
        """Merge single items and part-filled shards into shards of up to 64 records.

        The shards are complete on disk before what they were made from goes; a crash between the two leaves
        duplicates, which are harmless and go with the next call.
        """
        self._refresh()
        partial = sorted(name for name, keys in self._files.items() if len(keys) < SHARD_ROWS)
        if len(partial) < 2 and not any(name.startswith(_ITEM) for name in partial):
            return
        done = {key for name, keys in self._files.items() if name not in partial for key in keys}
        rows: list[tuple[str, pa.Table]] = []
        for name in partial:
            for key, row in self._rows(name):
                if key not in done:
                    done.add(key)
                    rows.append((key, row))
                if len(rows) == SHARD_ROWS:
                    self._write_shard(rows)
                    rows = []
        if rows:
            self._write_shard(rows)
        for name in partial:
            if name in self._files:
                (self.folder / name).unlink(missing_ok=True)
                self._drop(name)

    def size_bytes(self) -> int:
        """Bytes of all records on disk."""
        sizes = []
        for path in self.folder.glob("[!.]*.parquet"):
            with suppress(FileNotFoundError):
                sizes.append(path.stat().st_size)
        return sum(sizes)

    def _forget(self) -> None:
        self._files: dict[str, tuple[str, ...]] = {}
        self._index: dict[str, _Place] = {}
        self._opened: OrderedDict[str, pq.ParquetFile] = OrderedDict()
        self._ignored: set[str] = set()
        self._listed_ns = 0

    def _refresh(self) -> None:
        """Take in what this or another process has written or removed since the last look."""
        try:
            changed_ns = self.folder.stat().st_mtime_ns
        except FileNotFoundError:
            return self._forget()
        if changed_ns == self._listed_ns:
            return None
        self._listed_ns = changed_ns if time.time_ns() - changed_ns > _CLOCK_GRAIN_NS else 0
        names = {path.name for path in self.folder.glob("[!.]*.parquet")} - self._ignored
        for name in self._files.keys() - names:
            self._drop(name)
        for name in sorted(names - self._files.keys()):
            with self._reading(name):
                self._files[name] = self._keys_of(name)
        in_order = sorted(self._files, key=lambda name: (name.startswith(_ITEM), name))
        self._index = {key: _Place(name, row) for name in in_order for row, key in enumerate(self._files[name])}
        return None

    def _keys_of(self, name: str) -> tuple[str, ...]:
        """The keys of a file, row group by row group; none where another version of duskfuse wrote it."""
        file = self._open(name)
        said = json.loads((file.metadata.metadata or {})[_METADATA])
        if said["version"] != FORMAT_VERSION:
            say(f"{self.folder / name}: format {said['version']}, this duskfuse reads {FORMAT_VERSION}: left out")
            self._ignored.add(name)
            return ()
        if len(said["keys"]) != file.metadata.num_row_groups:
            raise ValueError("another number of keys than of records")
        return tuple(said["keys"])

    def _open(self, name: str) -> pq.ParquetFile:
        if name not in self._opened:
            while len(self._opened) >= _OPEN_FILES:
                self._opened.popitem(last=False)
            source = pa.OSFile(str(self.folder / name))
            self._opened[name] = pq.ParquetFile(source, pre_buffer=False, page_checksum_verification=True)
        self._opened.move_to_end(name)
        return self._opened[name]

    def _rows(self, name: str) -> Iterator[tuple[str, pa.Table]]:
        with self._reading(name):
            for row, key in enumerate(self._files[name]):
                yield key, self._open(name).read_row_group(row, use_threads=False)

    def _drop(self, name: str) -> None:
        """Forget a file; the next look at the folder finds out what is there instead."""
        self._opened.pop(name, None)
        for key in self._files.pop(name, ()):
            if self._index.get(key, _Place(name, 0)).file == name:
                self._index.pop(key, None)
        self._listed_ns = 0

    @contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        """Survive that the file is gone (compacted by another process) or damaged (set aside)."""
        try:
            yield
        except FileNotFoundError:
            self._drop(name)
        except OSError as error:
            if error.errno is not None:  # the disk's refusal; Arrow's complaints about the content have no number
                raise
            self._set_aside(name, error)
        except (pa.ArrowException, ValueError, KeyError) as error:
            self._set_aside(name, error)

    def _set_aside(self, name: str, error: Exception) -> None:
        path = self.folder / name
        say(
            f"{path}: damaged ({str(error).splitlines()[0]}); set aside as {name}.damaged, its records count as missing"
        )
        try:
            os.replace(path, path.with_name(f"{name}.damaged"))
        except OSError:  # a read-only cache, or another process was first
            self._ignored.add(name)
        self._drop(name)

    def _write_settings(self) -> None:
        path = self.folder / _SETTINGS
        if path.exists():
            return
        content = {
            "version": FORMAT_VERSION,
            "kind": self.kind.value,
            "source": self.source,
            "settings": self.settings,
        }
        write_atomically(path, json.dumps(content, indent=2, sort_keys=True).encode())

    def _write_shard(self, rows: Sequence[tuple[str, pa.Table]]) -> None:
        """The name follows from the keys, so that a repeated or concurrent merge writes the same file again."""
        digest = hashlib.sha256(" ".join(key for key, _ in rows).encode()).hexdigest()[:16]
        write_atomically(self.folder / f"shard-{digest}.parquet", _parquet(self.kind, rows))


_SCHEMAS = {
    PriorKind.MASKS: pa.schema(
        {
            "key": pa.string(),
            "height": pa.int32(),
            "width": pa.int32(),
            "boxes": pa.list_(pa.int32()),
            "bits": pa.list_(pa.binary()),
            "area": pa.list_(pa.int32()),
            "predicted_iou": pa.list_(pa.float32()),
            "stability": pa.list_(pa.float32()),
        }
    ),
    PriorKind.TEACHER: pa.schema({"key": pa.string(), "y_png": pa.binary(), "meta": pa.string()}),
}


def _encode(kind: PriorKind, key: str, record: MaskSet | TeacherImage) -> pa.Table:
    """One record as a table of one row."""
    fields: dict[str, Any]
    if kind is PriorKind.MASKS and isinstance(record, MaskSet):
        fields = {name: getattr(record, name) for name in _SCHEMAS[kind].names if name != "key"}
        fields["boxes"] = record.boxes.ravel()
    elif kind is PriorKind.TEACHER and isinstance(record, TeacherImage):
        fields = {"y_png": encode_png(record.y), "meta": json.dumps(record.meta, allow_nan=False)}
    else:
        raise TypeError(f"{type(record).__name__} in a store of {kind}")
    return pa.Table.from_pydict({name: [value] for name, value in {"key": key, **fields}.items()}, _SCHEMAS[kind])


def _decode(kind: PriorKind, table: pa.Table) -> MaskSet | TeacherImage:
    columns = {name: table[name].combine_chunks() for name in _SCHEMAS[kind].names}
    if kind is PriorKind.TEACHER:
        return TeacherImage(decode_png(columns["y_png"][0].as_py()), json.loads(columns["meta"][0].as_py()))
    return MaskSet(
        height=columns["height"][0].as_py(),
        width=columns["width"][0].as_py(),
        boxes=columns["boxes"].flatten().to_numpy().reshape(-1, 4),
        bits=tuple(columns["bits"].flatten().to_pylist()),
        area=columns["area"].flatten().to_numpy(),
        predicted_iou=columns["predicted_iou"].flatten().to_numpy(),
        stability=columns["stability"].flatten().to_numpy(),
    )


def _parquet(kind: PriorKind, rows: Sequence[tuple[str, pa.Table]]) -> bytes:
    """A Parquet file with one row group per record and the keys in its metadata."""
    said = {"version": FORMAT_VERSION, "kind": kind.value, "keys": [key for key, _ in rows]}
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink,
        _SCHEMAS[kind],
        compression="zstd",
        use_dictionary=False,
        write_statistics=False,
        write_page_checksum=True,
        store_schema=False,
    ) as writer:
        for _, row in rows:
            writer.write_table(row)
        writer.add_key_value_metadata({_METADATA: json.dumps(said).encode()})
    return bytes(sink.getvalue())
