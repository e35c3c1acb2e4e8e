"""The errors of the device runtime: what was seen, the rule it broke, what to do instead.

They are plain ValueError and RuntimeError to a program that imports the runtime; the command line prints them as one
line and ends with ``exit_code``.
"""

from __future__ import annotations


class DeviceInputError(ValueError):
    """Wrong usage or wrong input: files, pictures, options."""

    exit_code = 2

    def __init__(self, seen: str, rule: str = "", remedy: str = "") -> None:
        self.seen, self.rule, self.remedy = seen, rule, remedy
        super().__init__("; ".join(part for part in (seen, rule, remedy) if part))


class DeviceError(RuntimeError):
    """What the input is not to blame for: a missing library, a camera that is gone, an engine that cannot be built."""

    exit_code = 1

    def __init__(self, seen: str, rule: str = "", remedy: str = "") -> None:
        self.seen, self.rule, self.remedy = seen, rule, remedy
        super().__init__("; ".join(part for part in (seen, rule, remedy) if part))
