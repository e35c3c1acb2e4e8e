"""Where frames come from: video files, picture sequences, cameras, GStreamer pipelines and network streams.

A source is named by one string, with settings after it, separated by commas::

    night.mp4                                       a video file
    frames/ir,fps=25                                a folder of pictures, or frames/%06d.png, or frames/ir_*.png
    frames/ir,times=frames/times.csv                the same with a time for every picture
    /dev/video2,format=Y16,size=640x512,fps=60      a V4L2 camera, also just its number: 2
    "nvarguscamerasrc ! … ! appsink"                a GStreamer pipeline (OpenCV must be built with GStreamer)
    rtsp://camera/stream                            a network stream that FFmpeg opens: rtsp, rtmp, http, tcp, udp, srt

Files are read frame by frame and none is lost; everything else is live. Times are seconds: of a file those it stores,
of a live source the monotonic clock at the moment the frame arrived.
"""

from __future__ import annotations

import csv
import glob
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, NamedTuple, Optional, Protocol, Tuple, Union

import cv2
import numpy as np

from .errors import DeviceError, DeviceInputError
from .pictures import read_stored

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .planes import Planes

PICTURES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
VIDEOS = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpg", ".mpeg", ".ts", ".webm", ".wmv"})
SCHEMES = ("http", "https", "rtmp", "rtmps", "rtp", "rtsp", "rtsps", "srt", "tcp", "udp")
TIMES_FILE = "times.csv"
"""Beside the pictures of a folder: one line per picture, ``name,seconds``."""

_KEYS = ("format", "fps", "size", "times")
_FPS = 30.0
_OPEN_MS, _READ_MS = 10000, 5000
_COUNTED = (".mp4", ".m4v", ".mov")  # containers that say how many frames they hold
_DIGITS = re.compile(r"(\d+)")


class Frame(NamedTuple):
    """One picture of a source."""

    stamp: float
    """Seconds."""
    picture: Union[NDArray[Any], Planes]
    """``[H, W, 3]`` BGR or one channel ``[H, W]``; uint8 or, of pictures, also uint16 and float32. A video's planes."""
    shift: int = 0
    """Bits by which it is above the values that its file stores, see :class:`StoredPicture`."""


class Source(Protocol):
    """Frames in order of time."""

    name: str
    """What the user called it."""
    live: bool
    """Whether frames are lost when nobody takes them, and the source may come back after an end."""
    note: Optional[str]
    """After the end: what was wrong with it, None for a good one."""

    def open(self) -> None:
        """Make ready to read; may be called again after `close`. Raises DeviceError or DeviceInputError."""

    def read(self) -> Optional[Frame]:
        """The next frame, None at the end or where the connection is lost."""

    def close(self) -> None:
        """Give back what `open` took."""


def parse_source(text: str) -> Source:
    """The source that ``text`` names; nothing is opened yet.

    Raises DeviceInputError where it names nothing that could be a source, or a setting is unknown or does not fit.
    """
    if re.search(r"\s!\s", text):
        return Camera(text, text, cv2.CAP_GSTREAMER, {})
    place, settings = _settings(text)
    if "://" in place and place.split("://")[0].lower() in SCHEMES:
        _allow(settings, (), text)
        return Camera(without_secret(place), place, cv2.CAP_FFMPEG, {})
    if _is_device(place):
        _allow(settings, ("format", "size", "fps"), text)
        return Camera(place, int(place) if place.isdigit() else place, cv2.CAP_V4L2, _camera_settings(settings))
    path = Path(place)
    if path.is_dir() or path.suffix.lower() in PICTURES:
        _allow(settings, ("fps", "times"), text)
        return PictureSequence(place, _fps(settings), settings.get("times"))
    _allow(settings, (), text)
    if not path.is_file():
        raise DeviceInputError(
            f"{place} is not there",
            "a source is a video, a folder or pattern of pictures, /dev/videoN, a GStreamer pipeline or a URL",
            "check the name",
        )
    return VideoFile(place)


def is_moving(text: str) -> bool:
    """Whether ``text`` is written like a source that moves, neither like one picture nor like a plain folder."""
    place, settings = _settings(text)
    path = Path(place)
    pattern = not path.exists() and bool(re.search(r"[*?]|%0?\d*d", path.name))
    written = bool(re.search(r"\s!\s", text)) or (place.split("://")[0].lower() in SCHEMES and "://" in place)
    return written or bool(settings) or pattern or _is_device(place) or path.suffix.lower() in VIDEOS


def without_secret(url: str) -> str:
    """A URL without the user and password it may hold, for messages."""
    return re.sub(r"(?<=://)[^/@\s]*@", "", url)


