"""Semantic persistent attention (SPA): one stage that lets image features meet the features of SAM regions.

Structure: SAGE (CVPR 2025, arXiv 2503.01210). The image stream writes a repository of keys and values; the two region
streams and their mixture read it, and the image stream reads what the mixture's transformer projected it to. So keys
and values carry the image alone: the regions enter the stage's output through the mixture, its last quarter.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from duskfuse.teachers.attention import SpatialTransformer

POOL = 4
"""Attention works on maps this many times smaller than the stage's input."""


class Streams(NamedTuple):
    """The three feature maps that travel through the main network."""

    image: Tensor
    vis: Tensor
    """Features of the visible regions."""
    ir: Tensor
    """Features of the infrared regions."""


def conv(inputs: int, outputs: int) -> nn.Conv2d:
    """3×3 convolution that keeps the size."""
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def conv_act(inputs: int, outputs: int) -> nn.Sequential:
    """3×3 convolution and LeakyReLU(0.01)."""
    return nn.Sequential(conv(inputs, outputs), nn.LeakyReLU(0.01))


class SpaStage(nn.Module):
    """One SPA stage for streams of ``channels`` channels at any scale."""

    def __init__(self, channels: int = 64) -> None:
        super().__init__()
        self.attend_image_first = SpatialTransformer(channels)
        self.attend_vis = SpatialTransformer(channels)
        self.attend_ir = SpatialTransformer(channels)
        self.attend_mixture = SpatialTransformer(channels)
        self.attend_image_last = SpatialTransformer(channels)
        self.join_vis = conv_act(2 * channels, channels)
        self.join_ir = conv_act(2 * channels, channels)
        self.join_regions = conv_act(2 * channels, channels)
        self.join_image = conv_act(2 * channels, channels)

    def forward(self, streams: Streams) -> Streams:
        """Take three maps ``[B, C, h, w]`` with h, w >= 4.

        Returns the image features ``[B, 4C, h, w]`` and the region features still pooled, ``[B, C, h // 4, w // 4]``,
        for the caller to enlarge to the size it needs.
        """
        pooled = Streams(*(F.max_pool2d(stream, POOL) for stream in streams))

        attended_image, repository = self.attend_image_first(pooled.image)
        attended_vis, _ = self.attend_vis(pooled.vis, repository)
        attended_ir, _ = self.attend_ir(pooled.ir, repository)

        vis = self.join_vis(torch.cat([attended_vis, pooled.vis], dim=1)) + attended_vis
        ir = self.join_ir(torch.cat([attended_ir, pooled.ir], dim=1)) + attended_ir
        mixture = self.join_regions(torch.cat([ir, vis], dim=1)) + ir + vis + attended_vis + attended_ir
        joined = self.join_image(torch.cat([attended_image, pooled.image], dim=1)) + attended_image

        mixture, repository = self.attend_mixture(mixture, repository)
        image, _ = self.attend_image_last(joined, repository)
        features = torch.cat([image, pooled.image, joined, mixture], dim=1)
        size = streams.image.shape[-2:]
        return Streams(F.interpolate(features, size=size, mode="bilinear", align_corners=False), vis, ir)
