"""Measure exported networks on this device: time, steadiness, power, heat, and everything that the numbers depend on.

Each network warms up, then runs for a fixed time over several different pictures, as a camera gives them. Per picture
the time of the network alone and of the whole way (8-bit pictures in, 8-bit colours out) is kept. Power, temperatures
and clocks are watched meanwhile; before each network the device idles for a moment, so that the power of the idle
device is known too. The result is one JSON document, which `duskfuse bench` reads and compares.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Tuple

import numpy as np

from .device_record import device_record
from .device_watch import DeviceWatch, Seen
from .errors import DeviceError, DeviceInputError
from .fuser import EdgeFuser
from .network import BACKENDS, TENSORRT, Network, open_network, own_bundle
from .timings import Timing
from .trtexec_run import Trtexec, find_trtexec, run_trtexec, timing_of

if TYPE_CHECKING:
    import argparse

FORMAT = "duskfuse device benchmark"
VERSION = 1
WARM_UP_S, WARM_UP_RUNS = 0.2, 50
LONGEST_WARM_UP_S = 60.0
IDLE_S = 2.0
LEAST_RUNS = 3
BUSY_LOAD = 1.0
"""Load average from which something else runs."""
PICTURES = 8
"""Different pictures that take turns, so that none of them stays in the processor's cache."""
USUAL_SIZE = (480, 640)
_LEAST_SIDE, _MOST_SIDE = 16, 8192


