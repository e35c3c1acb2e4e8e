"""A bundle runs by itself on a device without PyTorch, does what the workstation does, and is verified before use."""

from __future__ import annotations

import ast
import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest

from duskfuse.export.bundle import write_archive
from duskfuse.export.export import export
from duskfuse.export.fuse import fuse
from duskfuse.export.runtime import bundle_archive
from duskfuse.export.runtime.__main__ import main
from duskfuse.export.runtime.bundle import BundleError, open_bundle
from duskfuse.export.runtime.bundle_archive import unpack
from duskfuse.export.runtime.errors import DeviceInputError
from duskfuse.export.runtime.network import OnnxNetwork, open_network
from duskfuse.export.runtime.onnx_file import LARGEST_ONNX_BYTES, check_self_contained

SIZE = (48, 64)
"""(height, width)."""
RNG = np.random.default_rng(8)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a file for any size, and its archive."""
    folder = tmp_path_factory.mktemp("exported") / "bundle"
    report = export("nano", out=folder, precision=["fp32"], dynamic=True, archive=True)
    assert report.archive == str(folder) + ".tar.gz"
    return folder


@pytest.fixture
def bundle(exported: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return shutil.copytree(exported, tmp_path / "bundle")


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The only packages of a device: NumPy, OpenCV and ONNX Runtime, by links to those of this environment."""
    folder = tmp_path_factory.mktemp("device")
    for name in ("numpy", "cv2", "onnxruntime"):
        spec = find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        package = Path(spec.origin).parent
        libraries = [path for path in package.parent.glob("*.libs") if name in path.name or name == "cv2"]
        for path in (package, *libraries):
            if not (folder / path.name).exists():
                (folder / path.name).symlink_to(path)
    return folder


def run_on_device(device: Path, bundle: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Type a command in the folder of a bundle, with Python's own library and the three packages only."""
    return subprocess.run(
        [sys.executable, "-S", "run.py", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=bundle,
        env={"PYTHONPATH": str(device), "OMP_NUM_THREADS": "1"},
    )


def here(bundle: Path, *arguments: str | Path, code: int = 0) -> None:
    """Fuse in this process, which is quicker than a new one."""
    assert main(["fuse", "--model", str(bundle), *map(str, arguments)]) == code


def write_pair(folder: Path, ir: np.ndarray, vis: np.ndarray, name: str = "a") -> tuple[Path, Path]:
    paths = folder / "ir" / f"{name}.png", folder / "vis" / f"{name}.png"
    for path, picture in zip(paths, (ir, vis), strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), picture)
    return paths


def smooth(kind: type, most: int, shape: tuple[int, ...] = SIZE) -> np.ndarray:
    small = RNG.random((5, 6, *shape[2:]))
    return np.clip(cv2.resize(small, shape[1::-1], interpolation=cv2.INTER_CUBIC) * most, 0, most).astype(kind)


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
    device: Path, exported: Path, tmp_path: Path
) -> None:
    ir, vis = write_pair(tmp_path, smooth(np.uint16, 30000), smooth(np.uint8, 255, (*SIZE, 3)))
    out = tmp_path / "d.png"
    options = ("--thermal-range", "9000:21000")
    done = run_on_device(device, exported, "fuse", "--ir", ir, "--vis", vis, "--out", out, *options)
    assert (done.returncode, done.stderr) == (0, "")
    (tmp_path / "reading.yaml").write_text("thermal_range: [9000, 21000]")
    fuse(ir, vis, tmp_path / "w.png", model=exported / "nano-fp32.onnx", reading=tmp_path / "reading.yaml")
    np.testing.assert_array_equal(cv2.imread(str(out)), cv2.imread(str(tmp_path / "w.png")))
    code = "import importlib.util as i; print([n for n in ('torch', 'duskfuse', 'onnx', 'yaml') if i.find_spec(n)])"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, env={"PYTHONPATH": str(device)}, check=False
    )
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


