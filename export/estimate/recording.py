"""What was measured on a device, and constants fitted to it.

A file of trtexec (``--exportTimes``, ``--exportProfile``) is of one network; the JSON file of a device benchmark may be
of several. Times give the whole network only; a profile gives every layer under the names of its ONNX nodes, and so
tells arithmetic, traffic and fixed cost apart.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from duskfuse.data.atomic import write_atomically
from duskfuse.data.errors import InputError
from duskfuse.export.device_runs import DeviceRun, RunResult, read_document
from duskfuse.export.estimate.fit import LIMITS, Latency
from duskfuse.export.estimate.kernels import Kernel
from duskfuse.export.estimate.modules import JetsonModule, module_named
from duskfuse.export.estimate.roofline import Constants
from duskfuse.export.runtime.bench import FORMAT as DEVICE_FORMAT
from duskfuse.export.trtexec import Layer, parse_export_profile, parse_export_times

FORMAT = "duskfuse estimate constants 1"
TOTAL_SPREAD, LAYER_SPREAD = 0.02, 0.3
LEAST_MATCHED = 0.5
"""Share of a profile's time that must belong to layers of the network, or it is a profile of another."""
_NEIGHBOUR = r"[\w./:]"
"""Characters that go on with the name of a node."""


@dataclass(frozen=True)
class Recording:
    """The times of one network, batch 1, in milliseconds."""

    total_ms: float
    layers: tuple[tuple[str, float], ...] = ()
    """TensorRT's layers in their order, where they were profiled."""


@dataclass(frozen=True)
class DeviceRecordings:
    """What a device benchmark measured on the GPU."""

    by_file: Mapping[tuple[str, str], Recording]
    """By the SHA-256 of the ONNX file and its size as ``WIDTHxHEIGHT``."""
    models: tuple[str, ...]
    """The files' names."""

    def of(self, sha256: str | None, size: str, name: str) -> Recording:
        """The recording of a file, None for a network that is none; raises InputError where there is no recording."""
        found = None if sha256 is None else self.by_file.get((sha256, size))
        if found is None:
            raise InputError(
                f"{name} {size} is not in the recording of {', '.join(self.models)}",
                rule="constants are fitted to the very ONNX file that was measured on the device's GPU",
                remedy="name one of these files, with --save FILE; then give FILE as --measured for other models",
            )
        return found


@dataclass(frozen=True)
class FittedModule:
    """Constants that were fitted on one module."""

    module: str
    constants: Constants
    source: str
    """What they were fitted to."""

    def save(self, path: Path) -> None:
        """Write them as a file that `read_measured` reads; raises InputError where there is one."""
        if path.exists():
            raise InputError(f"{path} exists", rule="nothing is overwritten unasked", remedy="give another name")
        write_atomically(path, json.dumps({"format": FORMAT, **asdict(self)}, indent=2, allow_nan=False))


