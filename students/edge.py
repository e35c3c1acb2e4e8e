"""The students `edge` and `nano`: a small network at a fraction of the resolution steers a blend at full resolution.

Published light fusers convolve the full picture. Here convolutions see 1/4 and 1/8 of it and predict, for every pixel,
the coefficients of a blend of the untouched sources, which costs a handful of elementwise operations:

    f = clip(g·y + w·d + v·max(d, 0) + r, 0, 1),  d = ir − y.

With g = 1 the weights (w, v) = (0, 0), (1, 0), (½, 0), (0, 1), (1, −1) are the visible picture, infrared, their mean,
their maximum and their minimum; g = 2 with w = 1 adds the details of both, r then moves the brightness back. Every
coefficient is clipped to the range of `_BOUNDS`, so that none is wide in INT8, and the detail of the result comes from
the sources in float, not from a quantised map. Nothing looks at more than a neighbourhood and nothing is normalised per
picture, so that a change in one corner of a video does not move the brightness of another.

The blend, too, is computed at 1/4, on blocks of 4×4 pixels that stand as 16 channels (space-to-depth, Shi et al. 2016):
sources and coefficients then have the layout that vector units and tensor cores want, and one picture instead of every
map is brought back to full resolution. In files a fixed convolution makes the blocks, since layout operators are slow.
Convolutions are trained as the sum of a 3×3, a 1×1 and an identity branch, each normalised, and deployed as one
(RepVGG, Ding et al. 2021).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from duskfuse.data.colour import luminance, recombine
from duskfuse.data.fuser import Colour, FusionOutput
from duskfuse.students.int8 import Link
from duskfuse.students.steering.taps import Modality, Tap

EDGE, NANO = "edge", "nano"
"""Architecture names."""

_BOUNDS = {"g": (0.0, 2.0), "w": (0.0, 1.0), "v": (-1.0, 1.0), "r": (-1.0, 1.0)}
"""Range of each coefficient of the blend."""
_START = {"g": 1.0, "w": 0.1, "v": 0.8, "r": 0.0}
"""Its first value everywhere, inside the range, where gradients are alive: nearly the brighter source."""
_BLOCK = 4


@dataclass(frozen=True)
class Plan:
    """Widths are 16 or 32, the blocks of channels that CPUs and tensor cores compute at once."""

    stem: int
    """Channels at 1/4."""
    context: int
    """Channels at 1/8."""
    context_layers: int
    fine_layers: int
    """At 1/4, after stem and context are joined."""
    coefficients: str
    """Which are predicted; of the others g is 1, the rest 0."""


class EdgeStudent(nn.Module):
    """Fuses a visible picture, its luminance or its colours, and infrared."""

    plan = Plan(stem=16, context=32, context_layers=4, fine_layers=2, coefficients="gwvr")

    def __init__(self, colour: Colour = Colour.LUMA) -> None:
        super().__init__()
        self.colour = Colour(colour)
        plan = self.plan
        self.stem_ir = _stem(1, plan.stem)
        self.stem_vis = _stem(3 if self.colour is Colour.RGB else 1, plan.stem)
        self.context = nn.Sequential(
            _RepConv(plan.stem, plan.context, stride=2),
            *(_RepConv(plan.context, plan.context) for _ in range(plan.context_layers - 1)),
        )
        self.rejoin = nn.Sequential(nn.Conv2d(plan.context, plan.stem, 1, bias=False), nn.BatchNorm2d(plan.stem))
        self.fine = nn.Sequential(*(_RepConv(plan.stem, plan.stem) for _ in range(plan.fine_layers)))
        self.heads = nn.ModuleDict({name: nn.Conv2d(plan.stem, _BLOCK**2, 1) for name in plan.coefficients})
        self.blocks, self.negative_blocks, self.picture = _Blocks(1), _Blocks(-1), _Picture()
        self._initialise()

    @property
    def links(self) -> tuple[Link, ...]:
        """Only ReLU and bilinear resizing lie behind the stems and the rejoined context."""
        behind = ("fine.0.0",) if self.plan.fine_layers else tuple(f"heads.{name}" for name in self.plan.coefficients)
        return (Link(("stem_ir.0", "stem_vis.0", "rejoin.0"), ("context.0.0", *behind)),)

    @property
    def steering_taps(self) -> tuple[Tap, ...]:
        """Both stems before they are summed up, and the context."""
        stems = (
            Tap("stem_ir", self.plan.stem, _BLOCK, Modality.IR),
            Tap("stem_vis", self.plan.stem, _BLOCK, Modality.VIS),
        )
        return (*stems, Tap("context", self.plan.context, 2 * _BLOCK, Modality.JOINT))

    @property
    def settings(self) -> dict[str, str]:
        """Constructor arguments, for the model card."""
        return {"colour": self.colour.value}

    def forward(self, vis: Tensor, ir: Tensor) -> FusionOutput:
        """Fuse a visible picture and infrared of the same height and width, in [0, 1], of any size.

        ``vis`` is luminance ``[B, 1, H, W]``, or RGB ``[B, 3, H, W]`` for ``colour`` rgb; ``ir`` is ``[B, 1, H, W]``.
        Returns ``y`` and, for ``colour`` rgb, ``rgb`` with the hue of ``vis`` and exactly that luminance, in [0, 1].
        Taps, for distilling features, are the stem (16 channels at 1/4), the context (32 at 1/8, in `nano` 16) and the
        map that the coefficients come from (16 at 1/4); sizes are rounded up.
        """
        y = luminance(vis) if self.colour is Colour.RGB else vis
        # A ReLU without upper limit after sums: runtimes fuse it with the convolution, a clip they do not.
        stem = F.relu(self.stem_ir(_padded(ir)) + self.stem_vis(_padded(vis)))
        context = self.context(stem)
        wide = F.interpolate(self.rejoin(context), size=stem.shape[-2:], mode="bilinear", align_corners=False)
        fine = self.fine(F.relu(stem + wide))
        coefficients = {name: head(fine).to(y.dtype).clamp(*_BOUNDS[name]) for name, head in self.heads.items()}
        whole_y = _padded(y)
        difference = self.blocks(_padded(ir)) + self.negative_blocks(whole_y)
        fused = _cropped(self.picture(_blend(self.blocks(whole_y), difference, coefficients)), y).clamp(0, 1)
        rgb = recombine(fused, vis) if self.colour is Colour.RGB else None
        return FusionOutput(fused, (stem, context, fine), rgb=rgb)

    def _initialise(self) -> None:
        """Kaiming (fan-out) for the trunk; the coefficients start as `_START` with faint, smooth variation.

        All pixels of a block start alike, so that no grid has to be unlearnt (Aitken et al. 2017).
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
        for name, head in self.heads.items():
            assert isinstance(head, nn.Conv2d)
            assert head.bias is not None
            nn.init.normal_(head.weight[:1].data, std=1e-3)
            head.weight.data.copy_(head.weight[:1].expand_as(head.weight))
            nn.init.constant_(head.bias, _START[name])


