"""Sizes of pictures, of files for one size and of files for a range of sizes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from duskfuse.data.errors import InputError
from duskfuse.data.images import SMALLEST_SIDE
from duskfuse.evaluate.fusers import size_text

Size = tuple[int, int]
"""(height, width)."""

DEFAULT_SIZE = "640x480"
LARGEST_SIDE = 8192


@dataclass(frozen=True)
class SizeRange:
    """The sizes that an engine of a file for any size is built for: what TensorRT calls an optimisation profile."""

    least: Size = (120, 160)
    usual: Size = (480, 640)
    """The engine is fastest here."""
    most: Size = (1024, 1280)

    @classmethod
    def of(cls, sizes: Sequence[Size]) -> SizeRange:
        """From the smallest to the largest height and width of ``sizes``, made for the first; 160x120, 640x480 and
        1280x1024 where there are none.

        >>> SizeRange.of([(480, 640), (512, 320)]).most
        (512, 640)
        """
        if not sizes:
            return cls()
        heights, widths = zip(*sizes, strict=True)
        return cls((min(heights), min(widths)), sizes[0], (max(heights), max(widths)))

    def texts(self) -> dict[str, str]:
        """Return ``WIDTHxHEIGHT`` of each, by the builder's names ``min``, ``opt`` and ``max``."""
        return {"min": size_text(self.least), "opt": size_text(self.usual), "max": size_text(self.most)}


def parse_size(text: str) -> Size:
    """Read ``WIDTHxHEIGHT`` into (height, width); raises InputError for anything else.

    >>> parse_size("640x480")
    (480, 640)
    """
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text.strip().lower())
    if match is None or not all(SMALLEST_SIDE <= int(side) <= LARGEST_SIDE for side in match.groups()):
        raise InputError(
            f"size {text!r}",
            rule=f"a size is WIDTHxHEIGHT in pixels, each from {SMALLEST_SIDE} to {LARGEST_SIDE}",
            remedy="write it like 640x480",
        )
    return int(match[2]), int(match[1])
