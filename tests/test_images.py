from __future__ import annotations

import hashlib
import io
import os
import struct
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from duskfuse.data.errors import InputError
from duskfuse.data.images import (
    ThermalRange,
    decode_png,
    encode_png,
    file_sha256,
    grey_u8,
    picture_size,
    read_grey_u8,
    read_infrared,
    read_picture,
    read_visible,
    write_picture,
)
from duskfuse.data.pair_files import read_label

LOSSLESS = [".png", ".webp", ".tif", ".bmp"]


@pytest.fixture
def rgb() -> NDArray[np.uint8]:
    """A smooth colour picture of an odd size, so that lossy formats stay close to it."""
    rows, columns = np.mgrid[0:61, 0:83].astype(np.float64)
    return np.stack([rows * 4, columns * 3, 255 - rows * 2 - columns], axis=2).astype(np.uint8)


def saved(picture: Image.Image, form: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, form, **options)
    return stream.getvalue()


@pytest.mark.parametrize("suffix", LOSSLESS)
@pytest.mark.parametrize("channels", [1, 3])
def test_lossless_round_trip(tmp_path: Path, rgb: NDArray[np.uint8], suffix: str, channels: int):
    picture = rgb if channels == 3 else rgb[..., 0]
    path = tmp_path / "deep" / f"a{suffix}"
    write_picture(path, picture)
    read = read_picture(path)
    if suffix == ".webp" and channels == 1:
        picture = np.repeat(picture[..., None], 3, axis=2)  # WebP knows no grey
    assert read.dtype == np.uint8
    assert np.array_equal(read, picture)
    assert picture_size(path) == (61, 83)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_red_is_the_first_channel_in_every_format(tmp_path: Path):
    red = np.zeros((16, 24, 3), np.uint8)
    red[..., 0] = 200
    for form in ("PNG", "JPEG", "WEBP", "TIFF", "BMP"):
        path = tmp_path / f"red.{form.lower()}"
        path.write_bytes(saved(Image.fromarray(red), form))
        assert np.abs(read_picture(path).astype(int) - red).max() <= 3, form
        again = tmp_path / f"again.{form.lower()}"
        write_picture(again, read_picture(path))
        assert np.abs(np.asarray(Image.open(again).convert("RGB")).astype(int) - red).max() <= 5, form


def test_depths_are_kept(tmp_path: Path):
    deep = (np.arange(48).reshape(6, 8) * 1000).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "a.png"), deep)
    cv2.imwrite(str(tmp_path / "a.tiff"), deep.astype(np.float32) / 7)
    cv2.imwrite(str(tmp_path / "b.tiff"), deep.astype(np.float64))
    read = read_picture(tmp_path / "a.png")
    assert read.dtype == np.uint16
    assert np.array_equal(read, deep)
    real = read_picture(tmp_path / "a.tiff")
    assert real.dtype == np.float32
    assert np.array_equal(real, deep.astype(np.float32) / 7)
    assert read_picture(tmp_path / "b.tiff").dtype == np.float32


def test_alpha_is_dropped_and_palettes_expanded(tmp_path: Path, rgb: NDArray[np.uint8]):
    picture = Image.fromarray(rgb)
    alpha = picture.copy()
    alpha.putalpha(Image.fromarray(rgb[..., 1]))
    (tmp_path / "alpha.png").write_bytes(saved(alpha, "PNG"))
    assert np.array_equal(read_picture(tmp_path / "alpha.png"), rgb)
    palette = picture.quantize(16)
    (tmp_path / "palette.png").write_bytes(saved(palette, "PNG"))
    assert np.array_equal(read_picture(tmp_path / "palette.png"), np.asarray(palette.convert("RGB")))


