"""Bringing infrared frames to the visible grid by the homography of the camera rig, with maps computed once.

The file is the one that the workstation reads and ``duskfuse calibrate`` may write::

    {"homography": [[1.9, 0, 12], [0, 1.9, 8], [0, 0, 1]], "ir_size": [320, 256], "vis_size": [640, 512]}

It maps infrared pixels (x, y) to visible ones; sizes are [width, height]. Visible pixels that infrared does not see get
its nearest edge pixel, fading into the median of the picture with distance, so that no edge is made up there.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional, Tuple

import cv2
import numpy as np

from .errors import DeviceInputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

Size = Tuple[int, int]

LARGEST_SIDE = 32766
"""Pixels: what OpenCV remaps."""

_LARGEST_FILE = 2**16
_LARGEST_CONDITION = 1e6
_FADE = 0.025  # of the longer side: the distance at which 1/e is left of the nearest infrared pixel


class Alignment:
    """The way from infrared pixels to the visible grid.

    ``matrix`` is H in (u, v, w) = H · (x, y, 1), where (x, y) is infrared and (u / w, v / w) visible; sizes are
    (height, width). ``seen`` is ``[H, W]`` float32, 1 where infrared sees the visible pixel and fading to 0 beyond, or
    None where it sees all of them. Raises DeviceInputError where there is no such way.
    """

    def __init__(self, matrix: NDArray[np.float64], ir_size: Size, vis_size: Size) -> None:
        if min(*ir_size, *vis_size) < 1 or max(*ir_size, *vis_size) > LARGEST_SIDE:
            raise DeviceInputError(f"sizes {ir_size} and {vis_size}", f"sides are from 1 to {LARGEST_SIDE} pixels")
        matrix = np.asarray(matrix, np.float64)
        if matrix.shape != (3, 3) or not np.isfinite(matrix).all() or _condition(matrix, ir_size, vis_size) is None:
            raise DeviceInputError(
                f"homography {matrix.tolist()}", "nine finite numbers that can be inverted", "calibrate the rig again"
            )
        self.ir_size, self.vis_size = ir_size, vis_size
        x, y = _sources(matrix, vis_size)
        inside = (np.abs(2 * x + 1 - ir_size[1]) <= ir_size[1]) & (np.abs(2 * y + 1 - ir_size[0]) <= ir_size[0])
        if not inside.any():
            raise DeviceInputError(
                "by this homography infrared covers nothing of the visible picture",
                "it maps infrared pixels to visible pixels",
                "if it maps visible to infrared, give its inverse; check ir_size and vis_size",
            )
        self.seen = None if inside.all() else _fading(inside)
        self._reduced = _reduced_size(x, y, ir_size)
        a, b = ir_size[1] / self._reduced[1], ir_size[0] / self._reduced[0]
        limit = float(2 * LARGEST_SIDE)  # far outside is outside; remap takes no larger positions
        self._maps = tuple(
            np.clip(position, -limit, limit).astype(np.float32)
            for position in ((x - (a - 1) / 2) / a, (y - (b - 1) / 2) / b)
        )
        self._warped = np.empty(vis_size, np.float32)

    def warp(self, ir: NDArray[np.float32], size: Optional[Size] = None) -> NDArray[np.float32]:
        """Bring a plane ``[h, w]`` in [0, 1] to the visible grid, bilinear; averages first what is much finer.

        ``size`` is the size of the visible picture. The result is a buffer that the next call overwrites. Raises
        DeviceInputError where a size is not the one that the homography was found for.
        """
        for side, shape, wanted in (("infrared", ir.shape, self.ir_size), ("visible", size, self.vis_size)):
            if shape is not None and shape != wanted:
                raise DeviceInputError(
                    f"the {side} picture is {shape[1]}x{shape[0]}, the homography is for {wanted[1]}x{wanted[0]}",
                    "a homography counts pixels, so it holds for pictures of these sizes only",
                    "calibrate with pictures of this size",
                )
        if self._reduced != self.ir_size:
            ir = cv2.resize(ir, self._reduced[::-1], interpolation=cv2.INTER_AREA)
        columns, rows = self._maps
        cv2.remap(ir, columns, rows, cv2.INTER_LINEAR, dst=self._warped, borderMode=cv2.BORDER_REPLICATE)
        if self.seen is not None:
            middle = np.float32(np.median(ir))
            self._warped -= middle
            self._warped *= self.seen
            self._warped += middle
        return np.clip(self._warped, 0, 1, out=self._warped)


def load_alignment(path: Path) -> Alignment:
    """Read the JSON file of this module's docstring; raises DeviceInputError where it is none."""
    try:
        with path.open("rb") as stream:
            content = json.loads(stream.read(_LARGEST_FILE))
        matrix = np.array(content["homography"], np.float64)
        sizes = [(int(content[key][1]), int(content[key][0])) for key in ("ir_size", "vis_size")]
    except OSError as error:
        raise DeviceInputError(f"{path}: {error.strerror}", remedy="check the path") from error
    except (ValueError, KeyError, TypeError, IndexError, OverflowError, RecursionError) as error:
        raise DeviceInputError(
            f"{path} holds no homography ({type(error).__name__}: {error})",
            "it is a JSON object of homography, ir_size and vis_size",
            "write it as docs/bundle.md shows",
        ) from error
    try:
        return Alignment(matrix, sizes[0], sizes[1])
    except DeviceInputError as error:
        raise DeviceInputError(f"{path}: {error.seen}", error.rule, error.remedy) from error


