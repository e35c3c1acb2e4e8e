"""What an infrared and a visible picture of one scene share: where edges are, and along which line they run.

Brightness is not shared, nor which side of an edge is the brighter one. So a picture becomes its normalised gradient
field with the angle doubled, in which opposite gradients are the same. The product of two such fields is the
similarity of Haber and Modersitzki ("Intensity gradient based registration and fusion of multi-modal images", 2006),
1 + cos 2(α − β) up to a factor, and the doubled angle makes it linear, so that it can be correlated by FFT.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from duskfuse.data.containers import Size

Plane = NDArray[np.float32]
"""``[H, W]`` float32."""
Field = NDArray[np.float32]
"""``[3, H, W]`` float32: strength times cos 2α and sin 2α, and strength without its mean; 0 outside of the picture."""
Matrix3 = NDArray[np.floating]
"""``[3, 3]``."""
Points = NDArray[np.floating]
"""``[N, 2]``, (x, y) in pixels."""

CHANNELS = 3
_BLUR = 1.0
_SPREAD = 1.2
"""Pixels: of the picture before its gradient, and of the field after."""
_NEIGHBOURHOOD = 1 / 16
"""Of the longer side: where strength is compared with that of the surroundings."""
_FLOOR = 0.35
"""Of the root mean square gradient of the picture: what is weaker is taken for noise, wherever it stands."""
_STRONGEST = 2.5
_MARGIN = 3
"""Pixels at the border of what a camera sees whose gradient is not that of the scene."""


def structure_field(picture: Plane, seen: NDArray[np.bool_] | None = None) -> tuple[Field, NDArray[np.bool_]]:
    """The gradient field of a picture, and where it holds.

    Args:
        picture: ``[H, W]``, any finite range.
        seen: ``[H, W]``, where the picture shows the scene; None: everywhere.

    Returns:
        The field, and ``[H, W]`` where it is not disturbed by the border.
    """
    inside = _inner(np.ones(picture.shape, np.bool_) if seen is None else seen)
    smooth = cv2.GaussianBlur(picture, (0, 0), _BLUR)
    gx = cv2.Sobel(smooth, cv2.CV_32F, 1, 0, scale=1 / 8)
    gy = cv2.Sobel(smooth, cv2.CV_32F, 0, 1, scale=1 / 8)
    gx[~inside], gy[~inside] = 0, 0
    energy = gx * gx + gy * gy
    weight = inside.astype(np.float32)
    mean = float(energy.sum()) / max(int(inside.sum()), 1)
    if mean <= 0:
        return np.zeros((CHANNELS, *picture.shape), np.float32), inside
    reach = max(2.0, _NEIGHBOURHOOD * max(picture.shape))
    around = _blurred(energy, reach) / np.maximum(_blurred(weight, reach), 1e-3)
    strength = np.sqrt(energy / (around + _FLOOR * _FLOOR * mean))
    strength = np.minimum(strength, _STRONGEST)
    double = strength / np.maximum(energy, 1e-20)
    field = np.stack([double * (gx * gx - gy * gy), double * (2 * gx * gy), strength * weight])
    field = np.stack([cv2.GaussianBlur(plane, (0, 0), _SPREAD) for plane in field])
    field[2] -= _blurred(field[2], reach) / np.maximum(_blurred(weight, reach), 1e-3)
    return np.asarray(field * weight, np.float32), inside


def warped(picture: Plane, matrix: Matrix3, size: Size) -> tuple[Plane, NDArray[np.bool_]]:
    """A picture brought to another grid by ``matrix`` (its pixels → those of the grid), and what of it is seen there.

    Where it shrinks, several of its pixels are averaged first.
    """
    picture, matrix = _reduced(picture, matrix, size)
    seen = cv2.warpPerspective(np.ones(picture.shape, np.uint8), matrix, size[::-1], flags=cv2.INTER_NEAREST)
    out = cv2.warpPerspective(picture, matrix, size[::-1], flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(out, np.float32), seen > 0


def resized(picture: Plane, size: Size) -> Plane:
    """A picture at another size, averaged where it shrinks."""
    if picture.shape == size:
        return picture
    shrinks = picture.size > size[0] * size[1]
    return np.asarray(
        cv2.resize(picture, size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR), np.float32
    )


def scaling(old: Size, new: Size) -> Matrix3:
    """The map from pixels of a picture of size ``old`` to those of the same picture at size ``new``."""
    a, b = new[1] / old[1], new[0] / old[0]
    return np.array([[a, 0, (a - 1) / 2], [0, b, (b - 1) / 2], [0, 0, 1]])


def projected(matrix: Matrix3, points: NDArray[np.floating]) -> Points:
    """Points ``[N, 2]`` (x, y) under a homography."""
    lifted = points @ matrix[:, :2].T + matrix[:, 2]
    return np.asarray(lifted[:, :2] / lifted[:, 2:])


def corners(size: Size) -> Points:
    """The centres of the four corner pixels, ``[4, 2]`` (x, y)."""
    height, width = size
    return np.array([[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]], np.float64)


def local_scale(matrix: Matrix3, size: Size) -> float:
    """Pixels of the target grid per pixel of a picture of ``size``, at its middle."""
    middle = np.array([[size[1] / 2, size[0] / 2]])
    a, b, c = projected(matrix, middle + np.array([[0, 0], [1, 0], [0, 1]]))
    return float(np.sqrt(abs(np.linalg.det(np.stack([b - a, c - a])))))


def _reduced(picture: Plane, matrix: Matrix3, size: Size) -> tuple[Plane, Matrix3]:
    scale = local_scale(matrix, (picture.shape[0], picture.shape[1]))
    if scale >= 0.75:
        return picture, matrix
    small = tuple(max(8, round(side * max(scale, 1e-2))) for side in picture.shape)
    small = small[0], small[1]
    back = np.linalg.inv(scaling((picture.shape[0], picture.shape[1]), small))
    return resized(picture, small), matrix @ back


def _inner(seen: NDArray[np.bool_]) -> NDArray[np.bool_]:
    padded = np.zeros((seen.shape[0] + 2, seen.shape[1] + 2), np.uint8)
    padded[1:-1, 1:-1] = seen
    kernel = np.ones((2 * _MARGIN + 1, 2 * _MARGIN + 1), np.uint8)
    inner = cv2.erode(padded, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return np.asarray(inner[1:-1, 1:-1] > 0)


def _blurred(plane: Plane, sigma: float) -> Plane:
    size = 2 * round(sigma) + 1
    for _ in range(2):  # two boxes: a tent, at a cost that does not grow with its width
        plane = cv2.boxFilter(plane, -1, (size, size), borderType=cv2.BORDER_CONSTANT)
    return plane
