"""Random rectangles instead of masks: what is left of SAGE when its regions mean nothing (its ablation I-a)."""

from __future__ import annotations

import hashlib
import math

import numpy as np
from numpy.typing import NDArray

from duskfuse.data.priors.cache import JsonValue
from duskfuse.data.priors.masks import KEPT_MASKS, MaskSet

_SMALLEST, _LARGEST = 0.01, 0.5
"""Share of the picture that a rectangle covers."""
_ELONGATION = 2.0
"""Longer side of a rectangle over its shorter one, at most."""


class RandomCrops:
    """Mask source ``random-crops``: rectangles, always the same ones for the same picture and seed.

    The share of the picture is log-uniform between 1 % and 50 %, the ratio of width and height log-uniform between 1/2
    and 2, the place uniform among those where the rectangle lies inside; a side longer than the picture's is cut to it.

    Args:
        keep: how many.
        seed: another seed, other rectangles.
    """

    name = "random-crops"

    def __init__(self, keep: int = KEPT_MASKS, seed: int = 0) -> None:
        self._keep, self._seed = keep, seed

    @property
    def settings(self) -> dict[str, JsonValue]:
        """What the masks depend on."""
        return {
            "method": "random-rectangles",
            "revision": 1,
            "keep": self._keep,
            "seed": self._seed,
            "share": [_SMALLEST, _LARGEST],
            "elongation": _ELONGATION,
        }

    def masks(self, image_rgb: NDArray[np.uint8], /) -> MaskSet:
        """Draw the rectangles of ``[H, W, 3]`` RGB, seeded by its pixels."""
        height, width = image_rgb.shape[:2]
        pixels = hashlib.sha256(f"{height}×{width}".encode() + image_rgb.tobytes()).digest()
        generator = np.random.default_rng([self._seed, *pixels])
        planes = np.zeros((self._keep, height, width), bool)
        for plane in planes:
            share, aspect, x, y = generator.random(4)
            area = height * width * _SMALLEST * (_LARGEST / _SMALLEST) ** share
            aspect = _ELONGATION ** (2 * aspect - 1)
            w = min(width, max(1, round(math.sqrt(area * aspect))))
            h = min(height, max(1, round(math.sqrt(area / aspect))))
            left, top = int(x * (width - w + 1)), int(y * (height - h + 1))
            plane[top : top + h, left : left + w] = True
        return MaskSet.from_masks(planes)
