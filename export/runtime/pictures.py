"""Picture files on the device: reading them as stored, finding the pairs of two folders, writing whole files only."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Tuple

import cv2
import numpy as np

from .errors import DeviceInputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp"})
"""Lower-case file name endings that are taken for pictures."""

_JPEG_QUALITY = 95


def read_picture(path: Path) -> NDArray[Any]:
    """Read a picture as stored: ``[H, W]`` or ``[H, W, 3]`` RGB; uint8, uint16 or float32. Alpha is dropped.

    Raises DeviceInputError where the file is missing or no picture, or holds NaN or infinite values.
    """
    try:
        data = np.frombuffer(path.read_bytes(), np.uint8)
        picture = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
    except OSError as error:
        raise DeviceInputError(f"{path}: {error.strerror}", remedy="check the path") from error
    except cv2.error:
        picture = None
    if picture is None:
        raise DeviceInputError(
            f"{path} is not a complete picture", "PNG, JPEG, WebP, TIFF and BMP are read", "copy the file again"
        )
    if picture.ndim == 3:
        picture = np.ascontiguousarray(picture[..., 2::-1] if picture.shape[2] >= 3 else picture[..., 0])
    if picture.dtype not in (np.uint8, np.uint16):
        picture = picture.astype(np.float32)
        if not np.isfinite(picture).all():
            raise DeviceInputError(f"{path} holds NaN or infinite values", "pictures must hold finite numbers")
    return picture


def one_channel(picture: NDArray[Any]) -> NDArray[Any]:
    """Reduce ``[H, W]`` or ``[H, W, 3]`` RGB to ``[H, W]``: the channel where all are equal, else the luminance."""
    if picture.ndim == 2:
        return picture
    first = picture[..., 0]
    if np.array_equal(first, picture[..., 1]) and np.array_equal(first, picture[..., 2]):
        return np.ascontiguousarray(first)
    grey: NDArray[Any] = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
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
