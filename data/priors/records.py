"""The bytes of cached priors: one sealed record, and shards of many.

A record is a complete Parquet file of one row. Between Parquet's opening magic and its data stands a seal: version,
kind, key, the store it belongs to, when it was written, its length, and a BLAKE2b digest of everything else in the
file. A shard is a Parquet file with one row group per record whose row groups lie inside the very same sealed records;
its own opening seal covers a table of their keys and lengths, and a digest of Parquet's footer. Any Parquet reader
reads both; the columns are in `SCHEMAS`, and whoever changes them raises `FORMAT_VERSION`.

What is guaranteed: every byte of a file is under a digest; the Parquet reader is given one record in memory after its
digest, store and key were found right, and never a footer of a shard; a record is found and checked without the rest of
its shard, so that damage costs the records it touches. A digest protects against accidents: who makes a seal on purpose
can choose the content, and meets the checks of schema, row count and sizes below.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from hashlib import blake2b
from itertools import repeat
from typing import Any, NamedTuple

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import JsonValue

from duskfuse.data.containers import Container, size_of
from duskfuse.data.errors import InputError
from duskfuse.data.images import decode_png, encode_png
from duskfuse.data.priors.masks import MAX_PIXELS, MaskSet, check_pixels

FORMAT_VERSION = 2
RECORD_BYTES = 2**27
"""Of the file of the largest record; a length beyond is taken for a damaged number."""
UNPACKED_BYTES = 2**29
"""Of the largest record before compression."""
FILE_BYTES = 2**28
"""No file of a cache is larger."""
STORE_BYTES = 16
"""Length of the name under which a store is written into its records."""
UNBOUND = bytes(STORE_BYTES)
"""The store of a record that was encoded for whichever store will write it."""

_PARQUET = b"PAR1"
_MAGIC = b"duskfuse"
_HEAD = struct.Struct(f"<4s8sHHIQQQ{STORE_BYTES}s")
_BINDING = struct.Struct(f"<Q{STORE_BYTES}s")
"""The end of the head: time and store."""
_DIGEST_BYTES = 32
_OPENING = _PARQUET + _MAGIC
_LABEL_AT = _HEAD.size + _DIGEST_BYTES
_KEY_CHARACTERS = 128
_ZSTD_LEVEL = 9
_THRIFT_STRING, _THRIFT_CONTAINER = 2**20, 10_000
"""Bytes of the longest text and items of the longest list in the Parquet footer of a record."""


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


Record = MaskSet | TeacherImage


class DamagedError(ValueError):
    """These bytes are not what was written."""


class OtherVersionError(ValueError):
    """Written, and possibly well, by another version of duskfuse."""

    def __init__(self, version: int) -> None:
        super().__init__(f"format {version}, this duskfuse reads {FORMAT_VERSION}")


class _Form(IntEnum):
    RECORD = 1
    SHARD = 2


class _Head(NamedTuple):
    """The beginning of a seal, of fixed length; the digest and the label follow."""

    parquet: bytes
    magic: bytes
    version: int
    form: int
    label_bytes: int
    end: int
    """Bytes under the digest: all of a record; of a shard, what precedes its first record."""
    total: int
    """Bytes of the whole record or shard."""
    written_ns: int
    store: bytes

    @property
    def content(self) -> int:
        """Where the bytes after the label begin."""
        return _LABEL_AT + self.label_bytes


class _Seal(NamedTuple):
    head: _Head
    label: dict[str, Any]


class Shard(NamedTuple):
    """The table at the beginning of a shard: where its records are."""

    keys: bytes | memoryview
    """Zlib of the keys, one a line."""
    hashes: NDArray[np.uint64]
    """`key_hash` of each key."""
    offsets: NDArray[np.uint32]
    lengths: NDArray[np.uint32]

    def key_list(self) -> list[str]:
        """The keys in the order of the records."""
        unpacked = zlib.decompressobj().decompress(self.keys, max(1, len(self.hashes) * (_KEY_CHARACTERS + 1)))
        return unpacked.decode().split("\n") if unpacked else []


SCHEMAS = {
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
            "made_from": pa.string(),
        }
    ),
    PriorKind.TEACHER: pa.schema({"key": pa.string(), "y_png": pa.binary(), "meta": pa.string()}),
}
"""Columns by kind; ``bits`` as in `MaskSet`."""


def encode_record(kind: PriorKind, key: str, record: Record) -> bytes:
    """A record as its file, bound to no store yet: what worker processes hand to `PriorStore.put_encoded`.

    Raises:
        TypeError: the record is not of this kind.
        InputError: it is too large to be kept.
    """
    return _sealed_record(kind, key, UNBOUND, 0, _row(kind, key, record))


def bind(data: bytes, store: bytes, written_ns: int) -> bytes:
    """The same record, belonging to ``store`` and written at this time since the epoch.

    Raises:
        DamagedError, OtherVersionError: the bytes are no intact record that is unbound or of this store.
    """
    seal = _open(data, _Form.RECORD, *{UNBOUND, store})
    bound = bytearray(data)
    _BINDING.pack_into(bound, _HEAD.size - _BINDING.size, written_ns, store)
    _write_digest(bound, seal.head.end)
    return bytes(bound)


def written_ns(data: bytes) -> int:
    """When a record was written to its store: of several with one key the latest counts."""
    return _head(data).written_ns


def key_of(data: bytes, kind: PriorKind, store: bytes) -> str:
    """The key of a record of this kind and store, after its digest was found right.

    Raises:
        DamagedError, OtherVersionError: the bytes are no intact record of this store.
    """
    seal = _open(data, _Form.RECORD, store)
    key = seal.label.get("key")
    if not isinstance(key, str) or seal.label.get("kind") != kind or len(data) != seal.head.total:
        raise DamagedError(f"no record of {kind}")
    return key


def decode_record(data: bytes, kind: PriorKind) -> Record:
    """What a record holds; `key_of` must have found its digest right.

    Raises:
        DamagedError: it was sealed with this content, but the content is no record.
    """
    try:
        row = _read_row(data, kind)
        columns = {name: row[name].combine_chunks() for name in SCHEMAS[kind].names}
        return _masks(columns) if kind is PriorKind.MASKS else _teacher_image(columns)
    except _CONTENT_ERRORS as error:
        raise DamagedError(f"well sealed, but no record ({error})") from error


def sealed_bytes(head: bytes) -> int:
    """How many bytes from its beginning a file must be read for its seal to be checked.

    Raises:
        DamagedError: this is not the beginning of a record or shard.
    """
    if len(head) < _LABEL_AT or not head.startswith(_OPENING):
        raise DamagedError("no seal at its beginning")
    said = _head(head)
    if not said.content <= said.end <= said.total <= (RECORD_BYTES if said.form == _Form.RECORD else FILE_BYTES):
        raise DamagedError("impossible lengths")
    return said.end


def is_record(head: bytes) -> bool:
    """Whether a file that begins like this says it is one record, and not a shard."""
    return len(head) >= _HEAD.size and _head(head).form == _Form.RECORD


def is_version_1(tail: bytes) -> bool:
    """Whether the end of a file is that of format 1, Parquet with its version in the footer and no seal."""
    footer = tail[-8 - int.from_bytes(tail[-8:-4], "little") :]
    return tail.endswith(_PARQUET) and b'{"version": 1, "kind": "' in footer


def read_shard(head: bytes, file_bytes: int, kind: PriorKind, store: bytes) -> Shard:
    """The table of a shard out of its first `sealed_bytes` bytes.

    Raises:
        DamagedError, OtherVersionError: no intact beginning of a shard of this store, or the file has another length.
    """
    said, label = _open(head, _Form.SHARD, store)
    rows = label.get("rows")
    if not isinstance(rows, int) or label.get("kind") != kind:
        raise DamagedError(f"no shard of {kind}")
    if said.total != file_bytes:
        raise DamagedError(f"{file_bytes} of {said.total} bytes")
    table = memoryview(head[said.content + _DIGEST_BYTES : said.end])
    if not 0 <= 12 * rows <= len(table):
        raise DamagedError("another number of keys than of records")
    hashes, lengths = np.frombuffer(table, "<u8", rows), np.frombuffer(table, "<u4", rows, 8 * rows)
    ends = said.end + np.cumsum(lengths, dtype=np.int64)
    if rows and ends[-1] > said.total:
        raise DamagedError("records beyond its end")
    return Shard(table[12 * rows :], hashes, (ends - lengths).astype(np.uint32), lengths)


def check_footer(content: bytes, shard: Shard) -> None:
    """Raise DamagedError where Parquet's own footer of a whole shard, which other programs read, was changed."""
    said, _ = _open(content, _Form.SHARD)
    records_end = int(shard.offsets[-1]) + int(shard.lengths[-1]) if len(shard.offsets) else said.end
    if _digest(content[records_end:]) != content[said.content : said.content + _DIGEST_BYTES]:
        raise DamagedError("its Parquet footer was changed")


