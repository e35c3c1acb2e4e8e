"""Buildings: upright boxes along the road with facades of walls, windows, shops and balconies."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from duskfuse.data.scenes.climate import Blocker, Canvas, rectangle
from duskfuse.data.scenes.kinds import SceneClass
from duskfuse.data.scenes.surfaces import Colour, Window, rgb
from duskfuse.data.scenes.texture import Plane, cell_value, noise_tile, sample


class Wall(StrEnum):
    """What the walls are made of."""

    BRICK = "brick"
    PLASTER = "plaster"
    PANELS = "panels"
    GLASS = "glass"


@dataclass(frozen=True)
class Facade:
    """The pattern of a building's walls; metres."""

    wall: Wall
    colour: Colour
    trim: Colour
    floor: float
    bay: float
    window: tuple[float, float]
    """Width and height of a window as parts of bay and floor."""
    shops: bool
    balconies: bool
    lit: float
    """Part of the windows with light behind them at night."""
    warmth: float
    """Kelvin above what stone has on average."""
    shift: float


@dataclass(frozen=True)
class Building:
    """A box from Z = ``near`` to ``far``; the wall along the road stands at X = ``front``."""

    front: float
    back: float
    near: float
    far: float
    height: float
    facade: Facade

    def paint(self, canvas: Canvas) -> None:
        """Paint the two walls that the camera can see."""
        self._paint_along(canvas)
        if self.near > 1:
            self._paint_across(canvas)

    def blockers(self) -> list[Blocker]:
        """The box."""
        x0, x1 = sorted((self.front, self.back))
        return [Blocker(rectangle(x0, x1, self.near, self.far), 0, self.height)]

    def _paint_along(self, canvas: Canvas) -> None:
        camera = canvas.camera
        near = max(self.near, 1.0)
        corners = [(self.front, y, z) for y in (0, self.height) for z in (near, self.far)]
        window = camera.window(np.array(corners))
        slope = camera.ray_x(window[1])
        with np.errstate(divide="ignore"):
            z = np.where(slope * self.front > 0, self.front / slope, 0).astype(np.float32)
        y = camera.height + camera.ray_y(window[0]) * z
        mask = (z >= near) & (z <= self.far) & (y >= 0) & (y <= self.height)
        normal = (-float(np.sign(self.front)), 0.0, 0.0)
        self._paint_wall(canvas, window, mask, z - self.near, y, np.maximum(z, 0.5), self.far - self.near, normal)

    def _paint_across(self, canvas: Canvas) -> None:
        camera = canvas.camera
        corners = [(x, y, self.near) for y in (0, self.height) for x in (self.front, self.back)]
        window = camera.window(np.array(corners))
        x = camera.ray_x(window[1]) * self.near
        y = camera.height + camera.ray_y(window[0]) * self.near
        x0, x1 = sorted((self.front, self.back))
        mask = (x >= x0) & (x <= x1) & (y >= 0) & (y <= self.height)
        depth = np.full((1, x.shape[1]), self.near, np.float32)
        self._paint_wall(canvas, window, mask, np.abs(x - self.front), y, depth, x1 - x0, (0.0, 0.0, -1.0))

    def _paint_wall(
        self,
        canvas: Canvas,
        window: Window,
        mask: NDArray[np.bool_],
        u: Plane,
        y: Plane,
        depth: Plane,
        length: float,
        normal: Colour,
    ) -> None:
        mask &= depth <= canvas.surfaces.depth[window]
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if rows.size == 0:
            return
        part = slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
        u, y = np.broadcast_arrays(u[:, part[1]], y[part] if y.shape[1] > 1 else y[part[0]])
        depth = depth[:, part[1]]
        seen = (
            slice(window[0].start + part[0].start, window[0].start + part[0].stop),
            slice(window[1].start + part[1].start, window[1].start + part[1].stop),
        )
        planes = _wall_planes(self.facade, canvas, u, y, depth, length, self.height)
        canvas.surfaces.paint(seen, mask[part], depth=depth, seg=SceneClass.BUILDING, normal=normal, **planes)


