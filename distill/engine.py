"""The engine: first-order bi-level alternation (SAGE §7 A), one owner and one optimiser update at a time.

min over ω_s of L_s(S(ω_s); ω_m*) with ω_m* minimising L_m(M(ω_m); ω_s) is solved by alternating single steps,
ω_m ← ω_m − η_m ∇L_m(ω_m; sg(ω_s)) and ω_s ← ω_s − η_s ∇L_s(ω_s; sg(ω_m)). Which step comes when is the recipe's matter;
the engine freezes everything but the step's owner, computes its terms, guards against NaN and updates.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from duskfuse.data.errors import InputError, TrainingError
from duskfuse.distill.context import Batch, BatchContext
from duskfuse.distill.recipe import Owner, Precision, Recipe, StepConfig, TermConfig, TermName
from duskfuse.distill.schedule import learning_rate
from duskfuse.distill.terms import REFERENCE_TERMS, SOURCE_TERMS
from duskfuse.tasks.encoders import FeatureEncoder


@dataclass(frozen=True)
class StepResult:
    """What one update did; all values are plain floats."""

    batch: int
    phase: str
    step: str
    owner: Owner
    loss: float
    terms: dict[TermName, float]
    """Each term before its weight."""
    lr: float
    gradient_norm: float
    """Before clipping."""
    psnr_to_reference: float | None
    """PSNR in dB between the owner's picture and the one it is compared with, on this batch."""


