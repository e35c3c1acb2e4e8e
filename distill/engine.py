"""The engine: bi-level alternation (SAGE §7), one owner and one optimiser update at a time.

min over ω_s of L_s(S(ω_s); ω_m*) with ω_m* minimising L_m(M(ω_m); ω_s) is solved by alternating single steps,
ω_m ← ω_m − η_m ∇L_m(ω_m; sg(ω_s)) and ω_s ← ω_s − η_s ∇L_s(ω_s; sg(ω_m)). Which step comes when is the recipe's matter;
the engine freezes everything but the step's owner, computes its terms, guards against NaN and updates. A step that the
recipe unrolls takes its gradient through one step of the other network instead (`duskfuse.distill.unrolled`).

The gradient of an update is the mean over the micro batches of ``data.accumulate`` and over all processes. Where every
term is a mean over samples and no layer mixes samples, that is the gradient of the joined batch. BatchNorm normalises
each micro batch by itself, and the floor of the contrastive term's denominators is a mean over one micro batch: there
the two differ a little.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from duskfuse.data.errors import DivergenceError, InputError, TrainingError
from duskfuse.distill.adapters import FeatureAdapters
from duskfuse.distill.context import Batch, BatchContext
from duskfuse.distill.optimisers import build_average, build_optimiser
from duskfuse.distill.processes import ALONE, Processes
from duskfuse.distill.recipe import Owner, Precision, Recipe, StepConfig, TermConfig, UnrollConfig
from duskfuse.distill.schedule import learning_rate
from duskfuse.distill.terms import TermName
from duskfuse.distill.unrolled import Functional, Parameters, Randomness, hypergradient
from duskfuse.tasks.encoders import FeatureEncoder
from duskfuse.tasks.task_network import Task, TaskNetwork


@dataclass(frozen=True)
class StepResult:
    """What one update did; all values are plain floats, means over micro batches and processes."""

    batch: int
    phase: str
    step: str
    owner: Owner
    loss: float
    terms: dict[TermName, float]
    """Each term before its weight."""
    lr: float
    gradient_norm: float
    """Before clipping; infinite where float16 overflowed and the update was left out."""
    psnr_to_reference: float | None
    """PSNR in dB between the owner's picture and the one it is compared with, on this batch."""
    term_gradient_norms: dict[TermName, float] | None = None
    """Norm of each weighted term's own gradient, before clipping, where it was measured."""
    correction_ratio: float | None = None
    """‖correction‖/‖direct‖ of an unrolled step: how much the look-ahead adds to the first-order gradient."""


