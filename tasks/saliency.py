"""Saliency networks: what stands out in a picture, pixel by pixel, as task networks.

The network is the segmenter's with one channel. The loss is binary cross-entropy plus 1 − IoU of the whole map, as
networks of salient object detection are commonly trained (Qin et al. 2019, without its SSIM): cross-entropy holds every
pixel, IoU the object however small it is.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from pydantic import JsonValue
from torch import Tensor

from duskfuse.data.errors import InputError
from duskfuse.data.geometry import pad_reflected
from duskfuse.data.weights import check_architecture, load_weights, read_card
from duskfuse.tasks.encoders import IMAGENET_MEAN, IMAGENET_STD
from duskfuse.tasks.segmenter import SIDE_MULTIPLE
from duskfuse.tasks.segmenter_network import SegmenterNetwork
from duskfuse.tasks.task_network import Task, TaskNetwork
from duskfuse.tasks.trunk import Trunk, start_from_imagenet

ARCHITECTURE = "saliency"
UNKNOWN = -1.0
"""Value of pixels in a map of truth that neither train nor count."""


class SaliencyNetwork(TaskNetwork[Tensor, Tensor, Tensor]):
    """A network of saliency at any size of the pictures, RGB ``[B, 3, H, W]`` of at least 32 pixels a side."""

    task = Task.SALIENCY
    mean: Tensor
    std: Tensor

    def __init__(self, network: SegmenterNetwork) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, -1, 1, 1), persistent=False)

    def forward(self, pictures: Tensor) -> Tensor:
        """Logits ``[B, 1, H, W]``."""
        height, width = pictures.shape[-2:]
        padded = (height + -height % SIDE_MULTIPLE, width + -width % SIDE_MULTIPLE)
        raw = self.network(pad_reflected((pictures - self.mean) / self.std, padded))
        return F.interpolate(raw, size=padded, mode="bilinear", align_corners=False)[..., :height, :width]

    def loss(self, prediction: Tensor, truth: Tensor) -> Tensor:
        """Binary cross-entropy, mean over the pixels that count, plus 1 − IoU, mean over the pictures that have some.

        Args:
            prediction: logits of `forward`.
            truth: ``[B, 1, H, W]`` in [0, 1]; pixels below 0 do not count.
        """
        counts = (truth >= 0).to(prediction.dtype)
        wanted = truth.clamp_min(0).to(prediction.dtype)
        entropy = F.binary_cross_entropy_with_logits(prediction, wanted, reduction="none") * counts
        return entropy.sum() / counts.sum().clamp_min(1) + self._missed(prediction.sigmoid(), wanted, counts)

    @staticmethod
    def _missed(found: Tensor, wanted: Tensor, counts: Tensor) -> Tensor:
        """1 − (Σ pg + 1) / (Σ p + g − pg + 1): 0 also where nothing is salient and nothing is found."""
        shared = (found * wanted * counts).flatten(1).sum(dim=1)
        either = ((found + wanted - found * wanted) * counts).flatten(1).sum(dim=1)
        known = counts.flatten(1).any(dim=1)
        return ((1 - (shared + 1) / (either + 1)) * known).sum() / known.sum().clamp_min(1)

    @torch.no_grad()
    def predict(self, pictures: Tensor) -> Tensor:
        """How salient every pixel is, ``[B, 1, H, W]``, 0 to 1."""
        salient: Tensor = self(pictures).sigmoid()
        return salient


def new_saliency(trunk: Trunk = Trunk.RESIDUAL, trunk_weights: Path | None = None) -> SaliencyNetwork:
    """An untrained network, its encoder from ImageNet weights where given; InputError where they do not fit."""
    network = SegmenterNetwork(1, trunk)
    if trunk_weights is not None:
        start_from_imagenet(network.trunk, trunk, trunk_weights)
    return SaliencyNetwork(network)


def saliency_settings(trunk: Trunk) -> dict[str, JsonValue]:
    """What the card of a saliency network says, so that `open_saliency` can build it again."""
    return {"trunk": trunk.value}


def open_saliency(path: Path) -> SaliencyNetwork:
    """Open a saliency network in evaluation mode; InputError where the file is none."""
    card = read_card(path)
    check_architecture(path, card, ARCHITECTURE)
    match dict(card.settings):
        case {"trunk": str(trunk), **unknown} if trunk in list(Trunk) and not unknown:
            opened = new_saliency(Trunk(trunk))
        case settings:
            raise InputError(
                f"{path}: settings {settings}",
                rule=f"a saliency network has a trunk, {' or '.join(Trunk)}",
                remedy="train it again, or update duskfuse",
            )
    load_weights(path, opened.network, ARCHITECTURE)
    return opened.eval()
