"""An anchor-free detection head: every point of a feature pyramid names a class and the distances to its box's sides.

The form is that of FCOS (Tian et al. 2019) with task-aligned assignment (TOOD, Feng et al. 2021) and the quality focal
loss (Li et al. 2020), which makes one score of class and overlap: there is no centreness. Distances are numbers, not
distributions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from duskfuse.tasks.assignment import NO_OBJECT, task_aligned
from duskfuse.tasks.box_geometry import within
from duskfuse.tasks.detection_losses import DetectionLosses, giou_loss, quality_focal_loss
from duskfuse.tasks.objects import Detections, ObjectHead, true_objects

STRIDES = (8, 16, 32)
LEAST_CONFIDENCE, NMS_IOU, MOST_BOXES = 0.001, 0.6, 100
"""What counts as found: COCO's average precision looks at 100 boxes per class."""

_PRIOR = 0.01
"""Score of every class at the start, so that the many points without object do not drown the others."""
_REACH = 1.5
"""Distance to each side at the start, in strides."""
_MOST_CANDIDATES = 1000
_GROUPS = 8


class DensePrediction(NamedTuple):
    """What every point of the pyramid says."""

    logits: Tensor
    """``[B, A, C]``."""
    boxes: Tensor
    """Corners in pixels, ``[B, A, 4]``; they may leave the picture."""
    points: Tensor
    """``[A, 2]`` (x, y) in pixels."""
    size: tuple[int, int]
    """(height, width) of the pictures."""


class DetectionHead(ObjectHead[DensePrediction]):
    """Towers shared by all levels of a pyramid, and a scale of distances for each.

    Args:
        width: channels of the maps, a multiple of 8.
        classes: how many there are.
        strides: pixels between the points of each level, finest first.
        depth: convolutions of each tower.
    """

    def __init__(self, width: int, classes: int, strides: Sequence[int] = STRIDES, depth: int = 2) -> None:
        super().__init__()
        self.classes, self.strides = classes, tuple(strides)
        self.class_tower, self.box_tower = _tower(width, depth), _tower(width, depth)
        self.to_logits = nn.Conv2d(width, classes, 3, padding=1)
        self.to_distances = nn.Conv2d(width, 4, 3, padding=1)
        self.scales = nn.Parameter(torch.ones(len(self.strides)))
        for layer in (self.to_logits, self.to_distances):
            nn.init.normal_(layer.weight, std=0.01)
        nn.init.constant_(self.to_logits.bias, _inverse_sigmoid(_PRIOR))  # type: ignore[arg-type]
        nn.init.constant_(self.to_distances.bias, _inverse_softplus(_REACH))  # type: ignore[arg-type]

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> DensePrediction:
        """Logits and boxes at every point inside the picture, see `ObjectHead.forward`; one map per stride."""
        if len(maps) != len(self.strides):
            raise ValueError(f"{len(maps)} maps for the strides {self.strides}")
        logits, boxes, points = [], [], []
        for level, stride, scale in zip(maps, self.strides, self.scales, strict=True):
            centres, inside = _points(level, stride, size)
            distances = F.softplus(scale * self.to_distances(self.box_tower(level))) * stride
            logits.append(_rows(self.to_logits(self.class_tower(level)))[:, inside])
            sides = _rows(distances)[:, inside]
            boxes.append(torch.cat([centres - sides[..., :2], centres + sides[..., 2:]], dim=-1))
            points.append(centres)
        return DensePrediction(torch.cat(logits, dim=1), torch.cat(boxes, dim=1), torch.cat(points), size)

    def losses(self, prediction: DensePrediction, truth: Tensor) -> DetectionLosses:
        """Quality focal loss of all scores and GIoU loss of the assigned boxes, per assigned point of the batch."""
        logits, boxes = prediction.logits.float(), prediction.boxes.float()
        scores, targets = logits.detach().sigmoid(), torch.zeros_like(logits)
        counts = torch.ones_like(logits[..., :1])
        ours, theirs = [boxes[0, :0]], [boxes[0, :0].detach()]
        for index, rows in enumerate(truth.to(logits.device)):
            objects = true_objects(rows, self.classes)
            assigned = task_aligned(scores[index], boxes[index].detach(), prediction.points, *objects[:2])
            places = (assigned.owner != NO_OBJECT).nonzero()[:, 0]
            owners = assigned.owner[places]
            targets[index, places, objects.kinds[owners]] = assigned.quality[places]
            counts[index, within(prediction.points, objects.ignored).any(dim=0)] = 0
            counts[index, places] = 1
            ours.append(boxes[index, places])
            theirs.append(objects.corners[owners])
        assigned_points = max(sum(map(len, ours)), 1)
        return DetectionLosses(
            classes=(quality_focal_loss(logits, targets) * counts).sum() / assigned_points,
            giou=giou_loss(torch.cat(ours), torch.cat(theirs)).sum() / assigned_points,
        )

    def loss(self, prediction: DensePrediction, truth: Tensor) -> Tensor:
        """See `ObjectHead.loss`; QFL + 2 · GIoU."""
        return self.losses(prediction, truth).weighted()

    @torch.no_grad()
    def detections(self, prediction: DensePrediction) -> list[Detections]:
        """The best boxes of each picture, cut at its edges, after suppression class by class (NMS)."""
        height, width = prediction.size
        most = prediction.boxes.new_tensor([width, height, width, height])
        boxes = prediction.boxes.float().clamp_min(0).minimum(most)
        return [
            suppressed(scores, corners)
            for scores, corners in zip(prediction.logits.float().sigmoid(), boxes, strict=True)
        ]


def suppressed(scores: Tensor, corners: Tensor) -> Detections:
    """The objects of one picture from ``[A, C]`` scores and ``[A, 4]`` boxes: NMS class by class, the surest first."""
    from torchvision.ops import batched_nms

    has_area = (corners[:, 2:] > corners[:, :2]).all(dim=1)
    places, kinds = ((scores > LEAST_CONFIDENCE) & has_area[:, None]).nonzero(as_tuple=True)
    confidences = scores[places, kinds]
    best = confidences.argsort(descending=True, stable=True)[:_MOST_CANDIDATES]
    places, kinds, confidences = places[best], kinds[best], confidences[best]
    kept = batched_nms(corners[places], confidences, kinds, NMS_IOU)[:MOST_BOXES]
    return Detections(kinds[kept], corners[places[kept]], confidences[kept])


def _points(level: Tensor, stride: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Centres ``[A, 2]`` of the cells of a map that lie in the picture, and their places ``[A]`` among all of them."""
    rows, columns = (
        (torch.arange(count, device=level.device, dtype=torch.float32) + 0.5) * stride for count in level.shape[-2:]
    )
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    centres = torch.stack([x.flatten(), y.flatten()], dim=1)
    inside = ((centres[:, 0] < size[1]) & (centres[:, 1] < size[0])).nonzero()[:, 0]
    return centres[inside], inside


def _rows(maps: Tensor) -> Tensor:
    """``[B, C, h, w]`` as ``[B, h·w, C]``."""
    return maps.flatten(2).transpose(1, 2)


def _tower(width: int, depth: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Conv2d(width, width, 3, padding=1, bias=False), nn.GroupNorm(_GROUPS, width), nn.ReLU()]
    return nn.Sequential(*layers)


def _inverse_sigmoid(value: float) -> float:
    return float(torch.tensor(value).logit())


def _inverse_softplus(value: float) -> float:
    return float(torch.tensor(value).expm1().log())
