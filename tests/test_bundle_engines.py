"""A bundle on a device with TensorRT: it builds its engine, checks it, and fuses with it what the file fuses.

Everything is typed as a user would, in processes that have only the packages of a device; TensorRT is the strict
stand-in of a release, which computes with ONNX Runtime in memory that only its GPU reaches.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from bundle_device import SIZE, packages_of_a_device, run_on_device, smooth, write_pair
from tensorrt_api import RELEASES

from duskfuse.data.fuser import Colour
from duskfuse.data.images import file_sha256, read_picture
from duskfuse.data.weights import ModelCard, save_weights
from duskfuse.export.export import export
from duskfuse.export.fuse import fuse
from duskfuse.export.fusion_model import load
from duskfuse.export.runtime.engine_record import record_path
from duskfuse.students.edge import EdgeStudent

SOME = [RELEASES[0], RELEASES[3], RELEASES[5], RELEASES[-1]]
"""8.5 of JetPack 5.1, 10.3 of 6.1, the first that is built strongly typed, and 11: every way of the builder."""
FP16, FP32 = "edge-64x48-fp16.onnx", "edge-64x48-fp32.onnx"


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packages_of_a_device(tmp_path_factory.mktemp("device") / "packages", tensorrt=True)


@pytest.fixture(scope="module")
def delivered(tmp_path_factory: pytest.TempPathFactory, device: Path) -> Path:
    """A bundle of `edge` as the device unpacks it."""
    folder = tmp_path_factory.mktemp("delivered")
    export("edge", out=folder / "made", size=["64x48"], precision=["fp32", "fp16"], archive=True)
    done = run_on_device(device, folder / "made", "run.py", "verify", f"{folder}/made.tar.gz", "--out", folder / "edge")
    assert done.returncode == 0, done.stderr
    return folder / "edge"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pairs, infrared in 16 bits."""
    folder = tmp_path_factory.mktemp("pictures")
    for name in ("a", "b"):
        write_pair(folder, smooth(np.uint16, 30000), smooth(np.uint8, 255, (*SIZE, 3)), name)
    return folder


