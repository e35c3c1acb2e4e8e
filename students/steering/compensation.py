"""A2SI, the requirement-driven semantic compensation of one feature map (CLDyN §3, arXiv 2604.08924).

A descriptor of map and task chooses, for each of four branches, a kernel size and dilation, and base vectors; small
networks turn the vectors into kernels; the branches' maps are averaged and added to what was there through a 1×1
convolution that starts at 0, so that an untrained compensation changes nothing.

In training the configurations are drawn (Gumbel noise from the generator that is given), in evaluation the best ones
are taken: the published code draws in both, and its output differs from run to run. Values are always those of the
chosen configurations, and the gradient also reaches what was not chosen (straight-through estimator).
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from duskfuse.students.steering.base_vectors import (
    CONFIGURATIONS,
    LENGTH,
    VECTORS,
    BaseVectorBank,
    Configuration,
    orthonormal_rows,
)
from duskfuse.students.steering.description import QUERY, SELECTION, WIDTH, Description, Descriptor, Resolution
from duskfuse.students.steering.dynamic_convolution import convolve_each, in_grid

BRANCHES = 4
TEMPERATURE = 0.5
"""Of the softmax over configurations."""
SLOPE = 0.2
"""Of leaky ReLUs."""


class Compensation(nn.Module):
    """Compensates maps of ``channels`` channels, in 8 channels of its own where they are others.

    Args:
        channels: of the map.
        branches: M, at most as many as a configuration has base vectors.
        resolution: at which map and task features are described.
    """

    prototypes: Tensor

    def __init__(self, channels: int = WIDTH, branches: int = BRANCHES, resolution: Resolution | None = None) -> None:
        super().__init__()
        if not 1 <= branches <= VECTORS:
            raise ValueError(f"{branches} branches; there are {VECTORS} vectors for them")
        self.branches = branches
        self.describe = Description(resolution)
        self.configure = _perceptron(SELECTION, 32, SELECTION * branches)
        self.ask = _perceptron(QUERY, 64, LENGTH)
        self.predict = nn.ModuleDict({str(k): _perceptron(LENGTH, 64, WIDTH * WIDTH * k * k) for k in (1, 3)})
        self.norm = nn.BatchNorm2d(WIDTH)
        self.enter = nn.Identity() if channels == WIDTH else nn.Conv2d(channels, WIDTH, 1)
        self.leave = nn.Conv2d(WIDTH, channels, 1)
        nn.init.zeros_(self.leave.weight)
        assert self.leave.bias is not None
        nn.init.zeros_(self.leave.bias)
        self.register_buffer("prototypes", orthonormal_rows(len(CONFIGURATIONS), SELECTION))

    def forward(
        self, maps: Tensor, need: Tensor | Descriptor, bank: BaseVectorBank, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Descriptor]:
        """The compensated map, and the descriptor that it was compensated after.

        Args:
            maps: ``[B, channels, H, W]``.
            need: the task network's features ``[B, C, h, w]``, or a ready descriptor of one sample or of B.
            bank: base vectors.
            generator: what configurations are drawn from, used in training mode only.
        """
        entered = self.enter(maps)
        descriptor = need if isinstance(need, Descriptor) else self.describe(entered, need)
        kernels = self.kernels(descriptor, bank, generator)
        branches = convolve_each(entered, kernels)
        activated = F.leaky_relu(self.norm(branches.flatten(0, 1)), SLOPE).view_as(branches)
        return maps + self.leave(activated.mean(dim=1)), descriptor

    def kernels(self, descriptor: Descriptor, bank: BaseVectorBank, generator: torch.Generator | None = None) -> Tensor:
        """Kernels ``[B, M, 8, 8, 7, 7]`` that a descriptor asks for."""
        scores = self.scores(descriptor)
        chosen = self._drawn(scores, generator)
        vectors = bank(self.ask(descriptor.query), _ranks(chosen))
        every = torch.stack([self._kernel(vectors[:, :, k], c) for k, c in enumerate(CONFIGURATIONS)], dim=2)
        hard = (every * F.one_hot(chosen, len(CONFIGURATIONS)).to(every.dtype)[..., None, None, None, None]).sum(dim=2)
        if not torch.is_grad_enabled():
            return hard
        soft = torch.einsum("bmk,bmkoihw->bmoihw", (scores / TEMPERATURE).softmax(dim=-1), every)
        return hard + (soft - soft.detach())

    def scores(self, descriptor: Descriptor) -> Tensor:
        """Cosines ``[B, M, 4]`` of what each branch wants with the prototypes of the configurations."""
        wanted = self.configure(descriptor.selection).unflatten(1, (SELECTION, self.branches)).float()
        return torch.einsum("bpm,kp->bmk", F.normalize(wanted, dim=1), self.prototypes.float())

    def choices(self, descriptor: Descriptor) -> list[list[Configuration]]:
        """The configurations that are taken in evaluation mode, per sample and branch."""
        return [[CONFIGURATIONS[k] for k in sample] for sample in self.scores(descriptor).argmax(dim=-1).tolist()]

    def _drawn(self, scores: Tensor, generator: torch.Generator | None) -> Tensor:
        """Indices ``[B, M]``."""
        if not self.training:
            return scores.argmax(dim=-1)
        uniform = torch.rand(scores.shape, generator=generator).clamp(1e-6, 1 - 1e-6).to(scores.device)
        return (scores / TEMPERATURE - (-uniform.log()).log()).argmax(dim=-1)

    def _kernel(self, vectors: Tensor, configuration: Configuration) -> Tensor:
        """``[B, M, 8, 8, 7, 7]`` of vectors ``[B, M, 256]``; all dilations share one network."""
        side = configuration.kernel
        made = self.predict[str(side)](vectors).unflatten(-1, (WIDTH, WIDTH, side, side))
        return in_grid(made, configuration)


def _ranks(chosen: Tensor) -> Tensor:
    """How many branches before branch m have taken configuration k, ``[B, M, K]`` of ``chosen [B, M]``.

    So branches that share a configuration get distinct vectors.
    """
    taken = F.one_hot(chosen, len(CONFIGURATIONS))
    return taken.cumsum(dim=1) - taken


def _perceptron(*widths: int) -> nn.Sequential:
    """Linear layers, normalised and rectified between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.LayerNorm(outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-2])
