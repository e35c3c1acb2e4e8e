"""Video fused in its own planes: the rule of colours, the same picture as through colours, which videos are read so."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from duskfuse.export.runtime import live
from duskfuse.export.runtime.fuser import luminance, recombine
from duskfuse.export.runtime.live import LiveOptions, run_live
from duskfuse.export.runtime.pipeline import Pipeline, Settings
from duskfuse.export.runtime.planes import Planes, bgr_of, grey_of, luminance_of, recombine_planes
from duskfuse.export.runtime.sources import Frame, Source, VideoFile
from duskfuse.export.runtime.thermal import ThermalInput

av = pytest.importorskip("av")
from live_videos import (  # noqa: E402
    SIZE,
    Average,
    Collected,
    number_of,
    numbered,
    read_video,
    scene,
    side_frames,
    write_pair,
    write_video,
)

from duskfuse.export.runtime.planar_video import PlanarVideo, in_planes  # noqa: E402

STEADY = [(number, number / 25) for number in range(24)]


def planes_of(bgr: NDArray[np.uint8]) -> Planes:
    stacked = cv2.cvtColor(bgr, cv2.COLOR_BGR2YUV_I420).reshape(-1)
    height, width = bgr.shape[:2]
    y, u, v = np.split(stacked, [height * width, height * width * 5 // 4])
    return Planes(y.reshape(height, width), u.reshape(height // 2, -1), v.reshape(height // 2, -1))


def visible(seed: int) -> Planes:
    return planes_of(np.ascontiguousarray(scene(seed)[1][..., ::-1]))


def frames_of(source: Source) -> list[Frame]:
    source.open()
    frames = []
    while (frame := source.read()) is not None:
        # the decoder's memory is only lent for as long as somebody holds the frame
        frames.append(frame)
    source.close()
    return frames


def rgb_of_block(y: float, u: float, v: float) -> NDArray[np.float64]:
    """BT.601, limited range, as Recommendation ITU-R BT.601-7 defines it."""
    level, blue, red = (y - 16) / 219, (u - 128) / 224, (v - 128) / 224
    r, b = level + 2 * (1 - 0.299) * red, level + 2 * (1 - 0.114) * blue
    return np.array([r, (level - 0.299 * r - 0.114 * b) / 0.587, b])


def largest_factor(y: float, u: float, v: float) -> float:
    """By trying a thousand: the largest factor of chroma that leaves no colour outside [0, 1]."""
    for factor in np.linspace(1, 0, 1001):
        rgb = rgb_of_block(y, 128 + factor * (u - 128), 128 + factor * (v - 128))
        if rgb.min() >= -1e-9 and rgb.max() <= 1 + 1e-9:
            return float(factor)
    return 0.0


def test_chroma_gives_way_by_the_largest_factor_that_fits() -> None:
    """Random chroma under random luminance, one value for each block, against the slow search: within one level."""
    rng = np.random.default_rng(0)
    vis = Planes(np.zeros((8, 16), np.uint8), *rng.integers(16, 241, (2, 4, 8)).astype(np.uint8))
    blocks = rng.random((4, 8), np.float32)
    blocks[0, :2] = 0, 1
    fused = blocks.repeat(2, 0).repeat(2, 1)
    made = recombine_planes(fused, vis)
    np.testing.assert_array_equal(made.y, np.rint(16 + 219 * fused))
    scaled = 0
    for at in np.ndindex(4, 8):
        u, v = int(vis.u[at]), int(vis.v[at])
        factor = largest_factor(float(made.y[2 * at[0], 2 * at[1]]), u, v)
        scaled += factor < 1
        assert abs(int(made.u[at]) - (128 + factor * (u - 128))) < 0.7
        assert abs(int(made.v[at]) - (128 + factor * (v - 128))) < 0.7
    assert 8 < scaled < 32, "both cases are there"
    assert (made.u[0, :2] == 128).all(), "black and white have no colour"


def test_luminance_outside_its_range_is_brought_into_it() -> None:
    fused = np.array([[-3, 4], [1.01, 0.5]], np.float32).repeat(2, 0).repeat(2, 1)
    made = recombine_planes(fused, Planes(np.zeros((4, 4), np.uint8), *np.full((2, 2, 2), 128, np.uint8)))
    assert made.y[::2, ::2].tolist() == [[16, 235], [235, 126]]


@pytest.mark.parametrize("seed", range(4))
def test_the_picture_is_the_one_made_through_colours(seed: int) -> None:
    """Where both the visible and the fused colours are in range, the planes that are stored differ by one level at
    most from those of `recombine` in colours, the shown colours by two of 255; elsewhere the colour gives way for a
    block at a time instead of a pixel, and the luminance is still the fused one."""
    vis = visible(seed)
    bgr = bgr_of(vis)
    fused = ((scene(seed)[0] / 255 + luminance(bgr, "BGR")) / 2).astype(np.float32)
    got, want = recombine_planes(fused, vis), recombine(fused, bgr, "BGR")
    same = inside(vis) & inside(got._replace(u=vis.u, v=vis.v))
    assert same.mean() > 0.5
    for mine, other in zip(got, planes_of(want), strict=True):
        chosen = same if mine.shape == same.shape else same[::2, ::2]
        assert np.abs(mine.astype(int) - other)[chosen].max() <= 1
    assert np.abs(bgr_of(got).astype(int) - want)[same].max() <= 2
    np.testing.assert_array_equal(got.u[same[::2, ::2]], vis.u[same[::2, ::2]])
    assert np.abs(luminance_of(got) - fused).max() < 0.51 / 219
    np.testing.assert_allclose(luminance_of(vis)[same], luminance(bgr, "BGR")[same], atol=0.7 / 255)
    assert np.abs(grey_of(vis).astype(int) - cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY))[same].max() <= 1


def inside(planes: Planes) -> NDArray[np.bool_]:
    """The blocks, ``[H, W]``, of which no pixel's colour lies outside [0, 1]."""
    u, v = (plane.repeat(2, 0).repeat(2, 1).astype(float) for plane in planes[1:])
    rgb = rgb_of_block(planes.y.astype(float), u, v)
    good = ((rgb >= 0) & (rgb <= 1)).all(0)
    height, width = good.shape
    return good.reshape(height // 2, 2, width // 2, 2).all((1, 3)).repeat(2, 0).repeat(2, 1)


@pytest.mark.parametrize("side", ["ir", "vis"])
def test_a_video_is_the_same_in_planes_as_in_colours(tmp_path: Path, side: str) -> None:
    """The times are OpenCV's, its colours differ by its converter's rounding only, grey by one level."""
    pair = write_pair(tmp_path, [(n, t * 1.03) for n, t in STEADY], STEADY)
    path = pair[side == "vis"]
    source = in_planes(VideoFile(path))
    assert isinstance(source, PlanarVideo)
    got, want = frames_of(source), frames_of(VideoFile(path))
    assert source.note is None
    np.testing.assert_allclose([frame.stamp for frame in got], [frame.stamp for frame in want], atol=1e-4)
    for mine, other in zip(got, want, strict=True):
        assert isinstance(mine.picture, Planes)
        assert isinstance(other.picture, np.ndarray)
        assert np.abs(bgr_of(mine.picture).astype(int) - other.picture).max() <= 3
        within = inside(mine.picture)
        grey = cv2.cvtColor(other.picture, cv2.COLOR_BGR2GRAY)
        assert np.abs(grey_of(mine.picture).astype(int) - grey)[within].max() <= (1 if side == "ir" else 3)


def truncated(content: bytes) -> bytes:
    return content[: len(content) // 2]


def overwritten(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + b"\xff" * 3000 + content[middle + 3000 :]


@pytest.mark.parametrize("damage", [truncated, overwritten])
@pytest.mark.parametrize("ending", [".mp4", ".ts"])
def test_a_damaged_video_gives_what_comes_before(tmp_path: Path, damage: Callable[[bytes], bytes], ending: str) -> None:
    whole = tmp_path / f"whole{ending}"
    with av.open(str(whole), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "12", "g": "6"})
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
        for picture in side_frames(range(24), "vis"):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    path = tmp_path / f"damaged{ending}"
    path.write_bytes(damage(whole.read_bytes()))
    planar, opencv = PlanarVideo(str(path)), VideoFile(str(path))
    got, want = frames_of(planar), frames_of(opencv)
    assert len(want) <= len(got) <= 24, "and not less than OpenCV gets of it, which loses the last frames before"
    stamps = [frame.stamp for frame in got]
    np.testing.assert_allclose(stamps[: len(want)], [frame.stamp for frame in want], atol=1e-3)
    numbers = [number_of(bgr_of(frame.picture)) for frame in got[: len(want)] if isinstance(frame.picture, Planes)]
    assert numbers == [number_of(frame.picture) for frame in want if isinstance(frame.picture, np.ndarray)]
    if ending == ".mp4":
        assert f"ends after {len(got)} of 24 frames" in (planar.note or "")
        assert "of 24 frames" in (opencv.note or "")


def tagged_video(path: Path, kind: str = "yuv420p", **tags: int) -> str:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = *SIZE, kind
        for name, value in tags.items():
            setattr(stream.codec_context, name, value)
        for picture in side_frames(range(3), "vis"):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=kind)
            for name, value in tags.items():
                setattr(frame, name, value)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return str(path)


def test_other_videos_are_left_to_opencv(tmp_path: Path) -> None:
    (tmp_path / "torn.mp4").write_bytes(b"no video")
    others = [
        tagged_video(tmp_path / "bt709.mp4", colorspace=1),
        tagged_video(tmp_path / "full.mp4", color_range=2),
        tagged_video(tmp_path / "chroma.mp4", "yuv444p"),
        str(write_video(tmp_path / "deep.mkv", [np.zeros(SIZE, np.uint16)] * 2, [0, 0.1], "ffv1")),
        str(tmp_path / "torn.mp4"),
    ]
    assert [type(in_planes(VideoFile(path))) for path in others] == [VideoFile] * len(others)
    assert isinstance(in_planes(VideoFile(tagged_video(tmp_path / "bt601.mp4", colorspace=6))), PlanarVideo)


def test_a_video_that_is_turned_by_its_metadata_is_left_to_opencv(tmp_path: Path) -> None:
    path = tmp_path / "turned.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        if not hasattr(stream, "set_display_rotation"):
            pytest.skip("this PyAV writes no rotation")
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
        stream.set_display_rotation(90)
        for picture in side_frames(range(3), "vis"):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    assert isinstance(in_planes(VideoFile(str(path))), VideoFile)


def test_a_stream_that_changes_its_form_midway_goes_on(tmp_path: Path) -> None:
    parts = [tagged_video(tmp_path / f"{kind}.ts", kind) for kind in ("yuv420p", "yuv444p")]
    joined = tmp_path / "joined.ts"
    joined.write_bytes(b"".join(Path(part).read_bytes() for part in parts))
    frames = frames_of(in_planes(VideoFile(str(joined))))
    pictures = [frame.picture for frame in frames]
    assert len(pictures) == 6
    assert all(isinstance(picture, Planes) and picture.u.shape == (SIZE[0] // 2, SIZE[1] // 2) for picture in pictures)
    assert [number_of(bgr_of(picture)) for picture in pictures if isinstance(picture, Planes)] == [0, 1, 2] * 2


def fuse(ir: str, vis: str, out: Path, **options: Any) -> dict[str, Any]:
    return run_live(LiveOptions(ir, vis, [str(out)], quiet=True, **options), Average(), ThermalInput(video=True))


@pytest.mark.parametrize("ending", [".mp4", ".mkv"])
def test_the_fused_video_is_as_good_as_through_colours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    """Against the exact fused picture of the decoded frames, the video through planes loses no more."""
    ir, vis = write_pair(tmp_path, STEADY, STEADY)
    fuse(ir, vis, tmp_path / f"planes{ending}")
    monkeypatch.setattr(live, "in_planes", lambda source: source)
    fuse(ir, vis, tmp_path / f"colours{ending}")
    read = [read_video(tmp_path / f"{way}{ending}") for way in ("planes", "colours")]
    assert [stamp for stamp, _ in read[0]] == [stamp for stamp, _ in read[1]]
    greys = [frame.picture for frame in frames_of(VideoFile(ir))]
    colours = [frame.picture for frame in frames_of(VideoFile(vis))]
    errors = []
    for way in read:
        error = 0.0
        for (_, picture), grey, colour in zip(way, greys, colours, strict=True):
            assert isinstance(grey, np.ndarray)
            assert isinstance(colour, np.ndarray)
            y = (grey[..., 0] / 255 + luminance(colour, "BGR")) / 2
            want = recombine(y.astype(np.float32), colour, "BGR")[..., ::-1]
            error += float(np.square(picture.astype(float) - want).mean()) / len(way)
        errors.append(10 * np.log10(255**2 / error))
    assert errors[0] > errors[1] - 0.1, f"PSNR in dB {errors}"


def test_planes_are_drawn_on_and_shown_where_it_is_needed(tmp_path: Path) -> None:
    """A lone camera's notice, views that take colours, and a folder beside the video."""
    ir, vis = write_pair(tmp_path, STEADY[:12], STEADY)
    state = fuse(ir, vis, tmp_path / "o.mp4", settings=Settings(max_skew=0.015, stall=0.2), web="0")
    assert state["alone"] == {"ir": 0, "vis": 12}
    pictures = [picture for _, picture in read_video(tmp_path / "o.mp4")]
    assert [number_of(picture) for picture in pictures] == list(range(24))
    bars = [picture[1, 1, 0] > 150 and picture[1, 1, 1] < 90 for picture in pictures]
    assert bars == [False] * 12 + [True] * 12
    sources: Any = {side: PlanarVideo(path) for side, path in (("ir", ir), ("vis", vis))}
    out = Collected()
    pipeline = Pipeline(sources, Average(), ThermalInput(video=True), [out], Settings(compare=True))
    pipeline.start()
    assert pipeline.wait(20)
    pipeline.close()
    assert pipeline.error is None
    assert {picture.shape for picture in out.pictures} == {(SIZE[0], 3 * SIZE[1], 3)}


def test_a_picture_of_another_size_is_fitted_into_the_video(tmp_path: Path) -> None:
    from duskfuse.export.runtime.outputs import VideoFile as VideoOutput

    out = VideoOutput(tmp_path / "o.mp4")
    picture = np.ascontiguousarray(numbered(scene()[1], 5)[..., ::-1])
    out.write(planes_of(picture), 0.0)
    out.write(planes_of(cv2.resize(picture, (SIZE[1] // 2, SIZE[0]))), 0.1)
    out.close()
    first, second = (picture for _, picture in read_video(tmp_path / "o.mp4"))
    assert number_of(first) == 5
    assert first.shape == second.shape == (*SIZE, 3)
    assert second[:, :8].mean() < 5, "black beside a narrower picture"


def test_frames_without_times_follow_at_the_nominal_rate(tmp_path: Path) -> None:
    """A raw stream stores none."""
    with av.open(str(tmp_path / "raw.h264"), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(25), options={"bf": "0"})
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
        for picture in side_frames(range(8), "vis"):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    stamps = [frame.stamp for frame in frames_of(PlanarVideo(str(tmp_path / "raw.h264")))]
    np.testing.assert_allclose(stamps, np.arange(8) / 25, atol=1e-6)
