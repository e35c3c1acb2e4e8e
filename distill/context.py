"""The batch context: what a term may look at, computed once and only when somebody asks.

A term never detaches by itself. It names a field, and the context offers live outputs and their stop-gradient twins;
so which network a term can move is visible in the recipe and testable from outside.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from duskfuse.data.colour import luminance
from duskfuse.data.fuser import FusionOutput
from duskfuse.distill.recipe import FusionField, Owner
from duskfuse.tasks.encoders import FeatureEncoder


@dataclass(frozen=True)
class Batch:
    """Tensors of B samples, all cut by one draw per sample."""

    ir: Tensor
    """``[B, 1, H, W]`` in [0, 1]."""
    vis: Tensor
    """``[B, 3, H, W]`` RGB in [0, 1]."""
    masks_ir: Tensor
    """``[B, N, H, W]`` bool; empty slots are all False."""
    masks_vis: Tensor
    """``[B, N, H, W]`` bool; mask k of one modality and mask k of the other are not the same object."""
    names: tuple[str, ...]
    teacher_y: Tensor | None = None
    """Cached teacher luminance, ``[B, 1, H, W]`` in [0, 1]."""

    @cached_property
    def vis_y(self) -> Tensor:
        """Visible luminance, ``[B, 1, H, W]``."""
        return luminance(self.vis)

    def to(self, device: torch.device) -> Batch:
        """The same batch on ``device``."""
        move = {
            name: getattr(self, name).to(device, non_blocking=True) for name in ("ir", "vis", "masks_ir", "masks_vis")
        }
        teacher_y = None if self.teacher_y is None else self.teacher_y.to(device, non_blocking=True)
        return Batch(names=self.names, teacher_y=teacher_y, **move)


def source_patches(source: Tensor, masks: Tensor) -> Tensor:
    """Patches that the main network takes, ``[B, N, H, W]``: source × mask, the whole source in an empty slot."""
    empty = ~masks.flatten(2).any(dim=2)[..., None, None]
    return source * (masks | empty).to(source.dtype)


class BatchContext:
    """One batch, both networks and the frozen encoder, with lazily computed fields."""

    def __init__(
        self,
        batch: Batch,
        networks: dict[Owner, nn.Module],
        encoder: FeatureEncoder | None = None,
        autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self.batch = batch
        self.encoder = encoder
        self._networks = networks
        self._autocast = autocast
        self._fields: dict[FusionField, FusionOutput] = {}

    def has(self, owner: Owner) -> bool:
        """Whether this network takes part in the run."""
        return owner in self._networks

    def field(self, field: FusionField) -> FusionOutput:
        """The named output; live fields carry a graph, ``*_sg`` and cached ones never do."""
        if field not in self._fields:
            self._fields[field] = self._compute(field)
        return self._fields[field]

    def _compute(self, field: FusionField) -> FusionOutput:
        if field is FusionField.TEACHER_CACHED:
            if self.batch.teacher_y is None:
                raise ValueError("the batch holds no cached teacher image")
            return FusionOutput(self.batch.teacher_y)
        owner = Owner(field.value.removesuffix("_sg"))
        if field.value == owner.value:
            return self._forward(owner)
        live = self._fields.get(FusionField(owner.value))
        if live is not None:
            return FusionOutput(live.y.detach(), tuple(tap.detach() for tap in live.taps))
        with torch.no_grad():
            return self._forward(owner)

    def _forward(self, owner: Owner) -> FusionOutput:
        batch, network = self.batch, self._networks[owner]
        with self._autocast():
            if owner is Owner.STUDENT:
                output = network(batch.vis_y, batch.ir)
            else:
                vis_patches = source_patches(batch.vis_y, batch.masks_vis)
                output = network(batch.vis_y, batch.ir, vis_patches, source_patches(batch.ir, batch.masks_ir))
        return FusionOutput(output.y.float(), tuple(tap.float() for tap in output.taps))
