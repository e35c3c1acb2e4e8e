"""The ``bench`` verb: how long models take on this machine, measured so that numbers can be compared.

Batch 1, as a camera gives it. After a warm-up the models take turns, one picture each, so that a machine that slows
down or has other work slows all of them alike. Reported twice: the network alone, and the whole way from two 8-bit
pictures to one 8-bit colour picture.
"""

from __future__ import annotations

import os
import platform
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from duskfuse.data.errors import InputError
from duskfuse.data.fuser import Colour
from duskfuse.data.images import to_u8
from duskfuse.data.progress import say, track
from duskfuse.evaluate.fusers import Fuser, OnnxFuser, TorchFuser, open_fuser, size_text
from duskfuse.export.runtime.fuser import luminance, recombine, unit
from duskfuse.export.runtime.thermal import infrared
from duskfuse.export.sizes import parse_size
from duskfuse.students.zoo import ModelName

if TYPE_CHECKING:
    from rich.table import Table

TIME_BUDGET_S = 120.0
"""Seconds of measuring per model after which fewer than the wanted runs are accepted; the report says how many."""


class Backend(StrEnum):
    """What runs the network."""

    ONNXRUNTIME = "onnxruntime"
    TORCH = "torch"


@dataclass(frozen=True)
class Timing:
    """Milliseconds per picture."""

    median_ms: float
    p90_ms: float
    p99_ms: float
    mean_ms: float
    std_ms: float
    min_ms: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Timing:
        """Summarise single measurements."""
        ms = np.asarray(seconds, np.float64) * 1000
        median, p90, p99 = (float(value) for value in np.percentile(ms, (50, 90, 99)))
        return cls(median, p90, p99, float(ms.mean()), float(ms.std()), float(ms.min()))


@dataclass(frozen=True)
class BenchResult:
    """The timings of one model."""

    model: str
    backend: str
    runs: int
    network: Timing
    """Float in, float out."""
    whole: Timing
    """8-bit infrared and RGB in, 8-bit RGB out."""


@dataclass(frozen=True)
class BenchReport:
    """Timings with what is needed to compare them."""

    size: str
    threads: int
    """Bound on CPU threads."""
    warmup: int
    machine: dict[str, str | int]
    results: list[BenchResult]

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain data."""
        return asdict(self)

    def table(self) -> Table:
        """Return the timings for a terminal."""
        from rich.table import Table

        runs = " or ".join(map(str, sorted({result.runs for result in self.results})))
        machine = f"{self.machine['cpu']} ({self.machine['cores']} cores)"
        title = f"{self.size}, batch 1, {self.threads} threads, {runs} runs, {machine}"
        table = Table(
            title=title, caption="Milliseconds per picture; whole: with pre- and post-processing, 8-bit in, RGB out."
        )
        table.add_column("model", overflow="fold")
        for name in ("median", "p90", "p99", "whole", "p90", "p99", "per s"):
            table.add_column(name, justify="right", no_wrap=True)
        for result in self.results:
            timings = [
                f"{value:.1f}"
                for timing in (result.network, result.whole)
                for value in (timing.median_ms, timing.p90_ms, timing.p99_ms)
            ]
            table.add_row(f"{result.model} ({result.backend})", *timings, f"{1000 / result.whole.median_ms:.1f}")
        return table


def bench(
    model: str | Path | Sequence[str | Path],
    *,
    size: str = "640x480",
    threads: int | None = None,
    backend: Backend | None = None,
    runs: int = 100,
    warmup: int = 20,
) -> BenchReport:
    """Time one or several models on the CPU.

    Args:
        model: zoo names, student checkpoints, ONNX files, or bundle folders, whose files are all timed.
        size: ``WIDTHxHEIGHT`` of the pictures.
        threads: bound on CPU threads; one per core that this process may use where not given.
        backend: what runs names and checkpoints; ONNX Runtime, as on the device, where not given.
        runs: pictures per model, at least 1; fewer are made where they would take more than two minutes.
        warmup: pictures per model before measuring.

    Raises:
        InputError: wrong size or numbers, unusable model, a fixed-size file of another size, an ONNX file for torch.
    """
    threads = usable_cores() if threads is None else threads
    if runs < 1 or warmup < 0 or threads < 1:
        raise InputError(
            f"runs {runs}, warmup {warmup}, threads {threads}", rule="runs and threads start at 1, warmup at 0"
        )
    shape = parse_size(size)
    models = [model] if isinstance(model, str | Path) else list(model)
    before = cv2.getNumThreads()
    try:
        cv2.setNumThreads(threads)
        fusers = [fuser for item in models for fuser in _opened(item, shape, threads, backend)]
        results = _timed(fusers, shape, runs, warmup)
    finally:
        cv2.setNumThreads(before)
    return BenchReport(size_text(shape), threads, warmup, machine(), results)


def usable_cores() -> int:
    """Cores that this process may use, which a container or a scheduler may have limited."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine() -> dict[str, str | int]:
    """Describe the processor, the system and the versions that matter for speed."""
    import onnxruntime
    import torch

    return {
        "cpu": _processor(),
        "cores": os.cpu_count() or 1,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "onnxruntime": onnxruntime.__version__,
        "torch": torch.__version__,
    }


