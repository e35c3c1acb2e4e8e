"""Live use: real videos through the pipeline, order, times, stalls, shutdown, errors, bounded memory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from duskfuse.export.onnx_graph import DeployedStudent, build_graph, save_graph
from duskfuse.export.runtime.__main__ import main
from duskfuse.export.runtime.capture import Handover, Stopped
from duskfuse.export.runtime.errors import DeviceError, DeviceInputError
from duskfuse.export.runtime.fuser import EdgeFuser
from duskfuse.export.runtime.live import LiveOptions, run_live
from duskfuse.export.runtime.live_statistics import memory_mb
from duskfuse.export.runtime.network import OnnxNetwork
from duskfuse.export.runtime.pipeline import Pipeline, Settings
from duskfuse.export.runtime.sources import Frame
from duskfuse.export.runtime.thermal import ThermalInput
from duskfuse.students.zoo import load_student

av = pytest.importorskip("av")
from live_videos import (  # noqa: E402
    SIZE,
    Average,
    Collected,
    TestCamera,
    number_of,
    numbered,
    read_video,
    scene,
    side_frames,
    write_pair,
    write_video,
)

STEADY = [(number, number / 25) for number in range(40)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "nano.onnx"
    save_graph(build_graph(DeployedStudent(load_student("nano")[0])), path)
    return path


def live(*arguments: str | Path) -> int:
    return main(["live", "--threads", "1", *map(str, arguments)])


def run(ir: str, vis: str, network: Any, **options: Any) -> dict[str, Any]:
    return run_live(LiveOptions(ir, vis, quiet=True, **options), network, ThermalInput(video=True))


def until(condition: Any, seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return False


def test_two_videos_become_one_with_every_frame_at_its_time(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(1)
    stamps = [(n, t + (rng.uniform(-0.008, 0.008) if n else 0)) for n, t in STEADY]  # a jittering visible camera
    ir, vis = write_pair(tmp_path, STEADY, stamps)
    out = tmp_path / "made" / "fused.mp4"
    threads = cv2.getNumThreads()
    assert live("--ir", ir, "--vis", vis, "--model", model, "--out", out, "--stats", tmp_path / "s.json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "s.json").read_text())
    assert printed["frames"] == printed["paired"] == 40
    assert set(printed["stages_ms"]) == {"read ir", "read vis", "prepare", "fuse", "finish", "write"}
    assert set(printed["stages_cpu_ms"]) == set(printed["stages_ms"])
    assert cv2.getNumThreads() == threads, "OpenCV's threads are as before the run"
    assert sum(printed["dropped"].values()) == sum(printed["unpaired"].values()) == 0
    frames = read_video(out)
    assert [number_of(picture) for _, picture in frames] == list(range(40))
    np.testing.assert_allclose([stamp for stamp, _ in frames], [stamp for _, stamp in stamps], atol=2e-4)
    assert os.listdir(out.parent) == ["fused.mp4"], "no temporary file is left"


def test_the_pictures_are_those_of_the_fuser(model: Path, tmp_path: Path) -> None:
    """PNG output equals `EdgeFuser` on the decoded frames, and FFV1 keeps them but for the chroma's resolution."""
    ir, vis = write_pair(tmp_path, STEADY[:6], STEADY[:6])
    outs = [str(tmp_path / "pictures"), str(tmp_path / "fused.mkv")]
    run(ir, vis, OnnxNetwork(model, 1), out=outs)
    captures = [cv2.VideoCapture(path) for path in (ir, vis)]
    fuser = EdgeFuser(model, threads=1)
    video = read_video(tmp_path / "fused.mkv")
    for number in range(6):
        grey, colour = (capture.read()[1] for capture in captures)
        want = fuser.fuse(cv2.cvtColor(grey, cv2.COLOR_BGR2GRAY), colour, "BGR")
        np.testing.assert_array_equal(cv2.imread(str(tmp_path / "pictures" / f"{number:06d}.png")), want)
        stored = cv2.cvtColor(video[number][1], cv2.COLOR_RGB2GRAY).astype(int)
        assert np.abs(stored - cv2.cvtColor(want, cv2.COLOR_BGR2GRAY)).mean() < 1.5


