"""What the choice of kernels looks at: short vectors of the task network's features and of the student's own.

The published form convolves the student's map at its full resolution and the task's features as one sequence of C·h·w
values, which makes the description cost several times the fusion itself and grow with both resolutions. The default
averages both down to a bounded size first; parameters are the same ones.

It also takes the mean over that sequence, in which it is lost what channel responds: two task networks whose features
have the same distribution get one description. The default takes a place's mean for every channel, and of the k-th
output the k-th cosine over the channels, which suits any number of them and needs no parameter.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

WIDTH = 8
"""Channels of a compensated map."""
SELECTION, QUERY = 16, 256
"""Length of what configurations and vectors are chosen by."""
_SLOPE = 0.2
_EPSILON = 1e-6


class Descriptor(NamedTuple):
    """What is known about a task's need in one feature map; half of each vector is the task's, half the map's."""

    selection: Tensor
    """``[B, 16]``, for the configurations."""
    query: Tensor
    """``[B, 256]``, for the base vectors."""


@dataclass(frozen=True)
class Resolution:
    """Sides to which features are averaged down before they are described, None for as they are; and what is kept."""

    image: int | None = 128
    task: int | None = 16
    channels: bool = True
    """Whether a description tells the task's channels apart."""


PUBLISHED = Resolution(image=None, task=None, channels=False)


class Description(nn.Module):
    """Describes pairs of a student's map and a task's features, whatever their sizes."""

    def __init__(self, resolution: Resolution | None = None) -> None:
        super().__init__()
        self.resolution = resolution or Resolution()
        self.selection_task = _sequence_network(1, 4, WIDTH)
        self.selection_image = _map_network(WIDTH, SELECTION - WIDTH)
        self.query_task = _sequence_network(1, 64, QUERY // 2, activated=True)
        self.query_image = _map_network(WIDTH, 64, QUERY // 2)

    def forward(self, maps: Tensor, features: Tensor) -> Descriptor:
        """Describe ``maps [B, 8, H, W]`` and ``features [B, C, h, w]``.

        What the task's features are divided by, the root of their mean square, is at least 1e-3: features that are 0
        everywhere give a description like any others.
        """
        maps = _averaged(maps, self.resolution.image)
        sequence = _averaged(features.to(maps.dtype), self.resolution.task).flatten(1)[:, None]
        scale = torch.rsqrt(sequence.float().square().mean(dim=2, keepdim=True) + _EPSILON)
        scaled = (sequence * scale).to(sequence.dtype)
        if self.resolution.channels:  # scales differ between networks more than needs do
            selection, query = (
                _over_channels(part(scaled), int(features.shape[1])) for part in (self.selection_task, self.query_task)
            )
        else:
            selection, query = self.selection_task(sequence).mean(dim=2), self.query_task(scaled).mean(dim=2)
        return Descriptor(
            torch.cat([selection, self.selection_image(maps).mean(dim=(2, 3))], dim=1),
            torch.cat([query, self.query_image(maps).mean(dim=(2, 3))], dim=1),
        )

    def macs(self, size: tuple[int, int], features: tuple[int, int, int]) -> int:
        """Multiplications for one map of ``size`` (height, width) and features of (channels, height, width)."""
        height, width = _bounded(size, self.resolution.image)
        channels, *side = features
        rows, columns = _bounded((side[0], side[1]), self.resolution.task)
        per_pixel = sum(conv.weight.numel() for conv in self.modules() if isinstance(conv, nn.Conv2d))
        per_value = sum(conv.weight.numel() for conv in self.modules() if isinstance(conv, nn.Conv1d))
        return per_pixel * height * width + per_value * channels * rows * columns


def _sequence_network(*widths: int, activated: bool = False) -> nn.Sequential:
    """Convolutions of three neighbours, with leaky ReLUs between them, or behind each."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Conv1d(inputs, outputs, 3, padding=1, bias=False), nn.LeakyReLU(_SLOPE)]
    return nn.Sequential(*(layers if activated else layers[:-1]))


def _map_network(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(outputs), nn.LeakyReLU(_SLOPE)]
    return nn.Sequential(*layers)


def _over_channels(rows: Tensor, channels: int) -> Tensor:
    """Cosine transform over channels: ``[B, K]`` of ``[B, K, C·h·w]``.

    Output k is the k-th coefficient of the means of its C channels, of the orthonormal transform, except that the first
    is the plain mean.
    """
    means = torch.unflatten(rows, 2, (channels, -1)).mean(dim=3)
    order = torch.arange(rows.shape[1], device=rows.device, dtype=torch.float32)[:, None]
    places = (torch.arange(channels, device=rows.device, dtype=torch.float32) + 0.5) / channels
    weights = torch.cos(torch.pi * order * places) * torch.where(order > 0, (2 / channels) ** 0.5, 1 / channels)
    return torch.einsum("bkc,kc->bk", means, weights.to(means.dtype))


def _bounded(size: tuple[int, int], most: int | None) -> tuple[int, int]:
    return size if most is None else (min(size[0], most), min(size[1], most))


def _averaged(maps: Tensor, most: int | None) -> Tensor:
    """Adaptive average pooling as two products of matrices: any size goes into a file so."""
    height, width = (int(side) for side in maps.shape[-2:])
    rows, columns = _bounded((height, width), most)
    if (rows, columns) == (height, width):
        return maps
    over_rows, over_columns = (_means(*sides).to(maps) for sides in ((height, rows), (width, columns)))
    return over_rows @ maps @ over_columns.T


def _means(count: int, fewer: int) -> Tensor:
    """``[fewer, count]``, rows that average the cells of adaptive pooling, which overlap where they do not come out."""
    matrix = torch.zeros(fewer, count)
    for row in range(fewer):
        first, behind = row * count // fewer, -(-(row + 1) * count // fewer)
        matrix[row, first:behind] = 1 / (behind - first)
    return matrix
