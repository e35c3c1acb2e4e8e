"""Make an in-tree segmenter, or open a trained one from a path, ours or another program's."""

from __future__ import annotations

from pathlib import Path

from pydantic import JsonValue

from duskfuse.data.class_conventions import Convention, convention_named
from duskfuse.data.errors import InputError
from duskfuse.data.weights import check_architecture, load_weights, read_card
from duskfuse.tasks.foreign_segmenters import open_foreign_segmenter
from duskfuse.tasks.segmenter import Segmenter
from duskfuse.tasks.segmenter_network import SegmenterNetwork
from duskfuse.tasks.trunk import Trunk, start_from_imagenet

ARCHITECTURE = "segmenter"


def new_segmenter(classes: Convention, trunk: Trunk = Trunk.RESIDUAL, trunk_weights: Path | None = None) -> Segmenter:
    """An untrained in-tree segmenter, its encoder from ImageNet weights where they are given.

    Args:
        classes: what it is to name.
        trunk: the encoder.
        trunk_weights: torchvision's SqueezeNet 1.1, a safetensors file or a state dict; SQUEEZENET only.

    Raises:
        InputError: the file holds something else, or weights are given for the other trunk.
    """
    network = SegmenterNetwork(len(classes.counted), trunk)
    if trunk_weights is not None:
        start_from_imagenet(network.trunk, trunk, trunk_weights)
    return Segmenter(network, classes)


def segmenter_settings(segmenter: Segmenter, trunk: Trunk) -> dict[str, JsonValue]:
    """What the card of an in-tree segmenter says, so that `open_segmenter` can build it again."""
    return {"classes": segmenter.classes.name, "trunk": trunk.value}


def open_segmenter(path: Path, classes: Convention | str | None = None) -> Segmenter:
    """Open a segmenter in evaluation mode.

    Args:
        path: a safetensors file of ours; or a folder that ``save_pretrained`` of ``segmentation_models_pytorch`` or of
            a ``transformers`` SegFormer wrote.
        classes: what its channels mean; needed for other programs' networks, and by default what our card says.

    Raises:
        InputError: nothing of the kind is there, the package that it needs is not installed, or the network does not
            name these classes.
    """
    wanted = convention_named(classes) if isinstance(classes, str) else classes
    config = (path if path.is_dir() else path.parent) / "config.json"
    if path.is_dir() or (path.name == "model.safetensors" and config.is_file()):
        return open_foreign_segmenter(config.parent, wanted)
    return _open_own(path, wanted)


def _open_own(path: Path, wanted: Convention | None) -> Segmenter:
    card = read_card(path)
    check_architecture(path, card, ARCHITECTURE)
    match dict(card.settings):
        case {"classes": str(name), "trunk": str(trunk), **unknown} if trunk in list(Trunk) and not unknown:
            own = convention_named(name)
        case settings:
            raise InputError(
                f"{path}: settings {settings}",
                rule=f"a segmenter has classes and a trunk, {' or '.join(Trunk)}",
                remedy="train it again, or update duskfuse",
            )
    if wanted is not None and wanted != own:
        raise InputError(
            f"{path} was trained on {own.name}, and {wanted.name} is wanted",
            rule="a network names the classes that it was trained on",
            remedy=f"take the classes {own.name}, or another network",
        )
    segmenter = new_segmenter(own, Trunk(trunk))
    load_weights(path, segmenter.network, ARCHITECTURE)
    return segmenter.eval()
