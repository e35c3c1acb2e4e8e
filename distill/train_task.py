"""The verb ``train-task``: train a task network on pairs with ground truth, and score it on those held out.

The result is a critic for ``distill --critic``, or a judge for ``evaluate --task TASK --network``. Samples, schedule,
run folder and exact resuming are those of ``distill``; what differs between tasks is in `duskfuse.distill.task_jobs`.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from duskfuse import __version__
from duskfuse.data.atomic import write_atomically
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
from duskfuse.distill.optimisers import set_rate
from duskfuse.distill.processes import training_device
from duskfuse.distill.run_folder import MetricsLog, RunFolder
from duskfuse.distill.schedule import learning_rate
from duskfuse.distill.slgnet_job import SlgDetectionJob, slgnet_asked
from duskfuse.distill.task_inputs import ShownPairs, TaskInput, shown_pairs
from duskfuse.distill.task_jobs import JOBS, TaskJob, check_input, classes_for
from duskfuse.distill.task_training import TaskTraining, task_training
from duskfuse.distill.training_loop import signals_between_updates, timed
from duskfuse.tasks.fusion_blocks import FusionBlock
from duskfuse.tasks.task_network import Task

PREVIEW_FILE = "preview.png"
PREVIEWED = 4
HELD_OUT = 10
"""Where the data have no split for it, one of so many labelled pairs is held out, always the same ones."""


@dataclass(frozen=True)
class TaskTrainingReport:
    """What a run did, how well the network does on pairs it has not seen, and where it is."""

    out: str
    task: str
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
    """On the held-out pairs; None where undefined. Segmentation: mIoU, mean accuracy, pixel accuracy. Detection:
    AP50:95, AP50, AP75. Saliency: F, E and S-measures, and MAE."""
    by_class: dict[str, float | None]
    """IoU or AP50 of every class that counts; None for classes that no held-out pair has."""
    weights: str
    preview: str
    """Input, truth and prediction of some held-out pairs."""

    def to_json(self) -> dict[str, object]:
        """Plain data for ``--json``."""
        return asdict(self)

    def tables(self) -> list[Any]:
        """For a terminal: the scores, and one of every class."""
        from rich.table import Table

        title = f"{self.classes or self.task} from {self.input}, {self.held_out} pairs held out"
        measure = JOBS[Task(self.task)].class_measure
        table = Table(f"class ({measure}) and mean" if measure else "measure", "value", title=title)
        for name, value in {**self.by_class, **self.scores}.items():
            last = bool(self.by_class) and name == [*self.by_class][-1]
            table.add_row(name, "–" if value is None else f"{value:.4f}", end_section=last)
        return [table]


def train_task(
    data: Path,
    *,
    task: Task,
    out: Path,
    classes: str | None = None,
    shown: str = "vis",
    fusion: FusionBlock | None = None,
    backbone: Path | None = None,
    captions: str | None = None,
    text_encoder: Path | None = None,
    trunk_weights: Path | None = None,
    changes: Sequence[str] = (),
    split: str | None = None,
    reading: Reading | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> TaskTrainingReport:
    """Train a network on the pairs of ``data`` that have ground truth; write weights, scores and a preview to ``out``.

    Pairs of a split called val or test are held out to score it; where there is none, a tenth of the pairs.

    Args:
        data: folder of pairs, see :func:`duskfuse.data.layout.find_pairs`.
        task: what to train for.
        out: run folder.
        classes: name of the class convention; by default the dataset's.
        shown: what the network sees: vis, ir, average or fused=FOLDER; for detection also both.
        fusion: what joins two cameras, with the input both; concat where it is not given.
        backbone: frozen vision transformer, with the fusion slgnet: the whole of SLGNet is trained around it.
        captions: what SLGNet is told about pairs: ``rules`` (the default), or a file of JSON lines.
        text_encoder: folder of CLIP's text encoder, for these captions; hashed words without one.
        trunk_weights: SqueezeNet 1.1 weights for the encoder to start from.
        changes: ``key.path=value`` strings, see `duskfuse.distill.task_training.TaskTraining`.
        split: one split of the data only.
        reading: how the infrared pictures are read, by default the dataset's ``duskfuse.yaml``.
        resume: go on with the run in ``out``.
        overwrite: replace the run in ``out``.

    Raises:
        InputError: input that cannot be used.
        TrainingError: the loss stops being finite.
    """
    if fusion is not None:
        if shown != TaskInput.BOTH:
            raise InputError(
                f"--fusion {fusion} with --input {shown}", rule="two cameras are fused", remedy="say --input both"
            )
        changes = [f"fusion={fusion}", *changes]
    slgnet = slgnet_asked(task, shown, fusion, backbone, captions, text_encoder)
    found = find_pairs(data, split=split, reading=reading)
    job_of_task = JOBS[task]
    known = [pair for pair in found if job_of_task.has_truth(pair)]
    if not known:
        raise InputError(
            f"{data}: none of {len(found)} pairs has a {job_of_task.truth_name}",
            rule=f"a network learns {task} from them",
            remedy="add them; docs/datasets.md says where they lie",
        )
    config = task_training(task, classes_for(task, classes, known), shown, trunk_weights, changes, slgnet)
    train, held_out = parted(known, job_of_task.truth_name)
    reader = shown_pairs(config.input, known)
    torch.manual_seed(config.seed)
    job = job_of_task(config, known) if slgnet is None else SlgDetectionJob(config, known)
    check_input(config, job.network.channels)
    dataset = TrainingPairs(train, config.data, config.seed, masks=None, truth=job.wanted, read=reader)
    folder = RunFolder(out)
    folder.prepare(config, resume=resume, overwrite=overwrite)
    run = _Run(config, job, folder, dataset, f"{dataset.digest()} {reader.digest()}{job.digest()}")
    first = run.continued() if resume else 0
    started = time.monotonic()
    run.train(first)
    report = _scored(config, job, held_out, reader, folder, len(train), time.monotonic() - started)
    card = _card(config, job, dataset.described(data.resolve().name), report)
    save_weights(Path(report.weights), job.network.network, card)
    write_atomically(folder.out / "scores.json", json.dumps(report.to_json(), indent=2, allow_nan=False) + "\n")
    return report


def parted(labelled: Sequence[PairFiles], truth: str) -> tuple[list[PairFiles], list[PairFiles]]:
    """Pairs to train on, and pairs to score on; InputError where there is one pair only.

    Those of a split called val or test are held out; where there is none, or nothing else, a tenth, always the same.
    """
    held_out = [pair for pair in labelled if split_named(pair.split or "") in ("val", "test")]
    if not held_out or len(held_out) == len(labelled):
        drawn = np.random.default_rng(0).permutation(len(labelled))[: max(len(labelled) // HELD_OUT, 1)]
        held_out = [labelled[place] for place in sorted(drawn)]  # drawn, since datasets repeat places and conditions
    names = {pair.name for pair in held_out}
    train = [pair for pair in labelled if pair.name not in names]
    if not train:
        raise InputError(
            f"{len(labelled)} pair with a {truth}",
            rule="one is trained on and another held out",
            remedy="add pairs that have one",
        )
    return train, held_out


class _Run:
    """The network, its optimiser and one update per batch."""

    def __init__(
        self, config: TaskTraining, job: TaskJob, folder: RunFolder, dataset: TrainingPairs, inputs: str
    ) -> None:
        self._config, self._folder, self._dataset, self._inputs = config, folder, dataset, inputs
        self._device = training_device()
        self._job = job
        self._network = job.network.to(self._device).to(memory_format=torch.channels_last)
        self._optimiser = job.optimiser(config.optimiser)
        self._dtype = autocast_dtype(config.precision, self._device)
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=self._dtype is torch.float16)

    def continued(self) -> int:
        """Load the newest checkpoint; the batch to go on with."""
        state, first = self._folder.continued(
            self._inputs,
            seen="the backbone, captions, pairs, labels or fused pictures",
            given="DATA, --split, --reading and files",
        )
        if state is not None:
            self._network.load_state_dict(state["network"])
            self._optimiser.load_state_dict(state["optimiser"])
            self._scaler.load_state_dict(state["scaler"])
        return first

    def train(self, first: int) -> None:
        """Run batches ``first`` to the end; Ctrl-C or SIGTERM stops after the update at hand, with a checkpoint."""
        config, done = self._config, first
        batches = load_batches(self._dataset, config.data, first, config.batches)
        shown = track(batches, f"train {config.task}", total=config.batches - first)
        self._network.train()
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
        self._network.eval()

    def _update(self, number: int, batch: Batch) -> dict[str, Any]:
        """One optimiser step; the record of the log."""
        rate = learning_rate(self._config.optimiser, number, self._config.batches)
        set_rate(self._optimiser, rate)
        self._optimiser.zero_grad(set_to_none=True)
        with torch.autocast(self._device.type, dtype=self._dtype, enabled=self._dtype is not None):
            prediction = self._job.prediction(batch, number)
        loss = self._network.loss(_in_float32(prediction), self._job.batch_truth(batch))
        _check_finite(loss, "loss", number, batch)
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self._scaler.unscale_(self._optimiser)
        norm = torch.nn.utils.clip_grad_norm_(self._network.parameters(), self._config.optimiser.clip_norm)
        if not self._scaler.is_enabled():  # the scaler passes such an update over
            _check_finite(norm, "gradient", number, batch)
        self._scaler.step(self._optimiser)
        self._scaler.update()
        return {"batch": number, "loss": float(loss.detach()), "lr": rate, "gradient_norm": _defined(float(norm))}

    def _save(self, next_batch: int) -> None:
        state = {
            "network": self._network.state_dict(),
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


def _in_float32(prediction: Any) -> Any:
    """A tensor in float32; heads of detectors convert their own predictions."""
    return prediction.float() if isinstance(prediction, Tensor) else prediction


def _scored(
    config: TaskTraining,
    job: TaskJob,
    held_out: Sequence[PairFiles],
    reader: ShownPairs,
    folder: RunFolder,
    trained_on: int,
    seconds: float,
) -> TaskTrainingReport:
    """Score the network on whole pictures that it was not trained on, and draw some of them, spread evenly."""
    measured = job.measured(held_out, reader)
    preview = folder.out / PREVIEW_FILE
    write_picture(preview, job.preview(held_out[:: -(-len(held_out) // PREVIEWED)], reader))
    return TaskTrainingReport(
        out=str(folder.out),
        task=config.task.value,
        classes=config.classes,
        input=config.input,
        trained_on=trained_on,
        held_out=len(held_out),
        batches=config.batches,
        parameters=sum(parameter.numel() for parameter in job.network.parameters()),
        seconds=round(seconds, 1),
        scores={name: _defined(value) for name, value in measured.scores.items()},
        by_class={name: _defined(value) for name, value in measured.by_class.items()},
        weights=str(folder.out / job.weights_file),
        preview=str(preview),
    )


def _card(config: TaskTraining, job: TaskJob, trained_on: str, report: TaskTrainingReport) -> ModelCard:
    known = {name: value for name, value in report.scores.items() if value is not None}
    return ModelCard(
        architecture=job.architecture,
        settings=job.settings(),
        colour="rgb",
        version=__version__,
        training_data=f"{trained_on}, seen as {config.input}",
        metrics={f"{name} on {report.held_out} pairs held out": value for name, value in known.items()},
        notes=f"{config.batches} updates, seed {config.seed}",
    )


def _defined(value: float) -> float | None:
    return value if math.isfinite(value) else None
