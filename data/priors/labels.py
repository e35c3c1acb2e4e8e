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
    """Mask source ``labels``: up to 20 connected pieces of the classes of a label map, largest first."""

    name = "labels"

    @property
    def settings(self) -> dict[str, JsonValue]:
        """What the masks depend on."""
        return {"method": "components", "revision": 1, "keep": KEPT_MASKS, "min_area": _MIN_AREA}

    def masks(self, image_rgb: NDArray[Any], /) -> MaskSet:
        """Take apart a label map: ``[H, W]`` or ``[H, W, 3]`` integer ids, channels alike; 255 is ignored."""
        ids = image_rgb if image_rgb.ndim == 2 else image_rgb[..., 0]
        pieces = [piece for number in np.unique(ids) if number != IGNORED_ID for piece in _pieces(ids == number)]
        pieces.sort(key=lambda piece: -piece[0])
        planes = [mask for _, mask in pieces[:KEPT_MASKS]]
        return MaskSet.from_masks(np.array(planes, bool).reshape(-1, *ids.shape))


def _pieces(mask: NDArray[np.bool_]) -> list[tuple[int, NDArray[np.bool_]]]:
    """Area and mask of every piece that is large enough to be one of the kept."""
    _, numbered, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
    area = stats[:, cv2.CC_STAT_AREA]
    largest = np.argsort(-area[1:], kind="stable")[:KEPT_MASKS] + 1
    return [(int(area[i]), numbered == i) for i in largest if area[i] >= _MIN_AREA]
