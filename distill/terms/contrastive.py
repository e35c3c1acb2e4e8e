"""The triplet contrastive loss of SAGE: inside every mask, near the reference and away from the single source.

L_cs = Σ_{x∈{vis, ir}} Σ_k  d(o⊙P, ref⊙P) / d(o⊙P, x⊙P),  d(a, b) = Σ_layers ‖E(a) − E(b)‖,
with P the k-th binary mask of modality x and E a frozen encoder with instance-normalised layers.

Corrections to the published code (SAGE specification §8, rows 6, 7, 9, 10): masks are binary, not grey patches; all
masks of both modalities go through the encoder in one call with a graph and two without; the denominator has a floor
relative to how far the references are from the sources, so that an output equal to a source cannot explode. Norms run
over one sample, and the loss is a mean over the batch; or over the whole batch, as published (`Norm`).

The paper adds a ratio per layer, its code divides two sums over the layers. The second is taken, for both norms: a
ratio of one layer explodes as soon as the output cannot be told from the source in that layer alone, while a sum over
layers vanishes only where all of them agree.

With `Masking.FEATURE` every picture is encoded once and the masks select from its maps, see
`duskfuse.distill.terms.region_distance`.

The sources' side depends on neither network, so it is made once for a batch, whoever looks at it and however often, as
the unrolled step does. A fused picture's side is never kept: owners that alternate see different batches, and between
two losses of an unrolled step either the weights behind the picture differ or each loss needs a graph of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from duskfuse.data.fuser import FusionOutput
from duskfuse.distill.terms.region_distance import (
    between,
    cell_shares,
    squared_distances,
    squares_inside,
    standardised,
)
from duskfuse.tasks.encoders import FeatureEncoder

if TYPE_CHECKING:
    from duskfuse.distill.context import Batch, BatchContext


class Masking(StrEnum):
    """Where the contrastive term applies its masks."""

    IMAGE = "image"
    """To the pictures: one encoding per mask, as SAGE does."""
    FEATURE = "feature"
    """To the feature maps: one encoding per picture, however many masks there are."""


class Norm(StrEnum):
    """What one Frobenius norm of the contrastive term runs over."""

    SAMPLE = "sample"
    """One mask of one sample: samples do not depend on each other."""
    BATCH = "batch"
    """One mask slot of the whole batch, as in SAGE's code."""


DENOMINATOR_FLOOR = 0.05
"""Fraction of the batch's mean reference-source distance under which a denominator is not allowed to fall."""
ABSOLUTE_FLOOR = 1e-6
GREY_CHANNELS = 3


class _Squares(NamedTuple):
    """Squared distances of every region in every layer, ``[L, R]``."""

    to_reference: Tensor
    to_source: Tensor
    reference_to_source: Tensor


class _Regions(NamedTuple):
    """The R non-empty masks of both modalities."""

    planes: Tensor
    """``[B, K, H, W]`` bool: all mask slots of the visible modality, then those of the infrared one."""
    sample: Tensor
    """``[R]`` int64."""
    slot: Tensor
    """``[R]`` int64."""


def contrastive(fused: FusionOutput, reference: FusionOutput, context: BatchContext) -> Tensor:
    """L_cs of the batch; exactly 0 with zero gradient where no mask is valid.

    Gradients reach the reference where it carries a graph.
    """
    encoder, batch, form = context.encoder, context.batch, context.contrastive
    if encoder is None:
        raise ValueError("the contrastive term needs a feature encoder")
    regions = _regions(batch)
    if len(regions.sample) == 0:
        return fused.y.sum() * 0
    if form.masking is Masking.IMAGE:
        squares = _of_masked_pictures(fused.y, reference.y, regions, batch, encoder)
    else:
        squares = _of_masked_maps(fused.y, reference.y, regions, batch, encoder)
    if form.norm is Norm.BATCH:
        squares = _over_the_batch(squares, regions.slot)
    numerator, denominator, apart = (_root(square).sum(dim=0) for square in squares)
    floor = (DENOMINATOR_FLOOR * apart.mean()).clamp_min(ABSOLUTE_FLOOR)
    ratios = numerator / denominator.clamp_min(floor)
    return ratios.sum() if form.norm is Norm.BATCH else ratios.sum() / len(batch.ir)


