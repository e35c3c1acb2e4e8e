"""The homography of a camera rig: which visible pixel shows what an infrared pixel shows, and warping by it.

A homography is exact for a plane, and for anything far away compared with the distance between the two cameras; what
is nearer than the calibrated plane is displaced by parallax.

Coordinates are OpenCV's: (x, y) of the centre of a pixel are its column and row, so the first pixel spans −0.5 to 0.5.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from duskfuse.data.containers import Size
from duskfuse.data.errors import InputError, unknown_key
from duskfuse.data.progress import say
from duskfuse.data.read_files import read_text

Matrix = tuple[tuple[float, float, float], tuple[float, float, float], tuple[float, float, float]]

LARGEST_SIDE = 32766
"""Pixels: what OpenCV warps."""

LEAST_COVER = 0.01
"""Share of the visible picture that the infrared one must cover; less is a wrong matrix."""

_LARGEST_FILE = 2**16
_LARGEST_CONDITION = 1e6
_NEEDED = ("homography", "ir_size", "vis_size")
_KEYS = (*_NEEDED, "provenance")
_GRID = 65
_NEARLY_ALL = 0.99
_FADE = 0.025
"""Of the longer side: the distance at which e⁻¹ is left of the nearest infrared pixel."""


@dataclass(frozen=True)
class Homography:
    """Maps infrared pixels to visible pixels; see :func:`load_homography`.

    Raises:
        InputError: a number is not finite, the matrix cannot be inverted, or it brings the infrared picture outside
            of the visible one.
    """

    matrix: Matrix
    """Rows of H in (u, v, w) = H · (x, y, 1), where (x, y) is infrared and (u / w, v / w) visible."""
    ir_size: Size
    """(height, width) of the infrared pictures it was found for."""
    vis_size: Size
    """(height, width) of the visible pictures it was found for."""

    def __post_init__(self) -> None:
        if min(*self.ir_size, *self.vis_size) < 1 or max(*self.ir_size, *self.vis_size) > LARGEST_SIDE:
            raise InputError(
                f"homography between {_text(self.ir_size)} and {_text(self.vis_size)}",
                rule=f"sides are from 1 to {LARGEST_SIDE} pixels",
                remedy="give ir_size and vis_size as [width, height]",
            )
        if not all(math.isfinite(value) for row in self.matrix for value in row):
            raise InputError("a homography with a number that is not finite", remedy="calibrate the rig again")
        if self._condition() > _LARGEST_CONDITION:
            raise InputError(
                f"homography {[list(row) for row in self.matrix]} cannot be inverted",
                rule="each visible pixel must have one infrared pixel",
                remedy="calibrate the rig again, with points that are not on one line",
            )
        if self.cover() < LEAST_COVER:
            raise InputError(
                f"by this homography infrared covers {self.cover():.1%} of the visible picture",
                rule="it maps infrared pixels to visible pixels, and the two pictures overlap",
                remedy="if it maps visible to infrared, give its inverse; check ir_size and vis_size",
            )

    def cover(self) -> float:
        """Share of the visible picture that the infrared one covers, 0 to 1."""
        height, width = self.vis_size
        columns, rows = np.meshgrid(np.linspace(0, width - 1, _GRID), np.linspace(0, height - 1, _GRID))
        points = np.stack([columns.ravel(), rows.ravel(), np.ones(columns.size)])
        x, y, w = np.linalg.inv(self._scaled()) @ points
        if not (w.min() > 0 or w.max() < 0):  # the line that infrared sees at infinity crosses the visible picture
            return 0.0
        inside = (np.abs(2 * x / w + 1 - self.ir_size[1]) <= self.ir_size[1]) & (
            np.abs(2 * y / w + 1 - self.ir_size[0]) <= self.ir_size[0]
        )
        return float(inside.mean())

    def warp(self, ir: NDArray[np.float32]) -> NDArray[np.float32]:
        """Bring an infrared picture ``[h, w]`` in [0, 1] to the visible grid ``[H, W]``, bilinear.

        Where several infrared pixels fall into a visible one along each side, they are averaged first.

        Visible pixels that infrared does not see get its nearest edge pixel, fading into the median of the picture
        with distance. So no edge is made up that a network or a gradient term would take for real, nobody is mirrored
        into the scene, and a warm body cut by the edge does not become a long warm bar. What stands there is made up
        all the same: metrics count it, so compare methods on the part that both cameras see.
        """
        ir, matrix = self._reduced(ir)
        warped: NDArray[np.float32] = self._warped(ir, matrix, cv2.INTER_LINEAR, cv2.BORDER_REPLICATE)
        kept = _kept_share(self)
        if kept is not None:
            middle = np.float32(np.median(ir))
            warped = middle + kept * (warped - middle)
        return np.clip(warped, 0, 1, out=warped)

    def check_sizes(self, ir_size: Size, vis_size: Size) -> None:
        """Raise InputError where the pictures are not of the sizes that the homography was found for."""
        for side, seen, wanted in (("infrared", ir_size, self.ir_size), ("visible", vis_size, self.vis_size)):
            if seen != wanted:
                raise InputError(
                    f"the {side} picture is {_text(seen)}, the homography was found for {_text(wanted)}",
                    rule="a homography counts pixels, so it holds for pictures of these sizes only",
                    remedy=_rescaling(side, seen, wanted),
                )

    def to_json(self) -> dict[str, list[Any]]:
        """What the file of this homography holds."""
        return {
            "homography": [[float(value) + 0.0 for value in row] for row in self.matrix],
            "ir_size": list(self.ir_size[::-1]),
            "vis_size": list(self.vis_size[::-1]),
        }

    def _reduced(self, ir: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """The picture without detail that the visible grid cannot hold, and the matrix for what is left."""
        down, across = self.vis_size[0] / 2, self.vis_size[1] / 2
        corner = np.array([[across, across + 1, across], [down, down, down + 1], [1, 1, 1]])
        x, y, w = np.linalg.inv(self._scaled()) @ corner
        (x0, x1, x2), (y0, y1, y2) = x / w, y / w
        times = int(math.sqrt(abs((x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0))))
        if times < 2:
            return ir, self._scaled()
        small = max(1, ir.shape[1] // times), max(1, ir.shape[0] // times)
        a, b = ir.shape[1] / small[0], ir.shape[0] / small[1]
        enlarged = np.array([[a, 0, (a - 1) / 2], [0, b, (b - 1) / 2], [0, 0, 1]])
        return np.asarray(cv2.resize(ir, small, interpolation=cv2.INTER_AREA), np.float32), self._scaled() @ enlarged

    def _warped(
        self, picture: NDArray[Any], matrix: NDArray[np.float64], interpolation: int, border: int
    ) -> NDArray[Any]:
        warped: NDArray[Any] = cv2.warpPerspective(
            picture, matrix, self.vis_size[::-1], flags=interpolation, borderMode=border, borderValue=0
        )
        return warped

    def _scaled(self) -> NDArray[np.float64]:
        """The matrix with its largest number scaled to ±1, which is the same map."""
        matrix = np.array(self.matrix, np.float64)
        largest = np.abs(matrix).max()
        return matrix / largest if largest > 0 else matrix

    def _condition(self) -> float:
        """Largest over smallest singular value of the map between the unit squares of the two pictures."""
        ir, vis = (np.diag([1 / size[1], 1 / size[0], 1.0]) for size in (self.ir_size, self.vis_size))
        values = np.linalg.svd(vis @ self._scaled() @ np.linalg.inv(ir), compute_uv=False)
        return float(values[0] / values[-1]) if values[-1] > 0 else math.inf


@lru_cache(maxsize=2)
def _kept_share(homography: Homography) -> NDArray[np.float32] | None:
    """How much of its nearest infrared pixel each visible pixel shows, ``[H, W]``; None where infrared covers all."""
    everywhere = np.ones(homography.ir_size, np.uint8)
    seen = homography._warped(everywhere, homography._scaled(), cv2.INTER_NEAREST, cv2.BORDER_CONSTANT)
    if seen.all():
        return None
    distance = cv2.distanceTransform(1 - seen, cv2.DIST_L2, cv2.DIST_MASK_5)
    return np.asarray(np.exp(distance / np.float32(-_FADE * max(homography.vis_size))), np.float32)


def load_homography(path: Path) -> Homography:
    """Read ``{"homography": [[…], […], […]], "ir_size": [w, h], "vis_size": [w, h]}``; sizes are width first.

    An object ``provenance``, which says how it was found, may stand beside them and changes nothing.

    Raises:
        InputError: the file is unreadable, no JSON, has other keys, or holds no usable homography.
    """
    try:
        content = json.loads(read_text(path, _LARGEST_FILE))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error})", remedy=f"write {_example()}") from error
    try:
        homography = homography_from(content)
    except InputError as error:
        raise InputError(f"{path}: {error.seen}", rule=error.rule, remedy=error.remedy) from error
    if homography.cover() < _NEARLY_ALL:
        say(f"by {path} infrared covers {homography.cover():.0%} of the visible picture; beyond, its edge fades out")
    return homography


def homography_from(content: object) -> Homography:
    """The homography of a file's content; raises InputError where it is not one."""
    if not isinstance(content, Mapping):
        raise InputError("no homography", rule="a JSON object is needed", remedy=f"write {_example()}")
    for key in content:
        if key not in _KEYS:
            raise unknown_key(key, _KEYS)
    missing = [key for key in _NEEDED if key not in content]
    if missing:
        raise InputError(f"{' and '.join(missing)} missing", remedy=f"write {_example()}")
    if not isinstance(content.get("provenance", {}), Mapping):
        raise InputError("provenance", rule="it is an object", remedy="remove it, or let `duskfuse calibrate` write it")
    rows = content["homography"]
    if not (_is_list(rows, 3) and all(_is_list(row, 3) and all(map(is_number, row)) for row in rows)):
        raise InputError("homography", rule="it is three rows of three numbers", remedy=f"write {_example()}")
    matrix: Any = tuple(tuple(float(value) for value in row) for row in rows)
    return Homography(matrix, _size(content, "ir_size"), _size(content, "vis_size"))


