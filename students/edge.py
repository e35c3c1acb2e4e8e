"""The students `edge` and `nano`: a small network at a fraction of the resolution steers a blend at full resolution.

Published light fusers convolve the full picture. Here convolutions see 1/4 and 1/8 of it and predict, for every pixel,
the coefficients of a blend of the untouched sources, which costs a handful of elementwise operations:

    f = clip(g·y + w·d + v·max(d, 0) + r, 0, 1),  d = ir − y.

With g = 1 the weights (w, v) = (0, 0), (1, 0), (½, 0), (0, 1), (1, −1) are the visible picture, infrared, their mean,
their maximum and their minimum; g = 2 with w = 1 adds the details of both, r then moves the brightness back. Every
coefficient is clipped to the range of `_BOUNDS`, so that none is wide in INT8, and the full-resolution detail of the
result comes from the sources in float, not from a quantised map. Nothing looks at more than a neighbourhood and nothing
is normalised per picture, so that a change in one corner of a video does not move the brightness of another.

Coefficients come to full resolution by transposed convolutions of equal kernel and stride, so that the files hold
Conv, ConvTranspose and elementwise operators only, which the DLA of a Jetson runs too. Convolutions are trained as the
sum of a 3×3, a 1×1 and an identity branch, each normalised, and deployed as one (RepVGG, Ding et al. 2021).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from duskfuse.data.colour import luminance, recombine
from duskfuse.data.fuser import Colour, FusionOutput

EDGE, NANO = "edge", "nano"
"""Architecture names."""

_BOUNDS = {"g": (0.0, 2.0), "w": (0.0, 1.0), "v": (-1.0, 1.0), "r": (-1.0, 1.0)}
"""Range of each coefficient of the blend."""
_START = {"g": 1.0, "w": 0.1, "v": 0.8, "r": 0.0}
"""Its first value everywhere, inside the range, where gradients are alive: nearly the brighter source."""
_STEM_SCALE = 4
_MOST = 6.0  # of an activation: ReLU6


@dataclass(frozen=True)
class _Size:
    """Widths are 16 or 32, the blocks of channels that CPUs and tensor cores compute at once."""

    stem: int
    """Channels at 1/4."""
    context: int
    """Channels at 1/8."""
    context_layers: int
    fine_layers: int
    """At 1/4 behind the context; with none the coefficients come from 1/8."""
    coefficients: str
    """Which are predicted; g is 1 where it is not."""


class EdgeStudent(nn.Module):
    """Fuses a visible picture, its luminance or its colours, and infrared."""

    size = _Size(stem=16, context=32, context_layers=4, fine_layers=2, coefficients="gwvr")

    def __init__(self, colour: Colour = Colour.LUMA) -> None:
        super().__init__()
        self.colour = Colour(colour)
        size = self.size
        self.stem_ir = _stem(1, size.stem)
        self.stem_vis = _stem(3 if self.colour is Colour.RGB else 1, size.stem)
        widths = [size.stem] + [size.context] * size.context_layers
        self.context = nn.Sequential(
            *(_RepConv(inputs, size.context, stride=1 if index else 2) for index, inputs in enumerate(widths[:-1]))
        )
        width, scale = size.context, 2 * _STEM_SCALE
        if size.fine_layers:
            self.rejoin = _Unfold(size.context, size.stem, 2, (-_MOST, _MOST))
            self.fine = nn.Sequential(*(_RepConv(size.stem, size.stem) for _ in range(size.fine_layers)))
            width, scale = size.stem, _STEM_SCALE
        self.heads = nn.ModuleDict({name: _Unfold(width, 1, scale, _BOUNDS[name]) for name in size.coefficients})
        self._initialise()

    @property
    def settings(self) -> dict[str, str]:
        """Constructor arguments, for the model card."""
        return {"colour": self.colour.value}

    def forward(self, vis: Tensor, ir: Tensor) -> FusionOutput:
        """Fuse a visible picture and infrared of the same height and width, in [0, 1], of any size.

        ``vis`` is luminance ``[B, 1, H, W]``, or RGB ``[B, 3, H, W]`` for ``colour`` rgb; ``ir`` is ``[B, 1, H, W]``.
        Returns ``y`` and, for ``colour`` rgb, ``rgb`` with the hue of ``vis`` and exactly that luminance, in [0, 1].
        Taps, for distilling features, are the stem (16 channels at 1/4), the context (32 at 1/8) and, in `edge`, the
        map that the coefficients come from (16 at 1/4); sizes are rounded up.
        """
        y = luminance(vis) if self.colour is Colour.RGB else vis
        stem = F.relu6(self.stem_ir(ir) + self.stem_vis(vis))
        context = self.context(stem)
        taps = [stem, context]
        if self.size.fine_layers:
            taps.append(self.fine(F.relu6(stem + _cropped(self.rejoin(context), stem))))
        maps = {name: _cropped(head(taps[-1]), y).to(y.dtype) for name, head in self.heads.items()}
        fused = _blend(y, ir, maps)
        return FusionOutput(fused, tuple(taps), rgb=recombine(fused, vis) if self.colour is Colour.RGB else None)

    def _initialise(self) -> None:
        """Kaiming (fan-out) for the trunk; the coefficients start as `_START` with faint, smooth variation."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
        for name, head in self.heads.items():
            assert isinstance(head, _Unfold)
            head.start(_START[name])


