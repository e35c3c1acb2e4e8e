"""The device's infrared input: range, polarity, alignment, and cameras that die."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from duskfuse.data.homography import Homography
from duskfuse.data.images import ThermalRange
from duskfuse.data.reading import Reading
from duskfuse.export.runtime.alignment import Alignment, load_alignment
from duskfuse.export.runtime.errors import DeviceInputError
from duskfuse.export.runtime.fuser import EdgeFuser, recombine
from duskfuse.export.runtime.liveness import ALIVE_STEPS, DEAD_STEPS, liveness
from duskfuse.export.runtime.thermal import STEP, ThermalInput, infrared

RNG = np.random.default_rng(4)
SIZE = (40, 56)
COUNTS = RNG.integers(26000, 33000, SIZE).astype(np.uint16)
VIS = RNG.integers(0, 256, (*SIZE, 3), dtype=np.uint8)


class Mean:
    """A network whose result is known: the mean of infrared and luminance, or of each colour."""

    backend = "test"

    def __init__(self, rgb: bool = False) -> None:
        self.size: tuple[int, int] | None = None
        self.metadata: dict[str, str] = {}
        self.rgb = rgb

    def run(self, ir: Any, vis: Any) -> Any:
        return (ir + vis) / np.float32(2)


@pytest.mark.parametrize("black_hot", [False, True])
@pytest.mark.parametrize("span", [None, (27000.0, 32000.0), (25000.5, 40000.0)])
@pytest.mark.parametrize("stored", [COUNTS, COUNTS.astype(np.float32)], ids=["uint16", "float32"])
def test_planes_are_those_of_the_workstation_bit_by_bit(
    stored: np.ndarray, span: tuple[float, float] | None, black_hot: bool
) -> None:
    reading = Reading(thermal_range=ThermalRange(*span) if span else None, black_hot=black_hot)
    thermal = ThermalInput(span, black_hot=black_hot)
    np.testing.assert_array_equal(thermal.plane(stored), reading.plane(stored).ir)
    assert thermal.range == pytest.approx(
        reading.plane(stored).span and tuple(vars(reading.plane(stored).span).values())
    )


def test_eight_bits_are_divided_by_255_on_every_way_in() -> None:
    stored = np.arange(256, dtype=np.uint8).reshape(16, 16)
    want = stored.astype(np.float32) / np.float32(255)
    np.testing.assert_array_equal(ThermalInput().plane(stored), want)
    np.testing.assert_array_equal(infrared(stored), want)
    np.testing.assert_array_equal(ThermalInput(black_hot=True).plane(stored), 1 - want)
    np.testing.assert_array_equal(
        ThermalInput(percentiles=(2, 98)).plane(stored), Reading(percentiles=(2, 98)).plane(stored).ir
    )


def test_a_constant_picture_is_cold_and_a_buffer_is_used_again() -> None:
    thermal = ThermalInput()
    assert (thermal.plane(np.full(SIZE, 30000, np.uint16)) == 0).all()
    assert thermal.range is None
    first = thermal.plane(COUNTS)
    assert thermal.plane(COUNTS) is first


def test_the_range_of_a_video_moves_slowly_stays_at_a_shutter_and_jumps_at_another_gain() -> None:
    thermal = ThermalInput(video=True)
    thermal.plane(COUNTS)
    assert thermal.range is not None
    low, high = thermal.range
    hotter = COUNTS.copy()
    hotter[:20] += 6000
    thermal.plane(hotter)
    own = np.percentile(hotter, (0.1, 99.9))
    assert thermal.range == pytest.approx((low + STEP * (own[0] - low), high + STEP * (own[1] - high)))
    held = thermal.range
    thermal.plane(np.full(SIZE, 30000, np.uint16))
    assert thermal.range == held
    for _ in range(200):
        thermal.plane(hotter)
    assert thermal.range == pytest.approx(tuple(own), rel=1e-3)
    thermal.plane((COUNTS - 20000).astype(np.uint16))
    assert thermal.range == pytest.approx(tuple(np.percentile(COUNTS - 20000, (0.1, 99.9))))


def test_a_video_flickers_less_than_pictures_scaled_one_by_one() -> None:
    """A hot thing that is there in every second frame changes the rest of the picture by less than a tenth."""
    cold = COUNTS.copy()
    hot = COUNTS.copy()
    hot[:4] = 60000
    spans = {}
    for video in (False, True):
        thermal = ThermalInput(video=video)
        seen = [thermal.plane(hot if index % 2 else cold)[20:].mean() for index in range(60)]
        spans[video] = np.ptp(seen[-2:])
    assert spans[True] < spans[False] / 10


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"thermal_range": (5, 5)}, "larger than the first"),
        ({"thermal_range": (0, float("inf"))}, "finite"),
        ({"percentiles": (50, 40)}, "the smaller one first"),
        ({"thermal_range": (1, 2), "percentiles": (1, 2)}, "exclude each other"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(DeviceInputError, match=reason):
        ThermalInput(**settings)


def test_frames_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DeviceInputError, match=r"\[H, W\] of uint8"):
        ThermalInput().plane(np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(DeviceInputError, match="homography of the rig"):
        ThermalInput().plane(COUNTS, (20, 20))
    with pytest.raises(DeviceInputError, match="from 0 to 65535"):
        ThermalInput((70000, 80000)).plane(COUNTS)
    assert ThermalInput(resize=True).plane(COUNTS, (20, 28)).shape == (20, 28)


def rig(ir_size: tuple[int, int], scale: float = 0.8) -> tuple[list[list[float]], tuple[int, int], tuple[int, int]]:
    return [[scale, 0.01, 4.25], [-0.02, scale, 3.5], [1e-5, -2e-5, 1]], ir_size, SIZE


@pytest.mark.parametrize(("ir_size", "scale"), [((40, 56), 0.8), ((160, 220), 0.24), ((60, 80), 1.2)])
def test_precomputed_maps_warp_as_the_workstation_does(ir_size: tuple[int, int], scale: float) -> None:
    """Within 1/1000 of the range on smooth pictures, with the same fading where infrared does not see."""
    matrix, ir_size, vis_size = rig(ir_size, scale)
    ir = cv2.resize(RNG.random((6, 7), dtype=np.float32), ir_size[::-1], interpolation=cv2.INTER_CUBIC).clip(0, 1)
    mine = Alignment(np.array(matrix), ir_size, vis_size).warp(ir, vis_size)
    theirs = Homography(tuple(map(tuple, matrix)), ir_size, vis_size).warp(ir)  # type: ignore[arg-type]
    assert mine.shape == SIZE
    assert np.abs(mine - theirs).max() < 1e-3


def test_an_alignment_maps_a_point_where_the_homography_says() -> None:
    """Slow and obvious: one bright infrared pixel comes out at H · (x, y, 1)."""
    ir = np.zeros((30, 40), np.float32)
    ir[12, 17] = 1
    matrix = np.array([[1.0, 0, 6], [0, 1, 5], [0, 0, 1]])
    warped = Alignment(matrix, (30, 40), SIZE).warp(ir)
    assert np.unravel_index(int(warped.argmax()), SIZE) == (17, 23)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "holds no homography"),
        ("[]", "holds no homography"),
        ('{"homography": [[1, 0], [0, 1]], "ir_size": [4, 4], "vis_size": [4, 4]}', "nine finite numbers"),
        ('{"homography": [[0,0,0],[0,0,0],[0,0,0]], "ir_size": [4,4], "vis_size": [4,4]}', "can be inverted"),
        ('{"homography": [[1,0,900],[0,1,0],[0,0,1]], "ir_size": [4,4], "vis_size": [8,8]}', "covers nothing"),
        ('{"homography": [[1,0,0],[0,1,0],[1,0,-3]], "ir_size": [8,8], "vis_size": [8,8]}', "infinity"),
        ('{"homography": [[1,0,0],[0,1,0],[0,0,1]], "ir_size": [4,99999], "vis_size": [8,8]}', "sides are from"),
        ('{"homography": [[1,0,NaN],[0,1,0],[0,0,1]], "ir_size": [4,4], "vis_size": [8,8]}', "nine finite numbers"),
    ],
)
def test_wrong_homographies_are_refused(tmp_path: Path, content: str, reason: str) -> None:
    (tmp_path / "rig.json").write_text(content)
    with pytest.raises(DeviceInputError, match=reason):
        load_alignment(tmp_path / "rig.json")


def test_a_homography_file_is_that_of_the_workstation(tmp_path: Path) -> None:
    homography = Homography(((0.8, 0, 4), (0, 0.8, 3), (0, 0, 1)), (40, 56), SIZE)
    (tmp_path / "rig.json").write_text(json.dumps(homography.to_json()))
    alignment = load_alignment(tmp_path / "rig.json")
    assert (alignment.ir_size, alignment.vis_size) == ((40, 56), SIZE)
    with pytest.raises(DeviceInputError, match="homography is for 56x40"):
        alignment.warp(np.zeros((41, 56), np.float32))


def test_liveness_goes_smoothly_from_dead_to_alive_and_hot_pixels_do_not_count() -> None:
    def spread(steps: float) -> np.ndarray:
        return np.linspace(0, steps / 0.99, 60 * 60, dtype=np.float32).reshape(60, 60)

    assert liveness(spread(DEAD_STEPS * 0.99), 1.0) == 0
    assert liveness(spread(ALIVE_STEPS * 1.01), 1.0) == 1
    weights = [liveness(spread(steps), 1.0) for steps in np.linspace(1, 5, 200)]
    assert np.diff(weights).min() >= 0
    assert np.diff(weights).max() < 0.02
    black = np.zeros((120, 160), np.uint8)
    black[::37, ::41] = 255
    assert liveness(black) == 0
    assert liveness(None) == 0
    assert liveness(np.full(SIZE, np.nan, np.float32)) == 0
    assert liveness(np.full((*SIZE, 3), (0, 0, 255), np.uint8)) == 0
    assert liveness(COUNTS) == liveness(VIS) == 1


def test_a_dead_camera_leaves_the_other_and_is_counted() -> None:
    fuser = EdgeFuser(Mean(), thermal=ThermalInput((26000, 33000)), fallback=True)
    grey = np.repeat(np.rint(ThermalInput((26000, 33000)).plane(COUNTS) * 255).astype(np.uint8)[..., None], 3, 2)
    for dead in (None, np.zeros(SIZE, np.uint16), np.full(SIZE, 65535, np.uint16)):
        np.testing.assert_array_equal(fuser.fuse(dead, VIS), VIS)
    for blind in (None, np.zeros_like(VIS), np.full_like(VIS, (0, 0, 255))):
        np.testing.assert_array_equal(fuser.fuse(COUNTS, blind), grey)
    assert fuser.fuse(np.zeros(SIZE, np.uint16), np.zeros_like(VIS)).max() == 0
    fused = fuser.fuse(COUNTS, VIS)
    assert not np.array_equal(fused, VIS)
    stats = fuser.stats
    assert (stats.frames, stats.infrared_dead, stats.visible_dead) == (8, 4, 4)
    assert (stats.infrared_weight, stats.visible_weight) == (1, 1)
    with pytest.raises(DeviceInputError, match="no frame of either"):
        fuser.fuse(None, None)
    with pytest.raises(DeviceInputError, match="both cameras are needed"):
        EdgeFuser(Mean()).fuse(COUNTS, None)


def test_a_fading_camera_is_mixed_out_between_the_two_pictures() -> None:
    fading = np.where(RNG.random((*SIZE, 1)) < 0.5, 100, 103).astype(np.uint8) * np.ones((1, 1, 3), np.uint8)
    weight = liveness(fading)
    assert 0 < weight < 1
    ir = RNG.integers(0, 256, SIZE, dtype=np.uint8)
    fuser = EdgeFuser(Mean(), fallback=True)
    mixed = fuser.fuse(ir, fading).astype(float)
    fused = EdgeFuser(Mean()).fuse(ir, fading).astype(float)
    assert np.abs(mixed - (weight * fused + (1 - weight) * ir[..., None])).max() <= 1
    assert fuser.stats.visible_weight == weight
    assert fuser.stats.visible_dead == 1


def test_stages_are_timed_apart() -> None:
    fuser = EdgeFuser(Mean())
    assert fuser.stats.milliseconds() == {"pre": 0, "network": 0, "post": 0}
    for _ in range(3):
        fuser.fuse(VIS[..., 0].copy(), VIS)
    stages = fuser.stats.milliseconds()
    assert fuser.stats.frames == 3
    assert all(0 < value < 1000 for value in stages.values())


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_a_network_of_colours_gets_and_gives_them_in_order(order: str) -> None:
    """Against the slow, obvious form: every colour is the mean of itself and infrared."""
    ir = RNG.integers(0, 256, SIZE, dtype=np.uint8)
    want = np.rint((VIS.astype(np.float64) + ir[..., None]) / 2)
    out = np.empty_like(VIS)
    given = VIS if order == "RGB" else np.ascontiguousarray(VIS[..., ::-1])
    fused = EdgeFuser(Mean(rgb=True)).fuse(ir, given, order, out=out)
    assert fused is out
    shown = fused if order == "RGB" else fused[..., ::-1]
    assert np.abs(shown - want).max() <= 1


def test_results_are_written_where_asked_and_stay() -> None:
    fuser = EdgeFuser(Mean())
    ir = VIS[..., 1].copy()
    first = fuser.fuse(ir, VIS)
    kept = first.copy()
    fuser.fuse(255 - ir, VIS)
    np.testing.assert_array_equal(first, kept)
    out = np.empty_like(VIS)
    assert fuser.fuse(ir, VIS, out=out) is out
    np.testing.assert_array_equal(out, kept)
    y = RNG.random(SIZE, dtype=np.float32)
    np.testing.assert_array_equal(recombine(y, VIS), recombine(y, VIS.astype(np.float32) / np.float32(255)))
