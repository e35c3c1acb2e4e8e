"""Fusion metrics of 8-bit grey pictures, in float64: by their definitions, or as a published toolbox computed them.

Published tables come from incompatible generations of code: SD and VIF on saturating 8-bit integers, SSIM with the
constants of another range, PSNR 48 dB too high. The default is what the articles define; :class:`Mode` also names two
generations of the toolbox that most tables were made with, so that old numbers can be understood. A is the infrared
source, B the visible one, F the fused picture.

What depends on the sources alone is computed once (:class:`SourceStatistics`) and used for every method and metric;
what depends on one fused picture (:class:`Comparison`) is shared by its metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from math import log10, nan

import numpy as np
from numpy.typing import NDArray

from duskfuse.evaluate.feature_information import Feature, feature_map, feature_mutual_information
from duskfuse.evaluate.gradients import (
    Edges,
    average_gradient,
    edge_artefacts,
    edge_intensity,
    edge_map,
    edge_transfer,
    edge_weights,
    nabf_edges,
    qabf_edges,
    spatial_frequency,
)
from duskfuse.evaluate.information import (
    correlation_information_entropy,
    cross_entropy,
    entropy,
    mutual_information,
    mutual_information_of_merged_levels,
    normalised_mutual_information,
)
from duskfuse.evaluate.learned_similarity import LpipsWeights, lpips_distance
from duskfuse.evaluate.local_moments import LocalMoments, Plane
from duskfuse.evaluate.moments import (
    PEAK,
    Moments,
    correlation_coefficient,
    peak_signal_to_noise,
    saturated_deviation,
    standard_deviation,
    sum_of_correlations_of_differences,
)
from duskfuse.evaluate.perception import chen_blum, chen_varshney, qcb_contrast, qcv_seen, qcv_weights, stretched
from duskfuse.evaluate.structure import (
    MS_SSIM_WEIGHTS,
    mef_ssim,
    ms_ssim,
    scales,
    ssim_map,
    ssim_moments,
)
from duskfuse.evaluate.visual_information import Channel, Scales, channels, vif, vif_moments, viff
from duskfuse.evaluate.weighted_similarity import (
    WeightedSimilarity,
    weighted_similarity,
    yang,
    yang_moments,
    yang_similarity,
)

Grey = NDArray[np.uint8]
"""One channel, ``[H, W]`` uint8."""


class Mode(StrEnum):
    """Whose arithmetic the numbers follow."""

    DEFINITION = "definition"
    """The articles'."""
    LINFENG_2023 = "linfeng-2023"
    """The toolbox Evaluation-for-Image-Fusion from March 2023 on: SSIM with range 1 and summed, MS-SSIM is MEF-SSIM,
    PSNR 48.13 dB up, Nabf with its arguments turned round, MI with 254 and 255 merged, AG over (H−1)(W−1)."""
    LINFENG_2022 = "linfeng-2022"
    """The same toolbox before: besides, SD and VIF in saturating 8-bit arithmetic and SF of values in [0, 1]. Its Qabf
    differed by up to 0.011 through rounding noise and is not imitated."""


@dataclass(frozen=True)
class MetricInfo:
    """What a column of a results table means."""

    name: str
    higher_is_better: bool
    meaning: str
    """One line: definition and source."""
    decimals: int
    """Digits after the point in a printed table."""
    default: bool = True
    """Whether it is computed unasked: fast, and of pictures alone."""
    needs_weights: bool = False
    """Whether it looks through a network whose weights do not come with the package."""


