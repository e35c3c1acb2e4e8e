"""Automatic masks by a network that answers points: ask a grid of points, keep the good answers, drop the double ones.

The procedure is that of segment-anything (Kirillov et al., ICCV 2023, appendix B), whose helpers are used, and its
outcome is the same. What differs is the order of the work: answers that the network itself thinks little of are dropped
before they are brought to full size, full-size logits exist for a few masks at a time, and the masks that are left are
kept as the compressed bits inside their bounding boxes. So 32,768 points need hardly more memory than 1,024.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from duskfuse.data.errors import DuskfuseError
from duskfuse.data.priors.masks import KEPT_MASKS, MaskSet

_THRESHOLD = 0.0
"""Logit above which a pixel is in the mask."""
_STABILITY_OFFSET = 1.0
"""The stability score is the IoU of the masks at the threshold plus and minus this."""
_DUPLICATE_IOU = 0.7
"""Overlap of bounding boxes above which the worse of two masks is dropped."""
_CROP_OVERLAP = 512 / 1500
"""Overlap of the crops, as a share of the picture's shorter side."""
_POINTS_AT_ONCE_CPU = 8
"""On a CPU a larger batch is slower: it leaves the cache."""
_POINTS_AT_ONCE_CUDA = 128
_LOGIT_BYTES_CPU = 4 << 20
"""Full-size logits that exist at a time; few on a CPU, for its cache."""
_LOGIT_BYTES_CUDA = 64 << 20


@dataclass(frozen=True)
class SamSettings:
    """How densely a picture is asked, and which answers count; named as segment-anything's arguments."""

    points_per_side: int
    crop_n_layers: int
    crop_n_points_downscale_factor: int = 2
    pred_iou_thresh: float = 0.86
    stability_score_thresh: float = 0.92
    min_mask_region_area: int = 100


class PromptedPicture(Protocol):
    """A picture that a network has seen, ready for points."""

    def ask(self, points: NDArray[np.float64], /) -> tuple[Tensor, Tensor]:
        """Answers to ``points`` ``[n, 2]`` (x, y in pixels): logits ``[n, k, h, w]`` and predicted IoU ``[n, k]``."""
        ...

    def full_size(self, logits: Tensor, /) -> Tensor:
        """Bring logits ``[m, h, w]`` to the size of the picture, ``[m, H, W]``."""
        ...


class PromptedNetwork(Protocol):
    """A network that answers points on a picture with masks."""

    device: torch.device
    point_bytes: int
    """Memory that one more point in a batch takes."""

    def see(self, image_rgb: NDArray[np.uint8], /) -> PromptedPicture:
        """Encode ``[H, W, 3]`` RGB."""
        ...


