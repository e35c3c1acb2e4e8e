"""The ``estimate`` verb: how long students would take on Jetson modules that are not at hand.

What comes out is an estimate and says so: every time and every rate stands with its band. It ranks students and
precisions, and says what limits them; a recording of the device replaces it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from duskfuse.data.errors import InputError
from duskfuse.evaluate.fusers import size_text
from duskfuse.export.estimate.fit import Latency, fit_device
from duskfuse.export.estimate.graphs import StaticGraph, open_graph
from duskfuse.export.estimate.kernels import NetworkWork, read_kernels
from duskfuse.export.estimate.modules import USUAL, JetsonModule, module_named
from duskfuse.export.estimate.recording import DeviceRecordings, FittedModule, Recording, latencies, read_measured
from duskfuse.export.estimate.roofline import BAND, PUBLISHED, Bound, Constants, kernel_times
from duskfuse.export.onnx_graph import Precision

if TYPE_CHECKING:
    from rich.table import Table

LABEL = "estimate, not measured"
SLOWEST = 5
_USUAL_PRECISIONS = (Precision.FP16, Precision.INT8)


@dataclass(frozen=True)
class Banded:
    """A number that never stands without its band."""

    estimate: float
    low: float
    high: float

    @classmethod
    def around(cls, value: float) -> Banded:
        """Put the band of this module around a value."""
        return cls(value, value / BAND, value * BAND)

    def text(self, digits: int) -> str:
        """Return ``estimate (low to high)``."""
        return f"{self.estimate:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"


@dataclass(frozen=True)
class SlowKernel:
    """One of the slowest kernels of a network."""

    name: str
    ms: float
    share: float
    """Of the network's time."""
    bound: Bound


@dataclass(frozen=True)
class Estimate:
    """One student in one precision on one module."""

    label: str
    model: str
    precision: str
    module: str
    size: str
    ms: Banded
    per_second: Banded
    bound: Bound
    shares: dict[Bound, float]
    """Shares of the time by what limits it."""
    gmacs: float
    kernels: int
    memory_mb: float
    """Weights and the most maps alive at one time; CUDA, TensorRT and the cameras come on top."""
    module_memory_gb: float
    """What it has; the processor uses it, too."""
    slowest: list[SlowKernel]
    constants: str
    """``published`` or what they were fitted to."""


