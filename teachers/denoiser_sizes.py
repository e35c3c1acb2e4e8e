"""Sizes and forms of the conditional denoiser as plain data: recipes name them, cards carry them; nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from duskfuse.data.errors import InputError

_WIDTH_STEP = 4  # channels of the smallest group that is normalised together


class Prediction(StrEnum):
    """What the denoiser's last convolution says."""

    PICTURE = "picture"
    """The clean picture, as a difference from the brighter source: sharp and free of noise after few steps."""
    NOISE = "noise"
    """The noise, as in Mask-DiFuser and Diff-IF: for long training and many steps."""


@dataclass(frozen=True)
class DenoiserConfig:
    """Everything that builds a denoiser, as its model card keeps it."""

    widths: tuple[int, ...]
    """Channels of every level from full to lowest resolution, each half as high and wide as the one before."""
    blocks: int
    """Residual blocks per level."""
    attention: tuple[int, ...] = ()
    """Levels with self-attention, from 0; its memory grows with the square of their pixels."""
    patch: int = 1
    """Pixels a side that become the channels of one position: 2 makes a network about five times as fast."""
    prediction: Prediction = Prediction.PICTURE

    def __post_init__(self) -> None:
        wrong = [width for width in self.widths if width < _WIDTH_STEP or width % _WIDTH_STEP]
        if not self.widths or wrong:
            raise ValueError(f"widths {list(self.widths)}: want one or more multiples of {_WIDTH_STEP}")
        if self.blocks < 1 or self.patch < 1:
            raise ValueError(f"blocks {self.blocks} and patch {self.patch}: want 1 or more")
        if not set(self.attention) <= set(range(len(self.widths))):
            raise ValueError(f"attention {list(self.attention)}: want levels from 0 to {len(self.widths) - 1}")


class DenoiserSize(StrEnum):
    """Sizes by name."""

    SMALL = "small"
    """1.76 million parameters, 10 billion multiply-adds a step at 640×480: trainable on two CPU cores."""
    DIFF_IF = "diff-if"
    """Of Diff-IF (Yi et al., Information Fusion 2024)."""
    MASK_DIFUSER = "mask-difuser"
    """Of Mask-DiFuser (Tang et al., TPAMI 2025)."""


_SIZES = {
    DenoiserSize.SMALL: DenoiserConfig(widths=(32, 64, 96), blocks=1, patch=2),
    DenoiserSize.DIFF_IF: DenoiserConfig(widths=(48, 96, 192, 288), blocks=2, attention=(3,)),
    DenoiserSize.MASK_DIFUSER: DenoiserConfig(widths=(128, 256, 384, 512), blocks=2, attention=(2,)),
}
_CONFIG = TypeAdapter(DenoiserConfig)


def denoiser_config(size: DenoiserSize, prediction: Prediction = Prediction.PICTURE) -> DenoiserConfig:
    """The named size in one of the two forms."""
    named = _SIZES[size]
    return DenoiserConfig(named.widths, named.blocks, named.attention, named.patch, prediction)


def config_of_card(path: Path, settings: Mapping[str, Any]) -> DenoiserConfig:
    """The configuration that a card's settings spell out; InputError with the file's name where they do not."""
    try:
        return _CONFIG.validate_python(dict(settings))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "settings"
        raise InputError(
            f"{path}: card with {where}: {first['msg']}",
            rule="a denoiser has widths, blocks, attention, patch and prediction",
            remedy="write the checkpoint again with duskfuse",
        ) from None
