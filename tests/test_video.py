"""Stability of videos: motion against known translations, errors and flicker against slow forms, sequences, faults."""

from __future__ import annotations

import csv
import json
import weakref
from itertools import pairwise
from math import floor, isnan
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console
from typer.testing import CliRunner

from duskfuse.cli import app
from duskfuse.data.errors import InputError
from duskfuse.data.images import read_grey_u8, write_picture
from duskfuse.data.layout import find_pairs
from duskfuse.data.pair_files import PairFiles, SourcePicture
from duskfuse.data.progress import set_quiet
from duskfuse.data.scenes import render_scene
from duskfuse.evaluate import video
from duskfuse.evaluate.frame_sequences import frame_sequences
from duskfuse.evaluate.optical_flow import Flow, motion, seen_before, warp
from duskfuse.evaluate.report import Page
from duskfuse.evaluate.scores import Kind
from duskfuse.evaluate.source_pictures import SourcePictures
from duskfuse.evaluate.video import Measure, VideoStability, video_stability
from duskfuse.evaluate.video_report import add_video, video_table

SIZE = (96, 128)
STEP = (2, 3)
"""Rows and columns that the synthetic camera moves per frame."""
FRAMES = 6
GAINS = [1.0, 1.1, 0.95, 1.05, 0.9, 1.0]
TRIVIAL = ["average", "maximum", "visible only", "infrared only"]


def texture(seed: int) -> NDArray[np.float64]:
    """A smooth random picture of 60 to 180 grey levels, larger than a frame."""
    rough = np.random.default_rng(seed).normal(0, 1, (SIZE[0] + 60, SIZE[1] + 60))
    smooth = cv2.GaussianBlur(rough, (0, 0), 2.5)
    return 60 + 120 * (smooth - smooth.min()) / np.ptp(smooth)


def window(world: NDArray[np.float64], number: int) -> NDArray[np.uint8]:
    """What the moving camera sees of the world at a frame."""
    row, column = 10 + STEP[0] * number, 10 + STEP[1] * number
    return np.rint(world[row : row + SIZE[0], column : column + SIZE[1]]).astype(np.uint8)


