"""What the bytes of a picture file say before anything is decoded: format, size, and whether the end is there.

Decoders return a grey lower half for a truncated JPEG without a word, so completeness is read from the container
itself: the PNG chunk list up to IEND, the JPEG segments up to EOI, the RIFF length of WebP, the row count of BMP.
TIFF keeps its pictures at free offsets; its decoder does report missing bytes, so only its first directory is read.

A file of a few bytes can declare a picture that fills the memory. So each size is read where the decoder reads it, and
what a decoder might read differently is damaged: a second frame header, sizes of an odd type, an unknown chunk.
"""

from __future__ import annotations

import re
import struct
from enum import IntEnum, StrEnum

Size = tuple[int, int]
"""(height, width) in pixels."""

MOST_SCANS = 200
"""Scans of a JPEG. Encoders make about ten; each goes over the whole picture, however few bytes it has."""

_MARKER = re.compile(rb"\xff+([^\x00\xff])")
_SCAN_END = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_STANDALONE_MARKERS = {0x01, *range(0xD0, 0xD9)}
_FRAME_MARKERS = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_CORE_HEADER = 12
_BEYOND_THE_END = (IndexError, struct.error, OverflowError)
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_DEFLATE_RATIO = 1032  # 258 bytes in two bits
_JPEG_PIXELS = 2048
"""Pixels per byte at most: a Huffman code has a bit or more for each block of 64, which may be as coarse as 1 : 4."""
_HUFFMAN_FRAMES = {0xC0, 0xC1, 0xC2}
_TIFF_RATIOS = {1: 4, 5: 4 * 1400, 8: 4 * _DEFLATE_RATIO, 32946: 4 * _DEFLATE_RATIO, 32773: 4 * 64}
"""Decoded bytes per stored byte at most: uncompressed, LZW, deflate, PackBits; four times, for subsampled chroma."""
_LOSSY_WEBP_START = b"\x9d\x01\x2a"


class Container(StrEnum):
    """The picture file formats that are read and written."""

    PNG = "PNG"
    JPEG = "JPEG"
    WEBP = "WebP"
    TIFF = "TIFF"
    BMP = "BMP"


class TruncatedPictureError(ValueError):
    """The file ends before its picture does."""


class DamagedPictureError(ValueError):
    """The file contradicts its format; says how."""


class _Tag(IntEnum):
    """Entries of a TIFF directory."""

    WIDTH = 256
    HEIGHT = 257
    BITS = 258
    COMPRESSION = 259
    ORIENTATION = 274
    SAMPLES = 277
    PLANES = 284


_TAGS = frozenset(map(int, _Tag))
_TIFF_FORMS = {1: "B", 3: "H", 4: "I", 16: "Q"}


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