def relisted(bundle: Path, change: Callable[[dict[str, dict[str, object]]], None]) -> None:
    """Change what ``bundle.json`` lists."""
    content = json.loads((bundle / "bundle.json").read_text())
    change(content["checksums"])
    (bundle / "bundle.json").write_text(json.dumps(content))


def listed(bundle: Path, name: str, data: bytes) -> None:
    """Put a file into a bundle as its maker would."""
    (bundle / name).write_bytes(data)
    entry = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    relisted(bundle, lambda sums: sums.update({name: entry}))


def test_a_bundle_as_exported_is_opened_and_user_files_do_not_matter(bundle: Path) -> None:
    (bundle / "notes.txt").write_text("mine")
    (bundle / "results").mkdir()
    opened = open_bundle(bundle)
    assert [network.file for network in opened.networks] == ["nano-fp32.onnx"]
    network = open_network(bundle)
    assert network.size is None
    assert network.metadata["architecture"] == "nano"


@pytest.mark.parametrize("name", ["nano-fp32.onnx", "duskfuse_runtime/fuser.py", "run.py", "verification.json"])
def test_a_changed_or_missing_file_is_refused(bundle: Path, name: str) -> None:
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / name).write_bytes(data)
    with pytest.raises(BundleError, match=f"{name} was changed"):
        open_bundle(bundle)
    (bundle / name).write_bytes(data + b"more")
    with pytest.raises(BundleError, match="at most"):
        open_bundle(bundle)
    (bundle / name).unlink()
    with pytest.raises(BundleError, match=f"{name}: No such file"):
        open_bundle(bundle)


@pytest.mark.parametrize(
    "name", ["../outside", "a/../../outside", "/etc/hostname", "a//b", "./a", "c:x", "a\\..\\b", "a\nb", "", "\ud800"]
)
def test_paths_that_leave_the_bundle_are_refused(bundle: Path, name: str) -> None:
    relisted(bundle, lambda sums: sums.update({name: {"sha256": "0" * 64, "bytes": 1}}))
    with pytest.raises(BundleError, match="inside the bundle"):
        open_bundle(bundle)


def test_links_and_pipes_are_refused(bundle: Path, tmp_path: Path) -> None:
    readme = (bundle / "README.md").read_bytes()
    (tmp_path / "outside").write_bytes(readme)
    (bundle / "README.md").unlink()
    (bundle / "README.md").symlink_to(tmp_path / "outside")
    with pytest.raises(BundleError, match="symbolic link"):
        open_bundle(bundle)
    (bundle / "README.md").unlink()
    os.link(tmp_path / "outside", bundle / "README.md")
    with pytest.raises(BundleError, match="hard link"):
        open_bundle(bundle)
    (bundle / "README.md").unlink()
    os.mkfifo(bundle / "README.md")
    with pytest.raises(BundleError, match="not a regular file"):
        open_bundle(bundle)
    (bundle / "README.md").unlink()
    (bundle / "README.md").write_bytes(readme)
    (bundle / "elsewhere").symlink_to(tmp_path)
    with pytest.raises(BundleError, match="elsewhere is a symbolic link"):
        open_bundle(bundle)
    (bundle / "elsewhere").unlink()
    (bundle / "duskfuse_runtime").rename(tmp_path / "runtime")
    (bundle / "duskfuse_runtime").symlink_to(tmp_path / "runtime")
    with pytest.raises(BundleError, match="symbolic link"):
        open_bundle(bundle)


@pytest.mark.parametrize("name", ["other.onnx", "duskfuse_runtime/numpy.py", "numpy.so", "x.engine", "deep/x.plan"])
def test_what_could_be_loaded_and_is_not_listed_is_refused(bundle: Path, name: str) -> None:
    (bundle / name).parent.mkdir(exist_ok=True)
    (bundle / name).write_bytes(b"code")
    with pytest.raises(BundleError, match="never delivered" if name[-3:] in ("ine", "lan") else "nothing unlisted"):
        open_bundle(bundle)


