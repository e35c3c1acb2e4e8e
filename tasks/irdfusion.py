"""IRDFusion (arXiv 2509.09085): fusion of the feature maps of two cameras by iterated differential feedback.

Two loops run one after the other from the same tokens. In each, one modality moves and the other is held. Every
iteration relates both (`duskfuse.tasks.mutual_relation`), takes the difference of what they say, D = F'_held − β
F'_moving, in which what both see cancels out, and feeds it back to the moving tokens: F ← μ F + α · MLP(LN(D)). Each
loop leaves F'_moving + D of its last iteration; resized and added to the backbone's map it goes into one 1×1
convolution over both modalities ("NiN").

What the published code repeats for nothing is done once: projections and relation map of the held modality, and one
product of attention and merged values. It also has parts that nothing uses, two networks and a convolution with 18 d²
of its 44 d² parameters, a λ that multiplies the wrong value in its infrared part, and another interpolation in training
than in use; ``published`` builds all of that.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from duskfuse.tasks.feature_fusion import FeatureFusion
from duskfuse.tasks.mutual_relation import DifferentialGain, Relation, RelationReader
from duskfuse.tasks.token_grid import TokenGrid

ITERATIONS = 4
HEADS = 8
DROPOUT = 0.1
_EXPANSION = 4


class IrdFeatures(NamedTuple):
    """What the block makes of two maps."""

    fused: Tensor
    """``[B, d, h, w]``."""
    vis: Tensor
    """Visible map with what the visible loop found, ``[B, d, h, w]``."""
    ir: Tensor
    """Infrared map with what the infrared loop found, ``[B, d, h, w]``."""
    difference_vis: Tensor
    """D of the visible loop's last iteration, ``[B, d, rows, columns]`` on the grid of tokens; 0 without iterations."""
    difference_ir: Tensor
    """D of the infrared loop's last iteration, likewise."""


class Guidance(nn.Module):
    """F ← μ F + α · MLP(LN(D)); one for both loops and all their iterations."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.network = _mlp(width, dropout)
        self.kept, self.added = nn.Parameter(torch.ones(())), nn.Parameter(torch.ones(()))

    def forward(self, tokens: Tensor, difference: Tensor) -> Tensor:
        """The next tokens, ``[B, N, width]`` from two of that shape."""
        return self.kept * tokens + self.added * self.network(self.norm(difference))  # type: ignore[no-any-return]


class GuidedLoop(nn.Module):
    """One modality moves, led by its difference to the other, which is held.

    Args:
        moving: relations of the modality that moves; the same in all iterations.
        held: those of the other.
        width: of the tokens.
        iterations: how often both are related, at least once.
    """

    def __init__(self, moving: RelationReader, held: RelationReader, width: int, iterations: int) -> None:
        super().__init__()
        self.moving, self.held, self.iterations = moving, held, iterations
        self.gain = DifferentialGain(width)

    def forward(self, moving: Tensor, held: Tensor, guidance: nn.Module | None) -> tuple[Tensor, Tensor]:
        """What the loop leaves, F'_moving + D, and D, of its last iteration; all tokens ``[B, N, width]``.

        The tokens are not led on after the last iteration, since nobody would look at them; a single one needs no
        ``guidance``.
        """
        still = self.held.relate(held)
        said, difference = self._related(moving, still, 0)
        for iteration in range(1, self.iterations):
            assert guidance is not None
            moving = guidance(moving, difference)
            said, difference = self._related(moving, still, iteration)
        return said + difference, difference

    def _related(self, moving: Tensor, still: Relation, iteration: int) -> tuple[Tensor, Tensor]:
        """F'_moving and D of one iteration."""
        live = self.moving.relate(moving)
        said = self.moving.read(live, still.values)
        return said, self.held.read(still, live.values) - self.gain(iteration) * said


