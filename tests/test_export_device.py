"""What `export` does for the device: sizes, profiles, colours, the DLA form, the lint of a bundle; the verb `lint`."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch
from onnx_cases import ACCEPTED, REFUSED
from torch import Tensor, nn
from typer.testing import CliRunner

from duskfuse.cli import app
from duskfuse.data.errors import InputError, VerificationError
from duskfuse.data.fuser import Colour, FusionOutput
from duskfuse.data.weights import ModelCard, save_weights
from duskfuse.evaluate.fusers import OnnxFuser, TorchFuser, open_fuser
from duskfuse.export import export as module
from duskfuse.export.bench import bench
from duskfuse.export.calibration import calibration_pairs
from duskfuse.export.export import export
from duskfuse.export.runtime.fuser import EdgeFuser
from duskfuse.export.sizes import SizeRange
from duskfuse.export.tensorrt_lint import lint_file
from duskfuse.export.tensorrt_releases import releases
from duskfuse.students.edge import EdgeStudent
from duskfuse.students.zoo import ModelName

RELEASES = [release.name for release in releases()]
CLEAN = dict.fromkeys(RELEASES, "clean")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four smooth pairs of 40 × 56 pixels."""
    folder, rng = tmp_path_factory.mktemp("pairs"), np.random.default_rng(0)
    for side in ("ir", "vis"):
        (folder / side).mkdir()
        for index in range(4):
            picture = cv2.resize(rng.random((5, 7, 3), dtype=np.float32), (56, 40), interpolation=cv2.INTER_CUBIC)
            saved = np.clip(picture * 255, 0, 255).astype(np.uint8)
            cv2.imwrite(str(folder / side / f"p{index}.png"), saved[..., 0] if side == "ir" else saved)
    return folder


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> tuple[EdgeStudent, Path]:
    """An untrained student of colours that is not the identity, and its checkpoint."""
    torch.manual_seed(0)
    student = EdgeStudent(Colour.RGB).eval()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    path = tmp_path_factory.mktemp("colours") / "rgb.safetensors"
    save_weights(path, student, ModelCard("edge", student.settings, "rgb", "0.1.0", "nothing"))
    return student, path


