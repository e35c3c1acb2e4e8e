"""A detection head without points and suppression: queries that look at the maps and are matched with the objects.

DETR (Carion et al. 2020) with queries that are boxes and are refined from layer to layer (DAB-DETR, Liu et al. 2022),
the quality focal loss for scores, and the same losses after every layer. Each layer has a matching of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from duskfuse.tasks.box_geometry import centred_of, corners_of, iou, within
from duskfuse.tasks.detection_losses import DetectionLosses, giou_loss, quality_focal_loss
from duskfuse.tasks.hungarian import match
from duskfuse.tasks.objects import Detections, ObjectHead, true_objects

_PRIOR = 0.01
_FIRST_SIDE = 0.2
"""Width and height of the boxes at the start, in parts of the picture."""
_TEMPERATURE = 20.0
"""Of the sines that stand for a place in [0, 1]."""
_NEAR_EDGE = 1e-4


class QueryPrediction(NamedTuple):
    """What every query says after every layer."""

    logits: Tensor
    """``[L, B, Q, C]``."""
    boxes: Tensor
    """Centre and size in parts of the picture, ``[L, B, Q, 4]``."""
    size: tuple[int, int]
    """(height, width) of the pictures."""


class DetrDecoder(ObjectHead[QueryPrediction]):
    """Layers of self-attention, attention to all levels of the maps, and a refinement of every box.

    Args:
        width: channels of the maps, a multiple of 4 and of the heads.
        classes: how many there are.
        levels: maps of the pyramid; the finest of many are costly, since every query looks at every cell.
        strides: pixels between the cells of each of these maps.
        queries: objects that can be found in a picture.
        layers: how often the queries look.
        heads: of every attention.
    """

    def __init__(
        self,
        width: int,
        classes: int,
        strides: Sequence[int] = (16, 32),
        *,
        queries: int = 100,
        layers: int = 3,
        heads: int = 4,
    ) -> None:
        super().__init__()
        self.classes, self.strides = classes, tuple(strides)
        self.level = nn.Parameter(torch.randn(len(self.strides), width) * 0.02)
        self.content = nn.Embedding(queries, width)
        self.first_boxes = nn.Parameter(_spread_boxes(queries))
        self.place = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, width))
        self.layers = nn.ModuleList(_Layer(width, heads) for _ in range(layers))
        self.to_logits = nn.ModuleList(nn.Linear(width, classes) for _ in range(layers))
        self.to_shifts = nn.ModuleList(_shifts(width) for _ in range(layers))
        for linear in self.to_logits:
            nn.init.constant_(linear.bias, math.log(_PRIOR / (1 - _PRIOR)))  # type: ignore[arg-type]

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> QueryPrediction:
        """Logits and boxes after every layer, see `ObjectHead.forward`; of more maps than strides, the coarsest."""
        cells, places = self._memory(maps[-len(self.strides) :], size)
        batch = len(cells)
        content = self.content.weight.expand(batch, -1, -1)
        boxes = self.first_boxes.sigmoid().expand(batch, -1, -1)
        all_logits, all_boxes = [], []
        for layer, to_logits, to_shifts in zip(self.layers, self.to_logits, self.to_shifts, strict=True):
            where = self.place(_sines(boxes, content.shape[-1] // 2))
            content = layer(content, where, cells, places)
            boxes = (boxes.logit(_NEAR_EDGE) + to_shifts(content)).sigmoid()
            all_logits.append(to_logits(content))
            all_boxes.append(boxes)
            boxes = boxes.detach()
        return QueryPrediction(torch.stack(all_logits), torch.stack(all_boxes), size)

    def losses(self, prediction: QueryPrediction, truth: Tensor) -> DetectionLosses:
        """The parts of the loss per object of the batch, summed over the layers."""
        height, width = prediction.size
        scale = prediction.boxes.new_tensor([width, height, width, height]).float()
        pictures = [true_objects(rows, self.classes) for rows in truth.to(scale.device)]
        count = max(sum(len(objects.kinds) for objects in pictures), 1)
        classes = giou = l1 = prediction.boxes.float().sum() * 0
        for logits, boxes in zip(prediction.logits.float(), prediction.boxes.float(), strict=True):
            for objects, said, seen in zip(pictures, logits, boxes, strict=True):
                centred = centred_of(objects.corners / scale)
                matching = match(said, seen, objects.kinds, centred)
                ours, theirs = seen[matching.queries], centred[matching.objects]
                targets = torch.zeros_like(said)
                overlap = iou(corners_of(ours.detach()), corners_of(theirs))
                targets[matching.queries, objects.kinds[matching.objects]] = overlap
                counts = ~within(seen.detach()[:, :2] * scale[:2], objects.ignored).any(dim=0)
                counts[matching.queries] = True
                classes = classes + (quality_focal_loss(said, targets) * counts[:, None]).sum() / count
                giou = giou + giou_loss(corners_of(ours), corners_of(theirs)).sum() / count
                l1 = l1 + (ours - theirs).abs().sum() / count
        return DetectionLosses(classes=classes, giou=giou, l1=l1)

    def loss(self, prediction: QueryPrediction, truth: Tensor) -> Tensor:
        """See `ObjectHead.loss`; QFL + 5 · L1 + 2 · GIoU of every layer."""
        return self.losses(prediction, truth).weighted()

    @torch.no_grad()
    def detections(self, prediction: QueryPrediction) -> list[Detections]:
        """What the queries found after the last layer: the best (query, class) pairs, as many as there are queries."""
        height, width = prediction.size
        scale = prediction.boxes.new_tensor([width, height, width, height]).float()
        corners = (corners_of(prediction.boxes[-1].float()) * scale).clamp_min(0).minimum(scale)
        found = []
        for scores, boxes in zip(prediction.logits[-1].float().sigmoid(), corners, strict=True):
            confidences, places = scores.flatten().topk(len(scores))
            queries, kinds = places // self.classes, places % self.classes
            found.append(Detections(kinds, boxes[queries], confidences))
        return found

    def _memory(self, maps: Sequence[Tensor], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Cells inside the picture ``[B, S, width]``, and what says where they are, ``[S, width]``."""
        if len(maps) != len(self.strides):
            raise ValueError(f"{len(maps)} maps for the strides {self.strides}")
        cells, places = [], []
        for level, stride, mark in zip(maps, self.strides, self.level, strict=True):
            rows, columns = (
                (torch.arange(n, device=level.device) + 0.5) * stride / side
                for n, side in zip(level.shape[-2:], size, strict=True)
            )
            y, x = torch.meshgrid(rows, columns, indexing="ij")
            centres = torch.stack([x.flatten(), y.flatten()], dim=1)
            inside = (centres < 1).all(dim=1)
            cells.append(level.flatten(2).transpose(1, 2)[:, inside])
            places.append(_sines(centres[inside], level.shape[1] // 2) + mark)
        return torch.cat(cells, dim=1), torch.cat(places)


class _Layer(nn.Module):
    """Self-attention, attention to the maps and a two-layer network, each normalised after its residual."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.own = nn.MultiheadAttention(width, heads, batch_first=True)
        self.cross = nn.MultiheadAttention(width, heads, batch_first=True)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))

    def forward(self, content: Tensor, where: Tensor, cells: Tensor, places: Tensor) -> Tensor:
        asking = content + where
        content = self.norms[0](content + self.own(asking, asking, content, need_weights=False)[0])
        seen = self.cross(content + where, cells + places, cells, need_weights=False)[0]
        content = self.norms[1](content + seen)
        return self.norms[2](content + self.feed(content))  # type: ignore[no-any-return]


def _sines(values: Tensor, channels: int) -> Tensor:
    """Numbers in [0, 1] ``[..., K]`` as sines and cosines of rising frequency, ``[..., K · channels]``."""
    steps = torch.arange(channels // 2, device=values.device, dtype=torch.float32)
    angles = values[..., None] * 2 * math.pi / _TEMPERATURE ** (steps / (channels // 2)) * _TEMPERATURE
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)


def _shifts(width: int) -> nn.Sequential:
    """How far a box moves, in logits; at the start not at all."""
    last = nn.Linear(width, 4)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), last)


def _spread_boxes(count: int) -> Tensor:
    """Logits of boxes whose centres cover the picture evenly, ``[count, 4]``: a grid, read row by row."""
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    number = torch.arange(count)
    x, y = (number % columns + 0.5) / columns, (number // columns + 0.5) / rows
    side = torch.full((count,), _FIRST_SIDE)
    return torch.stack([x, y, side, side], dim=1).logit()
