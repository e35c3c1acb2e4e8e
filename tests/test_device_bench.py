"""Benchmarks of a device over a real ssh server on this machine, with NVIDIA's programs played by their recordings."""

from __future__ import annotations

import getpass
import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from duskfuse.cli import app
from duskfuse.data.errors import InputError
from duskfuse.export import device_bench as module
from duskfuse.export.bench_page import bench_page
from duskfuse.export.device_bench import DeviceOptions, bench_devices
from duskfuse.export.device_runs import DeviceRun, read_document, read_run
from duskfuse.export.onnx_graph import DeployedStudent, build_graph, save_graph, set_properties
from duskfuse.export.ssh_device import DeviceError, SshDevice, quote
from duskfuse.students.edge import EdgeStudent

RECORDINGS = Path(__file__).parent / "recordings"
SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
needs_sshd = pytest.mark.skipif(
    SSHD is None or shutil.which("ssh") is None, reason="no OpenSSH server and client (apt-get install openssh-server)"
)
OPTIONS = DeviceOptions(size="64x48", seconds=0.5, threads=1)
NETWORK = "edge-fp16.onnx"


@dataclass(frozen=True)
class Device:
    """An ssh server of this test's own, with its own keys, home folder and programs."""

    host: str
    folder: Path

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def bench_home(self) -> Path:
        return self.home / ".cache" / "duskfuse" / "bench"

    def program(self, name: str, script: str) -> None:
        path = self.folder / "bin" / name
        path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        path.chmod(0o755)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def make_key(path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)


