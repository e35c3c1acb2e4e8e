"""Picture files in and out: RGB outside, BGR never leaves this module.

Pictures keep the depth they are stored in until a caller asks for numbers in [0, 1]; thermal pictures of 16 bit or
float are scaled explicitly, by a fixed range or by percentiles, never by cutting bits off. Needs numpy and OpenCV only.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from duskfuse.data.atomic import write_atomically
from duskfuse.data.containers import (
    Container,
    DamagedPictureError,
    Size,
    TruncatedPictureError,
    container_of,
    size_of,
    tiff_bits,
)
from duskfuse.data.errors import InputError
from duskfuse.data.read_files import opened, read_bytes

PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp"})
"""Lower-case file name endings that are taken for pictures."""

SMALLEST_SIDE = 4
"""Pixels: the smallest height and width that any network here accepts."""

PERCENTILES = (0.1, 99.9)
"""The percentiles of a 16-bit or float thermal picture that become 0 and 1 when no range is given."""

LARGEST_PIXELS = 178_956_970
"""What a file may declare: beyond any camera's sensor, and Pillow's own limit, so that labels follow the same rule.

A few kilobytes can declare a picture that fills the memory, so sizes are checked before anything is decoded. OpenCV's
own limit is larger (2³⁰, or what OPENCV_IO_MAX_IMAGE_PIXELS says) and is not relied on."""

LARGEST_BYTES = 2**31 - 1
"""Bytes of a picture file, and what OpenCV decodes from memory."""

_FORMATS = "PNG, JPEG, WebP, TIFF and BMP pictures are read"
_JPEG_QUALITY = 95
_PACKED_BITS = (10, 12, 14)
_EVERY = 4  # pixels in each direction are enough to tell a picture in colour


@dataclass(frozen=True)
class ThermalRange:
    """The stored values of a thermal picture that become 0 and 1.

    >>> ThermalRange(27000, 32000).high
    32000
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (np.isfinite([self.low, self.high]).all() and self.low < self.high):
            raise InputError(
                f"thermal range {self.low}..{self.high}",
                rule="low must be below high, both finite",
                remedy="give the range in the stored units of the infrared files, such as 27000 32000",
            )


class StoredPicture(NamedTuple):
    """The bytes of a picture file, and what they say before they are decoded."""

    data: bytes
    container: Container
    size: Size
    """(height, width)."""


def read_picture(path: Path) -> NDArray[Any]:
    """Read a picture as stored: ``[H, W]`` or ``[H, W, 3]`` RGB; uint8, uint16 or float32.

    Alpha is dropped, palettes are expanded, EXIF rotation is not applied (pairs are aligned as stored). TIFF of any
    other number type becomes float32; of several pages or frames the first is read.

    Raises:
        InputError: the file is missing, empty, not a picture, truncated or damaged, smaller than 4 pixels a side, or
            holds NaN or infinite values.
    """
    picture = _rgb(_decode(path))
    if picture.dtype not in (np.uint8, np.uint16):
        picture = _finite_float(path, picture)
    return picture


def read_four_channels(path: Path) -> NDArray[Any]:
    """Read a picture of four channels as stored, ``[H, W, 4]``: RGB and the fourth, which alpha would be elsewhere.

    Raises:
        InputError: as :func:`read_picture`, and where the picture has another number of channels.
    """
    picture = _decode(path)
    if picture.ndim != 3 or picture.shape[2] != 4:
        raise InputError(
            f"{path}: {1 if picture.ndim == 2 else picture.shape[2]} channels",
            rule="an RGB-T picture holds red, green, blue and infrared in four channels",
            remedy="give the original four-channel PNG",
        )
    return np.ascontiguousarray(picture[..., [2, 1, 0, 3]])


def picture_size(path: Path) -> Size:
    """Read (height, width) of a picture without decoding it; same errors as :func:`read_picture`, as far as seen."""
    return open_picture(path).size


def read_infrared(path: Path, thermal_range: ThermalRange | None = None) -> NDArray[np.float32]:
    """Read an infrared picture as ``[H, W]`` float32 in [0, 1], see :func:`infrared_from`."""
    return infrared_from(counts(path, read_picture(path)), thermal_range)