def make_shard(kind: PriorKind, store: bytes, records: Sequence[bytes]) -> bytes:
    """Join intact records of one store, which stay byte for byte what they are, into a shard."""
    keys = [key_of(data, kind, store) for data in records]
    rows = [_read_row(data, kind) for data in records]
    shard = _join(kind, store, keys, rows, records)
    if shard is None:  # encoded by another version of the Parquet library
        times = map(written_ns, records)
        again = [_sealed_record(kind, *of_one) for of_one in zip(keys, repeat(store), times, rows, strict=False)]
        shard = _join(kind, store, keys, rows, again)
    if shard is None:
        raise RuntimeError("the Parquet writer makes other bytes of the same row each time")
    return shard


def intact_records(content: bytes, kind: PriorKind, store: bytes) -> Iterator[tuple[int, int, str]]:
    """Offset, length and key of every record of this store in whatever is left of a file, found by their seals."""
    position, budget = content.find(_OPENING), 4 * len(content)
    while position >= 0 and budget > 0:  # a file made of openings that all claim the rest would cost its square
        start, position = position, content.find(_OPENING, position + 1)
        head = content[start : start + _LABEL_AT]
        with suppress(DamagedError, OtherVersionError):
            length = sealed_bytes(head)
            if not is_record(head) or start + length > len(content):
                continue
            budget -= length
            data = content[start : start + length]
            key = key_of(data, kind, store)
            decode_record(data, kind)
            yield start, length, key
            position = content.find(_OPENING, start + length)


