"""The lines of ``tegrastats``, NVIDIA's monitor of Jetson modules, as numbers.

The program has no machine-readable form, and its lines changed with every generation of modules. What is read here:

- a date and time at the beginning, or none;
- loads and clocks as ``0%``, ``0%@1300``, ``12%@[1300,1300]`` (one clock per cluster) and ``@[314,314,314]`` (no load);
- temperatures as ``cpu@52.9C`` and ``cpu@52.9C/53.1C`` (now and highest); -256 is a sensor that is switched off;
- power as ``GPU 463/463``, ``VDD_IN 5520mW/5400mW`` and ``VDD_IN 5139mW/5139mW/5139mW`` (now, mean and highest, always
  milliwatts). A rail can be named GPU or CPU, as units are; NC is a channel that is not connected.

Nothing is required of a line: what it does not say is None or absent.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Dict, List, Optional, Tuple

SENSOR_OFF_C = -256.0
INPUT_RAILS = ("VDD_IN", "POM_5V_IN")
"""Rails that carry everything a module draws; other modules measure parts, of which no sum is made here."""

_TIME = re.compile(r"^\s*(\d\d-\d\d-\d{4} \d\d:\d\d:\d\d)\s")
_MEMORY = re.compile(r"\b(RAM|SWAP) (\d+)/(\d+)MB")
_CPUS = re.compile(r"\bCPU \[([^\]]*)\](?:@(\d+))?", re.IGNORECASE)
_LOAD = re.compile(r"(?:(\d+)%)?(?:@(?:(\d+)|\[([\d,]*)\]))?$")
_UNIT = re.compile(r"\b(GR3D2?_FREQ|GR3D|EMC_FREQ|EMC) ((?:\d+%)?(?:@(?:\d+|\[[\d,]*\]))?)(?=\s|$)")
_TEMPERATURE = re.compile(r"(?<!\S)([A-Za-z][\w-]*)@(-?\d+(?:\.\d+)?)C(?:/(-?\d+(?:\.\d+)?)C)?(?=\s|$)")
_POWER = re.compile(r"(?<!\S)([A-Za-z]\w*) (\d+)(?:mW)?/(\d+)(?:mW)?(?:/(\d+)(?:mW)?)?(?=\s|$)")
_NOT_CONNECTED = "NC"


@dataclass(frozen=True)
class Unit:
    """How busy a unit is and how fast it runs."""

    load: Optional[float] = None
    """Percent."""
    mhz: Tuple[int, ...] = ()
    """One clock, or one per cluster."""


@dataclass(frozen=True)
class TegraSample:
    """What one line says."""

    time: Optional[str] = None
    """As printed, ``MM-DD-YYYY HH:MM:SS`` of the device's clock."""
    ram_mb: Optional[Tuple[int, int]] = None
    """Used and present."""
    swap_mb: Optional[Tuple[int, int]] = None
    cpus: Tuple[Optional[Unit], ...] = ()
    """One per core, None for a core that is switched off."""
    gpu: Optional[Unit] = None
    memory: Optional[Unit] = None
    """The memory controller, EMC."""
    temperatures_c: Dict[str, float] = field(default_factory=dict)
    sensors_off: Tuple[str, ...] = ()
    power_mw: Dict[str, int] = field(default_factory=dict)
    """Rail: power now."""


def parse_line(line: str) -> Optional[TegraSample]:
    """Read one line; None where nothing of it is known, as in a message of error."""
    time = _TIME.match(line)
    memory = {name: (int(used), int(whole)) for name, used, whole in _MEMORY.findall(line)}
    units = {name: _unit(text) for name, text in _UNIT.findall(line)}
    measured = [(name, float(now)) for name, now, _ in _TEMPERATURE.findall(line)]
    sample = TegraSample(
        time=time.group(1) if time else None,
        ram_mb=memory.get("RAM"),
        swap_mb=memory.get("SWAP"),
        cpus=_cpus(line),
        gpu=units.get("GR3D_FREQ") or units.get("GR3D"),
        memory=units.get("EMC_FREQ") or units.get("EMC"),
        temperatures_c={name: now for name, now in measured if now > SENSOR_OFF_C},
        sensors_off=tuple(name for name, now in measured if now <= SENSOR_OFF_C),
        power_mw={name: int(now) for name, now, _, _ in _POWER.findall(line) if name != _NOT_CONNECTED},
    )
    known = memory or units or measured or sample.power_mw or sample.cpus
    return sample if known else None


def _unit(text: str) -> Unit:
    found = _LOAD.match(text)
    if found is None:
        return Unit()
    load, clock, clocks = found.groups()
    listed = (clocks or "").split(",") if clock is None else [clock]
    return Unit(None if load is None else float(load), tuple(int(value) for value in listed if value))


def _cpus(line: str) -> Tuple[Optional[Unit], ...]:
    """The cores; an older form gives one clock for all of them behind the bracket."""
    found = _CPUS.search(line)
    if found is None:
        return ()
    shared = () if found.group(2) is None else (int(found.group(2)),)
    cores: List[Optional[Unit]] = []
    for text in found.group(1).split(","):
        unit = _unit(text.strip())
        if text.strip() == "off":
            cores.append(None)
        elif unit.load is not None:
            cores.append(Unit(unit.load, unit.mhz or shared))
    return tuple(cores)
