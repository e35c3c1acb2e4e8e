"""The fusion step of DDFM: one expectation-maximisation update of a denoised luminance towards both sources.

Source: Zhao et al., "DDFM: Denoising Diffusion Model for Multi-Modality Image Fusion" (ICCV 2023, arXiv 2303.06840),
section 3.2. With infrared I, visible V and fused luminance f, the differences X = f − V and Y − X = I − f, where
Y = I − V, follow Laplace distributions of unknown scales τ_b and τ_a. A Laplace variable is a Gaussian one of hidden
variance; the expected inverse variances weigh how strongly each pixel is drawn to I and to V (E-step), and X is their
weighted least-squares solution with a total-variation penalty split off into H (M-step, one iteration).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

LAMBDA = 0.5
"""Weight λ of the total variation."""
RHO = 1e-3
"""Penalty ρ that couples the total variation to the picture."""

_SHRINKAGE = RHO / (2 * LAMBDA + RHO)
_OFFSET = 1e-6  # the published code adds it to X² and to Y − X
_SMALLEST = 1e-12  # of |Y − X + 1e-6|: where that is zero, the published code divides by zero


@dataclass(frozen=True)
class EmState:
    """What one step hands to the next; each picture of a batch has its own."""

    columns: Tensor
    """F1, shrunk horizontal differences of H, ``[B, 1, H, W]``."""
    rows: Tensor
    """F2, shrunk vertical differences of H, ``[B, 1, H, W]``."""
    tau_ir: Tensor
    """τ_a, scale of I − f, ``[B, 1, 1, 1]``."""
    tau_vis: Tensor
    """τ_b, scale of f − V, ``[B, 1, 1, 1]``."""

    @classmethod
    def before_first_step(cls, sources: Tensor) -> EmState:
        """The state for sources ``[B, 1, H, W]``: no differences, scales of one."""
        zeros, ones = torch.zeros_like(sources), sources.new_ones(len(sources), 1, 1, 1)
        return cls(columns=zeros, rows=zeros, tau_ir=ones, tau_vis=ones)


def em_step(f: Tensor, ir: Tensor, vis: Tensor, state: EmState, *, mirrored: bool = False) -> tuple[Tensor, EmState]:
    """Draw the luminance ``f`` to the sources; all ``[B, 1, H, W]`` in [−1, 1], float32 or float64.

    Returns the fused luminance, at every pixel between the two sources (but for the total variation, which moves it
    by less than 1e-3), and the next state.

    X is f − V, so that f is V + X. The published code returns I − X instead (``mirrored``): the same picture mirrored
    between the sources, so that what was denoised to look like I becomes V and the other way round.

    V + X draws every pixel on to the source that it is nearer to, and the scales do the same with the whole picture:
    step after step one source wins, mostly I, because D is at most 2C. I − X draws back and keeps both.
    """
    y, x = ir - vis, f - vis
    to_ir = (2 / state.tau_ir).sqrt() / (y - x + _OFFSET).abs().clamp(min=_SMALLEST)  # C
    to_vis = (2 / (state.tau_vis * (x**2 + _OFFSET))).sqrt()  # D
    to_vis = torch.minimum(to_vis, 2 * to_ir)
    tau_ir = (1 / to_ir + state.tau_ir / 2).mean(dim=(1, 2, 3), keepdim=True)
    tau_vis = (1 / to_vis + state.tau_vis / 2).mean(dim=(1, 2, 3), keepdim=True)

    smooth = _smooth(y - x, state.columns, state.rows)  # H
    columns, rows = (_SHRINKAGE * _differences(smooth, dim) for dim in (-1, -2))
    x = (2 * to_ir * y + RHO * (y - smooth)) / (2 * to_ir + 2 * to_vis + RHO)
    return (ir - x if mirrored else vis + x), EmState(columns, rows, tau_ir, tau_vis)


def _smooth(picture: Tensor, columns: Tensor, rows: Tensor) -> Tensor:
    """H: solve (1 + k1ᵀk1 + k2ᵀk2) H = picture + k1ᵀ F1 + k2ᵀ F2 for forward differences k on a torus, by FFT."""
    height, width = picture.shape[-2:]
    right = picture + (columns.roll(1, -1) - columns) + (rows.roll(1, -2) - rows)
    pi_rows = torch.arange(height, device=picture.device, dtype=picture.dtype) * (torch.pi / height)
    pi_columns = torch.arange(width // 2 + 1, device=picture.device, dtype=picture.dtype) * (torch.pi / width)
    gain = 1 + 4 * pi_rows.sin()[:, None] ** 2 + 4 * pi_columns.sin() ** 2  # |k|² of a forward difference is 4 sin²
    smooth: Tensor = torch.fft.irfft2(torch.fft.rfft2(right) / gain, s=(height, width))
    return smooth


def _differences(picture: Tensor, dim: int) -> Tensor:
    """Each pixel less the next one along a side; the last has zero after it.

    The sign is opposite to that of k in `_smooth`, as published; at ρ = 1e-3 either sign moves f by less than 1e-6.
    """
    shifted = picture.narrow(dim, 1, picture.shape[dim] - 1)
    return picture - F.pad(shifted, (0, 1) if dim == -1 else (0, 0, 0, 1))
