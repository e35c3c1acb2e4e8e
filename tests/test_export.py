from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from duskfuse.data.errors import InputError, VerificationError
from duskfuse.data.weights import ModelCard, save_weights
from duskfuse.evaluate.fusers import OnnxFuser, TorchFuser, open_fuser
from duskfuse.export import verify
from duskfuse.export.calibration import Planes, calibration_pairs, evenly, fitted
from duskfuse.export.export import ExportReport, export
from duskfuse.export.onnx_graph import DeployedStudent, Precision, build_graph, save_graph
from duskfuse.export.sizes import parse_size
from duskfuse.export.tensorrt_lint import lint
from duskfuse.export.verify import Reference, psnr_db
from duskfuse.students.unet import UNetStudent
from duskfuse.students.zoo import load_student


def write_pairs(folder: Path, count: int = 8, size: tuple[int, int] = (40, 56)) -> Path:
    """Smooth pictures with an edge and a hot spot, ``ir/`` and ``vis/``."""
    rng = np.random.default_rng(0)
    for side in ("ir", "vis"):
        (folder / side).mkdir(parents=True)
        for index in range(count):
            picture = cv2.resize(rng.random((5, 7, 3), dtype=np.float32), size[::-1], interpolation=cv2.INTER_CUBIC)
            picture[:, 10 + index :] *= 0.7
            picture[10:16, 20:26] = index / count
            saved = np.clip(picture * 255, 0, 255).astype(np.uint8)
            cv2.imwrite(str(folder / side / f"p{index}.png"), saved[..., 0] if side == "ir" else saved)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student with batch statistics of its own; untrained, but not the identity."""
    torch.manual_seed(0)
    student = UNetStudent()
    with torch.no_grad():
        for _ in range(4):
            student(torch.rand(2, 1, 32, 32), torch.rand(2, 1, 32, 32))
    path = tmp_path_factory.mktemp("student") / "tiny.safetensors"
    card = ModelCard("unet", student.settings, "luma", "0.1.0", "random pictures", licence="Apache-2.0")
    save_weights(path, student, card)
    return path


@pytest.fixture(scope="module")
def report(checkpoint: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    return export(checkpoint, out=tmp_path_factory.mktemp("bundle"), dynamic=True, calibration=data)


def load(report: ExportReport, precision: str) -> onnx.ModelProto:
    return onnx.load(Path(report.out) / f"tiny-{precision}.onnx")


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_files_keep_the_contract(report: ExportReport, precision: str) -> None:
    model = load(report, precision)
    onnx.checker.check_model(model, full_check=True)
    assert model.ir_version == 8
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)]
    assert [value.name for value in model.graph.input] == ["ir", "vis_y"]
    assert [value.name for value in model.graph.output] == ["fused_y"]
    assert {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)} == {1}
    assert [dim.dim_param or dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim][:2] == [1, 1]
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata["precision"] == precision
    assert metadata["architecture"] == "unet"
    assert metadata["size"] == "dynamic"
    assert metadata["source_sha256"] == report.source_sha256
    assert metadata["training_data"] == "random pictures"


def test_fp16_casts_once_in_and_once_out(report: ExportReport) -> None:
    model = load(report, "fp16")
    produced = {output: node for node in model.graph.node for output in node.output}
    casts = [node for node in model.graph.node if node.op_type == "Cast"]
    floats = [n for n in casts if n.attribute[0].i in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)]
    assert sorted(node.input[0] for node in floats if node.input[0] in ("ir", "vis_y")) == ["ir", "vis_y"]
    assert produced["fused_y"].op_type == "Cast"
    assert len(floats) == 3
    weights = [numpy_helper.to_array(tensor) for tensor in model.graph.initializer]
    assert all(weight.dtype == np.float16 for weight in weights if weight.ndim == 4)


def test_int8_keeps_the_tensorrt_rules(report: ExportReport) -> None:
    model = load(report, "int8")
    assert lint(model).findings == ()
    counts = Counter(node.op_type for node in model.graph.node)
    entry = next(entry for entry in report.files if entry.precision == "int8")
    quantised = entry.convolutions - len(entry.float_convolutions)
    assert counts["Conv"] == entry.convolutions == 18
    assert 0 < quantised <= 18
    assert quantised < counts["QuantizeLinear"] == counts["DequantizeLinear"] <= 2 * quantised


@pytest.mark.parametrize(
    ("change", "seen", "newest"),
    [
        ({"zero_point": np.array(3, np.int8)}, "zero point is not 0", "refused"),
        ({"zero_point": np.array(0, np.uint8)}, "UINT8 instead of int8", "warnings"),  # the builder of 11 takes it
        ({"scale": "ir"}, "scale is not a constant", "refused"),
    ],
)
def test_the_lint_sees_faults_in_an_exported_file(
    report: ExportReport, change: dict[str, Any], seen: str, newest: str
) -> None:
    model = load(report, "int8")
    quantiser = next(node for node in model.graph.node if node.op_type == "QuantizeLinear")
    if "scale" in change:
        quantiser.input[1] = change["scale"]
    else:
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == quantiser.input[2])
        tensor.CopyFrom(numpy_helper.from_array(change["zero_point"], tensor.name))
    errors = lint(model).errors
    assert any(seen in error.seen and error.node == quantiser.name for error in errors)
    verdicts = lint(model).verdicts
    assert {verdict for release, verdict in verdicts.items() if not release.startswith("11.")} == {"refused"}
    assert {verdict for release, verdict in verdicts.items() if release.startswith("11.")} == {newest}


def test_report_bundle_and_checksums_agree(report: ExportReport) -> None:
    out = Path(report.out)
    bundle = json.loads((out / "bundle.json").read_text())
    checks = json.loads((out / "verification.json").read_text())
    assert [entry["file"] for entry in bundle["files"]] == ["tiny-fp32.onnx", "tiny-fp16.onnx", "tiny-int8.onnx"]
    for entry in bundle["files"]:
        content = (out / entry["file"]).read_bytes()
        assert entry["sha256"] == hashlib.sha256(content).hexdigest()
        assert entry["bytes"] == len(content)
        assert checks[entry["file"]] == entry["verification"]
    assert {path.name for path in out.glob("*.onnx")} == {entry["file"] for entry in bundle["files"]}
    said = {key: value for key, value in report.to_json().items() if key not in ("out", "archive")}
    assert json.loads(json.dumps(said)) == {key: bundle[key] for key in said}
    assert report.pictures == {"dynamic": [f"p{index}" for index in range(8)]}


def test_files_do_what_the_model_does_at_any_size(report: ExportReport, checkpoint: Path) -> None:
    student, _ = load_student(checkpoint)
    rng = np.random.default_rng(5)
    for shape in ((48, 64), (33, 47), (5, 4)):
        ir, vis_y = rng.random(shape, dtype=np.float32), rng.random(shape, dtype=np.float32)
        want = TorchFuser(student, "").fuse(ir, vis_y)
        fused = {p: open_fuser(Path(report.out) / f"tiny-{p}.onnx").fuse(ir, vis_y) for p in ("fp32", "fp16", "int8")}
        assert np.abs(fused["fp32"] - want).max() <= 1e-4
        assert psnr_db(fused["fp16"], want) >= 55
        assert psnr_db(fused["int8"], want) >= 35


def test_fixed_sizes(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    report = export(
        checkpoint, out=tmp_path / "b", precision=["fp32", "int8"], size=["64x48", "50x38"], calibration=data
    )
    names = [entry.file for entry in report.files]
    assert names == [f"tiny-{size}-{precision}.onnx" for size in ("64x48", "50x38") for precision in ("fp32", "int8")]
    fuser = open_fuser(tmp_path / "b" / "tiny-50x38-int8.onnx")
    assert isinstance(fuser, OnnxFuser)
    assert fuser.size == (38, 50)
    whole, odd = (onnx.load(tmp_path / "b" / f"tiny-{size}-fp32.onnx").graph for size in ("64x48", "50x38"))
    for graph, names in ((whole, {"scales"}), (odd, {"scales", "sizes"})):
        assert {node.op_type for node in graph.node} == {"Conv", "LeakyRelu", "MaxPool", "Resize", "Concat", "Sigmoid"}
        assert {node.input[-1].rpartition("/")[2] for node in graph.node if node.op_type == "Resize"} == names


def test_a_file_that_fails_its_check_is_not_left(
    checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "MOST_ERROR_FP32", -1.0)
    with pytest.raises(VerificationError, match=r"tiny-fp32\.onnx differs.*largest error"):
        export(checkpoint, out=tmp_path / "b", precision=["fp32"], dynamic=True, calibration=data)
    assert list((tmp_path / "b").iterdir()) == []


def test_verification_sees_a_wrong_network_and_nan(tmp_path: Path) -> None:
    torch.manual_seed(0)
    student = UNetStudent().eval()
    pairs = [Planes("a", np.full((16, 20), 0.3, np.float32), np.full((16, 20), 0.8, np.float32))]
    reference = Reference(student, pairs, any_size=True)
    path = tmp_path / "m.onnx"
    for bias in (0.5, float("nan")):
        with torch.no_grad():
            student.last.bias.fill_(bias)
        save_graph(build_graph(DeployedStudent(student)), path)
        for precision in Precision:
            with pytest.raises(VerificationError):
                reference.verify(path, precision)


def test_non_empty_folders_are_refused_and_overwriting_clears_the_old_bundle(
    checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "b"
    export(checkpoint, out=out, precision=["fp32"], size=["32x32"], calibration=data)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="--overwrite"):
        export(checkpoint, out=out, precision=["fp32"], calibration=data)
    export(checkpoint, out=out, precision=["fp32"], dynamic=True, calibration=data, overwrite=True)
    assert {path.name for path in out.glob("*.onnx")} == {"tiny-fp32.onnx"}
    assert (out / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("text", ["640", "640x", "x480", "0x0", "640×480×3", "2x480", "99999x10", "-64x48"])
def test_bad_sizes(text: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="WIDTHxHEIGHT"):
        export("unet", out=tmp_path / "b", size=[text])
    assert not (tmp_path / "b").exists()


def test_bad_precision_and_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="int4"):
        export("unet", out=tmp_path / "b", precision=["int4"])
    with pytest.raises(InputError):
        export(tmp_path / "none.safetensors", out=tmp_path / "b")
    assert parse_size("640x480") == (480, 640)


def test_pictures_are_spread_and_fitted(data: Path) -> None:
    assert evenly(range(10), 4) == [0, 3, 6, 9]
    pairs = calibration_pairs(data, (20, 30), most=3)
    assert [pair.name for pair in pairs] == ["p0", "p4", "p7"]
    assert {pair.ir.shape for pair in pairs} == {pair.vis.shape for pair in pairs} == {(20, 30)}
    big = Planes("big", np.zeros((300, 400), np.float32), np.ones((300, 400), np.float32))
    assert fitted(big, None).ir.shape == (256, 320)


def test_psnr() -> None:
    zero = np.zeros((4, 4), np.float32)
    assert psnr_db(zero, zero) == 99
    assert psnr_db(zero, zero + 0.1) == pytest.approx(20, abs=1e-4)
    assert np.isnan(psnr_db(zero, zero * np.nan))
