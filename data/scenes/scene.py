"""Render a scene: one world, painted once, seen by both cameras, with exact labels, boxes and masks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from duskfuse.data.errors import InputError
from duskfuse.data.scenes.climate import Canvas
from duskfuse.data.scenes.ground import paint_sky, paint_skyline
from duskfuse.data.scenes.kinds import BOX_CLASS_OF, BoxClass, Condition, SceneClass
from duskfuse.data.scenes.lighting import contact_shade, lamp_light, positions, sun_part
from duskfuse.data.scenes.surfaces import NOBODY, Surfaces
from duskfuse.data.scenes.thermal import apparent_kelvin, sense
from duskfuse.data.scenes.visible import expose, mirror_on_road, scene_light, through_air
from duskfuse.data.scenes.world import World, compose

_Number = TypeVar("_Number", bound=np.generic)

SMALLEST_SIDE = 32
"""Pixels: a smaller picture would show nobody."""

_OVERSAMPLING = 1.25
"""Surfaces are painted this much finer than the pictures."""
_LEAST_AREA = 5e-5
"""Objects of which less than this part of the picture (and less than 4 pixels) is seen get no box."""


@dataclass(frozen=True)
class Scene:
    """An aligned pair with what is in it."""

    ir: NDArray[np.uint8]
    """Infrared, white-hot, ``[H, W]``."""
    vis: NDArray[np.uint8]
    """Visible RGB, ``[H, W, 3]``."""
    seg: NDArray[np.uint8]
    """:class:`~duskfuse.data.scenes.kinds.SceneClass` of every pixel, ``[H, W]``."""
    boxes: NDArray[np.float32]
    """``[N, 5]``: :class:`~duskfuse.data.scenes.kinds.BoxClass`, centre x and y, width, height, normalised to [0, 1].

    Tight around what is seen of the object."""
    masks: NDArray[np.bool_]
    """What is seen of each boxed object, ``[N, H, W]``, in the order of the boxes."""
    condition: Condition
    name: str


def render_scene(seed: int, *, size: tuple[int, int] = (480, 640), condition: Condition | None = None) -> Scene:
    """Render the scene of a seed; the same arguments give the same bytes.

    Args:
        seed: not negative. Without ``condition`` consecutive seeds go round the conditions.
        size: (height, width) of the pictures, at least 32 pixels a side; the content scales with it.
        condition: light and weather.

    Raises:
        InputError: negative seed or too small a size.
    """
    _check(seed, size)
    condition = [*Condition][seed % len(Condition)] if condition is None else Condition(condition)
    rng = np.random.default_rng([seed, [*Condition].index(condition)])
    fine_size = round(size[0] * _OVERSAMPLING), round(size[1] * _OVERSAMPLING)
    world = compose(rng, condition, fine_size)
    surfaces, owners = _paint(world)
    ir, vis = _photograph(world, surfaces, size, rng)
    boxes, masks = _objects(_sampled(surfaces.instance, size), owners)
    seg = _sampled(surfaces.seg, size)
    return Scene(ir, vis, seg, boxes, masks, condition, f"scene_{seed:04d}_{condition}")


def _check(seed: int, size: tuple[int, int]) -> None:
    if seed < 0:
        raise InputError(f"seed {seed}", rule="seeds are whole numbers from 0", remedy="give 0 or more")
    if min(size) < SMALLEST_SIDE:
        raise InputError(
            f"scene of {size[1]}×{size[0]} pixels",
            rule=f"scenes need at least {SMALLEST_SIDE} pixels a side",
            remedy="render a larger one and crop it",
        )


def _paint(world: World) -> tuple[Surfaces, dict[int, SceneClass]]:
    """The surfaces that the cameras see, and the class of every instance number."""
    surfaces = Surfaces(world.camera.rows, world.camera.columns)
    canvas = Canvas(surfaces, world.camera, world.climate)
    paint_sky(canvas, world.sky_shift)
    world.ground.paint(canvas)
    paint_skyline(canvas, world.sky_shift[0])
    for house in sorted(world.houses, key=lambda house: house.near):  # near ones first: they hide most of the others
        house.paint(canvas)
    owners: dict[int, SceneClass] = {}
    for number, thing in enumerate(sorted(world.things, key=lambda thing: -thing.depth)):
        boxed = thing.seg in BOX_CLASS_OF
        if boxed:
            owners[number] = thing.seg
        thing.paint(canvas, number if boxed else NOBODY)
    return surfaces, owners


def _photograph(
    world: World, surfaces: Surfaces, size: tuple[int, int], rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The infrared and the visible picture."""
    camera, climate = world.camera, world.climate
    position = positions(surfaces, camera)
    houses = [blocker for house in world.houses for blocker in house.blockers()]
    others = [blocker for thing in world.things for blocker in thing.blockers()]
    sun = sun_part(surfaces, position, climate, houses, others)
    shade = contact_shade(position, surfaces, others)
    lamps = lamp_light(surfaces, position, world.lights)
    light = scene_light(surfaces, climate, sun, shade, lamps)
    mirror_on_road(light, surfaces, camera)
    light = through_air(light, surfaces, climate)
    kelvin = apparent_kelvin(surfaces, climate, sun)
    *light_planes, kelvin = (cv2.resize(plane, size[::-1], interpolation=cv2.INTER_AREA) for plane in (*light, kelvin))
    vis = expose(np.stack(light_planes), climate, _glare_on_picture(world, size), rng)
    return sense(kelvin, climate, rng), vis


def _glare_on_picture(world: World, size: tuple[int, int]) -> list[tuple[float, float, float]]:
    """Column, row and strength of the blinding sources."""
    if not world.glare:
        return []
    pixels = world.camera.project(np.array(world.glare)) * (size[1] / world.camera.columns)
    strength = 7.0 if len(world.glare) == 1 else 4.0
    return [(float(column), float(row), strength) for column, row in pixels]


def _sampled(plane: NDArray[_Number], size: tuple[int, int]) -> NDArray[_Number]:
    """The fine plane at the centres of the pixels of ``size``, uninterpolated."""
    rows, columns = (
        np.floor((np.arange(target) + 0.5) * fine / target).astype(np.intp)
        for target, fine in zip(size, plane.shape, strict=True)
    )
    return np.ascontiguousarray(plane[rows[:, None], columns[None]])


def _objects(
    instance: NDArray[np.int16], owners: dict[int, SceneClass]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Boxes ``[N, 5]`` and masks ``[N, H, W]`` of the objects that are seen, near ones last."""
    height, width = instance.shape
    least = max(4.0, _LEAST_AREA * height * width)
    boxes: list[tuple[float, ...]] = []
    masks: list[NDArray[np.bool_]] = []
    for number, seg in owners.items():
        mask = instance == number
        if np.count_nonzero(mask) < least:
            continue
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
        kind: BoxClass = BOX_CLASS_OF[seg]
        boxes.append(
            (
                float(kind),
                (left + right) / 2 / width,
                (top + bottom) / 2 / height,
                (right - left) / width,
                (bottom - top) / height,
            )
        )
        masks.append(mask)
    stacked = np.stack(masks) if masks else np.zeros((0, height, width), np.bool_)
    return np.array(boxes, np.float32).reshape(-1, 5), stacked
