"""Estimates: what a file costs on a module by its kernels, and how wrong that is on published latencies."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from duskfuse.export.estimate.fit import fit_published
from duskfuse.export.estimate.kernels import Kernel, KernelKind, read_kernels
from duskfuse.export.estimate.modules import module_named
from duskfuse.export.estimate.roofline import BAND, PUBLISHED, Bound, kernel_times
from duskfuse.export.onnx_graph import DeployedStudent, Precision, build_graph
from duskfuse.export.quantise import with_qdq
from duskfuse.students.fake_quantise import QuantisedStudent
from duskfuse.students.unet import UNetStudent
from duskfuse.students.zoo import build_student

ORIN = module_named("orin-nano-8gb-super")


def graph(nodes: list[onnx.NodeProto], channels: int = 32, weights: dict[str, tuple[int, ...]] | None = None) -> Any:
    """A network of ``x [1, channels, 40, 60]`` to ``y``, with zero weights of the given shapes."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, channels, 40, 60])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    tensors = [onnx.numpy_helper.from_array(np.zeros(s, np.float32), name) for name, s in (weights or {}).items()]
    made = helper.make_graph(nodes, "g", [x], [y], tensors)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def node(kind: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), [output], name=f"{kind}>{output}", **attributes)


def names(model: onnx.ModelProto, precision: Precision = Precision.FP16) -> list[str]:
    """The kernels of a graph without the copies of its inputs and outputs."""
    found = [kernel.name for kernel in read_kernels(model, precision).kernels]
    return [name for name in found if not name.startswith("reformat")]


@pytest.fixture(scope="module")
def unet() -> onnx.ModelProto:
    return build_graph(DeployedStudent(UNetStudent()), size=(96, 128))


# Modules


@pytest.mark.parametrize(
    ("name", "fp16", "int8"),
    [
        ("xavier-nx", 6.8, 13.6),
        ("agx-xavier", 11.3, 22.6),
        ("orin-nano-8gb", 10.2, 20.5),
        ("orin-nano-8gb-super", 16.7, 33.4),
        ("orin-nx-16gb", 15.0, 30.0),
        ("agx-orin-32gb", 26.7, 53.0),
        ("agx-orin-64gb", 42.6, 85.0),
    ],
)
def test_peaks_are_those_of_the_marketed_totals(name: str, fp16: float, int8: float) -> None:
    module = module_named(name)
    assert module.fp16_tflops == pytest.approx(fp16, rel=0.01)
    assert module.int8_tops == pytest.approx(int8, rel=0.01)


def test_power_modes_only_change_clock_and_bandwidth() -> None:
    plain, slow = module_named("agx-orin-64gb"), module_named("agx-orin-64gb-30w")
    assert slow.fp16_tflops / plain.fp16_tflops == pytest.approx(41 / 171)
    assert "clock" in slow.inferred
    assert not plain.inferred
    assert module_named("orin-nano-8gb-super").fp16_tflops > module_named("orin-nano-8gb").fp16_tflops


# Kernels


def test_a_convolution_takes_activation_and_residual_sum_with_it() -> None:
    model = graph(
        [
            node("Conv", "x w b", "c", pads=[1, 1, 1, 1]),
            node("LeakyRelu", "c", "l"),
            node("Conv", "l w b", "d", pads=[1, 1, 1, 1]),
            node("Add", "d x", "s"),
            node("Relu", "s", "y"),
        ],
        weights={"w": (32, 32, 3, 3), "b": (32,)},
    )
    assert names(model) == ["Conv>c + LeakyRelu>l", "Conv>d + Add>s + Relu>y"]


def test_a_map_with_two_users_stays_and_so_does_a_gate() -> None:
    model = graph(
        [
            node("Conv", "x w", "c"),
            node("Relu", "c", "r"),
            node("Concat", "c r", "k", axis=1),
            node("GlobalAveragePool", "k", "p"),
            node("Mul", "k p", "y"),
        ],
        weights={"w": (32, 32, 1, 1)},
    )
    assert names(model) == ["Conv>c", "Relu>r", "Concat>k", "GlobalAveragePool>p", "Mul>y"]


def test_swish_goes_with_its_convolution() -> None:
    model = graph(
        [node("Conv", "x w", "c"), node("Sigmoid", "c", "s"), node("Mul", "c s", "y")], weights={"w": (32, 32, 1, 1)}
    )
    assert names(model) == ["Conv>c + Sigmoid>s + Mul>y"]


