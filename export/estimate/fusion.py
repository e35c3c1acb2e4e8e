"""Which operators of a graph TensorRT would run as one kernel.

By the rules that NVIDIA publishes (TensorRT documentation, "Layer Fusion Catalog"): a convolution takes its bias,
scale, activation and one residual sum with it; neighbouring elementwise operations become one kernel; quantise and
dequantise nodes vanish into their neighbours; reshapes are free. Everything that moves values (concat, resize, depth to
space, padding, slices) is a copy with a kernel of its own. Real builders choose more freely, with tactics measured on
the device.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import onnx

from duskfuse.data.errors import InputError

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

Group = list[onnx.NodeProto]


class Flow:
    """What flows between the operators of a graph that do work."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        for index, node in enumerate(graph.node):
            node.name = node.name or f"{node.op_type}_{index}"
        self.shapes = _shapes(model)
        self.weights: dict[str, int] = {tensor.name: math.prod(tensor.dims) for tensor in graph.initializer}
        """Numbers in every constant, by name."""
        self._renamed: dict[str, str] = {}
        self.nodes = [node for node in graph.node if not self._rename(node)]
        """The operators that do work, in the order of the graph."""
        self.outputs = {self.root(value.name) for value in graph.output}
        self.inputs = [value.name for value in graph.input if value.name not in self.weights]
        self.users: dict[str, list[onnx.NodeProto]] = {}
        """The operators that read a map."""
        for node in self.nodes:
            for name in dict.fromkeys(self.maps_into(node)):
                self.users.setdefault(name, []).append(node)

    def leaves(self, name: str, group: Group) -> bool:
        """Say whether a map that a kernel makes is read outside it."""
        members = {node.name for node in group}
        return name in self.outputs or any(user.name not in members for user in self.users.get(name, []))

    def _rename(self, node: onnx.NodeProto) -> bool:
        """Note what does no work: free operators, and values that depend on constants alone."""
        inputs = [name for name in node.input if name]
        if all(self.root(name) in self.weights for name in inputs):
            for name in node.output:
                kept = self.root(inputs[0]) if node.op_type in FREE else name
                self._renamed[name] = kept
                self.weights.setdefault(kept, math.prod(self.shapes.get(name, [0])))
            return True
        if node.op_type in FREE or node.op_type == "Shape":
            self._renamed[node.output[0]] = self.root(node.input[0])
            return True
        return False

    def root(self, name: str) -> str:
        """The map or weight that a name stands for, behind operators that only rename."""
        return self._renamed.get(name, name)

    def maps_into(self, node: onnx.NodeProto) -> list[str]:
        """Maps that a node reads, without weights."""
        roots = [self.root(name) for name in node.input if name]
        return [name for name in roots if name not in self.weights]

    def pixels(self, name: str) -> int:
        """Positions of a map."""
        shape = self.shape(name)
        return math.prod(shape[2:]) if len(shape) == 4 else math.prod(shape[:-1])

    def shape(self, name: str) -> list[int]:
        """The shape of a map or weight; raises InputError where it is not known."""
        shape = self.shapes.get(name)
        if shape is None or 0 in shape:
            raise InputError(
                f"the size of {name!r} does not follow from the inputs",
                rule="an estimate needs every size",
                remedy="export the network with a fixed size",
            )
        return shape


def fused(flow: Flow) -> list[Group]:
    """Divide the operators into kernels, each after those whose results it reads."""
    return _Fusion(flow).groups


class _Fusion:
    """One pass over the operators: each joins the kernel of one of its inputs, or starts one."""

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self.groups: list[Group] = []
        self.group_of: dict[str, int] = {}
        """Index of the kernel that makes a map."""
        for node in flow.nodes:
            self._place(node)
        self._sort()

    def _place(self, node: onnx.NodeProto) -> None:
        """Put a node into the kernel of one of its inputs, or into a new one."""
        makers = {self.group_of[name] for name in self.flow.maps_into(node) if name in self.group_of}
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
        names = (name for node in self.groups[kernel] for name in self.flow.maps_into(node))
        return {self.group_of[name] for name in names if name in self.group_of} - {kernel}

    def _joins(self, node: onnx.NodeProto, index: int) -> bool:
        group = self.groups[index]
        same_size = self.flow.pixels(node.output[0]) == self.flow.pixels(group[0].output[0])
        if node.op_type not in ELEMENTWISE or not same_size:
            return False
        if group[0].op_type in MATRIX and not self._ends_convolution(node, group):
            return False
        if group[0].op_type not in MATRIX and group[0].op_type not in ELEMENTWISE:
            return False
        others = {self.group_of[name] for name in self.flow.maps_into(node) if name in self.group_of} - {index}
        return not any(self._depends(other, index) for other in others)

    def _ends_convolution(self, node: onnx.NodeProto, group: Sequence[onnx.NodeProto]) -> bool:
        """Say whether a convolution takes this node with it: scale, activation, one residual sum, x·sigmoid(x)."""
        made = {name for member in group for name in member.output}
        foreign = [name for name in self.flow.maps_into(node) if name not in made]
        last = group[-1].output[0]
        if node.op_type == "Mul" and not foreign:  # x · sigmoid(x), where x has two users
            return True
        if last not in self.flow.maps_into(node):
            return False
        users = self.flow.users.get(last, [])
        swish = len(users) == 2 and {"Sigmoid", "Mul"} == {user.op_type for user in users}
        if len(users) != 1 and not (swish and node.op_type == "Sigmoid"):
            return False
        if not foreign:
            return True
        summed = any(member.op_type == "Add" and len(self.flow.maps_into(member)) > 1 for member in group)
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


def _shapes(model: onnx.ModelProto) -> dict[str, list[int]]:
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    values: Iterable[onnx.ValueInfoProto] = (*inferred.value_info, *inferred.input, *inferred.output)
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in values
        if value.type.tensor_type.HasField("shape")
    }
    return shapes | {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