@dataclass(frozen=True)
class EstimateReport:
    """Estimates by module, the fastest first."""

    label: str
    band: float
    constants: Constants
    """Of every module for which nothing was measured."""
    estimates: list[Estimate]
    fitted: FittedModule | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain data."""
        return asdict(self)

    def tables(self) -> list[Table]:
        """Return a ranking for each module and the slowest kernels on the first, for a terminal."""
        modules = dict.fromkeys(row.module for row in self.estimates)
        return [*(self._ranking(module) for module in modules), self._slowest(next(iter(modules)))]

    def _ranking(self, module: str) -> Table:
        from rich.table import Table

        rows = [row for row in self.estimates if row.module == module]
        source = "published latencies" if rows[0].constants == "published" else rows[0].constants
        table = Table(
            title=f"{module}, {rows[0].module_memory_gb:g} GB: {LABEL} (band ×{self.band:g} both ways)",
            caption=f"The network alone, batch 1; constants from {source}. MB: weights and maps, no CUDA or TensorRT.",
        )
        table.add_column("model", overflow="fold")
        table.add_column("precision")
        for name in ("ms", "per second", "MB"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("limited by", no_wrap=True)
        for row in rows:
            figures = row.ms.text(1), row.per_second.text(0), f"{row.memory_mb:.0f}"
            table.add_row(
                f"{row.model} {row.size}", row.precision, *figures, f"{row.bound} {row.shares[row.bound]:.0%}"
            )
        return table

    def _slowest(self, module: str) -> Table:
        from rich.table import Table

        table = Table(title=f"Slowest kernels on {module}: {LABEL}")
        for name in ("model", "precision", "kernel"):
            table.add_column(name, overflow="fold")
        for name in ("ms", "share"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("limited by", no_wrap=True)
        for row in (row for row in self.estimates if row.module == module):
            for kernel in row.slowest[:3]:
                first, *more = kernel.name.split(" + ")
                name = f"{first} and {len(more)} more" if more else first
                table.add_row(row.model, row.precision, name, f"{kernel.ms:.2f}", f"{kernel.share:.0%}", kernel.bound)
            table.add_section()
        return table


def estimate(
    model: str | Path | Sequence[str | Path],
    *,
    size: str | None = None,
    module: Sequence[str] = (),
    precision: Sequence[str] = (),
    measured: Path | None = None,
    save: Path | None = None,
) -> EstimateReport:
    """Estimate the latency of students on Jetson modules.

    Args:
        model: zoo names, student checkpoints or ONNX files.
        size: ``WIDTHxHEIGHT`` of the pictures; 640x480, or what a file of one size takes, where not given.
        module: names of `duskfuse.export.estimate.modules.MODULES`; the usual ones where not given.
        precision: fp16 and int8; both where not given. A file that has its precision inside keeps it.
        measured: JSON file of trtexec's ``--exportTimes`` or ``--exportProfile``, recorded with the one model, in the
            one precision, on the one module named; or of a device benchmark of the one module named, in which every
            model is found by its file; or a file that ``save`` wrote, used for its module.
        save: file for the constants fitted to such a recording.

    Raises:
        InputError: wrong size, names or file; an unknown size inside a network; a recording of another network.
    """
    models = [model] if isinstance(model, str | Path) else list(model)
    known = read_measured(measured) if measured is not None else None
    modules = [module_named(name) for name in dict.fromkeys(module or _modules_of(known))]
    wanted = [_precision(text) for text in dict.fromkeys(precision)]
    networks = list(_networks([open_graph(item, size) for item in models], wanted))
    fitted = known if isinstance(known, FittedModule) else None
    if isinstance(known, Recording | DeviceRecordings):
        fitted = _fit_recording(known, str(measured), networks, modules)
    if save is not None:
        if isinstance(known, FittedModule) or fitted is None:
            raise InputError("--save without a recording", rule="constants are fitted to one", remedy="give --measured")
        fitted.save(save)
    rows = [_estimate(*network, place, fitted) for network in networks for place in modules]
    order = [place.name for place in modules]
    rows.sort(key=lambda row: (order.index(row.module), row.ms.estimate))
    return EstimateReport(LABEL, BAND, PUBLISHED, rows, fitted)


def _networks(
    graphs: Sequence[StaticGraph], wanted: Sequence[Precision]
) -> Iterator[tuple[StaticGraph, Precision, NetworkWork]]:
    for graph in graphs:
        if graph.precision and wanted and graph.precision not in wanted:
            raise InputError(
                f"{graph.name} is a file in {graph.precision}",
                rule="a file that has its precision inside keeps it",
                remedy=f"leave --precision away, or add {graph.precision}",
            )
        for precision in [graph.precision] if graph.precision else wanted or _USUAL_PRECISIONS:
            yield graph, precision, read_kernels(graph.model, precision)


def _estimate(
    graph: StaticGraph, precision: Precision, work: NetworkWork, module: JetsonModule, fitted: FittedModule | None
) -> Estimate:
    own = fitted is not None and fitted.module == module.name
    times = kernel_times(work.kernels, module, fitted.constants if fitted and own else PUBLISHED)
    shares = times.shares()
    memory = work.weight_bytes + work.map_bytes
    slowest = np.argsort(-times.each, kind="stable")[:SLOWEST].tolist()
    return Estimate(
        label=LABEL,
        model=graph.name,
        precision=precision.value,
        module=module.name,
        size=size_text(graph.size),
        ms=Banded.around(times.total),
        per_second=Banded.around(1000 / times.total),
        bound=max(shares, key=lambda bound: shares[bound]),
        shares=shares,
        gmacs=work.macs / 1e9,
        kernels=len(work.kernels),
        memory_mb=memory / 1e6,
        module_memory_gb=module.memory_gb,
        slowest=[
            SlowKernel(
                work.kernels[index].name, float(times.each[index]), times.each[index] / times.total, times.bound(index)
            )
            for index in slowest
        ],
        constants=fitted.source if fitted and own else "published",
    )


def _fit_recording(
    known: Recording | DeviceRecordings,
    source: str,
    networks: Sequence[tuple[StaticGraph, Precision, NetworkWork]],
    modules: Sequence[JetsonModule],
) -> FittedModule:
    if len(modules) != 1 or (isinstance(known, Recording) and len(networks) != 1):
        raise InputError(
            f"a recording, {len(networks)} networks and {len(modules)} modules",
            rule="a recording is of one module, and a file of trtexec of one model in one precision",
            remedy="name those with --module and --precision, and --save FILE; then give FILE as --measured",
        )
    found: list[Latency] = []
    for graph, precision, work in networks:
        size = size_text(graph.size)
        if isinstance(known, Recording):
            recording = known
        else:
            recording = known.of(graph.sha256 if graph.precision is precision else None, size, graph.name)
        found += latencies(recording, work.kernels, modules[0])
    names = ", ".join(f"{graph.name} {precision} {size_text(graph.size)}" for graph, precision, _ in networks)
    return FittedModule(modules[0].name, fit_device(found), f"{source}: {names}")


def _modules_of(known: Recording | DeviceRecordings | FittedModule | None) -> Sequence[str]:
    return (known.module,) if isinstance(known, FittedModule) else USUAL


def _precision(text: str) -> Precision:
    if text not in _USUAL_PRECISIONS:
        raise InputError(
            f"precision {text!r}",
            rule="fp16 or int8: no Jetson module is worth running in fp32",
            remedy="name one or both",
        )
    return Precision(text)
