"""Metrics as a loss, and the contrast of hot things."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from duskfuse.data.errors import InputError
from duskfuse.data.fuser import FusionOutput
from duskfuse.distill.context import Batch, BatchContext
from duskfuse.distill.pseudo_label import pseudo_label
from duskfuse.distill.recipe import FusionField
from duskfuse.distill.recipe_files import load_recipe
from duskfuse.distill.terms.fusion import AMPLIFICATION, invented_edges, thermal_contrast
from duskfuse.distill.terms.quality import quality
from duskfuse.tasks.fusion_quality import fusion_quality

WEIGHTS = {"VIF": 0.5, "Qabf": 2.0, "SCD": 0.3, "Nabf": 4.0}


def context_of(ir: Tensor, vis_y: Tensor, weights: dict[str, float] | None = None) -> BatchContext:
    empty = torch.zeros(len(ir), 1, *ir.shape[-2:], dtype=torch.bool)
    names = tuple(str(number) for number in range(len(ir)))
    return BatchContext(Batch(ir, vis_y.expand(-1, 3, -1, -1), empty, empty, names), {}, quality=weights)


def scene() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.rand(3, 1, 56, 64), torch.rand(3, 1, 56, 64)


def test_quality_is_the_weighted_sum_of_metrics():
    ir, vis_y = scene()
    fused = (0.6 * ir + 0.4 * vis_y).requires_grad_()
    context = context_of(ir, vis_y, WEIGHTS)
    found = fusion_quality(ir, context.batch.vis_y, fused, list(WEIGHTS))
    expected = 4 * found["Nabf"].mean() - sum(WEIGHTS[name] * found[name].mean() for name in ("VIF", "Qabf", "SCD"))
    value = quality(FusionOutput(fused), context)
    assert float(value.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    value.backward()
    assert fused.grad is not None
    assert fused.grad.isfinite().all()


def test_a_sample_without_a_value_counts_for_nothing_and_poisons_no_gradient():
    ir, vis_y = scene()
    vis_y[1] = 0.25  # a copied source has no SCD
    fused = torch.cat([0.5 * (ir + vis_y)[:1], ir[1:2], 0.5 * (ir + vis_y)[2:]]).requires_grad_()
    context = context_of(ir, vis_y, {"SCD": 1.0})
    scores = fusion_quality(ir, context.batch.vis_y, fused.detach(), ["SCD"])["SCD"]
    assert scores.isfinite().tolist() == [True, False, True]
    value = quality(FusionOutput(fused), context)
    assert float(value.detach()) == pytest.approx(-float(scores[[0, 2]].mean()), rel=1e-5)
    value.backward()
    assert fused.grad is not None
    assert fused.grad.isfinite().all()
    assert not fused.grad[1].any()
    nowhere = quality(FusionOutput(fused[1:2]), context_of(ir[1:2], vis_y[1:2], {"SCD": 1.0}))
    assert float(nowhere.detach()) == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["quality.EN=1", "steps.student.terms.quality=1"], "EN is no metric with a gradient"),
        (["quality.VIF=1"], "belong together"),
        (["steps.student.terms.quality=1"], "belong together"),
    ],
)
def test_a_recipe_names_what_can_be_learned(changes: list[str], said: str):
    with pytest.raises(InputError, match=said):
        load_recipe("cached_teacher", changes)
    assert load_recipe("cached_teacher", ["quality.VIF=0.5", "steps.student.terms.quality=1"]).quality == {"VIF": 0.5}


def test_a_person_as_bright_as_the_infrared_has_it_costs_nothing():
    ir, vis_y = torch.full((1, 1, 96, 128), 0.3), torch.full((1, 1, 96, 128), 0.1)
    ir[..., 40:60, 60:68] = 0.9
    context = context_of(ir, vis_y)

    def cost(fused: Tensor) -> float:
        return float(thermal_contrast(FusionOutput(fused), context))

    assert cost(ir) == 0
    assert cost(ir - 0.2) == pytest.approx(0, abs=1e-6)  # darker as a whole
    darker_street = torch.where(ir > 0.5, ir, vis_y)
    assert cost(darker_street) == pytest.approx(0, abs=1e-6)  # stands out even more
    assert cost(vis_y) > cost((ir + vis_y) / 2) > 1e-3
    flat = torch.full_like(ir, 0.5)
    assert float(thermal_contrast(FusionOutput(vis_y), context_of(flat, vis_y))) == pytest.approx(0, abs=1e-6)


def test_before_a_white_sky_no_contrast_is_asked_for():
    ir, white = torch.full((1, 1, 96, 128), 0.3), torch.ones(1, 1, 96, 128)
    ir[..., 40:60, 60:68] = 0.9
    assert float(thermal_contrast(FusionOutput(white), context_of(ir, white))) == pytest.approx(0, abs=1e-6)
    grey = 0.5 * white
    at_dusk = float(thermal_contrast(FusionOutput(grey), context_of(ir, grey)))
    at_night = float(thermal_contrast(FusionOutput(0 * white), context_of(ir, 0 * white)))
    assert at_dusk == pytest.approx(at_night / 2)


@pytest.mark.parametrize("size", [(4, 4), (7, 61), (33, 20)])
def test_contrast_of_any_size(size: tuple[int, int]):
    torch.manual_seed(0)
    ir, fused = torch.rand(2, 1, *size), torch.rand(2, 1, *size, requires_grad=True)
    thermal_contrast(FusionOutput(fused), context_of(ir, torch.rand(2, 1, *size))).backward()
    assert fused.grad is not None
    assert fused.grad.isfinite().all()


def test_the_picture_by_rule_is_a_reference_without_taps():
    ir, vis_y = scene()
    context = context_of(ir, vis_y)
    made = context.field(FusionField.PSEUDO_LABEL)
    assert torch.equal(made.y, pseudo_label(context.batch.vis_y, ir))
    load_recipe("cached_teacher", ["steps.student.terms.gradient_reference={weight: 1, reference: pseudo_label}"])
    with pytest.raises(InputError, match="needs feature maps"):
        load_recipe("cached_teacher", ["steps.student.terms.features={weight: 1, reference: pseudo_label}"])


def test_invented_edges_are_the_pixel_pairs_that_differ_more_than_the_sources_allow():
    ir, vis_y = scene()
    fused = torch.rand(3, 1, 56, 64).requires_grad_()
    total = 0.0
    for axis, shape in ((-1, (56, 63)), (-2, (55, 64))):
        found = 0.0
        for sample in range(3):
            made, first, second = (x[sample, 0].diff(dim=axis).abs() for x in (fused.detach(), vis_y, ir))
            for row in range(shape[0]):
                for column in range(shape[1]):
                    allowed = AMPLIFICATION * max(float(first[row, column]), float(second[row, column]))
                    found += max(float(made[row, column]) - allowed, 0.0)
        total += found / (3 * shape[0] * shape[1])
    value = invented_edges(FusionOutput(fused), context_of(ir, vis_y))
    assert float(value.detach()) == pytest.approx(total, rel=1e-4)
    value.backward()
    assert fused.grad is not None
    assert fused.grad.isfinite().all()
    for blend in (torch.maximum(ir, vis_y), ir, 1.4 * vis_y - 0.2):  # the edges of the sources are not invented
        assert float(invented_edges(FusionOutput(blend), context_of(ir, vis_y))) < 1e-7
