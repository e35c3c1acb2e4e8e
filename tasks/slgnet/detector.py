"""A detector on SLGNet's features: a pyramid from the transformer's one scale, and the in-tree dense head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import JsonValue
from torch import Tensor, nn

from duskfuse import __version__
from duskfuse.data.class_conventions import ObjectClasses, objects_named
from duskfuse.data.errors import InputError
from duskfuse.data.weights import ModelCard, check_architecture, load_weights, read_card, save_weights
from duskfuse.tasks.detection_head import DensePrediction, DetectionHead
from duskfuse.tasks.objects import Detections
from duskfuse.tasks.slgnet.checkpoint import card_settings, settings_of
from duskfuse.tasks.slgnet.network import SlgNet
from duskfuse.tasks.slgnet.rule_text import RuleText
from duskfuse.tasks.slgnet.vit import FrozenVit
from duskfuse.tasks.task_network import RGB, RGB_AND_IR, Task, TaskNetwork

ARCHITECTURE = "slgdet-s"
WIDTH = 256
"""Channels of the pyramid."""
RULES, GIVEN = "rules", "given"
"""Where captions come from: the network's own look at the pictures, or whoever asks it."""
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
    """SLGNet, the pyramid and the head; its state dict holds no weight of the frozen backbone.

    Args:
        features: SLGNet.
        classes: how many there are.
        width: channels of the pyramid, a multiple of 8.
        rules: whether the network says something about pictures by itself where it is told nothing.
    """

    def __init__(self, features: SlgNet, classes: int, width: int = WIDTH, rules: bool = False) -> None:
        super().__init__()
        self.width = width
        self.rules = RuleText(features.settings.text_width) if rules else None
        self.features = features
        self.pyramid = SimplePyramid(features.backbone.shape.width, width)
        self.head = DetectionHead(width, classes)

    def forward(
        self, visible: Tensor, infrared: Tensor, text: Tensor | None = None, size: tuple[int, int] | None = None
    ) -> DensePrediction:
        """Arguments as for `SlgNet.forward`."""
        height, width = size or (int(visible.shape[-2]), int(visible.shape[-1]))
        if text is None and self.rules is not None:
            text = self.rules(visible[..., :height, :width], infrared[..., :height, :width])
        guided = self.features(visible, infrared, text, size).guided
        return self.head(self.pyramid(guided), (height, width))  # type: ignore[no-any-return]

    def parameter_groups(
        self, rate: float = 1e-4, decay: float = 0.7, weight_decay: float = 0.1
    ) -> list[dict[str, Any]]:
        """Groups for an optimiser: those of `SlgNet.parameter_groups`; pyramid and head learn at ``rate``."""
        ours = [*self.pyramid.parameters(), *self.head.parameters()]
        shrinking = {"params": [p for p in ours if p.ndim > 1], "lr": rate, "weight_decay": weight_decay}
        others = {"params": [p for p in ours if p.ndim <= 1], "lr": rate, "weight_decay": 0.0}
        return [*self.features.parameter_groups(rate, decay, weight_decay), shrinking, others]


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
        """The head's prediction; ``text [B, 4, text_width]`` where somebody says something about the pictures."""
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


def new_slg_detector(features: SlgNet, classes: ObjectClasses, width: int = WIDTH, rules: bool = False) -> SlgDetector:
    """An untrained detector on these features, see `SlgDetectorNetwork`."""
    return SlgDetector(SlgDetectorNetwork(features, len(classes), width, rules), classes)


def slg_detector_settings(detector: SlgDetector) -> dict[str, JsonValue]:
    """What the card of a detector says, so that `open_slg_detector` can build it again around its backbone."""
    network = detector.network
    said: dict[str, JsonValue] = {"classes": detector.classes.name, "width": network.width}
    return {**card_settings(network.features), **said, "captions": GIVEN if network.rules is None else RULES}


def save_slg_detector(path: Path, detector: SlgDetector, training_data: str, notes: str = "") -> None:
    """Write what was trained, with the backbone's hash in the card."""
    settings = slg_detector_settings(detector)
    card = ModelCard(ARCHITECTURE, settings, "rgb", __version__, training_data, notes=notes)
    save_weights(path, detector.network, card)


def open_slg_detector(path: Path, backbone: FrozenVit) -> SlgDetector:
    """A detector from its file and its backbone, in evaluation mode.

    Raises:
        InputError: the file holds something else, or was trained on another backbone.
    """
    card = read_card(path)
    check_architecture(path, card, ARCHITECTURE)
    match dict(card.settings):
        case {"classes": str(classes), "width": int(width), "captions": "rules" | "given" as captions}:
            features = SlgNet(backbone, settings_of(path, card.settings, backbone))
            detector = new_slg_detector(features, objects_named(classes), width, rules=captions == RULES)
        case settings:
            raise InputError(
                f"{path}: settings {settings}",
                rule="a detector has classes, a width and captions, rules or given",
                remedy="train it again, or update duskfuse",
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
