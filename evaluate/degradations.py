"""What can go wrong with a camera, in five severities: degraded copies of a clean pair.

Each degradation changes one picture of the pair by a rule of `duskfuse.data.camera_faults` and leaves the other as it
is. The random numbers depend on the names of the pair and of the degradation alone, so that the order of a sweep, or
leaving out a part of it, changes nothing. Results are clipped to [0, 1].
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from duskfuse.data.camera_faults import (
    Picture,
    add_haze,
    add_noise,
    add_stripes,
    add_thermal_noise,
    blur,
    darken,
    freeze,
    overexpose,
    shift,
)


class Condition(NamedTuple):
    """A degradation, by name, and its severity."""

    degradation: str
    severity: int
    """From 1; 0 is the clean pair."""


CLEAN = Condition("clean", 0)


class Side(StrEnum):
    """Which picture of the pair is degraded."""

    INFRARED = "infrared"
    VISIBLE = "visible"


@dataclass(frozen=True)
class Degradation:
    """One way in which a picture gets worse, in severities from 1."""

    name: str
    side: Side
    meaning: str
    """One line for readers of a table."""
    severities: tuple[Mapping[str, float], ...]
    """The parameters of every severity, from the mildest."""
    rule: Callable[..., NDArray[np.floating]] = field(repr=False)
    """Called with the picture, a random generator and the parameters."""

    def apply(self, ir: Picture, vis: Picture, severity: int, pair: str) -> tuple[Picture, Picture]:
        """Degrade infrared ``[H, W]`` or visible ``[H, W, 3]``; both are returned, float32 in [0, 1].

        Args:
            ir: infrared in [0, 1].
            vis: visible RGB in [0, 1].
            severity: from 1 to the number of `severities`; ValueError otherwise.
            pair: name of the pair; with the name of the degradation it seeds the random numbers.
        """
        if not 1 <= severity <= len(self.severities):
            raise ValueError(f"severity {severity} of {self.name}, which has {len(self.severities)}")
        parameters = self.severities[severity - 1]
        picture = ir if self.side is Side.INFRARED else vis
        worse = np.clip(self.rule(picture, _generator(pair, self.name), **parameters), 0, 1).astype(np.float32)
        return (worse, vis) if self.side is Side.INFRARED else (ir, worse)

    @property
    def conditions(self) -> list[Condition]:
        """The degradation in all its severities, the mildest first."""
        return [Condition(self.name, severity + 1) for severity in range(len(self.severities))]

    def parameters(self, severity: int) -> str:
        """The parameters of a severity in words.

        >>> DEGRADATIONS[0].parameters(1)
        'exposure 0.5, photons 2000'
        """
        return ", ".join(f"{name} {value:g}" for name, value in self.severities[severity - 1].items())


def _generator(pair: str, degradation: str) -> np.random.Generator:
    digest = hashlib.sha256(f"{pair}\n{degradation}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))


def _levels(**parameters: Sequence[float]) -> tuple[Mapping[str, float], ...]:
    """The values of each parameter, one per severity, as one mapping per severity."""
    return tuple(dict(zip(parameters, values, strict=True)) for values in zip(*parameters.values(), strict=True))


DEGRADATIONS = (
    Degradation(
        "darkness",
        Side.VISIBLE,
        "a fraction of the light, with the noise of the photons that are left",
        _levels(exposure=(1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32), photons=[2000] * 5),
        darken,
    ),
    Degradation(
        "over-exposure",
        Side.VISIBLE,
        "more light than the sensor holds; what is beyond white is lost",
        _levels(gain=(1.5, 2, 3, 5, 8)),
        overexpose,
    ),
    Degradation(
        "noise",
        Side.VISIBLE,
        "Poisson and Gaussian noise in every channel",
        _levels(photons=(250, 120, 60, 30, 15), deviation=(0.02, 0.04, 0.06, 0.09, 0.13)),
        add_noise,
    ),
    Degradation(
        "haze",
        Side.VISIBLE,
        "exp(−density · distance) of the light passes, airlight fills up; distance 0.25 at the bottom, 1 at the top",
        _levels(density=(0.15, 0.35, 0.7, 1.3, 2.2)),
        add_haze,
    ),
    Degradation("blur", Side.VISIBLE, "Gaussian blur, sigma in pixels", _levels(sigma=(0.8, 1.5, 2.5, 4, 6)), blur),
    Degradation(
        "infrared stripes",
        Side.INFRARED,
        "fixed-pattern noise: an offset of its own for every column",
        _levels(deviation=(0.02, 0.04, 0.07, 0.11, 0.16)),
        add_stripes,
    ),
    Degradation(
        "infrared noise",
        Side.INFRARED,
        "Gaussian noise in every pixel",
        _levels(deviation=(0.02, 0.04, 0.07, 0.11, 0.16)),
        add_thermal_noise,
    ),
    Degradation(
        "infrared shift",
        Side.INFRARED,
        "the infrared picture lies to the right of where it belongs",
        _levels(pixels=(1, 2, 4, 8, 16)),
        shift,
    ),
    Degradation("infrared black", Side.INFRARED, "dead infrared: all black", _levels(level=[0]), freeze),
    Degradation("infrared grey", Side.INFRARED, "dead infrared: frozen in grey", _levels(level=[0.5]), freeze),
    Degradation("visible black", Side.VISIBLE, "dead visible: all black", _levels(level=[0]), freeze),
    Degradation("visible grey", Side.VISIBLE, "dead visible: frozen in grey", _levels(level=[0.5]), freeze),
)
"""All degradations, in the order of tables and charts."""
