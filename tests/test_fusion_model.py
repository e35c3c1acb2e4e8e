"""``duskfuse.load(...).fuse(...)`` on every kind of picture that a program holds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import duskfuse
from duskfuse.data.colour import luminance
from duskfuse.data.errors import InputError
from duskfuse.data.images import ThermalRange, read_picture
from duskfuse.data.reading import Reading
from duskfuse.data.scenes import render_scene
from duskfuse.export.fuse import fuse
from duskfuse.export.fusion_model import FusionModel

SCENE = render_scene(3, size=(50, 67))


@pytest.fixture(scope="module")
def model() -> FusionModel:
    return duskfuse.load("unet")


def test_arrays_are_fused_as_files_are(model: FusionModel, tmp_path: Path):
    from duskfuse.data.images import write_picture

    write_picture(tmp_path / "ir.png", SCENE.ir)
    write_picture(tmp_path / "vis.png", SCENE.vis)
    fuse(tmp_path / "ir.png", tmp_path / "vis.png", tmp_path / "fused.png", model="unet")
    fused = model.fuse(SCENE.ir, SCENE.vis)
    assert (fused.dtype, fused.shape) == (np.uint8, SCENE.vis.shape)
    assert np.abs(fused.astype(int) - read_picture(tmp_path / "fused.png")[..., :3]).max() <= 1


def test_channel_order(model: FusionModel):
    fused = model.fuse(SCENE.ir, SCENE.vis)
    assert np.array_equal(model.fuse(SCENE.ir, SCENE.vis[..., ::-1], order="bgr")[..., ::-1], fused)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32, np.float64])
def test_the_result_is_what_the_visible_picture_is(model: FusionModel, kind: type):
    most = np.iinfo(kind).max if np.issubdtype(kind, np.integer) else 1
    vis = (SCENE.vis / 255 * most).astype(kind)
    fused = model.fuse(SCENE.ir, vis)
    assert (fused.dtype, fused.shape) == (np.dtype(kind), vis.shape)
    assert np.abs(fused / most - model.fuse(SCENE.ir, SCENE.vis) / 255).max() < 1.01 / 255


def test_infrared_of_any_form(model: FusionModel):
    fused = model.fuse(SCENE.ir, SCENE.vis)
    assert np.array_equal(model.fuse(SCENE.ir[..., None].repeat(3, 2), SCENE.vis), fused)
    deep = SCENE.ir.astype(np.uint16) * 20 + 8000
    ranged = Reading(thermal_range=ThermalRange(8000, 8000 + 255 * 20))
    assert np.abs(model.fuse(deep, SCENE.vis, reading=ranged).astype(int) - fused).max() <= 1
    assert model.fuse(SCENE.ir / np.float32(255), SCENE.vis).shape == SCENE.vis.shape


def test_grey_and_batches(model: FusionModel):
    grey = model.fuse(SCENE.ir, SCENE.vis[..., 1])
    assert grey.shape == SCENE.ir.shape
    batch = model.fuse(np.stack([SCENE.ir] * 2), np.stack([SCENE.vis] * 2))
    assert np.array_equal(batch[1], model.fuse(SCENE.ir, SCENE.vis))


def test_tensors(model: FusionModel):
    ir = torch.from_numpy(SCENE.ir / np.float32(255))[None, None].expand(3, -1, -1, -1)
    vis = torch.from_numpy(SCENE.vis / np.float32(255)).permute(2, 0, 1)[None].expand(3, -1, -1, -1)
    fused = model.fuse(ir, vis)
    assert fused.shape == vis.shape
    y = model.fuse(ir, luminance(vis))
    assert y.shape == ir.shape
    assert (luminance(fused) - y).abs().max() < 1e-5  # colour changes no luminance
    array = model.fuse(SCENE.ir, SCENE.vis)
    assert np.abs(fused[0].permute(1, 2, 0).numpy() * 255 - array).max() <= 1


@pytest.mark.parametrize(
    ("ir", "vis", "said"),
    [
        (SCENE.ir[1:], SCENE.vis, "infrared is 67×49"),
        (SCENE.ir, SCENE.vis[..., [0, 1, 2, 0]], "visible array"),
        (np.stack([SCENE.ir] * 2), SCENE.vis[None], "2 infrared and 1 visible"),
        (torch.zeros(1, 1, 8, 8), SCENE.vis, "an array and a tensor"),
        (torch.zeros(1, 1, 8, 8), torch.zeros(1, 3, 8, 9), "of one size"),
        (torch.zeros(1, 1, 8, 8), torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "float in"),
    ],
)
def test_what_does_not_fit_is_refused(model: FusionModel, ir: np.ndarray, vis: np.ndarray, said: str):
    with pytest.raises(InputError, match=said):
        model.fuse(ir, vis)  # type: ignore[call-overload]


def test_the_package_is_imported_without_torch():
    code = "import duskfuse, sys; assert 'torch' not in sys.modules; assert duskfuse.__version__"
    subprocess.run([sys.executable, "-c", code], check=True)
