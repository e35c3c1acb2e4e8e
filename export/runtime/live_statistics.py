"""What a live run is measured by: rates, times of every stage, what was left out and why, memory.

Percentiles are of the last thousand frames; counts are of the whole run. Everything is kept in a bounded amount of
memory however long it runs.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from typing import Any, Deque, Dict, Iterable, List, Optional

import numpy as np

from .pairing import SIDES, Pair

RECENT = 1000
_RATE_FRAMES = 60


class StageTimes:
    """Seconds that a stage took for each of its last frames, by the clock and of its thread's processor time."""

    def __init__(self) -> None:
        self.clock: Deque[float] = deque(maxlen=RECENT)
        self.processor: Deque[float] = deque(maxlen=RECENT)
        self._begun = 0.0, 0.0

    def begin(self) -> None:
        """A frame's work begins, on the stage's own thread."""
        self._begun = time.perf_counter(), time.thread_time()

    def end(self) -> None:
        """It is done."""
        self.clock.append(time.perf_counter() - self._begun[0])
        self.processor.append(time.thread_time() - self._begun[1])


class LiveStatistics:
    """Counts and times of one run; every method may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stages: Dict[str, StageTimes] = {}
        self._skews: Deque[float] = deque(maxlen=RECENT)
        self._latencies: Deque[float] = deque(maxlen=RECENT)
        self._done_at: Deque[float] = deque(maxlen=_RATE_FRAMES)
        self._started = time.monotonic()
        self._ended: Optional[float] = None
        self.paired = self.frames = 0
        self.alone = dict.fromkeys(SIDES, 0)
        self.stalls = dict.fromkeys(SIDES, 0)
        self.missing: Optional[str] = None
        """The stream that is silent now."""

    def stage(self, name: str) -> StageTimes:
        """Where the stage ``name`` enters its times."""
        with self._lock:
            return self._stages.setdefault(name, StageTimes())

    def pair(self, pair: Pair) -> None:
        """Enter a pair that goes on to be fused."""
        with self._lock:
            missing = pair.missing
            if missing is None and pair.skew is not None:
                self.paired += 1
                self._skews.append(pair.skew)
            elif missing is not None:
                self.alone["vis" if missing == "ir" else "ir"] += 1
                self.stalls[missing] += missing != self.missing
            self.missing = missing

    def done(self, latency: Optional[float]) -> None:
        """Enter a finished picture, with its age where its stream has a clock."""
        with self._lock:
            self.frames += 1
            self._done_at.append(time.monotonic())
            if latency is not None:
                self._latencies.append(latency)

    def end(self) -> None:
        """Stop the clock of the run."""
        with self._lock:
            self._ended = time.monotonic()

    @property
    def fps(self) -> float:
        """Pictures per second lately."""
        with self._lock:
            return self._recent_rate()

    @property
    def skew_ms(self) -> Optional[float]:
        """Infrared time less visible time of the last pair, in milliseconds."""
        with self._lock:
            return 1000 * self._skews[-1] if self._skews else None

    def to_json(self, unpaired: Dict[str, int], dropped: Dict[str, int]) -> Dict[str, Any]:
        """Everything as plain data; frames without a partner and frames dropped as too late are counted elsewhere."""
        with self._lock:
            seconds = (self._ended or time.monotonic()) - self._started
            return {
                "frames": self.frames,
                "seconds": round(seconds, 3),
                "fps": round(self.frames / seconds, 2) if seconds > 0 else 0.0,
                "fps_now": round(self._recent_rate(), 2),
                "paired": self.paired,
                "alone": dict(self.alone),
                "unpaired": dict(unpaired),
                "dropped": dict(dropped),
                "stalls": dict(self.stalls),
                "missing": self.missing,
                "skew_ms": percentiles_ms(np.abs(self._skews) if self._skews else ()),
                "latency_ms": percentiles_ms(self._latencies),
                "stages_ms": {name: percentiles_ms(list(times.clock)) for name, times in self._stages.items()},
                "stages_cpu_ms": {name: percentiles_ms(list(times.processor)) for name, times in self._stages.items()},
                "memory_mb": memory_mb(),
            }

    def _recent_rate(self) -> float:
        if len(self._done_at) < 2:
            return 0.0
        last = time.monotonic() if self._ended is None else self._done_at[-1]
        span = last - self._done_at[0]
        return (len(self._done_at) - 1) / span if span > 0 else 0.0


def memory_mb() -> Optional[float]:
    """Resident memory of this process in MB; None where the system does not say."""
    try:
        import resource

        with open("/proc/self/statm", encoding="ascii") as stream:
            return round(int(stream.read().split()[1]) * resource.getpagesize() / 1e6, 1)
    except (ImportError, OSError):
        return None


def peak_memory_mb() -> Optional[float]:
    """The most resident memory that this process had, in MB."""
    try:
        import resource
    except ImportError:
        return None
    unit = 1e6 if sys.platform == "darwin" else 1e3
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)


def percentiles_ms(seconds: Iterable[float]) -> Optional[Dict[str, float]]:
    """The 50th, 90th and 99th percentile in milliseconds; None of nothing."""
    values: List[float] = list(seconds)
    if not values:
        return None
    p50, p90, p99 = (round(1000 * float(value), 3) for value in np.percentile(values, (50, 90, 99)))
    return {"p50": p50, "p90": p90, "p99": p99}
