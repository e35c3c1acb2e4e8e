"""Masks out of a segmentation map: every connected piece of a class is one region."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from duskfuse.data.priors.cache import JsonValue
from duskfuse.data.priors.masks import KEPT_MASKS, MaskSet

IGNORED_ID = 255
"""Class id of pixels without a label."""

_MIN_AREA = 100
"""Pixels of the smallest mask."""


class Labels:
    """Mask source ``labels``: the largest connected pieces of the classes of a label map.

    Args:
        keep: the number of masks at most.
    """

    name = "labels"

    def __init__(self, keep: int = KEPT_MASKS) -> None:
        self._keep = keep

    @property
    def settings(self) -> dict[str, JsonValue]:
        """What the masks depend on."""
        return {"method": "components", "revision": 1, "keep": self._keep, "min_area": _MIN_AREA}

    def masks(self, image_rgb: NDArray[Any], /) -> MaskSet:
        """Take apart a label map: ``[H, W]`` or ``[H, W, 3]`` integer ids, channels alike; 255 is ignored."""
        ids = image_rgb if image_rgb.ndim == 2 else image_rgb[..., 0]
        classes = [ids == number for number in np.unique(ids) if number != IGNORED_ID]
        pieces = [piece for mask in classes for piece in _pieces(mask, self._keep)]
        pieces.sort(key=lambda piece: -piece[0])
        planes = [mask for _, mask in pieces[: self._keep]]
        return MaskSet.from_masks(np.array(planes, bool).reshape(-1, *ids.shape))


def _pieces(mask: NDArray[np.bool_], keep: int) -> list[tuple[int, NDArray[np.bool_]]]:
    """Area and mask of every piece that is large enough to be one of the ``keep`` kept."""
    _, numbered, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
    area = stats[:, cv2.CC_STAT_AREA]
    largest = np.argsort(-area[1:], kind="stable")[:keep] + 1
    return [(int(area[i]), numbered == i) for i in largest if area[i] >= _MIN_AREA]
