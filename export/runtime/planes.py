"""Pictures as video stores them, luminance for every pixel and chroma for every block of 2×2, fused without colours.

From H.264 to H.264 nothing needs red, green and blue: the network takes luminance, and chroma passes. The planes are
those of ``yuv420p``, BT.601 (Recommendation ITU-R BT.601-7, 2.5), limited range: luminance from 16, black, to 235,
white, chroma 128 ± 112.

The rule of colours is that of :mod:`fuser`: the fused luminance with the visible chroma, scaled by the largest factor,
at most 1, that keeps red, green and blue in range. A block has one chroma and so one factor, that of its mean
luminance.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Tuple, Union

import cv2
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLACK, WHITE, NO_CHROMA = 16, 235, 128

_RED, _GREEN, _BLUE = 0.299, 0.587, 0.114
_LUMA_STEPS, _CHROMA_STEPS = WHITE - BLACK, 224
_PER_STEP = 2 * _LUMA_STEPS / _CHROMA_STEPS  # of chroma, in steps of luminance, for weights that add up to 1
_V_IN_RED, _U_IN_BLUE = _PER_STEP * (1 - _RED), _PER_STEP * (1 - _BLUE)
_U_IN_GREEN, _V_IN_GREEN = -_U_IN_BLUE * _BLUE / _GREEN, -_V_IN_RED * _RED / _GREEN
_TINY = 1e-3
_TO_UNIT = np.clip((np.arange(256) - BLACK) / _LUMA_STEPS, 0, 1).astype(np.float32)


class Planes(NamedTuple):
    """One picture of even sides; the arrays may be a decoder's own and are never written to."""

    y: NDArray[np.uint8]
    """``[H, W]``."""
    u: NDArray[np.uint8]
    """``[H/2, W/2]``, blue less luminance."""
    v: NDArray[np.uint8]
    """``[H/2, W/2]``, red less luminance."""

    @property
    def shape(self) -> Tuple[int, ...]:
        """``(H, W)``."""
        return self.y.shape


Picture = Union["NDArray[np.uint8]", Planes]
"""BGR ``[H, W, 3]``, or planes."""


def luminance_of(planes: Planes) -> NDArray[np.float32]:
    """Luminance ``[H, W]`` in [0, 1]."""
    unit: NDArray[np.float32] = cv2.LUT(planes.y, _TO_UNIT)
    return unit


def grey_of(planes: Planes) -> NDArray[np.uint8]:
    """Luminance ``[H, W]`` as a grey picture of full range, 0 to 255."""
    above_black = cv2.subtract(planes.y, BLACK)
    grey: NDArray[np.uint8] = cv2.convertScaleAbs(above_black, dst=above_black, alpha=255 / _LUMA_STEPS)
    return grey


def bgr_of(picture: Picture) -> NDArray[np.uint8]:
    """A picture as BGR ``[H, W, 3]``; of planes, all pixels of a block have its chroma."""
    if not isinstance(picture, Planes):
        return picture
    stacked = np.concatenate([plane.reshape(-1) for plane in picture])
    height, width = picture.shape
    bgr: NDArray[np.uint8] = cv2.cvtColor(stacked.reshape(3 * height // 2, width), cv2.COLOR_YUV2BGR_I420)
    return bgr


def recombine_planes(fused: NDArray[np.float32], vis: Planes) -> Planes:
    """Give the luminance ``fused``, ``[H, W]`` in [0, 1], the chroma of ``vis``."""
    y = cv2.convertScaleAbs(np.clip(fused, 0, 1), alpha=_LUMA_STEPS, beta=BLACK)
    factor = _largest_factor(cv2.resize(y, vis.u.shape[::-1], interpolation=cv2.INTER_AREA), vis)
    offset = NO_CHROMA - NO_CHROMA * factor
    u, v = (_sum_u8(cv2.multiply(plane, factor, dtype=cv2.CV_32F), offset) for plane in (vis.u, vis.v))
    return Planes(y, u, v)


def _largest_factor(y: NDArray[np.uint8], vis: Planes) -> NDArray[np.float32]:
    """The largest factor of chroma, at most 1, with which luminance ``y``, one for each block, stays in range."""
    red = _weighted(vis, 0, _V_IN_RED)
    green = _weighted(vis, _U_IN_GREEN, _V_IN_GREEN)
    blue = _weighted(vis, _U_IN_BLUE, 0)
    above = cv2.max(cv2.max(red, green), blue)
    below = cv2.min(cv2.min(red, green, dst=red), blue, dst=red)
    cv2.max(above, _TINY, dst=above)  # a grey block has no chroma to scale
    cv2.min(below, -_TINY, dst=below)
    level = y.astype(np.float32)
    cv2.divide(WHITE - level, above, dst=above)
    cv2.divide(BLACK - level, below, dst=below)
    cv2.min(above, below, dst=above)
    return np.asarray(cv2.min(above, 1.0, dst=above), np.float32)


def _weighted(vis: Planes, u: float, v: float) -> Any:
    """What chroma adds to one colour, in steps of luminance."""
    return cv2.addWeighted(vis.u, u, vis.v, v, -NO_CHROMA * (u + v), dtype=cv2.CV_32F)


def _sum_u8(first: Any, second: Any) -> Any:
    return cv2.add(first, second, dtype=cv2.CV_8U)
