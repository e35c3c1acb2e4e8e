"""Reading an exported file so that nothing but its own bytes can matter: size first, then where its weights lie.

An ONNX file is a protocol buffer (protobuf.dev/programming-guides/encoding; field numbers of ``onnx.proto``). It may
name other files as the place of its weights, which a library then opens, anywhere on the device. Exported files never
do; such a file is refused. Read without the onnx package, which a Jetson does not have.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Dict, Iterator, Tuple, Union

from .errors import DeviceInputError

LARGEST_ONNX_BYTES = 256 * 2**20
"""The largest network that is read; the packaged students have less than a megabyte."""

_DEEPEST = 64  # messages inside messages
_EXTERNAL = 1
_LOCATION, _EXTERNAL_DATA = 14, 13  # of a tensor
_TENSORS_IN: Dict[str, Dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
"""Message → field number → the message there that is or holds a tensor."""


def read_onnx(path: Path) -> bytes:
    """Read an ONNX file of at most `LARGEST_ONNX_BYTES` that holds all its weights itself.

    Raises DeviceInputError where it is missing, larger (it is then not read), damaged, or names other files.
    """
    try:
        content = read_regular(path, LARGEST_ONNX_BYTES)
    except OSError as error:
        raise DeviceInputError(
            f"{path}: {error.strerror}", "a model is an exported .onnx file", "check the path"
        ) from error
    check_self_contained(content, str(path))
    return content


def read_regular(path: Path, largest: int) -> bytes:
    """Read a regular file of at most ``largest`` bytes; raises DeviceInputError for others, OSError for none.

    The size is checked before anything is read, and reading stops there should the file grow meanwhile.
    """
    handle = os.open(str(path), os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(handle, "rb") as stream:
        status = os.fstat(stream.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise DeviceInputError(f"{path} is not a regular file", "devices, pipes and folders are not read")
        content = b"" if status.st_size > largest else stream.read(largest + 1)
    if status.st_size > largest or len(content) > largest:
        raise DeviceInputError(
            f"{path} has {max(status.st_size, len(content))} bytes", f"at most {largest} are read", "check the file"
        )
    return content


def check_self_contained(content: bytes, name: str) -> None:
    """Raise DeviceInputError where an ONNX file is damaged or keeps weights in other files."""
    try:
        external = _has_external(memoryview(content), "model", 0)
    except (IndexError, ValueError) as error:
        raise DeviceInputError(f"{name} is not a whole ONNX file ({error})", remedy="copy it again") from error
    if external:
        raise DeviceInputError(
            f"{name} keeps weights in other files",
            "a network is one file that holds everything, so that its checksum covers everything",
            "write it with `duskfuse export`",
        )


def _has_external(message: memoryview, kind: str, depth: int) -> bool:
    if depth > _DEEPEST:
        raise ValueError("graphs nested too deep")
    for number, value in fields(message):
        inner = _TENSORS_IN.get(kind, {}).get(number)
        if kind == "tensor" and (number == _EXTERNAL_DATA or (number == _LOCATION and value == _EXTERNAL)):
            return True
        if inner is not None and isinstance(value, memoryview) and _has_external(value, inner, depth + 1):
            return True
    return False


def fields(message: memoryview) -> Iterator[Tuple[int, Union[int, memoryview]]]:
    """The fields of a message: numbers as int, everything with a length as bytes; numbers of fixed size are skipped."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(message, at)
            yield number, value
        elif wire == 2:
            length, at = _varint(message, at)
            if at + length > len(message):
                raise ValueError("it ends too early")
            yield number, message[at : at + length]
            at += length
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
        else:
            raise ValueError(f"unknown wire type {wire}")


def _varint(message: memoryview, at: int) -> Tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number without an end")
