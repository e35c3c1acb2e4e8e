"""Pairs at half size with all their ground truth: what makes trainings of task networks four times as cheap."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from duskfuse.data.images import write_picture
from duskfuse.data.layout import find_pairs

SALIENT = (1, 2, 3)
"""Ids of cars, people and bicycles in MFNet's label maps."""


def halve_pairs(data: Path, out: Path, salient: Collection[int] = SALIENT) -> None:
    """Write the pairs of ``data`` to ``out/SPLIT``, with boxes, labels, and saliency maps of the ids ``salient``."""
    for pair in find_pairs(data):
        folder, name = out / (pair.split or "train"), pair.vis.path.stem
        halve(pair.ir.path, folder / "ir" / f"{name}.png")
        halve(pair.vis.path, folder / "vis" / f"{name}.png")
        if pair.boxes is not None:
            copied = folder / "boxes" / f"{name}.txt"
            copied.parent.mkdir(exist_ok=True)
            shutil.copyfile(pair.boxes, copied)
        if pair.label is not None:
            label = _read(pair.label, cv2.IMREAD_GRAYSCALE)[::2, ::2]
            write_picture(folder / "label" / f"{name}.png", np.ascontiguousarray(label))
            write_picture(folder / "saliency" / f"{name}.png", np.isin(label, list(salient)).astype(np.uint8) * 255)


def halve(picture: Path, out: Path) -> None:
    """Write a picture at half its size, each pixel the mean of four, as RGB."""
    half = cv2.resize(_read(picture, cv2.IMREAD_COLOR_RGB), None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    write_picture(out, np.asarray(half, np.uint8))


def _read(path: Path, flags: int) -> NDArray[np.uint8]:
    stored = cv2.imread(str(path), flags)
    assert stored is not None, path
    return np.asarray(stored, np.uint8)
