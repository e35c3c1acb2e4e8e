"""FMI: mutual information between features of the sources and of the fused picture (Haghighat 2011, fast form 2014).

In every 3×3 window the nine feature values, stretched to 0…1 and divided by their sum, are taken for a distribution
over the nine positions. The joint distribution of two windows lies between independence and the bound of Fréchet that
the sign of their correlation chooses, at the place that the correlation over the bound's own correlation says. Values
below zero that this can give enter by the logarithm of their size, as in the MATLAB source.
"""

from __future__ import annotations

from enum import StrEnum

import cv2
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from duskfuse.evaluate.local_moments import Plane

_SIDE, _CELLS = 3, 9
_ROWS_AT_ONCE = 6
_POSITIONS = np.arange(1.0, _CELLS + 1)[:, None]


class Feature(StrEnum):
    """What FMI compares."""

    PIXEL = "pixel"
    GRADIENT = "gradient"
    DCT = "dct"
    WAVELET = "wavelet"


def feature_map(picture: Plane, feature: Feature) -> Plane:
    """The values that FMI compares, ``[H, W]``; about 60 pixels larger for the wavelet.

    ``gradient`` is horizontal, by central differences; ``dct`` is of the whole picture; ``wavelet`` is one level of
    the discrete Meyer wavelet, its four bands side by side.
    """
    match feature:
        case Feature.PIXEL:
            return picture
        case Feature.GRADIENT:
            return np.gradient(picture, axis=1)
        case Feature.DCT:
            return _dct(picture)
        case Feature.WAVELET:
            return _wavelet(picture)


def feature_mutual_information(a: Plane, b: Plane, f: Plane) -> float:
    """FMI of three feature maps: mean over windows and both sources of 2 I / (H + H), 0 to 1."""
    height = f.shape[0] - _SIDE + 1
    total = 0.0
    for top in range(0, height, _ROWS_AT_ONCE):
        rows = slice(top, min(top + _ROWS_AT_ONCE, height) + _SIDE - 1)
        windows = [_windows(picture[rows]) for picture in (a, b, f)]
        fused = _distribution(windows[2])
        for source in windows[:2]:
            alike = (source == windows[2]).all(axis=0)
            total += float(np.where(alike, 1.0, _shared(_distribution(source), fused)).sum())
    return float(total / (2 * height * (f.shape[1] - _SIDE + 1)))


def _windows(picture: Plane) -> Plane:
    """``[9, N]``: every 3×3 window, column by column."""
    views = sliding_window_view(picture, (_SIDE, _SIDE))
    return np.ascontiguousarray(views.transpose(3, 2, 0, 1).reshape(_CELLS, -1))


def _distribution(windows: Plane) -> Plane:
    low, high = windows.min(axis=0), windows.max(axis=0)
    flat = high == low
    values = np.where(flat, 1.0, (windows - low) / np.where(flat, 1.0, high - low))
    shares: Plane = values / values.sum(axis=0)
    return shares


def _shared(p: Plane, q: Plane) -> Plane:
    """2 I / (H + H) of N pairs of distributions ``[9, N]``; 0 where both are certain."""
    place = _Place(p, q)
    total = _plogp(p) + _plogp(q)
    joint = np.zeros_like(place.towards)
    below = np.zeros((_CELLS, p.shape[1]))
    for row in range(_CELLS):
        bound = place.bound(row)
        cells = np.diff(bound - below, axis=0, prepend=0.0)
        below = bound
        joint += _plogp(place.towards * cells + (1 - place.towards) * p[row] * q)
    certain = total == 0
    shared: Plane = np.where(certain, 0.0, 2 * (joint - total) / np.where(certain, 1.0, -total))
    return shared


class _Place:
    """Where the joint distribution lies between independence and the bound."""

    def __init__(self, p: Plane, q: Plane) -> None:
        self.p_below, self.q_below = p.cumsum(axis=0), q.cumsum(axis=0)
        correlation = _correlation(p, q)
        self.positive = correlation >= 0
        covariance = sum((self.bound(row) - self.p_below[row] * self.q_below).sum(axis=0) for row in range(_CELLS))
        spread = _spread(p) * _spread(q)
        possible = spread > 0
        largest = np.where(possible, covariance / np.where(possible, spread, 1.0), 0.0)
        reached = np.abs(largest) > 0
        self.towards: Plane = np.where(reached, correlation / np.where(reached, largest, 1.0), 0.0)

    def bound(self, row: int) -> Plane:
        """Fréchet's upper or lower bound of the joint distribution function in one row, ``[9, N]``."""
        first = self.p_below[row]
        lower = np.maximum(first + self.q_below - 1, 0)
        return np.asarray(np.where(self.positive, np.minimum(first, self.q_below), lower))


def _correlation(p: Plane, q: Plane) -> Plane:
    dp, dq = p - p.mean(axis=0), q - q.mean(axis=0)
    norm = np.sqrt((dp * dp).sum(axis=0) * (dq * dq).sum(axis=0))
    varied = (np.ptp(p, axis=0) > 0) & (np.ptp(q, axis=0) > 0)  # rounding gives flat windows a norm of about 1e-17
    return np.where(varied, (dp * dq).sum(axis=0) / np.where(varied, norm, 1.0), 0.0)


def _spread(p: Plane) -> Plane:
    """Standard deviation of the position under a distribution."""
    variance = (_POSITIONS**2 * p).sum(axis=0) - (_POSITIONS * p).sum(axis=0) ** 2
    return np.asarray(np.sqrt(np.maximum(variance, 0)))


def _plogp(p: Plane) -> Plane:
    """Σ p log₂|p| over the first axis, 0 for p = 0."""
    size = np.abs(p)
    summed: Plane = (p * np.log2(np.where(size > 0, size, 1.0))).sum(axis=0)
    return summed


def _dct(picture: Plane) -> Plane:
    """Orthonormal DCT-II; OpenCV's takes even sides only, so odd ones go by its matrix."""
    if picture.shape[0] % 2 == 0 and picture.shape[1] % 2 == 0:
        transformed: Plane = cv2.dct(picture)
        return transformed
    return _dct_matrix(picture.shape[0]) @ picture @ _dct_matrix(picture.shape[1]).T


def _dct_matrix(size: int) -> NDArray[np.float64]:
    frequency, position = np.mgrid[:size, :size]
    matrix = np.sqrt(2 / size) * np.cos(np.pi * (2 * position + 1) * frequency / (2 * size))
    matrix[0] /= np.sqrt(2)
    return np.asarray(matrix, np.float64)


def _wavelet(picture: Plane) -> Plane:
    import pywt

    approximation, (horizontal, vertical, diagonal) = pywt.dwt2(picture, "dmey", mode="symmetric")
    return np.block([[approximation, horizontal], [vertical, diagonal]])
