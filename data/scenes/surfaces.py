"""What the camera sees in every pixel: material, orientation, temperature, depth and owner of the nearest surface.

Everything is painted here once; the visible and the thermal picture, the labels and the masks are then computed from
the same planes, so that occlusion cannot differ between them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from duskfuse.data.scenes.camera import Camera
from duskfuse.data.scenes.kinds import SceneClass

NOBODY = -1
FAR = 1000.0
"""Metres: the depth of the sky."""

Colour = tuple[float, float, float]
Window = tuple[slice, slice]
_SUBPIXEL_BITS = 4


@dataclass(frozen=True)
class Material:
    """A uniform surface. Colours are linear RGB, 1 is a white sheet in full daylight."""

    albedo: Colour
    kelvin: float
    normal: Colour = (0.0, 0.0, -1.0)
    emission: Colour = (0.0, 0.0, 0.0)
    emissivity: float = 0.95
    """In the thermal band; the rest is a mirror of the sky."""
    gloss: float = 0.0
    """Part of the sky that is mirrored in the visible band."""


def rgb(colour: Colour) -> NDArray[np.float32]:
    """A colour or vector as ``[3, 1, 1]``, ready to be multiplied with planes."""
    return np.array(colour, np.float32)[:, None, None]


class Surfaces:
    """The planes, all ``[H, W]`` or, for colours and normals, ``[3, H, W]``."""

    def __init__(self, rows: int, columns: int) -> None:
        self.albedo = np.zeros((3, rows, columns), np.float32)
        self.emission = np.zeros((3, rows, columns), np.float32)
        self.normal = np.zeros((3, rows, columns), np.float32)
        self.kelvin = np.zeros((rows, columns), np.float32)
        self.emissivity = np.ones((rows, columns), np.float32)
        self.gloss = np.zeros((rows, columns), np.float32)
        self.depth = np.full((rows, columns), FAR, np.float32)
        self.seg = np.zeros((rows, columns), np.uint8)
        self.instance = np.full((rows, columns), NOBODY, np.int16)

    def paint(
        self,
        window: Window,
        mask: NDArray[np.bool_] | None,
        *,
        depth: Any,
        seg: SceneClass,
        albedo: Any,
        kelvin: Any,
        normal: Any = (0.0, 0.0, -1.0),
        emission: Any = (0.0, 0.0, 0.0),
        emissivity: Any = 0.95,
        gloss: Any = 0.0,
        instance: int = NOBODY,
    ) -> None:
        """Paint the pixels of ``mask`` (of the window's shape) behind nothing that is there.

        Every value is a number, a colour, or an array that broadcasts to the window (colours first). No mask paints
        the whole window, whatever is there.
        """
        if mask is not None:
            mask = mask & (np.asarray(depth, np.float32) <= self.depth[window])
        for plane, value in (
            (self.kelvin, kelvin),
            (self.emissivity, emissivity),
            (self.gloss, gloss),
            (self.depth, depth),
            (self.seg, int(seg)),
            (self.instance, instance),
        ):
            np.copyto(plane[window], value, where=True if mask is None else mask, casting="unsafe")
        for planes, value in ((self.albedo, albedo), (self.normal, normal), (self.emission, emission)):
            deep = rgb(value) if isinstance(value, tuple) else value
            np.copyto(planes[:, *window], deep, where=True if mask is None else mask, casting="unsafe")


@dataclass
class Stencil:
    """Paint by numbers: polygons of an object are filled with material numbers, then painted in one go."""

    camera: Camera
    window: Window
    materials: list[Material] = field(default_factory=list)

    def __post_init__(self) -> None:
        rows, columns = self.window
        self.numbers = np.zeros((max(0, rows.stop - rows.start), max(0, columns.stop - columns.start)), np.uint8)

    @property
    def is_empty(self) -> bool:
        """Whether the object is outside of the picture."""
        return self.numbers.size == 0

    def fill(self, points: NDArray[Any], material: Material) -> None:
        """Fill the polygon of the world points ``[N, 3]``."""
        cv2.fillPoly(self.numbers, [self._pixels(points)], self._number(material), cv2.LINE_8, _SUBPIXEL_BITS)

    def line(self, points: NDArray[Any], width: float, material: Material) -> None:
        """Draw a line through world points, ``width`` metres wide and at least one pixel."""
        thickness = max(1, round(self.camera.focal * width / max(1.0, float(points[:, 2].mean()))))
        pixels = [self._pixels(points)]
        cv2.polylines(self.numbers, pixels, False, self._number(material), thickness, cv2.LINE_8, _SUBPIXEL_BITS)

    def planes(self) -> dict[str, Any]:
        """The materials as planes of the window, ready for :meth:`Surfaces.paint`."""
        table = [Material((0, 0, 0), 0), *self.materials]
        names = ("albedo", "kelvin", "normal", "emission", "emissivity", "gloss")
        return {
            name: np.take(
                np.array([getattr(material, name) for material in table], np.float32).T, self.numbers, axis=-1
            )
            for name in names
        }

    def _number(self, material: Material) -> int:
        if material not in self.materials:
            self.materials.append(material)
        return self.materials.index(material) + 1

    def _pixels(self, points: NDArray[Any]) -> NDArray[np.int32]:
        rows, columns = self.window
        pixels = self.camera.project(np.asarray(points, np.float64)) - (columns.start, rows.start)
        return np.round(np.clip(pixels, -4000, 8000) * (1 << _SUBPIXEL_BITS)).astype(np.int32)
