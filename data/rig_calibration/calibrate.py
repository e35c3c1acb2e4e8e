"""The ``calibrate`` verb: pairs, points or pictures of a target become the homography file of a rig."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from duskfuse.data.atomic import write_atomically
from duskfuse.data.errors import InputError
from duskfuse.data.homography import Homography
from duskfuse.data.images import write_picture
from duskfuse.data.progress import say
from duskfuse.data.rig_calibration.board import board_points, parse_board
from duskfuse.data.rig_calibration.click_server import PORT, click_points
from duskfuse.data.rig_calibration.evidence import Evidence
from duskfuse.data.rig_calibration.frames import Frame, Frames, read_frames
from duskfuse.data.rig_calibration.matching import match_rig
from duskfuse.data.rig_calibration.picture import before_and_after
from duskfuse.data.rig_calibration.points import FEWEST, PointFit, fit_points, read_points
from duskfuse.data.rig_calibration.structure import Matrix3, scaling

FRAMES, MOST_FRAMES = 16, 64
"""How many frames are used where more are given: by default, and at most."""


class Method(StrEnum):
    """How the homography was found."""

    PICTURES = "pictures"
    POINTS = "points"
    CLICKS = "clicks"
    BOARD = "board"


@dataclass(frozen=True)
class CalibrationReport:
    """What ``calibrate`` found and wrote."""

    written: str
    picture: str
    """Before and after, as a PNG."""
    method: Method
    homography: Homography
    covers: float
    """Share of the visible picture that infrared covers."""
    given: int
    """Pairs of pictures that there were."""
    evidence: Evidence | None
    """What speaks for it, where it was found in pictures."""
    points: PointFit | None
    """How pairs of points agree, where it was found by them."""

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain data."""
        found = self.evidence or self.points
        return {
            "written": self.written,
            "picture": self.picture,
            "method": self.method.value,
            **self.homography.to_json(),
            "covers": round(self.covers, 4),
            "pairs_given": self.given,
            **({} if found is None else found.to_json()),
        }

    def tables(self) -> list[Any]:
        """The report for people: a summary, and what each frame or pair of points says."""
        from duskfuse.data.rig_calibration.tables import tables

        return tables(self)


def calibrate(
    ir: Path,
    vis: Path,
    out: Path,
    *,
    points: Path | None = None,
    click: bool = False,
    board: str | None = None,
    port: int = PORT,
    frames: int = FRAMES,
    overwrite: bool = False,
) -> CalibrationReport:
    """Find the homography of a rig and write it as JSON, with a picture before and after beside it.

    Args:
        ir: infrared picture, folder of pictures, or video.
        vis: the same of the visible camera; folders are matched by stem, videos by frame number.
        out: the file to write, which ``fuse --homography`` and ``duskfuse.yaml`` accept; the picture beside it has the
            same name and ends in ``.png``.
        points: CSV or JSON of pairs of points. Without this and the next two the pictures themselves are matched.
        click: serve a page on which the points are clicked.
        board: find the corners of a target, see :func:`~duskfuse.data.rig_calibration.board.parse_board`.
        port: of that page, on the loopback address.
        frames: how many frames are matched at most.
        overwrite: replace files of an earlier run.

    Raises:
        InputError: unusable input, an existing file without ``overwrite``, or evidence too weak to be trusted.
    """
    _check(out, frames, overwrite)
    method = _method(points, click, board)
    chosen = read_frames(ir, vis, 1 if method is Method.POINTS else frames, alike=method is Method.BOARD)
    if method is Method.PICTURES:
        if len(chosen.chosen) == 1:
            say("one frame is matched; several of different scenes make the result surer")
        matched = match_rig(chosen)
        return _written(out, chosen, method, matched.matrix, matched.evidence, None)
    if points is not None:
        given = read_points(points)
    elif board is not None:
        given, names = board_points(chosen, board)
        say(f"the board was found in {len(names)} of {len(chosen.chosen)} frames")
    else:
        given = click_points(chosen, port)
    fit = fit_points(given, chosen.ir_size, chosen.vis_size)
    if sum(fit.kept) == FEWEST:
        say("four pairs of points fit a homography exactly, so that nothing checks them; give 8 or more")
    return _written(out, chosen, method, fit.matrix, None, fit)


def _method(points: Path | None, click: bool, board: str | None) -> Method:
    given = {Method.POINTS: points is not None, Method.CLICKS: click, Method.BOARD: board is not None}
    wanted = [method for method, is_given in given.items() if is_given]
    if len(wanted) > 1:
        raise InputError(
            f"{' and '.join(wanted)} together",
            rule="a homography is found in one way: pictures, --points, --click or --board",
            remedy="leave all but one away",
        )
    if board is not None:
        parse_board(board)
    return wanted[0] if wanted else Method.PICTURES


def _check(out: Path, frames: int, overwrite: bool) -> None:
    if out.suffix.lower() != ".json":
        raise InputError(f"{out}", rule="a homography is written as .json", remedy="name it for example rig.json")
    if not 1 <= frames <= MOST_FRAMES:
        raise InputError(
            f"{frames} frames", rule=f"from 1 to {MOST_FRAMES} are matched", remedy=f"leave --frames away ({FRAMES})"
        )
    for path in (out, out.with_suffix(".png")):
        if path.exists() and not overwrite:
            raise InputError(
                f"{path} is there already",
                rule="nothing is overwritten unasked",
                remedy="give another --out, or --overwrite",
            )


def _written(
    out: Path, frames: Frames, method: Method, matrix: Matrix3, evidence: Evidence | None, points: PointFit | None
) -> CalibrationReport:
    rows: Any = tuple(tuple(float(value) for value in row) for row in matrix)
    homography = Homography(rows, frames.ir_size, frames.vis_size)
    found = evidence or points
    provenance = {
        "made_by": f"duskfuse {version('duskfuse')} calibrate",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "method": method.value,
        **({} if found is None else found.to_json()),
    }
    frame = _best(frames, evidence)
    picture = out.with_suffix(".png")
    write_picture(picture, before_and_after(frame.ir, frame.vis, _on_planes(matrix, frame, frames)))
    write_atomically(out, json.dumps({**homography.to_json(), "provenance": provenance}, indent=2) + "\n")
    return CalibrationReport(
        os.fspath(out),
        os.fspath(picture),
        method,
        homography,
        homography.cover(),
        frames.given,
        evidence,
        points,
    )


def _best(frames: Frames, evidence: Evidence | None) -> Frame:
    """The frame that shows most of the alignment."""
    if evidence is None:
        return frames.chosen[0]
    return frames.chosen[int(np.argmax([row.following for row in evidence.frames]))]


def _on_planes(matrix: Matrix3, frame: Frame, frames: Frames) -> Matrix3:
    """The homography between the planes of a frame, which may be smaller than the pictures as stored."""
    ir = scaling((frame.ir.shape[0], frame.ir.shape[1]), frames.ir_size)
    vis = scaling((frame.vis.shape[0], frame.vis.shape[1]), frames.vis_size)
    return np.asarray(np.linalg.inv(vis) @ matrix @ ir)
