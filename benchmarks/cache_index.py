"""Opening a prior cache of up to ten million records: seconds and memory until the first record is found.

    python benchmarks/cache_index.py --out benchmarks/results/cache_index.json

Shards have real tables of keys and holes in the place of records, so that ten million records fit any disk. Each size
is opened by a process of its own, with the files in the system's cache.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import secrets
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from duskfuse.data.priors import records
from duskfuse.data.priors.cache import PriorCache, PriorKind, PriorStore

SIZES = ((64, 1_000), (64, 10_000), (64, 100_000), (1024, 1_000), (1024, 10_000), (4096, 2_500))
"""Records of a shard, shards."""
RECORD_BYTES = 3_700


def main() -> None:
    """Make, open and remove a cache of each size, and print the numbers as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(_store(Path(arguments.measure[0])), arguments.measure[1])))
        return
    result: dict[str, Any] = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "sizes": []}
    for rows, shards in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            key = make(_store(Path(folder)), rows, shards)
            load = os.getloadavg()[0]
            command = [sys.executable, __file__, "--measure", folder, key]
            seen = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
            result["sizes"].append({"rows": rows, "shards": shards, "load": round(load, 1), **seen})
            print(result["sizes"][-1], file=sys.stderr, flush=True)
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text + "\n")


def measure(store: PriorStore, key: str) -> dict[str, Any]:
    """The first look-up, later look-ups, and the list of all keys."""
    empty, started = _memory_mib(), time.perf_counter()
    assert key in store
    opened, memory = time.perf_counter() - started, _memory_mib() - empty
    times = []
    for _ in range(1000):
        started = time.perf_counter()
        assert key in store
        times.append(time.perf_counter() - started)
    started = time.perf_counter()
    count = len(store.keys())
    listed = time.perf_counter() - started
    return {
        "records": count,
        "open_s": round(opened, 2),
        "memory_mib": round(memory),
        "lookup_us": round(median(times) * 1e6, 1),
        "keys_s": round(listed, 2),
    }


def make(store: PriorStore, rows: int, shards: int) -> str:
    """Write the shards; one of the keys."""
    store.folder.mkdir(parents=True)
    for number in range(shards):
        keys = [secrets.token_hex(32) for _ in range(rows)]
        head, total = _opening(store, keys)
        with (store.folder / f"shard-{number:032x}.parquet").open("wb") as stream:
            stream.write(head)
            stream.truncate(total)
    return keys[0]


def _opening(store: PriorStore, keys: list[str]) -> tuple[bytes, int]:
    """The sealed table of a shard, and the length of the file."""
    hashes = np.array([records.key_hash(key) for key in keys], "<u8")
    lengths = np.full(len(keys), RECORD_BYTES, "<u4")
    table = bytes(32) + hashes.tobytes() + lengths.tobytes() + zlib.compress("\n".join(keys).encode())
    label = {"kind": store.kind.value, "rows": len(keys)}
    total = len(table) + len(keys) * (RECORD_BYTES + 500)
    head = bytearray(records._seal(records._Form.SHARD, label, len(table), total, 0, store._name) + table)
    records._write_digest(head, len(head))
    return bytes(head), len(head) - len(table) + total


def _store(root: Path) -> PriorStore:
    return PriorCache(root).store(PriorKind.MASKS, "sam", {})


def _memory_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    main()
