"""Where the infrared picture lies in the visible one: every scale, a few rotations and all shifts, by FFT.

All frames of a rig are searched together: their correlations are added before the maximum is sought, so that a scene
without structure or a moving body has little say. Correlation is normalised by what both cameras see at each shift
(Padfield, "Masked object registration in the Fourier domain", 2012).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import scipy.fft
from numpy.typing import NDArray

from duskfuse.data.containers import Size
from duskfuse.data.rig_calibration.structure import (
    CHANNELS,
    Field,
    Matrix3,
    Plane,
    corners,
    projected,
    resized,
    scaling,
    structure_field,
)

LARGEST_SCALE = 3.0
"""The infrared picture is from a third as wide as the visible one to three times as wide, seen on the visible grid."""
LARGEST_ANGLE = 10.0
"""Degrees."""
_SCALES = 25
_ANGLES = 5
_SIDE = 112
"""Pixels of the geometric mean of the two diagonals' halves at which the search is done."""
_LEAST_OVERLAP = 0.45
"""Of the smaller of the two pictures."""
_SHARED_FLOOR = 0.25
"""Of the mean energy: keeps small overlaps with little in them from scoring high."""


@dataclass(frozen=True)
class Placement:
    """A similarity from infrared to visible pixels."""

    matrix: Matrix3
    evidence: float
    """The correlation times the root of the number of pixels of overlap: a chance correlation falls with that root."""
    score: float
    """Normalised correlation, −1 to 1."""
    scale: float
    """Width of the infrared picture on the visible grid, in widths of the visible picture."""
    angle: float
    """Degrees."""


def placements(pairs: Sequence[tuple[Plane, Plane]], count: int) -> list[Placement]:
    """The best placements of infrared in visible that differ clearly, the best first.

    Args:
        pairs: infrared and visible planes of all frames; each side of one size.
        count: how many are given at most.
    """
    ir_size, vis_size = _size(pairs[0][0]), _size(pairs[0][1])
    scales = np.geomspace(1 / LARGEST_SCALE, LARGEST_SCALE, _SCALES)
    found = [best for scale in scales for best in _at_scale(pairs, ir_size, vis_size, float(scale))]
    found.sort(key=lambda placement: -placement.evidence)
    return _distinct(found, ir_size, vis_size, count)


def _at_scale(pairs: Sequence[tuple[Plane, Plane]], ir_size: Size, vis_size: Size, scale: float) -> Iterator[Placement]:
    vis_small = _with_width(vis_size, _SIDE / np.sqrt(scale))
    ir_small = _with_width(ir_size, _SIDE * np.sqrt(scale))
    side = int(np.ceil(np.hypot(*ir_small)))
    shape = tuple(scipy.fft.next_fast_len(a + side, real=True) for a in vis_small)
    visible = [_spectra(*structure_field(resized(vis, vis_small)), shape) for _, vis in pairs]
    small = [resized(ir, ir_small) for ir, _ in pairs]
    for angle in np.linspace(-LARGEST_ANGLE, LARGEST_ANGLE, _ANGLES):
        turn = _rotation(ir_small, side, float(angle))
        seen = cv2.warpAffine(np.ones(ir_small, np.uint8), turn[:2], (side, side), flags=cv2.INTER_NEAREST) > 0
        sums = _Sums(shape)
        for picture, spectra in zip(small, visible, strict=True):
            turned = cv2.warpAffine(picture, turn[:2], (side, side), borderMode=cv2.BORDER_REPLICATE)
            sums.add(_spectra(*structure_field(turned, seen), shape), spectra)
        evidence, score, (x, y) = sums.best(min(ir_small[0] * ir_small[1], vis_small[0] * vis_small[1]), side)
        shift = np.array([[1, 0, x], [0, 1, y], [0, 0, 1]])
        matrix = scaling(vis_small, vis_size) @ shift @ turn @ scaling(ir_size, ir_small)
        yield Placement(matrix, evidence, score, scale, float(angle))


class _Spectra:
    """FFTs of a field, of its energy and of where it holds."""

    def __init__(self, field: Field, inside: NDArray[np.bool_], shape: tuple[int, ...]) -> None:
        planes = np.concatenate([field, (field * field).sum(0)[None], inside[None].astype(np.float32)])
        whole = scipy.fft.rfft2(planes, s=shape)
        self.field, self.energy, self.inside = whole[:CHANNELS], whole[CHANNELS], whole[CHANNELS + 1]


def _spectra(field: Field, inside: NDArray[np.bool_], shape: tuple[int, ...]) -> _Spectra:
    return _Spectra(field, inside, shape)


class _Sums:
    """Correlations of frames, added up in the Fourier domain."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape
        self._sums = np.zeros((4, shape[0], shape[1] // 2 + 1), np.complex64)
        self._frames = 0

    def add(self, ir: _Spectra, vis: _Spectra) -> None:
        self._sums[0] += (ir.field.conj() * vis.field).sum(0)
        self._sums[1] += ir.energy.conj() * vis.inside
        self._sums[2] += ir.inside.conj() * vis.energy
        self._sums[3] += ir.inside.conj() * vis.inside
        self._frames += 1

    def best(self, smaller: int, side: int) -> tuple[float, float, tuple[float, float]]:
        """The highest evidence, its score, and the shift (x, y) of the infrared picture's first pixel there."""
        product, ir_energy, vis_energy, overlap = scipy.fft.irfft2(self._sums, s=self._shape)
        overlap = overlap / self._frames
        allowed = overlap >= _LEAST_OVERLAP * smaller
        if not allowed.any():
            return 0.0, 0.0, (0.0, 0.0)
        energy = [np.maximum(plane, 0) + _SHARED_FLOOR * plane[allowed].mean() for plane in (ir_energy, vis_energy)]
        score = np.where(allowed, product / np.sqrt(energy[0] * energy[1] + 1e-12), -1)
        evidence = score * np.sqrt(np.maximum(overlap, 0))
        row, column = np.unravel_index(int(np.argmax(evidence)), score.shape)
        y, x = (
            int(at) - (length if at >= length - side else 0)
            for at, length in zip((row, column), self._shape, strict=True)
        )
        return float(evidence[row, column]), float(score[row, column]), (float(x), float(y))


def _rotation(size: Size, side: int, degrees: float) -> Matrix3:
    """Turns a picture about its middle, which comes to the middle of a square of ``side``."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    x, y, middle = (size[1] - 1) / 2, (size[0] - 1) / 2, (side - 1) / 2
    return np.array([[c, -s, middle - c * x + s * y], [s, c, middle - s * x - c * y], [0, 0, 1]])


def _distinct(found: Sequence[Placement], ir_size: Size, vis_size: Size, count: int) -> list[Placement]:
    """The first ones whose corners on the visible grid are a tenth of its diagonal apart, in the mean."""
    kept: list[Placement] = []
    apart = 0.1 * float(np.hypot(*vis_size))
    for placement in found:
        mine = projected(placement.matrix, corners(ir_size))
        others = (projected(other.matrix, corners(ir_size)) for other in kept)
        if all(np.linalg.norm(mine - other, axis=1).mean() > apart for other in others):
            kept.append(placement)
        if len(kept) == count:
            break
    return kept


def _with_width(size: Size, width: float) -> Size:
    return max(16, round(width * size[0] / size[1])), max(16, round(width))


def _size(picture: Plane) -> Size:
    return picture.shape[0], picture.shape[1]
