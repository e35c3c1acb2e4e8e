"""What a lint finds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """What follows from a finding."""

    ERROR = "error"
    """The release refuses the file, or nothing says that it takes it."""
    WARNING = "warning"
    """The release takes the file, but something should be known."""


class Rule(StrEnum):
    """What a finding is about."""

    OPSET = "opset"
    FUNCTION = "local function"
    OPERATOR = "operator"
    PLUGIN = "plugin"
    FORMAT = "number format"
    CONSTANT = "constant input"
    RESIZE = "resize"
    QUANTISED_FORMAT = "quantised format"
    ZERO_POINT = "zero point"
    SCALE = "scale"
    PER_CHANNEL = "per channel"
    QUANTISED_OUTPUT = "quantised output"
    DLA = "dla (experiment)"


def unless_seen_built(version: tuple[int, ...]) -> Severity:
    """Return how severe is what the tables exclude but NVIDIA's newest builder, TensorRT-RTX 1.7, was seen to build."""
    return Severity.ERROR if version < (11,) else Severity.WARNING


@dataclass(frozen=True)
class Finding:
    """One thing in one file that some releases of TensorRT refuse or that should be known."""

    rule: Rule
    severity: Severity
    node: str
    """Name of the node, input or output; empty where it is about the whole file."""
    seen: str
    """What was found and what the rule says."""
    remedy: str
    releases: tuple[str, ...] = ()
    """The releases concerned; empty for what is about the DLA."""

    def __str__(self) -> str:
        return f"{self.node}: {self.seen}" if self.node else self.seen
