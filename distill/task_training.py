"""What the training of a task network depends on besides the data: its recipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from duskfuse.distill.recipe import DataConfig, OptimiserConfig, OptimiserKind, Positive, Precision
from duskfuse.distill.recipe_files import with_changes
from duskfuse.tasks.detector_network import HeadKind
from duskfuse.tasks.fusion_blocks import TOKENS, FusionBlock
from duskfuse.tasks.slgnet.detector import RULES, WIDTH
from duskfuse.tasks.slgnet.network import SlgSettings
from duskfuse.tasks.task_network import Task
from duskfuse.tasks.trunk import Trunk

_DEFAULTS: dict[Task, dict[str, JsonValue]] = {
    Task.SEGMENTATION: {},
    Task.DETECTION: {
        "data": {"crop": [320, 384], "batch": 4, "masks": 1},
        "optimiser": {"kind": "adamw", "lr": 2e-3, "warmup": 50, "clip_norm": 10, "weight_decay": 1e-2},
    },
    Task.SALIENCY: {},
}
"""Where a task's numbers differ from those of a segmenter: objects want larger crops than pixels do."""
_SLGNET: dict[str, JsonValue] = {
    "optimiser": {"kind": "adamw", "lr": 1e-4, "warmup": 250, "clip_norm": 1, "weight_decay": 0.1}
}
"""The article's optimiser."""


class SlgTraining(BaseModel):
    """What SLGNet has that no other detector has."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    backbone: Path
    """Weights of the frozen transformer."""
    captions: str = RULES
    """``rules``, or a file of JSON lines with the captions of every pair."""
    text_encoder: Path | None = None
    """Folder of CLIP's text encoder; hashed words without one."""
    adapters: SlgSettings = SlgSettings()
    """What is trained around the transformer."""
    width: Annotated[int, Field(gt=0, multiple_of=8)] = WIDTH
    """Channels of the pyramid."""


class TaskTraining(BaseModel):
    """Everything that the training of a task network depends on besides the data."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: Task = Task.SEGMENTATION
    classes: str = ""
    """Class convention; empty for saliency, which has no classes."""
    input: str = "vis"
    """What the network sees: vis, ir, average or fused=FOLDER, and for detection both."""
    trunk_weights: Path | None = None
    """ImageNet weights of SqueezeNet 1.1 to start from; without them the residual trunk is trained from nothing."""
    head: HeadKind = HeadKind.DENSE
    """What a detector ends in."""
    fusion: FusionBlock = FusionBlock.CONCAT
    """What makes one pyramid of two cameras, with the input both."""
    tokens: tuple[Positive, Positive] = TOKENS
    """(rows, columns) of IRDFusion; attention costs the square of their product."""
    slgnet: SlgTraining | None = None
    """With a frozen transformer the whole of SLGNet is trained in place of the in-tree detector."""
    seed: int = 2
    batches: Positive = 1500
    data: DataConfig = DataConfig(crop=(160, 192), batch=8, masks=1)
    optimiser: OptimiserConfig = OptimiserConfig(
        kind=OptimiserKind.ADAMW, lr=3e-3, warmup=50, clip_norm=5, weight_decay=1e-2
    )
    precision: Precision = Precision.AUTO
    save_every: Positive = 200
    """Batches between checkpoints."""

    @model_validator(mode="after")
    def _no_average(self) -> TaskTraining:
        if self.optimiser.ema is not None:
            raise ValueError("optimiser.ema: task networks are trained without a running average: leave it away")
        return self

    @property
    def trunk(self) -> Trunk:
        """The encoder of the network."""
        return Trunk.RESIDUAL if self.trunk_weights is None else Trunk.SQUEEZENET


def task_training(
    task: Task,
    classes: str,
    shown: str,
    trunk_weights: Path | None,
    changes: Sequence[str],
    slgnet: SlgTraining | None = None,
) -> TaskTraining:
    """The recipe of a task with the user's ``key.path=value`` changes; InputError where one is no key or no value."""
    given = {"task": task, "classes": classes, "input": shown, "trunk_weights": trunk_weights, "slgnet": slgnet}
    defaults = _DEFAULTS[task] | ({} if slgnet is None else _SLGNET)
    return with_changes(TaskTraining.model_validate({**defaults, **given}), changes)
