"""Convolutions whose kernels differ from picture to picture and from branch to branch, as one grouped convolution.

Kernels of all configurations are put into one grid of 7×7 taps (a dilation of d has its taps at distance d from the
centre), so that pictures and branches which take different ones still go through one call. The published code loops
over pictures and branches instead.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from duskfuse.students.steering.base_vectors import Configuration

GRID = 7
_CENTRE = GRID // 2


def in_grid(kernel: Tensor, configuration: Configuration) -> Tensor:
    """``[..., k, k]`` kernels of one configuration as the 7×7 kernels that are the same convolution."""
    grid = kernel.new_zeros(*kernel.shape[:-2], GRID, GRID)
    taps = _taps(configuration)
    grid[..., taps, taps] = kernel
    return grid


def from_grid(grid: Tensor, configuration: Configuration) -> Tensor:
    """The ``[..., k, k]`` kernels that `in_grid` was given."""
    taps = _taps(configuration)
    return grid[..., taps, taps]


def convolve_each(maps: Tensor, kernels: Tensor) -> Tensor:
    """Convolve every picture with kernels of its own, zeros around it.

    Args:
        maps: ``[B, C, H, W]``.
        kernels: ``[B, M, D, C, 7, 7]``, or ``[1, M, D, C, 7, 7]`` for the same ones everywhere.

    Returns:
        ``[B, M, D, H, W]``.
    """
    batch, channels, height, width = maps.shape
    branches, outputs = kernels.shape[1:3]
    kernels = kernels.to(maps.dtype).expand(batch, -1, -1, -1, -1, -1)
    flat = kernels.reshape(batch * branches * outputs, channels, GRID, GRID)
    made = F.conv2d(maps.reshape(1, batch * channels, height, width), flat, padding=_CENTRE, groups=batch)
    return made.view(batch, branches, outputs, height, width)


def _taps(configuration: Configuration) -> slice:
    reach = configuration.dilation * (configuration.kernel // 2)
    return slice(_CENTRE - reach, _CENTRE + reach + 1, configuration.dilation)
