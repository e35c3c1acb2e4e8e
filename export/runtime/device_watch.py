"""Power, temperatures, clocks and load of a machine while something runs on it.

Two sources at once: ``tegrastats`` where there is one, and on any Linux machine the kernel's own files (clocks of
cores and of devices such as GPUs, thermal zones, load, counters of throttling). Samples carry the time at which they
came, so that one watch serves several measurements:

    with DeviceWatch() as watch:
        started = time.monotonic()
        ...
        seen = watch.between(started, time.monotonic())

What was not measured is None; ``missing`` says why.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Callable, Dict, Iterable, List, Optional, Sequence, Tuple, Type

from .tegrastats import TegraSample, parse_line

EVERY_S = 0.5
"""Between two samples: often enough for a run of seconds, rare enough not to be measured itself."""
NEAR_LIMIT_C = 5.0
"""A sensor that comes so near to the temperature at which the kernel slows the machine counts as hot."""
FALLEN = 0.95
"""A clock under load below this part of the highest seen has fallen."""
LOADED_PERCENT = 50.0
"""GPU load from which its clock counts."""
_COUNTERS = ("sys/class/hwmon/hwmon*/oc*_event_cnt", "sys/devices/system/cpu/cpu*/thermal_throttle/*_throttle_count")
_SLOWING_TRIPS = ("passive", "hot", "critical")


@dataclass(frozen=True)
class Range:
    """What one quantity did."""

    mean: float
    lowest: float
    highest: float
    last: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Range:
        """Summarise at least one value."""
        return cls(round(sum(values) / len(values), 3), min(values), max(values), values[-1])


@dataclass
class Seen:
    """What happened between two moments."""

    seconds: float
    samples: int = 0
    """Lines of tegrastats."""
    power_mw: Optional[Dict[str, Range]] = None
    """Rail: its power."""
    temperatures_c: Optional[Dict[str, Range]] = None
    limits_c: Dict[str, float] = field(default_factory=dict)
    """Sensor: the temperature from which the kernel slows the machine."""
    gpu_load: Optional[Range] = None
    gpu_mhz: Optional[Range] = None
    """Its slowest cluster, while the GPU is busy."""
    memory_mhz: Optional[Range] = None
    cpu_mhz: Optional[Range] = None
    """The fastest core at each moment."""
    load_average: Optional[float] = None
    throttling: List[str] = field(default_factory=list)
    """What says that the machine was slowed down or about to be."""
    missing: Dict[str, str] = field(default_factory=dict)

    def to_json(self) -> Dict[str, Any]:
        """Plain data."""
        return asdict(self)


@dataclass(frozen=True)
class _KernelSample:
    cpu_mhz: Tuple[float, ...]
    gpu_mhz: Optional[float]
    temperatures_c: Dict[str, float]
    load: Optional[float]
    counters: Dict[str, int]


class DeviceWatch:
    """Collects samples from entering to leaving; ``root`` is where the kernel's files are looked for."""

    def __init__(self, root: Path = Path("/"), every_s: float = EVERY_S) -> None:
        self._root, self._every_s = root, every_s
        self._tegra: List[Tuple[float, TegraSample]] = []
        self._kernel: List[Tuple[float, _KernelSample]] = []
        self._over = threading.Event()
        self._monitor: Optional[subprocess.Popen[str]] = None
        self._threads: List[threading.Thread] = []
        self._no_monitor = ""

    def __enter__(self) -> DeviceWatch:
        self._start_monitor()
        self._kernel.append((time.monotonic(), _read_kernel(self._root)))
        self._start(self._sample_kernel)
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self._over.set()
        if self._monitor is not None:
            self._monitor.terminate()
            try:
                self._monitor.wait(timeout=5)
            except subprocess.TimeoutExpired:
                self._monitor.kill()
                self._monitor.wait()
        for thread in self._threads:
            thread.join(timeout=5)
        if self._monitor is not None and self._monitor.stdout is not None:
            self._monitor.stdout.close()

    def between(self, start: float, end: float) -> Seen:
        """What was seen between two moments of ``time.monotonic()``."""
        self._kernel.append((time.monotonic(), _read_kernel(self._root)))
        tegra = [sample for moment, sample in list(self._tegra) if start <= moment <= end]
        kernel = [sample for moment, sample in list(self._kernel) if start - self._every_s <= moment <= end + 1]
        seen = Seen(end - start, len(tegra), limits_c=_limits(self._root))
        _fill_from_kernel(seen, kernel)
        _fill_from_tegra(seen, tegra)
        seen.throttling = _throttling(seen, kernel)
        if seen.power_mw is None:
            seen.missing["power_mw"] = self._no_monitor or (
                "tegrastats printed no power: it may need root" if tegra else "tegrastats printed nothing in time"
            )
        return seen

    def _start_monitor(self) -> None:
        program = shutil.which("tegrastats")
        if program is None:
            self._no_monitor = "there is no tegrastats on this machine"
            return
        command = [program, "--interval", str(int(1000 * self._every_s))]
        try:
            self._monitor = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
        except OSError as error:
            self._no_monitor = f"tegrastats does not start: {error.strerror}"
            return
        self._start(self._read_monitor)

    def _start(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _read_monitor(self) -> None:
        assert self._monitor is not None
        assert self._monitor.stdout is not None
        for line in self._monitor.stdout:
            sample = parse_line(line)
            if sample is not None:
                self._tegra.append((time.monotonic(), sample))

    def _sample_kernel(self) -> None:
        while not self._over.wait(self._every_s):
            self._kernel.append((time.monotonic(), _read_kernel(self._root)))


def _read_kernel(root: Path) -> _KernelSample:
    clocks = _numbers(root.glob("sys/devices/system/cpu/cpufreq/policy*/scaling_cur_freq"))
    gpus = [path for path in root.glob("sys/class/devfreq/*/cur_freq") if _is_gpu(path.parent.name)]
    gpu = list(_numbers(gpus).values())
    counters = {name: int(value) for pattern in _COUNTERS for name, value in _numbers(root.glob(pattern)).items()}
    zones = _zones(root)
    heat = {name: value / 1000 for name, value in ((n, _number(z / "temp")) for n, z in zones.items()) if value}
    return _KernelSample(
        cpu_mhz=tuple(value / 1e3 for value in clocks.values()),
        gpu_mhz=min(gpu) / 1e6 if gpu else None,
        temperatures_c=heat,
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        counters=counters,
    )


def _is_gpu(device: str) -> bool:
    """Whether a device of the kernel's devfreq is a Jetson's GPU: 17000000.ga10b, 57000000.gpu, 17000000.gv11b."""
    return any(part in device for part in ("gpu", "ga10b", "gv11b", "gp10b", "gb10b"))


def _zones(root: Path) -> Dict[str, Path]:
    """Sensor, without the kernel's ending: its folder."""
    zones = {}
    for folder in sorted(root.glob("sys/class/thermal/thermal_zone*")):
        try:
            name = (folder / "type").read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            continue
        for ending in ("-thermal", "-therm", "_thermal"):
            name = name[: -len(ending)] if name.endswith(ending) else name
        zones[name or folder.name] = folder
    return zones


def _limits(root: Path) -> Dict[str, float]:
    """Sensor: its lowest trip point at which the kernel does more than turn a fan."""
    limits = {}
    for name, folder in _zones(root).items():
        points = []
        for kind in folder.glob("trip_point_*_type"):
            try:
                slows = kind.read_text(encoding="utf-8").strip() in _SLOWING_TRIPS
            except OSError:
                continue
            value = _number(kind.with_name(kind.name.replace("_type", "_temp")))
            if slows and value is not None and value > 0:
                points.append(value / 1000)
        if points:
            limits[name] = min(points)
    return limits


def _fill_from_kernel(seen: Seen, samples: Sequence[_KernelSample]) -> None:
    heat = {name for sample in samples for name in sample.temperatures_c}
    rows = {name: [sample.temperatures_c[name] for sample in samples if name in sample.temperatures_c] for name in heat}
    seen.temperatures_c = {name: Range.of(values) for name, values in sorted(rows.items())} or None
    seen.cpu_mhz = _range(max(sample.cpu_mhz) for sample in samples if sample.cpu_mhz)
    seen.gpu_mhz = _range(sample.gpu_mhz for sample in samples if sample.gpu_mhz)
    loads = [sample.load for sample in samples if sample.load is not None]
    seen.load_average = loads[-1] if loads else None
    for name, value, why in (
        ("temperatures_c", seen.temperatures_c, "the kernel names no thermal zone here"),
        ("cpu_mhz", seen.cpu_mhz, "the kernel offers no cpufreq here"),
        ("gpu_mhz", seen.gpu_mhz, "the kernel lists no GPU clock here"),
    ):
        if value is None:
            seen.missing[name] = why


def _fill_from_tegra(seen: Seen, samples: Sequence[TegraSample]) -> None:
    """What tegrastats says counts more than what the kernel's files say."""
    if not samples:
        return
    rails = {name for sample in samples for name in sample.power_mw}
    power = {rail: [s.power_mw[rail] for s in samples if rail in s.power_mw] for rail in sorted(rails)}
    seen.power_mw = {rail: Range.of(values) for rail, values in power.items()} or None
    sensors = {name for sample in samples for name in sample.temperatures_c}
    heat = {name: [s.temperatures_c[name] for s in samples if name in s.temperatures_c] for name in sorted(sensors)}
    if heat:
        seen.temperatures_c = {name: Range.of(values) for name, values in heat.items()}
        seen.missing.pop("temperatures_c", None)
    seen.gpu_load = _range(sample.gpu.load for sample in samples if sample.gpu and sample.gpu.load is not None)
    seen.memory_mhz = _range(float(max(s.memory.mhz)) for s in samples if s.memory and s.memory.mhz)
    busy = [s.gpu for s in samples if s.gpu and s.gpu.mhz and (s.gpu.load is None or s.gpu.load >= LOADED_PERCENT)]
    clocks = _range(float(min(unit.mhz)) for unit in busy)
    if clocks is not None and clocks.highest > 0:
        seen.gpu_mhz = clocks
        seen.missing.pop("gpu_mhz", None)


def _throttling(seen: Seen, samples: Sequence[_KernelSample]) -> List[str]:
    found = []
    loaded = seen.gpu_load is not None and seen.gpu_load.highest >= LOADED_PERCENT
    if loaded and seen.gpu_mhz and seen.gpu_mhz.lowest < FALLEN * seen.gpu_mhz.highest:
        found.append(
            f"the GPU's clock fell from {seen.gpu_mhz.highest:.0f} to {seen.gpu_mhz.lowest:.0f} MHz under load"
        )
    for name, heat in sorted((seen.temperatures_c or {}).items()):
        limit = _limit_of(name, seen.limits_c)
        if limit is not None and heat.highest >= limit - NEAR_LIMIT_C:
            found.append(f"{name} reached {heat.highest:.1f} °C; the kernel slows the machine from {limit:.1f} °C")
    if samples:
        first, last = samples[0].counters, samples[-1].counters
        grown = sum(1 for name, value in last.items() if value > first.get(name, value))
        if grown:
            found.append(f"{grown} of the kernel's counters of throttling went up")
    return found


def _limit_of(sensor: str, limits: Dict[str, float]) -> Optional[float]:
    """tegrastats writes CPU on some boards where the kernel writes cpu."""
    return {name.lower(): value for name, value in limits.items()}.get(sensor.lower())


def _range(values: Iterable[Optional[float]]) -> Optional[Range]:
    found = [value for value in values if value is not None]
    return Range.of(found) if found else None


def _numbers(files: Iterable[Path]) -> Dict[str, float]:
    read = ((str(path), _number(path)) for path in sorted(files))
    return {name: value for name, value in read if value is not None}


def _number(path: Path) -> Optional[float]:
    try:
        return float(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
