"""The metrics that look through windows, blocks and features, against slow and obvious forms of their definitions."""

from __future__ import annotations

from collections.abc import Callable
from math import exp, log2, pi, sqrt

import numpy as np
import pytest
from numpy.typing import NDArray

from duskfuse.evaluate.feature_information import Feature, feature_map, feature_mutual_information
from duskfuse.evaluate.metrics import Grey, Mode, SourceStatistics, fusion_metrics

Plane = NDArray[np.float64]


@pytest.fixture(scope="module")
def scene() -> tuple[Grey, Grey, Grey]:
    """Two sources and a mixture, 37 by 48 pixels, with edges, texture and a flat corner."""
    rng = np.random.default_rng(5)
    rows, columns = np.mgrid[0:37, 0:48]
    ir = 50 + 150 * ((rows - 15) ** 2 + (columns - 25) ** 2 < 90) + rng.normal(0, 4, rows.shape)
    vis = 110 + 70 * np.sin(columns / 3) * np.cos(rows / 5) + rng.normal(0, 6, rows.shape)
    fused = np.maximum(ir, vis) * 0.7 + vis * 0.3 + rng.normal(0, 3, rows.shape)
    ir[30:, 40:] = 60
    fused[30:, 40:] = 90
    first, second, third = (np.clip(np.rint(p), 0, 255).astype(np.uint8) for p in (ir, vis, fused))
    return first, second, third


def one(scene: tuple[Grey, Grey, Grey], name: str, mode: Mode = Mode.DEFINITION) -> float:
    ir, vis, fused = scene
    return fusion_metrics(SourceStatistics(ir, vis, mode), fused, [name])[name]


def gaussian(side: int, sigma: float) -> Plane:
    offsets = np.arange(side) - side // 2
    kernel = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * sigma**2))
    return np.asarray(kernel / kernel.sum())


def windows(picture: Plane, side: int) -> list[Plane]:
    height, width = picture.shape
    return [picture[y : y + side, x : x + side] for y in range(height - side + 1) for x in range(width - side + 1)]


def moments(kernel: Plane, p: Plane, q: Plane) -> tuple[float, float, float, float, float]:
    """Means, variances and covariance of two windows."""
    p_mean, q_mean = float((kernel * p).sum()), float((kernel * q).sum())
    p_var, q_var = (kernel * (p - p_mean) ** 2).sum(), (kernel * (q - q_mean) ** 2).sum()
    return p_mean, q_mean, float(p_var), float(q_var), float((kernel * (p - p_mean) * (q - q_mean)).sum())


def similarity(kernel: Plane, p: Plane, q: Plane, c1: float, c2: float) -> float:
    p_mean, q_mean, p_var, q_var, both = moments(kernel, p, q)
    luminance = (2 * p_mean * q_mean + c1) / (p_mean**2 + q_mean**2 + c1)
    return luminance * (2 * both + c2) / (p_var + q_var + c2)


def slow_piella(a: Plane, b: Plane, f: Plane) -> tuple[float, float]:
    kernel, values, saliences = gaussian(11, 1.5), [], []
    for p, q, r in zip(windows(a, 11), windows(b, 11), windows(f, 11), strict=True):
        _, _, p_var, q_var, _ = moments(kernel, p, q)
        share = p_var / (p_var + q_var)
        of_p, of_q = (similarity(kernel, source, r, 2.55**2, 7.65**2) for source in (p, q))
        values.append(share * of_p + (1 - share) * of_q)
        saliences.append(max(p_var, q_var))
    weighted = sum(value * salience for value, salience in zip(values, saliences, strict=True)) / sum(saliences)
    return float(np.mean(values)), weighted


def correlated(picture: Plane, kernel: Plane) -> Plane:
    """Correlation with a 3 by 3 kernel, zeros beyond the border."""
    padded = np.pad(picture, 1)
    return np.array([(window * kernel).sum() for window in windows(padded, 3)]).reshape(picture.shape)


def edges(picture: Plane, kernel: Plane) -> Plane:
    return np.sqrt(correlated(picture, kernel) ** 2 + correlated(picture, kernel.T) ** 2)


PREWITT = np.array([[-1.0, 0, 1]] * 3)
SOBEL = np.array([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])


def test_piella(scene: tuple[Grey, Grey, Grey]):
    planes = [picture.astype(np.float64) for picture in scene]
    mean, weighted = slow_piella(*planes)
    _, of_edges = slow_piella(*(edges(plane, PREWITT) for plane in planes))
    assert one(scene, "Qs") == pytest.approx(mean, rel=1e-9)
    assert one(scene, "Qw") == pytest.approx(weighted, rel=1e-9)
    assert one(scene, "Qe") == pytest.approx(weighted * of_edges, rel=1e-9)


