"""Damaged, lying and hostile files: they are refused with one message, or read as a picture; nothing else happens.

The many mutated files are read in a process of its own, with a bound on its memory, so that a crash of a decoder is
seen as such. Run this file with a number to read that many and print what became of them.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import random
import resource
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from duskfuse.data.containers import DamagedPictureError, TruncatedPictureError, container_of, size_of
from duskfuse.data.errors import InputError
from duskfuse.data.images import (
    LARGEST_PIXELS,
    decode_png,
    encode_png,
    infrared_from,
    picture_size,
    read_picture,
    visible_from,
)
from duskfuse.data.pair_files import read_boxes, read_label, text_lines

SIZE = (36, 45)
MUTATED = 2600
MEMORY_LIMIT = 6 * 2**30
"""Bytes of address space for the process that reads the mutated files; PyTorch takes most of it."""
MOST_SECONDS, MOST_MEBIBYTES = 10.0, 700


def pillow_bytes(picture: Image.Image, form: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, form, **options)
    return stream.getvalue()


def opencv_bytes(suffix: str, picture: np.ndarray) -> bytes:
    return bytes(cv2.imencode(suffix, picture)[1])


def sound_pictures() -> dict[str, bytes]:
    """Small pictures of every kind that is read, all of `SIZE`."""
    noise = np.random.default_rng(3).standard_normal((*SIZE, 3))
    counts = np.clip(cv2.GaussianBlur(noise, (0, 0), 4) * 3000 + 9000, 0, 16383)
    deep, bytes_ = counts.astype(np.uint16), (counts / 64).astype(np.uint8)
    colour, grey = Image.fromarray(bytes_), Image.fromarray(bytes_[..., 0])
    clear = colour.copy()
    clear.putalpha(grey)
    palette, binary, more = colour.quantize(16), colour.convert("1"), [Image.fromarray(255 - bytes_)]
    pictures = {
        "png-rgb": pillow_bytes(colour, "PNG"),
        "png-palette": pillow_bytes(palette, "PNG"),
        "png-binary": pillow_bytes(binary, "PNG"),
        "png-rgba": pillow_bytes(clear, "PNG"),
        "png-animated": pillow_bytes(colour, "PNG", save_all=True, append_images=more, duration=50),
        "png-16": opencv_bytes(".png", deep[..., 0]),
        "png-16-rgb": opencv_bytes(".png", deep),
        "jpeg": pillow_bytes(colour, "JPEG"),
        "jpeg-grey": pillow_bytes(grey, "JPEG"),
        "jpeg-progressive": pillow_bytes(colour, "JPEG", progressive=True),
        "jpeg-cmyk": pillow_bytes(colour.convert("CMYK"), "JPEG"),
        "webp": pillow_bytes(colour, "WEBP"),
        "webp-lossless": pillow_bytes(colour, "WEBP", lossless=True),
        "webp-alpha": pillow_bytes(clear, "WEBP"),
        "webp-animated": pillow_bytes(colour, "WEBP", save_all=True, append_images=more, duration=50),
        "bmp": pillow_bytes(colour, "BMP"),
        "bmp-palette": pillow_bytes(grey, "BMP"),
        "bmp-binary": pillow_bytes(binary, "BMP"),
        "tiff-binary": pillow_bytes(binary, "TIFF"),
        "tiff-fax": pillow_bytes(binary, "TIFF", compression="group4"),
        "tiff-palette": pillow_bytes(palette, "TIFF"),
        "tiff-rgba": pillow_bytes(clear, "TIFF"),
        "tiff-cmyk": pillow_bytes(colour.convert("CMYK"), "TIFF"),
        "tiff-pages": pillow_bytes(colour, "TIFF", save_all=True, append_images=[grey, *more]),
        "tiff-16": opencv_bytes(".tif", deep[..., 0]),
        "tiff-16-rgb": opencv_bytes(".tif", deep),
        "tiff-float": opencv_bytes(".tif", counts[..., 0].astype(np.float32)),
        "tiff-double": opencv_bytes(".tif", counts[..., 0]),
    }
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        pictures[f"tiff-{compression}"] = pillow_bytes(colour, "TIFF", compression=compression)
    return pictures


EXTREMES = (0, 1, 0x7FFF, 0x8000, 0xFFFF, 30000, 65500, 16384, 1 << 20, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def mutated(rng: random.Random, data: bytes) -> bytes:
    """One to eight changes: flipped bits, cuts, insertions, moved blocks, extreme numbers in the header or anywhere."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 8))):
        if len(changed) < 4:
            break
        place = rng.randrange(min(len(changed), 200) if rng.random() < 0.5 else len(changed))
        other, span = rng.randrange(len(changed)), rng.choice((1, 2, 4, 16, 64))
        match rng.randrange(8):
            case 0:
                changed[place] ^= 1 << rng.randrange(8)
            case 1:
                changed[place] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
            case 2:
                del changed[place:]
            case 3:
                changed[place:place] = rng.randbytes(span)
            case 4:
                del changed[place : place + span]
            case 5:
                width, order = rng.choice((2, 4)), rng.choice(("big", "little"))
                changed[place : place + width] = (rng.choice(EXTREMES) % 256**width).to_bytes(width, order)  # type: ignore[arg-type]
            case 6:
                changed[place : place + span] = changed[other : other + span]
            case _:
                changed[place:place] = changed[other : other + 4 * span]
    return with_right_checksums(changed) if rng.random() < 0.7 else bytes(changed)


