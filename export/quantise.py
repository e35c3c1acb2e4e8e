"""INT8 by explicit Q/DQ nodes, in the one form that ONNX Runtime and TensorRT 8.5 to 11 all accept.

Inputs and weights of convolutions are quantised: symmetric int8, zero point 0, weights per output channel, ranges from
the minimum and maximum over calibration pictures. Biases and the picture that comes out stay float.

The convolutions nearest the two ends of the network cost most picture quality in INT8: there the maps hold the picture
itself, at full resolution and in a few of the 256 steps. So float grows inwards from both ends until the worst of the
check pictures is good enough.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from duskfuse.export.calibration import Planes, evenly
from duskfuse.export.onnx_graph import IR_VERSION, OPSET

FLOAT_ENDS = ((1, 1), (3, 1), (3, 2), (3, 4), (3, 5))
"""How many convolutions deep float reaches from the inputs and from the output, tried in this order."""

TRIAL_PAIRS = 12
"""Calibration pictures of a trial; what is good enough then is calibrated with all of them and measured again."""

Plane = NDArray[np.float32]


@dataclass(frozen=True)
class Quantised:
    """An INT8 graph and what was decided for it."""

    model: onnx.ModelProto
    float_convolutions: tuple[str, ...]
    """Names of the convolutions that stay float."""
    convolutions: int
    """All convolutions of the network, float or not."""


def quantise_until(
    model: onnx.ModelProto, pairs: Sequence[Planes], good_enough: Callable[[onnx.ModelProto], bool]
) -> Quantised:
    """Quantise a float32 graph, keeping as few convolutions float as ``good_enough`` allows.

    Returns the last try, with the most float convolutions, where none is good enough. Tries that would leave nothing to
    quantise, as the later ones in a small network, are left out.
    """
    depths = convolution_depths(model)
    tries = [
        tuple(name for name, (head, tail) in depths.items() if head <= from_input or tail <= from_output)
        for from_input, from_output in FLOAT_ENDS
    ]
    tries = [keep for keep in dict.fromkeys(tries) if len(keep) < len(depths)] or [()]
    few = evenly(pairs, TRIAL_PAIRS)
    for keep in tries:
        last = keep is tries[-1]
        if not last and not good_enough(quantise(model, few, keep)):
            continue
        quantised = Quantised(quantise(model, pairs, keep), keep, len(depths))
        if last or good_enough(quantised.model):
            break
    return quantised


def quantise(model: onnx.ModelProto, pairs: Sequence[Planes], keep_float: Sequence[str]) -> onnx.ModelProto:
    """Return ``model`` with Q/DQ around the inputs and weights of all convolutions but those in ``keep_float``."""
    with tempfile.TemporaryDirectory() as folder, _without_advice():
        prepared, written = Path(folder) / "prepared.onnx", Path(folder) / "int8.onnx"
        quant_pre_process(model, prepared, skip_optimization=True, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            written,
            _Pictures(pairs),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            nodes_to_exclude=list(keep_float),
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                "AddQDQPairToWeight": True,  # TensorRT wants weights through Q and DQ like activations
                "QuantizeBias": False,  # TensorRT refuses the int32 bias that is the default
                "OpTypesToExcludeOutputQuantization": ["Conv"],
            },
        )
        quantised = onnx.load(written)
    quantised.ir_version = IR_VERSION
    del quantised.opset_import[:]  # ONNX Runtime adds eight domains that nothing in the graph uses
    quantised.opset_import.append(onnx.helper.make_opsetid("", OPSET))
    return quantised


def convolution_depths(model: onnx.ModelProto) -> dict[str, tuple[int, int]]:
    """Count, for each convolution by name, the fewest convolutions to an input and to the output, itself included."""
    nodes = list(model.graph.node)
    forward = _fewest(nodes, {value.name for value in model.graph.input}, lambda node: (node.input, node.output))
    backward = _fewest(
        nodes[::-1], {value.name for value in model.graph.output}, lambda node: (node.output, node.input)
    )
    return {node.name: (forward[node.output[0]], backward[node.input[0]]) for node in nodes if node.op_type == "Conv"}


def _fewest(
    nodes: Sequence[onnx.NodeProto],
    start: set[str],
    ends: Callable[[onnx.NodeProto], tuple[Sequence[str], Sequence[str]]],
) -> dict[str, int]:
    """Fewest convolutions between ``start`` and every value, over nodes sorted in the walking direction."""
    found = dict.fromkeys(start, 0)
    for node in nodes:
        if node.op_type == "Shape":  # a size says nothing of the picture
            continue
        behind, ahead = ends(node)
        reached = [found[name] for name in behind if name in found]
        if reached:
            steps = min(reached) + (node.op_type == "Conv")
            found |= {name: min(steps, found.get(name, steps)) for name in ahead}
    return found


class _Pictures(CalibrationDataReader):  # type: ignore[misc]
    """Hand the calibration pictures to ONNX Runtime one by one."""

    def __init__(self, pairs: Sequence[Planes]) -> None:
        self._left = iter(pairs)

    def get_next(self) -> dict[str, Plane] | None:
        """Return the next pair as network inputs, None after the last."""
        pair = next(self._left, None)
        return None if pair is None else pair.feeds()


class _without_advice:
    """Silence ONNX Runtime's warnings about pre-processing, which has been done."""

    def __enter__(self) -> None:
        self._level = logging.root.level
        logging.root.setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        logging.root.setLevel(self._level)