class IrdFusion(nn.Module):
    """Fuses one map of each modality: 26 d² + O(d) parameters beside the two tables of positions.

    Args:
        width: channels d of both maps and of the result, a multiple of ``heads``.
        grid: (rows, columns) of the tokens.
        iterations: of each loop; without any, the block is the 1×1 convolution over both maps.
        heads: of the attention.
        dropout: in training.
        published: the published code's form, with 44 d² parameters, see the module.
    """

    def __init__(
        self,
        width: int,
        grid: tuple[int, int],
        *,
        iterations: int = ITERATIONS,
        heads: int = HEADS,
        dropout: float = DROPOUT,
        published: bool = False,
    ) -> None:
        super().__init__()
        if width % heads or iterations < 0:
            raise ValueError(f"{width} channels, {heads} heads, {iterations} iterations: heads divide the channels")
        self.iterations, self.published = iterations, published
        self.join = nn.Conv2d(2 * width, width, 1, bias=False)
        if iterations:
            self.grid_vis, self.grid_ir = TokenGrid(width, grid), TokenGrid(width, grid)
            first, second = self._readers(width, heads, dropout), self._readers(width, heads, dropout)
            self.loop_vis = GuidedLoop(first["vis"], first["ir"], width, iterations)
            self.loop_ir = GuidedLoop(second["ir"], second["vis"], width, iterations)
        self.guidance = Guidance(width, dropout) if iterations > 1 else None
        if published:
            self.unused = nn.ModuleList([_mlp(width, dropout), _mlp(width, dropout), _unused_convolution(width)])

    def forward(self, ir: Tensor, vis: Tensor) -> Tensor:
        """The fused map ``[B, d, h, w]`` of two maps; h and w are those of ``vis``."""
        return self.features(ir, vis).fused

    def features(self, ir: Tensor, vis: Tensor) -> IrdFeatures:
        """The fused map and what it is made of, see `forward`."""
        if ir.shape[-2:] != vis.shape[-2:]:
            warnings.warn(f"infrared map {_sides(ir)} resized to the visible one's {_sides(vis)}", stacklevel=2)
            ir = F.interpolate(ir, size=vis.shape[-2:], mode="bilinear", align_corners=False)
        if self.iterations:
            left_ir, left_vis, difference_ir, difference_vis = self._looped(ir, vis)
            ir, vis = self._added(ir, left_ir), self._added(vis, left_vis)
        else:
            difference_ir, difference_vis = torch.zeros_like(ir), torch.zeros_like(vis)
        return IrdFeatures(F.silu(self.join(torch.cat([vis, ir], dim=1))), vis, ir, difference_vis, difference_ir)

    def _looped(self, ir: Tensor, vis: Tensor) -> tuple[Tensor, ...]:
        """What both loops leave and their differences, on the grid."""
        grid_ir, grid_vis = self.grid_ir(ir), self.grid_vis(vis)
        tokens_ir, tokens_vis = (grid.flatten(2).transpose(1, 2) for grid in (grid_ir, grid_vis))
        left_vis, difference_vis = self.loop_vis(tokens_vis, tokens_ir, self.guidance)
        left_ir, difference_ir = self.loop_ir(tokens_ir, tokens_vis, self.guidance)
        rows = grid_vis.shape[-2:]
        left = (left_ir, left_vis, difference_ir, difference_vis)
        return tuple(tokens.transpose(1, 2).unflatten(-1, rows) for tokens in left)

    def _added(self, maps: Tensor, left: Tensor) -> Tensor:
        """The backbone's map with what its loop left, resized to it."""
        if left.shape[-2:] == maps.shape[-2:]:
            return maps + left
        if self.published and self.training:
            return maps + F.interpolate(left, size=maps.shape[-2:], mode="nearest")
        return maps + F.interpolate(left, size=maps.shape[-2:], mode="bilinear", align_corners=False)

    def _readers(self, width: int, heads: int, dropout: float) -> dict[str, RelationReader]:
        """A mutual relation module: the readers of both modalities."""
        return {
            modality: RelationReader(
                width, heads, dropout, lambda_on_own=self.published and modality == "ir", key_bias=self.published
            )
            for modality in ("vis", "ir")
        }


class PyramidFusion(FeatureFusion):
    """A block of its own for each level of two feature pyramids.

    Args:
        widths: channels of the levels, finest first.
        grids: (rows, columns) of the tokens of each level.
        iterations: see `IrdFusion`.
        heads: see `IrdFusion`.
        dropout: see `IrdFusion`.
        published: see `IrdFusion`.
    """

    def __init__(
        self,
        widths: Sequence[int],
        grids: Sequence[tuple[int, int]],
        *,
        iterations: int = ITERATIONS,
        heads: int = HEADS,
        dropout: float = DROPOUT,
        published: bool = False,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            IrdFusion(width, grid, iterations=iterations, heads=heads, dropout=dropout, published=published)
            for width, grid in zip(widths, grids, strict=True)
        )

    def forward(self, ir: Sequence[Tensor], vis: Sequence[Tensor]) -> list[Tensor]:
        """Fused maps of the levels of both pyramids, each ``[B, d, h, w]``."""
        return [features.fused for features in self.features(ir, vis)]

    def features(self, ir: Sequence[Tensor], vis: Sequence[Tensor]) -> list[IrdFeatures]:
        """Of every level, what it is made of, too."""
        return [block.features(*maps) for block, *maps in zip(self.blocks, ir, vis, strict=True)]  # type: ignore[operator]


def differential_saliency(levels: Sequence[IrdFeatures], size: tuple[int, int]) -> Tensor:
    """Where the modalities differ: ‖D_vis‖₂ + ‖D_ir‖₂, from 0 to 1 in each picture, mean over levels, no gradient.

    Args:
        levels: of a pyramid, or of one map.
        size: (height, width) of the pictures.

    Returns:
        ``[B, 1, height, width]``; 0 where a picture's differences are the same everywhere.
    """
    with torch.no_grad():
        return torch.stack([_saliency(features, size) for features in levels]).mean(dim=0)


def _saliency(features: IrdFeatures, size: tuple[int, int]) -> Tensor:
    strength = features.difference_vis.norm(dim=1, keepdim=True) + features.difference_ir.norm(dim=1, keepdim=True)
    least, most = strength.amin(dim=(2, 3), keepdim=True), strength.amax(dim=(2, 3), keepdim=True)
    scaled = (strength - least) / (most - least).clamp_min(torch.finfo(strength.dtype).tiny)
    return F.interpolate(scaled, size=size, mode="bilinear", align_corners=False)


def _mlp(width: int, dropout: float) -> nn.Sequential:
    wide = _EXPANSION * width
    return nn.Sequential(nn.Linear(width, wide), nn.GELU(), nn.Linear(wide, width), nn.Dropout(dropout))


def _unused_convolution(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(2 * width, width, 1, bias=False), nn.BatchNorm2d(width))


def _sides(maps: Tensor) -> str:
    return f"{maps.shape[-1]}×{maps.shape[-2]}"