def test_size_is_the_decoded_size(tmp_path: Path, rgb: NDArray[np.uint8]):
    picture = Image.fromarray(rgb)
    alpha = picture.copy()
    alpha.putalpha(128)
    variants = {
        "progressive.jpg": saved(picture, "JPEG", progressive=True),
        "exif.jpg": saved(picture, "JPEG", comment=b"\xff\xd9 not the end \xff\xda"),
        "after.jpg": saved(picture, "JPEG") + b"appended by a camera",
        "lossy.webp": saved(picture, "WEBP"),
        "lossless.webp": saved(picture, "WEBP", lossless=True),
        "extended.webp": saved(alpha, "WEBP"),
        "lzw.tif": saved(picture, "TIFF", compression="tiff_lzw"),
        "one_bit.bmp": saved(picture.convert("1"), "BMP"),
        "wrong_suffix.png": saved(picture, "JPEG"),
        "big.tif": saved(picture, "TIFF", big_tiff=True),
        "os2.bmp": os2_bmp(rgb),
        "fill.jpg": between_segments(saved(picture, "JPEG"), b"\xff\xff"),
        "noise.jpg": between_segments(saved(picture, "JPEG"), b"abc\xff\0"),
    }
    for name, data in variants.items():
        (tmp_path / name).write_bytes(data)
        assert picture_size(tmp_path / name) == read_picture(tmp_path / name).shape[:2] == (61, 83), name


def os2_bmp(rgb: NDArray[np.uint8]) -> bytes:
    """A bitmap with the header of OS/2, whose sizes are half as wide."""
    height, width = rgb.shape[:2]
    rows = np.pad(rgb[::-1, :, ::-1].reshape(height, -1), ((0, 0), (0, -3 * width % 4)))
    return b"BM" + struct.pack("<IHHIIHHHH", 26 + rows.size, 0, 0, 26, 12, width, height, 1, 24) + rows.tobytes()


def between_segments(jpeg: bytes, noise: bytes) -> bytes:
    """Bytes that decoders skip, before the second segment of a JPEG."""
    end = 4 + int.from_bytes(jpeg[4:6], "big")
    return jpeg[:end] + noise + jpeg[end:]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_tiff_has_the_size_that_is_decoded(tmp_path: Path, rgb: NDArray[np.uint8], orientation: int):
    """OpenCV turns TIFF upright, and TIFF only; Pillow, which reads labels, does the same."""
    (tmp_path / "a.tif").write_bytes(saved(Image.fromarray(rgb[..., 0]), "TIFF", tiffinfo={274: orientation}))
    picture, size = read_picture(tmp_path / "a.tif"), picture_size(tmp_path / "a.tif")
    assert size == picture.shape == ((61, 83) if orientation < 5 else (83, 61))
    assert np.array_equal(read_label(tmp_path / "a.tif", size), picture)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF", "BMP"])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.97])
def test_truncated(tmp_path: Path, rgb: NDArray[np.uint8], form: str, kept: float):
    data = saved(Image.fromarray(rgb), form)
    path = tmp_path / f"cut.{form.lower()}"
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(InputError, match=r"cut\.\w+: the \w+ file (is truncated|cannot be decoded)"):
        read_picture(path)


@pytest.mark.parametrize("missing", [1, 2])
def test_jpeg_without_its_last_bytes_is_truncated(tmp_path: Path, rgb: NDArray[np.uint8], missing: int):
    """OpenCV decodes such a file without a word; the container tells."""
    path = tmp_path / "cut.jpg"
    path.write_bytes(saved(Image.fromarray(rgb), "JPEG", progressive=True)[:-missing])
    with pytest.raises(InputError, match="truncated"):
        picture_size(path)


