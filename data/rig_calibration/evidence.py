"""How much a homography that was found can be trusted, and the refusal where it cannot.

Blocks are matched anew under the final homography, with a reach that leaves room for chance: of matches that mean
nothing, the share that agrees with it is known from geometry, so that a rig whose pictures share too little shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from duskfuse.data.containers import Size
from duskfuse.data.errors import InputError
from duskfuse.data.rig_calibration.refine import TOLERANCE, VERIFY_REACH, Fit
from duskfuse.data.rig_calibration.structure import Matrix3, Points, projected

FEWEST_MATCHES = 24
LEAST_SHARE = 3.0
"""Times the share of chance: so many of the matches must follow the homography."""
LEAST_SPREAD = 0.12
"""Of what both cameras see: the area of the hull of the matches."""
LARGEST_DOUBT = 0.01
"""Of the visible diagonal: by how much the homography may vary when matches are drawn again."""
LARGEST_RIVAL = 0.5
"""Of the strength of the best placement: another one that reaches it makes the result a guess."""
CHANCE = float(np.pi * TOLERANCE**2 / (2 * VERIFY_REACH + 1) ** 2)
"""Share of matches that follow any homography by chance."""
_DRAWS = 60
_GRID = 9


@dataclass(frozen=True)
class FrameEvidence:
    """What one frame says of the homography."""

    name: str
    matches: int
    following: int
    """Matches within the tolerance of the homography."""
    median_px: float | None
    """Of the following matches' distances, in visible pixels; None without any."""
    used: bool


@dataclass(frozen=True)
class Residuals:
    """Distances of matches that follow a homography, in visible pixels."""

    matches: int
    following: int
    median_px: float | None
    p95_px: float | None
    """None where no match follows."""

    def scaled(self, times: float) -> Residuals:
        """The same in pixels of which ``times`` make one of these."""
        return Residuals(
            self.matches,
            self.following,
            None if self.median_px is None else self.median_px * times,
            None if self.p95_px is None else self.p95_px * times,
        )


@dataclass(frozen=True)
class Evidence:
    """What speaks for a homography."""

    residuals: Residuals
    doubt_px: float
    """Visible pixels: mean displacement of the visible grid that nine of ten redrawn sets of matches stay under."""
    spread: float
    """Share of what both cameras see that the hull of the matches covers."""
    strength: float
    """Of the placement: its matches that agree, times their correlation."""
    rival_strength: float | None
    """Of the best placement that is clearly another one."""
    frames: tuple[FrameEvidence, ...] = field(default=())
    held_out: Residuals | None = None
    """Of frames that the compared homography had not seen; None with too few frames."""
    held_out_shift_px: float | None = None
    """Mean distance on the visible grid between that homography and the final one."""

    def to_json(self) -> dict[str, Any]:
        """The evidence as plain data, pixels to a thousandth."""
        return {key: _rounded(value) for key, value in asdict(self).items()}


def residuals(fit: Fit) -> Residuals:
    """The distances of a fit's matches."""
    distance = distances(fit)
    near = distance[distance <= TOLERANCE * fit.pixel]
    if not len(near):
        return Residuals(len(distance), 0, None, None)
    median, high = np.percentile(near, (50, 95))
    return Residuals(len(distance), len(near), float(median), float(high))


def distances(fit: Fit) -> NDArray[np.float64]:
    """Visible pixels between where each match is and where the homography puts it, ``[N]``."""
    return np.asarray(np.linalg.norm(projected(fit.matrix, fit.ir_points) - fit.matches.end, axis=1))


def frame_evidence(fit: Fit, names: Sequence[str]) -> list[FrameEvidence]:
    """What each frame of a fit says; it is of use where clearly more matches follow than by chance."""
    distance = distances(fit)
    rows = []
    for number, name in enumerate(names):
        own = distance[fit.matches.frame == number]
        near = own[own <= TOLERANCE * fit.pixel]
        used = len(near) >= FEWEST_MATCHES // 4 and len(near) >= LEAST_SHARE * CHANCE * len(own)
        rows.append(FrameEvidence(name, len(own), len(near), float(np.median(near)) if len(near) else None, used))
    return rows


