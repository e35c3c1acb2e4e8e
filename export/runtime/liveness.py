"""Whether a camera is alive: a lens cap, a lost cable and a dead sensor give frames that say nothing.

A frame is judged as the camera gave it, before it is scaled. Its spread is the 99.5th minus the 0.5th percentile of the
stored values (of the channel with the most, for colours), so that a few hot pixels do not count. With the spread in
steps of 8-bit or 16-bit counts, of 1/255 for float in [0, 1], the frame is

- dead, weight 0, up to `DEAD_STEPS`: constant, or flickering in its last bit;
- alive, weight 1, from `ALIVE_STEPS` on;
- in between by the smooth step 3t² − 2t³, so that a camera fading away does not make the picture jump.

A missing frame, and one with NaN or infinite values, is dead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Optional

import cv2
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

DEAD_STEPS = 1.5
ALIVE_STEPS = 4.0

_EVERY = 4  # of the pixels in each direction are enough
_ENDS = (0.5, 99.5)


def liveness(frame: Optional[NDArray[Any]], unit: Optional[float] = None) -> float:
    """Weight in [0, 1] of a frame as stored, ``[H, W]`` or ``[H, W, C]``, None where the camera gave none.

    ``unit`` is one step of the stored values; by default 1 for integers and 1/255 for float.
    """
    if frame is None or frame.size == 0:
        return 0.0
    if unit is None:
        unit = 1 / 255 if frame.dtype.kind == "f" else 1.0
    seen = frame[::_EVERY, ::_EVERY] if min(frame.shape[:2]) > 16 * _EVERY else frame
    if seen.dtype.kind == "f" and not np.isfinite(frame).all():
        return 0.0
    low, high = np.percentile(seen, _ENDS, axis=(0, 1))
    t = (float(np.max(high - low)) / unit - DEAD_STEPS) / (ALIVE_STEPS - DEAD_STEPS)
    t = min(1.0, max(0.0, t))
    return t * t * (3 - 2 * t)


def mixed(fused: NDArray[np.uint8], living: NDArray[np.uint8], weight: float) -> NDArray[np.uint8]:
    """``weight`` of the fused picture and the rest of the living camera's, both uint8 of one shape."""
    picture: NDArray[np.uint8] = cv2.addWeighted(fused, weight, living, 1 - weight, 0)
    return picture
