"""The one pinhole camera both modalities look through, so that every pixel is aligned by construction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

NEAREST = 0.7
"""Metres: points nearer than this are projected as if they were here."""


@dataclass(frozen=True)
class Camera:
    """A camera at (0, ``height``, 0) that looks along +Z; X is right, Y up, the ground is Y = 0, units are metres."""

    rows: int
    columns: int
    focal: float
    """In pixels."""
    centre: float
    """Column of the principal point."""
    horizon: float
    """Row of the horizon."""
    height: float

    def project(self, points: NDArray[Any]) -> NDArray[np.float64]:
        """Project ``[N, 3]`` world points to ``[N, 2]`` pixels (column, row)."""
        z = np.maximum(points[:, 2], NEAREST)
        column = self.centre + self.focal * points[:, 0] / z
        row = self.horizon + self.focal * (self.height - points[:, 1]) / z
        return np.stack([column, row], axis=1)

    def window(self, points: NDArray[Any]) -> tuple[slice, slice]:
        """Rows and columns that hold the projection of ``points``, cut to the picture (empty where it is outside)."""
        pixels = self.project(points)
        low, high = np.floor(pixels.min(axis=0)) - 1, np.ceil(pixels.max(axis=0)) + 2
        left, right = (int(np.clip(value, 0, self.columns)) for value in (low[0], high[0]))
        top, bottom = (int(np.clip(value, 0, self.rows)) for value in (low[1], high[1]))
        return slice(top, bottom), slice(left, right)

    def ray_x(self, columns: slice) -> NDArray[np.float32]:
        """X per metre of depth at the centres of pixel columns, ``[1, n]``."""
        values = (np.arange(columns.start, columns.stop) - self.centre) / self.focal
        return values.astype(np.float32)[None]

    def ray_y(self, rows: slice) -> NDArray[np.float32]:
        """Y relative to the camera per metre of depth at the centres of pixel rows, ``[m, 1]``."""
        values = (self.horizon - np.arange(rows.start, rows.stop)) / self.focal
        return values.astype(np.float32)[:, None]
