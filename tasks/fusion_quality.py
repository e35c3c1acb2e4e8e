"""Fusion metrics as tensors: batched, on any device, differentiable wherever their definition is, usable as loss terms.

The same definitions as in ``duskfuse.evaluate.metrics`` (equal within 1e-4 on 8-bit pictures), written for float
pictures. Metrics of histograms (EN, MI, NMI, CE, NCIE) are of rounded grey levels and have no gradient. Qcb and Qcv
round the stretched picture; their gradient passes the rounding straight through. FMI is in numpy only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from math import log, pi

import torch
from torch import Tensor
from torch.nn import functional

_PEAK = 255.0
_FLAT_VARIANCE = {torch.float64: 1e-8, torch.float32: 1e-2}
"""Under this a window's variance is taken for rounding."""
_TINY = 1e-12
"""Under a square root, so that its gradient stays finite where an edge vanishes."""
_SMOOTH, _DIFFERENCE, _FLAT = (1.0, 2.0, 1.0), (-1.0, 0.0, 1.0), (1.0, 1.0, 1.0)


def fusion_quality(ir: Tensor, vis_y: Tensor, fused: Tensor, metrics: Sequence[str]) -> dict[str, Tensor]:
    """Score a batch by names of metrics, one value per sample.

    Args:
        ir: infrared, ``[B, 1, H, W]`` in [0, 1].
        vis_y: visible luminance, of the same shape.
        fused: fused luminance, of the same shape; the gradient flows into it.
        metrics: names of `QUALITY_METRICS`.

    Returns:
        ``[B]`` per metric; nan where it is undefined, as for pictures smaller than its window.

    Raises:
        KeyError: an unknown metric.
        ValueError: shapes differ.
    """
    if not (ir.shape == vis_y.shape == fused.shape) or ir.dim() != 4 or ir.shape[1] != 1:
        raise ValueError(f"{tuple(ir.shape)}, {tuple(vis_y.shape)}, {tuple(fused.shape)}, want three [B,1,H,W]")
    comparison = _Comparison(*(picture * _PEAK for picture in (ir, vis_y, fused)))
    return {name: _METRICS[name](comparison) for name in metrics}


class _Moments:
    """A picture with its mean and variance in Gaussian windows that lie inside it."""

    def __init__(self, picture: Tensor, window: int, sigma: float) -> None:
        self.picture, self.window, self.sigma = picture, window, sigma
        self.mean = gaussian_valid(picture, window, sigma)
        self.variance = gaussian_valid(picture * picture, window, sigma) - self.mean**2

    def covariance(self, other: _Moments) -> Tensor:
        return gaussian_valid(self.picture * other.picture, self.window, self.sigma) - self.mean * other.mean


