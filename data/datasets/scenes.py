"""The original TNO tree: a folder is a scene, and its two to four pictures are told apart by their names.

``IR_bunker_g.bmp`` beside ``bunker_r.bmp``; ``Farm_IR.bmp`` beside ``Farm_Vis.bmp`` and the intensified
``Farm_II.bmp``; ``2_fk_ge_03_005.bmp``, thermal, beside ``1_fk_ge_03_005.bmp``. The first word that names a camera
decides.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath

from duskfuse.data.datasets.folder_rules import Side
from duskfuse.data.images import PICTURE_SUFFIXES

_CAMERA = re.compile(r"(?<![a-z])(lwir|ir|vis|nir|ii)(?![a-z])")
_SIDES = {"lwir": Side.IR, "ir": Side.IR, "vis": Side.VIS}


def scene_sides(names: Sequence[str]) -> Mapping[str, Side]:
    """Which files of a scene folder are its infrared and its visible picture.

    >>> sorted(scene_sides(["IR_bunker_g.bmp", "bunker_r.bmp"]).items(), key=str)
    [('IR_bunker_g.bmp', <Side.IR: 'infrared'>), ('bunker_r.bmp', <Side.VIS: 'visible'>)]

    Near-infrared and intensified pictures are neither. Empty where there is no infrared picture, or several.
    """
    pictures = [name for name in names if PurePath(name).suffix.lower() in PICTURE_SUFFIXES]
    cameras = {name: _camera(name) for name in pictures}
    infrared = [name for name in pictures if _SIDES.get(cameras[name]) is Side.IR]
    visible = [name for name in pictures if _SIDES.get(cameras[name]) is Side.VIS]
    unnamed = [name for name in pictures if not cameras[name]]
    if not infrared and not visible and _is_numbered_pair(unnamed):
        visible, infrared = unnamed[:1], unnamed[1:]
    if infrared and not visible and len(unnamed) == 1:
        visible = unnamed
    if len(infrared) != 1 or len(visible) > 1:
        return {}
    return {infrared[0]: Side.IR, **dict.fromkeys(visible, Side.VIS)}


def is_without_infrared(names: Sequence[str]) -> bool:
    """Whether a folder is a scene of which there is a visible, but no infrared picture."""
    cameras = [_camera(name) for name in names if PurePath(name).suffix.lower() in PICTURE_SUFFIXES]
    sides = [_SIDES.get(camera) for camera in cameras]
    return Side.VIS in sides and Side.IR not in sides


def _camera(name: str) -> str:
    """The first word of a file name that names a camera, or nothing."""
    found = _CAMERA.search(PurePath(name).stem.lower())
    return found.group(1) if found else ""


def _is_numbered_pair(names: Sequence[str]) -> bool:
    return len(names) == 2 and [name[:2] for name in names] == ["1_", "2_"] and names[0][2:] == names[1][2:]
