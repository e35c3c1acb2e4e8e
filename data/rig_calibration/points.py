"""The homography of a rig from pairs of points: clicked, listed in a file, or the corners of a target."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from duskfuse.data.containers import Size
from duskfuse.data.errors import InputError
from duskfuse.data.homography import is_number
from duskfuse.data.read_files import read_text
from duskfuse.data.rig_calibration.structure import Matrix3, projected

COLUMNS = ("x_ir", "y_ir", "x_vis", "y_vis")
FEWEST = 4
"""Pairs of points: they fix the eight numbers of a homography, and nothing is left to check it."""
THRESHOLD = 0.01
"""Of the visible diagonal: a pair further from the homography is left out as a slip of the hand."""
LARGEST_MEDIAN = 0.005
"""Of the visible diagonal: the median distance of the pairs that are kept."""
_LARGEST_FILE = 2**20
_LEAST_SHARE = 0.6
_THINNEST = 0.02
"""Of the picture: the second principal extent of the points, below which they lie on a line."""


@dataclass(frozen=True)
class PointFit:
    """A homography through pairs of points."""

    matrix: Matrix3
    """Infrared pixels → visible pixels."""
    kept: tuple[bool, ...]
    """Whether each pair, in the given order, agrees with it."""
    distances_px: tuple[float, ...]
    """Visible pixels between each pair's visible point and where the homography puts its infrared point."""

    @property
    def median_px(self) -> float:
        """Of the pairs that are kept."""
        return float(np.median([distance for distance, kept in zip(self.distances_px, self.kept, strict=True) if kept]))

    @property
    def p95_px(self) -> float:
        """Of the pairs that are kept."""
        near = [distance for distance, kept in zip(self.distances_px, self.kept, strict=True) if kept]
        return float(np.percentile(near, 95))

    def to_json(self) -> dict[str, Any]:
        """Numbers of pairs and distances as plain data."""
        return {
            "pairs": len(self.kept),
            "kept": sum(self.kept),
            "median_px": round(self.median_px, 3),
            "p95_px": round(self.p95_px, 3),
            "distances_px": [round(distance, 3) for distance in self.distances_px],
        }


def read_points(path: Path) -> NDArray[np.float64]:
    """Read pairs of points, ``[N, 4]`` of x_ir, y_ir, x_vis, y_vis in pixels.

    JSON is a list of objects with these keys or of lists of four numbers, or an object with such a list under
    ``points``; CSV has these four columns, named in the first line or in this order.

    Raises:
        InputError: unreadable, or a row that is not four numbers.
    """
    text = read_text(path, _LARGEST_FILE)
    try:
        rows = _json_rows(text) if path.suffix.lower() == ".json" else _csv_rows(text)
    except (ValueError, RecursionError, csv.Error) as error:
        raise InputError(
            f"{path}: {error}",
            rule=f"a file of points has {', '.join(COLUMNS)} for each pair, in pixels",
            remedy="write CSV with these columns, or a JSON list of objects with these keys",
        ) from error
    return np.array(rows, np.float64).reshape(-1, 4)


def fit_points(points: NDArray[np.float64], ir_size: Size, vis_size: Size) -> PointFit:
    """The homography through pairs of points: RANSAC, then least squares on all that agree.

    Args:
        points: ``[N, 4]`` of x_ir, y_ir, x_vis, y_vis.
        ir_size: (height, width) of the infrared pictures.
        vis_size: (height, width) of the visible pictures.

    Raises:
        InputError: too few pairs, points outside of their pictures or on a line, or pairs that do not agree.
    """
    _check_points(points, ir_size, vis_size)
    limit = max(2.0, THRESHOLD * float(np.hypot(*vis_size)))
    start, end = points[:, :2], points[:, 2:]
    cv2.setRNGSeed(0)
    matrix, mask = cv2.findHomography(start, end, cv2.RANSAC if len(points) > FEWEST else 0, limit, maxIters=10000)
    if matrix is None or mask is None or not np.isfinite(matrix).all() or abs(np.linalg.det(matrix)) < 1e-12:
        raise _disagreeing(f"no homography passes through any four of the {len(points)} pairs")
    for _ in range(5):
        kept = np.linalg.norm(projected(matrix, start) - end, axis=1) <= limit
        if kept.sum() < FEWEST:
            break
        again, _ = cv2.findHomography(start[kept], end[kept], 0)
        if again is None:
            break
        matrix = again
    distance = np.linalg.norm(projected(matrix, start) - end, axis=1)
    kept = distance <= limit
    if kept.sum() < max(FEWEST, _LEAST_SHARE * len(points)):
        raise _disagreeing(f"{int(kept.sum())} of {len(points)} pairs agree within {limit:.1f} visible pixels")
    _check_line(start[kept], ir_size, "infrared")
    median = float(np.median(distance[kept]))
    if median > max(1.0, LARGEST_MEDIAN * float(np.hypot(*vis_size))):
        raise _disagreeing(f"the pairs are {median:.1f} visible pixels from the best homography, in the median")
    if np.linalg.det(matrix / matrix[2, 2]) < 0:
        raise InputError(
            "by these points one picture is the mirror image of the other",
            rule="both cameras look at the scene from the same side",
            remedy="check the order of the columns, x before y",
        )
    return PointFit(np.asarray(matrix / matrix[2, 2]), tuple(map(bool, kept)), tuple(map(float, distance)))


