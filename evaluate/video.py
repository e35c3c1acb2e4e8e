"""Whether a fused video is steady: warped error along the motion of either source, and flicker of the whole frame.

A fusion network sees single frames, and nothing makes its answer to the next frame agree with the last. Three numbers
say whether it does, each in grey levels of the 8-bit luminance:

- E_vis and E_ir, warped errors (after Lai et al., "Learning blind video temporal consistency", ECCV 2018, here of the
  absolute difference): the mean over the frames t, and over the pixels p that were seen before, of
  |F_t(p) − F_{t−1}(p + w(p))|, where w is the optical flow from frame t back to t − 1, found in the visible frames or
  in the infrared frames.
- flicker: the standard deviation over t of the differences of frame means, mean(F_t) − mean(F_{t−1}). A steady drift,
  such as dusk falling, has none.

The *excess* of a number is what it has beyond the mean of the same number of the two sources: what the flow cannot
explain, the noise of the cameras and their own exposure control are in the sources as well. A linear blend of the
sources never has any (triangle inequality; rounding to 8 bit aside). Taking the livelier source everywhere does, as the
rows of the maximum and of the sources alone show: what a method has beyond these is its own. Low contrast lowers all
three numbers: read them beside SD.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from math import isfinite, nan
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any, NamedTuple

from duskfuse import __version__
from duskfuse.data.atomic import write_atomically
from duskfuse.data.errors import InputError
from duskfuse.data.images import picture_size
from duskfuse.data.layout import pictures_by_stem
from duskfuse.data.pair_files import PairFiles, check_sizes
from duskfuse.data.progress import track
from duskfuse.data.reading import Reading
from duskfuse.evaluate.frame_sequences import FrameSequence, find_sequences
from duskfuse.evaluate.fusers import size_text
from duskfuse.evaluate.measurement_files import check_free, csv_text, finite
from duskfuse.evaluate.methods import Method, check_names, models, trivial
from duskfuse.evaluate.metrics import Grey
from duskfuse.evaluate.optical_flow import Motion, motion
from duskfuse.evaluate.score_pairs import Rule, fused_grey
from duskfuse.evaluate.scores import Kind
from duskfuse.evaluate.source_pictures import SourcePictures

FILES = ("video.json", "video.csv", "video.html")
SOURCES = (Rule.VISIBLE.value, Rule.INFRARED.value)
"""The rows that an excess is measured against."""
LEAST_SEEN = 0.1
"""Share of a frame that must have been seen before; else the step is left out of the warped errors.

