"""Fusion metrics of 8-bit grey pictures by their definitions, in float64.

Published tables come from incompatible generations of code: SD and VIF on saturating 8-bit integers, SSIM with the
constants of another range, PSNR 48 dB too high. The definitions here are the original ones, and every table that is
made with them says so. A is the infrared source, B the visible one, F the fused picture.

What depends on the sources alone is computed once (:class:`SourceStatistics`) and used for every method.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from duskfuse.evaluate.gradients import (
    average_gradient,
    edge_artefacts,
    edge_transfer,
    edge_weights,
    nabf_edges,
    qabf_edges,
    spatial_frequency,
)
from duskfuse.evaluate.information import entropy, mutual_information
from duskfuse.evaluate.moments import (
    Moments,
    correlation_coefficient,
    peak_signal_to_noise,
    standard_deviation,
    sum_of_correlations_of_differences,
)
from duskfuse.evaluate.structure import ssim, ssim_moments, vif, vif_moments

Grey = NDArray[np.uint8]
"""One channel, ``[H, W]`` uint8."""


@dataclass(frozen=True)
class MetricInfo:
    """What a column of a results table means."""

    name: str
    higher_is_better: bool
    meaning: str
    """One line: definition and source."""
    decimals: int
    """Digits after the point in a printed table."""


METRICS: tuple[MetricInfo, ...] = (
    MetricInfo("EN", True, "entropy of the fused grey levels in bits, exact 256-bin histogram", 3),
    MetricInfo("SD", True, "standard deviation of the fused picture in grey levels (population)", 2),
    MetricInfo("SF", True, "spatial frequency: root mean square of the differences of neighbours, in grey levels", 2),
    MetricInfo("AG", True, "average gradient: mean of √((gx² + gy²)/2), central differences", 3),
    MetricInfo("MI", True, "mutual information I(A;F) + I(B;F) in bits, from joint histograms", 3),
    MetricInfo("SCD", True, "sum of the correlations of differences, corr(F−B, A) + corr(F−A, B); Aslantas 2015", 3),
    MetricInfo("CC", True, "mean of the Pearson correlations of F with A and with B", 3),
    MetricInfo("VIF", True, "visual information fidelity, pixel domain, sum over the two sources; Sheikh 2006", 3),
    MetricInfo("Qabf", True, "share of the sources' edges kept in strength and direction; Xydeas and Petrović 2000", 3),
    MetricInfo("SSIM", True, "structural similarity, mean over the two sources, range 255; Wang 2004", 3),
    MetricInfo("PSNR", True, "10 log₁₀(255²/MSE) in dB, MSE the mean over the two sources", 2),
    MetricInfo("Nabf", False, "share of edges that are in neither source (artefacts); Shreyamsha Kumar 2013", 4),
)
"""The twelve metrics in the order of the tables."""


class SourceStatistics:
    """Everything the metrics need of a pair's two sources, computed once."""

    def __init__(self, ir: Grey, vis: Grey) -> None:
        """Take two ``[H, W]`` uint8 pictures of one size; ValueError otherwise."""
        _check(ir, vis)
        self.grey = (ir, vis)
        self.planes = (ir.astype(np.float64), vis.astype(np.float64))
        self.qabf_edges = (qabf_edges(self.planes[0]), qabf_edges(self.planes[1]))
        self.nabf_edges = (nabf_edges(self.planes[0]), nabf_edges(self.planes[1]))
        self.edge_weights = (edge_weights(self.nabf_edges[0]), edge_weights(self.nabf_edges[1]))
        self.ssim = (ssim_moments(self.planes[0]), ssim_moments(self.planes[1]))
        self.vif = (vif_moments(self.planes[0]), vif_moments(self.planes[1]))


def fusion_metrics(sources: SourceStatistics, fused: Grey) -> dict[str, float]:
    """Score one fused picture; keys in the order of :data:`METRICS`.

    A metric that is undefined for these pictures is nan: SCD of a copied source, correlations with a constant, windows
    larger than the picture (SSIM under 11 pixels a side, VIF under about 41). PSNR is inf where F, A and B are one.

    Args:
        sources: statistics of the pair.
        fused: ``[H, W]`` uint8 of the sources' size; ValueError otherwise.
    """
    ir, vis = sources.grey
    _check(ir, fused)
    plane = fused.astype(np.float64)
    moments = Moments.of(*sources.planes, plane)
    local, scales = ssim_moments(plane), vif_moments(plane)
    return {
        "EN": entropy(fused),
        "SD": standard_deviation(moments),
        "SF": spatial_frequency(plane),
        "AG": average_gradient(plane),
        "MI": mutual_information(ir, fused) + mutual_information(vis, fused),
        "SCD": sum_of_correlations_of_differences(moments),
        "CC": correlation_coefficient(moments),
        "VIF": vif(sources.vif[0], scales) + vif(sources.vif[1], scales),
        "Qabf": edge_transfer(*sources.qabf_edges, qabf_edges(plane)),
        "SSIM": (ssim(sources.ssim[0], local) + ssim(sources.ssim[1], local)) / 2,
        "PSNR": peak_signal_to_noise(moments),
        "Nabf": edge_artefacts(*sources.nabf_edges, nabf_edges(plane), *sources.edge_weights),
    }


def _check(first: Grey, second: Grey) -> None:
    if first.dtype != np.uint8 or second.dtype != np.uint8 or first.ndim != 2 or first.shape != second.shape:
        raise ValueError(
            f"{first.dtype} {first.shape} and {second.dtype} {second.shape}, want two uint8 [H,W] of one size"
        )
