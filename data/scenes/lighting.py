"""How much light reaches every pixel: sun with shadows, sky, and lamps."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from duskfuse.data.scenes.camera import Camera
from duskfuse.data.scenes.climate import Blocker, Climate, Light
from duskfuse.data.scenes.kinds import SceneClass
from duskfuse.data.scenes.surfaces import Surfaces, rgb
from duskfuse.data.scenes.texture import Plane, noise_tile, sample

_MAP_X, _MAP_Z, _PER_METRE = 48.0, 120.0, 6.0
"""The shadow map covers X from −48 to 48 and Z from −8 to 112 metres at 6 texels a metre."""
_MAP_BEHIND = 8.0
_LAMP_REACH = 30.0
"""Metres at which a lamp no longer counts."""
_GROUND = (SceneClass.ROAD, SceneClass.SIDEWALK)


@dataclass(frozen=True)
class Position:
    """World coordinates of every pixel, ``[H, W]``."""

    x: Plane
    y: Plane
    z: Plane


def positions(surfaces: Surfaces, camera: Camera) -> Position:
    """Where the nearest surface of every pixel is."""
    rows, columns = surfaces.depth.shape
    x = camera.ray_x(slice(0, columns)) * surfaces.depth
    y = camera.height + camera.ray_y(slice(0, rows)) * surfaces.depth
    return Position(x, y, surfaces.depth)


def sun_part(
    surfaces: Surfaces, position: Position, climate: Climate, houses: list[Blocker], others: list[Blocker]
) -> Plane:
    """Part of the sunlight that a surface receives, 0 to 1: its angle to the sun times the soft shadow on it.

    A point is moved along the sun's rays to the ground, where it is looked up in a map of shadows. On the ground the
    map holds everything; above it only houses, so that objects do not shade themselves.
    """
    if climate.sun is None:
        return np.zeros_like(position.z)
    sx, sy, sz = climate.sun
    normal = surfaces.normal
    facing = np.clip(normal[0] * sx + normal[1] * sy + normal[2] * sz, 0, 1)
    ground = normal[1] == 1.0
    built = surfaces.seg == SceneClass.BUILDING
    house_map = _shadow_map(houses, climate.sun, soft=1.2)
    full_map = np.minimum(house_map, _shadow_map(others, climate.sun, soft=0.8, dappled=True))
    along = np.minimum(position.y / sy, 60)
    x, z = position.x - sx * along, position.z - sz * along
    u, v = ((x + _MAP_X) * _PER_METRE).astype(np.float32), ((z + _MAP_BEHIND) * _PER_METRE).astype(np.float32)
    lit_ground = cv2.remap(full_map, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    lit_object = cv2.remap(house_map, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    shadow = np.where(ground, lit_ground, np.where(built, np.float32(1), lit_object))
    part: Plane = facing * shadow
    return part


def contact_shade(position: Position, surfaces: Surfaces, others: list[Blocker]) -> Plane:
    """How much of the sky the ground sees beside what stands on it, 0 to 1; 1 away from the ground."""
    touching = [blocker for blocker in others if blocker.bottom < 0.5]
    plane = np.ones((int(_MAP_Z * _PER_METRE), int(2 * _MAP_X * _PER_METRE)), np.float32)
    for blocker in touching:
        cv2.fillPoly(plane, [_texels(blocker.outline)], 0.0)
    plane = cv2.GaussianBlur(plane, (0, 0), 0.28 * _PER_METRE)
    u = ((position.x + _MAP_X) * _PER_METRE).astype(np.float32)
    v = ((position.z + _MAP_BEHIND) * _PER_METRE).astype(np.float32)
    seen = cv2.remap(plane, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    ground = surfaces.normal[1] == 1.0
    shade: Plane = np.where(ground, 0.25 + 0.75 * seen, np.float32(1))
    return shade


def lamp_light(surfaces: Surfaces, position: Position, lights: list[Light]) -> NDArray[np.float32]:
    """Illuminance by all lamps, ``[3, H, W]``: inverse square law, angle of incidence and beam; no shadows."""
    total = np.zeros((3, *position.z.shape), np.float32)
    for light in lights:
        near = position.z[:, :] < light.position[2] + _LAMP_REACH
        rows, columns = np.flatnonzero(near.any(axis=1)), np.flatnonzero(near.any(axis=0))
        if rows.size == 0:
            continue
        window = slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
        strength = _one_lamp(surfaces.normal[:, *window], position, window, light)
        total[:, *window] += strength * rgb(light.colour)
    return total


def _one_lamp(normal: NDArray[np.float32], position: Position, window: tuple[slice, slice], light: Light) -> Plane:
    dx = np.float32(light.position[0]) - position.x[window]
    dy = np.float32(light.position[1]) - position.y[window]
    dz = np.float32(light.position[2]) - position.z[window]
    square = dx * dx + dy * dy + dz * dz + np.float32(0.6)
    inverse = 1 / np.sqrt(square)
    incidence = (normal[0] * dx + normal[1] * dy + normal[2] * dz) * inverse
    reach = np.clip(1 - square / np.float32(_LAMP_REACH**2), 0, 1)
    strength = np.clip(incidence + np.float32(0.04), 0, 1) * reach * reach / square
    if light.aim is not None:
        ax, ay, az = (np.float32(value) for value in light.aim)
        along = -(dx * ax + dy * ay + dz * az) * inverse
        strength *= np.clip((along - np.float32(light.spread)) / np.float32(1 - light.spread), 0, 1)
    lit: Plane = strength
    return lit


def _shadow_map(
    blockers: list[Blocker], sun: tuple[float, float, float], *, soft: float, dappled: bool = False
) -> Plane:
    """Seen from above: 1 in the sun, 0 in the shadow."""
    plane = np.ones((int(_MAP_Z * _PER_METRE), int(2 * _MAP_X * _PER_METRE)), np.float32)
    offset = np.array([sun[0], sun[2]]) / sun[1]
    for blocker in blockers:
        ends = np.concatenate([blocker.outline - offset * blocker.bottom, blocker.outline - offset * blocker.top])
        cv2.fillConvexPoly(plane, cv2.convexHull(_texels(ends)), 0.0 if blocker.bottom < 1 else 0.15)
    if dappled:
        rows, columns = np.indices(plane.shape, np.float32)
        leaves = sample(noise_tile(16, 50), columns / 160, rows / 160)
        plane = np.where((plane > 0.1) & (plane < 0.2) & (leaves > 0.9), np.float32(0.75), plane)
    blurred: Plane = cv2.GaussianBlur(plane, (0, 0), soft)
    return blurred


def _texels(outline: NDArray[np.float64]) -> NDArray[np.int32]:
    texels = (outline + np.array([_MAP_X, _MAP_BEHIND])) * _PER_METRE
    whole: NDArray[np.int32] = np.clip(texels, -3000, 3000).astype(np.int32)
    return whole
