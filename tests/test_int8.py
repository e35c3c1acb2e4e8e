"""INT8 without training: fake quantisation equals the file, equalising, corrected biases, drift, float layers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from duskfuse.data.fuser import Colour, FusionOutput
from duskfuse.export.calibration import Planes, calibration_pairs
from duskfuse.export.int8_drift import _page
from duskfuse.export.onnx_graph import DeployedStudent, build_graph
from duskfuse.export.quantise import quantise, with_qdq
from duskfuse.export.tensorrt_lint import lint
from duskfuse.students.fake_quantise import QuantisedStudent, quantised_map, quantised_weights
from duskfuse.students.int8 import equalise, prepare_int8, rounding_means
from duskfuse.students.int8_drift import Source, input_ranges, measure_int8, scales_of
from duskfuse.students.mobile import MobileStudent
from duskfuse.students.zoo import build_student, load_student


def sources(count: int = 2, size: tuple[int, int] = (48, 64)) -> list[Source]:
    pairs = calibration_pairs(None, size, most=count)[:count]
    return [(torch.from_numpy(p.vis)[None, None], torch.from_numpy(p.ir)[None, None]) for p in pairs]


class Chain(nn.Module):
    """Three convolutions at full resolution, of which the middle one was made hard to quantise."""

    def __init__(self, planted: float) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.bad = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.last = nn.Conv2d(8, 1, 3, padding=1)
        self.colour, self.settings = Colour.LUMA, {}
        with torch.no_grad():
            self.first.weight.abs_()
            self.first.weight[0] *= planted  # one channel so wide that the others have a few steps left
            self.bad.weight[:, 0] /= planted

    def forward(self, vis: Tensor, ir: Tensor) -> FusionOutput:
        middle = torch.relu(self.bad(torch.relu(self.first(torch.cat([vis, ir], dim=1)))))
        return FusionOutput(torch.sigmoid(self.last(middle)))


def in_onnxruntime(network: QuantisedStudent, source: Source) -> np.ndarray:
    model = with_qdq(build_graph(DeployedStudent(network.deployed())), network.scales)
    assert lint(model).findings == ()
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = "vis" if network.colour is Colour.RGB else "vis_y", "ir"
    return np.asarray(session.run(None, {name: plane.numpy() for name, plane in zip(names, source, strict=True)})[0])


@pytest.mark.parametrize("name", ["edge", "nano", "unet"])
def test_the_file_computes_what_fake_quantisation_computes(name: str) -> None:
    """Equal up to rounding in float, which may move single values of a map by one step: ≤ 1e-4 in 99 % of the
    pixels, ≤ 1/127 in all.
    """
    network = QuantisedStudent(load_student(name)[0]).eval()
    pictures = sources()
    prepare_int8(network, pictures, pictures)
    assert network.scales
    for source in pictures:
        with torch.no_grad():
            wanted = network(*source).y.clamp(0, 1).numpy()
            plain = network.in_float(*source).y.numpy()
        error = np.abs(in_onnxruntime(network, source) - wanted)
        assert np.quantile(error, 0.99) <= 1e-4
        assert error.max() <= 1 / 127
        assert error.mean() < np.abs(plain - wanted).mean() / 20, "nearer to each other than to float"


@pytest.mark.parametrize("colour", list(Colour))
def test_mobile_with_every_convolution_in_int8_is_what_the_file_computes(colour: Colour) -> None:
    """Gates, attention and depthwise layers, of luminance and of colours, with the tolerances from above."""
    torch.manual_seed(0)
    student = MobileStudent(colour).eval()
    nn.init.normal_(student.last.weight, std=0.1)  # else nearly the mean of the sources
    network = QuantisedStudent(student).eval()
    pictures = [(vis.expand(1, student.encode_vis.stem[0].in_channels, -1, -1), ir) for vis, ir in sources(1, (32, 48))]
    network.quantise(scales_of(input_ranges(network, pictures)))
    assert len(network.scales) == len(network.layers) > 50
    with torch.no_grad():
        fused, plain = network(*pictures[0]), network.in_float(*pictures[0])
    wanted, in_float = (out.y if out.rgb is None else out.rgb for out in (fused, plain))
    error = np.abs(in_onnxruntime(network, pictures[0]) - wanted.numpy())
    assert np.quantile(error, 0.99) <= 1e-4
    assert error.max() <= 1 / 127
    assert error.mean() < float((in_float - wanted).abs().mean()) / 20


def test_one_layer_is_rounded_as_written() -> None:
    """The slow, obvious form, value by value."""
    torch.manual_seed(0)
    x, weight = torch.randn(1, 2, 3, 3) * 3, torch.randn(4, 2, 3, 3)
    scale = 0.0625  # exact in binary, so that both forms meet the same ties
    wanted = [max(-128, min(127, round(float(value) / scale))) * scale for value in x.flatten()]
    assert torch.equal(quantised_map(x, torch.tensor(scale)).flatten(), torch.tensor(wanted))
    for row, rounded in zip(weight, quantised_weights(weight), strict=True):
        step = float(row.abs().max()) / 127
        assert all(
            abs(float(b) - round(float(a) / step) * step) < 1e-6
            for a, b in zip(row.flatten(), rounded.flatten(), strict=True)
        )


def test_gradients_pass_inside_the_range_only() -> None:
    x = torch.tensor([-200.0, -1.3, 0.0, 0.6, 200.0], requires_grad=True)
    quantised_map(x, torch.tensor(1.0)).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 1, 1, 0]


@pytest.mark.parametrize("name", ["edge", "nano", "unet"])
def test_equalising_changes_ranges_and_no_picture(name: str) -> None:
    """≤ 1e-4 in float."""
    network = QuantisedStudent(load_student(name)[0]).eval()
    pictures = sources()
    with torch.no_grad():
        before = [network(*source).y for source in pictures]
        link = network.student.links[0]
        equalise(network, pictures)
        after = [network(*source).y for source in pictures]
    assert max(float((a - b).abs().max()) for a, b in zip(before, after, strict=True)) < 1e-4
    seen: list[Tensor] = []
    for name in link.readers:
        hook = network.layers[name].register_forward_pre_hook
        hook(lambda _, inputs: seen.append(inputs[0].detach().abs().amax(dim=(0, 2, 3))))
    for source in pictures:
        network(*source)
    highest = torch.stack(seen).amax(dim=0)
    assert ((highest > 0.99 * highest.max()) | (highest == 0)).all()


def test_corrected_biases_take_the_mean_error_away() -> None:
    network = QuantisedStudent(load_student("edge")[0]).eval()
    pictures = sources()
    scales = scales_of(input_ranges(network, pictures))
    means = rounding_means(network, scales, pictures)
    name = "fine.1.0"
    layer = network.layers[name]
    maps: list[Tensor] = []
    layer.register_forward_pre_hook(lambda _, inputs: maps.append(inputs[0]))
    for source in pictures:
        network(*source)
    with torch.no_grad():
        errors = [layer.rounded(x, torch.tensor(scales[name])) - layer(x) for x in maps[: len(pictures)]]
    wanted = torch.stack([error.mean(dim=(0, 2, 3)) for error in errors]).mean(dim=0)
    assert torch.allclose(means[name], wanted, atol=1e-6)
    assert float(means[name].abs().max()) > 1e-4


def test_drift_names_the_planted_layer_and_leaves_it_in_float() -> None:
    pictures = sources()
    sound, planted = (
        prepare_int8(QuantisedStudent(Chain(factor)).eval(), pictures, pictures, goal_db=50) for factor in (1, 300)
    )
    assert sound.float_layers == ()
    assert planted.float_layers == ("bad",)
    assert planted.worst_db >= 50
    alone = {entry.layer: entry.alone_worst_db for entry in planted.layers}
    assert alone["bad"] < min(alone["first"], alone["last"]) - 10
    shares = {entry.layer: entry.macs_share for entry in planted.layers}
    assert shares == pytest.approx({"first": 144 / 280, "bad": 64 / 280, "last": 72 / 280})
    first, bad, last = planted.layers
    assert (first.kind, bad.kind, last.kind) == ("3×3, 2→8", "1×1, 8→8", "3×3, 8→1")
    assert bad.input_high > 100 > first.input_high == 1
    assert first.snr_db > last.snr_db
    assert "| bad | 1×1, 8→8 | 22.9% | float |" in _page("file.onnx", planted)


def test_the_gate_is_respected() -> None:
    """Float layers only where the goal asks for them, never more than half of the multiplications."""
    student = load_student("unet")[0]
    pictures = sources(3, (32, 40))
    low, high, beyond = (
        prepare_int8(QuantisedStudent(student).eval(), pictures, pictures, goal_db=goal) for goal in (20, 48, 90)
    )
    assert low.float_layers == ()
    assert low.worst_db >= 20
    assert high.worst_db >= 48
    assert 0 < len(high.float_layers) < len(high.layers)
    assert beyond.int8_macs_share >= 0.5
    assert beyond.worst_db >= high.worst_db - 1


def test_what_is_asked_to_stay_float_does() -> None:
    network = QuantisedStudent(build_student("edge", {})).eval()
    pictures = sources()
    drift = prepare_int8(network, pictures, pictures, float_layers=["fine.0.0", "heads.g"])
    assert drift.float_layers == ("fine.0.0", "heads.g")
    assert set(network.layers) - set(network.scales) == {"fine.0.0", "heads.g"}
    again = measure_int8(network, pictures)
    assert again.float_layers == drift.float_layers
    assert again.worst_db == pytest.approx(drift.worst_db, abs=1e-6)


def test_fixed_convolutions_stay_float() -> None:
    """They carry the pixels of the sources, which symmetric int8 would leave 128 steps."""
    network = QuantisedStudent(load_student("edge")[0])
    assert not any("blocks" in name for name in network.layers)
    assert not any("blocks" in name for name, _ in network.student.named_parameters())
    assert "student.blocks.weight" in network.state_dict()


def test_an_unknown_layer_is_no_silent_float() -> None:
    graph = build_graph(DeployedStudent(build_student("nano", {})))
    with pytest.raises(ValueError, match="no convolution stem"):
        with_qdq(graph, {"stem": 0.1})


@pytest.mark.realdata
def test_packaged_students_are_good_in_int8(shared_data: Path) -> None:
    """The goal of the edge student, on pairs it was not calibrated with: every picture 45 dB."""
    student = load_student("edge")[0]
    model, _ = quantise(student, calibration_pairs(shared_data / "train", None, 16), None)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for pair in calibration_pairs(shared_data / "val", None, 6):
        made = session.run(None, {"ir": pair.ir[None, None], "vis_y": pair.vis[None, None]})[0][0, 0]
        assert _seen_db(made, _float(student, pair)) >= 45


def _float(student: nn.Module, pair: Planes) -> np.ndarray:
    with torch.no_grad():
        fused = student(torch.from_numpy(pair.vis)[None, None], torch.from_numpy(pair.ir)[None, None]).y
    return fused[0, 0].numpy()


def _seen_db(one: np.ndarray, other: np.ndarray) -> float:
    a, b = (np.rint(np.clip(p, 0, 1) * 255) / 255 for p in (one, other))
    return float(-10 * np.log10(np.mean(np.square(a - b))))
