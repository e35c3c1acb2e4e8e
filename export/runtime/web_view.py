"""A live picture for browsers: one page, the pictures as MJPEG, the statistics as JSON; standard library only.

On the loopback address the page is open to the user's own browser, and to no other site in it: the Host header must
name the loopback, so that a foreign name that is made to point here (DNS rebinding) is refused, and requests that
another site caused are refused. On any other address everything needs a token, as ``Authorization: Bearer TOKEN``, or
once as ``/?token=TOKEN``, which becomes a cookie and vanishes from the address. Without it there is an empty 403,
whatever is asked for. Nothing that is requested is logged. There is no encryption: beyond a trusted network put a TLS
proxy or an SSH tunnel before it.

Every client has at most one picture under way: a slow one gets fewer pictures, and one that takes none for ten seconds
is let go.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import os
import re
import secrets
import socket
import threading
import time
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Callable, Dict, Optional, Tuple
from urllib.parse import parse_qs, urlsplit

import cv2

from .errors import DeviceError, DeviceInputError
from .planes import bgr_of
from .web_page import PAGE

if TYPE_CHECKING:
    from .planes import Picture

TOKEN_VARIABLE = "DUSKFUSE_WEB_TOKEN"
SHORTEST_TOKEN = 16
MOST_CLIENTS, MOST_CONNECTIONS = 8, 32
"""Clients that watch, and connections of any kind, at a time."""
TIMEOUT_S = 10.0

_COOKIE = "duskfuse_token"
_BOUNDARY = "duskfuse-picture"
_JPEG = [cv2.IMWRITE_JPEG_QUALITY, 80]
_SEND_BUFFER = 1 << 17  # a picture or two: what lies in the system's buffer is already old
_SECURITY = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class WebView:
    """Serves what `write` gets on ``address``, ``[HOST:]PORT``; without a host on the loopback.

    ``statistics`` gives what ``/stats.json`` answers. Beyond loopback ``token`` is needed; where none is given, it is
    taken from the environment variable DUSKFUSE_WEB_TOKEN, or made at random. ``url`` is where to look, with the token
    if it was made here.

    Raises DeviceInputError for a bad address or a short token, DeviceError where the port is taken.
    """

    def __init__(self, address: str, statistics: Callable[[], Dict[str, Any]], token: Optional[str] = None) -> None:
        host, port = parse_address(address)
        self._pictures = _Pictures()
        local = is_loopback(host)
        given = token or os.environ.get(TOKEN_VARIABLE)
        if not local and given is not None and not re.fullmatch(rf"[\w.~-]{{{SHORTEST_TOKEN},}}", given, re.ASCII):
            rule = f"it has {SHORTEST_TOKEN} characters or more, of letters, digits, - and _"
            raise DeviceInputError("a token that can be guessed, or fits into no address", rule)
        self._token = None if local else given or secrets.token_urlsafe(24)
        try:
            self._server = _Server(host, port, self._pictures, statistics, self._token)
        except OSError as error:
            raise DeviceError(
                f"the web view cannot listen on {address} ({error.strerror})", remedy="another port"
            ) from error
        shown = f"[{host}]" if ":" in host else host
        self.port: int = self._server.server_address[1]
        self.url = f"http://{shown}:{self.port}/" + (f"?token={self._token}" if self._token and not given else "")
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.2}, daemon=True).start()

    def write(self, picture: Picture, stamp: float) -> None:
        """See `pipeline.Output`."""
        self._pictures.show(picture)

    def close(self, complete: bool = True) -> None:
        """See `pipeline.Output`."""
        self._pictures.end()
        self._server.shutdown()
        self._server.server_close()


def parse_address(text: str) -> Tuple[str, int]:
    """Read ``PORT``, ``HOST:PORT`` or ``[IPV6]:PORT``; raises DeviceInputError for anything else.

    >>> parse_address("8080"), parse_address("0.0.0.0:80"), parse_address("[::1]:0")
    (('127.0.0.1', 8080), ('0.0.0.0', 80), ('::1', 0))
    """
    host, _, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not (port.isdigit() and port.isascii()) or int(port) > 65535 or (":" in bare and bare == host):
        raise DeviceInputError(f"web address {text!r}", "it is PORT or HOST:PORT", "write it like 8080 or 0.0.0.0:8080")
    return bare or "127.0.0.1", int(port)


def is_loopback(host: str) -> bool:
    """Whether a host is this machine's own address, which no other machine reaches."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Pictures:
    """The newest picture, and its JPEG once somebody wants it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._picture: Optional[Picture] = None
        self._jpeg: Optional[bytes] = None
        self._number = 0
        self.over = False

    def show(self, picture: Picture) -> None:
        with self._changed:
            self._picture, self._jpeg = picture, None
            self._number += 1
            self._changed.notify_all()

    def end(self) -> None:
        with self._changed:
            self.over = True
            self._changed.notify_all()

    def after(self, number: int, timeout: float) -> Tuple[int, Optional[bytes]]:
        """The newest picture's number and JPEG, as soon as it is another than ``number``; None after ``timeout``."""
        with self._changed:
            self._changed.wait_for(lambda: self._number != number or self.over, timeout)
            if self._number == number or self.over or self._picture is None:
                return number, None
            newest, picture, jpeg = self._number, self._picture, self._jpeg
        if jpeg is None:
            done, encoded = cv2.imencode(".jpg", bgr_of(picture), _JPEG)
            jpeg = encoded.tobytes() if done else b""
            with self._changed:
                if self._number == newest:
                    self._jpeg = jpeg
        return newest, jpeg