def start_server(folder: Path, port: int) -> subprocess.Popen[bytes]:
    assert SSHD is not None
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd wants it, and only root can be asked for it
    for name in ("host_key", "user_key", "wrong_key"):
        make_key(folder / name)
    shutil.copy(folder / "user_key.pub", folder / "authorized_keys")
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host_key\n"
        f"AuthorizedKeysFile {folder}/authorized_keys\n"
        f"StrictModes no\nUsePAM no\nPasswordAuthentication no\nPidFile none\n"
        f"SetEnv PATH={folder}/bin:/usr/bin:/bin HOME={folder}/home OMP_NUM_THREADS=1\n",
        encoding="utf-8",
    )
    command = [SSHD, "-D", "-e", "-f", str(folder / "sshd_config")]
    return subprocess.Popen(command, stderr=(folder / "sshd.log").open("wb"))


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    port = free_port()
    folder = tmp_path / "device"
    for name in ("bin", "home"):
        (folder / name).mkdir(parents=True)
    server = start_server(folder, port)
    public = (folder / "host_key.pub").read_text(encoding="utf-8").split()[:2]
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {' '.join(public)}\n", encoding="utf-8")
    (folder / "empty").touch()
    common = f"HostName 127.0.0.1\n User {getpass.getuser()}\n IdentitiesOnly yes\n"
    (folder / "config").write_text(
        "".join(
            f"Host {name}\n {common} Port {at}\n IdentityFile {folder}/{key}\n UserKnownHostsFile {folder}/{known}\n"
            for name, at, key, known in (
                ("nano", port, "user_key", "known_hosts"),
                ("wrong-key", port, "wrong_key", "known_hosts"),
                ("stranger", port, "user_key", "empty"),
                ("down", free_port(), "user_key", "known_hosts"),
            )
        ),
        encoding="utf-8",
    )
    client = tmp_path / "client"
    client.mkdir()
    (client / "ssh").write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder}/config "$@"\n', encoding="utf-8")
    (client / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{client}:{os.environ['PATH']}")
    made = Device("nano", folder)
    made.program("python3", f'exec {sys.executable} "$@"')
    deadline = time.monotonic() + 20
    while subprocess.run(["ssh", "nano", "true"], capture_output=True, check=False).returncode:
        assert server.poll() is None, (folder / "sshd.log").read_text()
        assert time.monotonic() < deadline, (folder / "sshd.log").read_text()
        time.sleep(0.1)
    yield made
    server.terminate()
    server.wait(10)


def play_recordings(device: Device) -> None:
    """Let the device have NVIDIA's programs, which print what they printed on real machines."""
    nano = RECORDINGS / "orin_nano_super"
    loop = f'while :; do while read -r line; do echo "$line"; sleep 0.05; done <{nano}/tegrastats.txt; done'
    device.program("tegrastats", loop)
    device.program("nvpmodel", f"cat {nano}/nvpmodel.txt")
    times = '[ {"computeMs" : 0.388}, {"computeMs" : 0.390}, {"computeMs" : 0.389} ]'
    device.program(
        "trtexec",
        f"""
if [ "$1" = --help ]; then
  echo '&&&& RUNNING TensorRT.trtexec [TensorRT v8400] # trtexec --help'
  echo '  --onnx=<file> --fp16 --int8 --useCudaGraph --useSpinWait --noDataTransfers --separateProfileRun'
  exit
fi
for word; do case "$word" in
  --exportTimes=*) echo '{times}' >"${{word#*=}}" ;;
  --exportProfile=*) cat {RECORDINGS}/trtexec/profile_8_6.json >"${{word#*=}}" ;;
esac; done
cat {RECORDINGS}/trtexec/v8400_agx_xavier.txt""",
    )


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "edge"
    folder.mkdir()
    model = build_graph(DeployedStudent(EdgeStudent()))
    set_properties(model, {"precision": "fp16"})
    save_graph(model, folder / NETWORK)
    (folder / "edge-fp16.engine").write_bytes(b"of another machine")
    (folder / "build.sh").write_text('echo "building $(ls *.onnx)"; echo built >built\n', encoding="utf-8")
    return folder


def one(runs: list[DeviceRun]) -> DeviceRun:
    (run,) = runs
    return run


@needs_sshd
@pytest.mark.slow
def test_a_device_is_measured_and_left_as_it_was(
    device: Device, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    play_recordings(device)
    (device.home / "mine").write_text("stays", encoding="utf-8")
    options = DeviceOptions(size="64x48", seconds=0.5, threads=1, build=True, trtexec=True)
    runs, failures = bench_devices([bundle], ["nano"], tmp_path / "out", options)
    assert not failures
    said = capsys.readouterr().err
    assert "copying" in said
    assert f"building {NETWORK}" in said, "what build.sh prints is shown"
    run = one(runs)
    assert (run.name, run.failures) == ("nano", ())
    fused, by_trtexec = run.results
    assert (fused.model, fused.precision, fused.backend, fused.size) == (NETWORK, "fp16", "onnxruntime", "64x48")
    assert fused.transfers == "none"
    assert fused.whole is not None
    assert 0 < fused.network["min"] <= fused.network["p50"] <= fused.network["p99"] <= fused.whole["max"]
    assert fused.network["p50"] == pytest.approx(np.percentile(fused.times_ms, 50), abs=1e-3)
    assert fused.network["count"] == len(fused.times_ms) >= 3
    assert fused.input_rail == "VDD_IN"
    power = fused.seen["power_mw"]["VDD_IN"]["mean"]
    assert 3462 <= power <= 3582, "the recording's"
    pictures = len(fused.times_ms)
    assert fused.energy_mj["VDD_IN"]["per_picture"] == pytest.approx(power * fused.seconds / pictures, rel=0.01)
    assert (by_trtexec.backend, by_trtexec.transfers, by_trtexec.network["p50"]) == ("trtexec", "excluded", 0.389)
    assert by_trtexec.flags == {"cuda_graph": "stated", "spin_wait": "stated", "no_transfers": "stated"}
    assert by_trtexec.trtexec is not None
    assert by_trtexec.trtexec.times["GPU Compute Time"].median == 0.388443
    assert [layer.name for layer in by_trtexec.layers] == ["/conv1/Conv + /act1/Relu"]
    assert "/conv1/Conv + /act1/Relu" in bench_page([run]).html()
    assert run.path is not None
    assert read_run(run.path) == run
    (kept,) = device.bench_home.iterdir()
    assert (kept / "built").is_file()
    assert not (kept / "edge-fp16.engine").exists(), "engines of this machine are not sent"
    assert {path.name for path in device.home.iterdir()} == {".cache", "mine"}

    bench_devices([bundle], ["nano"], tmp_path / "out", DeviceOptions(**{**vars(OPTIONS), "clean": True}))
    assert "the files are there already" in capsys.readouterr().err
    assert list(device.bench_home.iterdir()) == []


@needs_sshd
def test_what_was_altered_on_the_device_is_copied_again(
    device: Device, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ssh = SshDevice("nano")
    files = module._files_of(bundle, tmp_path)
    folder = "~/.cache/duskfuse/bench/it's here"
    module._copy(ssh, files, folder)
    altered = device.bench_home / "it's here" / NETWORK
    assert altered.read_bytes() == files[NETWORK]
    altered.write_bytes(b"damaged")
    module._copy(ssh, files, folder)
    assert altered.read_bytes() == files[NETWORK]
    assert capsys.readouterr().err.count("copying") == 2
    assert [path.name for path in device.bench_home.iterdir()] == ["it's here"]


@needs_sshd
def test_devices_that_cannot_be_reached_and_one_that_can(device: Device, bundle: Path, tmp_path: Path) -> None:
    hosts = ["wrong-key", "stranger", "down", "no-such-host.invalid", "nano"]
    runs, failures = bench_devices([bundle / NETWORK], hosts, tmp_path / "out", OPTIONS)
    assert one(runs).name == "nano", "the others do not cost its numbers"
    reasons = {failure.host: failure.reason for failure in failures}
    assert "Permission denied" in reasons["wrong-key"]
    assert "ssh-copy-id wrong-key" in reasons["wrong-key"]
    assert "Host key verification failed" in reasons["stranger"]
    assert "connect once by hand (ssh stranger)" in reasons["stranger"]
    assert (device.folder / "empty").read_text(encoding="utf-8") == "", "no unknown key is accepted"
    assert "Connection refused" in reasons["down"]
    assert "resolve" in reasons["no-such-host.invalid"]


@needs_sshd
def test_what_a_device_can_lack(device: Device, bundle: Path, tmp_path: Path) -> None:
    def reason() -> str:
        runs, failures = bench_devices([bundle], ["nano"], tmp_path / "out", OPTIONS)
        assert not runs
        return failures[0].reason

    real = (device.folder / "bin" / "python3").read_text(encoding="utf-8").partition("\n")[2]
    device.program("df", "echo Filesystem; echo '/dev/root 100 90 10 90% /'")
    assert "MB free" in reason()
    (device.folder / "bin" / "df").unlink()
    device.program("tar", "echo 'tar: x: Cannot write: No space left on device' >&2; exit 2")
    assert "its disk is full while copying" in reason()
    assert not any("part" in path.name for path in device.bench_home.iterdir())
    (device.folder / "bin" / "tar").unlink()
    hidden = "import sys; sys.modules.update(dict.fromkeys({!r}.split())); exec(sys.stdin.read())"
    device.program("python3", real.replace('"$@"', f'-c "{hidden.format("numpy")}"'))
    assert "Python has no numpy (import of numpy halted; None in sys.modules)" in reason()
    device.program("python3", real.replace('"$@"', f'-c "{hidden.format("onnxruntime tensorrt")}"'))
    assert "neither onnxruntime nor tensorrt (import of onnxruntime halted" in reason()
    device.program("python3", "echo python=3.6")
    assert "has Python 3.6; the device runtime needs 3.8" in reason()
    device.program("python3", "exit 127")
    assert "has no python3" in reason()


@needs_sshd
def test_a_command_that_does_not_end_is_given_up(device: Device) -> None:
    with pytest.raises(DeviceError, match="has not finished within 1 s"):
        SshDevice("nano").run("sleep 30", timeout_s=1)


@needs_sshd
def test_a_network_that_fails_is_named_and_the_others_are_measured(
    device: Device, bundle: Path, tmp_path: Path
) -> None:
    mixed = tmp_path / "mixed"
    shutil.copytree(bundle, mixed)
    (mixed / "broken.onnx").write_bytes(b"no network")
    runs, failures = bench_devices([mixed], ["nano"], tmp_path / "out", OPTIONS)
    assert not failures
    assert [result.model for result in one(runs).results] == [NETWORK]
    assert one(runs).failures[0][0] == "broken.onnx"


@needs_sshd
def test_the_command_line(device: Device, bundle: Path, tmp_path: Path) -> None:
    def duskfuse(*arguments: object) -> tuple[int, str, str]:
        result = CliRunner().invoke(app, ["bench", *map(str, arguments)])
        return result.exit_code, result.stdout, result.stderr

    common = ("--out", tmp_path / "out", "--seconds", "0.3", "--size", "64x48", "--threads", "1")
    page = tmp_path / "page.html"
    code, out, _ = duskfuse(bundle / NETWORK, "--host", "nano", "--host", "down", *common, "--page", page, "--json")
    assert code == 1, "one of them is down"
    content = json.loads(out)
    assert content["failures"][0]["host"] == "down"
    file = content["runs"][0]["file"]
    assert NETWORK in page.read_text(encoding="utf-8")
    code, out, _ = duskfuse(file, "--page", tmp_path / "again.html")
    assert code == 0
    assert "nano" in out
    assert (tmp_path / "again.html").is_file()
    for wrong in (("edge", "--build"), ("edge", file), ("edge", "--page", page), ("edge", "--host", "nano")):
        assert duskfuse(*wrong)[0] == 2, wrong


def test_targets_that_are_none() -> None:
    for host in ("-oProxyCommand=id", "", "a b"):
        with pytest.raises(InputError, match="user@device"):
            SshDevice(host)
    assert quote("~/a b") == "\"$HOME\"/'a b'"


def test_models_that_cannot_be_sent(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"holds no \.onnx file"):
        bench_devices([tmp_path / "empty"], ["nano"], tmp_path)
    with pytest.raises(InputError, match="duskfuse export edge --out bundle"):
        bench_devices([Path("edge")], ["nano"], tmp_path)
    with pytest.raises(InputError, match="at most an hour"):
        bench_devices([tmp_path], ["nano"], tmp_path, DeviceOptions(seconds=0))


def test_archives_are_sent_as_the_folders_they_hold(bundle: Path, tmp_path: Path) -> None:
    archive = tmp_path / "edge.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(bundle, "edge")
    assert module._files_of(archive, tmp_path) == module._files_of(bundle, tmp_path)
    with tarfile.open(tmp_path / "evil.tar", "w") as tar:
        tar.add(bundle / NETWORK, "edge/../../evil.onnx")
    with pytest.raises(InputError, match="outside itself"):
        module._files_of(tmp_path / "evil.tar", tmp_path)


def test_documents_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    for text, match in (("{", "cannot be read"), ("[]", "no document"), ('{"format": "x"}', "no document")):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=match):
            read_run(path)
    document = {"format": "duskfuse device benchmark", "version": 2}
    with pytest.raises(InputError, match="has version 2"):
        read_document(document, "x")
    with pytest.raises(InputError, match="is damaged"):
        read_document({**document, "version": 1}, "x")
