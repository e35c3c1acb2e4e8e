"""A student with the steering that a user asks for: fixed for a task, or live, with a task network that looks.

Both are students like any other to what fuses with them and exports them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from duskfuse.data.errors import InputError
from duskfuse.data.images import file_sha256
from duskfuse.evaluate.fusers import Fuser, TorchFuser, open_fuser

if TYPE_CHECKING:
    from torch import nn

    from duskfuse.data.weights import ModelCard
    from duskfuse.distill.closed_loop.live import LiveSteering
    from duskfuse.students.steering.fixed import FixedSteering

    SteeredModule = FixedSteering | LiveSteering


@dataclass(frozen=True)
class SteeringWanted:
    """What was said about steering; False where nothing was."""

    file: Path | None = None
    """What `duskfuse steer` trained."""
    task: str | None = None
    """Fixed: what pictures are made for."""
    critic: Path | None = None
    """Live: the task network that looks at every picture."""
    backbone: Path | None = None
    """Of an SLGNet detector as ``critic``."""

    def __bool__(self) -> bool:
        return any(value is not None for value in (self.file, self.task, self.critic, self.backbone))

    def around(self, student: nn.Module) -> SteeredModule:
        """The student, steered.

        Raises:
            InputError: task and network are both given, or the file is missing; as `steer_for` and `steer_live`.
        """
        from duskfuse.distill.closed_loop.live import steer_live
        from duskfuse.students.steering.steering_file import steer_for

        if self.critic is None:
            if self.backbone is not None:
                raise InputError("--backbone without --critic", rule="it belongs to a detector", remedy="give both")
            return steer_for(student, self.file, self.task)
        if self.file is None or self.task is not None:
            raise InputError(
                f"--critic with steering {self.file} and --for {self.task}",
                rule="a network that looks at every picture says itself what it needs, through a steering file",
                remedy="give --steering FILE with --critic NETWORK, or with --for TASK",
            )
        return steer_live(student, self.file, self.critic, self.backbone)

    def on_card(self, card: ModelCard, steered: SteeredModule) -> ModelCard:
        """A student's card that says so; scores and scales of the student itself are no longer true."""
        from duskfuse.data.weights import read_card

        assert self.file is not None
        trained_on = read_card(self.file).training_data
        how = f"steered for {steered.task} by {file_sha256(self.file)[:12]}, trained on {trained_on}"
        if self.critic is not None:
            how += f", live, after what {file_sha256(self.critic)[:12]} sees"
        notes = f"{card.notes}; {how}" if card.notes else how
        return replace(card, metrics={}, int8_scales={}, notes=notes, colour=steered.colour.value)


def open_model(model: str | Path, wanted: SteeringWanted, threads: int | None = None) -> Fuser:
    """Open a model, steered where that is wanted; ``threads`` as for `open_fuser`.

    Raises InputError as `open_fuser`, `load_student` and `SteeringWanted.around` do, and for steered ONNX files.
    """
    if not wanted:
        return open_fuser(model, threads)
    if Path(model).suffix.lower() == ".onnx":
        raise InputError(
            f"{model} with steering",
            rule="steering goes into a student",
            remedy="export the student with --steering, and fuse with that file",
        )
    import torch

    from duskfuse.students.zoo import load_student

    if threads is not None:
        torch.set_num_threads(threads)
    student, _ = load_student(model)
    steered = wanted.around(student)
    return TorchFuser(steered, f"{Path(model).name} for {steered.task}{', live' * (wanted.critic is not None)}")
