"""Which pairs a report shows, and small pictures of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from duskfuse.data.colour import recombine
from duskfuse.data.images import to_u8
from duskfuse.evaluate.methods import Method
from duskfuse.evaluate.metrics import Grey
from duskfuse.evaluate.score_pairs import fused_grey
from duskfuse.evaluate.scores import GalleryPair, Kind
from duskfuse.evaluate.source_pictures import SourcePictures

GALLERY_PAIRS = 6
_DARK_PAIRS = 3
_SIDE = 640


def gallery_choice(brightness: Mapping[str, float]) -> list[str]:
    """Names of up to six pairs by rising visible brightness: the three darkest, three spread over the others."""
    names = sorted(brightness, key=lambda name: (brightness[name], name))
    if len(names) <= GALLERY_PAIRS:
        return names
    places = np.linspace(_DARK_PAIRS, len(names) - 1, GALLERY_PAIRS - _DARK_PAIRS).round().astype(int)
    return names[:_DARK_PAIRS] + [names[place] for place in places]


def gallery_pair(sources: SourcePictures, methods: Sequence[Method], brightness: float) -> GalleryPair:
    """Small pictures of a pair; the trivial rows are shown only where there is nothing else."""
    shown = [method for method in methods if method.kind is not Kind.TRIVIAL] or methods[:2]
    pictures: dict[str, NDArray[np.uint8]] = {"infrared": sources.ir_u8, "visible": to_u8(sources.vis)}
    for method in shown:
        pictures[method.name] = _coloured(fused_grey(method.picture(sources), sources), sources.vis)
    small = {name: _smaller(picture) for name, picture in pictures.items()}
    return GalleryPair(sources.files.name, brightness, small)


def _coloured(fused: Grey, vis: NDArray[np.float32]) -> NDArray[np.uint8]:
    y = torch.from_numpy(fused.astype(np.float32) / 255)[None]
    rgb = recombine(y, torch.from_numpy(vis).permute(2, 0, 1))
    return to_u8(rgb.permute(1, 2, 0).numpy())


def _smaller(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = picture.shape[:2]
    scale = _SIDE / max(height, width)
    if scale >= 1:
        return picture
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
