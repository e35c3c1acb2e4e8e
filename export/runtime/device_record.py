"""What a machine is and how it is set: everything without which a time measured on it means nothing.

On a Jetson: module, L4T, JetPack, TensorRT, the power mode with its name (numbers differ from board to board) and the
clocks. On any Linux machine: processor, governor, memory, versions. What cannot be found is None, and ``missing`` says
why. Nothing is changed: only files are read and programs asked that answer.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

PATIENCE_S = 15
_NOT_A_JETSON = "not a Jetson: there is no /etc/nv_tegra_release"
_POWER_MODEL = re.compile(r"<\s*POWER_MODEL\s+([^>]*)>")
_ATTRIBUTE = re.compile(r"(\w+)=(\S+)")
_CLOCK = re.compile(r"^\s*(\w+):?\s.*?MinFreq=(\d+) MaxFreq=(\d+) CurrentFreq=(\d+)", re.MULTILINE)
_ASKED_PACKAGES = {
    "jetpack": ("nvidia-jetpack",),
    "tensorrt": ("libnvinfer10", "libnvinfer8", "libnvinfer11", "tensorrt"),
}
"""What is wanted from dpkg: the packages that tell it, the first one that is installed counts."""


@dataclass(frozen=True)
class PowerMode:
    """A mode of ``nvpmodel``: what the device limits its cores and clocks to."""

    name: str
    number: Optional[int] = None


@dataclass(frozen=True)
class Clock:
    """A clock's limits and where it stands, in MHz."""

    lowest: float
    highest: float
    now: float

    @property
    def locked(self) -> bool:
        """Whether it can stand nowhere but at its highest."""
        return self.lowest == self.highest


@dataclass
class DeviceRecord:
    """A machine and its settings."""

    module: Optional[str] = None
    """As the device tree names it."""
    l4t: Optional[str] = None
    """Release of NVIDIA's Linux, such as 36.4.3."""
    jetpack: Optional[str] = None
    tensorrt: Optional[str] = None
    power_mode: Optional[PowerMode] = None
    power_modes: Optional[List[PowerMode]] = None
    """All that /etc/nvpmodel.conf knows."""
    clocks: Optional[Dict[str, Clock]] = None
    """Unit (GPU, EMC, cpu0, …): its clock as ``jetson_clocks --show`` gives it."""
    gpu_clock_locked: Optional[bool] = None
    """Whether the GPU's clock is held, as ``jetson_clocks`` does it."""
    system: str = ""
    kernel: str = ""
    processor: Optional[str] = None
    cores: int = 0
    """Cores that this process may use."""
    governor: Optional[str] = None
    memory_mb: Optional[int] = None
    versions: Dict[str, str] = field(default_factory=dict)
    """Package: its version."""
    missing: Dict[str, str] = field(default_factory=dict)
    """Field: why it is None."""

    def to_json(self) -> Dict[str, Any]:
        """The record as plain data."""
        return asdict(self)


def device_record(root: Path = Path("/")) -> DeviceRecord:
    """Describe this machine; ``root`` is where its files are looked for."""
    record = DeviceRecord(
        system=_system(root),
        kernel=platform.release(),
        processor=_processor(root),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        governor=_joined(root.glob("sys/devices/system/cpu/cpufreq/policy*/scaling_governor")),
        memory_mb=_memory_mb(root),
        versions=_versions(),
    )
    if record.governor is None:
        record.missing["governor"] = "the kernel offers no cpufreq here"
    _fill_jetson(record, root)
    return record


def _fill_jetson(record: DeviceRecord, root: Path) -> None:
    release = _text(root / "etc/nv_tegra_release")
    record.module = _text(root / "proc/device-tree/model")
    if record.module is None:
        record.missing["module"] = "there is no device tree: not a Jetson"
    if release is None:
        for name in ("l4t", "jetpack", "power_mode", "power_modes", "clocks", "gpu_clock_locked"):
            record.missing[name] = _NOT_A_JETSON
    else:
        record.l4t = parse_l4t(release)
        if record.l4t is None:
            record.missing["l4t"] = "/etc/nv_tegra_release names no release"
        record.jetpack = _package_version(record, "jetpack")
        _fill_power(record, root)
    record.tensorrt = record.versions.get("tensorrt") or _package_version(record, "tensorrt")


