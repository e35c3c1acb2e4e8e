"""A bundle runs by itself on a device without PyTorch, and does what the workstation does."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from bundle_device import SIZE, run_on_device, smooth, write_pair

from duskfuse.export.fuse import fuse
from duskfuse.export.runtime.__main__ import main


def here(bundle: Path, *arguments: str | Path, code: int = 0) -> None:
    """Fuse in this process, which is quicker than a new one."""
    assert main(["fuse", "--model", str(bundle), *map(str, arguments)]) == code


def test_a_bundle_holds_all_of_its_parts_and_the_checksums_of_all(exported: Path) -> None:
    names = {str(path.relative_to(exported)) for path in exported.rglob("*") if path.is_file()}
    parts = {"nano-fp32.onnx", "run.py", "README.md", "LICENSE", "TRAINING_DATA.md", "SHA256SUMS", "bundle.json"}
    assert parts | {"verification.json", "calibration.json", "duskfuse_runtime/__main__.py"} <= names
    content = json.loads((exported / "bundle.json").read_text())
    assert set(content["checksums"]) == names - {"bundle.json", "SHA256SUMS"}
    for name, entry in content["checksums"].items():
        data = (exported / name).read_bytes()
        assert entry == {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    assert "out" not in content
    readme = (exported / "README.md").read_text()
    assert "`nano-fp32.onnx`" in readme
    assert "$" not in readme
    assert (exported / "LICENSE").read_bytes() == (Path(__file__).parents[1] / "LICENSE").read_bytes()
    assert content["card"]["training_data"] in (exported / "TRAINING_DATA.md").read_text()


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="sha256sum is not on this machine")
def test_sha256sum_accepts_the_checksums(bundle: Path) -> None:
    command = ["sha256sum", "--strict", "-c", "SHA256SUMS"]
    assert subprocess.run(command, cwd=bundle, capture_output=True, check=False).returncode == 0
    (bundle / "run.py").write_text("print('mine')")
    assert subprocess.run(command, cwd=bundle, capture_output=True, check=False).returncode == 1


def test_scripts_start_in_any_folder(exported: Path, tmp_path: Path) -> None:
    for script in exported.glob("*.sh"):
        assert subprocess.run(["sh", "-n", script], check=False).returncode == 0
        assert os.access(script, os.X_OK)
    done = subprocess.run([sys.executable, exported / "run.py", "verify"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not (exported / "duskfuse_runtime" / "__pycache__").exists()


def test_the_runtime_needs_no_more_than_python_3_8(exported: Path) -> None:
    """The grammar by Python's own parser, the library by vermin, which knows when each function came."""
    for path in exported.rglob("*.py"):
        ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 8))
    pytest.importorskip("vermin")
    done = subprocess.run(
        [sys.executable, "-c", "import vermin; vermin.main()", "-t=3.8-", "--violations", "--no-tips", str(exported)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "Minimum required versions: 3." in done.stdout


def test_a_bundle_fuses_as_a_user_would_type_where_there_is_no_torch(
    bare_device: Path, exported: Path, tmp_path: Path
) -> None:
    ir, vis = write_pair(tmp_path, smooth(np.uint16, 30000), smooth(np.uint8, 255, (*SIZE, 3)))
    out = tmp_path / "d.png"
    options = ("--thermal-range", "9000:21000")
    done = run_on_device(bare_device, exported, "run.py", "fuse", "--ir", ir, "--vis", vis, "--out", out, *options)
    assert (done.returncode, done.stderr) == (0, "")
    (tmp_path / "reading.yaml").write_text("thermal_range: [9000, 21000]")
    fuse(ir, vis, tmp_path / "w.png", model=exported / "nano-fp32.onnx", reading=tmp_path / "reading.yaml")
    np.testing.assert_array_equal(cv2.imread(str(out)), cv2.imread(str(tmp_path / "w.png")))
    code = "import importlib.util as i; print([n for n in ('torch', 'duskfuse', 'onnx', 'yaml') if i.find_spec(n)])"
    alone = {"PYTHONPATH": str(bare_device)}
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, env=alone, check=False)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize(
    ("kind", "most", "options", "reading"),
    [
        (np.uint8, 255, (), ""),
        (np.uint8, 255, ("--black-hot",), "black_hot: true"),
        (np.uint16, 30000, (), ""),
        (np.uint16, 30000, ("--thermal-range", "9000:21000.5"), "thermal_range: [9000, 21000.5]"),
        (np.uint16, 30000, ("--percentiles", "1:99", "--black-hot"), "percentiles: [1, 99]\nblack_hot: true"),
    ],
)
def test_device_and_workstation_make_the_same_pictures(
    exported: Path, tmp_path: Path, kind: type, most: int, options: tuple[str, ...], reading: str
) -> None:
    """Pixel for pixel: a folder of two pairs, the visible ones in 8 and in 16 bits."""
    for name, vis in (("a", smooth(np.uint8, 255, (*SIZE, 3))), ("b", smooth(np.uint16, 65535, (*SIZE, 3)))):
        write_pair(tmp_path, smooth(kind, most), vis, name)
    (tmp_path / "reading.yaml").write_text(reading)
    here(exported, "--ir", tmp_path / "ir", "--vis", tmp_path / "vis", "--out", tmp_path / "d", *options)
    model = exported / "nano-fp32.onnx"
    fuse(tmp_path / "ir", tmp_path / "vis", tmp_path / "w", model=model, reading=tmp_path / "reading.yaml")
    for name in ("a.png", "b.png"):
        mine, theirs = (cv2.imread(str(tmp_path / side / name), cv2.IMREAD_UNCHANGED) for side in ("d", "w"))
        np.testing.assert_array_equal(mine, theirs)
        assert mine.shape == (*SIZE, 3)
        assert mine.std() > 10


@pytest.mark.parametrize("ir_size", [(40, 60), (160, 200)])
def test_a_homography_does_on_the_device_what_it_does_on_the_workstation(
    exported: Path, tmp_path: Path, ir_size: tuple[int, int]
) -> None:
    """Within one grey level: the maps are computed once in double precision, OpenCV's warp in its own.

    Infrared sees a part of the visible picture, so that its edge fades out; the larger one is averaged first.
    """
    ir, vis = write_pair(tmp_path, smooth(np.uint8, 255, ir_size), smooth(np.uint8, 255, (*SIZE, 3)))
    scale = 45 / ir_size[1]
    matrix = [[scale, 0.02 * scale, 6.5], [-0.01 * scale, scale, 5.25], [1e-5, 2e-5, 1]]
    rig = {"homography": matrix, "ir_size": ir_size[::-1], "vis_size": SIZE[::-1]}
    (tmp_path / "rig.json").write_text(json.dumps(rig))
    (tmp_path / "reading.yaml").write_text("homography: rig.json")
    out = tmp_path / "d.png"
    here(exported, "--ir", ir, "--vis", vis, "--out", out, "--homography", tmp_path / "rig.json")
    fuse(ir, vis, tmp_path / "w.png", model=exported / "nano-fp32.onnx", reading=tmp_path / "reading.yaml")
    difference = cv2.absdiff(cv2.imread(str(out)), cv2.imread(str(tmp_path / "w.png")))
    assert difference.max() <= 1
    assert np.mean(difference > 0) < 0.02


def test_a_dead_camera_is_left_out_where_asked(exported: Path, tmp_path: Path) -> None:
    living = smooth(np.uint8, 255, (*SIZE, 3))
    ir, vis = write_pair(tmp_path, np.full(SIZE, 17, np.uint8), living)
    out = tmp_path / "out.png"
    here(exported, "--ir", ir, "--vis", vis, "--out", out, "--fallback")
    np.testing.assert_array_equal(cv2.imread(str(out)), living)


def test_wrong_use_is_one_line_and_loses_nothing(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ir, vis = write_pair(tmp_path, smooth(np.uint8, 255), smooth(np.uint8, 255, (*SIZE, 3)))
    write_pair(tmp_path, smooth(np.uint8, 255, (30, 30)), smooth(np.uint8, 255, (*SIZE, 3)), "b")
    (tmp_path / "vis" / "c.png").write_bytes(b"no picture")
    (tmp_path / "ir" / "c.png").write_bytes(b"no picture")
    for arguments, text in (
        (("--ir", ir, "--vis", tmp_path / "vis", "--out", tmp_path / "x"), "pictures go with pictures"),
        (("--ir", ir, "--vis", vis, "--out", ir), "is an input"),
        (("--ir", ir, "--vis", vis, "--out", tmp_path / "x.gif"), "'.gif'"),
        (("--ir", tmp_path / "none.png", "--vis", vis, "--out", tmp_path / "x.png"), "No such file"),
        (("--ir", ir, "--vis", vis, "--out", tmp_path / "x.png", "--backend", "tensorrt"), "TensorRT"),
        (("--ir", ir, "--vis", vis, "--out", tmp_path / "x.png", "--precision", "int8"), "no int8"),
        (("--ir", tmp_path / "ir", "--vis", tmp_path / "vis", "--out", tmp_path / "o"), "2 could not be fused"),
    ):
        here(exported, *arguments, code=2 if text != "TensorRT" else 1)
        assert text in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "o").iterdir()] == ["a.png"]
    here(exported, "--ir", ir, "--vis", vis, "--out", tmp_path / "o" / "a.png", code=2)
    assert "nothing is overwritten" in capsys.readouterr().err
