"""Thermal pictures as cameras give them: number types, gain control, polarity, and the way onto the visible grid."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tiff_files import tiff
from typer.testing import CliRunner

from duskfuse.cli import app
from duskfuse.data import progress
from duskfuse.data.errors import InputError
from duskfuse.data.homography import Homography, homography_from, load_homography
from duskfuse.data.images import ThermalRange, read_infrared, read_picture, to_u8, write_picture
from duskfuse.data.layout import find_pairs
from duskfuse.data.pair_files import PairFiles, SourcePicture, read_ir, read_pair
from duskfuse.data.priors.cache_masks import cache_masks, open_masks
from duskfuse.data.priors.sources import MaskSourceName
from duskfuse.data.reading import AS_STORED, READING_FILE, Reading, load_reading, reading_of
from duskfuse.distill.dataset import TrainingPairs
from duskfuse.distill.recipe import DataConfig
from duskfuse.evaluate.evaluate import evaluate
from duskfuse.export.calibration import calibration_pairs
from duskfuse.export.export import export
from duskfuse.teachers.cache_teacher import cache_teacher

SIZE = (48, 64)


@pytest.fixture(autouse=True)
def _everything_is_said_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_said", {})


@pytest.fixture
def celsius() -> NDArray[np.float64]:
    """A smooth scene from 10 to 37 °C, ``[48, 64]``."""
    noise = np.random.default_rng(0).standard_normal(SIZE)
    smooth = cv2.GaussianBlur(noise, (0, 0), 4)
    return 10 + 27 * (smooth - smooth.min()) / np.ptp(smooth)


def pair_of(folder: Path, ir: str, reading: Reading = AS_STORED, *, size: tuple[int, int] = SIZE) -> PairFiles:
    write_picture(folder / "vis.png", np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8))
    return PairFiles("p", SourcePicture(folder / ir), SourcePicture(folder / "vis.png"), reading=reading)


def test_every_number_type_gives_the_same_plane(tmp_path: Path, celsius: NDArray[np.float64]):
    """14-bit counts of 0.01 K in all files that hold them; the range is in the units of each."""
    kelvin100 = np.rint((celsius + 273.15) * 100).astype(np.uint16) - 28000  # fits 12 bits
    assert kelvin100.max() < 4096
    low, high = 315.0, 3015.0
    cv2.imwrite(str(tmp_path / "16.png"), kelvin100)
    cv2.imwrite(str(tmp_path / "16.tif"), kelvin100)
    files = {
        "big_endian.tif": tiff(kelvin100, 16, order=">"),
        "packed_12.tif": tiff(kelvin100, 12),
        "packed_14.tif": tiff(kelvin100, 14),
        "packed_14_big_endian.tif": tiff(kelvin100, 14, order=">"),
        "int16.tif": tiff(kelvin100.astype(np.int16), 16, sample_format=2),
        "float32.tif": tiff(kelvin100.astype(np.float32), 32, sample_format=3),
        "float32_big_endian.tif": tiff(kelvin100.astype(np.float32), 32, order=">", sample_format=3),
        "float64.tif": tiff(kelvin100.astype(np.float64), 64, sample_format=3),
        "three_channels.png": cv2.imencode(".png", np.repeat(kelvin100[..., None], 3, axis=2))[1].tobytes(),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    expected = np.clip((kelvin100 - low) / (high - low), 0, 1)
    for name in (*files, "16.png", "16.tif"):
        pair = read_pair(pair_of(tmp_path, name, Reading(ThermalRange(low, high))))
        assert np.abs(pair.ir[0].numpy() - expected).max() < 1e-6, name
        assert pair.meta.thermal_range == (low, high)
        robust = read_pair(pair_of(tmp_path, name))
        spread = np.percentile(kelvin100, [0.1, 99.9])
        assert robust.meta.thermal_range == pytest.approx(spread, rel=1e-6), name


@pytest.mark.parametrize(("offset", "span"), [(0.0, (15.0, 30.0)), (273.15, (288.15, 303.15))])
def test_radiometric_float_in_celsius_and_kelvin(
    tmp_path: Path, celsius: NDArray[np.float64], offset: float, span: tuple[float, float]
):
    cv2.imwrite(str(tmp_path / "t.tif"), (celsius + offset).astype(np.float32))
    pair = read_pair(pair_of(tmp_path, "t.tif", Reading(ThermalRange(*span))))
    assert np.abs(pair.ir[0].numpy() - np.clip((celsius - 15) / 15, 0, 1)).max() < 1e-5
    assert (pair.meta.bit_depth_ir, pair.meta.thermal_range) == (32, span)


def test_negative_temperatures_scale_like_others(tmp_path: Path, celsius: NDArray[np.float64]):
    cv2.imwrite(str(tmp_path / "t.tif"), (celsius - 40).astype(np.float32))
    ir = read_ir(pair_of(tmp_path, "t.tif", Reading(ThermalRange(-30, -3))))
    assert np.abs(ir - (celsius - 10) / 27).max() < 1e-5


def test_percentiles_of_each_picture(tmp_path: Path, celsius: NDArray[np.float64]):
    grey = np.rint(celsius * 5).astype(np.uint8)
    write_picture(tmp_path / "8.png", grey)
    cv2.imwrite(str(tmp_path / "16.png"), grey.astype(np.uint16) * 100)
    for name, unit in (("8.png", 1), ("16.png", 100)):
        pair = read_pair(pair_of(tmp_path, name, Reading(percentiles=(2, 95))))
        low, high = np.percentile(grey, [2, 95])
        assert pair.meta.thermal_range == pytest.approx((low * unit, high * unit))
        assert np.abs(pair.ir[0].numpy() - np.clip((grey - low) / (high - low), 0, 1)).max() < 1e-6


def test_default_says_its_range_too(tmp_path: Path, celsius: NDArray[np.float64]):
    write_picture(tmp_path / "8.png", np.rint(celsius * 5).astype(np.uint8))
    assert read_pair(pair_of(tmp_path, "8.png")).meta.thermal_range == (0, 255)
    cv2.imwrite(str(tmp_path / "flat.png"), np.full(SIZE, 700, np.uint16))
    flat = read_pair(pair_of(tmp_path, "flat.png"))
    assert flat.meta.thermal_range is None
    assert not flat.ir.any()


def test_black_hot_is_the_exact_inverse(tmp_path: Path):
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    write_picture(tmp_path / "8.png", 255 - ramp)
    pair = read_pair(pair_of(tmp_path, "8.png", Reading(black_hot=True), size=(16, 16)))
    assert np.array_equal(to_u8(pair.ir[0].numpy()), ramp)
    assert not pair.meta.hot_is_bright
    cv2.imwrite(str(tmp_path / "16.png"), (3000 - ramp.astype(np.uint16)))
    deep = read_ir(pair_of(tmp_path, "16.png", Reading(ThermalRange(2745, 3000), black_hot=True), size=(16, 16)))
    assert np.array_equal(to_u8(deep), ramp)


def test_colour_infrared_is_reduced_with_a_notice(
    tmp_path: Path, celsius: NDArray[np.float64], capsys: pytest.CaptureFixture[str]
):
    grey = np.rint((celsius - 10) * 9).astype(np.uint8)
    ironbow = cv2.cvtColor(cv2.applyColorMap(grey, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
    write_picture(tmp_path / "ironbow.png", ironbow)
    for _ in range(2):
        ir = read_ir(pair_of(tmp_path, "ironbow.png"))
    assert capsys.readouterr().err.count("the infrared picture is in colour") == 1
    order = np.argsort(grey.ravel(), kind="stable")
    assert np.corrcoef(ir.ravel()[order], grey.ravel()[order])[0, 1] > 0.98  # ironbow's luminance follows heat
    write_picture(tmp_path / "codec.jpg", np.repeat(grey[..., None], 3, axis=2))
    read_ir(pair_of(tmp_path, "codec.jpg"))
    assert capsys.readouterr().err == ""


def test_a_range_beside_the_picture_is_said_and_beyond_its_depth_refused(
    tmp_path: Path, celsius: NDArray[np.float64], capsys: pytest.CaptureFixture[str]
):
    cv2.imwrite(str(tmp_path / "t.tif"), celsius.astype(np.float32))
    kelvin = Reading(ThermalRange(283, 310))
    assert not read_ir(pair_of(tmp_path, "t.tif", kelvin)).any()
    assert "lie outside the thermal range" in capsys.readouterr().err
    write_picture(tmp_path / "8.png", np.rint(celsius).astype(np.uint8))
    with pytest.raises(
        InputError, match=r"p: thermal range 283 to 310 for a picture of 8 bit \(.*8\.png\); its stored"
    ):
        read_ir(pair_of(tmp_path, "8.png", kelvin))


RIG = np.array([[1.9, 0.05, 14.0], [-0.04, 1.95, 9.0], [1e-4, -5e-5, 1.0]])
IR_SIZE, VIS_SIZE = (200, 260), (400, 520)


def homography(
    matrix: NDArray[np.float64], ir: tuple[int, int] = IR_SIZE, vis: tuple[int, int] = VIS_SIZE
) -> Homography:
    return homography_from({"homography": matrix.tolist(), "ir_size": [*ir[::-1]], "vis_size": [*vis[::-1]]})


def infrared_coordinates(matrix: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float64]:
    """(x, y) in the infrared picture of every visible pixel, pixel by pixel: ``[H, W, 2]``."""
    inverse = np.linalg.inv(matrix)
    points = np.empty((*size, 2))
    for row in range(size[0]):
        for column in range(size[1]):
            u, v, w = inverse @ (column, row, 1)
            points[row, column] = u / w, v / w
    return points


def test_warping_puts_every_pixel_where_the_homography_says():
    """A picture whose values are its own coordinates, bounded by OpenCV's 1/32 pixel steps."""
    rows, columns = np.mgrid[0 : IR_SIZE[0], 0 : IR_SIZE[1]].astype(np.float32)
    rig = homography(RIG)
    wanted = infrared_coordinates(RIG, VIS_SIZE)
    inside = ((wanted >= 0) & (wanted <= np.array(IR_SIZE[::-1]) - 1)).all(axis=2)
    assert inside.mean() > 0.8
    for axis, plane in enumerate((columns, rows)):
        length = IR_SIZE[1 - axis] - 1
        got = rig.warp(plane / length) * length
        assert np.abs(got - wanted[..., axis])[inside].max() < 0.05
    assert rig.cover() == pytest.approx(inside.mean(), abs=0.02)


