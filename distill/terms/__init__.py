"""Named scalar losses: functions of the fused picture that they move, maybe of one to compare with, and the context."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from enum import StrEnum
from typing import Self

from torch import Tensor

from duskfuse.distill.terms.contrastive import contrastive
from duskfuse.distill.terms.critics import detection, saliency, segmentation
from duskfuse.distill.terms.differential import salient_gradient
from duskfuse.distill.terms.diffusion import denoising
from duskfuse.distill.terms.distillation import (
    feature_adapters,
    features,
    gradient_reference,
    gradient_triplet,
    pixel_affine,
    pixel_reference,
    pixel_triplet,
    ssim_reference,
)
from duskfuse.distill.terms.fusion import (
    gradient_max,
    intensity_max,
    invented_edges,
    source_mse,
    ssim_sources,
    thermal_contrast,
)
from duskfuse.distill.terms.perceptual import perceptual
from duskfuse.distill.terms.quality import quality


class TermName(StrEnum):
    """Every loss that a recipe can name, with its function; a new one is a file and a line here."""

    function: Callable[..., Tensor]
    compares: bool
    """Whether the function takes another fused picture to compare with, between the live one and the context."""

    def __new__(cls, function: Callable[..., Tensor]) -> Self:
        """The member is called what its function is called."""
        member = str.__new__(cls, function.__name__)
        member._value_, member.function = function.__name__, function
        member.compares = len(inspect.signature(function).parameters) > 2
        return member

    SOURCE_MSE = (source_mse,)
    INTENSITY_MAX = (intensity_max,)
    GRADIENT_MAX = (gradient_max,)
    SALIENT_GRADIENT = (salient_gradient,)
    SSIM_SOURCES = (ssim_sources,)
    THERMAL_CONTRAST = (thermal_contrast,)
    INVENTED_EDGES = (invented_edges,)
    QUALITY = (quality,)
    PIXEL_TRIPLET = (pixel_triplet,)
    GRADIENT_TRIPLET = (gradient_triplet,)
    CONTRASTIVE = (contrastive,)
    FEATURES = (features,)
    FEATURE_ADAPTERS = (feature_adapters,)
    PIXEL_REFERENCE = (pixel_reference,)
    PIXEL_AFFINE = (pixel_affine,)
    PERCEPTUAL = (perceptual,)
    SSIM_REFERENCE = (ssim_reference,)
    GRADIENT_REFERENCE = (gradient_reference,)
    DENOISING = (denoising,)
    SEGMENTATION = (segmentation,)
    DETECTION = (detection,)
    SALIENCY = (saliency,)

    @property
    def meaning(self) -> str:
        """What it is, in a line."""
        return (inspect.getdoc(self.function) or "").splitlines()[0]
