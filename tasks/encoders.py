"""Frozen feature encoders behind one protocol: what the contrastive term looks through.

An encoder takes RGB in [0, 1] and returns one map per layer, instance-normalised without affine parameters, so that a
distance between two maps compares structure and not brightness. Gradients pass through it to the picture and never to
its weights.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from duskfuse.data.errors import InputError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SAM_MEAN = (123.675 / 255, 116.28 / 255, 103.53 / 255)
SAM_STD = (58.395 / 255, 57.12 / 255, 57.375 / 255)

PART_PIXELS = 200_000
"""Pixels that a CPU encodes at a time: four pictures of SAGE's crop, whose maps stay in its cache."""


class FeatureEncoder(nn.Module, ABC):
    """A frozen encoder; subclasses give the raw layer maps of a normalised picture."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def freeze(self) -> FeatureEncoder:
        """Evaluation mode and no gradient for any weight."""
        self.eval()
        return self.requires_grad_(False)

    @abstractmethod
    def layers(self, image: Tensor) -> list[Tensor]:
        """Raw maps of a picture normalised by ``mean`` and ``std``, one ``[B, C, h, w]`` per layer."""

    def forward(self, image: Tensor) -> list[Tensor]:
        """Instance-normalised maps of ``[B, 3, H, W]`` RGB in [0, 1]."""
        return [F.instance_norm(layer) for layer in self.raw(image)]

    def raw(self, image: Tensor) -> list[Tensor]:
        """Maps of ``[B, 3, H, W]`` RGB in [0, 1] as the layers give them."""
        return self.layers(torch.addcmul(-self.mean / self.std, image, 1 / self.std))

    def parts(self, image: Tensor) -> Iterator[list[Tensor]]:
        """Maps of consecutive parts of a batch ``[B, 3, H, W]``, not instance-normalised.

        On a GPU there is one part. A CPU takes a few pictures at a time, which for many of them is faster than all at
        once; the parts of two batches of one shape have the same lengths.
        """
        pictures = max(1, PART_PIXELS // image[0, 0].numel()) if image.device.type == "cpu" else len(image)
        for part in torch.split(image, pictures):
            yield self.raw(part)


class _Filtering(torch.autograd.Function):
    """Correlation of one channel with a bank of filters, whose gradient is as fast as itself.

    torch's gradient of a convolution of one channel leaves most of a processor's lanes empty. Here a convolution with
    stride s gives s × s neighbouring pixels of the gradient as channels, ten times faster on a CPU and more.
    """

    STRIDE = 4

    @staticmethod
    def adjoint(bank: Tensor) -> Tensor:
        """Kernels ``[s², F, k + s − 1, k + s − 1]`` of the gradient of a bank ``[F, 1, k, k]``."""
        stride, size = _Filtering.STRIDE, bank.shape[-1]
        flipped = bank[:, 0].flip(1, 2)
        kernels = bank.new_zeros(stride, stride, len(bank), size + stride - 1, size + stride - 1)
        for y in range(stride):
            for x in range(stride):
                kernels[y, x, :, y : y + size, x : x + size] = flipped
        return kernels.flatten(0, 1)

    @staticmethod
    def forward(ctx: Any, picture: Tensor, bank: Tensor, adjoint: Tensor) -> Tensor:
        ctx.save_for_backward(adjoint)
        ctx.size = picture.shape[-2:]
        return F.conv2d(picture, bank)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (adjoint,), (height, width), stride = ctx.saved_tensors, ctx.size, _Filtering.STRIDE
        border = adjoint.shape[-1] - stride
        padded = F.pad(gradients[0], (border, border + -width % stride, border, border + -height % stride))
        return F.pixel_shuffle(F.conv2d(padded, adjoint, stride=stride), stride)[..., :height, :width], None, None


class FilterBank(FeatureEncoder):
    """A weight-free bank: Gaussian-derivative filters of four orientations at three scales.

    The embedded default where no weights are given. It sees edges and blobs but knows no objects, so a run with it is
    honest about structure and weaker on semantics than SAM or SqueezeNet features.
    """

    bank: Tensor
    adjoint: Tensor
    SCALES = 3
    SIGMA = 1.4

    def __init__(self) -> None:
        super().__init__(IMAGENET_MEAN, IMAGENET_STD)
        radius = 4
        y, x = torch.meshgrid(*[torch.arange(-radius, radius + 1.0)] * 2, indexing="ij")
        envelope = torch.exp(-(x**2 + y**2) / (2 * self.SIGMA**2))
        angles = torch.arange(4) * torch.pi / 4
        first = [(x * a.cos() + y * a.sin()) * envelope for a in angles]
        second = [((x * a.cos() + y * a.sin()) ** 2 / self.SIGMA**2 - 1) * envelope for a in angles]
        bank = torch.stack([kernel - kernel.mean() for kernel in first + second])
        self.register_buffer("bank", (bank / bank.flatten(1).norm(dim=1)[:, None, None])[:, None])
        self.register_buffer("adjoint", _Filtering.adjoint(self.bank))

    def layers(self, image: Tensor) -> list[Tensor]:
        """Eight responses of the mean channel per scale; every scale halves the picture."""
        grey, maps = image.mean(dim=1, keepdim=True), []
        for scale in range(self.SCALES):
            if scale and min(grey.shape[-2:]) >= 4:
                grey = F.avg_pool2d(grey, 2)
            padded = F.pad(grey, [self.bank.shape[-1] // 2] * 4, mode="replicate")
            filtered: Tensor = _Filtering.apply(padded, self.bank, self.adjoint)
            maps.append(filtered)
        return maps


class SqueezeNetEncoder(FeatureEncoder):
    """Three stages of torchvision's ImageNet SqueezeNet 1.1 (Iandola et al. 2016): strides 2, 4 and 8."""

    TAPS = (1, 4, 7)
    """Positions in ``features``: after the stem, the second and the fourth fire module."""

    def __init__(self, trunk: nn.Sequential) -> None:
        super().__init__(IMAGENET_MEAN, IMAGENET_STD)
        self.trunk = trunk[: self.TAPS[-1] + 1].to(memory_format=torch.channels_last)

    def layers(self, image: Tensor) -> list[Tensor]:
        """Maps of 64, 128 and 256 channels."""
        maps = []
        image = image.contiguous(memory_format=torch.channels_last)  # in it, a CPU pools several times faster
        for position, module in enumerate(self.trunk):
            image = module(image)
            if position in self.TAPS:
                maps.append(image)
        return maps


