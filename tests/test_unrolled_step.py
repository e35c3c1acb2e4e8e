"""The unrolled step in the engine: real networks and terms, whole batches, recipes, and what it leaves untouched."""

from __future__ import annotations

import pytest
import torch

from duskfuse.distill.context import Batch, BatchContext
from duskfuse.distill.recipe import FusionField, Owner, TermName
from duskfuse.distill.terms import REFERENCE_TERMS
from duskfuse.students.unet import UNetStudent
from duskfuse.tasks.encoders import filter_encoder
from duskfuse.teachers.main_network import MainNetwork


def make_batch(seed: int = 0, size: int = 16, samples: int = 2) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    ir, vis = (torch.rand(samples, channels, size, size, generator=generator) for channels in (1, 3))
    masks = torch.rand(samples, 4, size, size, generator=generator) > 0.5
    names = tuple("abcdefgh"[:samples])
    return Batch(ir=ir, vis=vis, masks_ir=masks, masks_vis=masks.flip(0), names=names)


@pytest.mark.parametrize("name", [term for term in REFERENCE_TERMS if term is not TermName.DENOISING])
@pytest.mark.parametrize("owner", [Owner.STUDENT, Owner.TEACHER])
def test_in_a_coupled_context_every_term_reaches_both_networks(name: TermName, owner: Owner) -> None:
    """No term detaches by itself: then v or the mixed derivative would silently be zero."""
    torch.manual_seed(0)
    networks = {Owner.TEACHER: MainNetwork(), Owner.STUDENT: UNetStudent()}
    context = BatchContext(make_batch(), networks, filter_encoder(), coupled=True)
    twin = FusionField.TEACHER_SG if owner is Owner.STUDENT else FusionField.STUDENT_SG
    live = FusionField(owner.value)
    assert context.field(twin) is context.field(FusionField(twin.value.removesuffix("_sg")))
    REFERENCE_TERMS[name](context.field(live), context.field(twin), context).backward()
    for other, network in networks.items():
        reached = [p.grad for p in network.parameters() if p.grad is not None]
        assert reached, f"{name} does not reach the {other}"
        assert sum(float(gradient.abs().sum()) for gradient in reached) > 0
