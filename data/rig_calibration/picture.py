"""A picture of what a homography does: edges of both cameras on each other, and a checkerboard of the two pictures."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from duskfuse.data.containers import Size
from duskfuse.data.rig_calibration.structure import Matrix3, Plane, resized, scaling, structure_field, warped

_WIDTH = 640
_TILES = 8
_GAP = 6
_WORDS = ("edges before", "edges after", "pictures before", "pictures after")


def before_and_after(ir: Plane, vis: Plane, matrix: Matrix3) -> NDArray[np.uint8]:
    """Four panels, RGB: edges and a checkerboard, each with infrared stretched over the picture and aligned.

    Edges of infrared are orange, those of the visible picture blue, and where both lie on each other white.

    Args:
        ir: infrared ``[h, w]`` in [0, 1].
        vis: visible luminance ``[H, W]`` in [0, 1].
        matrix: pixels of ``ir`` → pixels of ``vis``.
    """
    own = ir.shape[0], ir.shape[1]
    size = round(_WIDTH * vis.shape[0] / vis.shape[1]), _WIDTH
    vis_size = vis.shape[0], vis.shape[1]
    shown = resized(vis, size)
    stretched = scaling(own, size)
    aligned = scaling(vis_size, size) @ matrix
    maps = (stretched, aligned)
    panels = [_edges(ir, shown, how, size) for how in maps] + [_checkerboard(ir, shown, how, size) for how in maps]
    for panel, words in zip(panels, _WORDS, strict=True):
        cv2.rectangle(panel, (0, 0), (170, 30), (0, 0, 0), cv2.FILLED)
        cv2.putText(panel, words, (8, 21), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (255, 255, 255), 1, cv2.LINE_AA)
    down = np.full((_GAP, 2 * _WIDTH + _GAP, 3), 255, np.uint8)
    across = np.full((size[0], _GAP, 3), 255, np.uint8)
    rows = [np.hstack([panels[first], across, panels[first + 1]]) for first in (0, 2)]
    return np.asarray(np.vstack([rows[0], down, rows[1]]))


def _edges(ir: Plane, vis: Plane, matrix: Matrix3, size: Size) -> NDArray[np.uint8]:
    moved, seen = warped(ir, matrix, size)
    strengths = [_strength(*structure_field(moved, seen)), _strength(*structure_field(vis))]
    heat, light = (np.clip(each, 0, 1) for each in strengths)
    picture = np.stack([np.maximum(heat, 0.25 * light), 0.55 * heat + 0.6 * light, np.maximum(light, 0.1 * heat)], -1)
    return _framed(np.asarray(np.clip(255 * picture, 0, 255), np.uint8), seen)


def _strength(field: NDArray[np.float32], inside: NDArray[np.bool_]) -> Plane:
    length = np.sqrt(field[0] ** 2 + field[1] ** 2)
    top = float(np.quantile(length[inside], 0.98)) if inside.any() else 1.0
    return np.asarray(np.where(inside, (length / max(top, 1e-6)) ** 0.8, 0), np.float32)


def _checkerboard(ir: Plane, vis: Plane, matrix: Matrix3, size: Size) -> NDArray[np.uint8]:
    moved, seen = warped(ir, matrix, size)
    side = size[1] // _TILES
    rows, columns = np.indices(size) // side
    odd = ((rows + columns) % 2 == 1) & seen
    heat = cv2.applyColorMap(_stretched(moved, seen), cv2.COLORMAP_INFERNO)[..., ::-1]
    picture = np.repeat(_stretched(vis, np.ones(size, np.bool_))[..., None], 3, axis=2)
    picture[odd] = heat[odd]
    return _framed(np.ascontiguousarray(picture), seen)


def _stretched(picture: Plane, seen: NDArray[np.bool_]) -> NDArray[np.uint8]:
    low, high = np.percentile(picture[seen], (1, 99)) if seen.any() else (0.0, 1.0)
    return np.asarray(np.clip((picture - low) / max(high - low, 1e-6) * 255, 0, 255), np.uint8)


def _framed(picture: NDArray[np.uint8], seen: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The picture with the outline of what infrared sees."""
    lines, _ = cv2.findContours(seen.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, lines, -1, (120, 255, 120), 1)
    return picture
