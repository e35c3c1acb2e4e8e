"""Structural alignment: two maps are weighed by how much each resembles the stronger edges of both, by SSIM.

SLGNet's equations 3 to 6, without parameters; `ComparedWith` says where they are corrected. Features have no range of
their own, so both sides of the comparison are brought to [0, 1] first, or the constants of SSIM would mean nothing.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW = 7
_C1, _C2 = 0.01**2, 0.03**2
_LEAST_RANGE = 1e-6


class ComparedWith(StrEnum):
    """What of a modality is compared with the reference edges."""

    GRADIENT = "gradient"
    """Its edges: the camera whose edges are sharp has the larger vote."""
    FEATURE = "feature"
    """The map itself, as the published equation says; blurred edges then get no smaller vote than sharp ones."""


class Aligned(NamedTuple):
    """One level of structure, ``[B, C, h, w]`` each."""

    fused: Tensor
    """M_v · F_v + M_t · F_t: the votes do not add up to 1."""
    visible_vote: Tensor
    """M_v, in [σ(−1), σ(1)] = [0.269, 0.731]."""
    infrared_vote: Tensor


def align(
    visible: Tensor, infrared: Tensor, window: int = WINDOW, compared: ComparedWith = ComparedWith.GRADIENT
) -> Aligned:
    """Fuse two maps ``[B, C, h, w]`` of one level; computed in float32 whatever the maps are.

    Args:
        visible: F_v.
        infrared: F_t.
        window: side of SSIM's window in cells, odd; it shrinks to the map where that is smaller.
        compared: what of each modality is held against the edges.
    """
    with torch.autocast(visible.device.type, enabled=False):
        first, second = visible.float(), infrared.float()
        edges = sobel_magnitude(first), sobel_magnitude(second)
        (reference,) = _to_unit_range(torch.maximum(*edges))
        sides = (first, second) if compared is ComparedWith.FEATURE else edges
        visible_vote, infrared_vote = (ssim(side, reference, window).sigmoid() for side in _to_unit_range(*sides))
        fused = visible_vote * first + infrared_vote * second
    return Aligned(fused.to(visible.dtype), visible_vote, infrared_vote)


def sobel_magnitude(maps: Tensor) -> Tensor:
    """Length of the gradient of each channel of ``[B, C, h, w]``; borders are continued, so they are no edges."""
    padded = F.pad(maps, (1, 1, 1, 1), mode="replicate")
    across, down = padded[..., 2:] - padded[..., :-2], padded[..., 2:, :] - padded[..., :-2, :]
    x = across[..., :-2, :] + 2 * across[..., 1:-1, :] + across[..., 2:, :]
    y = down[..., :-2] + 2 * down[..., 1:-1] + down[..., 2:]
    return (x.square() + y.square() + torch.finfo(maps.dtype).tiny).sqrt()


def ssim(first: Tensor, second: Tensor, window: int = WINDOW) -> Tensor:
    """Structural similarity of each channel at each cell of maps ``[B, C, h, w]`` in [0, 1] (Wang et al. 2004).

    Means over a square window, of which the part inside the map counts. In [−1, 1].
    """
    shortest = min(first.shape[-2:])
    side = min(window, shortest - 1 + shortest % 2)  # the largest odd window that fits

    def mean(maps: Tensor) -> Tensor:
        return F.avg_pool2d(maps, side, stride=1, padding=side // 2, count_include_pad=False)

    a, b = mean(first), mean(second)
    spread_a = (mean(first.square()) - a.square()).clamp_min(0)
    spread_b = (mean(second.square()) - b.square()).clamp_min(0)
    shared = mean(first * second) - a * b
    bound = (spread_a * spread_b).sqrt().detach()  # rounding must not take the covariance past it
    shared = shared.clamp(-bound, bound)
    return (2 * a * b + _C1) * (2 * shared + _C2) / ((a.square() + b.square() + _C1) * (spread_a + spread_b + _C2))


def _to_unit_range(*maps: Tensor) -> list[Tensor]:
    """Maps with the least value of each sample's channel over all of them at 0 and the largest at 1; constant: 0."""
    lowest = torch.stack([m.detach().amin(dim=(2, 3), keepdim=True) for m in maps]).amin(dim=0)
    highest = torch.stack([m.detach().amax(dim=(2, 3), keepdim=True) for m in maps]).amax(dim=0)
    return [(m - lowest) / (highest - lowest).clamp_min(_LEAST_RANGE) for m in maps]
