"""One turn of the loop: the student's picture, what each task needs of it, the steered picture, and what came of it.

    reward = c(ŷ_steered, y),  punishment = max(0, c(ŷ_steered, y) − c(ŷ_first, y)),  loss = reward + α · punishment

c is a task's own loss. That on the first picture is a constant, so the punishment changes no direction: it makes the
gradient 1 + α times as long exactly where steering does harm. Tasks' losses have different scales, which the published
code leaves to the combination of gradients; here each is divided by a running mean of its loss on first pictures, and
what the steered picture departs from the first one, mean |ΔRGB|, is added: steering is to serve the task, not to make
another picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from duskfuse.data.colour import recombine
from duskfuse.data.fuser import Colour, FusionOutput
from duskfuse.distill.closed_loop.cagrad import Combination, combined
from duskfuse.distill.closed_loop.loop_task import LoopTask
from duskfuse.distill.context import Batch
from duskfuse.students.steering.steered import Needs, SteeredStudent

_KEPT = 0.9
"""Share of the running mean that stays at each update."""
_SMALLEST_SCALE = 1e-6


class Objective(NamedTuple):
    """What steering earned in one task; scalars."""

    reward: Tensor
    punishment: Tensor
    total: Tensor


def objective(steered: Tensor, first: Tensor, punishment: float) -> Objective:
    """Reward, punishment and their sum, of the losses on the steered and on the student's own picture.

    ``first`` is taken as a constant; where both are equal, the punishment has no gradient.
    """
    worse = torch.relu(steered - first.detach())
    return Objective(steered, worse, steered + punishment * worse)


@dataclass
class TaskScales:
    """What the loss of each task is divided by: the running mean of its loss on first pictures."""

    means: dict[str, float] = field(default_factory=dict)

    def updated(self, task: str, first: float) -> float:
        """Take in one loss; the scale of now."""
        self.means[task] = _KEPT * self.means.get(task, first) + (1 - _KEPT) * first
        return max(self.means[task], _SMALLEST_SCALE)


class Turn(NamedTuple):
    """The two pictures of one task, and their losses."""

    first: Tensor
    """Loss on the student's own picture, without a graph."""
    steered: Tensor
    picture: Tensor
    """The steered picture, RGB ``[B, 3, H, W]``."""
    needs: Needs


class ClosedLoop:
    """A steered student among frozen task networks.

    Args:
        network: what is trained.
        tasks: in the order in which they are asked.
    """

    def __init__(self, network: SteeredStudent, tasks: Sequence[LoopTask]) -> None:
        self.network, self.tasks = network, tuple(tasks)

    def first_pictures(self, batch: Batch) -> Tensor:
        """What the student makes by itself, RGB without a graph."""
        with torch.no_grad():
            return shown(self.network.student(self._vis(batch), batch.ir), batch.vis)

    def turn(self, batch: Batch, task: LoopTask, first: Tensor, generator: torch.Generator | None = None) -> Turn:
        """Steer a batch for one task; only the steered picture and its loss carry a graph."""
        with torch.no_grad():
            seen = task.see(first, batch.ir)
            first_loss = task.loss(seen.prediction, batch)
        output, needs = self.network.steer(self._vis(batch), batch.ir, seen.features, generator)
        picture = shown(output, batch.vis)
        return Turn(first_loss, task.loss(task.see(picture, batch.ir).prediction, batch), picture, needs)

    def fixed_pictures(self, batch: Batch, task: str) -> Tensor:
        """Pictures steered by what a task needs on average, without looking at the first ones."""
        needs = self.network.steering.needs(task)
        return shown(self.network(self._vis(batch), batch.ir, needs), batch.vis)

    def _vis(self, batch: Batch) -> Tensor:
        return batch.vis if self.network.colour is Colour.RGB else batch.vis_y


class Update(NamedTuple):
    """What one batch says: the direction of the update, and numbers for the log."""

    direction: Tensor
    """Like all parameters of the steering one after the other."""
    losses: Mapping[str, Mapping[str, float]]
    """By task: first, steered, punishment, departure, scale."""


def update_of(
    loop: ClosedLoop,
    batch: Batch,
    scales: TaskScales,
    *,
    punishment: float,
    fidelity: float,
    combination: Combination,
    radius: float,
    generator: torch.Generator,
) -> Update:
    """Gradients of all tasks that have ground truth in the batch, as one."""
    first = loop.first_pictures(batch)
    parameters = list(loop.network.steering.parameters())
    rows, losses = [], {}
    for task in loop.tasks:
        turn = loop.turn(batch, task, first, generator)
        if float(turn.first) == float(turn.steered.detach()) == 0:  # no sample has ground truth
            continue
        scale = scales.updated(task.name, float(turn.first))
        earned = objective(turn.steered, turn.first, punishment)
        departure = (turn.picture - first).abs().mean()
        rows.append(_flat_gradient(earned.total / scale + fidelity * departure, parameters))
        losses[task.name] = {
            "first": float(turn.first),
            "steered": float(turn.steered.detach()),
            "punishment": float(earned.punishment.detach()),
            "departure": float(departure.detach()),
            "scale": scale,
        }
    if not rows:
        return Update(torch.cat([torch.zeros_like(p).flatten() for p in parameters]), losses)
    return Update(combined(torch.stack(rows), combination, radius), losses)


def _flat_gradient(loss: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return torch.cat(
        [
            torch.zeros_like(p).flatten() if g is None else g.flatten()
            for p, g in zip(parameters, gradients, strict=True)
        ]
    )


def put_gradient(direction: Tensor, parameters: Sequence[nn.Parameter]) -> None:
    """Give every parameter its part of a direction as its gradient."""
    start = 0
    for parameter in parameters:
        parameter.grad = direction[start : start + parameter.numel()].view_as(parameter).clone()
        start += parameter.numel()


def shown(output: FusionOutput, vis: Tensor) -> Tensor:
    """A fused picture as task networks see it, in the colours of ``vis``, RGB ``[B, 3, H, W]``."""
    return recombine(output.y, vis) if output.rgb is None else output.rgb
