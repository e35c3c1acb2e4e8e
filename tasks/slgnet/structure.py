"""The structure encoder: both cameras at 1/8, 1/16 and 1/32, aligned level by level, in the transformer's width."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from duskfuse.tasks.slgnet.alignment import WINDOW, Aligned, ComparedWith, align

STRIDES = (8, 16, 32)
CHANNELS = (128, 256, 256)
KERNELS = (3, 5, 7)
_STEM = 64


class Structure(NamedTuple):
    """What the structure encoder saw."""

    maps: list[Tensor]
    """F_fl of each level, ``[B, h, w, width]``: channels last, as the adapters take them."""
    levels: list[Aligned]
    """The alignment that each came from, votes included."""


class StructureEncoder(nn.Module):
    """A stem and three strided convolutions, for both cameras, and a projection of each aligned level.

    The cameras go through shared weights as one batch, so that batch normalisation sees in training what it is going
    to see in use: the statistics of both.

    Args:
        width: channels of the transformer.
        shared: whether both cameras have the same weights.
        channels: of the three levels.
        stem: channels before them.
        window: of SSIM, in cells.
        compared: see `align`.
    """

    def __init__(
        self,
        width: int = 768,
        shared: bool = True,
        channels: tuple[int, int, int] = CHANNELS,
        stem: int = _STEM,
        window: int = WINDOW,
        compared: ComparedWith = ComparedWith.GRADIENT,
    ) -> None:
        super().__init__()
        self.window, self.compared = window, compared
        self.trunks = nn.ModuleList(_trunk(stem, channels) for _ in range(1 if shared else 2))
        self.project = nn.ModuleList(nn.Conv2d(count, width, 1) for count in channels)
        self.level_embedding = nn.Parameter(0.02 * torch.randn(len(channels), width))

    def forward(self, visible: Tensor, infrared: Tensor) -> Structure:
        """From normalised pictures ``[B, 3, H, W]``; level l has ⌈H/stride⌉ × ⌈W/stride⌉ cells."""
        if len(self.trunks) == 1:
            both = [maps.chunk(2) for maps in _levels(self.trunks[0], torch.cat([visible, infrared]))]
        else:
            both = list(zip(_levels(self.trunks[0], visible), _levels(self.trunks[1], infrared), strict=True))
        levels = [align(first, second, self.window, self.compared) for first, second in both]
        maps = [
            project(level.fused).permute(0, 2, 3, 1) + embedding
            for project, level, embedding in zip(self.project, levels, self.level_embedding, strict=True)
        ]
        return Structure(maps, levels)


def _levels(trunk: nn.Module, pictures: Tensor) -> list[Tensor]:
    levels = []
    for stage in trunk.children():
        pictures = stage(pictures)
        levels.append(pictures)
    return levels[1:]  # without the stem


def _trunk(stem: int, channels: tuple[int, int, int]) -> nn.Sequential:
    first = nn.Sequential(
        *_conv(3, stem, 3, stride=2), *_conv(stem, stem, 3), *_conv(stem, stem, 3), nn.MaxPool2d(3, stride=2, padding=1)
    )
    entering = (stem, *channels[:-1])
    stages = [
        nn.Sequential(*_conv(before, count, kernel, stride=2))
        for before, count, kernel in zip(entering, channels, KERNELS, strict=True)
    ]
    return nn.Sequential(first, *stages)


def _conv(entering: int, leaving: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(entering, leaving, kernel, stride, padding=kernel // 2, bias=False)
    return [convolution, nn.BatchNorm2d(leaving), nn.ReLU()]