Across a cut between two real scenes 0 to 7 % pass the check by chance; consecutive frames have above 90 %."""

_NAMED = 5


class Measure(StrEnum):
    """What is measured of a sequence; all in grey levels, lower is better."""

    E_VIS = "E_vis"
    """Warped error along the motion of the visible frames."""
    E_IR = "E_ir"
    """Warped error along the motion of the infrared frames."""
    FLICKER = "flicker"
    """Standard deviation of the differences of frame means."""


WARPED = (Measure.E_VIS, Measure.E_IR)


@dataclass(frozen=True)
class Frame:
    """What one frame of a sequence gives."""

    name: str
    levels: Mapping[str, float]
    """Row → mean grey level of its frame."""
    seen: Mapping[Measure, float]
    """Warped error → share of the pixels that were seen in the frame before; empty where there is none before."""
    errors: Mapping[Measure, Mapping[str, float]]
    """Warped error → row → value; without those that are left out."""


@dataclass(frozen=True)
class SequenceStability:
    """The measures of one sequence of consecutive frames."""

    name: str
    size: tuple[int, int]
    """(height, width)."""
    frames: tuple[Frame, ...]

    def value(self, row: str, measure: Measure) -> float:
        """A measure of one row; nan where no step counts, flicker also with a single step."""
        if measure is Measure.FLICKER:
            steps = [after.levels[row] - before.levels[row] for before, after in pairwise(self.frames) if after.seen]
            return pstdev(steps) if len(steps) > 1 else nan
        return _mean([frame.errors[measure][row] for frame in self.frames if measure in frame.errors])

    def excess(self, row: str, measure: Measure) -> float:
        """What a row has beyond the mean of the two sources."""
        return self.value(row, measure) - sum(self.value(source, measure) for source in SOURCES) / len(SOURCES)

    def seen(self, measure: Measure) -> float:
        """Mean share of the pixels that were seen before, over all steps; nan without any."""
        return _mean([frame.seen[measure] for frame in self.frames if frame.seen])

    def left_out(self, measure: Measure) -> int:
        """Steps whose warped error is left out, because too little was seen before."""
        return sum(measure not in frame.errors for frame in self.frames if frame.seen)


@dataclass(frozen=True)
class VideoStability:
    """Everything that was found about the steadiness of some videos."""

    data: str
    """Name of the data folder."""
    out: Path
    rows: Mapping[str, Kind]
    """Models, then folders, then average, maximum and both sources alone."""
    sequences: tuple[SequenceStability, ...]
    faults: tuple[str, ...] = ()
    """What was wrong with each frame that was left out."""

    def raise_for_faults(self) -> None:
        """Raise InputError where frames were left out."""
        if self.faults:
            more = [f"  and {len(self.faults) - _NAMED} more"] if len(self.faults) > _NAMED else []
            raise InputError(
                f"{len(self.faults)} frames were left out:\n"
                + "\n".join([*(f"  {fault}" for fault in self.faults[:_NAMED]), *more]),
                rule=f"the others were measured, see {self.out / 'video.html'}",
                remedy="put these right, and run the same command again with --overwrite",
            )

    def mean(self, row: str, measure: Measure) -> float:
        """Mean of a measure over the sequences, each counting once; nan without any."""
        return _mean([sequence.value(row, measure) for sequence in self.sequences])

    def mean_excess(self, row: str, measure: Measure) -> float:
        """Mean of the excess over the sequences."""
        return _mean([sequence.excess(row, measure) for sequence in self.sequences])

    def to_json(self) -> dict[str, Any]:
        """Measures per row and sequence as plain data; undefined numbers are null."""
        return {
            "duskfuse": __version__,
            "data": self.data,
            "unit": "grey levels of 8-bit luminance, lower is better",
            "flow": "OpenCV DISOpticalFlow, preset MEDIUM, from each frame back to the one before; seen both ways",
            "excess": "beyond the mean of the same number of the visible and the infrared frames",
            "report": str(self.out / "video.html"),
            "faults": list(self.faults),
            "sequences": [
                {
                    "name": sequence.name,
                    "frames": len(sequence.frames),
                    "width": sequence.size[1],
                    "height": sequence.size[0],
                    "seen_before": {measure: finite(sequence.seen(measure)) for measure in WARPED},
                    "steps_left_out": {measure: sequence.left_out(measure) for measure in WARPED},
                }
                for sequence in self.sequences
            ],
            "rows": [self._row_json(row) for row in self.rows],
        }

    def _row_json(self, row: str) -> dict[str, Any]:
        return {
            "name": row,
            "kind": str(self.rows[row]),
            "mean": {measure: finite(self.mean(row, measure)) for measure in Measure},
            "excess": {measure: finite(self.mean_excess(row, measure)) for measure in Measure},
            "sequences": {
                sequence.name: {
                    "value": {measure: finite(sequence.value(row, measure)) for measure in Measure},
                    "excess": {measure: finite(sequence.excess(row, measure)) for measure in Measure},
                }
                for sequence in self.sequences
            },
        }


def video_stability(
    data: Path,
    *,
    model: Sequence[str | Path] = (),
    fused: Mapping[str, Path] | None = None,
    split: str | None = None,
    out: Path,
    reading: Reading | Path | None = None,
    overwrite: bool = False,
) -> VideoStability:
    """Measure how steady models and folders of fused frames are; write ``video.json``, ``.csv`` and ``.html``.

    The frames are read one after the other, and two of them are in memory at a time. A frame that cannot be used is
    left out, and said when the others have been measured and written.

    Args:
        data: folders of frames or pairs of video files, see
            :func:`duskfuse.evaluate.frame_sequences.find_sequences`. Pairs of one folder (or video) whose names differ
            in their last number alone are the frames of a sequence.
        model: zoo names, checkpoints and ONNX files.
        fused: row name → folder of fused frames, of the names of the pairs.
        split: only the sequences of this split.
        out: folder to write to, made where missing; other files in it stay.
        reading: how the infrared pictures are read, or a file that says it; by default the dataset's ``duskfuse.yaml``.
            Scaling every frame by its own percentiles makes the infrared source itself flicker.
        overwrite: replace the results of an earlier measurement.

    Raises:
        InputError: results are there already, no two pictures follow one another, a model cannot be read, a fused
            frame is missing or of another size, a name is given twice; after the results have been written: a picture
            cannot be read, or frames of one sequence differ in size.
    """
    from duskfuse.evaluate.video_report import video_page

    check_free(out, FILES, overwrite)
    sequences = find_sequences(data, split=split, reading=reading)
    frames = [files for sequence in sequences for files in sequence.frames]
    methods = [*models(model, {}), *_folders(fused or {}, frames), *trivial()]
    check_names(methods, reference=None)
    measured, faults = _measure(sequences, methods)
    found = VideoStability(
        data=data.resolve().name,
        out=out,
        rows={method.name: method.kind for method in methods},
        sequences=measured,
        faults=faults,
    )
    write_atomically(out / "video.json", json.dumps(found.to_json(), indent=2, allow_nan=False) + "\n")
    write_atomically(out / "video.csv", _csv(found))
    video_page(found).write(out / "video.html")
    found.raise_for_faults()
    return found


def _folders(folders: Mapping[str, Path], frames: Sequence[PairFiles]) -> list[Method]:
    return [_folder(name, _fused_files(folder, frames)) for name, folder in folders.items()]


def _folder(name: str, files: Mapping[str, Path]) -> Method:
    return Method(name, Kind.FOLDER, lambda sources: files[sources.files.name], lambda pair: str(files[pair]))


def _fused_files(folder: Path, frames: Sequence[PairFiles]) -> dict[str, Path]:
    """Pair name → fused frame of that name."""
    by_stem = pictures_by_stem(folder)
    for files in frames:
        if files.name not in by_stem:
            raise InputError(
                f"{folder}: no fused frame for {files.name}",
                rule="every frame needs one, called like its pair",
                remedy=f"add {folder / files.name}.png, or measure the frames that were fused",
            )
        size, expected = picture_size(by_stem[files.name]), files.vis.size()
        if size != expected:
            raise InputError(
                f"{by_stem[files.name]} is {size_text(size)}, its pair is {size_text(expected)}",
                rule="a fused frame has the size of its sources",
                remedy="fuse at full size",
            )
    return {files.name: by_stem[files.name] for files in frames}


class _Moment(NamedTuple):
    """What is kept of a frame until the next one is there."""

    number: int
    sources: SourcePictures
    fused: Mapping[str, Grey]


def _measure(
    sequences: Sequence[FrameSequence], methods: Sequence[Method]
) -> tuple[tuple[SequenceStability, ...], tuple[str, ...]]:
    """The sequences of which anything could be measured, and what was wrong with the frames that were left out."""
    measured: dict[int, list[Frame]] = defaultdict(list)
    faults = []
    count = sum(len(sequence.frames) for sequence in sequences)
    for place, frame in track(_measured(sequences, methods), "Measuring frames", total=count):
        if isinstance(frame, Frame):
            measured[place].append(frame)
        else:
            faults.append(str(frame))
    if not measured:
        raise InputError(faults[0], rule="nothing could be measured")
    found = [
        SequenceStability(sequences[place].name, sequences[place].frames[0].vis.size(), tuple(frames))
        for place, frames in measured.items()
    ]
    return tuple(found), tuple(faults)


def _measured(
    sequences: Sequence[FrameSequence], methods: Sequence[Method]
) -> Iterator[tuple[int, Frame | InputError]]:
    """Every frame of every sequence with the place of its sequence, one after the other, or why it cannot be used."""
    for place, sequence in enumerate(sequences):
        previous: _Moment | None = None
        for number, files in zip(sequence.numbers, sequence.frames, strict=True):
            try:
                current = _moment(number, files, methods)
                follows = previous is not None and number - previous.number == sequence.step
                frame = _frame(previous if follows else None, current)
            except InputError as error:
                yield place, error
            else:
                previous = current
                yield place, frame


def _moment(number: int, files: PairFiles, methods: Sequence[Method]) -> _Moment:
    check_sizes(files)
    sources = SourcePictures(files)
    fused = {method.name: fused_grey(method.picture(sources), sources) for method in methods}
    return _Moment(number, sources, fused)


def _frame(previous: _Moment | None, current: _Moment) -> Frame:
    levels = {row: float(picture.mean()) for row, picture in current.fused.items()}
    if previous is None:
        return Frame(current.sources.files.name, levels, {}, {})
    before, now = previous.sources, current.sources
    if before.ir.shape != now.ir.shape:
        raise InputError(
            f"{before.files.name} is {size_text(before.ir.shape)}, {now.files.name} is {size_text(now.ir.shape)}",
            rule="the frames of a video have one size",
            remedy="keep videos of different sizes in folders of their own",
        )
    motions = {Measure.E_VIS: motion(before.vis_u8, now.vis_u8), Measure.E_IR: motion(before.ir_u8, now.ir_u8)}
    return Frame(
        now.files.name,
        levels,
        {measure: moved.seen_share for measure, moved in motions.items()},
        {
            measure: _errors(moved, previous.fused, current.fused)
            for measure, moved in motions.items()
            if moved.seen_share >= LEAST_SEEN
        },
    )


def _errors(moved: Motion, previous: Mapping[str, Grey], current: Mapping[str, Grey]) -> dict[str, float]:
    return {row: moved.error(previous[row], picture) for row, picture in current.items()}


def _csv(found: VideoStability) -> str:
    """One line per frame and row; a frame without one before it, or with too little seen before, has empty cells."""
    rows = (
        [
            sequence.name,
            frame.name,
            row,
            kind,
            frame.levels[row],
            *(frame.seen.get(measure, nan) for measure in WARPED),
            *(frame.errors.get(measure, {}).get(row, nan) for measure in WARPED),
        ]
        for sequence in found.sequences
        for frame in sequence.frames
        for row, kind in found.rows.items()
    )
    return csv_text(["sequence", "frame", "method", "kind", "mean", "seen_vis", "seen_ir", *WARPED], rows)


def _mean(values: Sequence[float]) -> float:
    defined = [value for value in values if isfinite(value)]
    return fmean(defined) if defined else nan
