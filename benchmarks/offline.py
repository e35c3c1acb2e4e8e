"""Speed and size of the offline stage on real pairs, beside the published way of keeping masks.

    python benchmarks/offline.py DATA --pairs 40 --runs 3 --out benchmarks/results/offline.json

Every source runs as a whole process of ``duskfuse``, start-up included: cold into an empty cache, then warm, when all
is there. Runs of different sources and workers take turns, so that a busy moment of the machine hits all alike;
medians are reported, and every single time is kept. The published way is one pickle of boolean arrays, rewritten and
loaded as a whole; it is written here from the same masks, and read back in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

from duskfuse.data.layout import find_pairs
from duskfuse.data.pair_files import PairFiles
from duskfuse.data.priors.cache import PriorCache, PriorKind, PriorStore
from duskfuse.data.priors.masks import MaskSet

MASKS_READ = 4
MANY = 200

_READ_PICKLE = """
import json, pathlib, pickle, re, sys, time
def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1])
import numpy  # what the arrays need is not their memory
before = resident()
started = time.perf_counter()
with open(sys.argv[1], "rb") as stream:
    masks = pickle.load(stream)  # written by this benchmark a moment ago
seconds = time.perf_counter() - started
print(json.dumps({"seconds": seconds, "memory_mb": (resident() - before) / 1024, "pictures": len(masks)}))
"""


@dataclass(frozen=True)
class Case:
    """One command, measured with one number of workers."""

    name: str
    arguments: tuple[str, ...]
    workers: int


def main() -> None:
    """Run all cases and write the raw numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of pairs; its teacher/METHOD is the cached teacher")
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--teacher", default="seafusion", help="method inside DATA")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        data = _subset(arguments.data, arguments.pairs, arguments.teacher, Path(scratch, "data"))
        pairs = find_pairs(data)
        result = {
            "machine": _machine(),
            "pairs": len(pairs),
            "pictures": len({key for files in pairs for key in files.prior_keys()}),
            "sources": _measure_sources(data, _cases(arguments.teacher), arguments.runs, Path(scratch)),
            "reading": _measure_reading(data, pairs, Path(scratch)),
        }
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text + "\n")


def _machine() -> dict[str, Any]:
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.machine(),
    )
    versions = {name: metadata.version(name) for name in ("duskfuse", "numpy", "opencv-python", "pyarrow")}
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        **versions,
    }


def _subset(data: Path, count: int, teacher: str, folder: Path) -> Path:
    """Links to ``count`` pairs spread over the data, with their teacher pictures."""
    pairs = find_pairs(data)
    chosen = [pairs[i] for i in np.linspace(0, len(pairs) - 1, min(count, len(pairs))).round().astype(int)]
    for files in chosen:
        _link(files, data, teacher, folder)
    return folder


def _link(files: PairFiles, data: Path, teacher: str, folder: Path) -> None:
    sources = {"ir": files.ir.path, "vis": files.vis.path, "label": files.label}
    sources[f"teacher/{teacher}"] = next((data / "teacher" / teacher).glob(f"{files.vis.stem}.*"), None)
    for side, path in sources.items():
        if path is not None:
            (folder / side).mkdir(parents=True, exist_ok=True)
            (folder / side / path.name).symlink_to(path.resolve())


def _cases(teacher: str) -> list[Case]:
    commands = {
        "masks: regions": ("cache-masks", "--source", "regions"),
        "masks: random crops": ("cache-masks", "--source", "random-crops"),
        f"masks: regions, {MANY} kept": ("cache-masks", "--source", "regions", "--keep", str(MANY)),
        "teacher: folder of pictures": ("cache-teacher", "--teacher", teacher),
    }
    return [Case(name, command, workers) for name, command in commands.items() for workers in (1, 2)]


