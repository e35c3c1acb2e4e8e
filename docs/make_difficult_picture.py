"""Draw docs/difficult.jpg, the cards' picture: enlarged parts of built-in scenes where the packaged students are weak.

Run from anywhere: ``python docs/make_difficult_picture.py``.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

import duskfuse
from duskfuse.data.images import write_picture
from duskfuse.data.scenes import render_scene

PARTS = {9003: (150, 60), 9004: (200, 60), 9002: (380, 60), 9001: (30, 180)}
"""Seed of a scene, left and top of the part: glare, hazy day, fog, night."""
STUDENTS = ("edge", "nano", "unet")
SIZE, PART, TIMES = (480, 640), (110, 160), 2
TITLE_HEIGHT, GAP = 34, 6


def row(seed: int, left: int, top: int) -> NDArray[np.uint8]:
    """Infrared, visible and what every student makes of a part."""
    scene = render_scene(seed, size=SIZE)
    pictures = [np.repeat(scene.ir[..., None], 3, axis=2), scene.vis]
    pictures += [duskfuse.load(name).fuse(scene.ir, scene.vis) for name in STUDENTS]
    parts = [picture[top : top + PART[0], left : left + PART[1]] for picture in pictures]
    larger = [part.repeat(TIMES, axis=0).repeat(TIMES, axis=1) for part in parts]
    return np.hstack([np.pad(part, ((0, GAP), (0, GAP), (0, 0)), constant_values=255) for part in larger])


def header(width: int) -> NDArray[np.uint8]:
    """The titles of the columns."""
    titles = ("infrared", "visible", *STUDENTS)
    band = np.full((TITLE_HEIGHT, width, 3), 255, np.uint8)
    for column, title in enumerate(titles):
        origin = (column * width // len(titles) + 4, TITLE_HEIGHT - 11)
        cv2.putText(band, title, origin, cv2.FONT_HERSHEY_SIMPLEX, 0.7, (40, 40, 40), 1, cv2.LINE_AA)
    return band


def main() -> None:
    """Write the picture."""
    rows = [row(seed, *corner) for seed, corner in PARTS.items()]
    write_picture(Path(__file__).with_name("difficult.jpg"), np.vstack([header(rows[0].shape[1]), *rows]))


if __name__ == "__main__":
    main()
