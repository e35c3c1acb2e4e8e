"""Infrared pictures as cameras give them become planes in [0, 1], heat bright, on the visible grid.

The order is fixed: scaling, polarity, alignment. The numbers are those of ``duskfuse.yaml`` on the workstation:

- a fixed range of stored values that become 0 and 1, which is best for radiometric cameras;
- else 8-bit pictures are divided by 255, and deeper ones are scaled by two percentiles of each picture;
- for video the percentiles move slowly, so that the picture does not flicker when a hot thing comes or goes: per frame
  the range goes `STEP` of the way to the frame's own. A frame of one value (a closed shutter) moves nothing, and a
  range that shares no value with the frame's (a switched gain) is replaced at once.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional, Tuple

import cv2
import numpy as np

from .alignment import Alignment, load_alignment
from .errors import DeviceInputError

if TYPE_CHECKING:
    import argparse

    from numpy.typing import NDArray

Range = Tuple[float, float]

PERCENTILES = (0.1, 99.9)
STEP = 1 / 30
"""Share of the way to a frame's own range, per frame: at 30 frames a second, 63 % of a change within a second."""

_EVERY = 4  # of the pixels in each direction are enough for the range of a moving picture
_U8: Range = (0.0, 255.0)


class ThermalInput:
    """How the frames of one infrared camera are read.

    Args:
        thermal_range: stored values that become 0 and 1.
        percentiles: percentiles of each picture that become 0 and 1, for pictures of any depth.
        black_hot: the camera shows heat dark.
        alignment: brings the infrared picture to the visible grid.
        resize: bring a picture of another size to the visible size; without an alignment.
        video: the pictures are a sequence, and percentiles move slowly.

    Raises:
        DeviceInputError: settings that are out of range or exclude each other.
    """

    def __init__(
        self,
        thermal_range: Optional[Range] = None,
        percentiles: Optional[Range] = None,
        black_hot: bool = False,
        alignment: Optional[Alignment] = None,
        resize: bool = False,
        video: bool = False,
    ) -> None:
        if thermal_range is not None:
            _check_range(thermal_range)
        if percentiles is not None and not 0 <= percentiles[0] < percentiles[1] <= 100:
            raise DeviceInputError(f"percentiles {percentiles}", "two numbers from 0 to 100, the smaller one first")
        if thermal_range is not None and percentiles is not None:
            raise DeviceInputError("a thermal range and percentiles", "they exclude each other", "give one of them")
        if resize and alignment is not None:
            raise DeviceInputError("resizing and a homography", "a homography also resizes", "give one of them")
        self.thermal_range, self.percentiles, self.black_hot = thermal_range, percentiles, black_hot
        self.alignment, self.resize, self.video = alignment, resize, video
        self.range: Optional[Range] = None
        """The stored values that became 0 and 1 in the last picture; None before the first, or for one of one value."""
        self._table: Optional[Tuple[Any, NDArray[np.float32]]] = None
        self._plane: NDArray[np.float32] = np.empty((0, 0), np.float32)

    def plane(self, ir: NDArray[Any], size: Optional[Tuple[int, int]] = None) -> NDArray[np.float32]:
        """Scale a frame ``[h, w]`` (uint8, uint16 or float32) to [0, 1] and bring it to ``size``, (height, width).

        The result is a buffer that the next frame overwrites. Raises DeviceInputError where the frame has another type,
        or another size and no alignment that leads from there to ``size``.
        """
        if ir.ndim != 2 or ir.dtype not in (np.uint8, np.uint16, np.float32):
            raise DeviceInputError(f"infrared {ir.shape} {ir.dtype}", "[H, W] of uint8, uint16 or float32 is needed")
        own = self._own_range(ir)
        self.range = _moved(self.range, own) if self.video and self.thermal_range is None else own
        plane = self._scaled(ir, self.range)
        return plane if size is None else self._aligned(plane, size)

    @property
    def unit(self) -> Optional[float]:
        """The step of stored values below which a difference says nothing; None: what the type of a frame implies."""
        return None if self.thermal_range is None else (self.thermal_range[1] - self.thermal_range[0]) / 255

    def _own_range(self, ir: NDArray[Any]) -> Optional[Range]:
        if self.thermal_range is not None:
            return self.thermal_range
        if self.percentiles is None and ir.dtype == np.uint8:
            return _U8
        seen = ir[::_EVERY, ::_EVERY] if self.video and min(ir.shape) > 16 * _EVERY else ir
        low, high = (float(value) for value in np.percentile(seen, self.percentiles or PERCENTILES))
        if not low < high:
            low, high = float(ir.min()), float(ir.max())
        return (low, high) if low < high else None

    def _scaled(self, ir: NDArray[Any], span: Optional[Range]) -> NDArray[np.float32]:
        if self._plane.shape != ir.shape:
            self._plane = np.empty(ir.shape, np.float32)
        if span is None:
            self._plane.fill(1.0 if self.black_hot else 0.0)
        elif ir.dtype == np.float32:
            scaled = _scale(ir, span)
            np.subtract(np.float32(1), scaled, out=self._plane) if self.black_hot else np.copyto(self._plane, scaled)
        elif ir.dtype == np.uint8:
            cv2.LUT(ir, self._table_of(ir.dtype, span), dst=self._plane)
        else:
            np.take(self._table_of(ir.dtype, span), ir, out=self._plane, mode="clip")
        return self._plane

    def _table_of(self, kind: Any, span: Range) -> NDArray[np.float32]:
        """The plane's value for every stored value: one look-up per pixel instead of arithmetic."""
        key = (kind, span)
        if self._table is None or self._table[0] != key:
            most = int(np.iinfo(kind).max)
            if span[0] >= most or span[1] <= 0:
                raise DeviceInputError(
                    f"thermal range {span[0]:g} to {span[1]:g} for a picture of {8 * np.dtype(kind).itemsize} bit",
                    f"its stored values are from 0 to {most}",
                    "give the range in the stored units of the camera",
                )
            table = _scale(np.arange(most + 1), span)
            self._table = key, np.float32(1) - table if self.black_hot else table
        return self._table[1]

    def _aligned(self, plane: NDArray[np.float32], size: Tuple[int, int]) -> NDArray[np.float32]:
        if self.alignment is not None:
            return self.alignment.warp(plane, size)
        if plane.shape == size:
            return plane
        if not self.resize:
            raise DeviceInputError(
                f"infrared is {plane.shape[1]}x{plane.shape[0]}, visible is {size[1]}x{size[0]}",
                "the two pictures must be registered and of one size: align and resize one to the other first",
                "give the homography of the rig, or allow resizing if both show the same scene",
            )
        smaller = plane.size > size[0] * size[1]
        interpolation = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
        return np.asarray(cv2.resize(plane, size[::-1], interpolation=interpolation), np.float32)


