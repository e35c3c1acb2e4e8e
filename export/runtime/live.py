"""Fuse two cameras, videos or picture sequences as they come, into files, streams, a window or a web page."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, NamedTuple, Optional, Sequence

import cv2

from .errors import DeviceInputError
from .network import add_model_arguments, network_of
from .outputs import RtspPush, Window, is_video_name, open_output
from .pairing import IR, MAX_SKEW, STALL, VIS
from .pipeline import Pipeline, PlaneNetwork, Settings, keeps_planes
from .planar_video import in_planes
from .sources import parse_source
from .thermal import add_thermal_arguments, thermal_input_of
from .web_view import WebView

if TYPE_CHECKING:
    import argparse

    from .thermal import ThermalInput

SOURCE_HELP = "video, folder or pattern of pictures, /dev/videoN, GStreamer pipeline or URL"

_INTERRUPTED = 130
_LINE_EVERY_S, _PLAIN_EVERY_S, _STATISTICS_EVERY_S = 0.5, 10.0, 5.0
_FINISH_S = 10.0  # after Ctrl-C: the longest that a camera may take to give its last frame


class LiveOptions(NamedTuple):
    """One live run: from where, to where, and how."""

    ir: str
    vis: str
    out: Sequence[str] = ()
    """Video files, folders for PNG files, RTSP URLs."""
    show: bool = False
    web: Optional[str] = None
    """``[HOST:]PORT`` of the web view."""
    stats: Optional[Path] = None
    """JSON file that gets the statistics, every five seconds and at the end."""
    overwrite: bool = False
    quiet: bool = False
    """No lines on stderr."""
    settings: Settings = Settings()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``live``."""
    parser.add_argument("--ir", required=True, metavar="SOURCE", help="infrared: " + SOURCE_HELP)
    parser.add_argument("--vis", required=True, metavar="SOURCE", help="visible: the same")
    add_model_arguments(parser)
    outputs = parser.add_argument_group("outputs")
    outputs.add_argument(
        "--out", action="append", default=[], metavar="TO", help=".mp4, .mkv, a folder, or an rtsp:// URL; repeatable"
    )
    outputs.add_argument("--show", action="store_true", help="show a window")
    outputs.add_argument("--web", metavar="[HOST:]PORT", help="show a web page; on this machine only unless HOST says")
    outputs.add_argument("--compare", action="store_true", help="infrared, visible and fused side by side")
    outputs.add_argument("--overlay", action="store_true", help="write rate and skew on the picture")
    outputs.add_argument("--stats", type=Path, metavar="FILE", help="statistics as JSON")
    outputs.add_argument("--overwrite", action="store_true", help="replace what is there already")
    pairing = parser.add_argument_group("pairing")
    pairing.add_argument(
        "--max-skew", type=float, default=MAX_SKEW, metavar="S", help=f"seconds between two frames, {MAX_SKEW} at most"
    )
    pairing.add_argument("--offset", type=float, default=0.0, metavar="S", help="seconds added to infrared times")
    pairing.add_argument(
        "--stall", type=float, default=STALL, metavar="S", help=f"silence after which one goes on alone, {STALL}"
    )
    pairing.add_argument("--fallback", action="store_true", help="a capped or dead camera counts as missing")
    add_thermal_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Run until both sources end or the user stops it; return the exit code."""
    settings = Settings(
        args.max_skew, args.offset, args.stall, compare=args.compare, overlay=args.overlay, fallback=args.fallback
    )
    options = LiveOptions(
        args.ir, args.vis, args.out, args.show, args.web, args.stats, args.overwrite, settings=settings
    )
    if args.threads is None:
        args.threads = network_threads()
    result = run_live(options, network_of(args), thermal_input_of(args, video=True))
    print(json.dumps(result, indent=2))
    return _INTERRUPTED if result["interrupted"] and not result["live"] else 0


def network_threads() -> int:
    """Threads for the network beside those that read and write: all cores but one, at least one."""
    return max(1, _cores() - 1)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_live(options: LiveOptions, network: PlaneNetwork, thermal: ThermalInput) -> Dict[str, Any]:
    """Run until both sources end, the window is closed, or Ctrl-C or SIGTERM; return the statistics.

    Whatever ends it, video files are completed. Raises DeviceInputError for unusable options and inputs and DeviceError
    for what fails on the way.
    """
    check(options)
    say = _Say(options.quiet)
    settings = options.settings
    sources = {IR: parse_source(options.ir), VIS: parse_source(options.vis)}
    if keeps_planes(network, settings) and all(map(is_video_name, options.out)):
        sources = {side: in_planes(source) for side, source in sources.items()}
    if not options.out and not sources[VIS].live:
        settings = settings._replace(natural_speed=True)
    outputs: List[Any] = []
    try:
        for text in options.out:
            outputs.append(open_output(text, options.overwrite, say))
        window = Window() if options.show else None
        outputs += [window] if window else []
        pipeline = Pipeline(sources, network, thermal, outputs, settings, say)
        if options.web is not None:
            view = WebView(options.web, pipeline.to_json)
            pipeline.add_output(view)
            say(f"web view on {view.url}")
    except BaseException:
        for output in outputs:
            output.close()
        raise
    interrupted = _drive(pipeline, window, options.stats, say)
    result = {"live": pipeline.live, "interrupted": interrupted, **pipeline.to_json()}
    pushed = {output.name: {"sent": output.sent, "lost": output.lost} for output in outputs if _is_push(output)}
    result.update({"pushed": pushed} if pushed else {})
    if options.stats is not None:
        write_statistics(options.stats, result)
    if pipeline.error is not None:
        raise pipeline.error
    return result


def check(options: LiveOptions) -> None:
    """Raise DeviceInputError for options that make no live run."""
    if not (options.out or options.show or options.web):
        raise DeviceInputError("no output", "fused pictures go somewhere", "give --out, --show or --web")
    settings = options.settings
    for name, value in (("--max-skew", settings.max_skew), ("--stall", settings.stall)):
        if not 0 < value < 3600:
            raise DeviceInputError(f"{name} {value:g}", "it is a positive number of seconds")
    if not -3600 < settings.offset < 3600:
        raise DeviceInputError(f"--offset {settings.offset:g}", "it is a number of seconds")
    for place in options.out:
        if Path(place).resolve() in (Path(options.ir).resolve(), Path(options.vis).resolve()):
            raise DeviceInputError(f"{place} is an input", "inputs are never written to", "give another --out")


def write_statistics(path: Path, content: Dict[str, Any]) -> None:
    """Write JSON under a temporary name, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(part, path)