def _opened(item: str | Path, shape: tuple[int, int], threads: int, backend: Backend | None) -> list[Fuser]:
    path = Path(item)
    if path.is_dir() and not (isinstance(item, str) and item in list(ModelName)):
        return _opened_bundle(path, shape, threads, backend)
    if path.suffix.lower() == ".onnx":
        if backend is Backend.TORCH:
            raise InputError(f"{path}: ONNX files run in onnxruntime", remedy="drop --backend, or give a checkpoint")
        return [_of_size(OnnxFuser(path, threads), shape)]
    fuser = open_fuser(item, threads)
    if not isinstance(fuser, TorchFuser):
        return [fuser]
    return [_folded(fuser) if backend is Backend.TORCH else _exported(fuser, shape, threads)]


def _opened_bundle(folder: Path, shape: tuple[int, int], threads: int, backend: Backend | None) -> list[Fuser]:
    """Open the files of a bundle that take pictures of this size."""
    if backend is Backend.TORCH:
        raise InputError(f"{folder}: the files of a bundle run in onnxruntime", remedy="drop --backend")
    files = [OnnxFuser(path, threads) for path in sorted(folder.glob("*.onnx"))]
    fitting: list[Fuser] = [file for file in files if file.size in (None, shape)]
    if not fitting:
        sizes = sorted({size_text(file.size) for file in files if file.size})
        raise InputError(
            f"{folder} has no file for pictures of {size_text(shape)}",
            rule=f"it has {', '.join(sizes)}" if sizes else "a bundle is a folder written by `duskfuse export`",
            remedy=f"give --size {sizes[0]}" if sizes else "name the folder of a bundle, or a file",
        )
    for file in files:
        if file not in fitting:
            say(f"{file.name} is left out: it takes {size_text(file.size or shape)} only")
    return fitting


def _of_size(fuser: OnnxFuser, shape: tuple[int, int]) -> OnnxFuser:
    if fuser.size is not None and fuser.size != shape:
        size = size_text(fuser.size)
        raise InputError(f"{fuser.path} takes pictures of {size} only", remedy=f"give --size {size}")
    return fuser


def _folded(fuser: TorchFuser) -> TorchFuser:
    from duskfuse.students.fold import fold_batchnorm

    return TorchFuser(fold_batchnorm(fuser.module), fuser.name)


def _exported(fuser: TorchFuser, shape: tuple[int, int], threads: int) -> OnnxFuser:
    """Run a checkpoint the way the device would: as an fp32 file of this size."""
    from duskfuse.export.onnx_graph import DeployedStudent, build_graph, save_graph

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bench.onnx"
        save_graph(build_graph(DeployedStudent(fuser.module), size=shape), path)
        exported = OnnxFuser(path, threads)
    exported.name = fuser.name
    return exported


def _timed(fusers: Sequence[Fuser], shape: tuple[int, int], runs: int, warmup: int) -> list[BenchResult]:
    random = np.random.default_rng(0)
    ir = random.integers(0, 256, shape, np.uint8)
    vis = random.integers(0, 256, (*shape, 3), np.uint8)
    for fuser in fusers:
        for _ in range(warmup):
            _run(fuser, ir, vis)
    measured: list[list[tuple[float, float]]] = [[] for _ in fusers]
    deadline = time.monotonic() + TIME_BUDGET_S * len(fusers)
    for _ in track(range(runs), "Measuring"):
        for fuser, samples in zip(fusers, measured, strict=True):
            samples.append(_run(fuser, ir, vis))
        if time.monotonic() > deadline:
            break
    return [
        BenchResult(
            fuser.name,
            fuser.backend,
            len(samples),
            network=Timing.of([network for network, _ in samples]),
            whole=Timing.of([whole for _, whole in samples]),
        )
        for fuser, samples in zip(fusers, measured, strict=True)
    ]


def _run(fuser: Fuser, ir: NDArray[np.uint8], vis: NDArray[np.uint8]) -> tuple[float, float]:
    """Fuse once; return the seconds of the network and of the whole way."""
    start = time.perf_counter()
    if fuser.colour is Colour.RGB:
        pictures = infrared(ir), unit(vis)
        before = time.perf_counter()
        fused = fuser.fuse_colours(*pictures)
        after = time.perf_counter()
        to_u8(fused)
    else:
        planes = infrared(ir), luminance(vis)
        before = time.perf_counter()
        y = fuser.fuse(*planes)
        after = time.perf_counter()
        recombine(y, vis)
    return after - before, time.perf_counter() - start


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model")))
    return next(names, platform.processor() or platform.machine())
