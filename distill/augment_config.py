"""The keys of ``data.augment``: how samples are varied beyond crop and flip, see `duskfuse.distill.augmentation`."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

Probability = Annotated[float, Field(ge=0, le=1)]
Strength = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Stops = Annotated[float, Field(ge=0, le=16)]
ZoomSide = Annotated[float, Field(gt=0, allow_inf_nan=False)]

CACHED_JITTER = 0.1
"""Most jitter beside cached teacher pictures, which cannot follow it."""


class Plain(BaseModel):
    """Part of a recipe: plain data that refuses unknown keys and does not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class InfraredFaults(Plain):
    """Faults of the infrared camera, in what the student is given alone; each strength is drawn from 0 to its value."""

    p: Probability = 0
    """Probability that the infrared of a sample has them, all together."""
    noise: Strength = 0.02
    """Standard deviation of Gaussian noise in every pixel."""
    stripes: Strength = 0.04
    """Standard deviation of the offsets of columns, or as often of rows: fixed-pattern noise."""
    gain: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Values are multiplied by 1 − gain to 1 + gain."""
    offset: Strength = 0.1
    """Values are moved by −offset to offset."""


class VisibleFaults(Plain):
    """Faults of the visible camera, in what the student is given alone.

    A sample has one of those whose strength is not 0, each as often, and between nothing and the strength.
    """

    p: Probability = 0
    """Probability that the visible picture of a sample has one."""
    noise: Strength = 0.09
    """Standard deviation of the electronics' noise; that of the photons at white is twice as much."""
    darkness: Stops = 5
    """Stops of light lost: half of it with every stop, with the noise of the photons that are left."""
    exposure: Stops = 2
    """Stops of light too much; what is beyond white is lost."""
    glare: Strength = 3
    """Light of a lamp in the lens, where white is 1."""
    haze: Strength = 2
    """Density of haze, see `duskfuse.data.camera_faults.add_haze`."""


class Misalignment(Plain):
    """The infrared that the student is given lies wrong; what it is compared with stays on the grid of the visible."""

    p: Probability = 0
    """Probability that the infrared of a sample is moved; all the movements below are drawn together."""
    rotation: Strength = 1.5
    """Degrees, to either side."""
    scale: Annotated[float, Field(ge=0, lt=0.5)] = 0.02
    """Smaller or larger by at most this part."""
    shift: Annotated[float, Field(ge=0, lt=1)] = 0.02
    """At most this part of the crop's height down or up, and of its width to the sides."""
    shift_pixels: Strength | None = None
    """At most so many pixels in each direction, instead of ``shift``."""
    shear: Annotated[float, Field(ge=0, lt=45)] = 1.0
    """Degrees, to either side."""
    elastic: Strength = 1.0
    """Pixels by which points 64 pixels apart are moved independently, at most; smooth in between."""


class AugmentConfig(Plain):
    """How samples are varied beyond crop and flip. Everything is off by default and drawn once per sample."""

    zoom: tuple[ZoomSide, ZoomSide] = (1.0, 1.0)
    """Range of the sides of the box that is cut out, in sides of the crop to which it is resized: [0.6, 1] shows up to
    1.67 times enlarged pictures. Moves all pictures, masks and labels of a sample together."""
    jitter: Annotated[float, Field(ge=0, le=0.5)] = 0
    """Brightness, contrast, gamma and colour balance of the visible picture vary by up to this part. All that sees the
    visible picture, or is compared with it, takes part; beside cached teacher pictures, which cannot, the student alone
    is given the varied picture, and at most 0.1 is allowed."""
    infrared: InfraredFaults = InfraredFaults()
    """Noise, stripes, gain and offset."""
    visible: VisibleFaults = VisibleFaults()
    """Noise, darkness, too much light, glare or haze."""
    misalignment: Misalignment = Misalignment()
    """The infrared lies beside where it belongs."""
    dropout: Probability = 0
    """Probability that one camera, either as often, gives the student a dead picture: black, one grey, or noise. The
    living picture then takes the place of the dead one and of a cached teacher picture, masks are empty and labels
    count nowhere: the other camera is all that the student can be asked for."""

    @model_validator(mode="after")
    def _zoom_is_a_range(self) -> AugmentConfig:
        if self.zoom[0] > self.zoom[1]:
            raise ValueError(f"zoom {list(self.zoom)} is no range: the smaller number comes first")
        return self
