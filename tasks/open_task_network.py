"""Open a task network of any kind from its path: what it is stands in its card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from duskfuse.data.errors import InputError
from duskfuse.data.progress import say
from duskfuse.data.weights import read_card
from duskfuse.tasks import detector, open_segmenter, saliency
from duskfuse.tasks.slgnet import detector as slgnet
from duskfuse.tasks.slgnet.checkpoint import BACKBONE
from duskfuse.tasks.slgnet.vit import open_vit
from duskfuse.tasks.task_network import Task, TaskNetwork

AnyDetector = detector.Detector | slgnet.SlgDetector
"""What finds objects of named classes."""

_TASKS = {
    open_segmenter.ARCHITECTURE: Task.SEGMENTATION,
    detector.ARCHITECTURE: Task.DETECTION,
    slgnet.ARCHITECTURE: Task.DETECTION,
    saliency.ARCHITECTURE: Task.SALIENCY,
}


def task_of(path: Path) -> Task:
    """The task of the network in ``path``; folders and files of other programs are segmenters.

    Raises:
        InputError: a file of ours that is no task network, or no readable one.
    """
    if path.is_dir() or (path.name == "model.safetensors" and (path.parent / "config.json").is_file()):
        return Task.SEGMENTATION
    architecture = read_card(path).architecture
    if architecture not in _TASKS:
        raise InputError(
            f"{path}: a {architecture!r}",
            rule=f"a task network is a {', '.join(_TASKS)}",
            remedy="train one with `duskfuse train-task`",
        )
    return _TASKS[architecture]


def open_task_network(
    path: Path, classes: str | None = None, backbone: Path | None = None
) -> TaskNetwork[Any, Any, Any]:
    """Open a task network of any kind, in evaluation mode.

    Args:
        path: weights of ``train-task``, or what `duskfuse.tasks.open_segmenter.open_segmenter` opens.
        classes: class convention of a segmenter of another program.
        backbone: as for `open_any_detector`; of a detector only.

    Raises:
        InputError: it cannot be opened.
    """
    task = task_of(path)
    if backbone is not None and task is not Task.DETECTION:
        raise _one_too_many(path, str(task), backbone)
    match task:
        case Task.SEGMENTATION:
            return open_segmenter.open_segmenter(path, classes)
        case Task.DETECTION:
            return open_any_detector(path, backbone)
        case Task.SALIENCY:
            return saliency.open_saliency(path)


def open_any_detector(path: Path, backbone: Path | None = None) -> AnyDetector:
    """Open a detector of ours, in evaluation mode.

    Args:
        path: weights of ``train-task``.
        backbone: the frozen transformer of an SLGNet detector; no other has one.

    Raises:
        InputError: it is no detector, or its backbone is missing, another one, or one too many.
    """
    card = read_card(path)
    if card.architecture != slgnet.ARCHITECTURE:
        if backbone is not None:
            raise _one_too_many(path, card.architecture, backbone)
        return detector.open_detector(path)
    if backbone is None:
        raise InputError(
            f"{path}: adapters around the backbone {str(card.settings.get(BACKBONE))[:12]}, which is not given",
            rule="the file of an SLGNet detector holds what was trained, and not the frozen transformer",
            remedy="give the transformer with --backbone FILE",
        )
    opened = slgnet.open_slg_detector(path, open_vit(backbone))
    if opened.network.rules is None:
        say(f"{path}: trained with captions that were given; here nothing is said about the pictures")
    return opened


def _one_too_many(path: Path, kind: str, backbone: Path) -> InputError:
    return InputError(
        f"{path}: a {kind!r}, with the backbone {backbone}",
        rule=f"only a {slgnet.ARCHITECTURE!r} is opened around a backbone",
        remedy="leave --backbone away",
    )
