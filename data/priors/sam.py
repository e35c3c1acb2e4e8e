"""Masks by the Segment Anything Model, whatever form its weights come in.

A file is a state dict in segment-anything's layout: ViT-B, -L, -H, or MobileSAM. A folder is a model saved by
transformers: SAM, SAM-HQ, SAM 2. The packages that run them are imported when a checkpoint is opened, not before.
"""

from __future__ import annotations

import sys
import urllib.error
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from duskfuse.data.errors import InputError
from duskfuse.data.images import file_sha256
from duskfuse.data.priors.automatic_masks import AutomaticMasks, PromptedNetwork
from duskfuse.data.priors.automatic_masks import SamSettings as SamSettings
from duskfuse.data.priors.cache import JsonValue, home
from duskfuse.data.priors.masks import KEPT_MASKS, MaskSet
from duskfuse.data.priors.sam_checkpoint import load_sam as load_sam
from duskfuse.data.progress import say


class SamModel(StrEnum):
    """The published checkpoints."""

    VIT_B = "vit_b"
    VIT_L = "vit_l"
    VIT_H = "vit_h"


@dataclass(frozen=True)
class _Published:
    file: str
    sha256: str

    @property
    def url(self) -> str:
        return f"https://dl.fbaipublicfiles.com/segment_anything/{self.file}"


PUBLISHED = {
    SamModel.VIT_B: _Published(
        "sam_vit_b_01ec64.pth", "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912"
    ),
    SamModel.VIT_L: _Published(
        "sam_vit_l_0b3195.pth", "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622"
    ),
    SamModel.VIT_H: _Published(
        "sam_vit_h_4b8939.pth", "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e"
    ),
}
"""Files and hashes of the published checkpoints (the digits in the file names are their MD5)."""


class SamPreset(StrEnum):
    """How densely the automatic generator asks for masks."""

    FAST = "fast"
    """1,024 points, no crops."""
    PAPER = "paper"
    """SAGE: 16,384 points on the picture and 4,096 on each of four crops."""


PRESETS = {
    SamPreset.FAST: SamSettings(points_per_side=32, crop_n_layers=0),
    SamPreset.PAPER: SamSettings(points_per_side=128, crop_n_layers=1),
}


class SamMasks:
    """Mask source ``sam``: the largest automatic masks, on the GPU where there is one.

    On a GPU that computes in bfloat16 the image encoder does; points are decoded and masks scored in float32.

    Args:
        checkpoint: state dict of a SAM, see :func:`load_sam`, or folder of a model saved by transformers.
        settings: one of `PRESETS`.
        keep: the number of masks kept of each picture.

    Raises:
        InputError: the checkpoint cannot be used, or the package that it needs is not installed.
    """

    name = "sam"

    def __init__(self, checkpoint: Path, settings: SamSettings, keep: int = KEPT_MASKS) -> None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        lower = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        dtype = torch.bfloat16 if lower else torch.float32
        network: PromptedNetwork
        if checkpoint.is_dir():
            from duskfuse.data.priors.sam_transformers import TransformersNetwork, folder_sha256

            network = TransformersNetwork(checkpoint, device, dtype)
            weights: dict[str, JsonValue] = {"folder_sha256": folder_sha256(checkpoint)}
        else:
            from duskfuse.data.priors.sam_network import SamNetwork

            network = SamNetwork(load_sam(checkpoint, mobile=True), device, dtype)
            weights = {"checkpoint_sha256": file_sha256(checkpoint)}
        self._find = AutomaticMasks(network, settings, keep)
        self._settings: dict[str, JsonValue] = {
            **asdict(settings),
            **weights,
            "encoder_precision": str(dtype).removeprefix("torch."),
            "keep": keep,
            "revision": 2,
        }

    @property
    def settings(self) -> dict[str, JsonValue]:
        """What the masks depend on."""
        return dict(self._settings)

    def masks(self, image_rgb: NDArray[np.uint8], /) -> MaskSet:
        """Find the masks of ``[H, W, 3]`` RGB; infrared has three equal channels.

        Raises:
            DuskfuseError: the GPU has too little memory even for one point at a time.
        """
        return self._find(image_rgb)


def downloaded_checkpoint() -> Path | None:
    """The smallest published checkpoint that is in the weights folder, None where there is none."""
    paths = (_weights_folder() / PUBLISHED[model].file for model in SamModel)
    return next((path for path in paths if path.is_file()), None)


def fetch_checkpoint(model: SamModel) -> Path:
    """Path of a published checkpoint, downloaded into ``$DUSKFUSE_HOME/weights`` unless it is there already.

    Raises:
        InputError: it cannot be downloaded, or what came is not the published file.
    """
    published = PUBLISHED[model]
    path = _weights_folder() / published.file
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    say(f"downloading {published.url} to {path}")
    try:
        torch.hub.download_url_to_file(published.url, str(path), published.sha256, progress=sys.stderr.isatty())
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        raise InputError(
            f"{published.url}: cannot be downloaded ({error})",
            rule=f"the checkpoint's sha256 is {published.sha256}",
            remedy=f"download it elsewhere and put it at {path}",
        ) from None
    return path


def _weights_folder() -> Path:
    return home() / "weights"
