"""What each TensorRT release documents about the ONNX files that its parser reads.

The facts stand in ``tensorrt_operators.json``: operators with their number formats, inputs that must be constants, and
opsets, from the tables of the ONNX parser (onnx-tensorrt, docs/operators.md, Apache-2.0). For some releases no table
was at hand; what is assumed for them is marked ``inferred``: never more than an older table or the change log allows.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files

import onnx
from onnx import TensorProto

_NAMES = {
    TensorProto.FLOAT: "FP32",
    TensorProto.DOUBLE: "FP32",  # the parser casts it down
    TensorProto.FLOAT16: "FP16",
    TensorProto.BFLOAT16: "BF16",
    TensorProto.FLOAT8E4M3FN: "FP8",
    TensorProto.FLOAT4E2M1: "FP4",
}


@dataclass(frozen=True)
class Release:
    """One release of TensorRT."""

    name: str
    """Major and minor number, as ``10.3``."""
    lowest_opset: int
    highest_opset: int
    jetpack: str
    """The JetPack that brings it to Jetson modules; empty where none does."""
    basis: str
    """Where the facts were read, or what they are inferred from."""
    inferred: bool
    operators: dict[str, frozenset[str]] = field(repr=False, hash=False, compare=False)
    """Number formats by name of each supported operator of the standard domain."""
    constants: dict[str, tuple[str, ...]] = field(repr=False, hash=False, compare=False)
    """Names of the inputs, by operator, that must be constants of the file."""

    @property
    def version(self) -> tuple[int, ...]:
        """``(10, 3)``."""
        return _version(self.name)

    @property
    def formats(self) -> frozenset[str]:
        """All number formats that the release knows; 8-bit pictures (UINT8) at the network's ends only."""
        return frozenset().union(*self.operators.values()) | {"UINT8"}

    def format(self, element: int) -> str:
        """Name an ONNX element type as the tables do; a type that no release knows keeps its ONNX name."""
        name = _NAMES.get(element) or str(onnx.TensorProto.DataType.Name(element))
        return "INT32" if name == "INT64" and self.version < (9,) else name  # 8.x casts it down


@cache
def releases() -> tuple[Release, ...]:
    """Return the releases of TensorRT that this program knows, from 8.5 on, oldest first."""
    table = json.loads(files("duskfuse.export").joinpath("tensorrt_operators.json").read_text(encoding="utf-8"))
    return tuple(
        Release(
            name,
            lowest_opset=facts["opset"][0],
            highest_opset=facts["opset"][1],
            jetpack=facts["jetpack"],
            basis=facts["basis"],
            inferred=facts.get("inferred", False),
            operators={
                operator: frozenset(formats.split())
                for operator, changes in table["formats"].items()
                if (formats := _newest(changes, name))
            },
            constants={
                operator: tuple(_newest(changes, name).split())
                for operator, changes in table["constant_inputs"].items()
            },
        )
        for name, facts in table["releases"].items()
    )


def _newest(changes: dict[str, str], release: str) -> str:
    """The last entry that is not newer than ``release``; empty where there is none."""
    valid = [entry for since, entry in changes.items() if _version(since) <= _version(release)]
    return valid[-1] if valid else ""


def _version(name: str) -> tuple[int, ...]:
    return tuple(map(int, name.split(".")))
