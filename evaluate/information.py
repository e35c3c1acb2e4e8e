"""Entropy and mutual information of 8-bit pictures, in bits, from exact histograms."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LEVELS = 256


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
