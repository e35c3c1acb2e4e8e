"""Adapters: what brings the student's feature maps to the widths of another network, so that both can be compared.

They belong to the student's optimiser and to the checkpoints of a run, and are left behind when the student is
exported (FitNets, Romero et al. 2015, section 2.2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from duskfuse.data.errors import InputError
from duskfuse.distill.context import Batch, BatchContext
from duskfuse.distill.recipe import FusionField, Owner, Recipe
from duskfuse.distill.terms import TermName

_PROBE_SIDE = 64


class FeatureAdapters(nn.Module):
    """One 1×1 convolution per pair of taps."""

    def __init__(self, student: Sequence[int], teacher: Sequence[int]) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in zip(student, teacher, strict=True))

    def forward(self, taps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The student's taps ``[B, C_k, h_k, w_k]`` with the other network's widths."""
        return tuple(convolution(tap) for convolution, tap in zip(self.convolutions, taps, strict=True))


def build_adapters(recipe: Recipe, networks: Mapping[Owner, nn.Module]) -> FeatureAdapters | None:
    """The adapters that the recipe needs, None where it has no term with them.

    Raises InputError when a feature term cannot compare the taps of student and main network.
    """
    terms = recipe.terms_used() & {TermName.FEATURES, TermName.FEATURE_ADAPTERS}
    if not terms or not {Owner.STUDENT, Owner.TEACHER} <= networks.keys():
        return None
    student, teacher = _tap_shapes(networks, recipe.data.masks)
    name = recipe.student.architecture
    if not student or len(student) != len(teacher):
        raise InputError(
            f"{name} has {len(student)} taps, the main network {len(teacher)}",
            rule="feature terms compare tap by tap",
            remedy=f"leave out {', '.join(sorted(terms))}, or take another student",
        )
    if TermName.FEATURES in terms and student != teacher:
        raise InputError(
            f"the taps of {name} have other widths or sizes than the main network's",
            rule=f"term {TermName.FEATURES} compares equal shapes",
            remedy=f"use the term {TermName.FEATURE_ADAPTERS}",
        )
    if TermName.FEATURE_ADAPTERS not in terms:
        return None
    return FeatureAdapters([channels for channels, *_ in student], [channels for channels, *_ in teacher])


def _tap_shapes(networks: Mapping[Owner, nn.Module], masks: int) -> tuple[list[list[int]], list[list[int]]]:
    """``[C, h, w]`` of every tap of both networks on a small empty picture."""
    device = next(networks[Owner.STUDENT].parameters()).device
    picture = torch.zeros(1, 3, _PROBE_SIDE, _PROBE_SIDE, device=device)
    planes = torch.zeros(1, masks, _PROBE_SIDE, _PROBE_SIDE, dtype=torch.bool, device=device)
    context = BatchContext(Batch(picture[:, :1], picture, planes, planes, ("probe",)), networks)
    for network in networks.values():
        network.eval()
    student, teacher = (context.field(field).taps for field in (FusionField.STUDENT_SG, FusionField.TEACHER_SG))
    return [list(tap.shape[1:]) for tap in student], [list(tap.shape[1:]) for tap in teacher]
