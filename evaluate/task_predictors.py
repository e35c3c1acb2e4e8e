"""Task networks given by path, run on one picture: ONNX files of any origin, and the segmenters of `duskfuse.tasks`.

Nothing is guessed silently: an ONNX file whose inputs and outputs fit no known form is refused with what was seen.
Pictures are RGB. A file of a fixed size gets segmentation and saliency pictures resized to it (bilinear, antialiased)
and detection pictures resized in proportion and centred on grey, as YOLO's own program does; a file of free size gets
pictures continued at the bottom and right to a multiple of 32, by reflection, for detection with grey. Outputs are
brought back to the picture: logits and maps bilinearly, ids by the nearest, boxes in float, cut at the edges.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from duskfuse.data.class_conventions import Convention
from duskfuse.data.class_tables import IGNORED, ClassTable
from duskfuse.data.containers import Size
from duskfuse.data.errors import InputError
from duskfuse.data.geometry import pad_reflected
from duskfuse.evaluate.detection import Boxes
from duskfuse.evaluate.fusers import size_text
from duskfuse.evaluate.methods import model_sha256
from duskfuse.evaluate.prediction_files import files_sha256
from duskfuse.evaluate.task_results import Task
from duskfuse.tasks.encoders import IMAGENET_MEAN, IMAGENET_STD
from duskfuse.tasks.open_segmenter import open_segmenter
from duskfuse.tasks.segmenter import SIDE_MULTIPLE, Segmenter

Rgb = NDArray[np.uint8]
"""``[H, W, 3]``."""

LEAST_CONFIDENCE, NMS_IOU, MOST_BOXES = 0.001, 0.7, 300
"""Of YOLO outputs: what its own program keeps when it computes AP."""

_FILL = 114 / 255
_MOST_CANDIDATES = 30_000
_PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")
_FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_INTEGERS = frozenset({"tensor(int64)", "tensor(int32)", "tensor(uint8)"})
_OUTPUT_RULES = {
    Task.SEGMENTATION: "segmentation has logits [N,C,h,w] (float) or ids [N,H,W] (integer)",
    Task.DETECTION: "detection has boxes [N,M,4], scores [N,M] and labels [N,M] (boxes as corners in pixels), or one "
    "YOLO output [N,4+C,A] without NMS",
    Task.SALIENCY: "saliency has one float output [N,1,H,W]",
}
_BOUNDED = frozenset({"Sigmoid", "HardSigmoid", "Softmax", "Clip"})
_SHAPING = frozenset({"Cast", "Gather", "Identity", "Reshape", "Resize", "Slice", "Squeeze", "Transpose", "Unsqueeze"})


class NetworkInput(StrEnum):
    """What values a network wants its RGB input in."""

    UNIT = "unit"
    """0 to 1."""
    IMAGENET = "imagenet"
    """0 to 1, minus the mean and divided by the deviation of ImageNet, by channel."""


class TaskPredictor(Protocol):
    """A network that predicts a task from pictures."""

    def predict(self, rgb: Rgb) -> NDArray[np.uint8] | Boxes:
        """Ids ``[H, W]`` (255 for none), a saliency map ``[H, W]``, or boxes, of one picture."""

    def facts(self) -> dict[str, Any]:
        """What a reader of the scores has to know of the network, as plain data."""


def open_segmenter_predictor(path: Path, classes: Convention) -> TaskPredictor:
    """Open a segmenter of ours, or a folder of another program's, see `duskfuse.tasks.open_segmenter`."""
    if not (path.is_dir() or path.suffix.lower() == ".safetensors"):
        raise InputError(
            f"{path} has the suffix {path.suffix!r}" if path.exists() else f"{path} is not there",
            rule="--network is an .onnx file, or for segmentation a .safetensors file or folder of a segmenter",
            remedy="check the path, or export the network to ONNX",
        )
    return _TorchSegmenter(path, open_segmenter(path, classes))


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
    run = _Run(path, task, network_input)
    if task is Task.SALIENCY:
        return _SaliencyNetwork(run)
    classes = _classes(run, table)
    return _Segmenter(run, classes) if task is Task.SEGMENTATION else _open_detector(run, classes)


