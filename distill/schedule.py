"""Learning rates: a cosine over exactly the steps that one optimiser makes."""

from __future__ import annotations

import math

from duskfuse.distill.recipe import OptimiserConfig


def learning_rate(config: OptimiserConfig, step: int, total: int) -> float:
    """Rate of step ``step`` (from 0) of ``total``: linear warm-up, then a cosine whose last step has ``final_lr``.

    A warm-up that is longer than the run is cut short by that last step; a run of one step has no last rate, only its
    first.

    The published code gives the schedule the length of the whole loader although each network steps on half of the
    batches, so its rates never come down; here ``total`` counts the owner's own steps.
    """
    if step >= total - 1 > 0:
        return config.final_lr
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    progress = (step - config.warmup) / max(total - 1 - config.warmup, 1)
    return config.final_lr + (config.lr - config.final_lr) * (1 + math.cos(math.pi * progress)) / 2