def _measure_sources(data: Path, cases: list[Case], runs: int, scratch: Path) -> list[dict[str, Any]]:
    times: dict[Case, dict[str, list[float]]] = {case: {"cold": [], "warm": []} for case in cases}
    reports: dict[Case, dict[str, Any]] = {}
    for run in range(runs):
        for number, case in enumerate(cases):
            cache = scratch / f"cache-{number}-{run}"
            for state in ("cold", "warm"):
                seconds, report = _run(data, case, cache)
                times[case][state].append(round(seconds, 3))
                if state == "cold":
                    reports[case] = report
    return [_source_result(case, times[case], reports[case]) for case in cases]


def _run(data: Path, case: Case, cache: Path) -> tuple[float, dict[str, Any]]:
    verb, *options = case.arguments
    command = [sys.executable, "-m", "duskfuse", verb, str(data), *options, "--workers", str(case.workers)]
    started = time.perf_counter()
    done = subprocess.run([*command, "--cache", str(cache), "--json"], capture_output=True, text=True, check=True)
    return time.perf_counter() - started, json.loads(done.stdout)


def _source_result(case: Case, times: dict[str, list[float]], report: dict[str, Any]) -> dict[str, Any]:
    folder = Path(report["folder"])
    size = sum(path.stat().st_size for path in folder.glob("*.parquet"))
    cold = median(times["cold"])
    return {
        "source": case.name,
        "workers": case.workers,
        "items": report["done"],
        "cold_s": cold,
        "warm_s": median(times["warm"]),
        "items_per_s": round(report["done"] / cold, 2),
        "bytes_per_item": round(size / report["done"]),
        "times": times,
    }


class _Reading(Dataset[float]):
    """Milliseconds to read and decode four masks of both pictures of a pair, measured where a worker does it."""

    def __init__(self, store: PriorStore, pairs: list[PairFiles]) -> None:
        self._store, self._keys = store, [files.prior_keys() for files in pairs]
        self._sizes = [files.vis.size() for files in pairs]

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index: int) -> tuple[float, int]:
        started = time.perf_counter()
        for key in self._keys[index]:
            masks = self._store.get(key)
            assert isinstance(masks, MaskSet)
            masks.decode(range(min(MASKS_READ, len(masks))))
        height, width = self._sizes[index]
        return 1000 * (time.perf_counter() - started), height * width


def _measure_reading(data: Path, pairs: list[PairFiles], scratch: Path) -> dict[str, Any]:
    stores = PriorCache(scratch / "cache-0-0").stores(PriorKind.MASKS)
    reading = _Reading(stores[0], pairs)
    shuffled = np.random.default_rng(0).permutation(np.tile(np.arange(len(pairs)), 5))
    loader = DataLoader(reading, batch_size=None, sampler=shuffled.tolist(), num_workers=1)
    found = [(float(ms), int(pixels)) for ms, pixels in loader]
    return {
        "what": f"{MASKS_READ} of 20 masks of both pictures of a pair, read and decoded in a loading process",
        "median_ms": round(median(ms for ms, _ in found), 3),
        "p99_ms": round(float(np.percentile([ms for ms, _ in found], 99)), 3),
        "median_pixels": median(pixels for _, pixels in found),
        "published_way": _published_way(stores[0], pairs, scratch / "masks.pkl"),
    }


def _published_way(store: PriorStore, pairs: list[PairFiles], path: Path) -> dict[str, Any]:
    """One pickle of boolean arrays of the same masks."""
    masks = {}
    for files in pairs:
        for side, key in zip(("ir", "vis"), files.prior_keys(), strict=True):
            record = store.get(key)
            assert isinstance(record, MaskSet)
            masks[f"{files.name}/{side}"] = list(record.decode())
    started = time.perf_counter()
    path.write_bytes(pickle.dumps(masks))
    written = time.perf_counter() - started
    read = subprocess.run([sys.executable, "-c", _READ_PICKLE, str(path)], capture_output=True, text=True, check=True)
    loaded = json.loads(read.stdout)
    return {
        "bytes_per_item": round(path.stat().st_size / len(masks)),
        "write_s": round(written, 3),
        "load_s": round(loaded["seconds"], 3),
        "memory_mb": round(loaded["memory_mb"], 1),
        "items": len(masks),
    }


if __name__ == "__main__":
    main()
