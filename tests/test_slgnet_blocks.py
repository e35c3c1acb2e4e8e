"""Deformable attention and structural alignment against slow, obvious forms."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from duskfuse.tasks.slgnet.alignment import ComparedWith, align, sobel_magnitude, ssim
from duskfuse.tasks.slgnet.deformable import DeformableAttention, sampled

LEAST, MOST = 1 / (1 + math.e), 1 / (1 + math.exp(-1))


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def looked_up(values: Tensor, x: float, y: float) -> Tensor:
    """Bilinear value of ``[h, w, d]`` at a place in cells, 0 outside."""
    left, top = math.floor(x - 0.5), math.floor(y - 0.5)
    result = torch.zeros(values.shape[-1], dtype=values.dtype)
    for row in (top, top + 1):
        for column in (left, left + 1):
            if 0 <= row < values.shape[0] and 0 <= column < values.shape[1]:
                result += (1 - abs(y - 0.5 - row)) * (1 - abs(x - 0.5 - column)) * values[row, column]
    return result


def attended_slowly(
    attention: DeformableAttention, queries: Tensor, centres: Tensor, maps: list[Tensor], strides: tuple[int, ...]
) -> Tensor:
    """The same by a loop over batch, query, head, level and place."""
    batch, count, _ = queries.shape
    heads, levels, points = attention.heads, attention.levels, attention.points
    offsets = attention.offsets(queries).view(batch, count, heads, levels, points, 2)
    weights = attention.weights(queries).view(batch, count, heads, levels * points).softmax(-1)
    values = [attention.value(level) for level in maps]
    inner = values[0].shape[-1] // heads
    result = torch.zeros(batch, count, heads * inner, dtype=queries.dtype)
    for b in range(batch):
        for q in range(count):
            for h in range(heads):
                for level in range(levels):
                    for k in range(points):
                        x, y = (centres[q] / strides[level] + offsets[b, q, h, level, k]).tolist()
                        part = values[level][b, :, :, h * inner : (h + 1) * inner]
                        weight = weights[b, q, h, level * points + k]
                        result[b, q, h * inner : (h + 1) * inner] += weight * looked_up(part, x, y)
    return attention.out(result)  # type: ignore[no-any-return]


@torch.no_grad()
def test_deformable_attention_equals_the_loop() -> None:
    torch.manual_seed(0)
    attention = DeformableAttention(8, heads=2, levels=3, points=2).double()
    attention.offsets.weight.normal_(std=0.5)
    attention.weights.weight.normal_()
    queries, maps = randn(2, 6, 8), [randn(2, 8, 12, 8, seed=1), randn(2, 4, 6, 8, seed=2), randn(2, 2, 3, 8, seed=3)]
    centres = torch.rand(6, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64) * 96
    fast = attention(queries, centres, maps, (8, 16, 32))
    slow = attended_slowly(attention, queries, centres, maps, (8, 16, 32))
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-12)


def test_a_place_in_the_middle_of_a_cell_gives_the_cell() -> None:
    values = randn(1, 5, 7, 4)
    rows, columns = torch.meshgrid(torch.arange(5), torch.arange(7), indexing="ij")
    centres = torch.stack([columns, rows], dim=-1).double().view(1, 35, 1, 1, 2) + 0.5
    ones = torch.ones(1, 35, 1, 1, dtype=torch.float64)
    torch.testing.assert_close(sampled(values, centres, ones), values.flatten(1, 2))
    between = sampled(values, torch.full((1, 1, 1, 1, 2), 2.0, dtype=torch.float64), ones[:, :1])
    torch.testing.assert_close(between[0, 0], values[0, 1:3, 1:3].mean(dim=(0, 1)))


def test_an_offset_of_one_cell_undoes_a_shift_of_one_cell() -> None:
    values = randn(1, 6, 8, 4)
    shifted = F.pad(values, (0, 0, 1, 0))[:, :, :8]  # one to the right
    places = torch.tensor([[3.5, 2.5], [4.0, 3.2], [1.7, 5.1]], dtype=torch.float64).view(1, 3, 1, 1, 2)
    ones = torch.ones(1, 3, 1, 1, dtype=torch.float64)
    back = sampled(shifted, places - torch.tensor([-1.0, 0.0], dtype=torch.float64), ones)
    torch.testing.assert_close(back, sampled(values, places, ones))


def test_the_gradient_to_places_and_weights_is_right() -> None:
    values = randn(1, 3, 4, 4).requires_grad_()
    places = (
        torch.rand(1, 2, 2, 2, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64) * 2.8 + 0.1
    ).requires_grad_()
    weights = randn(1, 2, 2, 2, seed=6).requires_grad_()
    assert torch.autograd.gradcheck(sampled, (values, places, weights))


def test_heads_look_in_directions_of_their_own_at_the_start() -> None:
    attention = DeformableAttention(24, heads=4, levels=3, points=2)
    ring = attention.offsets.bias.view(4, 3, 2, 2)
    expected = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
    torch.testing.assert_close(ring[:, 1, 0], expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(ring[:, 2, 1], 2 * expected, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="12 channels of values for 5 heads"):
        DeformableAttention(24, heads=5)


# --- alignment ---


def ssim_slowly(first: Tensor, second: Tensor, side: int) -> Tensor:
    """Window by window; the part inside the map counts."""
    result = torch.zeros_like(first)
    half = side // 2
    for row in range(first.shape[0]):
        for column in range(first.shape[1]):
            window = (slice(max(0, row - half), row + half + 1), slice(max(0, column - half), column + half + 1))
            a, b = first[window], second[window]
            spread_a, spread_b = a.var(correction=0), b.var(correction=0)
            shared = ((a - a.mean()) * (b - b.mean())).mean()
            result[row, column] = ((2 * a.mean() * b.mean() + 1e-4) * (2 * shared + 9e-4)) / (
                (a.mean() ** 2 + b.mean() ** 2 + 1e-4) * (spread_a + spread_b + 9e-4)
            )
    return result


@pytest.mark.parametrize(
    ("size", "window", "side"), [((9, 12), 7, 7), ((9, 12), 3, 3), ((4, 12), 7, 3), ((1, 2), 7, 1)]
)
def test_ssim_equals_the_loop_and_its_window_shrinks(size: tuple[int, int], window: int, side: int) -> None:
    first, second = randn(*size).sigmoid(), randn(*size, seed=1).sigmoid()
    fast = ssim(first[None, None], second[None, None], window)[0, 0]
    torch.testing.assert_close(fast, ssim_slowly(first, second, side), rtol=0, atol=1e-12)
    torch.testing.assert_close(ssim(first[None, None], first[None, None], window)[0, 0], torch.ones_like(first))


def test_sobel_of_a_ramp_is_its_slope_without_an_edge_at_the_border() -> None:
    ramp = torch.arange(6.0).expand(1, 2, 5, 6)
    magnitude = sobel_magnitude(ramp)
    torch.testing.assert_close(magnitude[..., 1:-1], torch.full((1, 2, 5, 4), 8.0))
    torch.testing.assert_close(magnitude[..., 0], torch.full((1, 2, 5), 4.0))  # half the slope beyond the border
    torch.testing.assert_close(sobel_magnitude(ramp.mT), magnitude.mT)


@pytest.mark.parametrize("compared", list(ComparedWith))
def test_votes_are_bounded_and_change_places_with_the_cameras(compared: ComparedWith) -> None:
    first, second = randn(2, 3, 16, 20).float(), randn(2, 3, 16, 20, seed=1).float()
    there, back = align(first, second, compared=compared), align(second, first, compared=compared)
    assert torch.equal(there.visible_vote, back.infrared_vote)
    assert torch.equal(there.infrared_vote, back.visible_vote)
    torch.testing.assert_close(there.fused, back.fused)
    for vote in there[1:]:
        assert float(vote.min()) >= LEAST - 1e-5
        assert float(vote.max()) <= MOST + 1e-5
    torch.testing.assert_close(there.fused, there.visible_vote * first + there.infrared_vote * second)
    total = there.visible_vote + there.infrared_vote
    assert float((total - 1).abs().max()) > 0.05  # equation 6: votes are no shares


@pytest.mark.parametrize("scale", [1e-2, 50.0])
def test_votes_do_not_see_the_scale_of_the_features(scale: float) -> None:
    first, second = randn(1, 3, 16, 20).float(), randn(1, 3, 16, 20, seed=1).float()
    ours, theirs = align(first, second), align(scale * first, scale * second)
    torch.testing.assert_close(ours.visible_vote, theirs.visible_vote, rtol=0, atol=1e-4)
    torch.testing.assert_close(ours.infrared_vote, theirs.infrared_vote, rtol=0, atol=1e-4)


def thin_lines() -> Tensor:
    """Features of edges, as a stem makes them: bright lines on nothing."""
    maps = torch.zeros(1, 2, 32, 32)
    maps[:, 0, :, 6::10] = 1
    maps[:, 1, 6::10] = 1
    return maps


def blurred(sharp: Tensor) -> Tensor:
    return F.avg_pool2d(sharp, 9, stride=1, padding=4, count_include_pad=False)


@pytest.mark.parametrize("sharp", [thin_lines(), randn(1, 2, 32, 32).float()], ids=["lines", "texture"])
def test_the_camera_with_blurred_edges_has_the_smaller_vote(sharp: Tensor) -> None:
    votes = align(sharp, blurred(sharp))
    assert float(votes.visible_vote.mean()) > float(votes.infrared_vote.mean()) + 0.1


def test_the_published_equation_does_not_tell_sharp_from_blurred() -> None:
    """Why it is no default: where a line is brightest its gradient is 0, so the two do not resemble each other."""
    for sharp in (thin_lines(), randn(1, 2, 32, 32).float()):
        votes = align(sharp, blurred(sharp), compared=ComparedWith.FEATURE)
        assert float(votes.visible_vote.mean()) < float(votes.infrared_vote.mean()) + 0.01


def test_constant_and_missing_pictures_give_numbers() -> None:
    flat, lines = torch.full((1, 2, 8, 8), 3.0), thin_lines()[..., :8, :8]
    both = align(flat, flat)
    torch.testing.assert_close(both.visible_vote, torch.full_like(flat, MOST))  # SSIM of nothing with nothing is 1
    for first, second in ((flat, lines), (lines, torch.zeros_like(lines))):
        first = first.clone().requires_grad_()
        aligned = align(first, second)
        aligned.fused.sum().backward()
        assert all(bool(part.isfinite().all()) for part in aligned)
        assert bool(first.grad.isfinite().all())  # type: ignore[union-attr]


def test_half_precision_maps_are_compared_in_single_precision() -> None:
    first, second = 100 * randn(1, 2, 16, 16).half(), 100 * randn(1, 2, 16, 16, seed=1).half()
    half, single = align(first, second), align(first.float(), second.float())
    assert half.fused.dtype == torch.float16
    assert half.visible_vote.dtype == torch.float32
    torch.testing.assert_close(half.visible_vote, single.visible_vote)