def _fill_power(record: DeviceRecord, root: Path) -> None:
    said = _ask(record, "power_mode", ["nvpmodel", "-q"])
    record.power_mode = parse_power_mode(said) if said else None
    if said and record.power_mode is None:
        record.missing["power_mode"] = "nvpmodel -q names no mode"
    listed = _text(root / "etc/nvpmodel.conf")
    record.power_modes = parse_power_modes(listed) if listed else None
    if record.power_modes is None:
        record.missing["power_modes"] = "there is no /etc/nvpmodel.conf"
    said = _ask(record, "clocks", ["jetson_clocks", "--show"])
    record.clocks = (parse_clocks(said) or None) if said else None
    if said and record.clocks is None:
        record.missing["clocks"] = "jetson_clocks --show gave no clocks: it may need root"
    if record.clocks and "GPU" in record.clocks:
        record.gpu_clock_locked = record.clocks["GPU"].locked
    else:
        record.missing["gpu_clock_locked"] = record.missing.get("clocks", "jetson_clocks --show names no GPU")


def parse_l4t(release: str) -> Optional[str]:
    """The release in the text of /etc/nv_tegra_release.

    >>> parse_l4t("# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: t186ref, EABI: aarch64")
    '35.4.1'
    """
    found = re.search(r"R(\d+) \(\w+\), REVISION: (\d+(?:\.\d+)*)", release)
    return f"{found.group(1)}.{found.group(2)}" if found else None


def parse_power_mode(said: str) -> Optional[PowerMode]:
    """The mode that ``nvpmodel -q`` names; its number stands alone on the next line.

    >>> parse_power_mode("NV Power Mode: 15W\\n0\\n")
    PowerMode(name='15W', number=0)
    """
    found = re.search(r"NV Power Mode:\s*(\S+)(?:\s+(\d+)\s*$)?", said, re.MULTILINE)
    if found is None:
        return None
    return PowerMode(found.group(1), None if found.group(2) is None else int(found.group(2)))


def parse_power_modes(conf: str) -> List[PowerMode]:
    """The modes of an nvpmodel.conf, in its order; comments are left out."""
    lines = "\n".join(line for line in conf.splitlines() if not line.lstrip().startswith("#"))
    found = [dict(_ATTRIBUTE.findall(attributes)) for attributes in _POWER_MODEL.findall(lines)]
    return [
        PowerMode(mode["NAME"], int(mode["ID"])) for mode in found if "NAME" in mode and mode.get("ID", "").isdigit()
    ]


def parse_clocks(shown: str) -> Dict[str, Clock]:
    """The clocks of ``jetson_clocks --show``; processor cores are given in kHz there, all other units in Hz."""
    clocks = {}
    for name, *values in _CLOCK.findall(shown):
        scale = 1e3 if name.startswith("cpu") else 1e6
        clocks[name] = Clock(*(int(value) / scale for value in values))
    return clocks


def _ask(record: DeviceRecord, name: str, command: Sequence[str]) -> Optional[str]:
    """What a program says; where it needs root, through sudo if that needs no password."""
    if shutil.which(command[0]) is None:
        record.missing[name] = f"{command[0]} is not on this machine"
        return None
    said = _run(command)
    if said is None and shutil.which("sudo") is not None:
        said = _run(["sudo", "-n", *command])
    if said is None:
        record.missing[name] = f"{' '.join(command)} failed: it may need root"
    return said


def _run(command: Sequence[str]) -> Optional[str]:
    try:
        done = subprocess.run(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=PATIENCE_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else None


def _package_version(record: DeviceRecord, name: str) -> Optional[str]:
    if shutil.which("dpkg-query") is None:
        record.missing[name] = "there is no dpkg to ask"
        return None
    for package in _ASKED_PACKAGES[name]:
        said = _run(["dpkg-query", "-W", "-f", "${Version}", package])
        if said:
            return said.strip()
    record.missing[name] = f"dpkg knows no installed {' or '.join(_ASKED_PACKAGES[name])}"
    return None


def _versions() -> Dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in ("numpy", "cv2", "onnxruntime", "tensorrt"):
        try:
            versions[package] = str(__import__(package).__version__)
        except Exception:  # a half-installed package can raise anything on import
            continue
    return versions


def _system(root: Path) -> str:
    named = re.search(r'^PRETTY_NAME="?([^"\n]+)', _text(root / "etc/os-release") or "", re.MULTILINE)
    system = f"{platform.system()} {platform.machine()}"
    return f"{named.group(1)}, {system}" if named else system


def _processor(root: Path) -> Optional[str]:
    found = re.search(r"^(?:model name|Model|Hardware)\s*:\s*(.+)$", _text(root / "proc/cpuinfo") or "", re.MULTILINE)
    return found.group(1).strip() if found else platform.processor() or platform.machine() or None


def _memory_mb(root: Path) -> Optional[int]:
    found = re.search(r"^MemTotal:\s*(\d+) kB", _text(root / "proc/meminfo") or "", re.MULTILINE)
    return int(found.group(1)) // 1024 if found else None


def _joined(files: Any) -> Optional[str]:
    """The different contents of several small files."""
    found = sorted({text for text in map(_text, files) if text})
    return ", ".join(found) or None


def _text(path: Path) -> Optional[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0\n ") or None
    except OSError:
        return None