METRICS: tuple[MetricInfo, ...] = (
    MetricInfo("EN", True, "entropy of the fused grey levels in bits, exact 256-bin histogram", 3),
    MetricInfo("SD", True, "standard deviation of the fused picture in grey levels (population)", 2),
    MetricInfo("SF", True, "spatial frequency: root mean square of the differences of neighbours, in grey levels", 2),
    MetricInfo("AG", True, "average gradient: mean of √((gx² + gy²)/2), central differences", 3),
    MetricInfo("EI", True, "edge intensity: mean Sobel strength, in grey levels", 2),
    MetricInfo("MI", True, "mutual information I(A;F) + I(B;F) in bits, from joint histograms", 3),
    MetricInfo("NMI", True, "mutual information, each over the mean of the two entropies, summed; Hossny 2008", 3),
    MetricInfo("CE", False, "cross entropy: mean over the sources of Σ p log₂(p / p_fused) in bits", 3),
    MetricInfo("SCD", True, "sum of the correlations of differences, corr(F−B, A) + corr(F−A, B); Aslantas 2015", 3),
    MetricInfo("CC", True, "mean of the Pearson correlations of F with A and with B", 3),
    MetricInfo("PSNR", True, "10 log₁₀(255²/MSE) in dB, MSE the mean over the two sources", 2),
    MetricInfo("SSIM", True, "structural similarity, mean over the two sources, range 255; Wang 2004", 3),
    MetricInfo("MS-SSIM", True, "SSIM of five scales, mean over the two sources; Wang 2003", 3),
    MetricInfo("VIF", True, "visual information fidelity, pixel domain, sum over the two sources; Sheikh 2006", 3),
    MetricInfo("VIFF", True, "visual information fidelity for fusion, the weaker source per window; Han 2013", 3),
    MetricInfo("Qabf", True, "share of the sources' edges kept in strength and direction; Xydeas and Petrović 2000", 3),
    MetricInfo("Nabf", False, "share of edges that are in neither source (artefacts); Shreyamsha Kumar 2013", 4),
    MetricInfo("Qcb", True, "contrast kept, seen through the eye's sensitivity; Chen and Blum 2009", 3),
    MetricInfo("Qcv", False, "visible difference from the sources, weighted by edges; Chen and Varshney 2007", 1),
    MetricInfo("Qs", True, "SSIM with the sources, weighted by local variance; Piella 2003", 3),
    MetricInfo("Qw", True, "the same, windows weighted by the larger variance; Piella 2003", 3),
    MetricInfo("Qe", True, "Qw of the pictures times Qw of their edges; Piella 2003", 3),
    MetricInfo("Qy", True, "SSIM with both sources where they are alike, with the better one elsewhere; Yang 2008", 3),
    MetricInfo("NCIE", True, "nonlinear correlation information entropy of A, B and F; Wang 2005", 4, default=False),
    *(
        MetricInfo(
            f"FMI-{feature}", True, f"mutual information of {feature} features; Haghighat 2014", 3, default=False
        )
        for feature in Feature
    ),
    MetricInfo(
        "LPIPS",
        False,
        "distance in a network's features, mean over the two sources; Zhang 2018",
        4,
        default=False,
        needs_weights=True,
    ),
)
"""All metrics in the order of the tables."""

DEFAULT = tuple(metric for metric in METRICS if metric.default)
DEFAULT_METRICS = tuple(metric.name for metric in DEFAULT)
ALL = tuple(metric for metric in METRICS if not metric.needs_weights)
"""What a user gets who asks for all."""


class SourceStatistics:
    """Everything the metrics need of a pair's two sources, computed when first asked for and kept."""

    def __init__(
        self, ir: Grey, vis: Grey, mode: Mode = Mode.DEFINITION, lpips_weights: LpipsWeights | None = None
    ) -> None:
        """Take two ``[H, W]`` uint8 pictures of one size, and for LPIPS a network; ValueError for other pictures."""
        _check(ir, vis)
        self.mode, self.lpips_weights = mode, lpips_weights
        self.a, self.b = Statistics(ir, mode), Statistics(vis, mode)
        self._features: dict[Feature, tuple[Plane, Plane]] = {}

    @cached_property
    def yang(self) -> Plane | None:
        """Similarity of the two sources in Qy's windows."""
        if self.a.yang is None or self.b.yang is None:
            return None
        return yang_similarity(self.a.yang, self.b.yang)

    def features(self, feature: Feature) -> tuple[Plane, Plane]:
        """FMI's feature maps of both sources."""
        if feature not in self._features:
            self._features[feature] = feature_map(self.a.plane, feature), feature_map(self.b.plane, feature)
        return self._features[feature]


class Statistics:
    """What the metrics need of one picture, source or fused, computed when first asked for and kept."""

    def __init__(self, grey: Grey, mode: Mode) -> None:
        self.grey, self.mode = grey, mode
        self.plane: Plane = grey.astype(np.float64)

    @cached_property
    def ssim(self) -> LocalMoments | None:
        """Moments in SSIM's windows."""
        return ssim_moments(self.plane)

    @cached_property
    def ssim_scales(self) -> list[LocalMoments] | None:
        """Moments of the picture and its halvings."""
        return scales(self.plane, len(MS_SSIM_WEIGHTS))

    @cached_property
    def vif(self) -> Scales | None:
        """Moments at VIF's scales, the finest in saturating arithmetic where the mode says so."""
        squares = saturated_product(self.plane, self.plane) if self.mode is Mode.LINFENG_2022 else None
        return vif_moments(self.plane, squares)

    @cached_property
    def qabf(self) -> Edges:
        """Qabf's edges."""
        return qabf_edges(self.plane)

    @cached_property
    def nabf(self) -> Edges:
        """Nabf's edges."""
        return nabf_edges(self.plane)

    @cached_property
    def nabf_weights(self) -> Plane:
        """What the edges count in Nabf."""
        return edge_weights(self.nabf)

    @cached_property
    def stretched(self) -> Plane | None:
        """Stretched to 0…255."""
        return stretched(self.grey)

    @cached_property
    def contrast(self) -> Plane | None:
        """Qcb's masked contrast."""
        return qcb_contrast(self.stretched)

    @cached_property
    def seen(self) -> Plane | None:
        """The picture through Qcv's contrast sensitivity."""
        return qcv_seen(self.stretched)

    @cached_property
    def qcv_weights(self) -> Plane | None:
        """What its blocks count in Qcv."""
        return qcv_weights(self.stretched)

    @cached_property
    def edge_ssim(self) -> LocalMoments | None:
        """Moments of its Prewitt edges in SSIM's windows."""
        return ssim_moments(edge_map(self.plane, np.ones(3)))

    @cached_property
    def yang(self) -> LocalMoments | None:
        """Moments in Qy's windows."""
        return yang_moments(self.plane)


