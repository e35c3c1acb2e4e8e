from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from duskfuse.data.errors import InputError
from duskfuse.data.fuser import FusionOutput
from duskfuse.data.weights import ModelCard, save_weights
from duskfuse.evaluate.fusers import OnnxFuser, TorchFuser, open_fuser
from duskfuse.students.unet import UNetStudent


class Blend(nn.Module):
    def forward(self, vis_y: Tensor, ir: Tensor) -> FusionOutput:
        return FusionOutput(0.25 * ir + 0.75 * vis_y)


def write_blend(
    path: Path, *, inputs: tuple[str, str] = ("ir", "vis_y"), size: tuple[object, object] = ("h", "w")
) -> Path:
    """An ONNX file that computes 0.25·first + 0.75·second."""
    shape = [1, 1, *size]
    quarter, three = (helper.make_tensor(n, TensorProto.FLOAT, [], [v]) for n, v in (("q", 0.25), ("t", 0.75)))
    nodes = [
        helper.make_node("Mul", [inputs[0], "q"], ["a"]),
        helper.make_node("Mul", [inputs[1], "t"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["fused_y"]),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in inputs]
    out = [helper.make_tensor_value_info("fused_y", TensorProto.FLOAT, shape)]
    graph = helper.make_graph(nodes, "blend", values, out, [quarter, three])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {"architecture": "blend"})
    onnx.save(model, path)
    return path


@pytest.fixture
def planes() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.random((9, 13), dtype=np.float32), rng.random((9, 13), dtype=np.float32)


def test_torch_and_onnx_fuse_the_same_way(tmp_path: Path, planes: tuple[np.ndarray, np.ndarray]) -> None:
    ir, vis_y = planes
    want = 0.25 * ir + 0.75 * vis_y
    fuser = open_fuser(write_blend(tmp_path / "m.onnx"), threads=1)
    assert isinstance(fuser, OnnxFuser)
    assert fuser.metadata["architecture"] == "blend"
    assert (fuser.name, fuser.backend, fuser.size) == ("m.onnx", "onnxruntime", None)
    np.testing.assert_allclose(fuser.fuse(ir, vis_y), want, atol=1e-6)
    np.testing.assert_allclose(TorchFuser(Blend(), "blend").fuse(ir, vis_y), want, atol=1e-6)


def test_results_are_clamped_to_the_unit_range(planes: tuple[np.ndarray, np.ndarray]) -> None:
    ir, vis_y = planes
    fused = TorchFuser(Blend(), "blend").fuse(ir * 9, vis_y - 1)
    assert fused.min() == 0
    assert fused.max() == 1


def test_fixed_size_files_say_their_size(tmp_path: Path, planes: tuple[np.ndarray, np.ndarray]) -> None:
    fuser = open_fuser(write_blend(tmp_path / "m.onnx", size=(8, 12)))
    with pytest.raises(InputError, match=r"pictures of 12x8, got 13x9.*--size"):
        fuser.fuse(*planes)


def test_pictures_of_two_sizes_are_refused(planes: tuple[np.ndarray, np.ndarray]) -> None:
    with pytest.raises(InputError, match="same height and width"):
        TorchFuser(Blend(), "blend").fuse(planes[0], planes[1][:-1])


@pytest.mark.parametrize("content", [b"", b"not a network", bytes(range(256))])
def test_damaged_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"bad\.onnx"):
        open_fuser(path)


def test_truncated_missing_and_foreign_files_are_refused(tmp_path: Path) -> None:
    whole = write_blend(tmp_path / "m.onnx").read_bytes()
    (tmp_path / "cut.onnx").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"cut\.onnx"):
        open_fuser(tmp_path / "cut.onnx")
    with pytest.raises(InputError, match="is not there"):
        open_fuser(tmp_path / "none.onnx")
    with pytest.raises(InputError, match="not a fusion network"):
        open_fuser(write_blend(tmp_path / "other.onnx", inputs=("left", "right")))
    with pytest.raises(InputError, match=r"is a folder.*cut\.onnx"):
        open_fuser(tmp_path)


def test_thread_bound_reaches_the_session(tmp_path: Path) -> None:
    fuser = open_fuser(write_blend(tmp_path / "m.onnx"), threads=1)
    assert isinstance(fuser, OnnxFuser)
    assert fuser.session.get_session_options().intra_op_num_threads == 1
    assert torch.get_num_threads() == 1


def test_checkpoints_open_and_main_networks_do_not(tmp_path: Path, planes: tuple[np.ndarray, np.ndarray]) -> None:
    torch.manual_seed(0)
    student = UNetStudent()
    save_weights(tmp_path / "s.safetensors", student, ModelCard("unet", student.settings, "luma", "0", "none"))
    fuser = open_fuser(tmp_path / "s.safetensors")
    with torch.inference_mode():
        want = student.eval()(*(torch.from_numpy(plane)[None, None] for plane in planes[::-1])).y[0, 0]
    np.testing.assert_array_equal(fuser.fuse(*planes), want.numpy())
    save_weights(tmp_path / "t.safetensors", student, ModelCard("sage-main", {}, "luma", "0", "none"))
    with pytest.raises(InputError, match="cache-teacher"):
        open_fuser(tmp_path / "t.safetensors")


def test_pictures_below_four_pixels_are_refused(tmp_path: Path) -> None:
    small = np.zeros((3, 9), np.float32)
    for fuser in (open_fuser(write_blend(tmp_path / "m.onnx")), TorchFuser(UNetStudent(), "unet")):
        with pytest.raises(InputError, match="4 pixels a side"):
            fuser.fuse(small, small)


def test_a_name_is_a_name_whatever_lies_in_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nano").mkdir()
    (tmp_path / "edge").write_text("not a model")
    monkeypatch.chdir(tmp_path)
    assert [open_fuser(name).name for name in ("nano", "edge")] == ["nano", "edge"]
    with pytest.raises(InputError, match="nano is a folder"):
        open_fuser(Path("nano"))
