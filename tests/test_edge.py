"""The students edge and nano: size and cost, the blend, merging, any size, files, training, bench and export."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from duskfuse.data.colour import luminance, rgb_to_ycbcr
from duskfuse.data.fuser import Colour
from duskfuse.data.weights import ModelCard, save_weights
from duskfuse.evaluate.fusers import OnnxFuser, TorchFuser
from duskfuse.export.bench import Backend, bench
from duskfuse.export.export import export
from duskfuse.export.onnx_graph import DeployedStudent, build_graph, save_graph
from duskfuse.students import edge
from duskfuse.students.edge import EdgeStudent, NanoStudent, without_depth_to_space
from duskfuse.students.fold import fold_batchnorm
from duskfuse.students.zoo import build_student, load_student

BOTH = ("edge", "nano")
ELEMENTWISE = {"Add", "Clip", "Mul", "Relu"}


def inputs(height: int, width: int, channels: int = 1, batch: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(height * width)
    return tuple(torch.rand(batch, c, height, width, generator=generator) for c in (channels, 1))  # type: ignore[return-value]


def lively(name: str, colour: Colour = Colour.LUMA) -> EdgeStudent:
    """A student whose normalisations and coefficients are not the initial ones."""
    torch.manual_seed(0)
    student = build_student(name, {"colour": colour.value})
    assert isinstance(student, EdgeStudent)
    for module in student.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
    for head in student.heads.values():
        nn.init.normal_(head.weight, std=0.03)  # type: ignore[arg-type]
    return student.eval()


@pytest.fixture(params=BOTH)
def student(request: pytest.FixtureRequest) -> EdgeStudent:
    return lively(request.param)


@pytest.fixture(params=BOTH)
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / f"{request.param}.safetensors"
    network = lively(request.param)
    save_weights(path, network, ModelCard(request.param, network.settings, "luma", "0", "random numbers"))
    return path


@pytest.mark.parametrize(
    ("name", "colour", "trained", "deployed", "macs"),
    [
        ("edge", "luma", 44_064, 39_136, 289_996_800),
        ("edge", "rgb", 44_576, 39_648, 299_827_200),
        ("nano", "luma", 9_616, 8_544, 73_728_000),
        ("nano", "rgb", 10_128, 9_056, 83_558_400),
    ],
)
def test_size_and_cost_at_640_by_480(name: str, colour: Colour, trained: int, deployed: int, macs: int) -> None:
    """Pinned; multiply-accumulates of the deployed form. The U-Net student needs 20 billion at this size."""
    student = build_student(name, {"colour": colour})
    assert sum(p.numel() for p in student.parameters()) == trained
    folded = fold_batchnorm(student)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        folded.to("meta")(torch.empty(1, 3 if colour == "rgb" else 1, 480, 640), torch.empty(1, 1, 480, 640))
    assert (sum(p.numel() for p in folded.parameters() if p.requires_grad), counter.get_total_flops() // 2) == (
        deployed,
        macs,
    )


@pytest.mark.parametrize("colour", list(Colour))
@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize(("height", "width"), [(4, 4), (5, 7), (8, 8), (33, 47), (40, 136), (189, 251)])
def test_shapes_and_range_at_any_size(height: int, width: int, name: str, colour: Colour) -> None:
    with torch.no_grad():
        out = lively(name, colour)(*inputs(height, width, 3 if colour is Colour.RGB else 1, batch=2))
    assert out.y.shape == (2, 1, height, width)
    assert 0 <= float(out.y.min()) <= float(out.y.max()) <= 1
    assert (out.rgb is None) == (colour is Colour.LUMA)
    quarter, eighth = (tuple(math.ceil(side / scale) for side in (height, width)) for scale in (4, 8))
    want = [(2, 16, *quarter), (2, 32 if name == "edge" else 16, *eighth), (2, 16, *quarter)]
    assert [tuple(tap.shape) for tap in out.taps] == want
    assert all(float(tap.min()) >= 0 for tap in out.taps)
    assert float(out.taps[1].max()) <= 6


def set_coefficients(student: EdgeStudent, **values: float) -> None:
    for name, head in student.heads.items():
        nn.init.zeros_(head.weight)  # type: ignore[arg-type]
        nn.init.constant_(head.bias, values[name])  # type: ignore[arg-type]


@pytest.mark.parametrize("name", BOTH)
def test_the_blend_contains_the_trivial_fusions(name: str) -> None:
    """Constant coefficients give the sources, their mean, minimum and maximum, each as its plain definition."""
    network, (vis, ir) = build_student(name, {}).eval(), inputs(20, 28)
    assert isinstance(network, EdgeStudent)
    wanted = {
        (0, 0): vis,
        (1, 0): ir,
        (0.5, 0): (vis + ir) / 2,
        (0, 1): torch.maximum(vis, ir),
        (1, -1): torch.minimum(vis, ir),
        (-9, 9): torch.maximum(vis, ir),  # clipped to 0 and 1
    }
    for (w, v), want in wanted.items():
        set_coefficients(network, g=1, w=w, v=v, r=0)
        with torch.no_grad():
            torch.testing.assert_close(network(vis, ir).y, want, atol=1e-6, rtol=0)
    if name == "edge":
        set_coefficients(network, g=2, w=1, v=0, r=-0.5)
        with torch.no_grad():
            torch.testing.assert_close(network(vis, ir).y, (vis + ir - 0.5).clamp(0, 1), atol=1e-6, rtol=0)


@pytest.mark.parametrize("colour", list(Colour))
@pytest.mark.parametrize("name", BOTH)
def test_a_new_student_shows_nearly_the_brighter_source(name: str, colour: Colour) -> None:
    torch.manual_seed(0)
    vis, ir = inputs(64, 72, 3 if colour is Colour.RGB else 1)
    with torch.no_grad():
        fused = build_student(name, {"colour": colour.value}).eval()(vis, ir).y
    difference = (fused - torch.maximum(luminance(vis) if colour is Colour.RGB else vis, ir)).abs()
    assert float(difference.mean()) < 0.06
    assert float(difference.max()) < 0.25


@pytest.mark.parametrize("name", BOTH)
def test_a_new_student_draws_no_grid(name: str) -> None:
    """Of flat sources it makes blocks whose pixels are alike."""
    torch.manual_seed(0)
    with torch.no_grad():
        fused = build_student(name, {}).eval()(torch.full((1, 1, 64, 64), 0.7), torch.full((1, 1, 64, 64), 0.3)).y
    pixels = F.pixel_unshuffle(fused, 4)
    assert float((pixels.amax(dim=1) - pixels.amin(dim=1)).max()) <= 1e-6


@pytest.mark.parametrize("name", BOTH)
def test_colours_of_the_street_stay(name: str) -> None:
    """RGB out: the luminance is ``y`` exactly, chroma points where the visible chroma points and is never larger."""
    vis, ir = inputs(40, 44, channels=3)
    with torch.no_grad():
        out = lively(name, Colour.RGB)(vis, ir)
    assert out.rgb is not None
    torch.testing.assert_close(luminance(out.rgb), out.y, atol=1e-5, rtol=0)
    before, after = rgb_to_ycbcr(vis)[:, 1:] - 0.5, rgb_to_ycbcr(out.rgb)[:, 1:] - 0.5
    assert float((before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]).abs().max()) < 1e-5
    assert bool((after.norm(dim=1) <= before.norm(dim=1) + 1e-5).all())
    assert float(after.norm(dim=1).mean()) > 0.3 * float(before.norm(dim=1).mean())


def repeated(block: edge._RepConv, x: Tensor) -> Tensor:
    """The branches one after the other in float64, as RepVGG's figure draws them."""
    x, block = x.double(), block.double().eval()
    total = block.wide[1](F.conv2d(x, block.wide[0].weight, stride=block.wide[0].stride, padding=1))
    total = total + block.point[1](F.conv2d(x, block.point[0].weight, stride=block.wide[0].stride))
    if block.identity is not None:
        total = total + block.identity(x)
    return total.clamp(0, 6)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("outputs", [16, 32])
