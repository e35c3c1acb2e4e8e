"""Files are traced without computing convolutions, and are the same, byte for byte, as if they had been computed."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from duskfuse.data.fuser import Colour
from duskfuse.export import onnx_graph
from duskfuse.export.onnx_graph import DeployedStudent, build_graph
from duskfuse.export.uncomputed import uncomputed_convolutions
from duskfuse.students.edge import EdgeStudent
from duskfuse.students.fake_quantise import QuantisedStudent
from duskfuse.students.zoo import load_student

STUDENTS = {
    "nano": lambda half: DeployedStudent(load_student("nano")[0], half=half),
    "unet": lambda half: DeployedStudent(load_student("unet")[0], half=half),
    "edge in colours": lambda half: DeployedStudent(EdgeStudent(Colour.RGB).eval(), half=half),
    "quantised": lambda half: DeployedStudent(QuantisedStudent(load_student("edge")[0]).eval().deployed(), half=half),
}


@pytest.mark.parametrize("size", [(48, 64), (50, 61), None])
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("name", STUDENTS)
def test_the_file_is_the_same_byte_for_byte(
    name: str, half: bool, size: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployed = STUDENTS[name](half)
    made = build_graph(deployed, size=size).SerializeToString()
    monkeypatch.setattr(onnx_graph, "uncomputed_convolutions", nullcontext)
    assert build_graph(deployed, size=size).SerializeToString() == made


def test_no_convolution_is_computed_and_all_are_again_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    deployed = DeployedStudent(load_student("unet")[0])
    pictures = torch.rand(2, 1, 1, 24, 32)
    before = deployed(*pictures)

    def computed(*_: object) -> None:
        raise AssertionError("a convolution was computed")

    with monkeypatch.context() as patch:
        patch.setattr(F, "conv2d", computed)
        build_graph(deployed, size=(24, 32))
    assert torch.equal(deployed(*pictures), before)


@pytest.mark.parametrize(
    "convolution",
    [
        nn.Conv2d(4, 6, 3, stride=2, padding=1),
        nn.Conv2d(4, 4, (5, 3), stride=(2, 1), padding=(0, 2), dilation=(1, 2), groups=4, bias=False),
        nn.Conv2d(4, 6, 3, padding="same"),
        nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
    ],
)
def test_shapes_are_those_of_the_convolution(convolution: nn.Conv2d) -> None:
    x = torch.rand(2, 4, 17, 23)
    want = convolution(x)
    with uncomputed_convolutions(nn.Sequential(convolution)):
        assert convolution(x).shape == want.shape
    assert torch.equal(convolution(x), want)
