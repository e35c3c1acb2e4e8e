"""Metrics of information of 8-bit pictures, in bits, from exact histograms."""

from __future__ import annotations

from math import nan

import numpy as np
from numpy.typing import NDArray

LEVELS = 256
_BITS = 8


def entropy(picture: NDArray[np.uint8]) -> float:
    """Shannon entropy of the grey levels of ``[H, W]`` uint8, in bits; 0 to 8.

    EN = −Σ p log₂ p over the 256-bin histogram. An empty bin adds nothing, no small constant is added.
    """
    return _entropy_of_counts(np.bincount(picture.ravel(), minlength=LEVELS))


def mutual_information(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> float:
    """Mutual information of two ``[H, W]`` uint8 pictures from their 256×256 joint histogram, in bits.

    I(X;Y) = H(X) + H(Y) − H(X,Y).
    """
    pairs = first.ravel().astype(np.intp) * LEVELS + second.ravel()
    joint = np.bincount(pairs, minlength=LEVELS * LEVELS).reshape(LEVELS, LEVELS)
    marginals = _entropy_of_counts(joint.sum(axis=1)) + _entropy_of_counts(joint.sum(axis=0))
    return marginals - _entropy_of_counts(joint)


def _entropy_of_counts(counts: NDArray[np.intp]) -> float:
    share = counts[counts > 0] / counts.sum()
    return float(max(0.0, -(share * np.log2(share)).sum()))


def normalised_mutual_information(a: NDArray[np.uint8], b: NDArray[np.uint8], f: NDArray[np.uint8]) -> float:
    """NMI = 2 [I(A;F) / (H(A) + H(F)) + I(B;F) / (H(B) + H(F))] (Hossny 2008), 0 to 2; nan where a sum is 0."""
    with_a, with_b = entropy(a) + entropy(f), entropy(b) + entropy(f)
    if not (with_a and with_b):
        return nan
    return 2 * (mutual_information(a, f) / with_a + mutual_information(b, f) / with_b)


def cross_entropy(a: NDArray[np.uint8], b: NDArray[np.uint8], f: NDArray[np.uint8]) -> float:
    """CE: mean over the sources of Σ p_source log₂(p_source / p_fused), in bits, over levels that both have."""
    fused = _shares(f)
    return (_divergence(_shares(a), fused) + _divergence(_shares(b), fused)) / 2


def correlation_information_entropy(a: NDArray[np.uint8], b: NDArray[np.uint8], f: NDArray[np.uint8]) -> float:
    """NCIE: 1 − entropy, to the base 256, of the eigenvalues of the nonlinear correlation matrix of A, B and F.

    The nonlinear correlation of two pictures is their mutual information in units of 8 bits (Wang 2005).
    """
    relations = np.eye(3)
    for row, column, first, second in ((0, 1, a, b), (0, 2, a, f), (1, 2, b, f)):
        relations[row, column] = relations[column, row] = mutual_information(first, second) / _BITS
    share = np.linalg.eigvalsh(relations) / 3
    share = share[share > 0]
    return float(1 + (share * np.log2(share)).sum() / _BITS)


def mutual_information_of_merged_levels(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> float:
    """Mutual information whose joint histogram counts 254 and 255 as one level, and whose marginals do not.

    MATLAB's ``uint8(level) + 1`` saturates; a toolbox indexes its joint histogram with it.
    """
    first_merged, second_merged = (np.minimum(picture, np.uint8(LEVELS - 2)) for picture in (first, second))
    lost = entropy(first) - entropy(first_merged) + entropy(second) - entropy(second_merged)
    return mutual_information(first_merged, second_merged) + lost


def _shares(picture: NDArray[np.uint8]) -> NDArray[np.float64]:
    return np.bincount(picture.ravel(), minlength=LEVELS) / picture.size


def _divergence(source: NDArray[np.float64], fused: NDArray[np.float64]) -> float:
    both = (source > 0) & (fused > 0)
    return float((source[both] * np.log2(source[both] / fused[both])).sum())
