"""Correlation surfaces of blocks: how well each part of the infrared picture fits at small displacements.

A surface says more than its peak: along a straight edge it is a ridge, and a block that fits in two places says so
(Irani and Anandan, "Robust multi-sensor image alignment", 1998).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import scipy.fft
from numpy.typing import NDArray

from duskfuse.data.containers import Size
from duskfuse.data.rig_calibration.structure import Field, Matrix3, Plane, Points, structure_field, warped

BLOCK = 40
"""Pixels along each side of a block, on the grid of the level."""
_STEP = 20
_FINEST = 2.0
"""Pixels of a level per infrared pixel, at most."""
_LEAST_SEEN = 0.9
_LEAST_ENERGY = 0.15
"""Of the median energy per pixel of the two fields: a block with less in it says nothing."""


@dataclass(frozen=True)
class Surfaces:
    """The correlation of blocks of one frame with their surroundings."""

    centres: Points
    """``[N, 2]`` (x, y) on the grid of the level."""
    values: NDArray[np.float32]
    """``[N, 2 r + 1, 2 r + 1]``, normalised correlation at displacements −r to r (rows: y) of infrared."""

    @property
    def reach(self) -> int:
        """r, in pixels."""
        return int(self.values.shape[1] - 1) // 2


@dataclass(frozen=True)
class Matches:
    """Where blocks fit best."""

    start: Points
    """``[N, 2]`` (x, y), the blocks' centres."""
    end: Points
    """``[N, 2]`` (x, y), to a fraction of a pixel."""
    score: NDArray[np.float64]
    """``[N]`` normalised correlation."""
    frame: NDArray[np.intp]
    """``[N]`` number of the frame."""


def surfaces(ir: Plane, matrix: Matrix3, vis: tuple[Field, NDArray[np.bool_]], reach: int) -> Surfaces:
    """Correlate the blocks of one frame.

    Args:
        ir: infrared picture on its own grid.
        matrix: its pixels → pixels of the level's visible grid, as known so far.
        vis: the visible field on that grid, and where it holds.
        reach: pixels of displacement that are tried along each axis.
    """
    size = vis[1].shape[0], vis[1].shape[1]
    moved, seen = structure_field(*warped(ir, matrix, size))
    corners = _blocks(moved, seen, *vis, reach)
    values = _correlated(moved, vis[0], corners, reach)
    return Surfaces(np.asarray(corners[:, ::-1] + (BLOCK - 1) / 2, np.float64), values)


def peaks(found: Surfaces, frame: int, least_score: float, least_lead: float) -> Matches:
    """The best displacement of each block that has one clear peak.

    Args:
        found: the surfaces of a frame.
        frame: its number.
        least_score: correlation at the peak.
        least_lead: by how much it must exceed every place three and more pixels away.
    """
    r, side = found.reach, 2 * found.reach + 1
    flat = found.values.reshape(len(found.values), side * side)
    best = flat.argmax(1)
    rows, columns = best // side, best % side
    score = flat[np.arange(len(flat)), best]
    inside = (rows > 0) & (rows < side - 1) & (columns > 0) & (columns < side - 1)
    grid = np.arange(side)
    away = (abs(grid[None, :, None] - rows[:, None, None]) > 2) | (abs(grid[None, None] - columns[:, None, None]) > 2)
    second = np.where(away, found.values, -1).reshape(len(flat), side * side).max(1, initial=-1)
    good = inside & (score >= least_score) & (score - second >= least_lead)
    rows, columns = rows[good], columns[good]
    dx, dy = _vertex(found.values[good], rows, columns)
    start = found.centres[good]
    end = start + np.stack([columns - r + dx, rows - r + dy], 1)
    return Matches(start, end, score[good].astype(np.float64), np.full(len(start), frame, np.intp))


def joined(parts: list[Matches]) -> Matches:
    """The matches of several frames together."""
    return Matches(
        np.concatenate([part.start for part in parts]),
        np.concatenate([part.end for part in parts]),
        np.concatenate([part.score for part in parts]),
        np.concatenate([part.frame for part in parts]),
    )