class NanoStudent(EdgeStudent):
    """`edge` with less context, no layers behind the joining of stem and context, and g = 1."""

    plan = Plan(stem=16, context=16, context_layers=3, fine_layers=0, coefficients="wvr")


def without_depth_to_space(student: EdgeStudent) -> EdgeStudent:
    """Return a copy, bit for bit the same function, whose file has a transposed convolution in place of DepthToSpace.

    The DLA of a Jetson has no DepthToSpace.
    """
    changed = copy.deepcopy(student)
    changed.picture.transposed = True
    return changed


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


class _Blocks(nn.Module):
    """Blocks of 4×4 pixels as 16 channels, times a sign: ``[B, 1, 4h, 4w]`` to ``[B, 16, h, w]``."""

    def __init__(self, sign: int) -> None:
        super().__init__()
        self.sign = sign

    def forward(self, plane: Tensor) -> Tensor:
        """Take ``plane`` apart."""
        return self.sign * F.pixel_unshuffle(plane, _BLOCK)

    def merged(self) -> nn.Module:
        """A convolution that picks one pixel per channel."""
        conv = nn.Conv2d(1, _BLOCK**2, _BLOCK, _BLOCK, bias=False)
        conv.weight = nn.Parameter(self.sign * _picks(), requires_grad=False)
        return conv


class _Picture(nn.Module):
    """The inverse of `_Blocks`: ``[B, 16, h, w]`` to ``[B, 1, 4h, 4w]``."""

    transposed = False

    def forward(self, blocks: Tensor) -> Tensor:
        """Put the pixels back."""
        return F.pixel_shuffle(blocks, _BLOCK)

    def merged(self) -> nn.Module:
        """DepthToSpace, or a transposed convolution that puts one channel at each pixel."""
        if not self.transposed:
            return nn.PixelShuffle(_BLOCK)
        conv = nn.ConvTranspose2d(_BLOCK**2, 1, _BLOCK, _BLOCK, bias=False)
        conv.weight = nn.Parameter(_picks(), requires_grad=False)
        return conv


def _picks() -> Tensor:
    """Kernels ``[16, 1, 4, 4]`` of which each is 1 at its own pixel."""
    return torch.eye(_BLOCK**2).view(_BLOCK**2, 1, _BLOCK, _BLOCK)


def _stem(inputs: int, outputs: int) -> nn.Sequential:
    """Sees each block once. One stem per source: their sum is the convolution of both, without concatenation."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, _BLOCK, _BLOCK, bias=False), nn.BatchNorm2d(outputs))


def _normalised(weight: Tensor, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Kernel and bias of a convolution without bias followed by batch normalisation, in float64."""
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    gain = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    return weight.double() * gain[:, None, None, None], norm.bias.double() - norm.running_mean.double() * gain


def _blend(y: Tensor, difference: Tensor, maps: dict[str, Tensor]) -> Tensor:
    """The blend of this module's docstring before its clip."""
    fused = maps["g"] * y if "g" in maps else y
    if "r" in maps:
        fused = fused + maps["r"]
    if "w" in maps:
        fused = fused + maps["w"] * difference
    if "v" in maps:
        fused = fused + maps["v"] * F.relu(difference)
    return fused


def _padded(picture: Tensor) -> Tensor:
    """Complete the blocks at the right and lower border with zeros.

    In a file the most that any size needs, which becomes part of the convolutions behind.
    """
    if torch.onnx.is_in_onnx_export():
        return F.pad(picture, (0, _BLOCK - 1, 0, _BLOCK - 1))
    height, width = picture.shape[-2:]
    if height % _BLOCK or width % _BLOCK:
        return F.pad(picture, (0, -width % _BLOCK, 0, -height % _BLOCK))
    return picture


def _cropped(larger: Tensor, beside: Tensor) -> Tensor:
    """Cut what whole blocks reach beyond the right and lower border."""
    height, width = beside.shape[-2:]
    if torch.onnx.is_in_onnx_export() or larger.shape[-2:] != (height, width):
        return larger[..., :height, :width]
    return larger
