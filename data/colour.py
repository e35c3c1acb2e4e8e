"""BT.601 full-range colour, the one definition used everywhere, as differentiable torch functions.

Y = 0.299 R + 0.587 G + 0.114 B,  Cr = 0.713 (R − Y) + 0.5,  Cb = 0.564 (B − Y) + 0.5.

Published code inverts this with coefficients rounded to three digits (1.403, 0.714, 0.344, 1.773), which is off by up
to 3e-4. Here the inverse is the exact one of the forward equations (1/0.713, 1/0.564 and what follows for green), so
that a round trip and a luminance are right to float precision.
"""

from __future__ import annotations

import torch
from torch import Tensor

RED, GREEN, BLUE = 0.299, 0.587, 0.114
CR_SCALE, CB_SCALE = 0.713, 0.564
DELTA = 0.5


def luminance(rgb: Tensor) -> Tensor:
    """Luminance ``[..., 1, H, W]`` of RGB ``[..., 3, H, W]`` in [0, 1]."""
    red, green, blue = _channels(rgb)
    return RED * red + GREEN * green + BLUE * blue


def rgb_to_ycbcr(rgb: Tensor) -> Tensor:
    """RGB ``[..., 3, H, W]`` in [0, 1] to channels Y, Cb, Cr; neutral chroma is 0.5."""
    y = luminance(rgb)
    red, _, blue = _channels(rgb)
    return torch.cat([y, CB_SCALE * (blue - y) + DELTA, CR_SCALE * (red - y) + DELTA], dim=-3)


def ycbcr_to_rgb(ycbcr: Tensor) -> Tensor:
    """Exact inverse of :func:`rgb_to_ycbcr`, without clipping: colours out of the gamut stay out of [0, 1]."""
    y, cb, cr = _channels(ycbcr)
    red_minus_y, blue_minus_y = (cr - DELTA) / CR_SCALE, (cb - DELTA) / CB_SCALE
    green_minus_y = -(RED * red_minus_y + BLUE * blue_minus_y) / GREEN
    return y + torch.cat([red_minus_y, green_minus_y, blue_minus_y], dim=-3)


def recombine(y: Tensor, vis: Tensor) -> Tensor:
    """Colour a fused luminance with the visible chroma: RGB in [0, 1] whose luminance is exactly ``y``.

    Where the visible chroma does not fit beside the new luminance, R−Y, G−Y and B−Y are scaled together by the largest
    factor ≤ 1 that keeps all three channels in [0, 1]: hue and luminance stay, saturation gives way. Clipping channel
    by channel would change both. ``recombine(luminance(vis), vis)`` is ``vis``.

    Args:
        y: ``[..., 1, H, W]``; values out of [0, 1] are clipped.
        vis: visible RGB, ``[..., 3, H, W]`` in [0, 1].
    """
    y = y.clamp(0, 1)
    chroma = vis - luminance(vis)
    room = torch.where(chroma > 0, 1 - y, y)
    fits = room / chroma.abs().clamp(min=torch.finfo(chroma.dtype).eps)
    factor = fits.amin(dim=-3, keepdim=True).clamp(max=1)
    return (y + factor * chroma).clamp(0, 1)


def _channels(picture: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Take ``[..., 3, H, W]`` apart into three ``[..., 1, H, W]``."""
    first, second, third = picture.unsqueeze(-3).unbind(dim=-4)
    return first, second, third
