"""From a rough placement to the homography of a rig, coarse to fine, over all frames together.

At each level blocks of all frames are matched, one homography is found among all matches by RANSAC, and then moved to
where the blocks' correlation surfaces are highest (Newton's method, as Irani and Anandan, "Robust
multi-sensor image alignment", 1998). The surfaces saturate, so that what moves or stands nearer pulls little.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from duskfuse.data.containers import Size
from duskfuse.data.rig_calibration.blocks import Matches, Surfaces, grid_size, joined, peaks, surfaces
from duskfuse.data.rig_calibration.structure import (
    Matrix3,
    Plane,
    Points,
    local_scale,
    projected,
    resized,
    scaling,
    structure_field,
)

Views = tuple[Plane, Plane]
"""The infrared and the visible picture of one moment, each ``[H, W]`` float32 on its own grid."""

VERIFY_REACH = 10
TOLERANCE = 2.5
"""Pixels of the last level: how far matches are sought, and how near they follow a homography."""

LEVELS: tuple[tuple[int, int, int], ...] = ((200, 10, 4), (320, 9, 8), (640, 8, 8), (640, 5, 8))
"""Pixels of the longer side of the visible grid, reach of the blocks, and how many of the eight numbers are free."""
_LEAST_SCORE = 0.25
_LEAST_LEAD = 0.03
_FEWEST = 12
_PRIOR = (0.15, 0.15, 0.15, 0.15, 0.05, 0.05)
"""Of the four numbers of shape and the two of perspective, in half widths of the picture: how far cameras are askew."""


@dataclass(frozen=True)
class Fit:
    """A homography and the matches that were found under it."""

    matrix: Matrix3
    """Infrared pixels → visible pixels."""
    matches: Matches
    """In visible pixels; ``start`` is where the homography brings the middle of a block."""
    ir_points: Points
    """``[N, 2]``, the infrared pixels of the matches."""
    pixel: float
    """Visible pixels per pixel of the grid on which they were found."""
    correlation: float
    """Mean of all blocks at the homography."""

    def of_frames(self, frames: Sequence[int]) -> Fit:
        """The matches of some frames only."""
        own = np.isin(self.matches.frame, frames)
        found = self.matches
        matches = Matches(found.start[own], found.end[own], found.score[own], found.frame[own])
        return replace(self, matches=matches, ir_points=self.ir_points[own])


def refined(pairs: Sequence[Views], start: Matrix3, levels: slice = slice(None)) -> Matrix3:
    """Refine a placement on all pairs.

    Args:
        pairs: infrared and visible planes; each side of one size.
        start: infrared pixels → visible pixels, right to a few hundredths of the picture.
        levels: which of the levels are gone through.
    """
    matrix = start
    for largest, reach, freedom in LEVELS[levels]:
        level, to_level, size = _level(pairs, matrix, largest)
        found = _surfaces(pairs, level, size, reach)
        matches = joined([peaks(one, number, _LEAST_SCORE, _LEAST_LEAD) for number, one in enumerate(found)])
        step = _by_surfaces(found, _by_matches(matches, size, freedom), size, freedom)
        matrix = np.linalg.inv(to_level) @ step @ level
        matrix = matrix / matrix[2, 2]
    return matrix


def verified(pairs: Sequence[Views], matrix: Matrix3, largest: int = LEVELS[-1][0]) -> Fit:
    """Match the blocks of all pairs under a homography that stays as it is.

    Args:
        pairs: infrared and visible planes; each side of one size.
        matrix: infrared pixels → visible pixels.
        largest: pixels of the longer side of the visible grid.
    """
    level, to_level, size = _level(pairs, matrix, largest)
    found = _surfaces(pairs, level, size, VERIFY_REACH)
    matches = joined([peaks(one, number, _LEAST_SCORE, _LEAST_LEAD) for number, one in enumerate(found)])
    back = np.linalg.inv(to_level)
    in_pixels = Matches(projected(back, matches.start), projected(back, matches.end), matches.score, matches.frame)
    ir_points = projected(np.linalg.inv(level), matches.start)
    values = np.concatenate([_values(one, np.eye(3))[0] for one in found])
    correlation = float(values.mean()) if len(values) else 0.0
    return Fit(matrix, in_pixels, ir_points, 1 / to_level[0, 0], correlation)


def _level(pairs: Sequence[Views], matrix: Matrix3, largest: int) -> tuple[Matrix3, Matrix3, Size]:
    """Infrared and visible pixels → those of the level's grid, and its size."""
    ir_size, vis_size = _size(pairs[0][0]), _size(pairs[0][1])
    size = grid_size(vis_size, largest, local_scale(matrix, ir_size))
    to_level = scaling(vis_size, size)
    return to_level @ matrix, to_level, size


