"""Videos, sources and networks for the tests of live use: every frame carries its number, so that order can be read."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from duskfuse.data.scenes import render_scene
from duskfuse.export.runtime.sources import Frame

SIZE = (64, 96)
_BITS, _BLOCK = 12, 8


@cache
def scene(seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Infrared ``[H, W]`` and visible RGB ``[H, W, 3]`` of a built-in scene."""
    made = render_scene(seed, size=SIZE)
    return made.ir, made.vis


def numbered(picture: NDArray[np.uint8], number: int) -> NDArray[np.uint8]:
    """A picture with its number as black and white blocks along its lower edge."""
    marked = picture.copy()
    for bit in range(_BITS):
        marked[-_BLOCK:, bit * _BLOCK : (bit + 1) * _BLOCK] = 235 if number >> bit & 1 else 20
    return marked


def number_of(picture: NDArray[np.uint8], left: int = 0) -> int:
    """The number in a picture ``[H, W, C]`` or ``[H, W]``."""
    grey = picture if picture.ndim == 2 else picture.mean(-1)
    blocks = [grey[-_BLOCK + 2 : -2, left + bit * _BLOCK + 2 : left + (bit + 1) * _BLOCK - 2] for bit in range(_BITS)]
    return sum((int(block.mean()) > 128) << bit for bit, block in enumerate(blocks))


def side_frames(numbers: Iterable[int], side: str) -> list[NDArray[np.uint8]]:
    """The numbered frames of one camera."""
    return [numbered(scene()[side == "vis"], number) for number in numbers]


def write_video(
    path: Path, pictures: Sequence[NDArray[np.uint8]], stamps: Sequence[float], codec: str = "libx264"
) -> Path:
    """Encode pictures, RGB or grey, at their times in seconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            codec, rate=30, options={"crf": "12", "preset": "veryfast"} if codec == "libx264" else {}
        )
        stream.height, stream.width = pictures[0].shape[:2]
        grey = pictures[0].ndim == 2
        stream.pix_fmt = "gray16le" if pictures[0].dtype == np.uint16 else "yuv420p"
        stream.codec_context.time_base = Fraction(1, 90000)
        for picture, stamp in zip(pictures, stamps, strict=True):
            kind = "gray16le" if picture.dtype == np.uint16 else "gray" if grey else "rgb24"
            frame = av.VideoFrame.from_ndarray(picture, format=kind)
            frame.pts, frame.time_base = round(stamp * 90000), Fraction(1, 90000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_pair(folder: Path, ir: Sequence[tuple[int, float]], vis: Sequence[tuple[int, float]]) -> tuple[str, str]:
    """Two videos from (number, seconds) lists."""
    made = []
    for side, frames in (("ir", ir), ("vis", vis)):
        pictures = side_frames((number for number, _ in frames), side)
        made.append(str(write_video(folder / f"{side}.mp4", pictures, [stamp for _, stamp in frames])))
    return made[0], made[1]


def read_video(path: Path) -> list[tuple[float, NDArray[np.uint8]]]:
    """(seconds, RGB) of every frame."""
    with av.open(str(path)) as container:
        return [(float(frame.time or 0), frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]


class Average:
    """A network of luminance that needs no file: the mean of the two planes."""

    rgb = False

    def run(self, ir: NDArray[np.float32], vis: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `pipeline.PlaneNetwork`."""
        return (ir + vis) / 2


class Collected:
    """An output that keeps what it gets."""

    def __init__(self) -> None:
        self.pictures: list[NDArray[np.uint8]] = []
        self.stamps: list[float] = []
        self.closed = 0

    def write(self, picture: NDArray[np.uint8], stamp: float) -> None:
        """See `pipeline.Output`."""
        self.pictures.append(picture)
        self.stamps.append(stamp)

    def close(self, complete: bool = True) -> None:
        """See `pipeline.Output`."""
        self.closed += 1


class TestCamera:
    """A live source at a steady rate that a test can stall, unplug and plug in again."""

    __test__ = False
    live = True
    note = None

    def __init__(self, side: str, rate: float = 50.0) -> None:
        self.name = f"{side} camera"
        self._pictures = side_frames(range(64), side)
        self._period = 1 / rate
        self._number = 0
        self.opened = 0
        self.plugged, self.flowing = threading.Event(), threading.Event()
        self.plugged.set()
        self.flowing.set()

    def open(self) -> None:
        """See `sources.Source`."""
        if not self.plugged.is_set():
            raise OSError("not plugged in")
        self.opened += 1
        self._due = time.monotonic()

    def read(self) -> Frame | None:
        """See `sources.Source`."""
        self._due += self._period
        time.sleep(max(0.0, self._due - time.monotonic()))
        while not self.flowing.is_set() and self.plugged.is_set():
            time.sleep(0.01)
        if not self.plugged.is_set():
            return None
        now = time.monotonic()
        self._due = max(self._due, now - self._period)
        self._number += 1
        picture: Any = self._pictures[self._number % 64]
        return Frame(now, picture if picture.ndim == 2 else picture[..., ::-1])

    def close(self) -> None:
        """See `sources.Source`."""
