"""What the training of a steering depends on besides the data: its recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from duskfuse.distill.closed_loop.cagrad import Combination
from duskfuse.distill.recipe import DataConfig, OptimiserConfig, OptimiserKind, Positive
from duskfuse.distill.recipe_files import with_changes
from duskfuse.students.steering.base_vectors import VECTORS
from duskfuse.students.steering.compensation import BRANCHES
from duskfuse.students.steering.description import Resolution
from duskfuse.tasks.task_network import Task


class SteerTraining(BaseModel):
    """Published numbers where there are such: α = 5, c = 0.5, 1e-2 with a decay of 1e-4, batches of 4.

    The decay is AdamW's. Published is Adam's, which is added to the gradient before that is scaled: what reads the
    task's features has gradients smaller than that, and shrinks to nothing within a few hundred updates.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    student: str
    """Zoo name or checkpoint."""
    critics: dict[Task, Path]
    """Task networks."""
    backbone: Path | None = None
    """The frozen transformer that an SLGNet detector among them was trained around."""
    layers: dict[Task, str] = Field(default_factory=dict)
    """The modules that tell what each task needs; where none is named, the last stage of the network's trunk, or
    SLGNet's features."""
    taps: tuple[str, ...] | None = None
    """Compensated modules of the student; by default its first two taps."""
    branches: Annotated[int, Field(ge=1, le=VECTORS)] = BRANCHES
    image_side: Positive | None = Resolution.image
    """The student's maps are described at no more than this, null at their own size as published."""
    task_side: Positive | None = Resolution.task
    """The task's features likewise."""
    channels: bool = Resolution.channels
    """Whether the description tells the task's channels apart; the published one does not."""
    punishment: Annotated[float, Field(ge=0)] = 5.0
    """α."""
    fidelity: Annotated[float, Field(ge=0)] = 0.3
    """Weight of the mean absolute difference to the student's own picture; 0 as published."""
    combination: Combination = Combination.CAGRAD
    """How the gradients of the tasks become one."""
    radius: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """c, of the ball of CAGrad."""
    seed: int = 2
    batches: Positive = 600
    data: DataConfig = DataConfig(crop=(160, 192), batch=4, masks=1)
    optimiser: OptimiserConfig = OptimiserConfig(
        kind=OptimiserKind.ADAMW, lr=1e-2, warmup=20, clip_norm=1, weight_decay=1e-4
    )
    save_every: Positive = 100
    """Batches between checkpoints."""
    sample_every: Positive = 200
    """Batches between pictures."""

    @model_validator(mode="after")
    def _plain_updates(self) -> SteerTraining:
        if self.optimiser.ema is not None or self.data.accumulate > 1:
            raise ValueError("steering is trained without running averages and accumulated batches: leave them away")
        return self


def steer_training(
    student: str | Path, critics: Mapping[Task, Path], changes: Sequence[str], backbone: Path | None = None
) -> SteerTraining:
    """The recipe with the user's ``key.path=value`` changes; InputError where one is no key or no value."""
    config = SteerTraining(student=str(student), critics=dict(critics), backbone=backbone)
    return with_changes(config, changes)
