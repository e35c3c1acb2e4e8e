"""Fuse camera pictures on the device: NumPy, OpenCV and a :class:`Network`, no PyTorch, Python 3.8 or newer.

    fuser = EdgeFuser("edge-fp32.onnx", threads=4)
    picture = fuser.fuse(ir, vis)  # [H, W] and [H, W, 3] uint8 -> [H, W, 3] uint8

Colour: the visible picture minus its BT.601 luminance is its chroma; the fused luminance plus that chroma is the
result. Where the sum would leave [0, 1], the chroma of that pixel is scaled by the largest factor that keeps it
inside: hue and luminance stay, saturation gives way. Nothing is clipped per channel. The package's own verbs use these
colour functions too, so what was checked on the workstation is what runs. A network of colours makes its own.

A camera that is not alive (:mod:`liveness`) is left out where the fuser is told to fall back: the picture is then that
of the other camera, infrared in grey.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Optional, Tuple, Union

import cv2
import numpy as np

from .errors import DeviceInputError
from .liveness import liveness, mixed
from .network import Network, OnnxNetwork
from .thermal import ThermalInput, infrared

if TYPE_CHECKING:
    from numpy.typing import NDArray

_TO_GREY = {"RGB": cv2.COLOR_RGB2GRAY, "BGR": cv2.COLOR_BGR2GRAY}
_BAND_PIXELS = 12288  # pixels coloured at a time, so that the intermediate planes stay in the processor's cache
_TINY = np.float32(1e-6)
_U8_TO_UNIT = (np.arange(256) / 255).astype(np.float32)


def luminance(
    vis: NDArray[Any], colour_order: str = "RGB", out: Optional[NDArray[np.float32]] = None
) -> NDArray[np.float32]:
    """BT.601 luminance ``[H, W]`` in [0, 1] of a colour picture ``[H, W, 3]``, uint8 or float32 in [0, 1].

    It is written to ``out`` where given. Raises DeviceInputError, a ValueError, for other shapes, types and colour
    orders.
    """
    _check_colour(vis, colour_order)
    grey: NDArray[np.float32] = np.empty(vis.shape[:2], np.float32) if out is None else out
    cv2.cvtColor(unit(vis), _TO_GREY[colour_order], dst=grey)
    np.minimum(grey, np.float32(1), out=grey)  # rounding may pass white by one unit in the last place
    return grey


def unit(vis: NDArray[Any]) -> NDArray[np.float32]:
    """A uint8 picture as float32 in [0, 1]; float passes."""
    scaled: NDArray[np.float32] = cv2.LUT(vis, _U8_TO_UNIT) if vis.dtype == np.uint8 else vis
    return scaled


def recombine(
    y: NDArray[np.float32], vis: NDArray[Any], colour_order: str = "RGB", out: Optional[NDArray[np.uint8]] = None
) -> NDArray[np.uint8]:
    """Give the luminance ``y``, ``[H, W]`` in [0, 1], the chroma of ``vis``, ``[H, W, 3]`` uint8 or float32 in [0, 1].

    Returns ``[H, W, 3]`` uint8 in the colour order of ``vis``, written to ``out`` where given.
    Raises DeviceInputError, a ValueError, for other shapes and types.
    """
    _check_colour(vis, colour_order)
    if y.shape != vis.shape[:2]:
        raise DeviceInputError(f"luminance {y.shape} and colour picture {vis.shape}", "the sizes must be the same")
    out = np.empty(vis.shape, np.uint8) if out is None else out
    band = max(1, _BAND_PIXELS // vis.shape[1])
    for top in range(0, vis.shape[0], band):
        rows = slice(top, top + band)
        _recombine_band(y[rows], vis[rows], colour_order, out[rows])
    return out


def _recombine_band(y: NDArray[np.float32], vis: NDArray[Any], colour_order: str, out: NDArray[np.uint8]) -> None:
    """Write ``255·(y + k·(vis − grey))`` with the largest k ≤ 1 that keeps all three channels in [0, 1]."""
    colour = vis.astype(np.float32)
    if vis.dtype != np.uint8:
        colour *= np.float32(255)
    target = np.clip(y, 0, 1).astype(np.float32, copy=False) * np.float32(255)
    grey = cv2.cvtColor(colour, _TO_GREY[colour_order])
    first, second, third = cv2.split(colour)
    above = cv2.max(cv2.max(first, second), third) - grey
    below = grey - cv2.min(cv2.min(first, second), third)
    # A grey pixel has no chroma to scale: the tiny floor keeps the division finite there.
    factor = np.minimum((np.float32(255) - target) / np.maximum(above, _TINY), target / np.maximum(below, _TINY))
    np.minimum(factor, np.float32(1), out=factor)
    offset = target - factor * grey
    planes = [cv2.add(cv2.multiply(plane, factor), offset, dtype=cv2.CV_8U) for plane in (first, second, third)]
    cv2.merge(planes, out)


@dataclass
class FuseStats:
    """What a fuser has done so far, and how alive the cameras were in the last pair."""

    frames: int = 0
    pre_s: float = 0.0
    """Seconds in all of scaling, alignment, luminance and judging the cameras."""
    network_s: float = 0.0
    post_s: float = 0.0
    """Seconds in all of colours and mixing."""
    infrared_dead: int = 0
    """Pairs whose infrared frame was dead or fading."""
    visible_dead: int = 0
    infrared_weight: float = 1.0
    """Of the last pair: 1 alive, 0 dead."""
    visible_weight: float = 1.0

    def milliseconds(self) -> Dict[str, float]:
        """Mean milliseconds per pair of ``pre``, ``network`` and ``post``; zeros before the first pair."""
        pairs = max(1, self.frames)
        return {
            "pre": 1000 * self.pre_s / pairs,
            "network": 1000 * self.network_s / pairs,
            "post": 1000 * self.post_s / pairs,
        }


class EdgeFuser:
    """An exported network with the pictures' way in and out: camera pictures in, a colour picture out.

    ``model`` is an exported ``.onnx`` file, which ONNX Runtime runs on at most ``threads`` CPU threads, or any
    :class:`Network`. ``thermal`` says how infrared frames are read. With ``fallback`` a dead or missing camera is left
    out; without it both must be there. ``metadata`` is what the file says about itself; ``size`` is the (height, width)
    it was exported for, None where it takes any size; ``stats`` counts. One fuser serves one thread at a time.
    """

    def __init__(
        self,
        model: Union[str, Path, Network],
        threads: Optional[int] = None,
        thermal: Optional[ThermalInput] = None,
        fallback: bool = False,
    ) -> None:
        self.network: Network = OnnxNetwork(model, threads) if isinstance(model, (str, Path)) else model
        self.size = self.network.size
        self.metadata = self.network.metadata
        self.thermal, self.fallback = thermal, fallback
        self.stats = FuseStats()
        self._seen: NDArray[np.float32] = np.empty((0, 0), np.float32)

    def fuse_luminance(self, ir: NDArray[np.float32], vis_y: NDArray[np.float32]) -> NDArray[np.float32]:
        """Fuse two planes ``[H, W]`` float32 in [0, 1] into one."""
        return np.array(self.network.run(ir, vis_y))

    def fuse(
        self,
        ir: Optional[NDArray[Any]],
        vis: Optional[NDArray[Any]],
        colour_order: str = "RGB",
        ir_range: Optional[Tuple[float, float]] = None,
        out: Optional[NDArray[np.uint8]] = None,
    ) -> NDArray[np.uint8]:
        """Fuse one pair into a colour picture ``[H, W, 3]`` uint8 in the colour order of ``vis``.

        ``ir`` is ``[h, w]``. With ``thermal`` it is a frame as stored, scaled and aligned as that says. Without, it has
        the size of ``vis`` and is uint8, float32 in [0, 1], or uint16 counts, which need ``ir_range``, the (cold, hot)
        counts that become 0 and 1. ``vis`` is ``[H, W, 3]``, uint8 or float32 in [0, 1]; ``colour_order`` is RGB or BGR
        (what OpenCV's cameras give). None is a missing frame. The result is written to ``out`` where given.

        Raises DeviceInputError, a ValueError, for other shapes, types and sizes, and for a missing frame without
        ``fallback``.
        """
        start = time.perf_counter()
        if vis is not None:
            _check_colour(vis, colour_order)
        weights = self._weights(ir, vis)
        if ir is None or vis is None or min(weights) == 0:
            picture = self._left(ir, vis, weights, colour_order, ir_range)
            self._count(weights, start, time.perf_counter(), time.perf_counter())
            return picture if out is None else _copied(picture, out)
        plane = self._plane(ir, vis, ir_range)
        seen = self._visible_planes(vis, colour_order)
        before = time.perf_counter()
        fused = self.network.run(plane, seen)
        after = time.perf_counter()
        picture = (
            _coloured(fused, vis, colour_order, out) if self.network.rgb else recombine(fused, vis, colour_order, out)
        )
        if min(weights) < 1:
            living = _u8(vis) if weights[0] < weights[1] else _grey(plane)
            picture = _copied(mixed(picture, living, min(weights)), picture)
        self._count(weights, start, before, after)
        return picture

    def _weights(self, ir: Optional[NDArray[Any]], vis: Optional[NDArray[Any]]) -> Tuple[float, float]:
        """How alive infrared and visible are; both 1 where the fuser does not fall back."""
        if not self.fallback:
            if ir is None or vis is None:
                raise DeviceInputError("a missing frame", "both cameras are needed", "allow the fuser to fall back")
            return 1.0, 1.0
        if ir is None and vis is None:
            raise DeviceInputError("no frame of either camera", "one of them must be there")
        return liveness(ir, None if self.thermal is None else self.thermal.unit), liveness(vis)

    def _left(
        self,
        ir: Optional[NDArray[Any]],
        vis: Optional[NDArray[Any]],
        weights: Tuple[float, float],
        colour_order: str,
        ir_range: Optional[Tuple[float, float]],
    ) -> NDArray[np.uint8]:
        """The picture of the camera that is more alive, the visible one where both are dead."""
        if vis is not None and (ir is None or weights[0] <= weights[1]):
            return np.array(_u8(vis))
        assert ir is not None
        return _grey(self._plane(ir, vis, ir_range))

    def _plane(
        self, ir: NDArray[Any], vis: Optional[NDArray[Any]], ir_range: Optional[Tuple[float, float]]
    ) -> NDArray[np.float32]:
        size = None if vis is None else (int(vis.shape[0]), int(vis.shape[1]))
        if self.thermal is not None:
            alignment = self.thermal.alignment
            return self.thermal.plane(ir, alignment.vis_size if size is None and alignment else size)
        if size is not None and ir.shape != size:
            raise DeviceInputError(f"infrared {ir.shape} and visible {size}", "align and resize one to the other first")
        return infrared(ir, ir_range)

    def _visible_planes(self, vis: NDArray[Any], colour_order: str) -> NDArray[np.float32]:
        """What the network sees of the visible picture, in a buffer made once per size."""
        shape = (3, *vis.shape[:2]) if self.network.rgb else vis.shape[:2]
        if self._seen.shape != shape:
            self._seen = np.empty(shape, np.float32)
        if not self.network.rgb:
            return luminance(vis, colour_order, self._seen)
        channels = list(self._seen) if colour_order == "RGB" else list(self._seen)[::-1]
        cv2.split(unit(vis), channels)
        return self._seen

    def _count(self, weights: Tuple[float, float], start: float, before: float, after: float) -> None:
        stats = self.stats
        stats.frames += 1
        stats.pre_s += before - start
        stats.network_s += after - before
        stats.post_s += time.perf_counter() - after
        stats.infrared_weight, stats.visible_weight = weights
        stats.infrared_dead += weights[0] < 1
        stats.visible_dead += weights[1] < 1


def _coloured(
    fused: NDArray[np.float32], vis: NDArray[Any], colour_order: str, out: Optional[NDArray[np.uint8]]
) -> NDArray[np.uint8]:
    """A network's RGB ``[3, H, W]`` in [0, 1] as ``[H, W, 3]`` uint8 in the colour order."""
    out = np.empty(vis.shape, np.uint8) if out is None else out
    planes = [np.rint(np.clip(plane, 0, 1) * np.float32(255)).astype(np.uint8) for plane in fused]
    cv2.merge(planes if colour_order == "RGB" else planes[::-1], out)
    return out


def _grey(plane: NDArray[np.float32]) -> NDArray[np.uint8]:
    """A plane in [0, 1] as a grey picture ``[H, W, 3]`` uint8."""
    grey: NDArray[np.uint8] = cv2.cvtColor(np.rint(plane * np.float32(255)).astype(np.uint8), cv2.COLOR_GRAY2RGB)
    return grey


def _u8(vis: NDArray[Any]) -> NDArray[np.uint8]:
    return vis if vis.dtype == np.uint8 else np.rint(np.clip(vis, 0, 1) * np.float32(255)).astype(np.uint8)


def _copied(picture: NDArray[np.uint8], out: NDArray[np.uint8]) -> NDArray[np.uint8]:
    np.copyto(out, picture)
    return out


def _check_colour(vis: NDArray[Any], colour_order: str) -> None:
    if vis.ndim != 3 or vis.shape[2] != 3 or vis.dtype not in (np.uint8, np.float32):
        raise DeviceInputError(f"colour picture {vis.shape} {vis.dtype}", "[H, W, 3] uint8 or float32 is needed")
    if colour_order not in _TO_GREY:
        raise DeviceInputError(f"colour order {colour_order!r}", "RGB or BGR")
