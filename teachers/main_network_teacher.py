"""The trained main network as a teacher: it takes region patches, so masks must be cached before it fuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from duskfuse.data.colour import luminance
from duskfuse.data.errors import InputError
from duskfuse.data.images import file_sha256
from duskfuse.data.pair import Pair
from duskfuse.data.priors.cache import JsonValue, PriorStore
from duskfuse.data.priors.masks import MaskSet
from duskfuse.teachers.main_network import ARCHITECTURE, MainNetwork, load_main_network
from duskfuse.teachers.teacher import TeacherJob, TeacherPicture
from duskfuse.teachers.tiled import fuse_tiled


class MainNetworkTeacher:
    """Fuses whole pictures, tile by tile, with the largest masks of each modality.

    Args:
        weights: a weights file whose card says ``sage-main``.
        masks: the store that holds the masks of both pictures of every pair.

    Raises:
        InputError: unusable weights.
    """

    name = ARCHITECTURE

    def __init__(self, weights: Path, masks: PriorStore) -> None:
        network, _ = load_main_network(weights)
        # channels_last: convolutions on a CPU run several times faster in it, and no slower on a GPU.
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._network = network.to(device).to(memory_format=torch.channels_last)
        self._sha256 = file_sha256(weights)
        self._masks = masks

    @property
    def settings(self) -> dict[str, JsonValue]:
        """What the pictures depend on."""
        return {
            "weights_sha256": self._sha256,
            "architecture": ARCHITECTURE,
            "masks": {"source": self._masks.source, "settings": dict(self._masks.settings)},
        }

    def fuse(self, job: TeacherJob) -> TeacherPicture:
        """Fuse one pair; InputError where it is unusable or has no masks of its size."""
        pair = job.read()
        ir, vis = (self._mask_set(key) for key in job.keys)
        height, width = pair.size
        return TeacherPicture(fuse_with_masks(self._network, pair, ir, vis), (0, 0, height, width))

    def _mask_set(self, key: str) -> MaskSet:
        record = self._masks.get(key)
        assert isinstance(record, MaskSet)
        return record


def fuse_with_masks(network: MainNetwork, pair: Pair, masks_ir: MaskSet, masks_vis: MaskSet) -> NDArray[np.float32]:
    """Luminance ``[H, W]`` in [0, 1] of one pair; the largest N masks of each modality become the region patches."""
    slots = network.masks
    vis_y = luminance(pair.vis)[None]
    ir = pair.ir[None]
    vis_patches = vis_y * _planes(masks_vis, slots, pair.size)
    ir_patches = ir * _planes(masks_ir, slots, pair.size)
    device = next(network.parameters()).device
    y = fuse_tiled(network, *(tensor.to(device) for tensor in (vis_y, ir, vis_patches, ir_patches)))
    return np.asarray(y[0, 0].float().cpu().numpy(), np.float32)


def _planes(masks: MaskSet, slots: int, size: tuple[int, int]) -> torch.Tensor:
    """``[1, N, H, W]`` float; a slot without a mask sees the whole picture, as in training."""
    if (masks.height, masks.width) != size:
        raise InputError(
            f"cached masks of {masks.width}×{masks.height} for a picture of {size[1]}×{size[0]}",
            remedy="run duskfuse cache-masks DATA again",
        )
    planes = torch.ones(1, slots, *size)
    count = min(slots, len(masks))
    planes[0, :count] = torch.from_numpy(masks.decode(range(count))).float()
    return planes