def test_unusable_files(tmp_path: Path, rgb: NDArray[np.uint8]):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("P" * 100)
    (tmp_path / "folder.png").mkdir()
    write_picture(tmp_path / "dot.png", rgb[:1, :1])
    damaged = bytearray(encode_png(rgb))
    damaged[len(damaged) // 2] ^= 0xFF
    (tmp_path / "damaged.png").write_bytes(damaged)
    said = {
        "absent.png": "no such file",
        "empty.png": "empty",
        "text.png": "not a picture",
        "folder.png": "cannot be read",
        "dot.png": "1×1",
        "damaged.png": "cannot be decoded",
    }
    for name, words in said.items():
        for read in (read_picture, picture_size) if name != "damaged.png" else (read_picture,):
            with pytest.raises(InputError, match=words) as caught:
                read(tmp_path / name)
            assert name in str(caught.value)
            assert caught.value.remedy
    with pytest.raises(InputError, match="no such file"):
        file_sha256(tmp_path / "absent.png")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_float_pictures_must_be_finite(tmp_path: Path, bad: float):
    picture = np.full((8, 8), 300.0, np.float32)
    picture[2, 3] = bad
    cv2.imwrite(str(tmp_path / "a.tif"), picture)
    with pytest.raises(InputError, match="1 of 64 values are NaN or infinite"):
        read_infrared(tmp_path / "a.tif")


def test_infrared_8_bit(tmp_path: Path, rgb: NDArray[np.uint8]):
    grey = rgb[..., 0]
    write_picture(tmp_path / "one.png", grey)
    write_picture(tmp_path / "three.png", np.repeat(grey[..., None], 3, axis=2))
    write_picture(tmp_path / "colour.png", rgb)
    expected = grey.astype(np.float32) / 255
    for name in ("one.png", "three.png"):
        read = read_infrared(tmp_path / name)
        assert read.dtype == np.float32
        assert np.array_equal(read, expected)
        stretched = read_infrared(tmp_path / name, ThermalRange(40, 120))
        assert np.allclose(stretched, np.clip((grey.astype(float) - 40) / 80, 0, 1), atol=1e-6)
        with pytest.raises(InputError, match="27000 to 32000 for a picture of 8 bit; its stored values are from 0 to"):
            read_infrared(tmp_path / name, ThermalRange(27000, 32000))
    weighted = rgb @ np.array([0.299, 0.587, 0.114]) / 255
    assert np.abs(read_infrared(tmp_path / "colour.png") - weighted).max() < 0.6 / 255


def test_infrared_16_bit_by_range_and_by_percentiles(tmp_path: Path):
    counts = np.linspace(51241, 52181, 60 * 80).reshape(60, 80).round().astype(np.uint16)
    counts[0, 0], counts[0, 1] = 0, 65535  # a dead and a hot pixel
    cv2.imwrite(str(tmp_path / "t.png"), counts)
    fixed = read_infrared(tmp_path / "t.png", ThermalRange(51000, 52000))
    assert fixed.dtype == np.float32
    assert np.allclose(fixed, np.clip((counts.astype(float) - 51000) / 1000, 0, 1), atol=1e-6)
    robust = read_infrared(tmp_path / "t.png")
    low, high = np.percentile(counts, [0.1, 99.9])
    assert np.allclose(robust, np.clip((counts.astype(float) - low) / (high - low), 0, 1), atol=1e-6)
    assert 0.45 < np.median(robust) < 0.55  # two wild pixels do not squeeze the scene


def test_infrared_constant_and_almost_constant(tmp_path: Path):
    flat = np.full((40, 50), 3000, np.uint16)
    cv2.imwrite(str(tmp_path / "flat.png"), flat)
    assert not read_infrared(tmp_path / "flat.png").any()
    cv2.imwrite(str(tmp_path / "black.tif"), np.zeros((8, 8), np.float32))
    assert not read_infrared(tmp_path / "black.tif").any()
    flat[3, 4] = 3500  # fewer than 0.1 % of the pixels
    cv2.imwrite(str(tmp_path / "spot.png"), flat)
    spot = read_infrared(tmp_path / "spot.png")
    assert spot[3, 4] == 1
    assert spot.sum() == 1


@pytest.mark.parametrize("span", [(5, 5), (9, 1), (float("nan"), 1)])
def test_thermal_range_is_checked(span: tuple[float, float]):
    with pytest.raises(InputError, match="low must be below high"):
        ThermalRange(*span)


def test_visible(tmp_path: Path, rgb: NDArray[np.uint8]):
    write_picture(tmp_path / "rgb.png", rgb)
    write_picture(tmp_path / "grey.png", rgb[..., 0])
    cv2.imwrite(str(tmp_path / "deep.png"), rgb[..., ::-1].astype(np.uint16) * 257)
    real = rgb[..., ::-1].astype(np.float32)
    exactly = [cv2.IMWRITE_TIFF_COMPRESSION, 1]
    cv2.imwrite(str(tmp_path / "unit.tif"), real / 510, exactly)
    cv2.imwrite(str(tmp_path / "large.tif"), real, exactly)
    expected = rgb.astype(np.float32) / 255
    for name, want in {
        "rgb.png": expected,
        "grey.png": np.repeat(expected[..., :1], 3, axis=2),
        "deep.png": expected,
        "unit.tif": expected / 2,
        "large.tif": rgb / np.float32(rgb.max()),
    }.items():
        read = read_visible(tmp_path / name)
        assert read.dtype == np.float32
        assert read.shape == (61, 83, 3)
        assert np.abs(read - want).max() < 1e-6, name


def test_grey_equals_opencv_for_every_colour():
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (512, 512, 3), dtype=np.uint8)
    bgr = np.ascontiguousarray(picture[..., ::-1])
    assert np.array_equal(grey_u8(picture), cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY))
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert np.array_equal(grey_u8(np.repeat(ramp[..., None], 3, axis=2)), ramp)
    assert np.array_equal(grey_u8(ramp), ramp)


