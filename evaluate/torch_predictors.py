"""The task networks of `duskfuse.tasks` as predictors: each in the form that its task is scored in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from duskfuse.data.class_conventions import Convention
from duskfuse.data.class_tables import ClassTable
from duskfuse.data.errors import InputError
from duskfuse.evaluate.network_classes import network_classes
from duskfuse.evaluate.network_pictures import Rgb, unit_values
from duskfuse.evaluate.prediction_files import files_sha256
from duskfuse.tasks.detection_scores import Boxes
from duskfuse.tasks.open_segmenter import open_segmenter
from duskfuse.tasks.open_task_network import open_any_detector
from duskfuse.tasks.saliency import open_saliency
from duskfuse.tasks.slgnet.detector import SlgDetector
from duskfuse.tasks.task_network import RGB, Task, TaskNetwork

_UNTOLD = ", without the captions that it had in training"


class _TorchPredictor:
    """A task network of ours on the device at hand."""

    def __init__(self, path: Path, network: TaskNetwork[Any, Any, Any], output: str) -> None:
        self._path, self._output = path, output
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._network = network.to(self._device)

    @property
    def sees_infrared(self) -> bool:
        """Whether `predict` takes ``[H, W, 4]``, the infrared picture behind the colours."""
        return self._network.channels > RGB

    def facts(self) -> dict[str, Any]:
        """See :class:`duskfuse.evaluate.task_predictors.TaskPredictor`."""
        return {
            "file": self._path.name,
            "sha256": files_sha256({part.name: part for part in _parts(self._path)}),
            "runs_on": self._device.type.upper(),
            "input": "its own",
            "size": None,
            "output": self._output,
        }

    def _found(self, rgb: Rgb) -> Any:
        return self._network.predict(unit_values(rgb).to(self._device))


class SegmenterPredictor(_TorchPredictor):
    """A segmenter of ours, or a folder of another program's, see `duskfuse.tasks.open_segmenter`."""

    def __init__(self, path: Path, classes: Convention) -> None:
        _check_kind(path, Task.SEGMENTATION)
        super().__init__(path, open_segmenter(path, classes), f"logits of {classes.name}")

    def predict(self, rgb: Rgb) -> NDArray[np.uint8]:
        """Class ids of the data, ``[H, W]``."""
        ids: NDArray[np.uint8] = self._found(rgb)[0].cpu().numpy()
        return ids


class DetectorPredictor(_TorchPredictor):
    """A detector of ours; its classes are matched by name with those of the data, where these are known."""

    def __init__(self, path: Path, table: ClassTable | None, backbone: Path | None = None) -> None:
        _check_kind(path, Task.DETECTION)
        detector = open_any_detector(path, backbone)
        untold = isinstance(detector, SlgDetector) and detector.network.rules is None
        super().__init__(path, detector, f"boxes of {detector.classes.name}{_UNTOLD if untold else ''}")
        self._classes = network_classes(path, {"names": json.dumps(detector.classes.names)}, table)

    def predict(self, rgb: Rgb) -> Boxes:
        """Boxes in pixels of the picture."""
        (found,) = self._found(rgb)
        kinds = self._classes.kinds(found.kinds.cpu().numpy())
        places = _left_top_width_height(found.corners)
        return Boxes(kinds[kinds >= 0], places[kinds >= 0], found.confidences.cpu().double().numpy()[kinds >= 0])

    def facts(self) -> dict[str, Any]:
        """See :class:`duskfuse.evaluate.task_predictors.TaskPredictor`."""
        return {**super().facts(), **self._classes.facts()}


class SaliencyPredictor(_TorchPredictor):
    """A saliency network of ours."""

    def __init__(self, path: Path) -> None:
        _check_kind(path, Task.SALIENCY)
        super().__init__(path, open_saliency(path), "a saliency map")

    def predict(self, rgb: Rgb) -> NDArray[np.uint8]:
        """Saliency ``[H, W]``, 0 to 255."""
        salient: NDArray[np.uint8] = (self._found(rgb)[0, 0] * 255).round().byte().cpu().numpy()
        return salient


def _left_top_width_height(corners: Tensor) -> NDArray[np.float64]:
    low, high = corners[:, :2], corners[:, 2:]
    return torch.cat([low, high - low], dim=1).cpu().double().numpy()


def _check_kind(path: Path, task: Task) -> None:
    """Raise InputError for what is neither a file nor a folder of ours."""
    if not ((path.is_dir() and task is Task.SEGMENTATION) or path.suffix.lower() == ".safetensors"):
        raise InputError(
            f"{path} has the suffix {path.suffix!r}" if path.exists() else f"{path} is not there",
            rule="--network is an .onnx file, a .safetensors file of train-task, or a folder of a segmenter",
            remedy="check the path, or export the network to ONNX",
        )


def _parts(path: Path) -> Sequence[Path]:
    """The files that a network is in."""
    if not (path.is_dir() or path.name == "model.safetensors"):
        return [path]
    folder = path if path.is_dir() else path.parent
    return sorted(folder.glob("*.json")) + sorted(folder.glob("*.safetensors"))
