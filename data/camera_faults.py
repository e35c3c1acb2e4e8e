"""What can go wrong with a camera, as rules on one picture: too little or too much light, noise, haze, a dead sensor.

Light is added up and attenuated where it is linear: the visible picture is decoded by v^2.2 and encoded again. Results
may leave [0, 1]; whoever calls a rule clips them.

The random rules follow common sensor models: photons are counted with a Poisson law, electronics add a Gaussian (Foi et
al., "Practical Poissonian-Gaussian noise modeling and fitting for single-image raw-data", TIP 2008); haze is
Koschmieder's law; the columns of a microbolometer have offsets of their own.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from duskfuse.data.colour import BLUE, GREEN, RED

Picture = NDArray[np.float32]
"""``[H, W]`` or ``[H, W, 3]`` RGB float32 in [0, 1]."""

_GAMMA = 2.2
_AIRLIGHT_QUANTILE = 0.95
_NEAREST = 0.25
"""Distance of the bottom row of a picture, where that of the top row is 1."""


def darken(vis: Picture, rng: np.random.Generator, *, exposure: float, photons: float) -> NDArray[np.floating]:
    """Expose for ``exposure`` of the time: every value counts that part of its photons.

    Args:
        vis: visible RGB.
        rng: of the photons.
        exposure: share of the light that is left.
        photons: how many white caught in the clean picture.
    """
    return _encode(rng.poisson(_decode(vis) * (exposure * photons)) / photons)


def overexpose(vis: Picture, _: np.random.Generator, *, gain: float) -> NDArray[np.floating]:
    """Multiply the light by ``gain``; what is beyond white is lost."""
    return _encode(np.minimum(_decode(vis) * gain, 1))


def add_noise(vis: Picture, rng: np.random.Generator, *, photons: float, deviation: float) -> NDArray[np.floating]:
    """Poisson noise of ``photons`` at white, and Gaussian noise of ``deviation`` on top, in each channel."""
    counted = rng.poisson(vis * photons) / photons
    return counted + rng.normal(0, deviation, vis.shape)


def add_normal_noise(
    picture: Picture, rng: np.random.Generator, *, photons: float, deviation: float
) -> NDArray[np.floating]:
    """`add_noise` in its normal approximation, with one draw per value of variance v / photons + deviation².

    Several times as fast; like it in mean and variance, and in shape as soon as a few photons are counted.
    """
    spread = np.sqrt(picture * np.float32(1 / photons) + np.float32(deviation**2))
    return np.asarray(picture + spread * rng.standard_normal(picture.shape, dtype=np.float32))


def darken_quickly(vis: Picture, rng: np.random.Generator, *, exposure: float, photons: float) -> NDArray[np.floating]:
    """`darken` with the photons of `add_normal_noise`."""
    light = np.asarray(_decode(vis) * np.float32(exposure), np.float32)
    return _encode(np.maximum(add_normal_noise(light, rng, photons=photons, deviation=0), 0))


def add_glare(vis: Picture, rng: np.random.Generator, *, light: float, radius: float) -> NDArray[np.floating]:
    """A lamp shines into the lens from somewhere in the picture; beyond white is lost.

    The light that it scatters falls with the square of the distance r from its middle, L / (1 + (r / radius)²), as in
    the equation of Stiles and Holladay for glare (CIE 135/1, 1999).

    Args:
        vis: visible RGB.
        rng: of the place.
        light: L, where white is 1.
        radius: where half of it is left, in parts of the longer side.
    """
    height, width = vis.shape[:2]
    rows, columns = (
        ((np.arange(side, dtype=np.float32) - rng.uniform(0, side)) / (radius * max(height, width))) ** 2
        for side in (height, width)
    )
    veil = (light / (1 + rows[:, None] + columns)).astype(np.float32)
    return _encode(np.minimum(_decode(vis) + veil[..., None], 1))


def add_haze(vis: Picture, _: np.random.Generator, *, density: float) -> NDArray[np.floating]:
    """Koschmieder's law, I = J t + A (1 − t) with t = exp(−density · d), in linear light.

    The distance d rises evenly from 0.25 in the bottom row to 1 in the top row, as on a road. The airlight A is the
    0.95-quantile of the picture's luminance: haze is as bright as what lights it, also at night.
    """
    height = vis.shape[0]
    distance = np.linspace(1, _NEAREST, height, dtype=np.float32)[:, None, None]
    passed = np.exp(-density * distance)
    airlight = np.quantile(vis @ np.array([RED, GREEN, BLUE], np.float32), _AIRLIGHT_QUANTILE)
    return _encode(_decode(vis) * passed + float(airlight) ** _GAMMA * (1 - passed))


def blur(vis: Picture, _: np.random.Generator, *, sigma: float) -> NDArray[np.floating]:
    """Gaussian blur of ``sigma`` pixels."""
    return np.asarray(cv2.GaussianBlur(vis, (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101))


def add_stripes(ir: Picture, rng: np.random.Generator, *, deviation: float) -> NDArray[np.floating]:
    """Add an offset to every column, drawn from a Gaussian of ``deviation``."""
    return ir + rng.normal(0, deviation, ir.shape[1])


def add_thermal_noise(ir: Picture, rng: np.random.Generator, *, deviation: float) -> NDArray[np.floating]:
    """Add Gaussian noise of ``deviation`` to every pixel."""
    return ir + rng.normal(0, deviation, ir.shape)


def shift(ir: Picture, _: np.random.Generator, *, pixels: float) -> NDArray[np.floating]:
    """Move the picture to the right by whole ``pixels``; the first column is repeated where nothing is left."""
    return ir[:, np.maximum(np.arange(ir.shape[1]) - int(pixels), 0)]


def freeze(picture: Picture, _: np.random.Generator, *, level: float) -> NDArray[np.floating]:
    """One ``level`` everywhere: the camera is dead."""
    return np.full_like(picture, level)


def _decode(picture: Picture) -> NDArray[np.floating]:
    return np.asarray(np.power(picture, _GAMMA))


def _encode(light: NDArray[np.floating]) -> NDArray[np.floating]:
    return np.asarray(np.power(light, 1 / _GAMMA))