def doubt(fit: Fit, ir_size: Size, vis_size: Size) -> float:
    """Draw the matches again with replacement, whole frames where there are six, and fit each draw.

    Returns:
        Visible pixels that nine of ten draws move the visible grid by at most, in the mean; infinite where
        draws cannot be fitted.
    """
    near = distances(fit) <= TOLERANCE * fit.pixel
    start, end, frame = fit.ir_points[near], fit.matches.end[near], fit.matches.frame[near]
    grid = seen_grid(fit.matrix, ir_size, vis_size)
    if len(start) < 8 or not len(grid):
        return float("inf")
    whole, _ = cv2.findHomography(start, end, 0)
    if whole is None:
        return float("inf")
    expected = projected(whole, grid)
    rng = np.random.default_rng(0)
    groups = [np.flatnonzero(frame == number) for number in np.unique(frame)]
    moved = []
    for _ in range(_DRAWS):
        if len(groups) >= 6:
            chosen = np.concatenate([groups[pick] for pick in rng.integers(0, len(groups), len(groups))])
        else:
            chosen = rng.integers(0, len(start), len(start))
        drawn, _ = cv2.findHomography(start[chosen], end[chosen], 0)
        moved.append(np.inf if drawn is None else np.linalg.norm(projected(drawn, grid) - expected, axis=1).mean())
    return float(np.quantile(moved, 0.9))


def seen_grid(matrix: Matrix3, ir_size: Size, vis_size: Size) -> Points:
    """Infrared pixels ``[N, 2]`` of an even grid of visible pixels that infrared sees."""
    across, down = (np.linspace(0, side - 1, _GRID) for side in vis_size[::-1])
    points = np.stack(np.meshgrid(across, down), -1).reshape(-1, 2)
    own = projected(np.linalg.inv(matrix), points)
    inside = (own >= 0).all(1) & (own <= [ir_size[1] - 1, ir_size[0] - 1]).all(1)
    return np.asarray(own[inside])


def spread(fit: Fit, ir_size: Size, vis_size: Size) -> float:
    """Share of what both cameras see, on the visible grid, that the hull of the following matches covers."""
    near = distances(fit) <= TOLERANCE * fit.pixel
    grid = seen_grid(fit.matrix, ir_size, vis_size)
    if near.sum() < 3 or len(grid) < 3:
        return 0.0
    hulls = [
        cv2.contourArea(cv2.convexHull(points.astype(np.float32)))
        for points in (fit.matches.end[near], projected(fit.matrix, grid))
    ]
    return min(1.0, float(hulls[0] / hulls[1])) if hulls[1] > 0 else 0.0


def check(evidence: Evidence, vis_size: Size) -> None:
    """Refuse a homography that its evidence does not carry.

    Raises:
        InputError: says what was seen, the rule and what helps.
    """
    found = evidence.residuals
    more = "record frames with people, vehicles, buildings or a heated board spread over the picture; or click points"
    if found.following < FEWEST_MATCHES:
        raise InputError(
            f"{found.following} places agree on where the infrared picture lies ({found.matches} were compared)",
            rule=f"a homography needs at least {FEWEST_MATCHES}",
            remedy=more + " (--click)",
        )
    share = found.following / found.matches
    if share < LEAST_SHARE * CHANCE:
        raise InputError(
            f"{share:.0%} of {found.matches} places agree with the best homography; by chance {CHANCE:.0%} would",
            rule=f"at least {LEAST_SHARE * CHANCE:.0%} must",
            remedy=more + " (--click); check that infrared and visible frames belong together",
        )
    if evidence.rival_strength is not None and evidence.rival_strength > LARGEST_RIVAL * evidence.strength:
        raise InputError(
            f"two different placements of infrared in visible fit almost alike (strength {evidence.strength:.1f} and "
            f"{evidence.rival_strength:.1f})",
            rule=f"the second best may reach {LARGEST_RIVAL:.0%} of the best",
            remedy="give more frames of other scenes, or click points (--click)",
        )
    if evidence.spread < LEAST_SPREAD:
        raise InputError(
            f"the places that agree cover {evidence.spread:.0%} of what both cameras see",
            rule=f"they must cover {LEAST_SPREAD:.0%}, or the rest of the picture is a guess",
            remedy=more + " (--click)",
        )
    limit = LARGEST_DOUBT * float(np.hypot(*vis_size))
    if evidence.doubt_px > limit:
        raise InputError(
            f"the homography moves by {evidence.doubt_px:.1f} pixels when its matches are drawn again",
            rule=f"it may move by {limit:.1f} pixels (1 % of the visible diagonal)",
            remedy=more + " (--click)",
        )


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return round(value, 3) if isinstance(value, float) and np.isfinite(value) else value
