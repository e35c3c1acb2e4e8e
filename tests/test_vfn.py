"""The network that CLDyN was published around: parameters, multiplications, range, gradient, file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from duskfuse.data.errors import InputError
from duskfuse.export.onnx_graph import DeployedStudent, build_graph
from duskfuse.students.fold import fold_batchnorm
from duskfuse.students.vfn import VisionFeatureNetwork
from duskfuse.students.zoo import build_student


def counted(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("blocks", "parameters"), [(2, 34_761), (4, 46_617)])
def test_parameters_are_the_published_ones(blocks: int, parameters: int) -> None:
    network = VisionFeatureNetwork(blocks)
    assert counted(network) == parameters
    assert sum(count for count in map(counted, (network.attend,))) == 20_672
    if blocks == 2:
        assert counted(network.encode_ir) == counted(network.encode_vis) == 4_312
        assert counted(network.decode) == 5_465


def convolved(network: nn.Module, height: int, width: int) -> int:
    """Multiplications of all convolutions, those of the Sobel filter (16 channels, two directions) included."""
    total = 16 * 2 * 9 * height * width

    def count(module: nn.Module, _: object, output: Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            nonlocal total
            total += module.weight.numel() * output.shape[-2] * output.shape[-1]

    handles = [module.register_forward_hook(count) for module in network.modules()]
    with torch.no_grad():
        network(torch.rand(1, 1, height, width), torch.rand(1, 1, height, width))
    for handle in handles:
        handle.remove()
    return total


@pytest.mark.parametrize(("blocks", "published"), [(2, 25.45), (4, 34.51)])
def test_macs_are_the_published_ones(blocks: int, published: float) -> None:
    """Counted at 96×128 and scaled to 768×1024: every layer works at full resolution."""
    network = VisionFeatureNetwork(blocks).eval()
    assert convolved(network, 96, 128) * 64 / 1e9 == pytest.approx(published, abs=0.005)


@pytest.mark.parametrize("size", [(3, 3), (17, 30), (32, 24)])
def test_shapes_and_range(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    output = VisionFeatureNetwork().eval()(torch.rand(2, 1, *size), torch.rand(2, 1, *size))
    assert output.y.shape == (2, 1, *size)
    assert 0 <= float(output.y.detach().min()) <= float(output.y.detach().max()) <= 1
    assert [tap.shape[1] for tap in output.taps] == [16, 8]


def test_pictures_that_cannot_be_reflected_are_refused() -> None:
    with pytest.raises(ValueError, match="2×9 pixels"):
        VisionFeatureNetwork()(torch.rand(1, 1, 2, 9), torch.rand(1, 1, 2, 9))
    with pytest.raises(InputError, match="vfn"):
        build_student("vfn", {"blocks": 0})


def test_gradient_attention_is_its_literal_form() -> None:
    """Sobel filters channel by channel in numpy, border pixels repeated."""
    torch.manual_seed(1)
    attend, maps = VisionFeatureNetwork().attend, torch.rand(1, 16, 9, 11)
    slopes = []
    for plane in np.pad(maps[0].numpy(), ((0, 0), (1, 1), (1, 1)), mode="edge"):
        rows = plane[:-2] + 2 * plane[1:-1] + plane[2:]
        columns = plane[:, :-2] + 2 * plane[:, 1:-1] + plane[:, 2:]
        slopes.append(np.abs(rows[:, 2:] - rows[:, :-2]) / 8 + np.abs(columns[2:] - columns[:-2]) / 8)
    gradient = torch.from_numpy(np.stack(slopes))[None]
    channel = attend.of_mean(gradient.mean(dim=(2, 3))) + attend.of_peak(gradient.flatten(2).max(dim=2).values)
    mean, peak = nn.AvgPool2d(3, 1, 1)(gradient), nn.MaxPool2d(3, 1, 1)(gradient)
    place = attend.around_mean(mean) + attend.around_peak(peak)
    expected = maps * torch.sigmoid(channel[:, :, None, None] * place)
    torch.testing.assert_close(attend(maps), expected, atol=1e-6, rtol=0)


def test_gradient_reaches_every_parameter() -> None:
    torch.manual_seed(2)
    network = VisionFeatureNetwork()
    (network(torch.rand(2, 1, 16, 16), torch.rand(2, 1, 16, 16)).y - 0.3).square().mean().backward()
    without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert not without


def test_the_file_does_what_the_network_does(tmp_path: Path) -> None:
    import onnxruntime

    torch.manual_seed(3)
    network = VisionFeatureNetwork()
    for _ in range(3):
        network(torch.rand(4, 1, 24, 32), torch.rand(4, 1, 24, 32))
    network.eval()
    vis, ir = torch.rand(1, 1, 24, 32), torch.rand(1, 1, 24, 32)
    expected = network(vis, ir).y.detach()
    torch.testing.assert_close(fold_batchnorm(network)(vis, ir).y, expected, atol=1e-6, rtol=0)
    graph = build_graph(DeployedStudent(network), size=(24, 32))
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    (fused,) = session.run(["fused_y"], {"ir": ir.numpy(), "vis_y": vis.numpy()})
    np.testing.assert_allclose(fused, expected.numpy(), atol=1e-5)
