"""Single frames of a video file by their number, right also where frames are coded as differences to others.

A container's own seeking is only as good as its index: it may land on a neighbour. So frames are taken in order
wherever possible; a jump is checked against the times of all frames, read once per video, and where it went wrong the
frame is counted out from the start.
"""

from __future__ import annotations

import os
import threading
from bisect import bisect_left
from collections import OrderedDict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from duskfuse.data.containers import Size
from duskfuse.data.errors import InputError

VIDEO_SUFFIXES = frozenset({".mp4"})
"""Lower-case file name endings that are taken for videos: containers that say exactly how many frames they hold."""

_OPEN_VIDEOS = 4
_STEP_OVER = 64
"""Frames that are decoded and dropped rather than jumped over."""


def frame_count(path: Path) -> int:
    """How many frames the container says it holds; InputError where the file is no video or does not say."""
    count = int(_reader(path).capture.get(cv2.CAP_PROP_FRAME_COUNT))
    if count < 1:
        raise InputError(
            f"{path}: the container does not say how many frames it holds",
            rule="frames are addressed by their number",
            remedy="write the video as MP4, or unpack it into a folder of pictures",
        )
    return count


def frame_size(path: Path) -> Size:
    """(height, width) of the frames; InputError where the file is no video."""
    capture = _reader(path).capture
    return int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT)), int(capture.get(cv2.CAP_PROP_FRAME_WIDTH))


def read_frame(path: Path, number: int) -> NDArray[np.uint8]:
    """Decode frame ``number`` (from 0) as ``[H, W, 3]`` RGB.

    Ascending numbers cost one frame each. Every thread keeps a few videos open for that.

    Raises:
        InputError: no video, no such frame, or its data are damaged.
    """
    try:
        return _reader(path).read(number)
    except EOFError as error:
        raise InputError(
            f"{path}: frame {number} cannot be decoded ({error})",
            rule="the video holds fewer frames, or is damaged there",
            remedy="copy the file again, or remove the pair of videos",
        ) from error


class _Reader:
    """An open video that knows which frame comes next."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._times: list[float] | None = None
        self._open()

    def _open(self) -> None:
        # One decoding thread: loading processes are many, and threads do not survive a fork.
        self.capture = cv2.VideoCapture(str(self._path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
        self._next = 0
        if not self.capture.isOpened():
            raise InputError(
                f"{self._path}: cannot be opened as a video",
                rule="it is damaged, or of a kind that OpenCV does not know",
                remedy="copy the file again, or write it as MP4",
            )

    def read(self, number: int) -> NDArray[np.uint8]:
        if not (0 <= number - self._next <= _STEP_OVER and self._step_to(number)):
            self._jump_to(number)
        decoded, frame = self.capture.retrieve()
        if not decoded:
            raise EOFError("its data are damaged")
        return np.ascontiguousarray(frame[..., ::-1])

    def _step_to(self, number: int) -> bool:
        """Take frames in order until ``number`` is the current one."""
        while self._next <= number:
            if not self.capture.grab():
                return False
            self._next += 1
        return True

    def _jump_to(self, number: int) -> None:
        times = self._all_times()
        if number >= len(times):
            raise EOFError(f"there are {len(times)}")
        if not self._seek(number, times):
            self._open()
            if not self._step_to(number):
                raise EOFError("decoding stopped before it")

    def _seek(self, number: int, times: list[float]) -> bool:
        """Let the container seek, tell by the time where it landed, and step on from there; False where it fails."""
        goal = number
        while goal > 0:
            self.capture.set(cv2.CAP_PROP_POS_FRAMES, goal)
            if not self.capture.grab():
                return False
            time = self._time()
            landed = bisect_left(times, time)
            if times[landed : landed + 2].count(time) != 1:  # an unknown time, or two frames of one time
                return False
            if landed <= number:
                self._next = landed + 1
                return self._step_to(number)
            goal -= landed - number + _STEP_OVER
        return False

    def _all_times(self) -> list[float]:
        """The time of every frame, in order; decodes the whole video on the first call."""
        if self._times is None:
            self._open()
            self._times = []
            while self.capture.grab():
                self._times.append(self._time())
        return self._times

    def _time(self) -> float:
        return float(self.capture.get(cv2.CAP_PROP_POS_MSEC))


class _Readers(threading.local):
    """The videos that this thread has open, the last used at the end."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.open: OrderedDict[tuple[Path, int, int], _Reader] = OrderedDict()


_readers = _Readers()
_inherited: list[Any] = []
"""Videos opened before a fork: file offsets are shared with the parent, so they are neither used nor closed."""


def _reader(path: Path) -> _Reader:
    if _readers.process != os.getpid():
        _inherited.append(_readers.open)
        _readers.process, _readers.open = os.getpid(), OrderedDict()
    try:
        seen = path.stat()
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror})", remedy="check the name and the folder"
        ) from error
    key = (path, seen.st_size, seen.st_mtime_ns)
    if key not in _readers.open:
        while len(_readers.open) >= _OPEN_VIDEOS:
            _readers.open.popitem(last=False)
        _readers.open[key] = _Reader(path)
    _readers.open.move_to_end(key)
    return _readers.open[key]
