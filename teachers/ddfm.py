"""The teacher DDFM: an unconditional diffusion model draws a picture that both sources correct at every step.

Source: Zhao et al., "DDFM: Denoising Diffusion Model for Multi-Modality Image Fusion" (ICCV 2023, arXiv 2303.06840).
The clean picture that the network sees in the noise gets the luminance of `duskfuse.teachers.ddfm_em.em_step`, and
the sampler (DDIM without new noise) goes on from there. Nothing is trained, and the network's weights are the user's.

The published program differs from the paper: (a) the fusion step mirrors the picture between the sources, (b)
infrared and visible are exchanged, (c) right and bottom are cropped to multiples of 32, (d) every result is stretched
from its darkest to its brightest pixel, (e) only luminance is kept, (f) luminance is denoised in studio range, 16 to
235 of 255, but fused with sources in full range. `DdfmForm` says which of these are corrected. Luminance alone is
kept in all forms, because the colours are the network's invention: the visible picture has the true ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate, repeat
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from duskfuse.data.colour import luminance
from duskfuse.data.errors import InputError
from duskfuse.data.geometry import pad_reflected
from duskfuse.data.priors.cache import JsonValue
from duskfuse.teachers.ddfm_em import EmState, em_step
from duskfuse.teachers.teacher import TeacherJob, TeacherPicture, ValueTransform
from duskfuse.teachers.unconditional_unet import COLOURS, checkpoint_sha256, load_unconditional_unet

STEPS = 100
SEED = 3407
TRAINED_STEPS = 1000
VERSION = 1
"""Of the pictures: raised when the same settings give other ones."""

_BETAS = (1e-4, 0.02)
_STUDIO_OFFSET, _STUDIO_GAIN = 16 / 255, 219 / 255
_SAME_SHADE = 1 / 255
_LIVE_MAPS = 10  # at full resolution, at the network's peak: counted over a forward pass without attention matrices

NoisePredictor = Callable[[Tensor, int], Tensor]
"""Noise in ``[B, 3, H, W]`` at a time of the 1000."""


@dataclass(frozen=True)
class DiffusionStep:
    """One step of the sampler, from more to less noise."""

    time: int
    """Of the 1000 steps that the network was trained with; 999 is noise."""
    signal: float
    """ᾱ before the step: the share of the picture's variance that is not noise."""
    next_signal: float
    """ᾱ after it; 1 after the last."""


@dataclass(frozen=True)
class DdfmCost:
    """What one fused picture costs."""

    passes: int
    """Forward passes of the network."""
    multiply_adds: int
    """Of all passes together."""
    memory_bytes: int
    """Estimate: weights, and the maps alive at the peak of a pass; the convolutions' workspace comes on top."""


class DdfmForm(StrEnum):
    """How much of the published program is repeated.

    On 25 real pairs of 160×120, with the best linear denoiser in place of the network, the SSIM with infrared and
    with visible was 0.83 and 0.36 for `CORRECTED`, 0.64 and 0.69 for `MIRRORED` and the same for the plain average.
    The published network was not at hand.
    """

    CORRECTED = "corrected"
    """As in the paper, F = X + V. Whole pictures at their own brightness; where the sources differ, one wins."""
    MIRRORED = "mirrored"
    """The published fusion step (a) and nothing else of the list: keeps both sources, much as their average does, as
    the published pictures do. The default: a student that learned from `CORRECTED` would ignore one camera."""
    PUBLISHED = "published"
    """The published program with all its slips, but for the noise, which it may have drawn on a GPU."""


