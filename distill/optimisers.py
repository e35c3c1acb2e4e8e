"""Optimisers of the owners, and the running averages of their weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from duskfuse.distill.recipe import OptimiserConfig, OptimiserKind


def build_optimiser(config: OptimiserConfig, network: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of one network; weight decay leaves biases and normalisation layers alone.

    Those are the parameters with one dimension: pulling them to zero changes what a layer computes and regularises
    nothing. ``adam`` adds the decay to the gradient (L2), ``adamw`` shrinks the weights beside the update (Loshchilov
    and Hutter, ICLR 2019, algorithm 2).
    """
    parameters = list(network.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return optimiser_of(config, groups)


def optimiser_of(config: OptimiserConfig, groups: Sequence[Mapping[str, Any]]) -> torch.optim.Optimizer:
    """The optimiser of groups, each with its ``weight_decay`` and maybe a ``share`` of the rate, see `set_rate`."""
    kind = torch.optim.AdamW if config.kind is OptimiserKind.ADAMW else torch.optim.Adam
    return kind([dict(group) for group in groups if group["params"]], lr=config.lr)


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Let every group learn at ``rate``, or at its share of it."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group.get("share", 1.0)


def build_average(network: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of a network's weights and of its buffers: w̄ ← decay·w̄ + (1 − decay)·w.

    It starts at the weights after the first update. Counters (integer buffers) are copied.
    """
    lerp = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]

    def average(kept: Sequence[Tensor], new: Sequence[Tensor], count: Tensor | int) -> None:
        if torch.is_floating_point(kept[0]):
            lerp(kept, new, count)
        else:
            torch._foreach_copy_(list(kept), list(new))

    averaged = AveragedModel(network, multi_avg_fn=average, use_buffers=True)
    return averaged.requires_grad_(False).eval()
