"""Estimates: what is counted and fitted, how wrong it is on published latencies, that nothing looks measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from typer.testing import CliRunner

from duskfuse.cli import app
from duskfuse.data.errors import InputError
from duskfuse.data.images import file_sha256
from duskfuse.export.estimate.estimate import LABEL, estimate
from duskfuse.export.estimate.fit import fit_device, fit_published
from duskfuse.export.estimate.graphs import open_graph
from duskfuse.export.estimate.kernels import Kernel, KernelKind, read_kernels
from duskfuse.export.estimate.modules import MODULES, module_named
from duskfuse.export.estimate.recording import DeviceRecordings, FittedModule, Recording, latencies, read_measured
from duskfuse.export.estimate.roofline import BAND, PUBLISHED, Bound, Constants, kernel_times
from duskfuse.export.onnx_graph import DeployedStudent, Precision, build_graph, save_graph
from duskfuse.export.quantise import with_qdq
from duskfuse.export.runtime.timings import Timing
from duskfuse.students.fake_quantise import QuantisedStudent
from duskfuse.students.unet import UNetStudent
from duskfuse.students.zoo import build_student

ORIN = module_named("orin-nano-8gb-super")
KNOWN = Constants(dense_efficiency=0.42, bandwidth_efficiency=0.81, kernel_us=11.0, int8_of_fp16=0.85)
"""A device that is not the published one."""


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


def test_a_profile_gives_back_the_constants_it_was_made_with(files: Path, tmp_path: Path) -> None:
    kernels = read_kernels(open_graph(files / "any.onnx", "320x240").model, Precision.FP16).kernels
    recording = read_measured(write_profile(tmp_path / "profile.json", kernels, KNOWN))
    assert isinstance(recording, Recording)
    found = fit_device(latencies(recording, kernels, ORIN))
    assert found.dense_efficiency == pytest.approx(KNOWN.dense_efficiency, rel=0.03)
    assert found.bandwidth_efficiency == pytest.approx(KNOWN.bandwidth_efficiency, rel=0.03)
    assert found.kernel_us == pytest.approx(KNOWN.kernel_us, rel=0.03)


def test_a_profile_with_noise_gives_them_back_roughly(files: Path, tmp_path: Path) -> None:
    kernels = read_kernels(open_graph(files / "any.onnx", "320x240").model, Precision.FP16).kernels
    path = write_profile(tmp_path / "profile.json", kernels, KNOWN)
    count, *layers = json.loads(path.read_text())
    random = np.random.default_rng(3)
    for layer in layers:
        layer["medianMs"] *= float(np.exp(random.normal(0, 0.2)))
    path.write_text(json.dumps([count, *layers]))
    recording = read_measured(path)
    assert isinstance(recording, Recording)
    found = fit_device(latencies(recording, kernels, ORIN))
    assert kernel_times(kernels, ORIN, found).total == pytest.approx(recording.total_ms, rel=0.05)
    for name in ("dense_efficiency", "bandwidth_efficiency", "kernel_us"):
        assert getattr(found, name) == pytest.approx(getattr(KNOWN, name), rel=0.3)


def write_profile(path: Path, kernels: tuple[Kernel, ...], constants: Constants) -> Path:
    """A file of --exportProfile as a device with these constants would write it."""
    times = kernel_times(kernels, ORIN, constants).each
    layers = [
        {"name": f"{kernel.name} [tactic 7]", "timeMs": ms * 100, "averageMs": ms, "medianMs": ms, "percentage": 1.0}
        for kernel, ms in zip(kernels, times.tolist(), strict=True)
    ]
    path.write_text(json.dumps([{"count": 100}, *layers]))
    return path


def test_times_of_the_whole_network_are_met(unet: onnx.ModelProto, tmp_path: Path) -> None:
    kernels = read_kernels(unet, Precision.FP16).kernels
    slow = 3 * kernel_times(kernels, ORIN, PUBLISHED).total
    path = tmp_path / "times.json"
    path.write_text(json.dumps([{"computeMs": slow * factor, "latencyMs": slow} for factor in (0.9, 1.0, 1.2)]))
    recording = read_measured(path)
    assert recording == Recording(pytest.approx(slow))
    found = fit_device(latencies(recording, kernels, ORIN))
    assert kernel_times(kernels, ORIN, found).total == pytest.approx(slow, rel=0.03)


def test_profiles_with_names_that_break_json_are_read(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_text(
        '[\n  { "count" : 5 }\n'
        ', { "name" : "conv "a\\b"", "timeMs" : 10.5, "averageMs" : 2.1, "medianMs" : 2, "percentage" : 50 }\n'
        ', { "name" : "relu", "timeMs" : 10, "averageMs" : 1, "percentage" : 50 }\n]\n'
    )
    recording = read_measured(path)
    assert isinstance(recording, Recording)
    assert recording.layers == (('conv "a\\b"', 2.0), ("relu", 1.0))
    assert recording.total_ms == 3


def test_layers_are_matched_by_whole_names_and_joined_where_they_share_kernels() -> None:
    kernels = [
        Kernel(name, KernelKind.COPY, False, 0, 0, 1) for name in ("/a/Conv + /a/Relu", "/a/Conv_1", "/b/Conv", "/c")
    ]
    recording = Recording(
        10, (("/a/Conv", 1), ("PWN(/a/Relu)", 2), ("/a/Conv_1 || /b/Conv", 5), ("Reformatting CopyNode to /c", 2))
    )
    _, *matched = latencies(recording, kernels, ORIN)
    assert [(tuple(kernel.name for kernel in item.kernels), item.ms) for item in matched] == [
        (("/a/Conv + /a/Relu",), 3),
        (("/a/Conv_1", "/b/Conv"), 5),
    ]


def test_a_profile_of_another_network_is_refused(unet: onnx.ModelProto) -> None:
    with pytest.raises(InputError, match="layers of this network"):
        latencies(Recording(3, (("other", 3.0),)), read_kernels(unet, Precision.FP16).kernels, ORIN)


@pytest.mark.parametrize("text", ["", "[]", "{}", "[1]", "not json", '[{"computeMs": -1}]', '[{"computeMs": "x"}]'])
def test_files_that_are_no_recordings_are_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "recording.json"
    path.write_text(text)
    with pytest.raises(InputError):
        read_measured(path)


def test_fitted_constants_are_saved_and_read(tmp_path: Path) -> None:
    fitted = FittedModule(ORIN.name, KNOWN, "profile.json")
    fitted.save(tmp_path / "orin.json")
    assert read_measured(tmp_path / "orin.json") == fitted
    with pytest.raises(InputError, match="unasked"):
        fitted.save(tmp_path / "orin.json")
    damaged = json.loads((tmp_path / "orin.json").read_text())
    damaged["constants"]["dense_efficiency"] = 7
    (tmp_path / "orin.json").write_text(json.dumps(damaged))
    with pytest.raises(InputError, match="damaged"):
        read_measured(tmp_path / "orin.json")


# The verb


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, unet: onnx.ModelProto) -> Path:
    folder = tmp_path_factory.mktemp("files")
    save_graph(unet, folder / "fixed.onnx")
    save_graph(build_graph(DeployedStudent(UNetStudent())), folder / "any.onnx")
    save_graph(build_graph(DeployedStudent(UNetStudent(), half=True), size=(96, 128)), folder / "half.onnx")
    return folder


def test_nothing_stands_without_its_label_and_band(files: Path) -> None:
    report = estimate(files / "fixed.onnx")
    rows = report.to_json()["estimates"]
    assert {row["module"] for row in rows} >= {"orin-nano-8gb-super", "xavier-nx"}
    for row in rows:
        assert row["label"] == LABEL == "estimate, not measured"
        for key in ("ms", "per_second"):
            assert row[key]["low"] * BAND == pytest.approx(row[key]["estimate"])
            assert row[key]["high"] / BAND == pytest.approx(row[key]["estimate"])
        assert row["ms"]["estimate"] * row["per_second"]["estimate"] == pytest.approx(1000)
    assert all(LABEL in str(table.title).lower() for table in report.tables())


def test_within_a_module_the_fastest_comes_first(files: Path) -> None:
    report = estimate([files / "fixed.onnx", "nano"], size="128x96", module=["agx-orin-64gb", "xavier-nx"])
    assert [row.module for row in report.estimates] == ["agx-orin-64gb"] * 4 + ["xavier-nx"] * 4
    times = [row.ms.estimate for row in report.estimates]
    assert times == sorted(times[:4]) + sorted(times[4:])
    assert {row.model for row in report.estimates[:2]} == {"nano"}


def test_a_file_of_any_size_equals_one_of_that_size(files: Path) -> None:
    free, fixed = (estimate(files / f"{name}.onnx", size="128x96").estimates[0] for name in ("any", "fixed"))
    assert free.gmacs == fixed.gmacs
    assert free.ms.estimate == pytest.approx(fixed.ms.estimate, rel=0.02)


def test_a_file_keeps_its_precision(files: Path) -> None:
    assert {row.precision for row in estimate(files / "half.onnx").estimates} == {"fp16"}
    with pytest.raises(InputError, match="fp16"):
        estimate(files / "half.onnx", precision=["int8"])


def test_larger_pictures_take_longer(files: Path) -> None:
    small, large = (estimate(files / "any.onnx", size=size).estimates[0] for size in ("320x240", "640x480"))
    assert large.gmacs == pytest.approx(4 * small.gmacs, rel=0.01)
    assert large.ms.estimate > 2 * small.ms.estimate


def test_one_recording_is_used_and_saved_for_its_module(files: Path, tmp_path: Path) -> None:
    graph_of = open_graph(files / "fixed.onnx", None)
    kernels = read_kernels(graph_of.model, Precision.FP16).kernels
    profile = write_profile(tmp_path / "profile.json", kernels, KNOWN)
    saved = tmp_path / "orin.json"
    with pytest.raises(InputError, match="one model"):
        estimate(files / "fixed.onnx", module=[ORIN.name], measured=profile)
    first = estimate(files / "fixed.onnx", module=[ORIN.name], precision=["fp16"], measured=profile, save=saved)
    assert first.estimates[0].ms.estimate == pytest.approx(kernel_times(kernels, ORIN, KNOWN).total, rel=0.03)
    assert "profile.json" in first.estimates[0].constants
    later = estimate(files / "fixed.onnx", module=[ORIN.name, "xavier-nx"], precision=["fp16"], measured=saved)
    assert later.estimates[0].ms == first.estimates[0].ms
    assert later.estimates[1].constants == "published"
    with pytest.raises(InputError, match="without a recording"):
        estimate(files / "fixed.onnx", save=tmp_path / "other.json")


def write_device_run(path: Path, onnx_file: Path, *results: dict[str, Any]) -> Path:
    """A document of a device benchmark of one file; each result is given by what matters here."""
    entries = [
        {
            "model": onnx_file.name,
            "sha256": file_sha256(onnx_file),
            "precision": "fp16",
            "size": "128x96",
            "transfers": "included",
            "flags": {},
            "whole": None,
            "steps": {},
            "fps": None,
            "seconds": 1.0,
            "energy_mj": None,
            "seen": None,
            "warnings": [],
            "trtexec": None,
            "times_ms": {"network": [9.0, 9.0]},
            "network": Timing.of([9.0, 9.0]).to_json(),
            **result,
        }
        for result in results
    ]
    head = {"format": "duskfuse device benchmark", "version": 1, "made": "now", "device": {}, "failures": []}
    path.write_text(json.dumps({**head, "results": entries}))
    return path


def test_a_device_run_is_used_by_file_with_its_layers_where_it_has_them(files: Path, tmp_path: Path) -> None:
    half, saved = files / "half.onnx", tmp_path / "orin.json"
    kernels = read_kernels(open_graph(half, None).model, Precision.FP16).kernels
    total = kernel_times(kernels, ORIN, KNOWN).total
    profile = write_profile(tmp_path / "profile.json", kernels, KNOWN).read_text()
    by_trtexec = {
        "backend": "trtexec",
        "network": Timing.of([total, total]).to_json(),
        "trtexec": {"output": "", "profile": profile},
    }
    engine = {"backend": "tensorrt", "steps": {"compute": Timing.of([3 * total, 3 * total]).to_json()}}
    both = write_device_run(tmp_path / "both.json", half, by_trtexec, engine, {"backend": "onnxruntime"})
    known = read_measured(both)
    assert isinstance(known, DeviceRecordings)
    assert len(known.of(file_sha256(half), "128x96", "half").layers) == len(kernels)
    first = estimate(half, module=[ORIN.name], measured=both, save=saved)
    assert first.estimates[0].ms.estimate == pytest.approx(total, rel=0.03)
    assert "both.json: half fp16 128x96" in first.estimates[0].constants
    later = estimate([half, "nano"], size="128x96", module=[ORIN.name], measured=saved)
    assert first.estimates[0] in later.estimates
    alone = write_device_run(tmp_path / "alone.json", half, engine)
    slow = estimate(half, module=[ORIN.name], measured=alone).estimates[0]
    assert slow.ms.estimate == pytest.approx(3 * total, rel=0.03), "the GPU's own time, without copies"


def test_what_a_device_run_does_not_hold_is_named(files: Path, tmp_path: Path) -> None:
    engine = {"backend": "tensorrt", "steps": {"compute": Timing.of([2.0, 2.0]).to_json()}}
    path = write_device_run(tmp_path / "run.json", files / "half.onnx", engine)
    for model, size, said in (
        ("nano", "128x96", "nano 128x96 is not in the recording of half.onnx"),
        (files / "fixed.onnx", "128x96", "fixed 128x96 is not"),
    ):
        with pytest.raises(InputError, match=said):
            estimate(model, size=size, module=[ORIN.name], measured=path)
    with pytest.raises(InputError, match="one module"):
        estimate(files / "half.onnx", measured=path)
    slow = write_device_run(tmp_path / "cpu.json", files / "half.onnx", {"backend": "onnxruntime"})
    with pytest.raises(InputError, match="cpu was not measured on a GPU"):
        estimate(files / "half.onnx", module=[ORIN.name], measured=slow)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"module": ["jetson"]}, "known are"),
        ({"precision": ["fp32"]}, "fp16 or int8"),
        ({"size": "64x64"}, "128x96 only"),
        ({"measured": Path("absent.json")}, "cannot be read"),
    ],
)
def test_wrong_input_is_named(files: Path, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        estimate(files / "fixed.onnx", **arguments)


def test_files_that_are_no_networks_are_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"\x08\x08nothing")
    for name in ("broken.onnx", "absent.onnx"):
        with pytest.raises(InputError):
            estimate(tmp_path / name)


def test_the_command_prints_estimates_as_such(files: Path) -> None:
    arguments = ["estimate", str(files / "fixed.onnx"), "--module", "orin-nano-8gb-super"]
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0
    assert "not measured" in shown.stdout
    as_json = CliRunner().invoke(app, [*arguments, "--json"])
    assert len(json.loads(as_json.stdout)["estimates"]) == 2
    assert CliRunner().invoke(app, [*arguments, "--precision", "fp8"]).exit_code == 2


def test_every_module_is_known_by_its_name() -> None:
    assert all(name == module.name for name, module in MODULES.items())
