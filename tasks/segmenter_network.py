"""The in-tree segmenter's network: small enough to train on a CPU, and a critic that costs less than what it judges."""

from __future__ import annotations

from enum import StrEnum

import torch.nn.functional as F
from torch import Tensor, nn


class Trunk(StrEnum):
    """What the in-tree segmenter sees with."""

    RESIDUAL = "residual"
    """Residual blocks with batch norm, trained from nothing: 0.66 M parameters in all."""
    SQUEEZENET = "squeezenet"
    """torchvision's SqueezeNet 1.1 (Iandola et al. 2016), which may start from ImageNet weights: 0.83 M."""


class SegmenterNetwork(nn.Module):
    """A light encoder-decoder: maps at strides 4, 8 and 16, the picture's mean as context, summed up at stride 4.

    The decoder is that of feature pyramids (Lin et al. 2017) with one width, the context that of ParseNet (Liu et al.
    2015): both cost little beside the encoder.

    Args:
        classes: channels of the logits, which come at a quarter of the resolution.
        trunk: the encoder.
    """

    WIDTH = 48

    def __init__(self, classes: int, trunk: Trunk = Trunk.RESIDUAL) -> None:
        super().__init__()
        self.trunk = _squeezenet_stages() if trunk is Trunk.SQUEEZENET else _residual_stages()
        channels = (128, 256, 512) if trunk is Trunk.SQUEEZENET else (32, 64, 128)
        self.lateral = nn.ModuleList(nn.Conv2d(count, self.WIDTH, 1) for count in channels)
        self.context = nn.Conv2d(channels[-1], self.WIDTH, 1)
        self.refine = nn.ModuleList(_conv(self.WIDTH, self.WIDTH) for _ in channels[:-1])
        self.head = nn.Conv2d(self.WIDTH, classes, 1)

    def forward(self, picture: Tensor) -> Tensor:
        """Logits ``[B, classes, H/4, W/4]`` of normalised RGB ``[B, 3, H, W]``."""
        maps = []
        for stage in self.trunk:
            picture = stage(picture)
            maps.append(picture)
        summed: Tensor = self.lateral[-1](maps[-1]) + self.context(maps[-1].mean(dim=(2, 3), keepdim=True))
        for finer, lateral, refine in zip(maps[-2::-1], self.lateral[-2::-1], self.refine, strict=False):
            larger = F.interpolate(summed, size=finer.shape[-2:], mode="bilinear", align_corners=False)
            summed = refine(larger + lateral(finer))
        return self.head(summed)  # type: ignore[no-any-return]


class _Residual(nn.Module):
    """Two 3×3 convolutions beside a shortcut (He et al. 2016)."""

    def __init__(self, entering: int, leaving: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.first = _conv(entering, leaving, stride)
        self.second = nn.Sequential(
            nn.Conv2d(leaving, leaving, 3, padding=dilation, dilation=dilation, bias=False), nn.BatchNorm2d(leaving)
        )
        same = entering == leaving and stride == 1
        self.shortcut: nn.Module = (
            nn.Identity()
            if same
            else nn.Sequential(nn.Conv2d(entering, leaving, 1, stride, bias=False), nn.BatchNorm2d(leaving))
        )

    def forward(self, maps: Tensor) -> Tensor:
        return F.relu(self.second(self.first(maps)) + self.shortcut(maps))


def _conv(entering: int, leaving: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(entering, leaving, 3, stride, padding=1, bias=False), nn.BatchNorm2d(leaving), nn.ReLU()
    )


def _residual_stages() -> nn.ModuleList:
    return nn.ModuleList(
        [
            nn.Sequential(_conv(3, 16, stride=2), _Residual(16, 32, stride=2)),
            _Residual(32, 64, stride=2),
            nn.Sequential(_Residual(64, 128, stride=2), _Residual(128, 128, dilation=2)),
        ]
    )


def _squeezenet_stages() -> nn.ModuleList:
    from torchvision.models import squeezenet1_1

    features = squeezenet1_1().features
    return nn.ModuleList([features[:5], features[5:8], features[8:]])


def load_squeezenet(network: SegmenterNetwork, state: dict[str, Tensor]) -> None:
    """Copy torchvision's SqueezeNet 1.1 into the trunk SQUEEZENET; RuntimeError where tensors are missing or differ."""
    named = {}
    for key, tensor in state.items():
        folder, number, *rest = key.split(".")
        if folder == "features":  # the parts of a sliced Sequential keep their numbers
            stage = sum(int(number) >= start for start in (5, 8))
            named[".".join([str(stage), number, *rest])] = tensor
    network.trunk.load_state_dict(named)
