"""What was measured on a device: trtexec's ``--exportTimes`` and ``--exportProfile`` files, and constants fitted to it.

Both are what one run of one network writes. Times give the whole network only; a profile gives every layer under the
names of its ONNX nodes, and so tells arithmetic, traffic and fixed cost apart.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from duskfuse.data.atomic import write_atomically
from duskfuse.data.errors import InputError
from duskfuse.export.estimate.fit import LIMITS, Latency
from duskfuse.export.estimate.kernels import Kernel
from duskfuse.export.estimate.modules import JetsonModule, module_named
from duskfuse.export.estimate.roofline import Constants

FORMAT = "duskfuse estimate constants 1"
TOTAL_SPREAD, LAYER_SPREAD = 0.02, 0.3
LEAST_MATCHED = 0.5
"""Share of a profile's time that must belong to layers of the network, or it is a profile of another."""
_LAYER = re.compile(
    r'"name"\s*:\s*"(?P<name>.*)"\s*,\s*"timeMs"\s*:\s*[^,]+,\s*"averageMs"\s*:\s*(?P<average>[-+.\deE]+)'
    r'(?:\s*,\s*"medianMs"\s*:\s*(?P<median>[-+.\deE]+))?'
)
_NEIGHBOUR = r"[\w./:]"
"""Characters that go on with the name of a node."""


@dataclass(frozen=True)
class Recording:
    """The times of one network, batch 1, in milliseconds."""

    total_ms: float
    layers: tuple[tuple[str, float], ...] = ()
    """TensorRT's layers in their order, where they were profiled."""


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


def read_measured(path: Path) -> Recording | FittedModule:
    """Read a file of trtexec or of `FittedModule.save`; raises InputError for any other."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error})", remedy="name a JSON file of trtexec") from None
    try:
        content = json.loads(text)
    except ValueError:
        content = _profile_by_lines(text)
    try:
        if isinstance(content, dict) and content.get("format") == FORMAT:
            return _fitted(content)
        if isinstance(content, list) and content:
            return _recording(content)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is damaged ({error!r})", remedy="record or fit again") from None
    raise InputError(
        f"{path} is no recording",
        rule="it is written by trtexec --exportTimes=FILE or --exportProfile=FILE, or by --save of this command",
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


def _recording(content: Sequence[Any]) -> Recording:
    entries = [entry for entry in content if isinstance(entry, dict)]
    runs = [float(entry["computeMs"]) for entry in entries if "computeMs" in entry]
    if runs:
        return Recording(_positive(median(runs)))
    named = [entry for entry in entries if "name" in entry]
    layers = tuple((str(e["name"]), float(e["medianMs"] if "medianMs" in e else e["averageMs"])) for e in named)
    return Recording(_positive(sum(ms for _, ms in layers)), layers)


def _profile_by_lines(text: str) -> list[dict[str, Any]]:
    """Read a profile that is not JSON: trtexec does not escape quotes and backslashes in names."""
    found = [match.groupdict() for match in map(_LAYER.search, text.splitlines()) if match]
    return [{"name": layer["name"], "medianMs": layer["median"] or layer["average"]} for layer in found]


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
