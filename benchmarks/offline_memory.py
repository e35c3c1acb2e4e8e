"""Memory of ``duskfuse cache-masks`` with few and with many pairs: it must not grow with their number.

    python benchmarks/offline_memory.py --pairs 100 1000 5000 --out benchmarks/results/offline_memory.json

Resident memory of the command and all its processes together is read from ``/proc`` (Linux) every 50 ms.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from offline_data import HEIGHT, WIDTH, write_pairs

EVERY_S = 0.05


def main() -> None:
    """Run the command on each number of pairs and print the peaks as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, nargs="+", default=[100, 5000])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    result = {
        "command": f"cache-masks --source regions --workers {arguments.workers}",
        "picture": f"{WIDTH}x{HEIGHT}",
        "runs": [peak_memory(pairs, arguments.workers) for pairs in arguments.pairs],
    }
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text + "\n")


def peak_memory(pairs: int, workers: int) -> dict[str, float]:
    """Peak and median of the resident memory, in MB, of one run over ``pairs`` new pairs."""
    with tempfile.TemporaryDirectory() as folder:
        write_pairs(Path(folder, "data"), pairs)
        command = ["cache-masks", f"{folder}/data", "--source", "regions", "--workers", str(workers)]
        started, resident = time.monotonic(), []
        with subprocess.Popen(
            [sys.executable, "-m", "duskfuse", *command, "--cache", f"{folder}/cache", "--json"],
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            while process.poll() is None:
                resident.append(sum(map(resident_bytes, family(process.pid))) / 1e6)
                time.sleep(EVERY_S)
            assert process.stdout is not None
            report = json.loads(process.stdout.read())
    assert report["done"] == 2 * pairs, report
    resident.sort()
    return {
        "pairs": pairs,
        "records": report["done"],
        "seconds": round(time.monotonic() - started, 1),
        "peak_mb": round(resident[-1], 1),
        "median_mb": round(resident[len(resident) // 2], 1),
    }


def family(process: int) -> list[int]:
    """A process and all its descendants that are alive."""
    parents = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                text = Path("/proc", entry, "stat").read_text()
            except OSError:
                continue
            parents[int(entry)] = int(text.rpartition(")")[2].split()[1])
    found = [process]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


def resident_bytes(process: int) -> int:
    """Resident memory of one process, 0 where it has ended."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


if __name__ == "__main__":
    main()