def test_outside_fades_from_the_edge_into_the_median():
    rng = np.random.default_rng(0)
    ir = cv2.GaussianBlur(rng.random((40, 60), np.float32), (0, 0), 2)
    shift = homography(np.array([[1, 0, 30], [0, 1, 20], [0, 0, 1.0]]), (40, 60), (120, 160))
    warped = shift.warp(ir)
    assert np.array_equal(warped[20:60, 30:90], ir)  # a shift by whole pixels interpolates nothing
    assert np.abs(warped[19, 30:90] - ir[0]).max() < 0.3 * np.ptp(ir)
    assert np.abs(warped[-20:] - np.median(ir)).max() < 1e-3
    full = homography(np.eye(3), (40, 60), (40, 60))
    assert np.array_equal(full.warp(ir), ir)


def test_infrared_of_more_pixels_is_averaged():
    """Every second column hot: a grid of a quarter of the pixels a side sees the mean, not one of the columns."""
    stripes = np.tile(np.array([0, 1], np.float32), (160, 100))
    quarter = homography(np.array([[0.25, 0, 3], [0, 0.25, 2], [0, 0, 1]]), (160, 200), (48, 60))
    assert np.abs(quarter.warp(stripes) - 0.5).max() < 1e-6
    columns = np.tile(np.linspace(0, 1, 200, dtype=np.float32), (160, 1))
    wanted = (np.arange(60) - 3) / 0.25 / 199
    inside = (wanted > 0.02) & (wanted < 0.98)
    assert np.abs(quarter.warp(columns)[20] - wanted)[inside].max() * 199 < 0.2


