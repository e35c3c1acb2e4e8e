"""Where the pictures of a pair are stored, how the thermal one is to be read, and reading them.

Every reader of a dataset goes through here, so that masks, teachers, training and metrics see the same two pictures:
infrared on the grid of the visible picture, both in [0, 1]. torch is imported where a tensor is made: the processes
that make masks need none, and are ready in a tenth of the time, with a fifth of the memory.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from duskfuse.data.annotations import caltech_boxes, coco_boxes, is_caltech, voc_boxes
from duskfuse.data.class_tables import ClassTable
from duskfuse.data.containers import Container, Size
from duskfuse.data.errors import InputError
from duskfuse.data.images import (
    counts,
    file_sha256,
    is_coloured,
    one_channel,
    open_picture,
    picture_size,
    read_four_channels,
    read_picture,
    visible_from,
)
from duskfuse.data.progress import say_once
from duskfuse.data.read_files import read_text
from duskfuse.data.reading import AS_STORED, Plane, Reading
from duskfuse.data.video_frames import frame_size, read_frame

if TYPE_CHECKING:
    from torch import Tensor

    from duskfuse.data.pair import Pair


_LONGEST_LINE = 1000
_MOST_CLASSES = 2**24
"""float32, in which boxes are kept, holds every whole number below."""


class Part(StrEnum):
    """Which channels of a stored picture are meant."""

    WHOLE = "whole"
    COLOUR = "first three channels"
    FOURTH = "fourth channel"


@dataclass(frozen=True)
class SourcePicture:
    """One picture of a pair on disk: a whole file, or a selection out of one."""

    path: Path
    part: Part = Part.WHOLE
    """An RGB-T file (MFNet) holds both pictures: the visible in three channels, the infrared in the fourth."""
    border: int = 0
    """Pixels of white frame (DroneVehicle) that are cut away from each side."""
    frame: int | None = None
    """Number of the frame, from 0, where the file is a video."""

    def __str__(self) -> str:
        parts = [str(self.path)]
        if self.part is not Part.WHOLE:
            parts.append(self.part.value)
        if self.frame is not None:
            parts.append(f"frame {self.frame}")
        return ", ".join(parts)

    @property
    def stem(self) -> str:
        """What the picture is matched by; frames count from 1, as the unpacked pictures of a video do."""
        return self.path.stem if self.frame is None else f"{self.path.stem}__{self.frame + 1:06d}"

    def read(self) -> NDArray[Any]:
        """The picture as stored, see :func:`duskfuse.data.images.read_picture`.

        Raises:
            InputError: the file is unusable, has not the channels or the frame, or is not white where a frame is cut.
        """
        stored = self._read_uncut()
        if not self.border:
            return stored
        if not has_white_border(stored, self.border):
            raise InputError(
                f"{self}: not white within {self.border} pixels of its sides",
                rule="the pictures of one folder all have the white border, or none has it",
                remedy="remove the pair, or keep pictures with and without border in folders of their own",
            )
        return np.ascontiguousarray(stored[self.border : -self.border, self.border : -self.border])

    def size(self) -> Size:
        """(height, width), where possible without decoding the picture."""
        height, width = picture_size(self.path) if self.frame is None else frame_size(self.path)
        return height - 2 * self.border, width - 2 * self.border

    def sha256(self) -> str:
        """Hash of all that the picture depends on: the bytes of its file and, unless it is the whole, the selection."""
        if self == SourcePicture(self.path):
            return file_sha256(self.path)
        stored = _kept_sha256(self.path, *_change_marks(self.path))
        selection = f"{self.part.value}, border {self.border}, frame {self.frame}"
        return hashlib.sha256(f"{stored} {selection}".encode()).hexdigest()

    def _read_uncut(self) -> NDArray[Any]:
        if self.frame is not None:
            return read_frame(self.path, self.frame)
        if self.part is Part.WHOLE:
            return read_picture(self.path)
        channels = read_four_channels(self.path)
        return np.ascontiguousarray(channels[..., :3] if self.part is Part.COLOUR else channels[..., 3])


@lru_cache(maxsize=1024)
def _kept_sha256(path: Path, size: int, changed_ns: int) -> str:
    """Hash a file once for all pictures in it; its size and time of change tell whether it is still the same."""
    return file_sha256(path)


def _change_marks(path: Path) -> tuple[int, int]:
    try:
        seen = path.stat()
    except OSError:
        return 0, 0  # hashing the file says what is wrong with it
    return seen.st_size, seen.st_mtime_ns


def has_white_border(picture: NDArray[Any], width: int) -> bool:
    """Whether an 8-bit picture is white within ``width`` pixels of every side; JPEG smears the innermost few."""
    if picture.dtype != np.uint8 or min(picture.shape[:2]) <= 2 * width:
        return False
    sure = width - min(8, width // 2)
    strips = (picture[:sure], picture[-sure:], picture[:, :sure], picture[:, -sure:])
    return all(float((strip >= 240).mean()) > 0.99 for strip in strips)


@dataclass(frozen=True)
class PairFiles:
    """The files of one pair."""

    name: str
    """Unique in its dataset: the stem, after the folders in which several groups differ (``train__00012``)."""
    ir: SourcePicture
    vis: SourcePicture
    label: Path | None = None
    """Picture of class ids."""
    boxes: Path | None = None
    """YOLO text: class, centre x, centre y, width, height, normalised. Of a known dataset also VOC, Caltech or COCO."""
    split: str | None = None
    """The folder that names the split, such as ``train``; None where there is none."""
    reading: Reading = AS_STORED
    saliency: Path | None = None
    """Picture of what stands out, white on black."""
    label_classes: ClassTable | None = None
    """What the ids of the label mean, where the dataset is known."""
    box_classes: ClassTable | None = None
    """What the classes of the boxes mean, where the dataset is known."""

    def ir_key(self) -> str:
        """Key of the infrared picture in the prior cache.

        It is the hash of the file; a reading other than `AS_STORED`, and the size it is brought to, are hashed in.

        Raises:
            InputError: a file is missing or unreadable.
        """
        stored = self.ir.sha256()
        if self.reading == AS_STORED:
            return stored
        size = self.vis.size() if self.reading.on_visible_grid else None
        return hashlib.sha256(f"{stored} {self.reading.canonical()} {size}".encode()).hexdigest()

    def vis_key(self) -> str:
        """Key of the visible picture in the prior cache: the hash of its file."""
        return self.vis.sha256()

    def prior_keys(self) -> tuple[str, str]:
        """Both keys, infrared first."""
        return self.ir_key(), self.vis_key()


def read_ir(files: PairFiles) -> NDArray[np.float32]:
    """The infrared picture of a pair as ``[H, W]`` float32 in [0, 1]; where the reading says so, on the visible grid.

    The visible picture is looked at only where the reading needs its size.

    Raises:
        InputError: a file is unusable.
    """
    ir = _plane(files, files.ir.read()).ir
    return _aligned(files, ir, files.vis.size()) if files.reading.on_visible_grid else ir


def read_vis(files: PairFiles) -> NDArray[np.float32]:
    """The visible picture of a pair as ``[H, W, 3]`` RGB float32 in [0, 1]; InputError where it is unusable."""
    return visible_from(files.vis.read())


def read_pair(files: PairFiles) -> Pair:
    """Read the pictures of a pair, and its label, boxes and saliency map where it has them.

    Raises:
        InputError: a file is unusable, sizes differ, the label has unknown colours, the boxes are malformed.
    """
    import torch

    from duskfuse.data.pair import Pair, PairMeta

    stored_ir, stored_vis = files.ir.read(), files.vis.read()
    size, ir_size = stored_vis.shape[:2], stored_ir.shape[:2]
    plane = _plane(files, stored_ir)
    ir = _aligned(files, plane.ir, size)
    vis = visible_from(stored_vis)
    meta = PairMeta(
        bit_depth_ir=8 * stored_ir.itemsize,
        bit_depth_vis=8 * stored_vis.itemsize,
        original_size=ir_size if ir_size != size else None,
        hot_is_bright=not files.reading.black_hot,
        thermal_range=None if plane.span is None else (plane.span.low, plane.span.high),
    )
    return Pair(
        ir=torch.from_numpy(ir)[None],
        vis=torch.from_numpy(vis).permute(2, 0, 1).contiguous(),
        name=files.name,
        meta=meta,
        seg=None if files.label is None else read_label(files.label, size, files.label_classes),
        boxes=None if files.boxes is None else pair_boxes(files, files.boxes, size),
        saliency=None if files.saliency is None else read_saliency(files.saliency, size),
    )


def check_sizes(files: PairFiles) -> None:
    """Raise InputError where the two pictures differ in size and the reading does not mend it; decodes nothing."""
    with _named(files):
        files.reading.check_sizes(files.ir.size(), files.vis.size())


def _plane(files: PairFiles, stored: NDArray[Any]) -> Plane:
    with _named(files):
        plane = files.reading.plane(counts(files.ir.path, stored))
    folder = files.ir.path.parent
    if is_coloured(stored):
        say_once(
            f"coloured infrared in {folder}",
            f"{files.ir}: the infrared picture is in colour, so its luminance is taken. That follows heat only with "
            "palettes that go from dark to light, such as ironbow: give grey or radiometric pictures, and check that "
            "the infrared and visible folders are not swapped",
        )
    if files.reading.thermal_range is not None and np.ptp(plane.ir) == 0 < np.ptp(stored):
        say_once(
            f"thermal range of {folder}",
            f"{files.ir}: all values ({stored.min():g} to {stored.max():g}) lie outside the thermal range, "
            "so the picture has one shade: check the range and its unit",
        )
    return plane


def _aligned(files: PairFiles, ir: NDArray[np.float32], size: Size) -> NDArray[np.float32]:
    with _named(files):
        return files.reading.align(ir, size)


@contextmanager
def _named(files: PairFiles) -> Iterator[None]:
    """Say of which pair and infrared file an error of the reading speaks."""
    try:
        yield
    except InputError as error:
        seen = f"{files.name}: {error.seen} ({files.ir})"
        raise InputError(seen, rule=error.rule, remedy=error.remedy) from error


def read_label(path: Path, size: Size, classes: ClassTable | None = None) -> Tensor:
    """Read a picture of class ids as ``[H, W]`` int64, never scaled; the indices of a palette are the ids.

    A picture in colour is decoded where ``classes`` have colours, and grey levels where they stand for ids.

    Raises:
        InputError: not of ``size`` (height, width), stored as JPEG, or in colours that ``classes`` do not have.
    """
    import torch

    _check_target_size("label", path, size)
    ids = _stored_ids(path, size)
    if ids.ndim == 3:
        if (ids[..., :3] != ids[..., :1]).any():
            if classes is not None and classes.colours:
                return torch.from_numpy(classes.ids_from_colours(ids[..., :3], path))
            raise InputError(
                f"{path}: the label is a colour picture",
                rule="a label holds one class id per pixel, grey or palette",
                remedy="convert the colours to ids, or call the folder as its dataset is called: FMB, MSRS, MFNet",
            )
        ids = ids[..., 0]
    if not ((ids >= 0) & (ids < _MOST_CLASSES) & (ids == np.floor(ids))).all():
        raise InputError(
            f"{path}: the label holds other values than class ids",
            rule="a class id is a whole number from 0",
            remedy="save the ids as 8-bit PNG",
        )
    label = torch.from_numpy(ids.astype(np.int64))
    for level, number in () if classes is None else classes.levels:
        label[label == level] = number
    return label


def _stored_ids(path: Path, size: Size) -> NDArray[Any]:
    """A label as stored, without alpha: ``[H, W]``, or ``[H, W, C]`` of one or three channels."""
    stored = open_picture(path)
    if stored.container is Container.JPEG:
        raise InputError(f"{path}: the label is a JPEG", rule="JPEG changes ids", remedy="give the original PNG")
    try:
        with Image.open(io.BytesIO(stored.data), formats=[stored.container.upper()]) as picture:
            ids = np.asarray(picture)
    except Exception as error:  # Pillow raises whatever a damaged file makes it run into
        raise InputError(f"{path}: the label cannot be decoded ({error})", remedy="save it as 8-bit PNG") from error
    if ids.shape[:2] != size:
        raise InputError(f"{path}: the label holds another size than it declares", remedy="save it as 8-bit PNG")
    return ids[..., :-1] if ids.ndim == 3 and ids.shape[2] in (2, 4) else ids


def read_saliency(path: Path, size: Size) -> Tensor:
    """Read a saliency map as ``[1, H, W]`` float32 in [0, 1]; one of zeros and ones counts as black and white.

    Raises:
        InputError: not of ``size`` (height, width), or no 8-bit picture.
    """
    import torch

    _check_target_size("saliency map", path, size)
    stored = one_channel(read_picture(path))
    if stored.dtype != np.uint8:
        raise InputError(
            f"{path}: the saliency map is {stored.dtype}", rule="it is 8-bit", remedy="save it as 8-bit PNG"
        )
    white = 1 if stored.max() <= 1 else 255
    return torch.from_numpy(stored.astype(np.float32) / np.float32(white))[None]


def _check_target_size(what: str, path: Path, size: Size) -> None:
    seen = picture_size(path)
    if seen != size:
        raise InputError(
            f"{path}: the {what} is {seen[1]}×{seen[0]}, the pictures are {size[1]}×{size[0]}",
            rule=f"a {what} has the size of its pair",
            remedy=f"give the {what} of this picture; resize labels without interpolation only",
        )


def pair_boxes(files: PairFiles, path: Path, size: Size) -> Tensor:
    """Read the boxes of a pair of ``size`` in whichever format their file has, as ``[N, 5]`` normalised rows.

    Raises:
        InputError: malformed, or of a class that the dataset does not have.
    """
    classes = files.box_classes
    if classes is not None:
        match path.suffix.lower():
            case ".xml":
                return voc_boxes(path, classes, size, files.vis.border)
            case ".json":
                return coco_boxes(path, classes, (files.ir.path.name, files.vis.path.name), size)
            case _ if is_caltech(path):
                return caltech_boxes(path, classes, size)
    boxes = read_boxes(path)
    if classes is not None and len(boxes) and boxes[:, 0].max() >= len(classes):
        raise InputError(
            f"{path}: class {int(boxes[:, 0].max())}",
            rule=f"the classes of {classes.title} are {', '.join(classes.names)}, numbered from 0",
            remedy="renumber the classes, or call the folder otherwise if it holds another dataset",
        )
    return boxes


def read_boxes(path: Path) -> Tensor:
    """Read YOLO text (``class cx cy width height`` per line, normalised) as ``[N, 5]`` float32; N may be 0.

    Raises:
        InputError: names the file and the line that is malformed.
    """
    import torch

    rows = [_box(path, number, line) for number, line in text_lines(path)]
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 5)


def _box(path: Path, number: int, line: str) -> list[float]:
    try:
        row = [float(word) for word in line[:_LONGEST_LINE].split()]
    except ValueError:
        row = []
    valid = len(line) <= _LONGEST_LINE and len(row) == 5 and all(0 <= value <= 1 for value in row[1:])
    if not (valid and 0 <= row[0] < _MOST_CLASSES and row[0].is_integer()):
        raise InputError(
            f"{path}, line {number}: {line[:60]!r}",
            rule="a box is `class cx cy width height`: a whole number and four numbers from 0 to 1",
            remedy="correct or remove the line",
        )
    return row


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of the lines of a text file that are not blank; InputError where it is unreadable."""
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if line.strip():
            yield number, line.strip()
