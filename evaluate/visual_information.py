"""Visual information fidelity: pixel-domain VIF (Sheikh and Bovik 2006) and VIFF for fusion (Han 2013).

In each window the fused picture is modelled as gain × source + noise, and one asks how much of what the eye could learn
of the source passes this channel.
"""

from __future__ import annotations

from math import nan

import numpy as np

from duskfuse.evaluate.local_moments import LocalMoments, Plane, gaussian_valid

VIF_WINDOWS = (17, 9, 5, 3)
"""Window side of each of the four scales; the Gaussian's sigma is a fifth of it."""
VIF_NOISE = 2.0
"""Variance of the visual noise in VIF, in grey levels squared."""
VIFF_NOISE = 0.005 * 255**2
"""Variance of the visual noise in VIFF."""
VIFF_WEIGHTS = tuple(weight / 2.15 for weight in (1.0, 0.0, 0.15, 1.0))
"""Of the scales, finest first."""
_VIFF_FLOOR = 1e-7
_FLAT = 1e-10
"""A variance below this is none, so that rounding does not pass for structure."""

Scales = tuple[LocalMoments, ...]


def vif_moments(picture: Plane, squares: Plane | None = None) -> Scales | None:
    """What both metrics need of one picture at its four scales; None where the coarsest is smaller than its window.

    From one scale to the next the picture is filtered with the next window and every second pixel is taken.
    ``squares`` replaces picture² at the finest scale.
    """
    scales: list[LocalMoments] = []
    for window in VIF_WINDOWS:
        if scales:
            if min(picture.shape) < window:
                return None
            picture = np.ascontiguousarray(gaussian_valid(picture, window, window / 5)[::2, ::2])
        if min(picture.shape) < window:
            return None
        scales.append(LocalMoments.of(picture, window, window / 5, None if scales else squares))
    return tuple(scales)


class Channel:
    """Gain and noise from one source to the fused picture in every window of one scale."""

    def __init__(self, source: LocalMoments, fused: LocalMoments, products: Plane | None = None) -> None:
        """``products`` replaces the product of the two pictures."""
        covariance = source.covariance(fused, products)
        source_variance, fused_variance = np.maximum(source.variance, 0), np.maximum(fused.variance, 0)
        gain = covariance / (source_variance + _FLAT)
        flat = source_variance < _FLAT
        silent = flat | (fused_variance < _FLAT) | (gain < 0)
        noise = np.where(silent, fused_variance, fused_variance - gain * covariance)
        self.gain = np.where(silent, 0, gain)
        self.noise = np.maximum(noise, _FLAT)
        self.signal = np.where(flat, 0, source_variance)

    def passed(self, eye: float) -> Plane:
        """Information in nats that passes channel and eye, the eye's own noise having the variance ``eye``."""
        return np.log1p(self.gain**2 * self.signal / (self.noise + eye))

    def seen(self, eye: float) -> Plane:
        """Information in nats that passes the eye alone."""
        return np.log1p(self.signal / eye)


def channels(source: Scales | None, fused: Scales | None, products: Plane | None = None) -> list[Channel] | None:
    """The channel at each scale, finest first; ``products`` replaces source × fused at the finest."""
    if source is None or fused is None:
        return None
    levels = enumerate(zip(source, fused, strict=True))
    return [Channel(a, f, None if level else products) for level, (a, f) in levels]


def vif(channels: list[Channel] | None) -> float:
    """VIF: information passed over information seen, both summed over windows and scales.

    1 for a copy, above 1 with more contrast; nan where the source is flat or under about 41 pixels a side.
    """
    if channels is None:
        return nan
    total = sum(float(channel.seen(VIF_NOISE).sum()) for channel in channels)
    return sum(float(channel.passed(VIF_NOISE).sum()) for channel in channels) / total if total else nan


def viff(of_a: list[Channel] | None, of_b: list[Channel] | None) -> float:
    """VIFF: in each window the source that the fused picture follows more weakly counts; weighted sum of scales."""
    if of_a is None or of_b is None:
        return nan
    shares = []
    for a, b in zip(of_a, of_b, strict=True):
        first = a.gain < b.gain
        passed = np.where(first, a.passed(VIFF_NOISE), b.passed(VIFF_NOISE)) / _LN10 + _VIFF_FLOOR
        seen = np.where(first, a.seen(VIFF_NOISE), b.seen(VIFF_NOISE)) / _LN10 + _VIFF_FLOOR
        shares.append(float(passed.sum() / seen.sum()))
    return sum(weight * share for weight, share in zip(VIFF_WEIGHTS, shares, strict=True))


_LN10 = float(np.log(10))
"""Han's information is in decimal digits, which matters beside `_VIFF_FLOOR` alone."""
