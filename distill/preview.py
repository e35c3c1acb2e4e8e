"""Sample grids: what the networks see and make, one row per sample, so that a user can look before reading numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from duskfuse.data.colour import recombine
from duskfuse.distill.context import Batch, BatchContext
from duskfuse.distill.recipe import FusionField, Owner

MAX_ROWS = 4
GAP = 4
TITLE_HEIGHT = 20
MASK_COLOURS = torch.tensor([[0.95, 0.3, 0.25], [0.3, 0.75, 0.95], [0.55, 0.85, 0.3], [0.95, 0.75, 0.2]])


def sample_grid(context: BatchContext) -> NDArray[np.uint8]:
    """IR, visible, masks of both and every fused picture at hand, uint8 ``[H, W, 3]`` RGB."""
    batch = context.batch
    infrared = batch.ir.expand(-1, 3, -1, -1)
    columns = {"infrared": infrared, "visible": batch.vis}
    if batch.degraded_ir is not None:
        columns["infrared given"] = batch.degraded_ir.expand(-1, 3, -1, -1)
    if batch.degraded_vis is not None:
        columns["visible given"] = batch.degraded_vis
    if batch.masks_ir.any() or batch.masks_vis.any():
        columns |= {"masks ir": _overlay(infrared, batch.masks_ir), "masks vis": _overlay(batch.vis, batch.masks_vis)}
    with torch.no_grad():
        for owner, field in ((Owner.TEACHER, FusionField.TEACHER_SG), (Owner.STUDENT, FusionField.STUDENT_SG)):
            if context.has(owner):
                fused = context.field(field)
                columns[owner.value] = recombine(fused.y, batch.vis) if fused.rgb is None else fused.rgb
        if context.has(Owner.DENOISER):
            columns[Owner.DENOISER.value] = recombine(context.sampled(), batch.vis)
    if batch.teacher_y is not None:
        columns["cached teacher"] = recombine(batch.teacher_y, batch.vis)
    return picture_columns(columns)


def picture_columns(columns: Mapping[str, Tensor]) -> NDArray[np.uint8]:
    """Titled columns of RGB pictures ``[B, 3, H, W]`` in [0, 1] side by side, one row per sample."""
    return np.hstack([_column(title, pictures) for title, pictures in columns.items()])


def _overlay(picture: Tensor, masks: Tensor) -> Tensor:
    """Tint the pixels of each mask slot with its own colour."""
    picture = picture.clone()
    for slot in range(masks.shape[1]):
        colour = MASK_COLOURS[slot % len(MASK_COLOURS)].to(picture).view(1, 3, 1, 1)
        picture = torch.where(masks[:, slot, None], picture * 0.55 + colour * 0.45, picture)
    return picture


def _column(title: str, pictures: Tensor) -> NDArray[np.uint8]:
    levels = (pictures[:MAX_ROWS].clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    width = levels.shape[2]
    header = np.full((TITLE_HEIGHT, width, 3), 24, np.uint8)
    cv2.putText(header, title, (3, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (235, 235, 235), 1, cv2.LINE_AA)
    gap = np.full((GAP, width, 3), 24, np.uint8)
    stacked = np.vstack([header, *(part for picture in levels for part in (picture, gap))])
    return np.pad(stacked, ((0, 0), (0, GAP), (0, 0)), constant_values=24)


def preview_batch(batch: Batch) -> Batch:
    """The first few samples of a batch, for the grid."""
    return replace(batch.each_tensor(lambda tensor: tensor[:MAX_ROWS]), names=batch.names[:MAX_ROWS])
