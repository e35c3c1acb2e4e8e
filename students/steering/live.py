"""A compensation that follows what a task network sees in this very picture, as a file for a device can hold it.

It computes what `Compensation` does in evaluation mode, for one picture, without what runtimes refuse or do slowly:
kernels that are only known while it runs are no convolution there, so that the map is first taken apart into its 25
neighbours (those that any configuration looks at) by fixed kernels, and the kernels become one matrix.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from duskfuse.students.steering.base_vectors import CONFIGURATIONS, VECTORS, BaseVectorBank
from duskfuse.students.steering.compensation import SLOPE, Compensation
from duskfuse.students.steering.description import WIDTH, Descriptor
from duskfuse.students.steering.dynamic_convolution import GRID, in_grid


class LiveCompensation(nn.Module):
    """One compensation for one picture at a time.

    Args:
        compensation: the trained module.
        bank: base vectors.
    """

    earlier: Tensor
    places: Tensor
    bank: Tensor
    gain: Tensor
    shift: Tensor

    @torch.no_grad()
    def __init__(self, compensation: Compensation, bank: BaseVectorBank) -> None:
        super().__init__()
        self.trained = _without_layer_norm(copy.deepcopy(compensation).eval())
        branches = compensation.branches
        self.register_buffer("bank", bank.vectors.detach().clone())
        self.register_buffer("earlier", torch.ones(branches, branches).tril(-1))
        looked_at, places = _neighbours()
        self.register_buffer("places", places)
        self.apart = nn.Conv2d(WIDTH, WIDTH * len(looked_at), GRID, padding=GRID // 2, groups=WIDTH, bias=False)
        self.apart.weight.copy_(looked_at[:, None].repeat(WIDTH, 1, 1, 1))
        norm = self.trained.norm
        assert norm.running_mean is not None
        assert norm.running_var is not None
        gain = norm.weight / (norm.running_var + norm.eps).sqrt()
        self.register_buffer("gain", gain.repeat(branches)[:, None])
        self.register_buffer("shift", (norm.bias - norm.running_mean * gain).repeat(branches)[:, None])

    def forward(self, maps: Tensor, features: Tensor) -> Tensor:
        """Compensate ``[1, channels, H, W]`` after a task network's features ``[1, C, h, w]``."""
        trained = self.trained
        entered = trained.enter(maps)
        kernels = self.kernels(trained.describe(entered, features)).to(maps.dtype)
        branches = (self.gain * kernels) @ self.apart(entered).flatten(2) + self.shift
        mean = torch.unflatten(F.leaky_relu(branches, SLOPE), 1, (trained.branches, WIDTH)).mean(dim=1)
        compensated: Tensor = maps + trained.leave(mean.view_as(entered))
        return compensated

    def kernels(self, descriptor: Descriptor) -> Tensor:
        """Kernels ``[M · 8, 8 · 25]`` that a descriptor of one picture asks for: rows are outputs of branches."""
        trained = self.trained
        choice = trained.scores(descriptor)[0].argmax(dim=-1)
        chosen = (choice[:, None] == torch.arange(len(CONFIGURATIONS), device=choice.device)).to(self.places.dtype)
        vectors = self.vectors(trained.ask(descriptor.query), choice, chosen)
        made = {
            int(side): network(vectors).unflatten(-1, (WIDTH * WIDTH, -1)) for side, network in trained.predict.items()
        }
        placed = [
            chosen[:, number, None, None]
            * (made[configuration.kernel] @ self.places[number, : configuration.kernel**2])
            for number, configuration in enumerate(CONFIGURATIONS)
        ]
        return torch.stack(placed).sum(dim=0).reshape(trained.branches * WIDTH, -1)

    def vectors(self, query: Tensor, choice: Tensor, chosen: Tensor) -> Tensor:
        """Base vectors ``[M, 256]``: of its configuration each branch gets the nearest that no earlier one has."""
        known = F.normalize(self.bank.float(), dim=-1)
        cosines = (known @ F.normalize(query.float(), dim=-1)[0]).view(len(CONFIGURATIONS), VECTORS)
        nearest = cosines.topk(self.trained.branches, dim=-1).indices.flatten()
        rank = (chosen * (self.earlier @ chosen)).sum(dim=-1).to(choice.dtype)
        number = nearest.index_select(0, choice * self.trained.branches + rank)
        return self.bank.flatten(0, 1).index_select(0, choice * VECTORS + number)


class _PlainLayerNorm(nn.Module):
    """Layer normalisation in elementary operations: TensorRT 8.5 has no other."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, rows: Tensor) -> Tensor:
        """Normalise ``[..., features]``."""
        centred = rows - rows.mean(dim=-1, keepdim=True)
        deviation = (centred.square().mean(dim=-1, keepdim=True) + self.eps).sqrt()
        return centred / deviation * self.weight + self.bias


def _without_layer_norm(compensation: Compensation) -> Compensation:
    for perceptron in [module for module in compensation.modules() if isinstance(module, nn.Sequential)]:
        for number, layer in enumerate(perceptron):
            if isinstance(layer, nn.LayerNorm):
                perceptron[number] = _PlainLayerNorm(layer)
    return compensation


def _neighbours() -> tuple[Tensor, Tensor]:
    """Kernels ``[25, 7, 7]`` that each pick one neighbour, and where the k² taps of a configuration are among them.

    The second is ``[4, 9, 25]``, of which a configuration uses the first k² rows.
    """
    taps = [in_grid(torch.eye(c.kernel**2).view(-1, c.kernel, c.kernel), c).flatten(1) for c in CONFIGURATIONS]
    used = torch.cat(taps).sum(dim=0).nonzero()[:, 0]
    looked_at = torch.eye(GRID * GRID)[used].view(-1, GRID, GRID)
    places = torch.stack([F.pad(rows[:, used], (0, 0, 0, 9 - len(rows))) for rows in taps])
    return looked_at, places
