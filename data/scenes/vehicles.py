"""Cars, vans, trucks and buses as extruded side profiles with wheels, windows and lamps."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from duskfuse.data.scenes.climate import Blocker, Canvas, Light
from duskfuse.data.scenes.kinds import SceneClass
from duskfuse.data.scenes.surfaces import Colour, Material, Stencil
from duskfuse.data.scenes.texture import noise_tile, sample

Points = NDArray[np.float64]


class Model(StrEnum):
    """Kinds of vehicles."""

    SEDAN = "sedan"
    HATCHBACK = "hatchback"
    SUV = "suv"
    VAN = "van"
    TRUCK = "truck"
    BUS = "bus"


@dataclass(frozen=True)
class _Body:
    """A side profile: points (part of the length from the middle to the front, metres up), and its strips' names.

    The points go from the front bumper over the roof to the rear bumper; ``strips[i]`` lies between points i and i+1.
    """

    profile: tuple[tuple[float, float], ...]
    strips: tuple[str, ...]
    belt: float
    """Metres: below is sheet metal, above are windows."""
    taper: float
    """By how much the roof is narrower."""


_CAR = ("bumper", "front", "hood", "windshield", "roof", "rear glass", "trunk", "rear", "bumper")
_BOX = ("bumper", "front", "windshield", "brow", "roof", "rear glass", "rear", "bumper")

_BODIES: dict[Model, tuple[_Body, ...]] = {
    Model.SEDAN: (
        _Body(
            (
                (0.49, 0.24),
                (0.50, 0.50),
                (0.46, 0.72),
                (0.20, 0.93),
                (0.03, 1.40),
                (-0.20, 1.42),
                (-0.37, 1.02),
                (-0.485, 0.97),
                (-0.50, 0.55),
                (-0.49, 0.26),
            ),
            _CAR,
            0.93,
            0.2,
        ),
    ),
    Model.HATCHBACK: (
        _Body(
            (
                (0.49, 0.24),
                (0.50, 0.52),
                (0.455, 0.76),
                (0.22, 0.96),
                (0.06, 1.46),
                (-0.38, 1.48),
                (-0.47, 1.04),
                (-0.49, 0.98),
                (-0.50, 0.55),
                (-0.49, 0.26),
            ),
            _CAR,
            0.96,
            0.18,
        ),
    ),
    Model.SUV: (
        _Body(
            (
                (0.49, 0.32),
                (0.50, 0.66),
                (0.47, 0.94),
                (0.22, 1.10),
                (0.09, 1.68),
                (-0.42, 1.70),
                (-0.475, 1.16),
                (-0.49, 1.10),
                (-0.50, 0.66),
                (-0.49, 0.34),
            ),
            _CAR,
            1.10,
            0.15,
        ),
    ),
    Model.VAN: (
        _Body(
            (
                (0.49, 0.30),
                (0.50, 0.66),
                (0.47, 0.96),
                (0.36, 1.18),
                (0.25, 1.92),
                (-0.48, 1.98),
                (-0.49, 1.30),
                (-0.495, 1.22),
                (-0.50, 0.66),
                (-0.49, 0.32),
            ),
            _CAR,
            1.18,
            0.10,
        ),
    ),
    Model.BUS: (
        _Body(
            (
                (0.498, 0.35),
                (0.50, 0.75),
                (0.50, 1.25),
                (0.493, 2.75),
                (0.485, 3.1),
                (-0.49, 3.1),
                (-0.50, 1.8),
                (-0.50, 0.75),
                (-0.498, 0.38),
            ),
            ("bumper", "front", "windshield", "brow", "roof", "rear glass", "rear", "bumper"),
            1.35,
            0.03,
        ),
    ),
    Model.TRUCK: (
        _Body(
            ((0.19, 0.55), (0.19, 1.05), (0.19, 3.05), (-0.50, 3.05), (-0.50, 1.05), (-0.50, 0.55)),
            ("chassis", "cargo", "roof", "cargo rear", "bumper"),
            9.0,
            0.0,
        ),
        _Body(
            (
                (0.495, 0.40),
                (0.50, 0.80),
                (0.495, 1.35),
                (0.465, 2.15),
                (0.44, 2.40),
                (0.22, 2.45),
                (0.22, 1.20),
                (0.22, 0.45),
            ),
            ("bumper", "front", "windshield", "brow", "roof", "back", "back"),
            1.35,
            0.05,
        ),
    ),
}

_WHEELS = {Model.BUS: (0.34, -0.28), Model.TRUCK: (0.36, -0.27)}
_GLASS: Colour = (0.025, 0.03, 0.033)
RUBBER: Colour = (0.022, 0.022, 0.024)


@dataclass(frozen=True)
class Vehicle:
    """A vehicle in the middle of (``x``, ``z``) that heads ``turn`` radians: 0 away from the camera, π towards it."""

    model: Model
    x: float
    z: float
    turn: float
    length: float
    width: float
    colour: Colour
    second: Colour
    """Of the cargo box or the stripe."""
    running: bool
    lamps_on: bool
    beam: float = 1.0
    """Brightness of the headlights; 1 is the low beam."""
    shift: float = 0.0

    @property
    def seg(self) -> SceneClass:
        """A car or a truck."""
        return SceneClass.TRUCK if self.model in (Model.TRUCK, Model.BUS) else SceneClass.CAR

    @property
    def depth(self) -> float:
        """Metres of the nearest corner along the view."""
        return float(self._outline()[:, 1].min())

    @property
    def top(self) -> float:
        """Metres."""
        return max(y for body in _BODIES[self.model] for _, y in body.profile)

    def blockers(self) -> list[Blocker]:
        """The box around the vehicle, a little lower than its roof."""
        return [Blocker(self._outline(), 0.15, 0.92 * self.top)]

    def lights(self) -> list[Light]:
        """The beams of the headlights, as one."""
        if not self.lamps_on:
            return []
        front = self._world(np.array([[self.length / 2 + 0.15, 0, 0.65]]))[0]
        aim = np.array([np.sin(self.turn), -0.055, np.cos(self.turn)])
        strength = 5.0 * self.beam
        x, y, z = (float(value) for value in front)
        ax, ay, az = (float(value) for value in aim / np.linalg.norm(aim))
        return [Light((x, y, z), (strength, 0.93 * strength, 0.8 * strength), (ax, ay, az), 0.88)]

    def paint(self, canvas: Canvas, instance: int) -> None:
        """Paint the faces that look at the camera, far ones first, each with its details."""
        corners = np.concatenate([np.c_[self._outline(), np.full(4, y)][:, [0, 2, 1]] for y in (0.0, self.top + 0.1)])
        stencil = Stencil(canvas.camera, canvas.camera.window(corners))
        if stencil.is_empty:
            return
        painter = _Painter(self, stencil, canvas)
        painter.draw()
        planes = stencil.planes()
        self._weather(planes, canvas, stencil)
        canvas.surfaces.paint(
            stencil.window, stencil.numbers > 0, depth=self.depth, seg=self.seg, instance=instance, **planes
        )

    def _weather(self, planes: dict[str, Any], canvas: Canvas, stencil: Stencil) -> None:
        """Bend flat sheet metal, dirty it towards the ground and make its temperature uneven."""
        y = canvas.camera.height + canvas.camera.ray_y(stencil.window[0]) * self.z
        x = canvas.camera.ray_x(stencil.window[1]) * self.z
        height = np.clip(y / self.top, 0, 1).astype(np.float32)
        planes["normal"][1] += 0.9 * (height - 0.45) * (np.abs(planes["normal"][1]) < 0.5)
        planes["normal"] /= np.maximum(np.sqrt((planes["normal"] ** 2).sum(axis=0)), 1e-3)
        mottle = sample(noise_tile(8, 30), x / 4 + self.shift, y / 4 + 0 * x)
        planes["albedo"] *= (0.80 + 0.25 * height) * (1 + 0.03 * mottle)
        planes["gloss"] *= np.clip(1 + 0.15 * mottle, 0.3, 1.7)
        planes["kelvin"] += 0.15 * mottle + (0.9 if self.running else 0.2) * (0.5 - height)

    def _outline(self) -> Points:
        half, wide = self.length / 2, self.width / 2
        local = np.array([[half, wide, 0], [half, -wide, 0], [-half, -wide, 0], [-half, wide, 0]])
        outline: Points = self._world(local)[:, [0, 2]]
        return outline

    def _world(self, local: NDArray[Any]) -> Points:
        """Points (forward, right, up) of the vehicle to world (X, Y, Z)."""
        sin, cos = np.sin(self.turn), np.cos(self.turn)
        forward, right, up = local[:, 0], local[:, 1], local[:, 2]
        return np.stack([self.x + forward * sin + right * cos, up, self.z + forward * cos - right * sin], axis=1)


class _Painter:
    """Fills the stencil of one vehicle."""

    def __init__(self, vehicle: Vehicle, stencil: Stencil, canvas: Canvas) -> None:
        self.vehicle, self.stencil, self.climate = vehicle, stencil, canvas.climate
        self.eye = np.array([0.0, canvas.camera.height, 0.0])
        self.air = canvas.climate.air

    def draw(self) -> None:
        vehicle = self.vehicle
        self._underside()
        bodies = sorted(_BODIES[vehicle.model], key=self._body_distance, reverse=True)
        for body in bodies:
            strips = (self._strip(body, i) for i in range(len(body.strips)))
            faces = [face for face in strips if face is not None]
            for _, name, quad, normal in sorted(faces, key=lambda face: -face[0]):
                self._paint_strip(name, quad, normal)
            for side in (-1, 1):
                self._paint_side(body, side)
        self._wheels()

    def _body_distance(self, body: _Body) -> float:
        middle = float(np.mean([forward for forward, _ in body.profile])) * self.vehicle.length
        return float(self._world([(middle, 0, 1)])[0, 2])

    def _world(self, local: list[tuple[float, float, float]]) -> Points:
        return self.vehicle._world(np.array(local, np.float64))

    def _half_width(self, body: _Body, y: float) -> float:
        top = max(height for _, height in body.profile)
        above = np.clip((y - body.belt) / max(top - body.belt, 0.1), 0, 1)
        return self.vehicle.width / 2 * float(1 - body.taper * above)

    def _turned(self, forward: float, right: float, up: float) -> Colour:
        """A direction of the vehicle in the world."""
        sin, cos = np.sin(self.vehicle.turn), np.cos(self.vehicle.turn)
        return (float(forward * sin + right * cos), up, float(forward * cos - right * sin))

    def _seen(self, quad: Points, normal: Colour) -> bool:
        return float(np.dot(self.eye - quad.mean(axis=0), normal)) > 0

    def _strip(self, body: _Body, i: int) -> tuple[float, str, Points, Colour] | None:
        """Distance, name, corners (lower left, lower right, upper right, upper left) and normal of a strip if seen."""
        (l0, y0), (l1, y1) = body.profile[i], body.profile[i + 1]
        l0, l1 = l0 * self.vehicle.length, l1 * self.vehicle.length
        w0, w1 = self._half_width(body, y0), self._half_width(body, y1)
        size = max(float(np.hypot(y1 - y0, l1 - l0)), 1e-6)
        normal = self._turned((y1 - y0) / size, 0.0, (l0 - l1) / size)
        quad = self._world([(l0, w0, y0), (l0, -w0, y0), (l1, -w1, y1), (l1, w1, y1)])
        if not self._seen(quad, normal):
            return None
        if y1 < y0:  # the rear goes down: turn it so that the first edge is the lower one
            quad = quad[[3, 2, 1, 0]]
        return float(np.linalg.norm(quad.mean(axis=0) - self.eye)), body.strips[i], quad, normal

    def _sheet(self, normal: Colour, warm: float = 0.0, colour: Colour | None = None) -> Material:
        base = self.air - (1.2 if self.climate.dark else -0.5)
        if self.vehicle.running:
            base += 1.2
        return Material(colour or self.vehicle.colour, base + warm, normal, emissivity=0.88, gloss=0.12)

    def _glass(self, normal: Colour, warm: float = 0.0) -> Material:
        kelvin = self.air + (2.5 if self.vehicle.running else -1.0) + warm
        return Material(_GLASS, kelvin, normal, emissivity=0.68, gloss=0.26)

    def _paint_strip(self, name: str, quad: Points, normal: Colour) -> None:
        vehicle, hot = self.vehicle, self.vehicle.running
        fill = self.stencil.fill
        cargo = name.startswith("cargo")
        warm = {"hood": 11.0, "front": 9.0, "bumper": 3.0}.get(name, 0.0) if hot else 0.0
        fill(quad, self._sheet(normal, warm, vehicle.second if cargo else None))
        if name in ("windshield", "rear glass"):
            fill(_inner(quad, -0.93, 0.93, 0.06, 0.94), self._glass(normal))
        elif name == "front":
            self._paint_front(quad, normal)
        elif name in ("rear", "cargo rear"):
            self._paint_rear(quad, normal, cargo)
        elif name == "bumper":
            dark = Material((0.03, 0.03, 0.032), self.air + (4.0 if hot else 0.0), normal)
            fill(_inner(quad, -0.9, 0.9, 0.0, 0.5), dark)
        elif name == "brow" and vehicle.model is Model.BUS:
            glow = (1.4, 0.75, 0.12) if vehicle.lamps_on else (0.02, 0.015, 0.01)
            fill(_inner(quad, -0.6, 0.6, 0.1, 0.9), Material((0.02, 0.02, 0.02), self.air + 3, normal, glow))

    def _paint_front(self, quad: Points, normal: Colour) -> None:
        vehicle, fill = self.vehicle, self.stencil.fill
        grille = Material((0.03, 0.03, 0.033), self.air + (20.0 if vehicle.running else 0.5), normal)
        fill(_inner(quad, -0.52, 0.52, 0.1, 0.75), grille)
        fill(_inner(quad, -0.26, 0.26, -0.25, 0.12), Material((0.6, 0.6, 0.58), self.air + 1, normal))
        lamp = Material((0.55, 0.57, 0.6), self.air + 2, normal, gloss=0.4)
        if vehicle.lamps_on:
            facing = max(0.05, float(np.dot(normal, _unit(self.eye - quad.mean(axis=0)))))
            glow = 26 * vehicle.beam * facing**3
            lamp = Material(lamp.albedo, self.air + 24, normal, (glow, 0.95 * glow, 0.85 * glow))
        for side in (-1, 1):
            fill(_inner(quad, side * 0.62, side * 0.94, 0.25, 0.85), lamp)

    def _paint_rear(self, quad: Points, normal: Colour, cargo: bool) -> None:
        vehicle, fill = self.vehicle, self.stencil.fill
        if cargo:
            seam = Material((0.05, 0.05, 0.05), self.air, normal)
            fill(_inner(quad, -0.012, 0.012, 0, 1), seam)
            for side in (-1, 1):
                fill(_inner(quad, side * 0.48, side * 0.5, 0.04, 0.96), seam)
        low, high = (0.01, 0.07) if cargo else (0.4, 0.92)
        glow = (2.6, 0.09, 0.05) if vehicle.lamps_on else (0.0, 0.0, 0.0)
        lamp = Material((0.35, 0.015, 0.015), self.air + (5.0 if vehicle.lamps_on else 0.5), normal, glow)
        for side in (-1, 1):
            fill(_inner(quad, side * 0.68, side * 0.96, low, high), lamp)
        if not cargo:
            fill(_inner(quad, -0.2, 0.2, 0.4, 0.56), Material((0.6, 0.6, 0.57), self.air, normal))

    def _paint_side(self, body: _Body, side: int) -> None:
        vehicle = self.vehicle
        normal = self._turned(0.0, side, 0.0)
        metres = [(forward * vehicle.length, y) for forward, y in body.profile]

        def place(points: list[tuple[float, float]]) -> Points:
            return self._world([(forward, side * self._half_width(body, y), y) for forward, y in points])

        if not self._seen(place(metres), normal):
            return
        cargo = "cargo" in body.strips
        fill = self.stencil.fill
        fill(place(metres), self._sheet(normal, 0.0, vehicle.second if cargo else None))
        self._paint_sills(body, metres, place, normal)
        if cargo:
            return
        if vehicle.model is Model.BUS:
            count = 6
            edges = np.linspace(-0.47, 0.47, count + 1) * vehicle.length
            for start, end in pairwise(edges):
                fill(
                    place([(start + 0.08, 1.4), (end - 0.08, 1.4), (end - 0.08, 2.55), (start + 0.08, 2.55)]),
                    self._lit_glass(normal),
                )
            return
        self._paint_cabin(body, metres, place, normal)

    def _lit_glass(self, normal: Colour) -> Material:
        glass = self._glass(normal, 3.0)
        if self.vehicle.lamps_on and self.climate.dark:
            return Material(glass.albedo, glass.kelvin, normal, (0.13, 0.12, 0.095), 0.7, 0.2)
        return glass

    def _paint_sills(self, body: _Body, metres: list[tuple[float, float]], place: Any, normal: Colour) -> None:
        low = min(y for _, y in metres)
        front, rear = metres[0][0], metres[-1][0]
        sill = Material((0.035, 0.035, 0.037), self.air + (2.0 if self.vehicle.running else -0.5), normal)
        self.stencil.fill(place([(front, low), (rear, low), (rear, low + 0.13), (front, low + 0.13)]), sill)
        if self.vehicle.model is Model.BUS:
            stripe = self._sheet(normal, 0.0, self.vehicle.second)
            self.stencil.fill(place([(front, 0.95), (rear, 0.95), (rear, 1.2), (front, 1.2)]), stripe)

    def _paint_cabin(self, body: _Body, metres: list[tuple[float, float]], place: Any, normal: Colour) -> None:
        """Windows between the belt and the roof, door seams and handles."""
        above = [point for point in metres if point[1] >= body.belt - 0.02]
        if len(above) < 4:
            return
        front_low, front_top, rear_top, rear_low = above[0], above[1], above[2], above[3]
        if self.vehicle.model is Model.TRUCK:
            rear_top, rear_low = (0.27 * self.vehicle.length, 2.2), (0.27 * self.vehicle.length, body.belt)
            front_top = (front_top[0] - 0.1, 2.15)
        low, top = body.belt + 0.03, min(front_top[1], rear_top[1]) - 0.09
        a, b = front_low[0] - 0.16, front_top[0] - 0.03
        c, d = rear_top[0] + 0.04, rear_low[0] + 0.14
        van = self.vehicle.model is Model.VAN
        rear_end = (a + d) / 2 + 0.05 if van else None
        window = (
            [(a, low), (b, top), (c, top), (d, low)]
            if rear_end is None
            else [(a, low), (b, top), (rear_end, top), (rear_end, low)]
        )
        self.stencil.fill(place(window), self._glass(normal))
        seam = Material((0.02, 0.02, 0.02), self.air, normal)
        post = self._sheet(normal)
        if rear_end is None:
            middle = (b + c) / 2
            self.stencil.fill(
                place([(middle + 0.04, low), (middle + 0.04, top), (middle - 0.05, top), (middle - 0.05, low)]), post
            )
            doors = (a - 0.02, middle, d + 0.12)
        else:
            doors = (a - 0.05, rear_end - 0.1, rear_end - 0.1)
        for at in doors:
            self.stencil.line(place([(at, low - 0.04), (at, 0.36 * body.belt + 0.08)]), 0.015, seam)
        for at in doors[1:]:
            self.stencil.line(place([(at + 0.12, low - 0.14), (at + 0.28, low - 0.14)]), 0.03, seam)
        self.stencil.fill(place([(a, low + 0.14), (a + 0.17, low + 0.14), (a + 0.17, low), (a, low)]), post)

    def _wheels(self) -> None:
        vehicle, hot = self.vehicle, self.vehicle.running
        radius = (
            0.48 if vehicle.seg is SceneClass.TRUCK else (0.37 if vehicle.model in (Model.SUV, Model.VAN) else 0.32)
        )
        axles = _WHEELS.get(vehicle.model, (0.315, -0.30))
        for side in (-1, 1):
            normal = self._turned(0.0, side, 0.0)
            for part in axles:
                hub = part * vehicle.length
                centre = self._world([(hub, side * vehicle.width / 2, radius)])
                if not self._seen(centre, normal):
                    continue
                angle = np.linspace(0, 2 * np.pi, 26)

                def ring(scale: float, hub: float = hub, side: int = side, angle: Any = angle) -> Points:
                    out = side * (vehicle.width / 2 + 0.012)
                    return self._world([(hub + scale * np.cos(a), out, radius + scale * np.sin(a)) for a in angle])

                warm = 9.0 if hot else 0.3
                self.stencil.fill(
                    ring(radius * 1.16)[:14], Material((0.012, 0.012, 0.013), self.air + warm * 0.5, normal)
                )
                self.stencil.fill(ring(radius), Material(RUBBER, self.air + warm, normal, emissivity=0.97))
                self.stencil.fill(
                    ring(radius * 0.64), Material((0.34, 0.34, 0.36), self.air + warm * 0.7, normal, gloss=0.2)
                )
                self.stencil.fill(ring(radius * 0.44)[::2], Material((0.09, 0.09, 0.1), self.air + warm * 1.5, normal))
                self.stencil.fill(ring(radius * 0.16), Material((0.4, 0.4, 0.42), self.air + warm, normal))

    def _underside(self) -> None:
        """The dark between the wheels, the treads seen from the front or behind, and the exhaust."""
        vehicle, hot = self.vehicle, self.vehicle.running
        wide, half = vehicle.width / 2, vehicle.length / 2
        towards = self._turned(1.0, 0.0, 0.0)
        front_seen = self._seen(self._world([(half, 0, 0.5)]), towards)
        end = 0.97 * half if front_seen else -0.97 * half
        if self.vehicle.model is Model.TRUCK and front_seen:
            end = 0.98 * half
        normal = towards if front_seen else self._turned(-1.0, 0.0, 0.0)
        shade = Material((0.01, 0.01, 0.01), self.air + (8.0 if hot else 1.0), normal)
        low = 0.16 if vehicle.seg is SceneClass.CAR else 0.28
        top = 0.75 if vehicle.seg is SceneClass.TRUCK else 0.45
        self.stencil.fill(
            self._world(
                [(end, wide * 0.95, low), (end, -wide * 0.95, low), (end, -wide * 0.95, top), (end, wide * 0.95, top)]
            ),
            shade,
        )
        tread = Material(RUBBER, self.air + (11.0 if hot else 0.3), normal, emissivity=0.97)
        axles = _WHEELS.get(vehicle.model, (0.315, -0.30))
        at = axles[0] * vehicle.length + 0.3 if front_seen else axles[1] * vehicle.length - 0.3
        for side in (-1, 1):
            a, b = side * wide * 0.97, side * (wide - 0.22)
            self.stencil.fill(self._world([(at, a, 0.0), (at, b, 0.0), (at, b, top), (at, a, top)]), tread)
        if hot and not front_seen:
            pipe = Material((0.1, 0.1, 0.1), self.air + 42, normal)
            self.stencil.fill(
                self._world([(end, 0.5, 0.24), (end, 0.62, 0.24), (end, 0.62, 0.33), (end, 0.5, 0.33)]), pipe
            )


def _inner(quad: Points, a0: float, a1: float, b0: float, b1: float) -> Points:
    """A part of a quad: ``a`` from −1 to 1 along its first edge, ``b`` from 0 to 1 across."""

    def at(a: float, b: float) -> Points:
        t = (a + 1) / 2
        low, high = quad[0] + t * (quad[1] - quad[0]), quad[3] + t * (quad[2] - quad[3])
        point: Points = low + b * (high - low)
        return point

    return np.array([at(a0, b0), at(a1, b0), at(a1, b1), at(a0, b1)])


def _unit(vector: Points) -> Points:
    unit: Points = vector / np.linalg.norm(vector)
    return unit