class _Value(NamedTuple):
    """An input or output as the file declares it."""

    name: str
    type: str
    shape: tuple[Any, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.type} [{','.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class _Placed:
    """A picture as the network gets it."""

    values: Tensor
    """``[1, 3, h, w]`` in [0, 1]."""
    top: int
    left: int
    inside: Size
    """(height, width) of the picture there; around it is what was added."""
    size: Size
    """Of the picture itself."""


class _Run:
    """A session with one picture as input."""

    def __init__(self, path: Path, task: Task, network_input: NetworkInput | None) -> None:
        self.path, self.task = path, task
        session = self._session = _open_session(path)
        self.inputs = [_Value(value.name, value.type, tuple(value.shape or ())) for value in session.get_inputs()]
        self.outputs = [_Value(value.name, value.type, tuple(value.shape or ())) for value in session.get_outputs()]
        self.metadata: dict[str, str] = dict(session.get_modelmeta().custom_metadata_map)
        self.provider = str(session.get_providers()[0])
        self.size = self._fixed_size()
        self.input = self._convention(network_input)
        self.sha256 = model_sha256(path)

    def __call__(self, placed: _Placed) -> dict[str, NDArray[Any]]:
        """The outputs by name."""
        values = placed.values
        if self.input is NetworkInput.IMAGENET:
            mean, std = (torch.tensor(channels).view(1, 3, 1, 1) for channels in (IMAGENET_MEAN, IMAGENET_STD))
            values = (values - mean) / std
        first = self.inputs[0]
        try:
            found = self._session.run(None, {first.name: values.numpy().astype(_FLOATS[first.type])})
        except Exception as error:  # ONNX Runtime has no common base class for its errors
            shown = size_text(tuple(values.shape[-2:]))
            raise InputError(
                f"{self.path} fails on a picture of {shown} ({str(error).splitlines()[0][:200]})",
                rule=f"a file of free size takes every size whose sides are multiples of {SIDE_MULTIPLE}",
                remedy="export it with a fixed size that it takes",
            ) from error
        outputs = dict(zip((output.name for output in self.outputs), found, strict=True))
        for name, values_out in outputs.items():
            if values_out.dtype.kind == "f" and not np.isfinite(values_out).all():
                raise InputError(
                    f"{self.path}: output {name} holds NaN or infinite values",
                    rule="predictions are numbers",
                    remedy="check --network-input, and the export (fp16 overflows above 65504)",
                )
        return outputs

    def refuse_outputs(self, why: str = "") -> InputError:
        """The error for outputs that are not those of the task."""
        seen = f"{self.path} is not a {self.task} network: outputs " + (", ".join(map(str, self.outputs)) or "none")
        return InputError(
            seen + (f"; {why}" if why else ""),
            rule=_OUTPUT_RULES[self.task],
            remedy="export the network with these outputs, or name another --task",
        )

    def facts(self) -> dict[str, Any]:
        return {
            "file": self.path.name,
            "sha256": self.sha256,
            "runs_on": self.provider.removesuffix("ExecutionProvider"),
            "input": str(self.input),
            "size": None if self.size is None else size_text(self.size),
        }

    def _fixed_size(self) -> Size | None:
        """Check the input; its (height, width), None where both are free."""
        first = self.inputs[0] if len(self.inputs) == 1 else None
        if first is not None and first.type in _FLOATS and len(first.shape) == 4:
            batch, channels, height, width = first.shape
            if batch in (1, None) or isinstance(batch, str):
                fixed = [isinstance(side, int) and side > 0 for side in (height, width)]
                if channels == 3 and all(fixed):
                    return height, width
                if channels == 3 and not any(fixed):
                    return None
        raise InputError(
            f"{self.path} has the inputs {', '.join(map(str, self.inputs)) or 'none'}",
            rule="a task network has one float input [1,3,H,W], RGB, H and W both fixed or both free",
            remedy="export it for one RGB picture",
        )

    def _convention(self, given: NetworkInput | None) -> NetworkInput:
        stated = self.metadata.get("input")
        if stated is None:
            return NetworkInput.UNIT if given is None else given
        if stated not in list(NetworkInput):
            raise InputError(
                f"{self.path}: its metadata say input {stated[:40]!r}",
                rule=f"input is one of {', '.join(NetworkInput)}",
                remedy="correct or remove this entry of the metadata",
            )
        if given is not None and given != stated:
            raise InputError(
                f"--network-input {given}, and the metadata of {self.path} say {stated}",
                rule="the file's own statement holds",
                remedy="leave --network-input away, or correct the metadata",
            )
        return NetworkInput(stated)


class _Segmenter:
    def __init__(self, run: _Run, classes: _Classes) -> None:
        self._run, self._classes = run, classes
        self._logits = _first(run, lambda value: value.type in _FLOATS and len(value.shape) == 4)
        self._ids = _first(run, lambda value: value.type in _INTEGERS and len(value.shape) == 3)
        if self._logits is None and self._ids is None:
            raise run.refuse_outputs()
        if self._logits is not None and isinstance(self._logits.shape[1], int):
            classes.check_count(self._logits.shape[1])

    def predict(self, rgb: Rgb) -> NDArray[np.uint8]:
        """Class ids of the data, ``[H, W]``; 255 for a class that they do not have."""
        placed = _placed(rgb, self._run.size)
        outputs = self._run(placed)
        if self._logits is not None:
            logits = torch.from_numpy(outputs[self._logits.name].astype(np.float32))
            self._classes.check_count(logits.shape[1])
            return self._classes.ids(_brought_back(logits, placed)[0].argmax(0).numpy())
        assert self._ids is not None
        ids = torch.from_numpy(outputs[self._ids.name].astype(np.int64))[:, None]
        return self._classes.ids(_brought_back(ids.double(), placed, "nearest-exact")[0, 0].long().numpy())

    def facts(self) -> dict[str, Any]:
        """See :class:`TaskPredictor`."""
        used = self._logits or self._ids
        return {**self._run.facts(), "output": str(used), **self._classes.facts()}


class _TorchSegmenter:
    def __init__(self, path: Path, segmenter: Segmenter) -> None:
        self._path = path
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._segmenter = segmenter.to(self._device)

    def predict(self, rgb: Rgb) -> NDArray[np.uint8]:
        """Class ids of the data, ``[H, W]``."""
        ids: NDArray[np.uint8] = self._segmenter.ids(_unit(rgb).to(self._device))[0].cpu().numpy()
        return ids

    def facts(self) -> dict[str, Any]:
        """See :class:`TaskPredictor`."""
        in_folder = self._path.is_dir() or self._path.name == "model.safetensors"
        folder = self._path if self._path.is_dir() else self._path.parent
        parts = sorted(folder.glob("*.json")) + sorted(folder.glob("*.safetensors")) if in_folder else [self._path]
        return {
            "file": self._path.name,
            "sha256": files_sha256({part.name: part for part in parts}),
            "runs_on": self._device.type.upper(),
            "input": "its own",
            "size": None,
            "output": f"logits of {self._segmenter.classes.name}",
        }


class _SaliencyNetwork:
    def __init__(self, run: _Run) -> None:
        self._run = run
        output = _first(run, lambda value: value.type in _FLOATS and len(value.shape) == 4)
        if output is None or (isinstance(output.shape[1], int) and output.shape[1] != 1):
            raise run.refuse_outputs()
        self._output = output
        self._is_probability = _gives_probabilities(run, output.name)

    def predict(self, rgb: Rgb) -> NDArray[np.uint8]:
        """Saliency ``[H, W]``, 0 to 255."""
        placed = _placed(rgb, self._run.size)
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
        salient: NDArray[np.uint8] = (_brought_back(found, placed)[0, 0].clamp(0, 1) * 255).round().byte().numpy()
        return salient

    def facts(self) -> dict[str, Any]:
        """See :class:`TaskPredictor`."""
        kind = "probabilities" if self._is_probability else "logits"
        return {**self._run.facts(), "output": f"{self._output}, {kind}"}


def _open_detector(run: _Run, classes: _Classes) -> TaskPredictor:
    if len(run.outputs) >= 3:
        return _CornersDetector(run, classes)
    return _YoloDetector(run, classes)


class _CornersDetector:
    """Boxes as corners, scores and labels, each its own output."""

    def __init__(self, run: _Run, classes: _Classes) -> None:
        self._run, self._classes = run, classes
        labels = _first(run, lambda value: value.type in _INTEGERS and len(value.shape) in (1, 2))
        boxes = _first(run, lambda value: value.type in _FLOATS and len(value.shape) in (2, 3) and value.shape[-1] == 4)
        scores = _first(run, lambda value: value.type in _FLOATS and len(value.shape) in (1, 2) and value is not boxes)
        if labels is None or boxes is None or scores is None:
            raise run.refuse_outputs()
        self._names = boxes.name, scores.name, labels.name

    def predict(self, rgb: Rgb) -> Boxes:
        """Boxes in pixels of the picture."""
        placed = _placed(rgb, self._run.size, boxed=True)
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

    def __init__(self, run: _Run, classes: _Classes) -> None:
        self._run, self._classes = run, classes
        output = _first(run, lambda value: value.type in _FLOATS and len(value.shape) == 3)
        if output is None:
            raise run.refuse_outputs()
        self._output = output
        rows = output.shape[1]
        if isinstance(rows, int):
            self._check_rows(rows, output.shape[2])

    def predict(self, rgb: Rgb) -> Boxes:
        """Boxes in pixels of the picture, after NMS class by class."""
        from torchvision.ops import batched_nms

        placed = _placed(rgb, self._run.size, boxed=True)
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


@dataclass(frozen=True)
class _Classes:
    """What the class numbers of a network mean in the data."""

    path: Path
    table: ClassTable | None
    stated: tuple[str, ...] | None
    """Names of the classes, where the file says them."""
    ours: NDArray[np.int64] | None
    """Number of the network → number in the data, 255 for none; None where they are the same."""

    @property
    def count(self) -> int | None:
        """How many the network must have; None where nobody says it."""
        if self.stated is not None:
            return len(self.stated)
        return None if self.table is None else len(self.table)

    def check_count(self, seen: int) -> None:
        """Raise InputError where the network has another number of classes."""
        if self.count is None or seen == self.count:
            return
        if self.stated is not None:
            rule = f"its metadata name {self.count}"
        else:
            assert self.table is not None
            rule = f"without names in its metadata, its classes are the {self.count} of {self.table.title}, in order"
        raise InputError(
            f"{self.path} has {seen} classes",
            rule=rule,
            remedy="put `names` into its metadata, or name other --classes",
        )

    def ids(self, numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Label ids of the data from the network's numbers; 255 for none."""
        known = numbers[numbers != IGNORED]
        most = self.count
        if known.size and (known.min() < 0 or (most is not None and known.max() >= most)):
            raise self._unknown(int(known.min() if known.min() < 0 else known.max()))
        if self.ours is None:
            return numbers.astype(np.uint8)
        full = np.full(IGNORED + 1, IGNORED, np.int64)
        full[: len(self.ours)] = self.ours
        return full[numbers].astype(np.uint8)

    def kinds(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Classes of boxes from the network's numbers; -1 for none."""
        if numbers.size and (numbers.min() < 0 or (self.count is not None and numbers.max() >= self.count)):
            raise self._unknown(int(numbers.min() if numbers.min() < 0 else numbers.max()))
        if self.ours is None:
            return numbers
        ours = self.ours[numbers]
        return np.where(ours == IGNORED, -1, ours)

    def facts(self) -> dict[str, Any]:
        """Class of the network → class of the data, None for none; nothing where they are the same."""
        if self.ours is None or self.stated is None or self.table is None:
            return {}
        names = self.table.names
        pairs = zip(self.stated, self.ours, strict=True)
        return {"classes": {stated: None if our == IGNORED else names[our] for stated, our in pairs}}

    def _unknown(self, number: int) -> InputError:
        return InputError(
            f"{self.path} predicts class {number}",
            rule=f"there are {self.count} classes, numbered from 0",
            remedy="put `names` into its metadata (for a network whose first class is background, name it so)",
        )


def _classes(run: _Run, table: ClassTable | None) -> _Classes:
    stated = _stated_names(run)
    if stated is None or table is None:
        return _Classes(run.path, table, stated, None)
    ours = np.array([_id_of(name, table) for name in stated], np.int64)
    nothing_is_none = IGNORED in dict(table.levels)  # 255 in a picture is a class there
    if (ours == IGNORED).all() or (nothing_is_none and (ours == IGNORED).any()):
        raise InputError(
            f"{run.path} names the classes {', '.join(stated[:8])}{', …' if stated[8:] else ''}",
            rule=f"classes are matched by name with those of {table.title}: {', '.join(table.names)}",
            remedy="correct `names` in its metadata, or name other --classes",
        )
    return _Classes(run.path, table, stated, ours)


def _id_of(name: str, table: ClassTable) -> int:
    try:
        found = table.id_of(name)
    except InputError:
        return IGNORED
    return IGNORED if found is None else found


def _stated_names(run: _Run) -> tuple[str, ...] | None:
    text = run.metadata.get("names")
    if text is None:
        return None
    try:
        names = json.loads(text)
    except ValueError:
        try:
            names = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            names = None
    if isinstance(names, dict):
        by_number = {str(number): name for number, name in names.items()}
        names = [by_number.get(str(number)) for number in range(len(by_number))]
    if not (
        isinstance(names, list | tuple) and names and len(names) < IGNORED and all(isinstance(n, str) for n in names)
    ):
        raise InputError(
            f"{run.path}: its metadata say names {text[:60]!r}",
            rule="names are a list of texts, or a dictionary of them by number from 0; fewer than 255",
            remedy="correct or remove this entry of the metadata",
        )
    return tuple(names)


def _open_session(path: Path) -> Any:
    import onnxruntime

    if not path.is_file():
        raise InputError(f"{path} is not there", rule="--network is an existing file", remedy="check the path")
    if path.suffix.lower() != ".onnx":
        raise InputError(
            f"{path} has the suffix {path.suffix!r}", rule="a task network is an .onnx file", remedy="export it to ONNX"
        )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.use_deterministic_compute = True
    available = onnxruntime.get_available_providers()
    try:
        return onnxruntime.InferenceSession(
            str(path), options, providers=[provider for provider in _PROVIDERS if provider in available]
        )
    except Exception as error:  # ONNX Runtime has no common base class for its loading errors
        raise InputError(
            f"{path} cannot be opened as an ONNX network ({str(error).splitlines()[0]})",
            rule="an .onnx file must be complete and undamaged",
            remedy="copy or export it again",
        ) from error


def _first(run: _Run, fits: Any) -> _Value | None:
    return next((value for value in run.outputs if fits(value)), None)


def _gives_probabilities(run: _Run, output: str) -> bool:
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


def _placed(rgb: Rgb, fixed: Size | None, *, boxed: bool = False) -> _Placed:
    """A picture at the size that the network takes; ``boxed`` keeps its proportions and fills up with grey."""
    values = _unit(rgb)
    height, width = rgb.shape[:2]
    if fixed is None:
        whole = tuple(-(-side // SIDE_MULTIPLE) * SIDE_MULTIPLE for side in (height, width))
        if boxed:
            return _Placed(_on_grey(values, whole, 0, 0), 0, 0, (height, width), (height, width))
        return _Placed(pad_reflected(values, (whole[0], whole[1])), 0, 0, (height, width), (height, width))
    if not boxed:
        return _Placed(_resized(values, fixed), 0, 0, fixed, (height, width))
    scale = min(fixed[0] / height, fixed[1] / width)
    inside = max(1, round(height * scale)), max(1, round(width * scale))
    top, left = (fixed[0] - inside[0]) // 2, (fixed[1] - inside[1]) // 2
    return _Placed(_on_grey(_resized(values, inside), fixed, top, left), top, left, inside, (height, width))


def _unit(rgb: Rgb) -> Tensor:
    """``[1, 3, H, W]`` in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(rgb)).permute(2, 0, 1)[None].float() / 255


def _resized(values: Tensor, size: Size) -> Tensor:
    if tuple(values.shape[-2:]) == size:
        return values
    return F.interpolate(values, size, mode="bilinear", align_corners=False, antialias=True).clamp(0, 1)


def _on_grey(values: Tensor, size: Sequence[int], top: int, left: int) -> Tensor:
    whole = torch.full((1, 3, size[0], size[1]), _FILL)
    whole[..., top : top + values.shape[-2], left : left + values.shape[-1]] = values
    return whole


def _brought_back(found: Tensor, placed: _Placed, mode: str = "bilinear") -> Tensor:
    """A dense output ``[1, C, h, w]`` at the size of the picture, ``[1, C, H, W]``."""
    whole = tuple(placed.values.shape[-2:])
    corners = {"align_corners": False} if mode == "bilinear" else {}
    if whole != placed.inside:
        if tuple(found.shape[-2:]) != whole:
            found = F.interpolate(found, whole, mode=mode, **corners)
        return found[..., : placed.inside[0], : placed.inside[1]]
    if tuple(found.shape[-2:]) != placed.size:
        found = F.interpolate(found, placed.size, mode=mode, **corners)
    return found


def _boxes(
    run: _Run,
    classes: _Classes,
    corners: NDArray[np.float64],
    confidences: NDArray[np.float64],
    numbers: NDArray[np.int64],
    placed: _Placed,
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
