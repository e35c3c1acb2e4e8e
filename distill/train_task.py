"""The verb ``train-task``: train a task network on pairs with ground truth, and score it on those held out.

The result is a critic for ``distill --segmenter``, or a judge for ``evaluate --task segmentation --network``. Samples,
schedule, run folder and exact resuming are those of ``distill``.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from torch import Tensor

from duskfuse import __version__
from duskfuse.data.atomic import write_atomically
from duskfuse.data.class_conventions import (
    Convention,
    check_labels,
    convention_for,
    convention_named,
    read_counted_label,
)
from duskfuse.data.datasets.folder_rules import split_named
from duskfuse.data.errors import InputError, TrainingError
from duskfuse.data.images import write_picture
from duskfuse.data.layout import find_pairs
from duskfuse.data.pair_files import PairFiles
from duskfuse.data.progress import say, track
from duskfuse.data.reading import Reading
from duskfuse.data.weights import ModelCard, save_weights
from duskfuse.distill.context import Batch
from duskfuse.distill.dataset import TrainingPairs, load_batches
from duskfuse.distill.engine import autocast_dtype
from duskfuse.distill.optimisers import build_optimiser
from duskfuse.distill.processes import training_device
from duskfuse.distill.recipe import DataConfig, OptimiserConfig, OptimiserKind, Positive, Precision
from duskfuse.distill.recipe_files import apply_change
from duskfuse.distill.run_folder import MetricsLog, RunFolder
from duskfuse.distill.schedule import learning_rate
from duskfuse.distill.task_inputs import ShownPairs, shown_pairs
from duskfuse.distill.task_preview import prediction_grid
from duskfuse.distill.training_loop import signals_between_updates, timed
from duskfuse.tasks.confusion import ClassPixels, confusion, defined_mean
from duskfuse.tasks.open_segmenter import ARCHITECTURE, new_segmenter, segmenter_settings
from duskfuse.tasks.segmenter import Segmenter
from duskfuse.tasks.segmenter_network import Trunk

WEIGHTS_FILE = "segmenter.safetensors"
PREVIEW_FILE = "preview.png"
PREVIEWED = 4
HELD_OUT = 10
"""Where the data have no split for it, one of so many labelled pairs is held out, always the same ones."""


class TaskName(StrEnum):
    """Tasks whose networks can be trained here."""

    SEGMENTATION = "segmentation"


class TaskTraining(BaseModel):
    """Everything that the training of a segmenter depends on besides the data: its recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: TaskName = TaskName.SEGMENTATION
    classes: str
    """Class convention."""
    input: str = "vis"
    """What the network sees: vis, ir, average or fused=FOLDER."""
    trunk_weights: Path | None = None
    """ImageNet weights of SqueezeNet 1.1 to start from; without them the residual trunk is trained from nothing."""
    seed: int = 2
    batches: Positive = 1500
    data: DataConfig = DataConfig(crop=(160, 192), batch=8, masks=1)
    optimiser: OptimiserConfig = OptimiserConfig(
        kind=OptimiserKind.ADAMW, lr=3e-3, warmup=50, clip_norm=5, weight_decay=1e-2
    )
    precision: Precision = Precision.AUTO
    save_every: Positive = 200
    """Batches between checkpoints."""

    @model_validator(mode="after")
    def _no_average(self) -> TaskTraining:
        if self.optimiser.ema is not None:
            raise ValueError("optimiser.ema: task networks are trained without a running average: leave it away")
        return self

    @property
    def trunk(self) -> Trunk:
        """The encoder of the network."""
        return Trunk.RESIDUAL if self.trunk_weights is None else Trunk.SQUEEZENET


