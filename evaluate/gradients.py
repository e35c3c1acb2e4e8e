"""Metrics of edges: spatial frequency, average gradient, and how edges of the sources arrive in the fused picture."""

from __future__ import annotations

from dataclasses import dataclass
from math import nan, pi, sqrt

import cv2
import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.float64]
"""One channel, ``[H, W]`` float64, 0 to 255."""

_SMOOTH = np.array([1.0, 2.0, 1.0])
_DIFFERENCE = np.array([-1.0, 0.0, 1.0])


@dataclass(frozen=True)
class Edges:
    """Strength and orientation of the edge at each pixel."""

    strength: Plane
    angle: Plane
    """Radians, −π/2 to π/2."""


def spatial_frequency(picture: Plane) -> float:
    """SF = √(RF² + CF²): root of the mean squared differences of neighbours along rows and along columns."""
    rows, columns = np.diff(picture, axis=1).ravel(), np.diff(picture, axis=0).ravel()
    return sqrt(_mean_square(rows) + _mean_square(columns))


def average_gradient(picture: Plane) -> float:
    """AG: mean of √((gx² + gy²) / 2) over the pixels, with central differences (one-sided at the border)."""
    gy, gx = np.gradient(picture)
    return float(np.sqrt((gx * gx + gy * gy) / 2).mean())


def edge_intensity(picture: Plane) -> float:
    """EI: mean strength of the Sobel edges, the picture repeated at its border."""
    sx = cv2.sepFilter2D(picture, cv2.CV_64F, _DIFFERENCE, _SMOOTH, borderType=cv2.BORDER_REPLICATE)
    sy = cv2.sepFilter2D(picture, cv2.CV_64F, _SMOOTH, _DIFFERENCE, borderType=cv2.BORDER_REPLICATE)
    return float(np.sqrt(sx * sx + sy * sy).mean())


def edge_map(picture: Plane, smooth: NDArray[np.float64] = _SMOOTH) -> Plane:
    """Strength of the edges with zeros beyond the border: Sobel's, or Prewitt's where ``smooth`` is ``[1, 1, 1]``."""
    sx = cv2.sepFilter2D(picture, cv2.CV_64F, _DIFFERENCE, smooth, borderType=cv2.BORDER_CONSTANT)
    sy = cv2.sepFilter2D(picture, cv2.CV_64F, smooth, _DIFFERENCE, borderType=cv2.BORDER_CONSTANT)
    strength: Plane = np.sqrt(sx * sx + sy * sy)
    return strength


def _mean_square(differences: Plane) -> float:
    return float(differences @ differences) / differences.size if differences.size else 0.0


# Qabf, Xydeas and Petrović 2000: sigmoids of how much edge strength and orientation is kept
_STRENGTH_GAIN, _STRENGTH_SLOPE, _STRENGTH_CENTRE = 0.9994, -15.0, 0.5
_ANGLE_GAIN, _ANGLE_SLOPE, _ANGLE_CENTRE = 0.9879, -22.0, 0.8


def qabf_edges(picture: Plane) -> Edges:
    """Sobel edges with zeros beyond the border.

    The angle is arctan(Sy / Sx) and +π/2 where Sx = 0. It is not wrapped, so the signs matter: Sx is left minus right
    and Sy is below minus above, as in the MATLAB sources that published tables were made with.
    """
    sx = cv2.sepFilter2D(picture, cv2.CV_64F, -_DIFFERENCE, _SMOOTH, borderType=cv2.BORDER_CONSTANT)
    sy = cv2.sepFilter2D(picture, cv2.CV_64F, _SMOOTH, _DIFFERENCE, borderType=cv2.BORDER_CONSTANT)
    upright = sx == 0
    angle = np.arctan(sy / np.where(upright, 1.0, sx))
    angle[upright] = pi / 2
    return Edges(np.sqrt(sx * sx + sy * sy), angle)


