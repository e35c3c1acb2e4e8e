"""Pictures of what a task network sees: input, truth and prediction side by side, one pair per row, classes below."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from duskfuse.data.class_tables import IGNORED, ClassTable
from duskfuse.tasks.objects import Detections, TrueObjects

Rgb = NDArray[np.uint8]
Ids = NDArray[np.uint8]

_GAP = 4
_BACKGROUND = 24
_TEXT = (235, 235, 235)
_LINE = 20
_IGNORED_COLOUR = (60, 60, 60)


def class_colours(table: ClassTable) -> NDArray[np.uint8]:
    """A colour for every id, ``[256, 3]`` RGB: the table's own, else ones evenly spread; dark grey for 255."""
    colours = np.full((256, 3), _IGNORED_COLOUR, np.uint8)
    hues = np.stack(
        [np.linspace(0, 179, len(table), endpoint=False), np.full(len(table), 200), np.full(len(table), 230)]
    )
    spread = cv2.cvtColor(hues.T.astype(np.uint8)[None], cv2.COLOR_HSV2RGB)[0]
    colours[: len(table)] = np.array(table.colours, np.uint8) if table.colours else spread
    colours[IGNORED] = _IGNORED_COLOUR
    return colours


def object_grid(rows: Sequence[tuple[Rgb, TrueObjects, Detections]], table: ClassTable) -> Rgb:
    """Draw rows of input ``[H, W, 3]``, it with the true boxes, and with those found; all of the first's size."""
    colours = class_colours(table)
    height, width = rows[0][0].shape[:2]
    lines, seen = [_header(width)], set()
    for shown, truth, found in rows:
        planes = (shown, *(_boxed(shown, objects.kinds, objects.corners, colours) for objects in (truth, found)))
        lines.append(_beside([cv2.resize(plane, (width, height), interpolation=cv2.INTER_AREA) for plane in planes]))
        seen |= {*truth.kinds.tolist(), *found.kinds.tolist()}
    return np.vstack([*lines, _legend(sorted(seen), colours, table, lines[-1].shape[1])])


def map_grid(rows: Sequence[tuple[Rgb, Ids, Ids]]) -> Rgb:
    """Draw rows of input ``[H, W, 3]``, true and found saliency ``[H, W]``, all of the size of the first."""
    height, width = rows[0][0].shape[:2]
    lines = [_header(width)]
    for shown, truth, found in rows:
        planes = (shown, *(np.repeat(plane[..., None], 3, axis=2) for plane in (truth, found)))
        lines.append(_beside([cv2.resize(plane, (width, height), interpolation=cv2.INTER_AREA) for plane in planes]))
    return np.vstack(lines)


def _boxed(shown: Rgb, kinds: Tensor, corners: Tensor, colours: NDArray[np.uint8]) -> Rgb:
    drawn = shown.copy()
    for kind, box in zip(kinds.tolist(), corners.round().int().tolist(), strict=True):
        cv2.rectangle(drawn, box[:2], box[2:], colours[kind].tolist(), 2)
    return drawn


def prediction_grid(rows: Sequence[tuple[Rgb, Ids, Ids]], table: ClassTable) -> Rgb:
    """Draw rows of input ``[H, W, 3]``, label ``[H, W]`` and prediction ``[H, W]``, all of the size of the first."""
    colours = class_colours(table)
    height, width = rows[0][1].shape
    lines = [_header(width)]
    for shown, label, predicted in rows:
        planes = (shown, colours[label], colours[predicted])
        tiles = [cv2.resize(plane, (width, height), interpolation=cv2.INTER_NEAREST) for plane in planes]
        lines.append(_beside(tiles))
    seen = np.unique(np.concatenate([plane.ravel() for row in rows for plane in row[1:]]))
    lines.append(_legend([int(number) for number in seen if number < len(table)], colours, table, lines[-1].shape[1]))
    return np.vstack(lines)


def _beside(tiles: Sequence[Rgb]) -> Rgb:
    padded = [np.pad(tile, ((0, _GAP), (0, _GAP), (0, 0)), constant_values=_BACKGROUND) for tile in tiles]
    return np.hstack(padded)


def _header(width: int) -> Rgb:
    titles = []
    for title in ("input", "truth", "prediction"):
        strip = np.full((_LINE, width + _GAP, 3), _BACKGROUND, np.uint8)
        titles.append(_write(strip, title, 3))
    return np.hstack(titles)


def _legend(ids: Sequence[int], colours: NDArray[np.uint8], table: ClassTable, width: int) -> Rgb:
    """Lines of colour patches with the names of the classes."""
    step = 130
    columns = max(width // step, 1)
    rows = -(-len(ids) // columns)
    legend = np.full((rows * _LINE, width, 3), _BACKGROUND, np.uint8)
    for place, number in enumerate(ids):
        row, column = divmod(place, columns)
        strip = legend[row * _LINE : (row + 1) * _LINE, column * step : (column + 1) * step]
        strip[4:16, 4:16] = colours[number]
        _write(strip, table.names[number], 20)
    return legend


def _write(strip: Rgb, text: str, left: int) -> Rgb:
    drawn = np.ascontiguousarray(strip)
    cv2.putText(drawn, text, (left, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.4, _TEXT, 1, cv2.LINE_AA)
    strip[...] = drawn
    return strip