def key_hash(key: str) -> int:
    """The number by which a key is looked up."""
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "little")


def store_name(*parts: str) -> bytes:
    """The name of a store inside its records."""
    return blake2b("\0".join(parts).encode(), digest_size=STORE_BYTES).digest()


def _open(data: bytes, form: _Form, *stores: bytes) -> _Seal:
    """Check digest, version, form and, where given, store of an opening, and only then read its label."""
    end = sealed_bytes(data)
    if end > len(data):
        raise DamagedError(f"{len(data)} of {end} bytes")
    said, view = _head(data), memoryview(data)
    if _digest(view[: _HEAD.size], view[_LABEL_AT:end]) != data[_HEAD.size : _LABEL_AT]:
        raise DamagedError("its digest is another")
    if said.version != FORMAT_VERSION:
        raise OtherVersionError(said.version)
    if said.form != form:
        raise DamagedError(f"no {form.name.lower()}")
    if stores and said.store not in stores:
        raise DamagedError("belongs to another store")
    try:
        label = json.loads(data[_LABEL_AT : said.content])
    except (ValueError, RecursionError) as error:
        raise DamagedError("its label is no JSON") from error
    return _Seal(said, label if isinstance(label, dict) else {})


def _head(data: bytes) -> _Head:
    return _Head._make(_HEAD.unpack_from(data))


def _seal(form: _Form, label: dict[str, JsonValue], end: int, total: int, written: int, store: bytes) -> bytes:
    """An opening without its digest yet; ``end`` and ``total`` are counted from the end of the label."""
    text = json.dumps(label).encode()
    start = _LABEL_AT + len(text)
    head = _HEAD.pack(_PARQUET, _MAGIC, FORMAT_VERSION, form, len(text), start + end, start + total, written, store)
    return head + bytes(_DIGEST_BYTES) + text


def _digest(*parts: bytes | bytearray | memoryview) -> bytes:
    state = blake2b(digest_size=_DIGEST_BYTES)
    for part in parts:
        state.update(part)
    return state.digest()


def _write_digest(content: bytearray, end: int) -> None:
    view = memoryview(content)
    view[_HEAD.size : _LABEL_AT] = _digest(view[: _HEAD.size], view[_LABEL_AT:end])


def _sealed_record(kind: PriorKind, key: str, store: bytes, written: int, row: pa.Table) -> bytes:
    label: dict[str, JsonValue] = {"kind": kind.value, "key": key}
    room = len(_seal(_Form.RECORD, label, 0, 0, written, store))
    sink = pa.BufferOutputStream()
    with _writer(sink, kind) as writer:
        sink.write(bytes(room - len(_PARQUET)))
        writer.write_table(row)
    content = bytearray(sink.getvalue())
    if len(content) > RECORD_BYTES or row.nbytes > UNPACKED_BYTES:
        raise InputError(
            f"{kind} of {len(content) >> 20} MiB, {row.nbytes >> 20} MiB before compression",
            rule=f"one prior takes at most {RECORD_BYTES >> 20} MiB, {UNPACKED_BYTES >> 20} MiB before compression",
            remedy="use smaller pictures or fewer masks",
        )
    length = len(content) - room
    content[:room] = _seal(_Form.RECORD, label, length, length, written, store)
    _write_digest(content, len(content))
    return bytes(content)


