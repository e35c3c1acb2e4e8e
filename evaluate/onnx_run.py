"""A task network in an ONNX file: its input and outputs as the file declares them, and running it on one picture."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from duskfuse.data.containers import Size
from duskfuse.data.errors import InputError
from duskfuse.evaluate.fusers import size_text
from duskfuse.evaluate.methods import model_sha256
from duskfuse.evaluate.network_pictures import Placed
from duskfuse.tasks.encoders import IMAGENET_MEAN, IMAGENET_STD
from duskfuse.tasks.segmenter import SIDE_MULTIPLE
from duskfuse.tasks.task_network import Task

FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
INTEGERS = frozenset({"tensor(int64)", "tensor(int32)", "tensor(uint8)"})
"""Types of values as ONNX Runtime calls them."""

_PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")
_OUTPUT_RULES = {
    Task.SEGMENTATION: "segmentation has logits [N,C,h,w] (float) or ids [N,H,W] (integer)",
    Task.DETECTION: "detection has boxes [N,M,4], scores [N,M] and labels [N,M] (boxes as corners in pixels), or one "
    "YOLO output [N,4+C,A] without NMS",
    Task.SALIENCY: "saliency has one float output [N,1,H,W]",
}


class NetworkInput(StrEnum):
    """What values a network wants its RGB input in."""

    UNIT = "unit"
    """0 to 1."""
    IMAGENET = "imagenet"
    """0 to 1, minus the mean and divided by the deviation of ImageNet, by channel."""


class Value(NamedTuple):
    """An input or output as the file declares it."""

    name: str
    type: str
    shape: tuple[Any, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.type} [{','.join(map(str, self.shape))}]"


class OnnxRun:
    """A session with one picture as input."""

    def __init__(self, path: Path, task: Task, network_input: NetworkInput | None) -> None:
        self.path, self.task = path, task
        session = self._session = _open_session(path)
        self.inputs = [Value(value.name, value.type, tuple(value.shape or ())) for value in session.get_inputs()]
        self.outputs = [Value(value.name, value.type, tuple(value.shape or ())) for value in session.get_outputs()]
        self.metadata: dict[str, str] = dict(session.get_modelmeta().custom_metadata_map)
        self.provider = str(session.get_providers()[0])
        self.size = self._fixed_size()
        self.input = self._convention(network_input)
        self.sha256 = model_sha256(path)

    def __call__(self, placed: Placed) -> dict[str, NDArray[Any]]:
        """The outputs by name."""
        values = placed.values
        if self.input is NetworkInput.IMAGENET:
            mean, std = (torch.tensor(channels).view(1, 3, 1, 1) for channels in (IMAGENET_MEAN, IMAGENET_STD))
            values = (values - mean) / std
        first = self.inputs[0]
        try:
            found = self._session.run(None, {first.name: values.numpy().astype(FLOATS[first.type])})
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

    def first_output(self, fits: Callable[[Value], bool]) -> Value | None:
        """The first output of a kind; None where there is none."""
        return next((value for value in self.outputs if fits(value)), None)

    def refuse_outputs(self, why: str = "") -> InputError:
        """The error for outputs that are not those of the task."""
        seen = f"{self.path} is not a {self.task} network: outputs " + (", ".join(map(str, self.outputs)) or "none")
        return InputError(
            seen + (f"; {why}" if why else ""),
            rule=_OUTPUT_RULES[self.task],
            remedy="export the network with these outputs, or name another --task",
        )

    def facts(self) -> dict[str, Any]:
        """What a reader of the scores has to know of the file, as plain data."""
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
        if first is not None and first.type in FLOATS and len(first.shape) == 4:
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
