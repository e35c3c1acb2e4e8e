"""Metrics that compare pictures window by window with Gaussian weights: SSIM and pixel-domain VIF."""

from __future__ import annotations

from dataclasses import dataclass
from math import nan

import cv2
import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.float64]
"""One channel, ``[H, W]`` float64, 0 to 255."""

SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
SSIM_C1, SSIM_C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
VIF_WINDOWS = (17, 9, 5, 3)
"""Window side of each of the four scales; the Gaussian's sigma is a fifth of it."""
VIF_NOISE = 2.0
"""Variance of the visual noise, in grey levels squared."""
_FLAT = 1e-10
"""A variance below this is none, so that rounding does not pass for structure."""


@dataclass(frozen=True)
class LocalMoments:
    """A picture with its mean and variance in the Gaussian window around each pixel the window fits on."""

    picture: Plane
    mean: Plane
    variance: Plane
    """Not clipped: rounding can make it slightly negative."""

    @classmethod
    def of(cls, picture: Plane, window: int, sigma: float) -> LocalMoments:
        """Filter ``[H, W]`` into moments of ``[H-window+1, W-window+1]``."""
        mean = gaussian_valid(picture, window, sigma)
        return cls(picture, mean, gaussian_valid(picture * picture, window, sigma) - mean * mean)


def gaussian_valid(picture: Plane, window: int, sigma: float) -> Plane:
    """Gaussian mean over window×window pixels, only where the window lies inside the picture."""
    kernel = cv2.getGaussianKernel(window, sigma, cv2.CV_64F)
    edge = window // 2
    filtered: Plane = cv2.sepFilter2D(picture, cv2.CV_64F, kernel, kernel)
    return filtered[edge:-edge, edge:-edge]


def ssim_moments(picture: Plane) -> LocalMoments | None:
    """What SSIM needs of one picture; None where it is smaller than the window."""
    if min(picture.shape) < SSIM_WINDOW:
        return None
    return LocalMoments.of(picture, SSIM_WINDOW, SSIM_SIGMA)


def ssim(source: LocalMoments | None, fused: LocalMoments | None) -> float:
    """SSIM (Wang et al. 2004): 11×11 window of sigma 1.5, K = 0.01 and 0.03, range 255, valid part; −1 to 1."""
    if source is None or fused is None:
        return nan
    products = source.mean * fused.mean
    covariance = gaussian_valid(source.picture * fused.picture, SSIM_WINDOW, SSIM_SIGMA) - products
    squares = source.mean * source.mean + fused.mean * fused.mean
    similar = (2 * products + SSIM_C1) * (2 * covariance + SSIM_C2)
    norm = (squares + SSIM_C1) * (source.variance + fused.variance + SSIM_C2)
    return float((similar / norm).mean())


def vif_moments(picture: Plane) -> tuple[LocalMoments, ...] | None:
    """What VIF needs of one picture at its four scales; None where the coarsest is smaller than its window.

    From one scale to the next the picture is filtered with the next window and every second pixel is taken.
    """
    scales: list[LocalMoments] = []
    for window in VIF_WINDOWS:
        if scales:
            if min(picture.shape) < window:
                return None
            picture = np.ascontiguousarray(gaussian_valid(picture, window, window / 5)[::2, ::2])
        if min(picture.shape) < window:
            return None
        scales.append(LocalMoments.of(picture, window, window / 5))
    return tuple(scales)


def vif(source: tuple[LocalMoments, ...] | None, fused: tuple[LocalMoments, ...] | None) -> float:
    """Visual information fidelity in the pixel domain (Sheikh and Bovik 2006) of ``fused`` with respect to ``source``.

    In each window the fused picture is modelled as gain × source + noise. VIF is the information that passes this
    channel and the eye's own noise, over what passes the eye alone, both summed over windows and scales. 1 for a copy,
    above 1 with more contrast; nan where the source is flat.
    """
    if source is None or fused is None:
        return nan
    kept = total = 0.0
    for reference, distorted, window in zip(source, fused, VIF_WINDOWS, strict=True):
        scale_kept, scale_total = _information(reference, distorted, window)
        kept, total = kept + scale_kept, total + scale_total
    return kept / total if total else nan


def _information(reference: LocalMoments, distorted: LocalMoments, window: int) -> tuple[float, float]:
    """Information kept by the fused picture and information in the source at one scale."""
    mean_of_products = gaussian_valid(reference.picture * distorted.picture, window, window / 5)
    covariance = mean_of_products - reference.mean * distorted.mean
    reference_variance = np.maximum(reference.variance, 0)
    distorted_variance = np.maximum(distorted.variance, 0)
    gain = covariance / (reference_variance + _FLAT)
    noise = distorted_variance - gain * covariance
    flat = reference_variance < _FLAT
    no_gain = flat | (distorted_variance < _FLAT) | (gain < 0)
    noise = np.maximum(np.where(no_gain, distorted_variance, noise), _FLAT)
    signal = np.where(flat, 0, reference_variance)
    passed = np.where(no_gain, 0, gain * gain * signal / (noise + VIF_NOISE))
    return float(np.log1p(passed).sum()), float(np.log1p(signal / VIF_NOISE).sum())
