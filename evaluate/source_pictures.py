"""The sources of a pair as they are scored, and what has to be known of them before any scoring."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from duskfuse.data.containers import Size
from duskfuse.data.images import grey_u8, to_u8
from duskfuse.data.pair_files import PairFiles, check_sizes, read_ir, read_vis
from duskfuse.evaluate.metrics import Grey


class SourcePictures:
    """The pictures of one pair, read when first asked for; InputError where one is unusable."""

    def __init__(self, files: PairFiles) -> None:
        self.files = files

    @cached_property
    def ir_u8(self) -> Grey:
        """Infrared, ``[H, W]`` uint8."""
        return to_u8(self.ir)

    @cached_property
    def vis_u8(self) -> Grey:
        """Visible luminance, ``[H, W]`` uint8."""
        return grey_u8(to_u8(self.vis))

    @cached_property
    def ir(self) -> NDArray[np.float32]:
        """Infrared, ``[H, W]`` in [0, 1]."""
        return read_ir(self.files)

    @cached_property
    def vis(self) -> NDArray[np.float32]:
        """Visible, ``[H, W, 3]`` RGB in [0, 1]."""
        return read_vis(self.files)


@dataclass(frozen=True)
class Span:
    """The smallest and the largest 8-bit value of a picture, of all its channels."""

    least: int
    most: int

    @classmethod
    def of(cls, *pictures: NDArray[np.uint8]) -> Span:
        """Of all these pictures together."""
        return cls(min(int(p.min()) for p in pictures), max(int(p.max()) for p in pictures))

    @property
    def is_full(self) -> bool:
        """Whether it is exactly 0 to 255."""
        return (self.least, self.most) == (0, 255)


@dataclass(frozen=True)
class SeenSources:
    """What is known of a pair once both sources were read."""

    key: str
    """Hash of all that both pictures depend on: the bytes of their files, and how they are read."""
    size: Size
    """(height, width)."""
    span: Span
    """Of both together."""
    brightness: float
    """Mean grey level of the visible picture, 0 to 255."""


def look_at_sources(files: PairFiles) -> SeenSources:
    """Read a pair and say what there is; InputError where a picture is unusable or the sizes differ."""
    check_sizes(files)
    key = hashlib.sha256("\n".join(files.prior_keys()).encode()).hexdigest()
    pictures = SourcePictures(files)
    height, width = pictures.ir_u8.shape
    span = Span.of(pictures.ir_u8, to_u8(pictures.vis))
    return SeenSources(key, (height, width), span, float(pictures.vis_u8.mean()))
