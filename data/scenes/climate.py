"""Light, weather and temperatures of a scene, and what every object is painted with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from duskfuse.data.scenes.camera import Camera
from duskfuse.data.scenes.kinds import Condition, SceneClass
from duskfuse.data.scenes.surfaces import Surfaces


@dataclass(frozen=True)
class Climate:
    """Light and weather; temperatures in kelvin, light in units in which a sunlit white sheet has about 1."""

    dark: bool
    """Night: lamps are lit."""
    lamps_on: bool
    """Vehicles have their lights on."""
    air: float
    sun: tuple[float, float, float] | None
    """Unit vector towards the sun; None where none is seen."""
    sunlight: tuple[float, float, float]
    skylight: tuple[float, float, float]
    """Light of the whole sky on a surface that faces it."""
    sun_heat: float
    """Kelvin by which full sunlight warms a dark surface."""
    sky_cold: float
    """Kelvin by which the zenith looks colder than the air to the infrared camera."""
    clouds: float
    """From 0, clear, to 1, overcast."""
    visibility: float
    """Metres at which the contrast has fallen to 5 % (Koschmieder)."""
    wet: bool
    """The road mirrors lamps."""

    @property
    def ground_heat(self) -> float:
        """Kelvin by which stone keeps warmer than the air."""
        return 3.0 if self.dark else 1.2


@dataclass(frozen=True)
class Light:
    """A lamp; its illuminance on a facing surface is ``colour`` / distance²."""

    position: tuple[float, float, float]
    colour: tuple[float, float, float]
    aim: tuple[float, float, float] | None = None
    """Unit vector of the beam; None shines everywhere."""
    spread: float = 0.9
    """Cosine of the half angle of the beam."""


@dataclass(frozen=True)
class Blocker:
    """An upright prism that throws a shadow: its outline on the ground, ``[N, 2]`` of X and Z, and its height range."""

    outline: NDArray[Any]
    bottom: float
    top: float


@dataclass(frozen=True)
class Canvas:
    """What objects are painted on and with."""

    surfaces: Surfaces
    camera: Camera
    climate: Climate


class Thing(Protocol):
    """An object of the world."""

    @property
    def depth(self) -> float:
        """Metres of its nearest point along the view."""

    @property
    def seg(self) -> SceneClass:
        """What it is called in the label map."""

    def paint(self, canvas: Canvas, instance: int) -> None:
        """Paint itself where it is not hidden."""

    def blockers(self) -> list[Blocker]:
        """What of it throws shadows."""


def rectangle(x0: float, x1: float, z0: float, z1: float) -> NDArray[np.float64]:
    """Outline of an upright box for :class:`Blocker`."""
    return np.array([[x0, z0], [x1, z0], [x1, z1], [x0, z1]])


def disc(x: float, z: float, radius: float) -> NDArray[np.float64]:
    """Outline of an upright cylinder for :class:`Blocker`."""
    angle = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    return np.stack([x + radius * np.cos(angle), z + radius * np.sin(angle)], axis=1)


def draw_climate(rng: np.random.Generator, condition: Condition) -> Climate:
    """Draw the weather of a condition. Glare is half low sun, half night with blinding headlights."""
    dark = condition is Condition.NIGHT or (condition is Condition.GLARE and bool(rng.random() < 0.5))
    if dark:
        return Climate(
            dark=True,
            lamps_on=True,
            air=rng.uniform(279, 288),
            sun=None,
            sunlight=(0, 0, 0),
            skylight=(0.0035, 0.0042, 0.0065),
            sun_heat=0,
            sky_cold=rng.uniform(14, 30),
            clouds=rng.uniform(0, 0.7),
            visibility=rng.uniform(700, 2000),
            wet=bool(rng.random() < 0.5),
        )
    if condition is Condition.FOG:
        grey = rng.uniform(0.34, 0.5)
        return Climate(
            dark=False,
            lamps_on=True,
            air=rng.uniform(277, 286),
            sun=None,
            sunlight=(0, 0, 0),
            skylight=(grey, grey * 1.02, grey * 1.06),
            sun_heat=0,
            sky_cold=rng.uniform(3, 7),
            clouds=1,
            visibility=rng.uniform(32, 85),
            wet=True,
        )
    low = condition is Condition.GLARE
    azimuth = rng.uniform(-0.12, 0.12) if low else rng.choice([-1, 1]) * rng.uniform(0.7, 2.6)
    elevation = rng.uniform(0.07, 0.16) if low else rng.uniform(0.5, 1.05)
    warm = rng.uniform(0.6, 0.75) if low else rng.uniform(0.86, 0.96)
    clouds = rng.uniform(0, 0.45) if low else rng.uniform(0.05, 0.8)
    strength = 1.0 - 0.5 * clouds
    return Climate(
        dark=False,
        lamps_on=False,
        air=rng.uniform(284, 293),
        sun=(
            float(np.sin(azimuth) * np.cos(elevation)),
            float(np.sin(elevation)),
            float(np.cos(azimuth) * np.cos(elevation)),
        ),
        sunlight=(strength, strength * (0.5 + 0.5 * warm), strength * warm * warm),
        skylight=(0.20, 0.24, 0.31) if low else (0.21, 0.25, 0.32),
        sun_heat=(2.5 if low else 5.5) * strength,
        sky_cold=rng.uniform(14, 30) * (1 - 0.6 * clouds),
        clouds=clouds,
        visibility=rng.uniform(500, 1200) if low else rng.uniform(1200, 4000),
        wet=low and bool(rng.random() < 0.4),
    )
