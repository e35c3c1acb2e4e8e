"""The triplet contrastive loss of SAGE: inside every mask, near the reference and away from the single source.

L_cs = Σ_{x∈{vis, ir}} Σ_k  d(o⊙P, ref⊙P) / d(o⊙P, x⊙P),  d(a, b) = Σ_layers ‖E(a) − E(b)‖,  averaged over the batch,
with P the k-th binary mask of modality x and E a frozen encoder with instance-normalised layers.

Corrections to the published code (SAGE specification §8, rows 6, 7, 9, 10): masks are binary, not grey patches; all
masks of both modalities go through the encoder in one call with a graph and one without; norms are per sample; the
denominator has a floor relative to how far the references are from the sources, so that an output equal to a source
cannot explode.
"""

from __future__ import annotations

import torch
from torch import Tensor

from duskfuse.data.fuser import FusionOutput
from duskfuse.distill.context import BatchContext

DENOMINATOR_FLOOR = 0.05
"""Fraction of the batch's mean reference-source distance under which a denominator is not allowed to fall."""
ABSOLUTE_FLOOR = 1e-6
GREY_CHANNELS = 3


def contrastive(fused: FusionOutput, reference: FusionOutput, context: BatchContext) -> Tensor:
    """L_cs of the batch; exactly 0 with zero gradient where no mask is valid."""
    if context.encoder is None:
        raise ValueError("the contrastive term needs a feature encoder")
    batch = context.batch
    samples, masks, sources = _valid_regions(batch.vis_y, batch.ir, batch.masks_vis, batch.masks_ir)
    if len(samples) == 0:
        return fused.y.sum() * 0
    live = context.encoder(_as_rgb(fused.y[samples] * masks))
    # A graph is kept for the reference only where it has one: that is the field's matter, not the term's.
    compared = context.encoder(_as_rgb(torch.cat([reference.y[samples] * masks, sources * masks])))
    at_reference = [layer[: len(samples)] for layer in compared]
    at_source = [layer[len(samples) :] for layer in compared]
    floor = (DENOMINATOR_FLOOR * _distance(at_reference, at_source).mean()).clamp_min(ABSOLUTE_FLOOR)
    denominator = _distance(live, at_source).clamp_min(floor)
    return (_distance(live, at_reference) / denominator).sum() / len(batch.ir)


def _valid_regions(vis_y: Tensor, ir: Tensor, masks_vis: Tensor, masks_ir: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sample index ``[R]``, mask and source ``[R, 1, H, W]`` of every non-empty mask of both modalities."""
    indices, masks, sources = [], [], []
    for source, planes in ((vis_y, masks_vis), (ir, masks_ir)):
        sample, slot = planes.flatten(2).any(dim=2).nonzero(as_tuple=True)
        indices.append(sample)
        masks.append(planes[sample, slot][:, None].to(source.dtype))
        sources.append(source[sample])
    return torch.cat(indices), torch.cat(masks), torch.cat(sources)


def _as_rgb(luminance: Tensor) -> Tensor:
    return luminance.expand(-1, GREY_CHANNELS, -1, -1)


def _distance(first: list[Tensor], second: list[Tensor]) -> Tensor:
    """Σ over layers of the Frobenius norm of the difference, one value per region, ``[R]``."""
    # The tiny constant keeps the gradient of the norm finite where both are equal.
    norms = [((a - b).square().flatten(1).sum(dim=1) + 1e-12).sqrt() - 1e-6 for a, b in zip(first, second, strict=True)]
    return torch.stack(norms).sum(dim=0)
