"""Pairs of small pictures in any number, for benchmarks of offline work."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

HEIGHT, WIDTH = 96, 128


def write_pairs(folder: Path, count: int, seed: int = 0) -> None:
    """Write ``count`` different pairs of pictures with a few round things on a slope into ``ir`` and ``vis``."""
    for side in ("ir", "vis"):
        (folder / side).mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    for number in range(count):
        cv2.imwrite(str(folder / "ir" / f"{number:06d}.png"), _picture(generator))
        cv2.imwrite(str(folder / "vis" / f"{number:06d}.png"), np.dstack([_picture(generator)] * 3))


def _picture(generator: np.random.Generator) -> NDArray[np.uint8]:
    slope = np.linspace(40, 90, WIDTH) + generator.normal(0, 2, (HEIGHT, WIDTH))
    picture = np.clip(slope, 0, 255).astype(np.uint8)
    for _ in range(6):
        centre = int(generator.integers(0, WIDTH)), int(generator.integers(0, HEIGHT))
        cv2.circle(picture, centre, int(generator.integers(6, 14)), int(generator.integers(110, 255)), -1)
    return picture