class Comparison:
    """One fused picture against its sources; what several metrics need is computed once."""

    def __init__(self, sources: SourceStatistics, fused: Grey) -> None:
        _check(sources.a.grey, fused)
        self.sources, self.mode = sources, sources.mode
        self.a, self.b, self.f = sources.a, sources.b, Statistics(fused, sources.mode)

    @cached_property
    def moments(self) -> Moments:
        """Exact sums over all pixels."""
        return Moments.of(self.a.plane, self.b.plane, self.f.plane)

    @cached_property
    def ssim_maps(self) -> tuple[Plane, Plane] | None:
        """SSIM's map of either source and F."""
        if self.a.ssim is None or self.b.ssim is None or self.f.ssim is None:
            return None
        return ssim_map(self.a.ssim, self.f.ssim), ssim_map(self.b.ssim, self.f.ssim)

    @cached_property
    def channels(self) -> tuple[list[Channel] | None, list[Channel] | None]:
        """VIF's channels from either source to F."""
        return self._channels(self.a), self._channels(self.b)

    @cached_property
    def similarity(self) -> WeightedSimilarity | None:
        """Piella's weighted similarity."""
        return _weighted(self.a.ssim, self.b.ssim, self.ssim_maps)

    @cached_property
    def edge_similarity(self) -> WeightedSimilarity | None:
        """Piella's weighted similarity of the edges."""
        a, b, f = self.a.edge_ssim, self.b.edge_ssim, self.f.edge_ssim
        if a is None or b is None or f is None:
            return None
        return _weighted(a, b, (ssim_map(a, f), ssim_map(b, f)))

    def _channels(self, source: Statistics) -> list[Channel] | None:
        saturate = self.mode is Mode.LINFENG_2022
        return channels(source.vif, self.f.vif, saturated_product(source.plane, self.f.plane) if saturate else None)


def fusion_metrics(
    sources: SourceStatistics, fused: Grey, metrics: Sequence[str] = DEFAULT_METRICS
) -> dict[str, float]:
    """Score one fused picture by name of metric, in the mode of ``sources``.

    A metric that is undefined for these pictures is nan: SCD of a copied source, correlations with a constant, windows
    larger than the picture (SSIM under 11 pixels a side, VIF under about 41). PSNR is inf where F, A and B are one.

    Args:
        sources: statistics of the pair.
        fused: ``[H, W]`` uint8 of the sources' size; ValueError otherwise.
        metrics: names of `METRICS`; KeyError for another.
    """
    comparison = Comparison(sources, fused)
    return {name: _COMPUTED[name](comparison) for name in metrics}


def saturated_product(first: Plane, second: Plane) -> Plane:
    """The product of 8-bit pictures as 8-bit arithmetic gives it: everything above 255 is 255."""
    return np.minimum(first * second, PEAK)


def _ssim(c: Comparison) -> float:
    if c.mode is not Mode.DEFINITION:
        return _ssim_of_range_1(c)
    maps = c.ssim_maps
    return nan if maps is None else float(maps[0].mean() + maps[1].mean()) / 2


def _ssim_of_range_1(c: Comparison) -> float:
    """The sum of two SSIMs whose constants are those of pictures in [0, 1], of pictures in 0…255."""
    if c.a.ssim is None or c.b.ssim is None or c.f.ssim is None:
        return nan
    return sum(float(ssim_map(source, c.f.ssim, span=1).mean()) for source in (c.a.ssim, c.b.ssim))


def _ms_ssim(c: Comparison) -> float:
    if c.mode is not Mode.DEFINITION:
        return mef_ssim(c.a.plane, c.b.plane, c.f.plane)
    return (ms_ssim(c.a.ssim_scales, c.f.ssim_scales) + ms_ssim(c.b.ssim_scales, c.f.ssim_scales)) / 2