class Engine:
    """Networks, their optimisers and one update per batch."""

    def __init__(
        self,
        recipe: Recipe,
        networks: dict[Owner, nn.Module],
        encoder: FeatureEncoder | None,
        device: torch.device,
    ) -> None:
        self.recipe, self.device = recipe, device
        # channels_last: convolutions on a CPU run several times faster in it, and no slower on a GPU.
        self.networks = {o: network.to(device).to(memory_format=torch.channels_last) for o, network in networks.items()}
        self.encoder = None if encoder is None else encoder.to(device)
        self.optimisers = {
            owner: torch.optim.Adam(self.networks[owner].parameters(), lr=recipe.optimisers[owner].lr)
            for owner in recipe.optimisers
            if owner in networks
        }
        self.steps_done = dict.fromkeys(self.optimisers, 0)
        self.steps_total = {owner: recipe.owner_steps(owner) for owner in self.optimisers}
        self._dtype = _autocast_dtype(recipe.precision, device)
        self._scaler = torch.amp.GradScaler(device.type, enabled=self._dtype is torch.float16)

    def step(self, number: int, batch: Batch) -> StepResult:
        """Update the owner of batch ``number`` once."""
        phase, name = self.recipe.step_at(number)
        config = self.recipe.steps[name]
        # Another network's step looks at the student as a reference: at its best, not at a bad camera's picture.
        batch = (batch if config.owner is Owner.STUDENT else batch.clean()).to(self.device)
        context = self.context(batch, config.owner)
        terms = self._terms(config, context, number)
        loss = self._weighted_sum(config, terms)
        lr, norm = self._update(config.owner, loss)
        return StepResult(
            batch=number,
            phase=phase,
            step=name,
            owner=config.owner,
            loss=float(loss.detach()),
            terms={term: float(value.detach()) for term, value in terms.items()},
            lr=lr,
            gradient_norm=norm,
            psnr_to_reference=_batch_psnr(config, context),
        )

    def context(self, batch: Batch, owner: Owner) -> BatchContext:
        """The batch with only ``owner`` live: it trains, everything else is frozen and in evaluation mode."""
        for other, network in self.networks.items():
            network.train(other is owner)
            network.requires_grad_(other is owner)
        return BatchContext(batch, self.networks, self.encoder, self._autocast)

    def _autocast(self) -> AbstractContextManager[object]:
        return nullcontext() if self._dtype is None else torch.autocast(self.device.type, dtype=self._dtype)

    def _terms(self, config: StepConfig, context: BatchContext, number: int) -> dict[TermName, Tensor]:
        values = {}
        for name in config.terms:
            live, reference = context.field(config.live), config.reference(name)
            if reference is None:
                value = SOURCE_TERMS[name](live, context)
            else:
                value = REFERENCE_TERMS[name](live, context.field(reference), context)
            if not torch.isfinite(value):
                raise TrainingError(
                    f"term {name} became {float(value.detach())} at batch {number} ({', '.join(context.batch.names)})",
                    rule="every term must stay finite",
                    remedy="lower the learning rate, or look at these pairs; --resume goes on from the last checkpoint",
                )
            values[name] = value
        return values

    def _weighted_sum(self, config: StepConfig, terms: dict[TermName, Tensor]) -> Tensor:
        done = self.steps_done[config.owner]
        weighted = [ramped_weight(config.terms[name], done) * value for name, value in terms.items()]
        return torch.stack(weighted).sum()

    def _update(self, owner: Owner, loss: Tensor) -> tuple[float, float]:
        optimiser, config = self.optimisers[owner], self.recipe.optimisers[owner]
        lr = learning_rate(config, self.steps_done[owner], self.steps_total[owner])
        for group in optimiser.param_groups:
            group["lr"] = lr
        optimiser.zero_grad(set_to_none=True)
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self._scaler.unscale_(optimiser)
        norm = nn.utils.clip_grad_norm_(self.networks[owner].parameters(), config.clip_norm)
        if not torch.isfinite(norm) and not self._scaler.is_enabled():
            raise TrainingError(
                f"the gradient of the {owner} became {float(norm)} at its step {self.steps_done[owner]}",
                rule="gradients must stay finite",
                remedy="lower the learning rate; --resume goes on from the last checkpoint",
            )
        self._scaler.step(optimiser)
        self._scaler.update()
        self.steps_done[owner] += 1
        return lr, float(norm)

    def state_dict(self) -> dict[str, Any]:
        """Everything an exact continuation needs, as tensors and plain data."""
        return {
            "networks": {owner.value: network.state_dict() for owner, network in self.networks.items()},
            "optimisers": {owner.value: optimiser.state_dict() for owner, optimiser in self.optimisers.items()},
            "steps_done": {owner.value: done for owner, done in self.steps_done.items()},
            "scaler": self._scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state_dict``."""
        for owner, network in self.networks.items():
            network.load_state_dict(state["networks"][owner.value])
        for owner, optimiser in self.optimisers.items():
            optimiser.load_state_dict(state["optimisers"][owner.value])
            self.steps_done[owner] = int(state["steps_done"][owner.value])
        self._scaler.load_state_dict(state["scaler"])


def ramped_weight(term: TermConfig, step: int) -> float:
    """Weight of a term at the owner's step ``step``: linear from 0 to full over its ramp."""
    if term.ramp is None:
        return term.weight
    start, end = term.ramp
    return term.weight * min(max((step - start) / max(end - start, 1), 0.0), 1.0)


def _batch_psnr(config: StepConfig, context: BatchContext) -> float | None:
    references = [field for field in map(config.reference, config.terms) if field is not None]
    if not references:
        return None
    with torch.no_grad():
        error = (context.field(config.live).y - context.field(references[0]).y).square().mean()
    return -10 * math.log10(max(float(error), 1e-10))


def _autocast_dtype(precision: Precision, device: torch.device) -> torch.dtype | None:
    if precision is Precision.AUTO:
        if device.type != "cuda":
            return None
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if precision is Precision.FLOAT16 and device.type != "cuda":
        raise InputError(
            f"precision float16 on {device.type}", rule="float16 training needs CUDA", remedy="use bfloat16 or float32"
        )
    return {Precision.FLOAT32: None, Precision.BFLOAT16: torch.bfloat16, Precision.FLOAT16: torch.float16}[precision]


def needed_owners(recipe: Recipe) -> set[Owner]:
    """Networks that a run must build: owners and everything that a term looks at."""
    names = {field.value.removesuffix("_sg") for field in recipe.fields_used()}
    return {owner for owner in Owner if owner.value in names}