class _Picture:
    """What the metrics need of one picture, computed when first asked for."""

    def __init__(self, plane: Tensor) -> None:
        self.plane = plane

    @cached_property
    def ssim(self) -> _Moments:
        return _Moments(self.plane, 11, 1.5)

    @cached_property
    def scales(self) -> list[_Moments]:
        planes = [self.plane]
        for _ in range(len(_MS_SSIM_WEIGHTS) - 1):
            planes.append(_halved(planes[-1]))
        return [_Moments(plane, 11, 1.5) for plane in planes]

    @cached_property
    def vif(self) -> list[_Moments]:
        plane, found = self.plane, list[_Moments]()
        for window in _VIF_WINDOWS:
            if found:
                plane = gaussian_valid(plane, window, window / 5)[..., ::2, ::2]
            found.append(_Moments(plane, window, window / 5))
        return found

    @cached_property
    def qabf(self) -> tuple[Tensor, Tensor]:
        sx, sy = _slopes(self.plane, _SMOOTH, "constant")
        sx = -sx  # left minus right: the angle is not wrapped, so the sign matters
        return _norm(sx, sy), _angle(sy, sx, torch.full_like(sx, pi / 2))

    @cached_property
    def nabf(self) -> tuple[Tensor, Tensor]:
        sx, sy = (slope / 8 for slope in _slopes(self.plane, _SMOOTH, "reflect"))
        return _norm(sx, sy), _angle(sx, sy, torch.sign(sx) * (pi / 2))

    @cached_property
    def nabf_weight(self) -> Tensor:
        strength = self.nabf[0]
        return torch.where(strength >= 2, strength**1.5, 0.001)

    @cached_property
    def edges(self) -> _Moments:
        return _Moments(_norm(*_slopes(self.plane, _FLAT, "constant")), 11, 1.5)

    @cached_property
    def yang(self) -> _Moments:
        return _Moments(self.plane, 7, 1.5)

    @cached_property
    def stretched(self) -> Tensor:
        low, high = self.plane.amin((1, 2, 3), keepdim=True), self.plane.amax((1, 2, 3), keepdim=True)
        values = (self.plane - low) / (high - low) * _PEAK
        return values + (torch.floor(values + 0.5) - values).detach()

    @cached_property
    def contrast(self) -> Tensor:
        frequency = _radial_frequency(self.plane, 30)
        sensitivity = torch.exp(-((frequency / 15.387) ** 2)) - 0.7622 * torch.exp(-((frequency / 1.3456) ** 2))
        seen = _filtered(self.stretched, sensitivity)
        ratio = (_gaussian_same(seen, 2.0) / _gaussian_same(seen, 4.0) - 1).abs()
        return ratio**3 / (ratio**2 + 1e-4)

    @cached_property
    def seen(self) -> Tensor:
        frequency = 0.144 * _radial_frequency(self.plane, 8)
        return _filtered(self.stretched, 2.6 * (0.0192 + frequency) * torch.exp(-(frequency**1.1)))

    @cached_property
    def qcv_weight(self) -> Tensor:
        return _block_sums(_norm(*_slopes(self.stretched, _SMOOTH, "constant")) ** 5)

    @cached_property
    def levels(self) -> Tensor:
        return self.plane.detach().round().clamp(0, _PEAK).long().flatten(1)


class _Comparison:
    """A batch of fused pictures against their sources."""

    def __init__(self, a: Tensor, b: Tensor, f: Tensor) -> None:
        self.a, self.b, self.f = _Picture(a), _Picture(b), _Picture(f)

    @cached_property
    def maps(self) -> tuple[Tensor, Tensor]:
        return _ssim_map(self.a.ssim, self.f.ssim), _ssim_map(self.b.ssim, self.f.ssim)

    @cached_property
    def channels(self) -> tuple[list[_Channel], list[_Channel]]:
        of_a, of_b = (
            [_Channel(source, fused) for source, fused in zip(picture.vif, self.f.vif, strict=True)]
            for picture in (self.a, self.b)
        )
        return of_a, of_b


def gaussian_valid(picture: Tensor, window: int, sigma: float) -> Tensor:
    """Gaussian mean of ``[B, 1, H, W]`` over window×window pixels where the window lies inside; may be empty."""
    if min(picture.shape[-2:]) < window:
        return picture[..., :0, :0]
    offsets = torch.arange(window, dtype=picture.dtype, device=picture.device) - window // 2
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    return functional.conv2d(functional.conv2d(picture, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))


def _mean(values: Tensor) -> Tensor:
    return values.mean((1, 2, 3))


def _sum(values: Tensor) -> Tensor:
    return values.sum((1, 2, 3))


def _slopes(picture: Tensor, smooth: tuple[float, ...], border: str) -> tuple[Tensor, Tensor]:
    """Right minus left and below minus above, smoothed across."""
    padded = functional.pad(picture, (1, 1, 1, 1), mode=border)
    across, along = (padded.new_tensor(taps) for taps in (smooth, _DIFFERENCE))
    sx = functional.conv2d(padded, (across[:, None] * along).view(1, 1, 3, 3))
    sy = functional.conv2d(padded, (along[:, None] * across).view(1, 1, 3, 3))
    return sx, sy