def size_of(container: Container, data: bytes) -> Size:
    """Read (height, width) and check that the file is complete (TIFF apart).

    Raises:
        TruncatedPictureError: the file ends before its picture does.
        DamagedPictureError: its header makes no sense.
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
                return _tiff(data)
    except _BEYOND_THE_END as error:
        raise TruncatedPictureError from error


def tiff_bits(data: bytes) -> int:
    """Bits of one value in the first picture of a TIFF file; 8, 16 and so on are whole bytes, others are packed.

    Raises:
        TruncatedPictureError, DamagedPictureError: as :func:`size_of`.
    """
    try:
        return _tiff_fields(data).get(_Tag.BITS, 1)
    except _BEYOND_THE_END as error:
        raise TruncatedPictureError from error


def _number(data: bytes, start: int, count: int, *, big: bool = False, signed: bool = False) -> int:
    """Read an integer of ``count`` bytes; IndexError where the data ends before it."""
    if start + count > len(data):
        raise IndexError
    return int.from_bytes(data[start : start + count], "big" if big else "little", signed=signed)


def _check_room(width: int, height: int, bits: int, most: int) -> None:
    """Raise where ``width`` × ``height`` pixels of ``bits`` do not fit into the ``most`` bytes that can be decoded."""
    if (width * bits + 7) // 8 * height > most:
        raise TruncatedPictureError


def _png(data: bytes) -> Size:
    if data[8:16] != b"\0\0\0\rIHDR":
        raise DamagedPictureError("its first chunk is no header")
    position, stored = 8, 0
    while (kind := data[position + 4 : position + 8]) != b"IEND":
        length = _number(data, position, 4, big=True)
        if kind == b"IHDR" and position > 8:
            raise DamagedPictureError("it has two headers")
        stored += length if kind == b"IDAT" else 0
        position += 12 + length
    width, height, depth, kind_of_colour = struct.unpack_from(">IIBB", data, 16)
    _check_room(width, height, _PNG_CHANNELS.get(kind_of_colour, 1) * depth, stored * _DEFLATE_RATIO)
    return height, width


def _jpeg(data: bytes) -> Size:
    size, position, scans = None, 2, 0
    while True:
        found = _MARKER.search(data, position)
        if found is None:
            raise IndexError
        marker, position = found[1][0], found.end()
        if marker == _END_OF_IMAGE:
            if size is None:
                raise DamagedPictureError("it has no frame header")
            return size
        if marker in _STANDALONE_MARKERS:
            continue
        if marker in _FRAME_MARKERS:
            if size is not None:
                raise DamagedPictureError("it has two frame headers")
            size = _number(data, position + 3, 2, big=True), _number(data, position + 5, 2, big=True)
            if marker in _HUFFMAN_FRAMES and size[0] * size[1] > len(data) * _JPEG_PIXELS:
                raise TruncatedPictureError
        position += _number(data, position, 2, big=True)
        if marker == _START_OF_SCAN:
            scans += 1
            if scans > MOST_SCANS:
                raise DamagedPictureError(f"it has more than {MOST_SCANS} scans")
            following = _SCAN_END.search(data, position)
            if following is None:
                raise IndexError
            position = following.start()


def _webp(data: bytes) -> Size:
    if _number(data, 4, 4) + 8 > len(data):
        raise IndexError
    match data[12:16]:
        case b"VP8X":
            return _number(data, 27, 3) + 1, _number(data, 24, 3) + 1
        case b"VP8L":
            bits = _number(data, 21, 4)
            return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
        case b"VP8 " if data[23:26] == _LOSSY_WEBP_START:
            return _number(data, 28, 2) & 0x3FFF, _number(data, 26, 2) & 0x3FFF
    raise DamagedPictureError("its first chunk is no picture")


def _bmp(data: bytes) -> Size:
    if _number(data, 14, 4) == _CORE_HEADER:
        width, height, bits, compression = *(_number(data, at, 2) for at in (18, 20, 24)), 0
    else:
        width, height = _number(data, 18, 4, signed=True), abs(_number(data, 22, 4, signed=True))
        bits, compression = _number(data, 28, 2), _number(data, 30, 4)
    row_bytes = (width * bits + 31) // 32 * 4
    run_lengths = compression in (1, 2)  # the decoder reports what is missing
    if not run_lengths and _number(data, 10, 4) + row_bytes * height > len(data):
        raise IndexError
    return height, width


def _tiff(data: bytes) -> Size:
    fields = _tiff_fields(data)
    if _Tag.WIDTH not in fields or _Tag.HEIGHT not in fields:
        raise DamagedPictureError("its first directory says no size")
    if fields.get(_Tag.PLANES, 1) == 2 and fields.get(_Tag.SAMPLES, 1) > 1 and fields.get(_Tag.BITS, 1) > 8:
        raise DamagedPictureError("its colours of more than 8 bits lie in planes, which OpenCV mixes up")
    height, width = fields[_Tag.HEIGHT], fields[_Tag.WIDTH]
    ratio = _TIFF_RATIOS.get(fields.get(_Tag.COMPRESSION, 1))
    if ratio is not None:
        _check_room(width, height, fields.get(_Tag.SAMPLES, 1) * fields.get(_Tag.BITS, 1), len(data) * ratio)
    turned = 5 <= fields.get(_Tag.ORIENTATION, 1) <= 8  # the decoder turns the picture upright
    return (width, height) if turned else (height, width)


def _tiff_fields(data: bytes) -> dict[int, int]:
    """The first value of the known tags in the first directory; of a tag that occurs twice, the first."""
    order = ">" if data[:2] == b"MM" else "<"
    big = data[2:4] in (b"+\0", b"\0+")
    count_form, entry_form = (order + "Q", order + "HHQ8s") if big else (order + "H", order + "HHI4s")
    (start,) = struct.unpack_from(order + "Q", data, 8) if big else struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(count_form, data, start)
    first = start + struct.calcsize(count_form)
    step = struct.calcsize(entry_form)
    if first + count * step > len(data):
        raise IndexError
    fields: dict[int, int] = {}
    for position in range(first, first + count * step, step):
        tag, kind, values, inline = struct.unpack_from(entry_form, data, position)
        if tag in _TAGS and tag not in fields:
            fields[tag] = _tiff_value(data, order, kind, values, inline)
    return fields


def _tiff_value(data: bytes, order: str, kind: int, values: int, inline: bytes) -> int:
    """The first value of an entry; the values stand elsewhere where the entry has no room for them."""
    form = _TIFF_FORMS.get(kind)
    if form is None or values < 1:
        raise DamagedPictureError("a size in its first directory is no number")
    if values * struct.calcsize(form) > len(inline):
        (start,) = struct.unpack(order + ("I" if len(inline) == 4 else "Q"), inline)
        (value,) = struct.unpack_from(order + form, data, start)
    else:
        (value,) = struct.unpack_from(order + form, inline)
    return int(value)
