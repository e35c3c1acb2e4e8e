"""Fixtures shared by all tests."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest
import torch
from bundle_device import packages_of_a_device

from duskfuse.data.progress import set_quiet
from duskfuse.data.weights import ModelCard, save_weights
from duskfuse.export.export import export
from duskfuse.students.unet import UNetStudent

SHARED = Path(__file__).resolve().parents[2] / "shared"


# One thread before any fixture computes: sums of another number of threads differ in their last bit.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _isolated(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give every test its own duskfuse home, one torch thread and progress messages."""
    torch.set_num_threads(1)  # again: a test may have asked for another number
    set_quiet(False)  # a test of --json leaves the process quiet
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # tests in the background: commands would inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setenv("DUSKFUSE_HOME", str(tmp_path_factory.mktemp("home")))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real pairs beside the checkout; skips the test where it is absent."""
    if not (SHARED / "data").is_dir():
        pytest.skip("the real pairs (../shared/data) are not on this machine")
    return SHARED / "data"


@pytest.fixture(scope="session")
def shared_facts() -> Path:
    """Golden metric values beside the checkout; skips the test where they are absent."""
    if not (SHARED / "facts").is_dir():
        pytest.skip("the golden values (../shared/facts) are not on this machine")
    return SHARED / "facts"


@pytest.fixture(scope="session")
def squeezenet_weights() -> Path:
    """ImageNet SqueezeNet trunk beside the checkout; skips the test where it is absent."""
    path = SHARED / "weights" / "squeezenet1_1_features.safetensors"
    if not path.is_file():
        pytest.skip("the SqueezeNet trunk (../shared/weights) is not on this machine")
    return path


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained student with its card."""
    torch.manual_seed(0)
    student = UNetStudent()
    path = tmp_path_factory.mktemp("student") / "tiny.safetensors"
    save_weights(path, student, ModelCard("unet", student.settings, "luma", "0.1.0", "nothing"))
    return path


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a file for any size, and its archive; not to be changed."""
    folder = tmp_path_factory.mktemp("exported") / "bundle"
    report = export("nano", out=folder, precision=["fp32"], dynamic=True, archive=True)
    assert report.archive == str(folder) + ".tar.gz"
    return folder


@pytest.fixture
def bundle(exported: Path, tmp_path: Path) -> Path:
    """A copy of it to damage."""
    return shutil.copytree(exported, tmp_path / "bundle")


@pytest.fixture(scope="session")
def bare_device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place with the packages that a device has, and no others."""
    return packages_of_a_device(tmp_path_factory.mktemp("device"))