def read_measured(path: Path) -> Recording | DeviceRecordings | FittedModule:
    """Read a file of trtexec, of a device benchmark or of `FittedModule.save`; raises InputError for any other."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error})", remedy="name a JSON file of a device") from None
    content = _object(text)
    if content.get("format") == DEVICE_FORMAT:
        return _device_recordings(read_document(content, path.name))
    try:
        if content.get("format") == FORMAT:
            return _fitted(content)
        if times := parse_export_times(text).get("computeMs"):
            return Recording(_positive(median(times)))
        if layers := parse_export_profile(text):
            return Recording(_positive(sum(_milliseconds(layer) for layer in layers)), _named(layers))
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is damaged ({error!r})", remedy="record or fit again") from None
    raise InputError(
        f"{path} is no recording",
        rule="it is written by trtexec --exportTimes=FILE or --exportProfile=FILE, by `duskfuse bench --host`, or by "
        "--save of this command",
        remedy="name such a file",
    )


def latencies(recording: Recording, kernels: Sequence[Kernel], module: JetsonModule) -> list[Latency]:
    """Turn a recording into what is fitted: the whole network and, from a profile, the layers that it names.

    TensorRT's layers and ours that share a node are taken together. Raises InputError for a profile of another network.
    """
    whole = Latency(tuple(kernels), module, recording.total_ms, TOTAL_SPREAD)
    if not recording.layers:
        return [whole]
    matched = [
        Latency(tuple(kernels[index] for index in sorted(ours)), module, ms, LAYER_SPREAD)
        for ours, ms in _matched(recording.layers, kernels)
        if ms > 0
    ]
    share = sum(item.ms for item in matched) / sum(ms for _, ms in recording.layers)
    if share < LEAST_MATCHED:
        raise InputError(
            f"only {share:.0%} of the profile's time is in layers of this network",
            rule=f"at least {LEAST_MATCHED:.0%}: the names of its layers are those of the ONNX nodes",
            remedy="give the ONNX file that was profiled, and build with --profilingVerbosity=detailed",
        )
    return [whole, *matched]


def _matched(layers: Sequence[tuple[str, float]], kernels: Sequence[Kernel]) -> list[tuple[set[int], float]]:
    """Sets of our kernels, each with the time of the TensorRT layers that name one of their nodes."""
    patterns = [
        [re.compile(rf"(?<!{_NEIGHBOUR}){re.escape(name)}(?!{_NEIGHBOUR})") for name in kernel.name.split(" + ")]
        for kernel in kernels
    ]
    found: list[tuple[set[int], float]] = []
    for layer, ms in layers:
        if layer.startswith("Reformatting"):
            continue
        ours = {index for index, names in enumerate(patterns) if any(name.search(layer) for name in names)}
        if not ours:
            continue
        joined = [entry for entry in found if entry[0] & ours]
        found = [entry for entry in found if not entry[0] & ours]
        found.append((ours.union(*(entry[0] for entry in joined)), ms + sum(entry[1] for entry in joined)))
    return found


def _object(text: str) -> dict[str, Any]:
    """A JSON object; empty for any other text."""
    try:
        content = json.loads(text)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _device_recordings(run: DeviceRun) -> DeviceRecordings:
    """Of a file that was measured by its engine and by trtexec, what trtexec says: it may know the layers."""
    timed = [(result, ms) for result in run.results if (ms := _gpu_ms(result)) is not None]
    if not timed:
        raise InputError(
            f"{run.name} was not measured on a GPU",
            rule="estimates are of what TensorRT does",
            remedy="measure with `duskfuse bench BUNDLE --host DEVICE --build --trtexec`",
        )
    timed.sort(key=lambda entry: entry[0].backend == "trtexec")
    by_file = {(result.sha256, result.size): Recording(ms, _named(result.layers)) for result, ms in timed}
    return DeviceRecordings(by_file, tuple(dict.fromkeys(result.model for result, _ in timed)))


def _gpu_ms(result: RunResult) -> float | None:
    """The network's time on the GPU without copies, None of a processor."""
    timing = result.network if result.backend == "trtexec" else result.compute
    return timing["p50"] if timing is not None and timing["p50"] > 0 else None


def _named(layers: Sequence[Layer]) -> tuple[tuple[str, float], ...]:
    return tuple((layer.name, _milliseconds(layer)) for layer in layers)


def _milliseconds(layer: Layer) -> float:
    return layer.mean_ms if layer.median_ms is None else layer.median_ms


def _fitted(content: dict[str, Any]) -> FittedModule:
    constants = Constants(**{name: _positive(float(value)) for name, value in content["constants"].items()})
    limits = {name: (low * 0.999, high * 1.001) for name, (low, high) in LIMITS.items()}  # rounding
    wrong = [name for name, (low, high) in limits.items() if not low <= getattr(constants, name) <= high]
    if wrong or constants.int8_of_fp16 > 2:
        raise ValueError(f"{', '.join(wrong) or 'int8_of_fp16'} out of range")
    return FittedModule(module_named(content["module"]).name, constants, str(content["source"]))


def _positive(value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"a time or constant of {value}")
    return value
