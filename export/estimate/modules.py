"""Jetson modules as a roofline sees them: tensor-core peaks, DRAM bandwidth and memory.

Peaks are dense and of the GPU alone, without DLA: streaming multiprocessors × operations per clock × clock. Operations
per clock (one multiply-add is two) were solved from the marketed totals, so every peak is inferred, not read off a data
sheet; clocks and bandwidths are from public tables, and those marked in ``inferred`` are from memory or scaling.

Sources: Ultralytics' NVIDIA Jetson guide (clocks, bandwidth, memory); public deviceQuery prints (multiprocessors);
NVIDIA's Deep-Learning-Accelerator-SW README (AGX Orin by power mode).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from duskfuse.data.errors import InputError


class Generation(StrEnum):
    """Architecture of the GPU."""

    VOLTA = "volta"
    AMPERE = "ampere"


_FP16_PER_CLOCK = {Generation.VOLTA: 1024, Generation.AMPERE: 2048}
"""Dense FP16 operations of one multiprocessor per clock, on tensor cores; INT8 has twice as many."""
_PLAIN_PER_CLOCK = {Generation.VOLTA: 256, Generation.AMPERE: 256}
"""FP16 operations outside the tensor cores, where depthwise convolutions run: 64 lanes × 2 halves × 2, and 128 × 2."""


@dataclass(frozen=True)
class JetsonModule:
    """One module in one power mode."""

    name: str
    generation: Generation
    multiprocessors: int
    clock_mhz: float
    bandwidth_gbs: float
    """DRAM, gigabytes per second."""
    memory_gb: float
    """Shared by processor and GPU; the smallest version sold."""
    inferred: tuple[str, ...] = ()
    """Which of clock, bandwidth are not from a public table; peaks always are inferred."""

    @property
    def fp16_tflops(self) -> float:
        """Dense FP16 peak on tensor cores, 10¹² operations per second."""
        return self.multiprocessors * _FP16_PER_CLOCK[self.generation] * self.clock_mhz * 1e-6

    @property
    def int8_tops(self) -> float:
        """Dense INT8 peak on tensor cores, 10¹² operations per second."""
        return 2 * self.fp16_tflops

    @property
    def plain_tflops(self) -> float:
        """FP16 peak outside the tensor cores, 10¹² operations per second."""
        return self.multiprocessors * _PLAIN_PER_CLOCK[self.generation] * self.clock_mhz * 1e-6


_V, _A = Generation.VOLTA, Generation.AMPERE
_CLOCK, _BANDWIDTH = ("clock",), ("bandwidth",)
_AGX_ORIN_INT8 = {"": 171, "-50w": 109, "-30w": 41, "-15w": 14}
"""Sparse INT8 TOPS of the AGX Orin 64GB's GPU by power mode: only their ratios are used, as a scale of the clock."""

_MODULES = (
    JetsonModule("xavier-nx", _V, 6, 1109, 59.7, 8),
    JetsonModule("agx-xavier", _V, 8, 1377, 136.5, 32),
    JetsonModule("orin-nano-4gb", _A, 4, 625, 34, 4, _CLOCK + _BANDWIDTH),
    JetsonModule("orin-nano-4gb-super", _A, 4, 1020, 51, 4, _CLOCK + _BANDWIDTH),
    JetsonModule("orin-nano-8gb", _A, 8, 625, 68, 8),
    JetsonModule("orin-nano-8gb-super", _A, 8, 1020, 102, 8),
    JetsonModule("orin-nx-8gb", _A, 8, 765, 102.4, 8, _CLOCK),
    JetsonModule("orin-nx-8gb-super", _A, 8, 1173, 102.4, 8, _CLOCK),
    JetsonModule("orin-nx-16gb", _A, 8, 918, 102.4, 16),
    JetsonModule("orin-nx-16gb-super", _A, 8, 1173, 102.4, 16, _CLOCK),
    JetsonModule("agx-orin-32gb", _A, 14, 930, 204.8, 32, _CLOCK),
    *(
        JetsonModule(
            f"agx-orin-64gb{mode}",
            _A,
            16,
            1300 * tops / _AGX_ORIN_INT8[""],
            204.8,
            64,
            _CLOCK + _BANDWIDTH if mode else (),
        )
        for mode, tops in _AGX_ORIN_INT8.items()
    ),
)
MODULES = {module.name: module for module in _MODULES}
"""Every module by name; ``-super`` and ``-50w`` are power modes, without a suffix it is the highest ordinary one."""
USUAL = ("xavier-nx", "orin-nano-8gb", "orin-nano-8gb-super", "orin-nx-16gb", "agx-orin-64gb")
"""The modules of those who name none."""


def module_named(name: str) -> JetsonModule:
    """Return a module by name; raises InputError for an unknown one."""
    if name not in MODULES:
        raise InputError(f"module {name!r}", rule=f"known are {', '.join(MODULES)}", remedy="name one of them")
    return MODULES[name]