def _sd(c: Comparison) -> float:
    return saturated_deviation(c.f.plane) if c.mode is Mode.LINFENG_2022 else standard_deviation(c.moments)


def _sf(c: Comparison) -> float:
    return spatial_frequency(c.f.plane) / (PEAK if c.mode is Mode.LINFENG_2022 else 1)


def _ag(c: Comparison) -> float:
    height, width = c.f.grey.shape
    divisor = 1.0 if c.mode is Mode.DEFINITION else (height - 1) * (width - 1) / (height * width)
    return average_gradient(c.f.plane) / divisor


def _mi(c: Comparison) -> float:
    shared = mutual_information if c.mode is Mode.DEFINITION else mutual_information_of_merged_levels
    return shared(c.a.grey, c.f.grey) + shared(c.b.grey, c.f.grey)


def _psnr(c: Comparison) -> float:
    # the toolbox divides 255 by the error of pictures in [0, 1]
    return peak_signal_to_noise(c.moments) + (0 if c.mode is Mode.DEFINITION else 20 * log10(PEAK))


def _nabf(c: Comparison) -> float:
    a, b, f = (c.a, c.b, c.f) if c.mode is Mode.DEFINITION else (c.b, c.f, c.a)
    return edge_artefacts(a.nabf, b.nabf, f.nabf, a.nabf_weights, b.nabf_weights)


def _weighted(
    a: LocalMoments | None, b: LocalMoments | None, maps: tuple[Plane, Plane] | None
) -> WeightedSimilarity | None:
    return None if a is None or b is None or maps is None else weighted_similarity(a, b, *maps)


def _qe(c: Comparison) -> float:
    if c.similarity is None or c.edge_similarity is None:
        return nan
    return c.similarity.by_salience() * c.edge_similarity.by_salience()


def _qy(c: Comparison) -> float:
    a, b, f, sources = c.a.yang, c.b.yang, c.f.yang, c.sources.yang
    if a is None or b is None or f is None or sources is None:
        return nan
    return yang(a, b, sources, yang_similarity(a, f), yang_similarity(b, f))


def _fmi(feature: Feature) -> Callable[[Comparison], float]:
    def fmi(c: Comparison) -> float:
        if min(c.f.grey.shape) < 3:
            return nan
        return feature_mutual_information(*c.sources.features(feature), feature_map(c.f.plane, feature))

    return fmi


def _lpips(c: Comparison) -> float:
    if c.sources.lpips_weights is None:
        raise ValueError("LPIPS needs the weights of a network")
    return lpips_distance(c.a.plane, c.b.plane, c.f.plane, c.sources.lpips_weights)


_COMPUTED: dict[str, Callable[[Comparison], float]] = {
    "EN": lambda c: entropy(c.f.grey),
    "SD": _sd,
    "SF": _sf,
    "AG": _ag,
    "EI": lambda c: edge_intensity(c.f.plane),
    "MI": _mi,
    "NMI": lambda c: normalised_mutual_information(c.a.grey, c.b.grey, c.f.grey),
    "CE": lambda c: cross_entropy(c.a.grey, c.b.grey, c.f.grey),
    "SCD": lambda c: sum_of_correlations_of_differences(c.moments),
    "CC": lambda c: correlation_coefficient(c.moments),
    "PSNR": _psnr,
    "SSIM": _ssim,
    "MS-SSIM": _ms_ssim,
    "VIF": lambda c: vif(c.channels[0]) + vif(c.channels[1]),
    "VIFF": lambda c: viff(*c.channels),
    "Qabf": lambda c: edge_transfer(c.a.qabf, c.b.qabf, c.f.qabf),
    "Nabf": _nabf,
    "Qcb": lambda c: chen_blum(c.a.contrast, c.b.contrast, c.f.contrast),
    "Qcv": lambda c: chen_varshney(c.a.seen, c.b.seen, c.f.seen, c.a.qcv_weights, c.b.qcv_weights),
    "Qs": lambda c: nan if c.similarity is None else c.similarity.mean(),
    "Qw": lambda c: nan if c.similarity is None else c.similarity.by_salience(),
    "Qe": _qe,
    "Qy": _qy,
    "NCIE": lambda c: correlation_information_entropy(c.a.grey, c.b.grey, c.f.grey),
    **{f"FMI-{feature}": _fmi(feature) for feature in Feature},
    "LPIPS": _lpips,
}


def _check(first: Grey, second: Grey) -> None:
    if first.dtype != np.uint8 or second.dtype != np.uint8 or first.ndim != 2 or first.shape != second.shape:
        raise ValueError(
            f"{first.dtype} {first.shape} and {second.dtype} {second.shape}, want two uint8 [H,W] of one size"
        )
