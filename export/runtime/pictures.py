"""Picture files on the device: reading them as stored, finding the pairs of two folders, writing whole files only."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, NamedTuple, Optional, Tuple

import cv2
import numpy as np

from .errors import DeviceInputError
from .tiff import TiffValues, values_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp"})
"""Lower-case file name endings that are taken for pictures."""

_JPEG_QUALITY = 95


class StoredPicture(NamedTuple):
    """A picture as OpenCV decodes it."""

    pixels: NDArray[Any]
    """``[H, W]``, or ``[H, W, 3]`` BGR; uint8, uint16 or float32."""
    shift: int
    """Bits by which packed values of 10, 12 or 14 bits were moved up."""

    @property
    def counts(self) -> NDArray[Any]:
        """The pixels in the units of the file."""
        return self.pixels >> self.shift if self.shift else self.pixels


def read_stored(path: Path) -> StoredPicture:
    """Read a picture; alpha is dropped, EXIF rotation is not applied, other number types become float32.

    Raises DeviceInputError where the file is missing, no picture, or of a kind that this OpenCV does not read.
    """
    try:
        data = path.read_bytes()
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if data else None
    except OSError as error:
        raise DeviceInputError(f"{path}: {error.strerror}", remedy="check the path") from error
    except cv2.error:
        picture = None
    values = values_of(data)
    if picture is None or (values is not None and values.in_planes and values.bits > 8):
        raise _undecodable(path, values)
    if values is not None:
        picture = values.as_declared(picture)
    if picture.ndim == 3:
        picture = np.ascontiguousarray(picture[..., :3] if picture.shape[2] >= 3 else picture[..., 0])
    if picture.dtype not in (np.uint8, np.uint16):
        picture = picture.astype(np.float32)
    return StoredPicture(picture, 0 if values is None else values.shift)


def _undecodable(path: Path, values: Optional[TiffValues]) -> DeviceInputError:
    if values is None:
        return DeviceInputError(
            f"{path} cannot be read as a picture",
            "complete PNG, JPEG, WebP, TIFF and BMP files are read",
            "copy the file again or remove it",
        )
    kind = f"{values.bits}-bit values" + (" in planes, one per colour" if values.in_planes else "")
    return DeviceInputError(
        f"{path} cannot be decoded: a TIFF of {kind}, by OpenCV {cv2.__version__}",
        "OpenCV reads 8, 16, 32 and 64 bits, from 4.6 on also packed 10, 12 and 14, and colours pixel by pixel",
        "copy the file again if it is cut off; else save it as PNG or plain TIFF of 16 bits, or install a newer OpenCV",
    )


def read_picture(path: Path) -> NDArray[Any]:
    """Read a picture as stored: ``[H, W]`` or ``[H, W, 3]`` RGB; uint8, uint16 or float32. Alpha is dropped.

    Raises DeviceInputError as :func:`read_stored`, and where the file holds NaN or infinite values.
    """
    picture = _finite(path, read_stored(path).pixels)
    return picture if picture.ndim == 2 else np.ascontiguousarray(picture[..., ::-1])


def read_infrared(path: Path) -> NDArray[Any]:
    """Read an infrared picture as one channel ``[H, W]`` of the values that the file stores, packed ones included.

    Raises DeviceInputError as :func:`read_picture`.
    """
    counts = _finite(path, read_stored(path).counts)
    return one_channel(counts if counts.ndim == 2 else counts[..., ::-1])


def _finite(path: Path, picture: NDArray[Any]) -> NDArray[Any]:
    if picture.dtype == np.float32 and not np.isfinite(picture).all():
        raise DeviceInputError(f"{path} holds NaN or infinite values", "pictures must hold finite numbers")
    return picture


def one_channel(picture: NDArray[Any]) -> NDArray[Any]:
    """Reduce ``[H, W]`` or ``[H, W, 3]`` RGB to ``[H, W]``: the channel where all are equal, else the luminance."""
    if picture.ndim == 2:
        return picture
    first = picture[..., 0]
    if np.array_equal(first, picture[..., 1]) and np.array_equal(first, picture[..., 2]):
        return np.ascontiguousarray(first)
    grey: NDArray[Any] = cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2GRAY)
    return grey


def visible(picture: NDArray[Any]) -> NDArray[Any]:
    """A visible picture as stored as ``[H, W, 3]`` RGB uint8, or float32 in [0, 1] where it is deeper than 8 bits.

    16-bit is divided by 65535. Float is taken as it is where its largest value is at most 1, else divided by that
    value; negative values become 0.
    """
    if picture.dtype == np.uint16:
        picture = picture.astype(np.float32) / np.float32(65535)
    elif picture.dtype == np.float32:
        picture = np.clip(picture / max(float(picture.max()), 1.0), 0, 1).astype(np.float32)
    return picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, axis=2)


def write_picture(path: Path, picture: NDArray[np.uint8]) -> None:
    """Write ``[H, W, 3]`` RGB or ``[H, W]`` uint8, whole or not at all; the suffix chooses the format.

    Missing folders are made. Raises DeviceInputError for an unknown suffix.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise DeviceInputError(
            f"{path}: cannot write a picture with the suffix {path.suffix!r}",
            "the suffix chooses the format",
            "use one of " + " ".join(sorted(SUFFIXES)),
        )
    options = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY] if suffix in (".jpg", ".jpeg") else []
    stored = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR) if picture.ndim == 3 else picture
    done, data = cv2.imencode(suffix, stored, options)
    if not done:
        raise DeviceInputError(f"{path}: OpenCV cannot write this format")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        unfinished.write_bytes(data.tobytes())
        os.replace(str(unfinished), str(path))
    finally:
        if unfinished.exists():
            unfinished.unlink()


def matched(ir: Path, vis: Path) -> Tuple[List[Tuple[str, Path, Path]], List[str]]:
    """Pair the pictures of two folders by stem: (stem, infrared, visible), and what has no or no single partner.

    Raises DeviceInputError where no two pictures have one name.
    """
    sides = _by_stem(ir), _by_stem(vis)
    both = sorted(sides[0].keys() & sides[1].keys())
    if not both:
        raise DeviceInputError(
            f"no name is both in {ir} ({len(sides[0])} pictures) and {vis} ({len(sides[1])})",
            "the two pictures of a pair have the same name before the suffix",
            "rename the pictures, or give the folders that hold them directly",
        )
    faults = [f"{stem!r} is in one folder only" for stem in sorted(sides[0].keys() ^ sides[1].keys())]
    twice = [stem for stem in both if any(len(side[stem]) > 1 for side in sides)]
    faults += [f"{stem!r}: more than one picture of this name" for stem in twice]
    return [(stem, sides[0][stem][0], sides[1][stem][0]) for stem in both if stem not in twice], faults


def _by_stem(folder: Path) -> Dict[str, List[Path]]:
    found: Dict[str, List[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
            found.setdefault(path.stem, []).append(path)
    return found
