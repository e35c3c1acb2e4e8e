"""The Python classes that each TensorRT release has, made from ``tests/data/tensorrt_api.json`` and strict about it.

A class has exactly the members of its release: what the release lacks raises AttributeError, wrong arguments raise
TypeError, attributes that cannot be written raise AttributeError, as the real bindings do. What a method does stands in
a `Thing` of the same name, see ``tensorrt_standin.py``.
"""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

API_FILE = Path(__file__).parent / "data" / "tensorrt_api.json"
RELEASES: tuple[str, ...] = tuple(json.loads(API_FILE.read_text())["releases"])

_BITS = {
    "8": {"EXPLICIT_BATCH": 0, "EXPLICIT_PRECISION": 1},
    "10": {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1, "PREFER_AOT_PYTHON_PLUGINS": 2, "PREFER_JIT_PYTHON_PLUGINS": 3},
    "11": {"STRONGLY_TYPED": 0, "PREFER_AOT_PYTHON_PLUGINS": 1, "PREFER_JIT_PYTHON_PLUGINS": 2},
}
"""Values of NetworkDefinitionCreationFlag: the one enum whose numbers its users need (NvInfer.h of each release)."""


@cache
def api_of(release: str) -> Mapping[str, Mapping[str, str]]:
    """Classes a release has, each with its members: ``member``, ``property``, ``property rw`` or signatures."""
    api = json.loads(API_FILE.read_text())

    def has(span: str) -> bool:
        if span == "all":
            return True
        ends = [RELEASES.index(end) for end in span.split(" - ")]
        return ends[0] <= RELEASES.index(release) <= ends[-1]

    names = [name for span, names in api["classes"].items() if has(span) for name in names.split()]
    return {
        name: {
            member: kind
            for member, kinds in api["members"].get(name, {}).items()
            for kind, span in kinds.items()
            if has(span)
        }
        for name in names
    }


_KINDS: dict[str, type[Thing]] = {}


class Thing:
    """What stands behind an object of the module; each public method or attribute is one of the real class."""

    trt: Any

    def __init_subclass__(cls) -> None:
        _KINDS[cls.__name__.lstrip("_")] = cls

    def made(self, kind: str, *arguments: Any) -> Any:
        """A new object of another class of the module."""
        return facade(self.trt, kind, *arguments)


def behind(thing: Any) -> Any:
    return object.__getattribute__(thing, "_behind_it")


def facade(trt: Any, kind: str, *arguments: Any) -> Any:
    """An object of a class of the module that has no constructor."""
    cls = getattr(trt, kind)
    made = cls.__new__(cls)
    object.__setattr__(made, "_behind_it", _thing(trt, kind, arguments, {}))
    return made


def _thing(trt: Any, name: str, arguments: Sequence[Any], named: Mapping[str, Any]) -> Thing:
    thing = _KINDS[name].__new__(_KINDS[name])
    thing.trt = trt
    thing.__init__(*arguments, **named)  # type: ignore[misc]
    return thing


def strict_class(trt: Any, name: str, members: Mapping[str, str]) -> Any:
    """The class of that name as the release has it."""
    if members and all(kind == "member" for kind in members.values()):
        values = _BITS[trt._major] if name == "NetworkDefinitionCreationFlag" else {}
        cls = enum.Enum(name, {member: values.get(member, at) for at, member in enumerate(members)})  # type: ignore[misc]
        cls.__int__ = lambda self: self.value  # type: ignore[attr-defined]
        return cls
    if name in ("ILogger", "Logger"):
        members = {member: kind for member, kind in members.items() if kind not in ("Severity", "class")}
    space: dict[str, Any] = {"__slots__": () if name == "Logger" else ("_behind_it",)}
    space["__init__"] = _constructor(trt, name, members.get("__init__", ""))
    for member, kind in members.items():
        if kind.startswith("property"):
            space[member] = _property(member, writable=kind == "property rw")
        elif kind.startswith("(") and member != "__init__":
            space[member] = _method(trt, name, member, kind)
    if name == "IHostMemory":
        space["__bytes__"] = lambda self: behind(self).content
    if name == "Dims":
        space["__getitem__"] = lambda self, at: behind(self).shape[at]
        space["__len__"] = lambda self: len(behind(self).shape)
    if name in ("ILogger", "Logger"):
        space |= {level.name: level for level in _Severity} | {"Severity": _Severity}
    return type(name, (trt.ILogger,) if name == "Logger" else (), space)


class _Severity(enum.Enum):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


def _constructor(trt: Any, name: str, signature: str) -> Callable[..., None]:
    def construct(self: Any, *arguments: Any, **named: Any) -> None:
        if not signature.startswith("("):
            raise TypeError(f"{name}: No constructor defined!")
        bound = _bound(trt, name, signature, arguments, named)
        object.__setattr__(self, "_behind_it", _thing(trt, name, (), bound))

    return construct


def _property(member: str, *, writable: bool) -> property:
    def read(self: Any) -> Any:
        return getattr(behind(self), member)

    def write(self: Any, value: Any) -> None:
        setattr(behind(self), member, value)

    return property(read, write if writable else None)


def _method(trt: Any, name: str, member: str, signatures: str) -> Callable[..., Any]:
    def call(self: Any, *arguments: Any, **named: Any) -> Any:
        bound = _bound(trt, f"{name}.{member}", signatures, arguments, named)
        return getattr(behind(self), member)(**bound)

    return call


def _bound(trt: Any, name: str, signatures: str, arguments: Sequence[Any], named: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments by name, after the first signature that takes them; TypeError where none does."""
    for signature in signatures.split(" | "):
        wanted = _parameters(signature)
        given = dict(zip((one for one, _, _ in wanted), arguments, strict=False)) | dict(named)
        complete = all(one in given or optional for one, _, optional in wanted)
        known = len(given) == len(arguments) + len(named) and given.keys() <= {one for one, _, _ in wanted}
        if complete and known and all(_fits(trt, given[one], kind) for one, kind, _ in wanted if one in given):
            return given
    raise TypeError(f"{name}(): incompatible function arguments {arguments} {dict(named)}, want {signatures}")


@cache
def _parameters(signature: str) -> list[tuple[str, str, bool]]:
    """Name, type and whether there is a default."""
    inside = signature[1 : signature.rindex(") ->")]
    parts = re.split(r", (?=\w+: )", inside) if inside else []
    return [(part.split(":")[0], part.split(": ", 1)[1].split(" = ")[0], " = " in part) for part in parts]


_PLAIN: dict[str, Any] = {
    "int": int,
    "str": str,
    "bool": bool,
    "float": (int, float),
    "tuple": tuple,
    "list": list,
    "object": object,
}


def _fits(trt: Any, value: Any, kind: str) -> bool:
    if kind == "Dims":
        return isinstance(value, (tuple, list, trt.Dims))
    if kind == "buffer":
        return isinstance(value, (bytes, bytearray, memoryview, trt.IHostMemory))
    if kind.endswith("Severity"):
        return isinstance(value, _Severity)
    if kind.startswith("List["):
        return isinstance(value, (list, tuple))
    if kind in _PLAIN:
        return isinstance(value, _PLAIN[kind]) and (kind == "bool" or not isinstance(value, bool))
    cls = getattr(trt, kind, None)
    return isinstance(cls, type) and isinstance(value, cls) and (isinstance(value, enum.Enum) or constructed(value))


def constructed(value: Any) -> bool:
    """Whether the binding's constructor has run: subclasses must call it, or the real binding refuses the object."""
    try:
        behind(value)
    except AttributeError:
        return False
    return True
