"""The in-tree detector's network: one encoder or two, a light feature pyramid, and a head."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from duskfuse.tasks.detection_head import STRIDES, DetectionHead
from duskfuse.tasks.detr_decoder import DetrDecoder
from duskfuse.tasks.feature_fusion import FeatureFusion
from duskfuse.tasks.objects import ObjectHead
from duskfuse.tasks.trunk import CHANNELS, Trunk, conv_block, new_trunk, trunk_maps

WIDTH = 48
"""Channels of the pyramid."""
FUSED_STRIDES = STRIDES[:2]
"""Strides of the encoders' maps that the pyramid is built on, and that a `FeatureFusion` is given; see `levels_for`."""
FUSED_CHANNELS = CHANNELS[Trunk.RESIDUAL][1:]
"""Of these maps where two cameras are fused: wider encoders are narrowed, since attention costs the square."""


class HeadKind(StrEnum):
    """What a detector ends in."""

    DENSE = "dense"
    """Points of the pyramid, task-aligned assignment and suppression."""
    DETR = "detr"
    """Queries and Hungarian matching, without suppression; learns more slowly."""


class FeaturePyramid(nn.Module):
    """Maps of one width at the strides of those that it is given, and at twice the coarsest (Lin et al. 2017)."""

    def __init__(self, channels: Sequence[int], width: int = WIDTH) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(count, width, 1) for count in channels)
        self.refine = nn.ModuleList(conv_block(width, width) for _ in channels)
        self.coarsest = conv_block(width, width, stride=2)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Pyramid ``[B, width, h, w]`` of maps, finest first, of which each has half the sides of the one before."""
        *finer, coarse = (lateral(level) for lateral, level in zip(self.lateral, maps, strict=True))
        levels = [coarse]
        for level in reversed(finer):
            levels.insert(0, level + F.interpolate(levels[0], size=level.shape[-2:], mode="nearest"))
        refined = [refine(level) for refine, level in zip(self.refine, levels, strict=True)]
        return [*refined, self.coarsest(refined[-1])]


class DetectorNetwork(nn.Module):
    """From one normalised picture, or an infrared and a visible one, to the prediction of a head.

    Args:
        classes: how many there are.
        trunk: the encoder.
        head: what it ends in.
        fusion: makes one pyramid of two cameras' maps, for the last `levels_for` the head of `FUSED_CHANNELS`; None
            for a single picture. The encoders share no weights.
    """

    def __init__(
        self,
        classes: int,
        trunk: Trunk = Trunk.RESIDUAL,
        head: HeadKind = HeadKind.DENSE,
        fusion: FeatureFusion | None = None,
    ) -> None:
        super().__init__()
        self.trunk = new_trunk(trunk)
        self.ir_trunk = None if fusion is None else new_trunk(trunk)
        self.levels = levels_for(head)
        encoded, fused = CHANNELS[trunk][-self.levels :], FUSED_CHANNELS[-self.levels :]
        self.narrow = self.ir_narrow = None
        if fusion is not None and encoded != fused:
            self.narrow, self.ir_narrow = _narrowing(encoded, fused), _narrowing(encoded, fused)
        self.fusion = fusion
        self.pyramid = FeaturePyramid(encoded if fusion is None else fused)
        self.head: ObjectHead[Any] = (
            DetectionHead(WIDTH, classes) if head is HeadKind.DENSE else DetrDecoder(WIDTH, classes)
        )

    def forward(self, vis: Tensor, ir: Tensor | None, size: tuple[int, int]) -> Any:
        """The head's prediction.

        Args:
            vis: the visible, or only, picture, normalised, ``[B, 3, H, W]``; sides are multiples of 32.
            ir: the infrared picture, likewise; None without a fusion.
            size: (height, width) of the picture within it.
        """
        return self.head(self.maps(vis, ir), size)

    def maps(self, vis: Tensor, ir: Tensor | None) -> list[Tensor]:
        """The feature pyramid ``[B, 48, h, w]`` at strides 8, for DETR 16, to 32; arguments as for `forward`."""
        if self.fusion is None:
            return self.pyramid(_encoded(self.trunk, vis, self.levels))  # type: ignore[no-any-return]
        return self.pyramid(self.fusion(*self.both_encoded(vis, ir)))  # type: ignore[no-any-return]

    def both_encoded(self, vis: Tensor, ir: Tensor | None) -> tuple[list[Tensor], list[Tensor]]:
        """What a fusion is given, the infrared maps and the visible ones; ValueError where there is no infrared."""
        if ir is None or self.ir_trunk is None:
            raise ValueError("a network of two pictures was given one")
        ours, theirs = (_encoded(*seen, self.levels) for seen in ((self.trunk, vis), (self.ir_trunk, ir)))
        return _narrowed(theirs, self.ir_narrow), _narrowed(ours, self.narrow)


def levels_for(head: HeadKind) -> int:
    """How many of `FUSED_STRIDES`, the coarsest, a head looks at: what it does not see would never learn."""
    return len(FUSED_STRIDES) if head is HeadKind.DENSE else 1


def _narrowing(encoded: Sequence[int], fused: Sequence[int]) -> nn.ModuleList:
    """A 1×1 convolution per level."""
    return nn.ModuleList(nn.Conv2d(wide, few, 1) for wide, few in zip(encoded, fused, strict=True))


def _narrowed(maps: list[Tensor], narrow: nn.ModuleList | None) -> list[Tensor]:
    return maps if narrow is None else [layer(level) for layer, level in zip(narrow, maps, strict=True)]


def _encoded(trunk: nn.ModuleList, picture: Tensor, levels: int) -> list[Tensor]:
    """Maps at the last ``levels`` of `FUSED_STRIDES`."""
    return _whole_cells(trunk_maps(trunk, picture)[-levels:], FUSED_STRIDES[-levels:], picture)


def _whole_cells(maps: Sequence[Tensor], strides: Sequence[int], picture: Tensor) -> list[Tensor]:
    """The maps with a cell for every stride of the picture: SqueezeNet's lack a last row and column."""
    whole = []
    for level, stride in zip(maps, strides, strict=True):
        rows, columns = (side // stride - have for side, have in zip(picture.shape[-2:], level.shape[-2:], strict=True))
        whole.append(F.pad(level, (0, columns, 0, rows), mode="replicate") if rows or columns else level)
    return whole
