"""Attention within each modality that reads both: the mutual relation module (MFRM) of IRDFusion, one modality of it.

x = LN(F), A = softmax(Q Kᵀ / √d_h) from the modality's own tokens, and F' = O(A (V + λ V_other)): where to look is the
modality's own matter, what is read there is its own value and λ times the other's. There is no residual and no
feed-forward network inside (IRDFusion, arXiv 2509.09085, and its published code).

The published code multiplies λ by the infrared's own value and not by the visible one's, in its infrared part; that is
`lambda_on_own`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

_PROJECTION_STD = 0.001
_VECTOR_STD = 0.1
_MOST_EXPONENT = 5.0
"""exp of more would leave the range that half precision can multiply with."""


class Relation(NamedTuple):
    """What a modality says about itself, once for any number of readings."""

    attention: Tensor
    """``[B, heads, N, N]``, rows sum to 1."""
    values: Tensor
    """``[B, heads, N, width / heads]``."""


class DifferentialGain(nn.Module):
    """exp(q₁·k₁) − exp(q₂·k₂) + λ_init(depth), λ_init = 0.8 − 0.6 e^(−0.3 depth), as in differential transformers.

    It does not depend on the input. (Ye et al. 2024, "Differential Transformer", where λ_init has the same form.)

    Args:
        width: length of the four vectors.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.randn(4, width) * _VECTOR_STD)

    def forward(self, depth: int) -> Tensor:
        """The gain, a scalar in single precision at least; with zero vectors 0.2, 0.3555, 0.4707, 0.5561, …"""
        q1, k1, q2, k2 = self.vectors.to(torch.promote_types(self.vectors.dtype, torch.float32)).unbind()
        rising, falling = (torch.dot(*pair).clamp_max(_MOST_EXPONENT).exp() for pair in ((q1, k1), (q2, k2)))
        gain: Tensor = rising - falling + 0.8 - 0.6 * math.exp(-0.3 * depth)
        return gain


class RelationReader(nn.Module):
    """One modality's half of the mutual relation module.

    Args:
        width: of the tokens, a multiple of ``heads``.
        heads: of the attention.
        dropout: of the attention and of the output, in training.
        lambda_on_own: λ multiplies the own value instead of the other's.
        key_bias: a bias of the keys adds the same to every score of a row, which softmax takes away again; such a
            parameter never has a gradient, so it is only there to have what the published code has.
    """

    DEPTH = 1
    """Of λ: 0.3555 at the start."""

    def __init__(
        self, width: int, heads: int, dropout: float, *, lambda_on_own: bool = False, key_bias: bool = False
    ) -> None:
        super().__init__()
        self.heads, self.lambda_on_own = heads, lambda_on_own
        self.norm = nn.LayerNorm(width)
        self.query, self.value, self.output = (nn.Linear(width, width) for _ in range(3))
        self.key = nn.Linear(width, width, bias=key_bias)
        self.gain = DifferentialGain(width)
        self.drop_attention, self.drop_output = nn.Dropout(dropout), nn.Dropout(dropout)
        for linear in (self.query, self.key, self.value, self.output):
            nn.init.normal_(linear.weight, std=_PROJECTION_STD)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)

    def relate(self, tokens: Tensor) -> Relation:
        """Relation map and values of tokens ``[B, N, width]``; what of a modality does not change is computed once."""
        normed = self.norm(tokens)
        query, key, values = (self._parted(linear(normed)) for linear in (self.query, self.key, self.value))
        scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
        return Relation(scores.softmax(dim=-1), values)

    def mixed(self, own: Relation, other_values: Tensor) -> Tensor:
        """A (V + λ V_other), before the output projection: ``[B, heads, N, width / heads]``."""
        gain = self.gain(self.DEPTH)
        first, second = (other_values, own.values) if self.lambda_on_own else (own.values, other_values)
        return self.drop_attention(own.attention) @ (first + gain * second)  # type: ignore[no-any-return]

    def read(self, own: Relation, other_values: Tensor) -> Tensor:
        """F' of the modality, ``[B, N, width]``."""
        mixed = self.mixed(own, other_values)
        return self.drop_output(self.output(mixed.transpose(1, 2).flatten(2)))  # type: ignore[no-any-return]

    def _parted(self, tokens: Tensor) -> Tensor:
        """``[B, N, width]`` as ``[B, heads, N, width / heads]``."""
        return torch.unflatten(tokens, -1, (self.heads, -1)).transpose(1, 2)