def test_merging_one_block_is_exact(stride: int, outputs: int) -> None:
    torch.manual_seed(0)
    block = edge._RepConv(16, outputs, stride)
    block.load_state_dict(
        {key: torch.rand_like(t) + 0.1 if t.is_floating_point() else t for key, t in block.state_dict().items()}
    )
    assert (block.identity is not None) == (stride == 1 and outputs == 16)
    x = torch.rand(2, 16, 9, 11) - 0.5
    with torch.no_grad():
        merged = fold_batchnorm(block)
        torch.testing.assert_close(merged(x), repeated(block, x).float(), atol=1e-5, rtol=1e-5)
    assert [type(layer) for layer in merged] == [nn.Conv2d, nn.ReLU6]  # type: ignore[arg-type]


def test_merging_a_student_is_exact_and_complete(student: EdgeStudent) -> None:
    folded = fold_batchnorm(student)
    assert not any(isinstance(module, nn.BatchNorm2d | edge._RepConv) for module in folded.modules())
    assert any(isinstance(module, edge._RepConv) for module in student.modules())
    with torch.no_grad():
        pair = inputs(101, 76)
        got, want = folded(*pair), student(*pair)
    assert float((got.y - want.y).abs().max()) <= 1e-5
    torch.testing.assert_close(got.taps, want.taps, atol=1e-4, rtol=1e-4)


def supported(shared_facts: Path) -> set[str]:
    table = json.loads((shared_facts / "onnx_tensorrt_ops_by_version.json").read_text())["8.5-GA"]["ops"]
    return {name for name, entry in table.items() if entry["supported"]}


def graphs(student: EdgeStudent) -> Iterator[tuple[tuple[int, int] | None, onnx.ModelProto]]:
    for size in (None, (480, 640), (45, 61)):
        yield size, build_graph(DeployedStudent(student), size=size)


