"""Run NVIDIA's ``trtexec`` on this device, so that releases can be compared.

Up to TensorRT 10 trtexec measures without CUDA graph, with sleeping waits and with transfers; from 11 on with CUDA
graph, busy waits and without transfers. Here all run as 11 does by default, and every setting is said explicitly where
the program has a flag for it. Which flags it has is read from its help, not concluded from its version.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, List, Optional

from .errors import DeviceError
from .timings import Timing

USUAL_PLACE = Path("/usr/src/tensorrt/bin/trtexec")
_WARM_UP_MS = 500
_LEAST_RUNS = 50
_PATIENCE_S = 3600
"""For a build, which takes minutes on a small module."""
_KEPT_CHARACTERS = 40000
_EQUAL = {"cuda_graph": "--useCudaGraph", "spin_wait": "--useSpinWait", "no_transfers": "--noDataTransfers"}
_STRONG_FROM = 101200
"""The release from which strong typing is complete on Jetson."""


@dataclass(frozen=True)
class Trtexec:
    """The program, and what it offers."""

    path: str
    version: Optional[int]
    """As the program prints it: 8502 is 8.5.2, 100300 is 10.3.0."""
    flags: List[str] = field(default_factory=list)

    def command(self, model: Path, precision: str, seconds: float, folder: Path, shapes: str = "") -> List[str]:
        """The command that builds (or loads ``NAME.engine`` beside the model) and measures."""
        engine = model.with_suffix(".engine")
        source = [f"--loadEngine={engine}"] if engine.is_file() else [f"--onnx={model}", *self._precision(precision)]
        source += [f"--shapes={shapes}"] if shapes else []
        wanted = [f"--warmUp={_WARM_UP_MS}", f"--duration={max(1, round(seconds))}", f"--iterations={_LEAST_RUNS}"]
        files = [f"--exportTimes={folder / 'times.json'}"]
        if "--separateProfileRun" in self.flags:  # layers timed in the same run would slow it down
            files += [f"--exportProfile={folder / 'profile.json'}", "--separateProfileRun"]
        return [self.path, *source, *wanted, *(flag for flag in _EQUAL.values() if flag in self.flags), *files]

    def settings(self) -> Dict[str, str]:
        """Each of the settings that must be equal: on, and whether that was said or is the default."""
        return {name: "stated" if flag in self.flags else "by default" for name, flag in _EQUAL.items()}

    def _precision(self, precision: str) -> List[str]:
        if precision == "fp16" and "--stronglyTyped" in self.flags and (self.version or 0) >= _STRONG_FROM:
            return ["--stronglyTyped"]
        wanted = {"fp16": ["--fp16"], "int8": ["--int8", "--fp16"]}.get(precision, [])
        return [flag for flag in wanted if flag in self.flags]


@dataclass(frozen=True)
class TrtexecRun:
    """One finished run."""

    command: List[str]
    output: str
    """What it printed, cut at the beginning where it is long."""
    settings: Dict[str, str]
    compute_ms: List[float]
    """GPU time of every query; empty where the program exported none."""
    profile: str
    """The text of ``--exportProfile``: not always valid JSON."""


def find_trtexec() -> Trtexec:
    """Find the program and ask it for its flags; raises DeviceError where there is none."""
    path = shutil.which("trtexec") or (str(USUAL_PLACE) if USUAL_PLACE.is_file() else None)
    if path is None:
        raise DeviceError(
            "there is no trtexec on this machine",
            f"it is looked for on the PATH and at {USUAL_PLACE}",
            "sudo apt-get install libnvinfer-bin",
        )
    return read_help(path, _said([path, "--help"], 60))


def read_help(path: str, text: str) -> Trtexec:
    """What the help of trtexec tells of it."""
    version = re.search(r"\[TensorRT v(\d+)\]", text)
    flags = sorted(set(re.findall(r"(?<![\w-])--[A-Za-z]\w+", text)))
    return Trtexec(path, int(version.group(1)) if version else None, flags)


def run_trtexec(program: Trtexec, model: Path, precision: str, seconds: float, shapes: str = "") -> TrtexecRun:
    """Measure one file, at ``shapes`` (``name:1x1xHxW,…``) where it takes any size.

    Raises DeviceError with trtexec's own words where it fails.
    """
    with tempfile.TemporaryDirectory(prefix="duskfuse-trtexec-") as name:
        command = program.command(model, precision, seconds, Path(name), shapes)
        said = _said(command, _PATIENCE_S)
        if "&&&& FAILED" in said or "&&&& PASSED" not in said:
            errors = [line.partition("[E]")[2].strip() for line in said.splitlines() if "[E]" in line]
            raise DeviceError(f"trtexec fails on {model.name}", errors[0] if errors else "it printed no reason")
        times, profile = _read(Path(name) / "times.json"), _read(Path(name) / "profile.json")
    return TrtexecRun(command, said[-_KEPT_CHARACTERS:], program.settings(), _compute_times(times), profile)


def timing_of(run: TrtexecRun) -> Optional[Timing]:
    """The summary of the exported times, None where there are none."""
    return Timing.of(run.compute_ms) if run.compute_ms else None


def _compute_times(text: str) -> List[float]:
    try:
        entries = json.loads(text)
        return [float(entry["computeMs"]) for entry in entries]
    except (ValueError, KeyError, TypeError):
        return []


def _said(command: List[str], patience_s: float) -> str:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=patience_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise DeviceError(f"{command[0]} has not ended within {patience_s:.0f} s") from error
    except OSError as error:
        raise DeviceError(f"{command[0]} does not start ({error.strerror})") from error
    return done.stdout.decode("utf-8", "replace")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
