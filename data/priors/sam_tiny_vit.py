"""The image encoder of MobileSAM (Zhang et al., arXiv 2306.14289): a TinyViT (Wu et al., ECCV 2022) and SAM's neck.

The blocks are timm's, under other names. MobileSAM leaves out the classifier and the stride of the last merging, so
that 1,024 pixels a side become 64 tokens.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from duskfuse.data.errors import InputError

_TELLING = "image_encoder.patch_embed.seq.0.c.weight"
_CLASSIFIER = ("image_encoder.norm_head.", "image_encoder.head.")
_RENAMED = (
    (r"\.seq\.0\.", ".conv1."),
    (r"\.seq\.2\.", ".conv2."),
    (r"\.layers\.(\d+)\.blocks\.", r".stages.\1.blocks."),
    (r"\.c\.weight$", ".conv.weight"),
)
"""Patterns that only names of MobileSAM's image encoder have, and what timm has instead."""


class TinyVitEncoder(nn.Module):
    """``[B, 3, 1024, 1024]`` to ``[B, C, 64, 64]``, of random weights.

    Args:
        state: state dict of a SAM as :func:`timm_names` returns it; only the shapes are used.

    Raises:
        InputError: timm is not installed.
        KeyError: a telling tensor is missing.
    """

    img_size = 1024
    grid = 64

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        try:
            from timm.models.tiny_vit import TinyVit
        except ImportError:
            raise InputError(
                "a MobileSAM checkpoint, but no timm to run it",
                rule="MobileSAM's image encoder is timm's TinyViT",
                remedy="pip install 'duskfuse[mobile-sam]', or give a checkpoint of segment-anything",
            ) from None
        from segment_anything.modeling.common import LayerNorm2d

        super().__init__()
        stages = "image_encoder.stages"
        later = range(1, count_modules(state, stages))
        biases = [state[f"{stages}.{i}.blocks.0.attn.attention_biases"].shape for i in later]
        widths = [state[f"{stages}.{i}.blocks.0.mlp.norm.weight"].shape[0] for i in later]
        first = state["image_encoder.patch_embed.conv2.conv.weight"].shape[0]
        tiny: Any = TinyVit(
            num_classes=0,
            embed_dims=(first, *widths),
            depths=tuple(count_modules(state, f"{stages}.{i}.blocks") for i in (0, *later)),
            num_heads=(1, *(heads for heads, _ in biases)),
            window_sizes=(1, *(math.isqrt(offsets) for _, offsets in biases)),
            mlp_ratio=state[f"{stages}.1.blocks.0.mlp.fc1.weight"].shape[0] / widths[0],
            mbconv_expand_ratio=state[f"{stages}.0.blocks.0.conv1.conv.weight"].shape[0] / first,
            local_conv_size=state[f"{stages}.1.blocks.0.local_conv.conv.weight"].shape[-1],
            drop_path_rate=0.0,
        )
        tiny.stages[-1].downsample.conv2.conv.stride = (1, 1)
        self.patch_embed, self.stages = tiny.patch_embed, tiny.stages
        channels = state["image_encoder.neck.0.weight"].shape[0]
        self.neck = nn.Sequential(
            nn.Conv2d(widths[-1], channels, 1, bias=False),
            LayerNorm2d(channels),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            LayerNorm2d(channels),
        )

    def forward(self, image: Tensor) -> Tensor:
        """Encode normalised, padded pictures."""
        embedding: Tensor = self.neck(self.stages(self.patch_embed(image)))
        return embedding


def is_tiny_vit(state: Mapping[str, Tensor]) -> bool:
    """Whether the state dict of a SAM is MobileSAM's."""
    return _TELLING in state


def timm_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """MobileSAM's state dict with the image encoder's tensors under timm's names, the unused classifier left out."""
    return {_timm_name(key): value for key, value in state.items() if not key.startswith(_CLASSIFIER)}


def count_modules(state: Mapping[str, Tensor], prefix: str) -> int:
    """How many numbered modules there are below ``prefix``."""
    numbered = re.compile(re.escape(prefix) + r"\.(\d+)\.")
    return len({found[1] for key in state if (found := numbered.match(key))})


def _timm_name(key: str) -> str:
    for pattern, name in _RENAMED:
        key = re.sub(pattern, name, key)
    # a merging ends a stage in MobileSAM's names and begins the next in timm's
    return re.sub(r"\.layers\.(\d+)\.downsample\.", lambda found: f".stages.{int(found[1]) + 1}.downsample.", key)