def test_a_pair_through_the_homography(tmp_path: Path):
    columns = np.tile(np.arange(IR_SIZE[1]), (IR_SIZE[0], 1))
    cv2.imwrite(str(tmp_path / "ir.png"), (columns * 100 + 5000).astype(np.uint16))
    reading = Reading(ThermalRange(5000, 5000 + 100 * (IR_SIZE[1] - 1)), black_hot=True, homography=homography(RIG))
    files = pair_of(tmp_path, "ir.png", reading, size=VIS_SIZE)
    pair = read_pair(files)
    assert pair.size == VIS_SIZE
    assert pair.meta.original_size == IR_SIZE
    wanted = infrared_coordinates(RIG, VIS_SIZE)
    inside = ((wanted >= 0) & (wanted <= np.array(IR_SIZE[::-1]) - 1)).all(axis=2)
    x = (1 - pair.ir[0].numpy()) * (IR_SIZE[1] - 1)
    assert np.abs(x - wanted[..., 0])[inside].max() < 0.05
    assert np.array_equal(read_ir(files), pair.ir[0].numpy())


def test_homography_needs_its_sizes(tmp_path: Path):
    rig = homography(RIG)
    write_picture(tmp_path / "ir.png", np.zeros((100, 130), np.uint8))
    with pytest.raises(
        InputError, match=r"infrared picture is 130×100.*found for 260×200.*H·S⁻¹ with S = \[\[0\.5"
    ) as caught:
        read_ir(pair_of(tmp_path, "ir.png", Reading(homography=rig), size=VIS_SIZE))
    assert "-0.25" in str(caught.value)  # half the size moves pixel centres by a quarter
    write_picture(tmp_path / "ir.png", np.zeros(IR_SIZE, np.uint8))
    with pytest.raises(InputError, match=r"visible picture is 64×48.*find the homography anew"):
        read_ir(pair_of(tmp_path, "ir.png", Reading(homography=rig)))