def test_a_folder_of_pictures_with_times_can_be_read_back(tmp_path: Path) -> None:
    _, vis = write_pair(tmp_path, STEADY[:8], [(n, t * 1.5) for n, t in STEADY[:8]])
    first = run(vis, vis, Average(), out=[str(tmp_path / "one")])
    assert (tmp_path / "one" / "times.csv").read_text().splitlines()[:3] == [
        "name,seconds",
        "000000.png,0.000000",
        "000001.png,0.060000",
    ]
    again = run(str(tmp_path / "one"), f"{tmp_path}/one/%06d.png", Average(), out=[str(tmp_path / "two.mp4")])
    assert first["frames"] == again["frames"] == 8
    np.testing.assert_allclose(
        [t for t, _ in read_video(tmp_path / "two.mp4")], [t * 1.5 for _, t in STEADY[:8]], atol=2e-4
    )
    steady = run(f"{tmp_path}/one/*.png,fps=10", f"{tmp_path}/one,fps=10", Average(), out=[str(tmp_path / "three.mp4")])
    assert steady["frames"] == 8
    assert read_video(tmp_path / "three.mp4")[-1][0] == pytest.approx(0.7)


def test_drops_stalls_and_the_death_of_a_stream(tmp_path: Path) -> None:
    """Infrared loses frame 4, is away from 10 to 24 and dies at 32: the picture goes on, and says so."""
    left = [(n, t) for n, t in STEADY if n != 4 and not 10 <= n < 25 and n < 32]
    ir, vis = write_pair(tmp_path, left, STEADY)
    state = run(ir, vis, Average(), out=[str(tmp_path / "out.mp4")], settings=Settings(max_skew=0.015, stall=0.3))
    frames = read_video(tmp_path / "out.mp4")
    assert [number_of(picture) for _, picture in frames] == [n for n in range(40) if n != 4]
    bars = [picture[1, 1, 0] > 150 and picture[1, 1, 1] < 90 for _, picture in frames]
    assert [n for n, bar in zip([n for n in range(40) if n != 4], bars, strict=True) if bar] == [
        *range(10, 25),
        *range(32, 40),
    ]
    assert state["alone"] == {"ir": 0, "vis": 23}
    assert state["unpaired"] == {"ir": 0, "vis": 1}
    assert state["stalls"] == {"ir": 2, "vis": 0}
    assert state["missing"] == "ir"


def test_side_by_side_shows_the_paired_frames(tmp_path: Path) -> None:
    ir, vis = write_pair(tmp_path, STEADY[:5], STEADY[:5])
    run(ir, vis, Average(), out=[str(tmp_path / "o.mp4")], settings=Settings(compare=True, overlay=True))
    frames = read_video(tmp_path / "o.mp4")
    assert frames[0][1].shape == (SIZE[0], 3 * SIZE[1], 3)
    for number, (_, picture) in enumerate(frames):
        assert [number_of(picture, part * SIZE[1]) for part in (1, 2)] == [number, number]


def test_sixteen_bit_video_is_read_as_stored(tmp_path: Path) -> None:
    counts = [20_000 + 10 * numbered(scene()[0], n).astype(np.uint16) for n in range(4)]
    write_video(tmp_path / "ir.mkv", counts, [n / 25 for n in range(4)], "ffv1")
    write_video(tmp_path / "vis.mp4", side_frames(range(4), "vis"), [n / 25 for n in range(4)])
    options = LiveOptions(f"{tmp_path}/ir.mkv", f"{tmp_path}/vis.mp4", [f"{tmp_path}/o.mp4"], quiet=True)

    class Infrared(Average):
        def __init__(self) -> None:
            self.seen: list[NDArray[np.float32]] = []

        def run(self, ir: NDArray[np.float32], vis: NDArray[np.float32]) -> NDArray[np.float32]:
            self.seen.append(ir)
            return ir

    network = Infrared()
    run_live(options, network, ThermalInput((20_000, 22_550)))
    for got, stored in zip(network.seen, counts, strict=True):
        np.testing.assert_allclose(got, (stored - 20_000.0) / 2550, atol=1e-6)


def test_odd_sizes_are_written(tmp_path: Path) -> None:
    pictures = [cv2.resize(numbered(scene()[1], n), (97, 65)) for n in range(3)]
    for side in ("a", "b"):
        (tmp_path / side).mkdir()
        for number, picture in enumerate(pictures):
            cv2.imwrite(str(tmp_path / side / f"{number}.png"), picture)
    run(f"{tmp_path}/a,fps=5", f"{tmp_path}/b,fps=5", Average(), out=[f"{tmp_path}/o.mp4"])
    assert read_video(tmp_path / "o.mp4")[0][1].shape == (66, 98, 3)