def _norm(x: Tensor, y: Tensor) -> Tensor:
    squares = x * x + y * y
    return torch.where(squares > 0, torch.sqrt(squares.clamp(min=_TINY)), 0.0)


def _angle(y: Tensor, x: Tensor, upright: Tensor) -> Tensor:
    """arctan(y / x), ``upright`` where x = 0."""
    zero = x == 0
    return torch.where(zero, upright, torch.arctan(y / torch.where(zero, 1.0, x)))


def _halved(picture: Tensor) -> Tensor:
    """Means of 2×2 pixels; an odd last row or column is averaged with its own mirror image."""
    height, width = picture.shape[-2:]
    even = functional.pad(picture, (0, width % 2, 0, height % 2), mode="replicate")
    return functional.avg_pool2d(even, 2)


def _sd(c: _Comparison) -> Tensor:
    return c.f.plane.flatten(1).std(1, correction=0)


def _sf(c: _Comparison) -> Tensor:
    rows, columns = c.f.plane.diff(dim=3), c.f.plane.diff(dim=2)
    return torch.sqrt(_mean(rows**2) + _mean(columns**2))


def _ag(c: _Comparison) -> Tensor:
    gy, gx = torch.gradient(c.f.plane, dim=(2, 3))
    return _mean(_norm(gx, gy)) / 2**0.5


def _ei(c: _Comparison) -> Tensor:
    return _mean(_norm(*_slopes(c.f.plane, _SMOOTH, "replicate")))


def _pearson(x: Tensor, y: Tensor) -> Tensor:
    x, y = x.flatten(1), y.flatten(1)
    x, y = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
    return (x * y).sum(1) / torch.sqrt((x * x).sum(1) * (y * y).sum(1))


def _scd(c: _Comparison) -> Tensor:
    return _pearson(c.f.plane - c.b.plane, c.a.plane) + _pearson(c.f.plane - c.a.plane, c.b.plane)


def _cc(c: _Comparison) -> Tensor:
    return (_pearson(c.a.plane, c.f.plane) + _pearson(c.b.plane, c.f.plane)) / 2


def _psnr(c: _Comparison) -> Tensor:
    error = (_mean((c.f.plane - c.a.plane) ** 2) + _mean((c.f.plane - c.b.plane) ** 2)) / 2
    return 10 * torch.log10(_PEAK**2 / error)


_C1, _C2 = (0.01 * _PEAK) ** 2, (0.03 * _PEAK) ** 2
_MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def _contrast_structure(a: _Moments, b: _Moments) -> Tensor:
    return (2 * a.covariance(b) + _C2) / (a.variance + b.variance + _C2)


def _ssim_map(a: _Moments, b: _Moments) -> Tensor:
    luminance = (2 * a.mean * b.mean + _C1) / (a.mean**2 + b.mean**2 + _C1)
    return luminance * _contrast_structure(a, b)


def _ms_ssim(source: _Picture, fused: _Picture) -> Tensor:
    product: Tensor | float = 1.0
    last = len(_MS_SSIM_WEIGHTS) - 1
    for level, (a, b, weight) in enumerate(zip(source.scales, fused.scales, _MS_SSIM_WEIGHTS, strict=True)):
        similar = _ssim_map(a, b) if level == last else _contrast_structure(a, b)
        product = product * _mean(similar).clamp(min=0) ** weight
    assert isinstance(product, Tensor)
    return product


_VIF_WINDOWS = (17, 9, 5, 3)
_VIF_NOISE, _VIFF_NOISE = 2.0, 0.005 * _PEAK**2
_VIFF_WEIGHTS = tuple(weight / 2.15 for weight in (1.0, 0.0, 0.15, 1.0))
_NO_VARIANCE = 1e-10


