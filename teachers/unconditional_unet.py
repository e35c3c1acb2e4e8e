"""The unconditional diffusion UNet that DDFM takes for what pictures look like; held by the optional package diffusers.

Architecture: Dhariwal and Nichol, "Diffusion Models Beat GANs on Image Synthesis" (NeurIPS 2021), published as the
guided-diffusion checkpoint ``256x256_diffusion_uncond.pt`` (552,814,086 parameters, trained on ImageNet). It predicts
the noise of a picture in [−1, 1] after t of 1000 steps with linear β. A checkpoint is that state dict, as it was
published or as safetensors, or a folder written by diffusers. Sizes are read from the shapes of its tensors.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from duskfuse.data.errors import InputError
from duskfuse.data.images import file_sha256
from duskfuse.data.weights import read_state_dict

HEAD_CHANNELS = 64
"""Channels of an attention head, which no tensor's shape tells."""
COLOURS = 3

_CONFIG_FILE, _WEIGHTS_FILE = "config.json", "diffusion_pytorch_model.safetensors"
_RULE = (
    "the network is an unconditional noise predictor of guided-diffusion's layout, "
    "a .pt or .safetensors state dict, or a folder written by diffusers (config.json and safetensors)"
)
_REMEDY = "give 256x256_diffusion_uncond.pt or a checkpoint of the same layout"

_RES_PARTS = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_ATTENTION_PARTS = {"norm": "group_norm", "proj_out": "to_out.0"}
_BLOCK = re.compile(r"(?:time_embed|out|middle_block)\.\d+|(?:input|output)_blocks\.\d+\.\d+")