def test_wrong_use_is_one_message(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ir, vis = write_pair(tmp_path, STEADY[:3], STEADY[:3])
    there = tmp_path / "there.mp4"
    there.write_bytes(b"mine")
    cases = [
        (["--ir", "nowhere.mp4", "--out", tmp_path / "o.mp4"], "nowhere.mp4 is not there"),
        (["--ir", ir], "no output"),
        (["--ir", ir, "--out", there], "there already"),
        (["--ir", ir, "--out", tmp_path / "o.avi"], ".mp4 or .mkv"),
        (["--ir", ir, "--out", ir, "--overwrite"], "is an input"),
        (["--ir", ir + ",fps=5", "--out", tmp_path / "o.mp4"], "fps= in"),
        (["--ir", "/dev/video99", "--out", tmp_path / "o.mp4"], "live source"),
        (["--ir", "/dev/video99,size=big", "--out", tmp_path / "o.mp4"], "WIDTHxHEIGHT"),
        (["--ir", tmp_path / "*.gif", "--out", tmp_path / "o.mp4"], "is not there"),
        (["--ir", ir, "--out", "http://x/y"], "rtsp"),
        (["--ir", ir, "--web", "host", "--out", tmp_path / "o.mp4"], "web address"),
        (["--ir", ir, "--out", tmp_path / "o.mp4", "--max-skew", "0"], "--max-skew"),
    ]
    for arguments, wanted in cases:
        assert live("--vis", vis, "--model", model, *arguments) == 2, arguments
        message = capsys.readouterr().err
        assert wanted in message, arguments
        assert "Traceback" not in message
    assert there.read_bytes() == b"mine"
    assert not (tmp_path / "o.mp4").exists()


def test_cameras_that_are_not_there_are_one_message(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"video9\d cannot be opened"):
        run("/dev/video99", "/dev/video98", Average(), out=[f"{tmp_path}/o.mp4"])
    with pytest.raises(DeviceError, match="cannot be opened"):
        run("nosuchsource ! appsink", "nosuchsource ! appsink", Average(), out=[f"{tmp_path}/o.mp4"])
    with pytest.raises(DeviceError, match="cannot be opened") as caught:
        run("rtsp://me:secret@127.0.0.1:9/a", "rtsp://me:secret@127.0.0.1:9/b", Average(), out=[f"{tmp_path}/o.mp4"])
    assert "secret" not in str(caught.value)


def test_a_damaged_input_keeps_what_came_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for side in ("a", "b"):
        (tmp_path / side).mkdir()
        for number, picture in enumerate(side_frames(range(9), "vis")):
            cv2.imwrite(str(tmp_path / side / f"{number}.png"), picture)
    (tmp_path / "b" / "6.png").write_bytes(b"broken")
    with pytest.raises(DeviceInputError, match=r"6\.png cannot be read"):
        run(f"{tmp_path}/a", f"{tmp_path}/b", Average(), out=[f"{tmp_path}/o.mp4"])
    assert [number_of(picture) for _, picture in read_video(tmp_path / "o.mp4")] == list(range(6))


class Paced:
    """A file-like source of numbered frames, 30 a second by their times, each of which takes ``pause`` to read."""

    live, note = False, None

    def __init__(self, side: str, pause: float, count: int = 40, broken_at: int | None = None) -> None:
        self.name, self.given = side, 0
        self._pause, self._broken_at = pause, broken_at
        self._pictures = side_frames(range(count), side)

    def open(self) -> None:
        pass

    def read(self) -> Frame | None:
        time.sleep(self._pause)
        if self.given == self._broken_at:
            raise DeviceInputError(f"{self.name} frame {self.given} cannot be read")
        if self.given == len(self._pictures):
            return None
        self.given += 1
        return Frame((self.given - 1) / 30, self._pictures[self.given - 1])

    def close(self) -> None:
        pass


class Partners(Average):
    """Notes which infrared frame the network got with which visible frame."""

    def __init__(self) -> None:
        self.pairs: list[tuple[int, int]] = []

    def run(self, ir: NDArray[np.float32], vis: NDArray[np.float32]) -> NDArray[np.float32]:
        self.pairs.append((number_of((255 * ir).astype(np.uint8)), number_of((255 * vis).astype(np.uint8))))
        return super().run(ir, vis)


@pytest.mark.parametrize("slow", ["ir", "vis"])
@pytest.mark.parametrize("broken", ["ir", "vis"])
def test_a_source_that_fails_waits_for_a_lagging_one(slow: str, broken: str) -> None:
    """The sixth frame cannot be read while the other source is many frames behind, or ahead: no frame is paired with
    a neighbour (33 ms away, allowed by the default of 60 ms) for want of its own partner, and the other file is not
    read to its end."""
    sources: Any = {
        side: Paced(side, 0.03 if side == slow else 0.0, broken_at=6 if side == broken else None)
        for side in ("ir", "vis")
    }
    network = Partners()
    pipeline = Pipeline(sources, network, ThermalInput(video=True), [Collected()])
    pipeline.start()
    assert pipeline.wait(20)
    pipeline.close()
    assert network.pairs == [(number, number) for number in range(6)]
    assert isinstance(pipeline.error, DeviceInputError)
    assert all(source.given < 20 for source in sources.values())
    assert pipeline.statistics.alone == {"ir": 0, "vis": 0}


def test_files_that_are_stopped_pair_no_frame_with_a_neighbour() -> None:
    sources: Any = {"ir": Paced("ir", 0.03), "vis": Paced("vis", 0.0)}
    network, out = Partners(), Collected()
    pipeline = Pipeline(sources, network, ThermalInput(video=True), [out])
    pipeline.start()
    assert until(lambda: len(out.stamps) >= 5)
    pipeline.finish()
    assert pipeline.wait(20)
    pipeline.close()
    assert pipeline.error is None
    assert network.pairs == [(number, number) for number in range(len(out.stamps))]
    assert 5 <= len(out.stamps) < 40


def test_an_error_in_a_stage_is_one_message_and_keeps_what_was_written(tmp_path: Path) -> None:
    class Failing(Average):
        runs = 0

        def run(self, ir: NDArray[np.float32], vis: NDArray[np.float32]) -> NDArray[np.float32]:
            self.runs += 1
            if self.runs == 30:
                time.sleep(0.3)  # what came before is written meanwhile
                raise RuntimeError("the device has fallen off the bus\nlong details")
            return super().run(ir, vis)

    ir, vis = write_pair(tmp_path, STEADY, STEADY)
    with pytest.raises(DeviceError, match=r"stage `fuse`: RuntimeError: the device has fallen off the bus$"):
        run(ir, vis, Failing(), out=[f"{tmp_path}/o.mp4"])
    assert [number_of(picture) for _, picture in read_video(tmp_path / "o.mp4")] == list(range(29))


def test_an_output_that_cannot_be_written_is_one_message(tmp_path: Path) -> None:
    ir, vis = write_pair(tmp_path, STEADY[:3], STEADY[:3])
    (tmp_path / "file").write_text("no folder")
    with pytest.raises((DeviceError, OSError)):
        run(ir, vis, Average(), out=[f"{tmp_path}/file/o.mp4"])


@pytest.mark.parametrize("kill", [signal.SIGINT, signal.SIGTERM])
def test_the_user_ends_it_and_the_file_is_complete(model: Path, tmp_path: Path, kill: signal.Signals) -> None:
    many = [(n % 4096, n / 25) for n in range(1500)]
    ir, vis = write_pair(tmp_path, many, many)
    arguments = [
        "live",
        "--ir",
        ir,
        "--vis",
        vis,
        "--model",
        str(model),
        "--threads",
        "1",
        "--out",
        f"{tmp_path}/o.mp4",
    ]
    code = f"import sys; from duskfuse.export.runtime.__main__ import main; sys.exit(main({arguments!r}))"
    child = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert until(lambda: list(tmp_path.glob(".o.*.part.mp4")), 30)
    time.sleep(0.3)
    child.send_signal(kill)
    out, err = child.communicate(timeout=30)
    assert child.returncode == 130, err
    assert "Traceback" not in err
    numbers = [number_of(picture) for _, picture in read_video(tmp_path / "o.mp4")]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) == json.loads(out)["frames"] < 1500
    assert not list(tmp_path.glob(".o.*"))


