"""One draw moves every tensor of a sample: proved on coordinate images (SAGE §10.11)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from duskfuse.data.geometry import draw_crop, pad_reflected, pad_to


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
