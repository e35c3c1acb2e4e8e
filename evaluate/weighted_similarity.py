"""Fusion metrics on SSIM's map, the sources weighted window by window: Piella and Heijmans 2003, Yang 2008."""

from __future__ import annotations

from dataclasses import dataclass
from math import nan

import numpy as np

from duskfuse.evaluate.local_moments import LocalMoments, Plane

YANG_WINDOW, YANG_SIGMA = 7, 1.5
YANG_ALIKE = 0.75
_YANG_FLOOR = 2e-16
_FLAT = 1e-8
"""Variance below which a window is flat: one grey level at its corner gives 1e-6 at least, rounding up to some 1e-11.

The published programs divide by such rounding: one flat window of a night picture can then outweigh all others."""


@dataclass(frozen=True)
class WeightedSimilarity:
    """The sources' similarities with the fused picture, weighted by their local variances."""

    map: Plane
    salience: Plane
    """The larger of the sources' variances."""

    def mean(self) -> float:
        """Qs: every window counts alike."""
        return float(self.map.mean())

    def by_salience(self) -> float:
        """Qw: windows count by the larger variance; nan where both sources are flat."""
        total = float(self.salience.sum())
        return float((self.map * self.salience).sum()) / total if total else nan


def weighted_similarity(
    a: LocalMoments, b: LocalMoments, similarity_a: Plane, similarity_b: Plane
) -> WeightedSimilarity:
    """Weigh ``similarity_a`` (SSIM's map of A and F) and ``similarity_b`` by the variances of A and B."""
    share = _share(a, b)
    return WeightedSimilarity(share * similarity_a + (1 - share) * similarity_b, np.maximum(a.variance, b.variance))


def yang_moments(picture: Plane) -> LocalMoments | None:
    """What Qy needs of one picture; None where it is smaller than the window."""
    return None if min(picture.shape) < YANG_WINDOW else LocalMoments.of(picture, YANG_WINDOW, YANG_SIGMA)


def yang_similarity(a: LocalMoments, b: LocalMoments) -> Plane:
    """SSIM's map in 7×7 windows, with constants that only keep 0/0 away."""
    luminance = (2 * a.mean * b.mean + _YANG_FLOOR) / (a.mean**2 + b.mean**2 + _YANG_FLOOR)
    a_variance, b_variance = _real(a.variance), _real(b.variance)
    covariance = np.where((a_variance == 0) | (b_variance == 0), 0, a.covariance(b))
    return luminance * (2 * covariance + _YANG_FLOOR) / (a_variance + b_variance + _YANG_FLOOR)


def yang(a: LocalMoments, b: LocalMoments, sources: Plane, similarity_a: Plane, similarity_b: Plane) -> float:
    """Qy: by variance where the sources are alike (``sources``, their similarity, from 0.75 on), else the better."""
    share = _share(a, b)
    mixed = share * similarity_a + (1 - share) * similarity_b
    return float(np.where(sources >= YANG_ALIKE, mixed, np.maximum(similarity_a, similarity_b)).mean())


def _share(a: LocalMoments, b: LocalMoments) -> Plane:
    """Share of A in each window: its part of both variances, a half where there is none."""
    a_variance = _real(a.variance)
    total = a_variance + _real(b.variance)
    return np.where(total == 0, 0.5, a_variance / np.where(total == 0, 1, total))


def _real(variance: Plane) -> Plane:
    return np.where(variance < _FLAT, 0, variance)
