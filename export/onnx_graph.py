"""Write a student as one self-contained ONNX file that ONNX Runtime and TensorRT 8.5 to 11 read.

The contract: inputs ``ir`` and ``vis_y``, output ``fused_y``, each ``[1, 1, H, W]`` float32 in [0, 1]; for a student of
colours ``ir [1, 1, H, W]`` and ``vis [1, 3, H, W]`` give ``fused_rgb [1, 3, H, W]``. Opset 17 and IR version 8 are the
newest that TensorRT 8.5 (JetPack 5.1) accepts, and the precision is put into the file itself because TensorRT 11 takes
no precision flags. Half precision casts once on the way in and once on the way out.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from duskfuse.data.errors import VerificationError
from duskfuse.data.fuser import Colour, FusionOutput
from duskfuse.evaluate.fusers import CONTRACTS
from duskfuse.export.uncomputed import uncomputed_convolutions
from duskfuse.students.fold import fold_batchnorm

OPSET = 17
IR_VERSION = 8
TRACE_SIZE = (48, 64)
"""(height, width) of the example that is traced when the file takes any size."""

_LARGEST_SIZES = 2**16  # numbers in a folded constant: a mask of positions, never a picture


class Precision(StrEnum):
    """Number format of the weights and activations inside the file; inputs and outputs stay float32."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"


class DeployedStudent(nn.Module):
    """A student in the order and form of the file: ``(ir, vis) -> fused``, batch normalisation folded away."""

    def __init__(self, student: nn.Module, *, half: bool = False) -> None:
        super().__init__()
        folded = fold_batchnorm(student)
        self.student = folded.half() if half else folded.float()
        self.half_inside = half
        self.colour = Colour.RGB if getattr(student, "colour", Colour.LUMA) == Colour.RGB else Colour.LUMA

    def forward(self, ir: Tensor, vis: Tensor) -> Tensor:
        """Fuse ``[1, 1, H, W]`` and ``[1, C, H, W]``, float32 in [0, 1], into ``[1, C, H, W]``."""
        if self.half_inside:
            ir, vis = ir.half(), vis.half()
        made: FusionOutput = self.student(vis, ir)
        fused = made.y if made.rgb is None else made.rgb
        return fused.float() if self.half_inside else fused


def build_graph(deployed: DeployedStudent, *, size: tuple[int, int] | None = None) -> onnx.ModelProto:
    """Trace ``deployed`` into a checked ONNX model.

    ``size`` is the fixed (height, width); None leaves both free. Raises VerificationError where the graph breaks the
    contract.
    """
    height, width = size or TRACE_SIZE
    contract = CONTRACTS[deployed.colour]
    example = torch.rand(1, 1, height, width), torch.rand(1, contract.channels, height, width)
    axes = None if size else {name: {2: "height", 3: "width"} for name in (*contract.inputs, contract.output)}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # the tracing exporter announces its successor, which cannot write opset 17
        traced = Path(folder) / "traced.onnx"
        with uncomputed_convolutions(deployed):
            torch.onnx.export(
                deployed,
                example,
                traced,
                input_names=list(contract.inputs),
                output_names=[contract.output],
                dynamic_axes=axes,
                opset_version=OPSET,
                dynamo=False,
            )
        model = onnx.load(traced)
    _drop_idle_casts(model)
    fold_sizes(model)
    _merge_pads(model)
    if size is not None:
        _fix_resizes(model)
        _drop_idle_slices(model)
    _drop_unused(model)
    check_contract(model)
    return model


def _drop_idle_casts(model: onnx.ModelProto) -> None:
    """Remove casts from a type to itself, which tracing ``tensor.to(other.dtype)`` leaves."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*inferred.value_info, *inferred.input)}
    for cast in [node for node in model.graph.node if node.op_type == "Cast"]:
        if types.get(cast.input[0]) == cast.attribute[0].i:
            for node in model.graph.node:
                node.input[:] = [cast.input[0] if name == cast.output[0] else name for name in node.input]
            model.graph.node.remove(cast)


def _fix_resizes(model: onnx.ModelProto) -> None:
    """Write the known sizes of a fixed-size file into its Resize nodes.

    TensorRT wants constants: whole-number scales where they give the size exactly, else the sizes themselves.
    """
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in inferred.value_info}
    for resize in [node for node in model.graph.node if node.op_type == "Resize"]:
        small, large = np.array(shapes[resize.input[0]]), np.array(shapes[resize.output[0]])
        whole = not (large % small).any()
        constant = (large / small).astype(np.float32) if whole else large.astype(np.int64)
        name = f"{resize.name}/{'scales' if whole else 'sizes'}"
        model.graph.initializer.append(onnx.numpy_helper.from_array(constant, name))
        resize.input[:] = [resize.input[0], "", name] if whole else [resize.input[0], "", "", name]


def fold_sizes(model: onnx.ModelProto) -> None:
    """Compute once and for all what depends on constants and known sizes alone, such as the windows of attention."""
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    sizes = {name: value for name, value in tensors.items() if value.size <= _LARGEST_SIZES}
    while computed := _computed_sizes(model, sizes):
        model.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in computed.items())
        for node in [node for node in model.graph.node if node.output[0] in computed]:
            model.graph.node.remove(node)
        sizes |= computed


def _computed_sizes(model: onnx.ModelProto, known: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Values of all nodes that depend on shapes, constants and ``known`` values only, by the name of their output."""
    values, shapes = dict(known), _shapes(model)
    for node in model.graph.node:
        if node.op_type == "Shape" and all(shapes.get(node.input[0], [0])):
            values[node.output[0]] = np.array(shapes[node.input[0]], np.int64)
        elif all(name in values for name in node.input if name) and len(node.output) == 1:
            inputs = {name: values[name] for name in node.input if name}
            result = ReferenceEvaluator(node).run(None, inputs)[0]
            if np.size(result) <= _LARGEST_SIZES:
                values[node.output[0]] = np.asarray(result)
    return {name: value for name, value in values.items() if name not in known}