def _size(content: Mapping[str, Any], key: str) -> Size:
    pair = content[key]
    if not (_is_list(pair, 2) and all(isinstance(side, int) and not isinstance(side, bool) for side in pair)):
        raise InputError(key, rule="a size is [width, height] in whole pixels", remedy=f"write {_example()}")
    return pair[1], pair[0]


def _is_list(value: object, length: int) -> bool:
    return isinstance(value, list) and len(value) == length


def is_number(value: object) -> bool:
    """Whether parsed JSON or YAML is a finite number that a float holds; whole numbers there may be of any length."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _example() -> str:
    return '{"homography": [[1.9, 0, 12], [0, 1.9, 8], [0, 0, 1]], "ir_size": [320, 256], "vis_size": [640, 512]}'


def _rescaling(side: str, seen: Size, wanted: Size) -> str:
    a, b = seen[1] / wanted[1], seen[0] / wanted[0]
    if not math.isclose(a, b, rel_tol=0.02):
        return "find the homography anew for pictures of this size"
    product = "S·H" if side == "visible" else "H·S⁻¹"
    scale = f"[[{a:g}, 0, {(a - 1) / 2:g}], [0, {b:g}, {(b - 1) / 2:g}], [0, 0, 1]]"
    return f"if these are the same pictures at another scale, use {product} with S = {scale}; else find it anew"


def _text(size: Size) -> str:
    return f"{size[1]}×{size[0]}"
