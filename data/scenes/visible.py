"""The visible camera: light on materials, fog, mirror images on wet roads, bloom, glare, exposure and sensor noise."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from duskfuse.data.scenes.camera import Camera
from duskfuse.data.scenes.climate import Climate
from duskfuse.data.scenes.kinds import SceneClass
from duskfuse.data.scenes.surfaces import Surfaces, rgb
from duskfuse.data.scenes.texture import Plane

Picture = NDArray[np.float32]

FIVE_PERCENT = 3.0
"""−ln 0.05: extinction times visibility (Koschmieder)."""
_BLOOM = ((1.5, 0.10), (5.0, 0.04), (16.0, 0.022))
"""Width in 1/320 of the picture's side, and part of the light that is scattered so far."""
_GLARE_RADIUS = 0.05
"""Of a glare source's saturated core, as part of the picture's diagonal."""

_CONTRAST = 1.1
"""Strength of the S-curve of the picture."""


def scene_light(surfaces: Surfaces, climate: Climate, sun: Plane, shade: Plane, lamps: Picture) -> Picture:
    """Linear light that leaves the surfaces, ``[3, H, W]``, before air and lens."""
    sky = rgb(climate.skylight)
    up = surfaces.normal[1]
    open_sky = (0.62 + 0.38 * up) * shade
    incoming = sun * rgb(climate.sunlight)
    incoming += open_sky * sky
    if climate.dark:
        incoming += lamps * shade
    light = surfaces.albedo * incoming
    light += surfaces.emission
    mirrored = surfaces.gloss * np.clip(0.55 + 0.6 * up, 0.15, 1.0) * (surfaces.seg != SceneClass.ROAD)
    light += mirrored * (sky * 1.9)
    if climate.dark:
        light += (0.5 * surfaces.gloss * (surfaces.seg != SceneClass.ROAD)) * lamps
    return light


