"""A bundle is verified before anything of it is used: what is altered, foreign, hostile or too large is refused."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from bundle_device import run_on_device

from duskfuse.export.bundle import write_archive
from duskfuse.export.export import export
from duskfuse.export.runtime import bundle_archive
from duskfuse.export.runtime.bundle import BundleError, open_bundle
from duskfuse.export.runtime.bundle_archive import unpack
from duskfuse.export.runtime.errors import DeviceInputError
from duskfuse.export.runtime.network import OnnxNetwork, open_network
from duskfuse.export.runtime.onnx_file import LARGEST_ONNX_BYTES, check_self_contained

RNG = np.random.default_rng(8)


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


def test_the_device_unpacks_an_archive(bare_device: Path, exported: Path, tmp_path: Path) -> None:
    done = run_on_device(bare_device, exported, "run.py", "verify", f"{exported}.tar.gz", "--out", tmp_path / "new")
    assert done.returncode == 0, done.stderr
    assert "nano-fp32.onnx" in done.stdout
    (tmp_path / "new" / "run.py").write_text("print('other')")
    done = run_on_device(bare_device, exported, "run.py", "verify", tmp_path / "new")
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
