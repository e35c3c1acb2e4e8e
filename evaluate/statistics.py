"""What the scores of many pairs say: summaries with intervals, ranks, and paired tests between methods.

A mean over pairs stands for all pairs the camera may ever see, so it comes with a 95 % bootstrap interval. Methods are
scored on the same pairs, so they are compared pair by pair (Wilcoxon's signed-rank test), and since many metrics and
methods mean many tests, all p values of an evaluation are corrected together (Holm 1979). Both take the pairs as
independent: frames of one video are not, and make everything look surer than it is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import inf, isfinite, nan
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
RESAMPLES = 10_000
SEED = 0
FEWEST_PAIRS = 6
"""Pairs from which on anything is claimed: with five, no two-sided signed-rank test can fall below 5 %."""
LEVEL = 0.05
"""Corrected p values below this are called a difference."""
_DRAWN_AT_ONCE = 2_000_000
_NORMAL = NormalDist()

Values = NDArray[np.float64]
"""Finite values of one metric, one per pair."""


class Interval(NamedTuple):
    """Bounds of a confidence interval."""

    low: float
    high: float


@dataclass(frozen=True)
class Summary:
    """One metric of one method over all pairs."""

    mean: float
    """Over the pairs where the metric is defined and finite; inf where it is infinite on all, nan without any."""
    median: float
    deviation: float
    """Standard deviation between pairs, with n − 1; nan for fewer than two."""
    least: float
    most: float
    interval: Interval | None
    """95 % bootstrap interval of the mean; None for fewer than `FEWEST_PAIRS`."""
    pairs: int
    """Pairs that count."""
    undefined: int
    """Pairs left out because the metric is undefined there."""
    identical: int
    """Pairs left out because PSNR is infinite: the pictures are identical."""

    @classmethod
    def of(cls, values: Iterable[float]) -> Summary:
        """Summarise the values of one metric, nan and inf included."""
        return summarise([values])[0]


def summarise(columns: Sequence[Iterable[float]]) -> list[Summary]:
    """Summarise each column of values, nan and inf included; an interval depends on its own column alone."""
    arrays = [np.array(list(column), dtype=np.float64) for column in columns]
    finite = [array[np.isfinite(array)] for array in arrays]
    intervals = mean_intervals(finite)
    return [_summary(*column) for column in zip(arrays, finite, intervals, strict=True)]


def _summary(values: Values, finite: Values, interval: Interval | None) -> Summary:
    undefined = int(np.isnan(values).sum())
    identical = values.size - undefined - finite.size
    if not finite.size:
        level = inf if identical else nan
        return Summary(level, level, nan, level, level, None, 0, undefined, identical)
    return Summary(
        mean=float(finite.mean()),
        median=float(np.median(finite)),
        deviation=float(finite.std(ddof=1)) if finite.size > 1 else nan,
        least=float(finite.min()),
        most=float(finite.max()),
        interval=interval,
        pairs=finite.size,
        undefined=undefined,
        identical=identical,
    )


def mean_intervals(columns: Sequence[Values], seed: int = SEED) -> list[Interval | None]:
    """95 % bootstrap intervals (BCa, Efron 1987) of the means of finite values; None for too few.

    `RESAMPLES` samples of as many pairs are drawn; columns of one length share them.
    """
    by_length: dict[int, list[int]] = defaultdict(list)
    for place, column in enumerate(columns):
        by_length[column.size].append(place)
    found: list[Interval | None] = [None] * len(columns)
    for length, places in by_length.items():
        if length >= FEWEST_PAIRS:
            means = _resampled_means(np.stack([columns[place] for place in places], axis=1), seed)
            for place, resampled in zip(places, means.T, strict=True):
                found[place] = _bca(columns[place], resampled)
    return found


def _resampled_means(values: Values, seed: int) -> Values:
    """Means ``[RESAMPLES, columns]`` of pairs drawn with replacement from ``[pairs, columns]``."""
    rng = np.random.default_rng(seed)
    pairs = len(values)
    least = values.min(axis=0)  # the mean of equal values is that value, without rounding
    step = max(1, _DRAWN_AT_ONCE // pairs)
    parts = []
    for start in range(0, RESAMPLES, step):
        samples = min(step, RESAMPLES - start)
        drawn = rng.integers(pairs, size=(samples, pairs)) + pairs * np.arange(samples)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=samples * pairs).reshape(samples, pairs)
        parts.append(least + counts.astype(np.float64) @ (values - least) / pairs)
    return np.concatenate(parts)


def _bca(values: Values, resampled: Values) -> Interval:
    """The interval between two percentiles of the resampled means, moved for bias and skewness."""
    mean = values.mean()
    deviations = values - mean
    spread = float(deviations @ deviations)
    share = float((resampled < mean).mean() + (resampled == mean).mean() / 2)
    if spread == 0 or not 0 < share < 1:
        return Interval(float(resampled.min()), float(resampled.max()))
    bias = _NORMAL.inv_cdf(share)
    acceleration = float((deviations**3).sum()) / (6 * spread**1.5)

    def moved(probability: float) -> float:
        shift = bias + _NORMAL.inv_cdf(probability)
        return _NORMAL.cdf(bias + shift / (1 - acceleration * shift))

    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled, [moved(tail), moved(1 - tail)])
    return Interval(float(low), float(high))


def ranks(means: Sequence[float], higher_is_better: bool) -> list[float]:
    """Rank means from 1, the best; equal ones share the mean of their places, undefined ones get nan.

    >>> ranks([0.5, 0.7, 0.5, float("nan")], higher_is_better=True)
    [2.5, 1.0, 2.5, nan]
    """
    from scipy.stats import rankdata

    signed = [-mean if higher_is_better else mean for mean in means]
    return [float(rank) for rank in rankdata(signed, nan_policy="omit")]


@dataclass(frozen=True)
class PairedTest:
    """Two methods compared in one metric, pair by pair, over the pairs where both have a finite value."""

    metric: str
    first: str
    second: str
    pairs: int
    difference: float
    """Mean of first − second; nan without pairs."""
    p: float | None
    """Of the two-sided signed-rank test; None for fewer than `FEWEST_PAIRS`, where nothing can be claimed."""
    p_corrected: float | None
    """After Holm's correction for all tests of the evaluation."""
    better: str | None
    """The better method where the corrected p is below `LEVEL` and mean and ranks point the same way; else None."""