class AutomaticMasks:
    """Finds the masks of a picture by asking ``network`` a grid of points.

    Args:
        network: who answers.
        settings: which points, and which answers count.
        keep: the number of largest masks kept.
    """

    def __init__(self, network: PromptedNetwork, settings: SamSettings, keep: int = KEPT_MASKS) -> None:
        from segment_anything.utils.amg import build_all_layer_point_grids

        self._network, self._settings, self._keep = network, settings, keep
        self._grids: list[NDArray[np.float64]] = build_all_layer_point_grids(
            settings.points_per_side, settings.crop_n_layers, settings.crop_n_points_downscale_factor
        )
        self._points_at_once = _points_at_once(network)

    @torch.inference_mode()
    def __call__(self, image_rgb: NDArray[np.uint8]) -> MaskSet:
        """Find the masks of ``[H, W, 3]`` RGB.

        Raises:
            DuskfuseError: the GPU has too little memory even for one point at a time.
        """
        from segment_anything.utils.amg import generate_crop_boxes

        height, width = image_rgb.shape[:2]
        crops, layers = generate_crop_boxes((height, width), self._settings.crop_n_layers, _CROP_OVERLAP)
        parts = [self._of_crop(image_rgb, crop, self._grids[layer]) for crop, layer in zip(crops, layers, strict=True)]
        found = _join(parts)
        if len(parts) > 1:
            smaller_first = [1 / ((x1 - x0) * (y1 - y0)) for x0, y0, x1, y1 in crops]
            found = found.without_duplicates(np.repeat(smaller_first, [len(part) for part in parts]))
        if self._settings.min_mask_region_area > 0:
            found = found.tidied(height, width, self._settings.min_mask_region_area)
        return found.largest(self._keep, height, width)

    def _of_crop(self, image_rgb: NDArray[np.uint8], crop: list[int], grid: NDArray[np.float64]) -> _Found:
        """Masks found by looking at one crop (x0, y0, x1, y1) only, in the coordinates of the picture."""
        x0, y0, x1, y1 = crop
        try:
            seen = self._network.see(image_rgb[y0:y1, x0:x1])
        except torch.OutOfMemoryError:
            raise self._out_of_memory(image_rgb, "one crop") from None
        gathering = _Gathering()
        for answers in self._answered(seen, grid * (x1 - x0, y1 - y0), image_rgb, crop):
            gathering.add(answers)
        found = gathering.found()
        return found.without_duplicates(found.predicted_iou)

    def _answered(
        self, seen: PromptedPicture, points: NDArray[np.float64], image_rgb: NDArray[np.uint8], crop: list[int]
    ) -> Iterator[_Found]:
        """Good answers, batch by batch; fewer points at once, from now on, where the GPU's memory is too small."""
        start = 0
        while start < len(points):
            batch = points[start : start + self._points_at_once]
            answers = None
            try:
                answers = _join(list(self._good(seen, batch, image_rgb.shape, crop)))
            except torch.OutOfMemoryError:
                if self._points_at_once == 1:
                    raise self._out_of_memory(image_rgb, "one point") from None
            if answers is None:  # outside of the handler, whose traceback holds the tensors
                self._points_at_once //= 2
                torch.cuda.empty_cache()
                continue
            yield answers
            start += len(batch)

    def _good(
        self, seen: PromptedPicture, points: NDArray[np.float64], shape: tuple[int, ...], crop: list[int]
    ) -> Iterator[_Found]:
        """Answers that pass the thresholds and do not end at the border of the crop, a few at a time."""
        logits, predicted_iou = (answer.flatten(0, 1) for answer in seen.ask(points))
        if self._settings.pred_iou_thresh > 0:
            good = predicted_iou > self._settings.pred_iou_thresh
            logits, predicted_iou = logits[good], predicted_iou[good]
        if len(logits) == 0:
            return
        x0, y0, x1, y1 = crop
        budget = _LOGIT_BYTES_CUDA if logits.is_cuda else _LOGIT_BYTES_CPU
        at_once = max(1, budget // (4 * (x1 - x0) * (y1 - y0)))
        for few, iou in zip(torch.split(logits, at_once), torch.split(predicted_iou, at_once), strict=True):
            yield self._stable(seen.full_size(few), iou, shape, crop)

    def _stable(self, logits: Tensor, predicted_iou: Tensor, shape: tuple[int, ...], crop: list[int]) -> _Found:
        """Of full-size logits ``[m, H, W]``, the masks that are stable and whole."""
        from segment_anything.utils.amg import calculate_stability_score, is_box_near_crop_edge

        stability = calculate_stability_score(logits, _THRESHOLD, _STABILITY_OFFSET)
        if self._settings.stability_score_thresh > 0:
            good = stability >= self._settings.stability_score_thresh
            logits, predicted_iou, stability = logits[good], predicted_iou[good], stability[good]
        planes = (logits > _THRESHOLD).cpu().numpy()
        x0, y0 = crop[:2]
        found = _Found.of(planes, predicted_iou.cpu().numpy(), stability.cpu().numpy())
        cut = is_box_near_crop_edge(torch.from_numpy(found.boxes), crop, [0, 0, shape[1], shape[0]]).numpy()
        whole = found.pick(np.flatnonzero(~cut))
        whole.boxes += (x0, y0, x0, y0)
        return whole

    def _out_of_memory(self, image_rgb: NDArray[np.uint8], what: str) -> DuskfuseError:
        height, width = image_rgb.shape[:2]
        return DuskfuseError(
            f"{self._network.device}: out of memory at {what} of a picture of {width}×{height}",
            rule="the image encoder and one point at a time must fit into the memory of the GPU",
            remedy="end other programs on the GPU, give a smaller checkpoint (sam_vit_b_01ec64.pth or mobile_sam.pt), "
            "or set CUDA_VISIBLE_DEVICES= to use the CPU",
        )


@dataclass
class _Found:
    """Masks with their scores; ``n`` of them, none empty."""

    boxes: NDArray[np.int64]
    """``[n, 4]``: x0, y0, x1, y1, the last two inclusive, in pixels."""
    codes: list[bytes]
    """The bits inside the box, row by row, compressed."""
    predicted_iou: NDArray[np.float32]
    stability: NDArray[np.float32]

    @classmethod
    def of(
        cls, planes: NDArray[np.bool_], predicted_iou: NDArray[np.float32], stability: NDArray[np.float32]
    ) -> _Found:
        """Encode ``[n, H, W]``; empty masks are left out."""
        boxes = np.array([cv2.boundingRect(plane.view(np.uint8)) for plane in planes], np.int64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2] - 1
        some = np.flatnonzero(boxes[:, 2] >= boxes[:, 0])
        places = zip(some, boxes[some], strict=True)
        codes = [_encode(planes[i, y0 : y1 + 1, x0 : x1 + 1]) for i, (x0, y0, x1, y1) in places]
        return cls(boxes[some], codes, predicted_iou[some], stability[some])

    def __len__(self) -> int:
        return len(self.codes)

    def pick(self, indices: NDArray[np.int64]) -> _Found:
        """The masks of ``indices``, in that order."""
        codes = [self.codes[i] for i in indices]
        return _Found(self.boxes[indices], codes, self.predicted_iou[indices], self.stability[indices])

    def without_duplicates(self, scores: NDArray[np.floating]) -> _Found:
        """The masks in the order of their scores, without those that a better one nearly covers."""
        from torchvision.ops import nms

        boxes, wanted = torch.from_numpy(self.boxes).float(), torch.from_numpy(np.asarray(scores, np.float32))
        return self.pick(nms(boxes, wanted, _DUPLICATE_IOU).numpy())

    def mask(self, index: int) -> NDArray[np.bool_]:
        """The mask inside its box."""
        x0, y0, x1, y1 = self.boxes[index]
        bits = np.unpackbits(np.frombuffer(zlib.decompress(self.codes[index]), np.uint8))
        return bits[: (y1 + 1 - y0) * (x1 + 1 - x0)].reshape(y1 + 1 - y0, x1 + 1 - x0).view(bool)

    def tidied(self, height: int, width: int, min_area: int) -> _Found:
        """Fill holes and remove islands of fewer pixels than ``min_area``; then prefer masks that needed neither."""
        untouched = np.ones(len(self), np.float32)
        for i in range(len(self)):
            mask, (left, top) = _in_surroundings(self.mask(i), self.boxes[i], height, width, min_area)
            tidy = without_small_regions(mask, min_area)
            if tidy is not mask:
                untouched[i] = 0
                x, y, w, h = cv2.boundingRect(tidy.view(np.uint8))
                self.boxes[i] = (left + x, top + y, left + x + w - 1, top + y + h - 1)
                self.codes[i] = _encode(tidy[y : y + h, x : x + w])
        return self.without_duplicates(untouched)

    def largest(self, keep: int, height: int, width: int) -> MaskSet:
        """The ``keep`` largest masks of a picture of ``height`` × ``width``."""
        area = np.array([self.mask(i).sum() for i in range(len(self))], np.int64)
        order = np.argsort(-area, kind="stable")[:keep]
        planes = np.zeros((len(order), height, width), bool)
        for plane, i in zip(planes, order, strict=True):
            x0, y0, x1, y1 = self.boxes[i]
            plane[y0 : y1 + 1, x0 : x1 + 1] = self.mask(i)
        return MaskSet.from_masks(planes, self.predicted_iou[order], self.stability[order])


class _Gathering:
    """Masks of many batches in one growing buffer.

    Thousands of small blocks that outlive the large ones beside them leave a heap of gaps that nothing large fits into.
    """

    def __init__(self) -> None:
        self._boxes: list[list[int]] = []
        self._scores: list[tuple[float, float]] = []
        self._codes, self._ends = bytearray(), [0]

    def add(self, found: _Found) -> None:
        """Copy these masks."""
        self._boxes += found.boxes.tolist()
        self._scores += zip(found.predicted_iou.tolist(), found.stability.tolist(), strict=True)
        for code in found.codes:
            self._codes += code
            self._ends.append(len(self._codes))

    def found(self) -> _Found:
        """All masks, in the order in which they were added."""
        codes = [bytes(self._codes[start:end]) for start, end in pairwise(self._ends)]
        scores = np.array(self._scores, np.float32).reshape(-1, 2)
        return _Found(np.array(self._boxes, np.int64).reshape(-1, 4), codes, scores[:, 0], scores[:, 1])


def without_small_regions(mask: NDArray[np.bool_], min_area: int) -> NDArray[np.bool_]:
    """Fill holes, then remove islands, of fewer than ``min_area`` pixels (8-connected) from ``[h, w]``.

    The largest island stays even where it is small; a mask with nothing to change is returned itself.
    """
    _, holes, stats, _ = cv2.connectedComponentsWithStats((~mask).view(np.uint8), connectivity=8)
    small = stats[:, cv2.CC_STAT_AREA] < min_area
    small[0] = False  # what is not background
    if small.any():
        mask = mask | small[holes]
    count, islands, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
    kept = stats[:, cv2.CC_STAT_AREA] >= min_area
    kept[0] = False
    if kept.sum() == count - 1:
        return mask
    if not kept.any():
        kept[1 + np.argmax(stats[1:, cv2.CC_STAT_AREA])] = True
    left: NDArray[np.bool_] = kept[islands]
    return left


def _in_surroundings(
    mask: NDArray[np.bool_], box: NDArray[np.int64], height: int, width: int, min_area: int
) -> tuple[NDArray[np.bool_], tuple[int, int]]:
    """A mask with a margin so wide that background which leaves it is no small hole; and its left and top."""
    x0, y0, x1, y1 = box.tolist()
    beside, above = -(-min_area // mask.shape[0]), -(-min_area // mask.shape[1])
    left, top = min(x0, beside), min(y0, above)
    right, bottom = min(width - 1 - x1, beside), min(height - 1 - y1, above)
    return np.pad(mask, ((top, bottom), (left, right))), (x0 - left, y0 - top)


def _encode(mask: NDArray[np.bool_]) -> bytes:
    return zlib.compress(np.packbits(mask).tobytes(), level=1)


def _join(parts: Sequence[_Found]) -> _Found:
    return _Found(
        np.concatenate([np.empty((0, 4), np.int64), *(part.boxes for part in parts)]),
        [code for part in parts for code in part.codes],
        np.concatenate([np.empty(0, np.float32), *(part.predicted_iou for part in parts)]),
        np.concatenate([np.empty(0, np.float32), *(part.stability for part in parts)]),
    )


def _points_at_once(network: PromptedNetwork) -> int:
    """On a GPU, as many as fit into half of the memory that is free now."""
    if network.device.type != "cuda":
        return _POINTS_AT_ONCE_CPU
    free, _ = torch.cuda.mem_get_info(network.device)
    return max(1, min(_POINTS_AT_ONCE_CUDA, free // (2 * network.point_bytes)))