class Device:
    """One unpacked bundle on one device with one release."""

    def __init__(self, packages: Path, bundle: Path, release: str) -> None:
        self.packages, self.bundle, self.release = packages, bundle, release
        self.loads = bundle.with_name("loaded")

    def run(self, verb: str, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        given = {"STANDIN_RELEASE": self.release, "STANDIN_LOADED": str(self.loads), **environment}
        return run_on_device(self.packages, self.bundle, "-m", "duskfuse_runtime", verb, *arguments, **given)

    def fuse(self, pictures: Path, out: str, *more: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
        paths = ("--ir", pictures / "ir", "--vis", pictures / "vis", "--out", self.bundle.with_name(out))
        return self.run("fuse", *paths, *more, **env)

    def fused(self, out: str) -> list[np.ndarray]:
        return [read_picture(path) for path in sorted(self.bundle.with_name(out).iterdir())]

    def loaded(self) -> list[str]:
        """SHA-256 of every engine that TensorRT was given."""
        return self.loads.read_text().split() if self.loads.exists() else []


@pytest.fixture
def jetson(device: Path, delivered: Path, tmp_path: Path) -> Callable[[str], Device]:
    return lambda release: Device(device, shutil.copytree(delivered, tmp_path / "edge"), release)


@pytest.mark.parametrize("release", SOME)
def test_a_bundle_builds_its_engine_and_fuses_with_it(
    jetson: Callable[[str], Device], pictures: Path, release: str
) -> None:
    here = jetson(release)
    built = here.run("build", FP16)
    assert built.returncode == 0, built.stderr
    assert f"TensorRT {release} on Orin; {FP16}, fp16" in built.stderr
    engine = (here.bundle / FP16).with_suffix(".engine")
    record = json.loads(record_path(engine).read_text())
    listed = json.loads((here.bundle / "bundle.json").read_text())["checksums"]
    assert record["onnx_sha256"] == listed[FP16]["sha256"]
    assert record["engine_sha256"] == file_sha256(engine)
    assert (record["tensorrt"], record["gpu"], record["precision"]) == (release, "Orin", "fp16")
    done = here.fuse(pictures, "by_engine")
    assert done.returncode == 0, done.stderr
    assert here.loaded() == [record["engine_sha256"]], "TensorRT loads the engine that was built, once"
    done = here.fuse(pictures, "by_file", "--backend", "onnxruntime", "--precision", "fp16")
    assert done.returncode == 0, done.stderr
    assert len(here.loaded()) == 1
    for mine, theirs in zip(here.fused("by_engine"), here.fused("by_file"), strict=True):
        np.testing.assert_array_equal(mine, theirs)
        assert mine.shape == (*SIZE, 3)
        assert mine.std() > 10


def test_build_sh_verifies_and_builds_and_live_and_bench_use_the_engine(
    jetson: Callable[[str], Device], pictures: Path, tmp_path: Path
) -> None:
    here = jetson("10.3.0")
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python3"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    python.chmod(0o755)
    path = f"{tmp_path / 'bin'}:/usr/bin:/bin"
    given = {"PYTHONPATH": str(here.packages), "STANDIN_RELEASE": "10.3.0", "PATH": path, "OMP_NUM_THREADS": "1"}
    command = ["sh", here.bundle / "build.sh", "--workspace", "64"]
    done = subprocess.run(command, env=given, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "as exported" in done.stdout
    done = here.run("verify", here.bundle)
    assert done.returncode == 0, done.stderr
    digest = file_sha256((here.bundle / FP16).with_suffix(".engine"))
    paths = ("--ir", pictures / "ir", "--vis", pictures / "vis")
    for backend, out in (("tensorrt", "by_engine"), ("onnxruntime", "by_file")):
        more = ("--out", here.bundle.with_name(out), "--backend", backend, "--precision", "fp16")
        done = here.run("live", *paths, *more)
        assert done.returncode == 0, done.stderr
    for name in ("000000.png", "000001.png"):
        mine, theirs = (read_picture(here.bundle.with_name(out) / name) for out in ("by_engine", "by_file"))
        np.testing.assert_array_equal(mine, theirs)
    done = here.run("bench", "--seconds", "0.1", "--out", tmp_path / "bench.json")
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "bench.json").read_text())["results"]
    assert {entry["model"]: entry["backend"] for entry in results} == {FP16: "tensorrt", FP32: "onnxruntime"}
    assert here.loaded() == [digest, digest]


def flip(engine: Path) -> None:
    content = bytearray(engine.read_bytes())
    content[len(content) // 2] ^= 1
    engine.write_bytes(content)


def sign(engine: Path) -> None:
    """Another engine with a record that fits it, as of another network of the bundle."""
    shutil.copy(engine, engine.with_name("edge-64x48-fp32.engine"))
    shutil.copy(record_path(engine), engine.with_name("edge-64x48-fp32.engine.json"))


def nothing(_: Path) -> None:
    pass


REFUSED: dict[str, tuple[Callable[[Path], None], dict[str, str], list[str], int, str]] = {
    "a changed byte": (flip, {}, [], 2, "was not built from a network of this bundle"),
    "a changed byte beside a file": (flip, {}, ["--model", FP16], 1, "the engine is"),
    "the engine of another file": (sign, {}, [], 2, "edge-64x48-fp32.engine was not built from a network"),
    "another module": (nothing, {"STANDIN_MULTIPROCESSORS": "16"}, [], 1, "multiprocessors is 16, was 8"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_altered_or_foreign_engine_is_refused_before_tensorrt_sees_it(
    jetson: Callable[[str], Device], built: tuple[bytes, bytes], pictures: Path, name: str
) -> None:
    here = jetson("10.3.0")
    engine = (here.bundle / FP16).with_suffix(".engine")
    for path, content in zip((engine, record_path(engine)), built, strict=True):
        path.write_bytes(content)
    change, environment, more, code, text = REFUSED[name]
    change(engine)
    done = here.fuse(pictures, "out", *more, **environment)
    assert (done.returncode, text in done.stderr) == (code, True), done.stderr
    assert "Traceback" not in done.stderr
    assert here.loaded() == []
    assert not here.bundle.with_name("out").exists()


@pytest.fixture(scope="module")
def built(device: Path, delivered: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """An engine of TensorRT 10.3 and its record."""
    here = Device(device, shutil.copytree(delivered, tmp_path_factory.mktemp("built") / "edge"), "10.3.0")
    assert here.run("build", FP16).returncode == 0
    engine = (here.bundle / FP16).with_suffix(".engine")
    return engine.read_bytes(), record_path(engine).read_bytes()


def test_after_an_update_of_jetpack_building_again_is_all_it_takes(
    jetson: Callable[[str], Device], built: tuple[bytes, bytes], pictures: Path
) -> None:
    here = jetson(RELEASES[-1])
    engine = (here.bundle / FP16).with_suffix(".engine")
    for path, content in zip((engine, record_path(engine)), built, strict=True):
        path.write_bytes(content)
    refused = here.fuse(pictures, "out")
    assert (refused.returncode, here.loaded()) == (1, [])
    assert f"TensorRT is {RELEASES[-1]}, was 10.3.0" in refused.stderr
    assert f"build it again here: python -m duskfuse_runtime build {FP16} --engine {engine.name}" in refused.stderr
    assert here.run("build", FP16, "--engine", engine.name).returncode == 0
    assert here.fuse(pictures, "out").returncode == 0
    assert here.loaded() == [file_sha256(engine)]


def test_a_bundle_for_any_size_fuses_pictures_of_several_sizes_with_one_engine(device: Path, tmp_path: Path) -> None:
    sizes = ["64x48", "48x32", "96x80"]
    export("nano", out=tmp_path / "nano", size=sizes, precision=["fp32"], dynamic=True)
    here = Device(device, tmp_path / "nano", "8.6.1")
    assert here.run("build", "nano-fp32.onnx").returncode == 0
    record = json.loads((here.bundle / "nano-fp32.engine.json").read_text())
    assert record["sizes"] == ["48x32", "64x48", "96x80"]
    for name, size in (("a", (48, 64)), ("b", (33, 61)), ("c", (80, 96)), ("d", (82, 96))):
        write_pair(tmp_path, smooth(np.uint8, 255, size), smooth(np.uint8, 255, (*size, 3)), name)
    done = here.fuse(tmp_path, "by_engine")
    assert (done.returncode, "build an engine for the camera's size" in done.stderr) == (2, True), done.stderr
    assert here.fuse(tmp_path, "by_file", "--backend", "onnxruntime").returncode == 0
    mine, theirs = here.fused("by_engine"), here.fused("by_file")
    assert (len(mine), len(theirs)) == (3, 4), "the picture beyond the engine's sizes is left out, the others are fused"
    for by_engine, by_file in zip(mine, theirs, strict=False):
        np.testing.assert_array_equal(by_engine, by_file)


def test_a_student_of_colours_goes_to_the_device_and_fuses_as_torch_does(device: Path, tmp_path: Path) -> None:
    """By file, by engine and by the workstation's `fuse`: within one grey level of the student in PyTorch."""
    torch.manual_seed(0)
    student = EdgeStudent(Colour.RGB).eval()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    checkpoint = tmp_path / "colours.safetensors"
    save_weights(checkpoint, student, ModelCard("edge", student.settings, "rgb", "0.1.0", "nothing"))
    export(checkpoint, out=tmp_path / "bundle", size=["64x48"], precision=["fp32"])
    here = Device(device, tmp_path / "bundle", "10.13.3.9")
    ir, vis = smooth(np.uint8, 255), smooth(np.uint8, 255, (*SIZE, 3))
    write_pair(tmp_path, ir, cv2.cvtColor(vis, cv2.COLOR_RGB2BGR))
    assert here.fuse(tmp_path, "by_file").returncode == 0
    assert here.run("build", "colours-64x48-fp32.onnx").returncode == 0
    assert here.fuse(tmp_path, "by_engine").returncode == 0
    assert len(here.loaded()) == 1
    model = tmp_path / "bundle" / "colours-64x48-fp32.onnx"
    fuse(tmp_path / "ir", tmp_path / "vis", tmp_path / "by_workstation", model=model)
    want = load(checkpoint).fuse(ir, vis).astype(int)
    assert np.abs(want - vis).max() > 30, "the student changes the picture"
    assert want.std(axis=2).max() > 10, "and it is in colour"
    for out in ("by_file", "by_engine", "by_workstation"):
        (picture,) = here.fused(out)
        assert np.abs(picture - want).max() <= 1, out