def with_right_checksums(data: bytearray) -> bytes:
    """A PNG whose chunks pass their checks, so that a change reaches what is behind them; anything else as it is."""
    position = 8
    while data[:4] == b"\x89PNG" and position + 12 <= len(data):
        end = position + 8 + int.from_bytes(data[position : position + 4], "big")
        if end + 4 > len(data):
            break
        data[end : end + 4] = zlib.crc32(data[position + 4 : end]).to_bytes(4, "big")
        position = end + 4
    return bytes(data)


def read_all_ways(path: Path, data: bytes) -> dict[str, bool]:
    """Reader → whether it gave a picture; every error but the documented ones comes through."""
    given_picture = {}
    for name, read, refusal in (
        ("read_picture", lambda: consistent(path), InputError),
        ("picture_size", lambda: picture_size(path), InputError),
        ("read_label", lambda: read_label(path, SIZE), InputError),
        ("decode_png", lambda: decode_png(data), ValueError),
    ):
        try:
            read()
            given_picture[name] = True
        except refusal:
            given_picture[name] = False
    return given_picture


def consistent(path: Path) -> None:
    """Read a picture and what is made of it."""
    picture = read_picture(path)
    assert picture.shape[:2] == picture_size(path)
    for plane in (infrared_from(picture), visible_from(picture)):
        assert np.isfinite(plane).all()
        assert plane.min() >= 0
        assert plane.max() <= 1


def read_mutated(count: int, folder: Path) -> dict[str, Any]:
    """Read so many mutated files; how many were accepted, the slowest, and the memory above that before the first."""
    import torch

    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    sound = sound_pictures()
    path = folder / "picture.png"
    accepted = dict.fromkeys(("read_picture", "picture_size", "read_label", "decode_png"), 0)
    slowest, before = (0.0, ""), peak_mebibytes()
    for number, kind in zip(range(count), itertools.cycle(sound), strict=False):
        data = mutated(random.Random(number), sound[kind])
        path.write_bytes(data)
        (folder / "current").write_text(f"{number} {kind}")
        started = time.perf_counter()
        for name, good in read_all_ways(path, data).items():
            accepted[name] += good
        slowest = max(slowest, (time.perf_counter() - started, f"{number} {kind}"))
    return {"files": count, "accepted": accepted, "slowest": slowest, "mebibytes": peak_mebibytes() - before}


