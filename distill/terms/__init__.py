"""Named scalar losses. A term takes the context, the live field it moves and the field it compares with."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from duskfuse.data.fuser import FusionOutput
from duskfuse.distill.context import BatchContext
from duskfuse.distill.recipe import TermName
from duskfuse.distill.terms.contrastive import contrastive
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
from duskfuse.distill.terms.fusion import gradient_max, intensity_max, source_mse, ssim_sources
from duskfuse.distill.terms.perceptual import perceptual
from duskfuse.distill.terms.segmentation import segmentation

SourceTerm = Callable[[FusionOutput, BatchContext], Tensor]
ReferenceTerm = Callable[[FusionOutput, FusionOutput, BatchContext], Tensor]

SOURCE_TERMS: dict[TermName, SourceTerm] = {
    TermName.SOURCE_MSE: source_mse,
    TermName.INTENSITY_MAX: intensity_max,
    TermName.GRADIENT_MAX: gradient_max,
    TermName.SSIM_SOURCES: ssim_sources,
    TermName.SEGMENTATION: segmentation,
}
REFERENCE_TERMS: dict[TermName, ReferenceTerm] = {
    TermName.PIXEL_TRIPLET: pixel_triplet,
    TermName.GRADIENT_TRIPLET: gradient_triplet,
    TermName.CONTRASTIVE: contrastive,
    TermName.FEATURES: features,
    TermName.FEATURE_ADAPTERS: feature_adapters,
    TermName.PIXEL_REFERENCE: pixel_reference,
    TermName.PIXEL_AFFINE: pixel_affine,
    TermName.PERCEPTUAL: perceptual,
    TermName.SSIM_REFERENCE: ssim_reference,
    TermName.GRADIENT_REFERENCE: gradient_reference,
    TermName.DENOISING: denoising,
}


def meanings() -> dict[str, str]:
    """What each term is, in a line."""
    functions = {**SOURCE_TERMS, **REFERENCE_TERMS}
    return {name.value: (function.__doc__ or "").splitlines()[0] for name, function in functions.items()}