@dataclass(frozen=True)
class TaskTrainingReport:
    """What a run did, how well the network does on pairs it has not seen, and where it is."""

    out: str
    classes: str
    input: str
    trained_on: int
    """Pairs."""
    held_out: int
    batches: int
    parameters: int
    seconds: float
    """Of the training."""
    scores: dict[str, float | None]
    """mIoU, mean accuracy, pixel accuracy on the held-out pairs; None where undefined."""
    iou: dict[str, float | None]
    """Of every class that counts; None for classes that no held-out label has."""
    weights: str
    preview: str
    """Input, label and prediction of some held-out pairs."""

    def to_json(self) -> dict[str, object]:
        """Plain data for ``--json``."""
        return asdict(self)

    def tables(self) -> list[Any]:
        """For a terminal: the scores, and the IoU of every class."""
        from rich.table import Table

        title = f"{self.classes} from {self.input}, {self.held_out} pairs held out"
        table = Table("class", "IoU", title=title, min_width=len(title) + 2)
        for name, value in {**self.iou, **self.scores}.items():
            table.add_row(name, "–" if value is None else f"{value:.4f}", end_section=name == [*self.iou][-1])
        return [table]


def train_task(
    data: Path,
    *,
    task: TaskName,
    out: Path,
    classes: str | None = None,
    shown: str = "vis",
    trunk_weights: Path | None = None,
    changes: Sequence[str] = (),
    split: str | None = None,
    reading: Reading | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> TaskTrainingReport:
    """Train a segmenter on the labelled pairs of ``data``, and write weights, scores and a preview to ``out``.

    Pairs of a split called val or test are held out to score it; where there is none, a tenth of the labelled pairs.

    Args:
        data: folder of pairs, see :func:`duskfuse.data.layout.find_pairs`.
        task: what to train for.
        out: run folder.
        classes: name of the class convention; by default the dataset's.
        shown: what the network sees: vis, ir, average or fused=FOLDER.
        trunk_weights: SqueezeNet 1.1 weights for the encoder to start from.
        changes: ``key.path=value`` strings, see `TaskTraining`.
        split: one split of the data only.
        reading: how the infrared pictures are read, by default the dataset's ``duskfuse.yaml``.
        resume: go on with the run in ``out``.
        overwrite: replace the run in ``out``.

    Raises:
        InputError: input that cannot be used.
        TrainingError: the loss stops being finite.
    """
    found = find_pairs(data, split=split, reading=reading)
    labelled = [pair for pair in found if pair.label is not None]
    if not labelled:
        raise InputError(
            f"{data}: none of {len(found)} pairs has a label",
            rule="a segmenter learns from label maps",
            remedy="add a label folder; docs/datasets.md says where it lies",
        )
    named = convention_for(classes, [pair.label_classes for pair in labelled])
    config = _resolve(task, named, shown, trunk_weights, changes)
    convention = convention_named(config.classes)
    check_labels(labelled, convention)
    train, held_out = _parted(labelled)
    reader = shown_pairs(config.input, labelled)
    dataset = TrainingPairs(train, config.data, config.seed, masks=None, labels=convention, read=reader)
    torch.manual_seed(config.seed)
    segmenter = new_segmenter(convention, config.trunk, config.trunk_weights)
    folder = RunFolder(out)
    folder.prepare(config, resume=resume, overwrite=overwrite)
    run = _Run(config, segmenter, folder, dataset, f"{dataset.digest()} {reader.digest()}")
    first = run.continued() if resume else 0
    started = time.monotonic()
    run.train(first)
    report = _scored(config, segmenter, held_out, reader, folder, len(train), time.monotonic() - started)
    card = _card(config, segmenter, dataset.described(data.resolve().name), report)
    save_weights(Path(report.weights), segmenter.network, card)
    write_atomically(folder.out / "scores.json", json.dumps(report.to_json(), indent=2, allow_nan=False) + "\n")
    return report


def _resolve(
    task: TaskName, classes: Convention, shown: str, trunk_weights: Path | None, changes: Sequence[str]
) -> TaskTraining:
    values = TaskTraining(task=task, classes=classes.name, input=shown, trunk_weights=trunk_weights).model_dump(
        mode="json"
    )
    for change in changes:
        apply_change(values, change)
    try:
        return TaskTraining.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise InputError(f"--set: {problems}", remedy=f"keys are {', '.join(TaskTraining.model_fields)}") from None


def _parted(labelled: Sequence[PairFiles]) -> tuple[list[PairFiles], list[PairFiles]]:
    """Pairs to train on, and pairs to score on."""
    held_out = [pair for pair in labelled if split_named(pair.split or "") in ("val", "test")]
    if not held_out or len(held_out) == len(labelled):
        drawn = np.random.default_rng(0).permutation(len(labelled))[: max(len(labelled) // HELD_OUT, 1)]
        held_out = [labelled[place] for place in sorted(drawn)]  # drawn, since datasets repeat places and conditions
    names = {pair.name for pair in held_out}
    train = [pair for pair in labelled if pair.name not in names]
    if not train:
        raise InputError(
            f"{len(labelled)} pair with a label",
            rule="one is trained on and another held out",
            remedy="add labelled pairs",
        )
    return train, held_out


class _Run:
    """The network, its optimiser and one update per batch."""

    def __init__(
        self, config: TaskTraining, segmenter: Segmenter, folder: RunFolder, dataset: TrainingPairs, inputs: str
    ) -> None:
        self._config, self._folder, self._dataset, self._inputs = config, folder, dataset, inputs
        self._device = training_device()
        self._segmenter = segmenter.to(self._device).to(memory_format=torch.channels_last)
        self._optimiser = build_optimiser(config.optimiser, segmenter)
        self._dtype = autocast_dtype(config.precision, self._device)
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=self._dtype is torch.float16)

    def continued(self) -> int:
        """Load the newest checkpoint; the batch to go on with."""
        state, first = self._folder.load(), 0
        if state is not None:
            if state["inputs"] != self._inputs:
                raise InputError(
                    f"the pairs, labels or fused pictures differ from those of {self._folder.out}",
                    rule="a resumed run sees what it would have seen",
                    remedy="give the same DATA, --split and --reading, or start a new run",
                )
            self._segmenter.load_state_dict(state["network"])
            self._optimiser.load_state_dict(state["optimiser"])
            self._scaler.load_state_dict(state["scaler"])
            first = int(state["next_batch"])
        self._folder.trim_metrics(first)
        say(f"resuming {self._folder.out} at batch {first}")
        return first

    def train(self, first: int) -> None:
        """Run batches ``first`` to the end; Ctrl-C or SIGTERM stops after the update at hand, with a checkpoint."""
        config, done = self._config, first
        batches = load_batches(self._dataset, config.data, first, config.batches)
        shown = track(batches, f"train {config.task}", total=config.batches - first)
        self._segmenter.train()
        with ExitStack() as stack:
            log = MetricsLog(self._folder)
            stack.callback(log.close)
            stop = stack.enter_context(signals_between_updates())
            for batch, _ in timed(shown):
                record = self._update(done, batch.to(self._device))
                log.append(record, {"loss": record["loss"], "lr": record["lr"]})
                done += 1
                if done % config.save_every == 0 or done == config.batches or stop:
                    log.flush()
                    self._save(done)
                if stop:
                    say(f"stopped at batch {done}; go on with --resume")
                    raise KeyboardInterrupt
        self._segmenter.eval()

    def _update(self, number: int, batch: Batch) -> dict[str, Any]:
        """One optimiser step; the record of the log."""
        assert batch.label is not None
        rate = learning_rate(self._config.optimiser, number, self._config.batches)
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        self._optimiser.zero_grad(set_to_none=True)
        with torch.autocast(self._device.type, dtype=self._dtype, enabled=self._dtype is not None):
            logits = self._segmenter(batch.input_vis)
        loss = self._segmenter.loss(logits.float(), batch.label)
        _check_finite(loss, "loss", number, batch)
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self._scaler.unscale_(self._optimiser)
        norm = torch.nn.utils.clip_grad_norm_(self._segmenter.parameters(), self._config.optimiser.clip_norm)
        if not self._scaler.is_enabled():  # the scaler passes such an update over
            _check_finite(norm, "gradient", number, batch)
        self._scaler.step(self._optimiser)
        self._scaler.update()
        return {"batch": number, "loss": float(loss.detach()), "lr": rate, "gradient_norm": _defined(float(norm))}

    def _save(self, next_batch: int) -> None:
        state = {
            "network": self._segmenter.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "scaler": self._scaler.state_dict(),
            "next_batch": next_batch,
            "inputs": self._inputs,
        }
        self._folder.save(next_batch, state)


def _check_finite(value: Tensor, what: str, number: int, batch: Batch) -> None:
    if not torch.isfinite(value):
        raise TrainingError(
            f"the {what} became {float(value.detach())} at batch {number} ({', '.join(batch.names)})",
            rule="it must stay finite",
            remedy="lower --set optimiser.lr, or look at these pairs; --resume goes on from the last checkpoint",
        )


def _scored(
    config: TaskTraining,
    segmenter: Segmenter,
    held_out: Sequence[PairFiles],
    reader: ShownPairs,
    folder: RunFolder,
    trained_on: int,
    seconds: float,
) -> TaskTrainingReport:
    """Score the network on whole pictures that it was not trained on, and draw some of them."""
    classes = segmenter.classes
    matrix = sum(
        confusion(read_counted_label(files, classes).numpy(), _predicted(segmenter, reader, files), len(classes.table))
        for files in track(held_out, "scoring")
    )
    pixels = ClassPixels.of(np.asarray(matrix), classes.counted)
    iou, accuracy = pixels.iou(), pixels.accuracy()
    scores = {
        "mIoU": float(defined_mean(iou)),
        "mean accuracy": float(defined_mean(accuracy)),
        "pixel accuracy": pixels.pixel_accuracy(),
    }
    names = (classes.table.names[number] for number in classes.counted)
    return TaskTrainingReport(
        out=str(folder.out),
        classes=classes.name,
        input=config.input,
        trained_on=trained_on,
        held_out=len(held_out),
        batches=config.batches,
        parameters=sum(parameter.numel() for parameter in segmenter.parameters()),
        seconds=round(seconds, 1),
        scores={name: _defined(value) for name, value in scores.items()},
        iou={name: _defined(float(value)) for name, value in zip(names, iou, strict=True)},
        weights=str(folder.out / WEIGHTS_FILE),
        preview=str(_write_preview(segmenter, held_out, reader, folder.out / PREVIEW_FILE)),
    )


def _predicted(segmenter: Segmenter, reader: ShownPairs, files: PairFiles) -> NDArray[np.uint8]:
    ids: NDArray[np.uint8] = segmenter.ids(reader(files).vis[None].to(segmenter.mean.device))[0].cpu().numpy()
    return ids


def _write_preview(segmenter: Segmenter, pairs: Sequence[PairFiles], reader: ShownPairs, path: Path) -> Path:
    """Some of the pairs, spread evenly."""
    chosen = pairs[:: -(-len(pairs) // PREVIEWED)]
    rows = []
    for files in chosen:
        shown = (reader(files).vis.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
        label = read_counted_label(files, segmenter.classes).numpy()
        rows.append((shown, label, _predicted(segmenter, reader, files)))
    write_picture(path, prediction_grid(rows, segmenter.classes.table))
    return path


def _card(config: TaskTraining, segmenter: Segmenter, trained_on: str, report: TaskTrainingReport) -> ModelCard:
    known = {name: value for name, value in report.scores.items() if value is not None}
    return ModelCard(
        architecture=ARCHITECTURE,
        settings=segmenter_settings(segmenter, config.trunk),
        colour="rgb",
        version=__version__,
        training_data=f"{trained_on}, seen as {config.input}",
        metrics={f"{name} on {report.held_out} pairs held out": value for name, value in known.items()},
        notes=f"{config.batches} updates, seed {config.seed}",
    )


def _defined(value: float) -> float | None:
    return value if math.isfinite(value) else None
