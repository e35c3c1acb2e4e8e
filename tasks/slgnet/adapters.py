"""What is trained around the frozen transformer: injection of structure before each stage, and language after it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from duskfuse.tasks.slgnet.deformable import DeformableAttention
from duskfuse.tasks.slgnet.structure import STRIDES

TEXT_WIDTH = 512
CAPTIONS = 4
"""Captions of a scene: environment, kind of scene, objects, thermal appearance."""


class FusionAdapter(nn.Module):
    """One stage's injection, F + g ⊙ Attention(LN F, LN structure), after a step of the structure's own evolution.

    g starts at 0, so an untrained adapter changes nothing. The structure that it returns is what the next stage gets;
    the first stage has it as the encoder made it (``evolves`` False).
    """

    def __init__(
        self, width: int = 768, evolves: bool = True, heads: int = 12, points: int = 4, hidden: int = 192
    ) -> None:
        super().__init__()
        self.evolution = _Evolution(width, hidden) if evolves else None
        self.token_norm, self.structure_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = DeformableAttention(width, heads, len(STRIDES), points)
        self.gain = nn.Parameter(torch.zeros(width))

    def forward(self, tokens: Tensor, centres: Tensor, structure: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Tokens ``[B, N, width]`` of the patches with structure added, and the structure for the next stage.

        Args:
            tokens: of the patches alone, ``[B, N, width]``.
            centres: of the patches, ``[N, 2]`` (x, y) in pixels.
            structure: ``[B, h, w, width]`` for each of `STRIDES`.
        """
        maps = list(structure) if self.evolution is None else [self.evolution(level) for level in structure]
        normalised = [self.structure_norm(level) for level in maps]
        return tokens + self.gain * self.attention(self.token_norm(tokens), centres, normalised, STRIDES), maps


class _Evolution(nn.Module):
    """F + MLP(LN F), the same for every level. The norm has no scale of its own: the MLP's first layer is one."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, level: Tensor) -> Tensor:
        return level + self.mlp(self.norm(level))  # type: ignore[no-any-return]


class LanguageModulation(nn.Module):
    """Scale and shift of every channel, chosen by what is said about the scene: (γ + 1) ⊙ F + β.

    The last layers start at 0: untrained, it changes nothing. No normalisation follows, which would undo the identity.

    Args:
        width: channels of the maps.
        text_width: of one caption's embedding.
        hidden: channels of the layers between.
    """

    def __init__(self, width: int = 768, text_width: int = TEXT_WIDTH, hidden: int = 512) -> None:
        super().__init__()
        self.text_width = text_width
        self.pool = nn.Sequential(nn.Linear(CAPTIONS * text_width, hidden), nn.GELU(), nn.Linear(hidden, hidden))
        self.scale, self.shift = (_from_zero(hidden, width) for _ in range(2))

    def parameters_of(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """γ and β, ``[B, width]`` each, of embeddings ``[B, 4, text_width]``; zeros stand for captions not given.

        Raises:
            ValueError: the embeddings have another shape.
        """
        if text.shape[1:] != (CAPTIONS, self.text_width):
            raise ValueError(f"text {tuple(text.shape)}, want [B, {CAPTIONS}, {self.text_width}]")
        pooled = self.pool(text.flatten(1))
        return self.scale(pooled), self.shift(pooled)

    def forward(self, maps: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """Maps ``[B, width, h, w]`` modulated by γ and β of `parameters_of`."""
        return (scale[..., None, None] + 1) * maps + shift[..., None, None]


def _from_zero(hidden: int, width: int) -> nn.Sequential:
    last = nn.Linear(hidden, width)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(hidden, hidden), nn.GELU(), last)