def signed_rank(differences: Values) -> float | None:
    """Two-sided p of Wilcoxon's signed-rank test that differences are symmetric around 0; None for too few.

    Differences of exactly 0 count as half positive, half negative (zsplit), so that they speak for no difference.
    """
    from scipy.stats import wilcoxon

    if differences.size < FEWEST_PAIRS:
        return None
    if not differences.any():
        return 1.0
    return float(wilcoxon(differences, zero_method="zsplit").pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p values for their number (Holm 1979): the chance of any false claim among them stays below the level.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for step, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - step) * p_values[place]))
        corrected[place] = largest
    return corrected


class Scores(NamedTuple):
    """The scores of one method in one metric, in the order of the pairs."""

    method: str
    values: Sequence[float]


def paired_tests(scores: Sequence[tuple[str, bool, Sequence[Scores]]]) -> tuple[PairedTest, ...]:
    """Test every two methods in every metric, and correct all p values together.

    Args:
        scores: name of a metric, whether higher is better, and the scores of all methods on the same pairs.
    """
    compared = [
        _Compared(metric, higher_is_better, first, second)
        for metric, higher_is_better, methods in scores
        for first, second in combinations(methods, 2)
    ]
    p_values = [test.p for test in compared]
    corrected = iter(holm([p for p in p_values if p is not None]))
    return tuple(test.judged(None if test.p is None else next(corrected)) for test in compared)


class _Compared:
    """Two methods in one metric, tested but not yet corrected."""

    def __init__(self, metric: str, higher_is_better: bool, first: Scores, second: Scores) -> None:
        self.metric, self.first, self.second = metric, first.method, second.method
        both = [(a, b) for a, b in zip(first.values, second.values, strict=True) if isfinite(a) and isfinite(b)]
        self.differences = np.array([a - b for a, b in both], dtype=np.float64)
        self.better, self.worse = (self.first, self.second) if higher_is_better else (self.second, self.first)
        self.p = signed_rank(self.differences)

    def judged(self, corrected: float | None) -> PairedTest:
        mean = float(self.differences.mean()) if self.differences.size else nan
        better = None
        if corrected is not None and corrected < LEVEL and mean * _rank_sum(self.differences) > 0:
            better = self.better if mean > 0 else self.worse
        return PairedTest(self.metric, self.first, self.second, self.differences.size, mean, self.p, corrected, better)


def _rank_sum(differences: Values) -> float:
    """Sum of the signed ranks: which way the signed-rank test points."""
    from scipy.stats import rankdata

    return float(np.sign(differences) @ rankdata(np.abs(differences)))
