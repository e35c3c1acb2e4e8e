"""The score by which the best of several teachers is chosen."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from duskfuse.evaluate.information import entropy, mutual_information
from duskfuse.evaluate.metrics import SourceStatistics, fusion_metrics
from duskfuse.evaluate.quality import quality_score

Grey = NDArray[np.uint8]


def textures(count: int, size: tuple[int, int] = (40, 48)) -> list[Grey]:
    rng = np.random.default_rng(0)
    stripes = 60 * (np.arange(size[1]) // 12 % 2)
    return [np.asarray(rng.integers(0, 120, size) + stripes, np.uint8) for _ in range(count)]


def test_it_is_the_mean_of_the_three_metrics() -> None:
    ir, vis, fused = textures(3)
    metrics = fusion_metrics(SourceStatistics(ir, vis), fused)
    shared = [2 * mutual_information(source, fused) / (entropy(source) + entropy(fused)) for source in (ir, vis)]
    expected = (metrics["Qabf"] + sum(shared) / 2 + metrics["SSIM"]) / 3
    assert quality_score(ir, vis, fused) == pytest.approx(expected, abs=1e-9)


def test_fusions_are_ranked_before_blurred_noisy_and_foreign_pictures() -> None:
    ir, vis, other = textures(3)
    mean = np.asarray((ir.astype(int) + vis) // 2, np.uint8)
    noisy = np.asarray(np.clip(mean + np.random.default_rng(1).normal(0, 40, mean.shape), 0, 255), np.uint8)
    good = quality_score(ir, vis, mean)
    assert good > quality_score(ir, vis, noisy) > quality_score(ir, vis, other)
    assert good > quality_score(ir, vis, np.full_like(mean, 128))


def test_undefined_parts_are_left_out() -> None:
    """Under 11 pixels a side there is no SSIM; of constant sources nothing is left."""
    ir, vis, fused = (picture[:8, :9] for picture in textures(3))
    assert 0 < quality_score(ir, vis, fused) < 1
    flat = np.zeros((8, 9), np.uint8)
    assert quality_score(flat, flat, flat) == 0
