"""The exceptions that the command line turns into one readable message and an exit code.

Every message says what was seen, the rule it broke, and what to do instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches


class DuskfuseError(Exception):
    """Something went wrong that the user can understand; ``exit_code`` is what the shell gets.

    >>> str(DuskfuseError("ir/a.png is 1×1", rule="pictures need 4 pixels a side", remedy="remove the pair"))
    'ir/a.png is 1×1; pictures need 4 pixels a side; remove the pair'
    """

    exit_code = 1

    def __init__(self, seen: str, *, rule: str = "", remedy: str = "") -> None:
        self.seen, self.rule, self.remedy = seen, rule, remedy
        super().__init__("; ".join(part for part in (seen, rule, remedy) if part))


class InputError(DuskfuseError):
    """Wrong usage or wrong input: files, folders, options, configuration."""

    exit_code = 2


class StorageError(DuskfuseError):
    """The disk refuses: full, over quota, read-only, gone. What was finished before stays."""


class TrainingError(DuskfuseError):
    """Training cannot go on."""


class DivergenceError(TrainingError):
    """A term or a gradient became NaN or infinite."""


class VerificationError(DuskfuseError):
    """A written file does not do what the model it was made from does."""


def unknown_key(key: object, known: Sequence[str]) -> InputError:
    """The error for a key that a configuration file may not have; names the nearest that it may.

    >>> str(unknown_key("blackhot", ["black_hot", "resize_ir"]))
    "unknown key 'blackhot'; keys are black_hot, resize_ir; did you mean black_hot?"
    """
    shown = str(key)[:40]
    near = get_close_matches(shown.lower(), known, n=1)
    return InputError(
        f"unknown key {shown!r}",
        rule=f"keys are {', '.join(known)}",
        remedy=f"did you mean {near[0]}?" if near else "remove it",
    )
