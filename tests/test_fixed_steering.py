"""A student steered by constants: the live form with the same needs, its cost, its file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from duskfuse.cli import app
from duskfuse.data.scenes.write import write_scenes
from duskfuse.export.calibration import calibration_pairs
from duskfuse.export.onnx_graph import DeployedStudent, build_graph
from duskfuse.export.verify import psnr_db
from duskfuse.students.fold import fold_batchnorm
from duskfuse.students.steering.compensation import Compensation
from duskfuse.students.steering.description import Resolution
from duskfuse.students.steering.fixed import FixedCompensation, FixedSteering
from duskfuse.students.steering.steered import SteeredStudent, Steering, weights_digest
from duskfuse.students.steering.steering_file import save_steering
from duskfuse.students.steering.taps import taps_of
from duskfuse.students.zoo import build_student, load_student

STUDENTS = ("vfn", "unet", "edge", "nano", "mobile")


def live(name: str, student: nn.Module | None = None) -> SteeredStudent:
    """Two tasks with different needs; weights and statistics that are not those of the start."""
    torch.manual_seed(0)
    student = student or build_student(name, {})
    by_scale = Resolution(channels=False)
    steering = Steering(taps_of(student), ("detection", "segmentation"), resolution=by_scale)
    network = SteeredStudent(student, steering)
    for tap in network.steering.taps:
        module = network.steering.compensation(tap.module)
        for parameter in module.leave.parameters():
            nn.init.normal_(parameter, std=0.2)
        assert module.norm.running_mean is not None
        assert module.norm.running_var is not None
        nn.init.uniform_(module.norm.running_mean, -0.1, 0.1)
        nn.init.uniform_(module.norm.running_var, 0.5, 2)
    network.eval()
    with torch.no_grad():
        for scale, task in ((0.5, "detection"), (3, "segmentation")):
            needs = network.steer(*pictures(batch=4), scale * torch.randn(4, 16, 6, 6))[1]
            network.steering.remember(task, needs)
    return network


def pictures(batch: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.rand(batch, 1, 16, 32, generator=generator), torch.rand(batch, 1, 16, 32, generator=generator)


@pytest.mark.parametrize("name", STUDENTS)
def test_the_fixed_form_equals_the_live_form_with_the_same_needs(name: str) -> None:
    network = live(name)
    before = weights_digest(network.student)
    vis, ir = pictures()
    with torch.no_grad():
        made = {}
        for task in network.steering.tasks:
            made[task] = network(vis, ir, network.steering.needs(task)).y
            fixed = FixedSteering(network, task)
            torch.testing.assert_close(fixed(vis, ir).y, made[task], atol=1e-5, rtol=0)
            torch.testing.assert_close(fold_batchnorm(fixed)(vis, ir).y, made[task], atol=1e-5, rtol=0)
        assert not torch.equal(made["detection"], made["segmentation"])
        assert float((made["detection"] - network.student(vis, ir).y).abs().max()) > 5e-5
    assert weights_digest(network.student) == before


def test_needs_are_means_over_what_was_seen() -> None:
    network = live("nano")
    features = torch.randn(3, 16, 6, 6)
    vis, ir = pictures(batch=3)
    with torch.no_grad():
        used = network.steer(vis, ir, features)[1]
    network.steering.remember("detection", used)
    for tap in network.steering.taps:
        for kept, seen in zip(network.steering.needs("detection")[tap.module], used[tap.module], strict=True):
            torch.testing.assert_close(kept, seen.mean(dim=0, keepdim=True))


@pytest.mark.parametrize("name", ["vfn", "edge", "nano"])
def test_the_file_equals_the_live_form(name: str) -> None:
    network = live(name)
    vis, ir = pictures(batch=1)
    with torch.no_grad():
        expected = network(vis, ir, network.steering.needs("detection")).y
    graph = build_graph(DeployedStudent(FixedSteering(network, "detection")), size=(16, 32))
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    (fused,) = session.run(["fused_y"], {"ir": ir.numpy(), "vis_y": vis.numpy()})
    np.testing.assert_allclose(fused, expected.numpy(), atol=1e-5)


def test_a_fixed_compensation_holds_nothing_but_its_convolutions() -> None:
    """At most four 3×3 branches of 8×8 and the 1×1 convolution behind; beside other widths one before."""
    network = live("edge")
    tap = network.steering.taps[0]
    module = network.steering.compensation(tap.module)
    assert isinstance(module, Compensation)
    fixed = FixedCompensation(module, network.steering.needs("detection")[tap.module], network.steering.bank)
    layers = [layer for layer in fixed.modules() if not list(layer.children())]
    assert all(type(layer) is nn.Conv2d for layer in layers)
    weights = sum(layer.weight.numel() for layer in layers if isinstance(layer, nn.Conv2d))
    assert weights <= 4 * 8 * 8 * 9 + 32 * tap.channels + 8 * tap.channels


@pytest.mark.parametrize("dla", [False, True])
def test_the_int8_file_is_the_steered_student(dla: bool, tmp_path: Path) -> None:
    """At least 40 dB between the files, which is the rule for any student; the steering itself is far above that."""
    student, _ = load_student("nano")
    steering, data, out = tmp_path / "steering.safetensors", tmp_path / "data", tmp_path / "bundle"
    save_steering(steering, live("nano", student), punishment=5.0, training_data="nothing", metrics={})
    write_scenes(data, count=3, size=(48, 64))
    words = ["export", "nano", "--out", str(out), "--precision", "fp32,int8", "--size", "64x48", "--json"]
    words += ["--steering", str(steering), "--for", "detection", "--calibration", str(data)]
    made = CliRunner().invoke(app, [*words, "--dla"] if dla else words)
    assert made.exit_code == 0, made.output
    report = json.loads(made.stdout)
    assert [entry["file"] for entry in report["files"]] == [f"nano-detection-64x48-{p}.onnx" for p in ("fp32", "int8")]
    assert report["files"][1]["convolutions"] > len(report["files"][1]["float_convolutions"])
    drift = json.loads((out / "int8-drift.json").read_text())["nano-detection-64x48-int8.onnx"]
    in_int8 = [layer["layer"] for layer in drift["layers"] if layer["int8"]]
    assert any("branches" in name for name in in_int8), "of the steering"
    assert any("context" in name for name in in_int8), "and of the student"
    operators = [node.op_type for node in onnx.load(out / report["files"][1]["file"]).graph.node]
    assert operators.count("QuantizeLinear") > len(in_int8)
    assert ("ConvTranspose" in operators, "DepthToSpace" in operators) == (dla, not dla)
    assert bool(report["files"][0]["dla"]) == dla
    sessions = [onnxruntime.InferenceSession(str(out / entry["file"])) for entry in report["files"]]
    for pair in calibration_pairs(data, (48, 64), 3):
        feeds = pair.feeds()
        exact, rounded = (session.run(["fused_y"], feeds)[0] for session in sessions)
        vis, ir = torch.from_numpy(feeds["vis_y"]), torch.from_numpy(feeds["ir"])
        with torch.no_grad():
            own = student(vis, ir).y.numpy()
        assert 40 <= psnr_db(exact, rounded) < 99
        assert psnr_db(exact, rounded) > psnr_db(exact, own), "nearer to the steered student than to the plain one"
