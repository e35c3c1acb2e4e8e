from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from duskfuse.data import colour
from duskfuse.data.fuser import Colour
from duskfuse.evaluate.fusers import CONTRACTS
from duskfuse.export.onnx_graph import DeployedStudent, build_graph, save_graph
from duskfuse.export.runtime import fuser as runtime
from duskfuse.export.runtime.fuser import EdgeFuser, luminance, recombine
from duskfuse.export.runtime.network import COLOUR_NAMES, LUMINANCE_NAMES
from duskfuse.export.runtime.thermal import infrared
from duskfuse.students.fold import fold_batchnorm
from duskfuse.students.unet import UNetStudent

RUNTIME = Path(runtime.__file__).parent
RNG = np.random.default_rng(3)
VIS = RNG.integers(0, 256, (37, 53, 3), dtype=np.uint8)
Y = RNG.random((37, 53), dtype=np.float32)


@pytest.fixture(scope="module")
def student() -> UNetStudent:
    torch.manual_seed(1)
    return UNetStudent().eval()


@pytest.fixture(scope="module")
def network(student: UNetStudent, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("edge") / "unet.onnx"
    save_graph(build_graph(DeployedStudent(student)), path)
    return path


@pytest.mark.parametrize("path", sorted(RUNTIME.glob("*.py")), ids=lambda path: path.name)
def test_runtime_is_python_3_8(path: Path) -> None:
    tree = ast.parse(path.read_text(), feature_version=(3, 8))
    future = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module == "__future__"]
    assert future or len(tree.body) == 1, "annotations must not be evaluated on Python 3.8"
    for node in ast.walk(tree):
        assert not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("duskfuse")


def test_runtime_runs_alone_and_without_torch(network: Path, tmp_path: Path) -> None:
    shutil.copytree(RUNTIME, tmp_path / "duskfuse_runtime", ignore=shutil.ignore_patterns("__pycache__"))
    code = (
        "import sys\n"
        "for name in ('torch', 'duskfuse', 'onnx', 'pydantic'): sys.modules[name] = None\n"
        "from duskfuse_runtime.fuser import EdgeFuser\n"
        "import numpy as np\n"
        f"fuser = EdgeFuser({str(network)!r}, threads=1)\n"
        "out = fuser.fuse(np.zeros((20, 24), np.uint8), np.full((20, 24, 3), 90, np.uint8))\n"
        "print(out.shape, out.dtype)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path, env={"PYTHONPATH": ""}
    )
    assert done.stdout.strip() == "(20, 24, 3) uint8", done.stderr


def test_colour_equals_the_differentiable_one() -> None:
    rgb = torch.from_numpy(VIS).permute(2, 0, 1)[None] / 255
    want = colour.recombine(torch.from_numpy(Y)[None, None], rgb)[0].permute(1, 2, 0).numpy() * 255
    assert np.abs(recombine(Y, VIS) - want).max() < 0.51
    assert np.abs(recombine(Y, VIS.astype(np.float32) / 255) - want).max() < 0.51
    np.testing.assert_allclose(luminance(VIS), colour.luminance(rgb)[0, 0].numpy(), atol=1e-6)


def test_colour_extremes() -> None:
    corners = np.array([[[r, g, b] for r in (0, 255) for g in (0, 255) for b in (0, 255)]], np.uint8)
    np.testing.assert_array_equal(recombine(luminance(corners), corners), corners)
    assert (recombine(np.zeros((1, 8), np.float32), corners) == 0).all()
    assert (recombine(np.ones((1, 8), np.float32), corners) == 255).all()
    assert luminance(corners).max() == 1


def test_colour_orders_mirror_each_other() -> None:
    bgr = np.ascontiguousarray(VIS[..., ::-1])
    np.testing.assert_array_equal(recombine(Y, bgr, "BGR")[..., ::-1], recombine(Y, VIS))
    np.testing.assert_allclose(luminance(bgr, "BGR"), luminance(VIS), atol=1e-6)


def test_infrared_scaling() -> None:
    counts = np.array([[26000, 27000, 29500, 33000]], np.uint16)
    np.testing.assert_allclose(infrared(counts, (27000, 32000)), [[0, 0, 0.5, 1]], atol=1e-6)
    np.testing.assert_allclose(infrared(np.array([[0, 51, 255]], np.uint8)), [[0, 0.2, 1]], atol=1e-6)
    with pytest.raises(ValueError, match="uint16 with ir_range"):
        infrared(counts)
    with pytest.raises(ValueError, match="larger than the first"):
        infrared(counts, (5, 5))


def test_edge_fuser_equals_the_student(network: Path, student: UNetStudent) -> None:
    ir = RNG.integers(0, 256, (37, 53), dtype=np.uint8)
    fused = EdgeFuser(network, threads=1).fuse(ir, VIS)
    vis = torch.from_numpy(VIS).permute(2, 0, 1)[None] / 255
    with torch.inference_mode():
        y = fold_batchnorm(student)(colour.luminance(vis), torch.from_numpy(ir)[None, None] / 255).y
    want = colour.recombine(y, vis)[0].permute(1, 2, 0).numpy() * 255
    assert np.abs(fused - want).max() < 0.6


def test_the_colour_order_and_the_counts_of_a_thermal_camera_change_nothing(network: Path) -> None:
    """Acceptance check 15: BGR pictures fuse as RGB ones do, and 16-bit infrared as the same values in 8 bits."""
    fuser, ir = EdgeFuser(network, threads=1), RNG.integers(0, 256, (37, 53), dtype=np.uint8)
    fused = fuser.fuse(ir, VIS)
    assert fused.dtype == np.uint8
    assert fused.shape == VIS.shape
    bgr = fuser.fuse(ir, np.ascontiguousarray(VIS[..., ::-1]), "BGR")[..., ::-1]
    counts = fuser.fuse(20_000 + 10 * ir.astype(np.uint16), VIS, ir_range=(20_000, 22_550))
    for other in (bgr, counts):
        assert np.abs(other.astype(int) - fused).max() <= 1


def test_edge_fuser_refuses_what_does_not_fit(network: Path, student: UNetStudent, tmp_path: Path) -> None:
    fuser = EdgeFuser(network, threads=1)
    with pytest.raises(ValueError, match="align and resize"):
        fuser.fuse(Y[:-1], VIS)
    with pytest.raises(ValueError, match="RGB or BGR"):
        fuser.fuse(Y, VIS, colour_order="GBR")
    with pytest.raises(ValueError, match=r"\[H, W, 3\]"):
        recombine(Y, VIS[..., 0])
    save_graph(build_graph(DeployedStudent(student), size=(16, 24)), tmp_path / "fixed.onnx")
    fixed = EdgeFuser(tmp_path / "fixed.onnx", threads=1)
    assert fixed.size == (16, 24)
    with pytest.raises(ValueError, match=r"\(16, 24\)"):
        fixed.fuse(Y, VIS)
    for kind, names in ((Colour.LUMA, LUMINANCE_NAMES), (Colour.RGB, COLOUR_NAMES)):
        assert (*CONTRACTS[kind].inputs, CONTRACTS[kind].output) == names
