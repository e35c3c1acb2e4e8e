"""What the bytes of a picture file say before anything is decoded: format, size, and whether the end is there.

Decoders return a grey lower half for a truncated JPEG without a word, so completeness is read from the container
itself: the PNG chunk list up to IEND, the JPEG segments up to EOI, the RIFF length of WebP, the row count of BMP.
TIFF keeps its pictures at free offsets; its decoder does report missing bytes, so only its signature is checked here.
"""

from __future__ import annotations

import re
from enum import StrEnum

Size = tuple[int, int]
"""(height, width) in pixels."""

_SCAN_END = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_STANDALONE_MARKERS = {0x01, *range(0xD0, 0xD9)}
_FRAME_MARKERS = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9


class Container(StrEnum):
    """The picture file formats that are read and written."""

    PNG = "PNG"
    JPEG = "JPEG"
    WEBP = "WebP"
    TIFF = "TIFF"
    BMP = "BMP"


class TruncatedPictureError(ValueError):
    """The file ends before its picture does."""


def container_of(data: bytes) -> Container | None:
    """Tell the format from the signature; None for anything that is not a supported picture."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return Container.PNG
    if data.startswith(b"\xff\xd8\xff"):
        return Container.JPEG
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return Container.WEBP
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return Container.TIFF
    return Container.BMP if data.startswith(b"BM") else None


def size_of(container: Container, data: bytes) -> Size | None:
    """Read (height, width) and check that the file is complete; None for TIFF, which has to be decoded.

    Raises:
        TruncatedPictureError: the file ends before its picture does.
    """
    try:
        match container:
            case Container.PNG:
                return _png(data)
            case Container.JPEG:
                return _jpeg(data)
            case Container.WEBP:
                return _webp(data)
            case Container.BMP:
                return _bmp(data)
            case Container.TIFF:
                return None
    except IndexError as error:
        raise TruncatedPictureError from error


def _number(data: bytes, start: int, count: int, *, big: bool = False, signed: bool = False) -> int:
    """Read an integer of ``count`` bytes; IndexError where the data ends before it."""
    if start + count > len(data):
        raise IndexError
    return int.from_bytes(data[start : start + count], "big" if big else "little", signed=signed)


def _png(data: bytes) -> Size:
    position = 8
    while data[position + 4 : position + 8] != b"IEND":
        position += 12 + _number(data, position, 4, big=True)
    return _number(data, 20, 4, big=True), _number(data, 16, 4, big=True)


def _jpeg(data: bytes) -> Size:
    size, position = (0, 0), 2
    while True:
        marker = data[position + 1]
        if marker == _END_OF_IMAGE:
            return size
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        if marker in _FRAME_MARKERS:
            size = _number(data, position + 5, 2, big=True), _number(data, position + 7, 2, big=True)
        position += 2
        if marker not in _STANDALONE_MARKERS:
            position += _number(data, position, 2, big=True)
        if marker == _START_OF_SCAN:
            following = _SCAN_END.search(data, position)
            if following is None:
                raise IndexError
            position = following.start()


def _webp(data: bytes) -> Size:
    if _number(data, 4, 4) + 8 > len(data):
        raise IndexError
    if data[12:16] == b"VP8X":
        return _number(data, 27, 3) + 1, _number(data, 24, 3) + 1
    if data[12:16] == b"VP8L":
        bits = _number(data, 21, 4)
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    return _number(data, 28, 2) & 0x3FFF, _number(data, 26, 2) & 0x3FFF


def _bmp(data: bytes) -> Size:
    start, width, height = _number(data, 10, 4), _number(data, 18, 4), abs(_number(data, 22, 4, signed=True))
    row_bytes = (width * _number(data, 28, 2) + 31) // 32 * 4
    compressed = _number(data, 30, 4) in (1, 2)  # run lengths: the decoder reports what is missing
    if not compressed and start + row_bytes * height > len(data):
        raise IndexError
    return height, width