def test_elementwise_neighbours_are_one_kernel_and_reshapes_none() -> None:
    model = graph(
        [
            node("Identity", "x", "i"),
            node("Mul", "i k", "a"),
            node("Abs", "x", "b"),
            node("Sub", "a b", "c"),
            node("Tanh", "c", "y"),
        ],
        weights={"k": (1,)},
    )
    (kernel,) = [kernel for kernel in read_kernels(model, Precision.FP16).kernels if "Tanh" in kernel.name]
    assert set(kernel.name.split(" + ")) == {"Mul>a", "Abs>b", "Sub>c", "Tanh>y"}
    assert kernel.bytes == 2 * (32 + 32) * 40 * 60 + 2  # x once, y once, and the one number


def test_elementwise_kernels_do_not_wait_for_themselves() -> None:
    """``a → convolution → a · convolution`` is no circle: the product is a kernel after the convolution."""
    model = graph(
        [node("Abs", "x", "a"), node("Conv", "a w", "c"), node("Mul", "a c", "m"), node("Add", "m a", "y")],
        weights={"w": (32, 32, 1, 1)},
    )
    assert names(model) == ["Abs>a", "Conv>c", "Mul>m + Add>y"]


def test_work_of_one_convolution_equals_a_count_by_hand() -> None:
    shapes = {"w": (24, 20, 3, 3), "b": (24,)}
    model = graph([node("Conv", "x w b", "y", pads=[1, 1, 1, 1], strides=[2, 2])], 20, shapes)
    work = read_kernels(model, Precision.FP16)
    kernel = work.kernels[1]
    assert kernel.kind is KernelKind.DENSE
    assert kernel.macs == 20 * 30 * 24 * 20 * 9
    assert kernel.padded_macs == 20 * 30 * 32 * 24 * 9  # 24 outputs in sixteens, 20 inputs in eights
    weights = 2 * (24 * 20 * 9 + 24)
    assert kernel.bytes == 2 * 24 * 40 * 60 + 2 * 24 * 20 * 30 + weights
    assert work.weight_bytes == weights
    assert work.map_bytes == 2 * 24 * 40 * 60 + 2 * 24 * 20 * 30
    assert [kernel.name for kernel in work.kernels] == ["reformat x", "Conv>y", "reformat y"]


def test_depthwise_and_transposed_convolutions_and_matrices() -> None:
    model = graph(
        [
            node("Conv", "x d", "a", group=32, pads=[1, 1, 1, 1]),
            node("ConvTranspose", "a t", "b", strides=[2, 2]),
            node("GlobalAveragePool", "b", "p"),
            node("Flatten", "p", "f"),
            node("Gemm", "f g", "y", transB=1),
        ],
        weights={"d": (32, 1, 3, 3), "t": (32, 16, 2, 2), "g": (10, 16)},
    )
    kernels = {kernel.name: kernel for kernel in read_kernels(model, Precision.FP16).kernels}
    assert kernels["Conv>a"].kind is KernelKind.DEPTHWISE
    assert kernels["Conv>a"].macs == 32 * 9 * 40 * 60
    assert kernels["ConvTranspose>b"].macs == 32 * 16 * 4 * 40 * 60
    assert kernels["Gemm>y"].macs == 16 * 10


def test_int8_halves_every_convolution_but_those_that_only_move_pixels() -> None:
    model = graph(
        [node("Conv", "x moves", "a"), node("Conv", "a w", "b"), node("Conv", "b w", "c"), node("Conv", "c w", "y")],
        weights={"w": (32, 32, 1, 1)},
    )
    moves = np.eye(32, dtype=np.float32)[::-1, :, None, None].copy()
    moves[3] *= -1
    model.graph.initializer.append(onnx.numpy_helper.from_array(moves, "moves"))
    kernels = {kernel.name: kernel for kernel in read_kernels(model, Precision.INT8).kernels}
    assert [kernels[f"Conv>{name}"].int8 for name in "abcy"] == [False, True, True, True]
    assert kernels["Conv>b"].bytes == (32 + 32) * 40 * 60 + 32 * 32
    half = {kernel.name: kernel for kernel in read_kernels(model, Precision.FP16).kernels}
    assert half["Conv>b"].bytes == 2 * kernels["Conv>b"].bytes


def test_quantised_files_say_themselves_which_layers_are_int8() -> None:
    def pair(name: str, inner: str) -> list[onnx.NodeProto]:
        made = f"{name}_q"
        return [node("QuantizeLinear", f"{name} one zero", made), node("DequantizeLinear", f"{made} one zero", inner)]

    model = graph(
        [*pair("x", "xd"), *pair("w", "wd"), node("Conv", "xd wd", "c"), node("Conv", "c w", "y")],
        weights={"w": (32, 32, 1, 1)},
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(1), "one"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.int8(0), "zero"))
    kernels = {kernel.name: kernel for kernel in read_kernels(model, Precision.INT8).kernels}
    assert list(kernels) == ["reformat x", "quantise x", "Conv>c", "Conv>y", "reformat y"]
    assert kernels["Conv>c"].int8
    assert not kernels["Conv>y"].int8
    assert kernels["Conv>c"].bytes == 32 * 40 * 60 + 2 * 32 * 40 * 60 + 32 * 32


