"""Terms that compare a fused picture with another network's: triplet losses of SAGE and plain distillation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from duskfuse.data.colour import recombine
from duskfuse.data.fuser import FusionOutput
from duskfuse.distill.terms.fusion import sobel_magnitude, source_gradient, structural_similarity

if TYPE_CHECKING:
    from duskfuse.distill.context import BatchContext

NORM_FLOOR = 1e-8
VARIANCE_FLOOR = 1e-10


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


def feature_adapters(fused: FusionOutput, reference: FusionOutput, context: BatchContext) -> Tensor:
    """`features` for taps of other widths or sizes: the student's go through its adapters, the others' are pooled.

    0 for equal directions, at most 2 per tap.
    """
    if context.adapters is None:
        raise ValueError("the feature term needs adapters")
    distances = [
        1 - _cosine(ours.flatten(1), F.adaptive_avg_pool2d(theirs, (ours.shape[-2], ours.shape[-1])).flatten(1)).mean()
        for ours, theirs in zip(context.adapters(fused.taps), reference.taps, strict=True)
    ]
    return torch.stack(distances).sum()


def compared_pictures(fused: FusionOutput, reference: FusionOutput, context: BatchContext) -> tuple[Tensor, Tensor]:
    """Both pictures as the fused one is: luminance, or RGB, where a reference of luminance gets the visible chroma."""
    if fused.rgb is None:
        return fused.y, reference.y
    return fused.rgb, recombine(reference.y, context.batch.vis) if reference.rgb is None else reference.rgb


def pixel_reference(fused: FusionOutput, reference: FusionOutput, context: BatchContext) -> Tensor:
    """L1(o, ref): plain distillation of the luminance, or of the colours of a student that makes them."""
    return F.l1_loss(*compared_pictures(fused, reference, context))


def pixel_affine(fused: FusionOutput, reference: FusionOutput, context: BatchContext) -> Tensor:
    """L1(o, a·ref + b) with the a ≥ 0 and b of each sample that bring ref nearest to o (least squares).

    For references whose contrast was stretched: another scale or offset of ref changes nothing. It says nothing about
    the brightness and contrast of o either, so it needs a term beside it that does, such as ``intensity_max``. At the
    best a and b the squared error does not change with them: they are taken as constants.
    """
    picture, wanted = fused.y.flatten(1), reference.y.flatten(1)
    mean, mean_wanted = picture.mean(dim=1, keepdim=True), wanted.mean(dim=1, keepdim=True)
    centred = wanted - mean_wanted
    covariance = (centred * (picture - mean)).mean(dim=1, keepdim=True)
    scale = covariance.clamp_min(0) / centred.square().mean(dim=1, keepdim=True).clamp_min(VARIANCE_FLOOR)
    return F.l1_loss(picture, scale.detach() * centred + mean.detach())


def gradient_reference(fused: FusionOutput, reference: FusionOutput, context: BatchContext) -> Tensor:
    """L1(g(o), g(ref)): plain distillation of the edges."""
    return F.l1_loss(sobel_magnitude(fused.y), sobel_magnitude(reference.y))


def ssim_reference(fused: FusionOutput, reference: FusionOutput, context: BatchContext) -> Tensor:
    """1 − SSIM(o, ref)."""
    return 1 - structural_similarity(fused.y, reference.y)
