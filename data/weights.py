"""Weights files: safetensors that carry a model card, so that a file says what it is and how to build its network.

State dicts of other programs have no card; `read_state_dict` reads them without running anything they contain.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import torch
from pydantic import ConfigDict, JsonValue, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from duskfuse.data.atomic import write_atomically
from duskfuse.data.errors import InputError

CARD_KEY = "duskfuse"
"""Where the card stands in the metadata of a safetensors file."""
_REMEDY = "give a .safetensors checkpoint written by duskfuse"
_UNREADABLE = (
    SafetensorError,
    pickle.UnpicklingError,
    RuntimeError,
    OSError,
    EOFError,
    ValueError,
    KeyError,
    AttributeError,
)
"""What reading a file that is no state dict, or half of one, ends in."""


@dataclass(frozen=True)
class ModelCard:
    """What a weights file is: enough to build the network and to judge where it may be used."""

    __pydantic_config__: ClassVar = ConfigDict(ser_json_inf_nan="strings")  # an undefined metric stays readable

    architecture: str
    """Identifier of the network, such as ``unet`` or ``sage-main``."""
    settings: Mapping[str, JsonValue]
    """Constructor arguments of the network."""
    colour: Literal["luma", "rgb"]
    """What the network fuses: luminance, or three colour channels."""
    version: str
    """Version of duskfuse that trained it."""
    training_data: str
    licence: str = "Apache-2.0"
    metrics: Mapping[str, float] = field(default_factory=dict)
    notes: str = ""
    int8_scales: Mapping[str, float] = field(default_factory=dict)
    """Of a student that was fine-tuned for INT8: the scale of the input of each convolution that is in it. The weights
    are then those of the deployed form, with branches merged and batch normalisation folded in."""


_CARD = TypeAdapter(ModelCard)


def save_weights(path: Path, module: nn.Module, card: ModelCard) -> None:
    """Write the module's parameters and buffers with the card; the file appears whole or not at all."""
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in module.state_dict().items()}
    content = save(tensors, metadata={"format": "pt", CARD_KEY: _CARD.dump_json(card).decode()})
    write_atomically(path, content)


def read_card(path: Path) -> ModelCard:
    """Read only the card of a weights file.

    Raises InputError when the file is missing, is not (or is half of) a safetensors file, or has no readable card.
    """
    return _read(path, tensors=False)[0]


def load_weights(path: Path, module: nn.Module, architecture: str) -> ModelCard:
    """Copy a weights file into ``module``, which is left as it was when the file does not fit.

    Raises InputError, besides the cases of `read_card`, when the file holds another architecture, when keys or shapes
    differ, or when a weight is NaN or infinite.
    """
    card, tensors = _read(path, tensors=True)
    check_architecture(path, card, architecture)
    if differences := _differences(tensors, module.state_dict()):
        more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise InputError(
            f"{path}: {', '.join(differences[:3])}{more}",
            rule=f"the tensors of a checkpoint must be those of its network, {architecture!r}",
            remedy="the file was changed or made by another version: train or download it again",
        )
    if broken := [key for key, tensor in tensors.items() if not torch.isfinite(tensor).all()]:
        raise InputError(
            f"{path}: {broken[0]} has NaN or infinite values",
            rule="weights must be finite",
            remedy="take an earlier checkpoint of that run",
        )
    module.load_state_dict(dict(tensors))
    return card


def read_state_dict(path: Path, *, rule: str, remedy: str) -> dict[str, Tensor]:
    """Read another program's state dict, safetensors by its suffix or else what ``torch.save`` wrote, onto the CPU.

    Raises InputError with the caller's rule and remedy when there is no such file or it holds anything but tensors
    by name.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file", rule=rule, remedy=remedy)
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        state = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{path}: cannot be read as plain tensors ({first_line[:200]})", rule=rule, remedy=remedy
        ) from None
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    ):
        raise InputError(f"{path}: holds no state dict", rule=rule, remedy=remedy)
    return state


def check_architecture(path: Path, card: ModelCard, wanted: str) -> None:
    """Raise InputError when the card of ``path`` is not of the wanted architecture."""
    if card.architecture != wanted:
        raise InputError(
            f"{path}: checkpoint of another architecture: {card.architecture!r}",
            rule=f"{wanted!r} is wanted here",
            remedy=f"give a checkpoint of a {wanted!r} network",
        )


def _read(path: Path, *, tensors: bool) -> tuple[ModelCard, dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()} if tensors else {}  # noqa: SIM118
    except FileNotFoundError:
        raise InputError(f"{path}: no such weights file", remedy="check the path") from None
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path}: not a safetensors file, or only a part of one ({error})",
            rule="weights are safetensors files",
            remedy=_REMEDY,
        ) from None
    if CARD_KEY not in metadata:
        raise InputError(
            f"{path}: safetensors file without a model card",
            rule="the card says how to build the network",
            remedy=_REMEDY,
        )
    try:
        return _CARD.validate_json(metadata[CARD_KEY]), state
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "card"
        raise InputError(f"{path}: model card: {where}: {first['msg']}", remedy=_REMEDY) from None


def _differences(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    missing = [f"{key} is missing" for key in wanted.keys() - given.keys()]
    unexpected = [f"{key} is unexpected" for key in given.keys() - wanted.keys()]
    shapes = [
        f"{key} is {tuple(given[key].shape)} and should be {tuple(wanted[key].shape)}"
        for key in given.keys() & wanted.keys()
        if given[key].shape != wanted[key].shape
    ]
    return sorted(missing) + sorted(unexpected) + sorted(shapes)
