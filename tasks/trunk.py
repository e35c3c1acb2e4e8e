"""The encoder that the in-tree task networks share: maps at strides 4, 8 and 16."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from duskfuse.data.errors import InputError
from duskfuse.data.weights import read_state_dict


class Trunk(StrEnum):
    """What an in-tree task network sees with."""

    RESIDUAL = "residual"
    """Residual blocks with batch norm, trained from nothing."""
    SQUEEZENET = "squeezenet"
    """torchvision's SqueezeNet 1.1 (Iandola et al. 2016), which may start from ImageNet weights."""


CHANNELS = {Trunk.RESIDUAL: (32, 64, 128), Trunk.SQUEEZENET: (128, 256, 512)}
"""Of the maps, finest first."""


def new_trunk(trunk: Trunk) -> nn.ModuleList:
    """The stages of an untrained encoder; each takes what the one before it gives."""
    return _squeezenet_stages() if trunk is Trunk.SQUEEZENET else _residual_stages()


def trunk_maps(stages: nn.ModuleList, picture: Tensor) -> list[Tensor]:
    """The maps of normalised RGB ``[B, 3, H, W]``, H and W multiples of 32.

    SqueezeNet pads less than it halves: its maps lack a last row and column, and lie half a cell further down.
    """
    maps = []
    for stage in stages:
        picture = stage(picture)
        maps.append(picture)
    return maps


def start_from_imagenet(stages: nn.ModuleList, trunk: Trunk, weights: Path) -> None:
    """Copy torchvision's SqueezeNet 1.1, a safetensors file or a state dict, into an encoder.

    Raises:
        InputError: the file holds something else, or the trunk is another one.
    """
    rule = "the trunk starts from the features.* weights of torchvision's squeezenet1_1"
    remedy = "give that file, or none"
    if trunk is not Trunk.SQUEEZENET:
        raise InputError(f"{weights} for the trunk {trunk}", rule=rule, remedy=remedy)
    named = {}
    for key, tensor in read_state_dict(weights, rule=rule, remedy=remedy).items():
        folder, number, *rest = key.split(".")
        if folder == "features":  # the parts of a sliced Sequential keep their numbers
            stage = sum(int(number) >= start for start in (5, 8))
            named[".".join([str(stage), number, *rest])] = tensor
    try:
        stages.load_state_dict(named)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{weights}: {str(error).splitlines()[-1].strip()}", rule=rule, remedy=remedy) from None


class _Residual(nn.Module):
    """Two 3×3 convolutions beside a shortcut (He et al. 2016)."""

    def __init__(self, entering: int, leaving: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.first = conv_block(entering, leaving, stride)
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


def conv_block(entering: int, leaving: int, stride: int = 1) -> nn.Sequential:
    """A 3×3 convolution with batch norm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(entering, leaving, 3, stride, padding=1, bias=False), nn.BatchNorm2d(leaving), nn.ReLU()
    )


def _residual_stages() -> nn.ModuleList:
    return nn.ModuleList(
        [
            nn.Sequential(conv_block(3, 16, stride=2), _Residual(16, 32, stride=2)),
            _Residual(32, 64, stride=2),
            nn.Sequential(_Residual(64, 128, stride=2), _Residual(128, 128, dilation=2)),
        ]
    )


def _squeezenet_stages() -> nn.ModuleList:
    from torchvision.models import squeezenet1_1

    features = squeezenet1_1().features
    return nn.ModuleList([features[:5], features[5:8], features[8:]])
