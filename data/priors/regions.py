"""Object-like regions of a picture without any network: the stand-in for SAM where no checkpoint is at hand.

Watershed basins are merged pair by pair in the order in which the piecewise-constant Mumford-Shah energy gives up its
boundaries (Koepfler, Lopez and Morel, SIAM J. Numer. Anal. 1994). Every region of that tree exists over a range of
scales; those that persist longest are what stands out from its surroundings, from a hot person of a few pixels to the
sky, in infrared and visible pictures alike. Deterministic, OpenCV and numpy only.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise, zip_longest
from operator import truediv

import cv2
import numpy as np
from numpy.typing import NDArray

from duskfuse.data.priors.cache import JsonValue
from duskfuse.data.priors.masks import KEPT_MASKS, MaskSet

_WORKING_SIDE = 320
"""Longer side, in pixels, at which regions are found; their outline is then brought to full size."""
_MIN_AREA = 100
"""Pixels of the smallest mask, at full size (SAGE's smallest SAM region)."""
_LARGEST = 0.7
"""Largest share of the picture that is still a region and not the picture."""
_DUPLICATE_IOU = 0.75
_SMOOTHING = 2.0
"""Standard deviation, in pixels at the working size, of the blur before the watershed."""
_SLOPE_STEP = 8.0
"""Slopes (Sobel, grey levels) that differ by less start no basin of their own."""
_NOISE_SCALE = 50.0
"""Scale, in squared grey levels times pixels, of boundaries between regions that only noise parts."""
_BANDS = (0.0, 0.003, 0.03, 1.0)
"""Shares of the picture that part small, middle and large regions."""
_BLOBS = 5
"""Bright blobs at most."""
_BLOB_LARGEST = 0.15
"""Largest share of the picture that is still a blob."""
_BLOB_FAINTEST = 12.0
"""Grey levels that a bright blob exceeds its surroundings by at least."""
_BLOB_CONTRAST = 1.0
"""Standard deviations of the picture by which a bright blob exceeds its surroundings."""


class Regions:
    """Mask source ``regions``: regions of different sizes that stand out, bright blobs among them.

    Args:
        keep: the number of masks at most.
    """

    name = "regions"

    def __init__(self, keep: int = KEPT_MASKS) -> None:
        self._keep = keep

    @property
    def settings(self) -> dict[str, JsonValue]:
        """What the masks depend on."""
        return {
            "method": "mumford-shah-tree",
            "revision": 1,
            "keep": self._keep,
            "working_side": _WORKING_SIDE,
            "min_area": _MIN_AREA,
        }

    def masks(self, image_rgb: NDArray[np.uint8], /) -> MaskSet:
        """Find the regions of ``[H, W, 3]`` RGB."""
        height, width = image_rgb.shape[:2]
        scale = min(1.0, _WORKING_SIDE / max(height, width))
        size = max(4, round(width * scale)), max(4, round(height * scale))
        small = cv2.resize(image_rgb, size, interpolation=cv2.INTER_AREA) if scale < 1 else image_rgb
        basins = _basins(small)
        tree = _merge_tree(small, basins)
        min_area = _MIN_AREA * basins.size / (height * width)
        found = _bright_blobs(small, min_area)[: self._keep]
        for region in tree.ranked(min_area, _LARGEST * basins.size, self._keep):
            if len(found) == self._keep:
                break
            mask = tree.mask(basins, region)
            if all(_iou(mask, other) <= _DUPLICATE_IOU for other in found):
                found.append(mask)
        planes = [_full_size(mask, height, width) for mask in found]
        planes = [plane for plane in planes if np.count_nonzero(plane) >= _MIN_AREA]
        return MaskSet.from_masks(np.array(planes, bool).reshape(-1, height, width))


@dataclass(frozen=True)
class _Tree:
    """Binary merge tree: regions 0..B-1 are basins, each later one the union of two earlier ones."""

    basins: int
    """B."""
    children: list[tuple[int, int]]
    """Of region B, B+1, …"""
    area: list[float]
    born: list[float]
    """Scale at which a region appears; 0 for a basin."""
    died: list[float]
    """Scale at which it is merged into another; infinite for the root."""

    def ranked(self, min_area: float, largest: float, keep: int) -> list[int]:
        """Regions, the most persistent first, taking turns between large, middle and small ones, ``keep`` of each."""
        candidates = [region for region, area in enumerate(self.area) if min_area <= area <= largest]
        candidates.sort(key=lambda region: (-self._persistence(region), -region))
        total = max(self.area)
        bands = [
            [region for region in candidates if low * total < self.area[region] <= high * total]
            for low, high in pairwise(_BANDS)
        ]
        turns = zip_longest(*(self._without_duplicates(band)[:keep] for band in reversed(bands)))
        return [region for turn in turns for region in turn if region is not None]

    def _persistence(self, region: int) -> float:
        return (self.died[region] + _NOISE_SCALE) / (self.born[region] + _NOISE_SCALE)

    def mask(self, basins: NDArray[np.int32], region: int) -> NDArray[np.bool_]:
        """``[h, w]``: the pixels of a region."""
        member = np.zeros(self.basins, bool)
        stack = [region]
        while stack:
            node = stack.pop()
            if node < self.basins:
                member[node] = True
            else:
                stack.extend(self.children[node - self.basins])
        return member[basins]

    def _without_duplicates(self, ranked: list[int]) -> list[int]:
        """Regions of a tree overlap only along a branch, where their IoU is the ratio of their areas."""
        parent = {child: self.basins + i for i, pair in enumerate(self.children) for child in pair}
        kept: dict[int, None] = {}
        for region in ranked:
            if not any(other in kept for other in self._nearly_same(region, parent)):
                kept[region] = None
        return list(kept)

    def _nearly_same(self, region: int, parent: dict[int, int]) -> Iterator[int]:
        area = self.area[region]
        above = parent.get(region)
        while above is not None and area > _DUPLICATE_IOU * self.area[above]:
            yield above
            above = parent.get(above)
        below = region
        while below >= self.basins:
            below = max(self.children[below - self.basins], key=lambda child: self.area[child])
            if self.area[below] <= _DUPLICATE_IOU * area:
                break
            yield below


def _basins(image: NDArray[np.uint8]) -> NDArray[np.int32]:
    """``[h, w]``: number from 0 of the watershed basin of each pixel of ``[h, w, 3]``."""
    smooth = cv2.GaussianBlur(image, (0, 0), _SMOOTHING)
    slopes = [cv2.Sobel(smooth, cv2.CV_32F, dx, dy) for dx, dy in ((1, 0), (0, 1))]
    gradient = (np.hypot(*slopes).max(axis=2) / _SLOPE_STEP).astype(np.uint16)
    minima = (gradient == cv2.erode(gradient, np.ones((3, 3), np.uint8))).astype(np.uint8)
    framed = [cv2.copyMakeBorder(plane, 1, 1, 1, 1, cv2.BORDER_REPLICATE) for plane in (smooth, minima)]
    _, markers = cv2.connectedComponents(framed[1], connectivity=8)  # framed: the watershed erases the outermost pixels
    flooded = cv2.watershed(framed[0], markers)[1:-1, 1:-1].astype(np.float32)
    ridges = flooded <= 0
    while ridges.any():
        flooded = np.where(ridges, cv2.dilate(flooded, np.ones((3, 3), np.uint8)), flooded)
        ridges = flooded <= 0
    return np.unique(flooded, return_inverse=True)[1].reshape(flooded.shape).astype(np.int32)


def _bright_blobs(image: NDArray[np.uint8], min_area: float) -> list[NDArray[np.bool_]]:
    """Up to five compact masks ``[h, w]`` of what is much brighter than its wider surroundings, such as hot bodies."""
    grey = cv2.GaussianBlur(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (0, 0), 1.0).astype(np.float32)
    reach = max(3, max(grey.shape) // 3)
    excess = grey - cv2.blur(grey, (reach, reach), borderType=cv2.BORDER_REFLECT)
    bright = (excess > max(_BLOB_CONTRAST * float(grey.std()), _BLOB_FAINTEST)).astype(np.uint8)
    bright = cv2.morphologyEx(bright, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))
    count, labels, stats, _ = cv2.connectedComponentsWithStats(bright, connectivity=8)
    area = stats[:, cv2.CC_STAT_AREA]
    weight = np.bincount(labels.ravel(), excess.ravel(), count) / np.sqrt(area)
    fits = [i for i in range(1, count) if min_area <= area[i] <= _BLOB_LARGEST * grey.size]
    return [labels == i for i in sorted(fits, key=lambda i: (-weight[i], i))[:_BLOBS]]


def _iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    both = int(np.count_nonzero(a & b))
    return float(both / (np.count_nonzero(a) + np.count_nonzero(b) - both))


def _merge_tree(image: NDArray[np.uint8], basins: NDArray[np.int32]) -> _Tree:
    """Merge neighbours in the order of the scale at which the energy no longer pays for their boundary.

    For regions of n pixels and mean colour m that share a boundary of length l, that scale is
    ``n_a n_b / (n_a + n_b) |m_a - m_b|^2 / l``.
    """
    count = int(basins.max()) + 1
    area = [float(n) for n in np.bincount(basins.ravel(), minlength=count)]
    sums = [np.bincount(basins.ravel(), image[..., c].ravel(), count) for c in range(3)]
    means: list[list[float]] = [list(map(truediv, channel.tolist(), area)) for channel in sums]
    red, green, blue = means
    touching = _boundaries(basins, count)
    born = [0.0] * count
    died = [np.inf] * count
    children: list[tuple[int, int]] = []

    def scale(a: int, b: int, length: int) -> float:
        gap = (red[a] - red[b]) ** 2 + (green[a] - green[b]) ** 2 + (blue[a] - blue[b]) ** 2
        return area[a] * area[b] / (area[a] + area[b]) * gap / length

    queue = [(scale(a, b, length), a, b) for a in range(count) for b, length in touching[a].items() if a < b]
    heapq.heapify(queue)
    while queue:
        level, a, b = heapq.heappop(queue)
        if died[a] < np.inf or died[b] < np.inf:
            continue
        level = max(level, born[a], born[b])
        died[a] = died[b] = level
        new = len(area)
        children.append((a, b))
        area.append(area[a] + area[b])
        for mean in means:
            mean.append((area[a] * mean[a] + area[b] * mean[b]) / area[new])
        born.append(level)
        died.append(np.inf)
        touching.append({})
        for old in (a, b):
            for other, length in touching[old].items():
                if died[other] == np.inf:
                    touching[new][other] = touching[other][new] = touching[new].get(other, 0) + length
        for other, length in touching[new].items():
            heapq.heappush(queue, (scale(other, new, length), other, new))
    return _Tree(count, children, area, born, died)


def _boundaries(basins: NDArray[np.int32], count: int) -> list[dict[int, int]]:
    """Per basin, its neighbours and the number of pixel sides it shares with each."""
    across = np.concatenate(
        [
            np.stack([basins[:, :-1].ravel(), basins[:, 1:].ravel()]),
            np.stack([basins[:-1].ravel(), basins[1:].ravel()]),
        ],
        axis=1,
    )
    across = np.sort(across[:, across[0] != across[1]], axis=0).astype(np.int64)
    codes, lengths = np.unique(across[0] * count + across[1], return_counts=True)
    touching: list[dict[int, int]] = [{} for _ in range(count)]
    for code, length in zip(codes.tolist(), lengths.tolist(), strict=True):
        a, b = divmod(code, count)
        touching[a][b] = touching[b][a] = length
    return touching


def _full_size(mask: NDArray[np.bool_], height: int, width: int) -> NDArray[np.bool_]:
    """Bring a mask to ``[height, width]`` with a smooth outline."""
    if mask.shape == (height, width):
        return mask
    soft = cv2.resize(mask.view(np.uint8) * np.uint8(255), (width, height), interpolation=cv2.INTER_LINEAR)
    full: NDArray[np.bool_] = soft > 127
    return full
