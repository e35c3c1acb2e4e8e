"""The kernels that TensorRT would launch for a graph, with their work: multiply-adds and bytes.

Layers are grouped by the rules that NVIDIA publishes (TensorRT documentation, "Layer Fusion Catalog"): a convolution
takes its bias, scale, activation and one residual sum with it; neighbouring elementwise operations become one kernel;
quantise and dequantise nodes vanish into their neighbours; reshapes are free. Everything that moves values (concat,
resize, depth to space, padding, slices) is a copy with a kernel of its own. Real builders choose more freely, with
tactics measured on the device.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import onnx

from duskfuse.data.errors import InputError
from duskfuse.export.estimate.depths import convolution_depths
from duskfuse.export.onnx_graph import Precision

FREE = {
    *("Identity", "Cast", "Dropout", "Reshape", "Flatten", "Squeeze", "Unsqueeze"),
    *("QuantizeLinear", "DequantizeLinear"),
}
"""Operators that only rename what they are given."""
MATRIX = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
ACTIVATIONS = {
    *("Relu", "LeakyRelu", "PRelu", "Clip", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Gelu", "Elu", "Selu"),
    *("Softplus", "Erf", "Mish"),
}
ELEMENTWISE = ACTIVATIONS | {
    *("Add", "Sub", "Mul", "Div", "Max", "Min", "Pow", "Sqrt", "Exp", "Log", "Abs", "Neg", "Reciprocal", "Floor"),
    *("Ceil", "Round", "Sign", "Where", "Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual", "Not", "And"),
    *("Or", "BatchNormalization", "Sum", "Mean"),
}
_READS_WHAT_IT_WRITES = {"Slice", "Split", "Gather"}
_HALF, _FLOAT = 2, 4


class KernelKind(StrEnum):
    """What a kernel spends its time on."""

    DENSE = "dense"
    """Matrix products on tensor cores."""
    DEPTHWISE = "depthwise"
    """One filter per channel, outside the tensor cores."""
    ELEMENTWISE = "elementwise"
    COPY = "copy"
    """Everything else: values are moved, pooled or resized."""


@dataclass(frozen=True)
class Kernel:
    """One launch and its work, for one picture."""

    name: str
    """Names of its ONNX nodes, joined by `` + ``."""
    kind: KernelKind
    int8: bool
    macs: int
    """Multiply-adds of the network."""
    padded_macs: int
    """Multiply-adds of the tensor cores, whose channels come in eights, sixteens and thirty-twos."""
    bytes: int
    """Maps read and written and weights read, each once."""


@dataclass(frozen=True)
class NetworkWork:
    """All kernels of one network in one precision."""

    kernels: tuple[Kernel, ...]
    weight_bytes: int
    map_bytes: int
    """The most that maps need at one time."""

    @property
    def macs(self) -> int:
        """Multiply-adds of the whole network."""
        return sum(kernel.macs for kernel in self.kernels)


def read_kernels(model: onnx.ModelProto, precision: Precision) -> NetworkWork:
    """Divide a graph of one known size into kernels.

    Args:
        model: every shape must follow from its inputs.
        precision: FP16 or INT8. A graph without Q/DQ nodes in INT8 is taken as one in which every convolution is
            quantised but those next to its inputs and its output, the fewest that ``export`` keeps float.

    Raises:
        InputError: a map has no known size.
    """
    return _Reader(model, precision).work()


def is_quantised(model: onnx.ModelProto) -> bool:
    """Say whether the graph brings its own Q/DQ nodes."""
    return any(node.op_type == "QuantizeLinear" for node in model.graph.node)


class _Reader:
    """One pass over a graph: first which node goes into which kernel, then what each kernel reads and writes."""

    def __init__(self, model: onnx.ModelProto, precision: Precision) -> None:
        graph = model.graph
        for index, node in enumerate(graph.node):
            node.name = node.name or f"{node.op_type}_{index}"
        self.shapes = _shapes(model)
        self.weights: dict[str, int] = {tensor.name: math.prod(tensor.dims) for tensor in graph.initializer}
        self.root: dict[str, str] = {}
        self.nodes = [node for node in graph.node if not self._rename(node)]
        self.outputs = {self._root(value.name) for value in graph.output}
        self.inputs = [value.name for value in graph.input if value.name not in self.weights]
        self.users: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(self._maps_into(node)):
                self.users.setdefault(name, []).append(node)
        self.int8 = _int8_names(model, precision)
        self.groups: list[list[onnx.NodeProto]] = []
        self.group_of: dict[str, int] = {}
        """Index of the kernel that makes a map."""

    def work(self) -> NetworkWork:
        """Return the kernels in the order of the graph, and the memory they need."""
        for node in self.nodes:
            self._place(node)
        self._sort()
        kernels = [kernel for name in self.inputs for kernel in self._entry(name)]
        weight_bytes = 0
        for group in self.groups:
            weight_bytes += self._weight_bytes(group)
            kernels.append(self._kernel(group))
            kernels += [copy for node in group for name in node.output for copy in self._leaving(name)]
        return NetworkWork(tuple(kernels), weight_bytes, self._most_map_bytes())

    def _rename(self, node: onnx.NodeProto) -> bool:
        """Note what does no work: free operators, and values that depend on constants alone."""
        inputs = [name for name in node.input if name]
        if all(self._root(name) in self.weights for name in inputs):
            for name in node.output:
                kept = self._root(inputs[0]) if node.op_type in FREE else name
                self.root[name] = kept
                self.weights.setdefault(kept, math.prod(self.shapes.get(name, [0])))
            return True
        if node.op_type in FREE or node.op_type == "Shape":
            self.root[node.output[0]] = self._root(node.input[0])
            return True
        return False

    def _root(self, name: str) -> str:
        return self.root.get(name, name)

    def _maps_into(self, node: onnx.NodeProto) -> list[str]:
        """Maps that a node reads, without weights."""
        roots = [self._root(name) for name in node.input if name]
        return [name for name in roots if name not in self.weights]

    def _place(self, node: onnx.NodeProto) -> None:
        """Put a node into the kernel of one of its inputs, or into a new one."""
        makers = {self.group_of[name] for name in self._maps_into(node) if name in self.group_of}
        fitting = sorted((index for index in makers if self._joins(node, index)), reverse=True)
        if fitting:
            index = fitting[0]
            self._merge(index, fitting[1:])
        else:
            index = len(self.groups)
            self.groups.append([])
        self.groups[index].append(node)
        self.group_of |= dict.fromkeys(node.output, index)

    def _merge(self, index: int, others: Sequence[int]) -> None:
        """Take into an elementwise kernel others whose results meet its own, where none waits for the other."""
        for other in others:
            matrix = any(self.groups[each][0].op_type in MATRIX for each in (index, other))
            if matrix or self._depends(index, other) or self._depends(other, index):
                continue
            self.groups[index] = self.groups[other] + self.groups[index]
            self.groups[other] = []
            self.group_of |= dict.fromkeys((name for node in self.groups[index] for name in node.output), index)

    def _sort(self) -> None:
        """Bring the kernels into an order in which each finds its inputs, and drop those that were merged away."""
        order: list[int] = []
        for index in range(len(self.groups)):
            self._visit(index, order)
        self.groups = [self.groups[index] for index in order if self.groups[index]]
        self.group_of = {
            name: index for index, group in enumerate(self.groups) for node in group for name in node.output
        }

    def _visit(self, index: int, order: list[int]) -> None:
        waiting = [index]
        while waiting:
            missing = [kernel for kernel in self._needed(waiting[-1]) if kernel not in order]
            if missing and waiting[-1] not in order:
                waiting += missing
            elif (done := waiting.pop()) not in order:
                order.append(done)

    def _needed(self, kernel: int) -> set[int]:
        """Kernels whose results this one reads."""
        names = (name for node in self.groups[kernel] for name in self._maps_into(node))
        return {self.group_of[name] for name in names if name in self.group_of} - {kernel}

    def _joins(self, node: onnx.NodeProto, index: int) -> bool:
        group = self.groups[index]
        same_size = self._pixels(node.output[0]) == self._pixels(group[0].output[0])
        if node.op_type not in ELEMENTWISE or not same_size:
            return False
        if group[0].op_type in MATRIX and not self._ends_convolution(node, group):
            return False
        if group[0].op_type not in MATRIX and group[0].op_type not in ELEMENTWISE:
            return False
        others = {self.group_of[name] for name in self._maps_into(node) if name in self.group_of} - {index}
        return not any(self._depends(other, index) for other in others)

    def _ends_convolution(self, node: onnx.NodeProto, group: Sequence[onnx.NodeProto]) -> bool:
        """Say whether a convolution takes this node with it: scale, activation, one residual sum, x·sigmoid(x)."""
        made = {name for member in group for name in member.output}
        foreign = [name for name in self._maps_into(node) if name not in made]
        last = group[-1].output[0]
        if node.op_type == "Mul" and not foreign:  # x · sigmoid(x), where x has two users
            return True
        if last not in self._maps_into(node):
            return False
        users = self.users.get(last, [])
        swish = len(users) == 2 and {"Sigmoid", "Mul"} == {user.op_type for user in users}
        if len(users) != 1 and not (swish and node.op_type == "Sigmoid"):
            return False
        if not foreign:
            return True
        summed = any(member.op_type == "Add" and len(self._maps_into(member)) > 1 for member in group)
        return node.op_type == "Add" and not summed

    def _depends(self, kernel: int, on: int) -> bool:
        """Say whether ``kernel`` needs a result of ``on``."""
        waiting, seen = [kernel], set()
        while waiting:
            current = waiting.pop()
            if current == on:
                return True
            if current not in seen:
                seen.add(current)
                waiting += self._needed(current)
        return False

    def _kernel(self, group: Sequence[onnx.NodeProto]) -> Kernel:
        head = group[0]
        made = {name for node in group for name in node.output}
        reads = dict.fromkeys(name for node in group for name in self._maps_into(node) if name not in made)
        int8 = head.name in self.int8
        read = sum(self._bytes(name, int8=int8 and name == self._root(head.input[0])) for name in reads)
        if head.op_type in _READS_WHAT_IT_WRITES:
            read = sum(self._bytes(name) for name in head.output)
        written = sum(self._bytes(name, int8=self._only_int8(name)) for name in made if self._leaves(name, group))
        kind, macs, padded = self._matrix_work(head, int8=int8)
        if head.op_type in ELEMENTWISE:
            kind = KernelKind.ELEMENTWISE
        name = " + ".join(node.name for node in group)
        return Kernel(name, kind, int8, macs, padded, read + written + self._weight_bytes(group))

    def _matrix_work(self, node: onnx.NodeProto, *, int8: bool) -> tuple[KernelKind, int, int]:
        """Kind, multiply-adds and padded multiply-adds of the matrix product that starts a kernel."""
        if node.op_type not in MATRIX:
            return KernelKind.COPY, 0, 0
        source, target = self._shape(node.input[0]), self._shape(node.output[0])
        if node.op_type in ("Gemm", "MatMul"):
            rows, inner, columns = math.prod(target[:-1]), self._inner(node, source), target[-1]
            return KernelKind.DENSE, rows * inner * columns, rows * _in(inner, int8) * _out(columns, int8)
        attributes = {attribute.name: attribute for attribute in node.attribute}
        groups = attributes["group"].i if "group" in attributes else 1
        taps = math.prod(self._shape_of_weight(node)[2:])
        pixels = math.prod(target[2:] if node.op_type == "Conv" else source[2:]) * source[0]
        inner, columns = source[1] // groups, target[1] // groups
        macs = pixels * taps * groups * inner * columns
        if inner == columns == 1 and groups > 1:
            return KernelKind.DEPTHWISE, macs, macs
        return KernelKind.DENSE, macs, pixels * taps * groups * _in(inner, int8) * _out(columns, int8)

    def _inner(self, node: onnx.NodeProto, source: Sequence[int]) -> int:
        transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
        return source[0] if transposed else source[-1]

    def _shape_of_weight(self, node: onnx.NodeProto) -> list[int]:
        return self._shape(node.input[1])

    def _weight_bytes(self, group: Sequence[onnx.NodeProto]) -> int:
        names = {self._root(name) for node in group for name in node.input if name}
        size = 1 if group[0].name in self.int8 else _HALF
        return size * sum(self.weights.get(name, 0) for name in names)

    def _leaves(self, name: str, group: Sequence[onnx.NodeProto]) -> bool:
        members = {node.name for node in group}
        return name in self.outputs or any(user.name not in members for user in self.users.get(name, []))

    def _reads_int8(self, user: onnx.NodeProto, name: str) -> bool:
        return user.name in self.int8 and self._root(user.input[0]) == name

    def _only_int8(self, name: str) -> bool:
        users = self.users.get(name, [])
        return bool(users) and name not in self.outputs and all(self._reads_int8(user, name) for user in users)

    def _entry(self, name: str) -> list[Kernel]:
        """The copy that turns an input, float32 in rows, into the network's format."""
        size = math.prod(self._shape(name))
        if not self.users.get(name):
            return []
        return [_copy(f"reformat {name}", _FLOAT * size + self._bytes(name)), *self._quantised_copy(name)]

    def _leaving(self, name: str) -> list[Kernel]:
        """Copies of a finished map: an output in float32, and one in INT8 beside a float one."""
        if name in self.outputs:
            return [_copy(f"reformat {name}", self._bytes(name) + _FLOAT * math.prod(self._shape(name)))]
        return [] if self._only_int8(name) else self._quantised_copy(name)

    def _quantised_copy(self, name: str) -> list[Kernel]:
        if not any(self._reads_int8(user, name) for user in self.users.get(name, [])):
            return []
        return [_copy(f"quantise {name}", self._bytes(name) + self._bytes(name, int8=True))]

    def _bytes(self, name: str, *, int8: bool = False) -> int:
        """Bytes of a map with the channels that its format pads it to."""
        shape = self._shape(name)
        channels = shape[1] if len(shape) == 4 else 1
        return math.prod(shape) // channels * _in(channels, int8) * (1 if int8 else _HALF) if channels else 0

    def _most_map_bytes(self) -> int:
        """Most bytes of maps alive at one time, in the order of the kernels."""
        last: dict[str, int] = dict.fromkeys(self.inputs, 0)
        for index, group in enumerate(self.groups):
            last |= {name: index for node in group for name in (*self._maps_into(node), *node.output)}
        last |= dict.fromkeys(self.outputs & last.keys(), len(self.groups))
        born = {name: self.group_of.get(name, 0) for name in last}
        change = np.zeros(len(self.groups) + 2, np.int64)
        for name, end in last.items():
            if name not in self.group_of or self._leaves(name, self.groups[self.group_of[name]]):
                size = self._bytes(name, int8=self._only_int8(name))
                change[born[name]] += size
                change[end + 1] -= size
        return int(change.cumsum().max())

    def _pixels(self, name: str) -> int:
        shape = self._shape(name)
        return math.prod(shape[2:]) if len(shape) == 4 else math.prod(shape[:-1])

    def _shape(self, name: str) -> list[int]:
        shape = self.shapes.get(name)
        if shape is None or 0 in shape:
            raise InputError(
                f"the size of {name!r} does not follow from the inputs",
                rule="an estimate needs every size",
                remedy="export the network with a fixed size",
            )
        return shape