def metadata(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


@pytest.mark.parametrize("name", [name for name in ModelName if name != ModelName.MOBILE])  # its size takes minutes
@pytest.mark.parametrize("dynamic", [False, True])
def test_every_packaged_student_is_clean_for_every_release(
    name: ModelName, dynamic: bool, data: Path, tmp_path: Path
) -> None:
    sizes = [] if dynamic else ["64x48", "50x38"]
    report = export(name, out=tmp_path / "b", size=sizes, dynamic=dynamic, calibration=data)
    assert len(report.files) == 3 * (len(sizes) or 1)
    bundle = json.loads((tmp_path / "b" / "bundle.json").read_text())
    for entry, written in zip(report.files, bundle["files"], strict=True):
        assert entry.findings == ()
        assert written["tensorrt"] == lint_file(tmp_path / "b" / entry.file).verdicts == CLEAN
        assert metadata(tmp_path / "b" / entry.file)["tensorrt"] == f"{RELEASES[0]}–{RELEASES[-1]} clean"
    assert report.findings_tables() == []
    assert f"{RELEASES[0]}–{RELEASES[-1]} clean" in set(report.table().columns[5].cells)


def test_the_default_is_one_file_of_640x480(data: Path, tmp_path: Path) -> None:
    report = export("nano", out=tmp_path / "b", precision=["fp32"], calibration=data)
    assert [entry.file for entry in report.files] == ["nano-640x480-fp32.onnx"]
    said = metadata(tmp_path / "b" / "nano-640x480-fp32.onnx")
    assert said["size"] == report.files[0].size == "640x480"
    assert not any(key.startswith("profile") for key in said)
    assert report.profile == {}
    for key in ("duskfuse", "architecture", "settings", "colour", "inputs", "output", "colour_rule", "licence"):
        assert said[key]
    assert said["source"] == "nano"
    assert said["source_sha256"] == report.source_sha256
    assert "torch" in said["written_with"]
    assert set(report.versions) == {"torch", "onnx", "onnxruntime"}
    assert bench(tmp_path / "b", threads=1, runs=1, warmup=0).results[0].model == "nano-640x480-fp32.onnx"


def test_files_for_any_size_say_for_which_sizes_engines_are_built(data: Path, tmp_path: Path) -> None:
    sizes = ["64x48", "80x40", "48x32"]
    report = export("nano", out=tmp_path / "b", precision=["fp32"], size=sizes, dynamic=True, calibration=data)
    (entry,) = report.files
    said = metadata(tmp_path / "b" / entry.file)
    assert entry.file == "nano-fp32.onnx"
    assert said["size"] == entry.size == "dynamic"
    assert report.profile == {"min": "48x32", "opt": "64x48", "max": "80x48"}
    assert {key: value for key, value in said.items() if key.startswith("profile")} == {
        "profile_min": "48x32",
        "profile_opt": "64x48",
        "profile_max": "80x48",
    }
    assert SizeRange.of([]).texts() == {"min": "160x120", "opt": "640x480", "max": "1280x1024"}


@pytest.mark.parametrize("dynamic", [False, True])
def test_students_of_colours_are_exported_verified_and_run(
    colours: tuple[EdgeStudent, Path], dynamic: bool, data: Path, tmp_path: Path
) -> None:
    student, checkpoint = colours
    report = export(checkpoint, out=tmp_path / "b", size=["56x40"], dynamic=dynamic, calibration=data)
    assert [entry.precision for entry in report.files] == ["fp32", "fp16", "int8"]
    pair = calibration_pairs(data, (40, 56), 1, colour=Colour.RGB)[0]
    want = TorchFuser(student, "").fuse_colours(pair.ir, pair.vis)
    for entry, error in zip(report.files, (1e-4, 0.02, 0.2), strict=True):
        path = tmp_path / "b" / entry.file
        model, said = onnx.load(path), metadata(path)
        assert [value.name for value in model.graph.input] == ["ir", "vis"]
        assert [value.name for value in model.graph.output] == ["fused_rgb"]
        assert said["colour"] == "rgb"
        assert "fused_rgb" in said["output"]
        assert "colour_rule" not in said
        assert entry.tensorrt == CLEAN
        fuser = open_fuser(path, threads=1)
        assert fuser.colour is Colour.RGB
        assert np.abs(fuser.fuse_colours(pair.ir, pair.vis) - want).max() <= error
        with pytest.raises(InputError, match="fuses colours"):
            fuser.fuse(pair.ir, pair.vis[..., 0])
    eight_bit = [np.rint(picture * 255).astype(np.uint8) for picture in (pair.ir, pair.vis)]
    on_device = EdgeFuser(tmp_path / "b" / report.files[0].file, threads=1).fuse(*eight_bit)
    assert np.abs(on_device - want * 255).max() <= 2
    assert len(bench(tmp_path / "b", size="56x40", threads=1, runs=1, warmup=0).results) == 3


def test_a_file_of_luminance_is_not_asked_for_colours(data: Path, tmp_path: Path) -> None:
    export("nano", out=tmp_path / "b", precision=["fp32"], size=["56x40"], calibration=data)
    fuser = OnnxFuser(tmp_path / "b" / "nano-56x40-fp32.onnx", threads=1)
    with pytest.raises(InputError, match="fuses luminance"):
        fuser.fuse_colours(np.zeros((40, 56), np.float32), np.zeros((40, 56, 3), np.float32))


def test_the_dla_form_has_no_depth_to_space_and_says_what_is_left(data: Path, tmp_path: Path) -> None:
    options = {"precision": ["fp32", "fp16"], "size": ["56x40"], "calibration": data}
    plain = export("edge", out=tmp_path / "plain", **options)
    dla = export("edge", out=tmp_path / "dla", dla=True, **options)
    operators = [
        {node.op_type for node in onnx.load(Path(report.out) / report.files[1].file).graph.node}
        for report in (plain, dla)
    ]
    assert "DepthToSpace" in operators[0]
    assert "DepthToSpace" not in operators[1]
    assert "ConvTranspose" in operators[1]
    assert plain.files[1].dla == ()
    left = {finding.seen for finding in dla.files[1].dla}
    assert "a DLA has no Cast" in left
    assert not any("DepthToSpace" in seen for seen in left)
    assert dla.files[1].tensorrt == CLEAN
    assert len(dla.findings_tables()) == 2


class Normalising(nn.Module):
    """LayerNormalization came with TensorRT 8.6."""

    colour = Colour.LUMA

    def forward(self, vis: Tensor, ir: Tensor) -> FusionOutput:
        return FusionOutput(nn.functional.layer_norm(ir + vis, [ir.shape[-1]]).clamp(0, 1))


def test_a_file_that_a_release_refuses_is_not_left(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = ModelCard("edge", {}, "luma", "0.1.0", "nothing")
    monkeypatch.setattr(module, "load_student", lambda _: (Normalising(), card))
    with pytest.raises(VerificationError, match=r"refused by TensorRT 8\.5: .*LayerNormalization"):
        export("edge", out=tmp_path / "b", precision=["fp32"], size=["56x40"], calibration=data)
    assert list((tmp_path / "b").iterdir()) == []


def test_the_verb_lint_prints_verdicts_and_fails_where_a_release_refuses(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.onnx", tmp_path / "bad.onnx"
    good.write_bytes(ACCEPTED["opset_17"]().SerializeToString())
    bad.write_bytes(REFUSED["int32_bias"]().SerializeToString())
    runner = CliRunner()
    result = runner.invoke(app, ["lint", str(good)])
    assert result.exit_code == 0
    assert "clean" in result.stdout
    assert "Findings" not in result.stdout
    result = runner.invoke(app, ["lint", str(good), str(bad)], env={"COLUMNS": "200"})
    assert result.exit_code == 1
    assert "Findings in bad.onnx" in result.stdout
    assert "QuantizeBias=False" in result.stdout
    result = runner.invoke(app, ["lint", str(good), str(bad), "--json", "--dla"])
    assert result.exit_code == 1
    first, second = json.loads(result.stdout)
    assert first["verdicts"] == CLEAN
    assert first["dla"]
    assert set(second["verdicts"].values()) == {"refused"}
    assert runner.invoke(app, ["lint", str(tmp_path / "none.onnx")]).exit_code == 2
    assert runner.invoke(app, ["lint", str(Path(__file__))]).exit_code == 2
