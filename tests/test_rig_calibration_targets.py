"""Calibration by hand: points clicked on the page, in a real browser, and corners of a target.

The browser tests need playwright and an installed Chromium; they are skipped with a reason where either is missing.
"""

from __future__ import annotations

import json
import queue
import shutil
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest
from calibration_rigs import mapped, rig

from duskfuse.data.errors import InputError
from duskfuse.data.homography import load_homography
from duskfuse.data.images import write_picture
from duskfuse.data.rig_calibration import click_server
from duskfuse.data.rig_calibration.board import board_points
from duskfuse.data.rig_calibration.calibrate import calibrate
from duskfuse.data.rig_calibration.click_server import click_points
from duskfuse.data.rig_calibration.frames import Frame, Frames, read_frames

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

SCENE, IR, VIS = (480, 640), (120, 160), (240, 320)
PLACES = np.array([[12, 14], [140, 18], [146, 104], [20, 100], [80, 60], [110, 30]], float)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("no Chromium is installed (Debian: apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


def frames() -> Frames:
    rng = np.random.default_rng(0)
    planes = [rng.uniform(0, 1, size).astype(np.float32) for size in (IR, VIS)]
    return Frames((Frame("one", *planes), Frame("<b>two", *planes)), IR, VIS, 2, 0)


class Serving:
    """The page of a session, and what becomes of it."""

    def __init__(self, address: str, results: queue.Queue[object]) -> None:
        self.address, self.results = address, results

    def result(self) -> object:
        return self.results.get(timeout=20)


@contextmanager
def serving() -> Iterator[Serving]:
    addresses: queue.Queue[str] = queue.Queue()
    results: queue.Queue[object] = queue.Queue()

    def serve() -> None:
        try:
            results.put(click_points(frames(), 0, addresses.put))
        except InputError as error:
            results.put(error)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    page = Serving(addresses.get(timeout=20), results)
    yield page
    if thread.is_alive():
        request(page.address + "quit", b"[]")
    thread.join(timeout=20)
    assert not thread.is_alive()


def request(address: str, body: bytes | None = None, host: str | None = None) -> tuple[int, bytes]:
    headers = {"Host": host} if host else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(address, body, headers), timeout=20) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def click(page: Page, side: str, point: np.ndarray, size: tuple[int, int]) -> None:
    image = page.locator(f"figure[data-side={side}] img")
    box = image.bounding_box()
    assert box is not None
    x, y = (point[0] + 0.5) / size[1] * box["width"], (point[1] + 0.5) / size[0] * box["height"]
    image.click(position={"x": x, "y": y})


def opened(browser: Browser, address: str) -> tuple[Page, list[str]]:
    page = browser.new_page(viewport={"width": 1300, "height": 900})
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(address)
    page.locator("figure img").first.evaluate(
        "picture => picture.decode()"
    )  # polling is forbidden by the page's policy
    return page, complaints


def test_points_are_clicked_moved_taken_back_and_saved(browser: Browser) -> None:
    """What arrives is within a screen pixel of what was clicked: a quarter of an infrared pixel here."""
    cameras = rig(np.random.default_rng(3), SCENE, IR, VIS, scale=0.9)
    seen = mapped(cameras.homography, PLACES)
    with serving() as session:
        page, complaints = opened(browser, session.address)
        assert page.locator("#frame option").all_inner_texts() == ["one", "<b>two"]
        for number, (own, other) in enumerate(zip(PLACES, seen, strict=True)):
            click(page, "ir", own, IR)
            click(page, "vis", other, VIS)
            assert page.locator("#save").is_enabled() is False or number >= 3
        page.locator("#state", has_text="6 of 6 pairs agree").wait_for()
        click(page, "ir", PLACES[0] + 30, IR)
        page.locator(".mark.hint").wait_for()  # where the visible place should be
        page.locator("#undo").click()
        for _ in range(4):
            page.keyboard.press("Shift+ArrowRight")
        page.locator("tr.wrong").wait_for()
        page.locator("tr.wrong button").click()
        page.locator("#state", has_text="5 of 5 pairs agree").wait_for()
        assert page.locator(".mark").count() == 10
        page.locator("#frame").select_option(index=1)
        assert page.locator(".mark").count() == 0
        page.locator("#save").click()
        page.locator("#state", has_text="Saved").wait_for()
        points = session.result()
        assert complaints == []
        page.close()
    assert isinstance(points, np.ndarray)
    assert np.abs(points[:, :2] - PLACES[:5]).max() < 0.3
    assert np.abs(points[:, 2:] - seen[:5]).max() < 0.6


