"""The batch context: what a term may look at, computed once and only when somebody asks.

A term never detaches by itself. It names a field, and the context offers live outputs and their stop-gradient twins;
so which network a term can move is visible in the recipe and testable from outside.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from duskfuse.data.colour import luminance
from duskfuse.data.fuser import Colour, FusionOutput
from duskfuse.distill.pseudo_label import pseudo_label
from duskfuse.distill.recipe import ContrastiveConfig, FusionField, Owner
from duskfuse.distill.unrolled import Functional
from duskfuse.students.fake_quantise import QuantisedStudent
from duskfuse.tasks.encoders import FeatureEncoder
from duskfuse.tasks.task_network import Task, TaskNetwork
from duskfuse.teachers.conditional_diffusion import sample_fused
from duskfuse.teachers.denoiser import ConditionalDenoiser


@dataclass(frozen=True)
class Batch:
    """Tensors of B samples, all cut by one draw per sample, in two views.

    ``ir`` and ``vis`` are what the terms compare with and what main network and denoiser see. A student that is to
    stand up to bad cameras is given the degraded pictures instead, and is to make what belongs to the clean ones.
    """

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
    noise: Tensor | None = None
    """What the denoiser's pictures are buried in, ``[B, 1, H, W]`` standard normal."""
    timestep: Tensor | None = None
    """And how deep, ``[B]`` int64."""
    label: Tensor | None = None
    """Class ids, ``[B, H, W]`` uint8; 255 does not count."""
    objects: Tensor | None = None
    """Boxes ``[B, N, 5]`` in pixels, see `duskfuse.tasks.objects`."""
    salient: Tensor | None = None
    """Saliency ``[B, 1, H, W]`` in [0, 1]; −1 does not count."""
    degraded_ir: Tensor | None = None
    """What a bad infrared camera gives in place of ``ir``, in the same shape and range."""
    degraded_vis: Tensor | None = None
    """What a bad visible camera gives in place of ``vis``."""

    @cached_property
    def vis_y(self) -> Tensor:
        """Visible luminance, ``[B, 1, H, W]``."""
        return luminance(self.vis)

    @cached_property
    def derived(self) -> dict[Hashable, Any]:
        """What terms made of this batch alone, by keys of their own: whoever looks at the same batch finds it."""
        return {}

    @property
    def input_ir(self) -> Tensor:
        """Infrared that the student is given."""
        return self.ir if self.degraded_ir is None else self.degraded_ir

    @property
    def input_vis(self) -> Tensor:
        """Visible RGB that the student is given."""
        return self.vis if self.degraded_vis is None else self.degraded_vis

    @cached_property
    def input_vis_y(self) -> Tensor:
        """Visible luminance that the student is given."""
        return self.vis_y if self.degraded_vis is None else luminance(self.degraded_vis)

    def clean(self) -> Batch:
        """The same batch without degraded pictures."""
        return replace(self, degraded_ir=None, degraded_vis=None)

    def to(self, device: torch.device) -> Batch:
        """The same batch on ``device``."""
        return self.each_tensor(lambda tensor: tensor.to(device, non_blocking=True))

    def each_tensor(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The same batch with every tensor changed."""
        changed: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            changed[field.name] = change(value) if isinstance(value, Tensor) else value
        return Batch(**changed)

    def split(self, parts: int) -> Iterator[Batch]:
        """The same samples in ``parts`` batches of equal size."""
        size = len(self.names) // parts
        for start in range(0, parts * size, size):
            part = slice(start, start + size)
            yield replace(self.each_tensor(operator.itemgetter(part)), names=self.names[part])


def source_patches(source: Tensor, masks: Tensor) -> Tensor:
    """Patches that the main network takes, ``[B, N, H, W]``: source × mask, the whole source in an empty slot."""
    empty = ~masks.flatten(2).any(dim=2)[..., None, None]
    return source * (masks | empty).to(source.dtype)


class BatchContext:
    """One batch, both networks and the frozen encoder and critics, with lazily computed fields.

    In a ``coupled`` context the stop-gradient twins are the live outputs themselves: the unrolled step differentiates
    one network's loss with respect to the other.
    """

    def __init__(
        self,
        batch: Batch,
        networks: Mapping[Owner, nn.Module | Functional],
        encoder: FeatureEncoder | None = None,
        autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
        *,
        critics: Mapping[Task, TaskNetwork[Any, Any, Any]] | None = None,
        contrastive: ContrastiveConfig | None = None,
        quality: Mapping[str, float] | None = None,
        perceptual: FeatureEncoder | None = None,
        adapters: Callable[[Sequence[Tensor]], Sequence[Tensor]] | None = None,
        coupled: bool = False,
    ) -> None:
        self.batch = batch
        self.encoder, self.critics = encoder, critics or {}
        self.contrastive, self.quality = contrastive or ContrastiveConfig(), quality or {}
        self.perceptual, self.adapters = perceptual, adapters
        self._networks = networks
        self._autocast = autocast
        self._coupled = coupled
        self._fields: dict[FusionField, FusionOutput] = {}

    def has(self, owner: Owner) -> bool:
        """Whether this network takes part in the run."""
        return owner in self._networks

    def field(self, field: FusionField) -> FusionOutput:
        """The named output; live fields carry a graph, cached ones and, unless coupled, ``*_sg`` never do."""
        if field not in self._fields:
            self._fields[field] = self._compute(field)
        return self._fields[field]

    def _compute(self, field: FusionField) -> FusionOutput:
        if field is FusionField.TEACHER_CACHED:
            if self.batch.teacher_y is None:
                raise ValueError("the batch holds no cached teacher image")
            return FusionOutput(self.batch.teacher_y)
        if field is FusionField.PSEUDO_LABEL:
            return FusionOutput(pseudo_label(self.batch.vis_y, self.batch.ir))
        if field is FusionField.STUDENT_FLOAT:
            return self._student_in_float()
        if field is FusionField.DENOISER_TARGET:
            cached = self.batch.teacher_y
            return FusionOutput(pseudo_label(self.batch.vis_y, self.batch.ir) if cached is None else cached)
        owner = Owner(field.value.removesuffix("_sg"))
        if field.value == owner.value:
            return self._forward(owner)
        if self._coupled:
            return self.field(FusionField(owner.value))
        live = self._fields.get(FusionField(owner.value))
        if live is not None:
            return live.each_tensor(Tensor.detach)
        with torch.no_grad():
            return self._forward(owner)

    def denoiser_gain(self) -> Tensor:
        """How far the denoiser's pictures move in [−1, 1] when its last convolution's output moves by one, per sample.

        ``[B, 1, 1, 1]``.
        """
        return self._denoiser().output_gain(self._noised()[1])

    def sampled(self) -> Tensor:
        """Pictures that the denoiser draws from nothing but noise and the sources, ``[B, 1, H, W]`` in [0, 1]."""
        with self._autocast():
            return sample_fused(self._denoiser(), self.batch.vis_y, self.batch.ir)

    def _denoiser(self) -> ConditionalDenoiser:
        network = self._networks[Owner.DENOISER]
        assert isinstance(network, ConditionalDenoiser)
        return network

    def _noised(self) -> tuple[Tensor, Tensor]:
        if self.batch.noise is None or self.batch.timestep is None:
            raise ValueError("the batch holds no noise for the denoiser")
        return self.batch.noise, self.batch.timestep

    def _student_in_float(self) -> FusionOutput:
        """Pictures of the student that the quantised one was made from, of the same inputs; its taps have no use."""
        network, batch = self._networks[Owner.STUDENT], self.batch
        assert isinstance(network, QuantisedStudent)
        vis = batch.input_vis if network.colour == Colour.RGB else batch.input_vis_y
        output = network.in_float(vis, batch.input_ir)
        return FusionOutput(output.y, rgb=output.rgb)

    def _forward(self, owner: Owner) -> FusionOutput:
        batch, network = self.batch, self._networks[owner]
        with self._autocast():
            if owner is Owner.DENOISER:
                noise, timestep = self._noised()
                target = self.field(FusionField.DENOISER_TARGET).y
                noisy = self._denoiser().add_noise(2 * target - 1, noise, timestep)
                return FusionOutput((network(noisy, batch.vis_y, batch.ir, timestep) + 1) / 2)
            if owner is Owner.STUDENT:
                vis = batch.input_vis if getattr(network, "colour", Colour.LUMA) == Colour.RGB else batch.input_vis_y
                output: FusionOutput = network(vis, batch.input_ir)
            else:
                vis_patches = source_patches(batch.vis_y, batch.masks_vis)
                output = network(batch.vis_y, batch.ir, vis_patches, source_patches(batch.ir, batch.masks_ir))
        return output.each_tensor(Tensor.float)
