"""Which pairs of a dataset follow one another in time."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from duskfuse.data.datasets.folder_rules import GENERIC, Side
from duskfuse.data.errors import InputError
from duskfuse.data.layout import find_pairs
from duskfuse.data.pair_files import PairFiles, SourcePicture
from duskfuse.data.reading import Reading, reading_of
from duskfuse.data.video_frames import VIDEO_SUFFIXES, frame_count

_NUMBER = re.compile(r"(\d+)")


class FrameSequence(NamedTuple):
    """Pairs of one place whose names differ in their last number alone, in the order of that number."""

    name: str
    frames: list[PairFiles]
    numbers: list[int]

    @property
    def step(self) -> int:
        """The smallest difference of two numbers: what consecutive frames have."""
        return min((after - before for before, after in pairwise(self.numbers) if after > before), default=1)


def find_sequences(
    data: Path, *, split: str | None = None, reading: Reading | Path | None = None
) -> list[FrameSequence]:
    """Find all sequences of two frames and more under a folder.

    They are those of pairs of MP4 files, ``ir/CLIP.mp4`` and ``vis/CLIP.mp4`` or ``CLIP/ir.mp4`` and ``CLIP/vis.mp4``
    (the folders may have any of their usual names), and where there are none, of folders of numbered pictures, see
    :func:`duskfuse.data.layout.find_pairs`.

    Args:
        data: where to look.
        split: only what lies in a folder of this name.
        reading: how the infrared pictures are read.

    Raises:
        InputError: no two pictures follow one another, the two videos of a pair have different numbers of frames, or
            what `find_pairs` raises.
    """
    pairs = video_pairs(data, split=split, reading=reading) or find_pairs(data, split=split, reading=reading)
    sequences = [sequence for sequence in frame_sequences(pairs) if len(sequence.frames) > 1]
    if not sequences:
        raise InputError(
            f"{data}: no two pictures follow one another",
            rule="frames of a video lie in one folder and are numbered, such as ir/0001.png and ir/0002.png",
            remedy="unpack the video into folders of frames, or give pairs of MP4 files, ir/a.mp4 and vis/a.mp4",
        )
    return sequences


def frame_sequences(pairs: Sequence[PairFiles]) -> list[FrameSequence]:
    """Sort pairs into sequences; a pair without a number in its name is a sequence of its own."""
    groups: dict[tuple[Any, ...], list[tuple[int, PairFiles]]] = defaultdict(list)
    for files in pairs:
        *before, number, after = _NUMBER.split(files.name) if _NUMBER.search(files.name) else (files.name, "0", "")
        places = [
            picture.path if picture.frame is not None else picture.path.parent for picture in (files.ir, files.vis)
        ]
        groups[(*places, "".join(before), after)].append((int(number), files))
    found = []
    named: Counter[str] = Counter()
    for (*_, before, after), members in groups.items():
        members.sort(key=lambda member: member[0])
        name = f"{before}{after}".strip("_- .") or members[0][1].vis.path.parent.name
        named[name] += 1
        found.append(
            FrameSequence(
                f"{name} ({named[name]})" if named[name] > 1 else name,
                [files for _, files in members],
                [number for number, _ in members],
            )
        )
    return found


def video_pairs(data: Path, *, split: str | None = None, reading: Reading | Path | None = None) -> list[PairFiles]:
    """The frames of all pairs of videos in or under a folder, or in its folders of a split; empty without any."""
    found: dict[tuple[str, ...], dict[Side, Path]] = defaultdict(dict)
    for path in sorted(data.rglob("*")):
        parts = path.relative_to(data).with_suffix("").parts
        place = GENERIC.side_place(parts)
        wanted = split is None or split.lower() in (part.lower() for part in parts)
        if path.suffix.lower() in VIDEO_SUFFIXES and place is not None and wanted:
            found[parts[:place] + parts[place + 1 :]][GENERIC.side_of[parts[place].lower()]] = path
    read_as = reading_of(data, reading)
    pairs: list[PairFiles] = []
    for parts, sides in found.items():
        if Side.IR in sides and Side.VIS in sides:
            name = "__".join(parts) or data.resolve().name
            ir, vis = sides[Side.IR], sides[Side.VIS]
            pairs += [
                PairFiles(
                    f"{name}__{number + 1:06d}",
                    SourcePicture(ir, frame=number),
                    SourcePicture(vis, frame=number),
                    reading=read_as,
                )
                for number in range(_frames(sides))
            ]
    return pairs


def _frames(sides: Mapping[Side, Path]) -> int:
    ir, vis = frame_count(sides[Side.IR]), frame_count(sides[Side.VIS])
    if ir != vis:
        raise InputError(
            f"{sides[Side.IR]} holds {ir} frames, {sides[Side.VIS]} {vis}",
            rule="the two videos of a pair are recorded frame by frame together",
            remedy="cut both to the same moments",
        )
    return ir
