"""Fusing pictures of any size with the main network: overlapping tiles blended without seams.

The network learns from crops of 192×256 and its attention grows with the square of the area; tiles keep it at the
scale it knows and make the cost linear in the area.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from duskfuse.data.fuser import FusionOutput


@torch.inference_mode()
def fuse_tiled(
    network: Callable[[Tensor, Tensor, Tensor, Tensor], FusionOutput],
    vis_y: Tensor,
    ir: Tensor,
    vis_patches: Tensor,
    ir_patches: Tensor,
    *,
    tile: tuple[int, int] = (192, 256),
    overlap: int = 32,
) -> Tensor:
    """Fuse ``vis_y``, ``ir [B, 1, H, W]`` and their patches ``[B, N, H, W]`` tile by tile; returns ``y [B, 1, H, W]``.

    ``tile`` is (height, width) and ``overlap`` the least number of pixels that neighbours share and over which they
    are blended. A picture that fits one tile is fused as it is. Raises ValueError unless 0 <= overlap < tile.
    """
    if not 0 <= overlap < min(tile):
        raise ValueError(f"overlap of {overlap} pixels in tiles of {tile[0]}×{tile[1]}; it must be smaller than a tile")
    height, width = vis_y.shape[-2:]
    rows, columns = _spans(height, tile[0], overlap), _spans(width, tile[1], overlap)
    if len(rows) == len(columns) == 1:
        return network(vis_y, ir, vis_patches, ir_patches).y
    fused = torch.zeros_like(vis_y)
    row_weights, column_weights = _weights(rows, height, overlap), _weights(columns, width, overlap)
    for row, row_weight in zip(rows, row_weights, strict=True):
        for column, column_weight in zip(columns, column_weights, strict=True):
            y = network(*(x[..., row, column] for x in (vis_y, ir, vis_patches, ir_patches))).y
            blend = row_weight[:, None] * column_weight
            fused[..., row, column] += blend.to(y) * y
    return fused


def _spans(size: int, tile: int, overlap: int) -> list[slice]:
    """Evenly spread tiles over a side; neighbours share at least ``overlap`` pixels."""
    if size <= tile:
        return [slice(0, size)]
    count = math.ceil((size - overlap) / (tile - overlap))
    starts = [round(index * (size - tile) / (count - 1)) for index in range(count)]
    return [slice(start, start + tile) for start in starts]


def _weights(spans: list[slice], size: int, overlap: int) -> list[Tensor]:
    """Weights of the tiles along one side: raised cosines over ``overlap`` pixels that sum to one at every pixel."""
    windows = []
    for span in spans:
        position = torch.arange(span.stop - span.start) + 0.5
        to_edge = torch.minimum(position, position.flip(0))
        ramp = (to_edge / overlap).clamp(max=1) if overlap else torch.ones_like(to_edge)
        windows.append(torch.sin(ramp * (math.pi / 2)) ** 2)
    total = torch.zeros(size)
    for span, window in zip(spans, windows, strict=True):
        total[span] += window
    return [window / total[span] for span, window in zip(spans, windows, strict=True)]
