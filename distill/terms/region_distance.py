"""Squared distances between instance-normalised feature maps: of masked pictures, and of maps inside masks.

Instance normalisation without affine parameters is â = (a − μ)/√(σ² + ε) per sample and channel. `squared_distances` is
its distance to two fixed maps at once, with the gradient of the whole in closed form.

Maps of whole pictures are compared under the masks, which come to a layer's grid as shares of its cells, so that a mask
smaller than a cell keeps its part (thresholded at one half, 4 of 224 regions of real pairs vanish). The maps are
normalised as a whole, not anew inside each mask. On the same regions the ratios then agree less in rank with those of
masked pictures (0.53 against 0.64 with filters, 0.53 against 0.61 with SqueezeNet), while the gradients agree as well
(cosine 0.37 against 0.38, 0.13 against 0.14) and are found in half the time.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

EPSILON = 1e-5
"""ε of the instance normalisation, torch's own."""


def standardised(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Instance-normalised ``[R, C, h, w]`` and what it was multiplied by, ``[R, C, 1, 1]``.

    For maps without a graph; several times as fast as ``F.instance_norm`` on a CPU.
    """
    centred = maps - maps.mean(dim=(2, 3), keepdim=True)
    scale = (_channel_squares(centred)[..., None, None] / maps[0, 0].numel() + EPSILON).rsqrt()
    return centred.mul_(scale), scale


def between(first: Tensor, second: Tensor) -> Tensor:
    """‖a − b‖² of two ``[R, C, h, w]``, ``[R]``."""
    return _channel_squares(first - second).sum(dim=1)


def squared_distances(maps: Tensor, reference: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
    """‖â − r‖² and ‖â − s‖² of the instance-normalised maps, ``[R]`` each.

    Args:
        maps: a, ``[R, C, h, w]``.
        reference: r, instance-normalised; may carry a graph.
        source: s, instance-normalised, without a graph.
    """
    to_reference, to_source = _SquaredDistances.apply(maps, reference, source)
    return to_reference, to_source


class _SquaredDistances(torch.autograd.Function):
    """With G = ∂L/∂â, of mean zero as â, r and s are, ∂L/∂a = (G − â·mean(G·â)) / √(σ² + ε)."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, reference: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
        normal, scale = standardised(maps)
        ctx.save_for_backward(normal, scale, reference, source)
        return between(normal, reference), between(normal, source)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None]:
        normal, scale, reference, source = ctx.saved_tensors
        to_reference, to_source = (2 * gradient[:, None, None, None] for gradient in gradients)
        upper = (normal - reference).mul_(to_reference)
        of_reference = -upper if ctx.needs_input_grad[1] else None
        upper.add_((normal - source).mul_(to_source))
        along = (upper * normal).mean(dim=(2, 3), keepdim=True)
        return upper.addcmul_(normal, along, value=-1).mul_(scale), of_reference, None


def _channel_squares(maps: Tensor) -> Tensor:
    """Σ over cells of a², ``[R, C]``, the faster way for each memory format."""
    if not maps.is_contiguous():
        return maps.square().sum(dim=(2, 3))
    norms: Tensor = torch.linalg.vector_norm(maps.flatten(2), dim=2)
    return norms.square()


def cell_shares(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Which part of each cell of a grid ``size`` lies in each mask ``[B, K, H, W]``: ``[B, K, cells]`` in [0, 1]."""
    if masks.shape[2:] == size:
        return masks.flatten(2)
    rows, columns = (
        F.adaptive_avg_pool1d(torch.eye(pixels, dtype=masks.dtype, device=masks.device), cells)
        for pixels, cells in zip(masks.shape[2:], size, strict=True)
    )
    return (rows.T @ masks @ columns).flatten(2)


def squares_inside(first: Tensor, second: Tensor, shares: Tensor) -> Tensor:
    """Σ over channels and cells of w (a − b)², ``[B, K]``, of maps ``[B, C, h, w]`` and shares w ``[B, K, h·w]``."""
    squares = (first - second).square().sum(dim=1).flatten(1)
    return (shares @ squares[..., None]).squeeze(2)