def test_read_grey_u8(tmp_path: Path, rgb: NDArray[np.uint8]):
    write_picture(tmp_path / "rgb.png", rgb)
    assert np.array_equal(read_grey_u8(tmp_path / "rgb.png"), grey_u8(rgb))
    deep = np.arange(4800, dtype=np.uint16).reshape(60, 80)
    cv2.imwrite(str(tmp_path / "deep.png"), deep)
    read = read_grey_u8(tmp_path / "deep.png")
    assert read.dtype == np.uint8
    assert np.array_equal(read, np.rint(read_infrared(tmp_path / "deep.png") * 255))


def test_write_rounds_clips_and_checks(tmp_path: Path):
    steps = np.arange(256).reshape(16, 16)
    write_picture(tmp_path / "a.png", (steps / 255 - 1e-6).astype(np.float32))
    assert np.array_equal(read_picture(tmp_path / "a.png"), steps)
    write_picture(tmp_path / "b.png", np.array([[-0.5, 1.5] * 2] * 4, np.float32))
    assert np.array_equal(read_picture(tmp_path / "b.png")[0], [0, 255, 0, 255])
    with pytest.raises(InputError, match=r"suffix '\.gif'"):
        write_picture(tmp_path / "a.gif", np.zeros((8, 8), np.uint8))
    with pytest.raises(ValueError, match="NaN"):
        write_picture(tmp_path / "c.png", np.full((8, 8), np.nan))
    with pytest.raises(TypeError, match="uint16"):
        write_picture(tmp_path / "c.png", np.zeros((8, 8), np.uint16))


def test_interrupted_write_leaves_the_old_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rgb: NDArray[np.uint8]
):
    write_picture(tmp_path / "a.png", rgb)

    def fail(descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_picture(tmp_path / "a.png", 255 - rgb)
    assert np.array_equal(read_picture(tmp_path / "a.png"), rgb)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_png_bytes_round_trip(rgb: NDArray[np.uint8]):
    for picture in (rgb, rgb[..., 1]):
        assert np.array_equal(decode_png(encode_png(picture)), picture)
    for data in (b"", b"nothing", encode_png(rgb)[:200]):
        with pytest.raises(ValueError, match="PNG"):
            decode_png(data)


def test_sha256(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"dusk")
    assert file_sha256(tmp_path / "a") == hashlib.sha256(b"dusk").hexdigest()


@pytest.mark.realdata
def test_header_size_agrees_with_every_real_picture(shared_data: Path):
    pictures = [p for name in ("val", "golden") for p in (shared_data / name).rglob("*.png")]
    pictures += sorted((shared_data / "train" / "vis").iterdir())[::12]
    assert len(pictures) > 60
    for path in pictures:
        assert picture_size(path) == read_picture(path).shape[:2]