def test_the_rescaling_that_the_error_tells_is_right():
    """H·S⁻¹ of pictures of half the size shows the same scene as H of the full ones."""
    ir = cv2.GaussianBlur(np.random.default_rng(0).random(IR_SIZE, np.float32), (0, 0), 6)
    half = cv2.resize(ir, (130, 100), interpolation=cv2.INTER_AREA)
    scale = np.array([[0.5, 0, -0.25], [0, 0.5, -0.25], [0, 0, 1]])
    from_half = homography(RIG @ np.linalg.inv(scale), (100, 130)).warp(half)
    difference = np.abs(from_half - homography(RIG).warp(ir))[60:-60, 60:-60]
    assert difference.max() < 0.02 * np.ptp(ir)


@pytest.mark.parametrize(
    ("matrix", "said"),
    [
        ([[1, 0, 0], [0, 1, 0], [0, 0, 0]], "cannot be inverted"),
        ([[0, 0, 0], [0, 0, 0], [0, 0, 0]], "cannot be inverted"),
        ([[1, 2, 3], [2, 4, 6], [0, 0, 1]], "cannot be inverted"),
        ([[1, 0, 9000], [0, 1, 0], [0, 0, 1]], "covers 0.0% of the visible picture"),
        ([[1, 0, 0], [0, 1, 0], [0.01, 0, 1]], "covers 0.0% of the visible picture"),
    ],
)
def test_homographies_that_make_no_sense(matrix: list[list[float]], said: str):
    with pytest.raises(InputError, match=said):
        homography(np.array(matrix, float))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("nothing", "not JSON"),
        ("[" * 30000, "not JSON"),
        ("[1]", "a JSON object is needed"),
        ('{"homografy": 1}', "did you mean homography"),
        ('{"homography": [[1,0,0],[0,1,0],[0,0,1]], "ir_size": [4, 4]}', "vis_size missing"),
        ('{"homography": [[1,0],[0,1]], "ir_size": [4, 4], "vis_size": [4, 4]}', "three rows of three numbers"),
        ('{"homography": [[1,0,0],[0,1,0],[0,0,NaN]], "ir_size": [4, 4], "vis_size": [4, 4]}', "three rows of three"),
        ('{"homography": [[1,0,0],[0,1,0],[0,0,true]], "ir_size": [4, 4], "vis_size": [4, 4]}', "three rows of three"),
        ('{"homography": [[1,0,0],[0,1,0],[0,0,1]], "ir_size": [4.5, 4], "vis_size": [4, 4]}', "whole pixels"),
        ('{"homography": [[1,0,0],[0,1,0],[0,0,1]], "ir_size": [-4, 4], "vis_size": [4, 4]}', "from 1 to 32766"),
        ('{"homography": [[1,0,0],[0,1,0],[0,0,1]], "ir_size": [4, 4], "vis_size": [4, 99999]}', "from 1 to 32766"),
        (" " * 100_000, "more than 65,536 bytes"),
    ],
)
def test_malformed_homography_files(tmp_path: Path, content: str, said: str):
    (tmp_path / "rig.json").write_text(content)
    with pytest.raises(InputError, match=said) as caught:
        load_homography(tmp_path / "rig.json")
    assert "rig.json" in str(caught.value)