def _surfaces(pairs: Sequence[Views], level: Matrix3, size: Size, reach: int) -> list[Surfaces]:
    return [surfaces(ir, level, structure_field(resized(vis, size)), reach) for ir, vis in pairs]


def _by_matches(matches: Matches, size: Size, freedom: int) -> Matrix3:
    """The homography (or similarity) that most matches follow; the identity where they are too few."""
    if len(matches.start) < _FEWEST:
        return np.eye(3)
    cv2.setRNGSeed(0)
    if freedom == 4:
        found, inliers = cv2.estimateAffinePartial2D(
            matches.start, matches.end, method=cv2.RANSAC, ransacReprojThreshold=TOLERANCE * 1.5, maxIters=5000
        )
        whole = None if found is None else np.vstack([found, [0, 0, 1]])
    else:
        whole, inliers = cv2.findHomography(
            matches.start, matches.end, method=cv2.USAC_MAGSAC, ransacReprojThreshold=TOLERANCE, maxIters=5000
        )
    if whole is None or inliers is None or int(inliers.sum()) < _FEWEST or not _is_small(whole, size):
        return np.eye(3)
    return np.asarray(whole, np.float64)


def _is_small(step: Matrix3, size: Size) -> bool:
    """Whether a step moves the middle of each quarter by less than a tenth of the picture, without turning it over."""
    height, width = size
    points = np.array([[x * width, y * height] for x in (0.25, 0.75) for y in (0.25, 0.75)])
    lifted = points @ step[2, :2] + step[2, 2]
    moved = projected(step, points)
    return bool(lifted.min() > 0 and np.linalg.norm(moved - points, axis=1).max() < 0.12 * float(np.hypot(*size)))


def _by_surfaces(found: Sequence[Surfaces], start: Matrix3, size: Size, freedom: int) -> Matrix3:
    """Climb to the homography where `_total` is highest."""
    step, best = start, _total(found, start)
    if best <= 0:
        return start
    identity = _total(found, np.eye(3))
    if identity > best:
        step, best = np.eye(3), identity
    damping = 1e-3
    for _ in range(12):
        gradient, curvature = _normal_equations(found, step, size)
        free = slice(0, 8) if freedom == 8 else slice(0, 6)
        curvature[np.diag_indices(8)] *= 1 + damping
        change = np.zeros(8)
        change[free] = np.linalg.solve(curvature[free, free] + 1e-9 * np.eye(8)[free, free], gradient[free])
        tried = _moved(step, change, size)
        value = _total(found, tried)
        if value <= best:
            damping *= 10
            if damping > 10:
                break
            continue
        gain = value - best
        step, best, damping = tried, value, max(damping / 10, 1e-6)
        if gain < 1e-5 * best:
            break
    return step


