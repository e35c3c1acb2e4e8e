"""The mobile student: two MobileNetV3 encoders, fusion at four scales with cross-attention at 1/16, a U-Net decoder.

Trunks after MobileNetV3-large (Howard et al. 2019) down to 1/16, one per modality; squeeze-and-excitation after Hu et
al. 2018. The widths are chosen for 3 to 5 million parameters and 15 to 25 GMACs at 512×512: 3,072,633 parameters,
17.3 GMACs of convolutions and 0.47 of attention for luminance. Every batch normalisation directly follows its
convolution in an ``nn.Sequential``, so that all of them fold away on export.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from duskfuse.data.colour import luminance
from duskfuse.data.fuser import Colour, FusionOutput
from duskfuse.students.steering.taps import Modality, Tap

ARCHITECTURE = "mobile"
GLOBAL_TOKENS = 2048
"""Most positions at 1/16 that attend to all others; larger maps attend within windows."""
WINDOW = 16
"""Side of an attention window in positions, 256 pixels."""

_HEADS = 4
_MASKED = -1e4  # far enough below every score, and inside half precision
_SOURCE_GAIN = 4.0  # sigmoid(4 (m − 1/2)) is close to m: 0.02 off at most within [0.25, 0.75], 0.12 at 0 and 1


@dataclass(frozen=True)
class _Block:
    """One row of the trunk: kernel, expanded width, output width, stride, whether its channels are gated."""

    kernel: int
    expanded: int
    outputs: int
    stride: int = 1
    gated: bool = False


_STEM = 16
_STAGES = (
    (_Block(3, 16, 16),),
    (_Block(3, 64, 24, stride=2), _Block(3, 72, 24)),
    (_Block(5, 72, 40, stride=2, gated=True), _Block(5, 120, 40, gated=True), _Block(5, 120, 40, gated=True)),
    (
        _Block(3, 240, 80, stride=2),
        _Block(3, 200, 80),
        _Block(3, 184, 80),
        _Block(3, 480, 112, gated=True),
        _Block(3, 672, 112, gated=True),
    ),
)
"""The trunk at 1/2, 1/4, 1/8 and 1/16."""
_ENCODED = tuple(stage[-1].outputs for stage in _STAGES)
_FUSED = (48, 80, 176, 256)
"""Widths of the fused maps and of the decoder, at the same scales."""
_FULL = 16


class MobileStudent(nn.Module):
    """Fuses a visible picture, its luminance or its colours, and infrared."""

    def __init__(self, colour: Colour = Colour.LUMA) -> None:
        super().__init__()
        self.colour = Colour(colour)
        channels = 3 if self.colour is Colour.RGB else 1
        self.encode_ir = _Encoder(1)
        self.encode_vis = _Encoder(channels)
        self.attend = _CrossAttention(_ENCODED[-1])
        self.fuse = nn.ModuleList(
            nn.Sequential(_ChannelGate(2 * width), _unit(2 * width, fused, 1), _ChannelGate(fused))
            for width, fused in zip(_ENCODED, _FUSED, strict=True)
        )
        self.decode = nn.ModuleList(
            nn.Sequential(_unit(below + width, width, 3), _unit(width, width, 3)) for width, below in pairwise(_FUSED)
        )
        self.finish = nn.Sequential(_unit(_FUSED[0] + 1 + channels, _FULL, 3), _unit(_FULL, _FULL, 3))
        self.last = nn.Conv2d(_FULL, channels, 3, padding=1)
        self._initialise()

    @property
    def steering_taps(self) -> tuple[Tap, ...]:
        """The maps of both encoders, from fine to coarse."""
        sides = ((Modality.IR, "encode_ir"), (Modality.VIS, "encode_vis"))
        return tuple(
            Tap(f"{name}.stages.{number}", channels, 2 ** (number + 1), modality)
            for number, channels in enumerate(_ENCODED)
            for modality, name in sides
        )

    @property
    def settings(self) -> dict[str, str]:
        """Constructor arguments, for the model card."""
        return {"colour": self.colour.value}

    def forward(self, vis: Tensor, ir: Tensor) -> FusionOutput:
        """Fuse a visible picture and infrared of the same height and width, in [0, 1], of any size.

        ``vis`` is luminance ``[B, 1, H, W]``, or RGB ``[B, 3, H, W]`` for ``colour`` rgb; ``ir`` is ``[B, 1, H, W]``,
        of three equal channels the first is taken. Returns ``y``, for ``colour`` rgb also ``rgb``, in [0, 1], and five
        taps of 48, 80, 256, 48 and 16 channels at 1/2, 1/4, 1/16, 1/2 and 1 (sizes rounded up).
        """
        ir = ir[:, :1]
        maps_ir, maps_vis = self.encode_ir(ir), self.encode_vis(vis)
        maps_ir[-1], maps_vis[-1] = self.attend(maps_ir[-1], maps_vis[-1])
        fused = [fuse(torch.cat(pair, dim=1)) for fuse, *pair in zip(self.fuse, maps_ir, maps_vis, strict=True)]
        x = fused[-1]
        for decode, skip in zip(reversed(self.decode), reversed(fused[:-1]), strict=True):
            x = decode(torch.cat([_resized(x, skip), skip], dim=1))
        full = self.finish(torch.cat([_resized(x, ir), ir, vis], dim=1))
        # With the bias of −2 that `_initialise` gives, the network starts at the mean of its sources.
        logits = self.last(full).to(vis.dtype) + _SOURCE_GAIN / 2 * (ir + vis)
        taps = (fused[0], fused[1], fused[-1], x, full)
        picture = torch.sigmoid(logits)
        if self.colour is Colour.RGB:
            return FusionOutput(luminance(picture), taps, rgb=picture)
        return FusionOutput(picture, taps)

    def _initialise(self) -> None:
        """Kaiming (fan-out) for convolutions; the output starts as the mean of the sources."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.last.weight, std=1e-2)
        assert self.last.bias is not None
        nn.init.constant_(self.last.bias, -_SOURCE_GAIN / 2)


