"""The pictures that a report holds, ready to be written into it, and what was measured while they were made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Detail(StrEnum):
    """How much of a pair's pictures a report holds."""

    FULL = "full"
    SMALL = "small"
    NONE = "none"


@dataclass(frozen=True)
class ShownPair:
    """One pair of the evaluation."""

    name: str
    brightness: float
    """Mean grey level of the visible picture, 0 to 255."""
    detail: Detail = Detail.NONE
    pictures: tuple[bytes, ...] = field(default=(), repr=False)
    """WebP files in the order of `ShownPairs.captions`; none where `detail` says so."""


@dataclass(frozen=True)
class ShownPairs:
    """What a report shows of the pairs."""

    captions: tuple[str, ...]
    """Of each pair's pictures: infrared, visible, then the methods."""
    pairs: tuple[ShownPair, ...]
    """All pairs of the evaluation, in its order."""
    milliseconds: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Model → time of each picture that it fused for the report, the first left out."""
    similarity: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Method → SSIM to the reference row's picture, of each pair that was looked at."""

    def count(self, detail: Detail) -> int:
        """How many pairs the report holds in this detail."""
        return sum(pair.detail is detail for pair in self.pairs)