def _merge_pads(model: onnx.ModelProto) -> None:
    """Let the convolutions behind a padding with zeros do it; in a fixed-size file, as far as their strides reach."""
    graph, shapes = model.graph, _shapes(model)
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for pad in [node for node in graph.node if node.op_type == "Pad"]:
        users = [node for node in graph.node if pad.output[0] in node.input]
        plain = all(attribute.s == b"constant" for attribute in pad.attribute)
        zero = not any(np.any(constants.get(name, 1)) for name in pad.input[2:] if name)
        amounts = constants.get(pad.input[1], np.full(8, -1)).tolist()
        if not plain or not zero or amounts[:2] != [0, 0] or amounts[4:6] != [0, 0] or min(amounts) < 0:
            continue
        if any(node.op_type != "Conv" for node in users):
            continue
        for conv in users:
            conv.input[0] = pad.input[0]
            _pad_more(conv, amounts[2:4], amounts[6:], shapes.get(pad.input[0], [])[2:])
        graph.node.remove(pad)


def _pad_more(conv: onnx.NodeProto, before: Sequence[int], after: Sequence[int], sides: Sequence[int]) -> None:
    """Add to the padding of a convolution of a map of ``sides`` (0 where not known)."""
    attributes = {attribute.name: attribute.ints for attribute in conv.attribute}
    pads, kernel, strides = (list(attributes[name]) for name in ("pads", "kernel_shape", "strides"))
    for axis, side in enumerate(sides):
        pads[axis] += before[axis]
        pads[2 + axis] += after[axis]
        if side and attributes["dilations"][axis] == 1:
            steps = (side + pads[axis] + pads[2 + axis] - kernel[axis]) // strides[axis]
            pads[2 + axis] = max(0, steps * strides[axis] + kernel[axis] - side - pads[axis])
    attributes["pads"][:] = pads


def _shapes(model: onnx.ModelProto) -> dict[str, list[int]]:
    """Shapes of inputs and inner values by name, 0 where a side is not known."""
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    return {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*inferred.value_info, *inferred.input)
        if value.type.tensor_type.HasField("shape")
    }


def _drop_idle_slices(model: onnx.ModelProto) -> None:
    """Remove slices of a fixed-size file that keep everything: cropping to a size that fits anyway."""
    shapes = _shapes(model)
    outputs = {value.name for value in model.graph.output}
    for cut in [node for node in model.graph.node if node.op_type == "Slice"]:
        if shapes.get(cut.input[0]) == shapes.get(cut.output[0], []) and cut.output[0] not in outputs:
            for node in model.graph.node:
                node.input[:] = [cut.input[0] if name == cut.output[0] else name for name in node.input]
            model.graph.node.remove(cut)


def _drop_unused(model: onnx.ModelProto) -> None:
    """Remove nodes and constants that no output depends on."""
    needed = {value.name for value in model.graph.output}
    for node in reversed(list(model.graph.node)):
        if needed.isdisjoint(node.output):
            model.graph.node.remove(node)
        else:
            needed.update(node.input)
    for tensor in [tensor for tensor in model.graph.initializer if tensor.name not in needed]:
        model.graph.initializer.remove(tensor)


def check_contract(model: onnx.ModelProto) -> None:
    """Raise VerificationError unless ``model`` is a valid file of the contract in this module's docstring."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise VerificationError(f"the written graph is not valid ONNX ({error})") from error
    if faults := _contract_faults(model):
        raise VerificationError(f"the written graph breaks the file contract: {', '.join(faults)}")


def set_properties(model: onnx.ModelProto, properties: Mapping[str, str]) -> None:
    """Make ``properties`` the whole metadata of the file."""
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, dict(properties))


def _contract_faults(model: onnx.ModelProto) -> list[str]:
    graph = model.graph
    inputs, outputs = [value.name for value in graph.input], [value.name for value in graph.output]
    operators = {node.op_type for node in graph.node}
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    faults = {
        f"inputs {inputs} and outputs {outputs}": not any(
            inputs == list(contract.inputs) and outputs == [contract.output] for contract in CONTRACTS.values()
        ),
        f"opsets {opsets}": opsets != {"": OPSET},
        f"IR version {model.ir_version}": model.ir_version != IR_VERSION,
        "batch normalisation left": "BatchNormalization" in operators,
        "external data": any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in graph.initializer),
        "inputs or outputs that are not float32": any(
            value.type.tensor_type.elem_type != onnx.TensorProto.FLOAT for value in (*graph.input, *graph.output)
        ),
    }
    return [fault for fault, found in faults.items() if found]


def save_graph(model: onnx.ModelProto, path: Path) -> None:
    """Write ``model`` as one file and wait until the disk has it."""
    with path.open("wb") as file:
        file.write(model.SerializeToString())
        file.flush()
        os.fsync(file.fileno())
