"""What trtexec printed on real machines, 8.0 to 11, is read to the last number; torn text does no harm."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duskfuse.export.runtime.trtexec_run import read_help
from duskfuse.export.trtexec import (
    Latencies,
    parse_export_profile,
    parse_export_times,
    parse_output,
    parse_profile_table,
)

RECORDINGS = Path(__file__).parent / "recordings" / "trtexec"


def recording(name: str) -> str:
    return (RECORDINGS / name).read_text(encoding="utf-8")


def test_8_4_with_one_percentile() -> None:
    found = parse_output(recording("v8400_agx_xavier.txt"))
    assert (found.version, found.passed, found.throughput) == ("8.4.0", True, 41087.7)
    assert found.command == "trtexec --loadEngine=mnist16.trt --batch=16"
    assert found.times["Latency"] == Latencies(0.387207, 0.447357, 0.402238, 0.401947, {99: 0.420288})
    assert found.times["GPU Compute Time"] == Latencies(0.375977, 0.403564, 0.388221, 0.388443, {99: 0.393188})
    assert set(found.times) == {"Latency", "Enqueue Time", "H2D Latency", "GPU Compute Time", "D2H Latency"}
    assert (found.host_s, found.compute_s) == (3.00119, 2.99202)
    assert found.warnings == found.errors == found.layers == ()


def test_8_0_with_the_line_that_later_releases_dropped() -> None:
    found = parse_output(recording("v8001_jetson.txt"))
    assert (found.version, found.passed) == ("8.0.1", True)
    assert found.times["End-to-End Host Latency"].median == 40.6718
    assert "Latency" not in found.times, "the recording begins after it"
    assert found.warnings[0].startswith("* Throughput may be bound by Enqueue Time")
    line = (
        "[I] End-to-End Host Latency: min = 0.574707 ms, max = 0.606201 ms, mean = 0.586663 ms, median = 0.585938 ms, "
        "percentile(99%) = 0.601685 ms"
    )
    assert parse_output(line).times == {
        "End-to-End Host Latency": Latencies(0.574707, 0.606201, 0.586663, 0.585938, {99: 0.601685})
    }


def test_three_percentiles_of_8_6_and_later() -> None:
    found = parse_output(recording("three_percentiles_agx_orin.txt"))
    assert found.throughput == 12.9581
    assert found.times["Latency"].percentiles == {90: 76.4209, 95: 76.446, 99: 76.4476}
    assert found.version is None
    assert found.passed is None


@pytest.mark.parametrize(("name", "percent"), [("v8401_x86.txt", 2.9705), ("noisy_x86.txt", 44.7285)])
def test_unstable_clocks_are_told(name: str, percent: float) -> None:
    found = parse_output(recording(name))
    assert found.variance_percent == percent
    assert len(found.warnings) == 4
    assert found.times["GPU Compute Time"].max is not None


def test_11_2_that_fails_says_why() -> None:
    found = parse_output(recording("v110201_failed.txt"))
    assert (found.version, found.passed, found.times) == ("11.2.1", False, {})
    assert "must have same input types" in found.errors[0]


def test_11_1_typed_by_hand() -> None:
    """beyondli/Yolo_on_Jetson, issue 4, is of this kind too: signs and spaces are missing."""
    found = parse_output(recording("v110100_retyped.txt"))
    assert (found.version, found.passed, found.throughput) == ("11.1.0", True, 85.66)
    assert found.times["Latency"] == Latencies(11.36, 14.62, 11.67, 11.43, {90: 12.21, 95: 12.49, 99: 13.62})
    assert parse_output("Latency: min 3.1 ms, max 4 ms, median 3.5ms").times["Latency"] == Latencies(3.1, 4, None, 3.5)


def test_tables_of_layers_with_the_name_first_and_last() -> None:
    first = parse_profile_table(recording("profile_8_5.txt"))
    assert [layer.name for layer in first] == [
        "Reformatting CopyNode for Input Tensor 0 to {ForeignNode[conv1/7x7_s2...loss3/classifier]}",
        "{ForeignNode[conv1/7x7_s2...loss3/classifier]}",
        "Reformatting CopyNode for Input Tensor 0 to prob",
        "prob",
    ]
    assert (first[1].total_ms, first[1].mean_ms, first[1].median_ms, first[1].percent) == (5089.98, 1.032, 1.0321, 93.1)
    last = parse_output(recording("profile_8_6.txt")).layers
    assert len(last) == 3, "the totals are no layer"
    assert last[1].name == "{ForeignNode[/Constant_7_output_0 + ONNXTRT_Broadcast.../Einsum_1]}"
    assert (last[1].total_ms, last[1].mean_ms, last[1].median_ms, last[1].percent) == (1667.74, 5.7508, 5.7308, 97.7)
    without_median = (
        "[I] === Profile (120 iterations ) ===\n"
        "[I]              Layer   Time (ms)   Avg. Time (ms)   Time %\n"
        "[I]   Conv_0 + Relu_1       12.00           0.1000     50.0\n"
    )
    (layer,) = parse_profile_table(without_median)
    assert (layer.name, layer.total_ms, layer.median_ms, layer.percent) == ("Conv_0 + Relu_1", 12, None, 50)


def test_exported_profiles_with_and_without_medians_and_with_names_that_break_the_json() -> None:
    old = parse_export_profile(recording("profile_8_2.json"))
    assert len(old) == 4
    assert (old[1].name, old[1].mean_ms, old[1].median_ms) == ("Conv_0 + PWN(Clip_3)", 0.0662771, None)
    (new,) = parse_export_profile(recording("profile_8_6.json"))
    assert (new.name, new.median_ms, new.percent) == ("/conv1/Conv + /act1/Relu", 0.027872, 100)
    broken = recording("profile_8_6.json").replace("/conv1/Conv", r'a "quoted" \x name')
    (layer,) = parse_export_profile(broken)
    assert (layer.name, layer.total_ms) == (r'a "quoted" \x name + /act1/Relu', 1160.78)
    assert parse_export_profile("nothing") == ()


def test_exported_times() -> None:
    text = (
        '[\n  { "startEnqMs" : 0.5, "endEnqMs" : 1, "h2dMs" : 0.01, "computeMs" : 1.25, "latencyMs" : 1.3 }\n'
        ', { "startEnqMs" : 2, "endEnqMs" : 3, "h2dMs" : 0.02, "computeMs" : 1.5, "latencyMs" : 1.6 }\n]\n'
    )
    found = parse_export_times(text)
    assert found["computeMs"] == [1.25, 1.5]
    assert found["latencyMs"] == [1.3, 1.6]
    assert parse_export_times("[1, 2]") == parse_export_times("{") == parse_export_times("[]") == {}


@given(
    st.sampled_from([path.name for path in sorted(RECORDINGS.iterdir())]), st.integers(0, 3000), st.text(max_size=30)
)
def test_torn_text_does_no_harm(name: str, cut: int, other: str) -> None:
    text = recording(name)
    for parse in (parse_output, parse_profile_table, parse_export_profile, parse_export_times):
        parse(text[:cut] + other)
        parse(other + text[cut:])


HELP_10_3 = "&&&& RUNNING TensorRT.trtexec [TensorRT v100300] # trtexec --help\n  --onnx=<file>\n  --fp16\n  --int8\n"
HELP_10_3 += "  --stronglyTyped\n  --useCudaGraph\n  --useSpinWait\n  --noDataTransfers\n  --separateProfileRun\n"


def test_settings_are_the_same_in_every_release(tmp_path: Path) -> None:
    model = tmp_path / "edge-fp16.onnx"
    program = read_help("trtexec", HELP_10_3)
    command = program.command(model, "fp16", 10, tmp_path)
    assert {"--useCudaGraph", "--useSpinWait", "--noDataTransfers", "--fp16", f"--onnx={model}"} <= set(command)
    assert "--stronglyTyped" not in command, "complete on Jetson from 10.12 on"
    assert set(program.settings().values()) == {"stated"}
    assert {"--int8", "--fp16"} <= set(program.command(model, "int8", 10, tmp_path))
    newer = read_help("trtexec", HELP_10_3.replace("v100300", "v101602"))
    assert "--stronglyTyped" in newer.command(model, "fp16", 10, tmp_path)
    eleven = read_help(
        "trtexec", "[TensorRT v110401] [b1]\n --onnx=<file>\n --includeDataTransfers\n --noCudaGraph\n --noSpinWait\n"
    )
    command = eleven.command(model, "fp16", 10, tmp_path)
    assert not {"--fp16", "--useCudaGraph", "--noCudaGraph", "--includeDataTransfers", "--noSpinWait"} & set(command)
    assert set(eleven.settings().values()) == {"by default"}
    model.with_suffix(".engine").write_bytes(b"engine")
    assert f"--loadEngine={model.with_suffix('.engine')}" in program.command(model, "fp16", 10, tmp_path)