class UnconditionalUNet(nn.Module):
    """Predicts the noise in pictures.

    Args:
        network: a ``diffusers.UNet2DModel``.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    @property
    def size_step(self) -> int:
        """Heights and widths must be multiples of this, 32 for the published network."""
        return int(2 ** (len(self.network.config.block_out_channels) - 1))

    @property
    def width(self) -> int:
        """Channels at full resolution."""
        return int(self.network.config.block_out_channels[0])

    def forward(self, noisy: Tensor, time: int) -> Tensor:
        """Noise in ``noisy [B, 3, H, W]`` after ``time`` of 1000 steps; the learned variance is left out.

        The network computes in the type of its weights; the result is float32.
        """
        predicted: Tensor = self.network(noisy.to(self.network.conv_in.weight.dtype), time).sample
        return predicted[:, :COLOURS].float()

    def multiply_adds(self, size: tuple[int, int]) -> int:
        """Multiply-adds of one picture of ``size`` (height, width), counted without computing it."""
        from torch.utils.flop_counter import FlopCounterMode

        with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
            type(self.network).from_config(self.network.config)(torch.empty(1, COLOURS, *size), 0)
        return int(counter.get_total_flops()) // 2


def load_unconditional_unet(checkpoint: Path) -> UnconditionalUNet:
    """Build the network that a checkpoint describes, with its weights, float32 on the CPU, in evaluation mode.

    Raises:
        InputError: diffusers is not installed; no such checkpoint, or unreadable; class-conditional, or another
            network; NaN or infinite weights.
    """
    unet_class = _unet_class()
    read = _from_folder if checkpoint.is_dir() else _from_state_dict
    network = read(checkpoint, unet_class)
    config = network.config
    if config.in_channels != COLOURS or config.out_channels not in (COLOURS, 2 * COLOURS):
        raise _unusable(checkpoint, f"{config.in_channels} channels in and {config.out_channels} out, not 3 and 6 or 3")
    broken = next((name for name, tensor in network.state_dict().items() if not tensor.isfinite().all()), None)
    if broken is not None:
        raise InputError(
            f"{checkpoint}: {broken} has NaN or infinite values",
            rule="weights must be finite",
            remedy="copy the checkpoint again",
        )
    return UnconditionalUNet(network).float().requires_grad_(False).eval()


def checkpoint_sha256(checkpoint: Path) -> str:
    """Hash of all that the network depends on: the bytes of the file, or of both files in the folder.

    Raises:
        InputError: a file is missing or unreadable.
    """
    if not checkpoint.is_dir():
        return file_sha256(checkpoint)
    files = (checkpoint / name for name in (_CONFIG_FILE, _WEIGHTS_FILE))
    return hashlib.sha256(" ".join(map(file_sha256, files)).encode()).hexdigest()


def _unet_class() -> Any:
    try:
        from diffusers import UNet2DModel
    except ImportError as error:
        raise InputError(
            f"diffusers cannot be imported ({error})",
            rule="the network of the DDFM teacher is built by diffusers",
            remedy="pip install 'duskfuse[diffusion]'",
        ) from None
    return UNet2DModel


def _unusable(checkpoint: Path, why: str) -> InputError:
    return InputError(f"{checkpoint}: {why}", rule=_RULE, remedy=_REMEDY)


def _from_folder(folder: Path, unet_class: Any) -> Any:
    try:
        config = json.loads((folder / _CONFIG_FILE).read_text(encoding="utf-8"))
        if not isinstance(config, dict) or config.get("_class_name") != unet_class.__name__:
            raise ValueError(f"{_CONFIG_FILE} is not of a {unet_class.__name__}")
        if config.get("class_embed_type") or config.get("num_class_embeds"):
            raise ValueError("the network is class-conditional")
        network, found = unet_class.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            low_cpu_mem_usage=False,
            output_loading_info=True,
        )
    except Exception as error:  # diffusers raises what the libraries below it raise
        raise _unusable(folder, _first_line(error)) from None
    wrong = [*found["missing_keys"], *found["unexpected_keys"], *found["mismatched_keys"]]
    if wrong:
        raise _unusable(folder, f"{wrong[0]} is missing, unknown or of another shape, and {len(wrong) - 1} more")
    return network


def _from_state_dict(path: Path, unet_class: Any) -> Any:
    state = read_state_dict(path, rule=_RULE, remedy=_REMEDY)
    if "label_emb.weight" in state:
        raise _unusable(path, "the network is class-conditional")
    try:
        sizes = _Sizes.of(state)
        with torch.device("meta"):
            network = unet_class(**sizes.config())
        network.load_state_dict(dict(_renamed(state, sizes)), assign=True)
    except (KeyError, IndexError, ValueError, ZeroDivisionError, RuntimeError) as error:
        raise _unusable(path, f"not the tensors of such a network ({_first_line(error)})") from None
    return network


def _first_line(error: Exception) -> str:
    """What an exception says first; of torch's about state dicts, the first tensor that does not fit."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].startswith("Error(s) in loading state_dict"):
        lines = lines[1:]
    return (lines or [type(error).__name__])[0][:200]