def _join(
    kind: PriorKind, store: bytes, keys: Sequence[str], rows: Sequence[pa.Table], records: Sequence[bytes]
) -> bytes | None:
    """The shard; None where the Parquet writer now makes other bytes of a row than its record has."""
    label: dict[str, JsonValue] = {"kind": kind.value, "rows": len(keys)}
    hashes = np.array([key_hash(key) for key in keys], "<u8")
    lengths = np.array([len(data) for data in records], "<u4")
    table = hashes.tobytes() + lengths.tobytes() + zlib.compress("\n".join(keys).encode())
    content_at = len(_seal(_Form.SHARD, label, 0, 0, 0, store))
    room = content_at + _DIGEST_BYTES + len(table)
    sink = pa.BufferOutputStream()
    with _writer(sink, kind) as writer:
        sink.write(bytes(room - len(_PARQUET)))
        for data, row in zip(records, rows, strict=True):
            end = sink.tell() + len(data)
            sink.write(memoryview(data)[: _head(data).content])
            writer.write_table(row)
            written = len(data) - (end - sink.tell())
            sink.write(memoryview(data)[written:])
    content = bytearray(sink.getvalue())
    records_end = room + int(lengths.sum())
    if memoryview(content)[room:records_end] != b"".join(records):
        return None
    opening = _seal(_Form.SHARD, label, room - content_at, len(content) - content_at, 0, store)
    content[:room] = opening + _digest(content[records_end:]) + table
    _write_digest(content, room)
    return bytes(content)


def _writer(sink: pa.BufferOutputStream, kind: PriorKind) -> pq.ParquetWriter:
    return pq.ParquetWriter(
        sink,
        SCHEMAS[kind],
        compression="zstd",
        compression_level=_ZSTD_LEVEL,
        use_dictionary=False,
        write_statistics=False,
        store_schema=False,
    )


def _row(kind: PriorKind, key: str, record: Record) -> pa.Table:
    """A record as a table of one row."""
    fields: dict[str, Any]
    if kind is PriorKind.MASKS and isinstance(record, MaskSet):
        fields = {name: getattr(record, name) for name in SCHEMAS[kind].names if name != "key"}
        fields["boxes"] = record.boxes.ravel()
    elif kind is PriorKind.TEACHER and isinstance(record, TeacherImage):
        if record.y.ndim != 2:
            raise ValueError(f"y {record.y.shape}, want [H,W]")
        check_pixels(*record.y.shape)
        fields = {"y_png": encode_png(record.y), "meta": json.dumps(record.meta, allow_nan=False)}
    else:
        raise TypeError(f"{type(record).__name__} in a store of {kind}")
    return pa.Table.from_pydict({name: [value] for name, value in {"key": key, **fields}.items()}, SCHEMAS[kind])


def _read_row(data: bytes, kind: PriorKind) -> pa.Table:
    file = pq.ParquetFile(
        pa.BufferReader(data),
        pre_buffer=False,
        thrift_string_size_limit=_THRIFT_STRING,
        thrift_container_size_limit=_THRIFT_CONTAINER,
    )
    found = file.metadata
    if (found.num_row_groups, found.num_rows) != (1, 1) or not file.schema_arrow.equals(SCHEMAS[kind]):
        raise ValueError("another table")
    if found.row_group(0).total_byte_size > UNPACKED_BYTES:
        raise ValueError("too large")
    return file.read_row_group(0, use_threads=False)


def _masks(columns: dict[str, Any]) -> MaskSet:
    return MaskSet(
        height=columns["height"][0].as_py(),
        width=columns["width"][0].as_py(),
        boxes=columns["boxes"].flatten().to_numpy().reshape(-1, 4),
        bits=tuple(columns["bits"].flatten().to_pylist()),
        area=columns["area"].flatten().to_numpy(),
        predicted_iou=columns["predicted_iou"].flatten().to_numpy(),
        stability=columns["stability"].flatten().to_numpy(),
        made_from=str(columns["made_from"][0].as_py()),
    )


def _teacher_image(columns: dict[str, Any]) -> TeacherImage:
    png = columns["y_png"][0].as_py()
    size = size_of(Container.PNG, png)
    if size is None or not 0 < size[0] * size[1] <= MAX_PIXELS:
        raise ValueError(f"a picture of {size}")
    y = decode_png(png)
    if y.shape != size or y.dtype != np.uint8:
        raise ValueError(f"{y.dtype} {y.shape} for a picture of {size}")
    return TeacherImage(y, json.loads(columns["meta"][0].as_py()))


_CONTENT_ERRORS = (
    pa.ArrowException,
    cv2.error,
    ArithmeticError,
    LookupError,
    MemoryError,
    OSError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What decoders raise at content that is not what they expect."""
