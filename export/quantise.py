"""INT8 by explicit Q/DQ nodes, in the one form that ONNX Runtime and TensorRT 8.5 to 11 all accept.

Inputs and weights of convolutions are quantised: symmetric int8, zero point 0, weights per output channel, all scales
constants of the file. Biases and the picture that comes out stay float. Which convolutions, with which scales and
biases, is decided in PyTorch (`duskfuse.students.int8`), or was by quantisation-aware fine-tuning; the file computes
what `duskfuse.students.fake_quantise` computes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper
from torch import nn

from duskfuse.export.calibration import LARGEST_CROP, Planes, cropped, evenly
from duskfuse.export.onnx_graph import DeployedStudent, build_graph
from duskfuse.students.fake_quantise import HIGHEST, SMALLEST_SCALE, QuantisedStudent
from duskfuse.students.int8 import prepare_int8
from duskfuse.students.int8_drift import Drift, Source, measure_int8

TRIAL_LAYERS = 108
"""Pictures times layers of a trial, so that the choice of layers takes a bounded time in any network."""
FEWEST_TRIALS, MOST_TRIALS = 3, 8

_LAYER = "student.{}.weight"
"""Name of a convolution's weights in the graph, by its name in the student."""


def quantise(
    student: nn.Module,
    pairs: Sequence[Planes],
    size: tuple[int, int] | None,
    trained: Mapping[str, float] | None = None,
) -> tuple[onnx.ModelProto, Drift]:
    """Make the INT8 graph of a student, and say what it costs layer by layer.

    A student that was fine-tuned for scales (``int8_scales`` of its card) gets exactly those, given as ``trained``; any
    other is prepared with ``pairs``. ``size`` is the fixed (height, width), None leaves both free.
    """
    network = QuantisedStudent(student).eval().to(memory_format=torch.channels_last)
    count = min(MOST_TRIALS, max(FEWEST_TRIALS, TRIAL_LAYERS // len(network.layers)))
    trials = _sources([cropped(pair, LARGEST_CROP) for pair in evenly(pairs, count)])
    if trained:
        network.quantise(trained)
        drift = measure_int8(network, trials)
    else:
        drift = prepare_int8(network, _sources(pairs), trials)
    graph = build_graph(DeployedStudent(network.deployed()), size=size)
    return with_qdq(graph, network.scales), drift


def with_qdq(model: onnx.ModelProto, scales: Mapping[str, float]) -> onnx.ModelProto:
    """Return ``model`` with Q/DQ before the input and the weights of the convolutions that ``scales`` names.

    A convolution has the name of its module in the student; its scale is one step of its input. Raises ValueError where
    the graph has no such convolution.
    """
    quantised = onnx.ModelProto()
    quantised.CopyFrom(model)
    writer = _Writer(quantised.graph, scales)
    nodes = [new for node in model.graph.node for new in writer.rewritten(node)]
    if missing := scales.keys() - writer.found:
        raise ValueError(f"the graph has no convolution {', '.join(sorted(missing))}")
    del quantised.graph.node[:]
    quantised.graph.node.extend(nodes)
    return quantised


class _Writer:
    """Adds the nodes and constants of quantised convolutions to a graph, each pair of nodes once."""

    def __init__(self, graph: onnx.GraphProto, scales: Mapping[str, float]) -> None:
        self._graph = graph
        self._weights = {tensor.name: tensor for tensor in graph.initializer}
        for node in graph.node:  # the exporter writes equal weights once, and their other names as copies
            if node.op_type == "Identity" and node.input[0] in self._weights:
                self._weights[node.output[0]] = self._weights[node.input[0]]
        self._layers = {_LAYER.format(name): name for name in scales}
        self._scales = scales
        self._made: set[str] = set()
        self.found: set[str] = set()

    def rewritten(self, node: NodeProto) -> list[NodeProto]:
        """The node, and before it those that quantise what it reads; other nodes as they are."""
        layer = self._layers.get(node.input[1]) if node.op_type == "Conv" else None
        if layer is None:
            return [node]
        self.found.add(layer)
        picture, weight, *bias = node.input
        weight, kernel = self._weights[weight].name, numpy_helper.to_array(self._weights[weight])
        steps = np.maximum(np.abs(kernel).max(axis=(1, 2, 3)) / np.float32(HIGHEST), np.float32(SMALLEST_SCALE))
        scale = np.float32(self._scales[layer])
        before = [*self._pair(picture, scale), *self._pair(weight, steps)]
        conv = NodeProto()
        conv.CopyFrom(node)
        conv.input[:] = [_name(picture, scale), _name(weight, steps), *bias]
        return [*before, conv]

    def _pair(self, value: str, scale: NDArray[np.float32] | np.float32) -> list[NodeProto]:
        name = _name(value, scale)
        if name in self._made:
            return []
        self._made.add(name)
        step = np.asarray(scale, np.float32)
        constants = {f"{name}/scale": step, f"{name}/zero": np.zeros(step.shape, np.int8)}
        self._graph.initializer.extend(numpy_helper.from_array(array, key) for key, array in constants.items())
        axis = {"axis": 0} if step.ndim else {}
        return [
            helper.make_node("QuantizeLinear", [value, *constants], [f"{name}/int8"], f"{name}/Q", **axis),
            helper.make_node("DequantizeLinear", [f"{name}/int8", *constants], [name], f"{name}/DQ", **axis),
        ]


def _name(value: str, scale: Any) -> str:
    """Of a value after Q/DQ; one map may be read with several scales."""
    return f"{value}/quantised" + (f"-{float(scale):.9g}" if np.ndim(scale) == 0 else "")


def _sources(pairs: Sequence[Planes]) -> list[Source]:
    feeds = [[torch.from_numpy(plane) for plane in pair.feeds().values()] for pair in pairs]
    return [(vis, ir) for ir, vis in feeds]
