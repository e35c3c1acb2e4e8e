"""F-measure, E-measure, S-measure and MAE of one saliency map, computed by pysodmetrics."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from importlib import import_module
from math import nan
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from duskfuse.data.errors import InputError

BETA_SQUARED = 0.3

Curve = NDArray[np.float64]
"""One value per threshold, ``[256]``."""


class MapScores(NamedTuple):
    """The scores of one map."""

    single: Mapping[str, float]
    """Value of each of mean and adaptive F and E, S, and MAE; F is nan where nothing is salient in the ground truth."""
    f_curve: Curve
    e_curve: Curve


def map_scores(predicted: NDArray[np.uint8], truth: NDArray[np.bool_]) -> MapScores:
    """Score one map ``[H, W]`` against what is salient, ``[H, W]``."""
    library = scoring_library()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Fmeasure announces its successor, which gives the same numbers
        measures = (library.Fmeasure(beta=BETA_SQUARED), library.Emeasure(), library.Smeasure(), library.MAE())
        for measure in measures:
            measure.step(predicted, truth.astype(np.uint8) * np.uint8(255))
        f_measure, e_measure, s_measure, mae = (measure.get_results() for measure in measures)
    f_curve, e_curve = (np.asarray(found["curve"], dtype=np.float64) for found in (f_measure["fm"], e_measure["em"]))
    adaptive_f = float(f_measure["fm"]["adp"])
    if not truth.any():
        f_curve, adaptive_f = np.full_like(f_curve, nan), nan
    single = {
        "mean F": float(f_curve.mean()),
        "adaptive F": adaptive_f,
        "mean E": float(e_curve.mean()),
        "adaptive E": float(e_measure["em"]["adp"]),
        "S": float(s_measure["sm"]),
        "MAE": float(mae["mae"]),
    }
    return MapScores(single, f_curve, e_curve)


def scoring_library() -> Any:
    """What computes the scores; InputError where it is not installed."""
    try:
        return import_module("py_sod_metrics")
    except ImportError as error:
        raise InputError(
            f"pysodmetrics cannot be used ({error})",
            rule="saliency is scored with it",
            remedy="pip install 'duskfuse[tasks]' and then pip install --no-deps pysodmetrics: its own dependencies "
            "would replace OpenCV and numpy",
        ) from error
