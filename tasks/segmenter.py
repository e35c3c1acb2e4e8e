"""Segmenters: networks that name the class of every pixel, ours or other programs', behind one interface.

A segmenter gives logits ``[B, C, H, W]`` where channel c is the class of id c in its convention's table, whatever the
wrapped network's own size limits, normalisation, resolution and number of channels are.

Softmax scores are never taken for logits (a published code did so): a network that ends in scores has them replaced
by what their softmax gives back, see `duskfuse.tasks.foreign_segmenters`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from duskfuse.data.class_conventions import Convention
from duskfuse.data.class_tables import IGNORED
from duskfuse.data.geometry import pad_reflected
from duskfuse.tasks.encoders import IMAGENET_MEAN, IMAGENET_STD
from duskfuse.tasks.task_network import Task, TaskNetwork

SIDE_MULTIPLE = 32
"""Wrapped networks get pictures whose sides are multiples of this, continued by reflection."""
NEVER = -1e4
"""Logit of classes that a network cannot name: no probability, and finite in half precision."""


class Segmenter(TaskNetwork[Tensor, Tensor, Tensor]):
    """A network of logits at any resolution, made to give them for every pixel and every id of its classes.

    Args:
        network: ``[B, 3, h, w]`` normalised pictures → logits ``[B, K, …, …]``, h and w multiples of 32. Its K channels
            are all ids of the table, or the counted ones in order.
        classes: what the channels mean.
        mean: of the pictures that the network was trained on, per channel.
        std: likewise.
    """

    task = Task.SEGMENTATION
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        classes: Convention,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        self.network, self.classes = network, classes
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, pictures: Tensor) -> Tensor:
        """Logits ``[B, C, H, W]`` of RGB ``[B, 3, H, W]`` in [0, 1], H and W at least 32; channel c is id c.

        Classes that the network cannot name have the logit `NEVER`.
        """
        height, width = pictures.shape[-2:]
        padded = (height + -height % SIDE_MULTIPLE, width + -width % SIDE_MULTIPLE)
        raw = self.network(pad_reflected((pictures - self.mean) / self.std, padded))
        logits = F.interpolate(raw, size=padded, mode="bilinear", align_corners=False)[..., :height, :width]
        if logits.shape[1] == len(self.classes.table):
            return logits
        batch, _, *size = logits.shape
        counted = torch.tensor(self.classes.counted, device=logits.device)
        return logits.new_full((batch, len(self.classes.table), *size), NEVER).index_copy(1, counted, logits)

    def loss(self, prediction: Tensor, truth: Tensor) -> Tensor:
        """Cross-entropy, mean over the pixels that count.

        Args:
            prediction: logits of `forward`.
            truth: ids ``[B, H, W]``; 255 does not count.
        """
        ids = truth.long()
        total = F.cross_entropy(prediction, ids, ignore_index=IGNORED, reduction="sum")
        return total / (ids != IGNORED).sum().clamp_min(1)

    @torch.no_grad()
    def predict(self, pictures: Tensor) -> Tensor:
        """The likeliest class of every pixel, ``[B, H, W]`` uint8."""
        ids: Tensor = self(pictures).argmax(dim=1).to(torch.uint8)
        return ids
