"""Where fused pictures go: a video file, a folder of pictures, a network stream, a window.

A file or folder gets every picture, in order, with its time. It is written under a temporary name beside its own and
renamed when it is complete, so what bears the name can be played. A view (stream, window, web page) gets the newest
picture whenever it is ready for one, and never holds up the others.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional, Tuple

import cv2
import numpy as np

from .capture import FIRST_PAUSE_S, LONGEST_PAUSE_S, Handover, Stopped
from .errors import DeviceError, DeviceInputError
from .overlay import fitted
from .planar_video import stored_plane
from .planes import Picture, Planes, bgr_of
from .sources import TIMES_FILE, VIDEOS, without_secret

if TYPE_CHECKING:
    from numpy.typing import NDArray

FILES = {".mp4": "libx264", ".mkv": "ffv1"}
"""Video files by ending: H.264, or FFV1, which loses nothing but the colour resolution of its pixels."""
STREAMS = ("rtsp", "rtsps")
PRESET, QUALITY = "ultrafast", "21"  # of H.264: what costs the network least on two cores

_TICKS = 90000  # per second, the clock of MPEG


class VideoFile:
    """A video that keeps the time of every picture; needs PyAV.

    The first picture sets the size; later ones of another size are fitted into it. H.264 wants even sides: an odd one
    gets its last row or column twice.
    """

    def __init__(self, path: Path, overwrite: bool = False) -> None:
        if path.suffix.lower() not in FILES:
            raise DeviceInputError(
                f"{path}", f"videos are written as {' or '.join(FILES)}", "give another ending, or none for a folder"
            )
        refuse_existing(path, overwrite)
        _need_av()
        self._path, self._part = path, path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
        self._encoder: Optional[Encoder] = None

    def write(self, picture: Picture, stamp: float) -> None:
        """See `pipeline.Output`."""
        if self._encoder is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            codec = FILES[self._path.suffix.lower()]
            options = {"preset": PRESET, "crf": QUALITY} if codec == "libx264" else {"level": "3"}
            self._encoder = Encoder(str(self._part), picture.shape, codec, options)
        self._encoder.write(picture, stamp)

    def close(self, complete: bool = True) -> None:
        """See `pipeline.Output`; without a single picture no file is made."""
        encoder, self._encoder = self._encoder, None
        if encoder is None:
            return
        try:
            encoder.close()
            if complete:
                os.replace(self._part, self._path)
        finally:
            with suppress(FileNotFoundError):
                self._part.unlink()


class PictureFolder:
    """PNG files ``000000.png``, … with ``times.csv``, which a source reads back; the folder appears when complete."""

    def __init__(self, path: Path, overwrite: bool = False) -> None:
        refuse_existing(path, overwrite)
        self._path, self._part = path, path.with_name(f".{path.name}.{os.getpid()}.part")
        self._lines: List[str] = []

    def write(self, picture: Picture, stamp: float) -> None:
        """See `pipeline.Output`."""
        if not self._lines:
            shutil.rmtree(self._part, ignore_errors=True)
            self._part.mkdir(parents=True)
        name = f"{len(self._lines):06d}.png"
        if not cv2.imwrite(str(self._part / name), bgr_of(picture), [cv2.IMWRITE_PNG_COMPRESSION, 1]):
            raise DeviceError(f"{self._part / name} cannot be written", remedy="check the space on the disk")
        self._lines.append(f"{name},{stamp:.6f}\n")

    def close(self, complete: bool = True) -> None:
        """See `pipeline.Output`."""
        if not self._lines:
            return
        (self._part / TIMES_FILE).write_text("".join(["name,seconds\n", *self._lines]), encoding="utf-8")
        self._lines = []
        if self._path.exists():
            shutil.rmtree(self._path)
        os.replace(self._part, self._path)


class Encoder:
    """Pictures into one container; `write` and `close` raise DeviceError where it refuses them."""

    def __init__(
        self,
        place: str,
        shape: Tuple[int, ...],
        codec: str,
        options: Dict[str, str],
        container: Optional[str] = None,
        container_options: Optional[Dict[str, str]] = None,
    ) -> None:
        import av

        self._name = without_secret(place)
        self._size = (shape[0] + shape[0] % 2, shape[1] + shape[1] % 2)
        self._first: Optional[float] = None
        self._last = -1
        self._stream: Any = None
        self._planar: Any = None
        try:
            self._container: Any = av.open(place, "w", format=container, options=container_options or {})
            self._stream = self._container.add_stream(codec, rate=30, options=options)
        except (OSError, ValueError) as error:  # PyAV's errors are both, by the system's number
            raise DeviceError(f"{self._name} cannot be opened for writing ({_why(error)})") from error
        self._stream.height, self._stream.width = self._size
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = Fraction(1, _TICKS)
        self._stream.codec_context.thread_count = 1  # cores are shared with the network
        for name, value in (("color_range", 1), ("colorspace", 6), ("color_primaries", 6), ("color_trc", 6)):
            setattr(self._stream.codec_context, name, value)  # BT.601, limited range: what the conversion below makes

    def write(self, picture: Picture, stamp: float) -> None:
        """Encode a picture at ``stamp`` seconds, counted from the first one's."""
        self._first = stamp if self._first is None else self._first
        frame = self._frame(picture)
        self._last = max(self._last + 1, round((stamp - self._first) * _TICKS))
        frame.pts, frame.time_base = self._last, Fraction(1, _TICKS)
        frame.color_range, frame.colorspace = 1, 6
        self._mux(frame)

    def close(self) -> None:
        """Encode what is left and complete the container."""
        try:
            self._mux(None)
        finally:
            try:
                self._container.close()
            except (OSError, ValueError) as error:
                raise DeviceError(
                    f"{self._name} cannot be completed ({_why(error)})", remedy="check the disk"
                ) from error

    def abandon(self) -> None:
        """Close a container whose other end is gone."""
        with suppress(OSError, ValueError):
            self._container.close()

    def _mux(self, frame: Any) -> None:
        try:
            for packet in self._stream.encode(frame):
                self._container.mux(packet)
        except (OSError, ValueError) as error:
            remedy = "check the space on the disk, or the connection"
            raise DeviceError(f"{self._name} cannot be written ({_why(error)})", remedy=remedy) from error

    def _frame(self, picture: Picture) -> Any:
        """A frame of the encoder's size; planes of that size go into it as they are."""
        import av

        if isinstance(picture, Planes) and picture.shape == self._size:
            self._planar = self._planar or av.VideoFrame(self._size[1], self._size[0], "yuv420p")
            self._planar.make_writable()  # the same memory again, as soon as the encoder has let it go
            for number, plane in enumerate(picture):
                np.copyto(stored_plane(self._planar.planes[number]), plane)
            return self._planar
        planes = cv2.cvtColor(self._fit(bgr_of(picture)), cv2.COLOR_BGR2YUV_I420)
        return av.VideoFrame.from_ndarray(planes, format="yuv420p")

    def _fit(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        height, width = picture.shape[:2]
        bottom, right = self._size[0] - height, self._size[1] - width
        if (bottom, right) == (0, 0):
            return picture
        if bottom in (0, 1) and right in (0, 1):
            padded: NDArray[np.uint8] = cv2.copyMakeBorder(picture, 0, bottom, 0, right, cv2.BORDER_REPLICATE)
            return padded
        return fitted(picture, self._size)


class RtspPush:
    """Pushes H.264 to an RTSP server (``ANNOUNCE``), over TCP; opened again with growing pauses when it is lost."""

    def __init__(self, url: str, say: Callable[[str], None] = lambda _: None) -> None:
        _need_av()
        self.name = without_secret(url)
        self._url, self._say = url, say
        self._newest = Handover(1, newest=True)
        self.sent = self.lost = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def write(self, picture: Picture, stamp: float) -> None:
        """See `pipeline.Output`."""
        self._newest.put((picture, stamp))

    def close(self, complete: bool = True) -> None:
        """See `pipeline.Output`."""
        self._newest.close()
        self._thread.join(5.0)
        self._newest.stop()

    def _run(self) -> None:
        pause = FIRST_PAUSE_S
        with suppress(Stopped):
            while not self._newest.over:
                before = self.sent
                try:
                    self._push()
                except DeviceError as error:
                    self.lost += 1
                    self._say(f"{error}; trying again")
                    pause = FIRST_PAUSE_S if self.sent > before else min(2 * pause, LONGEST_PAUSE_S)
                    self._rest(pause)

    def _push(self) -> None:
        item = self._newest.take()
        if item is None:
            return
        options = {"preset": PRESET, "tune": "zerolatency", "crf": QUALITY, "g": "60"}
        transport = {"rtsp_transport": "tcp"}
        encoder = Encoder(self._url, item[0].shape, "libx264", options, "rtsp", transport)
        try:
            while item is not None:
                encoder.write(*item)
                self.sent += 1
                item = self._newest.take()
        except BaseException:
            encoder.abandon()
            raise
        encoder.close()

    def _rest(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self._newest.over:
            time.sleep(0.05)


class Window:
    """A window on the screen; `poll` must be called often, from the main thread."""

    def __init__(self, title: str = "duskfuse") -> None:
        if not has_window():
            raise DeviceError(
                "there is no screen to show a window on",
                "OpenCV needs its GUI part, and a display (DISPLAY or WAYLAND_DISPLAY)",
                "use --web to look from a browser",
            )
        self._title = title
        self._newest: Optional[Picture] = None
        cv2.namedWindow(title, cv2.WINDOW_NORMAL)

    def write(self, picture: Picture, stamp: float) -> None:
        """See `pipeline.Output`."""
        self._newest = picture

    def poll(self) -> bool:
        """Show the newest picture; False when the user closed the window or pressed q or Escape."""
        picture, self._newest = self._newest, None
        if picture is not None:
            cv2.imshow(self._title, bgr_of(picture))
        key = cv2.waitKey(1) & 0xFF
        return key not in (27, ord("q")) and cv2.getWindowProperty(self._title, cv2.WND_PROP_VISIBLE) >= 1

    def close(self, complete: bool = True) -> None:
        """See `pipeline.Output`."""
        with suppress(cv2.error):
            cv2.destroyWindow(self._title)


def has_window() -> bool:
    """Whether OpenCV can show a window here."""
    import re
    import sys

    if not re.search(r"GUI:\s+(?!NONE)\w+", cv2.getBuildInformation()):
        return False
    return not sys.platform.startswith("linux") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def is_video_name(text: str) -> bool:
    """Whether an output is named like a video or a stream, not like a folder."""
    return is_stream(text) or Path(text).suffix.lower() in VIDEOS


def is_stream(text: str) -> bool:
    """Whether an output is a URL to push to."""
    return text.split("://")[0].lower() in STREAMS and "://" in text


def open_output(text: str, overwrite: bool = False, say: Callable[[str], None] = lambda _: None) -> Any:
    """The output that ``text`` names: an RTSP URL, a video file, or a folder of PNG files.

    Raises DeviceInputError where it is there already, or is of a kind that is not written.
    """
    if "://" in text and not is_stream(text):
        raise DeviceInputError(without_secret(text), f"streams are pushed to {' or '.join(STREAMS)} URLs")
    if is_stream(text):
        return RtspPush(text, say)
    path = Path(text)
    return VideoFile(path, overwrite) if path.suffix else PictureFolder(path, overwrite)


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Raise DeviceInputError where ``path`` holds something, unless it may be replaced."""
    if path.exists() and not overwrite and not (path.is_dir() and not any(path.iterdir())):
        raise DeviceInputError(
            f"{path} is there already", "nothing is overwritten unasked", "give another --out, or --overwrite"
        )


def _why(error: Exception) -> str:
    """What the system says, without the password that a URL in it may hold."""
    return without_secret(str(error))


def _need_av() -> None:
    try:
        import av  # noqa: F401
    except ImportError as error:
        raise DeviceError(
            "PyAV is not installed", "videos and streams are encoded with it", "python3 -m pip install av"
        ) from error
