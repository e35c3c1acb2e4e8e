"""Captions by rules from image statistics: light, haze, glare, clutter and thermal contrast; deterministic, no model.

They know no objects, and say nothing about them.
"""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from duskfuse.data.colour import luminance
from duskfuse.tasks.slgnet.captions import Captions

SOURCE = "rules"
_DIM, _OVER_EXPOSED = 0.25, 0.75
_GLARING, _BURNT_OUT = 0.002, 0.25
"""Shares of white pixels that are lamps, and that are a picture without detail."""
_HAZY, _FLAT = 0.35, 0.15
"""Of the dark channel's mean, and of the contrast."""
_CROWDED, _EMPTY = 0.2, 0.04
_CROSSOVER, _SEPARATED = 0.1, 0.4
_WHITE, _EDGE, _DARK_WINDOW = 0.97, 0.1, 7


class PictureStatistics(NamedTuple):
    """What the rules look at, each in [0, 1]; also what tells whether a scene has changed."""

    light: float
    """Mean luminance."""
    white: float
    """Share of pixels near white."""
    contrast: float
    """Standard deviation of the luminance."""
    haze: float
    """Mean of the dark channel: the least of all colours around a pixel (He et al. 2009)."""
    clutter: float
    """Share of pixels with an edge."""
    thermal_range: float
    """Difference of the 99th and the first percentile of the infrared picture."""

    def change(self, other: PictureStatistics) -> float:
        """The largest difference of any of them."""
        return max(abs(ours - theirs) for ours, theirs in zip(self, other, strict=True))


def picture_statistics(visible: Tensor, infrared: Tensor) -> PictureStatistics:
    """Statistics of RGB ``[3, H, W]`` and infrared ``[1, H, W]`` in [0, 1]."""
    light = luminance(visible[None])[0, 0]
    darkest = -F.max_pool2d(-visible.amin(dim=0)[None, None], _DARK_WINDOW, stride=1, padding=_DARK_WINDOW // 2)
    across, down = light.diff(dim=1)[:-1].abs(), light.diff(dim=0)[:, :-1].abs()
    ordered = infrared.flatten().sort().values
    low, high = ordered[len(ordered) // 100], ordered[-1 - len(ordered) // 100]
    return PictureStatistics(
        light=float(light.mean()),
        white=float((light > _WHITE).float().mean()),
        contrast=float(light.std(correction=0)),
        haze=float(darkest.mean()),
        clutter=float(((across + down) > _EDGE).float().mean()),
        thermal_range=float(high - low),
    )


class RuleCaptions:
    """Captions by rules; see `captions_of` for the words."""

    def captions(self, name: str, visible: Tensor, infrared: Tensor) -> Captions:
        """See `duskfuse.tasks.slgnet.captions.CaptionSource`."""
        return captions_of(picture_statistics(visible, infrared))


def captions_of(seen: PictureStatistics) -> Captions:
    """The captions that these statistics stand for."""
    return Captions(_environment(seen), _scene(seen), "", _thermal(seen), SOURCE)


def every_text() -> tuple[str, ...]:
    """All that the rules can say, in an order that stays."""
    levels = (0.0, 0.5, 1.0), (0.0, 0.01), (0.0, 1.0), (0.0, 1.0), (0.0, 0.1, 1.0), (0.0, 0.2, 1.0)
    said = (captions_of(PictureStatistics(*values)).texts for values in product(*levels))
    return tuple(dict.fromkeys(text for texts in said for text in texts if text))


def _environment(seen: PictureStatistics) -> str:
    if seen.light > _OVER_EXPOSED or seen.white > _BURNT_OUT:
        return "day, over-exposed"
    words = ["night", "dim light"] if seen.light < _DIM else ["day", "normal light"]
    if seen.white > _GLARING:
        words.append("glare")
    if seen.haze > _HAZY and seen.contrast < _FLAT:
        words.append("fog")
    return ", ".join(words)


def _scene(seen: PictureStatistics) -> str:
    if seen.clutter > _CROWDED:
        return "crowded scene with much detail"
    return "empty scene with little detail" if seen.clutter < _EMPTY else "scene with some detail"


def _thermal(seen: PictureStatistics) -> str:
    if seen.thermal_range < _CROSSOVER:
        return "thermal crossover, nothing stands out"
    return "high thermal contrast" if seen.thermal_range > _SEPARATED else "moderate thermal contrast"
