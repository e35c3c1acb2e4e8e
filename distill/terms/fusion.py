"""Terms that know only the fused picture and its two sources."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from kornia.filters import gaussian_blur2d, spatial_gradient
from pytorch_msssim import ssim
from torch import Tensor

from duskfuse.data.fuser import FusionOutput

if TYPE_CHECKING:
    from duskfuse.distill.context import BatchContext


_CONTRAST_WINDOW = 17  # of the fourth-size picture: two and two thirds sigma to either side
_LEAST_CONTRAST = 0.1  # under this, nothing hot is in the picture, and noise is not to be pulled up


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


CONTRAST_SIGMA = 12.0
"""Pixels; what is smaller than about twice this stands out or does not."""


def thermal_contrast(fused: FusionOutput, context: BatchContext) -> Tensor:
    """Hot things stand out as in the infrared: mean over the picture of w · relu(D(ir) − D(o)).

    D(x) = x − S(x), with S(x) the Gaussian mean, is how much a place is brighter than its surroundings. A fused picture
    may be brighter or darker as a whole, as long as the person is as much brighter than what is around as the infrared
    has it. w = (1 − S(vis)) · relu(D(ir)) / max: before a bright sky nothing can be brighter, and asking for it would
    darken the sky around every warm roof.
    """
    wanted = (context.batch.ir - _surroundings(context.batch.ir)).clamp_min(0)
    weight = wanted / wanted.amax(dim=(1, 2, 3), keepdim=True).clamp_min(_LEAST_CONTRAST)
    weight = weight * (1 - _surroundings(context.batch.vis_y))
    return (weight * (wanted - (fused.y - _surroundings(fused.y))).clamp_min(0)).mean()


AMPLIFICATION = 1.5
"""How much stronger an edge may be than in the source that has it most."""


def invented_edges(fused: FusionOutput, context: BatchContext) -> Tensor:
    """No edge where no source has one: mean of relu(|∂o| − 1.5·max(|∂vis|, |∂ir|)) over differences along x and y.

    What a blend can add by itself: steps between blocks, halos, noise pulled up in flat skies.
    """
    total = fused.y.new_zeros(())
    for axis in (-1, -2):
        made, vis, ir = (x.diff(dim=axis).abs() for x in (fused.y, context.batch.vis_y, context.batch.ir))
        total = total + F.relu(made - AMPLIFICATION * torch.maximum(vis, ir)).mean()
    return total


def _surroundings(picture: Tensor) -> Tensor:
    """Mean in Gaussian windows of ``CONTRAST_SIGMA`` around every pixel, computed on a fourth of the pixels a side."""
    small = F.avg_pool2d(picture, 4, ceil_mode=True)
    side = min(_CONTRAST_WINDOW, *(2 * ((n - 1) // 2) + 1 for n in small.shape[-2:]))
    smooth = gaussian_blur2d(small, (side, side), (CONTRAST_SIGMA / 4, CONTRAST_SIGMA / 4), border_type="reflect")
    return F.interpolate(smooth, size=picture.shape[-2:], mode="bilinear", align_corners=False)


def ssim_sources(fused: FusionOutput, context: BatchContext) -> Tensor:
    """1 − mean SSIM with the two sources (Wang et al. 2004, 11×11 Gaussian window, range 1)."""
    both = structural_similarity(fused.y, context.batch.vis_y) + structural_similarity(fused.y, context.batch.ir)
    return 1 - both / 2


def structural_similarity(first: Tensor, second: Tensor) -> Tensor:
    """Mean SSIM of two ``[B, 1, H, W]`` batches; the window shrinks on pictures under 11 pixels."""
    window = min(11, *first.shape[-2:])
    value: Tensor = ssim(first, second, data_range=1.0, win_size=window - 1 + window % 2)
    return value