def test_a_reading_file_round_trip(tmp_path: Path):
    (tmp_path / "rig").mkdir()
    rig = homography(RIG)
    (tmp_path / "rig" / "rig.json").write_text(json.dumps(rig.to_json()))
    (tmp_path / READING_FILE).write_text("thermal_range: [27000, 32000]\nblack_hot: true\nhomography: rig/rig.json\n")
    expected = Reading(ThermalRange(27000, 32000), black_hot=True, homography=rig)
    assert load_reading(tmp_path / READING_FILE) == reading_of(tmp_path) == expected
    assert reading_of(tmp_path, AS_STORED) == AS_STORED
    assert reading_of(tmp_path / "rig") == AS_STORED
    (tmp_path / "mine.yaml").write_text("percentiles: [0.5, 99.5]\nresize_ir: true\n")
    assert reading_of(tmp_path, tmp_path / "mine.yaml") == Reading(percentiles=(0.5, 99.5), resize_ir=True)
    (tmp_path / "mine.yaml").write_text("# nothing yet\n")
    assert load_reading(tmp_path / "mine.yaml") == AS_STORED


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("thermal_rang: [1, 2]", "unknown key 'thermal_rang'.*did you mean thermal_range"),
        ("colour: green", "unknown key 'colour'; keys are thermal_range, percentiles.*remove it"),
        ("- 1", "a reading is `key: value` lines"),
        ("thermal_range: [1]", "thermal_range; it is two numbers"),
        ("thermal_range: [27e3, 32e3]", "thermal_range; it is two numbers; .*no exponents"),
        ("thermal_range: [true, 2]", "thermal_range; it is two numbers"),
        ("thermal_range: [.nan, 2]", "thermal_range; it is two numbers"),
        (f"thermal_range: [1, {'9' * 400}]", "thermal_range; it is two numbers"),
        ("thermal_range: [2, 1]", "low must be below high"),
        ("percentiles: [50, 150]", "two numbers from 0 to 100"),
        ("percentiles: [1, 99]\nthermal_range: [1, 2]", "give one of them"),
        ("black_hot: 1", "black_hot; it is true or false"),
        ("homography: 7", "it names a JSON file"),
        ("homography: absent.json", "absent.json: no such file"),
        ("a: [", "not YAML"),
        ("a: " + "[" * 3000, "not YAML"),
        ("a: 2001-99-99", "not YAML"),
        (f"a: {'9' * 5000}", "not YAML|unknown key"),
        ("\0", "not YAML"),
        ("a: &a [x]\nb: &b [*a, *a]\n" + "".join(f"c{i}: &c{i} [*b, *b]\n" for i in range(9)), "unknown key 'a'"),
        ("? [1]\n: 2", "unknown key|not YAML"),
        ("black_hot: !!bool perhaps", "not YAML"),
        ("percentiles: !!int ''", "not YAML"),
        ("homography: !!python/object/apply:os.getcwd []", "not YAML"),
    ],
)
def test_malformed_reading_files(tmp_path: Path, content: str, said: str):
    (tmp_path / "r.yaml").write_text(content)
    with pytest.raises(InputError, match=said) as caught:
        load_reading(tmp_path / "r.yaml")
    assert "r.yaml" in str(caught.value)
    assert len(str(caught.value)) < 600


@settings(max_examples=300, deadline=1000)
@given(st.one_of(st.binary(max_size=80), st.text(max_size=80).map(str.encode)), st.sampled_from(["", "percentiles: "]))
def test_any_bytes_as_reading_and_homography(tmp_path_factory: pytest.TempPathFactory, content: bytes, before: str):
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(before.encode() + content)
    for load in (load_reading, load_homography):
        with contextlib.suppress(InputError):
            assert load(path) is not None


def test_exclusive_settings():
    with pytest.raises(InputError, match="resizing and a homography"):
        Reading(resize_ir=True, homography=homography(RIG))


