"""Reading a video's own planes with PyAV, where they are those of :mod:`planes`; OpenCV gives colours only.

A file is read so if it is ``yuv420p`` of even sides, BT.601 or untagged (which OpenCV takes for BT.601), of limited
range and not turned by its metadata; any other, and all of them where PyAV is not installed, is left to OpenCV.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Generator, Optional

import numpy as np

from .errors import DeviceInputError
from .planes import Planes
from .sources import FileTimes, Frame, VideoFile, early_end, whole_count

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .sources import Source

_FORMAT = "yuv420p"
_BT601 = (2, 5, 6)  # of the specification's matrix coefficients: unspecified, and both namings of BT.601
_FULL_RANGE = 2
_FAULTS = (OSError, ValueError, EOFError)  # what PyAV's errors are


class PlanarVideo:
    """A video read to its end into frames of :class:`Planes`; times count from its first frame."""

    live = False

    def __init__(self, path: str) -> None:
        self.name = path
        self.note: Optional[str] = None

    def open(self) -> None:
        """See `sources.Source`."""
        import av

        try:
            self._container = av.open(self.name)
            self._stream = self._container.streams.video[0]
        except (*_FAULTS, IndexError) as error:
            raise DeviceInputError(
                f"{self.name} cannot be opened as a video", "it is damaged", "copy it again"
            ) from error
        self._stream.codec_context.thread_count = 1  # cores are shared with the network
        self._times = FileTimes(float(self._stream.guessed_rate or 0))
        self._read = 0
        self._frames = self._decoded()

    def read(self) -> Optional[Frame]:
        """See `sources.Source`; an end before the last frame that the file announces goes into ``note``."""
        frame = next(self._frames, None)
        if frame is None:
            self.note = early_end(self.name, self._read, whole_count(self.name, self._stream.frames))
            return None
        self._read += 1
        stored = None if frame.pts is None else float(frame.pts * self._stream.time_base)
        return Frame(self._times.stamp(stored), _planes(frame))

    def close(self) -> None:
        """See `sources.Source`."""
        self._frames.close()
        self._container.close()

    def _decoded(self) -> Generator[Any, None, None]:
        """The frames up to the end, or up to damage: what follows would be decoded against lost frames."""
        with suppress(*_FAULTS):
            for packet in self._container.demux(self._stream):
                yield from packet.decode()
            return
        with suppress(*_FAULTS):
            yield from self._stream.codec_context.decode(None)  # those that came before, not yet in order


def in_planes(source: Source) -> Source:
    """The same video read as its own planes; the source as it is where it is no such video."""
    if not isinstance(source, VideoFile):
        return source
    try:
        import av

        with av.open(source.name) as container:
            container.streams.video[0].codec_context.thread_count = 1
            frame = next(container.decode(video=0))
    except (ImportError, StopIteration, IndexError, *_FAULTS):
        return source
    tagged = frame.colorspace in _BT601 and frame.color_range != _FULL_RANGE
    upright = getattr(frame, "rotation", None) == 0  # PyAV before 14.1 does not know
    return PlanarVideo(source.name) if _is_planar(frame) and tagged and upright else source


def _is_planar(frame: Any) -> bool:
    return bool(frame.format.name == _FORMAT and frame.width % 2 == 0 and frame.height % 2 == 0)


def _planes(frame: Any) -> Planes:
    if not _is_planar(frame):  # the stream has changed in its middle
        frame = frame.reformat(frame.width - frame.width % 2, frame.height - frame.height % 2, _FORMAT)
    return Planes(*(stored_plane(plane) for plane in frame.planes))


def stored_plane(plane: Any) -> NDArray[np.uint8]:
    """The memory of one 8-bit plane of a PyAV frame, ``[h, w]``; it keeps the frame alive."""
    rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
    return rows[: plane.height, : plane.width]
