"""Summaries of measured times, the same for everything that is measured on a device."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Dict, List, Sequence

import numpy as np

UNSTEADY = 0.025
"""Coefficient of variation from which a run counts as unsteady, as trtexec 11 has it."""
FEW = 100
"""Runs under which a 99th percentile says little."""


@dataclass(frozen=True)
class Timing:
    """Milliseconds of single runs, summarised."""

    count: int
    mean: float
    std: float
    min: float
    p50: float
    p90: float
    p99: float
    max: float

    @classmethod
    def of(cls, ms: Sequence[float]) -> Timing:
        """Summarise at least one time."""
        values = np.asarray(ms, np.float64)
        p50, p90, p99 = np.percentile(values, (50, 90, 99))
        numbers = (values.mean(), values.std(), values.min(), p50, p90, p99, values.max())
        return cls(len(values), *(round(float(number), 4) for number in numbers))

    @property
    def jitter(self) -> float:
        """How far the 99th percentile lies above the median."""
        return round(self.p99 - self.p50, 4)

    @property
    def variation(self) -> float:
        """The coefficient of variation: standard deviation over mean."""
        return round(self.std / self.mean, 5) if self.mean else 0.0

    def to_json(self) -> Dict[str, Any]:
        """Plain data, with what follows from it."""
        return {**asdict(self), "jitter": self.jitter, "variation": self.variation}

    def warnings(self) -> List[str]:
        """What a reader must know before comparing these numbers."""
        found = []
        if self.variation > UNSTEADY:
            found.append(
                f"the times vary by {self.variation:.1%} (coefficient of variation; steady is {UNSTEADY:.1%}): lock "
                "the clocks, and stop what else runs"
            )
        if self.count < FEW:
            found.append(f"only {self.count} runs: the 99th percentile of fewer than {FEW} says little")
        return found
