"""Networks to estimate: students and ONNX files, each with every size known."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from duskfuse.data.errors import InputError
from duskfuse.data.images import file_sha256
from duskfuse.evaluate.fusers import size_text
from duskfuse.export.estimate.kernels import is_quantised
from duskfuse.export.onnx_graph import DeployedStudent, Precision, build_graph, fold_sizes
from duskfuse.export.sizes import parse_size

USUAL_SIZE = (480, 640)


@dataclass(frozen=True)
class StaticGraph:
    """A graph for pictures of one size."""

    name: str
    model: onnx.ModelProto
    size: tuple[int, int]
    """(height, width)."""
    precision: Precision | None
    """The precision that the file has inside; None for float32, which TensorRT builds in any."""
    sha256: str | None = None
    """Of the file; None of a student."""


def open_graph(item: str | Path, size: str | None) -> StaticGraph:
    """Open a zoo name, a student checkpoint or an ONNX file; raises InputError where that cannot be."""
    shape = None if size is None else parse_size(size)
    if Path(item).suffix.lower() == ".onnx":
        return _open_file(Path(item), shape)
    from duskfuse.students.zoo import load_student

    student, _ = load_student(item)
    name = Path(item).stem if isinstance(item, Path) else str(item)
    shape = shape or USUAL_SIZE
    return StaticGraph(name, build_graph(DeployedStudent(student), size=shape), shape, None)


def _open_file(path: Path, shape: tuple[int, int] | None) -> StaticGraph:
    try:
        model = onnx.load(path, load_external_data=False)
        onnx.shape_inference.infer_shapes(model, strict_mode=False)
    except (OSError, DecodeError, onnx.shape_inference.InferenceError, ValueError) as error:
        raise InputError(f"{path} cannot be read as ONNX ({error})", remedy="give an ONNX file or a student") from None
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    if not inputs:
        raise InputError(f"{path} has no inputs", remedy="give the ONNX file of a network")
    sizes = {_fix(value, path, shape) for value in inputs}
    if any(0 in size for size in sizes):
        raise InputError(f"{path} has inputs that are no pictures", rule="they are [N, C, H, W] or of known size")
    _forget_inner_sizes(model)
    fold_sizes(model)
    half = any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in model.graph.initializer)
    precision = Precision.INT8 if is_quantised(model) else Precision.FP16 if half else None
    return StaticGraph(path.stem, model, max(sizes), precision, file_sha256(path))


def _fix(value: onnx.ValueInfoProto, path: Path, shape: tuple[int, int] | None) -> tuple[int, int]:
    """Write one picture of ``shape`` into the free sides of an input; return its (height, width)."""
    dims = value.type.tensor_type.shape.dim
    if len(dims) != 4:
        return 0, 0
    own = dims[2].dim_value, dims[3].dim_value
    if shape is not None and 0 not in own and own != shape:
        raise InputError(f"{path} takes pictures of {size_text(own)} only", remedy=f"give --size {size_text(own)}")
    for dim, side in zip(dims, (1, 1, *(shape or USUAL_SIZE)), strict=True):
        if not dim.dim_value:
            dim.dim_value = side
    return dims[2].dim_value, dims[3].dim_value


def _forget_inner_sizes(model: onnx.ModelProto) -> None:
    """Remove the symbolic sizes that the exporter noted, which would contradict the fixed ones."""
    del model.graph.value_info[:]
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
