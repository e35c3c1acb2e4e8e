"""What an ONNX file says about itself, read without the onnx package, which a Jetson does not have.

An ONNX file is a protocol buffer (protobuf.dev/programming-guides/encoding); the field numbers are those of
``onnx.proto`` (github.com/onnx/onnx, IR version 8). Only metadata, inputs, outputs and the nodes' names are read.
"""

from __future__ import annotations

from typing import Dict, Iterator, List, NamedTuple, Optional, Tuple

from .errors import DeviceInputError
from .onnx_file import fields

_GRAPH, _METADATA = 7, 14  # of a model
_NODE, _INPUT, _OUTPUT = 1, 11, 12  # of a graph
_FLOAT = 1  # element type


class DamagedOnnxError(DeviceInputError):
    """The file is not a whole ONNX file."""


class Value(NamedTuple):
    """An input or output of the network."""

    name: str
    float32: bool
    shape: Tuple[Optional[int], ...]
    """None for a side that is free."""


class OnnxHeader(NamedTuple):
    """What the file says about itself."""

    metadata: Dict[str, str]
    inputs: List[Value]
    outputs: List[Value]
    nodes: List[Tuple[str, str]]
    """Name and operator of every node, in the order of the file."""


def parse_header(content: bytes, name: str) -> OnnxHeader:
    """Read the header of a file's bytes; ``name`` is for the message of DamagedOnnxError."""
    metadata: Dict[str, str] = {}
    inputs: List[Value] = []
    outputs: List[Value] = []
    nodes: List[Tuple[str, str]] = []
    try:
        for entry in _messages(memoryview(content), _METADATA):
            metadata[_text(entry, 1)] = _text(entry, 2)
        for graph in _messages(memoryview(content), _GRAPH):
            inputs += [_value(message) for message in _messages(graph, _INPUT)]
            outputs += [_value(message) for message in _messages(graph, _OUTPUT)]
            nodes += [(_text(message, 3), _text(message, 4)) for message in _messages(graph, _NODE)]
    except (IndexError, TypeError, ValueError) as error:
        raise DamagedOnnxError(f"{name} is not a whole ONNX file ({error})", remedy="copy it again") from error
    if not inputs or not outputs:
        raise DamagedOnnxError(f"{name} is not an ONNX file", remedy="give a file of `duskfuse export`")
    return OnnxHeader(metadata, inputs, outputs, nodes)


def _value(message: memoryview) -> Value:
    shape: List[Optional[int]] = []
    kind = 0
    for type_ in _messages(message, 2):
        for tensor in _messages(type_, 1):
            kind = next((value for number, value in fields(tensor) if number == 1 and isinstance(value, int)), 0)
            for dims in _messages(tensor, 2):
                shape += [_side(dim) for dim in _messages(dims, 1)]
    return Value(_text(message, 1), kind == _FLOAT, tuple(shape))


def _side(dim: memoryview) -> Optional[int]:
    return next((value for number, value in fields(dim) if number == 1 and isinstance(value, int)), None)


def _text(message: memoryview, wanted: int) -> str:
    return next((bytes(part).decode() for part in _messages(message, wanted)), "")


def _messages(message: memoryview, wanted: int) -> Iterator[memoryview]:
    for number, value in fields(message):
        if number == wanted:
            if isinstance(value, int):
                raise ValueError(f"field {number} is a number")
            yield value