class Numbers:
    """A file-like source of tiny frames without end but ``count``."""

    live, note, name = False, None, "numbers"

    def __init__(self, count: int, colour: bool) -> None:
        self.count, self.read_so_far = count, 0
        self._picture = np.full((16, 16, 3) if colour else (16, 16), 90, np.uint8)

    def open(self) -> None:
        pass

    def read(self) -> Frame | None:
        if self.read_so_far == self.count:
            return None
        self.read_so_far += 1
        return Frame(self.read_so_far / 100, self._picture.copy())

    def close(self) -> None:
        pass


class Discarded(Collected):
    """Counts, and looks at the memory now and then."""

    count = 0

    def __init__(self) -> None:
        super().__init__()
        self.memory: list[float] = []

    def write(self, picture: NDArray[np.uint8], stamp: float) -> None:
        self.count += 1
        if self.count % 1000 == 0:
            self.memory.append(memory_mb() or 0)


def test_memory_is_bounded_over_ten_thousand_frames() -> None:
    out = Discarded()
    sources: Any = {"ir": Numbers(10_000, False), "vis": Numbers(10_000, True)}
    pipeline = Pipeline(sources, Average(), ThermalInput(video=True), [out])
    pipeline.start()
    assert pipeline.wait(60)
    pipeline.close()
    assert pipeline.error is None
    assert out.count == 10_000
    assert out.memory[-1] - out.memory[1] < 4, out.memory