def peak_mebibytes() -> int:
    """Not ru_maxrss, which begins at that of the process that started this one."""
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) // 1024


@pytest.mark.slow
def test_mutated_files_are_read_or_refused(tmp_path: Path):
    command = [sys.executable, __file__, str(MUTATED), str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, env=environment)
    current = (tmp_path / "current").read_text()
    assert result.returncode == 0, f"file {current}: {result.stderr[-2000:]}"
    report = json.loads(result.stdout)
    assert report["files"] == MUTATED
    for name in ("read_picture", "picture_size", "read_label"):
        assert MUTATED // 20 < report["accepted"][name] < MUTATED * 2 // 3, name
    assert report["accepted"]["decode_png"] > 5
    assert report["slowest"][0] < MOST_SECONDS, report
    assert report["mebibytes"] < MOST_MEBIBYTES, report


def test_the_sound_pictures_are_read(tmp_path: Path):
    for kind, data in sound_pictures().items():
        if kind == "webp-animated":  # OpenCV reads the first frame from 4.11 on
            continue
        (tmp_path / "a.png").write_bytes(data)
        assert read_picture(tmp_path / "a.png").shape[:2] == picture_size(tmp_path / "a.png") == SIZE, kind


SIGNATURES = [b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"\xff\xd8\xff", b"RIFF\x20\0\0\0WEBPVP8", b"BM", b"II*\0", b"MM\0+"]


