"""The mask sources by name."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from duskfuse.data.errors import InputError
from duskfuse.data.priors.cache import JsonValue
from duskfuse.data.priors.labels import Labels
from duskfuse.data.priors.masks import KEPT_MASKS, MaskSet
from duskfuse.data.priors.random_crops import RandomCrops
from duskfuse.data.priors.regions import Regions


class MaskSourceName(StrEnum):
    """Where masks come from."""

    SAM = "sam"
    """Segment Anything, MobileSAM, SAM-HQ or SAM 2; needs a checkpoint."""
    REGIONS = "regions"
    """Classical segmentation; needs nothing."""
    LABELS = "labels"
    """The label maps of the dataset."""
    RANDOM_CROPS = "random-crops"
    """Random rectangles: what guidance by regions is worth is seen against them."""


class MaskSource(Protocol):
    """Makes the masks of one picture, always the same ones for the same picture and settings."""

    name: str

    @property
    def settings(self) -> dict[str, JsonValue]:
        """All that the masks depend on besides the picture."""
        ...

    def masks(self, image_rgb: NDArray[Any], /) -> MaskSet:
        """Masks of ``[H, W, 3]`` uint8 RGB, infrared repeated; ``labels`` takes the label map instead."""
        ...


def open_mask_source(
    name: MaskSourceName, checkpoint: Path | None = None, preset: str = "fast", keep: int = KEPT_MASKS
) -> MaskSource:
    """Make a source ready.

    Args:
        name: which.
        checkpoint: SAM's file or transformers folder; without one the file in ``$DUSKFUSE_HOME/weights`` is used, else
            ViT-B downloaded.
        preset: SAM's settings, ``fast`` or ``paper``.
        keep: the number of masks kept of each picture, the largest (``regions``: those that stand out most).

    Raises:
        InputError: unknown preset, no masks to keep, unusable or missing checkpoint, or one given to a source that
            takes none.
    """
    if keep < 1:
        raise InputError(f"{keep} masks of each picture", rule="keep at least one", remedy="leave the default of 20")
    if name is MaskSourceName.SAM:
        return _open_sam(checkpoint, preset, keep)
    if checkpoint is not None:
        raise InputError(
            f"checkpoint {checkpoint} for the mask source {name}",
            rule="only the source sam takes a checkpoint",
            remedy="leave the checkpoint away, or choose --source sam",
        )
    if name is MaskSourceName.RANDOM_CROPS:
        return RandomCrops(keep)
    return Regions(keep) if name is MaskSourceName.REGIONS else Labels(keep)


def _open_sam(checkpoint: Path | None, preset: str, keep: int) -> MaskSource:
    from duskfuse.data.priors.sam import PRESETS, SamMasks, SamModel, SamPreset, downloaded_checkpoint, fetch_checkpoint

    if preset not in list(SamPreset):
        raise InputError(
            f"SAM preset {preset!r}", rule="presets are " + " and ".join(SamPreset), remedy="choose one of them"
        )
    path = checkpoint or downloaded_checkpoint() or fetch_checkpoint(SamModel.VIT_B)
    return SamMasks(path, PRESETS[SamPreset(preset)], keep)
