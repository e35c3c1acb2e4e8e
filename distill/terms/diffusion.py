"""The term that trains the denoiser of the conditional diffusion teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from duskfuse.data.fuser import FusionOutput

if TYPE_CHECKING:
    from duskfuse.distill.context import BatchContext


def denoising(fused: FusionOutput, reference: FusionOutput, context: BatchContext) -> Tensor:
    """MSE of what the denoiser's last convolution says, be it the noise (Ho et al. 2020, eq. 14) or the picture.

    An error of the picture divided by `ConditionalDenoiser.output_gain` is the error of that output, so one form serves
    both. Pictures are in [0, 1] here and in [−1, 1] there, hence the 2.
    """
    return (2 * (fused.y - reference.y) / context.denoiser_gain()).square().mean()
