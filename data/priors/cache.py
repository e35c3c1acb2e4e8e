"""One cache on disk for everything that is derived once from a picture or a pair.

``<root>/<kind>/<source>-<settings hash>/`` holds ``settings.json`` and Parquet files: single records and shards, all
sealed by digests (`duskfuse.data.priors.records`). A new record is a file of its own (temporary name, fsync, rename),
so that nothing finished is ever lost; a store merges what it has written into small shards as it goes, and `compact`
merges everything into full ones. Keys are hashes of the picture's bytes: a changed picture has another key, changed
settings have another folder, so nothing stale is ever read.

A record is served only if its digest, key and store are right. A damaged file is named, what is intact in it goes into
a new shard, and it is set aside as ``*.damaged``. Any number of processes may read, write, compact and be killed on
one folder. No name or path that stands inside a file is ever opened.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import time
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import JsonValue as JsonValue

from duskfuse.data.atomic import sole, storage_error, write_atomically
from duskfuse.data.errors import InputError, StorageError
from duskfuse.data.priors.masks import MaskSet
from duskfuse.data.priors.record_index import Place, RecordIndex
from duskfuse.data.priors.records import (
    DamagedError,
    OtherVersionError,
    Shard,
    bind,
    check_footer,
    decode_record,
    intact_records,
    is_record,
    key_hash,
    key_of,
    make_shard,
    read_shard,
    store_name,
    written_ns,
)
from duskfuse.data.priors.records import PriorKind as PriorKind
from duskfuse.data.priors.records import TeacherImage as TeacherImage
from duskfuse.data.priors.records import encode_record as encode_record
from duskfuse.data.priors.store_folder import DAMAGED, SUFFIX, StoreFolder
from duskfuse.data.progress import say

SHARD_ROWS = 64
"""Single records of its own that a store merges while it writes."""
FULL_ROWS = 1024
"""Records of a full shard."""
FULL_BYTES = 2**25
"""Bytes from which on a shard of fewer records is full."""

_SETTINGS = "settings.json"
_SETTINGS_BYTES = 2**28
_SINGLE = "item-"
_LOCK = ".lock"
_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,127}")
_CLOCK_GRAIN_NS = 100_000_000
"""A folder changed less than this before it was listed may have changed again without a newer time of change."""
_LISTINGS = 4


def pair_key(ir_sha256: str, vis_sha256: str) -> str:
    """Key of a prior that belongs to a pair: one hash out of the hashes of its two files."""
    return hashlib.sha256(f"{ir_sha256}:{vis_sha256}".encode()).hexdigest()


def stored_bytes(record: MaskSet | TeacherImage) -> int:
    """Bytes that a record takes on disk before it is compacted."""
    kind = PriorKind.MASKS if isinstance(record, MaskSet) else PriorKind.TEACHER
    return len(encode_record(kind, "0" * 64, record))


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
        canonical = _canonical(settings)
        return PriorStore(self.root / kind / _folder_name(source, canonical), kind, source, json.loads(canonical))

    def stores(self, kind: PriorKind) -> list[PriorStore]:
        """The stores on disk, newest last; one whose ``settings.json`` is damaged is named and left out."""
        found = []
        for path in self._settings_files(kind):
            said = _read_settings(path)
            if said is None:
                say(f"{path}: damaged, its store is left out; cache again with the same settings, or remove it")
                continue
            with suppress(FileNotFoundError):
                found.append((path.stat().st_mtime_ns, path.parent.name, PriorStore(path.parent, kind, *said)))
        return [store for *_, store in sorted(found, key=lambda item: item[:2])]

    def damaged_settings(self, kind: PriorKind) -> list[Path]:
        """The ``settings.json`` files that `stores` leaves out."""
        return [path for path in self._settings_files(kind) if _read_settings(path) is None]

    def _settings_files(self, kind: PriorKind) -> list[Path]:
        return sorted((self.root / kind).glob(f"*/{_SETTINGS}"))


def _read_settings(path: Path) -> tuple[str, dict[str, JsonValue]] | None:
    """Source and settings of a store; None where the file is damaged or not what its folder is named after."""
    try:
        if path.stat().st_size > _SETTINGS_BYTES:
            return None
        said = json.loads(path.read_bytes())
        source, settings = str(said["source"]), dict(said["settings"])
        return (source, settings) if path.parent.name == _folder_name(source, _canonical(settings)) else None
    except (ValueError, LookupError, TypeError, RecursionError, OSError):
        return None


def _canonical(settings: Mapping[str, JsonValue]) -> str:
    return json.dumps(dict(settings), sort_keys=True, separators=(",", ":"), allow_nan=False)


def _folder_name(source: str, canonical: str) -> str:
    return f"{source}-{hashlib.sha256(canonical.encode()).hexdigest()[:12]}"


class Damage(NamedTuple):
    """A file that was found damaged."""

    file: Path
    reason: str
    kept: int
    """Intact records in it, which were kept."""


class StoreCounts(NamedTuple):
    """What a store consists of."""

    shards: int
    singles: int
    """Files that are one record."""
    rows: int
    """Records, earlier ones of the same key among them."""
    other_version: int
    """Files that another version of duskfuse wrote, or that could not be set aside."""


class PriorStore:
    """The records of one kind, source and settings: a mapping on disk from a key to a mask set or a teacher image.

    May be pickled or forked into loading processes: files are opened where they are read. Of several threads each needs
    its own, which ``copy.copy`` gives.
    """

    def __init__(self, folder: Path, kind: PriorKind, source: str, settings: dict[str, JsonValue]) -> None:
        self.folder, self.kind, self.source, self.settings = folder, kind, source, settings
        self._name = store_name(kind, source, _canonical(settings))
        self.damage: list[Damage] = []
        """What this object has found damaged."""
        self._files = StoreFolder(folder)
        self._settled = False
        """Whether ``settings.json`` was found right."""
        self._forget()

    def __repr__(self) -> str:
        return f"PriorStore({str(self.folder)!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "kind": self.kind, "source": self.source, "settings": self.settings}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def keys(self) -> set[str]:
        """The keys of all records; files found damaged are named, set aside and do not count."""
        self._refresh()
        return self._index.keys()

    def __contains__(self, key: str) -> bool:
        return bool(self._places(key))

    def get(self, key: str) -> MaskSet | TeacherImage:
        """Read one record.

        Raises:
            InputError: the key is not here, or its record turned out to be damaged (its file is then set aside).
            StorageError: the disk refuses to be read.
        """
        while True:
            copies = self._copies(key)
            if copies is None:
                continue
            if not copies:
                raise InputError(
                    f"{self.folder.name}: no {self.kind} for {key[:12]}…",
                    rule="priors are cached before they are used",
                    remedy=f"run duskfuse cache-{self.kind} DATA",
                )
            name, data = max(copies, key=lambda copy: written_ns(copy[1]))
            try:
                return decode_record(data, self.kind)
            except DamagedError as error:
                self._mend(name, error)

    def put(self, key: str, record: MaskSet | TeacherImage) -> None:
        """Write one record, in place of an earlier one of this key; once this returns it survives a crash.

        Raises:
            StorageError: the disk refuses; everything finished before is kept.
        """
        self.put_encoded(key, encode_record(self.kind, key, record))

    def put_encoded(self, key: str, data: bytes) -> None:
        """Write what this or another process made by `encode_record`, after reading it back from these bytes.

        Raises:
            InputError: it is not intact, not of this key, or belongs to another store.
            StorageError: the disk refuses; everything finished before is kept.
        """
        if not _NAME.fullmatch(key):
            raise ValueError(f"key {key!r} is no file name")
        try:
            bound = bind(data, self._name, time.time_ns())
            if self._checked(bound) != key:
                raise DamagedError("the record of another key")
        except (DamagedError, OtherVersionError) as error:
            raise InputError(
                f"{len(data)} bytes for {key[:12]}… are not its {self.kind} ({error})",
                rule="records come from encode_record of the same version of duskfuse",
                remedy="make the record again",
            ) from error
        self._write(key, bound)

    def compact(self) -> None:
        """Merge single records and part-filled shards into shards of up to `FULL_ROWS` records.

        The shards are complete on disk before what they were made from goes; a crash between the two leaves
        duplicates, which are harmless and go with the next call. Does nothing while another process compacts.

        Raises:
            StorageError: the disk refuses; nothing is lost.
        """
        self._refresh()
        if self._index.names():
            with self._writing():
                self._settle()
        partial = sorted((name for name in self._index.names() if not self._is_full(name)), key=_shards_first)
        if len(partial) > 1 or any(name in self._index.singles for name in partial):
            with self._writing(), sole(self.folder / _LOCK) as ours:
                if ours:
                    self._merge(partial)

    def verify(self) -> Iterator[int]:
        """Read and decode every record of every file: the number of records of each intact file.

        Damaged files are mended and set aside as they are found, and stand in `damage`.
        """
        self._refresh()
        done: set[str] = set()
        while todo := self._index.names() - done:  # more than once where intact records were moved to new shards
            for name in sorted(todo, key=_shards_first):
                yield len(self._intact(name, footer=True) or ())
            done |= todo

    def rewrite_without(self, unwanted: Collection[str]) -> bool:
        """Remove these records, and all but the latest of each key; False where another process is merging.

        Raises:
            StorageError: the disk refuses; nothing is lost.
        """
        self._refresh()
        names = self._index.doubled() | self._index.files_of(unwanted)
        if names:
            with self._writing(), sole(self.folder / _LOCK) as ours:
                if ours:
                    self._merge(sorted(names, key=_shards_first), unwanted)
                return ours
        return True

    def counts(self) -> StoreCounts:
        """How many files and records there are."""
        self._refresh()
        index = self._index
        return StoreCounts(
            shards=len(index.shards),
            singles=len(index.singles),
            rows=sum(map(index.rows, index.names())),
            other_version=len(self._ignored - index.names()),
        )

    def record_bytes(self, keys: Collection[str]) -> int:
        """Bytes of the records of some keys, earlier ones of the same key among them."""
        places = [place for key in keys for place in self._index.places(key)]
        return sum(self._files.size(p.file) if p.length is None else p.length for p in places)

    def size_bytes(self) -> int:
        """Bytes of all records on disk."""
        return sum(map(self._files.size, self._files.names()))

    def _forget(self) -> None:
        self._index = RecordIndex()
        self._fresh: dict[str, None] = {}
        """Single records written here and not merged yet."""
        self._small: list[str] = []
        """Part-filled shards merged out of such records."""
        self._ignored: set[str] = set()
        self._listed_ns = 0

    def _copies(self, key: str) -> list[tuple[str, bytes]] | None:
        """File and bytes of all records of a key; None where one was gone or damaged, and others may be found now."""
        found = []
        for place in self._places(key):
            try:
                data = self._files.read(place)
                if key_of(data, self.kind, self._name) == key:
                    found.append((place.file, data))
                elif place.length is None:  # another record has been put under its name
                    raise FileNotFoundError
            except FileNotFoundError:  # most often merged by another process
                self._drop(place.file)
                return None
            except (DamagedError, OtherVersionError) as error:
                self._mend(place.file, error)
                return None
        return found

    def _places(self, key: str) -> list[Place]:
        found = self._index.places(key)
        if not found:
            self._refresh()
            found = self._index.places(key)
        return found

    def _refresh(self) -> None:
        """Take in what this or another process has written or removed since the last look.

        A record may slip past a listing: its old file goes before its place in the folder is reached, its new one
        comes after that. While the folder is changing it is therefore listed until it was the same twice.
        """
        before: set[str] | None = None
        for _ in range(_LISTINGS):
            changed_ns = self._files.changed_ns()
            if changed_ns is None:
                return self._forget()
            if changed_ns == self._listed_ns:
                return None
            settled = time.time_ns() - changed_ns > _CLOCK_GRAIN_NS
            names = self._files.names()
            self._take_in(names)
            self._listed_ns = changed_ns if settled and self._files.changed_ns() == changed_ns else 0
            if self._listed_ns or names == before:
                return None
            before = names
        return None

    def _take_in(self, names: set[str]) -> None:
        for name in self._index.names() - names:
            self._index.remove(name)
        left_out: dict[str, list[str]] = {}
        for name in sorted(names - self._index.names() - self._ignored, key=_shards_first):
            try:
                self._load(name)
            except FileNotFoundError:
                continue
            except OtherVersionError as error:
                left_out.setdefault(str(error), []).append(name)
            except DamagedError as error:
                self._mend(name, error)
        for reason, files in left_out.items():
            self._ignored.update(files)
            say(f"{self.folder}: {len(files)} files are left out, such as {files[0]}: {reason}")

    def _load(self, name: str) -> None:
        """Take one file into the index."""
        head, size = self._files.head(name)
        if not is_record(head):
            self._index.add_shard(name, read_shard(head, size, self.kind, self._name))
        elif size == len(head):
            self._index.add_single(name, key_of(head, self.kind, self._name))
        else:
            raise DamagedError(f"{size} bytes, of which a record says {len(head)}")

    def _drop(self, name: str) -> None:
        """Forget a file; the next look at the folder finds out what is there instead."""
        self._index.remove(name)
        self._listed_ns = 0

    def _mend(self, name: str, reason: Exception) -> None:
        """Bring the intact records of a damaged file into a new shard and set the file aside.

        Where the folder cannot be written, the file stays and only its intact records are still found.
        """
        path = self.folder / name
        try:
            content = self._files.read_whole(name)
        except FileNotFoundError:
            return self._drop(name)
        except DamagedError:
            content = b""
        intact = list(intact_records(content, self.kind, self._name))
        self._drop(name)
        if self._is_intact(content, intact):  # the damage was on the way from the disk
            return None
        try:
            if intact:
                self._write_shard([content[start : start + length] for start, length, _ in intact], origin=name)
            os.replace(path, path.with_name(name + DAMAGED))
            outcome = f"set aside as {name}{DAMAGED}"
        except FileNotFoundError:  # another process was first
            return None
        except (OSError, StorageError, DamagedError) as error:
            outcome = f"cannot be set aside ({getattr(error, 'strerror', None) or error})"
            self._ignored.add(name)
            if intact:
                self._index.add_shard(name, _layout(intact))
        self.damage.append(Damage(path, str(reason), len(intact)))
        say(f"{path}: damaged ({reason}); {outcome}; {len(intact)} intact records in it are kept, others are missing")
        return None

    def _is_intact(self, content: bytes, found: Sequence[tuple[int, int, str]]) -> bool:
        """Whether a file says of itself what was found in it."""
        spans = [(start, length) for start, length, _ in found]
        try:
            if is_record(content):
                return spans == [(0, len(content))]
            shard = read_shard(content, len(content), self.kind, self._name)
            check_footer(content, shard)
            return spans == list(zip(shard.offsets.tolist(), shard.lengths.tolist(), strict=True))
        except (DamagedError, OtherVersionError):
            return False

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise storage_error(self.folder, error) from error

    def _write(self, key: str, data: bytes) -> None:
        name = f"{_SINGLE}{key}{SUFFIX}"
        with self._writing():
            self._settle()
            write_atomically(self.folder / name, data)
        self._index.add_single(name, key)
        self._fresh[name] = None
        if len(self._fresh) % SHARD_ROWS == 0:
            self._merge_fresh()

    def _settle(self) -> None:
        """See that the folder is still there and says what it holds."""
        if self._files.seen and not self.folder.is_dir():
            raise FileNotFoundError(errno.ENOENT, "gone")
        path = self.folder / _SETTINGS
        if not self._settled or not path.exists():
            if _read_settings(path) != (self.source, self.settings):
                content = {"kind": self.kind.value, "source": self.source, "settings": self.settings}
                write_atomically(path, json.dumps(content, indent=2, sort_keys=True).encode())
            self._settled = self._files.seen = True

    def _merge_fresh(self) -> None:
        """Merge the single records written here into a small shard, and small shards into a full one.

        What was put is on disk already, so that a refusal here is said and no more.
        """
        try:
            with sole(self.folder / _LOCK) as ours:
                if not ours:
                    return
                small = self._small + self._merge([name for name in self._fresh if name in self._index.singles])
                small = [name for name in small if name in self._index.shards]
                if sum(map(self._index.rows, small)) >= FULL_ROWS or sum(map(self._bytes_of, small)) >= FULL_BYTES:
                    small = [name for name in self._merge(small) if not self._is_full(name)]
                self._fresh, self._small = {}, small
        except (OSError, StorageError) as error:
            say(f"{self.folder}: single records are not merged for now ({error})")

    def _merge(self, names: Sequence[str], unwanted: Collection[str] = ()) -> list[str]:
        """Write the records of some files into new shards and remove the files; the names of the shards.

        Of several records with one key the latest is written, and none where it is ``unwanted`` or in a file beside
        these.
        """
        batch: list[bytes] = []
        size = 0
        written, merged, done, sources = [], [], set(unwanted), set(names)
        for name in names:
            records = self._intact(name)
            if records is None:
                continue
            merged.append(name)
            for key, data in records:
                if key in done or self._is_superseded(key, data, name, sources):
                    continue
                done.add(key)
                batch.append(data)
                size += len(data)
                if len(batch) == FULL_ROWS or size >= FULL_BYTES:
                    written.append(self._write_shard(batch))
                    batch, size = [], 0
        if batch:
            written.append(self._write_shard(batch))
        for name in merged:
            if name not in written:
                (self.folder / name).unlink(missing_ok=True)
                self._index.remove(name)
        return written

    def _intact(self, name: str, footer: bool = False) -> list[tuple[str, bytes]] | None:
        """All records of a file; None where it is gone, or damaged and therefore mended.

        ``footer`` also checks Parquet's own, which is not needed here but read by other programs.
        """
        try:
            content = self._files.read_whole(name)
            if name in self._index.singles:
                return [(self._checked(content), content)]
            shard = self._index.shards[name]
            if footer and name not in self._ignored:
                check_footer(content, shard)
            parts = [
                content[at : at + size] for at, size in zip(shard.offsets.tolist(), shard.lengths.tolist(), strict=True)
            ]
            return [(self._checked(part), part) for part in parts]
        except FileNotFoundError:
            self._drop(name)
        except (DamagedError, OtherVersionError) as error:
            self._mend(name, error)
        return None

    def _checked(self, data: bytes) -> str:
        key = key_of(data, self.kind, self._name)
        decode_record(data, self.kind)
        return key

    def _is_superseded(self, key: str, data: bytes, name: str, sources: Collection[str]) -> bool:
        """Whether another file has a later record of this key, or the same one and is not one of ``sources``."""
        for place in self._index.places(key):
            if place.file != name:
                with suppress(FileNotFoundError, DamagedError, OtherVersionError):
                    other = self._files.read(place)
                    later = (written_ns(other), place.file not in sources) > (written_ns(data), False)
                    if later and self._checked(other) == key:
                        return True
        return False

    def _write_shard(self, records: Sequence[bytes], origin: str = "") -> str:
        """The name follows from the records, so that a repeated or concurrent merge writes the same file again."""
        content = make_shard(self.kind, self._name, records)
        digest = hashlib.sha256(b"".join([origin.encode(), *records])).hexdigest()[:32]
        name = f"shard-{digest}{SUFFIX}"
        write_atomically(self.folder / name, content)
        self._load(name)
        return name

    def _is_full(self, name: str) -> bool:
        return self._index.rows(name) >= FULL_ROWS or self._bytes_of(name) >= FULL_BYTES

    def _bytes_of(self, name: str) -> int:
        """Bytes of the records of a shard, 0 for a single record."""
        return int(self._index.shards[name].lengths.sum()) if name in self._index.shards else 0


def _shards_first(name: str) -> tuple[bool, str]:
    return name.startswith(_SINGLE), name


def _layout(intact: Sequence[tuple[int, int, str]]) -> Shard:
    """A table of records found in a damaged file."""
    offsets, lengths, keys = zip(*intact, strict=True)
    hashes = np.array([key_hash(key) for key in keys], np.uint64)
    table = zlib.compress("\n".join(keys).encode())
    return Shard(table, hashes, np.array(offsets, np.uint32), np.array(lengths, np.uint32))
