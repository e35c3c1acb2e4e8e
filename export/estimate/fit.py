"""Fitting the constants of the roofline to latencies, published ones or those of one's own device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from numpy.typing import NDArray

from duskfuse.export.estimate.kernels import Kernel
from duskfuse.export.estimate.modules import JetsonModule
from duskfuse.export.estimate.roofline import PUBLISHED, Constants, ideal_ms

LIMITS = {"dense_efficiency": (0.01, 1.0), "bandwidth_efficiency": (0.05, 1.0), "kernel_us": (0.5, 300.0)}
"""What a constant can be at all."""
_BEGINS = (0.5, 1.5)
"""Factors of the start, from which every search begins: where no kernel waits for memory, none tells its bandwidth."""


@dataclass(frozen=True)
class Latency:
    """A measured time of some kernels together."""

    kernels: tuple[Kernel, ...]
    module: JetsonModule
    ms: float
    spread: float
    """How far the roofline may be from it: standard deviation of the logarithm of their ratio."""


def fit(
    latencies: Sequence[Latency], *, free: Sequence[str], start: Constants, trust: Mapping[str, float] | None = None
) -> Constants:
    """Choose the constants ``free`` so that the estimates come nearest to ``latencies``, by ratio.

    Args:
        latencies: at least one.
        free: keys of `LIMITS`; the others keep their value in ``start``.
        start: where the search begins.
        trust: by constant, the standard deviation of the logarithm of its ratio to ``start`` that is expected
            beforehand; latencies that say nothing of a constant leave it there. Without it nothing is expected.
    """
    from scipy.optimize import least_squares

    names, expected = list(free), dict(trust or {})
    middle = np.log([getattr(start, name) for name in names])
    low, high = np.log([LIMITS[name] for name in names]).T
    times = _Times(latencies, start.int8_of_fp16)

    def misfits(logs: NDArray[np.float64]) -> NDArray[np.float64]:
        surprise = [
            (log - at) / expected[name] for name, log, at in zip(names, logs, middle, strict=True) if name in expected
        ]
        return np.append(times.misfits(_changed(start, names, logs)), surprise)

    begins = [middle + np.log(factors) for factors in product(_BEGINS, repeat=len(names))]
    found = [
        least_squares(misfits, np.clip(begin, low + 1e-6, high - 1e-6), bounds=(low, high), loss="soft_l1", f_scale=2.0)
        for begin in begins
    ]
    return _changed(start, names, min(found, key=lambda result: float(result.cost)).x)


class _Times:
    """The estimates of several latencies at once, for any constants."""

    def __init__(self, latencies: Sequence[Latency], int8_of_fp16: float) -> None:
        ideal = [ideal_ms(item.kernels, item.module, int8_of_fp16) for item in latencies]
        self.compute, self.memory = (np.concatenate(parts) for parts in zip(*ideal, strict=True))
        self.counts = np.array([len(item.kernels) for item in latencies])
        self.starts = self.counts.cumsum() - self.counts
        self.logs = np.log([item.ms for item in latencies])
        self.spreads = np.array([item.spread for item in latencies])

    def misfits(self, constants: Constants) -> NDArray[np.float64]:
        """Logarithms of estimate by latency, in spreads."""
        waits = np.maximum(self.compute / constants.dense_efficiency, self.memory / constants.bandwidth_efficiency)
        ms = np.add.reduceat(waits, self.starts) + self.counts * constants.kernel_us * 1e-3
        misfits: NDArray[np.float64] = (np.log(ms) - self.logs) / self.spreads
        return misfits


def fit_published(latencies: Sequence[Latency]) -> Constants:
    """Fit what published latencies of whole networks determine; at least two of different networks."""
    start = replace(PUBLISHED, dense_efficiency=0.5, kernel_us=20.0)
    return fit(latencies, free=("dense_efficiency", "kernel_us"), start=start)


def fit_device(latencies: Sequence[Latency]) -> Constants:
    """Fit all constants to one device, away from the published ones only as far as its times ask for it."""
    trust = {"dense_efficiency": 1.0, "bandwidth_efficiency": 0.5, "kernel_us": 2.0}
    return fit(latencies, free=tuple(LIMITS), start=PUBLISHED, trust=trust)


def _changed(start: Constants, names: Sequence[str], logs: NDArray[np.float64]) -> Constants:
    return replace(start, **{name: float(np.exp(log)) for name, log in zip(names, logs, strict=True)})
