"""Metrics that only need sums, sums of squares and sums of products of whole pictures.

On 8-bit pictures all these sums are integers below 2⁵³, so float64 dot products hold them exactly. "Is this variance
zero?" is therefore an exact question, and a correlation that is 0/0 is found for certain.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, log10, nan, sqrt

import numpy as np
from numpy.typing import NDArray

PEAK = 255.0


@dataclass(frozen=True)
class Moments:
    """Exact sums over the pixels of the sources a (infrared), b (visible) and the fused picture f."""

    pixels: int
    a: int
    b: int
    f: int
    aa: int
    bb: int
    ff: int
    ab: int
    af: int
    bf: int

    @classmethod
    def of(cls, a: NDArray[np.float64], b: NDArray[np.float64], f: NDArray[np.float64]) -> Moments:
        """Sum up three ``[H, W]`` float64 pictures of integer values from 0 to 255."""
        a, b, f = a.ravel(), b.ravel(), f.ravel()
        sums = (a.sum(), b.sum(), f.sum(), a @ a, b @ b, f @ f, a @ b, a @ f, b @ f)
        return cls(a.size, *(int(value) for value in sums))


def standard_deviation(m: Moments) -> float:
    """Population standard deviation of the fused picture, in grey levels."""
    return sqrt(m.pixels * m.ff - m.f * m.f) / m.pixels


def saturated_deviation(f: NDArray[np.float64]) -> float:
    """Standard deviation as 8-bit arithmetic gives it: deviations below 0 are 0, squares above 255 are 255."""
    deviations = np.floor(np.maximum(f - f.mean(), 0) + 0.5)
    return sqrt(float(np.minimum(deviations * deviations, PEAK).sum()) / f.size)


def correlation_coefficient(m: Moments) -> float:
    """CC: the mean of the Pearson correlations of the fused picture with either source; nan where one is constant."""
    with_a = _pearson(m.pixels, m.a, m.f, m.aa, m.ff, m.af)
    with_b = _pearson(m.pixels, m.b, m.f, m.bb, m.ff, m.bf)
    return (with_a + with_b) / 2


def sum_of_correlations_of_differences(m: Moments) -> float:
    """SCD = corr(F − B, A) + corr(F − A, B) (Aslantas and Bendes 2015); nan where F copies a source (0/0)."""
    f_less_b = _pearson(m.pixels, m.f - m.b, m.a, m.ff - 2 * m.bf + m.bb, m.aa, m.af - m.ab)
    f_less_a = _pearson(m.pixels, m.f - m.a, m.b, m.ff - 2 * m.af + m.aa, m.bb, m.bf - m.ab)
    return f_less_b + f_less_a


def peak_signal_to_noise(m: Moments) -> float:
    """PSNR = 10 log₁₀(255² / MSE) in dB, MSE being the mean over the two sources; inf where all three are one."""
    squares = (m.aa - 2 * m.af + m.ff) + (m.bb - 2 * m.bf + m.ff)
    return _decibels(squares, 2 * m.pixels)


def psnr_between(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> float:
    """PSNR of two 8-bit pictures of one size in dB; inf where they are identical."""
    difference = (first.astype(np.float64) - second).ravel()
    return _decibels(int(difference @ difference), difference.size)


def _decibels(squares: int, count: int) -> float:
    return 10 * log10(PEAK * PEAK * count / squares) if squares else inf


def _pearson(n: int, x: int, y: int, xx: int, yy: int, xy: int) -> float:
    variances = (n * xx - x * x) * (n * yy - y * y)
    return (n * xy - x * y) / sqrt(variances) if variances else nan