class DdfmTeacher:
    """Fuses pairs by sampling, in half precision on a GPU where there is one, else in single on the CPU.

    The starting noise is drawn on the CPU from the same seed for every pair. Pictures are fused whole: a picture of
    640×480 needs about 2.5 GiB in half precision with the published network.

    Args:
        checkpoint: see :func:`duskfuse.teachers.unconditional_unet.load_unconditional_unet`.
        steps: of the sampler, spread over the 1000 of the training.
        seed: of the starting noise.
        form: how much of the published program is repeated.

    Raises:
        InputError: an unusable checkpoint, or steps that are not 2 to 1000.
    """

    name = "ddfm"

    def __init__(
        self,
        checkpoint: Path,
        *,
        steps: int = STEPS,
        seed: int = SEED,
        form: DdfmForm = DdfmForm.MIRRORED,
    ) -> None:
        self.steps, self.seed, self.form = steps, seed, form
        respaced(steps)  # refuses impossible numbers before the network is read
        network = load_unconditional_unet(checkpoint)
        self._network = network.to("cuda", torch.float16) if torch.cuda.is_available() else network
        self._sha256 = checkpoint_sha256(checkpoint)

    @property
    def settings(self) -> dict[str, JsonValue]:
        """What the pictures depend on."""
        return {
            "version": VERSION,
            "form": self.form.value,
            "steps": self.steps,
            "seed": self.seed,
            "precision": str(self._weight.dtype).removeprefix("torch."),
            "weights_sha256": self._sha256,
        }

    def fuse(self, job: TeacherJob) -> TeacherPicture:
        """Fuse one pair.

        Raises:
            InputError: an unusable pair; a picture that the GPU's memory does not hold; NaN or infinite values in the
                result; in the published form also a side shorter than 32, or a constant result.
        """
        pair = job.read()
        sources = 2 * torch.stack([pair.ir, luminance(pair.vis)]) - 1
        height, width = self._shown(pair.name, pair.size)
        published = self.form is DdfmForm.PUBLISHED
        if published:
            vis, ir = sources[..., :height, :width].unsqueeze(1)  # exchanged, as published
        else:
            ir, vis = pad_reflected(sources, self._padded(pair.size)).unsqueeze(1)
        try:
            rgb = sample_fused(
                self._network,
                *(source.to(self._weight.device) for source in (ir, vis)),
                steps=self.steps,
                seed=self.seed,
                form=self.form,
            )
        except torch.OutOfMemoryError:
            raise self._too_large(pair.name, pair.size) from None
        y = ((luminance(rgb)[0, 0, :height, :width] + 1) / 2).cpu()
        _check_finite(pair.name, y)
        y = _stretched(pair.name, y) if published else y.clamp(0, 1)
        transform = ValueTransform.STRETCHED if published else ValueTransform.IDENTITY
        return TeacherPicture(np.asarray(y.numpy(), np.float32), (0, 0, height, width), transform)

    def estimate(self, size: tuple[int, int]) -> DdfmCost:
        """What a picture of ``size`` (height, width) costs; nothing is computed."""
        padded = self._padded(size)
        weights = sum(tensor.numel() for tensor in self._network.parameters())
        maps = _LIVE_MAPS * self._network.width * padded[0] * padded[1]
        return DdfmCost(
            passes=self.steps,
            multiply_adds=self.steps * self._network.multiply_adds(padded),
            memory_bytes=(weights + maps) * self._weight.itemsize,
        )

    @property
    def _weight(self) -> Tensor:
        """Any weight: where and in what type the network computes."""
        return next(self._network.parameters())

    def _padded(self, size: tuple[int, int]) -> tuple[int, int]:
        height, width = (-(-side // self._network.size_step) * self._network.size_step for side in size)
        return height, width

    def _shown(self, name: str, size: tuple[int, int]) -> tuple[int, int]:
        """The size of the part of a picture that is fused."""
        if self.form is not DdfmForm.PUBLISHED:
            return size
        step = self._network.size_step
        height, width = (side // step * step for side in size)
        if not height or not width:
            raise InputError(
                f"{name}: {size[1]}×{size[0]} pixels",
                rule=f"the published form crops to multiples of {step}, of which nothing is left",
                remedy="leave the pair out, or use another form",
            )
        return height, width

    def _too_large(self, name: str, size: tuple[int, int]) -> InputError:
        return InputError(
            f"{name}: the GPU's memory does not hold a picture of {size[1]}×{size[0]}",
            rule=f"pictures are fused whole; this one takes about {self.estimate(size).memory_bytes / 2**30:.1f} GiB",
            remedy="free the GPU, take a larger one, or hide it (CUDA_VISIBLE_DEVICES=) to compute on the CPU",
        )


@torch.inference_mode()
def sample_fused(
    network: NoisePredictor,
    ir: Tensor,
    vis: Tensor,
    *,
    steps: int = STEPS,
    seed: int = SEED,
    form: DdfmForm = DdfmForm.CORRECTED,
) -> Tensor:
    """Sample pictures that explain both sources.

    Args:
        network: predicts the noise.
        ir: infrared, ``[B, 1, H, W]`` in [−1, 1], of a size that the network takes.
        vis: visible luminance, likewise.
        steps: of the sampler.
        seed: of the starting noise, which is the same for every picture of the batch.
        form: of the published differences, (a) and (f) are repeated here; the others are the caller's.

    Returns:
        RGB ``[B, 3, H, W]``; its luminance is the fused one, in [−1, 1] (published: beyond by a tenth).
    """
    noise = torch.randn(1, COLOURS, *ir.shape[-2:], generator=torch.Generator().manual_seed(seed))
    x = noise.to(ir).expand(len(ir), -1, -1, -1)
    state = EmState.before_first_step(ir)
    for step in respaced(steps):
        root, noise_root = step.signal**0.5, (1 - step.signal) ** 0.5
        clean = ((x - noise_root * network(x, step.time)) / root).clamp(-1, 1)
        clean, state = _with_fused_luminance(clean, ir, vis, state, form)
        remaining = (x - root * clean) / noise_root
        x = step.next_signal**0.5 * clean + (1 - step.next_signal) ** 0.5 * remaining
    return x


def respaced(steps: int) -> list[DiffusionStep]:
    """The steps of guided-diffusion's respacing: evenly spread from time 999 to time 0, both included.

    (The DDIM scheduler of diffusers spreads times like this too, but goes from each to the one 1000 / steps earlier.)

    Raises:
        InputError: fewer than 2 steps or more than 1000.
    """
    if not 2 <= steps <= TRAINED_STEPS:
        raise InputError(
            f"{steps} steps", rule=f"the sampler takes 2 to {TRAINED_STEPS} steps", remedy=f"the paper has {STEPS}"
        )
    signals = np.cumprod(1 - np.linspace(*_BETAS, TRAINED_STEPS))
    # summed, not multiplied: where a stride lands between two times, rounding errors decide as in the original
    stride = (TRAINED_STEPS - 1) / (steps - 1)
    times = [round(position) for position in accumulate(repeat(stride, steps - 1), initial=0.0)]
    ascending = [1.0, *(float(signals[time]) for time in times)]
    pairs = zip(times, ascending[1:], ascending[:-1], strict=True)
    return [DiffusionStep(*step) for step in pairs][::-1]


def _with_fused_luminance(
    clean: Tensor, ir: Tensor, vis: Tensor, state: EmState, form: DdfmForm
) -> tuple[Tensor, EmState]:
    """Replace Y and keep Cb and Cr, which is to add the change of Y to all three channels."""
    offset, gain = (_STUDIO_OFFSET, _STUDIO_GAIN) if form is DdfmForm.PUBLISHED else (0.0, 1.0)
    before = offset + gain * luminance(clean)
    after, state = em_step(before, ir, vis, state, mirrored=form is not DdfmForm.CORRECTED)
    return clean + (after - before) / gain, state


def _check_finite(name: str, y: Tensor) -> None:
    broken = int((~y.isfinite()).sum())
    if broken:
        raise InputError(
            f"{name}: {broken} of {y.numel()} values of the fused picture are NaN or infinite",
            rule="a teacher's pictures must be finite",
            remedy="try another pair: where all fail, the checkpoint is not one of a trained noise predictor",
        )


def _stretched(name: str, y: Tensor) -> Tensor:
    low, high = y.aminmax()
    if high - low < _SAME_SHADE:
        raise InputError(
            f"{name}: the fused picture is constant",
            rule="the published form stretches it from its darkest to its brightest pixel",
            remedy="look at the pair, and leave it out",
        )
    return (y - low) / (high - low)
