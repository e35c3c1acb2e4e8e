"""A frozen vision transformer (Dosovitskiy et al. 2021) for pictures of any size, with weights of other programs.

It is opened from a state dict in timm's names: plain ViT, DINO and DINOv2, with or without registers and layer scale.
Its patches may have another size than those of the file, and its grid any height and width: both are resampled.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from duskfuse.data.errors import InputError
from duskfuse.data.weights import read_state_dict

HEAD_WIDTH = 64
"""Channels of an attention head in every published ViT."""
_EPSILON = 1e-6
_RULE = "the backbone is a state dict of a vision transformer in timm's names"
_REMEDY = "save one: safetensors.torch.save_file(timm.create_model(NAME, pretrained=True).state_dict(), FILE)"


@dataclass(frozen=True)
class VitShape:
    """What a vision transformer is built from; the defaults are ViT-B/16 at 224 pixels."""

    width: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int = 3072
    """Channels inside each MLP."""
    patch: int = 16
    grid: int = 14
    """Tokens per side of the square that the position embedding was trained on."""
    registers: int = 0
    class_position: bool = True
    """Whether the class token has a row in the position embedding."""
    layer_scale: bool = False


class _Block(nn.Module):
    """Attention and MLP, each after a LayerNorm and beside a shortcut."""

    def __init__(self, shape: VitShape) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(shape.width, eps=_EPSILON) for _ in range(2))
        self.attn = _Attention(shape.width, shape.heads)
        self.ls1, self.ls2 = (_Scale(shape.width) if shape.layer_scale else nn.Identity() for _ in range(2))
        self.mlp = _Mlp(shape.width, shape.hidden)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.ls1(self.attn(self.norm1(tokens)))
        return tokens + self.ls2(self.mlp(self.norm2(tokens)))  # type: ignore[no-any-return]


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        batch, count, width = tokens.shape
        parts = self.qkv(tokens).view(batch, count, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(*parts.unbind(0))
        return self.proj(attended.transpose(1, 2).reshape(batch, count, width))  # type: ignore[no-any-return]


class _Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(tokens)))  # type: ignore[no-any-return]


class _Scale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens * self.gamma


class FrozenVit(nn.Module):
    """A vision transformer that never trains; gradients pass through it to the picture and to its tokens.

    Its weights are buffers, so no optimiser finds them, whatever is asked of the network around it. They are in no
    state dict either: a checkpoint holds what was trained, and `weights_sha256` tells on which backbone.

    Args:
        shape: what it is built from.
        weights: in timm's names; random where not given.
    """

    cls_token: Tensor
    reg_token: Tensor
    pos_embed: Tensor

    def __init__(self, shape: VitShape | None = None, weights: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()
        shape = shape or VitShape()
        self.shape = shape
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, shape.width, shape.patch, stride=shape.patch)})
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, shape.width))
        if shape.registers:
            self.reg_token = nn.Parameter(0.02 * torch.randn(1, shape.registers, shape.width))
        rows = shape.grid**2 + shape.class_position
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, rows, shape.width))
        self.blocks = nn.ModuleList(_Block(shape) for _ in range(shape.depth))
        self.norm = nn.LayerNorm(shape.width, eps=_EPSILON)
        if weights is not None:
            self.load_state_dict(dict(weights))
        _parameters_into_buffers(self)

    @property
    def weights_count(self) -> int:
        """Numbers in all weights."""
        return sum(values.numel() for _, values in self.named_buffers())

    @property
    def prefix(self) -> int:
        """Tokens before those of the patches: the class token and the registers."""
        return 1 + self.shape.registers

    def forward(self, pictures: Tensor) -> Tensor:
        """``[B, 3, H, W]`` normalised RGB → ``[B, width, ⌈H/patch⌉, ⌈W/patch⌉]``."""
        tokens, grid = self.embed(pictures)
        for block in self.blocks:
            tokens = block(tokens)
        return self.finish(tokens, grid)

    def embed(self, pictures: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Tokens ``[B, prefix + h·w, width]`` before the first block, and (h, w).

        Patches that reach beyond the picture are filled up with 0, the mean of normalised pictures.
        """
        height, width = pictures.shape[-2:]
        patch = self.shape.patch
        maps = self.patch_embed["proj"](F.pad(pictures, (0, -width % patch, 0, -height % patch)))
        grid = (int(maps.shape[-2]), int(maps.shape[-1]))
        first, places = self._positions(grid)
        prefix = [(self.cls_token + first).expand(len(pictures), -1, -1)]
        if self.shape.registers:
            prefix.append(self.reg_token.expand(len(pictures), -1, -1))
        return torch.cat([*prefix, maps.flatten(2).transpose(1, 2) + places], dim=1), grid

    def finish(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """The maps ``[B, width, h, w]`` of the tokens after the last block, normalised; the prefix is dropped."""
        normalised: Tensor = self.norm(tokens)[:, self.prefix :]
        return normalised.transpose(1, 2).reshape(len(tokens), -1, *grid)

    def _positions(self, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Position embedding of the class token ``[1, 0 or 1, width]``, as a sum, and of a grid ``[1, h·w, width]``."""
        rows = int(self.shape.class_position)
        first = self.pos_embed[:, :rows].sum(dim=1, keepdim=True)
        places = self.pos_embed[:, rows:]
        if grid != (self.shape.grid, self.shape.grid):
            square = places.transpose(1, 2).reshape(1, -1, self.shape.grid, self.shape.grid)
            resized = F.interpolate(square, size=grid, mode="bicubic", antialias=True, align_corners=False)
            places = resized.flatten(2).transpose(1, 2)
        return first, places


def open_vit(path: Path, patch: int = 16, heads: int | None = None) -> FrozenVit:
    """Open a file of weights, see `vit_from`; safetensors or what ``torch.save`` wrote.

    Raises:
        InputError: no such file, or no vision transformer in it.
    """
    try:
        return vit_from(read_state_dict(path, rule=_RULE, remedy=_REMEDY), patch, heads)
    except InputError as error:
        raise (
            error
            if str(path) in error.seen
            else InputError(f"{path}: {error.seen}", rule=error.rule, remedy=error.remedy)
        ) from None


def vit_from(state: Mapping[str, Tensor], patch: int = 16, heads: int | None = None) -> FrozenVit:
    """The frozen network of a state dict in timm's names.

    Args:
        state: weights; a classifier's ``head`` is left out.
        patch: pixels per side of a patch; the kernel is resampled where the file has another size.
        heads: attention heads of each block; by default one per 64 channels.

    Raises:
        InputError: tensors of a vision transformer are missing, left over, or of other shapes.
    """
    # DINOv2's own files name the registers otherwise, and keep a token that only its training needs
    named = {key.replace("register_tokens", "reg_token"): tensor.float() for key, tensor in state.items()}
    named = {key: tensor for key, tensor in named.items() if not key.startswith(("head.", "fc_norm.", "mask_token"))}
    shape = _shape_of(named, patch, heads)
    named["patch_embed.proj.weight"] = resampled_patches(named["patch_embed.proj.weight"], patch)
    try:
        return FrozenVit(shape, named)
    except RuntimeError as error:
        raise InputError(str(error).splitlines()[-1].strip(), rule=_RULE, remedy=_REMEDY) from None


def _shape_of(state: Mapping[str, Tensor], patch: int, heads: int | None) -> VitShape:
    needed = ("patch_embed.proj.weight", "pos_embed", "cls_token", "blocks.0.mlp.fc1.weight")
    if missing := [key for key in needed if key not in state]:
        raise InputError(f"no tensor {missing[0]}", rule=_RULE, remedy=_REMEDY)
    width, rows = state["cls_token"].shape[-1], state["pos_embed"].shape[1]
    grid = math.isqrt(rows)
    if rows - grid**2 not in (0, 1):
        raise InputError(f"pos_embed of {rows} rows", rule="positions are a square, and at most the class token's")
    return VitShape(
        width=width,
        depth=len({key.split(".")[1] for key in state if key.startswith("blocks.")}),
        heads=heads or max(1, width // HEAD_WIDTH),
        hidden=state["blocks.0.mlp.fc1.weight"].shape[0],
        patch=patch,
        grid=grid,
        registers=state["reg_token"].shape[1] if "reg_token" in state else 0,
        class_position=rows > grid**2,
        layer_scale="blocks.0.ls1.gamma" in state,
    )


def resampled_patches(kernel: Tensor, size: int) -> Tensor:
    """A patch kernel ``[C, 3, p, p]`` for patches of another size, by pseudo-inverse (FlexiViT, Beyer et al. 2023).

    Enlarged patches give exactly what the original ones gave; for smaller ones it is the nearest in the mean square.
    """
    old = kernel.shape[-1]
    if old == size:
        return kernel
    basis = torch.eye(old**2, dtype=torch.float64).view(old**2, 1, old, old)
    resize = F.interpolate(basis, size=(size, size), mode="bicubic", antialias=True, align_corners=False)
    inverse = torch.linalg.pinv(resize.flatten(1))  # [size², old²]; rows of `resize` are resized unit pixels
    resampled = kernel.double().flatten(2) @ inverse.T
    reshaped: Tensor = resampled.reshape(*kernel.shape[:2], size, size)
    return reshaped.to(kernel.dtype)


def weights_sha256(backbone: FrozenVit) -> str:
    """Hash of names, shapes and float32 values of all weights: the same whatever file they came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(backbone.named_buffers()):
        values = tensor.detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name} {tuple(values.shape)}\n".encode())
        digest.update(values.numpy().astype("<f4", copy=False).data)
    return digest.hexdigest()


def _parameters_into_buffers(network: nn.Module) -> None:
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            delattr(module, name)
            module.register_buffer(name, parameter.detach(), persistent=False)
