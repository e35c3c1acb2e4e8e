"""One number for how good a fused picture is, to choose among the pictures of several teachers."""

from __future__ import annotations

from math import isnan, nan

from duskfuse.evaluate.gradients import edge_transfer, qabf_edges
from duskfuse.evaluate.information import normalised_mutual_information
from duskfuse.evaluate.metrics import Grey
from duskfuse.evaluate.structure import ssim_map, ssim_moments


def quality_score(ir: Grey, vis: Grey, fused: Grey) -> float:
    """Mean of kept edges, shared information and structural similarity; higher is better, below 1.

    The three are Qabf (Xydeas and Petrović 2000), 0 to 0.975; half of NMI (Hossny et al. 2008), which is the mean over
    the sources S of 2 I(S;F) / (H(S) + H(F)), 0 to 1; and SSIM (Wang et al. 2004), mean over the sources, −1 to 1. One
    that is undefined for these sources (no edges, constant pictures, fewer than 11 pixels a side) is left out; where
    all are, the score is 0.

    Args:
        ir: infrared, ``[h, w]`` uint8.
        vis: visible luminance, likewise.
        fused: likewise.
    """
    kept = edge_transfer(*(qabf_edges(picture.astype(float)) for picture in (ir, vis, fused)))
    shared = normalised_mutual_information(ir, vis, fused) / 2
    similar = (_similarity(ir, fused) + _similarity(vis, fused)) / 2
    defined = [part for part in (kept, shared, similar) if not isnan(part)]
    return sum(defined) / len(defined) if defined else 0.0


def _similarity(source: Grey, fused: Grey) -> float:
    first, second = ssim_moments(source.astype(float)), ssim_moments(fused.astype(float))
    return nan if first is None or second is None else float(ssim_map(first, second).mean())
