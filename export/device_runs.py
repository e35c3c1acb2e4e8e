"""The JSON documents that the device runtime's ``bench`` writes, read back and checked, and their comparison.

A document comes from another machine and may be old or damaged: what is needed is checked, and anything else raises
InputError with the name of the file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duskfuse.data.errors import InputError
from duskfuse.export.runtime.bench import FORMAT, VERSION
from duskfuse.export.runtime.tegrastats import INPUT_RAILS
from duskfuse.export.trtexec import Layer, Summary, parse_export_profile, parse_output

if TYPE_CHECKING:
    from rich.table import Table

_TIMES = ("mean", "p50", "p90", "p99", "jitter", "variation", "std", "min", "max", "count")


@dataclass(frozen=True)
class RunResult:
    """One network on one device."""

    model: str
    sha256: str
    precision: str
    backend: str
    size: str
    transfers: str
    flags: Mapping[str, Any]
    network: Mapping[str, float]
    """Milliseconds by name: p50, p90, p99, mean, jitter, …; ``variation`` is a ratio."""
    compute: Mapping[str, float] | None
    """Of an engine, the GPU's own time without copies."""
    whole: Mapping[str, float] | None
    fps: float | None
    seconds: float
    energy_mj: Mapping[str, Mapping[str, float | None]]
    """Rail: ``per_picture`` and ``above_idle``; empty where power was not measured."""
    seen: Mapping[str, Any]
    warnings: tuple[str, ...]
    times_ms: Sequence[float]
    """Of the network, one after the other."""
    trtexec: Summary | None = None
    layers: tuple[Layer, ...] = ()
    """Of trtexec's profile, made in a run of its own."""

    @property
    def input_rail(self) -> str | None:
        """The rail that carries everything the module draws, where it has one."""
        return next((rail for rail in INPUT_RAILS if rail in self.energy_mj), None)


@dataclass(frozen=True)
class DeviceRun:
    """One document: a device and what was measured on it."""

    name: str
    """The ssh target, or the file's name."""
    made: str
    device: Mapping[str, Any]
    results: tuple[RunResult, ...]
    failures: tuple[tuple[str, str], ...] = ()
    """Network, and why it gave no numbers."""
    path: Path | None = None
    document: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def title(self) -> str:
        """The module's name, or the processor's where there is no module."""
        return str(self.device.get("module") or self.device.get("processor") or "unknown machine")

    @property
    def power_mode(self) -> str:
        """The name of the power mode; empty where there is none."""
        mode = self.device.get("power_mode")
        return str(mode.get("name", "")) if isinstance(mode, Mapping) else ""

    def table(self) -> Table:
        """The results for a terminal."""
        from rich.table import Table

        mode = f", mode {self.power_mode}" if self.power_mode else ""
        table = Table(
            title=f"{self.name}: {self.title}{mode}", caption="Milliseconds; whole: 8-bit pictures in and out."
        )
        table.add_column("network", overflow="fold")
        for name in ("size", "p50", "p90", "p99", "whole p50", "per s", "mJ per picture"):
            table.add_column(name, justify="right", no_wrap=True)
        for result in self.results:
            times = [f"{result.network[name]:.2f}" for name in ("p50", "p90", "p99")]
            whole = "" if result.whole is None else f"{result.whole['p50']:.2f}"
            rate = "" if result.fps is None else f"{result.fps:.1f}"
            rail = result.input_rail
            energy = "" if rail is None else f"{result.energy_mj[rail]['per_picture']:.1f}"
            table.add_row(f"{result.model} ({result.backend})", result.size, *times, whole, rate, energy)
        return table