def test_files_hold_convolutions_and_elementwise_operators(student: EdgeStudent) -> None:
    """No Pad and no layout operator but one; slices only where the size needs them."""
    for size, graph in graphs(student):
        operators = {node.op_type for node in graph.graph.node}
        sizes = {"Concat", "Gather", "Identity", "Shape", "Slice", "Unsqueeze"} if size is None else set()
        cropped = {"Slice"} if size == (45, 61) else set()
        assert operators - sizes - cropped == ELEMENTWISE | {"Conv", "DepthToSpace", "Resize"}


def test_without_depth_to_space_not_a_bit_changes(student: EdgeStudent, tmp_path: Path) -> None:
    vis, ir = (x[0, 0].numpy() for x in inputs(48, 56))
    pictures = []
    for index, network in enumerate((student, without_depth_to_space(student))):
        graph = build_graph(DeployedStudent(network), size=(48, 56))
        counted = [sum(node.op_type == kind for node in graph.graph.node) for kind in ("DepthToSpace", "ConvTranspose")]
        assert counted == [1 - index, index]
        save_graph(graph, tmp_path / "m.onnx")
        pictures.append(OnnxFuser(tmp_path / "m.onnx", threads=1).fuse(ir, vis))
    assert np.array_equal(*pictures)


def test_operators_are_in_the_table_of_tensorrt_8_5(student: EdgeStudent, shared_facts: Path) -> None:
    for _, graph in graphs(student):
        assert [entry.version for entry in graph.opset_import] == [17]
        assert {node.op_type for node in graph.graph.node} <= supported(shared_facts)


def test_files_do_what_the_student_does(student: EdgeStudent, tmp_path: Path) -> None:
    reference = TorchFuser(student, "student")
    for size, graph in graphs(student):
        save_graph(graph, tmp_path / "m.onnx")
        exported = OnnxFuser(tmp_path / "m.onnx", threads=1)
        for height, width in [size] if size else [(64, 80), (33, 47), (189, 251), (4, 5)]:
            vis, ir = (x[0, 0].numpy() for x in inputs(height, width))
            assert np.abs(exported.fuse(ir, vis) - reference.fuse(ir, vis)).max() <= 1e-5


def test_a_change_in_one_corner_stays_there(student: EdgeStudent) -> None:
    """Nothing is normalised over the picture: far away not a single bit moves."""
    vis, ir = inputs(256, 512)
    other = ir.clone()
    other[..., :16] = 1 - other[..., :16]
    with torch.no_grad():
        before, after = student(vis, ir).y, student(vis, other).y
    assert bool((before != after)[..., :16].any())
    assert torch.equal(before[..., 256:], after[..., 256:])


@pytest.mark.parametrize("colour", list(Colour))
@pytest.mark.parametrize("name", BOTH)
def test_gradient_reaches_every_parameter_and_autocast_returns_float32(name: str, colour: Colour) -> None:
    network = lively(name, colour).train()
    with torch.autocast("cpu", torch.bfloat16):
        out = network(*inputs(48, 56, 3 if colour is Colour.RGB else 1, batch=2))
    assert out.y.dtype == torch.float32
    (out.y if out.rgb is None else out.rgb).square().mean().backward()
    assert [key for key, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []


@pytest.mark.parametrize("name", BOTH)
def test_it_learns_a_rule_that_the_start_does_not_know(name: str) -> None:
    """Visible in the left half, infrared in the right: told apart by a mark in the pictures, in 80 steps."""
    torch.manual_seed(0)
    network = build_student(name, {}).train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-2)
    losses = []
    for _ in range(80):
        vis, ir = torch.rand(4, 1, 32, 32), torch.rand(4, 1, 32, 32)
        ir[..., :16] *= 0.1
        want = torch.cat([vis[..., :16], ir[..., 16:]], dim=-1)
        loss = F.l1_loss(network(vis, ir).y, want)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_classes_and_names_belong_together() -> None:
    assert isinstance(build_student("nano", {}), NanoStudent)
    assert not isinstance(build_student("edge", {}), NanoStudent)


def test_export_writes_three_verified_files(checkpoint: Path, tmp_path: Path) -> None:
    report = export(checkpoint, out=tmp_path / "bundle", dynamic=True)
    assert {file.precision for file in report.files} == {"fp32", "fp16", "int8"}
    int8 = next(file for file in report.files if file.precision == "int8")
    assert len(int8.float_convolutions) < int8.convolutions
    assert int8.verification.worst_psnr_db >= 42
    network, card = load_student(checkpoint)
    assert card.architecture == checkpoint.stem
    assert isinstance(network, EdgeStudent)


def test_bench_takes_it_in_both_backends(checkpoint: Path) -> None:
    for backend in Backend:
        (result,) = bench(checkpoint, size="40x32", threads=1, runs=2, warmup=1, backend=backend).results
        assert (result.runs, result.backend) == (2, backend.value)