class SamEncoder(FeatureEncoder):
    """The first two blocks of a SAM image encoder, as SAGE uses them, with the parts its code left out.

    Pixels are normalised and the position embedding is added, interpolated to the picture's own token grid.
    """

    def __init__(self, image_encoder: nn.Module, blocks: int = 2) -> None:
        super().__init__(SAM_MEAN, SAM_STD)
        self.patch_embed = image_encoder.patch_embed
        self.blocks = image_encoder.blocks[:blocks]  # type: ignore[index]
        self.pos_embed = image_encoder.pos_embed
        self.patch_size = int(image_encoder.patch_embed.proj.kernel_size[0])  # type: ignore[union-attr,index]

    def layers(self, image: Tensor) -> list[Tensor]:
        """Outputs of the first blocks, ``[B, C, H/16, W/16]``."""
        height, width = image.shape[-2:]
        image = F.pad(image, (0, -width % self.patch_size, 0, -height % self.patch_size))
        tokens = self.patch_embed(image)  # type: ignore[operator]
        if self.pos_embed is not None:
            embedding = F.interpolate(
                self.pos_embed.permute(0, 3, 1, 2),  # type: ignore[operator]
                size=tokens.shape[1:3],
                mode="bicubic",
                align_corners=False,
            )
            tokens = tokens + embedding.permute(0, 2, 3, 1)
        maps = []
        for block in self.blocks:
            tokens = block(tokens)
            maps.append(tokens.permute(0, 3, 1, 2))
        return maps


def filter_encoder() -> FeatureEncoder:
    """The weight-free bank, frozen."""
    return FilterBank().freeze()


def squeezenet_encoder(weights: Path | None = None) -> FeatureEncoder:
    """SqueezeNet with weights from a safetensors file, or torchvision's own by name with its checksum."""
    from torchvision.models import SqueezeNet1_1_Weights, squeezenet1_1

    network = squeezenet1_1()
    if weights is None:
        try:
            state = SqueezeNet1_1_Weights.IMAGENET1K_V1.get_state_dict(progress=False, check_hash=True)
        except OSError as error:
            raise InputError(
                f"the SqueezeNet weights could not be fetched ({error})",
                remedy="give a file: --encoder-weights squeezenet1_1.safetensors, or use --encoder filters",
            ) from None
    else:
        state = _read_safetensors(weights)
    missing, unexpected = network.load_state_dict(state, strict=False)
    missing = [key for key in missing if not key.startswith("classifier.")]
    if missing or unexpected:
        raise InputError(
            f"{weights}: {len(missing)} SqueezeNet weights missing, {len(unexpected)} unknown",
            rule="the file holds the features.* weights of torchvision's squeezenet1_1",
            remedy="convert the right checkpoint to safetensors",
        )
    return SqueezeNetEncoder(network.features).freeze()


def sam_encoder(checkpoint: Path) -> FeatureEncoder:
    """The image encoder of a segment-anything checkpoint (any size)."""
    from duskfuse.data.priors.sam import load_sam

    return SamEncoder(load_sam(checkpoint).image_encoder).freeze()


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise InputError(
            f"{path}: no such file", rule="encoder weights are a safetensors file", remedy="check the path"
        )
    try:
        return dict(load_file(path))
    except Exception as error:  # safetensors raises its own untyped errors for damaged files
        raise InputError(
            f"{path}: not a safetensors file ({error})", remedy="give the file again, or convert it"
        ) from None
