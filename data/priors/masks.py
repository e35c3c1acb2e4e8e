"""The binary region masks of one picture, kept small enough to read a few of them in every training step.

A mask is its bounding box and a code of the pixels inside it, so that a few masks, or a window of them, are decoded
without touching the rest. The code packs eight rows into a byte and keeps only where a row of bytes changes: zstd then
makes it smaller than run lengths, and the masks that share an outline share bytes. COCO run lengths are for
interchange.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from duskfuse.data.errors import InputError

KEPT_MASKS = 20
"""Masks kept of each picture (SAGE's mask cache keeps the 20 largest)."""

MAX_PIXELS = 2**26
"""Height times width of the largest picture that has priors; a larger one is taken for a damaged number."""

_ROW_BITS = (128 >> np.arange(8, dtype=np.uint8))[:, None]


@dataclass(frozen=True, eq=False)
class MaskSet:
    """M non-empty masks of one picture, largest first.

    Raises:
        ValueError: the fields do not fit together.
    """

    height: int
    """Of the picture, in pixels."""
    width: int
    boxes: NDArray[np.int32]
    """Bounding boxes ``[M, 4]``: x, y, width, height in pixels."""
    bits: tuple[bytes, ...]
    """Per mask, a code of the crop to its box: eight rows a byte on the picture's grid of eight rows, the upper row in
    the highest bit; row by row of such bytes, each combined by exclusive or with its left neighbour."""
    area: NDArray[np.int32]
    """Pixels of each mask, ``[M]``, descending."""
    predicted_iou: NDArray[np.float32]
    """The source's own estimate of each mask's quality, ``[M]``; NaN where it gives none."""
    stability: NDArray[np.float32]
    """Agreement of each mask with itself when its threshold moves, ``[M]`` (SAM); NaN where the source gives none."""
    made_from: str = ""
    """Hash of the file that the masks were made from where that is not the picture (a label map)."""

    def __post_init__(self) -> None:
        count = len(self.bits)
        if not (self.height > 0 and self.width > 0 and self.height * self.width <= MAX_PIXELS):
            raise ValueError(f"a picture of {self.width}×{self.height}")
        if self.boxes.shape != (count, 4):
            raise ValueError(f"boxes {self.boxes.shape} for {count} masks")
        if any(field.shape != (count,) for field in (self.area, self.predicted_iou, self.stability)):
            raise ValueError(f"area, predicted_iou and stability must have {count} values each")
        x, y, w, h = self.boxes.astype(np.int64).T  # sums and products of int32 may wrap round
        if ((x < 0) | (y < 0) | (w < 1) | (h < 1) | (x + w > self.width) | (y + h > self.height)).any():
            raise ValueError(f"a box leaves the picture of {self.width}×{self.height}")
        if ((self.area < 1) | (self.area > w * h)).any() or (np.diff(self.area) > 0).any():
            raise ValueError("areas must be those of non-empty masks inside their boxes, largest first")
        if [len(code) for code in self.bits] != (w * (-(-(y % 8 + h) // 8))).tolist():
            raise ValueError("a mask has another number of bits than its box")

    @classmethod
    def from_masks(
        cls, masks: ArrayLike, predicted_iou: ArrayLike | None = None, stability: ArrayLike | None = None
    ) -> MaskSet:
        """Encode ``[M, H, W]`` booleans: empty masks are dropped, the others sorted by area, largest first.

        ``predicted_iou`` and ``stability`` are ``[M]`` in the order of ``masks``. InputError where the picture has
        more than `MAX_PIXELS`.
        """
        planes = np.asarray(masks, dtype=bool)
        if planes.ndim != 3:
            raise ValueError(f"masks {planes.shape}, want [M,H,W]")
        count, height, width = planes.shape
        check_pixels(height, width)
        area = planes.sum(axis=(1, 2), dtype=np.int32)
        order = np.argsort(-area, kind="stable")
        order = order[area[order] > 0]
        boxes = np.array([cv2.boundingRect(planes[i].view(np.uint8)) for i in order], np.int32).reshape(-1, 4)
        crops = (planes[i, y : y + h, x : x + w] for i, (x, y, w, h) in zip(order, boxes, strict=True))
        return cls(
            height=height,
            width=width,
            boxes=boxes,
            bits=tuple(_code(crop, y % 8) for crop, (_, y, _, _) in zip(crops, boxes.tolist(), strict=True)),
            area=area[order],
            predicted_iou=_scores(predicted_iou, count)[order],
            stability=_scores(stability, count)[order],
        )

    def __len__(self) -> int:
        return len(self.bits)

    def decode(
        self, indices: Sequence[int] | None = None, window: tuple[int, int, int, int] | None = None
    ) -> NDArray[np.bool_]:
        """Decode the masks of ``indices`` (all by default) as ``[m, h, w]``, and only that.

        Args:
            indices: which masks, in the order wanted.
            window: (y, x, height, width) inside the picture; the whole picture by default.

        Raises:
            ValueError: the window leaves the picture.
        """
        top, left, height, width = window or (0, 0, self.height, self.width)
        if min(top, left, height, width) < 0 or top + height > self.height or left + width > self.width:
            raise ValueError(f"window {window} leaves the picture of {self.width}×{self.height}")
        chosen = range(len(self)) if indices is None else indices
        planes = np.zeros((len(chosen), height, width), dtype=bool)
        for plane, index in zip(planes, chosen, strict=True):
            self._paint(plane, index, top, left)
        return planes

    def to_coco_rle(self) -> list[dict[str, Any]]:
        """The masks as COCO compressed run lengths: ``{"size": [H, W], "counts": str}``, readable by pycocotools."""
        from pycocotools import mask as coco

        codes = [coco.encode(np.asfortranarray(self.decode([i])[0].view(np.uint8))) for i in range(len(self))]
        return [{"size": list(code["size"]), "counts": code["counts"].decode("ascii")} for code in codes]

    def _paint(self, plane: NDArray[np.bool_], index: int, top: int, left: int) -> None:
        """Write what mask ``index`` has in the window whose corner is (top, left) into ``plane [h, w]``."""
        x, y, w, h = (int(value) for value in self.boxes[index])
        y0, y1 = max(y, top), min(y + h, top + plane.shape[0])
        x0, x1 = max(x, left), min(x + w, left + plane.shape[1])
        if y0 >= y1 or x0 >= x1:
            return
        above = y % 8 - y
        rows = _decode(self.bits[index], w, y0 + above, y1 + above)
        plane[y0 - top : y1 - top, x0 - left : x1 - left] = rows[:, x0 - x : x1 - x]


def check_pixels(height: int, width: int) -> None:
    """Raise InputError for a picture that is too large to have priors."""
    if height * width > MAX_PIXELS:
        raise InputError(
            f"a picture of {width}×{height} pixels",
            rule=f"pictures with priors have at most {MAX_PIXELS:,} pixels",
            remedy="cut it into tiles, or scale it down",
        )


def _code(crop: NDArray[np.bool_], above: int) -> bytes:
    """The code of a crop whose first row is row ``above`` of its byte."""
    packed = np.packbits(np.pad(crop, ((above, 0), (0, 0))), axis=0)
    packed[:, 1:] ^= packed[:, :-1].copy()
    return packed.tobytes()


def _decode(code: bytes, width: int, first: int, last: int) -> NDArray[np.bool_]:
    """Rows ``first`` to ``last`` of a crop of ``width`` pixels, counted from the first row of its first byte."""
    packed = np.frombuffer(code, np.uint8).reshape(-1, width)[first // 8 : -(-last // 8)]
    packed = np.bitwise_xor.accumulate(packed, axis=1)
    rows: NDArray[np.bool_] = (packed[:, None] & _ROW_BITS != 0).reshape(-1, width)
    return rows[first % 8 : first % 8 + last - first]


def _scores(values: ArrayLike | None, count: int) -> NDArray[np.float32]:
    scores = np.full(count, np.nan, np.float32) if values is None else np.asarray(values, np.float32)
    if scores.shape != (count,):
        raise ValueError(f"{scores.shape} scores for {count} masks")
    return scores
