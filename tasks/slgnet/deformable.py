"""Multi-scale deformable attention (Zhu et al. 2021, equation 3) in plain torch: every query looks at a few places.

Places are counted in cells of each level, from the corner of the map: the centre of the first cell is (0.5, 0.5). What
lies outside a map is 0. No level is resized.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_WEIGHT_STD = 0.002
"""Of the layers that choose places and weights: small beside the ring, and not 0, so that all of it learns at once."""


class DeformableAttention(nn.Module):
    """Attention of tokens to maps of several strides; one softmax weighs all places of all levels.

    Args:
        width: channels of queries, maps and the result.
        heads: each looks at places of its own.
        levels: how many maps there are.
        points: places per level and head.
        ratio: channels of the sampled values, as a share of ``width``.
    """

    def __init__(self, width: int, heads: int = 12, levels: int = 3, points: int = 4, ratio: float = 0.5) -> None:
        super().__init__()
        inner = int(width * ratio)
        if inner % heads:
            raise ValueError(f"{inner} channels of values for {heads} heads")
        self.heads, self.levels, self.points = heads, levels, points
        self.value = nn.Linear(width, inner)
        self.offsets = nn.Linear(width, heads * levels * points * 2)
        self.weights = nn.Linear(width, heads * levels * points)
        self.out = nn.Linear(inner, width)
        for layer in (self.offsets, self.weights):
            nn.init.normal_(layer.weight, std=_WEIGHT_STD)
            nn.init.zeros_(layer.bias)
        with torch.no_grad():
            self.offsets.bias.copy_(_ring(heads, levels, points).flatten())
        for layer in (self.value, self.out):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, queries: Tensor, centres: Tensor, maps: Sequence[Tensor], strides: Sequence[int]) -> Tensor:
        """What the queries see, ``[B, N, width]``.

        Args:
            queries: ``[B, N, width]``.
            centres: where they are, ``[N, 2]`` (x, y) in pixels from the picture's corner.
            maps: one per level, ``[B, h, w, width]``.
            strides: pixels per cell of each.
        """
        batch, count = queries.shape[:2]
        offsets = self.offsets(queries).view(batch, count, self.heads, self.levels, self.points, 2)
        weights = self.weights(queries).view(batch, count, self.heads, self.levels * self.points).softmax(dim=-1)
        weights = weights.unflatten(-1, (self.levels, self.points))
        seen = torch.zeros((), device=queries.device, dtype=queries.dtype)
        for level, (level_map, stride) in enumerate(zip(maps, strides, strict=True)):
            places = centres[:, None, None] / stride + offsets[:, :, :, level]
            seen = seen + sampled(self.value(level_map), places, weights[:, :, :, level])
        return self.out(seen)  # type: ignore[no-any-return]


def sampled(values: Tensor, places: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of bilinear samples, ``[B, N, heads · d]``.

    Args:
        values: ``[B, h, w, heads · d]``.
        places: ``[B, N, heads, K, 2]`` (x, y) in cells.
        weights: ``[B, N, heads, K]``.
    """
    batch, height, width, _ = values.shape
    count, heads = places.shape[1:3]
    by_head = values.view(batch, height, width, heads, -1).permute(0, 3, 4, 1, 2).flatten(0, 1)
    size = places.new_tensor([width, height])
    grid = (2 * places / size - 1).transpose(1, 2).flatten(0, 1)
    samples = F.grid_sample(by_head, grid.to(by_head.dtype), mode="bilinear", align_corners=False)  # [B·heads, d, N, K]
    summed = (samples * weights.transpose(1, 2).flatten(0, 1)[:, None]).sum(dim=-1)
    return summed.view(batch, -1, count).transpose(1, 2)


def _ring(heads: int, levels: int, points: int) -> Tensor:
    """Offsets ``[heads, levels, points, 2]`` in cells: a direction for each head, one step further for each point."""
    angles = torch.arange(heads) * (2 * math.pi / heads)
    directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
    directions = directions / directions.abs().amax(dim=-1, keepdim=True)
    steps = torch.arange(1, points + 1)[:, None]
    return (directions[:, None, None] * steps).expand(heads, levels, points, 2)
