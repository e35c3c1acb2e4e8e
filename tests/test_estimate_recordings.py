"""Estimates fitted to what a device recorded, their tables and command; nothing looks measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from duskfuse.cli import app
from duskfuse.data.errors import InputError
from duskfuse.data.images import file_sha256
from duskfuse.export.estimate.estimate import LABEL, estimate
from duskfuse.export.estimate.fit import fit_device
from duskfuse.export.estimate.graphs import open_graph
from duskfuse.export.estimate.kernels import Kernel, KernelKind, read_kernels
from duskfuse.export.estimate.modules import MODULES, module_named
from duskfuse.export.estimate.recording import DeviceRecordings, FittedModule, Recording, latencies, read_measured
from duskfuse.export.estimate.roofline import BAND, PUBLISHED, Constants, kernel_times
from duskfuse.export.onnx_graph import DeployedStudent, Precision, build_graph, save_graph
from duskfuse.export.runtime.timings import Timing
from duskfuse.students.unet import UNetStudent

ORIN = module_named("orin-nano-8gb-super")
KNOWN = Constants(dense_efficiency=0.42, bandwidth_efficiency=0.81, kernel_us=11.0, int8_of_fp16=0.85)
"""A device that is not the published one."""


@pytest.fixture(scope="module")
def unet() -> onnx.ModelProto:
    return build_graph(DeployedStudent(UNetStudent()), size=(96, 128))


# Modules


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
