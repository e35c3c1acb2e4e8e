"""Small ONNX models that TensorRT takes or refuses, for testing the lint and comparing it with NVIDIA's builder.

Each maker returns a new model with fixed shapes and weights by rule. ``REFUSED`` and ``ACCEPTED`` say what a builder of
TensorRT (newest release, no plugin library) does with them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Maker = Callable[[], onnx.ModelProto]
CHANNELS, SIDE = 4, 16
IR_OF_OPSET = ((15, 7), (17, 8), (20, 9), (23, 10), (24, 11), (25, 12))
"""(newest opset, IR version) pairs of ONNX's table of versions, from opset 11 on."""


def model_of(
    nodes: Sequence[onnx.NodeProto],
    constants: dict[str, NDArray[Any]],
    *,
    opset: int = 17,
    inputs: dict[str, tuple[int, Sequence[int]]] | None = None,
    out: Sequence[int] | None = (1, CHANNELS, SIDE, SIDE),
) -> onnx.ModelProto:
    """A model from ``x`` (float ``[1, 4, 16, 16]``) to ``y``; constants become initialisers."""
    values = inputs or {"x": (TensorProto.FLOAT, (1, CHANNELS, SIDE, SIDE))}
    graph = helper.make_graph(
        list(nodes),
        "case",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in values.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, out)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    ir_version = next(version for newest, version in IR_OF_OPSET if opset <= newest)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


def by_rule(*shape: int) -> NDArray[np.float32]:
    """Numbers in [-1, 1] that never change."""
    return np.sin(np.arange(np.prod(shape), dtype=np.float32)).reshape(shape).astype(np.float32)


def one_node(
    operator: str,
    *extra: str,
    opset: int = 17,
    constants: dict[str, NDArray[Any]] | None = None,
    out: Sequence[int] | None = (1, CHANNELS, SIDE, SIDE),
    **attributes: Any,
) -> onnx.ModelProto:
    """A model of one operator whose first input is ``x``."""
    node = helper.make_node(operator, ["x", *extra], ["y"], f"the_{operator}", **attributes)
    return model_of([node], constants or {}, opset=opset, out=out)


def quantised_convolution(
    *,
    zero_point: NDArray[Any] | None = None,
    bias: bool = False,
    per_channel_picture: bool = False,
    computed_scale: bool = False,
    transposed: bool = False,
) -> onnx.ModelProto:
    """A convolution with Q/DQ at its picture and, per output channel, at its weights."""
    axis = 1 if transposed else 0
    picture_scale = np.full(CHANNELS, 0.01, np.float32) if per_channel_picture else np.float32(0.01)
    constants: dict[str, NDArray[Any]] = {
        "w": by_rule(CHANNELS, CHANNELS, 3, 3),
        "w_scale": np.full(CHANNELS, 1 / 127, np.float32),
        "w_zero": np.zeros(CHANNELS, np.int8),
        "x_scale": np.asarray(picture_scale),
        "x_zero": np.zeros(np.shape(picture_scale), np.int8) if zero_point is None else zero_point,
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["x_q"], "quantise_x", axis=1),
        helper.make_node("DequantizeLinear", ["x_q", "x_scale", "x_zero"], ["x_f"], "dequantise_x", axis=1),
        helper.make_node("QuantizeLinear", ["w", "w_scale", "w_zero"], ["w_q"], "quantise_w", axis=axis),
        helper.make_node("DequantizeLinear", ["w_q", "w_scale", "w_zero"], ["w_f"], "dequantise_w", axis=axis),
    ]
    if computed_scale:
        del constants["w_scale"]
        constants["steps"] = np.asarray(127, np.float32)
        nodes[:0] = [
            helper.make_node("Abs", ["w"], ["w_abs"], "absolute"),
            helper.make_node("ReduceMax", ["w_abs"], ["w_max"], "largest", axes=[1, 2, 3], keepdims=0),
            helper.make_node("Div", ["w_max", "steps"], ["w_scale"], "divide"),
        ]
    inputs = ["x_f", "w_f"]
    if bias:
        constants |= {
            "b": np.arange(CHANNELS, dtype=np.int32),
            "b_scale": np.full(CHANNELS, 0.01 / 127, np.float32),
            "b_zero": np.zeros(CHANNELS, np.int32),
        }
        nodes.append(helper.make_node("DequantizeLinear", ["b", "b_scale", "b_zero"], ["b_f"], "dequantise_b", axis=0))
        inputs.append("b_f")
    operator = "ConvTranspose" if transposed else "Conv"
    nodes.append(helper.make_node(operator, inputs, ["y"], "convolve", kernel_shape=[3, 3], pads=[1, 1, 1, 1]))
    return model_of(nodes, constants)


