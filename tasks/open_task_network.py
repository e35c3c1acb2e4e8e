"""Open a task network of any kind from its path: what it is stands in its card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from duskfuse.data.errors import InputError
from duskfuse.data.weights import read_card
from duskfuse.tasks import detector, open_segmenter, saliency
from duskfuse.tasks.task_network import Task, TaskNetwork

_TASKS = {
    open_segmenter.ARCHITECTURE: Task.SEGMENTATION,
    detector.ARCHITECTURE: Task.DETECTION,
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


def open_task_network(path: Path, classes: str | None = None) -> TaskNetwork[Any, Any, Any]:
    """Open a task network of any kind, in evaluation mode.

    Args:
        path: weights of ``train-task``, or what `duskfuse.tasks.open_segmenter.open_segmenter` opens.
        classes: class convention of a segmenter of another program.

    Raises:
        InputError: it cannot be opened.
    """
    match task_of(path):
        case Task.SEGMENTATION:
            return open_segmenter.open_segmenter(path, classes)
        case Task.DETECTION:
            return detector.open_detector(path)
        case Task.SALIENCY:
            return saliency.open_saliency(path)