def counts(path: Path, picture: NDArray[Any]) -> NDArray[Any]:
    """The stored values of a picture read from ``path``, in the units of the file.

    They are the picture's own, except that OpenCV spreads the packed values of 10-, 12- and 14-bit TIFF over 16 bits.
    """
    if picture.dtype != np.uint16:
        return picture
    with opened(path) as stream:
        if container_of(stream.read(16)) is not Container.TIFF:
            return picture
    bits = tiff_bits(read_bytes(path, LARGEST_BYTES))
    return picture >> (16 - bits) if bits in _PACKED_BITS else picture


def infrared_from(picture: NDArray[Any], thermal_range: ThermalRange | None = None) -> NDArray[np.float32]:
    """Reduce an infrared picture as stored to ``[H, W]`` float32 in [0, 1].

    Three equal channels are reduced to one; of three unequal ones the BT.601 luminance is taken. Pictures are scaled by
    ``thermal_range`` where given; values beyond are clipped. Else 8-bit pictures, which the camera has scaled, are
    divided by 255, and 16-bit and float pictures are scaled by their percentiles 0.1 and 99.9. A constant picture of
    these without a range becomes 0.
    """
    grey = one_channel(picture)
    return scaled(grey, thermal_range or thermal_range_of(grey))


def one_channel(picture: NDArray[Any]) -> NDArray[Any]:
    """Reduce ``[H, W]`` or ``[H, W, 3]`` RGB to ``[H, W]``: the channel where all are equal, else the luminance."""
    if picture.ndim == 2:
        return picture
    first = picture[..., 0]
    if np.array_equal(first, picture[..., 1]) and np.array_equal(first, picture[..., 2]):
        return np.ascontiguousarray(first)
    luminance: NDArray[Any] = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    return luminance


def is_coloured(picture: NDArray[Any]) -> bool:
    """Whether more than 1 % of the pixels of a picture are clearly in colour: more than the chroma noise of a codec."""
    if picture.ndim == 2:
        return False
    first, second, third = cv2.split(np.ascontiguousarray(picture[::_EVERY, ::_EVERY]))
    largest, smallest = cv2.max(cv2.max(first, second), third), cv2.min(cv2.min(first, second), third)
    whole = np.iinfo(picture.dtype).max if picture.dtype in (np.uint8, np.uint16) else float(largest.max())
    return float(np.mean(largest - smallest > whole / 8)) > 0.01


def thermal_range_of(grey: NDArray[Any], percentiles: tuple[float, float] | None = None) -> ThermalRange | None:
    """The range that a picture ``[H, W]`` is scaled by where none is given.

    The given percentiles of the picture; by default 0 and 255 for 8-bit pictures, `PERCENTILES` for others. Where the
    two percentiles coincide, the extremes; None for a constant picture.
    """
    if percentiles is None and grey.dtype == np.uint8:
        return ThermalRange(0.0, 255.0)
    low, high = np.percentile(grey, percentiles or PERCENTILES)
    if not low < high:
        low, high = grey.min(), grey.max()
    return ThermalRange(float(low), float(high)) if low < high else None


def scaled(grey: NDArray[Any], span: ThermalRange | None) -> NDArray[np.float32]:
    """Scale ``[H, W]`` as stored so that ``span`` becomes 0 to 1, and clip what is beyond; 0 everywhere without one.

    Raises:
        InputError: no picture of this depth has values inside the range.
    """
    if span is None:
        return np.zeros(grey.shape, np.float32)
    if grey.dtype in (np.uint8, np.uint16):
        most = np.iinfo(grey.dtype).max
        if (span.low, span.high) == (0, 255) and most == 255:
            return _from_u8(grey)
        if span.low >= most or span.high <= 0:
            raise InputError(
                f"thermal range {span.low:g} to {span.high:g} for a picture of {8 * grey.itemsize} bit",
                rule=f"its stored values are from 0 to {most}",
                remedy="give the range in the stored units of the infrared files, or their original radiometric files",
            )
    values = (grey.astype(np.float64) - span.low) / (span.high - span.low)
    return np.clip(values, 0, 1).astype(np.float32)


