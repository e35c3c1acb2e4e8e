"""The verb ``doctor``: what this machine has, what is missing, and what to do about it.

Every finding is one line: a topic, what was seen, and a remedy where there is one. Nothing is changed and nothing is
asked of the network, unless ssh targets are named.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

PACKAGES = (
    "torch",
    "torchvision",
    "numpy",
    "opencv-python",
    "kornia",
    "segment-anything",
    "onnx",
    "onnxruntime",
    "pyarrow",
)
EXTRAS = {
    "tensorboard": ("tensorboard", "training curves in TensorBoard"),
    "transformers": ("transformers", "SAM and SAM 2 as mask sources from a model folder"),
    "timm": ("mobile-sam", "MobileSAM checkpoints as a mask source"),
    "diffusers": ("diffusion", "diffusion teachers"),
    "ray": ("cluster", "--engine ray: the offline stage on several machines"),
}
"""Optional package: the extra of duskfuse that brings it, and what for."""
OPENCV_WHEELS = (
    "opencv-python",
    "opencv-python-headless",
    "opencv-contrib-python",
    "opencv-contrib-python-headless",
)
TENSORRT_WHEELS = ("tensorrt", "tensorrt-cu12", "tensorrt-cu13", "tensorrt-rtx")
LITTLE_DISK = 5 * 10**9
"""Free bytes under which a cache of a middle-sized dataset (masks and teacher pictures of 10,000 pairs) fails."""
_SSH_SECONDS = 8


class State(StrEnum):
    """How a finding is to be taken."""

    FINE = "fine"
    OPTIONAL = "optional"
    """Missing, and needed by some commands only."""
    PROBLEM = "problem"


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    topic: str
    seen: str
    state: State = State.FINE
    remedy: str = ""


@dataclass(frozen=True)
class DoctorReport:
    """All findings."""

    findings: tuple[Finding, ...]

    @property
    def problems(self) -> list[Finding]:
        """What should be mended."""
        return [finding for finding in self.findings if finding.state is State.PROBLEM]

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return {"findings": [asdict(finding) for finding in self.findings], "problems": len(self.problems)}

    def table(self) -> Table:
        """The findings for people, problems marked."""
        from rich.markup import escape
        from rich.table import Table

        colours = {State.FINE: "green", State.OPTIONAL: "yellow", State.PROBLEM: "bold red"}
        table = Table("", "what", "seen", "remedy", box=None, pad_edge=False)
        for finding in self.findings:
            mark = f"[{colours[finding.state]}]{finding.state}[/]"
            table.add_row(mark, finding.topic, escape(finding.seen), escape(finding.remedy))
        return table


def doctor(hosts: Sequence[str] = ()) -> DoctorReport:
    """Look at this machine, and at the ssh targets ``hosts`` (as ssh takes them: ``user@host`` or an alias)."""
    return DoctorReport(
        (
            *_machine(),
            *_packages(),
            *_opencv(),
            *_torch(),
            *_disk(),
            *_sam_checkpoints(),
            *_tensorrt(),
            *_extras(),
            *_ssh(hosts),
        )
    )


def _machine() -> Iterator[Finding]:
    from duskfuse import __version__

    yield Finding("duskfuse", __version__)
    yield Finding("python", sys.version.split()[0])
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    yield Finding("machine", f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GiB")
    jetson = Path("/etc/nv_tegra_release")
    if jetson.is_file():
        yield Finding("Jetson", jetson.read_text(errors="replace").splitlines()[0].lstrip("# "))


def _packages() -> Iterator[Finding]:
    for name in PACKAGES:
        version = _version(name)
        if version is None and not (name == "opencv-python" and _opencv_wheels()):
            yield Finding(name, "missing", State.PROBLEM, "pip install duskfuse again")
        elif version is not None:
            yield Finding(name, version)


def _opencv() -> Iterator[Finding]:
    wheels = _opencv_wheels()
    if len(wheels) > 1:
        keep = "opencv-python" if "opencv-python" in wheels else wheels[0]
        yield Finding(
            "OpenCV wheels",
            f"{' and '.join(wheels)} overwrite each other's files",
            State.PROBLEM,
            f"pip uninstall -y {' '.join(wheels)}, then pip install {keep}",
        )


def _opencv_wheels() -> list[str]:
    return [name for name in OPENCV_WHEELS if _version(name)]


def _torch() -> Iterator[Finding]:
    import torch

    try:
        import torchvision  # noqa: F401  its compiled operators fail here where it was built for another torch
    except (ImportError, RuntimeError, AttributeError) as error:
        yield Finding(
            "torchvision",
            f"does not fit torch {torch.__version__} ({str(error).splitlines()[0]})",
            State.PROBLEM,
            "install torch and torchvision together, of one build: pip install --force-reinstall torch torchvision",
        )
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        found = torch.cuda.get_device_properties(index)
        yield Finding(f"GPU {index}", f"{found.name}, {found.total_memory / 2**30:.0f} GiB")
    if torch.cuda.is_available():
        return
    driver = _nvidia_driver()
    if driver is None:
        yield Finding("GPU", "none: networks run on the CPU")
    elif torch.version.cuda is None:
        yield Finding(
            "GPU", f"there ({driver}), but this torch is built for the CPU", State.PROBLEM, "pip install torch anew"
        )
    else:
        yield Finding(
            "GPU",
            f"there ({driver}), but torch for CUDA {torch.version.cuda} cannot use it",
            State.PROBLEM,
            "update the driver, or install the torch build of the driver's CUDA version",
        )


def _disk() -> Iterator[Finding]:
    from duskfuse.data.priors.cache import home

    folder = home()
    existing = next(place for place in (folder, *folder.parents) if place.is_dir())
    free = shutil.disk_usage(existing).free
    if not os.access(existing, os.W_OK):
        yield Finding("caches", f"{folder} cannot be written", State.PROBLEM, "set DUSKFUSE_HOME to a folder of yours")
    elif free < LITTLE_DISK:
        remedy = "make room, or set DUSKFUSE_HOME to a larger disk"
        yield Finding("caches", f"{folder}, {free / 1e9:.1f} GB free", State.PROBLEM, remedy)
    else:
        yield Finding("caches", f"{folder}, {free / 1e9:.0f} GB free")


def _sam_checkpoints() -> Iterator[Finding]:
    from duskfuse.data.images import file_sha256
    from duskfuse.data.priors.cache import home
    from duskfuse.data.priors.sam import PUBLISHED

    published = {item.file: (model, item.sha256) for model, item in PUBLISHED.items()}
    files = sorted(path for path in (home() / "weights").glob("*") if path.suffix in (".pth", ".pt", ".safetensors"))
    for path in files:
        digest, (model, expected) = file_sha256(path), published.get(path.name, (None, ""))
        if model is None:
            yield Finding("weights", f"{path.name}, sha256 {digest[:16]}…")
        elif digest == expected:
            yield Finding("SAM checkpoint", f"{path.name} ({model}), the published file")
        else:
            seen = f"{path.name}: sha256 {digest[:16]}… is not that of the published {model} ({expected[:16]}…)"
            yield Finding("SAM checkpoint", seen, State.PROBLEM, f"remove {path} and download it again")
    if not any(path.name in published for path in files):
        yield Finding(
            "SAM checkpoint",
            f"none in {home() / 'weights'}: masks come from classical regions",
            State.OPTIONAL,
            "duskfuse cache-masks DATA --source sam downloads ViT-B (375 MB); --checkpoint names any other",
        )


def _tensorrt() -> Iterator[Finding]:
    wheels = {name: version for name in TENSORRT_WHEELS if (version := _version(name))}
    if not wheels:
        yield Finding(
            "TensorRT",
            "not installed: engines are built on the device",
            State.OPTIONAL,
            "on a Jetson it comes with JetPack",
        )
        return
    seen = ", ".join(f"{name} {version}" for name, version in wheels.items())
    driver = _nvidia_driver()
    needed = max((int(name[-2:]) for name in wheels if name[-2:].isdigit()), default=None)
    if driver is None:
        yield Finding("TensorRT", f"{seen}; no NVIDIA driver, so engines can be parsed but not run here")
    elif needed is not None and (cuda := _driver_cuda(driver)) is not None and cuda < needed:
        yield Finding(
            "TensorRT",
            f"{seen} is built for CUDA {needed}, the driver is for CUDA {cuda} ({driver})",
            State.PROBLEM,
            f"update the driver, or pip install tensorrt-cu{cuda}",
        )
    else:
        yield Finding("TensorRT", f"{seen}; {driver}")


def _nvidia_driver() -> str | None:
    """``driver 550.54, CUDA 12.4`` as nvidia-smi tells it; None where there is none."""
    if shutil.which("nvidia-smi") is None:
        return None
    try:
        said = subprocess.run(["nvidia-smi"], capture_output=True, text=True, timeout=20, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    return describe_driver(said)


def describe_driver(nvidia_smi: str) -> str | None:
    """What the header of nvidia-smi's table says; None where it has none.

    >>> describe_driver("| NVIDIA-SMI 550.54   Driver Version: 550.54   CUDA Version: 12.4 |")
    'driver 550.54, CUDA 12.4'
    """
    driver = re.search(r"Driver Version:\s*([\d.]+)", nvidia_smi)
    cuda = re.search(r"CUDA Version:\s*([\d.]+)", nvidia_smi)
    if driver is None:
        return None
    return f"driver {driver[1]}" + (f", CUDA {cuda[1]}" if cuda else "")


def _driver_cuda(driver: str) -> int | None:
    found = re.search(r"CUDA (\d+)", driver)
    return int(found[1]) if found else None


def _extras() -> Iterator[Finding]:
    for package, (extra, purpose) in EXTRAS.items():
        version = _version(package)
        if version is None:
            yield Finding(package, f"not installed ({purpose})", State.OPTIONAL, f"pip install 'duskfuse[{extra}]'")
        elif package == "ray" and os.environ.get("RAY_ADDRESS"):
            yield Finding(package, f"{version}, cluster {os.environ['RAY_ADDRESS']}")
        else:
            yield Finding(package, version)


def _ssh(hosts: Sequence[str]) -> Iterator[Finding]:
    if shutil.which("ssh") is None:
        remedy = "install the OpenSSH client to benchmark on another machine"
        yield Finding("ssh", "not installed", State.PROBLEM if hosts else State.OPTIONAL, remedy)
        return
    known = _configured_hosts(Path.home() / ".ssh" / "config")
    if not hosts:
        seen = f"targets in ~/.ssh/config: {', '.join(known)}" if known else "installed, no targets in ~/.ssh/config"
        yield Finding("ssh", seen)
    for host in hosts:
        yield _reach(host)


def _configured_hosts(config: Path) -> list[str]:
    """Names after ``Host`` without wildcards."""
    try:
        lines = config.read_text(errors="replace").splitlines()
    except OSError:
        return []
    words = (line.split() for line in lines)
    names = (name for line in words if line and line[0].lower() == "host" for name in line[1:])
    return [name for name in names if not set(name) & set("*?!")]


def _reach(host: str) -> Finding:
    """Whether ``host`` answers without a password, and what it says it is."""
    remedy = f"connect once by hand (ssh {host}) and install your key (ssh-copy-id {host})"
    if host.startswith("-"):
        return Finding(f"ssh {host}", "no host name", State.PROBLEM, "give user@host or an alias of ~/.ssh/config")
    ask = "uname -sm; python3 --version; cat /etc/nv_tegra_release 2>/dev/null | head -n 1"
    command = ["ssh", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={_SSH_SECONDS}", host, ask]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=3 * _SSH_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return Finding(f"ssh {host}", "no answer", State.PROBLEM, remedy)
    if said.returncode:
        reason = (said.stderr.strip().splitlines() or ["no reason given"])[-1]
        return Finding(f"ssh {host}", reason, State.PROBLEM, remedy)
    return Finding(f"ssh {host}", ", ".join(line.lstrip("# ") for line in said.stdout.splitlines()))


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
