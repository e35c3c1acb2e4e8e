"""Fusion metrics that look through a model of the eye's contrast sensitivity: Qcb (Chen and Blum 2009), Qcv (2007).

Pictures are stretched to 0…255 and rounded half up first, as in the MATLAB sources behind published tables.
"""

from __future__ import annotations

from math import nan, pi, sqrt

import cv2
import numpy as np
from numpy.typing import NDArray

from duskfuse.evaluate.gradients import edge_map
from duskfuse.evaluate.local_moments import Plane

# Qcb: contrast sensitivity as a difference of Gaussians, contrast as a ratio of Gaussian means
_CENTRE, _SURROUND, _SURROUND_SHARE = 15.3870, 1.3456, 0.7622
_QCB_CYCLES = 30
"""Cycles across the picture at the highest frequency are its side over this."""
_QCB_WINDOW, _QCB_SIGMAS = 31, (2.0, 4.0)
_CONTRAST_FLOOR = 1e-4

# Qcv: contrast sensitivity after Mannos and Sakrison, blocks weighted by their edges
_QCV_CYCLES = 8
_BLOCK = 16
_EDGE_POWER = 5


def stretched(picture: NDArray[np.uint8]) -> Plane | None:
    """Stretch ``[H, W]`` to 0…255, rounded half up; None for a constant picture."""
    low, high = float(picture.min()), float(picture.max())
    if low == high:
        return None
    return np.floor((picture.astype(np.float64) - low) / (high - low) * 255 + 0.5)


def qcb_contrast(picture: Plane | None) -> Plane | None:
    """Masked local contrast of a stretched picture: C³ / (C² + 10⁻⁴)."""
    if picture is None:
        return None
    frequency = _radial_frequency(picture.shape, _QCB_CYCLES)
    sensitivity = np.exp(-((frequency / _CENTRE) ** 2)) - _SURROUND_SHARE * np.exp(-((frequency / _SURROUND) ** 2))
    seen = _filtered(picture, sensitivity)
    fine, coarse = (_gaussian(seen, sigma) for sigma in _QCB_SIGMAS)
    contrast = np.abs(fine / coarse - 1)
    masked: Plane = contrast**3 / (contrast**2 + _CONTRAST_FLOOR)
    return masked


def chen_blum(a: Plane | None, b: Plane | None, f: Plane | None) -> float:
    """Qcb: how much of the contrast of the more contrasted source is kept, 0 to 1; nan where a picture is constant."""
    if a is None or b is None or f is None:
        return nan
    total = a**2 + b**2
    share = np.where(total > 0, a**2 / np.where(total > 0, total, 1), 0.5)
    return float((share * _preserved(a, f) + (1 - share) * _preserved(b, f)).mean())


def _preserved(source: Plane, fused: Plane) -> Plane:
    low, high = np.minimum(source, fused), np.maximum(source, fused)
    return np.where(high > 0, low / np.where(high > 0, high, 1), 1.0)


def qcv_weights(picture: Plane | None) -> Plane | None:
    """Sum over each block of the fifth power of the Sobel strength."""
    return None if picture is None else _block_sums(edge_map(picture) ** _EDGE_POWER)


def qcv_seen(picture: Plane | None) -> Plane | None:
    """A stretched picture as the eye's contrast sensitivity lets it pass."""
    if picture is None:
        return None
    frequency = 0.144 * _radial_frequency(picture.shape, _QCV_CYCLES)
    # 2.6 (0.0192 + 0.144 r) exp(−(0.144 r)^1.1)
    return _filtered(picture, 2.6 * (0.0192 + frequency) * np.exp(-(frequency**1.1)))


def chen_varshney(
    seen_a: Plane | None, seen_b: Plane | None, seen_f: Plane | None, weight_a: Plane | None, weight_b: Plane | None
) -> float:
    """Qcv: mean squared visible difference from the sources, blocks weighted by the sources' edges; lower is better.

    nan where a picture is constant.
    """
    if seen_a is None or seen_b is None or seen_f is None or weight_a is None or weight_b is None:
        return nan
    total = float((weight_a + weight_b).sum())
    apart = (
        (weight * _block_sums((seen - seen_f) ** 2)).sum() for seen, weight in ((seen_a, weight_a), (seen_b, weight_b))
    )
    return float(sum(apart)) / _BLOCK**2 / total


def _radial_frequency(shape: tuple[int, ...], cycles: int) -> Plane:
    """Radial frequency of the half plane that a real Fourier transform has, ``[H, W // 2 + 1]``."""
    height, width = shape
    rows = 2 * np.fft.fftfreq(height) * (height / cycles)
    columns = 2 * np.fft.rfftfreq(width) * (width / cycles)
    return np.sqrt(rows[:, None] ** 2 + columns**2)


def _filtered(picture: Plane, response: Plane) -> Plane:
    return np.fft.irfft2(np.fft.rfft2(picture) * response, s=picture.shape)


def _gaussian(picture: Plane, sigma: float) -> Plane:
    """Gaussian of 31 pixels, not normalised to its cut-off tails, with zeros beyond the border."""
    offsets = np.arange(_QCB_WINDOW) - _QCB_WINDOW // 2
    kernel = np.exp(-(offsets**2) / (2 * sigma**2)) / (sqrt(2 * pi) * sigma)
    smooth: Plane = cv2.sepFilter2D(picture, cv2.CV_64F, kernel, kernel, borderType=cv2.BORDER_CONSTANT)
    return smooth


def _block_sums(values: Plane) -> Plane:
    """Sums over blocks of 16×16; blocks that the border cuts are filled up with zeros."""
    height, width = values.shape
    whole = np.pad(values, ((0, -height % _BLOCK), (0, -width % _BLOCK)))
    sums: Plane = whole.reshape(whole.shape[0] // _BLOCK, _BLOCK, whole.shape[1] // _BLOCK, _BLOCK).sum(axis=(1, 3))
    return sums