def _check_points(points: NDArray[np.float64], ir_size: Size, vis_size: Size) -> None:
    if len(points) < FEWEST:
        raise InputError(
            f"{len(points)} pairs of points",
            rule=f"a homography needs at least {FEWEST}, and 8 to 12 spread over the picture to be checked",
            remedy="add pairs: corners of windows, poles, people's feet, seen by both cameras",
        )
    for side, own, size in (("infrared", points[:, :2], ir_size), ("visible", points[:, 2:], vis_size)):
        outside = ~((own >= -0.5) & (own <= [size[1] - 0.5, size[0] - 0.5])).all(1)
        if outside.any():
            number = int(np.flatnonzero(outside)[0])
            x, y = own[number]
            raise InputError(
                f"pair {number + 1}: ({x:g}, {y:g}) in the {side} picture, which is {size[1]}×{size[0]}",
                rule="points are pixels (x, y) inside of their pictures, from 0",
                remedy="check the order of the columns, and that the points belong to these pictures",
            )
        _check_line(own, size, side)


def _check_line(points: NDArray[np.float64], size: Size, side: str) -> None:
    extent = np.linalg.svd(points - points.mean(0), compute_uv=False)[-1] / np.sqrt(len(points))
    if extent < _THINNEST * min(size):
        raise InputError(
            f"the points in the {side} picture lie on one line or in one place",
            rule="they must span the picture in both directions",
            remedy="add pairs near all four corners",
        )


def _disagreeing(seen: str) -> InputError:
    return InputError(
        seen,
        rule=f"at least {_LEAST_SHARE:.0%} of the pairs must agree on one homography",
        remedy="check the pairs one by one; choose points at one distance, or all far away (parallax)",
    )


def _json_rows(text: str) -> list[list[float]]:
    content = json.loads(text)
    if isinstance(content, dict):
        content = content.get("points")
    if not isinstance(content, list):
        raise ValueError("no list of points")
    rows: list[Any] = [[row.get(key) for key in COLUMNS] if isinstance(row, dict) else row for row in content]
    for number, row in enumerate(rows, start=1):
        if not (isinstance(row, list) and len(row) == len(COLUMNS) and all(map(is_number, row))):
            raise ValueError(f"pair {number} is not four numbers")
    return rows


def _csv_rows(text: str) -> list[list[float]]:
    lines = [line for line in csv.reader(io.StringIO(text), skipinitialspace=True) if any(map(str.strip, line))]
    order: Sequence[int] = range(len(COLUMNS))
    if lines and not _numbers(lines[0]):
        names = [name.strip().lower() for name in lines[0]]
        missing = [name for name in COLUMNS if name not in names]
        if missing:
            raise ValueError(f"no column {missing[0]}")
        order, lines = [names.index(name) for name in COLUMNS], lines[1:]
    rows = []
    for number, line in enumerate(lines, start=1):
        values = _numbers(line)
        if values is None or len(values) <= max(order):
            raise ValueError(f"pair {number} is not four numbers")
        rows.append([values[place] for place in order])
    return rows


def _numbers(line: Sequence[str]) -> list[float] | None:
    try:
        values = [float(word) for word in line]
    except ValueError:
        return None
    return values if np.isfinite(values).all() else None
