"""The SAGE main network: fuses a pair with the help of SAM region patches; a teacher, used only in training.

Structure: SAGE (CVPR 2025, arXiv 2503.01210), 2,639,505 parameters with four masks. A U-shape of five passes through
one shared SPA stage (`duskfuse.teachers.spa`) at scales 1, 1/2, 1/4, 1/2, 1 and a convolutional decoder.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from duskfuse.data.errors import InputError
from duskfuse.data.fuser import FusionOutput
from duskfuse.data.geometry import pad_reflected
from duskfuse.data.weights import ModelCard, check_architecture, load_weights, read_card
from duskfuse.teachers.spa import SpaStage, Streams, conv, conv_act

ARCHITECTURE = "sage-main"

WIDTH = 64
"""Channels of the published network's streams; widths are multiples of four."""
_TAP_CHANNELS = 32
_SIZE_STEP = 4
_MIN_SIDE = 16  # a quarter of it still has the four pixels that the SPA stage pools
_TAP_SCALES = (1, 2, 4, 2, 1)


class MainNetwork(nn.Module):
    """Fuses a pair and the pictures of its SAM regions.

    ``width`` other than 64 makes every layer narrower or wider; the taps stay, as the student has them, too. 16 costs
    a fourteenth of the arithmetic and serves ablations on a CPU. ``compat`` gives the published form: no activation on
    the last convolution of the visible regions' encoder, and LeakyReLU with a clamp instead of the sigmoid at the end.
    """

    def __init__(self, masks: int = 4, compat: bool = False, width: int = WIDTH) -> None:
        super().__init__()
        self.masks, self.compat, self.width = masks, compat, width
        half, quarter, wide = width // 2, width // 4, 4 * width
        self.encode_image = nn.Sequential(conv_act(2, quarter), conv_act(quarter, half))
        self.encode_image_deep = conv_act(half, width)
        last_vis = conv if compat else conv_act
        self.encode_vis = nn.Sequential(conv_act(masks, quarter), conv_act(quarter, half), last_vis(half, width))
        self.encode_ir = nn.Sequential(conv_act(masks, quarter), conv_act(quarter, half), conv_act(half, width))
        self.spa = SpaStage(width)
        self.down2 = nn.Sequential(conv(wide, width), nn.MaxPool2d(2), nn.LeakyReLU(0.01))
        self.down3 = nn.Sequential(conv(wide, width), nn.MaxPool2d(2), nn.LeakyReLU(0.01))
        self.up4 = conv_act(wide, width)
        self.up5 = conv_act(wide, width)
        self.decode = nn.Sequential(conv_act(wide + width, wide), conv_act(wide, 2 * width), conv_act(2 * width, width))
        last = (conv_act(width + half, width), conv_act(width, half), conv_act(half, quarter), conv(quarter, 1))
        self.decode_last = nn.Sequential(*last)
        self.taps = nn.ModuleList(nn.Conv2d(wide, _TAP_CHANNELS, 1) for _ in _TAP_SCALES)

    @property
    def settings(self) -> dict[str, int | bool]:
        """Constructor arguments, for the model card."""
        return {"masks": self.masks, "compat": self.compat, "width": self.width}

    def forward(self, vis_y: Tensor, ir: Tensor, vis_patches: Tensor, ir_patches: Tensor) -> FusionOutput:
        """Fuse ``vis_y`` and ``ir [B, 1, H, W]`` with their regions, ``[B, masks, H, W]``; all in [0, 1], any size.

        A patch is the source picture times one binary mask. Returns ``y [B, 1, H, W]`` in [0, 1] and five taps
        ``[B, 32, h, w]`` at scales 1, 1/2, 1/4, 1/2, 1, their sizes rounded down as the student's are. Other sizes
        than multiples of four from 16 on are continued by reflection at the bottom and right and cut back.
        Raises ValueError for another number of patches.
        """
        if vis_patches.shape[1] != self.masks or ir_patches.shape[1] != self.masks:
            seen = f"{vis_patches.shape[1]} visible and {ir_patches.shape[1]} infrared patches"
            raise ValueError(f"{seen}; this main network takes {self.masks} of each")
        height, width = vis_y.shape[-2:]
        vis_y, ir, vis_patches, ir_patches = (_reflect_pad(x) for x in (vis_y, ir, vis_patches, ir_patches))

        shallow = self.encode_image(torch.cat([vis_y, ir], dim=1))
        skip = self.encode_image_deep(shallow)
        features = self._u_shape(Streams(skip, self.encode_vis(vis_patches), self.encode_ir(ir_patches)))

        decoded = self.decode(torch.cat([features[-1], skip], dim=1))
        last = self.decode_last(torch.cat([decoded, shallow], dim=1)).to(vis_y.dtype)
        y = F.leaky_relu(last, 0.01).clamp(0, 1) if self.compat else torch.sigmoid(last)
        taps = (
            _crop(tap(feature), max(height // scale, 1), max(width // scale, 1))
            for tap, feature, scale in zip(self.taps, features, _TAP_SCALES, strict=True)
        )
        return FusionOutput(y=_crop(y, height, width), taps=tuple(taps))

    def _u_shape(self, streams: Streams) -> tuple[Tensor, ...]:
        """Run the SPA stage at the five scales; returns five maps ``[B, 256, h, w]``."""
        size1 = streams.image.shape[-2:]
        out1 = self.spa(streams)
        streams = Streams(self.down2(out1.image), *_pooled_regions(out1, size1))
        size2 = streams.image.shape[-2:]
        out2 = self.spa(streams)
        streams = Streams(self.down3(out2.image), *_pooled_regions(out2, size2))
        out3 = self.spa(streams)
        regions = _enlarged_regions(out3, streams.image.shape[-2:])
        streams = Streams(self.up4(_resize(out3.image, size2) + out2.image), *(_resize(x, size2) for x in regions))
        out4 = self.spa(streams)
        regions = _enlarged_regions(out4, size2)
        streams = Streams(self.up5(_resize(out4.image, size1) + out1.image), *(_resize(x, size1) for x in regions))
        out5 = self.spa(streams)
        return tuple(out.image for out in (out1, out2, out3, out4, out5))


def load_main_network(path: Path) -> tuple[MainNetwork, ModelCard]:
    """Read a main network, in eval mode, and its card from a checkpoint.

    Raises InputError when the file is not a checkpoint of a main network.
    """
    card = read_card(path)
    check_architecture(path, card, ARCHITECTURE)
    match {"masks": 4, "compat": False, "width": WIDTH} | dict(card.settings):
        case {"masks": int(masks), "compat": bool(compat), "width": int(width), **unknown} if (
            masks > 0 and width > 0 and width % 4 == 0 and not unknown
        ):
            network = MainNetwork(masks, compat, width)
        case settings:
            raise InputError(
                f"{path}: card with settings {settings}",
                rule="a main network has masks and width, positive (width a multiple of 4), and compat, true or false",
                remedy="write the checkpoint again with duskfuse",
            )
    load_weights(path, network, ARCHITECTURE)
    return network.eval(), card


def _enlarged_regions(out: Streams, size: torch.Size) -> tuple[Tensor, Tensor]:
    """Bring a stage's pooled region features back to the stage's own size."""
    vis, ir = (F.interpolate(x, size=size, mode="bilinear", align_corners=False) for x in (out.vis, out.ir))
    return vis, ir


def _pooled_regions(out: Streams, size: torch.Size) -> tuple[Tensor, Tensor]:
    vis, ir = (F.max_pool2d(x, 2) for x in _enlarged_regions(out, size))
    return vis, ir


def _resize(x: Tensor, size: torch.Size) -> Tensor:
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)


def _reflect_pad(x: Tensor) -> Tensor:
    """Continue a map by reflection to a multiple of four and at least 16 pixels a side, however small it is."""
    height, width = (max(-(-side // _SIZE_STEP) * _SIZE_STEP, _MIN_SIDE) for side in x.shape[-2:])
    return pad_reflected(x, (height, width))


def _crop(x: Tensor, height: int, width: int) -> Tensor:
    return x[..., :height, :width]