def _int8_names(model: onnx.ModelProto, precision: Precision) -> set[str]:
    """Names of the nodes that multiply in INT8; in a float file, by assumption, all but those at its two ends."""
    if is_quantised(model):
        makers = {name: node.op_type for node in model.graph.node for name in node.output}
        return {
            node.name
            for node in model.graph.node
            if node.op_type in MATRIX and makers.get(node.input[0]) == "DequantizeLinear"
        }
    if precision is not Precision.INT8:
        return set()
    return {name for name, (first, last) in convolution_depths(model).items() if first > 1 and last > 1}


def _shapes(model: onnx.ModelProto) -> dict[str, list[int]]:
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    values: Iterable[onnx.ValueInfoProto] = (*inferred.value_info, *inferred.input, *inferred.output)
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in values
        if value.type.tensor_type.HasField("shape")
    }
    return shapes | {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}


def _copy(name: str, size: int) -> Kernel:
    return Kernel(name, KernelKind.COPY, False, 0, 0, size)


def _in(channels: int, int8: bool) -> int:
    """Input channels as tensor cores and their formats take them: up to four as they are, else in eights or 32s."""
    return channels if channels <= 4 else _up(channels, 32 if int8 else 8)


def _out(channels: int, int8: bool) -> int:
    return _up(channels, 32 if int8 else 16)


def _up(value: int, step: int) -> int:
    return -(-value // step) * step
