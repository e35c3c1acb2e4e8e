"""What ``trtexec`` of TensorRT 8.0 to 11 prints and exports, as numbers.

The summary has one form since 8.0: lines of ``Name: min = X ms, max = …``; 8.0 to 8.2 have one line more (End-to-End
Host Latency), 8.6 and later three percentiles. People retype such lines, with other spaces and signs, so nothing is
required of a text: what it does not say is None. The table of layers (``--dumpProfile``) has the name first up to 8.5
and last from 8.6 on; the exported profile does not escape quotes and backslashes in names.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_STAMP = re.compile(r"^\s*(?:\[\d\d/\d\d/\d{4}-\d\d:\d\d:\d\d\]\s*)?(?:\[([IWEV])\]\s?)?(.*)$")
_BANNER = re.compile(r"&&&& (RUNNING|PASSED|FAILED)(?: TensorRT\.trtexec)?(?: \[TensorRT v(\d+)\])?(?:.*?# (.*))?")
_NUMBER = r"(\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)"
_VALUE = re.compile(
    rf"(min|max|mean|median|percentile\s*\(\s*(\d+(?:\.\d+)?)\s*%\s*\))\s*[=:]?\s*{_NUMBER}\s*ms", re.IGNORECASE
)
_SECONDS = re.compile(rf"(Total Host Walltime|Total GPU Compute Time)\s*[:=]\s*{_NUMBER}\s*s\b", re.IGNORECASE)
_THROUGHPUT = re.compile(rf"Throughput\s*[:=]\s*{_NUMBER}\s*qps", re.IGNORECASE)
_VARIANCE = re.compile(rf"coefficient of variance\s*=\s*{_NUMBER}\s*%", re.IGNORECASE)
_KINDS = (
    "End-to-End Host Latency",
    "Enqueue Time",
    "H2D Latency",
    "GPU Compute Time",
    "D2H Latency",
    "Latency",
)
_TABLE = re.compile(r"=== Profile \((\d+) iterations")
_NAME_LAST = re.compile(rf"^\s*{_NUMBER}\s+{_NUMBER}\s+(?:{_NUMBER}\s+)?{_NUMBER}\s{{2,}}(\S.*)$")
_NAME_FIRST = re.compile(rf"^\s*(\S.*?)\s{{2,}}{_NUMBER}\s+{_NUMBER}\s+(?:{_NUMBER}\s+)?{_NUMBER}\s*$")
_EXPORTED = re.compile(
    rf'"name"\s*:\s*"(.*)"\s*,\s*"timeMs"\s*:\s*{_NUMBER}\s*,\s*"averageMs"\s*:\s*{_NUMBER}'
    rf'(?:\s*,\s*"medianMs"\s*:\s*{_NUMBER})?\s*,\s*"percentage"\s*:\s*{_NUMBER}'
)
_TOTAL = "Total"


@dataclass(frozen=True)
class Latencies:
    """One line of the summary, in milliseconds."""

    min: float | None = None
    max: float | None = None
    mean: float | None = None
    median: float | None = None
    percentiles: Mapping[float, float] = field(default_factory=dict)
    """Percent: milliseconds."""


@dataclass(frozen=True)
class Layer:
    """One layer of a profile."""

    name: str
    total_ms: float
    mean_ms: float
    median_ms: float | None
    percent: float


@dataclass(frozen=True)
class Summary:
    """What the text of one run says."""

    version: str | None = None
    """As 8.5.2 or 10.3.0."""
    command: str | None = None
    passed: bool | None = None
    """None where the text ends before trtexec says so."""
    throughput: float | None = None
    """Queries per second; of a batch, if there is one."""
    times: Mapping[str, Latencies] = field(default_factory=dict)
    """Line of the summary, such as ``GPU Compute Time``."""
    host_s: float | None = None
    compute_s: float | None = None
    variance_percent: float | None = None
    """Coefficient of variance, where trtexec warned of it."""
    warnings: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    layers: tuple[Layer, ...] = ()


def parse_output(text: str) -> Summary:
    """Read what trtexec printed; any text is accepted."""
    version = command = None
    passed = throughput = variance = None
    times: dict[str, Latencies] = {}
    seconds: dict[str, float] = {}
    said: dict[str, list[str]] = {"W": [], "E": []}
    before = None
    for line in text.splitlines():
        banner = _BANNER.search(line)
        if banner is not None:
            version = version_name(banner[2]) or version
            command = banner[3] or command
            passed = {"PASSED": True, "FAILED": False}.get(banner[1], passed)
            continue
        level, body = _split(line)
        if level in said:
            said[level].append(body.strip())
        throughput = _first(_THROUGHPUT, body, throughput)
        variance = _first(_VARIANCE, body, variance)
        seconds.update({found[1].lower(): float(found[2]) for found in [_SECONDS.search(body)] if found})
        kind = next((kind for kind in _KINDS if body.strip().lower().startswith(kind.lower())), None)
        if kind is None and body.strip().lower().startswith("percentile"):
            kind = before  # retyped on a line of its own
        before = kind
        if kind is not None and (found := _latencies(body, times.get(kind))):
            times[kind] = found
    return Summary(
        version,
        command,
        passed,
        throughput,
        times,
        seconds.get("total host walltime"),
        seconds.get("total gpu compute time"),
        variance,
        tuple(said["W"]),
        tuple(said["E"]),
        parse_profile_table(text),
    )


def version_name(printed: str | None) -> str | None:
    """The release behind the number that trtexec prints.

    >>> version_name("8502"), version_name("100300"), version_name("110201")
    ('8.5.2', '10.3.0', '11.2.1')
    """
    if printed is None or not printed.isdigit():
        return None
    number, hundred = int(printed), 100
    major_unit = 1000 if number < 10000 else 10000
    return f"{number // major_unit}.{number % major_unit // hundred}.{number % hundred}"


def parse_profile_table(text: str) -> tuple[Layer, ...]:
    """The layers of a ``--dumpProfile`` table, of either order of columns, without its line of totals."""
    layers: list[Layer] = []
    name_last: bool | None = None
    inside = False
    for line in text.splitlines():
        _, body = _split(line)
        if _TABLE.search(body):
            inside, name_last = True, None
        elif inside and name_last is None and "Layer" in body and "Time" in body:
            name_last = body.strip().endswith("Layer")
        elif inside and name_last is not None:
            found = (_NAME_LAST if name_last else _NAME_FIRST).match(body)
            if found is None:
                inside = False
                continue
            groups = found.groups()
            name, numbers = (groups[4], groups[:4]) if name_last else (groups[0], groups[1:])
            if name.strip() != _TOTAL:
                layers.append(_layer(name, numbers))
    return tuple(layers)


def parse_export_profile(text: str) -> tuple[Layer, ...]:
    """The layers of ``--exportProfile``, also where names break the JSON; empty for another text."""
    try:
        content = json.loads(text)
    except ValueError:
        content = None
    if isinstance(content, list):
        entries = [entry for entry in content if isinstance(entry, dict) and "name" in entry]
        return tuple(layer for layer in map(_exported, entries) if layer is not None)
    return tuple(_layer(found[1], found.groups()[1:]) for found in map(_EXPORTED.search, text.splitlines()) if found)


def parse_export_times(text: str) -> dict[str, list[float]]:
    """The times of ``--exportTimes`` by name (``computeMs``, ``latencyMs``, ``h2dMs``, …); empty for another text."""
    try:
        content = json.loads(text)
    except ValueError:
        return {}
    entries = [entry for entry in content if isinstance(entry, dict)] if isinstance(content, list) else []
    if not entries:
        return {}
    names = [name for name in entries[0] if all(_is_time(entry.get(name)) for entry in entries)]
    return {name: [float(entry[name]) for entry in entries] for name in names}


def _split(line: str) -> tuple[str, str]:
    found = _STAMP.match(line)
    return ("", line) if found is None else (found[1] or "", found[2])


def _first(pattern: re.Pattern[str], text: str, otherwise: float | None) -> float | None:
    found = pattern.search(text)
    return float(found[1]) if found else otherwise


def _latencies(text: str, known: Latencies | None) -> Latencies | None:
    """Read a line, and add it to what an earlier one said of the same kind; None where it says nothing."""
    values: dict[str, float] = {}
    percentiles: dict[float, float] = {}
    for name, percent, value in _VALUE.findall(text):
        if percent:
            percentiles[float(percent)] = float(value)
        else:
            values[name.lower()] = float(value)
    if not values and not percentiles:
        return None
    if known is None:
        return Latencies(values.get("min"), values.get("max"), values.get("mean"), values.get("median"), percentiles)
    return Latencies(
        values.get("min", known.min),
        values.get("max", known.max),
        values.get("mean", known.mean),
        values.get("median", known.median),
        {**known.percentiles, **percentiles},
    )


def _layer(name: str, numbers: Sequence[str | None]) -> Layer:
    total, mean, median, percent = (None if number is None else float(number) for number in numbers)
    return Layer(name.strip(), total or 0.0, mean or 0.0, median, percent or 0.0)


def _exported(entry: Mapping[str, Any]) -> Layer | None:
    try:
        median = entry.get("medianMs")
        numbers = float(entry["timeMs"]), float(entry["averageMs"])
        return Layer(
            str(entry["name"]), *numbers, None if median is None else float(median), float(entry["percentage"])
        )
    except (KeyError, TypeError, ValueError):
        return None


def _is_time(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
