"""What the DLA of a Jetson would leave to its GPU: an experiment, all of it warnings.

The GPU is what duskfuse is made for. Sources: NVIDIA's list of operators for TensorRT 8.5.2 and 8.6.2
(github.com/NVIDIA/Deep-Learning-Accelerator-SW, operators/README.md) and the restrictions in TensorRT's documentation.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import TensorProto

from duskfuse.export.lint_finding import Finding, Rule, Severity
from duskfuse.export.onnx_view import OnnxView, attributes

NATIVE = frozenset(
    (
        *("Add", "Sub", "Mul", "Max", "Relu", "LeakyRelu", "PRelu", "Clip", "Sigmoid", "Tanh", "Softmax"),
        *("Conv", "ConvTranspose", "BatchNormalization", "MaxPool", "AveragePool", "Resize", "Upsample"),
        *("Concat", "Slice", "Split", "Reshape", "Transpose", "Constant"),
    )
)
"""Operators that a DLA runs."""
LARGEST_SIDE = 8192
_GPU = "allow the GPU to take over (--allowGPUFallback)"


def check_dla(view: OnnxView) -> Iterator[Finding]:
    """Name everything that keeps layers of a model from a DLA."""
    for name in view.inputs:
        sides = view.shapes.get(name, [])
        if not all(0 < side <= LARGEST_SIDE for side in sides):
            yield _warning(name, f"a DLA takes fixed shapes, each side up to {LARGEST_SIDE}", "export a fixed size")
    if not any(element in (TensorProto.FLOAT16, TensorProto.INT8) for element in view.types.values()):
        yield _warning("", "the file is float32 and a DLA computes in half precision", "export fp16")
    for node in view.nodes:
        yield from _check_node(node, view)


def _check_node(node: onnx.NodeProto, view: OnnxView) -> Iterator[Finding]:
    if node.op_type == "DepthToSpace":
        yield _warning(node.name, "a DLA has no DepthToSpace", "export with --dla, or use a transposed convolution")
    elif node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        yield _warning(node.name, "a DLA before TensorRT 11.4 takes no Q/DQ nodes", "export fp16")
    elif node.op_type not in NATIVE:
        yield _warning(node.name, f"a DLA has no {node.op_type}", _GPU)
    elif node.op_type == "Resize":
        given = attributes(node)
        linear = given.get("mode", "nearest") != "nearest"
        if linear and given.get("coordinate_transformation_mode", "half_pixel") != "half_pixel":
            yield _warning(node.name, "a DLA resizes bilinearly with half_pixel only", "use half_pixel")
        if len(node.input) < 3 or not node.input[2] or view.constant(node.input[2]) is None:
            yield _warning(node.name, "a DLA resizes by constant scales", "export a size whose parts are whole")


def _warning(node: str, seen: str, remedy: str) -> Finding:
    return Finding(Rule.DLA, Severity.WARNING, node, seen, remedy)