def test_the_stages_overlap() -> None:
    """The network may not finish a frame before the reader has read two further: one after another would hang."""
    sources: Any = {"ir": Numbers(30, False), "vis": Numbers(30, True)}

    class Waiting(Average):
        runs, overlapped = 0, 0

        def run(self, ir: NDArray[np.float32], vis: NDArray[np.float32]) -> NDArray[np.float32]:
            self.runs += 1
            self.overlapped += until(lambda: sources["vis"].read_so_far >= min(30, self.runs + 2), 5)
            return super().run(ir, vis)

    network = Waiting()
    pipeline = Pipeline(sources, network, ThermalInput(video=True), [Collected()])
    pipeline.start()
    assert pipeline.wait(30)
    pipeline.close()
    assert network.overlapped == network.runs == 30


def test_a_live_camera_is_lost_and_comes_back() -> None:
    ir, vis, out, said = TestCamera("ir"), TestCamera("vis"), Collected(), []
    sources: Any = {"ir": ir, "vis": vis}
    pipeline = Pipeline(sources, Average(), ThermalInput(video=True), [out], Settings(stall=0.2), said.append)
    pipeline.start()
    statistics = pipeline.statistics
    assert until(lambda: statistics.paired > 20)
    ir.flowing.clear()  # stalls without ending
    assert until(lambda: statistics.alone["vis"] > 10)
    assert statistics.missing == "ir"
    ir.flowing.set()
    assert until(lambda: statistics.missing is None)
    before = statistics.paired
    assert until(lambda: statistics.paired > before + 10)
    vis.plugged.clear()  # its connection ends
    assert until(lambda: statistics.alone["ir"] > 10)
    vis.plugged.set()
    assert until(lambda: statistics.missing is None)
    pipeline.finish()
    assert pipeline.wait(10)
    pipeline.close()
    state = pipeline.to_json()
    assert pipeline.error is None
    assert (ir.opened, vis.opened) == (1, 2)
    assert state["lost"] == {"ir": 0, "vis": 1}
    assert min(state["stalls"].values()) >= 1
    assert said == ["vis camera is lost; trying to reach it again", "vis camera is back"]
    assert out.stamps == sorted(out.stamps)
    assert out.closed == 1


def test_a_slow_stage_drops_frames_and_never_queues_them() -> None:
    class Slow(Average):
        def run(self, ir: NDArray[np.float32], vis: NDArray[np.float32]) -> NDArray[np.float32]:
            time.sleep(0.1)
            return super().run(ir, vis)

    sources: Any = {"ir": TestCamera("ir"), "vis": TestCamera("vis")}
    out = Collected()
    pipeline = Pipeline(sources, Slow(), ThermalInput(video=True), [out])
    pipeline.start()
    assert until(lambda: pipeline.statistics.frames >= 12, 20)
    pipeline.finish()
    assert pipeline.wait(10)
    pipeline.close()
    state = pipeline.to_json()
    assert sum(state["dropped"].values()) > state["frames"], "at 50 against 10 a second most frames are late"
    assert state["latency_ms"]["p50"] < 600, "a queue would make the age grow with every frame"
    assert out.stamps == sorted(out.stamps)


def test_handover_between_threads() -> None:
    queue, got = Handover(2), []
    thread = threading.Thread(target=lambda: [queue.put(number) for number in range(200)] and queue.close())
    thread.start()
    while (item := queue.take()) is not None:
        got.append(item)
        assert len(queue._items) <= 2
    thread.join()
    assert got == list(range(200))
    assert queue.over
    newest = Handover(1, newest=True)
    for number in range(5):
        newest.put(number)
    assert (newest.take(), newest.dropped, newest.take(timeout=0)) == (4, 4, None)
    newest.stop()
    with pytest.raises(Stopped):
        newest.take()
    with pytest.raises(Stopped):
        newest.put(1)