@settings(max_examples=400, deadline=1000)
@given(st.sampled_from(SIGNATURES), st.binary(max_size=120))
@example(b"II+\0", b"\x08\0\0\0" + b"\xff" * 8)
@example(b"\xff\xd8\xff", b"\xc0\0\0\xff\xda\0\0\xff\xd9")
def test_headers_of_any_bytes_give_a_size_or_one_of_two_errors(signature: bytes, rest: bytes):
    data = signature + rest
    container = container_of(data)
    if container is None:
        return
    try:
        height, width = size_of(container, data)
    except (TruncatedPictureError, DamagedPictureError):
        return
    assert isinstance(height, int)
    assert isinstance(width, int)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, *, content: bytes = b"", before: bytes = b"", twice: bool = False) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    second = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0)) if twice else b""
    body = before + header + second + chunk(b"IDAT", zlib.compress(content, 0)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def jpeg(width: int, height: int, *, twice: bool = False, scans: int = 0) -> bytes:
    """A progressive JPEG of 16×16 with another size in its header, or two headers, or its last scan again and again."""
    data = pillow_bytes(Image.fromarray(np.zeros((16, 16, 3), np.uint8)), "JPEG", progressive=True)
    start, scan = data.index(b"\xff\xc2"), data.rindex(b"\xff\xda")
    frame = data[start : start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")]
    lying = frame[:5] + struct.pack(">HH", height, width) + frame[9:]
    frames = lying + frame if twice else lying
    return data[:start] + frames + data[start + len(frame) : -2] + data[scan:-2] * scans + b"\xff\xd9"


def tiff(fields: dict[int, tuple[int, int, int]], *, pages: int = 1, loop: bool = False, content: bytes = b"") -> bytes:
    """Directories of (type, count, value) per tag, one after the other; the last may lead back to the first."""
    start = 8 + len(content)
    directory = struct.pack("<H", len(fields)) + b"".join(
        struct.pack("<HHII", tag, *entry) for tag, entry in sorted(fields.items())
    )
    length = len(directory) + 4
    data = b"II*\0" + struct.pack("<I", start) + content
    for page in range(pages):
        following = start + (page + 1) * length if page + 1 < pages else (start if loop else 0)
        data += directory + struct.pack("<I", following)
    return data


def tiff_fields(width: int, height: int, *, bits: int = 8, compression: int = 1, stored: int = 64) -> dict[int, Any]:
    return {
        256: (4, 1, width), 257: (4, 1, height), 258: (3, 1, bits), 259: (3, 1, compression), 262: (3, 1, 1),
        273: (4, 1, 8), 277: (3, 1, 1), 278: (4, 1, height), 279: (4, 1, stored),
    }  # fmt: skip


def rle_bmp(width: int, height: int) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, 4, 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 1100, 0, 0, 1078) + header + bytes(1024) + b"\0\1"


def webp(width: int, height: int) -> bytes:
    """A lossless WebP that is one colour."""
    bits = 0x2F | (width - 1) << 8 | (height - 1) << 22
    body = bits.to_bytes(5, "little") + b"\x07\x10\x11\x11\x88\x88\xfe\x07\0"
    return b"RIFF" + struct.pack("<I", 12 + len(body)) + b"WEBPVP8L" + struct.pack("<I", len(body)) + body


PIXELS = bytes(64)

REFUSED = {
    "a zip bomb": (png(30000, 30000, content=bytes(20_000)), "truncated"),
    "a zip bomb that may hold its pixels": (png(30000, 30000, content=bytes(900_000)), "at most 179 million"),
    "a header that is not the first chunk": (png(8, 8, before=chunk(b"tEXt", b"a\0b")), "first chunk is no header"),
    "two PNG headers": (png(8, 8, content=bytes(72), twice=True), "two headers"),
    "a JPEG of 4 gigapixels": (jpeg(65500, 65500), "truncated"),
    "two JPEG frame headers": (jpeg(65500, 65500, twice=True), "two frame headers|truncated"),
    "a JPEG of a thousand scans": (jpeg(16, 16, scans=1000), "more than 200 scans"),
    "a JPEG without a frame": (b"\xff\xd8\xff\xe0\0\x04ab\xff\xd9", "no frame header"),
    "a run-length BMP": (rle_bmp(30000, 30000), "at most 179 million"),
    "a WebP of 268 megapixels": (webp(16384, 16384), "at most 179 million"),
    "a TIFF of 4 gigapixels": (tiff(tiff_fields(65500, 65500, compression=4), content=PIXELS), "at most 179 million"),
    "a TIFF that is too short": (tiff(tiff_fields(30000, 3000, compression=8), content=PIXELS), "truncated"),
    "a TIFF without a size": (tiff({258: (3, 1, 8)}, content=PIXELS), "says no size"),
    "a TIFF whose width is text": (tiff({**tiff_fields(8, 8), 256: (2, 4, 8)}, content=PIXELS), "no number"),
    "a TIFF whose width is nothing": (tiff({**tiff_fields(8, 8), 256: (4, 0, 8)}, content=PIXELS), "no number"),
    "a TIFF whose directory is elsewhere": (b"II*\0\xff\xff\xff\x7f" + PIXELS, "truncated"),
    "a BigTIFF whose directory is nowhere": (b"II+\0\x08\0\0\0" + b"\xff" * 8 + PIXELS, "truncated"),
    "an SVG": (b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>', "not a picture"),
    "a GIF": (pillow_bytes(Image.new("L", (8, 8)), "GIF"), "not a picture"),
    "an EXR": (b"\x76\x2f\x31\x01" + bytes(300), "not a picture"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n(/etc/passwd) (r) file", "not a picture"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_before_anything_is_decoded(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch):
    data, words = REFUSED[kind]
    (tmp_path / "a.png").write_bytes(data)
    monkeypatch.setattr(cv2, "imdecode", None)
    monkeypatch.setattr(Image, "open", None)
    for read in (read_picture, picture_size, lambda path: read_label(path, (8, 8))):
        with pytest.raises(InputError, match=words) as caught:
            read(tmp_path / "a.png")
        assert "a.png" in str(caught.value)
    with pytest.raises(ValueError, match="PNG"):
        decode_png(data)


def test_the_largest_allowed_is_a_picture(tmp_path: Path):
    side = int(LARGEST_PIXELS**0.5)
    (tmp_path / "a.webp").write_bytes(webp(side, side))
    assert picture_size(tmp_path / "a.webp") == (side, side)
    (tmp_path / "a.webp").write_bytes(webp(side + 1, side + 1))
    with pytest.raises(InputError, match="at most 179 million pixels"):
        picture_size(tmp_path / "a.webp")


@pytest.mark.parametrize("loop", [False, True])
def test_only_the_first_page_of_a_tiff_counts(tmp_path: Path, loop: bool):
    """Ten thousand pages, or directories that go round: neither is followed."""
    pages = 10_000 if not loop else 3
    (tmp_path / "a.tif").write_bytes(tiff(tiff_fields(8, 8), pages=pages, loop=loop, content=bytes(range(64))))
    started = time.perf_counter()
    assert np.array_equal(read_picture(tmp_path / "a.tif").ravel(), range(64))
    assert read_label(tmp_path / "a.tif", (8, 8)).shape == (8, 8)
    assert time.perf_counter() - started < 5


def test_a_decoded_size_that_was_not_declared_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a.png").write_bytes(encode_png(np.zeros((8, 8), np.uint8)))
    decode: Callable[..., Any] = cv2.imdecode
    monkeypatch.setattr(cv2, "imdecode", lambda data, flags: decode(data, flags)[:5])
    with pytest.raises(InputError, match="declares 8×8 and holds another size"):
        read_picture(tmp_path / "a.png")


def test_pipes_and_devices_are_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.png")
    for read in (read_picture, picture_size, read_boxes, lambda path: read_label(path, (8, 8))):
        with pytest.raises(InputError, match="a pipe or a device"):
            read(tmp_path / "pipe.png")
    (tmp_path / "endless.txt").symlink_to("/dev/zero")
    with pytest.raises(InputError, match="a pipe or a device"):
        read_boxes(tmp_path / "endless.txt")


HOSTILE_TEXTS = {
    "one line of a megabyte": (b"0 " + b"9" * 2**20 + b" 0 0 0", "line 1"),
    "a million numbers": (b"0 " * 10**6, "line 1"),
    "a picture": (encode_png(np.zeros((8, 8), np.uint8)), "cannot be read as text"),
    "zero bytes": (bytes(1000), "line 1"),
    "UTF-16": ("0 0.5 0.5 0.1 0.1".encode("utf-16"), "cannot be read as text"),
    "too many bytes": (b"0 0.5 0.5 0.1 0.1\n" * 10**6, "more than 16,777,216 bytes"),
    "a class beyond float32": (b"1e300 0.5 0.5 0.1 0.1", "line 1"),
    "not a number": (b"nan nan nan nan nan", "line 1"),
    "underscores and digits of other scripts": ("0 0.5 0.5 0.1 \u0661e400".encode(), "line 1"),
}


@pytest.mark.parametrize("kind", HOSTILE_TEXTS)
def test_hostile_texts(tmp_path: Path, kind: str):
    data, said = HOSTILE_TEXTS[kind]
    (tmp_path / "b.txt").write_bytes(data)
    started = time.perf_counter()
    with pytest.raises(InputError, match=said) as caught:
        read_boxes(tmp_path / "b.txt")
    assert len(str(caught.value)) < 500 + len(str(tmp_path))
    assert time.perf_counter() - started < 5


@settings(max_examples=200, deadline=1000)
@given(st.binary(max_size=200))
def test_any_bytes_as_text(tmp_path_factory: pytest.TempPathFactory, data: bytes):
    path = tmp_path_factory.getbasetemp() / "any.txt"
    path.write_bytes(data)
    try:
        assert all(line == line.strip() and line for _, line in text_lines(path))
        assert read_boxes(path).shape[1] == 5
    except InputError:
        pass


if __name__ == "__main__":
    print(json.dumps(read_mutated(int(sys.argv[1]), Path(sys.argv[2]))))