def average(ir: NDArray[np.uint8], vis: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return ((ir.astype(int) + vis) // 2).astype(np.uint8)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six frames of a moving camera."""
    folder = tmp_path_factory.mktemp("clip") / "a & b"
    for side, seed in (("ir", 0), ("vis", 1)):
        for number in range(FRAMES):
            write_picture(folder / side / f"{number + 8}.png", window(texture(seed), number))
    return folder


def fused_frames(clip: Path, folder: Path, gains: list[float]) -> Path:
    """The average of the two sources, every frame with a gain of its own."""
    for number, gain in enumerate(gains):
        mean = average(*(read_grey_u8(clip / side / f"{number + 8}.png") for side in ("ir", "vis")))
        write_picture(folder / f"{number + 8}.png", np.rint(mean * gain).astype(np.uint8))
    return folder


@pytest.fixture(scope="module")
def measured(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> VideoStability:
    folder = tmp_path_factory.mktemp("fused")
    fused = {
        "stable": fused_frames(clip, folder / "stable", [1.0] * FRAMES),
        "flickering": fused_frames(clip, folder / "flickering", GAINS),
    }
    return video_stability(clip, fused=fused, out=folder / "out")


# motion


@pytest.mark.parametrize("moved", [(0, 0), (2, 3), (-5, 8)])
def test_the_flow_of_a_translation_is_found(moved: tuple[int, int]):
    world = texture(0)
    before, after = (
        np.rint(world[r : r + SIZE[0], c : c + SIZE[1]]).astype(np.uint8)
        for r, c in ((20, 20), (20 + moved[0], 20 + moved[1]))
    )
    found = motion(before, after)
    inner = np.s_[12:-12, 12:-12]
    # what is at (r, c) now was at (r + moved rows, c + moved columns) of the frame before
    error = np.hypot(found.flow[..., 0] - moved[1], found.flow[..., 1] - moved[0])[inner]
    assert error.mean() < 0.1
    assert found.seen[inner].mean() > 0.99
    assert found.error(before, after) < 0.5
    if moved == (-5, 8):
        assert not found.seen[:5].any()
        assert not found.seen[:, -8:].any()
        assert found.seen_share == pytest.approx((1 - 5 / 96) * (1 - 8 / 128), abs=0.03)


def slow_lookup(picture: NDArray[np.floating], row: float, column: float) -> Any:
    """Bilinear value of ``[H, W, C]`` at a place, the border repeated."""
    height, width = picture.shape[:2]
    top, left = floor(row), floor(column)
    value: Any = 0.0
    for r, down in ((top, 1 - (row - top)), (top + 1, row - top)):
        for c, across in ((left, 1 - (column - left)), (left + 1, column - left)):
            value = value + down * across * picture[min(max(r, 0), height - 1), min(max(c, 0), width - 1)]
    return value


def random_flow(seed: int, height: int, width: int) -> Flow:
    rng = np.random.default_rng(seed)
    return cv2.GaussianBlur(rng.normal(0, 12, (height, width, 2)).astype(np.float32), (0, 0), 2)


def test_warp_looks_up_bilinearly():
    picture = np.random.default_rng(0).random((13, 17), dtype=np.float32) * 255
    flow = random_flow(1, 13, 17)
    moved = warp(picture, flow)
    for row in range(13):
        for column in range(17):
            expected = slow_lookup(picture[..., None], row + flow[row, column, 1], column + flow[row, column, 0])[0]
            assert moved[row, column] == pytest.approx(expected, abs=255 / 32)  # OpenCV's steps of 1/32 pixel


def test_seen_before_is_the_forward_backward_check():
    back = random_flow(2, 24, 32)
    forth = (-back + random_flow(3, 24, 32) * 0.2).astype(np.float32)
    found = seen_before(back, forth)
    close = wrong = 0
    for row in range(24):
        for column in range(32):
            w = back[row, column]
            r, c = row + w[1], column + w[0]
            v = slow_lookup(forth, r, c)
            inside = 0 <= r <= 23 and 0 <= c <= 31
            margin = 0.01 * ((w**2).sum() + (v**2).sum()) + 0.5 - ((w + v) ** 2).sum()
            if abs(margin) < 0.1:  # within OpenCV's steps of 1/32 pixel
                close += 1
            else:
                wrong += bool(found[row, column]) != (inside and margin > 0)
    assert wrong == 0
    assert close < 100
    assert 0.1 < found.mean() < 0.9


def test_what_was_hidden_is_left_out():
    """A square that moves over a background of another brightness uncovers what nobody can have seen."""
    ground, square = texture(0)[:96, :128], texture(5)[:40, :40]
    frames = []
    for left in (30, 42):
        frame = ground - 40
        frame[30:70, left : left + 40] = square + 60
        frames.append(np.rint(frame).clip(0, 255).astype(np.uint8))
    found = motion(*frames)
    assert found.seen[34:66, 32:40].mean() < 0.3  # just uncovered
    assert found.seen[34:66, 50:74].mean() > 0.9  # the square
    assert found.seen[:20].mean() > 0.95
    everywhere = np.abs(frames[1] - warp(frames[0].astype(np.float32), found.flow)).mean()
    assert found.error(*frames) < 0.5 * everywhere


def test_nothing_seen_before_is_undefined():
    found = motion(np.zeros((32, 32), np.uint8), np.zeros((32, 32), np.uint8))
    assert found.error(np.zeros((32, 32), np.uint8), np.full((32, 32), 7, np.uint8)) == 7
    found.seen[:] = False
    assert isnan(found.error(np.zeros((32, 32), np.uint8), np.zeros((32, 32), np.uint8)))


def test_frames_too_small_for_motion_say_so():
    with pytest.raises(InputError, match="frames of 40x12 pixels"):
        motion(np.zeros((12, 40), np.uint8), np.zeros((12, 40), np.uint8))


# measures


def test_a_stable_fusion_has_hardly_any_error(measured: VideoStability):
    assert measured.rows == {
        "stable": Kind.FOLDER,
        "flickering": Kind.FOLDER,
        **dict.fromkeys(TRIVIAL, Kind.TRIVIAL),
    }
    for measure in (Measure.E_VIS, Measure.E_IR):
        assert measured.mean("stable", measure) < 0.6  # rounding of two frames to whole levels, and bilinear blur
        assert abs(measured.mean_excess("stable", measure)) < 0.3
        assert measured.sequences[0].seen(measure) == pytest.approx((1 - 2 / 96) * (1 - 3 / 128), abs=0.04)
        assert measured.sequences[0].left_out(measure) == 0


def test_a_flickering_one_has_the_error_of_its_gains(measured: VideoStability, clip: Path):
    mean = [
        average(*(read_grey_u8(clip / side / f"{n + 8}.png") for side in ("ir", "vis"))).mean() for n in range(FRAMES)
    ]
    expected = np.mean([abs(after - before) * mean[n + 1] for n, (before, after) in enumerate(pairwise(GAINS))])
    assert 8 < expected < 18
    for measure in (Measure.E_VIS, Measure.E_IR):
        assert measured.mean("flickering", measure) == pytest.approx(expected, rel=0.05)
        assert measured.mean_excess("flickering", measure) == pytest.approx(expected, rel=0.08)


def test_the_warped_error_is_that_of_the_moved_frames(measured: VideoStability, clip: Path):
    """The slow form: move the frame before by what the camera is known to have moved, away from the border."""
    found = []
    for number in range(1, FRAMES):
        before, after = (
            np.rint(average(*(read_grey_u8(clip / s / f"{n + 8}.png") for s in ("ir", "vis"))) * GAINS[n])
            for n in (number - 1, number)
        )
        down, right = STEP
        found.append(np.abs(after[:-down, :-right] - before[down:, right:]).mean())
    assert measured.mean("flickering", Measure.E_VIS) == pytest.approx(np.mean(found), rel=0.03)


def test_flicker_is_the_deviation_of_the_steps_of_frame_means(measured: VideoStability):
    sequence = measured.sequences[0]
    for row in measured.rows:
        levels = [frame.levels[row] for frame in sequence.frames]
        steps = [after - before for before, after in pairwise(levels)]
        centre = sum(steps) / len(steps)
        expected = (sum((step - centre) ** 2 for step in steps) / len(steps)) ** 0.5
        assert sequence.value(row, Measure.FLICKER) == pytest.approx(expected)
    own = [sequence.value(row, Measure.FLICKER) for row in ("visible only", "infrared only")]
    expected = sequence.value("flickering", Measure.FLICKER) - sum(own) / 2
    assert sequence.excess("flickering", Measure.FLICKER) == pytest.approx(expected)
    assert expected > 8
    assert abs(sequence.excess("stable", Measure.FLICKER)) < 0.3


def test_a_blend_has_no_excess_and_a_drift_no_flicker(tmp_path: Path):
    rng = np.random.default_rng(0)
    for number in range(5):
        for side in ("ir", "vis"):
            noisy = 60 + 10 * number + rng.normal(0, 12, SIZE)
            write_picture(tmp_path / "clip" / side / f"{number}.png", noisy.clip(0, 255).astype(np.uint8))
    found = video_stability(tmp_path / "clip", out=tmp_path / "out")
    for measure in (Measure.E_VIS, Measure.E_IR):
        assert found.mean("average", measure) > 3
        assert found.mean_excess("average", measure) < 0.1
        sources = [found.mean_excess(row, measure) for row in ("visible only", "infrared only")]
        assert sum(sources) == pytest.approx(0)
    assert found.mean("average", Measure.FLICKER) < 0.5


def test_the_model_is_a_row(clip: Path, checkpoint: Path, tmp_path: Path):
    found = video_stability(clip, model=[checkpoint], out=tmp_path / "out")
    assert found.rows["tiny"] is Kind.MODEL
    assert found.mean("tiny", Measure.E_VIS) >= 0


# sequences


def pair(folder: str, stem: str, video_frame: int | None = None) -> PairFiles:
    ir, vis = (SourcePicture(Path(folder) / side / f"{stem}.png", frame=video_frame) for side in ("ir", "vis"))
    words = "__".join([folder] if folder else [])
    name = f"{words}__{ir.stem}" if words else ir.stem
    return PairFiles(name, ir, vis)


def test_frames_are_in_the_order_of_their_numbers():
    found = frame_sequences([pair("x", stem) for stem in ("frame_10", "frame_9", "frame_8", "frame_100")])
    assert [sequence.name for sequence in found] == ["x__frame"]
    assert [files.ir.path.stem for files in found[0].frames] == ["frame_8", "frame_9", "frame_10", "frame_100"]
    assert found[0].step == 1


def test_clips_of_one_folder_and_folders_of_one_name_keep_apart():
    stems = ["a_01", "a_02", "b_01", "b_02", "00001D", "00001N", "00002D", "alone"]
    found = frame_sequences([pair(folder, stem) for folder in ("x", "y") for stem in stems])
    sizes = {(sequence.name, len(sequence.frames)) for sequence in found}
    assert sizes == {
        *((f"{folder}__{clip}", 2) for folder in "xy" for clip in ("a", "b", "D")),
        *((f"{folder}__{clip}", 1) for folder in "xy" for clip in ("N", "alone")),
    }
    places = [pair("", stem) for stem in ("1", "2")]
    other = [PairFiles("3", SourcePicture(Path("q/ir/3.png")), SourcePicture(Path("q/vis/3.png")))]
    assert [sequence.name for sequence in frame_sequences([*places, *other])] == ["vis", "vis (2)"]


def test_a_missing_frame_is_no_step(clip: Path, measured: VideoStability, tmp_path: Path):
    folder = tmp_path / "clip"
    for path in clip.rglob("*.png"):
        if path.stem != "11":
            (folder / path.parent.name).mkdir(parents=True, exist_ok=True)
            (folder / path.parent.name / path.name).write_bytes(path.read_bytes())
    found = video_stability(folder, out=tmp_path / "out").sequences[0]
    assert [frame.name for frame in found.frames if frame.seen] == ["9", "10", "13"]
    errors = {frame.name: frame.errors[Measure.E_IR]["maximum"] for frame in found.frames if frame.seen}
    whole = {frame.name: frame.errors[Measure.E_IR]["maximum"] for frame in measured.sequences[0].frames if frame.seen}
    assert errors == {name: whole[name] for name in errors}
    steps = [
        after.levels["maximum"] - before.levels["maximum"] for before, after in pairwise(found.frames) if after.seen
    ]
    assert found.value("maximum", Measure.FLICKER) == pytest.approx(np.std(steps))


def test_a_cut_is_left_out_of_the_warped_error(tmp_path: Path):
    for number in range(4):
        scene = render_scene(number // 2, size=SIZE)
        for side, picture in (("ir", scene.ir), ("vis", scene.vis)):
            write_picture(tmp_path / "clip" / side / f"{number}.png", picture)
    found = video_stability(tmp_path / "clip", out=tmp_path / "out").sequences[0]
    assert found.left_out(Measure.E_VIS) == 1
    assert found.value("average", Measure.E_VIS) < 0.1
    assert "leaves out 1 step " in (tmp_path / "out" / "video.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("ir", "vis", "name"),
    [
        ("ir/drive.mp4", "vis/drive.mp4", "drive"),
        ("drive/T.mp4", "drive/RGB.mp4", "drive"),
        ("ir.mp4", "vis.mp4", "clip"),
    ],
)
def test_video_files_give_what_their_frames_give(
    ir: str, vis: str, name: str, clip: Path, measured: VideoStability, tmp_path: Path
):
    for side, path in (("ir", ir), ("vis", vis)):
        write_video(tmp_path / "clip" / path, [read_grey_u8(clip / side / f"{n + 8}.png") for n in range(FRAMES)])
    found = video_stability(tmp_path / "clip", out=tmp_path / "out")
    assert [len(sequence.frames) for sequence in found.sequences] == [FRAMES]
    assert found.sequences[0].name == name
    for row in TRIVIAL:  # the codec adds an error of its own
        assert found.mean(row, Measure.E_VIS) == pytest.approx(measured.mean(row, Measure.E_VIS), abs=2)
        levels = [frame.levels[row] for frame in found.sequences[0].frames]
        expected = [frame.levels[row] for frame in measured.sequences[0].frames]
        assert levels == pytest.approx(expected, abs=3)


def write_video(path: Path, frames: list[NDArray[np.uint8]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 30, SIZE[::-1])
    if not writer.isOpened():
        pytest.skip("this OpenCV writes no mp4v")
    for frame in frames:
        writer.write(np.repeat(frame[..., None], 3, axis=2))
    writer.release()


def test_videos_of_different_lengths(tmp_path: Path):
    for side, count in (("ir", 3), ("vis", 4)):
        write_video(tmp_path / "clip" / side / "a.mp4", [window(texture(0), number) for number in range(count)])
    with pytest.raises(InputError, match=r"a\.mp4 holds 3 frames, .*a\.mp4 4"):
        video_stability(tmp_path / "clip", out=tmp_path / "out")


def test_two_frames_are_in_memory_at_a_time(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    alive: weakref.WeakSet[SourcePictures] = weakref.WeakSet()
    most = []

    class Counted(SourcePictures):
        def __init__(self, files: PairFiles) -> None:
            super().__init__(files)
            alive.add(self)
            most.append(len(alive))

    monkeypatch.setattr(video, "SourcePictures", Counted)
    video_stability(clip, out=tmp_path / "out")
    assert len(most) == FRAMES
    assert max(most) == 2


# files, errors


def test_files_and_page(measured: VideoStability, tmp_path: Path):
    def no_constants(name: str) -> Any:
        raise AssertionError(name)

    stored = json.loads((measured.out / "video.json").read_text(), parse_constant=no_constants)
    assert stored == json.loads(json.dumps(measured.to_json()))
    assert stored["sequences"][0]["frames"] == FRAMES
    row = next(row for row in stored["rows"] if row["name"] == "flickering")
    assert row["excess"]["flicker"] == measured.mean_excess("flickering", Measure.FLICKER)
    with (measured.out / "video.csv").open(newline="", encoding="utf-8") as stream:
        lines = list(csv.DictReader(stream))
    assert len(lines) == FRAMES * 6
    first, later = lines[1], lines[7]
    assert (first["frame"], first["method"], first["E_vis"], first["seen_ir"]) == ("8", "flickering", "", "")
    assert float(later["E_vis"]) == measured.sequences[0].frames[1].errors[Measure.E_VIS]["flickering"]
    html = (measured.out / "video.html").read_text(encoding="utf-8")
    page = Page("Other")
    add_video(page, measured)
    console = Console(width=140, record=True, file=(tmp_path / "log").open("w"))
    console.print(video_table(measured))
    shown = console.export_text()
    for text in (html, page.html(), shown):
        assert f"{measured.mean('flickering', Measure.E_VIS):.2f}" in text
        assert f"{measured.mean_excess('flickering', Measure.E_IR):+.2f}" in text
        assert f"{measured.mean_excess('stable', Measure.E_IR):+.2f}".replace("-", "−") in text
    assert "a &amp; b" in html
    assert "http://" not in html


def test_a_damaged_frame_is_named_and_the_others_are_measured(clip: Path, measured: VideoStability, tmp_path: Path):
    folder = tmp_path / "clip"
    for path in clip.rglob("*.png"):
        (folder / path.parent.name).mkdir(parents=True, exist_ok=True)
        stored = path.read_bytes()
        whole = (path.parent.name, path.stem) != ("vis", "11")
        (folder / path.parent.name / path.name).write_bytes(stored if whole else stored[:-300])
    with pytest.raises(InputError, match=r"(?s)1 frames were left out.*11\.png") as caught:
        video_stability(folder, out=tmp_path / "out")
    assert "the others were measured" in str(caught.value)
    stored = json.loads((tmp_path / "out" / "video.json").read_text())
    assert stored["sequences"][0]["frames"] == FRAMES - 1
    assert len(stored["faults"]) == 1
    found = next(row for row in stored["rows"] if row["name"] == "average")
    assert found["mean"]["E_vis"] == pytest.approx(measured.mean("average", Measure.E_VIS), abs=0.1)


def test_frames_of_two_sizes_are_named(clip: Path, tmp_path: Path):
    folder = tmp_path / "clip"
    for path in clip.rglob("*.png"):
        picture = read_grey_u8(path)
        write_picture(folder / path.parent.name / path.name, picture if int(path.stem) < 11 else picture[:64])
    with pytest.raises(InputError, match="10 is 128x96, 11 is 128x64"):
        video_stability(folder, out=tmp_path / "out")


def test_errors(clip: Path, tmp_path: Path):
    with pytest.raises(InputError, match="no fused frame for 10"):
        video_stability(clip, fused={"x": fused_frames(clip, tmp_path / "few", [1.0, 1.0])}, out=tmp_path / "out")
    fused = fused_frames(clip, tmp_path / "fused", [1.0] * FRAMES)
    write_picture(fused / "12.png", np.zeros((20, 30), np.uint8))
    with pytest.raises(InputError, match=r"12\.png is 30x20, its pair is 128x96"):
        video_stability(clip, fused={"x": fused}, out=tmp_path / "out")
    with pytest.raises(InputError, match="two rows are called 'average'"):
        video_stability(clip, fused={"average": fused_frames(clip, fused, [1.0] * FRAMES)}, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    single = tmp_path / "single"
    for side in ("ir", "vis"):
        for name in ("house", "tree"):
            write_picture(single / side / f"{name}.png", np.zeros(SIZE, np.uint8))
    with pytest.raises(InputError, match="no two pictures follow one another"):
        video_stability(single, out=tmp_path / "out")
    video_stability(clip, out=tmp_path / "out")
    with pytest.raises(InputError, match=r"video\.json is there already"):
        video_stability(clip, out=tmp_path / "out")
    video_stability(clip, out=tmp_path / "out", overwrite=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="file is a file"):
        video_stability(clip, out=tmp_path / "file")


def test_from_the_shell(clip: Path, measured: VideoStability, tmp_path: Path):
    for split in ("train", "test"):
        for path in clip.rglob("*.png"):
            copy = tmp_path / "clips" / split / path.parent.name / path.name
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    command = ["evaluate", str(tmp_path / "clips"), "--video", "--out", str(tmp_path / "out"), "--split", "test"]
    try:
        done = CliRunner().invoke(app, [*command, "--json"])
        assert done.exit_code == 0, done.output
        found = json.loads(done.stdout)
        assert len(found["sequences"]) == 1
        average = next(row for row in found["rows"] if row["name"] == "average")
        assert average["mean"]["E_vis"] == pytest.approx(measured.mean("average", Measure.E_VIS))
        done = CliRunner().invoke(app, [*command, "--metrics", "EN"])
        assert done.exit_code == 2
        assert "--metrics with --video" in done.stderr
    finally:
        set_quiet(False)


@pytest.mark.realdata
def test_stretching_every_frame_is_found_to_flicker(shared_data: Path, tmp_path: Path):
    """Per-frame min-max stretching, which many published codes do, on eight real frames."""
    pairs = [files for files in find_pairs(shared_data / "video") if files.name.startswith("0111_1803")][:8]
    for number, files in enumerate(pairs):
        ir, vis = (read_grey_u8(picture.path)[::2, ::2] for picture in (files.ir, files.vis))
        mean = average(ir, vis)
        stretched = (mean - mean.min()) / np.ptp(mean) * 255
        for folder, picture in (("clip/ir", ir), ("clip/vis", vis), ("stretched", np.rint(stretched).astype(np.uint8))):
            write_picture(tmp_path / folder / f"{number}.png", picture)
    found = video_stability(tmp_path / "clip", fused={"stretched": tmp_path / "stretched"}, out=tmp_path / "out")
    assert found.mean_excess("average", Measure.FLICKER) < 0.05
    assert found.mean_excess("stretched", Measure.FLICKER) > 10 * found.mean("average", Measure.FLICKER)
    for measure in (Measure.E_VIS, Measure.E_IR):
        assert found.mean_excess("average", measure) < 0.1 < found.mean_excess("stretched", measure)
