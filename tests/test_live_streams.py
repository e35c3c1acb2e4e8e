"""Network streams over real sockets: RTSP cameras that go and come back, and pushing to a server that does."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from duskfuse.export.runtime.outputs import RtspPush
from duskfuse.export.runtime.pipeline import Pipeline, Settings
from duskfuse.export.runtime.sources import parse_source
from duskfuse.export.runtime.thermal import ThermalInput

av = pytest.importorskip("av")
from live_videos import SIZE, Average, Collected, number_of, numbered, scene, side_frames  # noqa: E402
from rtsp_server import RtspCamera, free_port  # noqa: E402


def until(condition: Any, seconds: float = 30.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return bool(condition())


def listen(port: int, frames: int, got: list[int]) -> None:
    """An RTSP server that takes one push, and hangs up after so many frames."""
    url = f"rtsp://127.0.0.1:{port}/fused"
    with av.open(
        url, options={"rtsp_flags": "listen", "listen_timeout": "20", "analyzeduration": "200000"}
    ) as container:
        for frame in container.decode(video=0):
            got.append(number_of(frame.to_ndarray(format="rgb24")))
            if len(got) >= frames:
                return


def test_two_rtsp_cameras_one_of_which_goes_and_comes_back() -> None:
    grey = [numbered(scene()[0], number)[..., None].repeat(3, 2) for number in range(50)]
    cameras = {"ir": RtspCamera(grey), "vis": RtspCamera(side_frames(range(50), "vis"))}
    sources = {side: parse_source(camera.url) for side, camera in cameras.items()}
    out, said = Collected(), []
    pipeline = Pipeline(sources, Average(), ThermalInput(video=True), [out], Settings(stall=0.4), said.append)
    pipeline.start()
    statistics = pipeline.statistics
    try:
        assert until(lambda: statistics.paired > 15), pipeline.error
        cameras["ir"].cut()
        assert until(lambda: statistics.missing == "ir" and statistics.alone["vis"] > 5)
        assert pipeline.error is None
        before = statistics.paired
        cameras["ir"].start()
        assert until(lambda: statistics.paired > before + 10)
    finally:
        pipeline.finish()
        assert pipeline.wait(15)
        pipeline.close()
        for camera in cameras.values():
            camera.cut()
    assert out.pictures[-1].shape == (*SIZE, 3)
    assert out.stamps == sorted(out.stamps)
    assert said[0].endswith("is lost; trying to reach it again")
    assert said[-1].endswith("is back")
    assert not any("secret" in line for line in said), "passwords in URLs are not shown"


def test_pushing_to_an_rtsp_server_that_goes_and_comes_back() -> None:
    port, said = free_port(), []
    first: list[int] = []
    second: list[int] = []
    server = threading.Thread(target=listen, args=(port, 20, first), daemon=True)
    server.start()
    time.sleep(0.3)
    push = RtspPush(f"rtsp://127.0.0.1:{port}/fused", said.append)
    pictures = [picture[..., ::-1] for picture in side_frames(range(500), "vis")]
    restarted = None
    for number, picture in enumerate(pictures):
        push.write(picture, number / 50)
        time.sleep(0.02)
        if restarted is None and not server.is_alive():
            restarted = threading.Thread(target=listen, args=(port, 10, second), daemon=True)
            restarted.start()
        if len(second) >= 10:
            break
    push.close()
    assert len(first) >= 20
    assert len(second) >= 10, said
    assert first == sorted(first)
    assert second == sorted(second)
    assert second[0] > first[-1], "old pictures are not queued for the server's return"
    assert push.lost >= 1
    assert "trying again" in said[0]


def test_a_server_that_is_not_there_holds_up_nobody() -> None:
    said: list[str] = []
    push = RtspPush(f"rtsp://me:secret@127.0.0.1:{free_port()}/x", said.append)
    started = time.monotonic()
    picture = side_frames([1], "vis")[0]
    while not said and time.monotonic() < started + 10:
        before = time.monotonic()
        push.write(picture, before)
        assert time.monotonic() - before < 1
        time.sleep(0.02)
    push.close()
    assert push.sent == 0
    assert "refused" in said[0]
    assert "secret" not in said[0]
