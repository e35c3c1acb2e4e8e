"""The web view over real sockets and in a real browser: what it serves, what it refuses, what slow clients cost."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import pytest

from duskfuse.export.runtime import web_view
from duskfuse.export.runtime.errors import DeviceError, DeviceInputError
from duskfuse.export.runtime.live_statistics import LiveStatistics
from duskfuse.export.runtime.web_view import MOST_CLIENTS, TOKEN_VARIABLE, WebView, parse_address

TOKEN = "a-token-of-some-length"
PATHS = ("/", "/stream.mjpg", "/stats.json", "/other", "/?token=wrong", "/../etc/passwd")


def statistics() -> dict[str, Any]:
    return LiveStatistics().to_json({"ir": 1, "vis": 2}, {"read ir": 0})


def picture(grey: int, size: tuple[int, int] = (48, 64)) -> Any:
    return np.full((*size, 3), grey, np.uint8)


@pytest.fixture
def local() -> Iterator[WebView]:
    view = WebView("0", statistics)
    yield view
    view.close()


@pytest.fixture
def remote() -> Iterator[WebView]:
    view = WebView("0.0.0.0:0", statistics, token=TOKEN)
    yield view
    view.close()


def get(view: WebView, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", view.port, timeout=10)
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    return answer.status, dict(answer.getheaders()), answer.read()


def raw(view: WebView, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", view.port), timeout=10) as client:
        client.sendall(request)
        return b"".join(iter(lambda: client.recv(65536), b""))


def open_stream(view: WebView, **headers: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", view.port, timeout=10)
    connection.request("GET", "/stream.mjpg", headers=headers)
    return connection.getresponse()


def next_picture(stream: http.client.HTTPResponse) -> Any:
    assert stream.readline() == b"--duskfuse-picture\r\n"
    assert stream.readline() == b"Content-Type: image/jpeg\r\n"
    length = int(stream.readline().split(b":")[1])
    assert stream.readline() == b"\r\n"
    jpeg = stream.read(length)
    assert stream.readline() == b"\r\n"
    return cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)


def test_page_pictures_and_statistics(local: WebView) -> None:
    status, headers, page = get(local, "/")
    assert status == 200
    assert b"<img" in page
    policy = headers["Content-Security-Policy"]
    nonce = policy.split("script-src 'nonce-")[1].split("'")[0]
    assert f'<script nonce="{nonce}">'.encode() in page
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert nonce not in get(local, "/")[1]["Content-Security-Policy"], "a nonce is used once"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert json.loads(get(local, "/stats.json")[2])["unpaired"] == {"ir": 1, "vis": 2}
    local.write(picture(40), 0.0)
    stream = open_stream(local)
    assert abs(int(next_picture(stream).mean()) - 40) <= 1
    local.write(picture(200), 0.1)
    assert abs(int(next_picture(stream).mean()) - 200) <= 1
    stream.close()


def test_what_is_not_there_and_methods_that_are_not_served(local: WebView) -> None:
    assert get(local, "/other")[0] == 404
    assert get(local, "/", "POST")[0] == 501
    assert get(local, "/", "DELETE")[2] == b""
    assert raw(local, b"nonsense\r\n\r\n") == b""
    assert raw(local, b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.0 414")


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "192.168.1.5:80", "", "localhost.evil"])
def test_a_foreign_name_that_points_here_is_refused(local: WebView, host: str) -> None:
    status, _, body = get(local, "/stats.json", Host=host)
    assert (status, body) == (403, b"")


def test_own_names_are_served_and_two_are_not(local: WebView) -> None:
    for host in ("localhost", f"127.0.0.1:{local.port}", "[::1]:80", "LOCALHOST:1"):
        assert get(local, "/stats.json", Host=host)[0] == 200
    doubled = b"GET /stats.json HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n"
    assert raw(local, doubled).startswith(b"HTTP/1.0 403")
    assert raw(local, b"GET /stats.json HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.0 403")


def test_requests_that_another_site_causes_are_refused(local: WebView) -> None:
    assert get(local, "/stream.mjpg", Sec_Fetch_Site="cross-site")[0] == 403
    assert get(local, "/stats.json", Sec_Fetch_Site="same-site")[0] == 403
    assert get(local, "/stats.json", Sec_Fetch_Site="same-origin")[0] == 200


@pytest.mark.parametrize("path", PATHS)
def test_beyond_loopback_nothing_is_answered_without_the_token(remote: WebView, path: str) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Cookie": "duskfuse_token=wrong"}, {"Cookie": "\x01;="}):
        status, sent, body = get(remote, path, **headers)
        assert (status, body) == (403, b"")
        assert "Set-Cookie" not in sent
    assert get(remote, path, Authorization="Basic " + TOKEN)[0] == 403


def test_the_token_lets_in_by_header_or_once_by_address(remote: WebView) -> None:
    assert get(remote, "/stats.json", Authorization=f"Bearer {TOKEN}")[0] == 200
    assert get(remote, "/stats.json?token=" + TOKEN)[0] == 403, "the address is for entering only"
    status, headers, body = get(remote, "/?token=" + TOKEN)
    assert (status, headers["Location"], body) == (303, "/", b"")
    assert "HttpOnly" in headers["Set-Cookie"]
    assert "SameSite=Strict" in headers["Set-Cookie"]
    cookie = headers["Set-Cookie"].split(";")[0]
    assert get(remote, "/", Cookie=cookie)[0] == 200
    remote.write(picture(90), 0.0)
    stream = open_stream(remote, Cookie=cookie)
    assert next_picture(stream).shape == (48, 64, 3)
    stream.close()
    assert get(remote, "/", Cookie=cookie, Host="evil.example")[0] == 403


def test_the_token_is_in_no_log_and_no_page(remote: WebView, capfd: pytest.CaptureFixture[str]) -> None:
    for path in ("/?token=" + TOKEN, "/", "/stats.json", "/other"):
        assert TOKEN.encode() not in get(remote, path, Authorization=f"Bearer {TOKEN}")[2]
    raw(remote, b"GET /?token=" + TOKEN.encode() + b" HTTP/1.1\r\nHost: a\r\nX: y\r\n\r\n")
    out, err = capfd.readouterr()
    assert TOKEN not in out + err
    assert TOKEN not in remote.url, "a token that the user has given is not repeated"


def test_tokens_are_made_or_taken_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    views = [WebView("0.0.0.0:0", statistics) for _ in range(2)]
    tokens = {view.url.split("?token=")[1] for view in views}
    assert len(tokens) == 2
    assert all(len(token) >= 32 for token in tokens)
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    views.append(WebView("0.0.0.0:0", statistics))
    assert get(views[2], "/stats.json", Authorization=f"Bearer {TOKEN}")[0] == 200
    assert "token" not in views[2].url
    for view in views:
        view.close()
    for wrong in ("short", "long enough; but no token", TOKEN + "\r\nX: y"):
        monkeypatch.setenv(TOKEN_VARIABLE, wrong)
        with pytest.raises(DeviceInputError, match="16 characters"):
            WebView("0.0.0.0:0", statistics)


@pytest.mark.parametrize("text", ["", "host", "host:", "1:2:3", "a:70000", "-1", "8080x"])
def test_wrong_addresses(text: str) -> None:
    with pytest.raises(DeviceInputError, match="HOST:PORT"):
        parse_address(text)


def test_a_port_that_is_taken_is_one_message(local: WebView) -> None:
    with pytest.raises(DeviceError, match="cannot listen"):
        WebView(str(local.port), statistics)


def test_a_slow_client_gets_fewer_pictures_and_holds_up_nobody(local: WebView) -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (480, 640, 3), np.uint8)  # some 300 kB as JPEG
    slow, quick = open_stream(local), open_stream(local)
    seen, over = [], threading.Event()

    def watch() -> None:
        while not over.is_set():
            seen.append(int(next_picture(quick)[:40, :40].mean()))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    slowest = 0.0
    for number in range(60):
        noise[:48, :48] = number * 4
        started = time.perf_counter()
        local.write(noise.copy(), number / 30)
        slowest = max(slowest, time.perf_counter() - started)
        time.sleep(0.02)
    over.set()
    local.write(noise, 3.0)
    watcher.join(10)
    assert slowest < 1, "writing never waits for a client"
    assert len(seen) > 5
    old = int(next_picture(slow)[:40, :40].mean())
    newest = [old]
    while newest[-1] < 59 * 4 - 6:
        newest.append(int(next_picture(slow)[:40, :40].mean()))
    assert len(newest) < 30, "pictures that a client did not take in time are not kept for it"
    slow.close()
    quick.close()


def test_there_are_only_so_many_clients(local: WebView) -> None:
    streams = [open_stream(local) for _ in range(MOST_CLIENTS)]
    assert all(stream.status == 200 for stream in streams)
    assert open_stream(local).status == 503
    assert get(local, "/stats.json")[0] == 200
    for stream in streams:
        stream.close()
    local.write(picture(1), 0.0)
    deadline = time.monotonic() + 15
    while (status := open_stream(local).status) == 503 and time.monotonic() < deadline:
        local.write(picture(2), 0.0)
        time.sleep(0.05)
    assert status == 200, "places are free again when clients leave"


def test_connections_that_say_nothing_are_limited_and_let_go(monkeypatch: pytest.MonkeyPatch, local: WebView) -> None:
    monkeypatch.setattr(web_view._Handler, "timeout", 0.5)
    idle = [
        socket.create_connection(("127.0.0.1", local.port), timeout=10) for _ in range(web_view.MOST_CONNECTIONS + 8)
    ]
    time.sleep(0.2)
    assert any(client.recv(1) == b"" for client in idle[-8:]), "beyond the limit a connection is closed at once"
    assert all(client.recv(1) == b"" for client in idle), "a connection without a request is closed after its time"
    assert get(local, "/stats.json")[0] == 200


def test_the_page_in_a_browser(remote: WebView) -> None:
    """Chromium enters with the token, shows the moving picture and the figures; nothing is refused by its policy."""
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("no Chromium is installed (Debian: apt-get install chromium)")
    feeding = threading.Event()

    def feed() -> None:
        for number in range(2000):
            if feeding.wait(0.02):
                return
            remote.write(picture(number % 256, (240, 320)), number / 50)

    threading.Thread(target=feed, daemon=True).start()
    with playwright.sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 900, "height": 800})
        faults: list[str] = []
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(f"http://127.0.0.1:{remote.port}/?token={TOKEN}", wait_until="commit")
        page.wait_for_function("document.querySelectorAll('#figures div').length > 5")
        page.wait_for_function("document.getElementById('picture').naturalWidth === 320")
        assert "token" not in page.url
        assert page.inner_text("#notice") == ""
        assert "without a partner" in page.inner_text("#figures")
        assert faults == [], "favicon or policy"
        browser.close()
    feeding.set()
