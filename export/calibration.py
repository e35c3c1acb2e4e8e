"""Pictures for calibrating INT8 and for comparing written files with the model they were made from.

They come from the user's own data where given, spread evenly over its names, else from the built-in synthetic scenes.
Fixed-size files get whole pictures resized to that size; files for any size get crops, which keep the detail of real
pixels at a bounded cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from duskfuse.data.fuser import Colour
from duskfuse.data.layout import find_pairs
from duskfuse.data.pair_files import PairFiles, read_pair
from duskfuse.data.progress import track
from duskfuse.data.reading import Reading
from duskfuse.evaluate.fusers import CONTRACTS, Fuser
from duskfuse.export.runtime.fuser import luminance, unit

T = TypeVar("T")

MOST_PAIRS = 64
LARGEST_CROP = (256, 320)
"""(height, width) of the pictures for files that take any size."""
PIXEL_BUDGET = MOST_PAIRS * LARGEST_CROP[0] * LARGEST_CROP[1]
"""Pixels in all, so that calibrating a large fixed size takes no longer than calibrating crops."""
FEWEST_PAIRS = 8
_SYNTHETIC_SEED = 7000


@dataclass(frozen=True)
class Planes:
    """What a network sees of a pair, float32 in [0, 1]."""

    name: str
    ir: NDArray[np.float32]
    """``[H, W]``."""
    vis: NDArray[np.float32]
    """Luminance ``[H, W]``, or RGB ``[H, W, 3]`` for a network of colours."""

    @property
    def colour(self) -> Colour:
        """What it shows of the visible picture."""
        return Colour.RGB if self.vis.ndim == 3 else Colour.LUMA

    def feeds(self) -> dict[str, NDArray[np.float32]]:
        """Return the inputs of an exported file by name, ``[1, C, H, W]``."""
        seen = self.vis.transpose(2, 0, 1) if self.colour is Colour.RGB else self.vis[None]
        values = self.ir[None, None], np.ascontiguousarray(seen)[None]
        return dict(zip(CONTRACTS[self.colour].inputs, values, strict=True))

    def fused_by(self, fuser: Fuser) -> NDArray[np.float32]:
        """Fuse it: ``[H, W]``, or ``[H, W, 3]`` for a network of colours."""
        return (fuser.fuse_colours if self.colour is Colour.RGB else fuser.fuse)(self.ir, self.vis)


def calibration_pairs(
    data: Path | None,
    size: tuple[int, int] | None,
    most: int = MOST_PAIRS,
    reading: Reading | Path | None = None,
    colour: Colour = Colour.LUMA,
) -> list[Planes]:
    """Prepare up to ``most`` pairs from a data folder, or from synthetic scenes where ``data`` is None.

    ``size`` is the (height, width) of a fixed-size file, None for a file that takes any size; ``reading`` is how the
    infrared pictures of the folder are read; ``colour`` is what the network sees of the visible ones. Raises InputError
    for an unusable folder or pair.
    """
    height, width = size or LARGEST_CROP
    count = min(most, max(FEWEST_PAIRS, PIXEL_BUDGET // (height * width)))
    if data is None:
        return [
            _synthetic(_SYNTHETIC_SEED + index, (height, width), colour)
            for index in track(range(count), "Rendering scenes")
        ]
    chosen = evenly(find_pairs(data, reading=reading), count)
    return [fitted(_read(files, colour), size) for files in track(chosen, "Reading calibration pairs")]


def evenly(items: Sequence[T], count: int) -> list[T]:
    """Choose at most ``count`` items, spread evenly over the sequence.

    >>> evenly("abcdefg", 3)
    ['a', 'd', 'g']
    """
    if len(items) <= count:
        return list(items)
    return [items[round(index)] for index in np.linspace(0, len(items) - 1, count)]


def fitted(pair: Planes, size: tuple[int, int] | None) -> Planes:
    """Resize whole pictures to ``size`` (height, width); where it is None crop the middle of larger ones."""
    if size is None:
        return cropped(pair, LARGEST_CROP)
    smaller = pair.ir.shape[0] > size[0]
    interpolation = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
    planes = (cv2.resize(plane, size[::-1], interpolation=interpolation) for plane in (pair.ir, pair.vis))
    return Planes(pair.name, *planes)


def cropped(pair: Planes, most: tuple[int, int]) -> Planes:
    """Crop the middle of a pair to at most ``most`` (height, width)."""
    height, width = pair.ir.shape
    top, left = max(0, height - most[0]) // 2, max(0, width - most[1]) // 2
    window = slice(top, top + most[0]), slice(left, left + most[1])
    return Planes(pair.name, np.ascontiguousarray(pair.ir[window]), np.ascontiguousarray(pair.vis[window]))


def _read(files: PairFiles, colour: Colour) -> Planes:
    pair = read_pair(files)
    vis = pair.vis.permute(1, 2, 0).contiguous().numpy()
    return Planes(files.name, pair.ir[0].numpy(), vis if colour is Colour.RGB else luminance(vis))


def _synthetic(seed: int, size: tuple[int, int], colour: Colour) -> Planes:
    from duskfuse.data.scenes import render_scene

    scene = render_scene(seed, size=size)
    vis = unit(scene.vis) if colour is Colour.RGB else luminance(scene.vis)
    return Planes(f"scene-{seed}", unit(scene.ir), vis)