def test_engines_are_accepted_only_with_the_record_of_a_build_from_this_bundle(bundle: Path) -> None:
    engine, record = bundle / "nano-fp32.engine", bundle / "nano-fp32.engine.json"
    engine.write_bytes(b"machine code")
    onnx_digest = open_digest(bundle / "nano-fp32.onnx")
    record.write_text(json.dumps({"onnx_sha256": onnx_digest, "engine_sha256": open_digest(engine)}))
    opened = open_bundle(bundle)
    assert opened.engine(opened.networks[0]) == engine
    engine.write_bytes(b"other machine code")
    with pytest.raises(BundleError, match="not built from a network of this bundle"):
        open_bundle(bundle)
    record.write_text(json.dumps({"onnx_sha256": "0" * 64, "engine_sha256": open_digest(engine)}))
    with pytest.raises(BundleError, match="not built from a network of this bundle"):
        open_bundle(bundle)
    record.unlink()
    with pytest.raises(BundleError, match="no record"):
        open_bundle(bundle)
    listed(bundle, "nano-fp32.engine", b"machine code")
    with pytest.raises(BundleError, match="lists the engine"):
        open_bundle(bundle)


def open_digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "no format"),
        ('{"format": 99}', "bundle format 99"),
        ('{"format": 2}', "lists no files"),
        ('{"format": 2, "checksums": {"a": 3}}', "without SHA-256"),
        ('{"format": 2, "checksums": {"a": {"sha256": "x", "bytes": 3}}}', "without SHA-256"),
        (json.dumps({"format": 2, "checksums": {"a.onnx": {"sha256": "0" * 64, "bytes": 2**40}}}), "at most 268435456"),
        (json.dumps({"format": 2, "checksums": {"a": {"sha256": "0" * 64, "bytes": -1}}}), "at most"),
    ],
)
def test_a_wrong_index_is_refused(bundle: Path, content: str, reason: str) -> None:
    (bundle / "bundle.json").write_text(content)
    with pytest.raises(BundleError, match=reason):
        open_bundle(bundle)


def test_a_giant_network_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "giant.onnx"
    with path.open("wb") as stream:
        stream.truncate(LARGEST_ONNX_BYTES + 1)  # a sparse file: no byte of it is on the disk
    with pytest.raises(DeviceInputError, match=f"at most {LARGEST_ONNX_BYTES} are read"):
        open_network(path)


def external_in(where: str) -> bytes:
    """A model whose only weights lie in another file: at the top, inside a branch, or in an attribute."""
    tensor = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [2], [1.0, 2.0])
    tensor.ClearField("float_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")
    inner = onnx.helper.make_graph([], "inner", [], [], [tensor] if where == "branch" else [])
    nodes = [onnx.helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)]
    if where == "attribute":
        nodes = [onnx.helper.make_node("Constant", [], ["y"], value=tensor)]
    graph = onnx.helper.make_graph(nodes, "g", [], [], [tensor] if where == "top" else [])
    return onnx.helper.make_model(graph).SerializeToString()


@pytest.mark.parametrize("where", ["top", "branch", "attribute"])
def test_weights_in_other_files_are_refused(bundle: Path, tmp_path: Path, where: str) -> None:
    (tmp_path / "m.onnx").write_bytes(external_in(where))
    with pytest.raises(DeviceInputError, match="keeps weights in other files"):
        OnnxNetwork(tmp_path / "m.onnx")
    listed(bundle, "nano-fp32.onnx", external_in(where))
    with pytest.raises(DeviceInputError, match="keeps weights in other files"):
        open_bundle(bundle)


