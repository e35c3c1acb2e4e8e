"""How long a kernel takes on a module: the larger of its arithmetic and its traffic, and a fixed cost.

``max(operations / (efficiency · peak), bytes / (efficiency · bandwidth)) + fixed cost`` is the roofline of Williams,
Waterman and Patterson (2009) with an intercept. `PUBLISHED` is the one place that holds its constants; docs/estimate.md
says what they were fitted on and how wrong they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from duskfuse.export.estimate.kernels import Kernel, KernelKind
from duskfuse.export.estimate.modules import JetsonModule

BAND = 2.0
"""An estimate is honest to within this factor, up and down."""


class Bound(StrEnum):
    """What limits a kernel or a network."""

    LAUNCHES = "launches"
    """The fixed cost of kernels: fewer layers help, fewer channels do not."""
    MEMORY = "memory"
    COMPUTE = "compute"


@dataclass(frozen=True)
class Constants:
    """What the roofline does not know of itself."""

    dense_efficiency: float
    """Share of the FP16 peak that arithmetic reaches, in (0, 1]."""
    bandwidth_efficiency: float
    """Share of the DRAM bandwidth that traffic reaches, in (0, 1]."""
    kernel_us: float
    """Fixed cost of one kernel in microseconds: launch, ramp and tail."""
    int8_of_fp16: float
    """Share of the INT8 peak that is reached, as a part of the share that FP16 reaches of its own."""


PUBLISHED = Constants(dense_efficiency=0.635, bandwidth_efficiency=0.7, kernel_us=34.7, int8_of_fp16=0.85)
"""Efficiency and fixed cost are fitted on seven published latencies (benchmarks/estimate.py). The bandwidth is set:
they hold too few layers that wait for memory to fit it. The INT8 share is the ratio of the times that YOLO11 takes per
operation from its smallest to its largest size, in INT8 and FP16, on two modules."""


@dataclass(frozen=True)
class KernelTimes:
    """Milliseconds of each kernel of a network, in three parts; what waits is the larger of the first two."""

    compute: NDArray[np.float64]
    memory: NDArray[np.float64]
    launch_ms: float
    """The same for all."""

    @property
    def each(self) -> NDArray[np.float64]:
        """Milliseconds of each kernel."""
        return np.maximum(self.compute, self.memory) + self.launch_ms

    @property
    def total(self) -> float:
        """Milliseconds of the network."""
        return float(self.each.sum())

    def bound(self, index: int) -> Bound:
        """What limits one kernel."""
        compute, memory = self.compute[index], self.memory[index]
        if self.launch_ms >= max(compute, memory):
            return Bound.LAUNCHES
        return Bound.COMPUTE if compute > memory else Bound.MEMORY

    def shares(self) -> dict[Bound, float]:
        """Shares of the network's time, which sum to one."""
        computes = self.compute > self.memory
        parts = {
            Bound.LAUNCHES: self.launch_ms * len(self.compute),
            Bound.MEMORY: float(self.memory[~computes].sum()),
            Bound.COMPUTE: float(self.compute[computes].sum()),
        }
        return {bound: part / self.total for bound, part in parts.items()}


def kernel_times(kernels: Sequence[Kernel], module: JetsonModule, constants: Constants) -> KernelTimes:
    """Estimate every kernel of a network on a module."""
    compute, memory = ideal_ms(kernels, module, constants.int8_of_fp16)
    return KernelTimes(
        compute / constants.dense_efficiency, memory / constants.bandwidth_efficiency, constants.kernel_us * 1e-3
    )


def ideal_ms(
    kernels: Sequence[Kernel], module: JetsonModule, int8_of_fp16: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Milliseconds of arithmetic and of traffic of each kernel at efficiencies of one."""
    operations = np.array([2.0 * kernel.padded_macs for kernel in kernels])
    peaks = np.array([_peak(kernel, module, int8_of_fp16) for kernel in kernels])
    traffic = np.array([float(kernel.bytes) for kernel in kernels])
    return operations / peaks * 1e3, traffic / (module.bandwidth_gbs * 1e9) * 1e3


def _peak(kernel: Kernel, module: JetsonModule, int8_of_fp16: float) -> float:
    """Operations per second that count as an efficiency of one."""
    if kernel.kind is KernelKind.DEPTHWISE:
        return module.plain_tflops * 1e12
    return (module.int8_tops * int8_of_fp16 if kernel.int8 else module.fp16_tflops) * 1e12