class Engine:
    """Networks, their optimisers and one update per batch."""

    def __init__(
        self,
        recipe: Recipe,
        networks: dict[Owner, nn.Module],
        encoder: FeatureEncoder | None,
        device: torch.device,
        processes: Processes = ALONE,
        critics: Mapping[Task, TaskNetwork[Any, Any, Any]] | None = None,
        *,
        perceptual: FeatureEncoder | None = None,
        adapters: FeatureAdapters | None = None,
    ) -> None:
        self.recipe, self.device, self.processes = recipe, device, processes
        # channels_last: convolutions on a CPU run several times faster in it, and no slower on a GPU.
        self.networks = {
            owner: processes.synchronised(network, device).to(device).to(memory_format=torch.channels_last)
            for owner, network in networks.items()
        }
        self.encoder = None if encoder is None else encoder.to(device)
        self.critics = {task: critic.to(device) for task, critic in (critics or {}).items()}
        self.perceptual = None if perceptual is None else perceptual.to(device)
        self.adapters = None if adapters is None else adapters.to(device)
        trained = [owner for owner in recipe.optimisers if owner in networks]
        self.optimisers = {owner: build_optimiser(recipe.optimisers[owner], self._moved(owner)) for owner in trained}
        decays = {owner: recipe.optimisers[owner].ema for owner in trained}
        self.averages = {
            owner: build_average(self.networks[owner], decay) for owner, decay in decays.items() if decay is not None
        }
        self.steps_done = dict.fromkeys(self.optimisers, 0)
        self.steps_total = {owner: recipe.owner_steps(owner) for owner in self.optimisers}
        self._dtype = autocast_dtype(recipe.precision, device)
        self._scaler = torch.amp.GradScaler(device.type, enabled=self._dtype is torch.float16)
        if recipe.unrolls and self._scaler.is_enabled():
            raise InputError(
                f"an unrolled step, and precision {recipe.precision} is float16 on this device",
                rule="the gradient scaling of float16 cannot follow a look-ahead",
                remedy="set precision=float32",
            )
        if recipe.compile:
            for network in self.networks.values():
                network.compile()  # in place: names in checkpoints stay as they are

    def step(self, number: int, batch: Batch, following: Batch | None = None) -> StepResult:
        """Update the owner of batch ``number`` once, with ``data.accumulate`` micro batches joined in ``batch``.

        An unrolled step looks ahead on ``following``, batch ``number + 1``.
        """
        phase, step = self.recipe.step_at(number)
        return self.update(step, number, batch, following, phase=phase)

    def update(
        self,
        step: str,
        number: int,
        batch: Batch,
        following: Batch | None = None,
        *,
        phase: str,
        lr: float | None = None,
    ) -> StepResult:
        """Make one update of the kind ``step`` with the samples of batch ``number``, by default at the rate due now."""
        config = self.recipe.steps[step]
        torch.manual_seed(_seed(self.recipe.seed, number, self.processes.rank))  # so that a resumed run draws the same
        self._moved(config.owner).zero_grad(set_to_none=True)
        ratio = None
        with _naming_memory(f"the {step} step at batch {number}"):
            if config.unroll is None:
                parts = [self._backward(config, micro, number) for micro in self._micro_batches(config, batch)]
            else:
                parts, ratio = self._unrolled_backward(config, config.unroll, number, batch, following)
            lr, norm = self._update(config.owner, lr)
        return replace(self._result(phase, step, number, parts, lr, norm), correction_ratio=ratio)

    def context(self, batch: Batch, owner: Owner) -> BatchContext:
        """The batch with only ``owner`` live: it trains, everything else is frozen and in evaluation mode."""
        self._freeze_all_but(owner)
        return self._context(batch, self.networks)

    def _freeze_all_but(self, owner: Owner) -> None:
        for other, network in self.networks.items():
            network.train(other is owner)
            self._moved(other).requires_grad_(other is owner)

    def shown(self, owner: Owner) -> nn.Module:
        """The network as it is shown and exported: its running average where it has one."""
        averaged = self.averages.get(owner)
        return self.networks[owner] if averaged is None else averaged.module

    def preview(self, batch: Batch) -> BatchContext:
        """The batch with every network as it is shown, frozen and in evaluation mode."""
        networks = {owner: self.shown(owner).eval().requires_grad_(False) for owner in self.networks}
        return self._context(batch.to(self.device), networks)

    def _context(
        self, batch: Batch, networks: Mapping[Owner, nn.Module | Functional], *, coupled: bool = False
    ) -> BatchContext:
        return BatchContext(
            batch,
            networks,
            self.encoder,
            self._autocast,
            critics=self.critics,
            contrastive=self.recipe.contrastive,
            quality=self.recipe.quality,
            perceptual=self.perceptual,
            adapters=self.adapters,
            coupled=coupled,
        )

    def _moved(self, owner: Owner) -> nn.Module:
        """Everything that the owner's optimiser moves: its network and, for the student, the adapters of its taps."""
        if owner is Owner.STUDENT and self.adapters is not None:
            return nn.ModuleList([self.networks[owner], self.adapters])
        return self.networks[owner]

    def _autocast(self) -> AbstractContextManager[object]:
        return nullcontext() if self._dtype is None else torch.autocast(self.device.type, dtype=self._dtype)

    def _micro_batches(self, config: StepConfig, batch: Batch) -> Iterator[Batch]:
        """The batch as this step sees it, in parts, on the device."""
        # Another network's step looks at the student as a reference: at its best, not at a bad camera's picture.
        seen = batch if config.owner is Owner.STUDENT else batch.clean()
        return (micro.to(self.device) for micro in seen.split(self.recipe.data.accumulate))

    def _backward(self, config: StepConfig, micro: Batch, number: int) -> _Part:
        """Add the gradient of one micro batch to the owner's."""
        context = self.context(micro, config.owner)
        loss, part = self._loss(config, context, number, list(self.networks[config.owner].parameters()))
        self._scaler.scale(loss / self.recipe.data.accumulate).backward()  # type: ignore[no-untyped-call]
        return part

    def _loss(
        self, config: StepConfig, context: BatchContext, number: int, parameters: Sequence[Tensor] = ()
    ) -> tuple[Tensor, _Part]:
        """Weighted sum of the step's terms, and what there is to report of it; ``parameters`` are the owner's."""
        terms = self._terms(config, context, number)
        done = self.steps_done[config.owner]
        weighted = {name: ramped_weight(config.terms[name], done) * value for name, value in terms.items()}
        nothing = context.field(config.live).y.sum() * 0  # where no term has a weight yet
        loss = torch.stack(list(weighted.values()) or [nothing]).sum()
        every = self.recipe.gradient_norms_every
        gradients = self._term_gradients(parameters, weighted) if every and parameters and done % every == 0 else None
        values = torch.stack([loss.detach(), *(v.detach() for v in terms.values())])
        return loss, _Part(values, list(terms), _batch_error(config, context), gradients)

    def _unrolled_backward(
        self, config: StepConfig, unroll: UnrollConfig, number: int, batch: Batch, following: Batch | None
    ) -> tuple[list[_Part], float]:
        """Give the owner its gradient through the look-ahead; returns ‖correction‖/‖direct‖ of it, too.

        The owner's own pass is that of a first-order step, and its BatchNorm learns from it. All passes of the other
        step see the buffers as they were before, and draw the same random numbers.
        """
        if following is None:
            raise ValueError("an unrolled step looks ahead on the batch after its own")
        through, randomness, parts = self.recipe.steps[unroll.through], Randomness(self.device), []
        own, other = self.networks[config.owner], self.networks[through.owner]
        own_buffers, other_buffers = ({k: b.clone() for k, b in network.named_buffers()} for network in (own, other))

        def upper_loss(micro: Batch, upper: Parameters, lower: Parameters) -> Tensor:
            networks = {config.owner: Functional(own, upper), through.owner: Functional(other, lower, other_buffers)}
            context = self._coupled(micro, config.owner, networks)
            loss, part = self._loss(config, context, number, list(upper.values()))
            parts.append(part)
            return loss

        def lower_loss(micro: Batch, upper: Parameters, lower: Parameters) -> Tensor:
            networks = {
                config.owner: Functional(own, upper, own_buffers),
                through.owner: Functional(other, lower, other_buffers),
            }
            with randomness.replayed():
                return self._loss(through, self._coupled(micro, through.owner, networks), number + 1)[0]

        gradient = hypergradient(
            [partial(upper_loss, micro) for micro in self._micro_batches(config, batch)],
            [partial(lower_loss, micro) for micro in self._micro_batches(through, following)],
            dict(own.named_parameters()),
            dict(other.named_parameters()),
            self._rate(through.owner) if unroll.xi is None else unroll.xi,
            average=self.processes.average,
        )
        self._freeze_all_but(config.owner)
        total = gradient.total
        for name, parameter in own.named_parameters():
            if name in total:
                parameter.grad = torch.empty_like(parameter).copy_(total[name])
        return parts, gradient.correction_ratio

    def _coupled(self, batch: Batch, owner: Owner, networks: dict[Owner, Functional]) -> BatchContext:
        """The batch with ``owner`` in training mode, and with graphs to both networks."""
        self._freeze_all_but(owner)
        return self._context(batch, {**self.networks, **networks}, coupled=True)

    def _terms(self, config: StepConfig, context: BatchContext, number: int) -> dict[TermName, Tensor]:
        values = {}
        for name, term in config.terms.items():
            if ramped_weight(term, self.steps_done[config.owner]) == 0:
                continue
            with _naming_memory(f"term {name} at batch {number}"):
                live, reference = context.field(config.live), config.reference(name)
                if reference is None:
                    value = name.function(live, context)
                else:
                    value = name.function(live, context.field(reference), context)
            if not torch.isfinite(value):
                raise DivergenceError(
                    f"term {name} became {float(value.detach())} at batch {number} ({', '.join(context.batch.names)})",
                    rule="every term must stay finite",
                    remedy="lower the learning rate, or look at these pairs; --resume goes on from the last checkpoint",
                )
            values[name] = value
        return values

    def _term_gradients(self, parameters: Sequence[Tensor], weighted: dict[TermName, Tensor]) -> dict[TermName, Tensor]:
        """Each weighted term's gradient with respect to the owner's parameters, flattened."""
        gradients = {}
        for name, value in weighted.items():
            scaled = self._scaler.scale(value)
            parts = torch.autograd.grad(scaled, parameters, retain_graph=True, materialize_grads=True)
            gradients[name] = torch.cat([part.flatten() for part in parts]) / self._scaler.get_scale()
        return gradients

    def _update(self, owner: Owner, lr: float | None) -> tuple[float, float]:
        """Clip the gradient that was gathered and move the owner by it; its rate and the norm before clipping."""
        optimiser, config = self.optimisers[owner], self.recipe.optimisers[owner]
        network, parameters = self.networks[owner], list(self._moved(owner).parameters())
        rate = self._rate(owner) if lr is None else lr
        for group in optimiser.param_groups:
            group["lr"] = rate
        self.processes.average([p.grad for p in parameters if p.grad is not None])
        self._scaler.unscale_(optimiser)
        norm = nn.utils.clip_grad_norm_(parameters, config.clip_norm)
        if not torch.isfinite(norm) and not self._scaler.is_enabled():
            raise DivergenceError(
                f"the gradient of the {owner} became {float(norm)} at its step {self.steps_done[owner]}",
                rule="gradients must stay finite",
                remedy="lower the learning rate; --resume goes on from the last checkpoint",
            )
        self._scaler.step(optimiser)
        self._scaler.update()
        self.processes.average([buffer for buffer in network.buffers() if buffer.is_floating_point()])
        if owner in self.averages:
            self.averages[owner].update_parameters(network)
        self.steps_done[owner] += 1
        return rate, float(norm)

    def _rate(self, owner: Owner) -> float:
        """The learning rate of the owner's next update."""
        return learning_rate(self.recipe.optimisers[owner], self.steps_done[owner], self.steps_total[owner])

    def _result(self, phase: str, step: str, number: int, parts: Sequence[_Part], lr: float, norm: float) -> StepResult:
        values = torch.stack([part.values for part in parts]).mean(dim=0)
        errors = [part.error for part in parts if part.error is not None]
        error = torch.stack(errors).mean() if errors else None
        gradients = _mean_gradients([part.gradients for part in parts if part.gradients is not None])
        self.processes.average(list(gradients.values()))
        self.processes.average([values] if error is None else [values, error])
        loss, *terms = values.tolist()
        return StepResult(
            batch=number,
            phase=phase,
            step=step,
            owner=self.recipe.steps[step].owner,
            loss=loss,
            terms=dict(zip(parts[0].names, terms, strict=True)),
            lr=lr,
            gradient_norm=norm,
            psnr_to_reference=None if error is None else -10 * math.log10(max(float(error), 1e-10)),
            term_gradient_norms={name: float(gradient.norm()) for name, gradient in gradients.items()} or None,
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything an exact continuation needs, as tensors and plain data."""
        return {
            "networks": {owner.value: network.state_dict() for owner, network in self.networks.items()},
            "averages": {owner.value: average.state_dict() for owner, average in self.averages.items()},
            "optimisers": {owner.value: optimiser.state_dict() for owner, optimiser in self.optimisers.items()},
            "steps_done": {owner.value: done for owner, done in self.steps_done.items()},
            "scaler": self._scaler.state_dict(),
            "adapters": {} if self.adapters is None else self.adapters.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state_dict``."""
        for owner, network in self.networks.items():
            network.load_state_dict(state["networks"][owner.value])
        if self.adapters is not None:
            self.adapters.load_state_dict(state["adapters"])
        for owner, average in self.averages.items():
            average.load_state_dict(state["averages"][owner.value])
        for owner, optimiser in self.optimisers.items():
            optimiser.load_state_dict(state["optimisers"][owner.value])
            self.steps_done[owner] = int(state["steps_done"][owner.value])
        self._scaler.load_state_dict(state["scaler"])


@dataclass(frozen=True)
class _Part:
    """What one micro batch gave."""

    values: Tensor
    """The loss, then the terms before their weights."""
    names: list[TermName]
    error: Tensor | None
    """Mean squared error to the reference picture."""
    gradients: dict[TermName, Tensor] | None


def _mean_gradients(parts: Sequence[dict[TermName, Tensor]]) -> dict[TermName, Tensor]:
    return {name: torch.stack([part[name] for part in parts]).mean(dim=0) for name in parts[0]} if parts else {}


def _seed(seed: int, number: int, rank: int) -> int:
    return int(np.random.SeedSequence([seed, number, rank]).generate_state(1, np.uint64)[0] >> np.uint64(1))


@contextmanager
def _naming_memory(place: str) -> Iterator[None]:
    """Turn a lack of memory into an error that names the place; no term is ever left out for it."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # the CPU's allocator raises a plain RuntimeError
        text = str(error)
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "can't allocate memory" not in text:
            raise
        raise TrainingError(
            f"out of memory in {place} ({(text.splitlines() or ['no more is known'])[0][:200]})",
            rule="no term is left out for want of memory",
            remedy="start a run with a smaller data.batch and a larger data.accumulate, or a smaller data.crop; "
            "the last checkpoint is kept",
        ) from None


def ramped_weight(term: TermConfig, step: int) -> float:
    """Weight of a term at the owner's step ``step``: linear from 0 to full over its ramp."""
    if term.ramp is None:
        return term.weight
    start, end = term.ramp
    return term.weight * min(max((step - start) / max(end - start, 1), 0.0), 1.0)


def _batch_error(config: StepConfig, context: BatchContext) -> Tensor | None:
    references = [field for field in map(config.reference, config.active) if field is not None]
    if not references:
        return None
    with torch.no_grad():
        return (context.field(config.live).y - context.field(references[0]).y).square().mean()


def autocast_dtype(precision: Precision, device: torch.device) -> torch.dtype | None:
    """Type of the forward passes under autocast, None for float32; InputError where the device cannot do it."""
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
