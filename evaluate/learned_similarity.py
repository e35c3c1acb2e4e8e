"""LPIPS (Zhang et al. 2018): distance of two pictures in the features of an ImageNet network, lower is better.

The linear weights come with the package ``lpips``; the network's own do not. They are a file that the user gives, or
torchvision's AlexNet, fetched with its checksum. A value depends on the network, so every result names it.
"""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from math import nan
from multiprocessing import parent_process
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from duskfuse.data.errors import InputError
from duskfuse.evaluate.local_moments import Plane

if TYPE_CHECKING:
    from torch import Tensor, nn

SMALLEST_SIDE = 32
"""Pixels; under this the last layers have nothing left to see."""
_PEAK = 255


class Backbone(StrEnum):
    """Networks that LPIPS has linear weights for; AlexNet is the usual one."""

    ALEX = "alex"
    SQUEEZE = "squeeze"
    VGG = "vgg"


_FIRST_LAYERS: dict[tuple[int, ...], Backbone] = {(64, 3, 11, 11): Backbone.ALEX, (64, 3, 3, 3): Backbone.SQUEEZE}
"""Shape of ``features.0.weight``; VGG-16 has SqueezeNet's, and layers that it has not."""
_ONLY_VGG = "features.2.weight"


@dataclass(frozen=True)
class LpipsWeights:
    """Where the network's weights are, and what to call the result."""

    path: str
    backbone: Backbone
    sha256: str

    def __str__(self) -> str:
        return f"{self.backbone} {self.sha256[:16]}"


def find_weights(path: Path | None) -> LpipsWeights:
    """Look at a file of torchvision's AlexNet, SqueezeNet 1.1 or VGG-16 weights, or fetch AlexNet's.

    Raises:
        InputError: ``lpips`` is not installed, nothing can be fetched, or the file holds another network.
    """
    _lpips()
    if path is None:
        path = _fetch()
    state = _read(path)
    first = tuple(state["features.0.weight"].shape) if "features.0.weight" in state else None
    backbone = Backbone.VGG if _ONLY_VGG in state and first != (64, 3, 11, 11) else _FIRST_LAYERS.get(first or ())
    if backbone is None:
        raise InputError(
            f"{path} holds another network",
            rule="LPIPS looks through torchvision's alexnet, squeezenet1_1 or vgg16, whose convolutions are features.*",
            remedy="give such a file (safetensors, or torchvision's .pth)",
        )
    weights = LpipsWeights(str(path), backbone, hashlib.sha256(path.read_bytes()).hexdigest())
    _network(weights)
    return weights


def lpips_distance(a: Plane, b: Plane, fused: Plane, weights: LpipsWeights) -> float:
    """Mean of LPIPS(F, A) and LPIPS(F, B) of grey pictures ``[H, W]`` in 0…255; nan under 32 pixels a side."""
    if min(fused.shape) < SMALLEST_SIDE:
        return nan
    import torch

    sources = torch.stack([_rgb(a), _rgb(b)])
    with torch.inference_mode():
        distances = _network(weights)(sources, _rgb(fused).expand_as(sources))
    return float(distances.mean())


def _rgb(grey: Plane) -> Tensor:
    """``[3, H, W]`` in [−1, 1]."""
    import torch

    return torch.from_numpy((grey / _PEAK * 2 - 1).astype(np.float32)).expand(3, -1, -1)


@cache
def _network(weights: LpipsWeights) -> nn.Module:
    """The network with its weights; once per process."""
    import torch

    if parent_process() is not None:
        torch.set_num_threads(1)  # as many processes as cores compute
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # lpips calls torchvision as it was years ago
        network: nn.Module = _lpips().LPIPS(net=weights.backbone.value, pnet_rand=True, verbose=False)
    state = _read(Path(weights.path))
    wanted = {}
    for name in network.net.state_dict():  # type: ignore[union-attr]
        _, _, layer = name.partition(".")  # slice1.0.weight is features.0.weight
        wanted[name] = state.get(f"features.{layer}")
    missing = [name for name, tensor in wanted.items() if tensor is None]
    if missing:
        raise InputError(
            f"{weights.path}: {len(missing)} weights of {weights.backbone} missing",
            rule="the file holds all features.* of torchvision's network",
            remedy="give the whole file",
        )
    network.net.load_state_dict(wanted)  # type: ignore[union-attr]
    return network.eval().requires_grad_(False)


def _read(path: Path) -> dict[str, Tensor]:
    import torch
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # both raise untyped errors for damaged files
        raise InputError(
            f"{path}: no weights ({str(error).splitlines()[0]})",
            rule="safetensors, or a .pth of tensors only",
            remedy="check the path, or give the file again",
        ) from None
    return {name: tensor for name, tensor in loaded.items() if isinstance(tensor, torch.Tensor)}


def _fetch() -> Path:
    from torch import hub
    from torchvision.models import AlexNet_Weights

    url = str(AlexNet_Weights.IMAGENET1K_V1.url)
    path = Path(hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    if not path.is_file():
        try:
            AlexNet_Weights.IMAGENET1K_V1.get_state_dict(progress=False, check_hash=True)
        except OSError as error:
            raise InputError(
                f"AlexNet's weights for LPIPS could not be fetched ({error})",
                remedy="give a file: --lpips-weights alexnet.safetensors (or squeezenet1_1, vgg16)",
            ) from None
    return path


def _lpips() -> Any:
    try:
        import lpips
    except ImportError:
        raise InputError(
            "LPIPS is not installed", rule="it is an optional package", remedy="pip install 'duskfuse[perceptual]'"
        ) from None
    return lpips
