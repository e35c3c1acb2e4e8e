"""Tokens of a feature map of any size: pooled to a grid, with a learnt position for each place of it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MOST_TOKENS = 1600
"""40×40: what the published detectors use. Attention maps grow with the square of it."""


class TokenGrid(nn.Module):
    """w₁ · mean + w₂ · maximum of each cell, plus the cell's position (IRDFusion and, before it, ICAFusion).

    A map with fewer rows or columns than the grid keeps them; the table of positions is then resized (bicubic). Cells
    of maps that cannot be divided evenly differ by a row or column: strided pooling, as published, would drop the rest
    of the border, and crashes on maps that are smaller than the grid.

    Args:
        width: channels of the maps.
        grid: (rows, columns), at most `MOST_TOKENS` cells.
    """

    def __init__(self, width: int, grid: tuple[int, int]) -> None:
        super().__init__()
        if min(grid) < 1 or grid[0] * grid[1] > MOST_TOKENS:
            raise ValueError(f"a grid of {grid[0]}×{grid[1]} cells: from 1 to {MOST_TOKENS} cells are possible")
        self.grid = grid
        self.weights = nn.Parameter(torch.full((2,), 0.5))
        self.positions = nn.Parameter(torch.zeros(1, width, *grid))

    def forward(self, maps: Tensor) -> Tensor:
        """Tokens ``[B, width, rows, columns]`` of maps ``[B, width, h, w]``; not more rows than h or columns than w."""
        rows, columns = (min(most, side) for most, side in zip(self.grid, maps.shape[-2:], strict=True))
        positions: Tensor = self.positions
        if (rows, columns) != self.grid:
            positions = F.interpolate(positions, size=(rows, columns), mode="bicubic", align_corners=False)
        mean, largest = _pooled(maps, (rows, columns))
        return self.weights[0] * mean + self.weights[1] * largest + positions


def _pooled(maps: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Mean and maximum of cells; with plain pooling where all cells are equal, which ONNX has."""
    cell = (maps.shape[-2] // size[0], maps.shape[-1] // size[1])
    if (cell[0] * size[0], cell[1] * size[1]) == tuple(maps.shape[-2:]):
        return F.avg_pool2d(maps, cell), F.max_pool2d(maps, cell)
    return F.adaptive_avg_pool2d(maps, size), F.adaptive_max_pool2d(maps, size)
