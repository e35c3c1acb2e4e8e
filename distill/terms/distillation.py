"""Terms that compare a fused picture with another network's: triplet losses of SAGE and plain distillation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from duskfuse.data.fuser import FusionOutput
from duskfuse.distill.context import BatchContext
from duskfuse.distill.terms.fusion import sobel_magnitude, source_gradient, structural_similarity

NORM_FLOOR = 1e-8


def pixel_triplet(fused: FusionOutput, reference: FusionOutput, context: BatchContext) -> Tensor:
    """L_pix = 3·MSE(o, vis) + 2·MSE(o, ir) + 4·MSE(o, ref) (SAGE §5)."""
    return (
        3 * F.mse_loss(fused.y, context.batch.vis_y)
        + 2 * F.mse_loss(fused.y, context.batch.ir)
        + 4 * F.mse_loss(fused.y, reference.y)
    )


def gradient_triplet(fused: FusionOutput, reference: FusionOutput, context: BatchContext) -> Tensor:
    """L_grad = 9·L1(g(o), ∇max(vis, ir)) + 3·L1(g(o), g(ref)) (SAGE §5)."""
    gradient = sobel_magnitude(fused.y)
    return 9 * F.l1_loss(gradient, source_gradient(context)) + 3 * F.l1_loss(gradient, sobel_magnitude(reference.y))


def features(fused: FusionOutput, reference: FusionOutput, context: BatchContext) -> Tensor:
    """L_fea = Σ_k (1 − mean_B cos(vec F_k, vec F_k^ref)) over the taps: 0 for equal directions, at most 2 per tap."""
    if len(fused.taps) != len(reference.taps) or not fused.taps:
        raise ValueError(f"{len(fused.taps)} and {len(reference.taps)} taps: both networks need the same, at least one")
    distances = [
        1 - _cosine(a.flatten(1), b.flatten(1)).mean() for a, b in zip(fused.taps, reference.taps, strict=True)
    ]
    return torch.stack(distances).sum()


def _cosine(first: Tensor, second: Tensor) -> Tensor:
    """Cosine of the rows of two ``[B, D]`` tensors; two zero rows count as equal, so that they cost nothing."""
    norms = first.norm(dim=1) * second.norm(dim=1)
    cosine = (first * second).sum(dim=1) / norms.clamp_min(NORM_FLOOR)
    both_zero = (first.norm(dim=1) + second.norm(dim=1)) < NORM_FLOOR
    return torch.where(both_zero, torch.ones_like(cosine), cosine)


def pixel_reference(fused: FusionOutput, reference: FusionOutput, context: BatchContext) -> Tensor:
    """L1(o, ref): plain distillation of the luminance."""
    return F.l1_loss(fused.y, reference.y)


def gradient_reference(fused: FusionOutput, reference: FusionOutput, context: BatchContext) -> Tensor:
    """L1(g(o), g(ref)): plain distillation of the edges."""
    return F.l1_loss(sobel_magnitude(fused.y), sobel_magnitude(reference.y))


def ssim_reference(fused: FusionOutput, reference: FusionOutput, context: BatchContext) -> Tensor:
    """1 − SSIM(o, ref)."""
    return 1 - structural_similarity(fused.y, reference.y)