@dataclass
class Result:
    """What was measured of one network."""

    model: str
    sha256: str
    precision: str
    backend: str
    size: str
    """``WIDTHxHEIGHT``."""
    transfers: str
    """``none`` on a CPU; ``included`` or ``excluded``: copies to and from the GPU within the network's time."""
    flags: Dict[str, Any]
    seconds: float
    network: Timing
    whole: Optional[Timing] = None
    steps: Dict[str, Timing] = field(default_factory=dict)
    """``prepare`` and ``colour`` of the whole way; on a GPU ``upload``, ``compute`` and ``download`` of the network."""
    fps: Optional[float] = None
    """Pictures per second of the whole way, one after the other."""
    warm_up: Dict[str, float] = field(default_factory=dict)
    energy_mj: Optional[Dict[str, Dict[str, Optional[float]]]] = None
    """Rail: millijoules ``per_picture``, and ``above_idle``."""
    idle: Optional[Seen] = None
    seen: Optional[Seen] = None
    warnings: List[str] = field(default_factory=list)
    times_ms: Dict[str, List[float]] = field(default_factory=dict)
    """Every single time, in order."""
    trtexec: Optional[Dict[str, Any]] = None

    def to_json(self) -> Dict[str, Any]:
        """Plain data."""
        data = asdict(self)
        data["network"] = self.network.to_json()
        data["whole"] = None if self.whole is None else self.whole.to_json()
        data["steps"] = {name: timing.to_json() for name, timing in self.steps.items()}
        return data


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``bench``."""
    parser.add_argument("models", nargs="*", type=Path, help="exported .onnx files or bundles; by default this bundle")
    parser.add_argument("--size", help="WIDTHxHEIGHT for files that take any; default 640x480")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long each network is measured; default 10")
    parser.add_argument("--backend", choices=BACKENDS, help="by default TensorRT where an engine was built here")
    parser.add_argument("--threads", type=int, help="bound on the CPU threads of ONNX Runtime")
    parser.add_argument("--trtexec", action="store_true", help="measure with NVIDIA's trtexec as well")
    parser.add_argument("--out", type=Path, help="file to write; by default the JSON goes to stdout")


def run(args: argparse.Namespace) -> int:
    """Measure and write the document; a network that fails is named in it, and the others are measured all the same."""
    if not (0 < args.seconds <= 3600 and (args.threads is None or args.threads > 0)):
        raise DeviceInputError(f"seconds {args.seconds}, threads {args.threads}", "both are positive")
    size = None if args.size is None else _parse_size(args.size)
    models = _models(args.models)
    program = find_trtexec() if args.trtexec else None
    results: List[Result] = []
    failures: List[Dict[str, str]] = []
    with DeviceWatch() as watch:
        for model in models:
            _measure_model(model, size, args, program, watch, results, failures)
    document = {
        "format": FORMAT,
        "version": VERSION,
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "device": device_record().to_json(),
        "settings": {"seconds": args.seconds, "threads": args.threads, "idle_s": IDLE_S, "pictures": PICTURES},
        "results": [result.to_json() for result in results],
        "failures": failures,
    }
    _write(document, args.out)
    return 0 if results and not failures else 1


def measure(
    network: Network,
    name: str,
    size: Tuple[int, int],
    seconds: float,
    watch: DeviceWatch,
    threads: Optional[int] = None,
) -> Result:
    """Time one open network at (height, width); ``sha256`` and ``precision`` are left to the caller."""
    fuser = EdgeFuser(network)
    pictures = _pictures(size)
    idle = _idle(watch)
    warm_up = _warm_up(fuser, pictures)
    rows: List[Dict[str, float]] = []
    started = time.monotonic()
    while len(rows) < LEAST_RUNS or time.monotonic() - started < seconds:
        rows.append(_fuse_once(fuser, *pictures[len(rows) % PICTURES]))
    ended = time.monotonic()
    seen = watch.between(started, ended)
    times = {name: [row[name] for row in rows] for name in rows[0]}
    steps = {step: Timing.of(times[step]) for step in times if step not in ("network", "whole")}
    on_gpu = network.backend == TENSORRT
    result = Result(
        model=name,
        sha256="",
        precision="",
        backend=network.backend,
        size=f"{size[1]}x{size[0]}",
        transfers="included" if on_gpu else "none",
        flags={"cuda_graph": bool(getattr(network, "uses_graph", False))} if on_gpu else {"threads": threads or "all"},
        seconds=round(ended - started, 3),
        network=Timing.of(times["network"]),
        whole=Timing.of(times["whole"]),
        steps=steps,
        fps=round(len(rows) / (ended - started), 2),
        warm_up=warm_up,
        energy_mj=_energy(seen, idle, (ended - started) / len(rows)),
        idle=idle,
        seen=seen,
        times_ms={kind: times[kind] for kind in ("network", "whole")},
    )
    result.warnings = _warnings(result)
    return result


def _measure_model(
    model: Path,
    size: Optional[Tuple[int, int]],
    args: argparse.Namespace,
    program: Optional[Trtexec],
    watch: DeviceWatch,
    results: List[Result],
    failures: List[Dict[str, str]],
) -> None:
    precision, network = "unknown", None
    try:
        network = open_network(model, args.backend, args.threads)
        precision = network.metadata.get("precision", precision)
        if size is not None and network.size not in (None, size):
            _say(f"{model.name} is left out: it takes {network.size[1]}x{network.size[0]} only")
            return
        _say(f"{model.name}: {args.seconds:g} s in {network.backend}")
        result = measure(network, model.name, network.size or size or USUAL_SIZE, args.seconds, watch, args.threads)
        results.append(_known(result, model, precision))
    except (DeviceError, DeviceInputError) as error:
        failures.append({"model": model.name, "reason": str(error)})
        _say(f"{model.name} failed: {error}")
    if program is None:
        return
    try:
        _say(f"{model.name}: trtexec, which builds an engine first where there is none")
        found = _by_trtexec(program, model, precision, network, size, args.seconds, watch)
        results.append(_known(found, model, precision))
    except (DeviceError, DeviceInputError) as error:
        failures.append({"model": model.name, "reason": str(error)})
        _say(str(error))


def _by_trtexec(
    program: Trtexec,
    model: Path,
    precision: str,
    network: Optional[Network],
    size: Optional[Tuple[int, int]],
    seconds: float,
    watch: DeviceWatch,
) -> Result:
    """Measure with trtexec; a file of any size, or one that could not be opened, is taken at ``size``."""
    height, width = (network and network.size) or size or USUAL_SIZE
    shapes = ""
    if network is not None and network.size is None:
        visible = f"vis:1x3x{height}x{width}" if network.rgb else f"vis_y:1x1x{height}x{width}"
        shapes = f"ir:1x1x{height}x{width},{visible}"
    idle = _idle(watch)
    run = run_trtexec(program, model, precision, seconds, shapes)
    ended = time.monotonic()
    timing = timing_of(run)
    if timing is None:
        raise DeviceError(f"trtexec exported no times for {model.name}", "--exportTimes is written since TensorRT 5")
    seen = watch.between(ended - min(seconds, sum(run.compute_ms) / 1000), ended)
    return Result(
        model=model.name,
        sha256="",
        precision=precision,
        backend="trtexec",
        size=f"{width}x{height}",
        transfers="excluded",
        flags=dict(run.settings),
        seconds=round(sum(run.compute_ms) / 1000, 3),
        network=timing,
        idle=idle,
        seen=seen,
        warnings=[*timing.warnings(), *seen.throttling],
        times_ms={"network": run.compute_ms},
        trtexec={"command": run.command, "output": run.output, "profile": run.profile, "version": program.version},
    )


def _known(result: Result, model: Path, precision: str) -> Result:
    result.sha256 = hashlib.sha256(model.read_bytes()).hexdigest()
    result.precision = precision
    return result


def _warm_up(fuser: EdgeFuser, pictures: List[Tuple[Any, Any]]) -> Dict[str, float]:
    started = time.monotonic()
    runs = 0
    while True:
        _fuse_once(fuser, *pictures[runs % PICTURES])
        runs += 1
        passed = time.monotonic() - started
        if (runs >= WARM_UP_RUNS and passed >= WARM_UP_S) or passed >= LONGEST_WARM_UP_S:
            return {"runs": runs, "seconds": round(passed, 3)}


def _fuse_once(fuser: EdgeFuser, ir: Any, vis: Any) -> Dict[str, float]:
    """Milliseconds of the steps of one pair."""
    stats = fuser.stats
    before = stats.pre_s, stats.network_s, stats.post_s
    start = time.perf_counter()
    fuser.fuse(ir, vis)
    whole = time.perf_counter() - start
    prepare, network, colour = stats.pre_s - before[0], stats.network_s - before[1], stats.post_s - before[2]
    row = {"prepare": prepare, "network": network, "colour": colour, "whole": whole}
    found = {name: round(1000 * value, 4) for name, value in row.items()}
    timing = getattr(fuser.network, "timing", None)  # an engine's own marks on the GPU
    if timing is not None:
        found.update(upload=timing.upload, compute=timing.compute, download=timing.download)
    return found


def _pictures(size: Tuple[int, int]) -> List[Tuple[Any, Any]]:
    random = np.random.RandomState(0)
    shapes = (size, (*size, 3))
    return [tuple(random.randint(0, 256, shape).astype(np.uint8) for shape in shapes) for _ in range(PICTURES)]  # type: ignore[misc]


def _idle(watch: DeviceWatch) -> Seen:
    started = time.monotonic()
    time.sleep(IDLE_S)
    return watch.between(started, time.monotonic())


def _energy(seen: Seen, idle: Seen, picture_s: float) -> Optional[Dict[str, Dict[str, Optional[float]]]]:
    """Milliwatts times seconds are millijoules."""
    if not seen.power_mw:
        return None
    resting = idle.power_mw or {}
    energy: Dict[str, Dict[str, Optional[float]]] = {}
    for rail, power in seen.power_mw.items():
        above = round((power.mean - resting[rail].mean) * picture_s, 3) if rail in resting else None
        energy[rail] = {"per_picture": round(power.mean * picture_s, 3), "above_idle": above}
    return energy


def _warnings(result: Result) -> List[str]:
    found = result.network.warnings()
    load = result.idle.load_average if result.idle is not None else None
    if load is not None and load > BUSY_LOAD:
        found.append(f"the machine was busy before the run: its load was {load:.1f}")
    if result.warm_up["runs"] < WARM_UP_RUNS:
        found.append(f"warmed up with {result.warm_up['runs']:.0f} runs only, in {LONGEST_WARM_UP_S:.0f} s")
    return found + (result.seen.throttling if result.seen is not None else [])


def _models(named: List[Path]) -> List[Path]:
    own = own_bundle()
    models: List[Path] = []
    for path in named or ([own] if own is not None else []):
        found = sorted(path.glob("*.onnx")) if path.is_dir() else [path]
        if not found or not all(file.is_file() for file in found):
            raise DeviceInputError(f"{path} holds no network", "an .onnx file or a folder of them", "check the path")
        models += found
    if not models:
        raise DeviceInputError("no model", "this runtime lies in no bundle", "name an .onnx file or a bundle")
    return models


def _parse_size(text: str) -> Tuple[int, int]:
    found = re.match(r"(\d{1,5})x(\d{1,5})$", text.strip().lower())
    sides = (int(found.group(2)), int(found.group(1))) if found else (0, 0)
    if not all(_LEAST_SIDE <= side <= _MOST_SIDE for side in sides):
        raise DeviceInputError(f"size {text!r}", f"WIDTHxHEIGHT, each {_LEAST_SIDE} to {_MOST_SIDE}", "as 640x480")
    return sides


def _write(document: Dict[str, Any], out: Optional[Path]) -> None:
    text = json.dumps(document, allow_nan=False)
    if out is None:
        print(text)
        return
    unfinished = out.with_name(out.name + ".tmp")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(str(unfinished), str(out))


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