def test_giving_up_and_bad_points_write_nothing(browser: Browser) -> None:
    with serving() as session:
        page, _ = opened(browser, session.address)
        for place in PLACES[:4]:
            click(page, "ir", place * [1, 0] + [0, 40], IR)
            click(page, "vis", place * [1, 0] + [0, 80], VIS)
        page.locator("#state", has_text="on one line").wait_for()
        assert page.locator("#save").is_disabled()
        page.locator("#quit").click()
        assert "nothing was saved" in str(session.result())
        page.close()


def test_only_the_page_is_answered() -> None:
    """Without the secret, by another name of the host, or with content that is none."""
    with serving() as session:
        root = session.address.rsplit("/", 2)[0]
        assert (
            request(root + "/")[0]
            == request(root + "/click_page.js")[0]
            == request(root + "/wrong/quit", b"")[0]
            == 404
        )
        assert request(session.address, host="evil.example:80")[0] == 404
        assert request(session.address + "../points.py")[0] == 404
        assert request(session.address + "ir-7.png")[0] == 404
        for body in (b"{", b"[[1, 2, 3]]", b"[[1, 2, 3, 1e999]]", b"[" * 5000):
            status, answer = request(session.address + "fit", body)
            assert status == 200
            assert "error" in json.loads(answer)
        assert request(session.address + "ir-1.png")[1].startswith(b"\x89PNG")
        assert session.results.empty()


def test_a_port_that_is_taken_is_named() -> None:
    with serving() as session:
        port = int(session.address.split(":")[2].split("/")[0])
        with pytest.raises(InputError, match=f"port {port}.*--port"):
            click_points(frames(), port)


def test_clicks_become_a_homography_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cameras = rig(np.random.default_rng(3), SCENE, IR, VIS, scale=0.9)
    for side, frame in (("ir", frames().chosen[0].ir), ("vis", frames().chosen[0].vis)):
        write_picture(tmp_path / f"{side}.png", frame)

    def press(address: str) -> None:
        rows = np.column_stack([PLACES, mapped(cameras.homography, PLACES)])
        answer = json.loads(request(address + "save", json.dumps(rows.tolist()).encode())[1])
        assert answer["kept"] == len(PLACES)

    monkeypatch.setattr(click_server, "_print_address", press)
    report = calibrate(tmp_path / "ir.png", tmp_path / "vis.png", tmp_path / "rig.json", click=True, port=0)
    assert cameras.error(np.array(report.homography.matrix)) < 0.01
    assert load_homography(tmp_path / "rig.json").vis_size == VIS
    assert json.loads((tmp_path / "rig.json").read_text())["provenance"]["method"] == "clicks"


def chessboard(columns: int, rows: int) -> np.ndarray:
    """A scene with a board of ``columns`` × ``rows`` inner corners on grey."""
    field = 36
    squares = (np.indices((rows + 1, columns + 1)).sum(0) % 2).astype(np.float32)
    board = np.kron(squares, np.ones((field, field), np.float32)) * 0.8 + 0.1
    picture = np.full(SCENE, 0.9, np.float32)
    top, left = (SCENE[0] - board.shape[0]) // 2, (SCENE[1] - board.shape[1]) // 2
    picture[top : top + board.shape[0], left : left + board.shape[1]] = board
    return picture


def test_corners_of_a_warm_board(tmp_path: Path) -> None:
    """The infrared camera sees it blurred, weak, noisy, and with dark and bright exchanged."""
    cameras = rig(np.random.default_rng(6), SCENE, (240, 320), (480, 640), scale=1.0, angle=4)
    rng = np.random.default_rng(0)
    scene = chessboard(9, 6)
    warm = cv2.GaussianBlur(0.4 + 0.15 * (1 - scene), (0, 0), 2)
    ir, vis = cameras.shoot(warm, scene)
    write_picture(tmp_path / "ir.png", ir + rng.normal(0, 0.004, ir.shape))
    write_picture(tmp_path / "vis.png", vis + rng.normal(0, 0.01, vis.shape))
    report = calibrate(tmp_path / "ir.png", tmp_path / "vis.png", tmp_path / "rig.json", board="9x6")
    assert report.points is not None
    assert len(report.points.kept) == 9 * 6
    error = cameras.error(np.array(report.homography.matrix))
    print(f"board: {error:.2f} px")
    assert error < 1.0


def test_boards_that_are_not_there_or_not_named_are_refused(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png", np.random.default_rng(0).uniform(0, 1, (48, 64)))
    with pytest.raises(InputError, match="found by both cameras in none of 1"):
        board_points(read_frames(tmp_path / "a.png", tmp_path / "a.png", 1), "5x4")
    for text in ("9", "9x", "2x6", "99x6", "9x6x2"):
        with pytest.raises(InputError, match="board"):
            calibrate(tmp_path / "a.png", tmp_path / "a.png", tmp_path / "rig.json", board=text)
    with pytest.raises(InputError, match="clicks and board together"):
        calibrate(tmp_path / "a.png", tmp_path / "a.png", tmp_path / "rig.json", board="9x6", click=True)