def test_yang(scene: tuple[Grey, Grey, Grey]):
    kernel, values = gaussian(7, 1.5), []
    a, b, f = (picture.astype(np.float64)[:28, :38] for picture in scene)  # without the flat corner: 0/0 there
    for p, q, r in zip(windows(a, 7), windows(b, 7), windows(f, 7), strict=True):
        _, _, p_var, q_var, _ = moments(kernel, p, q)
        of_p, of_q = (similarity(kernel, source, r, 2e-16, 2e-16) for source in (p, q))
        share = p_var / (p_var + q_var)
        alike = similarity(kernel, p, q, 2e-16, 2e-16) >= 0.75
        values.append(share * of_p + (1 - share) * of_q if alike else max(of_p, of_q))
    cut = tuple(np.ascontiguousarray(picture[:28, :38]) for picture in scene)
    assert one(cut, "Qy") == pytest.approx(np.mean(values), rel=1e-9)  # type: ignore[arg-type]


def stretched(picture: Grey) -> Plane:
    low, high = int(picture.min()), int(picture.max())
    return np.floor((picture.astype(np.float64) - low) / (high - low) * 255 + 0.5)


def through_the_eye(picture: Plane, cycles: int, response: Callable[[float], float]) -> Plane:
    """Filter by the discrete Fourier transform, frequency by frequency."""
    spectrum = np.fft.fft2(picture)
    height, width = picture.shape
    for row in range(height):
        for column in range(width):
            v = (row if 2 * row < height else row - height) * 2 / height * height / cycles
            u = (column if 2 * column < width else column - width) * 2 / width * width / cycles
            spectrum[row, column] *= response(sqrt(u * u + v * v))
    return np.fft.ifft2(spectrum).real


def test_chen_blum(scene: tuple[Grey, Grey, Grey]):
    def contrast(picture: Grey) -> Plane:
        seen = through_the_eye(
            stretched(picture), 30, lambda r: exp(-((r / 15.387) ** 2)) - 0.7622 * exp(-((r / 1.3456) ** 2))
        )
        ratio = np.abs(blurred(seen, 2) / blurred(seen, 4) - 1)
        return ratio**3 / (ratio**2 + 1e-4)

    def blurred(picture: Plane, sigma: float) -> Plane:
        offsets = np.arange(31) - 15
        kernel = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * sigma**2)) / (2 * pi * sigma**2)
        padded = np.pad(picture, 15)
        return np.array([(window * kernel).sum() for window in windows(padded, 31)]).reshape(picture.shape)

    a, b, f = map(contrast, scene)
    share = a**2 / (a**2 + b**2)
    kept = [np.where(source < f, source / f, f / source) for source in (a, b)]
    assert one(scene, "Qcb") == pytest.approx((share * kept[0] + (1 - share) * kept[1]).mean(), rel=1e-9)


def test_chen_varshney_with_cut_blocks(scene: tuple[Grey, Grey, Grey]):
    def sensitivity(r: float) -> float:
        return 2.6 * (0.0192 + 0.144 * r) * exp(-((0.144 * r) ** 1.1))

    a, b, f = map(stretched, scene)
    apart = total = 0.0
    for source in (a, b):
        weight = edges(source, SOBEL) ** 5
        difference = through_the_eye(source - f, 8, sensitivity) ** 2
        for top in range(0, a.shape[0], 16):
            for left in range(0, a.shape[1], 16):
                block = np.s_[top : top + 16, left : left + 16]
                apart += weight[block].sum() * difference[block].sum() / 256
                total += weight[block].sum()
    assert one(scene, "Qcv") == pytest.approx(apart / total, rel=1e-9)


def entropy(shares: NDArray[np.float64]) -> float:
    return -sum(share * log2(abs(share)) for share in shares.ravel().tolist() if share)


def slow_fmi(p: Plane, q: Plane) -> float:
    """FMI of two windows."""
    x, y = p.T.ravel(), q.T.ravel()  # column by column
    if (x == y).all():
        return 1.0
    x, y = (np.ones(9) if v.max() == v.min() else (v - v.min()) / (v.max() - v.min()) for v in (x, y))
    x, y = x / x.sum(), y / y.sum()
    below_x, below_y, place = x.cumsum(), y.cumsum(), np.arange(1, 10)
    varied = x.max() > x.min() and y.max() > y.min()
    correlation = float(np.corrcoef(x, y)[0, 1]) if varied else 0.0
    above = correlation >= 0
    bound = np.array([[min(i, j) if above else max(i + j - 1, 0) for j in below_y] for i in below_x])
    spread = [sqrt(max((place**2 * v).sum() - (place * v).sum() ** 2, 0)) for v in (x, y)]
    covariance = (bound - np.outer(below_x, below_y)).sum()
    largest = covariance / (spread[0] * spread[1]) if spread[0] * spread[1] else 0.0
    towards = correlation / largest if largest else 0.0
    cells = np.diff(np.diff(np.pad(bound, ((1, 0), (1, 0))), axis=0), axis=1)
    joint = towards * cells + (1 - towards) * np.outer(x, y)
    total = entropy(x) + entropy(y)
    return 2 * (total - entropy(joint)) / total if total else 0.0


