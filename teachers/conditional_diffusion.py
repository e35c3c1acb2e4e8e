"""The conditional diffusion teacher: a fused picture drawn out of noise in a few steps, both sources in sight.

Sampling is DDIM (Song et al., ICLR 2021, eq. 12) with the few steps of Mask-DiFuser: times 800, 600, 400, 200 and 0 of
1000, x̂_0 clipped to [−1, 1] at each, seed 3407. That program adds new noise at every step (η = 1); here η = 0 is the
default, and the published stretch of contrast, which goes over whatever pictures share a batch, is left out. Noise is
drawn once for one picture and is the same for every picture of its size, so no picture depends on its neighbours.

Where one teacher's pictures are the target, the sources alone decide what is drawn: after 2,500 updates of the small
size 2, 5 and 10 steps, with and without new noise, come equally near to it (36.0 dB on eight pairs of the training).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from duskfuse.data.colour import luminance
from duskfuse.data.errors import InputError
from duskfuse.data.images import file_sha256
from duskfuse.data.priors.cache import JsonValue
from duskfuse.teachers.denoiser import ARCHITECTURE as ARCHITECTURE
from duskfuse.teachers.denoiser import TRAINED_STEPS, load_denoiser, signal_levels
from duskfuse.teachers.teacher import TeacherJob, TeacherPicture

STEPS = 5
SEED = 3407
VERSION = 1
"""Of the pictures: raised when the same settings give other ones."""

CleanPredictor = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""See :meth:`duskfuse.teachers.denoiser.ConditionalDenoiser.forward`."""


@dataclass(frozen=True)
class SamplingStep:
    """One step of the sampler, from more to less noise."""

    time: int
    """Of the 1000 steps of the training."""
    signal: float
    """ᾱ before the step."""
    next_signal: float
    """ᾱ after it; 1 after the last."""

    def new_noise(self, eta: float) -> float:
        """σ: the standard deviation of the noise that the step adds."""
        ratio = (1 - self.next_signal) / (1 - self.signal)
        return eta * math.sqrt(ratio * (1 - self.signal / self.next_signal))


class ConditionalDiffusionTeacher:
    """Fuses whole pictures by sampling, in half precision on a GPU where there is one, else in single on the CPU.

    Args:
        weights: a checkpoint whose card says ``conditional-diffusion``, from the recipe ``diffusion_teacher``.
        steps: of the sampler.
        seed: of the noise.
        eta: 0 adds no new noise while sampling, 1 as much as Mask-DiFuser.

    Raises:
        InputError: an unusable checkpoint; diffusers is not installed; impossible steps or eta.
    """

    name = ARCHITECTURE

    def __init__(self, weights: Path, *, steps: int = STEPS, seed: int = SEED, eta: float = 0.0) -> None:
        sampling_steps(steps)  # refuses impossible numbers before the network is read
        if not 0 <= eta <= 1:
            raise InputError(f"eta {eta}", rule="new noise goes from 0, none, to 1, as published", remedy="use 0")
        self.steps, self.seed, self.eta = steps, seed, eta
        network, _ = load_denoiser(weights)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._network = network.to(device).to(memory_format=torch.channels_last).requires_grad_(False)
        self._device = device
        self._sha256 = file_sha256(weights)

    @property
    def settings(self) -> dict[str, JsonValue]:
        """What the pictures depend on."""
        return {
            "version": VERSION,
            "steps": self.steps,
            "seed": self.seed,
            "eta": self.eta,
            "precision": "float16" if self._device.type == "cuda" else "float32",
            "weights_sha256": self._sha256,
        }

    def fuse(self, job: TeacherJob) -> TeacherPicture:
        """Fuse one pair.

        Raises:
            InputError: an unusable pair; a picture that the GPU's memory does not hold; NaN or infinite values in the
                result.
        """
        pair = job.read()
        height, width = pair.size
        sources = (picture[None].to(self._device) for picture in (luminance(pair.vis), pair.ir))
        try:
            with torch.autocast(self._device.type, torch.float16, enabled=self._device.type == "cuda"):
                y = sample_fused(self._network, *sources, steps=self.steps, seed=self.seed, eta=self.eta)
        except torch.OutOfMemoryError:
            raise InputError(
                f"{pair.name}: the GPU's memory does not hold a picture of {width}×{height}",
                rule="pictures are fused whole",
                remedy="free the GPU, take a larger one, or hide it (CUDA_VISIBLE_DEVICES=) to compute on the CPU",
            ) from None
        if not y.isfinite().all():
            raise InputError(
                f"{pair.name}: the fused picture has NaN or infinite values",
                rule="a teacher's pictures must be finite",
                remedy="try another pair; where all fail, train the denoiser again",
            )
        return TeacherPicture(np.asarray(y[0, 0].cpu().numpy(), np.float32), (0, 0, height, width))


@torch.inference_mode()
def sample_fused(
    network: CleanPredictor,
    vis_y: Tensor,
    ir: Tensor,
    *,
    steps: int = STEPS,
    seed: int = SEED,
    eta: float = 0.0,
) -> Tensor:
    """Sample fused pictures.

    Args:
        network: predicts the clean picture.
        vis_y: visible luminance, ``[B, 1, H, W]`` in [0, 1].
        ir: infrared, likewise.
        steps: of the sampler.
        seed: of the noise, which is the same for every picture of the batch.
        eta: η, from 0 to 1.

    Returns:
        Fused luminance ``[B, 1, H, W]`` in [0, 1].
    """
    generator = torch.Generator().manual_seed(seed)

    def noise() -> Tensor:  # drawn on the CPU: the same on every device
        return torch.randn(1, 1, *ir.shape[-2:], generator=generator).to(ir)

    x = noise().expand_as(ir)
    for step in sampling_steps(steps):
        clean = network(x, vis_y, ir, torch.full((len(ir),), step.time, device=ir.device)).clamp(-1, 1)
        remaining = (x - step.signal**0.5 * clean) / (1 - step.signal) ** 0.5
        added = step.new_noise(eta)
        x = step.next_signal**0.5 * clean + max(1 - step.next_signal - added**2, 0) ** 0.5 * remaining
        if added:
            x = x + added * noise()
    return (x + 1) / 2


def sampling_steps(steps: int) -> list[SamplingStep]:
    """Times (steps − 1)·⌊T / steps⌋ down to 0 in equal strides: 800, 600, 400, 200 and 0 for five steps.

    Raises:
        InputError: fewer than 2 steps or more than 1000.
    """
    if not 2 <= steps <= TRAINED_STEPS:
        raise InputError(
            f"{steps} steps", rule=f"the sampler takes 2 to {TRAINED_STEPS} steps", remedy=f"the default is {STEPS}"
        )
    times = [index * (TRAINED_STEPS // steps) for index in range(steps)]
    ascending = [1.0, *signal_levels()[times].tolist()]
    pairs = zip(times, ascending[1:], ascending[:-1], strict=True)
    return [SamplingStep(*step) for step in pairs][::-1]
