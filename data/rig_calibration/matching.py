"""The homography of a rig from pairs that nobody registered: placement, refinement, and what speaks for the result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from duskfuse.data.errors import InputError
from duskfuse.data.progress import track
from duskfuse.data.rig_calibration import evidence
from duskfuse.data.rig_calibration.coarse import placements
from duskfuse.data.rig_calibration.evidence import Evidence, FrameEvidence
from duskfuse.data.rig_calibration.frames import Frame, Frames
from duskfuse.data.rig_calibration.refine import LEVELS, Fit, Views, refined, verified
from duskfuse.data.rig_calibration.structure import Matrix3, corners, projected, scaling

_PLACEMENTS = 5
_SEARCHED = 6
"""Frames that are searched for the placement; the rest of the work is done on all."""
_COARSE = slice(0, 2)
_FINE = slice(2, None)
_APART = 0.05
"""Of the visible diagonal: two placements further apart, in the mean of their corners, are different ones."""
_HELD_OUT_OF = 4
"""Every fourth frame is held out of the homography that is compared with the final one."""


@dataclass(frozen=True)
class Matched:
    """A homography that was found in the pictures."""

    matrix: Matrix3
    """Infrared pixels → visible pixels, as stored."""
    evidence: Evidence


def match_rig(frames: Frames) -> Matched:
    """Find the homography that all frames share.

    Frames that do not agree with it beyond chance are left out of the final refinement, and reported.

    Raises:
        InputError: the evidence is too weak; says what was seen and what helps.
    """
    pairs = [(frame.ir, frame.vis) for frame in frames.chosen]
    searched = pairs[:: max(1, len(pairs) // _SEARCHED)][:_SEARCHED]
    rough, rival = _placed(searched)
    matrix = refined(pairs, rough.matrix, _FINE)
    names = [frame.name for frame in frames.chosen]
    fit = verified(pairs, matrix)
    rows = evidence.frame_evidence(fit, names)
    used = [number for number, row in enumerate(rows) if row.used] or list(range(len(rows)))
    if len(used) < len(pairs):
        fit = verified(pairs, refined([pairs[number] for number in used], matrix, _FINE))
        again = evidence.frame_evidence(fit, names)
        rows = [replace(new, used=row.used) for new, row in zip(again, rows, strict=True)]
    matrix = fit.matrix
    found = _evidence([pairs[number] for number in used], fit.of_frames(used), rough, rival, rows)
    to_stored = _stored(frames.chosen[0], frames)
    stored = to_stored[1] @ matrix @ np.linalg.inv(to_stored[0])
    found = _in_stored_pixels(found, float(to_stored[1][0, 0]))
    evidence.check(found, frames.vis_size)
    return Matched(stored / stored[2, 2], found)


def _placed(pairs: Sequence[Views]) -> tuple[Fit, Fit | None]:
    """The placement with the most matches that agree, and the best one that is clearly another."""
    fits = []
    for placement in track(placements(pairs, _PLACEMENTS), "Comparing placements"):
        matrix = refined(pairs, placement.matrix, _COARSE)
        fits.append(verified(pairs, matrix, LEVELS[_COARSE][-1][0]))
    fits.sort(key=_weight, reverse=True)
    if not fits:
        raise InputError(
            "no place of the infrared picture in the visible one fits",
            rule="both cameras look at the same scene",
            remedy="check that the infrared and visible frames belong together, or click points (--click)",
        )
    return fits[0], next((fit for fit in fits[1:] if _apart(fit, fits[0], pairs[0])), None)


def _weight(fit: Fit) -> float:
    return evidence.residuals(fit).following * max(fit.correlation, 0.0)


def _apart(one: Fit, other: Fit, pair: Views) -> bool:
    outline = corners((pair[0].shape[0], pair[0].shape[1]))
    distance = np.linalg.norm(projected(one.matrix, outline) - projected(other.matrix, outline), axis=1).mean()
    return bool(distance > _APART * np.hypot(*pair[1].shape))


def _evidence(
    pairs: Sequence[Views], fit: Fit, rough: Fit, rival: Fit | None, rows: Sequence[FrameEvidence]
) -> Evidence:
    matrix = fit.matrix
    ir_size, vis_size = (pairs[0][0].shape[0], pairs[0][0].shape[1]), (pairs[0][1].shape[0], pairs[0][1].shape[1])
    first = Evidence(
        residuals=evidence.residuals(fit),
        doubt_px=evidence.doubt(fit, ir_size, vis_size),
        spread=evidence.spread(fit, ir_size, vis_size),
        strength=_weight(rough),
        rival_strength=None if rival is None else _weight(rival),
        frames=tuple(rows),
    )
    if len(pairs) < _HELD_OUT_OF:
        return first
    seen = [pair for number, pair in enumerate(pairs) if number % _HELD_OUT_OF]
    other = refined(seen, rough.matrix, _FINE)
    grid = evidence.seen_grid(matrix, ir_size, vis_size)
    shift = np.linalg.norm(projected(other, grid) - projected(matrix, grid), axis=1).mean() if len(grid) else None
    return replace(
        first,
        held_out=evidence.residuals(verified(pairs[::_HELD_OUT_OF], other)),
        held_out_shift_px=None if shift is None else float(shift),
    )


def _stored(frame: Frame, frames: Frames) -> tuple[Matrix3, Matrix3]:
    """Maps from the pixels of the planes to those of the pictures as stored: infrared, visible."""
    ir, vis = (
        scaling((plane.shape[0], plane.shape[1]), size)
        for plane, size in ((frame.ir, frames.ir_size), (frame.vis, frames.vis_size))
    )
    return ir, vis


def _in_stored_pixels(found: Evidence, times: float) -> Evidence:
    """Evidence of planes that were scaled down, in the pixels of the pictures as stored."""
    if times == 1:
        return found
    return replace(
        found,
        residuals=found.residuals.scaled(times),
        doubt_px=found.doubt_px * times,
        frames=tuple(
            replace(row, median_px=None if row.median_px is None else row.median_px * times) for row in found.frames
        ),
        held_out=None if found.held_out is None else found.held_out.scaled(times),
        held_out_shift_px=None if found.held_out_shift_px is None else found.held_out_shift_px * times,
    )