@pytest.mark.parametrize("feature", Feature)
def test_feature_mutual_information(scene: tuple[Grey, Grey, Grey], feature: Feature):
    a, b, f = (feature_map(picture.astype(np.float64), feature) for picture in scene)
    found = [slow_fmi(p, q) for source in (a, b) for p, q in zip(windows(source, 3), windows(f, 3), strict=True)]
    assert feature_mutual_information(a, b, f) == pytest.approx(np.mean(found), rel=1e-9)
    assert one(scene, f"FMI-{feature}") == feature_mutual_information(a, b, f)
    assert feature_mutual_information(f, f, f) == 1


def test_the_cosine_transform_of_odd_and_even_sides():
    rng = np.random.default_rng(0)
    for shape in ((6, 8), (7, 8), (5, 9)):
        picture = rng.normal(size=shape)
        k, l = np.mgrid[: shape[0], : shape[1]]  # noqa: E741
        expected = np.zeros(shape)
        for y in range(shape[0]):
            for x in range(shape[1]):
                wave = np.cos(pi * (2 * y + 1) * k / (2 * shape[0])) * np.cos(pi * (2 * x + 1) * l / (2 * shape[1]))
                expected += picture[y, x] * wave
        scale = np.sqrt(4 / picture.size) * np.where(k == 0, sqrt(0.5), 1) * np.where(l == 0, sqrt(0.5), 1)
        np.testing.assert_allclose(feature_map(picture, Feature.DCT), expected * scale, atol=1e-12)


def test_several_scales():
    """MS-SSIM: contrast and structure at every scale, luminance at the last; odd sides are mirrored."""
    rng = np.random.default_rng(1)
    base = np.kron(rng.integers(0, 256, (20, 21)), np.ones((9, 9)))[:171, :183]
    ir, vis, fused = (np.clip(base + rng.normal(0, s, base.shape), 0, 255).astype(np.uint8) for s in (4, 40, 12))

    def slow(x: Plane, y: Plane) -> float:
        kernel, product = gaussian(11, 1.5), 1.0
        for level, weight in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
            values = []
            for p, q in zip(windows(x, 11), windows(y, 11), strict=True):
                p_mean, q_mean, p_var, q_var, both = moments(kernel, p, q)
                value = (2 * both + 7.65**2) / (p_var + q_var + 7.65**2)
                if level == 4:
                    value *= (2 * p_mean * q_mean + 2.55**2) / (p_mean**2 + q_mean**2 + 2.55**2)
                values.append(value)
            product *= float(np.mean(values)) ** weight
            x, y = (half(picture) for picture in (x, y))
        return product

    def half(picture: Plane) -> Plane:
        rows, columns = picture.shape
        at = [[min(2 * i + k, size - 1) for i in range((size + 1) // 2)] for size in (rows, columns) for k in (0, 1)]
        return sum(picture[np.ix_(r, c)] for r in at[:2] for c in at[2:]) / 4  # type: ignore[return-value]

    a, b, f = (picture.astype(np.float64) for picture in (ir, vis, fused))
    assert one((ir, vis, fused), "MS-SSIM") == pytest.approx((slow(a, f) + slow(b, f)) / 2, rel=1e-9)


def test_rounding_in_flat_windows_counts_for_nothing():
    rng = np.random.default_rng(3)
    ir, vis, fused = (rng.integers(0, 9, (64, 64), dtype=np.uint8) for _ in range(3))
    for picture, level in ((ir, 37), (vis, 201), (fused, 113)):
        picture[:40] = level  # flat, as a saturated sky or a black frame is
    for name in ("Qs", "Qw", "Qe", "Qy"):
        assert -1 <= one((ir, vis, fused), name) <= 1, name
    # where only the fused picture has texture, none of it is from a source
    fused[:40] = rng.integers(100, 120, (40, 64))
    flat = one((ir[:40], vis[:40], fused[:40]), "Qy")
    assert flat == pytest.approx(0, abs=1e-9)