def test_canonical_text_is_stable():
    """These very texts are in the keys of caches that exist: a change here makes every cached prior of them anew."""
    assert AS_STORED.canonical() == "{}"
    assert Reading(ThermalRange(27000, 32000)).canonical() == '{"thermal_range":[27000.0,32000.0]}'
    assert Reading(ThermalRange(27000.0, 32000)) == Reading(ThermalRange(27000, 32000))
    assert Reading(ThermalRange(-0.0, 0.1)).canonical() == '{"thermal_range":[0.0,0.1]}'
    assert (
        Reading(percentiles=(1, 99.5), black_hot=True, resize_ir=True).canonical()
        == '{"black_hot":true,"percentiles":[1.0,99.5],"resize_ir":true}'
    )
    shift = homography(np.array([[1, 0, 2.5], [0, 1, 0], [0, 0, 1]]), (3, 4), (5, 6))
    assert Reading(homography=shift).canonical() == (
        '{"homography":{"homography":[[1.0,0.0,2.5],[0.0,1.0,0.0],[0.0,0.0,1.0]],"ir_size":[4,3],"vis_size":[6,5]}}'
    )


def test_the_key_of_a_picture_depends_on_its_reading(tmp_path: Path):
    write_picture(tmp_path / "ir.png", np.random.default_rng(0).integers(0, 256, (12, 16), dtype=np.uint8))
    stored = hashlib.sha256((tmp_path / "ir.png").read_bytes()).hexdigest()
    assert pair_of(tmp_path, "ir.png").ir_key() == stored
    shift = homography(np.array([[1, 0, 2.5], [0, 1, 0], [0, 0, 1]]), (12, 16), SIZE)
    readings = [
        Reading(ThermalRange(1, 2)),
        Reading(ThermalRange(1, 3)),
        Reading(percentiles=(1, 3)),
        Reading(black_hot=True),
        Reading(resize_ir=True),
        Reading(homography=shift),
    ]
    keys = [pair_of(tmp_path, "ir.png", reading).ir_key() for reading in readings]
    keys.append(pair_of(tmp_path, "ir.png", Reading(resize_ir=True), size=(24, 32)).ir_key())
    assert len({stored, *keys}) == len(readings) + 2
    expected = hashlib.sha256(f'{stored} {{"thermal_range":[1.0,2.0]}} None'.encode()).hexdigest()
    assert keys[0] == expected
    resized = hashlib.sha256(f'{stored} {{"resize_ir":true}} (48, 64)'.encode()).hexdigest()
    assert keys[4] == resized


def test_packed_values_of_the_visible_stay_spread(tmp_path: Path):
    """Only infrared is in stored units: a packed 12-bit visible picture is not dark."""
    white = np.full(SIZE, 4095, np.uint16)
    (tmp_path / "12.tif").write_bytes(tiff(white, 12))
    assert read_picture(tmp_path / "12.tif").max() >= 65520
    assert read_infrared(tmp_path / "12.tif", ThermalRange(0, 4095)).min() == 1


