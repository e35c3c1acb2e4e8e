"""What stands along a road: trees, bushes, street lamps, signs and traffic lights."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import cv2
import numpy as np

from duskfuse.data.scenes.climate import Blocker, Canvas, Light, disc
from duskfuse.data.scenes.kinds import SceneClass
from duskfuse.data.scenes.surfaces import Colour, Material, Stencil, rgb
from duskfuse.data.scenes.texture import SPRITE, crown_sprite, noise_tile, sample

_BARK: Colour = (0.085, 0.062, 0.045)


@dataclass(frozen=True)
class Foliage:
    """A crown or a bush: an ellipse of leaves around (``x``, ``y``, ``z``)."""

    x: float
    y: float
    z: float
    half_width: float
    half_height: float
    colour: Colour
    kind: int
    mirrored: bool

    @property
    def seg(self) -> SceneClass:
        """Vegetation."""
        return SceneClass.VEGETATION

    @property
    def depth(self) -> float:
        """Metres along the view."""
        return self.z

    def blockers(self) -> list[Blocker]:
        """A cylinder a little narrower than the leaves."""
        low = self.y - 0.7 * self.half_height
        return [Blocker(disc(self.x, self.z, 0.8 * self.half_width), max(low, 0), self.y + 0.7 * self.half_height)]

    def paint(self, canvas: Canvas, instance: int) -> None:
        """Paint a sprite of leaves."""
        camera, climate = canvas.camera, canvas.climate
        corners = [
            (self.x + a * self.half_width, self.y + b * self.half_height, self.z) for a in (-1, 1) for b in (-1, 1)
        ]
        window = camera.window(np.array(corners))
        shape = window[0].stop - window[0].start, window[1].stop - window[1].start
        if min(shape) <= 0:
            return
        cover, shade = crown_sprite(self.kind)
        left, top = camera.project(np.array(corners))[1]
        size = 2 * camera.focal / self.z
        scale_x, scale_y = SPRITE / (size * self.half_width), SPRITE / (size * self.half_height)
        sign = -1 if self.mirrored else 1
        start = (window[1].start - left) * scale_x
        matrix = np.array(
            [
                [sign * scale_x, 0, SPRITE - 1 - start if self.mirrored else start],
                [0, scale_y, (window[0].start - top) * scale_y],
            ]
        )
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        if scale_x > 2:  # a far crown: average the leaves first
            step = min(16, int(scale_x))
            cover, shade = (
                cv2.resize(p, None, fx=1 / step, fy=1 / step, interpolation=cv2.INTER_AREA) for p in (cover, shade)
            )
            matrix /= step
        covered = cv2.warpAffine(cover, matrix, shape[::-1], flags=flags) > 0.5
        bright = cv2.warpAffine(shade, matrix, shape[::-1], flags=flags, borderMode=cv2.BORDER_REPLICATE)
        a = (camera.ray_x(window[1]) * self.z - self.x) / self.half_width
        b = (camera.height + camera.ray_y(window[0]) * self.z - self.y) / self.half_height
        a, b = np.broadcast_arrays(a, b)
        normal = np.stack([0.7 * a, 0.55 * b + 0.35, -np.sqrt(np.clip(1.05 - a**2 - b**2, 0.1, 1))])
        warm_tips = rgb((1.12, 1.0, 0.75)) ** (bright * 1.6 - 1.2)
        canvas.surfaces.paint(
            window,
            covered,
            depth=self.z,
            seg=SceneClass.VEGETATION,
            albedo=rgb(self.colour) * warm_tips * bright * 1.25,
            kelvin=climate.air
            + (-0.6 if climate.dark else 0.4)
            + 1.3 * (bright - 0.7) * (0.7 if climate.dark else 1.6),
            normal=normal / np.sqrt((normal**2).sum(axis=0)),
            emissivity=0.985,
        )


@dataclass(frozen=True)
class Trunk:
    """The stem of a tree with a few branches up into the crown."""

    x: float
    z: float
    height: float
    radius: float
    bend: float
    spread: float
    """How far the branches reach sideways."""

    @property
    def seg(self) -> SceneClass:
        """Vegetation."""
        return SceneClass.VEGETATION

    @property
    def depth(self) -> float:
        """Metres along the view; behind the crown."""
        return self.z + 0.05

    def blockers(self) -> list[Blocker]:
        """A thin column."""
        return [Blocker(disc(self.x, self.z, self.radius), 0, self.height)]

    def paint(self, canvas: Canvas, instance: int) -> None:
        """Paint stem and branches with bark."""
        reach = self.spread + 2 * self.radius
        corners = [(self.x + s, y, self.z) for s in (-reach, reach) for y in (-0.05, self.height)]
        stencil = Stencil(canvas.camera, canvas.camera.window(np.array(corners)))
        if stencil.is_empty:
            return
        bark = Material(_BARK, canvas.climate.air + (0.8 if canvas.climate.dark else 0.3), (0.0, 0.1, -1.0))
        fork, r = 0.55 * self.height, self.radius
        outline = [
            (-1.5 * r, 0),
            (-r, 0.3),
            (-0.7 * r + self.bend, fork),
            (0.7 * r + self.bend, fork),
            (r, 0.3),
            (1.5 * r, 0),
        ]
        stencil.fill(np.array([(self.x + s, y, self.z) for s, y in outline]), bark)
        for side, up in ((-1.0, 0.9), (-0.35, 1.0), (0.45, 0.98), (0.95, 0.86)):
            ends = [(self.x + self.bend, fork - 0.1, self.z), (self.x + side * self.spread, up * self.height, self.z)]
            stencil.line(np.array(ends), 0.9 * r, bark)
        planes = stencil.planes()
        u = canvas.camera.ray_x(stencil.window[1]) * self.z
        v = canvas.camera.height + canvas.camera.ray_y(stencil.window[0]) * self.z
        ridges = sample(noise_tile(16, 40), u / 1.2, v / 5)
        planes["albedo"] *= np.clip(1 + 0.4 * ridges, 0.3, 2)
        planes["kelvin"] += 0.4 * ridges
        planes["normal"][0] = np.clip((u - self.x) / r, -0.9, 0.9)
        canvas.surfaces.paint(stencil.window, stencil.numbers > 0, depth=self.depth, seg=self.seg, **planes)


@dataclass(frozen=True)
class StreetLamp:
    """A pole with an arm towards the road; ``reach`` is signed."""

    x: float
    z: float
    height: float
    reach: float
    colour: Colour
    lit: bool

    @property
    def seg(self) -> SceneClass:
        """A lamp."""
        return SceneClass.LAMP

    @property
    def depth(self) -> float:
        """Metres along the view."""
        return self.z

    def blockers(self) -> list[Blocker]:
        """The pole."""
        return [Blocker(disc(self.x, self.z, 0.08), 0, self.height)]

    def lights(self) -> list[Light]:
        """The lamp, shining down."""
        if not self.lit:
            return []
        red, green, blue = (6.0 * value for value in self.colour)
        return [Light((self.x + self.reach, self.height - 0.15, self.z), (red, green, blue), (0.0, -1.0, 0.0), 0.4)]

    def paint(self, canvas: Canvas, instance: int) -> None:
        """Paint pole, arm and head."""
        far = self.x + 1.2 * self.reach
        corners = [(s, y, self.z) for s in (self.x - 0.3, self.x + 0.3, far) for y in (-0.05, self.height + 0.3)]
        stencil = Stencil(canvas.camera, canvas.camera.window(np.array(corners)))
        if stencil.is_empty:
            return
        air = canvas.climate.air
        metal = Material((0.16, 0.17, 0.17), air - 0.2, (0.4, 0.0, -0.9), emissivity=0.88, gloss=0.05)
        x, z, top, reach = self.x, self.z, self.height, self.reach

        def at(*points: tuple[float, float]) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
            return np.array([(s, y, z) for s, y in points])

        stencil.fill(at((x - 0.14, 0), (x - 0.12, 1.0), (x + 0.12, 1.0), (x + 0.14, 0)), metal)
        stencil.fill(at((x - 0.085, 0.9), (x - 0.05, top), (x + 0.05, top), (x + 0.085, 0.9)), metal)
        stencil.line(at((x, top - 0.5), (x + 0.25 * reach, top - 0.05), (x + 0.9 * reach, top)), 0.07, metal)
        a, b = x + 0.78 * reach, x + 1.16 * reach
        stencil.fill(at((a, top + 0.1), (b, top + 0.06), (b, top - 0.06), (a, top - 0.05)), metal)
        glow = tuple(24.0 * value for value in self.colour) if self.lit else (0.0, 0.0, 0.0)
        glass = Material(
            (0.5, 0.5, 0.48), air + (32 if self.lit else 0), (0.0, -0.6, -0.8), (glow[0], glow[1], glow[2])
        )
        stencil.fill(
            at((a, top - 0.04), (b, top - 0.05), (b - 0.05 * reach, top - 0.14), (a + 0.05 * reach, top - 0.14)), glass
        )
        canvas.surfaces.paint(stencil.window, stencil.numbers > 0, depth=z, seg=self.seg, **stencil.planes())


class SignKind(StrEnum):
    """What a sign looks like."""

    LIMIT = "limit"
    """A white disc with a red ring."""
    DUTY = "duty"
    """A blue disc with a white arrow."""
    WARNING = "warning"
    """A white triangle with a red border."""
    PARKING = "parking"
    """A blue square."""
    DIRECTION = "direction"
    """A large green board."""
    SIGNAL = "signal"
    """A traffic light."""


_WHITE: Colour = (0.75, 0.75, 0.73)
_RED: Colour = (0.55, 0.03, 0.03)
_BLUE: Colour = (0.03, 0.10, 0.45)
_GREEN: Colour = (0.02, 0.22, 0.11)
_BLACK: Colour = (0.02, 0.02, 0.02)


@dataclass(frozen=True)
class Sign:
    """A sign or traffic light on a pole."""

    x: float
    z: float
    height: float
    kind: SignKind
    go: bool
    """The traffic light is green."""

    @property
    def seg(self) -> SceneClass:
        """A sign."""
        return SceneClass.SIGN

    @property
    def depth(self) -> float:
        """Metres along the view."""
        return self.z

    def blockers(self) -> list[Blocker]:
        """The pole."""
        return [Blocker(disc(self.x, self.z, 0.06), 0, self.height)]

    def paint(self, canvas: Canvas, instance: int) -> None:
        """Paint pole and face; at night the face returns some of the headlights."""
        corners = [(self.x + s, y, self.z) for s in (-1.4, 1.4) for y in (-0.05, self.height + 0.8)]
        stencil = Stencil(canvas.camera, canvas.camera.window(np.array(corners)))
        if stencil.is_empty:
            return
        self._draw(stencil, canvas)
        canvas.surfaces.paint(stencil.window, stencil.numbers > 0, depth=self.z, seg=self.seg, **stencil.planes())

    def _draw(self, stencil: Stencil, canvas: Canvas) -> None:
        air, dark = canvas.climate.air, canvas.climate.dark
        pole = Material((0.3, 0.31, 0.31), air - 0.3, (0.4, 0.0, -0.9), emissivity=0.85, gloss=0.1)
        self._polygon(stencil, [(-0.04, -self.height), (-0.04, 0.1), (0.04, 0.1), (0.04, -self.height)], pole)

        def face(colour: Colour, warm: float = 0.0, glow: Colour = (0.0, 0.0, 0.0)) -> Material:
            returned = 0.10 * (12 / max(self.z, 8)) if dark else 0.0
            red, green, blue = (returned * c + g for c, g in zip(colour, glow, strict=True))
            return Material(colour, air - 1.0 + warm, emission=(red, green, blue), emissivity=0.82, gloss=0.03)

        if self.kind in (SignKind.LIMIT, SignKind.DUTY):
            rim, inside = (_RED, _WHITE) if self.kind is SignKind.LIMIT else (_WHITE, _BLUE)
            self._polygon(stencil, _circle(0.36), face(rim))
            self._polygon(stencil, _circle(0.27 if self.kind is SignKind.LIMIT else 0.33), face(inside, 0.6))
            marks = [
                [(-0.16, 0.13), (-0.03, 0.13), (-0.03, -0.13), (-0.16, -0.13)],
                [(0.03, 0.13), (0.16, 0.13), (0.16, -0.13), (0.03, -0.13)],
            ]
            if self.kind is SignKind.DUTY:
                marks = [
                    [(-0.05, -0.22), (0.05, -0.22), (0.05, 0.05), (-0.05, 0.05)],
                    [(-0.15, 0.03), (0.15, 0.03), (0, 0.24)],
                ]
            for mark in marks:
                self._polygon(stencil, mark, face(_BLACK if self.kind is SignKind.LIMIT else _WHITE, 0.3))
        elif self.kind is SignKind.WARNING:
            for scale, colour in ((0.45, _RED), (0.31, _WHITE), (0.1, _BLACK)):
                self._polygon(stencil, [(-scale, -0.7 * scale), (scale, -0.7 * scale), (0, scale)], face(colour))
        elif self.kind is SignKind.PARKING:
            self._polygon(stencil, [(-0.33, -0.33), (0.33, -0.33), (0.33, 0.33), (-0.33, 0.33)], face(_BLUE))
            self._polygon(stencil, [(-0.12, -0.22), (-0.05, -0.22), (-0.05, 0.22), (-0.12, 0.22)], face(_WHITE, 0.5))
            self._polygon(
                stencil, [(-0.05, 0.0), (0.1, 0.0), (0.15, 0.11), (0.1, 0.22), (-0.05, 0.22)], face(_WHITE, 0.5)
            )
        elif self.kind is SignKind.DIRECTION:
            self._polygon(stencil, [(-1.2, -0.55), (1.2, -0.55), (1.2, 0.55), (-1.2, 0.55)], face(_WHITE))
            self._polygon(stencil, [(-1.15, -0.5), (1.15, -0.5), (1.15, 0.5), (-1.15, 0.5)], face(_GREEN, 0.4))
            for y, end in ((0.2, 0.7), (-0.18, 0.4)):
                self._polygon(
                    stencil, [(-0.9, y - 0.08), (end, y - 0.08), (end, y + 0.08), (-0.9, y + 0.08)], face(_WHITE, 0.4)
                )
        else:
            self._polygon(stencil, [(-0.19, -0.55), (0.19, -0.55), (0.19, 0.55), (-0.19, 0.55)], face(_BLACK, 1.0))
            lamps: list[tuple[float, Colour, bool]] = [
                (0.33, (1.0, 0.06, 0.03), not self.go),
                (0.0, (1.0, 0.5, 0.02), False),
                (-0.33, (0.05, 0.9, 0.45), self.go),
            ]
            for y, colour, on in lamps:
                level = 2.6 if on and dark else 1.3
                glow = (level * colour[0], level * colour[1], level * colour[2]) if on else (0.0, 0.0, 0.0)
                dim = (0.1 * colour[0], 0.1 * colour[1], 0.1 * colour[2])
                self._polygon(stencil, [(s, y + t) for s, t in _circle(0.13)], face(dim, 9.0 if on else 1.0, glow))

    def _polygon(self, stencil: Stencil, points: list[tuple[float, float]], material: Material) -> None:
        stencil.fill(np.array([(self.x + s, self.height + y, self.z) for s, y in points]), material)


def _circle(radius: float) -> list[tuple[float, float]]:
    return [(radius * np.cos(a), radius * np.sin(a)) for a in np.linspace(0, 2 * np.pi, 24, endpoint=False)]
