"""Which file of a store holds which record, small enough for ten million of them.

Single records are few and stand in a dictionary. Of the records in shards only a 64-bit hash of the key is kept, in
one sorted array: whoever reads a record checks its key.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from duskfuse.data.priors.records import Shard, key_hash

_RECENT = 4096
"""Records of new shards that wait in a dictionary, at least, before the array is sorted again."""


class Place(NamedTuple):
    """Where a record is."""

    file: str
    offset: int
    length: int | None
    """Bytes; None for a file that is one record."""


class _Sorted(NamedTuple):
    """The records of many shards in the order of their hashes."""

    hashes: NDArray[np.uint64]
    shard: NDArray[np.uint32]
    """Position in `names`."""
    row: NDArray[np.uint32]
    names: list[str]


class RecordIndex:
    """The files of a store by name, and the places of their records by key."""

    def __init__(self) -> None:
        self.singles: dict[str, str] = {}
        """Key of each file that is one record."""
        self.shards: dict[str, Shard] = {}
        self._files_of: dict[str, tuple[str, ...]] = {}
        self._sorted: _Sorted = _sort({})
        self._recent: dict[int, list[tuple[str, int]]] = {}
        """By hash: shard and row of what is not in `_sorted` yet."""
        self._waiting: list[str] = []
        """Shards that are in neither yet."""

    def __contains__(self, name: str) -> bool:
        return name in self.singles or name in self.shards

    def names(self) -> set[str]:
        """All files."""
        return self.singles.keys() | self.shards.keys()

    def rows(self, name: str) -> int:
        """Number of records of a file."""
        return len(self.shards[name].hashes) if name in self.shards else 1

    def add_single(self, name: str, key: str) -> None:
        """Take in a file that is one record."""
        self.remove(name)
        self.singles[name] = key
        self._files_of[key] = (*self._files_of.get(key, ()), name)

    def add_shard(self, name: str, shard: Shard) -> None:
        """Take in a shard."""
        self.remove(name)
        self.shards[name] = shard
        self._waiting.append(name)

    def remove(self, name: str) -> None:
        """Forget a file, whether known or not; `places` leaves out what is still listed of it."""
        self.shards.pop(name, None)
        key = self.singles.pop(name, None)
        if key is not None:
            left = tuple(other for other in self._files_of.pop(key) if other != name)
            if left:
                self._files_of[key] = left

    def keys(self) -> set[str]:
        """Keys of all records."""
        return set(self._files_of).union(*(shard.key_list() for shard in self.shards.values()))

    def places(self, key: str) -> list[Place]:
        """Where the record of a key may be: about one key in 10^12 has the hash of another."""
        self._sort_in()
        wanted = key_hash(key)
        found = [Place(name, 0, None) for name in self._files_of.get(key, ())]
        for name, row in (*self._recent.get(wanted, ()), *self._in_sorted(wanted)):
            shard = self.shards.get(name)
            if shard is not None and row < len(shard.hashes) and int(shard.hashes[row]) == wanted:
                found.append(Place(name, int(shard.offsets[row]), int(shard.lengths[row])))
        return found

    def files_of(self, keys: Collection[str]) -> set[str]:
        """The files that have a record of one of these keys."""
        return {place.file for key in keys for place in self.places(key)}

    def doubled(self) -> set[str]:
        """The files that have a record of a key of which there is another record."""
        self._sorted, self._recent, self._waiting = _sort(self.shards), {}, []
        table = self._sorted
        again = np.flatnonzero(table.hashes[1:] == table.hashes[:-1])
        found = {table.names[i] for i in np.unique(table.shard[np.concatenate([again, again + 1])])}
        for key, files in self._files_of.items():
            in_shards = {name for name, _ in self._in_sorted(key_hash(key))}
            if len(files) > 1 or in_shards:
                found.update(files, in_shards)
        return found

    def _sort_in(self) -> None:
        """Make what is waiting findable: in the dictionary while it is little, else in the array."""
        waiting = [(name, self.shards[name]) for name in self._waiting if name in self.shards]
        rows = len(self._recent) + sum(len(shard.hashes) for _, shard in waiting)
        self._waiting = []
        if rows > max(_RECENT, len(self._sorted.hashes) // 8):
            self._sorted, self._recent = _sort(self.shards), {}
            return
        for name, shard in waiting:
            for row, hashed in enumerate(shard.hashes.tolist()):
                self._recent.setdefault(hashed, []).append((name, row))

    def _in_sorted(self, wanted: int) -> Iterator[tuple[str, int]]:
        table = self._sorted
        first = int(np.searchsorted(table.hashes, np.uint64(wanted)))
        for i in range(first, len(table.hashes)):
            if int(table.hashes[i]) != wanted:
                return
            yield table.names[table.shard[i]], int(table.row[i])


def _sort(shards: dict[str, Shard]) -> _Sorted:
    counts = [len(shard.hashes) for shard in shards.values()]
    hashes = np.concatenate([np.empty(0, np.uint64), *(shard.hashes for shard in shards.values())])
    order = np.argsort(hashes, kind="stable")
    numbers = np.repeat(np.arange(len(counts), dtype=np.uint32), counts)
    rows = np.concatenate([np.empty(0, np.uint32), *(np.arange(count, dtype=np.uint32) for count in counts)])
    return _Sorted(hashes[order], numbers[order], rows[order], list(shards))
