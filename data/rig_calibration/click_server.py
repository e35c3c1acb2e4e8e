"""A page on this machine on which a person clicks the same places in both pictures.

It is served to the loopback address only, under a secret path, so that it also works through an SSH tunnel
(``ssh -L 8770:localhost:8770 HOST``) and no other page in the browser can reach it.
"""

from __future__ import annotations

import json
import secrets
import sys
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from duskfuse.data.errors import InputError
from duskfuse.data.homography import is_number
from duskfuse.data.images import encode_png, to_u8
from duskfuse.data.rig_calibration.frames import Frames
from duskfuse.data.rig_calibration.points import fit_points
from duskfuse.data.rig_calibration.structure import Plane

PORT = 8770
_LARGEST_REQUEST = 2**20
_MOST_PAIRS = 500
_POLICY = (
    "default-src 'none'; img-src 'self' data:; style-src 'self'; script-src 'self'; connect-src 'self'; base-uri 'none'"
)
_KINDS = {"html": "text/html; charset=utf-8", "js": "text/javascript; charset=utf-8", "css": "text/css; charset=utf-8"}


def click_points(
    frames: Frames, port: int = PORT, announce: Callable[[str], None] | None = None
) -> NDArray[np.float64]:
    """Serve the page until the person saves; give the pairs of points.

    Args:
        frames: the pictures to click in; points of all frames count together.
        port: of the loopback address; 0 takes a free one.
        announce: is called with the page's address; by default it is printed on stderr.

    Returns:
        ``[N, 4]`` of x_ir, y_ir, x_vis, y_vis in pixels of the pictures as stored.

    Raises:
        InputError: the port is taken, or the person gave up.
    """
    session = _Session(frames)
    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), session.handler())
    except (OSError, OverflowError) as error:
        raise InputError(
            f"port {port} cannot be opened ({error})",
            rule="the page for clicking needs a free port of this machine",
            remedy="give another one with --port",
        ) from error
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        (announce or _print_address)(f"http://localhost:{server.server_address[1]}/{session.secret}/")
        while not session.done.wait(0.2):  # short waits, so that Ctrl-C is heard everywhere
            pass
    finally:
        server.shutdown()
        server.server_close()
    if session.points is None:
        raise InputError("nothing was saved on the page", remedy="run the command again, and save at least four pairs")
    return session.points


def _print_address(address: str) -> None:
    print(f"click the same places in both pictures: {address}", file=sys.stderr, flush=True)


class _Session:
    """What the page shows and what comes back from it."""

    def __init__(self, frames: Frames) -> None:
        self.frames = frames
        self.secret = secrets.token_urlsafe(16)
        self.done = threading.Event()
        self.points: NDArray[np.float64] | None = None

    def handler(self) -> type[BaseHTTPRequestHandler]:
        """The class of requests of this session."""
        session = self

        class Handler(BaseHTTPRequestHandler):
            server_version, sys_version = "duskfuse", ""

            def do_GET(self) -> None:
                self._reply(session.get(self._inner_path()))

            def do_POST(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                inner = self._inner_path()
                if not 0 <= length <= _LARGEST_REQUEST:
                    inner = None
                self._reply(session.post(inner, self.rfile.read(length) if inner else b""))

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing: the terminal belongs to the command."""

            def _inner_path(self) -> str | None:
                """What follows the secret; None for a stranger."""
                host = (self.headers.get("Host") or "").rpartition(":")[0]
                start = f"/{session.secret}/"
                known = host in ("localhost", "127.0.0.1") and self.path.startswith(start)
                return self.path[len(start) :] if known else None

            def _reply(self, answer: tuple[str, bytes] | None) -> None:
                kind, content = answer or ("text/plain", b"not found\n")
                self.send_response(HTTPStatus.OK if answer else HTTPStatus.NOT_FOUND)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(content)))
                self.send_header("Content-Security-Policy", _POLICY)
                self.send_header("Cache-Control", "no-store")
                self.end_headers()
                self.wfile.write(content)

        return Handler

    def get(self, path: str | None) -> tuple[str, bytes] | None:
        """Content type and bytes of a part of the page; None where there is none."""
        if path == "":
            path = "click_page.html"
        if path in ("click_page.html", "click_page.js", "click_page.css"):
            text = files("duskfuse.data.rig_calibration").joinpath(path).read_bytes()
            return _KINDS[path.rpartition(".")[2]], text
        if path == "frames.json":
            return _json(
                {
                    "names": [frame.name for frame in self.frames.chosen],
                    "sizes": {"ir": self.frames.ir_size[::-1], "vis": self.frames.vis_size[::-1]},
                }
            )
        for number, frame in enumerate(self.frames.chosen):
            for side, plane in (("ir", frame.ir), ("vis", frame.vis)):
                if path == f"{side}-{number}.png":
                    return "image/png", encode_png(_visible(plane))
        return None

    def post(self, path: str | None, body: bytes) -> tuple[str, bytes] | None:
        """Answer to points that were sent; None for what is not asked of the page."""
        if path == "quit":
            self.done.set()
            return _json({})
        if path not in ("fit", "save"):
            return None
        try:
            points = _points(body)
            fit = fit_points(points, self.frames.ir_size, self.frames.vis_size)
        except InputError as error:
            return _json({"error": str(error)})
        if path == "save":
            self.points = points
            self.done.set()
        return _json({**fit.to_json(), "kept_pairs": fit.kept, "matrix": fit.matrix.tolist()})


def _points(body: bytes) -> NDArray[np.float64]:
    try:
        rows = json.loads(body)
    except (ValueError, RecursionError):
        rows = None
    whole = isinstance(rows, list) and len(rows) <= _MOST_PAIRS
    if not whole or not all(isinstance(row, list) and len(row) == 4 and all(map(is_number, row)) for row in rows):
        raise InputError("points that are not lists of four numbers", remedy="reload the page")
    return np.array(rows, np.float64).reshape(-1, 4)


def _visible(plane: Plane) -> NDArray[np.uint8]:
    """A picture stretched between its percentiles 0.5 and 99.5, as an eye needs it."""
    low, high = np.percentile(plane, (0.5, 99.5))
    return to_u8((plane - low) / max(float(high - low), 1e-6))


def _json(content: Any) -> tuple[str, bytes]:
    return "application/json", json.dumps(content).encode()