@pytest.mark.parametrize("name", ["edge", "nano", "unet"])
def test_a_quantised_student_has_the_kernels_that_are_expected_of_it(name: str) -> None:
    """What INT8 is taken to be before there is a file equals a file with all layers that the exporter quantises."""
    layers = QuantisedStudent(build_student(name, {})).layers
    before = build_graph(DeployedStudent(build_student(name, {}).eval()), size=(64, 96))
    quantised = read_kernels(with_qdq(before, dict.fromkeys(layers, 2**-7)), Precision.INT8)
    expected = read_kernels(before, Precision.INT8)
    assert any(kernel.int8 for kernel in expected.kernels)
    for count in (
        lambda work: len(work.kernels),
        lambda work: sum(kernel.int8 for kernel in work.kernels),
        lambda work: sum(kernel.padded_macs for kernel in work.kernels),
        lambda work: sum(kernel.bytes for kernel in work.kernels),
        lambda work: work.weight_bytes,
    ):
        assert count(quantised) == count(expected)


def test_multiply_adds_of_a_student_are_those_of_its_convolutions(unet: onnx.ModelProto) -> None:
    """Slow reference: every convolution's weight times the pixels of its output."""
    inferred = onnx.shape_inference.infer_shapes(unet).graph
    shapes = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in inferred.value_info}
    weights = {tensor.name: int(np.prod(tensor.dims)) for tensor in unet.graph.initializer}
    by_hand = sum(
        weights[node.input[1]] * int(np.prod(shapes[node.output[0]][2:]))
        for node in unet.graph.node
        if node.op_type == "Conv"
    )
    assert read_kernels(unet, Precision.FP16).macs == by_hand


# Roofline


def test_a_kernel_takes_the_larger_of_work_and_traffic_and_its_fixed_cost() -> None:
    busy = Kernel("a", KernelKind.DENSE, False, 10**9, 10**9, 1000)
    full = Kernel("b", KernelKind.COPY, False, 0, 0, 10**8)
    tiny = Kernel("c", KernelKind.DENSE, True, 1000, 1000, 1000)
    times = kernel_times([busy, full, tiny], ORIN, PUBLISHED)
    launch = PUBLISHED.kernel_us / 1000
    compute = 2e9 / (PUBLISHED.dense_efficiency * ORIN.fp16_tflops * 1e12) * 1000
    memory = 1e8 / (PUBLISHED.bandwidth_efficiency * ORIN.bandwidth_gbs * 1e9) * 1000
    np.testing.assert_allclose(times.each, [compute + launch, memory + launch, launch], rtol=1e-3)
    assert [times.bound(index) for index in range(3)] == [Bound.COMPUTE, Bound.MEMORY, Bound.LAUNCHES]
    assert sum(times.shares().values()) == pytest.approx(1)


# Published latencies


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "benchmarks"))
    import estimate as benchmark

    return benchmark


def test_constants_are_those_fitted_on_the_published_latencies(harness: Any) -> None:
    fitted = fit_published([latency for _, latency in harness.load_anchors()])
    assert fitted.dense_efficiency == pytest.approx(PUBLISHED.dense_efficiency, rel=0.01)
    assert fitted.kernel_us == pytest.approx(PUBLISHED.kernel_us, rel=0.01)
    ratios = [row["share_of_peak"] for row in harness.yolo11()]
    fp16, int8 = ratios[0] * ratios[2], ratios[1] * ratios[3]
    assert (int8 / fp16) ** 0.5 == pytest.approx(PUBLISHED.int8_of_fp16, abs=0.01)


def test_published_latencies_lie_within_the_band_when_left_out(harness: Any) -> None:
    result = harness.result()
    assert len(result["anchors"]) == 7
    for row in result["anchors"]:
        for key in ("leave_one_out", "leave_family_out"):
            assert 1 / BAND < row[key]["of_published"] < BAND, (row["network"], key, row[key])
    stored = json.loads((Path(harness.ANCHORS).parent / "results" / "estimate.json").read_text())
    for row, kept in zip(result["anchors"], stored["anchors"], strict=True):
        assert row["leave_one_out"]["estimate_ms"] == pytest.approx(kept["leave_one_out"]["estimate_ms"], rel=0.01)


def test_layers_of_the_anchors_are_those_of_the_networks(harness: Any) -> None:
    (anchor, latency), *_ = harness.load_anchors()
    exported = harness.exported_kernels(anchor)
    assert [replace(kernel, name="") for kernel in exported] == [replace(kernel, name="") for kernel in latency.kernels]


# Recordings