class _Channel:
    """Gain and noise from one source to the fused picture at one scale."""

    def __init__(self, source: _Moments, fused: _Moments) -> None:
        covariance = source.covariance(fused)
        source_variance, fused_variance = source.variance.clamp(min=0), fused.variance.clamp(min=0)
        gain = covariance / (source_variance + _NO_VARIANCE)
        flat = source_variance < _NO_VARIANCE
        silent = flat | (fused_variance < _NO_VARIANCE) | (gain < 0)
        noise = torch.where(silent, fused_variance, fused_variance - gain * covariance)
        self.gain = torch.where(silent, 0.0, gain)
        self.noise = noise.clamp(min=_NO_VARIANCE)
        self.signal = torch.where(flat, 0.0, source_variance)

    def passed(self, eye: float) -> Tensor:
        return torch.log1p(self.gain**2 * self.signal / (self.noise + eye))

    def seen(self, eye: float) -> Tensor:
        return torch.log1p(self.signal / eye)


def _vif(channels: list[_Channel]) -> Tensor:
    if channels[-1].gain.numel() == 0:
        return channels[-1].gain.new_full(channels[-1].gain.shape[:1], torch.nan)
    passed = torch.stack([_sum(channel.passed(_VIF_NOISE)) for channel in channels]).sum(0)
    return passed / torch.stack([_sum(channel.seen(_VIF_NOISE)) for channel in channels]).sum(0)


def _viff(c: _Comparison) -> Tensor:
    shares = []
    for a, b in zip(*c.channels, strict=True):
        first = a.gain < b.gain
        passed = torch.where(first, a.passed(_VIFF_NOISE), b.passed(_VIFF_NOISE)) / log(10) + 1e-7
        seen = torch.where(first, a.seen(_VIFF_NOISE), b.seen(_VIFF_NOISE)) / log(10) + 1e-7
        shares.append(_sum(passed) / _sum(seen))
    return torch.stack([weight * share for weight, share in zip(_VIFF_WEIGHTS, shares, strict=True)]).sum(0)


def _qabf(c: _Comparison) -> Tensor:
    total = _sum(c.a.qabf[0]) + _sum(c.b.qabf[0])
    return (_qabf_kept(c.a, c.f) + _qabf_kept(c.b, c.f)) / total


def _qabf_kept(source: _Picture, fused: _Picture) -> Tensor:
    (strength, angle), (of_fused, angle_of_fused) = source.qabf, fused.qabf
    low, high = torch.minimum(strength, of_fused), torch.maximum(strength, of_fused)
    ratio = torch.where(low == high, high, low / torch.where(high == 0, 1.0, high))
    turn = 1 - (angle - angle_of_fused).abs() / (pi / 2)
    kept = 0.9994 * torch.sigmoid(15 * (ratio - 0.5)) * 0.9879 * torch.sigmoid(22 * (turn - 0.8))
    return _sum(kept * strength)


def _nabf(c: _Comparison) -> Tensor:
    new = (c.f.nabf[0] > c.a.nabf[0]) & (c.f.nabf[0] > c.b.nabf[0])
    added = torch.stack([_nabf_added(source, c.f, new) for source in (c.a, c.b)]).sum(0)
    return added / (_sum(c.a.nabf_weight) + _sum(c.b.nabf_weight))


def _nabf_added(source: _Picture, fused: _Picture, new: Tensor) -> Tensor:
    (strength, angle), (of_fused, angle_of_fused) = source.nabf, fused.nabf
    ratio = strength / torch.where(new, of_fused, 1.0)
    turn = ((angle - angle_of_fused).abs() - pi / 2).abs() * (2 / pi)
    kept = 0.9999 * torch.sigmoid(19 * (ratio - 0.5)) * 0.9995 * torch.sigmoid(22 * (turn - 0.5))
    return _sum(torch.where(new, (1 - torch.sqrt(kept)) * source.nabf_weight, 0.0))


def _qcb(c: _Comparison) -> Tensor:
    total = c.a.contrast**2 + c.b.contrast**2
    share = torch.where(total > 0, c.a.contrast**2 / torch.where(total > 0, total, 1.0), 0.5)
    return _mean(share * _preserved(c.a, c.f) + (1 - share) * _preserved(c.b, c.f))