def read_visible(path: Path) -> NDArray[np.float32]:
    """Read a visible picture as ``[H, W, 3]`` RGB float32 in [0, 1], see :func:`visible_from`."""
    return visible_from(read_picture(path))


def visible_from(picture: NDArray[Any]) -> NDArray[np.float32]:
    """Scale a visible picture as stored to ``[H, W, 3]`` RGB float32 in [0, 1]; grey fills the three channels.

    8-bit is divided by 255 and 16-bit by 65535. Float is taken as it is where its largest value is at most 1, else
    divided by that value; negative values become 0.
    """
    if picture.dtype == np.uint8:
        scaled = _from_u8(picture)
    elif picture.dtype == np.uint16:
        scaled = picture.astype(np.float32) / np.float32(65535)
    else:
        scaled = np.clip(picture / max(float(picture.max()), 1.0), 0, 1).astype(np.float32)
    return scaled if scaled.ndim == 3 else np.repeat(scaled[..., None], 3, axis=2)


def read_grey_u8(path: Path) -> NDArray[np.uint8]:
    """Read any picture as ``[H, W]`` 8-bit grey; 16-bit and float are scaled as :func:`read_infrared` does."""
    picture = read_picture(path)
    if picture.dtype == np.uint8:
        return grey_u8(picture)
    return to_u8(infrared_from(picture))


