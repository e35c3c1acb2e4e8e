"""The base vector bank: from what the kernels of all compensations are made, and how a vector is chosen.

A choice is an index, and an index has no gradient: where the published code takes the chosen vectors alone, the heads
that ask for them, 136,704 of 214,964 parameters per module, never learn. Here the value is that of the chosen vectors,
and the gradient also that of the softmax over all of them (straight-through estimator, Bengio et al. 2013).
"""

from __future__ import annotations

from enum import Enum

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VECTORS = 32
"""Per configuration."""
LENGTH = 256
SHARPNESS = 0.1
"""Temperature of the softmax through which a choice of vectors learns; cosines lie in [−1, 1]."""


class Configuration(Enum):
    """Kernel size and dilation of one branch."""

    POINT = (1, 1)
    NEAR = (3, 1)
    WIDE = (3, 2)
    WIDER = (3, 3)

    @property
    def kernel(self) -> int:
        """Side of the kernel."""
        return self.value[0]

    @property
    def dilation(self) -> int:
        """Distance of its taps."""
        return self.value[1]


CONFIGURATIONS = tuple(Configuration)


def orthonormal_rows(rows: int, columns: int) -> Tensor:
    """Random ``[rows, columns]`` with R Rᵀ = I; no more rows than columns."""
    return nn.init.orthogonal_(torch.empty(columns, rows)).T.contiguous()


class BaseVectorBank(nn.Module):
    """32 trainable vectors per configuration, all orthonormal at first; shared by every compensated feature map."""

    def __init__(self) -> None:
        super().__init__()
        rows = orthonormal_rows(len(CONFIGURATIONS) * VECTORS, LENGTH)
        self.vectors = nn.Parameter(rows.view(len(CONFIGURATIONS), VECTORS, LENGTH))

    def forward(self, query: Tensor, ranks: Tensor) -> Tensor:
        """The vectors nearest to a query, of every configuration.

        Args:
            query: ``[B, 256]``.
            ranks: ``[B, M, K]`` int64: which in the order of cosine, 0 the nearest, branch m gets of configuration k.

        Returns:
            ``[B, M, K, 256]``.
        """
        cosines = torch.einsum("bd,kvd->bkv", F.normalize(query.float(), dim=-1), F.normalize(self.vectors, dim=-1))
        nearest = cosines.topk(ranks.shape[1], dim=-1).indices  # no branch asks for more
        chosen = nearest.gather(-1, ranks.transpose(1, 2)).transpose(1, 2)
        hard = self.vectors[torch.arange(len(CONFIGURATIONS), device=query.device), chosen]
        soft = torch.einsum("bkv,kvd->bkd", (cosines / SHARPNESS).softmax(dim=-1), self.vectors)
        return hard + (soft - soft.detach())[:, None]