def edge_transfer(a: Edges, b: Edges, f: Edges) -> float:
    """Qabf: the share of the edge information of both sources that the fused picture keeps, 0 to about 0.975.

    Qabf = Σ (Q_AF g_A + Q_BF g_B) / Σ (g_A + g_B); nan where neither source has an edge.
    """
    total = float(a.strength.sum() + b.strength.sum())
    if total == 0:
        return nan
    kept = (_qabf_kept(source, f).ravel() @ source.strength.ravel() for source in (a, b))
    return float(sum(kept)) / total


def _qabf_kept(source: Edges, fused: Edges) -> Plane:
    low, high = np.minimum(source.strength, fused.strength), np.maximum(source.strength, fused.strength)
    # equal strengths: the published definition takes the strength itself, not 1; this differs at strength 0 only
    ratio = np.where(low == high, high, low / np.where(high == 0, 1.0, high))
    turn = 1 - np.abs(source.angle - fused.angle) / (pi / 2)
    strength = _STRENGTH_GAIN / (1 + np.exp(_STRENGTH_SLOPE * (ratio - _STRENGTH_CENTRE)))
    angle = _ANGLE_GAIN / (1 + np.exp(_ANGLE_SLOPE * (turn - _ANGLE_CENTRE)))
    kept: Plane = strength * angle
    return kept


# Nabf, Shreyamsha Kumar 2013
_EDGE_FLOOR, _LEAST_WEIGHT, _WEIGHT_POWER = 2.0, 0.001, 1.5
_NABF_STRENGTH_GAIN, _NABF_STRENGTH_SLOPE = 0.9999, -19.0
_NABF_ANGLE_GAIN, _NABF_ANGLE_SLOPE = 0.9995, -22.0
_NABF_CENTRE = 0.5


def nabf_edges(picture: Plane) -> Edges:
    """Sobel edges divided by 8, the picture mirrored at its border; the angle is arctan(Sx / Sy), 0 for no edge."""
    sx = cv2.sepFilter2D(picture, cv2.CV_64F, _DIFFERENCE, _SMOOTH / 8, borderType=cv2.BORDER_REFLECT_101)
    sy = cv2.sepFilter2D(picture, cv2.CV_64F, _SMOOTH, _DIFFERENCE / 8, borderType=cv2.BORDER_REFLECT_101)
    level = sy == 0
    angle = np.arctan(sx / np.where(level, 1.0, sy))
    angle[level] = np.sign(sx[level]) * (pi / 2)
    return Edges(np.sqrt(sx * sx + sy * sy), angle)


def edge_weights(source: Edges) -> Plane:
    """Weight of a source's edges in Nabf: strength^1.5 from 2 grey levels on, 0.001 below."""
    strong = source.strength >= _EDGE_FLOOR
    return np.where(strong, source.strength**_WEIGHT_POWER, _LEAST_WEIGHT)


def edge_artefacts(a: Edges, b: Edges, f: Edges, weight_a: Plane, weight_b: Plane) -> float:
    """Nabf: the weighted share of edges that the fused picture adds, where it is stronger than both; 0 is best.

    Nabf = Σ_new [(1 − Q_AF) w_A + (1 − Q_BF) w_B] / Σ (w_A + w_B).
    """
    new = (f.strength > a.strength) & (f.strength > b.strength)
    added = ((1 - _nabf_kept(source, f, new)) @ weight[new] for source, weight in ((a, weight_a), (b, weight_b)))
    return float(sum(added)) / float(weight_a.sum() + weight_b.sum())


def _nabf_kept(source: Edges, fused: Edges, where: NDArray[np.bool_]) -> Plane:
    """Q where the fused edge is the stronger one, ``[N]``."""
    ratio = source.strength[where] / fused.strength[where]
    turn = np.abs(np.abs(source.angle[where] - fused.angle[where]) - pi / 2) * (2 / pi)
    strength = _NABF_STRENGTH_GAIN / (1 + np.exp(_NABF_STRENGTH_SLOPE * (ratio - _NABF_CENTRE)))
    angle = _NABF_ANGLE_GAIN / (1 + np.exp(_NABF_ANGLE_SLOPE * (turn - _NABF_CENTRE)))
    kept: Plane = np.sqrt(strength * angle)
    return kept