class _Server(ThreadingHTTPServer):
    """The listening socket with its limits."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 16

    def __init__(
        self,
        host: str,
        port: int,
        pictures: _Pictures,
        statistics: Callable[[], Dict[str, Any]],
        token: Optional[str],
    ) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.pictures, self.statistics, self.token, self.host = pictures, statistics, token, host.lower()
        self.connections = threading.BoundedSemaphore(MOST_CONNECTIONS)
        self.watchers = threading.BoundedSemaphore(MOST_CLIENTS)
        super().__init__((host, port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self.connections.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.connections.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no error, and no request is logged."""


class _Handler(BaseHTTPRequestHandler):
    """One request of one client."""

    server: _Server
    timeout = TIMEOUT_S
    server_version, sys_version = "duskfuse", ""

    def setup(self) -> None:
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        super().setup()

    def log_message(self, format: str, *args: Any) -> None:
        """Requests may hold the token: none is logged."""

    def send_error(self, code: int, message: Optional[str] = None, explain: Optional[str] = None) -> None:
        """An answer without a body, for malformed requests too."""
        self._answer(HTTPStatus(code))

    def do_GET(self) -> None:
        """Answer the page, the pictures or the statistics to whoever may see them."""
        address = urlsplit(self.path)
        if not self._host_is_ours() or not self._same_site():
            return self._answer(HTTPStatus.FORBIDDEN)
        if self.server.token is not None:
            offered = parse_qs(address.query).get("token", [""])[0]
            if address.path == "/" and self._is_token(offered):
                return self._enter(offered)
            if not self._is_token(self._carried_token()):
                return self._answer(HTTPStatus.FORBIDDEN)
        pages = {"/": self._page, "/stream.mjpg": self._stream, "/stats.json": self._statistics}
        if address.path == "/favicon.ico":  # browsers ask for it unasked
            return self._answer(HTTPStatus.NO_CONTENT)
        page = pages.get(address.path)
        return self._answer(HTTPStatus.NOT_FOUND) if page is None else page()

    def _page(self) -> None:
        nonce = secrets.token_urlsafe(16)
        policy = (
            f"default-src 'none'; img-src 'self'; connect-src 'self'; style-src 'nonce-{nonce}'; "
            f"script-src 'nonce-{nonce}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        headers = {"Content-Type": "text/html; charset=utf-8", "Content-Security-Policy": policy}
        self._answer(HTTPStatus.OK, PAGE.replace("NONCE", nonce).encode(), headers)

    def _statistics(self) -> None:
        self._answer(HTTPStatus.OK, json.dumps(self.server.statistics()).encode(), {"Content-Type": "application/json"})

    def _stream(self) -> None:
        if not self.server.watchers.acquire(blocking=False):
            return self._answer(HTTPStatus.SERVICE_UNAVAILABLE)
        try:
            self.send_response(HTTPStatus.OK)
            self._headers({"Content-Type": f"multipart/x-mixed-replace; boundary={_BOUNDARY}"})
            self._send_pictures()
        except OSError:  # the client has gone, or takes nothing
            pass
        finally:
            self.server.watchers.release()
        return None

    def _send_pictures(self) -> None:
        pictures, number, heard = self.server.pictures, 0, time.monotonic()
        while not pictures.over:
            number, jpeg = pictures.after(number, 1.0)
            if jpeg is None:
                if time.monotonic() - heard > TIMEOUT_S:
                    return  # no picture for long: the browser asks again, and a client that left is noticed
                continue
            head = f"--{_BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
            self.wfile.write(head.encode() + jpeg + b"\r\n")
            heard = time.monotonic()

    def _enter(self, token: str) -> None:
        """Put the token into a cookie, and the browser on an address without it."""
        cookie = f"{_COOKIE}={token}; HttpOnly; SameSite=Strict; Path=/"
        self._answer(HTTPStatus.SEE_OTHER, headers={"Location": "/", "Set-Cookie": cookie})

    def _carried_token(self) -> str:
        kind, _, value = self.headers.get("Authorization", "").partition(" ")
        if kind.lower() == "bearer":
            return value.strip()
        try:
            cookie = SimpleCookie(self.headers.get("Cookie", "")).get(_COOKIE)
        except CookieError:
            return ""
        return "" if cookie is None else cookie.value

    def _is_token(self, offered: str) -> bool:
        wanted = (self.server.token or "").encode()
        return bool(wanted) and hmac.compare_digest(offered.encode("utf-8", "surrogateescape"), wanted)

    def _host_is_ours(self) -> bool:
        """Whether the Host header is a name that cannot be made to point here by a stranger's DNS."""
        given = self.headers.get_all("Host") or []
        if len(given) != 1:
            return False
        name = given[0].strip().lower()
        name = name[1 : name.index("]")] if name.startswith("[") and "]" in name else name.partition(":")[0]
        if self.server.token is None:
            return is_loopback(name)
        if name in {"localhost", self.server.host, socket.gethostname().lower()}:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def _same_site(self) -> bool:
        return self.headers.get("Sec-Fetch-Site", "none") in ("none", "same-origin")

    def _answer(self, status: HTTPStatus, body: bytes = b"", headers: Optional[Dict[str, str]] = None) -> None:
        self.send_response(status)
        self._headers({"Content-Length": str(len(body)), **(headers or {})})
        if body and self.command != "HEAD":
            self.wfile.write(body)

    def _headers(self, headers: Dict[str, str]) -> None:
        for name, value in {**_SECURITY, **headers}.items():
            self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
