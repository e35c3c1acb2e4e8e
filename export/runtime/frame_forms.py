"""The forms in which a frame is needed on its way: colours, one channel, planes in [0, 1], and back to a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Union

import cv2
import numpy as np

from .pictures import visible
from .planes import Planes, bgr_of, grey_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .sources import Frame


def as_colour(picture: Union[NDArray[Any], Planes]) -> NDArray[np.uint8]:
    """A visible frame as BGR uint8; grey ones get three equal channels, deep ones lose their low bits."""
    if isinstance(picture, Planes):
        return bgr_of(picture)
    stored: NDArray[Any] = picture
    if stored.dtype == np.uint16:
        stored = (stored >> 8).astype(np.uint8)
    elif stored.dtype == np.float32:
        stored = np.rint(visible(stored) * np.float32(255)).astype(np.uint8)
    if stored.ndim == 2:
        stored = cv2.cvtColor(stored, cv2.COLOR_GRAY2BGR)
    return np.ascontiguousarray(stored[..., :3], np.uint8)


def one_channel(frame: Frame) -> NDArray[Any]:
    """An infrared frame's stored values as one channel; a colour video of a thermal camera by its luminance."""
    if isinstance(frame.picture, Planes):
        return grey_of(frame.picture)
    picture = frame.picture >> frame.shift if frame.shift else frame.picture
    grey: NDArray[Any] = picture if picture.ndim == 2 else cv2.cvtColor(picture[..., :3], cv2.COLOR_BGR2GRAY)
    return grey


def colour_planes(vis: NDArray[np.uint8]) -> NDArray[np.float32]:
    """BGR ``[H, W, 3]`` uint8 as RGB planes ``[3, H, W]`` in [0, 1]."""
    return np.ascontiguousarray(vis[..., ::-1].transpose(2, 0, 1), np.float32) * np.float32(1 / 255)


def colour_picture(planes: NDArray[np.float32]) -> NDArray[np.uint8]:
    """RGB planes ``[3, H, W]`` in [0, 1] as BGR ``[H, W, 3]`` uint8."""
    scaled = np.rint(np.clip(planes, 0, 1) * np.float32(255)).astype(np.uint8)
    return np.ascontiguousarray(scaled[::-1].transpose(1, 2, 0))


def grey_picture(plane: NDArray[np.float32]) -> NDArray[np.uint8]:
    """A plane in [0, 1] as BGR ``[H, W, 3]`` uint8."""
    grey = np.rint(np.clip(plane, 0, 1) * np.float32(255)).astype(np.uint8)
    picture: NDArray[np.uint8] = cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR)
    return picture
