"""Kill a command that fills the prior cache at random moments, start it again, and see that nothing is lost.

    python benchmarks/killed_anywhere.py --kills 60 --out benchmarks/results/killed_anywhere_masks.json
    python benchmarks/killed_anywhere.py --before 'cache-masks {data}' 'cache-teacher {data} --teacher FILE'

The whole process group gets SIGKILL; two of three moments are uniform over the time of an uninterrupted run, the third
is inside a merge of the store. The same command then goes on in the same cache; once it has ended by itself, the cache
must equal that of an uninterrupted run, record by record, and a new cache is begun. After every kill all that was
there before, and all that had been reported as written, must be there, and no file may be damaged. Computations are
counted: none is repeated but those in flight.

While it works, a command notes in a journal what it computes, writes and merges: `_install` wraps the functions that
do so, in its worker processes too, which import this file as their main module.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_JOURNAL = "KILLED_ANYWHERE_JOURNAL"
_COMMAND = "cache-masks {data} --source regions --workers 2"
_POLL_S = 0.001


def main() -> int:
    """Run the harness; 0 where nothing was lost, damaged, different or needlessly repeated."""
    from offline_data import write_pairs

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", nargs="?", default=_COMMAND, help=f"default: {_COMMAND}")
    parser.add_argument("--before", help="command that fills the cache first, uninterrupted")
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pairs", type=int, default=120, help="pairs to make")
    parser.add_argument("--data", type=Path, help="pairs to use instead")
    parser.add_argument("--in-flight", type=int, default=9, help="computations that one kill may cost")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = arguments.data or Path(folder, "data")
        if arguments.data is None:
            write_pairs(data, arguments.pairs, arguments.seed)
        before, command = (
            text.replace("{data}", shlex.quote(str(data))) for text in (arguments.before or "", arguments.command)
        )
        result = _Harness(Path(folder), before, command, random.Random(arguments.seed)).run(arguments.kills)
    result = {"command": arguments.command, "before": arguments.before, "seed": arguments.seed, **result}
    result["in_flight_bound"] = arguments.in_flight
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text + "\n")
    good = not (result["lost"] or result["damaged"] or result["different"])
    return 0 if good and result["most_repeated_after_a_kill"] <= arguments.in_flight else 1


@dataclass(frozen=True)
class _Event:
    ns: int
    what: str
    key: str


class _Harness:
    """Runs one command again and again in a cache, and looks at what is in it after each."""

    def __init__(self, folder: Path, before: str, command: str, chance: random.Random) -> None:
        self._folder, self._before, self._command, self._chance = folder, before, command, chance
        self._journal = folder / "journal"
        self._moments: Counter[str] = Counter()
        self._lost = self._damaged = self._different = self._made = self._most_repeated = self._rounds = 0

    def run(self, kills: int) -> dict[str, Any]:
        """Kill ``kills`` times; what was found."""
        whole = self._new_cache()
        started = time.monotonic_ns()
        _check(self._start(whole).wait())
        seconds = (time.monotonic_ns() - started) / 1e9
        merges = _merges(self._events())
        wanted = records(whole)
        cache, there, computed = self._new_cache(), set[str](), Counter[str]()
        while sum(self._moments.values()) < kills:
            process = self._start(cache)
            if sum(self._moments.values()) % 3 == 2:
                self._await_merge(process, self._chance.randint(1, len(merges)), self._chance.uniform(0, max(merges)))
            else:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(self._chance.uniform(0, seconds))
            killed = self._kill(process)
            computed, there = self._look(cache, computed, there)
            if not killed:
                _check(process.returncode)
                self._finish(cache, wanted)
                cache, there, computed = self._new_cache(), set(), Counter()
        _check(self._start(cache).wait())
        self._look(cache, computed, there)
        self._finish(cache, wanted)
        return {
            "kills": kills,
            "moments": dict(sorted(self._moments.items())),
            "caches_completed": self._rounds,
            "records": len(wanted),
            "seconds_uninterrupted": round(seconds, 2),
            "merges_uninterrupted_ms": [round(1000 * merge, 1) for merge in merges],
            "lost": self._lost,
            "damaged": self._damaged,
            "different": self._different,
            "computed": self._made,
            "needed": self._rounds * len(wanted),
            "most_repeated_after_a_kill": self._most_repeated,
        }

    def _new_cache(self) -> Path:
        cache = Path(tempfile.mkdtemp(dir=self._folder))
        if self._before:
            _check(
                subprocess.run(
                    [sys.executable, "-m", "duskfuse", *shlex.split(self._before), "--cache", str(cache)],
                    stderr=subprocess.DEVNULL,
                    check=False,
                ).returncode
            )
        return cache

    def _start(self, cache: Path) -> subprocess.Popen[bytes]:
        self._journal.unlink(missing_ok=True)
        return subprocess.Popen(
            [sys.executable, __file__, *shlex.split(self._command), "--cache", str(cache), "--json"],
            env={**os.environ, _JOURNAL: str(self._journal)},
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _await_merge(self, process: subprocess.Popen[bytes], number: int, delay: float) -> None:
        while process.poll() is None:
            if sum(event.what == "merge" for event in self._events()) >= number:
                time.sleep(delay)
                return
            time.sleep(_POLL_S)

    def _kill(self, process: subprocess.Popen[bytes]) -> bool:
        """Kill the whole group and wait until it has gone; False where the command had ended by itself."""
        running = process.poll() is None
        if running:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            while _alive(process.pid):
                time.sleep(_POLL_S)
            self._moments[_moment(self._events())] += 1
        return running

    def _look(self, cache: Path, computed: Counter[str], before: set[str]) -> tuple[Counter[str], set[str]]:
        """Check the cache after one run; all computations in this cache, and the records that are there."""
        events = self._events()
        there = set(records(cache))
        written = {event.key for event in events if event.what == "kept"}
        keys = {name.rpartition("/")[2] for name in there}
        self._lost += len(before - there) + len(written - keys)
        self._damaged += sum(1 for _ in cache.rglob("*.damaged"))
        made = Counter(event.key for event in events if event.what == "made")
        self._made += made.total()
        repeated = sum(count for key, count in made.items() if computed[key]) + made.total() - len(made)
        self._most_repeated = max(self._most_repeated, repeated)
        return computed + made, there

    def _finish(self, cache: Path, wanted: dict[str, bytes]) -> None:
        self._rounds += 1
        self._different += records(cache) != wanted

    def _events(self) -> list[_Event]:
        lines = self._journal.read_text().splitlines() if self._journal.exists() else []
        return [_Event(int(ns), what, key) for ns, what, key in (line.split(" ") for line in lines)]


def records(cache: Path) -> dict[str, bytes]:
    """Every record of a cache by its store and key, encoded: equal bytes are equal records."""
    from duskfuse.data.priors.cache import PriorCache, PriorKind, encode_record

    return {
        f"{store.folder.name}/{key}": encode_record(kind, key, store.get(key))
        for kind in PriorKind
        for store in PriorCache(cache).stores(kind)
        for key in store.keys()  # noqa: SIM118 - not a mapping
    }


def _check(status: int) -> None:
    if status != 0:
        raise SystemExit(f"the command ended by itself with status {status}")


def _merges(events: list[_Event]) -> list[float]:
    """Seconds that each merge took."""
    begun = [event.ns for event in events if event.what == "merge"]
    ended = [event.ns for event in events if event.what == "merged"]
    return [(end - begin) / 1e9 for begin, end in zip(begun, ended, strict=True)]


def _moment(events: list[_Event]) -> str:
    """What the command was at when it was killed."""
    seen = Counter(event.what for event in events)
    if seen["merge"] > seen["merged"]:
        return "last merge" if seen["compact"] else "merging"
    if seen["compacted"]:
        return "ending"
    return "computing" if seen["made"] else "starting"


def _alive(group: int) -> bool:
    """Whether a process of the group still runs (Linux)."""
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with suppress(OSError):
                state, _, owner = Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()[:3]
                if int(owner) == group and state != "Z":
                    return True
    return False


def _install(journal: str) -> None:
    """Note in the journal what this process computes, writes and merges."""
    from duskfuse.data.priors import pipeline
    from duskfuse.data.priors.cache import PriorStore

    handle = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def note(what: str, key: str = "-") -> None:
        os.write(handle, f"{time.monotonic_ns()} {what} {key}\n".encode())

    def noted(function: Callable[..., Any], before: str = "", after: str = "", key_at: int | None = None) -> Any:
        @functools.wraps(function)
        def wrapped(*arguments: Any) -> Any:
            key = "-" if key_at is None else f"{arguments[key_at]}"
            if before:
                note(before, key)
            result = function(*arguments)
            if after:
                note(after, key)
            return result

        return wrapped

    pipeline.encode_record = noted(pipeline.encode_record, before="made", key_at=1)  # type: ignore[attr-defined]
    for name, before, after in (("_merge", "merge", "merged"), ("compact", "compact", "compacted")):
        setattr(PriorStore, name, noted(getattr(PriorStore, name), before, after))
    PriorStore.put_encoded = noted(PriorStore.put_encoded, after="kept", key_at=1)  # type: ignore[method-assign]


if _JOURNAL in os.environ:  # in the command and in each of its worker processes
    _install(os.environ[_JOURNAL])

if __name__ == "__main__":
    if _JOURNAL in os.environ:
        from duskfuse.cli import app

        app()
    else:
        sys.exit(main())
