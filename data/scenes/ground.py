"""Sky, far skyline, road with its marks, sidewalks and verges."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from duskfuse.data.scenes.climate import Canvas, Climate
from duskfuse.data.scenes.kinds import SceneClass
from duskfuse.data.scenes.surfaces import FAR, Colour, rgb
from duskfuse.data.scenes.texture import Plane, cell_value, noise_tile, sample

HORIZON_DEPTH = 350.0
"""Metres: the ground ends here, behind the skyline."""

UP = (0.0, 1.0, 0.0)


class Paving(StrEnum):
    """What a sidewalk is made of."""

    SLABS = "slabs"
    BRICKS = "bricks"
    ASPHALT = "asphalt"


@dataclass(frozen=True)
class Ground:
    """A straight road, its centre line at X = ``centre``, with sidewalks and verges on both sides; metres."""

    centre: float
    half_width: float
    sidewalk: float
    verges: tuple[float, float]
    """Width of the grass behind the left and the right sidewalk, before the building line."""
    lanes: int
    lane_width: float
    yellow: bool
    """The centre line is yellow."""
    crossing: float | None
    """Z of a zebra crossing."""
    asphalt: float
    """Albedo."""
    paving: Paving
    wear: float
    """How worn the marks are, 0 to 1."""
    shift: tuple[float, float]
    """Where in the noise tiles this road lies."""

    def paint(self, canvas: Canvas) -> None:
        """Paint everything below the horizon."""
        camera = canvas.camera
        top = int(np.floor(camera.horizon)) + 1
        if top >= camera.rows:
            return
        window = slice(max(top, 0), camera.rows), slice(0, camera.columns)
        steepness = np.minimum(camera.ray_y(window[0]), -camera.height / HORIZON_DEPTH)
        z = (-camera.height / steepness).astype(np.float32)
        x = (camera.ray_x(window[1]) * z - self.centre).astype(np.float32)
        grain = _Grain(
            x + np.float32(self.shift[0]), z + np.float32(self.shift[1]), camera.focal * camera.height / z**2
        )
        beyond = np.abs(x) - self.half_width
        self._paint_verge(canvas, window, z, grain)
        on_sidewalk = beyond < self.sidewalk
        self._paint_sidewalk(canvas, window, on_sidewalk, x, z, grain)
        self._paint_road(canvas, window, beyond < 0, x, z, grain)

    def _paint_road(
        self, canvas: Canvas, window: tuple[slice, slice], mask: NDArray[np.bool_], x: Plane, z: Plane, grain: _Grain
    ) -> None:
        climate = canvas.climate
        tracks = np.cos(2 * np.pi * x / self.lane_width * 2) * np.float32(0.5)
        patches = self._patches(x, z)
        value = self.asphalt * (1 + 0.10 * grain.coarse + 0.12 * grain.middle + 0.20 * grain.fine + 0.10 * tracks)
        value *= 1 - 0.28 * patches
        cracks = grain.cracks * (1 - patches)
        value *= 1 - 0.55 * cracks
        kelvin = (
            climate.air
            + climate.ground_heat
            + 0.22 * grain.coarse
            + 0.2 * grain.middle
            + 0.15 * grain.fine
            + 0.4 * tracks
        )
        kelvin += 0.8 * patches - 0.6 * cracks
        albedo = np.clip(value, 0.015, 1) * rgb((1.0, 0.99, 0.97))
        paint, yellow = self._marks(x, z)
        paint = paint * np.clip(1 - self.wear * np.clip(0.7 + grain.middle + 0.6 * grain.fine, 0, 1.2), 0.1, 1)
        colour = np.where(yellow, rgb((0.62, 0.42, 0.06)), rgb((0.68, 0.68, 0.66)))
        albedo = albedo + paint * (colour - albedo)
        kelvin -= 1.3 * paint
        gloss = np.float32(0.22 if climate.wet else 0.03) * np.clip(1 + 0.8 * grain.coarse, 0.1, 2)
        canvas.surfaces.paint(
            window, mask, depth=z, seg=SceneClass.ROAD, albedo=albedo, kelvin=kelvin, normal=UP, gloss=gloss
        )

    def _patches(self, x: Plane, z: Plane) -> Plane:
        """Repaired rectangles, 1 inside."""
        i, j = np.floor((x + 40) / 2.3), np.floor((z + self.shift[1]) / 5.5)
        chosen = cell_value(i, j, 1) > 0.86
        u, v = (x + 40) / 2.3 - i, (z + self.shift[1]) / 5.5 - j
        margin = 0.05 + 0.2 * cell_value(j, i, 2)
        inside: Plane = (chosen & (np.minimum(u, v) > margin) & (np.maximum(u, v) < 1 - margin)).astype(np.float32)
        return inside

    def _marks(self, x: Plane, z: Plane) -> tuple[Plane, NDArray[np.bool_]]:
        """Cover of the paint on the road, and where it is yellow."""
        edge = np.abs(np.abs(x) - (self.half_width - 0.25)) < 0.07
        dashes = np.mod(z + self.shift[1], 9.0) < 4.0
        lines = np.zeros(x.shape, np.bool_)
        for k in range(1, self.lanes):
            lines |= (np.abs(x + (k - self.lanes / 2) * self.lane_width) < 0.075) & dashes
        middle = np.zeros(x.shape, np.bool_)
        if self.lanes % 2 == 0:
            inner = np.abs(x)
            middle = (np.abs(inner - 0.12) < 0.06) if self.yellow else (inner < 0.075) & dashes
            lines &= inner > 0.3
        marks = edge | lines | middle
        if self.crossing is not None:
            away = z - self.crossing
            bars = (np.mod(x + 50, 1.0) < 0.5) & (np.abs(away) < 1.6) & (np.abs(x) < self.half_width - 0.3)
            stop = (np.abs(away + 3.2) < 0.22) & (x > 0.2) & (x < self.half_width - 0.3)
            clear = np.abs(away) > 2.4
            marks, middle = (marks & clear) | bars | stop, middle & clear
        return marks.astype(np.float32), middle & self.yellow

    def _paint_sidewalk(
        self, canvas: Canvas, window: tuple[slice, slice], mask: NDArray[np.bool_], x: Plane, z: Plane, grain: _Grain
    ) -> None:
        climate = canvas.climate
        beyond = np.abs(x) - self.half_width
        curb, gutter = beyond < 0.22, beyond < 0.05
        value, colour = self._paved(x, z, grain)
        value = np.where(curb, 0.42 + 0.06 * grain.middle - 0.14 * (np.mod(z, 1.2) < 0.04), value)
        value = np.where(gutter, 0.07, value) * (1 + 0.16 * grain.fine + 0.08 * grain.coarse)
        tint = np.where(curb, np.float32(1), rgb(colour))
        kelvin = (
            climate.air + 0.6 * climate.ground_heat + 0.2 * grain.coarse + 0.2 * grain.middle + 2.5 * (value - 0.25)
        )
        kelvin = kelvin + 1.2 * (curb & ~gutter)
        canvas.surfaces.paint(
            window,
            mask,
            depth=z,
            seg=SceneClass.SIDEWALK,
            albedo=np.clip(value, 0.03, 1) * tint,
            kelvin=kelvin,
            normal=UP,
            gloss=0.06 if climate.wet else 0.0,
        )

    def _paved(self, x: Plane, z: Plane, grain: _Grain) -> tuple[Plane, Colour]:
        if self.paving is Paving.ASPHALT:
            return 0.17 + 0.03 * grain.middle, (1.0, 0.98, 0.95)
        long, wide = (0.6, 0.6) if self.paving is Paving.SLABS else (0.42, 0.21)
        j = np.floor(z / wide)
        along = (x + 60) / long + (0.5 * np.mod(j, 2) if self.paving is Paving.BRICKS else 0)
        i = np.floor(along)
        joint = np.minimum(np.abs(along - i - 0.5) * long, np.abs(z / wide - j - 0.5) * wide)
        joint = (np.abs(along - i - 0.5) > 0.5 - 0.012 / long) | (np.abs(z / wide - j - 0.5) > 0.5 - 0.012 / wide)
        sharp = grain.sharpness(wide)
        value = 0.32 + (0.09 * (cell_value(i, j, 3) - 0.5) - 0.14 * joint) * sharp
        return value, ((1.0, 0.97, 0.92) if self.paving is Paving.SLABS else (1.0, 0.68, 0.55))

    def _paint_verge(self, canvas: Canvas, window: tuple[slice, slice], z: Plane, grain: _Grain) -> None:
        blades = np.clip(1 + 0.45 * grain.fine + 0.30 * grain.middle + 0.15 * grain.coarse, 0.2, 2)
        dry = np.clip(0.3 + 0.35 * grain.coarse + 0.2 * grain.middle, 0, 1)
        green, straw = rgb((0.075, 0.13, 0.03)), rgb((0.20, 0.18, 0.075))
        climate = canvas.climate
        canvas.surfaces.paint(
            window,
            None,
            depth=z,
            seg=SceneClass.VEGETATION,
            albedo=(green + dry * (straw - green)) * blades,
            kelvin=climate.air
            - (1.2 if climate.dark else -0.4)
            + 0.4 * grain.middle
            + 0.3 * grain.coarse
            + 0.25 * grain.fine,
            normal=UP,
            emissivity=0.98,
        )


class _Grain:
    """Noise over the ground in three sizes, each faded out where it is finer than a pixel."""

    def __init__(self, x: Plane, z: Plane, rows_per_metre: Plane) -> None:
        self._rows_per_metre = rows_per_metre
        self.fine = sample(noise_tile(64, 1), x / 2.2, z / 2.2) * self.sharpness(0.05)
        self.middle = sample(noise_tile(8, 2), x / 7, z / 7) * self.sharpness(0.5)
        self.coarse = sample(noise_tile(4, 3), x / 31, z / 47)
        ridges = np.abs(sample(noise_tile(4, 4), x / 9, z / 9))
        here = sample(noise_tile(4, 5), x / 40, z / 40) > 0.5
        self.cracks = (np.clip(1 - ridges * 22, 0, 1) * here * self.sharpness(0.1)).astype(np.float32)

    def sharpness(self, size: float) -> Plane:
        """How much of a pattern of ``size`` metres the rows resolve, 0 to 1."""
        resolved: Plane = np.clip(self._rows_per_metre * size, 0, 1).astype(np.float32)
        return resolved


def paint_sky(canvas: Canvas, shift: tuple[float, float]) -> None:
    """Paint the sky behind everything: gradient, clouds, stars, and the sun where it is in the picture."""
    camera, climate = canvas.camera, canvas.climate
    window = slice(0, int(np.clip(camera.horizon + 2, 0, camera.rows))), slice(0, camera.columns)
    up, side = camera.ray_y(window[0]), camera.ray_x(window[1])
    length = np.sqrt(1 + up**2 + side**2)
    rise = np.clip(up / length, 0.0, 1)
    cover = _clouds(up, side, climate, shift)
    canvas.surfaces.paint(
        window,
        None,
        depth=FAR,
        seg=SceneClass.SKY,
        albedo=0.0,
        emission=_sky_light(climate, rise, cover, up, side, length),
        kelvin=climate.air - 3 - climate.sky_cold * np.sqrt(rise) * (1 - 0.45 * cover) + 0.3 * cover,
        emissivity=1.0,
    )


def _clouds(up: Plane, side: Plane, climate: Climate, shift: tuple[float, float]) -> Plane:
    """Cover of a flat cloud layer seen from below, 0 to 1."""
    away = 1 / np.maximum(up, 0.03)
    billow = sample(noise_tile(2, 6), side * away * 0.11 + shift[0], away * 0.16 + shift[1])
    threshold = 1.1 - 2.6 * climate.clouds
    cover: Plane = np.clip((billow - threshold) * 0.7, 0, 1) * np.clip(up * 14, 0, 1)
    return cover


def _sky_light(climate: Climate, rise: Plane, cover: Plane, up: Plane, side: Plane, length: Plane) -> Plane:
    sky = rgb(climate.skylight)
    if climate.dark:
        glow = sky * 1.0 * rgb((1.5, 1.15, 0.9))
        light = glow * np.exp(-rise * 5) + sky * 0.15 + cover * glow * 0.35
        stars = np.random.default_rng(9).random((up.shape[0] // 2 + 1, side.shape[1] // 2 + 1), np.float32)
        star = stars.repeat(2, axis=0).repeat(2, axis=1)[: up.shape[0], : side.shape[1]]
        return light + ((star > 0.9975) * (1 - cover) * 0.05 * rise * star)
    zenith, haze = sky * rgb((0.55, 0.95, 1.75)), sky * rgb((2.3, 2.25, 2.2))
    if climate.sun is None:
        return sky * np.float32(2.1) * (0.96 + 0.08 * rise + 0 * side)
    light = haze + (zenith * 1.25 - haze) * (1 - np.exp(-rise * 4.5))
    bright = rgb((0.98, 0.97, 0.96)) * (0.95 - 0.3 * np.clip(cover - 0.5, 0, 1))
    light = light + cover * 0.9 * (bright - light)
    towards = np.clip((side * climate.sun[0] + up * climate.sun[1] + climate.sun[2]) / length, 0, 1)
    sun = rgb(climate.sunlight)
    halo = 0.5 * towards**60 + 2.5 * towards**900 + 60 * (towards > 0.99985)
    shining: Plane = light + halo * sun
    return shining


def paint_skyline(canvas: Canvas, shift: float) -> None:
    """Paint far houses and treetops along the horizon."""
    camera, climate = canvas.camera, canvas.climate
    angle = camera.ray_x(slice(0, camera.columns))
    for depth, seg in ((300.0, SceneClass.BUILDING), (210.0, SceneClass.VEGETATION)):
        width, hill = angle * depth, sample(noise_tile(4, 7), angle * 0.7 + shift, np.array([[0.3]]))
        if seg is SceneClass.BUILDING:
            block = np.floor((width + shift * 900) / 22 + 0.3 * hill)
            top = 6 + 34 * cell_value(block, block + 5, 4) ** 2
            colour = rgb((0.30, 0.27, 0.25)) * (0.6 + 0.6 * cell_value(block, block, 5))
        else:
            ragged = sample(noise_tile(32, 8), angle * 3 + shift, np.array([[0.6]]))
            top = 5.5 + 2.6 * hill + 1.1 * ragged
            colour = rgb((0.05, 0.085, 0.03))
        rows = slice(int(np.clip(camera.horizon - camera.focal * 45 / depth, 0, camera.rows)), camera.rows)
        rows = slice(rows.start, int(np.clip(camera.horizon + 3, rows.start, camera.rows)))
        height = camera.height + camera.ray_y(rows) * depth
        leaves = 1 + 0.35 * sample(noise_tile(16, 9), width / 40, height / 40)
        emission: Any = (0.0, 0.0, 0.0)
        if climate.dark and seg is SceneClass.BUILDING:
            lit = cell_value(np.floor(width / 2.5) + 0 * height, np.floor(height / 3.2) + 0 * width, 6) > 0.85
            emission = lit * rgb((0.30, 0.22, 0.12))
        canvas.surfaces.paint(
            (rows, slice(0, camera.columns)),
            height < top,
            depth=depth,
            seg=seg,
            albedo=colour * leaves,
            kelvin=climate.air + (0.8 if seg is SceneClass.BUILDING else -0.3) + 0.3 * leaves,
            emission=emission,
        )
