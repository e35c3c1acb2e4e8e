"""The doctor names what is wrong with a machine and how to mend it."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections import namedtuple
from pathlib import Path

import pytest
from typer.testing import CliRunner

from duskfuse import doctor as room
from duskfuse.cli import app
from duskfuse.data.priors import sam
from duskfuse.doctor import Finding, State, describe_driver, doctor


def of(topic: str, *hosts: str) -> Finding:
    (finding,) = (found for found in doctor(hosts).findings if found.topic == topic)
    return finding


def installed(monkeypatch: pytest.MonkeyPatch, **versions: str | None) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        chosen = versions.get(name.replace("-", "_"), real)
        if chosen is real:
            return real(name)
        if chosen is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return str(chosen)

    monkeypatch.setattr(importlib.metadata, "version", version)


def test_this_machine_passes_and_every_lack_has_a_remedy() -> None:
    report = doctor()
    assert {"duskfuse", "python", "machine", "torch", "caches", "TensorRT", "ray"} <= {f.topic for f in report.findings}
    assert all(finding.remedy for finding in report.findings if finding.state is not State.FINE)
    assert report.to_json()["problems"] == len(report.problems)


def test_the_command_fails_where_something_should_be_mended(monkeypatch: pytest.MonkeyPatch) -> None:
    assert CliRunner().invoke(app, ["doctor"]).exit_code == (1 if doctor().problems else 0)
    installed(monkeypatch, kornia=None)
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 1
    assert "pip install duskfuse again" in result.output


def test_two_opencv_wheels(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, opencv_python="5.0", opencv_python_headless="5.0")
    finding = of("OpenCV wheels")
    assert finding.state is State.PROBLEM
    assert finding.remedy.endswith("pip install opencv-python")


def test_a_headless_wheel_alone_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, opencv_python=None, opencv_python_headless="5.0")
    assert "opencv-python" not in {finding.topic for finding in doctor().problems}


def test_little_disk_and_a_home_that_cannot_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(room.shutil, "disk_usage", lambda _: usage(10, 9, 10**9))
    assert of("caches").seen.endswith("1.0 GB free")
    assert of("caches").state is State.PROBLEM


def test_sam_checkpoints_are_named_with_their_hash(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DUSKFUSE_HOME", str(tmp_path))
    assert of("SAM checkpoint").state is State.OPTIONAL
    published = sam.PUBLISHED[sam.SamModel.VIT_B]
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / published.file).write_bytes(b"something else")
    assert of("SAM checkpoint").state is State.PROBLEM
    genuine = sam._Published(published.file, hashlib.sha256(b"something else").hexdigest())
    monkeypatch.setitem(sam.PUBLISHED, sam.SamModel.VIT_B, genuine)
    assert of("SAM checkpoint").seen == f"{published.file} (vit_b), the published file"


@pytest.mark.parametrize(("cuda", "state"), [("12.4", State.PROBLEM), ("13.0", State.FINE)])
def test_tensorrt_has_to_match_the_driver(monkeypatch: pytest.MonkeyPatch, cuda: str, state: State) -> None:
    installed(monkeypatch, tensorrt="11.4", tensorrt_cu13="11.4", tensorrt_cu12=None, tensorrt_rtx=None)
    monkeypatch.setattr(room, "_nvidia_driver", lambda: f"driver 550.54, CUDA {cuda}")
    assert of("TensorRT").state is state


def test_a_driver_that_torch_cannot_use(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(room, "_nvidia_driver", lambda: "driver 450.1, CUDA 11.0")
    assert of("GPU").state is State.PROBLEM


def test_nvidia_smi_without_a_table() -> None:
    assert describe_driver("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver") is None
    assert describe_driver("| Driver Version: 580.1 |") == "driver 580.1"


def test_ssh_targets(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text("Host orin xavier\n  HostName 10.0.0.2\nhost *\n  User me\n\nHost !x nano?\n")
    assert room._configured_hosts(config) == ["orin", "xavier"]
    assert room._configured_hosts(tmp_path / "absent") == []


@pytest.mark.skipif(room.shutil.which("ssh") is None, reason="there is no ssh client on this machine")
@pytest.mark.parametrize("host", ["ssh://127.0.0.1:1", "-oProxyCommand=id"])
def test_a_target_that_cannot_be_reached(host: str) -> None:
    finding = of(f"ssh {host}", host)
    assert finding.state is State.PROBLEM
    assert finding.remedy
