"""The kernels that TensorRT would launch for a graph, with their work: multiply-adds and bytes.

`duskfuse.export.estimate.fusion` says what becomes one kernel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import onnx

from duskfuse.export.estimate.fusion import ELEMENTWISE, MATRIX, Flow, Group, fused
from duskfuse.export.onnx_graph import Precision

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
            quantised but those that only move pixels, as ``duskfuse export`` leaves them.

    Raises:
        InputError: a map has no known size.
    """
    return _Reader(model, precision).work()


def is_quantised(model: onnx.ModelProto) -> bool:
    """Say whether the graph brings its own Q/DQ nodes."""
    return any(node.op_type == "QuantizeLinear" for node in model.graph.node)


class _Reader:
    """What each kernel of a graph reads, computes and writes."""

    def __init__(self, model: onnx.ModelProto, precision: Precision) -> None:
        self.flow = Flow(model)
        self.int8 = _int8_names(model, self.flow, precision)
        self.groups = fused(self.flow)

    def work(self) -> NetworkWork:
        """Return the kernels in an order in which they can run, and the memory they need."""
        kernels = [kernel for name in self.flow.inputs for kernel in self._entry(name)]
        weight_bytes = 0
        for group in self.groups:
            weight_bytes += self._weight_bytes(group)
            kernels.append(self._kernel(group))
            kernels += [copy for node in group for name in node.output for copy in self._leaving(name)]
        return NetworkWork(tuple(kernels), weight_bytes, self._most_map_bytes())

    def _kernel(self, group: Group) -> Kernel:
        head = group[0]
        made = {name for node in group for name in node.output}
        reads = dict.fromkeys(name for node in group for name in self.flow.maps_into(node) if name not in made)
        int8 = head.name in self.int8
        read = sum(self._bytes(name, int8=int8 and name == self.flow.root(head.input[0])) for name in reads)
        if head.op_type in _READS_WHAT_IT_WRITES:
            read = sum(self._bytes(name) for name in head.output)
        written = sum(self._bytes(name, int8=self._only_int8(name)) for name in made if self.flow.leaves(name, group))
        kind, macs, padded = self._matrix_work(head, int8=int8)
        if head.op_type in ELEMENTWISE:
            kind = KernelKind.ELEMENTWISE
        name = " + ".join(node.name for node in group)
        return Kernel(name, kind, int8, macs, padded, read + written + self._weight_bytes(group))

    def _matrix_work(self, node: onnx.NodeProto, *, int8: bool) -> tuple[KernelKind, int, int]:
        """Kind, multiply-adds and padded multiply-adds of the matrix product that starts a kernel."""
        if node.op_type not in MATRIX:
            return KernelKind.COPY, 0, 0
        source, target = self.flow.shape(node.input[0]), self.flow.shape(node.output[0])
        if node.op_type in ("Gemm", "MatMul"):
            rows, inner, columns = math.prod(target[:-1]), self._inner(node, source), target[-1]
            return KernelKind.DENSE, rows * inner * columns, rows * _in(inner, int8) * _out(columns, int8)
        attributes = {attribute.name: attribute for attribute in node.attribute}
        groups = attributes["group"].i if "group" in attributes else 1
        taps = math.prod(self.flow.shape(node.input[1])[2:])
        pixels = math.prod(target[2:] if node.op_type == "Conv" else source[2:]) * source[0]
        inner, columns = source[1] // groups, target[1] // groups
        macs = pixels * taps * groups * inner * columns
        if inner == columns == 1 and groups > 1:
            return KernelKind.DEPTHWISE, macs, macs
        return KernelKind.DENSE, macs, pixels * taps * groups * _in(inner, int8) * _out(columns, int8)

    def _inner(self, node: onnx.NodeProto, source: Sequence[int]) -> int:
        transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
        return source[0] if transposed else source[-1]

    def _weight_bytes(self, group: Group) -> int:
        names = {self.flow.root(name) for node in group for name in node.input if name}
        size = 1 if group[0].name in self.int8 else _HALF
        return size * sum(self.flow.weights.get(name, 0) for name in names)

    def _reads_int8(self, user: onnx.NodeProto, name: str) -> bool:
        return user.name in self.int8 and self.flow.root(user.input[0]) == name

    def _only_int8(self, name: str) -> bool:
        users = self.flow.users.get(name, [])
        return bool(users) and name not in self.flow.outputs and all(self._reads_int8(user, name) for user in users)

    def _entry(self, name: str) -> list[Kernel]:
        """The copy that turns an input, float32 in rows, into the network's format."""
        size = math.prod(self.flow.shape(name))
        if not self.flow.users.get(name):
            return []
        return [_copy(f"reformat {name}", _FLOAT * size + self._bytes(name)), *self._quantised_copy(name)]

    def _leaving(self, name: str) -> list[Kernel]:
        """Copies of a finished map: an output in float32, and one in INT8 beside a float one."""
        if name in self.flow.outputs:
            return [_copy(f"reformat {name}", self._bytes(name) + _FLOAT * math.prod(self.flow.shape(name)))]
        return [] if self._only_int8(name) else self._quantised_copy(name)

    def _quantised_copy(self, name: str) -> list[Kernel]:
        if not any(self._reads_int8(user, name) for user in self.flow.users.get(name, [])):
            return []
        return [_copy(f"quantise {name}", self._bytes(name) + self._bytes(name, int8=True))]

    def _bytes(self, name: str, *, int8: bool = False) -> int:
        """Bytes of a map with the channels that its format pads it to."""
        shape = self.flow.shape(name)
        channels = shape[1] if len(shape) == 4 else 1
        return math.prod(shape) // channels * _in(channels, int8) * (1 if int8 else _HALF) if channels else 0

    def _most_map_bytes(self) -> int:
        """Most bytes of maps alive at one time, in the order of the kernels."""
        last: dict[str, int] = dict.fromkeys(self.flow.inputs, 0)
        for index, group in enumerate(self.groups):
            last |= {name: index for node in group for name in (*self.flow.maps_into(node), *node.output)}
        last |= dict.fromkeys(self.flow.outputs & last.keys(), len(self.groups))
        born = {name: index for index, group in enumerate(self.groups) for node in group for name in node.output}
        change = np.zeros(len(self.groups) + 2, np.int64)
        for name, end in last.items():
            if name not in born or self.flow.leaves(name, self.groups[born[name]]):
                size = self._bytes(name, int8=self._only_int8(name))
                change[born.get(name, 0)] += size
                change[end + 1] -= size
        return int(change.cumsum().max())


