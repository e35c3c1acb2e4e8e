"""Fuse camera pictures on the device: NumPy, OpenCV and ONNX Runtime, no PyTorch, Python 3.8 or newer.

This one file is all the device needs beside an exported ``.onnx`` file; copy it there or import it from the package.
The package's own verbs use its colour functions too, so what was checked on the workstation is what runs.

    fuser = EdgeFuser("unet-fp32.onnx", threads=4)
    picture = fuser.fuse(ir, vis)  # [H, W] and [H, W, 3] uint8 -> [H, W, 3] uint8

Colour: the visible picture minus its BT.601 luminance is its chroma; the fused luminance plus that chroma is the
result. Where the sum would leave [0, 1], the chroma of that pixel is scaled by the largest factor that keeps it
inside: hue and luminance stay, saturation gives way. Nothing is clipped per channel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, Optional, Tuple

import cv2
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_TO_GREY = {"RGB": cv2.COLOR_RGB2GRAY, "BGR": cv2.COLOR_BGR2GRAY}
_BAND_PIXELS = 12288  # pixels coloured at a time, so that the intermediate planes stay in the processor's cache
_TINY = np.float32(1e-6)


def luminance(vis: NDArray[Any], colour_order: str = "RGB") -> NDArray[np.float32]:
    """BT.601 luminance ``[H, W]`` in [0, 1] of a colour picture ``[H, W, 3]``, uint8 or float32 in [0, 1].

    Raises ValueError for other shapes, types and colour orders.
    """
    _check_colour(vis, colour_order)
    grey: NDArray[np.float32]
    if vis.dtype == np.uint8:
        grey = cv2.cvtColor(vis.astype(np.float32), _TO_GREY[colour_order])
        grey *= np.float32(1 / 255)
    else:
        grey = cv2.cvtColor(vis, _TO_GREY[colour_order])
    np.minimum(grey, np.float32(1), out=grey)  # rounding may pass white by one unit in the last place
    return grey


def recombine(y: NDArray[np.float32], vis: NDArray[Any], colour_order: str = "RGB") -> NDArray[np.uint8]:
    """Give the luminance ``y``, ``[H, W]`` in [0, 1], the chroma of ``vis``, ``[H, W, 3]`` uint8 or float32 in [0, 1].

    Returns ``[H, W, 3]`` uint8 in the colour order of ``vis``. Raises ValueError for other shapes and types.
    """
    _check_colour(vis, colour_order)
    if y.shape != vis.shape[:2]:
        raise ValueError(f"luminance {y.shape} and colour picture {vis.shape}: the sizes must be the same")
    out = np.empty(vis.shape, np.uint8)
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


class EdgeFuser:
    """An exported network with the pictures' way in and out: camera pictures in, a colour picture out.

    ``threads`` bounds ONNX Runtime's CPU threads; ``metadata`` is what the file says about itself; ``size`` is the
    (height, width) it was exported for, None where it takes any size.
    """

    def __init__(self, onnx_path: Any, threads: Optional[int] = None) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(str(onnx_path), options, providers=["CPUExecutionProvider"])
        names = sorted(value.name for value in self._session.get_inputs())
        if names != ["ir", "vis_y"]:
            raise ValueError(f"{onnx_path} has the inputs {names}, want ir and vis_y: write it with `duskfuse export`")
        height, width = self._session.get_inputs()[0].shape[2:]
        fixed = isinstance(height, int) and isinstance(width, int)
        self.size: Optional[Tuple[int, int]] = (height, width) if fixed else None
        self.metadata: Dict[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)

    def fuse_luminance(self, ir: NDArray[np.float32], vis_y: NDArray[np.float32]) -> NDArray[np.float32]:
        """Fuse two planes ``[H, W]`` float32 in [0, 1] into one."""
        if self.size is not None and ir.shape != self.size:
            raise ValueError(f"this file takes (height, width) {self.size}, got {ir.shape}")
        feeds = {"ir": np.ascontiguousarray(ir)[None, None], "vis_y": np.ascontiguousarray(vis_y)[None, None]}
        fused: NDArray[np.float32] = self._session.run(["fused_y"], feeds)[0][0, 0]
        return fused

    def fuse(
        self,
        ir: NDArray[Any],
        vis: NDArray[np.uint8],
        colour_order: str = "RGB",
        ir_range: Optional[Tuple[float, float]] = None,
    ) -> NDArray[np.uint8]:
        """Fuse one pair into a colour picture ``[H, W, 3]`` uint8 in the colour order of ``vis``.

        ``ir`` is ``[H, W]``: uint8, float32 in [0, 1], or uint16 counts, which need ``ir_range``, the (cold, hot)
        counts that become 0 and 1. ``vis`` is ``[H, W, 3]`` uint8, ``colour_order`` RGB or BGR (what OpenCV's cameras
        give). Raises ValueError for other shapes, types and sizes.
        """
        if ir.shape != vis.shape[:2]:
            raise ValueError(f"infrared {ir.shape} and visible {vis.shape}: align and resize one to the other first")
        vis_y = luminance(vis, colour_order)
        return recombine(self.fuse_luminance(infrared(ir, ir_range), vis_y), vis, colour_order)


def infrared(ir: NDArray[Any], ir_range: Optional[Tuple[float, float]] = None) -> NDArray[np.float32]:
    """Scale one infrared plane to float32 in [0, 1]; see :meth:`EdgeFuser.fuse` for the types."""
    if ir.ndim != 2:
        raise ValueError(f"infrared of shape {ir.shape}: one channel [H, W] is needed")
    if ir.dtype == np.uint8:
        low, high = 0.0, 255.0
    elif ir.dtype == np.float32:
        low, high = 0.0, 1.0
    elif ir.dtype == np.uint16 and ir_range is not None:
        low, high = ir_range
    else:
        raise ValueError(f"infrared of type {ir.dtype}: uint8, float32, or uint16 with ir_range is needed")
    if high <= low:
        raise ValueError(f"ir_range {ir_range}: the second number must be larger than the first")
    scaled = (ir.astype(np.float32) - np.float32(low)) * np.float32(1.0 / (high - low))
    return np.clip(scaled, 0, 1, out=scaled)


def _check_colour(vis: NDArray[Any], colour_order: str) -> None:
    if vis.ndim != 3 or vis.shape[2] != 3 or vis.dtype not in (np.uint8, np.float32):
        raise ValueError(f"colour picture {vis.shape} {vis.dtype}: [H, W, 3] uint8 or float32 is needed")
    if colour_order not in _TO_GREY:
        raise ValueError(f"colour order {colour_order!r}: RGB or BGR")
