"""The record beside every engine: what it was built from, by which TensorRT, on which GPU.

An engine is machine code for one GPU and one TensorRT release; a foreign one crashes the program that loads it instead
of being refused (ultralytics issue 18730: an engine of a PC, loaded on an Orin Nano, ends in a segmentation fault). So
a record is checked before TensorRT sees a byte of the engine. It protects against mistakes, not against someone who can
write both files.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Union

from .errors import DeviceError

RECORD_FORMAT = 1
_L4T_FILE = Path("/etc/nv_tegra_release")


class ForeignEngineError(DeviceError):
    """The engine is altered, of another file, or of another machine or TensorRT."""


class EngineRecord(NamedTuple):
    """What the sidecar of an engine says."""

    onnx: str
    """Name of the file it was built from."""
    onnx_sha256: str
    engine_sha256: str
    tensorrt: str
    gpu: str
    compute_capability: str
    multiprocessors: int
    l4t: Optional[str]
    """Release of Jetson Linux; None on other machines."""
    precision: str
    network_flags: List[str]
    builder_flags: List[str]
    sizes: Optional[List[str]]
    """Smallest, usual and largest WIDTHxHEIGHT of an engine for several sizes; None for one."""
    dla_core: Optional[int]
    seconds: float
    """How long the build took."""


def record_path(engine_path: Path) -> Path:
    """The sidecar of an engine: its name with ``.json`` behind."""
    return engine_path.with_name(engine_path.name + ".json")


def write_record(engine_path: Path, record: EngineRecord) -> None:
    """Write the sidecar of an engine."""
    content = {"format": RECORD_FORMAT, **record._asdict()}
    replace_file(record_path(engine_path), json.dumps(content, indent=2).encode())


def read_record(engine_path: Path) -> EngineRecord:
    """Read the sidecar of an engine; raises ForeignEngineError where it is missing or not whole."""
    path = record_path(engine_path)
    try:
        content: Dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("format") != RECORD_FORMAT:
            raise ValueError("another format")
        return EngineRecord(**content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ForeignEngineError(
            f"{path.name} cannot be read ({error})",
            rule="an engine without its record may be of another machine, and then crashes",
            remedy=_rebuild(engine_path),
        ) from error


def check_record(record: EngineRecord, engine_path: Path, **now: Union[str, int]) -> None:
    """Compare fields of a record with what is there now; raises ForeignEngineError naming all that differ."""
    recorded = record._asdict()
    differing = [
        f"{_LABELS[field]} is {_short(value)}, was {_short(recorded[field])} at the build"
        for field, value in now.items()
        if recorded[field] != value
    ]
    if differing:
        raise ForeignEngineError(
            f"{engine_path.name} is not an engine for this place: {'; '.join(differing)}",
            rule="an engine runs only with the file, TensorRT and GPU it was built from",
            remedy=_rebuild(engine_path, record.onnx),
        )


_LABELS = {
    "onnx_sha256": "the ONNX file",
    "engine_sha256": "the engine",
    "tensorrt": "TensorRT",
    "gpu": "the GPU",
    "compute_capability": "the compute capability",
    "multiprocessors": "the number of multiprocessors",
}


def _short(value: Any) -> str:
    text = str(value)
    return text[:12] if re.fullmatch(r"[0-9a-f]{64}", text) else text


def _rebuild(engine_path: Path, onnx: str = "FILE.onnx") -> str:
    return f"build it again here: python -m duskfuse_runtime build {onnx} --engine {engine_path.name}"


def sha256(content: bytes) -> str:
    """Hash of bytes, as in the record."""
    return hashlib.sha256(content).hexdigest()


def l4t_release() -> Optional[str]:
    """Release of Jetson Linux such as ``36.4.3``; None on other machines."""
    try:
        text = _L4T_FILE.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", text)
    return f"{found[1]}.{found[2]}" if found else None


def replace_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: temporary name, sync, rename. Missing folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with unfinished.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(str(unfinished), str(path))
    finally:
        if unfinished.exists():
            unfinished.unlink()
