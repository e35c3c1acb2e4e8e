"""Detectors: networks that find objects, as task networks; made here, opened from their files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pydantic import JsonValue
from torch import Tensor

from duskfuse.data.class_conventions import ObjectClasses, objects_named
from duskfuse.data.errors import InputError
from duskfuse.data.geometry import pad_reflected
from duskfuse.data.weights import check_architecture, load_weights, read_card
from duskfuse.tasks.detector_network import FUSED_CHANNELS, DetectorNetwork, HeadKind, levels_for
from duskfuse.tasks.encoders import IMAGENET_MEAN, IMAGENET_STD
from duskfuse.tasks.fusion_blocks import TOKENS, FusionBlock, new_fusion
from duskfuse.tasks.irdfusion import PyramidFusion, differential_saliency
from duskfuse.tasks.objects import Detections
from duskfuse.tasks.segmenter import SIDE_MULTIPLE
from duskfuse.tasks.task_network import RGB, RGB_AND_IR, Task, TaskNetwork
from duskfuse.tasks.trunk import Trunk, start_from_imagenet

ARCHITECTURE = "detector"


class Detector(TaskNetwork[Any, Tensor, list[Detections]]):
    """A network of object detection at any size of the pictures.

    Args:
        network: with a fusion, it sees RGB and infrared, ``[B, 4, H, W]``; without one RGB. Grey pictures
            ``[B, 1, H, W]`` are taken for RGB with equal channels.
        classes: what it finds.
    """

    task = Task.DETECTION
    network: DetectorNetwork
    mean: Tensor
    std: Tensor

    def __init__(self, network: DetectorNetwork, classes: ObjectClasses) -> None:
        super().__init__()
        self.network, self.classes = network, classes
        self.channels = RGB if network.fusion is None else RGB_AND_IR
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, -1, 1, 1), persistent=False)

    def forward(self, pictures: Tensor) -> Any:
        """The prediction of the network's head from pictures of at least 32 pixels a side."""
        if pictures.shape[1] == 1 and self.channels == RGB:
            pictures = pictures.expand(-1, RGB, -1, -1)
        if pictures.shape[1] != self.channels:
            raise ValueError(f"pictures of {pictures.shape[1]} channels for a detector of {self.channels}")
        height, width = pictures.shape[-2:]
        return self.network(*self._normalised(pictures), (height, width))

    def loss(self, prediction: Any, truth: Tensor) -> Tensor:
        """The head's loss, see `duskfuse.tasks.objects` for ``truth [B, N, 5]``."""
        return self.network.head.loss(prediction, truth)

    def _normalised(self, pictures: Tensor) -> tuple[Tensor, Tensor | None]:
        """The visible, or only, picture and the infrared one, continued to sides that the network takes."""
        height, width = pictures.shape[-2:]
        padded = pad_reflected(pictures, (height + -height % SIDE_MULTIPLE, width + -width % SIDE_MULTIPLE))
        vis = (padded[:, :RGB] - self.mean) / self.std
        return vis, None if self.channels == RGB else (padded[:, RGB:] - self.mean) / self.std

    @property
    def finds_differences(self) -> bool:
        """Whether `differences` can be asked for: the network's fusion is IRDFusion."""
        return isinstance(self.network.fusion, PyramidFusion)

    @torch.no_grad()
    def differences(self, pictures: Tensor) -> Tensor:
        """IRDFusion's differential saliency of ``[B, 4, H, W]``, from 0 to 1, ``[B, 1, H, W]``; without a graph.

        Raises:
            ValueError: the network has another fusion, or none.
        """
        fusion = self.network.fusion
        if not isinstance(fusion, PyramidFusion):
            raise ValueError("differences of a detector without IRDFusion")
        vis, ir = self._normalised(pictures)
        levels = fusion.features(*self.network.both_encoded(vis, ir))
        height, width = pictures.shape[-2:]
        return differential_saliency(levels, (vis.shape[-2], vis.shape[-1]))[..., :height, :width]

    @torch.no_grad()
    def predict(self, pictures: Tensor) -> list[Detections]:
        """The objects of every picture, the surest first."""
        return self.network.head.detections(self(pictures))


def new_detector(
    classes: ObjectClasses,
    trunk: Trunk = Trunk.RESIDUAL,
    trunk_weights: Path | None = None,
    *,
    head: HeadKind = HeadKind.DENSE,
    fusion: FusionBlock | None = None,
    tokens: tuple[int, int] = TOKENS,
) -> Detector:
    """An untrained detector, its encoders from ImageNet weights where they are given.

    Raises:
        InputError: the weights hold something else, or are given for the other trunk.
    """
    block = None if fusion is None else new_fusion(fusion, FUSED_CHANNELS[-levels_for(head) :], tokens)
    network = DetectorNetwork(len(classes), trunk, head, block)
    if trunk_weights is not None:
        start_from_imagenet(network.trunk, trunk, trunk_weights)
        if network.ir_trunk is not None:
            start_from_imagenet(network.ir_trunk, trunk, trunk_weights)
    return Detector(network, classes)


def detector_settings(
    classes: ObjectClasses,
    trunk: Trunk,
    head: HeadKind,
    fusion: FusionBlock | None,
    tokens: tuple[int, int] = TOKENS,
) -> dict[str, JsonValue]:
    """What the card of a detector says, so that `open_detector` can build it again."""
    return {
        "classes": classes.name,
        "trunk": trunk.value,
        "head": head.value,
        "fusion": None if fusion is None else fusion.value,
        **({"tokens": list(tokens)} if fusion is FusionBlock.IRDFUSION else {}),
    }


def open_detector(path: Path) -> Detector:
    """Open a detector in evaluation mode; InputError where the file is none."""
    card = read_card(path)
    check_architecture(path, card, ARCHITECTURE)
    settings = dict(card.settings)
    try:
        classes, trunk, head, fusion = (settings.pop(key) for key in ("classes", "trunk", "head", "fusion"))
        rows, columns = map(int, settings.pop("tokens", TOKENS))  # type: ignore[arg-type]
        detector = new_detector(
            objects_named(str(classes)),
            Trunk(str(trunk)),
            head=HeadKind(str(head)),
            fusion=None if fusion is None else FusionBlock(str(fusion)),
            tokens=(rows, columns),
        )
    except (KeyError, ValueError, TypeError):
        settings = dict(card.settings, unknown=True)
    if settings:
        raise InputError(
            f"{path}: settings {dict(card.settings)}",
            rule=f"a detector has classes, a trunk ({', '.join(Trunk)}), a head ({', '.join(HeadKind)}) and a fusion "
            f"({', '.join(FusionBlock)} or none)",
            remedy="train it again, or update duskfuse",
        )
    load_weights(path, detector.network, ARCHITECTURE)
    return detector.eval()
