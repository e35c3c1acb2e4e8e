"""The words of the synthetic scenes: conditions, label classes and box classes."""

from __future__ import annotations

from enum import IntEnum, StrEnum


class Condition(StrEnum):
    """Light and weather of a scene."""

    DAY = "day"
    """Sun and clouds, soft shadows."""
    NIGHT = "night"
    """Street lamps, headlights and lit windows; people in the dark are nearly invisible to the visible camera."""
    FOG = "fog"
    """Daylight that fades with distance; the infrared camera sees much farther."""
    GLARE = "glare"
    """A low sun or blinding headlights saturate a part of the visible picture and hide whoever is there."""


class SceneClass(IntEnum):
    """What a pixel of the label map shows."""

    SKY = 0
    ROAD = 1
    SIDEWALK = 2
    BUILDING = 3
    VEGETATION = 4
    PERSON = 5
    CAR = 6
    TRUCK = 7
    """Trucks, vans for goods and buses."""
    BICYCLE = 8
    """Bicycles and motorbikes; who rides one is a person."""
    LAMP = 9
    SIGN = 10
    """Traffic signs and traffic lights."""


class BoxClass(IntEnum):
    """What a box or an instance mask shows; the numbers in the first column of the boxes."""

    PERSON = 0
    BICYCLE = 1
    CAR = 2
    TRUCK = 3


BOX_CLASS_OF = {
    SceneClass.PERSON: BoxClass.PERSON,
    SceneClass.BICYCLE: BoxClass.BICYCLE,
    SceneClass.CAR: BoxClass.CAR,
    SceneClass.TRUCK: BoxClass.TRUCK,
}
"""The label classes that have boxes and instance masks."""
