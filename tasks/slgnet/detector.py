"""A detector on SLGNet's features: a pyramid from the transformer's one scale, and the in-tree dense head."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from duskfuse import __version__
from duskfuse.data.class_conventions import ObjectClasses, objects_named
from duskfuse.data.errors import InputError
from duskfuse.data.weights import ModelCard, check_architecture, load_weights, read_card, save_weights
from duskfuse.tasks.detection_head import DensePrediction, DetectionHead
from duskfuse.tasks.objects import Detections
from duskfuse.tasks.slgnet.checkpoint import card_settings, settings_of
from duskfuse.tasks.slgnet.network import SlgNet
from duskfuse.tasks.slgnet.vit import FrozenVit
from duskfuse.tasks.task_network import RGB, RGB_AND_IR, Task, TaskNetwork

ARCHITECTURE = "slgdet-s"
WIDTH = 256
"""Channels of the pyramid."""
_GROUPS = 8


class SimplePyramid(nn.Module):
    """Maps at strides 8, 16 and 32 of one width from one map at stride 16 (ViTDet, Li et al. 2022)."""

    def __init__(self, entering: int, width: int = WIDTH) -> None:
        super().__init__()
        self.finer = nn.ConvTranspose2d(entering, entering // 2, 2, stride=2)
        self.refine = nn.ModuleList(_refine(count, width) for count in (entering // 2, entering, entering))

    def forward(self, guided: Tensor) -> list[Tensor]:
        """Maps ``[B, width, ., .]`` of ``[B, entering, h, w]``: 2h × 2w, h × w, and ⌈h/2⌉ × ⌈w/2⌉."""
        levels = (self.finer(guided), guided, F.max_pool2d(guided, 2, ceil_mode=True))
        return [refine(level) for refine, level in zip(self.refine, levels, strict=True)]


class SlgDetectorNetwork(nn.Module):
    """SLGNet, the pyramid and the head; its state dict holds no weight of the frozen backbone."""

    def __init__(self, features: SlgNet, classes: int, width: int = WIDTH) -> None:
        super().__init__()
        self.width = width
        self.features = features
        self.pyramid = SimplePyramid(features.backbone.shape.width, width)
        self.head = DetectionHead(width, classes)

    def forward(
        self, visible: Tensor, infrared: Tensor, text: Tensor | None = None, size: tuple[int, int] | None = None
    ) -> DensePrediction:
        """Arguments as for `SlgNet.forward`."""
        height, width = size or (int(visible.shape[-2]), int(visible.shape[-1]))
        guided = self.features(visible, infrared, text, size).guided
        return self.head(self.pyramid(guided), (height, width))  # type: ignore[no-any-return]


class SlgDetector(TaskNetwork[DensePrediction, Tensor, list[Detections]]):
    """``slgdet-s`` as a task network on RGB and infrared, ``[B, 4, H, W]`` in [0, 1], of any size.

    Args:
        network: of the features, pyramid and head.
        classes: what it finds.
    """

    task = Task.DETECTION
    channels = RGB_AND_IR
    network: SlgDetectorNetwork

    def __init__(self, network: SlgDetectorNetwork, classes: ObjectClasses) -> None:
        super().__init__()
        self.network, self.classes = network, classes

    def forward(self, pictures: Tensor, text: Tensor | None = None) -> DensePrediction:
        """The head's prediction; ``text [B, 4, text_width]`` where something is said about the pictures."""
        if pictures.shape[1] != RGB_AND_IR:
            raise ValueError(f"pictures of {pictures.shape[1]} channels for a detector of {RGB_AND_IR}")
        return self.network(pictures[:, :RGB], pictures[:, RGB:], text)  # type: ignore[no-any-return]

    def loss(self, prediction: DensePrediction, truth: Tensor) -> Tensor:
        """The head's loss, see `duskfuse.tasks.objects` for ``truth [B, N, 5]``; boxes with an angle are refused."""
        if truth.shape[-1] != 5:
            raise InputError(
                f"objects of {truth.shape[-1]} numbers",
                rule="boxes are upright: kind, left, top, right, bottom",
                remedy="convert oriented boxes to the upright ones around them",
            )
        return self.network.head.loss(prediction, truth)

    @torch.no_grad()
    def predict(self, pictures: Tensor, text: Tensor | None = None) -> list[Detections]:
        """The objects of every picture, the surest first."""
        return self.network.head.detections(self(pictures, text))


def new_slg_detector(features: SlgNet, classes: ObjectClasses, width: int = WIDTH) -> SlgDetector:
    """An untrained detector on these features; ``width`` is a multiple of 8."""
    return SlgDetector(SlgDetectorNetwork(features, len(classes), width), classes)


def save_slg_detector(path: Path, detector: SlgDetector, training_data: str, notes: str = "") -> None:
    """Write what was trained, with the backbone's hash in the card."""
    network = detector.network
    settings = {**card_settings(network.features), "classes": detector.classes.name, "width": network.width}
    save_weights(path, network, ModelCard(ARCHITECTURE, settings, "rgb", __version__, training_data, notes=notes))


def open_slg_detector(path: Path, backbone: FrozenVit) -> SlgDetector:
    """A detector from its file and its backbone, in evaluation mode.

    Raises:
        InputError: the file holds something else, or was trained on another backbone.
    """
    card = read_card(path)
    check_architecture(path, card, ARCHITECTURE)
    match dict(card.settings):
        case {"classes": str(classes), "width": int(width)}:
            features = SlgNet(backbone, settings_of(path, card.settings, backbone))
            detector = new_slg_detector(features, objects_named(classes), width)
        case settings:
            raise InputError(
                f"{path}: settings {settings}", rule="a detector has classes and a width", remedy="train it again"
            )
    load_weights(path, detector.network, ARCHITECTURE)
    return detector.eval()


def _refine(entering: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(entering, width, 1, bias=False),
        nn.GroupNorm(_GROUPS, width),
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        nn.GroupNorm(_GROUPS, width),
    )
