"""Means and variances in Gaussian windows: what every window-by-window metric starts from."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.float64]
"""One channel, ``[H, W]`` float64, 0 to 255 unless said otherwise."""


@dataclass(frozen=True)
class LocalMoments:
    """A picture with its mean and variance in the Gaussian window around each pixel the window fits on."""

    picture: Plane
    mean: Plane
    variance: Plane
    """Not clipped: rounding can make it slightly negative."""
    window: int
    sigma: float

    @classmethod
    def of(cls, picture: Plane, window: int, sigma: float, squares: Plane | None = None) -> LocalMoments:
        """Filter ``[H, W]`` into moments of ``[H-window+1, W-window+1]``; ``squares`` replaces picture²."""
        mean = gaussian_valid(picture, window, sigma)
        squares = picture * picture if squares is None else squares
        return cls(picture, mean, gaussian_valid(squares, window, sigma) - mean * mean, window, sigma)

    def covariance(self, other: LocalMoments, products: Plane | None = None) -> Plane:
        """Local covariance with a picture of the same window; ``products`` replaces the product of the pictures."""
        products = self.picture * other.picture if products is None else products
        return gaussian_valid(products, self.window, self.sigma) - self.mean * other.mean


def gaussian_valid(picture: Plane, window: int, sigma: float) -> Plane:
    """Gaussian mean over window×window pixels, only where the window lies inside the picture."""
    kernel = cv2.getGaussianKernel(window, sigma, cv2.CV_64F)
    edge = window // 2
    filtered: Plane = cv2.sepFilter2D(picture, cv2.CV_64F, kernel, kernel)
    return filtered[edge:-edge, edge:-edge]


def mean_valid(picture: Plane, window: int) -> Plane:
    """Mean over window×window pixels, only where the window lies inside the picture."""
    edge = window // 2
    filtered: Plane = cv2.blur(picture, (window, window))
    return filtered[edge:-edge, edge:-edge]


def halved(picture: Plane) -> Plane:
    """Means of 2×2 pixels; an odd last row or column is averaged with its own mirror image."""
    height, width = picture.shape
    even = np.pad(picture, ((0, height % 2), (0, width % 2)), mode="symmetric")
    means: Plane = even.reshape(even.shape[0] // 2, 2, even.shape[1] // 2, 2).mean(axis=(1, 3))
    return means
