"""A student steered by constants: the live form with the same needs, its cost, its file."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from duskfuse.export.onnx_graph import DeployedStudent, build_graph
from duskfuse.students.fold import fold_batchnorm
from duskfuse.students.steering.compensation import Compensation
from duskfuse.students.steering.fixed import FixedCompensation, FixedSteering
from duskfuse.students.steering.steered import SteeredStudent, Steering, weights_digest
from duskfuse.students.steering.taps import taps_of
from duskfuse.students.zoo import build_student

STUDENTS = ("vfn", "unet", "edge", "nano", "mobile")


def live(name: str) -> SteeredStudent:
    """Two tasks with different needs; weights and statistics that are not those of the start."""
    torch.manual_seed(0)
    student = build_student(name, {})
    network = SteeredStudent(student, Steering(taps_of(student), ("detection", "segmentation")))
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
    import onnxruntime

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
