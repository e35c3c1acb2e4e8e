"""Structural similarity: SSIM (Wang 2004), and of several scales MS-SSIM (Wang 2003) and MEF-SSIM (Ma 2015)."""

from __future__ import annotations

from math import nan, prod

import numpy as np

from duskfuse.evaluate.local_moments import LocalMoments, Plane, halved, mean_valid

SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
_K1, _K2 = 0.01, 0.03
SSIM_RANGE = 255.0
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
MEF_WEIGHTS = (0.0448, 0.2856, 0.3001)
_MEF_FLOOR = 0.001
_MEF_STRONGEST = 10.0


def ssim_moments(picture: Plane) -> LocalMoments | None:
    """What SSIM needs of one picture; None where it is smaller than the window."""
    if min(picture.shape) < SSIM_WINDOW:
        return None
    return LocalMoments.of(picture, SSIM_WINDOW, SSIM_SIGMA)


def contrast_structure(a: LocalMoments, b: LocalMoments, span: float = SSIM_RANGE) -> Plane:
    """The contrast and structure part of SSIM's map."""
    c2 = (_K2 * span) ** 2
    return (2 * a.covariance(b) + c2) / (a.variance + b.variance + c2)


def luminance_similarity(a: LocalMoments, b: LocalMoments, span: float = SSIM_RANGE) -> Plane:
    """The luminance part of SSIM's map."""
    c1 = (_K1 * span) ** 2
    return (2 * a.mean * b.mean + c1) / (a.mean * a.mean + b.mean * b.mean + c1)


def ssim_map(a: LocalMoments, b: LocalMoments, span: float = SSIM_RANGE) -> Plane:
    """SSIM of every window that lies inside the picture; K = 0.01 and 0.03, ``span`` the range of the values."""
    return luminance_similarity(a, b, span) * contrast_structure(a, b, span)


def scales(picture: Plane, count: int) -> list[LocalMoments] | None:
    """Moments of a picture and of its halvings; None where the smallest is smaller than the window."""
    found = []
    for level in range(count):
        if min(picture.shape) < SSIM_WINDOW:
            return None
        found.append(LocalMoments.of(picture, SSIM_WINDOW, SSIM_SIGMA))
        if level + 1 < count:
            picture = halved(picture)
    return found


def ms_ssim(source: list[LocalMoments] | None, fused: list[LocalMoments] | None) -> float:
    """MS-SSIM (Wang, Simoncelli and Bovik 2003), five scales; nan under 161 pixels a side.

    Product over the scales of the mean contrast and structure, with luminance at the coarsest, to the scale's weight;
    a negative mean counts as 0.
    """
    if source is None or fused is None:
        return nan
    last = len(MS_SSIM_WEIGHTS) - 1
    similarities = (
        ssim_map(a, b) if level == last else contrast_structure(a, b)
        for level, (a, b) in enumerate(zip(source, fused, strict=True))
    )
    means = (max(float(values.mean()), 0.0) for values in similarities)
    return float(prod(mean**weight for mean, weight in zip(means, MS_SSIM_WEIGHTS, strict=True)))


def mef_ssim(a: Plane, b: Plane, f: Plane) -> float:
    """MEF-SSIM (Ma, Zeng and Wang 2015) of three scales: how well F shows the structure that A and B would give.

    In each window the desired structure is that of the sources' patches, weighted by their contrast and scaled to the
    strongest. Tables call it MS-SSIM where they were made with a toolbox that does. nan under 43 pixels a side.
    """
    if min(a.shape) < SSIM_WINDOW << len(MEF_WEIGHTS) - 1:
        return nan
    means = []
    for _ in MEF_WEIGHTS:
        means.append(_mef_similarity(a, b, f))
        a, b, f = halved(a), halved(b), halved(f)
    total = sum(MEF_WEIGHTS)
    return float(prod(max(mean, 0.0) ** (weight / total) for mean, weight in zip(means, MEF_WEIGHTS, strict=True)))


def _mef_similarity(a: Plane, b: Plane, f: Plane) -> float:
    share_a, share_b = _desired_shares(a, b)
    moments = [LocalMoments.of(picture, SSIM_WINDOW, SSIM_SIGMA) for picture in (a, b, f)]
    of_a, of_b, of_f = moments
    desired = share_a**2 * of_a.variance + share_b**2 * of_b.variance + 2 * share_a * share_b * of_a.covariance(of_b)
    common = share_a * of_a.covariance(of_f) + share_b * of_b.covariance(of_f)
    c = (_K2 * SSIM_RANGE) ** 2
    return float(((2 * common + c) / (desired + of_f.variance + c)).mean())


def _desired_shares(a: Plane, b: Plane) -> tuple[Plane, Plane]:
    """How much of each source's patch the desired patch holds, per window."""
    pixels = SSIM_WINDOW**2
    energy_a, energy_b, product = _energy(a, a, pixels), _energy(b, b, pixels), _energy(a, b, pixels)
    norm_a = np.sqrt(np.maximum(energy_a, 0)) + _MEF_FLOOR
    norm_b = np.sqrt(np.maximum(energy_b, 0)) + _MEF_FLOOR
    strongest = np.maximum(norm_a, norm_b)
    tiny = np.finfo(float).eps
    together = np.sqrt(np.maximum(energy_a + energy_b + 2 * product, 0))
    consistency = np.clip((together + tiny) / (norm_a + norm_b + tiny), tiny, 1 - tiny)
    power = np.minimum(np.tan(np.pi / 2 * consistency), _MEF_STRONGEST)
    weight_a, weight_b = (norm_a / strongest) ** power + tiny, (norm_b / strongest) ** power + tiny
    share_a = weight_a / (weight_a + weight_b) / norm_a
    share_b = weight_b / (weight_a + weight_b) / norm_b
    length = share_a**2 * energy_a + share_b**2 * energy_b + 2 * share_a * share_b * product
    length = np.sqrt(np.maximum(length, 0))
    scale = np.where(length > 0, strongest / np.where(length > 0, length, 1), 1.0)
    return share_a * scale, share_b * scale


def _energy(first: Plane, second: Plane, pixels: int) -> Plane:
    """Sum over each window of the product of the deviations from the window's means."""
    means = mean_valid(first, SSIM_WINDOW) * mean_valid(second, SSIM_WINDOW)
    return pixels * (mean_valid(first * second, SSIM_WINDOW) - means)
