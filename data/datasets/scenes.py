"""The original TNO tree: a folder is a scene, and its two to four pictures are told apart by their names.

``IR_bunker_g.bmp`` beside ``bunker_r.bmp``; ``Farm_IR.bmp`` beside ``Farm_Vis.bmp`` and the intensified
``Farm_II.bmp``; ``2_fk_ge_03_005.bmp``, thermal, beside ``1_fk_ge_03_005.bmp``. The first word that names a camera
decides. Copies with all scenes in one folder are called ``IR1.png`` and ``VIS1.png``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import PurePath
from typing import NamedTuple

from duskfuse.data.datasets.folder_rules import Side
from duskfuse.data.images import PICTURE_SUFFIXES

_CAMERA = re.compile(r"(?<![a-z])(lwir|ir|vis|nir|ii)(?![a-z])", re.IGNORECASE)
_SIDES = {"lwir": Side.IR, "ir": Side.IR, "vis": Side.VIS}


class ScenePicture(NamedTuple):
    """A file that is one of the two pictures of a scene."""

    name: str
    side: Side
    scene: str
    """What tells the scene from others in the same folder; empty where the folder is one scene."""


def scene_pictures(names: Sequence[str]) -> Iterator[ScenePicture]:
    """The infrared and visible pictures among the files of a folder; near-infrared and intensified ones are neither.

    >>> [(picture.name, picture.side.value) for picture in scene_pictures(["IR_bunker_g.bmp", "bunker_r.bmp"])]
    [('IR_bunker_g.bmp', 'infrared'), ('bunker_r.bmp', 'visible')]
    """
    pictures = [name for name in names if PurePath(name).suffix.lower() in PICTURE_SUFFIXES]
    infrared = [name for name in pictures if _side(name) is Side.IR]
    visible = [name for name in pictures if _side(name) is Side.VIS]
    unnamed = [name for name in pictures if not _CAMERA.search(PurePath(name).stem)]
    if not infrared and not visible and _is_numbered_pair(unnamed):
        visible, infrared = unnamed[:1], unnamed[1:]
    if infrared and not visible and len(unnamed) == 1:
        visible = unnamed
    if not infrared:
        return
    one_scene = len(infrared) == 1 and len(visible) <= 1
    for side, held in ((Side.IR, infrared), (Side.VIS, visible)):
        for name in held:
            yield ScenePicture(name, side, "" if one_scene else _CAMERA.sub("", PurePath(name).stem, 1).strip("_- "))


def is_without_infrared(names: Sequence[str]) -> bool:
    """Whether a folder is a scene of which there is a visible, but no infrared picture."""
    sides = [_side(name) for name in names if PurePath(name).suffix.lower() in PICTURE_SUFFIXES]
    return Side.VIS in sides and Side.IR not in sides


def _side(name: str) -> Side | None:
    """What the first word of a file name that names a camera says."""
    found = _CAMERA.search(PurePath(name).stem)
    return _SIDES.get(found.group(1).lower()) if found else None


def _is_numbered_pair(names: Sequence[str]) -> bool:
    return len(names) == 2 and [name[:2] for name in names] == ["1_", "2_"] and names[0][2:] == names[1][2:]
