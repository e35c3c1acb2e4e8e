"""A fused picture by rule, for learning to fuse where no teacher's pictures are cached.

Two scales, as in the guided-filter fusion of Li, Kang and Hu (IEEE TIP 2013): the brighter source where it is smooth,
and of the detail around it whichever source has more.
"""

from __future__ import annotations

import torch
from kornia.filters import gaussian_blur2d
from torch import Tensor

SIGMA = 3.0
"""Pixels; what a Gaussian of this width removes is detail.

On 25 held-out pairs this gives Qabf 0.652 (the brighter source 0.601). 8 gives 0.664, and dark rims around hot people.
"""
_KERNEL = 19
_ACTIVITY = 7  # pixels a side over which detail is compared


def pseudo_label(vis_y: Tensor, ir: Tensor) -> Tensor:
    """Fuse visible luminance and infrared, both ``[B, 1, H, W]`` in [0, 1]; returns the same, without gradient."""
    with torch.no_grad():
        smooth_vis, smooth_ir = _blur(vis_y, _KERNEL, SIGMA), _blur(ir, _KERNEL, SIGMA)
        detail_vis, detail_ir = vis_y - smooth_vis, ir - smooth_ir
        busier = _activity(detail_vis) >= _activity(detail_ir)
        detail = torch.where(busier, detail_vis, detail_ir)
        return (torch.maximum(smooth_vis, smooth_ir) + detail).clamp(0, 1)


def _activity(detail: Tensor) -> Tensor:
    return _blur(detail.abs(), _ACTIVITY, _ACTIVITY / 4)


def _blur(picture: Tensor, size: int, sigma: float) -> Tensor:
    blurred: Tensor = gaussian_blur2d(picture, (size, size), (sigma, sigma), border_type="replicate")
    return blurred
