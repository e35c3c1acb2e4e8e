"""Steering on disk: a weights file of what was trained, with the digest of the student that it belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError
from torch import nn

from duskfuse import __version__
from duskfuse.data.errors import InputError
from duskfuse.data.fuser import Colour
from duskfuse.data.weights import ModelCard, check_architecture, load_weights, read_card, save_weights
from duskfuse.students.steering.description import Resolution
from duskfuse.students.steering.fixed import FixedSteering
from duskfuse.students.steering.steered import SteeredStudent, Steering, weights_digest
from duskfuse.students.steering.taps import taps_of

ARCHITECTURE = "steering"
_REMEDY = "give the student that this steering was trained around, or train another with `duskfuse steer`"


class SteeringSettings(BaseModel):
    """What the card of a steering file says."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    student: str
    """Digest of the student's weights."""
    taps: list[str]
    branches: int
    image_side: int | None
    task_side: int | None
    channels: bool
    tasks: list[str]
    punishment: float
    """α, that it was trained with."""


def save_steering(
    path: Path,
    network: SteeredStudent,
    *,
    punishment: float,
    training_data: str,
    metrics: Mapping[str, float],
    notes: str = "",
) -> None:
    """Write the steering of a student, without the student."""
    steering = network.steering
    settings = SteeringSettings(
        student=weights_digest(network.student),
        taps=[tap.module for tap in steering.taps],
        branches=steering.branches,
        image_side=steering.resolution.image,
        task_side=steering.resolution.task,
        channels=steering.resolution.channels,
        tasks=list(steering.tasks),
        punishment=punishment,
    )
    card = ModelCard(
        architecture=ARCHITECTURE,
        settings=settings.model_dump(),
        colour="rgb" if network.colour is Colour.RGB else "luma",
        version=__version__,
        training_data=training_data,
        metrics=metrics,
        notes=notes,
    )
    save_weights(path, steering, card)


def load_steering(path: Path, student: nn.Module) -> SteeredStudent:
    """A student with its steering, in evaluation mode.

    Raises:
        InputError: no steering file, a damaged one, or one of another student.
    """
    card = read_card(path)
    check_architecture(path, card, ARCHITECTURE)
    try:
        settings = SteeringSettings.model_validate(dict(card.settings))
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(
            f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}",
            rule="the card of a steering file says how it was trained",
            remedy="train it again, or update duskfuse",
        ) from None
    if (digest := weights_digest(student)) != settings.student:
        raise InputError(
            f"{path} belongs to the student {settings.student[:12]}, and this one is {digest[:12]}",
            rule="steering fits the very weights that it was trained around",
            remedy=_REMEDY,
        )
    resolution = Resolution(settings.image_side, settings.task_side, settings.channels)
    steering = Steering(taps_of(student, settings.taps), settings.tasks, settings.branches, resolution)
    load_weights(path, steering, ARCHITECTURE)
    return SteeredStudent(student, steering).eval()


def steer_for(student: nn.Module, path: Path | None, task: str | None) -> FixedSteering:
    """A student steered for a task by what it needs on average: a student like any other.

    Raises:
        InputError: as `load_steering`, file or task is missing, or the steering was not trained for this task.
    """
    if path is None or task is None:
        raise InputError(
            f"steering {path} for {task}",
            rule="a student is steered by a file, for one of the tasks in it",
            remedy="give --steering FILE with --for TASK, or with --critic NETWORK; or none of them",
        )
    network = load_steering(path, student)
    if task not in network.steering.tasks:
        raise InputError(
            f"{path}: steering for {task!r}",
            rule=f"it was trained for {', '.join(network.steering.tasks)}",
            remedy="name one of these tasks",
        )
    return FixedSteering(network, task)
