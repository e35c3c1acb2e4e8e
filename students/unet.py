"""The U-Net student of SAGE: 135,617 parameters, needs no prior, the network that ships.

Structure: the student of "Every SAM Drop Counts" (SAGE, CVPR 2025, arXiv 2503.01210). Five stages of three
3×3 convolutions with 32 channels at scales 1, 1/2, 1/4, 1/2, 1, joined by two skip connections.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from duskfuse.data.errors import InputError
from duskfuse.data.fuser import Colour, FusionOutput
from duskfuse.students.int8 import Link
from duskfuse.students.steering.taps import Modality, Tap

ARCHITECTURE = "unet"
MIN_SIDE = 4
"""Smallest height or width: two 2×2 poolings must leave a pixel."""
PUBLISHED_NAMES = {
    "module1": "stage1",
    "module2": "stage2",
    "module3": "stage3",
    "adjust_channels4": "merge4",
    "module4": "stage4",
    "adjust_channels5": "merge5",
    "module5": "stage5",
    "final_decoder": "last",
}
"""Sub-module names of the published SAGE student and the names they have here."""

_CHANNELS = 32


class OutputHead(StrEnum):
    """How the last map becomes luminance in [0, 1]."""

    SIGMOID = "sigmoid"
    """In range by construction, gradients never die; for networks trained here."""
    TANH = "tanh"
    """tanh clamped to [0, 1]; for the published weights."""


class UNetStudent(nn.Module):
    """Fuses visible luminance and infrared with a small U-Net."""

    colour = Colour.LUMA

    def __init__(self, head: OutputHead = OutputHead.SIGMOID) -> None:
        super().__init__()
        self.head = OutputHead(head)
        self.stage1 = _stage(2)
        self.stage2 = _stage(_CHANNELS)
        self.stage3 = _stage(_CHANNELS)
        self.merge4 = nn.Sequential(*_unit(2 * _CHANNELS, _CHANNELS, kernel=1))
        self.stage4 = _stage(_CHANNELS)
        self.merge5 = nn.Sequential(*_unit(2 * _CHANNELS, _CHANNELS, kernel=1))
        self.stage5 = _stage(_CHANNELS)
        self.last = nn.Conv2d(_CHANNELS, 1, 3, padding=1)

    @property
    def links(self) -> tuple[Link, ...]:
        """Only a leaky ReLU lies between the convolutions of a stage, behind those that join, and before the last."""
        within = [(f"stage{n}.{i}", f"stage{n}.{i + 2}") for n in range(1, 6) for i in (0, 2)]
        between = [("merge4.0", "stage4.0"), ("merge5.0", "stage5.0"), ("stage5.4", "last")]
        return tuple(Link((writer,), (reader,)) for writer, reader in (*within, *between))

    @property
    def steering_taps(self) -> tuple[Tap, ...]:
        """The stages of the way down; both modalities are together from the first convolution on."""
        return tuple(Tap(f"stage{n}", _CHANNELS, 2 ** (n - 1), Modality.JOINT) for n in (1, 2, 3))

    @property
    def settings(self) -> dict[str, str]:
        """Constructor arguments, for the model card."""
        return {"head": self.head.value}

    def forward(self, vis_y: Tensor, ir: Tensor) -> FusionOutput:
        """Fuse ``vis_y`` and ``ir``, both ``[B, 1, H, W]`` in [0, 1] with H, W >= 4.

        Returns ``y [B, 1, H, W]`` in [0, 1] and five taps ``[B, 32, h, w]`` at scales 1, 1/2, 1/4, 1/2, 1 (sizes
        rounded down). Raises ValueError for smaller pictures.
        """
        if not torch.onnx.is_in_onnx_export() and min(vis_y.shape[-2:]) < MIN_SIDE:
            height, width = vis_y.shape[-2:]
            raise ValueError(f"picture of {height}×{width} pixels; the U-Net student needs {MIN_SIDE} pixels a side")
        x1 = self.stage1(torch.cat([vis_y, ir], dim=1))
        x2 = self.stage2(F.max_pool2d(x1, 2))
        x3 = self.stage3(F.max_pool2d(x2, 2))
        x4 = self.stage4(self.merge4(_upsample_beside(x3, x2)))
        x5 = self.stage5(self.merge5(_upsample_beside(x4, x1)))
        logits = self.last(x5).to(vis_y.dtype)
        y = torch.sigmoid(logits) if self.head is OutputHead.SIGMOID else torch.tanh(logits).clamp(0, 1)
        return FusionOutput(y=y, taps=(x1, x2, x3, x4, x5))


def import_published(state: Mapping[str, Tensor]) -> UNetStudent:
    """Make a tanh-headed student, in eval mode, from a state dict of the published SAGE student.

    Inside each sub-module of `PUBLISHED_NAMES` the tensors are matched in order, by kind (weight, running_mean, …)
    and shape. Raises InputError when the state dict is not one of that network.
    """
    student = UNetStudent(OutputHead.TANH).eval()
    theirs, ours = _grouped(state), _grouped(student.state_dict())
    if unknown := sorted(theirs.keys() ^ PUBLISHED_NAMES.keys()):
        raise InputError(
            f"state dict has missing or unknown sub-modules: {', '.join(unknown)}",
            rule=f"the published SAGE student has {', '.join(PUBLISHED_NAMES)}",
            remedy="give the state dict of the sub-network itself",
        )
    renamed: dict[str, Tensor] = {}
    for published, name in PUBLISHED_NAMES.items():
        given, wanted = theirs[published], ours[name]
        if [_signature(*entry) for entry in given] != [_signature(*entry) for entry in wanted]:
            raise InputError(
                f"{published} has {len(given)} tensors of other kinds or shapes",
                rule=f"{len(wanted)} tensors are wanted: {', '.join(key for key, _ in wanted)}",
                remedy="give the weights of the published SAGE student (135,617 parameters)",
            )
        renamed |= {key: tensor for (key, _), (_, tensor) in zip(wanted, given, strict=True)}
    student.load_state_dict(renamed)
    return student


def _unit(inputs: int, outputs: int, kernel: int) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2),
        nn.BatchNorm2d(outputs),
        nn.LeakyReLU(0.01),
    ]


def _stage(inputs: int) -> nn.Sequential:
    widths = [inputs, _CHANNELS, _CHANNELS]
    return nn.Sequential(*(layer for width in widths for layer in _unit(width, _CHANNELS, kernel=3)))


def _upsample_beside(small: Tensor, skip: Tensor) -> Tensor:
    up = F.interpolate(small, size=skip.shape[-2:], mode="bilinear", align_corners=False)
    return torch.cat([up, skip], dim=1)


def _grouped(state: Mapping[str, Tensor]) -> dict[str, list[tuple[str, Tensor]]]:
    groups: dict[str, list[tuple[str, Tensor]]] = {}
    for key, tensor in state.items():
        groups.setdefault(key.partition(".")[0], []).append((key, tensor))
    return groups


def _signature(key: str, tensor: Tensor) -> tuple[str, tuple[int, ...]]:
    return key.rpartition(".")[2], tuple(tensor.shape)
