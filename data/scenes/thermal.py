"""The thermal camera: apparent temperature of every pixel, air, optics, sensor noise and automatic gain to 8 bit."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from duskfuse.data.scenes.climate import Climate
from duskfuse.data.scenes.kinds import SceneClass
from duskfuse.data.scenes.surfaces import Surfaces
from duskfuse.data.scenes.texture import Plane
from duskfuse.data.scenes.visible import FIVE_PERCENT

_SUN_WARMS = {
    SceneClass.ROAD: 1.0,
    SceneClass.SIDEWALK: 1.0,
    SceneClass.BUILDING: 0.75,
    SceneClass.VEGETATION: 0.25,
    SceneClass.PERSON: 0.12,
    SceneClass.CAR: 0.7,
    SceneClass.TRUCK: 0.7,
    SceneClass.BICYCLE: 0.5,
    SceneClass.LAMP: 0.5,
    SceneClass.SIGN: 0.5,
}
"""How much of the sun's heat stays in a surface of each class; leaves and people cool themselves."""

_FOG_PART = 0.16
"""Extinction of fog in the thermal band as part of that in the visible band."""
_NETD = 0.07
"""Kelvin of noise per pixel."""
_COLUMN_NOISE = 0.05
"""Kelvin of fixed pattern per column of the sensor."""
_LEAST_SPAN = 14.0
"""Kelvin that the grey levels span at least, so that a dull scene is not all noise."""
_EQUALISED = 0.25
"""Part of the plateau-equalised curve in the gain; the rest is linear."""


def apparent_kelvin(surfaces: Surfaces, climate: Climate, sun: Plane) -> Plane:
    """Temperature that the camera sees, ``[H, W]``: surface warmed by the sun, mirrored sky, and air between."""
    warms = np.zeros(len(SceneClass), np.float32)
    for name, part in _SUN_WARMS.items():
        warms[name] = part
    dark = 1 - surfaces.albedo.mean(axis=0)
    kelvin = (
        surfaces.kelvin + np.float32(climate.sun_heat) * cv2.GaussianBlur(sun, (0, 0), 2.0) * warms[surfaces.seg] * dark
    )
    up = np.clip(0.35 + 0.65 * surfaces.normal[1], 0, 1)
    mirrored = np.float32(climate.air - 2) - np.float32(climate.sky_cold) * up
    kelvin = surfaces.emissivity * kelvin + (1 - surfaces.emissivity) * mirrored
    extinction = FIVE_PERCENT * _FOG_PART / climate.visibility
    clear = np.where(surfaces.seg == SceneClass.SKY, np.float32(1), np.exp(surfaces.depth * np.float32(-extinction)))
    seen: Plane = np.float32(climate.air) + clear * (kelvin - np.float32(climate.air))
    return seen


def sense(kelvin: Plane, climate: Climate, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Optics, noise and automatic gain control: white-hot 8 bit."""
    kelvin = cv2.GaussianBlur(kelvin, (0, 0), 0.8)
    kelvin += np.float32(_NETD) * rng.standard_normal(kelvin.shape, np.float32)
    kelvin += np.float32(_COLUMN_NOISE) * rng.standard_normal((1, kelvin.shape[1]), np.float32)
    return _automatic_gain(kelvin, climate.air)


def _automatic_gain(kelvin: Plane, air: float) -> NDArray[np.uint8]:
    """Map kelvin to grey: a line between robust ends, blended with plateau equalisation of the histogram."""
    floor = np.float32(air - 6)  # the sky is colder; it may clip
    low, high = np.percentile(np.maximum(kelvin, floor), (0.5, 99.8))
    span = max(float(high - low), _LEAST_SPAN)
    line = np.clip((kelvin - np.float32(low - 0.02 * span)) / np.float32(1.04 * span), 0, 1)
    levels = np.rint(line * 255).astype(np.uint8)
    counts = np.bincount(levels.ravel(), minlength=256).astype(np.float64)
    plateau = np.minimum(counts, 3 * counts.sum() / 256)
    equalised = np.cumsum(plateau) / plateau.sum()
    curve = (1 - _EQUALISED) * np.arange(256) / 255 + _EQUALISED * equalised
    curve = (curve - curve[0]) / (curve[-1] - curve[0])
    grey: NDArray[np.uint8] = np.rint(np.interp(line * 255, np.arange(256), curve) * 255).astype(np.uint8)
    return grey