def _normal_equations(
    found: Sequence[Surfaces], step: Matrix3, size: Size
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    gradient, curvature = np.zeros(8), np.zeros((8, 8))
    for one in found:
        if not len(one.centres):
            continue
        _, slope, bend = _values(one, step)
        jacobian = _jacobian(projected(step, one.centres), size)
        gradient += np.einsum("nki,nk->i", jacobian, slope)
        curvature += np.einsum("nki,nkl,nlj->ij", jacobian, bend, jacobian)
    total = sum(len(one.centres) for one in found)
    half = max(size) / 2
    prior = np.zeros(8)
    for place, spread in zip((0, 1, 3, 4, 6, 7), _PRIOR, strict=True):
        prior[place] = 1 / spread**2
    curvature += np.diag(prior) * total * 1e-4 + np.eye(8) * 1e-9 * half
    return gradient, curvature


def _jacobian(points: Points, size: Size) -> NDArray[np.float64]:
    """Movement in pixels of points per unit of the eight numbers, ``[N, 2, 8]``."""
    half = max(size) / 2
    x, y = ((points - [(size[1] - 1) / 2, (size[0] - 1) / 2]) / half).T
    zero, one = np.zeros_like(x), np.ones_like(x)
    rows = [[x, y, one, zero, zero, zero, -x * x, -x * y], [zero, zero, zero, x, y, one, -x * y, -y * y]]
    return np.asarray(half * np.stack([np.stack(row, -1) for row in rows], 1))


def _moved(step: Matrix3, change: NDArray[np.float64], size: Size) -> Matrix3:
    half = max(size) / 2
    middle = np.array([[half, 0, (size[1] - 1) / 2], [0, half, (size[0] - 1) / 2], [0, 0, 1]])
    a, b, c, d, e, f, g, h = change
    small = np.array([[1 + a, b, c], [d, 1 + e, f], [g, h, 1]])
    moved = middle @ small @ np.linalg.inv(middle) @ step
    return np.asarray(moved / moved[2, 2])


def _total(found: Sequence[Surfaces], step: Matrix3) -> float:
    """Half the sum of the squares of all correlations above 0: what does not fit has no say."""
    return 0.5 * float(sum(np.square(np.maximum(_values(one, step)[0], 0)).sum() for one in found))


def _values(one: Surfaces, step: Matrix3) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Value ``[N]`` of each surface under a step, and of `_total` slope ``[N, 2]`` and positive curvature."""
    r = one.reach
    moved = projected(step, one.centres) - one.centres + r
    beyond = (moved < 1) | (moved > 2 * r - 1)
    held = np.clip(moved, 1, 2 * r - 1)
    base = np.clip(np.rint(held).astype(np.intp), 1, 2 * r - 1)
    x, y = (held - base).T
    number = np.arange(len(held))
    near = np.stack(
        [np.stack([one.values[number, base[:, 1] + j, base[:, 0] + i] for i in (-1, 0, 1)], -1) for j in (-1, 0, 1)],
        1,
    ).astype(np.float64)
    gx = (near[:, 1, 2] - near[:, 1, 0]) / 2
    gy = (near[:, 2, 1] - near[:, 0, 1]) / 2
    xx = near[:, 1, 2] - 2 * near[:, 1, 1] + near[:, 1, 0]
    yy = near[:, 2, 1] - 2 * near[:, 1, 1] + near[:, 0, 1]
    xy = (near[:, 2, 2] - near[:, 2, 0] - near[:, 0, 2] + near[:, 0, 0]) / 4
    value = near[:, 1, 1] + gx * x + gy * y + 0.5 * (xx * x * x + yy * y * y) + xy * x * y
    slope = np.stack([gx + xx * x + xy * y, gy + xy * x + yy * y], 1)
    slope[beyond] = 0
    bend = _positive(-xx, -xy, -yy)
    weight = np.maximum(value, 0)
    return value, slope * weight[:, None], bend * weight[:, None, None]


def _positive(a: NDArray[np.float64], b: NDArray[np.float64], c: NDArray[np.float64]) -> NDArray[np.float64]:
    """The symmetric matrices [[a, b], [b, c]] with their eigenvalues made positive, ``[N, 2, 2]``."""
    values, vectors = np.linalg.eigh(np.stack([np.stack([a, b], -1), np.stack([b, c], -1)], 1))
    return np.asarray(np.einsum("nij,nj,nkj->nik", vectors, np.maximum(abs(values), 1e-4), vectors))


def _size(picture: Plane) -> Size:
    return picture.shape[0], picture.shape[1]