def grey_u8(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Reduce 8-bit RGB (or grey) to ``[H, W]`` grey with OpenCV's integer weights, as published metrics do."""
    grey: NDArray[np.uint8] = picture if picture.ndim == 2 else cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    return grey


def write_picture(path: Path, picture: NDArray[Any]) -> None:
    """Write ``[H, W]`` grey or ``[H, W, 3]`` RGB as an 8-bit file, whole or not at all.

    Float pictures are in [0, 1] and rounded to the nearest of 255 steps. The suffix chooses the format: .png, .webp,
    .tif(f) and .bmp are lossless, .jpg is written at quality 95. Missing parent folders are made.

    Raises:
        InputError: unknown suffix.
    """
    suffix = path.suffix.lower()
    if suffix not in PICTURE_SUFFIXES:
        raise InputError(
            f"{path}: cannot write a picture with the suffix {path.suffix!r}",
            rule="the suffix chooses the format",
            remedy="use one of " + " ".join(sorted(PICTURE_SUFFIXES)),
        )
    write_atomically(path, _encode(suffix, to_u8(picture)))


def encode_png(picture: NDArray[np.uint8]) -> bytes:
    """Encode 8-bit ``[H, W]`` grey or ``[H, W, 3]`` RGB without loss."""
    return _encode(".png", picture)


def decode_png(data: bytes) -> NDArray[Any]:
    """Decode what :func:`encode_png` made; ``ValueError`` where the data are damaged."""
    try:
        whole = container_of(data) is Container.PNG and math.prod(size_of(Container.PNG, data)) <= LARGEST_PIXELS
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if whole else None
    except (TruncatedPictureError, DamagedPictureError, cv2.error):
        picture = None
    if picture is None:
        raise ValueError("not a complete PNG picture")
    return _rgb(picture)


def file_sha256(path: Path) -> str:
    """Hash the bytes of a file; the hexadecimal digest is a picture's key in the prior cache."""
    with opened(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def open_picture(path: Path) -> StoredPicture:
    """Read the bytes of a picture file and what they declare; nothing of the declared size is made.

    Raises:
        InputError: the file is missing, empty, not a picture, truncated or damaged as far as its header tells, or the
            picture is smaller than 4 pixels a side or larger than `LARGEST_PIXELS`.
    """
    data = read_bytes(path, LARGEST_BYTES)
    if not data:
        raise InputError(f"{path}: the file is empty", rule=_FORMATS, remedy="copy the file again or remove the pair")
    container = container_of(data)
    if container is None:
        raise InputError(
            f"{path}: not a picture, whatever its name says", rule=_FORMATS, remedy="convert the file or remove it"
        )
    try:
        size = size_of(container, data)
    except TruncatedPictureError as error:
        raise InputError(
            f"{path}: the {container} file is truncated ({len(data)} bytes)",
            rule="a picture must be complete",
            remedy="copy the file again or remove the pair",
        ) from error
    except DamagedPictureError as error:
        raise _undecodable(path, container, str(error)) from error
    _check_size(path, size)
    return StoredPicture(data, container, size)


def _check_size(path: Path, size: Size) -> None:
    if min(size) < SMALLEST_SIDE:
        raise InputError(
            f"{path}: {size[1]}×{size[0]} pixels",
            rule=f"pictures need at least {SMALLEST_SIDE} pixels a side",
            remedy="remove the pair or give the full picture",
        )
    if math.prod(size) > LARGEST_PIXELS:
        raise InputError(
            f"{path}: {size[1]}×{size[0]} pixels",
            rule=f"pictures have at most {LARGEST_PIXELS / 1e6:.0f} million pixels",
            remedy="cut it into tiles, or remove it if it should be smaller: its header is then damaged",
        )


def _decode(path: Path) -> NDArray[Any]:
    """The picture as OpenCV gives it, of the size that its header declares."""
    data, container, size = open_picture(path)
    try:
        picture: NDArray[Any] | None = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        picture = None
    if picture is None or picture.size == 0:
        raise _undecodable(path, container)
    if picture.shape[:2] != size:
        raise _undecodable(path, container, f"it declares {size[1]}×{size[0]} and holds another size")
    return picture


def _undecodable(path: Path, container: Container, why: str = "") -> InputError:
    return InputError(
        f"{path}: the {container} file cannot be decoded" + (f": {why}" if why else ""),
        rule="it is damaged, or of a kind of picture that OpenCV does not know",
        remedy="copy the file again, save it as PNG, or remove the pair",
    )


def _rgb(picture: NDArray[Any]) -> NDArray[Any]:
    """OpenCV's channels to grey or RGB: BGR is turned round and alpha dropped."""
    if picture.ndim == 2:
        return picture
    if picture.shape[2] < 3:
        return np.ascontiguousarray(picture[..., 0])
    return np.ascontiguousarray(picture[..., 2::-1])


def _finite_float(path: Path, picture: NDArray[Any]) -> NDArray[np.float32]:
    converted = picture.astype(np.float32)
    bad = int(np.count_nonzero(~np.isfinite(converted)))
    if bad:
        raise InputError(
            f"{path}: {bad} of {converted.size} values are NaN or infinite",
            rule="pictures must hold finite numbers",
            remedy="replace dead pixels before fusing, or remove the pair",
        )
    return converted


def _from_u8(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    return picture.astype(np.float32) / np.float32(255)


def to_u8(picture: NDArray[Any]) -> NDArray[np.uint8]:
    """Round float in [0, 1] to the nearest of 255 steps; uint8 passes."""
    if picture.dtype == np.uint8:
        return picture
    if not np.issubdtype(picture.dtype, np.floating):
        raise TypeError(f"pictures are written from uint8 or float in [0, 1], not {picture.dtype}")
    if not np.isfinite(picture).all():
        raise ValueError("the picture holds NaN or infinite values")
    rounded: NDArray[np.uint8] = np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)
    return rounded


def _encode(suffix: str, picture: NDArray[np.uint8]) -> bytes:
    if picture.dtype != np.uint8 or not (picture.ndim == 2 or (picture.ndim == 3 and picture.shape[2] == 3)):
        raise ValueError(f"{picture.dtype} {picture.shape}, want uint8 [H,W] or [H,W,3]")
    stored = picture if picture.ndim == 2 else cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    options = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY] if suffix in (".jpg", ".jpeg") else []
    done, data = cv2.imencode(suffix, stored, options)
    if not done:
        raise OSError(f"OpenCV could not encode a {suffix} picture")
    return bytes(data)
