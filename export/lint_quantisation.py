"""TensorRT's rules for explicit quantisation by Q/DQ nodes.

A quantised value is int8 (or one of the float and 4-bit formats that a release lists), symmetric: its zero point is 0.
Scales and zero points are constants of the file; a scale that nodes compute from constants is parsed and then fails to
build. Scales per channel belong to weights. Biases stay float: int32 biases through DequantizeLinear, ONNX Runtime's
default, are refused. A network output behind Q/DQ is taken, but costs picture quality for nothing. The newest builder
also takes uint8 with zero point 0 and scales per channel of maps.

Sources: IQuantizeLayer in NvInfer.h of 8.5, operators.md, and what NVIDIA's TensorRT-RTX builder was seen to refuse.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import onnx

from duskfuse.export.lint_finding import Finding, Rule, Severity, unless_seen_built
from duskfuse.export.onnx_view import OnnxView
from duskfuse.export.tensorrt_releases import Release

_error = partial(Finding, severity=Severity.ERROR)


def check_quantisation(view: OnnxView, release: Release) -> Iterator[Finding]:
    """Check every QuantizeLinear and DequantizeLinear, and the network's outputs."""
    for node in view.nodes:
        if _is_quantiser(node):
            yield from _check_format(node, view, release)
            yield from _check_zero_point(node, view)
            yield from _check_scale(node, view, release)
    for name in view.outputs:
        maker = view.makers.get(name)
        if maker is not None and _is_quantiser(maker):
            yield Finding(
                Rule.QUANTISED_OUTPUT,
                Severity.WARNING,
                name,
                "the network's output is quantised, to at most 256 steps",
                "leave the last layer float",
            )


def _is_quantiser(node: onnx.NodeProto) -> bool:
    return node.op_type in ("QuantizeLinear", "DequantizeLinear")


def _check_format(node: onnx.NodeProto, view: OnnxView, release: Release) -> Iterator[Finding]:
    element = view.types.get(node.input[0] if node.op_type == "DequantizeLinear" else node.output[0], 0)
    listed = release.operators["DequantizeLinear"]
    if not element or (kind := release.format(element)) in listed:
        return
    if kind == "INT32":
        remedy = "leave biases float (ONNX Runtime: QuantizeBias=False)"
    else:
        remedy = "quantise symmetrically to int8, with an int8 zero point of 0"
    severity = unless_seen_built(release.version) if kind == "UINT8" else Severity.ERROR
    yield Finding(Rule.QUANTISED_FORMAT, severity, node.name, f"{kind} instead of int8", remedy)


def _check_zero_point(node: onnx.NodeProto, view: OnnxView) -> Iterator[Finding]:
    if len(node.input) < 3 or not node.input[2]:
        return
    zero = view.constant(node.input[2])
    if zero is None or np.any(zero.astype(np.float64)):
        seen = "its zero point is computed" if zero is None else "its zero point is not 0"
        remedy = "quantise symmetrically (ONNX Runtime: ActivationSymmetric=True, WeightSymmetric=True)"
        yield _error(Rule.ZERO_POINT, node=node.name, seen=f"{seen}; it must be the constant 0", remedy=remedy)


def _check_scale(node: onnx.NodeProto, view: OnnxView, release: Release) -> Iterator[Finding]:
    scale = view.constant(node.input[1])
    if scale is None:
        remedy = "fold the nodes that compute it into an initialiser"
        yield _error(Rule.SCALE, node=node.name, seen="its scale is not a constant of the file", remedy=remedy)
        return
    if not (np.isfinite(scale) & (scale > 0)).all():
        seen, remedy = "a scale is zero, negative or not finite", "calibrate with pictures that reach the layer"
        yield _error(Rule.SCALE, node=node.name, seen=seen, remedy=remedy)
    if scale.ndim == 1 and scale.size > 1 and not _is_weight(node, view):
        seen, remedy = "one scale per channel of a map; documented for weights only", "quantise maps with one scale"
        yield Finding(Rule.PER_CHANNEL, unless_seen_built(release.version), node.name, seen, remedy)


def _is_weight(node: onnx.NodeProto, view: OnnxView) -> bool:
    """Whether what ``node`` (de)quantises comes from a constant."""
    source = node.input[0]
    maker = view.makers.get(source)
    if node.op_type == "DequantizeLinear" and maker is not None and _is_quantiser(maker):
        source = maker.input[0]
    return view.is_constant(source)
