"""Terms that know only the fused picture and its two sources."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from kornia.filters import spatial_gradient
from pytorch_msssim import ssim
from torch import Tensor

from duskfuse.data.fuser import FusionOutput

if TYPE_CHECKING:
    from duskfuse.distill.context import BatchContext


def sobel_magnitude(image: Tensor) -> Tensor:
    """g(x) = |Kx∗x| + |Ky∗x| with 3×3 Sobel kernels and replicated borders, ``[B, 1, H, W]`` → the same shape.

    Zero padding, as in the published code, would put an edge along every border.
    """
    gradients: Tensor = spatial_gradient(image, mode="sobel", normalized=False)
    return gradients.abs().sum(dim=2)


def source_gradient(context: BatchContext) -> Tensor:
    """∇max of the batch: the larger Sobel magnitude of the two sources, ``[B, 1, H, W]`` (SAGE §5)."""
    return torch.maximum(sobel_magnitude(context.batch.vis_y), sobel_magnitude(context.batch.ir))


def source_mse(fused: FusionOutput, context: BatchContext) -> Tensor:
    """MSE(o, vis) + MSE(o, ir) (SAGE, teacher objective)."""
    return F.mse_loss(fused.y, context.batch.vis_y) + F.mse_loss(fused.y, context.batch.ir)


def intensity_max(fused: FusionOutput, context: BatchContext) -> Tensor:
    """L1 between the fused luminance and the brighter source (SeAFusion, Tang et al. 2022, eq. 5)."""
    return F.l1_loss(fused.y, torch.maximum(context.batch.vis_y, context.batch.ir))


def gradient_max(fused: FusionOutput, context: BatchContext) -> Tensor:
    """L1(g(o), ∇max(vis, ir)): every edge of either source is wanted (SAGE, teacher objective)."""
    return F.l1_loss(sobel_magnitude(fused.y), source_gradient(context))


def ssim_sources(fused: FusionOutput, context: BatchContext) -> Tensor:
    """1 − mean SSIM with the two sources (Wang et al. 2004, 11×11 Gaussian window, range 1)."""
    both = structural_similarity(fused.y, context.batch.vis_y) + structural_similarity(fused.y, context.batch.ir)
    return 1 - both / 2


def structural_similarity(first: Tensor, second: Tensor) -> Tensor:
    """Mean SSIM of two ``[B, 1, H, W]`` batches; the window shrinks on pictures under 11 pixels."""
    window = min(11, *first.shape[-2:])
    value: Tensor = ssim(first, second, data_range=1.0, win_size=window - 1 + window % 2)
    return value
