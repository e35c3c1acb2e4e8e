"""DDFM's fusion step against loops over pixels and a dense linear system, and the slips of the published form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from duskfuse.teachers.ddfm_em import LAMBDA, RHO, EmState, em_step

Array = NDArray[np.float64]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}
TOTAL_VARIATION = 1e-3
"""By how much the penalty may move f out of the range of the sources, of a range of 2."""


def reference_step(
    f: Array, ir: Array, vis: Array, state: tuple[Array, Array, float, float], mirrored: bool
) -> tuple[Array, tuple[Array, Array, float, float]]:
    """One step of one picture ``[H, W]``, pixel by pixel; H by solving its linear system."""
    f1, f2, tau_a, tau_b = state
    height, width = f.shape
    y, x = ir - vis, f - vis
    c, d = np.zeros_like(f), np.zeros_like(f)
    for i in range(height):
        for j in range(width):
            c[i, j] = np.sqrt(2 / (tau_a * (y[i, j] - x[i, j] + 1e-6) ** 2))
            d[i, j] = min(np.sqrt(2 / (tau_b * (x[i, j] ** 2 + 1e-6))), 2 * c[i, j])
    tau_b_next, tau_a_next = np.mean(1 / d + tau_b / 2), np.mean(1 / c + tau_a / 2)

    pixels = height * width
    k1, k2 = np.zeros((pixels, pixels)), np.zeros((pixels, pixels))  # forward differences on a torus
    for i in range(height):
        for j in range(width):
            here = i * width + j
            k1[here, here] -= 1
            k1[here, i * width + (j + 1) % width] += 1
            k2[here, here] -= 1
            k2[here, (i + 1) % height * width + j] += 1
    right = (y - x).ravel() + k1.T @ f1.ravel() + k2.T @ f2.ravel()
    h = np.linalg.solve(np.eye(pixels) + k1.T @ k1 + k2.T @ k2, right).reshape(height, width)

    f1, f2 = h.copy(), h.copy()
    f1[:, :-1] -= h[:, 1:]
    f2[:-1] -= h[1:]
    shrink = RHO / (2 * LAMBDA + RHO)
    x = (2 * c * y + RHO * (y - h)) / (2 * c + 2 * d + RHO)
    return (ir - x if mirrored else vis + x), (shrink * f1, shrink * f2, tau_a_next, tau_b_next)


def pictures(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Random f, I and V in [−1, 1], some pixels of which agree exactly."""
    generator = torch.Generator().manual_seed(seed)
    f, ir, vis = (torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1 for _ in range(3))
    same = torch.rand(shape, generator=generator)
    ir = torch.where(same < 0.1, vis, ir)
    f = torch.where(same > 0.9, ir, torch.where(same > 0.8, vis, f))
    return [picture.to(dtype) for picture in (f, ir, vis)]


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("size", [(5, 7), (6, 4), (1, 5), (4, 1), (1, 1)])
def test_a_chain_of_steps_equals_the_reference(size: tuple[int, int], dtype: torch.dtype, mirrored: bool) -> None:
    batch = 3
    f, ir, vis = pictures(batch, 1, *size, dtype=dtype)
    state = EmState.before_first_step(ir)
    slow = [(np.zeros(size), np.zeros(size), 1.0, 1.0)] * batch
    for step in range(6):
        f = pictures(batch, 1, *size, seed=step, dtype=dtype)[0]
        fused, state = em_step(f, ir, vis, state, mirrored=mirrored)
        assert fused.dtype is dtype
        for n in range(batch):
            arrays = (picture[n, 0].double().numpy() for picture in (f, ir, vis))
            expected, slow[n] = reference_step(*arrays, slow[n], mirrored)
            assert np.abs(fused[n, 0].numpy() - expected).max() < TOLERANCE[dtype]
            f1, f2, tau_a, tau_b = slow[n]
            assert state.tau_ir[n].item() == pytest.approx(tau_a, rel=10 * TOLERANCE[dtype])
            assert state.tau_vis[n].item() == pytest.approx(tau_b, rel=10 * TOLERANCE[dtype])
            assert np.abs(state.columns[n, 0].numpy() - f1).max() < TOLERANCE[dtype]
            assert np.abs(state.rows[n, 0].numpy() - f2).max() < TOLERANCE[dtype]