def _regions(batch: Batch) -> _Regions:
    planes = torch.cat([batch.masks_vis, batch.masks_ir], dim=1)
    return _Regions(planes, *planes.flatten(2).any(dim=2).nonzero(as_tuple=True))


def _of_masked_pictures(
    fused: Tensor, reference: Tensor, regions: _Regions, batch: Batch, encoder: FeatureEncoder
) -> _Squares:
    """One encoding per region and picture: E(o⊙P), E(ref⊙P), E(x⊙P)."""

    _, sample, slot = regions
    masks = regions.planes[sample, slot][:, None].to(fused.dtype)

    def masked(picture: Tensor) -> Iterable[list[Tensor]]:
        return encoder.parts(_as_rgb(picture.index_select(0, sample) * masks))

    key = (contrastive, Masking.IMAGE, encoder)
    if key not in batch.derived:
        of_ir = (slot >= batch.masks_vis.shape[1]).long()
        sources = torch.stack([batch.vis_y, batch.ir], dim=1)[sample, of_ir]
        with torch.no_grad():
            batch.derived[key] = _standardised(encoder.parts(_as_rgb(sources * masks)))
    if reference.requires_grad:
        references = [[F.instance_norm(layer) for layer in part] for part in masked(reference)]
    else:
        with torch.no_grad():
            references = _standardised(masked(reference))
    parts = []
    for live, refs, sources in zip(masked(fused), references, batch.derived[key], strict=True):
        apart = torch.stack([between(ref, x) for ref, x in zip(refs, sources, strict=True)])
        pairs = [squared_distances(*maps) for maps in zip(live, refs, sources, strict=True)]
        parts.append((*(torch.stack(values) for values in zip(*pairs, strict=True)), apart))
    return _Squares(*(torch.cat(values, dim=1) for values in zip(*parts, strict=True)))


def _of_masked_maps(
    fused: Tensor, reference: Tensor, regions: _Regions, batch: Batch, encoder: FeatureEncoder
) -> _Squares:
    """One encoding per picture: its maps inside the masks."""
    key = (contrastive, Masking.FEATURE, encoder)
    if key not in batch.derived:
        with torch.no_grad():
            batch.derived[key] = [
                [standardised(layer)[0] for layer in encoder.raw(_as_rgb(x))] for x in (batch.vis_y, batch.ir)
            ]
    live = encoder(_as_rgb(fused))
    references = encoder(_as_rgb(reference))
    planes = regions.planes.to(fused.dtype)
    layers = []
    for o, ref, vis, ir in zip(live, references, *batch.derived[key], strict=True):
        shares = cell_shares(planes, o.shape[2:])
        of_vis, of_ir = torch.tensor_split(shares, [batch.masks_vis.shape[1]], dim=1)
        to_source = torch.cat([squares_inside(o, vis, of_vis), squares_inside(o, ir, of_ir)], dim=1)
        apart = torch.cat([squares_inside(ref, vis, of_vis), squares_inside(ref, ir, of_ir)], dim=1)
        layers.append((squares_inside(o, ref, shares), to_source, apart))
    return _Squares(*(torch.stack(values)[:, regions.sample, regions.slot] for values in zip(*layers, strict=True)))


def _over_the_batch(squares: _Squares, slot: Tensor) -> _Squares:
    """Sums over the samples of every slot that is not empty in all of them."""
    used, group = torch.unique(slot, return_inverse=True)
    return _Squares(*(values.new_zeros(len(values), len(used)).index_add(1, group, values) for values in squares))


def _standardised(parts: Iterable[list[Tensor]]) -> list[list[Tensor]]:
    return [[standardised(layer)[0] for layer in part] for part in parts]


def _as_rgb(luminance: Tensor) -> Tensor:
    return luminance.expand(-1, GREY_CHANNELS, -1, -1)


def _root(squares: Tensor) -> Tensor:
    # The tiny constant keeps the gradient of the norm finite where both are equal.
    return (squares + 1e-12).sqrt() - 1e-6