def resized(mode: str, coordinates: str, *, opset: int = 17, factor: float = 2.0, **attributes: Any) -> onnx.ModelProto:
    """A Resize by constant scales."""
    side = int(SIDE * factor)
    return one_node(
        "Resize",
        "",
        "scales",
        opset=opset,
        constants={"scales": np.array([1, 1, factor, factor], np.float32)},
        out=(1, CHANNELS, side, side),
        mode=mode,
        coordinate_transformation_mode=coordinates,
        **attributes,
    )


def deformed() -> onnx.ModelProto:
    """A deformable convolution."""
    return one_node(
        "DeformConv",
        "w",
        "offset",
        opset=19,
        constants={"w": by_rule(CHANNELS, CHANNELS, 3, 3), "offset": by_rule(1, 18, SIDE, SIDE)},
        kernel_shape=[3, 3],
        pads=[1, 1, 1, 1],
    )


def counts_of_a_camera() -> onnx.ModelProto:
    """A network whose input is 16-bit counts."""
    nodes = [
        helper.make_node("Cast", ["x"], ["x_f"], "to_float", to=TensorProto.FLOAT),
        helper.make_node("Relu", ["x_f"], ["y"], "relu"),
    ]
    return model_of(nodes, {}, inputs={"x": (TensorProto.UINT16, (1, CHANNELS, SIDE, SIDE))})


def sampled() -> onnx.ModelProto:
    """GridSample on a grid by rule."""
    attributes = {"mode": "bilinear", "padding_mode": "border", "align_corners": 0}
    return one_node("GridSample", "grid", constants={"grid": by_rule(1, SIDE, SIDE, 2)}, **attributes)


def padded(mode: str) -> onnx.ModelProto:
    """Two more pixels at each side."""
    amounts = np.array([0, 0, 2, 2, 0, 0, 2, 2])
    return one_node("Pad", "pads", constants={"pads": amounts}, out=(1, CHANNELS, SIDE + 4, SIDE + 4), mode=mode)


def normalised(operator: str) -> onnx.ModelProto:
    """LayerNormalization over the last axis, or InstanceNormalization."""
    count = SIDE if operator == "LayerNormalization" else CHANNELS
    constants = {"gain": np.ones(count, np.float32), "shift": np.zeros(count, np.float32)}
    return one_node(operator, "gain", "shift", constants=constants)


def convolved(opset: int) -> onnx.ModelProto:
    """A convolution and ReLU in a file of ``opset``."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "convolve", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["y"], "relu"),
    ]
    return model_of(nodes, {"w": by_rule(CHANNELS, CHANNELS, 3, 3)}, opset=opset)


_DEEP = (1, CHANNELS * 4, SIDE // 2, SIDE // 2)
_WIDE = (1, CHANNELS // 4, SIDE * 2, SIDE * 2)

REFUSED: dict[str, Maker] = {
    "int32_bias": partial(quantised_convolution, bias=True),
    "zero_point": partial(quantised_convolution, zero_point=np.array(3, np.int8)),
    "uint8": partial(quantised_convolution, zero_point=np.array(128, np.uint8)),
    "computed_scale": partial(quantised_convolution, computed_scale=True),
    "antialias": partial(resized, "linear", "half_pixel", opset=18, factor=0.5, antialias=1),
    "deform_conv": deformed,
    "unknown_operator": partial(one_node, "Unheard"),
    "uint16_input": counts_of_a_camera,
}
"""What a builder refuses, while parsing or (``computed_scale``) while building."""

ACCEPTED: dict[str, Maker] = {
    "per_channel_axis_0": quantised_convolution,
    "per_channel_axis_1": partial(quantised_convolution, transposed=True),
    **{
        f"resize_{mode}_{coordinates}": partial(resized, mode, coordinates)
        for mode in ("nearest", "linear", "cubic")
        for coordinates in ("half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners")
    },
    **{
        f"depth_to_space_{mode}": partial(one_node, "DepthToSpace", out=_WIDE, blocksize=2, mode=mode)
        for mode in ("CRD", "DCR")
    },
    "space_to_depth": partial(one_node, "SpaceToDepth", out=_DEEP, blocksize=2),
    "grid_sample": sampled,
    "pad_reflect": partial(padded, "reflect"),
    "pad_edge": partial(padded, "edge"),
    "layer_norm": partial(normalised, "LayerNormalization"),
    "instance_norm": partial(normalised, "InstanceNormalization"),
    "hard_swish": partial(one_node, "HardSwish"),
    "gelu": partial(one_node, "Gelu", opset=20),
    **{f"opset_{opset}": partial(convolved, opset) for opset in range(11, 26)},
}
"""What a builder takes."""