@dataclass(frozen=True)
class _Sizes:
    """What the shapes of a guided-diffusion state dict tell."""

    outputs: int
    """Channels of the result: six where the variance is learned."""
    layers: int
    """Residual blocks per level on the way down; one more on the way up."""
    widths: tuple[int, ...]
    """Channels of each level."""
    attends: tuple[bool, ...]
    """Whether a level has attention."""

    @classmethod
    def of(cls, state: Mapping[str, Tensor]) -> _Sizes:
        """Read the sizes; ``KeyError`` where a telling tensor is missing."""
        blocks = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("output_blocks."))
        enlarging = (n for n in range(blocks) if _enlarges(state, n))
        per_level = next(enlarging, blocks - 1) + 1  # the last block of a level enlarges, except at full resolution
        first = [f"input_blocks.{1 + n}" for n in range(0, blocks, per_level)]
        return cls(
            outputs=len(state["out.2.weight"]),
            layers=per_level - 1,
            widths=tuple(len(state[f"{block}.0.in_layers.2.weight"]) for block in first),
            attends=tuple(f"{block}.1.qkv.weight" in state for block in first),
        )

    def config(self) -> dict[str, Any]:
        """Constructor arguments of diffusers' network; GroupNorm has 32 groups, and time is cosine before sine."""
        down = ["AttnDownBlock2D" if attends else "ResnetDownsampleBlock2D" for attends in self.attends]
        up = ["AttnUpBlock2D" if attends else "ResnetUpsampleBlock2D" for attends in self.attends]
        return {
            "in_channels": COLOURS,
            "out_channels": self.outputs,
            "block_out_channels": self.widths,
            "layers_per_block": self.layers,
            "down_block_types": tuple(down),
            "up_block_types": tuple(reversed(up)),
            "downsample_type": "resnet",
            "upsample_type": "resnet",
            "resnet_time_scale_shift": "scale_shift",
            "attention_head_dim": HEAD_CHANNELS,
            "norm_num_groups": 32,
            "attn_norm_num_groups": 32,
            "norm_eps": 1e-5,
            "flip_sin_to_cos": True,
            "freq_shift": 0,
        }

    def block_names(self) -> dict[str, str]:
        """Where each block of guided-diffusion stands in diffusers."""
        names = {
            "time_embed.0": "time_embedding.linear_1",
            "time_embed.2": "time_embedding.linear_2",
            "input_blocks.0.0": "conv_in",
            "middle_block.0": "mid_block.resnets.0",
            "middle_block.1": "mid_block.attentions.0",
            "middle_block.2": "mid_block.resnets.1",
            "out.0": "conv_norm_out",
            "out.2": "conv_out",
        }
        levels, per_level = len(self.widths), self.layers + 1
        for level, attends in enumerate(self.attends):
            down, up = f"down_blocks.{level}", f"up_blocks.{levels - 1 - level}"
            first_in, first_out = 1 + level * per_level, (levels - 1 - level) * per_level
            for n in range(self.layers):
                names[f"input_blocks.{first_in + n}.0"] = f"{down}.resnets.{n}"
                names[f"input_blocks.{first_in + n}.1"] = f"{down}.attentions.{n}"
            names[f"input_blocks.{first_in + self.layers}.0"] = f"{down}.downsamplers.0"
            for n in range(per_level):
                names[f"output_blocks.{first_out + n}.0"] = f"{up}.resnets.{n}"
                if attends:
                    names[f"output_blocks.{first_out + n}.1"] = f"{up}.attentions.{n}"
            names[f"output_blocks.{first_out + self.layers}.{1 + attends}"] = f"{up}.upsamplers.0"
        return names


def _enlarges(state: Mapping[str, Tensor], block: int) -> bool:
    """Whether a second residual block follows in an output block."""
    return any(f"output_blocks.{block}.{n}.in_layers.2.weight" in state for n in (1, 2))


def _renamed(state: Mapping[str, Tensor], sizes: _Sizes) -> Iterator[tuple[str, Tensor]]:
    """The tensors under the names that diffusers gives them; ``KeyError`` for one that the layout does not have."""
    blocks = sizes.block_names()
    for key, tensor in state.items():
        module, _, kind = key.rpartition(".")
        found = _BLOCK.match(module)
        if found is None:
            raise KeyError(key)
        block, part = blocks[found[0]], module[found.end() + 1 :]
        if not part:
            yield f"{block}.{kind}", tensor
        elif part in _RES_PARTS:
            yield f"{block}.{_RES_PARTS[part]}.{kind}", tensor
        elif part == "qkv":
            yield from ((f"{block}.{name}.{kind}", rows) for name, rows in _query_key_value(_linear(tensor)))
        else:
            yield f"{block}.{_ATTENTION_PARTS[part]}.{kind}", _linear(tensor)


def _linear(tensor: Tensor) -> Tensor:
    """A convolution over single tokens, ``[O, I, 1]``, as a linear layer ``[O, I]``; biases stay."""
    return tensor.reshape(tensor.shape[:2])


def _query_key_value(fused: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Take the fused projection apart: the rows of each head are 64 of its query, 64 of its key, 64 of its value."""
    rows = torch.arange(len(fused)).reshape(-1, 3, HEAD_CHANNELS)
    for index, name in enumerate(("to_q", "to_k", "to_v")):
        yield name, fused[rows[:, index].flatten()]
