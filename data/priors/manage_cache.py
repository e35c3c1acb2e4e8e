"""The verbs ``cache verify``, ``cache stats`` and ``cache gc``: what a prior cache holds, and whether it is sound.

Reading never trusts a file (`duskfuse.data.priors.cache`), so that none of these is ever needed for right results.
They say what is there, find damage before a training run does, and free space.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from duskfuse.data.atomic import storage_error
from duskfuse.data.errors import InputError, VerificationError
from duskfuse.data.priors.cache import JsonValue, PriorCache, PriorKind, PriorStore, pair_key
from duskfuse.data.priors.store_folder import StoreFolder
from duskfuse.data.progress import say, track

if TYPE_CHECKING:
    from rich.table import Table

    from duskfuse.data.reading import Reading

_SHORT = 16
"""Characters of one setting in a table."""
_NAMED = 5


@dataclass(frozen=True)
class StoreCheck:
    """What `verify_cache` found in one store."""

    kind: str
    store: str
    """Name of its folder."""
    records: int
    """Intact."""
    bytes: int
    damaged: list[str]
    """A message for each damaged file."""


@dataclass(frozen=True)
class VerifyReport:
    """What `verify_cache` found."""

    root: str
    stores: list[StoreCheck]
    damaged_settings: list[str]
    """``settings.json`` files whose stores are therefore not used."""
    seconds: float

    @property
    def damaged(self) -> list[str]:
        """Everything that was found damaged."""
        return [*self.damaged_settings, *(message for store in self.stores for message in store.damaged)]

    def to_json(self) -> dict[str, JsonValue]:
        """The report as plain data."""
        return asdict(self)

    def raise_for_damage(self) -> None:
        """Raise VerificationError where anything was damaged."""
        if self.damaged:
            raise VerificationError(
                f"{len(self.damaged)} files of {self.root} were damaged: {_some(self.damaged)}",
                rule="what was intact in them is kept, the files were set aside",
                remedy="run cache-masks or cache-teacher again: only what is missing is made; then duskfuse cache gc",
            )

    def table(self) -> Table:
        """The report for a terminal."""
        table = _table(f"{self.root}: every record read and decoded", "store", "records", "size", "damaged files")
        for store in self.stores:
            table.add_row(store.store, f"{store.records:,}", _size(store.bytes), str(len(store.damaged)))
        return table


@dataclass(frozen=True)
class StoreStats:
    """One store, see `cache_stats`."""

    kind: str
    store: str
    """Name of its folder."""
    source: str
    settings: dict[str, JsonValue]
    records: int
    bytes: int
    """Of all its records."""
    bytes_per_record: float
    shards: int
    single_records: int
    """Files that are one record each: not merged yet."""
    superseded: int
    """Records of a key that has a later one."""
    damaged: int
    """Files that were set aside."""
    leftovers: int
    """Temporary files of killed processes."""
    other_version: int
    """Files that another version of duskfuse wrote."""
    rubbish_bytes: int
    """Of damaged files and leftovers."""
    age_s: float
    """Since a file came, went or was merged."""


@dataclass(frozen=True)
class CacheStats:
    """What a cache holds."""

    root: str
    stores: list[StoreStats]
    damaged_settings: list[str]
    """``settings.json`` files whose stores are therefore not used."""

    @property
    def records(self) -> int:
        """Of all stores."""
        return sum(store.records for store in self.stores)

    @property
    def bytes(self) -> int:
        """Of all records."""
        return sum(store.bytes for store in self.stores)

    def to_json(self) -> dict[str, JsonValue]:
        """The report as plain data, with totals."""
        return {**asdict(self), "records": self.records, "bytes": self.bytes}

    def tables(self) -> list[Table]:
        """The report for a terminal: numbers, and the settings behind each store."""
        numbers = _table(self.root, "store", "records", "size", "each", "shards", "single", "junk", "age")
        settings = _table("settings", "store", "priors", "made with")
        settings.columns[2].justify, settings.columns[2].no_wrap = "left", False
        for store in self.stores:
            rubbish = store.damaged + store.leftovers + store.other_version + store.superseded
            counts = (store.shards, store.single_records, rubbish)
            sizes = (_size(store.bytes), _size(store.bytes_per_record))
            numbers.add_row(
                store.store, f"{store.records:,}", *sizes, *(f"{count:,}" for count in counts), _age(store.age_s)
            )
            settings.add_row(store.store, store.kind, _short(store.settings))
        numbers.add_section()
        numbers.add_row(f"{len(self.stores)} stores", f"{self.records:,}", _size(self.bytes))
        numbers.caption = "junk: files set aside, left over or of another version, and replaced records"
        return [numbers, settings] if self.stores else [numbers]


@dataclass(frozen=True)
class StoreGarbage:
    """What `collect_garbage` removed from one store, or with ``dry_run`` would remove."""

    kind: str
    store: str
    """Name of its folder."""
    leftovers: int
    """Temporary files of killed processes."""
    damaged: int
    """Files that were set aside."""
    superseded: int
    """Records of which there is a later one, or the same one in another file."""
    unwanted: int
    """Records whose picture is in none of the datasets; 0 where no dataset was given."""
    unwanted_bytes: int
    kept: int
    """Records that stay."""
    freed_bytes: int
    """On disk; with ``dry_run`` an estimate."""
    busy: bool
    """Another process was merging this store, so that superseded and unwanted records are still there."""


@dataclass(frozen=True)
class GarbageReport:
    """What `collect_garbage` did, or with ``dry_run`` would do."""

    root: str
    data: list[str]
    stores: list[StoreGarbage]
    dry_run: bool

    @property
    def freed_bytes(self) -> int:
        """In all stores."""
        return sum(store.freed_bytes for store in self.stores)

    def to_json(self) -> dict[str, JsonValue]:
        """The report as plain data, with the total."""
        return {**asdict(self), "freed_bytes": self.freed_bytes}

    def table(self) -> Table:
        """The report for a terminal."""
        verb = "would be removed" if self.dry_run else "was removed"
        columns = ("leftovers", "damaged", "replaced", "unwanted", "kept", "freed")
        table = _table(f"{self.root}: what {verb}", "store", *columns)
        for store in self.stores:
            counts = (store.leftovers, store.damaged, store.superseded, store.unwanted, store.kept)
            name = store.store + (" (busy)" if store.busy else "")
            table.add_row(name, *(f"{count:,}" for count in counts), _size(store.freed_bytes))
        if any(store.busy for store in self.stores):
            table.caption = "busy: another process merges this store; run the command again later"
        return table


def verify_cache(*, cache: Path | None = None, store: str | None = None) -> VerifyReport:
    """Read and decode every record. What is intact in damaged files is kept, the files are set aside.

    Args:
        cache: root folder of the cache, ``$DUSKFUSE_HOME/cache`` by default.
        store: only the store whose folder has this name.

    Raises:
        InputError: no such store.
        StorageError: the disk refuses.
    """
    started = time.monotonic()
    root = PriorCache(cache)
    checked = [_check(found) for found in _stores(root, store)]
    return VerifyReport(str(root.root), checked, _damaged_settings(root), round(time.monotonic() - started, 3))


def cache_stats(*, cache: Path | None = None, store: str | None = None) -> CacheStats:
    """Say what a cache holds; arguments and errors as for `verify_cache`."""
    root = PriorCache(cache)
    return CacheStats(str(root.root), [_stats(found) for found in _stores(root, store)], _damaged_settings(root))


def collect_garbage(
    *,
    cache: Path | None = None,
    store: str | None = None,
    data: Sequence[Path] = (),
    reading: Reading | Path | None = None,
    dry_run: bool = False,
) -> GarbageReport:
    """Remove what nobody reads: leftovers of killed processes, damaged files, records with a later one of their key.

    Args:
        cache: root folder of the cache, ``$DUSKFUSE_HOME/cache`` by default.
        store: only the store whose folder has this name.
        data: with these datasets, all records of pictures that are in none of them go as well.
        reading: how the infrared pictures of these datasets are read, which is a part of their keys; by default as
            ``duskfuse.yaml`` in each of them says.
        dry_run: say what would go, and remove nothing.

    Raises:
        InputError: no such store; a dataset or one of its pictures cannot be read. Then nothing is removed.
        StorageError: the disk refuses.
    """
    root = PriorCache(cache)
    stores = _stores(root, store)
    wanted = _wanted(data, reading) if data else None
    garbage = [_collect(found, None if wanted is None else wanted[found.kind], dry_run) for found in stores]
    if store is None:
        garbage += [_clear(folder, dry_run) for folder in _without_store(root, stores) if folder.rubbish().leftovers]
    return GarbageReport(str(root.root), [str(folder) for folder in data], garbage, dry_run)


def _check(store: PriorStore) -> StoreCheck:
    total = store.counts()
    counts = track(store.verify(), f"verify {store.folder.name}", total.shards + total.singles)
    records = sum(counts)
    damaged = [f"{found.file}: {found.reason}, {found.kept} records kept" for found in store.damage]
    return StoreCheck(store.kind, store.folder.name, records, store.size_bytes(), damaged)


def _stats(store: PriorStore) -> StoreStats:
    counts, records, size = store.counts(), len(store.keys()), store.size_bytes()
    folder = StoreFolder(store.folder)
    rubbish = folder.rubbish()
    return StoreStats(
        kind=store.kind,
        store=store.folder.name,
        source=store.source,
        settings=store.settings,
        records=records,
        bytes=size,
        bytes_per_record=round(size / max(1, records), 1),
        shards=counts.shards,
        single_records=counts.singles,
        superseded=counts.rows - records,
        damaged=len(rubbish.damaged),
        leftovers=len(rubbish.leftovers),
        other_version=counts.other_version,
        rubbish_bytes=_bytes_of([*rubbish.damaged, *rubbish.leftovers]),
        age_s=round(max(0.0, time.time() - (folder.changed_ns() or time.time_ns()) / 1e9), 1),
    )


def _collect(store: PriorStore, wanted: set[str] | None, dry_run: bool) -> StoreGarbage:
    rubbish = StoreFolder(store.folder).rubbish()
    files = [*rubbish.leftovers, *rubbish.damaged]
    counts, keys = store.counts(), store.keys()
    unwanted = set() if wanted is None else keys - wanted
    unwanted_bytes = store.record_bytes(unwanted)
    superseded = counts.rows - len(keys)
    before, busy = store.size_bytes(), False
    freed = _bytes_of(files) + unwanted_bytes + superseded * before // max(1, counts.rows)
    if unwanted:
        verb = "would be removed" if dry_run else "are removed"
        say(f"{store.folder}: {len(unwanted)} of {len(keys)} records ({_size(unwanted_bytes)}) {verb}")
    if not dry_run:
        freed = _bytes_of(files)
        _remove(files)
        busy = not store.rewrite_without(unwanted)
        freed += before - store.size_bytes()
    return StoreGarbage(
        kind=store.kind,
        store=store.folder.name,
        leftovers=len(rubbish.leftovers),
        damaged=len(rubbish.damaged),
        superseded=superseded,
        unwanted=len(unwanted),
        unwanted_bytes=unwanted_bytes,
        kept=len(keys) - len(unwanted),
        freed_bytes=freed,
        busy=busy,
    )


def _clear(folder: StoreFolder, dry_run: bool) -> StoreGarbage:
    """Remove the leftovers of a folder that is no store."""
    leftovers = folder.rubbish().leftovers
    freed = _bytes_of(leftovers)
    if not dry_run:
        _remove(leftovers)
    return StoreGarbage(folder.path.parent.name, folder.path.name, len(leftovers), 0, 0, 0, 0, 0, freed, False)


def _wanted(data: Sequence[Path], reading: Reading | Path | None) -> dict[PriorKind, set[str]]:
    """The keys of all pictures, and of all pairs, of some datasets."""
    from duskfuse.data.layout import find_pairs

    pictures, pairs = set[str](), set[str]()
    for folder in data:
        for files in track(find_pairs(folder, reading=reading), f"hashing {folder}"):
            keys = files.prior_keys()
            pictures.update(keys)
            pairs.add(pair_key(*keys))
    return {PriorKind.MASKS: pictures, PriorKind.TEACHER: pairs}


def _stores(cache: PriorCache, name: str | None) -> list[PriorStore]:
    found = [store for kind in PriorKind for store in cache.stores(kind)]
    if name is None:
        return found
    chosen = [store for store in found if store.folder.name == name]
    if not chosen:
        raise InputError(
            f"no store {name} in {cache.root}",
            rule="a store is named by its folder",
            remedy="choose from " + ", ".join(store.folder.name for store in found) if found else "check --cache",
        )
    return chosen


def _damaged_settings(cache: PriorCache) -> list[str]:
    return [str(path) for kind in PriorKind for path in cache.damaged_settings(kind)]


def _without_store(cache: PriorCache, stores: Collection[PriorStore]) -> Iterator[StoreFolder]:
    """The folders that hold no store, such as that of a process killed before it had named what it makes."""
    known = {store.folder for store in stores}
    for kind in PriorKind:
        yield from (StoreFolder(p) for p in sorted((cache.root / kind).glob("*")) if p.is_dir() and p not in known)


def _remove(paths: Sequence[Path]) -> None:
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise storage_error(path, error) from error


def _bytes_of(paths: Sequence[Path]) -> int:
    size = 0
    for path in paths:
        with suppress(FileNotFoundError):
            size += path.lstat().st_size
    return size


def _table(title: str, *columns: str) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True, caption_justify="left")
    table.add_column(columns[0], overflow="fold")
    for name in columns[1:]:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _short(settings: dict[str, JsonValue]) -> str:
    """Settings for a table; hashes and lists are cut."""
    said = []
    for name, value in settings.items():
        text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
        said.append(f"{name} {text if len(text) <= _SHORT else text[: _SHORT - 1] + '…'}")
    return ", ".join(said)


def _size(count: float) -> str:
    """Bytes for people: three digits or so, powers of 1000."""
    power = min(4, int(math.log10(max(1.0, count))) // 3)
    return f"{count / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def _some(messages: Sequence[str]) -> str:
    more = f" and {len(messages) - _NAMED} more" if len(messages) > _NAMED else ""
    return "; ".join(messages[:_NAMED]) + more