def test_damaged_onnx_files_are_refused(exported: Path, tmp_path: Path) -> None:
    whole = (exported / "nano-fp32.onnx").read_bytes()
    check_self_contained(whole, "whole")
    for damaged in (whole[: len(whole) // 2], b"\x07", b"\xff" * 40, b"\x3a\xff\xff\xff\xff\x7f"):
        (tmp_path / "m.onnx").write_bytes(damaged)
        with pytest.raises(DeviceInputError):
            OnnxNetwork(tmp_path / "m.onnx")
    with pytest.raises(DeviceInputError):
        check_self_contained(graphs_inside_graphs(200), "deep")


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def graphs_inside_graphs(depth: int) -> bytes:
    """A model whose graph holds a node with an attribute with a graph, and so on."""
    inner = b""
    for _ in range(depth):
        for number in (6, 5, 1):  # graph of an attribute, attribute of a node, node of a graph
            inner = bytes([number << 3 | 2]) + varint(len(inner)) + inner
    return b"\x3a" + varint(len(inner)) + inner


def test_an_archive_is_the_same_bytes_wherever_it_is_written_and_unpacks_to_the_same_bundle(
    exported: Path, tmp_path: Path
) -> None:
    copied = shutil.copytree(exported, tmp_path / "bundle")
    for path in copied.rglob("*"):
        os.utime(path, (1e9, 1e9))
    (copied / "notes.txt").write_text("mine")
    archive = write_archive(copied)
    assert archive.read_bytes() == Path(f"{exported}.tar.gz").read_bytes()
    opened = unpack(archive, tmp_path / "unpacked")
    assert opened.folder == tmp_path / "unpacked"
    for name in (*opened.sums, "bundle.json", "SHA256SUMS"):
        assert (tmp_path / "unpacked" / name).read_bytes() == (exported / name).read_bytes()
    assert not (tmp_path / "unpacked" / "notes.txt").exists()
    assert os.access(tmp_path / "unpacked" / "run.py", os.X_OK)
    with pytest.raises(BundleError, match="there already"):
        unpack(archive, tmp_path / "unpacked")


def test_the_device_unpacks_an_archive(device: Path, exported: Path, tmp_path: Path) -> None:
    done = run_on_device(device, exported, "verify", f"{exported}.tar.gz", "--out", tmp_path / "new")
    assert done.returncode == 0, done.stderr
    assert "nano-fp32.onnx" in done.stdout
    (tmp_path / "new" / "run.py").write_text("print('other')")
    done = run_on_device(device, exported, "verify", tmp_path / "new")
    assert (done.returncode, "run.py" in done.stderr) == (2, True)


def repacked(exported: Path, archive: Path, *extra: tarfile.TarInfo, data: bytes = b"") -> Path:
    """The archive of a bundle with further members."""
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(exported, "bundle")
        for member in extra:
            member.size = len(data) if member.isreg() else 0
            tar.addfile(member, io.BytesIO(data))
    return archive


def entry(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        (entry("bundle/../../outside"), "inside the bundle"),
        (entry("/tmp/outside"), "inside the bundle"),
        (entry("other/file"), "one folder"),
        (entry("file"), "one folder"),
        (entry("bundle/link", tarfile.SYMTYPE, "/etc/passwd"), "symbolic link"),
        (entry("bundle/link", tarfile.LNKTYPE, "bundle/run.py"), "hard link"),
        (entry("bundle/pipe", tarfile.FIFOTYPE), "pipe"),
        (entry("bundle/device", tarfile.CHRTYPE), "device"),
        (entry("bundle/device", tarfile.BLKTYPE), "device"),
        (entry("bundle/nano-fp32.engine"), "never delivered"),
        (entry("bundle/run.py"), "twice"),
        (entry("bundle/notes.txt"), "not listed"),
        (entry("bundle/evil.py"), "unlisted"),
    ],
)
def test_hostile_archives_leave_nothing_behind(
    exported: Path, tmp_path: Path, member: tarfile.TarInfo, reason: str
) -> None:
    archive = repacked(exported, tmp_path / "a.tar.gz", member, data=b"x")
    with pytest.raises(BundleError, match=reason):
        unpack(archive, tmp_path / "in" / "new")
    assert list((tmp_path / "in").iterdir()) == []
    assert {path.name for path in tmp_path.iterdir()} == {"a.tar.gz", "in"}


def test_bombs_are_refused_early(exported: Path, tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.tar.gz"
    with tarfile.open(bomb, "w:gz") as tar:
        member = tarfile.TarInfo("bundle/zeros.txt")
        member.size = 15 * 2**20
        tar.addfile(member, io.BytesIO(bytes(member.size)))
    with pytest.raises(BundleError, match="at most 64 times"):
        unpack(bomb, tmp_path / "new")
    giant = tarfile.TarInfo("bundle/giant.onnx")
    giant.size = LARGEST_ONNX_BYTES + 1
    (tmp_path / "giant.tar.gz").write_bytes(gzip.compress(giant.tobuf() + RNG.bytes(4096)))
    with pytest.raises(BundleError, match="at most 268435456"):
        unpack(tmp_path / "giant.tar.gz", tmp_path / "new")
    header = tarfile.TarInfo("bundle/x")
    header.type, header.size = tarfile.XHDTYPE, 200 * 2**20
    (tmp_path / "header.tar.gz").write_bytes(gzip.compress(header.tobuf() + RNG.bytes(2**16)))
    with pytest.raises(BundleError, match="header of the archive is too long"):
        unpack(tmp_path / "header.tar.gz", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_damaged_archives_are_refused(exported: Path, tmp_path: Path) -> None:
    whole = Path(f"{exported}.tar.gz").read_bytes()
    damaged = {"cut": whole[: len(whole) // 2], "text": b"hello" * 100, "empty": b"", "flipped": bytearray(whole)}
    damaged["flipped"][len(whole) // 2] ^= 255  # type: ignore[index]
    for name, data in damaged.items():
        (tmp_path / f"{name}.tar.gz").write_bytes(data)
        with pytest.raises(BundleError):
            unpack(tmp_path / f"{name}.tar.gz", tmp_path / "new")
    with pytest.raises(BundleError):
        unpack(tmp_path / "none.tar.gz", tmp_path / "new")
    assert {path.suffix for path in tmp_path.iterdir()} == {".gz"}


def test_every_byte_of_an_archive_is_bound(exported: Path, tmp_path: Path) -> None:
    """Whatever single byte is changed, unpacking gives the same files or an error, never other files."""
    plain = bytearray(gzip.decompress(Path(f"{exported}.tar.gz").read_bytes()))
    wanted = {path.relative_to(exported): path.read_bytes() for path in exported.rglob("*") if path.is_file()}
    for index in RNG.integers(0, len(plain), 40):
        plain[index] ^= 0x20
        (tmp_path / "a.tar.gz").write_bytes(gzip.compress(bytes(plain), 1))
        plain[index] ^= 0x20
        try:
            unpack(tmp_path / "a.tar.gz", tmp_path / "new")
        except DeviceInputError:
            continue
        found = {p.relative_to(tmp_path / "new"): p.read_bytes() for p in (tmp_path / "new").rglob("*") if p.is_file()}
        assert found == wanted
        shutil.rmtree(tmp_path / "new")


def test_the_limit_of_growth_leaves_room_for_real_bundles(exported: Path) -> None:
    packed = Path(f"{exported}.tar.gz").stat().st_size
    assert sum(size for _, size in open_bundle(exported).sums.values()) < bundle_archive.MOST_GROWTH / 8 * packed


def test_exporting_again_leaves_nothing_of_the_earlier_bundle(bundle: Path) -> None:
    (bundle / "notes.txt").write_text("mine")
    for name in ("nano-fp32.engine", "nano-fp32.engine.json"):
        (bundle / name).write_bytes(b"old")
    export("nano", out=bundle, precision=["fp32"], size=["64x48"], overwrite=True)
    assert {path.name for path in bundle.glob("nano*")} == {"nano-64x48-fp32.onnx"}
    assert (bundle / "notes.txt").exists()
    opened = open_bundle(bundle)
    assert opened.choose(size=(48, 64)).size == (48, 64)
    with pytest.raises(DeviceInputError, match="no network for pictures of 32x32"):
        opened.choose(size=(32, 32))
