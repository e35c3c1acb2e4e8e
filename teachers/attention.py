"""The spatial transformer of the SAGE main network: attention over all pixels of a pooled feature map.

Structure: SAGE (CVPR 2025, arXiv 2503.01210), which takes the block of latent diffusion models and lets it hand its
projected keys and values on to the next transformer.
"""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn


class Repository(NamedTuple):
    """Projected keys and values that one transformer leaves for the next (SAGE's persistent repository)."""

    keys: Tensor
    """``[B, L, C]``."""
    values: Tensor
    """``[B, L, C]``."""


class Attention(nn.Module):
    """Multi-head attention; queries, keys and values without bias, output projection with bias."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(channels, channels, bias=False)
        self.to_v = nn.Linear(channels, channels, bias=False)
        self.to_out = nn.Linear(channels, channels)

    def forward(self, tokens: Tensor, repository: Repository | None = None) -> tuple[Tensor, Repository]:
        """Attend from ``tokens [B, L, C]`` to themselves, or to a repository of ``[B, M, C]``.

        The repository's keys and values are projected once more with this module's own weights. Returns the attended
        tokens ``[B, L, C]`` and the projected keys and values.
        """
        source = Repository(tokens, tokens) if repository is None else repository
        keys, values = self.to_k(source.keys), self.to_v(source.values)
        split = (self.heads, -1)
        q, k, v = (x.unflatten(-1, split).transpose(1, 2) for x in (self.to_q(tokens), keys, values))
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.to_out(attended), Repository(keys, values)


class GatedFeedForward(nn.Module):
    """GEGLU feed-forward: half of the hidden units gate the other half."""

    def __init__(self, channels: int, expansion: int = 4) -> None:
        super().__init__()
        self.expand = nn.Linear(channels, 2 * expansion * channels)
        self.contract = nn.Linear(expansion * channels, channels)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map ``[B, L, C]`` to ``[B, L, C]``."""
        value, gate = self.expand(tokens).chunk(2, dim=-1)
        contracted: Tensor = self.contract(value * F.gelu(gate))
        return contracted


class SpatialTransformer(nn.Module):
    """Self-attention, attention to a repository and feed-forward over the pixels of a map, as a residual.

    The last projection starts at zero, so a fresh transformer returns its input.
    """

    def __init__(self, channels: int = 64, heads: int = 2) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(4, channels, eps=1e-6)
        self.proj_in = nn.Conv2d(channels, channels, 1)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(channels) for _ in range(3))
        self.attention1 = Attention(channels, heads)
        self.attention2 = Attention(channels, heads)
        self.feed_forward = GatedFeedForward(channels)
        self.proj_out = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)  # type: ignore[arg-type]  # there is a bias

    def forward(self, x: Tensor, repository: Repository | None = None) -> tuple[Tensor, Repository]:
        """Transform ``x [B, C, h, w]``; without a repository the second attention looks at ``x`` itself.

        Returns the map ``[B, C, h, w]`` and the second attention's projected keys and values.
        """
        tokens = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2)
        tokens = tokens + self.attention1(self.norm1(tokens))[0]
        attended, left = self.attention2(self.norm2(tokens), repository)
        tokens = tokens + attended
        tokens = tokens + self.feed_forward(self.norm3(tokens))
        return x + self.proj_out(tokens.transpose(1, 2).unflatten(2, x.shape[-2:])), left