def _preserved(source: _Picture, fused: _Picture) -> Tensor:
    low, high = torch.minimum(source.contrast, fused.contrast), torch.maximum(source.contrast, fused.contrast)
    return torch.where(high > 0, low / torch.where(high > 0, high, 1.0), 1.0)


def _qcv(c: _Comparison) -> Tensor:
    apart = torch.stack([_sum(s.qcv_weight * _block_sums((s.seen - c.f.seen) ** 2)) for s in (c.a, c.b)]).sum(0)
    return apart / 256 / _sum(c.a.qcv_weight + c.b.qcv_weight)


def _share(a: _Moments, b: _Moments) -> Tensor:
    a_variance = _real(a)
    total = a_variance + _real(b)
    return torch.where(total == 0, 0.5, a_variance / torch.where(total == 0, 1.0, total))


def _real(moments: _Moments) -> Tensor:
    """Variance without the rounding of flat windows."""
    return torch.where(moments.variance < _FLAT_VARIANCE[moments.variance.dtype], 0.0, moments.variance)


def _weighted(a: _Moments, b: _Moments, of_a: Tensor, of_b: Tensor) -> tuple[Tensor, Tensor]:
    """Piella's Qs and Qw."""
    share = _share(a, b)
    mixed, salience = share * of_a + (1 - share) * of_b, torch.maximum(a.variance, b.variance)
    return _mean(mixed), _sum(mixed * salience) / _sum(salience)


def _piella(c: _Comparison) -> tuple[Tensor, Tensor]:
    return _weighted(c.a.ssim, c.b.ssim, *c.maps)


def _qe(c: _Comparison) -> Tensor:
    a, b, f = c.a.edges, c.b.edges, c.f.edges
    return _piella(c)[1] * _weighted(a, b, _ssim_map(a, f), _ssim_map(b, f))[1]


def _yang_map(a: _Moments, b: _Moments) -> Tensor:
    luminance = (2 * a.mean * b.mean + 2e-16) / (a.mean**2 + b.mean**2 + 2e-16)
    a_variance, b_variance = _real(a), _real(b)
    covariance = torch.where((a_variance == 0) | (b_variance == 0), 0.0, a.covariance(b))
    return luminance * (2 * covariance + 2e-16) / (a_variance + b_variance + 2e-16)


def _qy(c: _Comparison) -> Tensor:
    a, b, f = c.a.yang, c.b.yang, c.f.yang
    of_a, of_b, share = _yang_map(a, f), _yang_map(b, f), _share(a, b)
    mixed = share * of_a + (1 - share) * of_b
    return _mean(torch.where(_yang_map(a, b) >= 0.75, mixed, torch.maximum(of_a, of_b)))


def _radial_frequency(picture: Tensor, cycles: int) -> Tensor:
    height, width = picture.shape[-2:]
    options = {"dtype": picture.dtype, "device": picture.device}
    rows = 2 * torch.fft.fftfreq(height, **options) * (height / cycles)
    columns = 2 * torch.fft.rfftfreq(width, **options) * (width / cycles)
    return torch.sqrt(rows[:, None] ** 2 + columns**2)


def _filtered(picture: Tensor, response: Tensor) -> Tensor:
    filtered: Tensor = torch.fft.irfft2(torch.fft.rfft2(picture) * response, s=picture.shape[-2:])
    return filtered


def _gaussian_same(picture: Tensor, sigma: float) -> Tensor:
    offsets = torch.arange(31, dtype=picture.dtype, device=picture.device) - 15
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2)) / ((2 * pi) ** 0.5 * sigma)
    rows = functional.conv2d(picture, kernel.view(1, 1, -1, 1), padding=(15, 0))
    return functional.conv2d(rows, kernel.view(1, 1, 1, -1), padding=(0, 15))