class VideoFile:
    """A video read to its end; times count from its first frame."""

    live = False

    def __init__(self, path: str) -> None:
        self.name = path
        self.note: Optional[str] = None
        self._path = path

    def open(self) -> None:
        """See :class:`Source`."""
        self._capture = cv2.VideoCapture(self._path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
        if not self._capture.isOpened():
            raise DeviceInputError(
                f"{self._path} cannot be opened as a video",
                "it is damaged, or of a kind that OpenCV does not know",
                "copy it again, or write it as MP4",
            )
        _keep_depth(self._capture)
        self._times = FileTimes(self._capture.get(cv2.CAP_PROP_FPS))
        self._count = whole_count(self._path, self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self._read = 0

    def read(self) -> Optional[Frame]:
        """See :class:`Source`; an end before the last frame that the file announces goes into ``note``."""
        picture = self._capture.retrieve()[1] if self._capture.grab() else None
        if picture is None:
            self.note = early_end(self._path, self._read, self._count)
            return None
        self._read += 1
        return Frame(self._times.stamp(self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000), picture)

    def close(self) -> None:
        """See :class:`Source`."""
        self._capture.release()


class FileTimes:
    """The times of a file's frames, counted from the first; ``rate`` is its nominal rate, 0 where unknown.

    A raw stream stores no times, and some containers repeat one: the nominal rate then goes on from the last.
    """

    def __init__(self, rate: float) -> None:
        self._step = 1.0 / rate if 0 < rate < 1e4 else 1.0 / _FPS
        self._first: Optional[float] = None
        self._last = -self._step

    def stamp(self, stored: Optional[float]) -> float:
        """The time of the next frame, of which ``stored`` seconds are kept, if any."""
        self._first = stored if self._first is None else self._first
        stamp = self._last if stored is None or self._first is None else stored - self._first
        self._last = stamp if stamp > self._last else self._last + self._step
        return self._last


def whole_count(path: str, announced: float) -> int:
    """How many frames a file says it holds; 0 for containers that do not say."""
    return int(announced) if path.endswith(_COUNTED) else 0


def early_end(path: str, read: int, count: int) -> Optional[str]:
    """What is wrong with a file that ended after ``read`` frames of ``count``; None where nothing is."""
    return f"{path} ends after {read} of {count} frames: it is damaged there" if read < count else None


class PictureSequence:
    """The pictures of a folder, or of a pattern with ``%06d`` or ``*``, in the order of the numbers in their names."""

    live = False
    note: Optional[str] = None

    def __init__(self, place: str, fps: Optional[float] = None, times: Optional[str] = None) -> None:
        self.name = place
        self._files = _picture_files(place)
        if not self._files:
            raise DeviceInputError(f"{place} holds no pictures", "endings are " + ", ".join(sorted(PICTURES)))
        beside = self._files[0].parent / TIMES_FILE
        if times is not None and fps is not None:
            raise DeviceInputError(f"fps and times for {place}", "one of them gives the times")
        if times is None and fps is None and beside.is_file():
            times = str(beside)
        self._stamps = (
            _read_times(Path(times), self._files)
            if times is not None
            else [index / (fps or _FPS) for index in range(len(self._files))]
        )

    def open(self) -> None:
        """See :class:`Source`."""
        self._next = 0

    def read(self) -> Optional[Frame]:
        """See :class:`Source`; raises DeviceInputError for a picture that cannot be read."""
        if self._next == len(self._files):
            return None
        path, stamp = self._files[self._next], self._stamps[self._next]
        self._next += 1
        return Frame(stamp, *read_stored(path))

    def close(self) -> None:
        """See :class:`Source`."""


class Camera:
    """A live source that OpenCV opens: V4L2, GStreamer or FFmpeg, by ``backend``."""

    live = True
    note: Optional[str] = None

    def __init__(self, name: str, place: Any, backend: int, settings: Dict[int, float]) -> None:
        self.name = name
        self._place, self._backend, self._settings = place, backend, settings
        self._capture: Any = None

    def open(self) -> None:
        """See :class:`Source`."""
        timeouts = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, _OPEN_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, _READ_MS]
        wanted = timeouts if self._backend == cv2.CAP_FFMPEG else []
        self._capture = cv2.VideoCapture(self._place, self._backend, wanted)
        if not self._capture.isOpened():
            raise DeviceError(f"{self.name} cannot be opened", *self._why())
        for setting, value in self._settings.items():
            self._capture.set(setting, value)
        if self._backend != cv2.CAP_FFMPEG:
            self._capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        if self._settings.get(cv2.CAP_PROP_FOURCC) == _Y16:
            self._capture.set(cv2.CAP_PROP_CONVERT_RGB, 0)

    def read(self) -> Optional[Frame]:
        """See :class:`Source`."""
        if not self._capture.grab():
            return None
        stamp = time.monotonic()
        decoded, picture = self._capture.retrieve()
        if not decoded:
            return None
        if picture.dtype == np.int16:  # how some versions of OpenCV give Y16
            picture = picture.view(np.uint16)
        return Frame(stamp, picture)

    def close(self) -> None:
        """See :class:`Source`."""
        if self._capture is not None:
            self._capture.release()

    def _why(self) -> Tuple[str, str]:
        if self._backend == cv2.CAP_GSTREAMER and not has_gstreamer():
            return (
                "this OpenCV has no GStreamer (the wheels of PyPI have none)",
                "use the system's OpenCV, on a Jetson python3-opencv of JetPack",
            )
        if self._backend == cv2.CAP_V4L2:
            return (
                "it is absent, in use, or not yours to read",
                "see `v4l2-ctl --list-devices`, and join the group video",
            )
        return (
            "it must be there when the program starts; afterwards it may come and go",
            "check it with another program",
        )


def has_gstreamer() -> bool:
    """Whether OpenCV was built with GStreamer."""
    return bool(re.search(r"GStreamer:\s+YES", cv2.getBuildInformation()))


def _is_device(place: str) -> bool:
    return place.startswith("/dev/") or (place.isdigit() and not Path(place).exists())


def _fourcc(text: str) -> int:
    padded = text.ljust(4)
    return sum(ord(letter) << 8 * place for place, letter in enumerate(padded))


_Y16 = _fourcc("Y16")


def _keep_depth(capture: Any) -> None:
    """Let 16-bit grey video arrive as it is stored; colours are converted."""
    if int(capture.get(cv2.CAP_PROP_CODEC_PIXEL_FORMAT)) == _fourcc("Y1\x00\x10"):  # FFmpeg's tag of gray16le
        capture.set(cv2.CAP_PROP_CONVERT_RGB, 0)


def _settings(text: str) -> Tuple[str, Dict[str, str]]:
    """Cut ``,key=value`` off the end of a source; commas elsewhere are part of its name."""
    found: Dict[str, str] = {}
    place = text
    while not Path(place).exists():
        rest, comma, last = place.rpartition(",")
        key, equals, value = last.partition("=")
        if not (comma and equals and key in _KEYS):
            break
        found[key], place = value, rest
    return place, found


def _allow(settings: Dict[str, str], keys: Tuple[str, ...], text: str) -> None:
    for key in settings:
        if key not in keys:
            raise DeviceInputError(
                f"{key}= in {without_secret(text)}",
                f"settings of this kind of source: {', '.join(keys) or 'none'}",
                "leave it away",
            )


def _fps(settings: Dict[str, str]) -> Optional[float]:
    if "fps" not in settings:
        return None
    try:
        fps = float(settings["fps"])
    except ValueError:
        fps = 0.0
    if not 0 < fps <= 10000:
        raise DeviceInputError(f"fps={settings['fps']}", "frames per second is a positive number")
    return fps


def _camera_settings(settings: Dict[str, str]) -> Dict[int, float]:
    wanted: Dict[int, float] = {}
    if "format" in settings:
        if not 3 <= len(settings["format"]) <= 4:
            raise DeviceInputError(f"format={settings['format']}", "a FOURCC such as Y16, GREY, YUYV or MJPG")
        wanted[cv2.CAP_PROP_FOURCC] = _fourcc(settings["format"])
    if "size" in settings:
        match = re.match(r"(\d{1,5})x(\d{1,5})$", settings["size"])
        if match is None:
            raise DeviceInputError(f"size={settings['size']}", "a size is WIDTHxHEIGHT", "write it like 640x512")
        wanted[cv2.CAP_PROP_FRAME_WIDTH], wanted[cv2.CAP_PROP_FRAME_HEIGHT] = int(match.group(1)), int(match.group(2))
    fps = _fps(settings)
    if fps is not None:
        wanted[cv2.CAP_PROP_FPS] = fps
    return wanted


def _picture_files(place: str) -> List[Path]:
    folder = Path(place)
    if folder.is_dir():
        found = [path for path in folder.iterdir() if path.suffix.lower() in PICTURES and not path.name.startswith(".")]
    elif re.search(r"%0?\d*d", folder.name):
        digits = re.sub(r"%0?\d*d", "[0-9]*", folder.name.replace("[", "[[]"))
        found = [Path(name) for name in glob.glob(str(Path(glob.escape(str(folder.parent))) / digits))]
    else:
        found = [Path(name) for name in glob.glob(place)]
    return sorted(found, key=lambda path: [int(part) if part.isdigit() else part for part in _DIGITS.split(path.name)])


def _read_times(path: Path, files: List[Path]) -> List[float]:
    """The times of the pictures, from lines ``name,seconds``; a first line of words is a header."""
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            rows = [row for row in csv.reader(lines) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DeviceInputError(f"{path} cannot be read ({error})", "a CSV of name,seconds") from error
    times: Dict[str, float] = {}
    for number, row in enumerate(rows):
        try:
            times[row[0].strip()] = float(row[1])
        except (ValueError, IndexError):
            if number:
                raise DeviceInputError(
                    f"{path}, line {number + 1}: {','.join(row)!r}", "every line is name,seconds"
                ) from None
    missing = [file.name for file in files if file.name not in times]
    if missing:
        raise DeviceInputError(
            f"{path} has no time for {len(missing)} pictures, the first is {missing[0]}",
            "every picture needs one",
        )
    stamps = [times[file.name] for file in files]
    for number in range(1, len(stamps)):
        if not stamps[number] > stamps[number - 1]:
            raise DeviceInputError(f"{path}: {files[number].name} is not later than its predecessor", "times increase")
    return stamps
