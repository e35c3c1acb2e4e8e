"""Files of what was trained; the frozen backbone is named by its hash, and another one is refused."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from pydantic import JsonValue, TypeAdapter, ValidationError

from duskfuse import __version__
from duskfuse.data.errors import InputError
from duskfuse.data.weights import ModelCard, check_architecture, load_weights, read_card, save_weights
from duskfuse.tasks.slgnet.network import SlgNet, SlgSettings
from duskfuse.tasks.slgnet.vit import FrozenVit, weights_sha256

ARCHITECTURE = "slgnet"
BACKBONE = "backbone_sha256"
_SETTINGS: TypeAdapter[SlgSettings] = TypeAdapter(SlgSettings)


def save_adapters(path: Path, network: SlgNet, training_data: str, notes: str = "") -> None:
    """Write the trained part of a network; its card names the settings and the backbone's hash."""
    card = ModelCard(
        architecture=ARCHITECTURE,
        settings=card_settings(network),
        colour="rgb",
        version=__version__,
        training_data=training_data,
        notes=notes,
    )
    save_weights(path, network.adapters, card)


def open_slgnet(path: Path, backbone: FrozenVit) -> SlgNet:
    """The network of a file of `save_adapters` around its backbone, in evaluation mode.

    Raises:
        InputError: the file holds something else, or was trained on another backbone.
    """
    card = read_card(path)
    check_architecture(path, card, ARCHITECTURE)
    network = SlgNet(backbone, settings_of(path, card.settings, backbone))
    load_weights(path, network.adapters, ARCHITECTURE)
    return network.eval()


def card_settings(network: SlgNet) -> dict[str, JsonValue]:
    """What a card says about a network: its settings, and its backbone's hash."""
    return {**network.settings.as_json(), BACKBONE: weights_sha256(network.backbone)}


def settings_of(path: Path, said: Any, backbone: FrozenVit) -> SlgSettings:
    """The settings that the card of ``path`` says; InputError where they are none, or of another backbone."""
    here = weights_sha256(backbone)
    if said.get(BACKBONE) != here:
        raise InputError(
            f"{path}: trained on the backbone {str(said.get(BACKBONE))[:12]}, not on this {here[:12]}",
            rule="adapters fit only the frozen backbone that they were trained around, with the same size of patches",
            remedy="give that backbone",
        )
    named = {field.name for field in fields(SlgSettings)}
    try:
        return _SETTINGS.validate_python({key: value for key, value in said.items() if key in named})
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(
            f"{path}: settings: {'.'.join(map(str, first['loc']))}: {first['msg']}",
            rule="the card holds the settings of the adapters",
            remedy="train it again, or update duskfuse",
        ) from None
