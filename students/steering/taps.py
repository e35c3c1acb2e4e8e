"""Where a student's features can be read and replaced: named modules, reached through hooks.

A student only says which of its modules these are (`steering_taps`); its code knows nothing of steering.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from duskfuse.data.errors import InputError


class Modality(StrEnum):
    """What a feature map was made of."""

    IR = "ir"
    VIS = "vis"
    JOINT = "joint"


@dataclass(frozen=True)
class Tap:
    """The output of one module of a student."""

    module: str
    """Its name in the student, as ``named_modules`` gives it."""
    channels: int
    stride: int
    """Pixels of the picture per position."""
    modality: Modality


@runtime_checkable
class Steerable(Protocol):
    """A student whose features may be compensated."""

    steering_taps: Sequence[Tap]
    """The two that are steered by default come first."""


def taps_of(student: nn.Module, wanted: Sequence[str] | None = None) -> tuple[Tap, ...]:
    """The taps of a student that are named in ``wanted``, by default its first two.

    Raises InputError for a student without taps and for other names.
    """
    if not isinstance(student, Steerable) or not student.steering_taps:
        raise InputError(
            f"{type(student).__name__} names no features to compensate",
            rule="a student that is steered has steering_taps",
            remedy="take another student",
        )
    named = {tap.module: tap for tap in student.steering_taps}
    names = list(named)[:2] if wanted is None else list(wanted)
    if unknown := [name for name in names if name not in named]:
        raise InputError(f"tap {unknown[0]!r}", rule=f"this student has {', '.join(named)}", remedy="name one of these")
    return tuple(named[name] for name in dict.fromkeys(names))


@contextmanager
def replacing(student: nn.Module, changes: Mapping[str, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Within this context the output of every named module is replaced by what its function makes of it."""

    def hook(change: Callable[[Tensor], Tensor]) -> Callable[[nn.Module, object, Tensor], Tensor]:
        return lambda module, inputs, output: change(output)

    handles = [student.get_submodule(name).register_forward_hook(hook(change)) for name, change in changes.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
