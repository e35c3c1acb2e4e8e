"""The frames that a rig is calibrated on: read from two pictures, two folders or two videos, and chosen to differ.

Frames of a camera that stands still say the same again and again, and a shutter that closes for a moment gives a
picture of one shade; neither is worth the time. What moves, or says nothing, is found later, by what does not agree.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from duskfuse.data.containers import Size
from duskfuse.data.errors import InputError
from duskfuse.data.folder_pairs import match_by_stem
from duskfuse.data.images import counts, infrared_from, visible_from
from duskfuse.data.pair_files import SourcePicture
from duskfuse.data.rig_calibration.structure import Plane, resized
from duskfuse.data.video_frames import VIDEO_SUFFIXES, frame_count

LARGEST_SIDE = 1280
"""Pixels of the longer side at which pictures are kept: matching goes no finer."""
_TRIED = 4
"""So many frames are looked at for each one that is wanted."""
_THUMBNAIL = (24, 32)
_NEAR = 0.02
"""Mean difference of two thumbnails in [0, 1] below which two frames show the same."""
_FLAT = 0.004
"""Standard deviation in [0, 1] below which a picture shows nothing."""


@dataclass(frozen=True)
class Frame:
    """One moment seen by both cameras."""

    name: str
    ir: Plane
    """``[h, w]`` in [0, 1]; at most `LARGEST_SIDE` pixels on the longer side, as ``vis``."""
    vis: Plane
    """Luminance ``[H, W]`` in [0, 1]."""


@dataclass(frozen=True)
class Frames:
    """What was chosen, and the sizes of the pictures as stored."""

    chosen: tuple[Frame, ...]
    ir_size: Size
    vis_size: Size
    given: int
    """Pairs that there were to choose from."""
    passed_over: int
    """Pairs that were read and left out: they show what a chosen one shows, or one shade only."""


@dataclass(frozen=True)
class Moment:
    """Where the two pictures of a pair are stored."""

    name: str
    ir: SourcePicture
    vis: SourcePicture


def read_frames(ir: Path, vis: Path, most: int, *, alike: bool = False) -> Frames:
    """Choose up to ``most`` pairs that differ, spread over all that there are.

    Args:
        ir: infrared picture, folder of pictures, or video.
        vis: the same of the visible camera; folders are matched by stem, videos by frame number.
        most: how many frames are used.
        alike: take frames that hardly differ as well, such as those of a target that is moved a little.

    Raises:
        InputError: nothing to pair, unreadable pictures, sizes that change, or no picture with anything in it.
    """
    moments = moments_of(ir, vis)
    ir_size, vis_size = moments[0].ir.size(), moments[0].vis.size()
    chosen: list[Frame] = []
    marks: list[NDArray[np.float32]] = []
    looked = 0
    for moment in _spread(moments, most * _TRIED):
        frame = _read(moment, ir_size, vis_size)
        looked += 1
        mark = _thumbnail(frame)
        if min(float(frame.ir.std()), float(frame.vis.std())) < _FLAT:
            continue
        if not alike and any(float(abs(mark - other).mean()) < _NEAR for other in marks):
            continue
        chosen.append(frame)
        marks.append(mark)
        if len(chosen) == most:
            break
    if not chosen:
        raise InputError(
            f"{len(moments)} pairs in {ir} and {vis}, and those looked at show one shade only",
            rule="a rig is calibrated on what both cameras see",
            remedy="give frames with structure in both pictures",
        )
    chosen.sort(key=lambda frame: frame.name)
    return Frames(tuple(chosen), ir_size, vis_size, len(moments), looked - len(chosen))


def moments_of(ir: Path, vis: Path) -> list[Moment]:
    """All pairs of two pictures, two folders or two videos; InputError where nothing pairs up."""
    if ir.is_dir() and vis.is_dir():
        return _by_stem(ir, vis)
    if ir.is_dir() != vis.is_dir():
        raise InputError(
            f"{ir} and {vis}: one is a folder and one is not",
            rule="a rig is calibrated on two pictures, two folders or two videos",
            remedy="give the same kind for both cameras",
        )
    videos = [path.suffix.lower() in VIDEO_SUFFIXES for path in (ir, vis)]
    if all(videos):
        number = min(frame_count(ir), frame_count(vis))
        digits = len(str(number))
        return [
            Moment(f"frame {at + 1:0{digits}}", SourcePicture(ir, frame=at), SourcePicture(vis, frame=at))
            for at in range(number)
        ]
    if any(videos):
        raise InputError(f"{ir} and {vis}: one is a video and one is not", remedy="give the same kind for both cameras")
    return [Moment(ir.stem, SourcePicture(ir), SourcePicture(vis))]


def _by_stem(ir: Path, vis: Path) -> list[Moment]:
    """Pictures without a partner do not matter; InputError where no pair is left."""
    matched, faults = match_by_stem(ir, vis)
    if not matched:
        raise InputError(faults[-1], rule="one picture of a name in each folder", remedy="remove or rename the others")
    return [Moment(stem, SourcePicture(own), SourcePicture(other)) for stem, (own, other) in matched.items()]


def _spread(moments: Sequence[Moment], most: int) -> Iterator[Moment]:
    """Up to ``most`` evenly spaced moments, so that each beginning of them is spread over the whole."""
    places = np.unique(np.linspace(0, len(moments) - 1, min(most, len(moments))).round().astype(int))
    bits = max(len(places) - 1, 0).bit_length()
    for place in range(1 << bits):
        turned = int(f"{place:0{bits}b}"[::-1], 2) if bits else 0
        if turned < len(places):
            yield moments[places[turned]]


def _read(moment: Moment, ir_size: Size, vis_size: Size) -> Frame:
    stored_ir, stored_vis = moment.ir.read(), moment.vis.read()
    for side, source, seen, wanted in (
        ("infrared", moment.ir, stored_ir.shape[:2], ir_size),
        ("visible", moment.vis, stored_vis.shape[:2], vis_size),
    ):
        if seen != wanted:
            raise InputError(
                f"{source}: {seen[1]}×{seen[0]}, the first {side} picture is {wanted[1]}×{wanted[0]}",
                rule="a homography counts pixels, so all pictures of a camera have one size",
                remedy="keep the pictures of each size in folders of their own",
            )
    ir = infrared_from(counts(moment.ir.path, stored_ir) if moment.ir.frame is None else stored_ir)
    vis = cv2.cvtColor(visible_from(stored_vis), cv2.COLOR_RGB2GRAY)
    return Frame(moment.name, _kept(ir), _kept(np.asarray(vis, np.float32)))


def _kept(picture: Plane) -> Plane:
    shrink = LARGEST_SIDE / max(picture.shape)
    if shrink >= 1:
        return picture
    return resized(picture, (round(picture.shape[0] * shrink), round(picture.shape[1] * shrink)))


def _thumbnail(frame: Frame) -> NDArray[np.float32]:
    return np.stack(
        [cv2.resize(plane, _THUMBNAIL[::-1], interpolation=cv2.INTER_AREA) for plane in (frame.ir, frame.vis)]
    )
