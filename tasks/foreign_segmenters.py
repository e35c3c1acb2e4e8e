"""Segmenters of other programs, opened from the folder that their ``save_pretrained`` wrote; nothing is downloaded.

Supported are the networks of ``segmentation_models_pytorch`` and the SegFormer of ``transformers`` (Xie et al. 2021),
with which FMB is scored in publications. Pictures are normalised by the folder's ``preprocessor_config.json``, or as
ImageNet is where there is none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from duskfuse.data.class_conventions import CONVENTIONS, Convention
from duskfuse.data.errors import InputError
from duskfuse.tasks.encoders import IMAGENET_MEAN, IMAGENET_STD
from duskfuse.tasks.segmenter import Segmenter

_RULE = "a segmenter is a file of ours, or a folder of segmentation_models_pytorch or of a transformers SegFormer"
_REMEDY = "give the folder that save_pretrained wrote, with config.json and model.safetensors"
_SMALLEST_SCORE = 1e-8


class _SegformerLogits(nn.Module):
    """A SegFormer that gives its logits, at a quarter of the resolution."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, picture: Tensor) -> Tensor:
        return self.model(pixel_values=picture).logits  # type: ignore[no-any-return]


class _LogScores(nn.Module):
    """Independent scores of the classes as log-probabilities: what a softmax of the result gives is score / Σ score."""

    def forward(self, scores: Tensor) -> Tensor:
        return scores.clamp_min(_SMALLEST_SCORE).log().log_softmax(dim=1)


def open_foreign_segmenter(folder: Path, classes: Convention | None) -> Segmenter:
    """Open a folder of ``save_pretrained`` in evaluation mode; InputError where it is no segmenter of ``classes``."""
    config = _json(folder / "config.json")
    if not (folder / "model.safetensors").is_file():
        raise InputError(f"{folder} holds no model.safetensors", rule=_RULE, remedy=_REMEDY)
    if classes is None:
        raise InputError(
            f"{folder} does not say what its channels mean",
            rule="a segmenter of another program needs a class convention",
            remedy=f"say which: {', '.join(convention.name for convention in CONVENTIONS)}",
        )
    if "_model_class" in config:
        network, channels, names = _smp_network(folder, config)
    elif config.get("model_type") == "segformer":
        network, channels, names = _segformer(folder)
    else:
        raise InputError(
            f"{folder}: config.json is of {config.get('model_type', 'no known model')}", rule=_RULE, remedy=_REMEDY
        )
    _check_channels(folder, classes, channels, names)
    mean, std = _normalisation(folder)
    return Segmenter(network, classes, mean, std).eval()


def _smp_network(folder: Path, config: Mapping[str, Any]) -> tuple[nn.Module, int, Mapping[int, str]]:
    try:
        import segmentation_models_pytorch as smp  # type: ignore[import-untyped,unused-ignore]
    except ImportError:
        raise InputError(
            f"{folder} is a network of segmentation_models_pytorch, which is not installed",
            remedy="pip install --no-deps segmentation-models-pytorch timm",
        ) from None
    if config["_model_class"] not in {kind.__name__ for kind in smp.MODEL_ARCHITECTURES_MAPPING.values()}:
        raise InputError(
            f"{folder}: config.json names the class {config['_model_class']!r}", rule=_RULE, remedy=_REMEDY
        )
    try:
        # The encoder's own pretrained weights would be downloaded, only to be replaced.
        model = smp.from_pretrained(folder, encoder_weights=None, local_files_only=True)
    except Exception as error:  # the package, timm and safetensors each raise their own
        raise _cannot_be_opened(folder, error) from None
    activation = model.segmentation_head[-1]
    kind = activation.activation
    if isinstance(kind, nn.Sigmoid):
        model.segmentation_head.append(_LogScores())
    elif isinstance(kind, nn.Softmax | nn.LogSoftmax):
        activation.activation = nn.Identity()  # what the softmax was taken of
    elif not isinstance(kind, nn.Identity):
        raise InputError(
            f"{folder}: the network ends in {type(kind).__name__}",
            rule="a critic needs logits or scores",
            remedy="save the network with activation None",
        )
    if model.classification_head is not None:
        model.classification_head = None  # a second output, of the whole picture
    return model, int(config["classes"]), {}


def _segformer(folder: Path) -> tuple[nn.Module, int, Mapping[int, str]]:
    try:
        from transformers import SegformerForSemanticSegmentation
    except ImportError:
        raise InputError(
            f"{folder} is a SegFormer of transformers, which is not installed",
            remedy='pip install "duskfuse[transformers]"',
        ) from None
    try:
        model, loaded = SegformerForSemanticSegmentation.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:  # transformers raises whatever a damaged file makes it run into
        raise _cannot_be_opened(folder, error) from None
    if missing := sorted(loaded["missing_keys"]):
        raise InputError(
            f"{folder}: {len(missing)} weights are missing, such as {missing[0]}",
            rule="a critic is a trained segmenter, not a backbone",
            remedy="give the folder of a fine-tuned SegformerForSemanticSegmentation",
        )
    return _SegformerLogits(model), int(model.config.num_labels), dict(model.config.id2label)


def _check_channels(folder: Path, classes: Convention, channels: int, names: Mapping[int, str]) -> None:
    """As many channels as the table or the convention has classes; where they have names, none of another id."""
    table = classes.table
    if channels not in (len(table), len(classes.counted)):
        raise InputError(
            f"{folder} names {channels} classes",
            rule=f"{classes.name} has {len(classes.counted)} of the {len(table)} of {table.title}",
            remedy="say the classes that it was trained on, or give another network",
        )
    ids = range(len(table)) if channels == len(table) else classes.counted
    known = {name.lower(): number for number, name in enumerate(table.names)}
    for channel, number in enumerate(ids):
        name = names.get(channel, "").lower()
        if known.get(name, number) != number:
            raise InputError(
                f"{folder}: channel {channel} is {name!r}",
                rule=f"there {classes.name} has {table.names[number]!r}",
                remedy="say the classes that it was trained on",
            )


def _normalisation(folder: Path) -> tuple[Sequence[float], Sequence[float]]:
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return IMAGENET_MEAN, IMAGENET_STD
    said = _json(path)
    mean, std = said.get("image_mean", IMAGENET_MEAN), said.get("image_std", IMAGENET_STD)
    try:
        valid = torch.tensor([mean, std]).shape == (2, 3) and min(std) > 0
    except (TypeError, ValueError):
        valid = False
    if not valid:
        raise InputError(
            f"{path}: image_mean {mean}, image_std {std}",
            rule="both are three numbers, of pictures in 0 to 1, and no deviation is 0",
            remedy="correct the file",
        )
    return mean, std


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path.parent} holds no {path.name}", rule=_RULE, remedy=_REMEDY) from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error})", rule=_RULE, remedy=_REMEDY) from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: no JSON object", rule=_RULE, remedy=_REMEDY)
    return content


def _cannot_be_opened(folder: Path, error: Exception) -> InputError:
    first_line = (str(error).splitlines() or [type(error).__name__])[0]
    return InputError(f"{folder}: cannot be opened ({first_line[:200]})", rule=_RULE, remedy=_REMEDY)
