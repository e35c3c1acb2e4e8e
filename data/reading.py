"""How the infrared pictures of a dataset become planes in [0, 1] on the visible grid: scaling, polarity, alignment.

A reading belongs to a camera rig. It is given to a verb, or lies as ``duskfuse.yaml`` in the dataset's folder::

    thermal_range: [27000, 32000]   # stored values that become 0 and 1, the same for all pictures
    black_hot: true                 # the camera shows heat dark
    homography: rig.json            # infrared pixels → visible pixels; relative to this file

The order is fixed: one channel, scaling, polarity, then the visible grid.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import yaml
from numpy.typing import NDArray

from duskfuse.data.containers import Size
from duskfuse.data.errors import InputError, unknown_key
from duskfuse.data.homography import Homography, is_number, load_homography
from duskfuse.data.images import ThermalRange, one_channel, scaled, thermal_range_of
from duskfuse.data.progress import say
from duskfuse.data.read_files import read_text

READING_FILE = "duskfuse.yaml"
"""Name of the file that says how the pictures of its folder are read."""

_LARGEST_FILE = 2**16
_KEYS = ("thermal_range", "percentiles", "black_hot", "resize_ir", "homography")


class Plane(NamedTuple):
    """An infrared picture after scaling and polarity, and the stored values that became 0 and 1."""

    ir: NDArray[np.float32]
    """``[H, W]`` in [0, 1]."""
    span: ThermalRange | None
    """None where every pixel of a deep picture has one value: it became 0. With black-hot ``low`` became 1."""


@dataclass(frozen=True)
class Reading:
    """How the infrared pictures of a dataset are read.

    Raises:
        InputError: settings that are out of range or exclude each other.
    """

    thermal_range: ThermalRange | None = None
    """Stored values that become 0 and 1, the same for all pictures; for pictures of any depth."""
    percentiles: tuple[float, float] | None = None
    """Percentiles of each picture that become 0 and 1; for pictures of any depth. Where neither is given, 8-bit
    pictures are divided by 255 and others scaled by their percentiles 0.1 and 99.9."""
    black_hot: bool = False
    """The camera shows heat dark: pictures are inverted, so that heat is bright."""
    resize_ir: bool = False
    """Bring an infrared picture of another size to the visible size (bilinear up, area average down)."""
    homography: Homography | None = None
    """Brings the infrared pictures to the visible grid."""

    def __post_init__(self) -> None:
        if self.percentiles is not None:
            low, high = self.percentiles
            if not 0 <= low < high <= 100:
                raise InputError(
                    f"percentiles {low:g} and {high:g}",
                    rule="they are two numbers from 0 to 100, the smaller one first",
                    remedy="give for example 0.5 and 99.5",
                )
            if self.thermal_range is not None:
                raise InputError(
                    "a thermal range and percentiles",
                    rule="the first is the same for all pictures, the second is taken from each one",
                    remedy="give one of them",
                )
        if self.resize_ir and self.homography is not None:
            raise InputError(
                "resizing and a homography",
                rule="a homography brings infrared pictures of its size to the visible size by itself",
                remedy="give one of them",
            )

    @property
    def on_visible_grid(self) -> bool:
        """Whether infrared is brought to the visible grid, so that reading it needs the visible size."""
        return self.resize_ir or self.homography is not None

    def plane(self, stored: NDArray[Any]) -> Plane:
        """Scale an infrared picture as stored to one channel in [0, 1], heat bright; its size stays.

        Raises:
            InputError: the thermal range lies beyond what a picture of this depth can hold.
        """
        grey = one_channel(stored)
        span = self.thermal_range or thermal_range_of(grey, self.percentiles)
        ir = scaled(grey, span)
        return Plane(1 - ir if self.black_hot else ir, span)

    def align(self, ir: NDArray[np.float32], size: Size) -> NDArray[np.float32]:
        """Bring a plane to the visible grid of ``size`` (height, width).

        Raises:
            InputError: it has another size and this reading does not say how to bring it there.
        """
        self.check_sizes((ir.shape[0], ir.shape[1]), size)
        if self.homography is not None:
            return self.homography.warp(ir)
        if ir.shape == size:
            return ir
        interpolation = cv2.INTER_AREA if ir.size > size[0] * size[1] else cv2.INTER_LINEAR
        return np.asarray(cv2.resize(ir, size[::-1], interpolation=interpolation), np.float32)

    def check_sizes(self, ir_size: Size, size: Size) -> None:
        """Raise InputError where an infrared picture of ``ir_size`` cannot come to the visible ``size``."""
        if self.homography is not None:
            self.homography.check_sizes(ir_size, size)
        elif ir_size != size and not self.resize_ir:
            raise InputError(
                f"infrared is {ir_size[1]}×{ir_size[0]}, visible is {size[1]}×{size[0]}",
                rule="the pictures of a pair must be registered and of one size",
                remedy="register them, allow resizing the infrared picture if they show the same scene, "
                "or give the homography of the rig",
            )

    def to_json(self) -> dict[str, Any]:
        """What differs from `AS_STORED`, as plain data under the names of the file."""
        spans = {
            "thermal_range": self.thermal_range and (self.thermal_range.low, self.thermal_range.high),
            "percentiles": self.percentiles,
        }
        flags = {"black_hot": self.black_hot, "resize_ir": self.resize_ir}
        return {
            **{name: [float(value) + 0.0 for value in span] for name, span in spans.items() if span},
            **{name: True for name, flag in flags.items() if flag},
            **({"homography": self.homography.to_json()} if self.homography else {}),
        }

    def canonical(self) -> str:
        """One text for one reading, of which the keys of cached priors are made.

        It is `to_json` as JSON with sorted keys, without spaces, numbers in their shortest form that reads back the
        same. What is as in `AS_STORED` is left out, so that a setting added later changes no key made before.
        """
        return json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"), allow_nan=False)


AS_STORED = Reading()


def reading_of(data: Path, reading: Reading | Path | None = None) -> Reading:
    """The reading of a dataset: the one given, or its file, else ``duskfuse.yaml`` in the folder, else `AS_STORED`.

    Raises:
        InputError: the file is not usable.
    """
    if isinstance(reading, Reading):
        return reading
    path = data / READING_FILE if reading is None else reading
    if reading is None and not path.is_file():
        return AS_STORED
    loaded = load_reading(path)
    say(f"infrared is read as {path} says")
    return loaded


def load_reading(path: Path) -> Reading:
    """Read a YAML file of the settings of :class:`Reading`; ``homography`` names a file, relative to this one.

    Raises:
        InputError: the file is unreadable, no YAML, has an unknown key, or a setting is not valid.
    """
    try:
        content = yaml.safe_load(read_text(path, _LARGEST_FILE))
    except InputError:
        raise
    except Exception as error:  # PyYAML raises whatever a wrong tag makes it run into: KeyError, IndexError, …
        raise InputError(f"{path}: not YAML ({_first_line(error)})", remedy="write `key: value` lines") from error
    try:
        return _reading_from({} if content is None else content, path.parent)
    except InputError as error:
        raise InputError(f"{path}: {error.seen}", rule=error.rule, remedy=error.remedy) from error


def _reading_from(content: object, folder: Path) -> Reading:
    if not isinstance(content, Mapping):
        raise InputError("no settings", rule="a reading is `key: value` lines", remedy=f"keys are {', '.join(_KEYS)}")
    for key in content:
        if key not in _KEYS:
            raise unknown_key(key, _KEYS)
    span = _numbers(content, "thermal_range")
    homography = content.get("homography")
    if homography is not None and not isinstance(homography, str):
        raise InputError("homography", rule="it names a JSON file", remedy="write `homography: rig.json`")
    return Reading(
        thermal_range=ThermalRange(*span) if span else None,
        percentiles=_numbers(content, "percentiles"),
        black_hot=_flag(content, "black_hot"),
        resize_ir=_flag(content, "resize_ir"),
        homography=load_homography(folder / homography) if homography else None,
    )


def _numbers(content: Mapping[str, object], key: str) -> tuple[float, float] | None:
    pair = content.get(key)
    if pair is None:
        return None
    if not (isinstance(pair, list) and len(pair) == 2 and all(map(is_number, pair))):
        raise InputError(key, rule="it is two numbers", remedy=f"write `{key}: [low, high]`, no exponents")
    return float(pair[0]), float(pair[1])


def _flag(content: Mapping[str, object], key: str) -> bool:
    value = content.get(key, False)
    if not isinstance(value, bool):
        raise InputError(key, rule="it is true or false", remedy=f"write `{key}: true`")
    return value


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:120]
