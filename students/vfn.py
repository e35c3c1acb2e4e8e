"""The vision-feature network of CLDyN: the fusion network that its closed loop was published around.

Structure: the vision-guided fusion network of "CLDyN" (CVPR 2026, arXiv 2604.08924). Every modality has its own stem
and dense blocks of 8 channels; both meet under an attention that looks at their gradients, and one more chain of dense
blocks makes the picture. Two blocks per chain are the published network (34,761 parameters), four its larger form
(46,617).

Convolutions continue the picture by reflection, the Sobel filter by its border pixel. Everything runs at full
resolution, 32,364 multiplications per pixel with two blocks: it is here to study the loop as published, not to ship.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from duskfuse.data.fuser import Colour, FusionOutput
from duskfuse.students.steering.taps import Modality, Tap

ARCHITECTURE = "vfn"
MIN_SIDE = 3
"""Smallest height or width: a dilated convolution reflects two pixels beyond the border."""

_WIDTH = 8
_SLOPE = 0.2


class VisionFeatureNetwork(nn.Module):
    """Fuses visible luminance and infrared; the features of both modalities can be reached after every block.

    Args:
        blocks: dense blocks per chain; at least 1.
    """

    colour = Colour.LUMA

    def __init__(self, blocks: int = 2) -> None:
        super().__init__()
        if blocks < 1:
            raise ValueError(f"{blocks} blocks; a chain has at least one")
        self.blocks = blocks
        self.encode_ir, self.encode_vis = _encoder(blocks), _encoder(blocks)
        self.attend = _GradientAttention(2 * _WIDTH)
        chain = (_DenseBlock() for _ in range(blocks))
        self.decode = nn.Sequential(_unit(2 * _WIDTH, _WIDTH), *chain, _unit(_WIDTH, 4), _conv(4, 1))

    @property
    def settings(self) -> dict[str, int]:
        """Constructor arguments, for the model card."""
        return {"blocks": self.blocks}

    @property
    def steering_taps(self) -> tuple[Tap, ...]:
        """The features of each modality after every block but the last."""
        sides = ((Modality.IR, "encode_ir"), (Modality.VIS, "encode_vis"))
        return tuple(
            Tap(f"{name}.{number + 1}", _WIDTH, 1, modality)
            for number in range(self.blocks - 1)
            for modality, name in sides
        )

    def forward(self, vis_y: Tensor, ir: Tensor) -> FusionOutput:
        """Fuse ``vis_y`` and ``ir``, both ``[B, 1, H, W]`` in [0, 1] with H, W >= 3.

        Returns ``y [B, 1, H, W]`` in [0, 1] and two taps at full resolution: the attended features of both modalities
        (16 channels) and the last map of 8 channels. Raises ValueError for smaller pictures.
        """
        if not torch.onnx.is_in_onnx_export() and min(vis_y.shape[-2:]) < MIN_SIDE:
            height, width = vis_y.shape[-2:]
            raise ValueError(f"picture of {height}×{width} pixels; this network needs {MIN_SIDE} pixels a side")
        attended = self.attend(torch.cat([self.encode_ir(ir), self.encode_vis(vis_y)], dim=1))
        last = self.decode[:-2](attended)
        y = (torch.tanh(self.decode[-2:](last).to(vis_y.dtype)) + 1) / 2
        return FusionOutput(y=y, taps=(attended, last))


class _DenseBlock(nn.Module):
    """Two dilated convolutions that see all before them, joined by a 1×1 convolution beside the identity."""

    def __init__(self) -> None:
        super().__init__()
        self.first = _unit(_WIDTH, _WIDTH, dilation=2)
        self.second = _unit(2 * _WIDTH, _WIDTH, dilation=2)
        self.join = nn.Sequential(nn.Conv2d(3 * _WIDTH, _WIDTH, 1), nn.LeakyReLU(_SLOPE))

    def forward(self, x: Tensor) -> Tensor:
        """Refine ``[B, 8, H, W]``."""
        first = self.first(x)
        second = self.second(torch.cat([x, first], dim=1))
        refined: Tensor = x + self.join(torch.cat([x, first, second], dim=1))
        return refined


class _GradientAttention(nn.Module):
    """Weighs every value by how strong the gradients of its channel and its neighbourhood are."""

    sobel: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        wide = 2 * channels
        self.of_mean, self.of_peak = _perceptron(channels, wide), _perceptron(channels, wide)
        self.around_mean, self.around_peak = _neighbourhood(channels, wide), _neighbourhood(channels, wide)
        across = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 8
        self.register_buffer("sobel", torch.stack([across, across.T])[:, None].repeat(channels, 1, 1, 1), False)

    def forward(self, maps: Tensor) -> Tensor:
        """Weigh ``[B, C, H, W]``."""
        channels = maps.shape[1]
        slopes = F.conv2d(F.pad(maps, (1, 1, 1, 1), mode="replicate"), self.sobel, groups=channels).abs()
        gradient = slopes[:, 0::2] + slopes[:, 1::2]
        channel = self.of_mean(gradient.mean(dim=(2, 3))) + self.of_peak(gradient.amax(dim=(2, 3)))
        place = self.around_mean(F.avg_pool2d(gradient, 3, 1, 1)) + self.around_peak(F.max_pool2d(gradient, 3, 1, 1))
        return maps * torch.sigmoid(channel[..., None, None] * place)


def _encoder(blocks: int) -> nn.Sequential:
    """The stem and the first block are one step, after which the features can first be reached."""
    stem = nn.Sequential(_unit(1, 4), _unit(4, _WIDTH))
    return nn.Sequential(stem, *(_DenseBlock() for _ in range(blocks)))


def _unit(inputs: int, outputs: int, dilation: int = 1) -> nn.Sequential:
    return nn.Sequential(_conv(inputs, outputs, dilation), nn.BatchNorm2d(outputs), nn.LeakyReLU(_SLOPE))


def _conv(inputs: int, outputs: int, dilation: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=dilation, dilation=dilation, padding_mode="reflect")


def _perceptron(channels: int, wide: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(channels, wide), nn.ReLU(), nn.Linear(wide, channels))


def _neighbourhood(channels: int, wide: int) -> nn.Sequential:
    return nn.Sequential(_conv(channels, wide), nn.ReLU(), _conv(wide, channels))
