"""Salient object detection: F-measure, E-measure, S-measure and MAE, computed by pysodmetrics.

Publications say "mF" or "Em" for three different numbers, so each is named here: *adaptive* thresholds every map at
twice its mean, *mean* and *max* are those of the curve over 256 thresholds, averaged over the pictures first. As in the
published tools, every predicted map is stretched to 0 … 1 before. Ground truth above 128 of 255 is salient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import nan
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from duskfuse.data.errors import InputError
from duskfuse.data.images import read_picture
from duskfuse.data.pair_files import PairFiles, read_saliency
from duskfuse.data.progress import track
from duskfuse.evaluate.metrics import MetricInfo
from duskfuse.evaluate.statistics import Summary, summarise
from duskfuse.evaluate.task_results import MethodScores
from duskfuse.tasks.saliency_scores import Curve, MapScores, map_scores, scoring_library

_SALIENT = 128
_IN_CURVES = "averaged over the pictures at each of 256 thresholds"

_F = "F-measure with β² 0.3 (Achanta 2009)"
_E = "E-measure (Fan 2018)"
IMAGE_MEASURES = (
    MetricInfo("mean F", True, f"{_F}: mean of its curve", 4),
    MetricInfo("adaptive F", True, f"{_F} at twice the mean of the map", 4),
    MetricInfo("mean E", True, f"{_E}: mean of its curve", 4),
    MetricInfo("adaptive E", True, f"{_E} at twice the mean of the map", 4),
    MetricInfo("S", True, "S-measure with α 0.5 (Fan 2017)", 4),
    MetricInfo("MAE", False, "mean absolute difference of map and ground truth", 4),
)
MAX_F = MetricInfo("max F", True, f"{_F}: largest value of its curve, {_IN_CURVES}", 4)
MAX_E = MetricInfo("max E", True, f"{_E}: largest value of its curve, {_IN_CURVES}", 4)
MEASURES = (*IMAGE_MEASURES[:2], MAX_F, *IMAGE_MEASURES[2:4], MAX_E, *IMAGE_MEASURES[4:])


def score_saliency(rows: Mapping[str, Mapping[str, Path]], pairs: Sequence[PairFiles]) -> list[MethodScores]:
    """Score predicted saliency maps: row name → pair name → 8-bit grey picture.

    Raises:
        InputError: a picture is unreadable, not grey or not 8-bit; pysodmetrics is not installed.
    """
    scoring_library()
    found: dict[str, list[MapScores]] = {row: [] for row in rows}
    for pair in track(pairs, "Scoring maps"):
        truth = _truth(pair)
        for row, files in rows.items():
            found[row].append(map_scores(_predicted_map(files[pair.name]), truth))
    names = [pair.name for pair in pairs]
    return [_scores(row, names, scores) for row, scores in found.items()]


def _truth(pair: PairFiles) -> NDArray[np.bool_]:
    if pair.saliency is None:
        raise ValueError(f"{pair.name} has no saliency map")
    salient: NDArray[np.bool_] = read_saliency(pair.saliency, pair.vis.size())[0].numpy() > _SALIENT / 255
    return salient


def _predicted_map(path: Path) -> NDArray[np.uint8]:
    """A predicted map as stored; three equal channels are one."""
    stored = read_picture(path)
    if stored.ndim == 3 and (stored == stored[..., :1]).all():
        stored = stored[..., 0]
    if stored.ndim != 2 or stored.dtype != np.uint8:
        raise InputError(
            f"{path}: {stored.dtype} with {1 if stored.ndim == 2 else stored.shape[2]} channels",
            rule="a saliency map is 8-bit grey",
            remedy="save the map as 8-bit PNG, 0 for nothing salient",
        )
    return np.ascontiguousarray(stored)


def _scores(name: str, pairs: Sequence[str], maps: Sequence[MapScores]) -> MethodScores:
    columns = [[scores.single[measure.name] for scores in maps] for measure in IMAGE_MEASURES]
    summaries = dict(zip((measure.name for measure in IMAGE_MEASURES), summarise(columns), strict=True))
    totals = {measure: summary.mean for measure, summary in summaries.items()}
    totals[MAX_F.name] = _peak([scores.f_curve for scores in maps])
    totals[MAX_E.name] = _peak([scores.e_curve for scores in maps])
    return MethodScores(
        name=name,
        totals=totals,
        per_image={pair: scores.single for pair, scores in zip(pairs, maps, strict=True)},
        intervals={measure: summary.interval for measure, summary in summaries.items()},
        undefined=_undefined(summaries),
    )


def _peak(curves: Sequence[Curve]) -> float:
    """Largest value of the mean curve of the pictures where it is defined; nan without any."""
    defined = [curve for curve in curves if not np.isnan(curve).any()]
    return float(np.mean(defined, axis=0).max()) if defined else nan


def _undefined(summaries: Mapping[str, Summary]) -> dict[str, int]:
    return {measure: summary.undefined for measure, summary in summaries.items() if summary.undefined}