def test_published_values() -> None:
    """What the published function gives for one picture, in double precision, after one and two steps."""
    f, ir, vis = (
        torch.tensor(rows, dtype=torch.float64)[None, None]
        for rows in (
            [[-0.8, 0.0, 0.3], [0.8, 0.1, -0.1]],
            [[-1.0, -0.5, 0.25], [0.9, 0.1, -0.2]],
            [[0.5, -0.4, 0.2], [-0.9, 0.3, -0.2]],
        )
    )
    once, state = em_step(f, ir, vis, EmState.before_first_step(ir), mirrored=True)
    twice, state = em_step(once, ir, vis, state, mirrored=True)
    one_step = [[0.3000049393, -0.4555665313, 0.2166642930], [-0.8000050196, 0.2999990000, -0.2000018783]]
    two_steps = [[-0.4998980286, -0.4391137509, 0.2308025982], [0.2998583752, 0.1666694662, -0.2000000000]]
    assert np.allclose(once[0, 0], one_step, rtol=0, atol=1e-9)
    assert np.allclose(twice[0, 0], two_steps, rtol=0, atol=1e-9)
    assert (state.tau_ir.item(), state.tau_vis.item()) == pytest.approx((0.6081652682, 0.6298327510), abs=1e-9)


@pytest.mark.parametrize("mirrored", [False, True])
def test_the_result_lies_between_the_sources_whatever_was_denoised(mirrored: bool) -> None:
    f, ir, vis = pictures(4, 1, 24, 31, dtype=torch.float32)
    low, high = torch.minimum(ir, vis), torch.maximum(ir, vis)
    state = EmState.before_first_step(ir)
    generator = torch.Generator().manual_seed(5)
    for _ in range(100):
        fused, state = em_step(f, ir, vis, state, mirrored=mirrored)
        assert (low - fused).max() < TOTAL_VARIATION
        assert (fused - high).max() < TOTAL_VARIATION
        f = (fused + torch.randn(f.shape, generator=generator)).clamp(-1, 1)


@pytest.mark.parametrize("mirrored", [False, True])
def test_agreement_is_a_fixed_point(mirrored: bool) -> None:
    picture = pictures(2, 1, 9, 8, dtype=torch.float32)[0]
    f, state = picture, EmState.before_first_step(picture)
    for _ in range(300):
        f, state = em_step(f, picture, picture, state, mirrored=mirrored)
    assert torch.allclose(f, picture, rtol=0, atol=1e-6)


def test_slip_a_the_published_step_mirrors_the_picture_between_the_sources() -> None:
    """f = I gives I, published V. f = V stays nearer V; it comes a third nearer because D is at most 2C."""
    f, ir, vis = pictures(2, 1, 9, 8)
    start = EmState.before_first_step(ir)
    corrected, published = (em_step(f, ir, vis, start, mirrored=mirrored)[0] for mirrored in (False, True))
    assert torch.allclose(published, ir + vis - corrected, rtol=0, atol=1e-12)
    for denoised, expected in ((ir, ir), (vis, vis + (ir - vis) / 3)):
        fused, _ = em_step(denoised, ir, vis, start)
        reflected, _ = em_step(denoised, ir, vis, start, mirrored=True)
        assert torch.allclose(fused, expected, rtol=0, atol=TOTAL_VARIATION)
        assert torch.allclose(reflected, ir + vis - expected, rtol=0, atol=TOTAL_VARIATION)


def test_infrared_denoised_is_infrared() -> None:
    """The specification's case, tighter: f = I gives I to 2e-6, because nothing but D pulls away from it."""
    _, ir, vis = pictures(1, 1, 16, 16)
    fused, _ = em_step(ir, ir, vis, EmState.before_first_step(ir))
    assert (fused - ir).abs().max() < 2e-6


def test_a_difference_that_cancels_the_published_offset_is_no_division_by_zero() -> None:
    """At one pixel I − f + 1e-6 is exactly zero."""
    ir, vis = torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)
    vis[..., 1:, :] = 0.5
    f = vis.clone()
    f[..., 0, 0] = 1e-6
    assert (ir - vis - (f - vis) + 1e-6)[0, 0, 0, 0] == 0
    fused, state = em_step(f, ir, vis, EmState.before_first_step(ir))
    assert fused[0, 0, 0, 0].abs() < 1e-5
    assert all(x.isfinite().all() for x in (fused, state.tau_ir, state.tau_vis, state.columns, state.rows))