def _blocks(
    ir: Field, ir_seen: NDArray[np.bool_], vis: Field, vis_seen: NDArray[np.bool_], reach: int
) -> NDArray[np.intp]:
    """First row and column of every block that both cameras see and that has structure in both, ``[N, 2]``."""
    height, width = ir_seen.shape
    rows = np.arange(reach, height - BLOCK - reach + 1, _STEP)
    columns = np.arange(reach, width - BLOCK - reach + 1, _STEP)
    at = np.stack(np.meshgrid(rows, columns, indexing="ij"), -1).reshape(-1, 2)
    both = ir_seen & vis_seen
    if not len(at) or not both.any():
        return at[:0]
    area = BLOCK * BLOCK
    good = _sums(both.astype(np.float32), at) >= _LEAST_SEEN * area
    for field in (ir, vis):
        energy = (field * field).sum(0)
        good &= _sums(energy, at) >= _LEAST_ENERGY * area * float(energy[both].mean())
    return at[good]


def _correlated(ir: Field, vis: Field, at: NDArray[np.intp], reach: int) -> NDArray[np.float32]:
    side = BLOCK + 2 * reach
    out = np.empty((len(at), 2 * reach + 1, 2 * reach + 1), np.float32)
    window = np.outer(np.hanning(BLOCK + 2)[1:-1], np.hanning(BLOCK + 2)[1:-1]).astype(np.float32) ** 0.5
    shape = (side, side)
    weights = scipy.fft.rfft2(window**2, s=shape).conj()
    for first in range(0, len(at), 64):
        part = at[first : first + 64]
        own = np.stack([ir[:, r : r + BLOCK, c : c + BLOCK] for r, c in part]) * window
        around = np.stack([vis[:, r - reach : r + BLOCK + reach, c - reach : c + BLOCK + reach] for r, c in part])
        spectrum = (scipy.fft.rfft2(own * window, s=shape).conj() * scipy.fft.rfft2(around)).sum(1)
        energy = weights * scipy.fft.rfft2((around * around).sum(1))
        product, around_energy = (
            scipy.fft.irfft2(each, s=shape)[:, : 2 * reach + 1, : 2 * reach + 1] for each in (spectrum, energy)
        )
        own_energy = (own * own).sum((1, 2, 3))[:, None, None]
        floor = 0.05 * around_energy.mean((1, 2), keepdims=True) + 1e-9
        out[first : first + 64] = product / np.sqrt((own_energy + 1e-9) * (np.maximum(around_energy, 0) + floor))
    return out


def _vertex(
    values: NDArray[np.float32], rows: NDArray[np.intp], columns: NDArray[np.intp]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Offsets (x, y) of the vertex of the paraboloid through the nine values around each peak, within ±0.7."""
    number = np.arange(len(values))
    near = np.stack(
        [np.stack([values[number, rows + j, columns + i] for i in (-1, 0, 1)], -1) for j in (-1, 0, 1)], 1
    ).astype(np.float64)
    gx = (near[:, :, 2] - near[:, :, 0]).mean(1) / 2
    gy = (near[:, 2] - near[:, 0]).mean(1) / 2
    xx = (near[:, :, 2] - 2 * near[:, :, 1] + near[:, :, 0]).mean(1)
    yy = (near[:, 2] - 2 * near[:, 1] + near[:, 0]).mean(1)
    xy = (near[:, 2, 2] - near[:, 2, 0] - near[:, 0, 2] + near[:, 0, 0]) / 4
    determinant = xx * yy - xy * xy
    safe = np.where(determinant > 1e-12, determinant, np.inf)
    dx, dy = (xy * gy - yy * gx) / safe, (xy * gx - xx * gy) / safe
    return np.clip(dx, -0.7, 0.7), np.clip(dy, -0.7, 0.7)


def _sums(plane: Plane, at: NDArray[np.intp]) -> NDArray[np.float64]:
    """Sum of a plane over each block."""
    whole = cv2.integral(plane, sdepth=cv2.CV_64F)
    r, c = at.T
    return np.asarray(whole[r + BLOCK, c + BLOCK] - whole[r, c + BLOCK] - whole[r + BLOCK, c] + whole[r, c])


def grid_size(vis_size: Size, largest: int, scale: float) -> Size:
    """The visible grid of a level: at most ``largest`` pixels wide, and hardly finer than both cameras see.

    Args:
        vis_size: (height, width) of the visible pictures.
        largest: pixels of the longer side.
        scale: visible pixels per infrared pixel.
    """
    factor = min(1.0, largest / max(vis_size), _FINEST / max(scale, 1e-6))
    return max(32, round(vis_size[0] * factor)), max(32, round(vis_size[1] * factor))
