from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from duskfuse.data.errors import InputError
from duskfuse.students.unet import PUBLISHED_NAMES, OutputHead, UNetStudent, import_published


def inputs(height: int, width: int, batch: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(height * width)
    return torch.rand(batch, 1, height, width, generator=generator), torch.rand(
        batch, 1, height, width, generator=generator
    )


def lively_student(head: OutputHead = OutputHead.SIGMOID) -> UNetStudent:
    """A student whose BatchNorm statistics and affine parameters are not the initial ones."""
    torch.manual_seed(0)
    student = UNetStudent(head)
    for module in student.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return student.eval()


def published_state(student: UNetStudent) -> dict[str, Tensor]:
    """The student's tensors under the published sub-module names, numbered in another way."""
    published = {name: key for key, name in PUBLISHED_NAMES.items()}
    state = {}
    for key, tensor in student.state_dict().items():
        head, *rest = key.split(".")
        state[".".join([published[head], *(f"block{part}" if part.isdigit() else part for part in rest)])] = tensor
    return state


def test_parameters_and_buffers_are_those_of_the_paper() -> None:
    student = UNetStudent()
    assert sum(p.numel() for p in student.parameters()) == 135_617
    assert sum(b.numel() for b in student.buffers()) == 1_105


@pytest.mark.parametrize(
    ("height", "width", "gmacs"), [(768, 1024, 51.162), (480, 640, 19.985), (512, 512, 17.054), (192, 256, 3.198)]
)
def test_convolution_macs(height: int, width: int, gmacs: float) -> None:
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        UNetStudent().eval()(torch.empty(1, 1, height, width), torch.empty(1, 1, height, width))
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmacs, rel=1e-3)


@pytest.mark.parametrize("head", list(OutputHead))
@pytest.mark.parametrize(("height", "width"), [(60, 80), (61, 83), (7, 5), (4, 4)])
def test_shapes_and_range(height: int, width: int, head: OutputHead) -> None:
    with torch.no_grad():
        out = lively_student(head)(*inputs(height, width))
    assert out.y.shape == (2, 1, height, width)
    assert out.y.min() >= 0
    assert out.y.max() <= 1
    sizes = [(height // s, width // s) for s in (1, 2, 4, 2, 1)]
    assert [tuple(tap.shape) for tap in out.taps] == [(2, 32, h, w) for h, w in sizes]


def test_forward_equals_the_equations() -> None:
    student = lively_student()
    vis_y, ir = inputs(11, 14)
    state = student.state_dict()

    def unit(x: Tensor, name: str, first: int) -> Tensor:
        weight, conv, norm = state[f"{name}.{first}.weight"], f"{name}.{first}", f"{name}.{first + 1}"
        x = F.conv2d(x, weight, state[f"{conv}.bias"], padding=weight.shape[-1] // 2)
        mean, var = (state[f"{norm}.running_{kind}"][:, None, None] for kind in ("mean", "var"))
        x = (x - mean) / (var + 1e-5).sqrt()
        x = x * state[f"{norm}.weight"][:, None, None] + state[f"{norm}.bias"][:, None, None]
        return torch.where(x > 0, x, 0.01 * x)

    def stage(x: Tensor, name: str) -> Tensor:
        return unit(unit(unit(x, name, 0), name, 3), name, 6)

    def up(x: Tensor, skip: Tensor) -> Tensor:
        return torch.cat([F.interpolate(x, skip.shape[-2:], mode="bilinear", align_corners=False), skip], 1)

    x1 = stage(torch.cat([vis_y, ir], 1), "stage1")
    x2 = stage(F.max_pool2d(x1, 2), "stage2")
    x3 = stage(F.max_pool2d(x2, 2), "stage3")
    x4 = stage(unit(up(x3, x2), "merge4", 0), "stage4")
    x5 = stage(unit(up(x4, x1), "merge5", 0), "stage5")
    y = 1 / (1 + torch.exp(-F.conv2d(x5, state["last.weight"], state["last.bias"], padding=1)))
    with torch.no_grad():
        out = student(vis_y, ir)
    torch.testing.assert_close(out.y, y, atol=1e-5, rtol=1e-5)
    for tap, want in zip(out.taps, (x1, x2, x3, x4, x5), strict=True):
        torch.testing.assert_close(tap, want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("height", "width"), [(3, 8), (8, 3)])
def test_too_small_pictures_are_refused(height: int, width: int) -> None:
    with pytest.raises(ValueError, match=f"{height}×{width}.*4 pixels"):
        UNetStudent()(*inputs(height, width))


def test_gradient_reaches_every_parameter() -> None:
    student = UNetStudent()
    out = student(*inputs(16, 16))
    out.y.square().mean().backward()
    # a bias before BatchNorm in train mode has no effect by construction
    dead = [name for name, p in student.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert all(name.endswith(".bias") for name in dead)
    assert all(p.grad is not None for p in student.parameters())


def test_bfloat16_autocast_returns_float32_luminance() -> None:
    student = lively_student()
    vis_y, ir = inputs(16, 16)
    with torch.no_grad():
        want = student(vis_y, ir).y
        with torch.autocast("cpu", torch.bfloat16):
            y = student(vis_y, ir).y
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, want, atol=0.1, rtol=0)


def test_published_weights_give_the_tanh_network() -> None:
    trained = lively_student(OutputHead.TANH)
    imported = import_published(published_state(trained))
    assert imported.head is OutputHead.TANH
    assert not imported.training
    with torch.no_grad():
        assert torch.equal(imported(*inputs(12, 9)).y, trained(*inputs(12, 9)).y)


def test_published_weights_of_another_network_are_refused() -> None:
    state = published_state(UNetStudent())
    without_decoder = {key: tensor for key, tensor in state.items() if not key.startswith("final_decoder")}
    with pytest.raises(InputError, match="final_decoder"):
        import_published(without_decoder)
    with pytest.raises(InputError, match="module3 has 21 tensors of other kinds or shapes"):
        import_published({key: t[:8] if key.startswith("module3") and t.ndim else t for key, t in state.items()})


class Luminance(nn.Module):
    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student = student

    def forward(self, vis_y: Tensor, ir: Tensor) -> Tensor:
        y: Tensor = self.student(vis_y, ir).y
        return y


@pytest.mark.filterwarnings("ignore:You are using the legacy:DeprecationWarning")
def test_exports_to_onnx_with_dynamic_sizes(tmp_path: Path) -> None:
    student, path = lively_student(), tmp_path / "student.onnx"
    axes = {2: "h", 3: "w"}
    torch.onnx.export(
        Luminance(student).eval(),
        inputs(16, 24, batch=1),
        path,
        dynamo=False,
        opset_version=17,
        input_names=["vis_y", "ir"],
        output_names=["y"],
        dynamic_axes={"vis_y": axes, "ir": axes, "y": axes},
    )
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    for size in ((16, 24), (13, 30)):
        vis_y, ir = inputs(*size, batch=1)
        (y,) = session.run(None, {"vis_y": vis_y.numpy(), "ir": ir.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(y, student(vis_y, ir).y.numpy(), atol=1e-4)