def _int8_names(model: onnx.ModelProto, flow: Flow, precision: Precision) -> set[str]:
    """Names of the nodes that multiply in INT8; in a float file all convolutions but those that only move pixels."""
    if is_quantised(model):
        makers = {name: node.op_type for node in model.graph.node for name in node.output}
        return {
            node.name
            for node in model.graph.node
            if node.op_type in MATRIX and makers.get(node.input[0]) == "DequantizeLinear"
        }
    if precision is not Precision.INT8:
        return set()
    kernels = {tensor.name: tensor for tensor in model.graph.initializer}
    convolutions = (node for node in model.graph.node if node.op_type == "Conv")
    return {node.name for node in convolutions if not _only_moves(kernels.get(flow.root(node.input[1])))}


def _only_moves(kernel: onnx.TensorProto | None) -> bool:
    """Say whether each filter takes one value as it is, or its negative."""
    if kernel is None:
        return False
    filters = np.abs(onnx.numpy_helper.to_array(kernel)).reshape(kernel.dims[0], -1)
    return bool(((filters.sum(axis=1) == 1) & (filters.max(axis=1) == 1)).all())


def _copy(name: str, size: int) -> Kernel:
    return Kernel(name, KernelKind.COPY, False, 0, 0, size)


def _in(channels: int, int8: bool) -> int:
    """Input channels as tensor cores and their formats take them: up to four as they are, else in eights or 32s."""
    return channels if channels <= 4 else _up(channels, 32 if int8 else 8)


def _out(channels: int, int8: bool) -> int:
    return _up(channels, 32 if int8 else 16)


def _up(value: int, step: int) -> int:
    return -(-value // step) * step