class _Encoder(nn.Module):
    """A MobileNetV3-large trunk: maps of 16, 24, 40 and 112 channels at 1/2, 1/4, 1/8 and 1/16."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        stages, width = [], _STEM
        for blocks in _STAGES:
            stage: list[nn.Module] = []
            for block in blocks:
                stage.append(_InvertedResidual(width, block))
                width = block.outputs
            stages.append(nn.Sequential(*stage))
        self.stem = _unit(channels, _STEM, 3, stride=2)
        self.stages = nn.ModuleList(stages)

    def forward(self, picture: Tensor) -> list[Tensor]:
        """Encode ``[B, C, H, W]``."""
        x, maps = self.stem(picture), []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class _InvertedResidual(nn.Module):
    """Expand 1×1, depthwise k×k, optional gate, project 1×1 (Howard et al. 2019, figure 4).

    Where input and output are added, the last normalisation starts at zero: the block starts as the identity.
    """

    def __init__(self, inputs: int, block: _Block) -> None:
        super().__init__()
        self.residual = block.stride == 1 and inputs == block.outputs
        gate: Sequence[nn.Module] = [_ChannelGate(block.expanded)] if block.gated else []
        normalise = nn.BatchNorm2d(block.outputs)
        if self.residual:
            nn.init.zeros_(normalise.weight)
        self.body = nn.Sequential(
            _unit(inputs, block.expanded, 1),
            _unit(block.expanded, block.expanded, block.kernel, stride=block.stride, groups=block.expanded),
            *gate,
            nn.Sequential(nn.Conv2d(block.expanded, block.outputs, 1, bias=False), normalise),
        )

    def forward(self, x: Tensor) -> Tensor:
        body: Tensor = self.body(x)
        return x + body if self.residual else body


class _ChannelGate(nn.Module):
    """Squeeze-and-excitation with a quarter of the width and a hard sigmoid.

    Linear layers and not 1×1 convolutions: quantisation leaves them in float, where gates belong.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(width, width // 4)
        self.excite = nn.Linear(width // 4, width)

    def forward(self, x: Tensor) -> Tensor:
        gate = F.hardsigmoid(self.excite(F.relu(self.squeeze(x.mean(dim=(2, 3))))))
        return x * gate[:, :, None, None]


class _CrossAttention(nn.Module):
    """Each modality looks at the other: a + O(softmax(Q(a) K(b)ᵀ / √d) V(b)), and the same the other way round."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm_ir = nn.GroupNorm(1, width)
        self.norm_vis = nn.GroupNorm(1, width)
        self.look_at_vis = _Attention(width)
        self.look_at_ir = _Attention(width)

    def forward(self, ir: Tensor, vis: Tensor) -> tuple[Tensor, Tensor]:
        """Exchange between two maps ``[B, C, h, w]``."""
        seen_ir, seen_vis = self.norm_ir(ir), self.norm_vis(vis)
        return ir + self.look_at_vis(seen_ir, seen_vis), vis + self.look_at_ir(seen_vis, seen_ir)


class _Attention(nn.Module):
    """Multi-head attention of one map to another, over the whole map or, where it is large, within windows.

    A small map is one window. Windows at the right and lower border are filled up with positions that nothing attends
    to. Sizes may be traced, so that one ONNX graph chooses for every picture; sizes known to Python cost nothing.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.query, self.key, self.value, self.out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, asking: Tensor, asked: Tensor) -> Tensor:
        """Attend from ``asking`` to ``asked``, both ``[B, C, h, w]``."""
        batch, _, height, width = asking.shape
        window = _window(height, width)
        pad = -height % window[0], -width % window[1]
        mask = _padding_mask(asking, pad, window) if torch.onnx.is_in_onnx_export() or any(pad) else None
        query, key, value = (
            self._split(F.pad(project(x), (0, pad[1], 0, pad[0])), window)
            for project, x in ((self.query, asking), (self.key, asked), (self.value, asked))
        )
        depth = self.width // _HEADS
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=depth**-0.5)
        rows, columns = (height + pad[0]) // window[0], (width + pad[1]) // window[1]
        seen = seen.reshape(batch, rows, columns, _HEADS, window[0], window[1], depth).permute(0, 3, 6, 1, 4, 2, 5)
        seen = seen.reshape(batch, self.width, height + pad[0], width + pad[1])[:, :, :height, :width]
        attended: Tensor = self.out(seen)
        return attended

    @staticmethod
    def _split(x: Tensor, window: tuple[int, int], heads: int = _HEADS) -> Tensor:
        """``[B, C, h, w]`` to ``[B·windows, heads, positions, C / heads]``."""
        batch, channels, height, width = x.shape
        rows, columns, depth = height // window[0], width // window[1], channels // heads
        x = x.reshape(batch, heads, depth, rows, window[0], columns, window[1]).permute(0, 3, 5, 1, 4, 6, 2)
        return x.reshape(batch * rows * columns, heads, window[0] * window[1], depth)


def _window(height: int, width: int) -> tuple[int, int]:
    """Height and width of the attention windows of a map."""
    if torch.onnx.is_in_onnx_export():  # sizes are tensors here, so that the choice becomes part of the graph
        sides = torch.as_tensor(height), torch.as_tensor(width)
        large = sides[0] * sides[1] > GLOBAL_TOKENS
        chosen = [torch.where(large, torch.full_like(side, WINDOW), side) for side in sides]
        return chosen[0], chosen[1]  # type: ignore[return-value]
    return (WINDOW, WINDOW) if height * width > GLOBAL_TOKENS else (height, width)


def _padding_mask(x: Tensor, pad: tuple[int, int], window: tuple[int, int]) -> Tensor:
    """What is added to the scores, ``[B·windows, 1, 1, positions]``: 0 inside the map, far below in its padding."""
    inside = F.pad(torch.ones_like(x[:, :1]), (0, pad[1], 0, pad[0]))
    return ((1 - _Attention._split(inside, window, heads=1)) * _MASKED).transpose(2, 3)


def _unit(inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.Hardswish(),
    )


def _resized(small: Tensor, beside: Tensor) -> Tensor:
    return F.interpolate(small, size=beside.shape[-2:], mode="bilinear", align_corners=False)
