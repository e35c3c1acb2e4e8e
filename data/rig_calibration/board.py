"""Points from pictures of a target that both cameras see: a chessboard.

A printed board in the sun, or warmed by a lamp, shows its fields to the infrared camera as well, often with dark and
bright exchanged. The corners of all pictures count together.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

from duskfuse.data.containers import Size
from duskfuse.data.errors import InputError
from duskfuse.data.rig_calibration.frames import Frames
from duskfuse.data.rig_calibration.structure import Plane, projected, scaling

_SMALLEST, _LARGEST = 3, 40
_SHARPEST = 640
"""Pixels of the longer side to which a small picture is enlarged: the detector wants fields of several pixels."""

_LARGEST_TIMES = 3.0
_BLUR = 0.8


def parse_board(text: str) -> tuple[int, int]:
    """Columns and rows of inner corners, as ``9x6``.

    Raises:
        InputError: another text, or a board too small or too large.
    """
    match = re.fullmatch(r"(\d{1,3})x(\d{1,3})", text)
    if match is None or not all(_SMALLEST <= int(match[group]) <= _LARGEST for group in (1, 2)):
        raise InputError(
            f"board {text[:40]!r}",
            rule=f"a board is COLUMNSxROWS of inner corners, from {_SMALLEST} to {_LARGEST} each",
            remedy="give for example 9x6 for a chessboard of ten by seven fields",
        )
    return int(match[1]), int(match[2])


def board_points(frames: Frames, board: str) -> tuple[NDArray[np.float64], list[str]]:
    """Find the board in all frames.

    Args:
        frames: pictures of the board by both cameras.
        board: as :func:`parse_board` reads it.

    Returns:
        ``[N, 4]`` of x_ir, y_ir, x_vis, y_vis in pixels of the pictures as stored, and the names of the frames in which
        both cameras see the whole board.

    Raises:
        InputError: no such board, or it was found in no frame.
    """
    corners = parse_board(board)
    found, names, alone = [], [], {"infrared": 0, "visible": 0}
    for frame in frames.chosen:
        ir = _corners(frame.ir, frames.ir_size, corners)
        vis = _corners(frame.vis, frames.vis_size, corners)
        if ir is not None and vis is not None:
            found.append(np.concatenate([ir, _same_way(ir, vis)], 1))
            names.append(frame.name)
        alone["infrared"] += ir is not None
        alone["visible"] += vis is not None
    if not found:
        raise InputError(
            f"the board {board} was found by both cameras in none of {len(frames.chosen)} frames (infrared in "
            f"{alone['infrared']}, visible in {alone['visible']})",
            rule="both cameras must see the whole board, sharp, with fields of five pixels and more",
            remedy="warm the board (sun, lamp), hold it still and nearer, or click points (--click)",
        )
    return np.concatenate(found), names


def _corners(plane: Plane, stored: Size, board: tuple[int, int]) -> NDArray[np.float64] | None:
    """Corners ``[N, 2]`` in stored pixels; None where the board is not seen."""
    flags = cv2.CALIB_CB_EXHAUSTIVE | cv2.CALIB_CB_ACCURACY
    for picture in _tries(plane):
        seen, points = cv2.findChessboardCornersSB(picture, board, flags=flags)
        if seen and points is not None:
            to_stored = scaling((picture.shape[0], picture.shape[1]), stored)
            return projected(to_stored, points.reshape(-1, 2).astype(np.float64)).astype(np.float64)
    return None


def _tries(plane: Plane) -> Iterator[NDArray[np.uint8]]:
    """The picture without its finest noise and stretched, then with dark and bright exchanged; enlarged if small."""
    plane = cv2.GaussianBlur(plane, (0, 0), _BLUR)
    low, high = np.percentile(plane, (1, 99))
    grey = np.clip((plane - low) / max(float(high - low), 1e-6) * 255, 0, 255).astype(np.uint8)
    times = min(_LARGEST_TIMES, _SHARPEST / max(grey.shape))
    if times > 1:
        grey = np.asarray(cv2.resize(grey, None, fx=times, fy=times, interpolation=cv2.INTER_CUBIC), np.uint8)
    yield grey
    yield 255 - grey


def _same_way(ir: NDArray[np.float64], vis: NDArray[np.float64]) -> NDArray[np.float64]:
    """The visible corners in the order of the infrared ones: a board with its colours exchanged is read from its end.

    The cameras are not turned against each other by more than a right angle, so the first and the last corner tell.
    """
    return vis[::-1] if float((ir[-1] - ir[0]) @ (vis[-1] - vis[0])) < 0 else vis