class NanoStudent(EdgeStudent):
    """`edge` with less context, no layers at 1/4 behind it, and g = 1."""

    size = _Size(stem=16, context=32, context_layers=2, fine_layers=0, coefficients="wvr")


class _RepConv(nn.Module):
    """ReLU6 of the sum of a 3×3, a 1×1 and, where the shape stays, an identity branch, each normalised."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.wide = nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs))
        self.point = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.identity = nn.BatchNorm2d(outputs) if stride == 1 and inputs == outputs else None

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``[B, C, h, w]``."""
        total: Tensor = self.wide(x) + self.point(x)
        if self.identity is not None:
            total = total + self.identity(x)
        return F.relu6(total)

    def merged(self) -> nn.Module:
        """One 3×3 convolution and ReLU6 that are the same function in evaluation mode."""
        wide, wide_norm = self.wide
        point, point_norm = self.point
        assert isinstance(wide, nn.Conv2d)
        assert isinstance(point, nn.Conv2d)
        branches = [(wide.weight, wide_norm), (F.pad(point.weight, (1, 1, 1, 1)), point_norm)]
        if self.identity is not None:
            branches.append((nn.init.dirac_(torch.empty_like(wide.weight)), self.identity))
        kernels, biases = zip(*(_normalised(weight, norm) for weight, norm in branches), strict=True)
        conv = nn.Conv2d(wide.in_channels, wide.out_channels, 3, wide.stride[0], padding=1)
        with torch.no_grad():
            conv.weight.copy_(torch.stack(kernels).sum(dim=0))
            assert conv.bias is not None
            conv.bias.copy_(torch.stack(biases).sum(dim=0))
        return nn.Sequential(conv, nn.ReLU6())


class _Unfold(nn.Module):
    """Maps of a larger scale in blocks of scale×scale pixels: transposed convolution of equal kernel and stride, clip.

    The same function as a 1×1 convolution and depth-to-space with one bias per map, which TensorRT runs as well, but
    the DLA does not, and ONNX Runtime more slowly.
    """

    def __init__(self, inputs: int, outputs: int, scale: int, bounds: tuple[float, float]) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(inputs, outputs, scale, scale)
        self.bounds = bounds

    def start(self, value: float) -> None:
        """Make the maps start near ``value``, and all pixels of a block alike, so that no grid has to be unlearnt."""
        nn.init.normal_(self.conv.weight, std=1e-3)
        with torch.no_grad():
            self.conv.weight.copy_(self.conv.weight[..., :1, :1].expand_as(self.conv.weight))
        assert self.conv.bias is not None
        nn.init.constant_(self.conv.bias, value)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, h, w]`` to ``[B, outputs, scale·h, scale·w]``."""
        maps: Tensor = self.conv(x)
        return maps.clamp(*self.bounds)


def _stem(inputs: int, outputs: int) -> nn.Sequential:
    """A kernel one wider than its stride: ⌈H/4⌉×⌈W/4⌉ for any size without padding of its own, and every pixel seen.

    One stem per source: their sum is the convolution of both, but nothing has to be concatenated.
    """
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, _STEM_SCALE + 1, _STEM_SCALE, padding=_STEM_SCALE // 2, bias=False),
        nn.BatchNorm2d(outputs),
    )


def _normalised(weight: Tensor, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Kernel and bias of a convolution without bias followed by batch normalisation, in float64."""
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    gain = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    return weight.double() * gain[:, None, None, None], norm.bias.double() - norm.running_mean.double() * gain


def _blend(y: Tensor, ir: Tensor, maps: dict[str, Tensor]) -> Tensor:
    """The blend of this module's docstring."""
    difference = ir - y
    base = maps["g"] * y if "g" in maps else y
    fused = base + maps["w"] * difference + maps["v"] * F.relu(difference) + maps["r"]
    return fused.clamp(0, 1)


def _cropped(larger: Tensor, beside: Tensor) -> Tensor:
    """Cut what whole blocks reach beyond the right and lower border."""
    height, width = beside.shape[-2:]
    if torch.onnx.is_in_onnx_export() or larger.shape[-2:] != (height, width):
        return larger[..., :height, :width]
    return larger
