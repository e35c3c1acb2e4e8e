"""The training of an SLGNet detector: its frozen transformer, what it is told about pairs, and the article's rates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import JsonValue
from torch import Tensor

from duskfuse.data.errors import InputError
from duskfuse.data.images import file_sha256
from duskfuse.data.pair_files import PairFiles
from duskfuse.data.progress import track
from duskfuse.distill.context import Batch
from duskfuse.distill.optimisers import optimiser_of
from duskfuse.distill.recipe import OptimiserConfig
from duskfuse.distill.task_inputs import ShownPairs, TaskInput
from duskfuse.distill.task_jobs import DetectionJob
from duskfuse.distill.task_training import SlgTraining, TaskTraining
from duskfuse.tasks.detector_network import HeadKind
from duskfuse.tasks.fusion_blocks import FusionBlock
from duskfuse.tasks.slgnet import detector as slgnet
from duskfuse.tasks.slgnet.captions import FileCaptions
from duskfuse.tasks.slgnet.detector import RULES
from duskfuse.tasks.slgnet.network import SlgNet
from duskfuse.tasks.slgnet.text_encoders import CachedEncoder, ClipEncoder, HashingEncoder, TextEncoder, text_features
from duskfuse.tasks.slgnet.vit import FrozenVit, open_vit, weights_sha256
from duskfuse.tasks.task_network import Task

UNTOLD = 0.1
"""Share of the samples about which nothing is said, where captions come from a file: a critic and a live stream before
its first caption are told nothing, either."""
_PRIME = 1_000_003


class SlgDetectionJob(DetectionJob):
    """A detector on SLGNet's features, scored as any detector."""

    architecture = slgnet.ARCHITECTURE
    network: slgnet.SlgDetector

    def __init__(self, config: TaskTraining, pairs: Sequence[PairFiles]) -> None:
        assert config.slgnet is not None
        self._asked = config.slgnet
        _check_recipe(config)
        self._backbone = open_vit(self._asked.backbone)
        self._encoder = _text_encoder(self._asked)
        super().__init__(config, pairs)
        self._said = {} if self._asked.captions == RULES else self._from_file(Path(self._asked.captions), pairs)

    def _new_network(self) -> slgnet.SlgDetector:
        features, rules = _features(self._backbone, self._asked), self._asked.captions == RULES
        made = slgnet.new_slg_detector(features, self._classes, self._asked.width, rules)
        if made.network.rules is not None:
            made.network.rules.encode(self._encoder)
        return made

    def _from_file(self, path: Path, pairs: Sequence[PairFiles]) -> dict[str, Tensor]:
        """What the file says about every pair, ``[4, text_width]`` by name."""
        captions, encoder = FileCaptions(path), CachedEncoder(self._encoder)
        captions.check(pair.name for pair in pairs)
        nobody = torch.empty(0)  # a file does not look at pictures
        return {
            pair.name: text_features(encoder, [captions.captions(pair.name, nobody, nobody)])[0]
            for pair in track(pairs, "reading captions")
        }

    def prediction(self, batch: Batch, number: int) -> Any:
        """See `TaskJob.prediction`; which samples are told nothing depends on seed and number alone."""
        pictures = self._seen(batch)
        if not self._said:
            return self.network(pictures)
        text = torch.stack([self._said[name] for name in batch.names])
        generator = torch.Generator().manual_seed(self._config.seed * _PRIME + number)
        told = torch.rand(len(text), generator=generator) >= UNTOLD
        return self.network(pictures, (text * told[:, None, None]).to(pictures.device))

    def optimiser(self, config: OptimiserConfig) -> torch.optim.Optimizer:
        """The article's groups: the earlier an adapter, the slower it learns."""
        groups = self.network.network.parameter_groups(rate=1.0, weight_decay=config.weight_decay)
        shares = [{"params": g["params"], "weight_decay": g["weight_decay"], "share": g["lr"]} for g in groups]
        return optimiser_of(config, shares)

    def digest(self) -> str:
        """Of the transformer, the captions and what encodes them."""
        said = "" if self._asked.captions == RULES else file_sha256(Path(self._asked.captions))
        return f" {weights_sha256(self._backbone)} {self._encoder.identity} {said}"

    def settings(self) -> dict[str, JsonValue]:
        """See `TaskJob.settings`."""
        return slgnet.slg_detector_settings(self.network)

    def _predicted(self, files: PairFiles, shown: ShownPairs) -> Any:
        device = next(self.network.parameters()).device
        text = self._said[files.name][None].to(device) if self._said else None
        return self.network.predict(shown.pictures(files, self.network.channels)[None].to(device), text)


def slgnet_asked(
    task: Task,
    shown: str,
    fusion: FusionBlock | None,
    backbone: Path | None,
    captions: str | None,
    text_encoder: Path | None,
) -> SlgTraining | None:
    """What the options ask of SLGNet; None without a backbone, and InputError where options do not go together."""
    if backbone is None:
        given = {"--captions": captions, "--text-encoder": text_encoder}
        if idle := [f"{option} {value}" for option, value in given.items() if value is not None]:
            raise InputError(
                f"{idle[0]} without --backbone",
                rule="captions modulate the features of SLGNet's transformer",
                remedy="give the transformer with --backbone FILE",
            )
        return None
    if (task, shown, fusion) != (Task.DETECTION, TaskInput.BOTH, FusionBlock.SLGNET):
        raise InputError(
            f"--backbone for {task} with --input {shown} and --fusion {fusion or FusionBlock.CONCAT}",
            rule="a backbone makes the fusion slgnet the whole SLGNet, a detector of two cameras",
            remedy="say detection, --input both and --fusion slgnet, or leave it away",
        )
    return SlgTraining(backbone=backbone, captions=captions or RULES, text_encoder=text_encoder)


def _check_recipe(config: TaskTraining) -> None:
    """Raise InputError for changes of what SLGNet does not have."""
    if (config.input, config.fusion) != (TaskInput.BOTH, FusionBlock.SLGNET):
        raise InputError(f"SLGNet with input={config.input} and fusion={config.fusion}", rule="it is both and slgnet")
    if config.head is not HeadKind.DENSE:
        raise InputError(f"head={config.head} with a backbone", rule=f"SLGNet has the head {HeadKind.DENSE} here")
    if config.trunk_weights is not None:
        raise InputError(
            f"--trunk-weights {config.trunk_weights} with a backbone",
            rule="SLGNet sees with its transformer and has no other trunk",
            remedy="leave it away",
        )


def _features(backbone: FrozenVit, asked: SlgTraining) -> SlgNet:
    """Untrained adapters around the backbone; InputError where their settings do not fit it."""
    try:
        return SlgNet(backbone, asked.adapters)
    except ValueError as error:
        raise InputError(
            f"{asked.backbone}: {error}",
            rule="stages divide the blocks of the transformer, heads the channels of the values, half of its width",
            remedy="e.g. --set slgnet.adapters.heads=16 for a ViT-L",
        ) from None


def _text_encoder(asked: SlgTraining) -> TextEncoder:
    encoder: TextEncoder = HashingEncoder() if asked.text_encoder is None else ClipEncoder(asked.text_encoder)
    if encoder.width != asked.adapters.text_width:
        raise InputError(
            f"texts of {encoder.width} numbers, and adapters for {asked.adapters.text_width}",
            rule="both are equal",
            remedy=f"say --set slgnet.adapters.text_width={encoder.width}",
        )
    return encoder
