"""Task networks given by path, run on one picture: ONNX files of any origin.

Those of `duskfuse.tasks` are in `duskfuse.evaluate.torch_predictors`.

Nothing is guessed silently: an ONNX file whose inputs and outputs fit no known form is refused with what was seen.
Dense outputs are brought back to the picture, logits and maps bilinearly, ids by the nearest; boxes are cut at its
edges.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from duskfuse.data.class_tables import ClassTable
from duskfuse.data.errors import InputError
from duskfuse.evaluate.network_classes import NetworkClasses, network_classes
from duskfuse.evaluate.network_pictures import Placed, Rgb, brought_back, placed_for
from duskfuse.evaluate.onnx_run import FLOATS, INTEGERS, NetworkInput, OnnxRun
from duskfuse.tasks.detection_scores import Boxes
from duskfuse.tasks.task_network import Task

LEAST_CONFIDENCE, NMS_IOU, MOST_BOXES = 0.001, 0.7, 300
"""Of YOLO outputs: what its own program keeps when it computes AP."""

_MOST_CANDIDATES = 30_000
_BOUNDED = frozenset({"Sigmoid", "HardSigmoid", "Softmax", "Clip"})
_SHAPING = frozenset({"Cast", "Gather", "Identity", "Reshape", "Resize", "Slice", "Squeeze", "Transpose", "Unsqueeze"})


class TaskPredictor(Protocol):
    """A network that predicts a task from pictures."""

    def predict(self, rgb: Rgb) -> NDArray[np.uint8] | Boxes:
        """Ids ``[H, W]`` (255 for none), a saliency map ``[H, W]``, or boxes, of one picture."""

    def facts(self) -> dict[str, Any]:
        """What a reader of the scores has to know of the network, as plain data."""


def open_onnx_predictor(
    path: Path, task: Task, table: ClassTable | None, network_input: NetworkInput | None = None
) -> TaskPredictor:
    """Open an ONNX file and check that its inputs and outputs are those of the task.

    Its metadata may say ``input`` (``unit`` or ``imagenet``), ``names`` (of the classes: JSON or Python, a list or a
    dictionary by number) and, for saliency, ``output`` (``probabilities`` or ``logits``). It runs on CUDA where ONNX
    Runtime has it, else on the CPU.

    Args:
        path: the file.
        task: what it predicts.
        table: classes of the data; None for saliency, or boxes of unknown classes. Where the file names its classes,
            they are matched by name, and those the data do not have are predictions of no class.
        network_input: values of its input, where the file does not say; by default 0 to 1.

    Raises:
        InputError: missing, no ONNX file, of other inputs or outputs, of other classes, or the file says otherwise.
    """
    run = OnnxRun(path, task, network_input)
    if task is Task.SALIENCY:
        return _SaliencyNetwork(run)
    classes = network_classes(path, run.metadata, table)
    return _Segmenter(run, classes) if task is Task.SEGMENTATION else _open_detector(run, classes)


class _Segmenter:
    def __init__(self, run: OnnxRun, classes: NetworkClasses) -> None:
        self._run, self._classes = run, classes
        self._logits = run.first_output(lambda value: value.type in FLOATS and len(value.shape) == 4)
        self._ids = run.first_output(lambda value: value.type in INTEGERS and len(value.shape) == 3)
        if self._logits is None and self._ids is None:
            raise run.refuse_outputs()
        if self._logits is not None and isinstance(self._logits.shape[1], int):
            classes.check_count(self._logits.shape[1])

    def predict(self, rgb: Rgb) -> NDArray[np.uint8]:
        """Class ids of the data, ``[H, W]``; 255 for a class that they do not have."""
        placed = placed_for(rgb, self._run.size)
        outputs = self._run(placed)
        if self._logits is not None:
            logits = torch.from_numpy(outputs[self._logits.name].astype(np.float32))
            self._classes.check_count(logits.shape[1])
            return self._classes.ids(brought_back(logits, placed)[0].argmax(0).numpy())
        assert self._ids is not None
        ids = torch.from_numpy(outputs[self._ids.name].astype(np.int64))[:, None]
        return self._classes.ids(brought_back(ids.double(), placed, "nearest-exact")[0, 0].long().numpy())

    def facts(self) -> dict[str, Any]:
        """See :class:`TaskPredictor`."""
        used = self._logits or self._ids
        return {**self._run.facts(), "output": str(used), **self._classes.facts()}


class _SaliencyNetwork:
    def __init__(self, run: OnnxRun) -> None:
        self._run = run
        output = run.first_output(lambda value: value.type in FLOATS and len(value.shape) == 4)
        if output is None or (isinstance(output.shape[1], int) and output.shape[1] != 1):
            raise run.refuse_outputs()
        self._output = output
        self._is_probability = _gives_probabilities(run, output.name)

    def predict(self, rgb: Rgb) -> NDArray[np.uint8]:
        """Saliency ``[H, W]``, 0 to 255."""
        placed = placed_for(rgb, self._run.size)
        found = torch.from_numpy(self._run(placed)[self._output.name].astype(np.float32))
        if found.shape[1] != 1:
            raise self._run.refuse_outputs(f"it gave {list(found.shape)}")
        if not self._is_probability:
            found = found.sigmoid()
        elif found.min() < -1e-3 or found.max() > 1 + 1e-3:
            raise InputError(
                f"{self._run.path}: probabilities from {float(found.min()):g} to {float(found.max()):g}",
                rule="a probability is from 0 to 1",
                remedy="say output = logits in the metadata of the file if they are logits",
            )
        salient: NDArray[np.uint8] = (brought_back(found, placed)[0, 0].clamp(0, 1) * 255).round().byte().numpy()
        return salient

    def facts(self) -> dict[str, Any]:
        """See :class:`TaskPredictor`."""
        kind = "probabilities" if self._is_probability else "logits"
        return {**self._run.facts(), "output": f"{self._output}, {kind}"}


def _open_detector(run: OnnxRun, classes: NetworkClasses) -> TaskPredictor:
    if len(run.outputs) >= 3:
        return _CornersDetector(run, classes)
    return _YoloDetector(run, classes)


class _CornersDetector:
    """Boxes as corners, scores and labels, each its own output."""

    def __init__(self, run: OnnxRun, classes: NetworkClasses) -> None:
        self._run, self._classes = run, classes
        labels = run.first_output(lambda value: value.type in INTEGERS and len(value.shape) in (1, 2))
        boxes = run.first_output(
            lambda value: value.type in FLOATS and len(value.shape) in (2, 3) and value.shape[-1] == 4
        )
        scores = run.first_output(
            lambda value: value.type in FLOATS and len(value.shape) in (1, 2) and value is not boxes
        )
        if labels is None or boxes is None or scores is None:
            raise run.refuse_outputs()
        self._names = boxes.name, scores.name, labels.name

    def predict(self, rgb: Rgb) -> Boxes:
        """Boxes in pixels of the picture."""
        placed = placed_for(rgb, self._run.size, boxed=True)
        outputs = self._run(placed)
        boxes, scores, labels = (outputs[name] for name in self._names)
        corners, confidences = boxes.reshape(-1, 4).astype(np.float64), scores.reshape(-1).astype(np.float64)
        kinds = labels.reshape(-1).astype(np.int64)
        if not len(corners) == len(confidences) == len(kinds):
            raise self._run.refuse_outputs(
                f"it gave {len(corners)} boxes, {len(confidences)} scores, {len(kinds)} labels"
            )
        return _boxes(self._run, self._classes, corners, confidences, kinds, placed)

    def facts(self) -> dict[str, Any]:
        """See :class:`TaskPredictor`."""
        return {**self._run.facts(), "output": "boxes, scores, labels", **self._classes.facts()}


class _YoloDetector:
    """Centre, size and the confidence of each class for every anchor, ``[N, 4 + C, A]``, as YOLOv8 and 11 export."""

    def __init__(self, run: OnnxRun, classes: NetworkClasses) -> None:
        self._run, self._classes = run, classes
        output = run.first_output(lambda value: value.type in FLOATS and len(value.shape) == 3)
        if output is None:
            raise run.refuse_outputs()
        self._output = output
        rows = output.shape[1]
        if isinstance(rows, int):
            self._check_rows(rows, output.shape[2])

    def predict(self, rgb: Rgb) -> Boxes:
        """Boxes in pixels of the picture, after NMS class by class."""
        from torchvision.ops import batched_nms

        placed = placed_for(rgb, self._run.size, boxed=True)
        found = torch.from_numpy(self._run(placed)[self._output.name][0].astype(np.float32))
        self._check_rows(*found.shape)
        centre, size, confidence = found[:2], found[2:4], found[4:]
        kinds, anchors = (confidence > LEAST_CONFIDENCE).nonzero(as_tuple=True)
        scores = confidence[kinds, anchors]
        best = scores.argsort(descending=True, stable=True)[:_MOST_CANDIDATES]
        kinds, anchors, scores = kinds[best], anchors[best], scores[best]
        corners = torch.cat([centre - size / 2, centre + size / 2]).T[anchors]
        kept = batched_nms(corners, scores, kinds, NMS_IOU)[:MOST_BOXES]
        places, confidences = (values[kept].double().numpy() for values in (corners, scores))
        return _boxes(self._run, self._classes, places, confidences, kinds[kept].numpy(), placed)

    def facts(self) -> dict[str, Any]:
        """See :class:`TaskPredictor`."""
        nms = f"NMS at IoU {NMS_IOU} by class, confidence above {LEAST_CONFIDENCE}, at most {MOST_BOXES}"
        return {**self._run.facts(), "output": f"{self._output}, {nms}", **self._classes.facts()}

    def _check_rows(self, rows: int, anchors: Any) -> None:
        if rows < 5 or (isinstance(anchors, int) and anchors < rows and self._classes.count != rows - 4):
            raise self._run.refuse_outputs("transposed, or with NMS inside")
        self._classes.check_count(rows - 4)


def _gives_probabilities(run: OnnxRun, output: str) -> bool:
    """Whether a map is in [0, 1]: as the metadata say, else whether its values come out of a sigmoid or a clip."""
    import onnx

    stated = run.metadata.get("output")
    if stated is not None:
        if stated not in ("probabilities", "logits"):
            raise InputError(
                f"{run.path}: its metadata say output {stated[:40]!r}",
                rule="output is probabilities or logits",
                remedy="correct or remove this entry of the metadata",
            )
        return stated == "probabilities"
    graph = onnx.load(run.path, load_external_data=False).graph
    makers = {name: node for node in graph.node for name in node.output}
    while output in makers and makers[output].op_type in _SHAPING:
        output = makers[output].input[0]
    return output in makers and makers[output].op_type in _BOUNDED


def _boxes(
    run: OnnxRun,
    classes: NetworkClasses,
    corners: NDArray[np.float64],
    confidences: NDArray[np.float64],
    numbers: NDArray[np.int64],
    placed: Placed,
) -> Boxes:
    """Boxes of the data's classes in the picture, from corners ``[M, 4]`` in what the network got."""
    if confidences.size and not (confidences.min() >= 0 and confidences.max() <= 1):
        raise InputError(
            f"{run.path}: confidences from {confidences.min():g} to {confidences.max():g}",
            rule="a confidence is from 0 to 1",
            remedy="export the network with its sigmoid or softmax",
        )
    kinds = classes.kinds(numbers)
    scale = np.array([placed.size[1] / placed.inside[1], placed.size[0] / placed.inside[0]] * 2)
    moved = (corners - np.array([placed.left, placed.top] * 2)) * scale
    moved = np.clip(moved, 0, np.array([placed.size[1], placed.size[0]] * 2))
    sides = moved[:, 2:] - moved[:, :2]
    kept = (kinds >= 0) & (sides > 0).all(axis=1)
    return Boxes(kinds[kept], np.concatenate([moved[:, :2], sides], axis=1)[kept], confidences[kept])
