"""One draw moves every tensor of a sample: proved on coordinate images (SAGE §10.11)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from duskfuse.data.geometry import draw_crop, pad_reflected, pad_to, resized


def coordinates(height: int, width: int) -> torch.Tensor:
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([rows, columns])


def test_every_tensor_carries_identical_coordinates() -> None:
    image = coordinates(40, 50)
    flips = set()
    for seed in range(50):
        draw = draw_crop((40, 50), (16, 24), torch.Generator().manual_seed(seed))
        cut = draw.crop(image)
        label, mask = draw.crop(image[0]), draw.orient(image[1][draw.top :, draw.left :][: draw.height, : draw.width])
        assert cut.shape == (2, 16, 24)
        assert torch.equal(label, cut[0])
        assert torch.equal(mask, cut[1])
        flips.add(draw.flip)
    assert flips == {True, False}


@pytest.mark.parametrize("zoom", [(0.5, 0.9), (1.0, 1.6), (0.3, 8.0)])
def test_a_zoomed_box_carries_every_tensor_to_the_same_place(zoom: tuple[float, float]) -> None:
    """Pictures hold the coordinates of the pixel centres of the crop in the source; masks and labels the nearest."""
    image, seen = coordinates(40, 50), set()
    for seed in range(40):
        draw = draw_crop((40, 50), (16, 24), torch.Generator().manual_seed(seed), zoom=zoom)
        seen.add(draw.height)
        assert zoom[0] * 16 - 0.5 <= draw.height <= min(zoom[1] * 16 + 0.5, 40)
        assert abs(draw.height / 16 - draw.width / 24) <= 0.5 / 16 + 0.5 / 24
        rows = draw.top + (torch.arange(16) + 0.5) * draw.height / 16 - 0.5
        columns = draw.left + (torch.arange(24) + 0.5) * draw.width / 24 - 0.5
        columns = columns.flip(0) if draw.flip else columns
        expected = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))
        cut, label = draw.crop(image.float()), draw.crop(image)
        assert cut.shape == label.shape == (2, 16, 24)
        # The border has no neighbours outside the box; the sampled triangle of an average is not quite symmetric.
        inner = (slice(None), slice(2, -2), slice(2, -2))
        tolerance = 1e-4 if draw.height <= 16 else 0.1
        torch.testing.assert_close(cut[inner], expected[inner], atol=tolerance, rtol=0)
        assert float((label - expected).abs().max()) <= 0.5 + 1e-4
        mask = draw.orient((image[1] % 2 == 0)[draw.top :, draw.left :][: draw.height, : draw.width])
        assert torch.equal(mask, label[1] % 2 == 0)
        assert set(label[0].unique().tolist()) <= set(range(draw.top, draw.top + draw.height))
    assert len(seen) > 3


def test_no_zoom_draws_what_it_always_drew() -> None:
    plain, ones = (draw_crop((40, 50), (16, 24), torch.Generator().manual_seed(3), **o) for o in ({}, {"zoom": (1, 1)}))
    assert plain == ones
    assert plain.size is None


def test_a_zoomed_picture_smaller_than_the_crop_fills_it() -> None:
    draw = draw_crop((10, 12), (16, 24), torch.Generator().manual_seed(0), zoom=(1.0, 2.0))
    assert draw.crop(torch.rand(3, 10, 12)).shape == (3, 16, 24)
    assert (draw.height, draw.width) == (8, 12)


def test_resizing_keeps_the_range_and_any_rank() -> None:
    ones = torch.ones(2, 3, 17, 19)
    assert resized(ones, (31, 8)).shape == (2, 3, 31, 8)
    assert torch.equal(resized(ones, (31, 8)), torch.ones(2, 3, 31, 8))
    labels = torch.tensor([[0, 255]])
    assert resized(labels, (2, 4)).tolist() == [[0, 0, 255, 255]] * 2
    assert resized(labels > 0, (1, 2)).dtype is torch.bool
    shrunk = resized(torch.arange(64.0).view(8, 8) % 2, (2, 2))
    torch.testing.assert_close(shrunk, torch.full((2, 2), 0.5), atol=0.05, rtol=0)


def test_the_same_seed_draws_the_same_box() -> None:
    draws = [draw_crop((40, 50), (16, 24), torch.Generator().manual_seed(7)) for _ in range(2)]
    assert draws[0] == draws[1]


def test_small_pictures_are_padded_by_their_border() -> None:
    draw = draw_crop((10, 12), (16, 24), torch.Generator().manual_seed(0), flip=0)
    picture = torch.rand(3, 10, 12)
    padded = pad_to(draw.crop(picture), (16, 24))
    assert padded.shape == (3, 16, 24)
    assert torch.equal(padded[:, :10, :12], picture)
    assert torch.equal(padded[:, -1, :12], picture[:, -1])
    mask = pad_to(torch.ones(4, 10, 12, dtype=torch.bool), (16, 24))
    assert mask.dtype is torch.bool
    assert mask.all()


@pytest.mark.parametrize("side", [1, 2, 3, 7, 31])
def test_reflection_continues_any_size_as_numpy_does(side: int) -> None:
    picture = torch.rand(2, side, side + 1)
    expected = np.pad(picture.numpy(), ((0, 0), (0, 33 - side), (0, 31 - side)), mode="reflect")
    assert torch.equal(pad_reflected(picture, (33, 32)), torch.from_numpy(expected))


def test_reflection_leaves_a_picture_that_is_large_enough() -> None:
    picture = torch.rand(2, 40, 50)
    assert torch.equal(pad_reflected(picture, (40, 32)), picture)
