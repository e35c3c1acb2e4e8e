"""What is drawn on pictures: the rate, the skew of a pair, and the notice that one camera is silent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Dict, Optional, Tuple

import cv2
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

NOTICES: Dict[str, str] = {"ir": "NO INFRARED - VISIBLE ALONE", "vis": "NO VISIBLE - INFRARED ALONE"}
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_WHITE, _BLACK, _RED = (255, 255, 255), (0, 0, 0), (40, 40, 220)


def notice(picture: NDArray[np.uint8], missing: str) -> None:
    """Write into ``picture``, BGR ``[H, W, 3]``, which stream is silent, on a red bar along the top."""
    text, scale = NOTICES[missing], _scale(picture)
    width, height = _size(text, scale)
    scale *= min(1.0, 0.96 * picture.shape[1] / width)
    width, height = _size(text, scale)
    bar = 2 * height
    cv2.rectangle(picture, (0, 0), (picture.shape[1], bar), _RED, -1)
    at = ((picture.shape[1] - width) // 2, bar - height // 2)
    cv2.putText(picture, text, at, _FONT, scale, _WHITE, _thickness(scale), cv2.LINE_AA)


def label(picture: NDArray[np.uint8], fps: float, skew_ms: Optional[float]) -> None:
    """Write rate and skew into the lower left corner of ``picture``, white with a black edge."""
    text, scale = f"{fps:.1f} fps" + ("" if skew_ms is None else f"  skew {skew_ms:+.0f} ms"), _scale(picture)
    height = _size(text, scale)[1]
    at = (height, picture.shape[0] - height)
    for colour, thickness in ((_BLACK, 3 * _thickness(scale)), (_WHITE, _thickness(scale))):
        cv2.putText(picture, text, at, _FONT, scale, colour, thickness, cv2.LINE_AA)


def side_by_side(
    ir: Optional[NDArray[np.uint8]], vis: Optional[NDArray[np.uint8]], fused: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """Infrared, visible and fused ``[H, W, 3]`` beside each other, ``[H, 3·W, 3]``; black where one is missing."""
    empty = np.zeros_like(fused)
    return np.hstack([empty if ir is None else ir, empty if vis is None else vis, fused])


def fitted(picture: NDArray[np.uint8], size: Tuple[int, int]) -> NDArray[np.uint8]:
    """``picture`` scaled into (height, width) ``size`` with its own proportions, black around it."""
    factor = min(size[0] / picture.shape[0], size[1] / picture.shape[1])
    height, width = (max(1, min(size[axis], round(picture.shape[axis] * factor))) for axis in (0, 1))
    way = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    canvas = np.zeros((*size, 3), np.uint8)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    canvas[top : top + height, left : left + width] = cv2.resize(picture, (width, height), interpolation=way)
    return canvas


def _scale(picture: NDArray[np.uint8]) -> float:
    return max(0.3, float(picture.shape[0]) / 800)


def _thickness(scale: float) -> int:
    return max(1, round(2 * scale))


def _size(text: str, scale: float) -> Tuple[int, int]:
    (width, height), _ = cv2.getTextSize(text, _FONT, scale, _thickness(scale))
    return width, height
