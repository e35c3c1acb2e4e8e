"""Which pairs a report shows at full detail, and their pictures as WebP.

A page with every picture of a large set would be too large to send, so there is a budget: pairs are taken by how much
they tell (a range of brightness, then the worst and the best of every method in every metric, then the others spread
over the set), at full detail as long as there is room, then as small pictures, then not at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import isnan
from time import perf_counter

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from duskfuse.data.colour import recombine
from duskfuse.data.images import to_u8
from duskfuse.data.pair_files import PairFiles
from duskfuse.data.progress import track
from duskfuse.evaluate.methods import Method
from duskfuse.evaluate.metrics import Grey, MetricInfo
from duskfuse.evaluate.report_page.shown_pairs import Detail, ShownPair, ShownPairs
from duskfuse.evaluate.score_pairs import fused_grey
from duskfuse.evaluate.scores import Evaluation, Kind, Row
from duskfuse.evaluate.source_pictures import SourcePictures
from duskfuse.evaluate.structure import ssim_map, ssim_moments

FULL_SIDE, SMALL_SIDE = 640, 176
"""Pixels of a picture's longer side, at most."""
FULL_BYTES, ALL_BYTES = 20_000_000, 30_000_000
"""Pictures at full detail, and all pictures, before they are written as text (a third more)."""
EXTREMES = 3
"""So many of the worst and of the best pairs of every method and metric come first."""
_FULL_QUALITY, _SMALL_QUALITY = 82, 60
_DARK, _SPREAD = 3, 3


def shown_pairs(
    evaluation: Evaluation, pairs: Sequence[PairFiles], methods: Sequence[Method], brightness: Mapping[str, float]
) -> ShownPairs:
    """Make the pictures of a report; the trivial rows are shown only where there is nothing else.

    Args:
        evaluation: the scores, which say which pairs tell most.
        pairs: files of the evaluation's pairs, in its order.
        methods: its rows to make pictures with.
        brightness: name of pair → mean grey level of the visible picture.
    """
    shown = [method for method in methods if method.kind is not Kind.TRIVIAL] or list(methods[:2])
    maker = _Maker(shown, evaluation.reference)
    files = {pair.name: pair for pair in pairs}
    made: dict[str, ShownPair] = {}
    spent = 0
    order = _by_what_they_tell(evaluation, brightness)
    for name in track(order, "Pictures of the report", total=len(order)):
        detail = _affordable(spent)
        pictures = () if detail is Detail.NONE else maker.pictures(files[name], detail)
        spent += sum(map(len, pictures))
        made[name] = ShownPair(name, brightness[name], detail, pictures)
    captions = ("infrared", "visible", *(method.name for method in shown))
    times = {row: tuple(times[1:]) for row, times in maker.milliseconds.items() if len(times) > 1}
    similarity = {row: tuple(found) for row, found in maker.similarity.items()}
    return ShownPairs(captions, tuple(made[pair.name] for pair in pairs), times, similarity)


def extremes(evaluation: Evaluation, row: Row, metric: MetricInfo) -> tuple[list[str], list[str]]:
    """Names of a row's pairs from the worst on, and from the best on, where the metric is defined."""
    found = [(scores[metric.name], name) for name, scores in row.scores.items() if metric.name in scores]
    sign = 1 if metric.higher_is_better else -1
    names = [name for _, name in sorted((sign * value, name) for value, name in found if not isnan(value))]
    return names, names[::-1]


def _affordable(spent: int) -> Detail:
    if spent < FULL_BYTES:
        return Detail.FULL
    return Detail.SMALL if spent < ALL_BYTES else Detail.NONE


def _by_what_they_tell(evaluation: Evaluation, brightness: Mapping[str, float]) -> list[str]:
    """All pairs, the ones first that a reader will look for."""
    by_brightness = sorted(brightness, key=lambda name: (brightness[name], name))
    first = by_brightness[:_DARK] + [by_brightness[place] for place in _spread(len(by_brightness), _SPREAD)]
    told = [
        (place, end[place])
        for row in evaluation.methods or evaluation.trivial[:2]
        for metric in evaluation.metrics
        for end in extremes(evaluation, row, metric)
        for place in range(min(EXTREMES, len(end)))
    ]
    most = [name for _, name in sorted(told, key=lambda item: item[0])]
    rest = [by_brightness[place] for place in _halving(len(by_brightness))]
    return [name for name in dict.fromkeys([*first, *most, *rest]) if name in evaluation.rows[0].scores]


def _spread(length: int, count: int) -> list[int]:
    return [int(place) for place in np.linspace(0, length - 1, count + 1).round()[1:]]


def _halving(length: int) -> Iterator[int]:
    """All places, so that every beginning of them is spread over the whole (van der Corput's sequence)."""
    bits = max(length - 1, 0).bit_length()
    for place in range(1 << bits):
        turned = int(f"{place:0{bits}b}"[::-1], 2) if bits else 0
        if turned < length:
            yield turned


class _Maker:
    """Makes the pictures of one pair after the other, and keeps what it measures on the way."""

    def __init__(self, methods: Sequence[Method], reference: str | None) -> None:
        self._methods = methods
        self._reference = reference
        self.milliseconds: dict[str, list[float]] = {}
        self.similarity: dict[str, list[float]] = {}

    def pictures(self, files: PairFiles, detail: Detail) -> tuple[bytes, ...]:
        sources = SourcePictures(files)
        fused = {method.name: self._fused(method, sources) for method in self._methods}
        self._compare(fused)
        side, quality = (FULL_SIDE, _FULL_QUALITY) if detail is Detail.FULL else (SMALL_SIDE, _SMALL_QUALITY)
        vis = _smaller(to_u8(sources.vis), side)
        pictures = [_smaller(sources.ir_u8, side), vis]
        pictures += [_coloured(_smaller(grey, side), vis) for grey in fused.values()]
        return tuple(_webp(picture, quality) for picture in pictures)

    def _fused(self, method: Method, sources: SourcePictures) -> Grey:
        if method.kind is not Kind.MODEL:
            return fused_grey(method.picture(sources), sources)
        _ = sources.ir, sources.vis  # read, so that the model's time is its own
        started = perf_counter()
        picture = method.picture(sources)
        self.milliseconds.setdefault(method.name, []).append((perf_counter() - started) * 1000)
        return fused_grey(picture, sources)

    def _compare(self, fused: Mapping[str, Grey]) -> None:
        reference = fused.get(self._reference or "")
        target = None if reference is None else ssim_moments(reference.astype(np.float64))
        if target is None:
            return
        for name, grey in fused.items():
            mine = ssim_moments(grey.astype(np.float64))
            if name != self._reference and mine is not None:
                self.similarity.setdefault(name, []).append(float(ssim_map(mine, target).mean()))


def _coloured(fused: Grey, vis: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A fused luminance in the visible picture's colours."""
    y = torch.from_numpy(fused.astype(np.float32) / 255)[None]
    rgb = recombine(y, torch.from_numpy(vis.astype(np.float32) / 255).permute(2, 0, 1))
    return to_u8(rgb.permute(1, 2, 0).numpy())


def _smaller(picture: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    height, width = picture.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return picture
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _webp(picture: NDArray[np.uint8], quality: int) -> bytes:
    stored = picture if picture.ndim == 2 else cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    done, data = cv2.imencode(".webp", stored, [cv2.IMWRITE_WEBP_QUALITY, quality])
    if not done:
        raise ValueError(f"a picture of {picture.dtype} {picture.shape} cannot be written as WebP")
    return data.tobytes()