def _sources(matrix: NDArray[np.float64], vis_size: Size) -> Tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The infrared position (x, y) of every visible pixel; raises DeviceInputError where one lies at infinity."""
    columns, rows = np.meshgrid(np.arange(vis_size[1], dtype=np.float64), np.arange(vis_size[0], dtype=np.float64))
    inverse = np.linalg.inv(matrix / np.abs(matrix).max())
    x, y, w = (row[0] * columns + row[1] * rows + row[2] for row in inverse)
    if not (w.min() > 0 or w.max() < 0):
        raise DeviceInputError(
            "by this homography a visible pixel lies at infinity", "each has one infrared pixel", "calibrate again"
        )
    return x / w, y / w


def _condition(matrix: NDArray[np.float64], ir_size: Size, vis_size: Size) -> Optional[float]:
    """Largest over smallest singular value of the map between the unit squares; None where it cannot be inverted."""
    largest = np.abs(matrix).max()
    if largest == 0:
        return None
    ir, vis = (np.diag([1 / size[1], 1 / size[0], 1.0]) for size in (ir_size, vis_size))
    values = np.linalg.svd(vis @ (matrix / largest) @ np.linalg.inv(ir), compute_uv=False)
    condition = float(values[0] / values[-1]) if values[-1] > 0 else math.inf
    return condition if condition <= _LARGEST_CONDITION else None


def _fading(inside: NDArray[Any]) -> NDArray[np.float32]:
    distance = cv2.distanceTransform(1 - inside.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5)
    return np.asarray(np.exp(distance / np.float32(-_FADE * max(inside.shape))), np.float32)


def _reduced_size(x: NDArray[np.float64], y: NDArray[np.float64], ir_size: Size) -> Size:
    """The infrared size without detail that the visible grid cannot hold, by the scale in the middle of the picture."""
    row, column = x.shape[0] // 2, x.shape[1] // 2
    if min(x.shape) < 2:
        return ir_size
    row, column = min(row, x.shape[0] - 2), min(column, x.shape[1] - 2)
    dx = x[row, column + 1] - x[row, column], x[row + 1, column] - x[row, column]
    dy = y[row, column + 1] - y[row, column], y[row + 1, column] - y[row, column]
    times = int(math.sqrt(abs(dx[0] * dy[1] - dx[1] * dy[0])))
    return ir_size if times < 2 else (max(1, ir_size[0] // times), max(1, ir_size[1] // times))
