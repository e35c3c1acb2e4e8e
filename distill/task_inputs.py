"""What a task network is trained on: the visible or infrared picture, their average, or pictures fused elsewhere.

A fused luminance is shown with the visible chroma, as the critic and the evaluation show it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from duskfuse.data.colour import luminance, recombine
from duskfuse.data.errors import InputError
from duskfuse.data.images import file_sha256, read_picture, visible_from
from duskfuse.data.layout import pictures_by_stem
from duskfuse.data.pair import Pair
from duskfuse.data.pair_files import PairFiles, read_pair
from duskfuse.tasks.task_network import RGB


class TaskInput(StrEnum):
    """What the network sees."""

    VIS = "vis"
    IR = "ir"
    AVERAGE = "average"
    FUSED = "fused"
    BOTH = "both"
    """The visible and the infrared picture, for a detector of two cameras."""


@dataclass(frozen=True)
class ShownPairs:
    """Reads pairs whose visible picture is what the network sees."""

    kind: TaskInput
    fused: Mapping[str, Path] = field(default_factory=dict)
    """Of each pair, by its name; only for `TaskInput.FUSED`."""

    def __call__(self, files: PairFiles) -> Pair:
        """Read a pair, and put the input into the place of the visible picture; InputError where a file is unusable."""
        pair = read_pair(files)
        match self.kind:
            case TaskInput.VIS | TaskInput.BOTH:
                return pair
            case TaskInput.IR:
                return replace(pair, vis=pair.ir.expand(3, -1, -1).contiguous())
            case TaskInput.AVERAGE:
                return replace(pair, vis=recombine((luminance(pair.vis) + pair.ir) / 2, pair.vis))
            case TaskInput.FUSED:
                return replace(pair, vis=_fused(self.fused[files.name], pair))

    def pictures(self, files: PairFiles, channels: int) -> torch.Tensor:
        """What a network of so many channels sees of a pair: ``[3, H, W]``, or ``[4, H, W]`` with the infrared."""
        pair = self(files)
        return pair.vis if channels == RGB else torch.cat([pair.vis, pair.ir])

    def picture(self, files: PairFiles) -> NDArray[np.uint8]:
        """What a preview shows of it, ``[H, W, 3]``."""
        shown: NDArray[np.uint8] = (self(files).vis.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
        return shown

    def digest(self) -> str:
        """Names the fused pictures by what they hold; empty where there are none."""
        hashes = [file_sha256(self.fused[name]) for name in sorted(self.fused)]
        return hashlib.sha256("".join(hashes).encode()).hexdigest() if hashes else ""


def _fused(path: Path, pair: Pair) -> torch.Tensor:
    shown = torch.from_numpy(visible_from(read_picture(path))).permute(2, 0, 1)
    if shown.shape != pair.vis.shape:
        height, width = pair.size
        raise InputError(
            f"{path}: {shown.shape[2]}×{shown.shape[1]}, its pair {width}×{height}",
            rule="a fused picture has the size of its pair",
            remedy="fuse the pairs again, at their own size",
        )
    return recombine(luminance(shown), pair.vis)


def shown_pairs(wanted: str, pairs: Sequence[PairFiles]) -> ShownPairs:
    """What ``vis``, ``ir``, ``average``, ``both`` or ``fused=FOLDER`` stands for.

    Fused pictures are named as their pair, or as its visible picture.

    Raises:
        InputError: another word, or a folder that lacks pictures.
    """
    kind, _, folder = wanted.partition("=")
    if kind not in list(TaskInput) or (kind == TaskInput.FUSED) != bool(folder):
        raise InputError(
            f"input {wanted!r}", rule="a task network sees vis, ir, average or fused=FOLDER, a detector also both"
        )
    if not folder:
        return ShownPairs(TaskInput(kind))
    by_stem = pictures_by_stem(Path(folder))
    found = {pair.name: by_stem.get(pair.name) or by_stem.get(pair.vis.stem) for pair in pairs}
    missing = [name for name, path in found.items() if path is None]
    if missing:
        raise InputError(
            f"{folder}: no picture of {len(missing)} of {len(pairs)} pairs, such as {missing[0]}",
            rule="a fused picture is called as its pair",
            remedy="fuse these pairs, too, or choose a split with --split",
        )
    return ShownPairs(TaskInput.FUSED, {name: path for name, path in found.items() if path is not None})
