"""People: jointed figures of tapered limbs with skin, hair and clothes, walking, standing or riding."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from duskfuse.data.scenes.climate import Blocker, Canvas, disc
from duskfuse.data.scenes.kinds import SceneClass
from duskfuse.data.scenes.surfaces import Colour, rgb
from duskfuse.data.scenes.texture import Plane, noise_tile, sample

SKIN_KELVIN = 305.5
Point = tuple[float, float]


class Pose(StrEnum):
    """What a person does."""

    WALKING = "walking"
    STANDING = "standing"
    PHONING = "phoning"
    RIDING = "riding"


@dataclass(frozen=True)
class Clothes:
    """Albedos and cut."""

    skin: Colour
    hair: Colour
    top: Colour
    legs: Colour
    shoes: Colour
    stripes: float
    """Metres between the stripes of the top; 0 for none."""
    coat: float
    """How far the top reaches below the hips, as part of the body height."""
    skirt: bool
    backpack: Colour | None
    hat: bool
    warmth: tuple[float, float]
    """How far top and legs are on the way from the air to the skin."""


@dataclass(frozen=True)
class Person:
    """A figure of ``height`` metres that stands at (``x``, ``z``) and faces ``turn`` radians: 0 away, π/2 to the right.

    ``lift`` is the height of the feet above the ground.
    """

    x: float
    z: float
    height: float
    turn: float
    phase: float
    pose: Pose
    build: float
    """Width relative to the average."""
    clothes: Clothes
    shift: float
    lift: float = 0.0

    @property
    def depth(self) -> float:
        """Metres along the view."""
        return self.z

    @property
    def seg(self) -> SceneClass:
        """A person."""
        return SceneClass.PERSON

    def blockers(self) -> list[Blocker]:
        """A thin column."""
        return [Blocker(disc(self.x, self.z, 0.2), self.lift, self.lift + self.height)]

    def paint(self, canvas: Canvas, instance: int) -> None:
        """Paint the figure as the parts of its body, far ones first."""
        camera = canvas.camera
        reach = 0.62 * self.height
        corners = [(self.x + s, self.lift + y, self.z) for s in (-reach, reach) for y in (-0.05, 1.06 * self.height)]
        window = camera.window(np.array(corners))
        if window[0].start >= window[0].stop or window[1].start >= window[1].stop:
            return
        s = (camera.ray_x(window[1]) * self.z - self.x) / self.height
        y = (camera.height + camera.ray_y(window[0]) * self.z - self.lift) / self.height
        figure = _Figure(*np.broadcast_arrays(s, y))
        self._draw(figure, canvas.climate.air)
        folds = 1 + 0.16 * sample(noise_tile(8, 20), figure.s * 1.1 + self.shift, figure.y * 0.5) * figure.cloth
        kelvin = figure.kelvin + 1.1 * (folds - 1) * 4 * figure.cloth - 1.8 * figure.normal[0] ** 2
        canvas.surfaces.paint(
            window,
            figure.mask,
            depth=self.z,
            seg=SceneClass.PERSON,
            instance=instance,
            albedo=figure.albedo * folds,
            kelvin=kelvin,
            normal=figure.normal,
            emissivity=0.98,
        )

    def _draw(self, figure: _Figure, air: float) -> None:
        clothes, b = self.clothes, self.build
        warm, warm_legs = (air + part * (SKIN_KELVIN - air) for part in clothes.warmth)
        side, front = abs(np.sin(self.turn)), abs(np.cos(self.turn))
        facing = float(np.sign(np.sin(self.turn)) or 1)
        shoulder, hip = (0.05 + 0.052 * front) * b, (0.022 + 0.038 * front) * b
        legs, arms, lean = self._limbs(side, facing, shoulder, hip)
        cloth = _Paint(clothes.legs, warm_legs, True)
        sleeve = _Paint(clothes.top, warm - 0.4, True)
        skin = _Paint(clothes.skin, SKIN_KELVIN - 0.8, False)
        shoe = _Paint(clothes.shoes, warm_legs - 3, False)
        bare = _Paint(clothes.skin, SKIN_KELVIN - 2.5, False)

        self._arm(figure, arms[1], sleeve, skin)
        for hip_point, knee, ankle in reversed(legs):
            below = bare if clothes.skirt else cloth
            figure.limb(knee, ankle, 0.036 * b, 0.024 * b, below)
            figure.limb(hip_point, knee, 0.055 * b, 0.040 * b, below)
            toe = (ankle[0] + (0.075 * side * facing), ankle[1] - 0.026)
            figure.limb((ankle[0] - 0.012 * facing * side, ankle[1] - 0.02), toe, 0.026, 0.018, shoe)
        waist = 0.062 + 0.024 * front
        hem = 0.5 - clothes.coat
        if clothes.skirt:
            figure.trunk([0.27, 0.42, 0.54], [0.10 * b, 0.088 * b, 0.07 * b], (0.0, 0.0), lean, cloth)
        else:
            figure.trunk([0.43, 0.48, 0.56], [0.05 * b, (0.062 + 0.03 * front) * b, waist * b], (0, 0), lean, cloth)
        heights = [min(hem, 0.49), 0.56, 0.66, 0.77, 0.81, 0.832, 0.85]
        widths = [
            0.068 + 0.03 * front + 0.1 * clothes.coat,
            waist,
            waist + 0.008,
            0.058 + 0.044 * front,
            shoulder,
            shoulder * 0.62,
            0.03,
        ]
        if clothes.backpack is not None and side > 0.4:
            pack = _Paint(clothes.backpack, warm - 4.5, True)
            figure.trunk([0.58, 0.62, 0.78, 0.82], [0.04, 0.055, 0.055, 0.035], (-0.085 * facing * side, 0), lean, pack)
        top = _Paint(clothes.top, warm + 0.3, True, clothes.stripes / self.height)
        figure.trunk(heights, [width * b for width in widths], (0.0, 0.0), lean, top)
        if clothes.backpack is not None and np.cos(self.turn) > 0.3:
            pack = _Paint(clothes.backpack, warm - 4.5, True)
            figure.trunk([0.57, 0.60, 0.78, 0.82], [0.06, 0.075, 0.07, 0.045], (0.0, 0.0), lean, pack)
        self._head(figure, lean * 0.4, facing, side, air, skin)
        self._arm(figure, arms[0], sleeve, skin)

    def _limbs(
        self, side: float, facing: float, shoulder: float, hip: float
    ) -> tuple[list[tuple[Point, Point, Point]], list[tuple[Point, Point, Point]], float]:
        """Hip, knee, ankle of the near and the far leg; shoulder, elbow, hand of the arms; how far the chest leans."""
        along = side * facing
        legs, arms = [], []
        riding = self.pose is Pose.RIDING
        stride = {Pose.WALKING: 0.48, Pose.RIDING: 0.5}.get(self.pose, 0.07)
        lean = along * {Pose.WALKING: 0.02, Pose.RIDING: 0.16}.get(self.pose, 0.0)
        for k, out in ((0, 1.0), (1, -1.0)):
            swing = stride * np.sin(self.phase + np.pi * k)
            thigh = swing + (0.85 if riding else 0.06)
            knee_bend = (
                1.25 + 0.4 * swing if riding else 0.12 + 0.75 * stride * max(0.0, float(np.cos(self.phase + np.pi * k)))
            )
            hip_point = (out * hip * (1 - 0.6 * side), 0.49)
            stance = out * (0.012 + 0.02 * (1 - side))
            knee = (hip_point[0] + stance + 0.235 * np.sin(thigh) * along, 0.49 - 0.235 * np.cos(thigh))
            shin = thigh - knee_bend
            ankle = (knee[0] + 0.225 * np.sin(shin) * along, knee[1] - 0.225 * np.cos(shin))
            if not riding:
                rise = 0.0 if shin > -0.35 else 0.012
                ankle = (ankle[0], max(ankle[1] if shin < -0.35 else 0.04, 0.035 + rise))
            legs.append((hip_point, knee, ankle))
            arm_swing = -0.8 * swing + (0.95 if riding else 0.0)
            bend = 0.35 + 0.3 * max(0.0, float(arm_swing))
            if self.pose is Pose.PHONING and k == 0:
                arm_swing, bend = 0.5, 2.3
            joint = (out * shoulder * (1 - 0.75 * side) + lean * 0.95, 0.80)
            spread = out * (0.035 * (1 - side) + 0.01)
            elbow = (joint[0] + spread + 0.17 * np.sin(arm_swing) * along, joint[1] - 0.17 * np.cos(arm_swing))
            lower = arm_swing + bend
            forward = along + (0.3 * out * (1 - side) * (-1 if bend > 2 else 0.1))
            hand = (elbow[0] + 0.16 * np.sin(lower) * forward, elbow[1] - 0.16 * np.cos(lower))
            arms.append((joint, elbow, hand))
        return legs, arms, float(lean)

    def _arm(self, figure: _Figure, arm: tuple[Point, Point, Point], sleeve: _Paint, skin: _Paint) -> None:
        joint, elbow, hand = arm
        thick = 0.029 * self.build
        figure.limb(elbow, hand, 0.8 * thick, 0.6 * thick, sleeve)
        figure.limb(joint, elbow, 1.12 * thick, 0.85 * thick, sleeve)
        tip = (hand[0] + 0.12 * (hand[0] - elbow[0]), hand[1] + 0.12 * (hand[1] - elbow[1]))
        figure.limb(hand, tip, 0.02, 0.016, skin)

    def _head(self, figure: _Figure, lean: float, facing: float, side: float, air: float, skin: _Paint) -> None:
        clothes = self.clothes
        x = 2.4 * lean + 0.012 * facing * side
        figure.limb((2.1 * lean, 0.83), (x, 0.885), 0.03, 0.028, skin)
        figure.limb((x, 0.9), (x, 0.938), 0.041, 0.05, skin)
        hair = _Paint(clothes.hair, air + 0.6 * (SKIN_KELVIN - air), False)
        if np.cos(self.turn) > 0.35:
            figure.limb((x, 0.908), (x, 0.942), 0.045, 0.053, hair)
        else:
            back = -0.022 * facing * side
            figure.limb((x + back * 1.5, 0.938), (x - back * 0.4, 0.955), 0.045, 0.041, hair)
            if side > 0.5:
                figure.limb((x + back * 1.7, 0.908), (x + back * 1.5, 0.938), 0.028, 0.041, hair)
        if clothes.hat:
            figure.limb(
                (x - 0.026, 0.962), (x + 0.026, 0.962), 0.034, 0.034, _Paint(clothes.top, hair.kelvin - 1, True)
            )


@dataclass(frozen=True)
class _Paint:
    albedo: Colour
    kelvin: float
    cloth: bool
    stripes: float = 0.0


class _Figure:
    """The planes of a figure while it is drawn, over coordinates in units of its height."""

    def __init__(self, s: Plane, y: Plane) -> None:
        self.s, self.y = s, y
        self.mask = np.zeros(s.shape, np.bool_)
        self.cloth = np.zeros(s.shape, np.float32)
        self.kelvin = np.zeros(s.shape, np.float32)
        self.albedo = np.zeros((3, *s.shape), np.float32)
        self.normal = np.zeros((3, *s.shape), np.float32)

    def limb(self, start: Point, end: Point, start_radius: float, end_radius: float, paint: _Paint) -> None:
        """Paint a tapered limb with round ends."""
        reach = max(start_radius, end_radius)
        rows, columns = self._window(start, end, reach)
        s, y = self.s[rows, columns], self.y[rows, columns]
        if s.size == 0:
            return
        dx, dy = end[0] - start[0], end[1] - start[1]
        t = np.clip(((s - start[0]) * dx + (y - start[1]) * dy) / max(dx * dx + dy * dy, 1e-9), 0, 1)
        radius = start_radius + t * (end_radius - start_radius)
        across: Plane = ((s - start[0] - t * dx) / radius).astype(np.float32)
        up: Plane = ((y - start[1] - t * dy) / radius).astype(np.float32)
        self._put((rows, columns), across**2 + up**2 < 1, across, up, paint)

    def trunk(self, heights: list[float], widths: list[float], centre: Point, lean: float, paint: _Paint) -> None:
        """Paint the shape whose half widths at some heights are given."""
        rows, columns = self._window(
            (centre[0] + min(lean, 0), heights[0]), (centre[0] + max(lean, 0), heights[-1]), max(widths)
        )
        s, y = self.s[rows, columns], self.y[rows, columns]
        if s.size == 0:
            return
        width = np.interp(y[:, :1], heights, widths, left=0.001, right=0.001)
        axis = centre[0] + lean * np.clip((y - 0.49) / 0.35, 0, 1.2)
        across = ((s - axis) / width).astype(np.float32)
        inside = (np.abs(across) < 1) & (y > heights[0]) & (y < heights[-1])
        self._put((rows, columns), inside, across, np.full_like(across, 0.1), paint)

    def _window(self, a: Point, b: Point, reach: float) -> tuple[slice, slice]:
        columns = np.flatnonzero((self.s[0] > min(a[0], b[0]) - reach) & (self.s[0] < max(a[0], b[0]) + reach))
        rows = np.flatnonzero((self.y[:, 0] > min(a[1], b[1]) - reach) & (self.y[:, 0] < max(a[1], b[1]) + reach))
        return _span(rows), _span(columns)

    def _put(self, window: tuple[slice, slice], inside: NDArray[Any], across: Plane, up: Plane, paint: _Paint) -> None:
        ring = np.clip(1 - across**2 - up**2, 0.04, 1)
        normal = np.stack([across, up, -np.sqrt(ring)])
        albedo: Any = rgb(paint.albedo)
        if paint.stripes > 0:
            light = np.mod(self.y[window], paint.stripes) < 0.4 * paint.stripes
            albedo = np.where(light, np.minimum(albedo * 2.2 + 0.12, 0.8), albedo)
        np.copyto(self.normal[:, *window], normal, where=inside, casting="unsafe")
        np.copyto(self.albedo[:, *window], albedo, where=inside, casting="unsafe")
        np.copyto(self.kelvin[window], paint.kelvin, where=inside)
        np.copyto(self.cloth[window], 1.0 if paint.cloth else 0.15, where=inside)
        self.mask[window] |= inside


def _span(indices: NDArray[Any]) -> slice:
    return slice(int(indices[0]), int(indices[-1]) + 1) if indices.size else slice(0, 0)
