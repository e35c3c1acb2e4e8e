"""Ground truth of training samples: read once, cut and turned with its pair, and forgotten where nothing can be asked.

Truth is a dictionary of tensors by the fields of a batch: ``label`` (ids, 255 does not count), ``objects`` (see
`duskfuse.tasks.objects`) and ``salient`` (0 to 1, −1 does not count). Where a pair has none, all of it does not count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from duskfuse.data.class_conventions import Convention, ObjectClasses, read_counted_label
from duskfuse.data.class_tables import IGNORED
from duskfuse.data.geometry import GeometricDraw
from duskfuse.data.images import file_sha256
from duskfuse.data.pair_files import PairFiles, pair_boxes, read_saliency
from duskfuse.tasks.objects import FIELDS, nothing_known, objects_in_pixels
from duskfuse.tasks.saliency import UNKNOWN

LEAST_SEEN = 0.3
"""An object of which a crop shows a smaller part is a region that does not count."""


@dataclass(frozen=True)
class WantedTruth:
    """What the samples of a run are to carry."""

    labels: Convention | None = None
    objects: ObjectClasses | None = None
    saliency: bool = False

    def joined(self, other: WantedTruth) -> WantedTruth:
        """What either wants."""
        return WantedTruth(self.labels or other.labels, self.objects or other.objects, self.saliency or other.saliency)

    def digest_of(self, files: PairFiles) -> list[str | None]:
        """Names the truth files of a pair by what they hold."""
        wanted = ((self.labels, files.label), (self.objects, files.boxes), (self.saliency, files.saliency))
        return [None if path is None else file_sha256(path) for use, path in wanted if use]


def read_truth(files: PairFiles, size: tuple[int, int], wanted: WantedTruth) -> dict[str, Tensor]:
    """The truth of a pair of ``size`` (height, width); InputError where a file is unusable."""
    found: dict[str, Tensor] = {}
    if wanted.labels is not None:
        found["label"] = (
            torch.full(size, IGNORED, dtype=torch.uint8)
            if files.label is None
            else read_counted_label(files, wanted.labels)
        )
    if wanted.objects is not None:
        found["objects"] = nothing_known(size) if files.boxes is None else read_objects(files, size, wanted.objects)
    if wanted.saliency:
        found["salient"] = (
            torch.full((1, *size), UNKNOWN) if files.saliency is None else read_saliency(files.saliency, size)
        )
    return found


def read_objects(files: PairFiles, size: tuple[int, int], classes: ObjectClasses) -> Tensor:
    """The objects of a pair that has boxes, ``[N, 5]``; InputError where a box is of no class."""
    if files.boxes is None:
        raise ValueError(f"{files.name} has no boxes")
    boxes = pair_boxes(files, files.boxes, size)
    for kind in {int(kind) for kind in boxes[:, 0].tolist()}:
        classes.check(files.boxes, kind)
    return objects_in_pixels(boxes, size)


def cut_truth(truth: Mapping[str, Tensor], draw: GeometricDraw, crop: tuple[int, int]) -> dict[str, Tensor]:
    """The truth of a crop; what continues the picture to the size of the crop does not count."""
    cut: dict[str, Tensor] = {}
    for name, value in truth.items():
        match name:
            case "objects":
                cut[name] = cut_objects(value, draw, crop)
            case "salient":
                cut[name] = _padded(draw.crop(value), crop, UNKNOWN)
            case _:
                cut[name] = _padded(draw.crop(value), crop, IGNORED)
    return cut


def _padded(plane: Tensor, crop: tuple[int, int], value: float) -> Tensor:
    rows, columns = (side - have for side, have in zip(crop, plane.shape[-2:], strict=True))
    return F.pad(plane, (0, columns, 0, rows), value=value)


def cut_objects(objects: Tensor, draw: GeometricDraw, crop: tuple[int, int]) -> Tensor:
    """Objects ``[N, 5]`` in pixels of a crop: moved, cut at its edges, turned and scaled with it.

    An object of which less than `LEAST_SEEN` is left does not count, nor does what lies outside the picture.
    """
    corners = objects[:, 1:] - objects.new_tensor([draw.left, draw.top] * 2)
    most = objects.new_tensor([draw.width, draw.height] * 2)
    seen = corners.clamp_min(0).minimum(most)
    whole, left = ((box[:, 2:] - box[:, :2]).prod(dim=1) for box in (corners, seen))
    shown = ((seen[:, 2:] - seen[:, :2]) > 0).all(dim=1)
    kinds = torch.where(left < LEAST_SEEN * whole, float(IGNORED), objects[:, 0])
    if draw.flip:
        seen = torch.stack([draw.width - seen[:, 2], seen[:, 1], draw.width - seen[:, 0], seen[:, 3]], dim=1)
    height, width = draw.size or (draw.height, draw.width)
    seen = seen * objects.new_tensor([width / draw.width, height / draw.height] * 2)
    rows = [torch.cat([kinds[:, None], seen], dim=1)[shown]]
    if width < crop[1]:
        rows.append(objects.new_tensor([[IGNORED, width, 0, crop[1], crop[0]]]))
    if height < crop[0]:
        rows.append(objects.new_tensor([[IGNORED, 0, height, crop[1], crop[0]]]))
    return torch.cat(rows).reshape(-1, FIELDS)


def forgotten_truth(sample: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The truth of a sample in which there is nothing to be asked for."""
    forgotten = {}
    if "label" in sample:
        forgotten["label"] = torch.full_like(sample["label"], IGNORED)
    if "objects" in sample:
        height, width = sample["ir"].shape[-2:]
        forgotten["objects"] = nothing_known((height, width))
    if "salient" in sample:
        forgotten["salient"] = torch.full_like(sample["salient"], UNKNOWN)
    return forgotten


def without_truth(files: PairFiles) -> PairFiles:
    """The same pair, read without its truth."""
    return replace(files, label=None, boxes=None, saliency=None)
