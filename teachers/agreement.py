"""How a teacher's picture agrees with the pair that it is said to show: brightness, structure and detail.

Published teachers stretch contrast, crop, and are copied about in folders, so neither their brightness nor their
geometry is trusted. Brightness is matched: gain and offset that bring the picture closest to the brighter source, by
least squares. Geometry and identity are judged by detail: what is left of a picture after its Gaussian mean is
subtracted. In a fused picture it is made of the details of both sources; in a picture of another scene, of this scene
some pixels off, or of another size, it is not. SSIM alone cannot tell these apart, because flat regions look alike in
any two pictures: it reaches 0.6 for one in twelve pictures of other scenes, and is as low as that for true ones.

The limits were set on 566 fused pictures of a published network (SeAFusion) on ten public sets: detail 0.82 to 0.98,
SSIM with the nearer source after matching at least 0.62, gain 0.57 to 1.04. Average and maximum of the sources have
detail of at least 0.97, and gains from 0.29 to 2.30. Of 1551 pictures of other scenes none has detail above 0.31, and
nine of ten have gains under a third; true ones shifted by four pixels or resized by 1 % have less than 0.4 in 98 of 100
cases. What no limit can tell is another moment of a camera that stands still.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.float32]
"""One channel, ``[h, w]`` float32 in [0, 1]."""

DETAIL_FLOOR = 0.4
"""A picture below is not of this pair, or of a network that was hardly trained."""
SSIM_FLOOR = 0.3
"""A picture whose SSIM with both sources is below is no fusion of them."""
GAIN_LIMITS = (1 / 3, 3.0)
"""A picture that needs less has little to do with the sources; one that needs more shows its 8-bit steps."""
GREY_LEVEL = 1 / 255
"""Sources with less detail have none: it is what rounding to 8 bit leaves. Real ones have 1.8 grey levels or more."""
SAME_SHADE = 1e-3
"""Standard deviation (of 1) under which a picture counts as constant."""

_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2


@dataclass(frozen=True)
class Agreement:
    """What was measured on one teacher picture and its pair."""

    gain: float
    """Of the least-squares match ``gain · y + offset`` to max(ir, vis luminance)."""
    offset: float
    residual: float
    """Root mean square of what the match leaves, of 1."""
    ssim_ir: float
    """SSIM of the matched picture with the infrared source (Wang et al. 2004), −1 to 1."""
    ssim_vis: float
    """SSIM of the matched picture with the visible luminance."""
    detail: float
    """Multiple correlation of the picture's detail with that of both sources and of their maximum, 0 to 1."""

    @property
    def ssim(self) -> float:
        """With the nearer source."""
        return max(self.ssim_ir, self.ssim_vis)

    def refusal(self) -> str | None:
        """Why the picture is no fusion of this pair; None where it may be one."""
        if self.detail < DETAIL_FLOOR:
            why = "of another pair, shifted, resized, or without detail"
            return f"its detail correlates by {self.detail:.3f} with the sources' (at least {DETAIL_FLOOR}): {why}"
        if self.ssim < SSIM_FLOOR:
            return (
                f"SSIM is {self.ssim_ir:.2f} with infrared and {self.ssim_vis:.2f} with visible (at least {SSIM_FLOOR})"
            )
        return None

    def brightness_refusal(self) -> str | None:
        """Why its brightness cannot be matched; None where it can."""
        low, high = GAIN_LIMITS
        if low <= self.gain <= high:
            return None
        return f"brightness would be multiplied by {self.gain:.2f} to match (allowed: {low:.2f} to {high:.0f})"

    def matched(self, y: Plane) -> Plane:
        """``gain · y + offset`` within [0, 1]."""
        return np.asarray(np.clip(np.float32(self.gain) * y + np.float32(self.offset), 0, 1), np.float32)


def measure(y: Plane, ir: Plane, vis_y: Plane) -> Agreement:
    """Compare a teacher's luminance with its sources, all ``[h, w]`` in [0, 1] of one size, 4 pixels or more a side.

    The picture must not be constant. Pictures under 11 pixels a side get a smaller window.
    """
    brighter = np.maximum(ir, vis_y)
    gain, offset = match_brightness(y, brighter)
    matched = np.float32(gain) * y + np.float32(offset)
    return Agreement(
        gain=gain,
        offset=offset,
        residual=float(np.sqrt(np.mean((matched - brighter) ** 2))),
        ssim_ir=ssim(matched, ir),
        ssim_vis=ssim(matched, vis_y),
        detail=detail_correlation(y, ir, vis_y),
    )


def match_brightness(y: Plane, target: Plane) -> tuple[float, float]:
    """Gain and offset that minimise the mean of (gain · y + offset − target)²; (0, mean) for a constant ``y``."""
    mean, target_mean = float(y.mean(dtype=np.float64)), float(target.mean(dtype=np.float64))
    centred = y.astype(np.float64).ravel() - mean
    variance = float(centred @ centred)
    gain = float(centred @ (target.ravel() - target_mean)) / variance if variance else 0.0
    return gain, target_mean - gain * mean


def detail_correlation(y: Plane, ir: Plane, vis_y: Plane) -> float:
    """Multiple correlation R of the detail of ``y`` with the details of ir, vis and max(ir, vis).

    R² is the share of the detail's energy that the best linear combination of the three explains; 0 where ``y`` has no
    detail, and 1 where the sources have less than a grey level of it, which proves nothing.
    """
    wanted = _detail(y)
    given = np.stack([_detail(ir), _detail(vis_y), _detail(np.maximum(ir, vis_y))])
    if float(given.std(axis=1).max()) < GREY_LEVEL:
        return 1.0
    energy = float(wanted @ wanted)
    if energy == 0:
        return 0.0
    shared = given @ wanted
    weights = np.linalg.lstsq(given @ given.T, shared, rcond=None)[0]
    return float(np.sqrt(np.clip(weights @ shared / energy, 0, 1)))


def ssim(first: Plane, second: Plane) -> float:
    """SSIM (Wang et al. 2004): Gaussian window of 11×11 and sigma 1.5, K = 0.01 and 0.03, range 1, valid part."""
    means = _mean(first), _mean(second)
    variances = _mean(first * first) - means[0] ** 2, _mean(second * second) - means[1] ** 2
    covariance = _mean(first * second) - means[0] * means[1]
    similar = (2 * means[0] * means[1] + _C1) * (2 * covariance + _C2)
    norm = (means[0] ** 2 + means[1] ** 2 + _C1) * (variances[0] + variances[1] + _C2)
    return float((similar / norm).mean(dtype=np.float64))


def _detail(plane: Plane) -> Plane:
    """What differs from the Gaussian mean, flat, where the window lies inside the picture."""
    edge = _window(plane) // 2
    return (plane[edge:-edge, edge:-edge] - _mean(plane)).ravel()


def _mean(plane: Plane) -> Plane:
    """Gaussian mean, only where the window lies inside the picture."""
    window = _window(plane)
    kernel = cv2.getGaussianKernel(window, _SIGMA, cv2.CV_32F)
    edge = window // 2
    return np.asarray(cv2.sepFilter2D(plane, cv2.CV_32F, kernel, kernel), np.float32)[edge:-edge, edge:-edge]


def _window(plane: Plane) -> int:
    """Side of the window: 11, or the largest odd number that fits."""
    shortest = min(int(plane.shape[0]), int(plane.shape[1]), _WINDOW)
    return shortest - 1 + shortest % 2