def test_reading_files_are_yaml_that_others_can_read(tmp_path: Path):
    """What `to_json` gives is what the file holds, but for the homography, which is a file of its own."""
    reading = Reading(ThermalRange(1, 2.5), black_hot=True)
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(reading.to_json()))
    assert load_reading(tmp_path / "r.yaml") == reading


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Two 16-bit pairs of scenes, as counts."""
    from duskfuse.data.scenes import render_scene

    for seed in (4, 5):
        scene = render_scene(seed, size=(64, 80))
        for side in ("ir", "vis"):
            (tmp_path / "set" / side).mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / "set" / "ir" / f"{seed}.png"), scene.ir.astype(np.uint16) * 20 + 27000)
        write_picture(tmp_path / "set" / "vis" / f"{seed}.png", scene.vis)
    return tmp_path / "set"


def test_a_dataset_is_read_as_its_file_says(dataset: Path, capsys: pytest.CaptureFixture[str]):
    assert [pair.reading for pair in find_pairs(dataset)] == [AS_STORED] * 2
    (dataset / READING_FILE).write_text("thermal_range: [27000, 32100]\nblack_hot: true\n")
    said = Reading(ThermalRange(27000, 32100), black_hot=True)
    pairs = find_pairs(dataset)
    assert [pair.reading for pair in pairs] == [said] * 2
    assert f"infrared is read as {dataset / READING_FILE} says" in capsys.readouterr().err
    stored = read_picture(pairs[0].ir.path)
    assert np.array_equal(to_u8(read_pair(pairs[0]).ir[0].numpy()), 255 - (stored.astype(int) - 27000) // 20)
    other = dataset.parent / "other.yaml"
    other.write_text("percentiles: [1, 99]\n")
    assert find_pairs(dataset, reading=other)[0].reading == Reading(percentiles=(1, 99))
    assert find_pairs(dataset, reading=AS_STORED)[0].reading == AS_STORED
    (dataset / READING_FILE).write_text("thermal: 1\n")
    with pytest.raises(InputError, match="did you mean thermal_range"):
        find_pairs(dataset)


@pytest.mark.parametrize(
    "command",
    [
        ["cache-masks", "DATA"],
        ["cache-teacher", "DATA", "--teacher", "DATA"],
        ["distill", "DATA", "--out", "OUT"],
        ["evaluate", "DATA", "--out", "OUT"],
        ["export", "unet", "--out", "OUT", "--calibration", "DATA", "--precision", "fp32"],
        ["fuse", "--ir", "DATA/ir", "--vis", "DATA/vis", "--out", "OUT"],
    ],
    ids=lambda command: str(command[0]),
)
def test_every_verb_takes_the_file(dataset: Path, tmp_path: Path, command: list[str]):
    (tmp_path / "rig.yaml").write_text("blackhot: true\n")
    words = [word.replace("DATA", str(dataset)).replace("OUT", str(tmp_path / "out")) for word in command]
    result = CliRunner().invoke(app, [*words, "--reading", str(tmp_path / "rig.yaml")])
    assert result.exit_code == 2
    assert "rig.yaml: unknown key 'blackhot'" in result.output
    assert "did you mean black_hot?" in result.output


def test_the_card_of_a_student_says_how_infrared_was_read(dataset: Path):
    """The device must feed it the same."""
    reading = Reading(ThermalRange(27000, 32000), black_hot=True)
    for given_reading, said in ((reading, f", infrared read as {reading.canonical()}"), (AS_STORED, "")):
        pairs = TrainingPairs(find_pairs(dataset, reading=given_reading), DataConfig(), 0, masks=None)
        assert pairs.described("set") == f"2 pairs of the folder set{said}"


def test_a_reading_without_calibration_pairs_is_refused(dataset: Path, tmp_path: Path):
    with pytest.raises(InputError, match="a reading without --calibration"):
        export("unet", out=tmp_path / "out", reading=AS_STORED)
    assert not (tmp_path / "out").exists()


def test_priors_of_two_readings_never_mix(dataset: Path, tmp_path: Path):
    """Masks and teacher pictures of one reading are not found by another; going back finds them again."""
    cache, rig = tmp_path / "cache", tmp_path / "rig.yaml"
    rig.write_text("black_hot: true\n")
    assert cache_masks(dataset, source=MaskSourceName.REGIONS, cache=cache).done == 4
    keys = {key for pair in find_pairs(dataset, reading=rig) for key in pair.prior_keys()}
    with pytest.raises(InputError, match="2 of 4 pictures have no cached masks"):
        open_masks(cache, keys, None)
    inverted = cache_masks(dataset, source=MaskSourceName.REGIONS, cache=cache, reading=rig)
    assert (inverted.done, inverted.already) == (2, 2)  # the visible pictures are the same
    assert open_masks(cache, keys, None)
    assert cache_masks(dataset, source=MaskSourceName.REGIONS, cache=cache).done == 0
    fused = tmp_path / "fused"
    for pair in find_pairs(dataset):
        write_picture(fused / f"{pair.name}.png", read_picture(pair.vis.path))
    reports = [
        cache_teacher(dataset, teacher=fused, cache=cache, reading=reading) for reading in (None, rig, None, rig)
    ]
    assert [report.done for report in reports] == [2, 2, 0, 0]


def test_evaluation_and_calibration_read_as_told(dataset: Path, tmp_path: Path):
    rig = tmp_path / "rig.yaml"
    rig.write_text("thermal_range: [27000, 32100]\nblack_hot: true\n")
    average = [
        {row.name: row.scores for row in evaluate(dataset, out=tmp_path / name, reading=reading).rows}["infrared only"]
        for name, reading in (("plain", None), ("rig", rig))
    ]
    stored = [read_picture(pair.ir.path) for pair in find_pairs(dataset)]
    inverted = [(255 - (picture.astype(int) - 27000) // 20).astype(np.uint8) for picture in stored]
    assert [scores["SD"] for scores in average[1].values()] == pytest.approx([p.std() for p in inverted], rel=1e-5)
    assert average[0] != average[1]
    planes = calibration_pairs(dataset, None, reading=rig)
    assert all(np.array_equal(to_u8(got.ir), want) for got, want in zip(planes, inverted, strict=True))