def infrared(ir: NDArray[Any], ir_range: Optional[Range] = None) -> NDArray[np.float32]:
    """Scale one infrared plane ``[H, W]`` to float32 in [0, 1].

    uint8 and float32 in [0, 1] need no range; uint16 counts need ``ir_range``, the (cold, hot) counts that become 0 and
    1. Raises DeviceInputError for other shapes and types.
    """
    if ir.ndim != 2:
        raise DeviceInputError(f"infrared of shape {ir.shape}", "one channel [H, W] is needed")
    if ir.dtype == np.uint8:
        scaled: NDArray[np.float32] = np.divide(ir, np.float32(255), dtype=np.float32)
        return scaled
    if ir.dtype == np.float32:
        return np.asarray(np.clip(ir, 0, 1), np.float32)
    if ir.dtype != np.uint16 or ir_range is None:
        raise DeviceInputError(f"infrared of type {ir.dtype}", "uint8, float32, or uint16 with ir_range is needed")
    _check_range(ir_range)
    return _scale(ir, ir_range)


def add_thermal_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare how a verb reads the infrared camera."""
    group = parser.add_argument_group("infrared camera")
    group.add_argument("--thermal-range", type=_range, metavar="LOW:HIGH", help="stored values that become 0 and 1")
    group.add_argument("--percentiles", type=_range, metavar="LOW:HIGH", help="percentiles that become 0 and 1")
    group.add_argument("--black-hot", action="store_true", help="the camera shows heat dark")
    group.add_argument(
        "--homography", type=Path, metavar="FILE", help="JSON file that brings infrared to visible pixels"
    )
    group.add_argument("--resize-ir", action="store_true", help="bring infrared to the visible size")


def thermal_input_of(args: argparse.Namespace, video: bool = False) -> ThermalInput:
    """What the arguments of :func:`add_thermal_arguments` say; raises DeviceInputError where they do not fit."""
    alignment = None if args.homography is None else load_alignment(args.homography)
    return ThermalInput(args.thermal_range, args.percentiles, args.black_hot, alignment, args.resize_ir, video)


def _range(text: str) -> Range:
    """Read ``LOW:HIGH``; ValueError, which argparse reports, for anything else."""
    low, _, high = text.partition(":")
    return float(low), float(high)


def _check_range(span: Range) -> None:
    if not (math.isfinite(span[0]) and math.isfinite(span[1]) and span[0] < span[1]):
        raise DeviceInputError(f"thermal range {span}", "the second number must be larger than the first, both finite")


def _scale(stored: NDArray[Any], span: Range) -> NDArray[np.float32]:
    """Scale stored values so that ``span`` becomes 0 to 1, in double precision as the workstation does."""
    return np.clip((stored.astype(np.float64) - span[0]) / (span[1] - span[0]), 0, 1).astype(np.float32)


def _moved(before: Optional[Range], own: Optional[Range]) -> Optional[Range]:
    """Where the slowly moving range goes from ``before`` for a frame whose own range is ``own``."""
    if before is None or own is None:
        return before or own
    if own[0] >= before[1] or own[1] <= before[0]:
        return own
    return before[0] + STEP * (own[0] - before[0]), before[1] + STEP * (own[1] - before[1])