def _wall_planes(
    facade: Facade, canvas: Canvas, u: Plane, y: Plane, depth: Plane, length: float, height: float
) -> dict[str, Any]:
    """Albedo, temperature, emission, emissivity and gloss at metres ``u`` along and ``y`` up a wall."""
    climate = canvas.climate
    bays = max(1, round(length / facade.bay))
    along, up = u * np.float32(bays / length), y / np.float32(facade.floor)
    i, j = np.floor(along), np.floor(up)
    fu, fv = np.abs(along - i - 0.5), up - j
    pixel = (depth / canvas.camera.focal).astype(np.float32)
    shop = (j < 1) & facade.shops
    half_width = np.where(shop, np.float32(0.43), np.float32(facade.window[0] / 2))
    bottom = np.where(shop, np.float32(0.12), np.float32((1 - facade.window[1]) * 0.55))
    top = np.where(shop, np.float32(0.74), bottom + np.float32(facade.window[1]))
    flat = (y < height - 0.9) & ((j >= 1) | facade.shops)
    glass = (fu < half_width) & (fv > bottom) & (fv < top) & flat
    frame = (fu < half_width + 0.035) & (fv > bottom - 0.03) & (fv < top + 0.03) & flat & ~glass
    bars = glass & ~shop & ((fu < 0.014) | (np.abs(fv - bottom - 0.66 * (top - bottom)) < 0.012))
    glass &= ~bars
    frame |= bars

    albedo, relief = _wall_colour(facade, u, y, pixel)
    albedo = np.where(frame, rgb(facade.trim), albedo)
    ledge = (y > height - 0.8) | ((np.abs(fv) < 0.035) & (j >= 1))
    albedo = np.where(ledge, rgb(facade.trim) * 0.85, albedo)
    awning = shop & (fv > 0.74) & (fv < 0.95) & (fu < 0.46)
    chance = cell_value(i + np.float32(facade.shift), j, 7)
    chance_2 = cell_value(j + np.float32(facade.shift), i, 8)
    if facade.shops:
        hues = np.stack([0.08 + 0.5 * cell_value(i, i + k, 9) ** 2 for k in range(3)])
        albedo = np.where(awning, hues, albedo)
    if facade.balconies:
        rail = (fv > 0.0) & (fv < 0.3) & (j >= 1) & flat & (np.mod(i, 2) == 0)
        albedo = np.where(rail, rgb(facade.trim) * 0.5, albedo)
        glass &= ~rail

    curtain = (chance_2 > 0.55) & (fv > top - (top - bottom) * (0.3 + 0.6 * chance)) & ~shop
    pane = np.where(curtain, 0.16 + 0.12 * chance, 0.025 + 0.03 * chance)
    tint = rgb((0.9, 1.0, 1.05))
    albedo = np.where(glass, pane * tint, albedo)
    wobble = sample(noise_tile(8, 10), u / 17, y / 17)
    gloss = np.where(
        glass, np.clip(0.2 + 0.05 * wobble + 0.2 * (chance - 0.5), 0.03, 0.4) * (1 - 0.5 * curtain), np.float32(0)
    )

    stone = climate.air + facade.warmth + 0.55 * climate.ground_heat + 0.3 * relief + 0.25 * wobble
    stone = stone + 0.9 * ledge + 1.4 * frame
    kelvin = np.where(glass, climate.air + 1.5 + 2.2 * (chance - 0.3) + 1.5 * curtain, stone)
    emission: Any = 0.0
    if climate.dark:
        lit = glass & (chance < np.where(shop, np.float32(0.55), np.float32(facade.lit)))
        kelvin = kelvin + 1.6 * lit
        emission = _window_light(lit, shop, chance_2, curtain, fv, bottom, u, y)
        if facade.shops:
            emission = emission + (awning & (chance < 0.25)) * albedo * 0.4
    return {
        "albedo": albedo,
        "kelvin": kelvin,
        "emission": emission,
        "emissivity": np.where(glass, np.float32(0.72), np.float32(0.94)),
        "gloss": gloss,
    }


def _wall_colour(facade: Facade, u: Plane, y: Plane, pixel: Plane) -> tuple[NDArray[Any], Plane]:
    """Albedo of the bare wall and the noise that made it uneven."""
    coarse = sample(noise_tile(4, 11), u / 23 + facade.shift, y / 23)
    streaks = sample(noise_tile(16, 12), u / 9, y / 60 + facade.shift)
    grain = sample(noise_tile(32, 13), u / 3, y / 3) * np.clip(0.06 / pixel, 0, 1)
    value = 1 + 0.10 * coarse + 0.09 * streaks + 0.08 * grain
    value *= 0.78 + 0.22 * np.clip(y / 3, 0, 1)
    if facade.wall is Wall.BRICK:
        j = np.floor(y / 0.16)
        along = u / 0.44 + 0.5 * np.mod(j, 2)
        i = np.floor(along)
        mortar = (np.abs(along - i - 0.5) > 0.46) | (np.abs(y / 0.16 - j - 0.5) > 0.40)
        value *= 1 + (0.55 * (cell_value(i, j, 14) - 0.5) + 0.35 * mortar) * np.clip(0.07 / pixel, 0, 1)
    elif facade.wall is Wall.PANELS:
        seam = (np.mod(u, 2.4) < 0.05) | (np.mod(y, 1.6) < 0.05)
        value *= 1 - 0.35 * seam * np.clip(0.08 / pixel, 0.1, 1)
        value *= 1 + 0.14 * (cell_value(np.floor(u / 2.4), np.floor(y / 1.6), 15) - 0.5)
    return np.clip(value, 0.25, 1.8) * rgb(facade.colour), coarse + 0.5 * streaks


def _window_light(
    lit: NDArray[np.bool_],
    shop: NDArray[np.bool_],
    chance: Plane,
    curtain: NDArray[np.bool_],
    fv: Plane,
    bottom: NDArray[Any],
    u: Plane,
    y: Plane,
) -> NDArray[Any]:
    warm, cold = rgb((0.95, 0.62, 0.28)), rgb((0.65, 0.8, 0.92))
    colour = warm + np.clip(chance * 1.6 - 0.7, 0, 1) * (cold - warm)
    room = 0.55 + 0.6 * (fv - bottom) + 0.18 * sample(noise_tile(32, 16), u / 6, y / 6)
    strength = (
        np.where(shop, np.float32(0.4), 0.08 + 0.22 * chance)
        * np.where(curtain, np.float32(0.7), np.float32(1))
        * np.clip(room, 0.15, 1.4)
    )
    glow: NDArray[Any] = (lit * strength) * colour
    return glow
