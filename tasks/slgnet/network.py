"""SLGNet's features: the frozen transformer sees the visible picture; structure of both cameras and language join in.

The infrared picture enters through the structure alone. Pictures may have any size: nothing but the last row and column
of patches is ever padded, so no token stands for a place outside the picture.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from pydantic import JsonValue
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from duskfuse.tasks.encoders import IMAGENET_MEAN, IMAGENET_STD
from duskfuse.tasks.slgnet.adapters import CAPTIONS, TEXT_WIDTH, FusionAdapter, LanguageModulation
from duskfuse.tasks.slgnet.alignment import WINDOW, Aligned, ComparedWith
from duskfuse.tasks.slgnet.structure import CHANNELS, StructureEncoder
from duskfuse.tasks.slgnet.vit import FrozenVit


@dataclass(frozen=True)
class SlgSettings:
    """What the trained part is built from, besides the width of its transformer; the defaults are SLGNet on ViT-B."""

    stages: int = 4
    heads: int = 12
    points: int = 4
    evolution_hidden: int = 192
    shared_cameras: bool = True
    structure_channels: tuple[int, int, int] = CHANNELS
    stem: int = 64
    window: int = WINDOW
    compared: ComparedWith = ComparedWith.GRADIENT
    text_width: int = TEXT_WIDTH
    language_hidden: int = 512

    def as_json(self) -> dict[str, JsonValue]:
        """For a model card."""
        return {**asdict(self), "structure_channels": list(self.structure_channels), "compared": self.compared.value}


class SlgFeatures(NamedTuple):
    """What the network gives for a batch of pairs."""

    guided: Tensor
    """F_guided, ``[B, width, ⌈H/16⌉, ⌈W/16⌉]``."""
    structure: list[Tensor]
    """F_fl as the last stage had it, ``[B, h, w, width]`` at 1/8, 1/16 and 1/32."""
    levels: list[Aligned]
    """Alignment of each level: where to trust which camera."""


class SlgAdapters(nn.Module):
    """Everything that is trained, and all that a checkpoint holds."""

    def __init__(self, width: int = 768, settings: SlgSettings | None = None) -> None:
        super().__init__()
        chosen = settings or SlgSettings()
        self.structure = StructureEncoder(
            width, chosen.shared_cameras, chosen.structure_channels, chosen.stem, chosen.window, chosen.compared
        )
        self.stages = nn.ModuleList(
            FusionAdapter(width, stage > 0, chosen.heads, chosen.points, chosen.evolution_hidden)
            for stage in range(chosen.stages)
        )
        self.language = LanguageModulation(width, chosen.text_width, chosen.language_hidden)


class SlgNet(nn.Module):
    """A frozen vision transformer with trained adapters.

    Args:
        backbone: its depth must be a multiple of the number of stages, and its patches 16 pixels.
        settings: of the adapters.
        spare_memory: in training, compute each stage again instead of keeping its activations.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: FrozenVit, settings: SlgSettings | None = None, spare_memory: bool = False) -> None:
        super().__init__()
        self.settings, self.spare_memory = settings or SlgSettings(), spare_memory
        if len(backbone.blocks) % self.settings.stages:
            raise ValueError(f"{len(backbone.blocks)} blocks in {self.settings.stages} stages")
        self.backbone = backbone
        self.adapters = SlgAdapters(backbone.shape.width, self.settings)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, -1, 1, 1), persistent=False)

    def forward(
        self, visible: Tensor, infrared: Tensor, text: Tensor | None = None, size: tuple[int, int] | None = None
    ) -> SlgFeatures:
        """Features of a batch of pairs, with a graph back to both pictures.

        Args:
            visible: RGB ``[B, 3, H, W]`` in [0, 1].
            infrared: ``[B, 1, H, W]`` or three equal channels, in [0, 1].
            text: embeddings ``[B, 4, text_width]``; None where nothing is said.
            size: (height, width) of the pictures where they were padded at the bottom and right; what lies beyond is
                not looked at, and the maps cover ``size`` only.
        """
        if size is not None:
            visible, infrared = (picture[..., : size[0], : size[1]] for picture in (visible, infrared))
        seen = (visible - self.mean) / self.std
        warm = (infrared.expand(-1, 3, -1, -1) - self.mean) / self.std
        structure, levels = self.adapters.structure(seen, warm)
        tokens, grid = self.backbone.embed(seen)
        centres = _centres(grid, self.backbone.shape.patch, tokens)
        for stage in range(self.settings.stages):
            if self.spare_memory and self.training and torch.is_grad_enabled():
                tokens, structure = checkpoint(self._stage, stage, tokens, centres, structure, use_reentrant=False)
            else:
                tokens, structure = self._stage(stage, tokens, centres, structure)
        language = self.adapters.language
        if text is None:
            text = tokens.new_zeros(len(tokens), CAPTIONS, self.settings.text_width)
        guided = language(self.backbone.finish(tokens, grid), *language.parameters_of(text))
        return SlgFeatures(guided, structure, levels)

    def _stage(
        self, stage: int, tokens: Tensor, centres: Tensor, structure: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        prefix = self.backbone.prefix
        patches, structure = self.adapters.stages[stage](tokens[:, prefix:], centres, structure)
        tokens = torch.cat([tokens[:, :prefix], patches], dim=1)
        blocks = len(self.backbone.blocks) // self.settings.stages
        for block in self.backbone.blocks[stage * blocks : (stage + 1) * blocks]:
            tokens = block(tokens)
        return tokens, structure

    def parameter_groups(
        self, rate: float = 1e-4, decay: float = 0.7, weight_decay: float = 0.1
    ) -> list[dict[str, Any]]:
        """Groups for an optimiser: adapter i of n learns at rate · decay^(n−i), the rest at ``rate``.

        Norms, biases, gains and the level embedding have no weight decay. Nothing of the backbone is in any group.
        """
        groups: dict[tuple[float, float], list[Tensor]] = {}
        for name, parameter in self.adapters.named_parameters():
            part, _, rest = name.partition(".")
            below = self.settings.stages - 1 - int(rest.partition(".")[0]) if part == "stages" else 0
            shrinks = parameter.ndim > 1 and "level_embedding" not in name
            groups.setdefault((rate * decay**below, weight_decay if shrinks else 0.0), []).append(parameter)
        return [{"params": kept, "lr": lr, "weight_decay": shrink} for (lr, shrink), kept in groups.items()]


def count_parameters(module: nn.Module) -> int:
    """Numbers in all parameters of a module; buffers are none."""
    return sum(parameter.numel() for parameter in module.parameters())


def _centres(grid: tuple[int, int], patch: int, like: Tensor) -> Tensor:
    """Centres of the patches, ``[h·w, 2]`` (x, y) in pixels."""
    rows, columns = ((torch.arange(count, device=like.device, dtype=like.dtype) + 0.5) * patch for count in grid)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], dim=-1)