def _drive(pipeline: Pipeline, window: Optional[Window], stats: Optional[Path], say: _Say) -> bool:
    """Run the pipeline to its end from the main thread; whether the user ended it."""
    next_write = time.monotonic() + _STATISTICS_EVERY_S
    opencv_threads = cv2.getNumThreads()
    cv2.setNumThreads(max(1, _cores() // 2))  # the stages overlap already, and the network needs its cores
    with _Wish() as wish:
        try:
            pipeline.start()
            while not pipeline.wait(0.01 if window is not None else 0.1):
                if window is not None and not window.poll():
                    wish.end()
                if wish.ended_at is not None:
                    if wish.is_new():
                        say("finishing what was read; Ctrl-C again stops at once")
                    pipeline.finish()
                    if wish.at_once or (pipeline.live and time.monotonic() > wish.ended_at + _FINISH_S):
                        break
                say.status(pipeline)
                if stats is not None and time.monotonic() > next_write:
                    next_write = time.monotonic() + _STATISTICS_EVERY_S
                    write_statistics(stats, {"live": pipeline.live, **pipeline.to_json()})
        finally:
            pipeline.close()
            cv2.setNumThreads(opencv_threads)
            say.status(pipeline, last=True)
        return wish.ended_at is not None


class _Wish:
    """Whether the user wants an end: Ctrl-C or SIGTERM, once to finish what was read, twice to stop at once."""

    def __init__(self) -> None:
        self.ended_at: Optional[float] = None
        self.at_once = False
        self._told = False
        self._before: Dict[int, Any] = {}

    def __enter__(self) -> _Wish:
        if threading.current_thread() is threading.main_thread():  # signals are not another thread's to take
            self._before = {kind: signal.signal(kind, self._signalled) for kind in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for kind, handler in self._before.items():
            signal.signal(kind, handler)

    def end(self) -> None:
        """Take note of the first wish."""
        if self.ended_at is None:
            self.ended_at = time.monotonic()

    def is_new(self) -> bool:
        """True once."""
        told, self._told = self._told, True
        return not told

    def _signalled(self, *_: object) -> None:
        self.at_once = self.ended_at is not None
        self.end()


def _is_push(output: Any) -> bool:
    return isinstance(output, RtspPush)


class _Say:
    """Lines on stderr: messages, and the state of the run, on a terminal in one line that changes."""

    def __init__(self, quiet: bool) -> None:
        self._quiet, self._terminal = quiet, sys.stderr.isatty()
        self._next = time.monotonic() + (_LINE_EVERY_S if self._terminal else _PLAIN_EVERY_S)
        self._lock = threading.Lock()

    def __call__(self, message: str) -> None:
        if not self._quiet:
            with self._lock:
                sys.stderr.write(("\r\x1b[K" if self._terminal else "") + message + "\n")
                sys.stderr.flush()

    def status(self, pipeline: Pipeline, last: bool = False) -> None:
        """Print the state now and then."""
        if self._quiet or (not last and time.monotonic() < self._next):
            return
        self._next = time.monotonic() + (_LINE_EVERY_S if self._terminal else _PLAIN_EVERY_S)
        line = status_line(pipeline.to_json())
        if self._terminal and not last:
            with self._lock:
                sys.stderr.write("\r\x1b[K" + line)
                sys.stderr.flush()
        else:
            self(line)


def status_line(state: Dict[str, Any]) -> str:
    """The state of a run in one line."""
    skew, age = state["skew_ms"], state["latency_ms"]
    parts = [
        f"{state['frames']} pictures",
        f"{state['fps_now']:.1f} fps",
        *([f"skew {skew['p50']:.0f} ms"] if skew else []),
        *([f"age {age['p50']:.0f} ms"] if age else []),
        f"unpaired {sum(state['unpaired'].values())}",
        f"dropped {sum(state['dropped'].values())}",
        *([f"{state['missing']} is silent"] if state["missing"] else []),
    ]
    return ", ".join(parts)
