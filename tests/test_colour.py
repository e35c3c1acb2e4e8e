from __future__ import annotations

import pytest
import torch
from torch import Tensor

from duskfuse.data.colour import luminance, recombine, rgb_to_ycbcr, ycbcr_to_rgb


def colours(dtype: torch.dtype = torch.float64) -> Tensor:
    """Random colours with the corners of the cube and greys among them, [2, 3, 20, 30]."""
    generator = torch.Generator().manual_seed(0)
    picture = torch.rand(2, 3, 20, 30, generator=generator, dtype=torch.float64)
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 3)
    picture[0, :, 0, :8] = corners.T
    picture[1, :, 1] = torch.linspace(0, 1, 30, dtype=torch.float64)
    return picture.to(dtype)


def test_equations_on_known_colours():
    rgb = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1], [0.2, 0.5, 0.8]], dtype=torch.float64)
    ycbcr = rgb_to_ycbcr(rgb.T.reshape(3, 1, 5)).reshape(3, 5).T
    for (r, g, b), (y, cb, cr) in zip(rgb.tolist(), ycbcr.tolist(), strict=True):
        want = 0.299 * r + 0.587 * g + 0.114 * b
        assert y == pytest.approx(want, abs=1e-12)
        assert cb == pytest.approx(0.564 * (b - want) + 0.5, abs=1e-12)
        assert cr == pytest.approx(0.713 * (r - want) + 0.5, abs=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-6), (torch.float16, 4e-3)])
def test_round_trip(dtype: torch.dtype, tolerance: float):
    rgb = colours(dtype)
    back = ycbcr_to_rgb(rgb_to_ycbcr(rgb))
    assert back.dtype == dtype
    assert (back - rgb).abs().max() <= tolerance


def test_inverse_agrees_with_the_published_three_digits():
    ycbcr = rgb_to_ycbcr(colours())
    y, cb, cr = ycbcr.split(1, dim=-3)
    published = torch.cat(
        [y + 1.403 * (cr - 0.5), y - 0.714 * (cr - 0.5) - 0.344 * (cb - 0.5), y + 1.773 * (cb - 0.5)], dim=-3
    )
    assert (ycbcr_to_rgb(ycbcr) - published).abs().max() < 5e-4


def test_grey_has_neutral_chroma_and_shapes_without_batch():
    grey = torch.rand(1, 7, 9).expand(3, 7, 9)
    assert luminance(grey).shape == (1, 7, 9)
    assert torch.allclose(luminance(grey), grey[:1], atol=1e-7)
    assert torch.allclose(rgb_to_ycbcr(grey)[1:], torch.tensor(0.5), atol=1e-7)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 2e-7), (torch.float16, 2e-3)])
def test_recombined_luminance_is_exact_and_in_gamut(dtype: torch.dtype, tolerance: float):
    vis = colours(dtype)
    y = torch.rand(2, 1, 20, 30, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    y[0, 0, 0, :8], y[0, 0, 2], y[0, 0, 3] = 0.5, 0, 1
    rgb = recombine(y, vis)
    assert rgb.dtype == dtype
    assert rgb.min() >= 0
    assert rgb.max() <= 1
    assert (luminance(rgb) - y).abs().max() <= tolerance
    clipped = (y + vis - luminance(vis)).clamp(0, 1)
    assert (luminance(clipped) - y).abs().max() > 0.05  # what clipping per channel would do


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 2e-7), (torch.float16, 2e-3)])
def test_recombining_the_own_luminance_gives_the_picture_back(dtype: torch.dtype, tolerance: float):
    vis = colours(dtype)
    assert (recombine(luminance(vis), vis) - vis).abs().max() <= tolerance


def test_chroma_factor_is_the_largest_one():
    """Against bisection, pixel by pixel."""
    vis, y = colours()[0, :, :6, :8], torch.rand(1, 6, 8, generator=torch.Generator().manual_seed(2)).double()
    chroma = vis - luminance(vis)
    got = recombine(y, vis)
    for row in range(6):
        for column in range(8):
            c, level = chroma[:, row, column], y[0, row, column]
            low, high = 0.0, 1.0
            for _ in range(50):
                middle = (low + high) / 2
                fits = bool(((level + middle * c) >= 0).all() and ((level + middle * c) <= 1).all())
                low, high = (middle, high) if fits else (low, middle)
            assert torch.allclose(got[:, row, column], level + low * c, atol=1e-9)


def test_recombine_is_differentiable():
    vis = colours()[:1, :, :3, :4].clamp(0.05, 0.95)
    y = torch.rand(1, 1, 3, 4, generator=torch.Generator().manual_seed(3)).double().mul(0.9).add(0.05).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: recombine(t, vis), (y,), eps=1e-7, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_gradient_is_finite_on_grey_black_and_white(dtype: torch.dtype):
    vis = torch.stack([torch.zeros(3, 2, 2), torch.ones(3, 2, 2), torch.full((3, 2, 2), 0.4)]).to(dtype)
    vis.requires_grad_()
    y = torch.tensor([0.0, 0.5, 1.0], dtype=dtype).view(3, 1, 1, 1).expand(3, 1, 2, 2).clone().requires_grad_()
    recombine(y, vis).square().sum().backward()
    assert vis.grad is not None
    assert y.grad is not None
    assert vis.grad.isfinite().all()
    assert y.grad.isfinite().all()
