"""Metrics as tensors: the numbers of the numpy metrics, and gradients that are right."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from duskfuse.evaluate.metrics import DEFAULT_METRICS, SourceStatistics, fusion_metrics
from duskfuse.tasks.fusion_quality import QUALITY_METRICS, STRAIGHT_THROUGH, WITHOUT_GRADIENT, fusion_quality

SMOOTH = [name for name in QUALITY_METRICS if name not in WITHOUT_GRADIENT | STRAIGHT_THROUGH]


def pictures(height: int, width: int, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    ir = 60 + 150 * ((rows - height / 2) ** 2 + (columns - width / 3) ** 2 < height**2 / 16)
    vis = 120 + 70 * np.sin(columns / 6) * np.cos(rows / 9)
    ir, vis = (plane + rng.normal(0, 8, plane.shape) for plane in (ir, vis))
    fused = 0.6 * np.maximum(ir, vis) + 0.4 * vis + rng.normal(0, 3, vis.shape)
    return [np.clip(np.rint(plane), 0, 255).astype(np.uint8) for plane in (ir, vis, fused)]


def tensors(planes: list[np.ndarray], dtype: torch.dtype) -> list[torch.Tensor]:
    return [torch.from_numpy(plane)[None, None].to(dtype) / 255 for plane in planes]


def test_every_default_metric_is_there():
    assert set(DEFAULT_METRICS) <= set(QUALITY_METRICS)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", [(176, 190), (167, 201)])
def test_numbers_of_a_batch(shape: tuple[int, int], dtype: torch.dtype):
    several = [pictures(*shape, seed) for seed in (0, 1)]
    batch = [torch.cat(planes) for planes in zip(*(tensors(one, dtype) for one in several), strict=True)]
    found = fusion_quality(*batch, metrics=QUALITY_METRICS)
    for sample, (ir, vis, fused) in enumerate(several):
        expected = fusion_metrics(SourceStatistics(ir, vis), fused, QUALITY_METRICS)
        got = {name: float(values[sample]) for name, values in found.items()}
        assert got == pytest.approx(expected, rel=1e-4 if dtype == torch.float32 else 1e-7)


@pytest.mark.parametrize("name", SMOOTH)
def test_gradients(name: str):
    side = 176 if name == "MS-SSIM" else 44
    ir, vis, fused = tensors(pictures(side, side, 2), torch.float64)
    rng = np.random.default_rng(4)
    # off the grid of grey levels, where equal edges and upright angles are exact, a metric is smooth
    offset = torch.from_numpy(rng.uniform(0.1, 0.4, (3, 1, 1, side, side))) / 255
    ir, vis, fused = (plane + shift for plane, shift in zip((ir, vis, fused), offset, strict=True))
    direction = torch.from_numpy(rng.normal(size=fused.shape))
    step = torch.zeros((), dtype=torch.float64, requires_grad=True)

    def along(t: torch.Tensor) -> torch.Tensor:
        return fusion_quality(ir, vis, fused + t * direction, [name])[name].sum()

    assert torch.autograd.gradcheck(along, (step,), eps=1e-8, atol=1e-4, rtol=2e-3)


@pytest.mark.parametrize("name", sorted(STRAIGHT_THROUGH))
def test_rounding_lets_the_gradient_through(name: str):
    ir, vis, fused = tensors(pictures(48, 48, 3), torch.float64)
    fused.requires_grad_()
    fusion_quality(ir, vis, fused, [name])[name].sum().backward()
    assert fused.grad is not None
    assert torch.isfinite(fused.grad).all()
    assert fused.grad.abs().max() > 0


@pytest.mark.parametrize("name", [name for name in QUALITY_METRICS if name not in WITHOUT_GRADIENT])
def test_flat_parts_leave_the_gradient_finite(name: str):
    ir, vis, fused = tensors(pictures(64, 64, 3), torch.float32)
    for plane in (ir, vis, fused):
        plane[..., :20, :20] = 0.5
    fused = fused.requires_grad_()
    value = fusion_quality(ir, vis, fused, [name])[name]
    if torch.isfinite(value):  # MS-SSIM is undefined at this size
        value.sum().backward()
        assert fused.grad is not None
        assert torch.isfinite(fused.grad).all()


def test_undefined_and_wrong():
    small = torch.rand(2, 1, 9, 9)
    found = fusion_quality(small, small.flip(0), small, ["SSIM", "VIF", "MS-SSIM", "EN"])
    assert all(torch.isnan(found[name]).all() for name in ("SSIM", "VIF", "MS-SSIM"))
    assert torch.isfinite(found["EN"]).all()
    with pytest.raises(ValueError, match="want three"):
        fusion_quality(small, small[..., :8], small, ["EN"])