def read_run(path: Path) -> DeviceRun:
    """Read a file; raises InputError for one that is no document of a device benchmark."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error})", remedy="name a JSON file of a device benchmark") from None
    return read_document(document, path.name, path)


def read_document(document: Any, name: str, path: Path | None = None) -> DeviceRun:
    """Check a document; ``name`` stands for it in messages. Raises InputError where it is none."""
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise InputError(
            f"{name} is no document of a device benchmark",
            rule=f"its format is {FORMAT!r}",
            remedy="write one with `duskfuse bench BUNDLE --host DEVICE`",
        )
    if document.get("version") != VERSION:
        raise InputError(
            f"{name} has version {document.get('version')!r}",
            rule=f"this program reads version {VERSION}",
            remedy="measure again, or use the duskfuse that wrote it",
        )
    try:
        results = tuple(_result(entry) for entry in document["results"])
        failures = tuple((str(entry["model"]), str(entry["reason"])) for entry in document["failures"])
        device, made = dict(document["device"]), str(document["made"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{name} is damaged ({error!r})", remedy="measure again") from None
    host = str(document.get("host") or Path(name).stem)
    return DeviceRun(host, made, device, results, failures, path, document)


def incomparable(runs: Sequence[DeviceRun]) -> list[str]:
    """Why the results of several documents cannot be compared as they stand; empty where they can."""
    results = [result for run in runs for result in run.results]
    found = []
    for what, values in (
        ("The sizes differ", {result.size for result in results}),
        ("What was timed differs", {_timed(result) for result in results}),
        ("The rails of power differ", {result.input_rail or "parts only" for result in results if result.energy_mj}),
    ):
        if len(values) > 1:
            found.append(f"{what}: {'; '.join(sorted(values))}.")
    by_name: dict[tuple[str, str], set[str]] = {}
    for result in results:
        by_name.setdefault((result.model, result.size), set()).add(result.sha256)
    found += [f"{name} is not the same file everywhere." for (name, _), sums in by_name.items() if len(sums) > 1]
    return found + _unequal_devices(runs)


def _timed(result: RunResult) -> str:
    transfers = {"none": "on the CPU", "included": "with transfers", "excluded": "without transfers"}
    graph = result.flags.get("cuda_graph")
    drawn = "" if graph is None else ", CUDA graph" if graph else ", no CUDA graph"
    return f"{transfers.get(result.transfers, result.transfers)}{drawn}"


def _unequal_devices(runs: Sequence[DeviceRun]) -> list[str]:
    found = []
    modules: dict[str, list[DeviceRun]] = {}
    for run in runs:
        modules.setdefault(run.title, []).append(run)
    for title, same in modules.items():
        for what, values in (
            ("power modes", {run.power_mode for run in same}),
            ("releases of TensorRT", {str(run.device.get("tensorrt") or "") for run in same}),
        ):
            if len(values) > 1:
                found.append(f"{title} ran with different {what}: {', '.join(sorted(v or 'unknown' for v in values))}.")
    unlocked = [run.name for run in runs if run.device.get("gpu_clock_locked") is False]
    if unlocked and len(unlocked) < len(runs):
        found.append(f"The GPU's clock was not locked on {', '.join(unlocked)}.")
    return found


def _result(entry: Mapping[str, Any]) -> RunResult:
    times = [float(value) for value in entry["times_ms"]["network"]]
    whole, compute = entry["whole"], entry["steps"].get("compute")
    raw = entry.get("trtexec")
    summary = parse_output(str(raw["output"])) if raw else None
    result = RunResult(
        model=str(entry["model"]),
        sha256=str(entry["sha256"]),
        precision=str(entry["precision"]),
        backend=str(entry["backend"]),
        size=str(entry["size"]),
        transfers=str(entry["transfers"]),
        flags=dict(entry["flags"]),
        network=_timing(entry["network"]),
        compute=None if compute is None else _timing(compute),
        whole=None if whole is None else _timing(whole),
        fps=None if entry["fps"] is None else _finite(entry["fps"]),
        seconds=_finite(entry["seconds"]),
        energy_mj={str(rail): dict(energy) for rail, energy in (entry["energy_mj"] or {}).items()},
        seen=dict(entry["seen"] or {}),
        warnings=tuple(map(str, entry["warnings"])),
        times_ms=times,
        trtexec=summary,
        layers=() if raw is None or summary is None else parse_export_profile(str(raw["profile"])) or summary.layers,
    )
    if not all(map(math.isfinite, times)):
        raise ValueError("a time that is no number")
    return result


def _timing(entry: Mapping[str, Any]) -> dict[str, float]:
    return {name: _finite(entry[name]) for name in _TIMES}


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"a measurement of {value}")
    return number