def _block_sums(values: Tensor) -> Tensor:
    height, width = values.shape[-2:]
    return 256 * functional.avg_pool2d(functional.pad(values, (0, -width % 16, 0, -height % 16)), 16)


def _entropy_of(levels: Tensor, bins: int = 256) -> Tensor:
    """Entropy in bits of the symbols of each sample, ``[B, N]`` int64."""
    counts = torch.stack([torch.bincount(sample, minlength=bins) for sample in levels])
    shares = counts.double() / levels.shape[1]
    entropy: Tensor = -torch.special.xlogy(shares, shares).sum(1) / log(2)
    return entropy


def _mutual(first: Tensor, second: Tensor) -> Tensor:
    joint = _entropy_of(first * 256 + second, 256 * 256)
    return _entropy_of(first) + _entropy_of(second) - joint


def _mi(c: _Comparison) -> Tensor:
    return _mutual(c.a.levels, c.f.levels) + _mutual(c.b.levels, c.f.levels)


def _nmi(c: _Comparison) -> Tensor:
    shares = [
        _mutual(source.levels, c.f.levels) / (_entropy_of(source.levels) + _entropy_of(c.f.levels))
        for source in (c.a, c.b)
    ]
    return 2 * (shares[0] + shares[1])


def _ce(c: _Comparison) -> Tensor:
    histograms = [
        torch.stack([torch.bincount(sample, minlength=256) for sample in picture.levels]).double()
        / picture.levels.shape[1]
        for picture in (c.a, c.b, c.f)
    ]
    fused = histograms[2]
    apart = [
        torch.where((p > 0) & (fused > 0), p * torch.log2(p / torch.where(fused > 0, fused, 1.0)).nan_to_num(), 0.0)
        for p in histograms[:2]
    ]
    return (apart[0].sum(1) + apart[1].sum(1)) / 2


def _ncie(c: _Comparison) -> Tensor:
    a, b, f = c.a.levels, c.b.levels, c.f.levels
    ab, af, bf = (_mutual(x, y) / 8 for x, y in ((a, b), (a, f), (b, f)))
    one = torch.ones_like(ab)
    matrix = torch.stack([torch.stack(row, -1) for row in ((one, ab, af), (ab, one, bf), (af, bf, one))], -2)
    share = torch.linalg.eigvalsh(matrix.double()).clamp(min=0) / 3
    ncie: Tensor = 1 + torch.special.xlogy(share, share).sum(-1) / (8 * log(2))
    return ncie


_METRICS: dict[str, Callable[[_Comparison], Tensor]] = {
    "EN": lambda c: _entropy_of(c.f.levels),
    "SD": _sd,
    "SF": _sf,
    "AG": _ag,
    "EI": _ei,
    "MI": _mi,
    "NMI": _nmi,
    "CE": _ce,
    "SCD": _scd,
    "CC": _cc,
    "PSNR": _psnr,
    "SSIM": lambda c: (_mean(c.maps[0]) + _mean(c.maps[1])) / 2,
    "MS-SSIM": lambda c: (_ms_ssim(c.a, c.f) + _ms_ssim(c.b, c.f)) / 2,
    "VIF": lambda c: _vif(c.channels[0]) + _vif(c.channels[1]),
    "VIFF": _viff,
    "Qabf": _qabf,
    "Nabf": _nabf,
    "Qcb": _qcb,
    "Qcv": _qcv,
    "Qs": lambda c: _piella(c)[0],
    "Qw": lambda c: _piella(c)[1],
    "Qe": _qe,
    "Qy": _qy,
    "NCIE": _ncie,
}

QUALITY_METRICS = tuple(_METRICS)
LOWER_IS_BETTER = frozenset({"CE", "Nabf", "Qcv"})
WITHOUT_GRADIENT = frozenset({"EN", "MI", "NMI", "CE", "NCIE"})
STRAIGHT_THROUGH = frozenset({"Qcb", "Qcv"})
"""Metrics whose gradient ignores a rounding."""
