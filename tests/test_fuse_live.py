"""The ``fuse`` verb on videos and sequences, with any model, and the line between them and plain pictures."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from duskfuse.cli import app
from duskfuse.data.errors import DuskfuseError, InputError
from duskfuse.data.homography import homography_from
from duskfuse.data.images import ThermalRange
from duskfuse.data.reading import Reading
from duskfuse.data.weights import ModelCard, save_weights
from duskfuse.export.fuse_live import fuse_live, thermal_input, wants_live
from duskfuse.export.onnx_graph import DeployedStudent, build_graph, save_graph
from duskfuse.students.mobile import MobileStudent

pytest.importorskip("av")
from live_videos import SIZE, number_of, read_video, side_frames, write_pair

STEADY = [(number, number / 25) for number in range(8)]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return write_pair(tmp_path_factory.mktemp("videos"), STEADY, STEADY)


def call(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["fuse", *map(str, arguments)])
    return result.exit_code, result.stdout, result.stderr


def test_two_videos_by_the_command(videos: tuple[str, str], tmp_path: Path) -> None:
    ir, vis = videos
    out = tmp_path / "out.mp4"
    code, said, errors = call("--ir", ir, "--vis", vis, "--out", out, "--compare", "--json", "--stats", tmp_path / "s")
    assert code == 0, errors
    state = json.loads(said)
    assert (state["model"], state["frames"], state["paired"], state["live"]) == ("edge", 8, 8, False)
    assert json.loads((tmp_path / "s").read_text())["frames"] == 8
    frames = read_video(out)
    assert [number_of(picture, 2 * SIZE[1]) for _, picture in frames] == list(range(8))
    assert frames[0][1].shape == (SIZE[0], 3 * SIZE[1], 3)
    code, _, errors = call("--ir", ir, "--vis", vis, "--out", out)
    assert code == 2
    assert "there already" in errors


def test_a_student_of_colours_fuses_videos(videos: tuple[str, str], tmp_path: Path) -> None:
    torch.manual_seed(0)
    student = MobileStudent(colour="rgb")
    path = tmp_path / "mobile.safetensors"
    save_weights(path, student, ModelCard("mobile", student.settings, "rgb", "0.1.0", "nothing"))
    file = tmp_path / "mobile.onnx"
    save_graph(build_graph(DeployedStudent(student), size=SIZE), file)
    for model in (path, file):
        out = tmp_path / model.suffix
        assert fuse_live(*videos, [str(out)], model=model, quiet=True)["frames"] == 8
    ours, theirs = (cv2.imread(str(tmp_path / kind / "000007.png")) for kind in (".safetensors", ".onnx"))
    assert ours.shape == (*SIZE, 3)
    assert np.abs(ours.astype(int) - theirs).max() <= 1


def test_pictures_and_folders_stay_pictures_and_folders(tmp_path: Path, checkpoint: Path) -> None:
    for side in ("ir", "vis"):
        (tmp_path / side).mkdir()
        for number, picture in enumerate(side_frames(range(3), side)):
            cv2.imwrite(str(tmp_path / side / f"{number}.png"), picture)
    ir, vis = str(tmp_path / "ir"), str(tmp_path / "vis")
    assert not wants_live(ir, vis, ["out"])
    assert not wants_live(f"{ir}/0.png", f"{vis}/0.png", ["o.png"])
    assert wants_live(ir, vis, ["o.mp4"])
    assert wants_live(ir, vis, views=True)
    for text in (
        "a.mp4",
        "0",
        "/dev/video2,format=Y16",
        "rtsp://host/a",
        "videotestsrc ! appsink",
        "f/%06d.png",
        f"{ir},fps=9",
    ):
        assert wants_live(text, vis), text
    code, _, errors = call("--ir", ir, "--vis", vis, "--out", tmp_path / "o.mp4", "--model", checkpoint)
    assert code == 0, errors
    assert len(read_video(tmp_path / "o.mp4")) == 3
    code, _, errors = call("--ir", ir, "--vis", vis, "--out", tmp_path / "o", "--model", checkpoint)
    assert code == 0, errors
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == ["0.png", "1.png", "2.png"]
    code, _, errors = call("--ir", ir, "--vis", vis, "--out", tmp_path / "p", "--max-skew", "0.1")
    assert code == 2
    assert "--max-skew with pictures" in errors
    code, _, errors = call("--ir", ir, "--vis", vis)
    assert code == 2
    assert "--out once" in errors


def test_device_errors_are_the_programs_own(videos: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no output"):
        fuse_live(*videos)
    with pytest.raises(InputError, match=r"gone\.mp4 is not there"):
        fuse_live(videos[0], "gone.mp4", [str(tmp_path / "o.mp4")], quiet=True)
    with pytest.raises(DuskfuseError, match="cannot be opened"):
        fuse_live("/dev/video98", "/dev/video99", [str(tmp_path / "o.mp4")], quiet=True)
    assert list(tmp_path.iterdir()) == []


def test_a_reading_means_the_same_on_the_device() -> None:
    rng = np.random.default_rng(2)
    counts = rng.integers(20_000, 24_000, (32, 40), np.uint16)
    rig = homography_from(
        {"homography": [[1.5, 0, 2], [0, 1.4, 1], [0, 0, 1]], "ir_size": [40, 32], "vis_size": [60, 44]}
    )
    for reading in (
        Reading(ThermalRange(20_500, 23_000), black_hot=True, homography=rig),
        Reading(percentiles=(2, 97), resize_ir=True),
        Reading(resize_ir=True),
    ):
        want = reading.align(reading.plane(counts).ir, (44, 60))
        np.testing.assert_allclose(thermal_input(reading).plane(counts, (44, 60)), want, atol=2e-3)
