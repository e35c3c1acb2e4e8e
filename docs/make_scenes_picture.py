"""Draw docs/scenes.jpg, the README's picture: built-in scenes, and what the packaged student makes of them.

Run from anywhere: ``python docs/make_scenes_picture.py``.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from duskfuse.data.images import write_picture
from duskfuse.data.scenes import Condition, Scene, render_scene
from duskfuse.evaluate.fusers import Fuser, open_fuser
from duskfuse.export.runtime.fuser import luminance, recombine

SCENES = {25: Condition.NIGHT, 4: Condition.DAY, 6: Condition.FOG, 7: Condition.GLARE}
SIZE = (300, 400)
TITLES = ("infrared", "visible", "fused")
TITLE_HEIGHT, GAP = 34, 6


def row(scene: Scene, fuser: Fuser) -> NDArray[np.uint8]:
    """Infrared, visible and fused picture side by side."""
    y = fuser.fuse(scene.ir.astype(np.float32) / 255, luminance(scene.vis))
    pictures = [np.repeat(scene.ir[..., None], 3, axis=2), scene.vis, recombine(y, scene.vis)]
    return np.hstack([np.pad(picture, ((0, GAP), (0, GAP), (0, 0)), constant_values=255) for picture in pictures])


def header(width: int) -> NDArray[np.uint8]:
    """The titles of the columns."""
    band = np.full((TITLE_HEIGHT, width, 3), 255, np.uint8)
    for column, title in enumerate(TITLES):
        origin = (column * width // len(TITLES) + 4, TITLE_HEIGHT - 11)
        cv2.putText(band, title, origin, cv2.FONT_HERSHEY_SIMPLEX, 0.7, (40, 40, 40), 1, cv2.LINE_AA)
    return band


def main() -> None:
    """Draw the picture beside this script."""
    fuser = open_fuser("edge")
    rows = [row(render_scene(seed, size=SIZE, condition=condition), fuser) for seed, condition in SCENES.items()]
    write_picture(Path(__file__).with_name("scenes.jpg"), np.vstack([header(rows[0].shape[1]), *rows]))


if __name__ == "__main__":
    main()
