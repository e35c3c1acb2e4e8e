"""A read-only view of an ONNX model for checks: nodes of all subgraphs, constants, types, shapes, who makes what."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray


class OnnxView:
    """What checks ask of a model; values of subgraphs are seen by their names, which are unique in exported files.

    Raises ValueError for names that are not UTF-8.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.has_functions = bool(model.functions)
        if self.has_functions:
            from onnx import inliner

            model = inliner.inline_local_functions(model)
        self.opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=1)
        self.inputs = [value.name for value in model.graph.input]
        self.outputs = [value.name for value in model.graph.output]
        graphs = list(_graphs(_with_types(model).graph))
        self.nodes = [node for graph in graphs for node in graph.node]
        if any(isinstance(name, bytes) for n in self.nodes for name in (n.name, n.op_type, *n.input, *n.output)):
            raise ValueError("a name is not UTF-8")  # which protobuf gives as bytes
        self.makers = {output: node for node in self.nodes for output in node.output}
        tensors = {tensor.name: tensor for graph in graphs for tensor in graph.initializer}
        tensors |= {
            node.output[0]: attribute.t
            for node in self.nodes
            if node.op_type == "Constant"
            for attribute in node.attribute
            if attribute.name == "value"
        }
        self._tensors = tensors
        values = [v for graph in graphs for v in (*graph.value_info, *graph.input, *graph.output)]
        self.types = {value.name: value.type.tensor_type.elem_type for value in values}
        self.types |= {name: tensor.data_type for name, tensor in tensors.items()}
        self.shapes = {
            value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
            for value in values
            if value.type.tensor_type.HasField("shape")
        }
        """Sides of values by name, 0 where not known."""

    def constant(self, name: str) -> NDArray[Any] | None:
        """Return the numbers of an initialiser or Constant node, None for anything that is computed."""
        tensor = self._tensors.get(name)
        return None if tensor is None else np.asarray(onnx.numpy_helper.to_array(tensor))

    def is_constant(self, name: str) -> bool:
        """Whether ``name`` is an initialiser or made by a Constant node."""
        maker = self.makers.get(name)
        return name in self._tensors or (maker is not None and maker.op_type == "Constant")


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Return the attributes of a node; strings as ``str``."""
    values = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _graphs(inner)


def _with_types(model: onnx.ModelProto) -> onnx.ModelProto:
    try:
        return onnx.shape_inference.infer_shapes(model, data_prop=True)
    except (onnx.shape_inference.InferenceError, ValueError):  # what can be read without types is still checked
        return model