def mirror_on_road(light: Picture, surfaces: Surfaces, camera: Camera) -> None:
    """Add to glossy road what it mirrors: the picture above the horizon upside down, smeared downwards."""
    horizon = int(np.clip(round(camera.horizon), 1, camera.rows - 1))
    rows = min(horizon, camera.rows - horizon)
    road = slice(horizon, horizon + rows)
    grazing = np.linspace(1, 0, rows, dtype=np.float32)[:, None]  # water mirrors less the steeper the view
    strength = surfaces.gloss[road] * (surfaces.seg[road] == SceneClass.ROAD) * grazing
    for plane in light:
        above = np.minimum(plane[horizon - rows : horizon][::-1], 6.0)
        small = cv2.resize(above, (max(1, camera.columns // 2), max(1, rows // 8)), interpolation=cv2.INTER_AREA)
        wide, high = max(0.6, camera.columns / 640), max(0.6, camera.rows / 280)
        small = cv2.GaussianBlur(small, (0, 0), sigmaX=wide, sigmaY=high)
        plane[road] += strength * cv2.resize(small, (camera.columns, rows), interpolation=cv2.INTER_LINEAR)


def through_air(light: Picture, surfaces: Surfaces, climate: Climate) -> Picture:
    """Fade with distance into the airlight (Koschmieder): L = L₀ t + A (1 − t), t = exp(−β d)."""
    clear = np.exp(surfaces.depth * np.float32(-FIVE_PERCENT / climate.visibility))
    if climate.visibility > 100:  # clear weather: the sky is already what is behind the air
        clear = np.where(surfaces.seg == SceneClass.SKY, np.float32(1), clear)
    airlight = rgb(climate.skylight) * np.float32(1.9)
    faded: Picture = airlight + clear * (light - airlight)
    return faded


def expose(
    light: Picture, climate: Climate, glare: list[tuple[float, float, float]], rng: np.random.Generator
) -> NDArray[np.uint8]:
    """What the camera makes of the light: lens blur, bloom, glare, auto-exposure, noise and 8-bit sRGB-like tone.

    ``light`` is ``[3, H, W]``; ``glare`` holds column, row and strength of blinding sources.
    """
    gain = _gain(light, climate)
    light = np.stack([_lens(plane, climate) for plane in np.minimum(light, 60.0)])
    signal = light * np.float32(gain) + _veil(light.shape[1:], glare)
    shot, read = (0.0010, 0.0011) if climate.dark else (0.00045, 0.0012)
    noise = rng.standard_normal(signal.shape, np.float32)
    noise = 0.75 * noise + 0.5 * noise.mean(axis=0) * np.float32(np.sqrt(3))
    signal += noise * np.sqrt(shot * np.minimum(signal, 2) + read**2)
    return _tone(signal)


def _gain(light: Picture, climate: Climate) -> float:
    """Auto-exposure: day aims at a mean, night keeps the dark dark."""
    if climate.dark:
        return 2.9
    mean = float(np.mean(np.minimum(light[1], 1.2)))
    return float(np.clip(0.44 / max(mean, 1e-3), 0.9, 3.0))


def _lens(plane: Plane, climate: Climate) -> Plane:
    """Blur a little, and scatter the light of bright lamps in three widths."""
    height, width = plane.shape
    step = 4 if min(height, width) >= 128 else 2
    small_size = (max(1, width // step), max(1, height // step))
    bright = cv2.resize(
        np.clip(plane - np.float32(0.5 if climate.dark else 1.3), 0, None), small_size, interpolation=cv2.INTER_AREA
    )
    scale = max(small_size) * step / 320 / step * (1.6 if climate.visibility < 100 else 1.0)
    total = np.zeros_like(bright)
    for wide, part in _BLOOM:
        total += part * cv2.GaussianBlur(bright, (0, 0), max(0.5, wide * scale))
    total *= np.float32(1.6 if climate.dark else 1.0)
    blurred: Plane = cv2.GaussianBlur(plane, (0, 0), 0.5)
    blurred += cv2.resize(total, (width, height), interpolation=cv2.INTER_LINEAR)
    return blurred


def _veil(size: tuple[int, ...], glare: list[tuple[float, float, float]]) -> Any:
    """Veiling glare around blinding sources, with faint rays and ghosts of the lens."""
    if not glare:
        return np.float32(0)
    height, width = size
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    diagonal = float(np.hypot(height, width))
    total = np.zeros((3, height, width), np.float32)
    for column, row, strength in glare:
        dx, dy = columns - column, rows - row
        square = (dx * dx + dy * dy) / np.float32((_GLARE_RADIUS * diagonal) ** 2)
        angle = np.arctan2(dy, dx)
        rays = 1 + 0.35 * np.cos(6 * angle + np.float32(0.4)) ** 8 + 0.15 * np.cos(11 * angle + np.float32(1.1)) ** 12
        core = np.float32(strength) * rays / (1 + square) ** np.float32(1.45)
        total += core * rgb((1.0, 0.95, 0.86))
        for k, (along, radius, colour) in enumerate(_GHOSTS):
            x, y = width / 2 + along * (width / 2 - column), height / 2 + along * (height / 2 - row)
            distance = np.hypot(columns - x, rows - y) / (radius * diagonal)
            ghost = np.clip((1 - distance) * 12, 0, 1) * np.clip(0.4 + 0.6 * distance**4, 0, 1)
            total += (0.012 * strength / (1 + 0.4 * k) * ghost) * rgb(colour)
    return total


_GHOSTS = (
    (0.45, 0.018, (0.6, 1.0, 0.7)),
    (0.85, 0.04, (1.0, 0.6, 0.5)),
    (1.25, 0.027, (0.5, 0.7, 1.0)),
)
"""Place between the source and its mirror image at the centre, radius (of the diagonal) and colour."""


def _tone(signal: Picture) -> NDArray[np.uint8]:
    """Roll the highlights off (extended Reinhard, white at 3.2), apply gamma 2.2 and a mild S-curve."""
    signal = np.clip(signal, 0, 12)
    tone = np.clip(signal * (1 + signal * np.float32(1 / 3.2**2)) / (1 + signal), 0, 1) ** np.float32(1 / 2.2)
    tone += np.float32(_CONTRAST) * tone * (1 - tone) * (tone - np.float32(0.45))
    planes = np.rint(np.clip(tone, 0, 1) * 255).astype(np.uint8)
    picture: NDArray[np.uint8] = cv2.merge([*planes])
    return picture
