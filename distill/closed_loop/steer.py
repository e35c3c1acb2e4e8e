"""The verb ``steer``: train the steering of a frozen student for one or more tasks, and score it on pairs held out.

Samples, schedule, run folder and exact resuming are those of ``distill`` and ``train-task``. One batch serves all
tasks, so that the student's own pictures are made once; a task that has no ground truth in it takes no part.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from duskfuse.data.atomic import write_atomically
from duskfuse.data.errors import InputError, TrainingError
from duskfuse.data.images import write_picture
from duskfuse.data.layout import find_pairs
from duskfuse.data.pair_files import PairFiles
from duskfuse.data.progress import say, track
from duskfuse.data.reading import Reading
from duskfuse.distill.closed_loop.loop import ClosedLoop, TaskScales, put_gradient, update_of
from duskfuse.distill.closed_loop.loop_task import LoopTask, deepest_layer
from duskfuse.distill.closed_loop.measure import measured, needs_on_average
from duskfuse.distill.closed_loop.steer_config import SteerTraining, steer_training
from duskfuse.distill.context import Batch
from duskfuse.distill.critics import by_task, check_backbone, checked_classes, truth_of
from duskfuse.distill.dataset import TrainingPairs, load_batches
from duskfuse.distill.ground_truth import WantedTruth
from duskfuse.distill.optimisers import build_optimiser
from duskfuse.distill.preview import picture_columns
from duskfuse.distill.processes import training_device
from duskfuse.distill.run_folder import MetricsLog, RunFolder
from duskfuse.distill.schedule import learning_rate
from duskfuse.distill.train_task import parted
from duskfuse.distill.training_loop import signals_between_updates, timed
from duskfuse.students.steering.description import Resolution
from duskfuse.students.steering.steered import SteeredStudent, Steering, weights_digest
from duskfuse.students.steering.steering_file import save_steering
from duskfuse.students.steering.taps import taps_of
from duskfuse.students.zoo import load_student
from duskfuse.tasks.open_task_network import open_task_network
from duskfuse.tasks.task_network import Task

WEIGHTS_FILE = "steering.safetensors"
_PRIME = 1_000_003


@dataclass(frozen=True)
class SteerReport:
    """What a run did, and what each task's network says of pictures that were not trained on."""

    out: str
    student: str
    tasks: list[str]
    trained_on: int
    """Pairs."""
    held_out: int
    batches: int
    parameters: int
    seconds: float
    """Of the training."""
    losses: dict[str, dict[str, float]]
    """By task, means over the held-out pairs: of the student's own pictures (first), steered by what the network sees
    in each of them (live), and steered by what the task needs on average (fixed)."""
    weights: str

    def to_json(self) -> dict[str, object]:
        """Plain data for ``--json``."""
        return asdict(self)

    def tables(self) -> list[Any]:
        """For a terminal."""
        from rich.table import Table

        table = Table("task", "first", "live", "fixed", title=f"Loss of the task, {self.held_out} pairs held out")
        for task, losses in self.losses.items():
            table.add_row(task, *(f"{losses[name]:.4f}" for name in ("first", "live", "fixed")))
        return [table]


def steer(
    data: Path,
    *,
    student: str | Path,
    critics: Sequence[Path],
    out: Path,
    backbone: Path | None = None,
    changes: Sequence[str] = (),
    split: str | None = None,
    reading: Reading | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> SteerReport:
    """Train a steering on the pairs of ``data`` that have ground truth of any task; the student stays as it is.

    Args:
        data: folder of pairs, see :func:`duskfuse.data.layout.find_pairs`.
        student: zoo name or checkpoint of a student with taps.
        critics: task networks of ``train-task``, one per task.
        out: run folder; `WEIGHTS_FILE` in it is the result.
        backbone: the transformer of an SLGNet detector among the task networks.
        changes: ``key.path=value`` strings, see `SteerTraining`.
        split: one split of the data only.
        reading: how the infrared pictures are read, by default the dataset's ``duskfuse.yaml``.
        resume: go on with the run in ``out``.
        overwrite: replace the run in ``out``.

    Raises:
        InputError: input that cannot be used.
        TrainingError: a loss stops being finite.
    """
    if not critics:
        raise InputError("no task network", rule="a student is steered for a task", remedy="give --critic FILE")
    given = by_task(critics)
    if backbone is not None:
        check_backbone(backbone, given.get(Task.DETECTION))
    config = steer_training(student, {task: given[task] for task in Task if task in given}, changes, backbone)
    found = find_pairs(data, split=split, reading=reading)
    tasks, wanted = _opened(config, found)
    known = [pair for pair in found if _has_truth(pair, config.critics)]
    if not known:
        raise InputError(
            f"{data}: none of {len(found)} pairs has ground truth of {', '.join(config.critics)}",
            rule="tasks judge fused pictures by it",
            remedy="add it; docs/datasets.md says where it lies",
        )
    train, held_out = parted(known, "ground truth")
    torch.manual_seed(config.seed)
    network = _new_network(config)
    folder = RunFolder(out)
    folder.prepare(config, resume=resume, overwrite=overwrite)
    dataset = TrainingPairs(train, config.data, config.seed, masks=None, truth=wanted)
    run = _Run(config, ClosedLoop(network, tasks), folder, dataset)
    first = run.continued() if resume else 0
    started = time.monotonic()
    run.train(first)
    seconds = time.monotonic() - started
    needs_on_average(run.loop, train, wanted)
    losses = measured(run.loop, held_out, wanted)
    report = SteerReport(
        out=str(out),
        student=config.student,
        tasks=[task.name for task in tasks],
        trained_on=len(train),
        held_out=len(held_out),
        batches=config.batches,
        parameters=sum(parameter.numel() for parameter in network.steering.parameters()),
        seconds=round(seconds, 1),
        losses=losses,
        weights=str(out / WEIGHTS_FILE),
    )
    save_steering(
        out / WEIGHTS_FILE,
        network,
        punishment=config.punishment,
        training_data=dataset.described(data.resolve().name),
        metrics={f"{task} loss, {kind}": value for task, row in losses.items() for kind, value in row.items()},
        notes=f"{config.batches} updates around {config.student}, seed {config.seed}",
    )
    write_atomically(out / "scores.json", json.dumps(report.to_json(), indent=2) + "\n")
    return report


def _opened(config: SteerTraining, pairs: Sequence[PairFiles]) -> tuple[list[LoopTask], WantedTruth]:
    """The frozen task networks, and what samples must carry for them."""
    networks = {
        task: open_task_network(path, backbone=config.backbone if task is Task.DETECTION else None).freeze()
        for task, path in config.critics.items()
    }
    tasks = []
    for task, network in networks.items():
        checked_classes(network, pairs)
        tasks.append(LoopTask(network, config.layers.get(task) or deepest_layer(network)))
    return tasks, truth_of(networks)


def _has_truth(pair: PairFiles, tasks: Mapping[Task, Path]) -> bool:
    truth = {Task.SEGMENTATION: pair.label, Task.DETECTION: pair.boxes, Task.SALIENCY: pair.saliency}
    return any(truth[task] is not None for task in tasks)


def _new_network(config: SteerTraining) -> SteeredStudent:
    student, _ = load_student(config.student)
    resolution = Resolution(config.image_side, config.task_side, config.channels)
    names = [task.value for task in config.critics]
    return SteeredStudent(student, Steering(taps_of(student, config.taps), names, config.branches, resolution))


class _Run:
    """The steering, its optimiser and one update per batch."""

    def __init__(self, config: SteerTraining, loop: ClosedLoop, folder: RunFolder, dataset: TrainingPairs) -> None:
        self._config, self._folder, self._dataset = config, folder, dataset
        self._device = training_device()
        self.loop = loop
        loop.network.to(self._device)
        for task in loop.tasks:
            task.network.to(self._device)
        self._steering = loop.network.steering
        self._optimiser = build_optimiser(config.optimiser, self._steering)
        self._scales = TaskScales()
        digests = [weights_digest(network) for network in (loop.network.student, *(t.network for t in loop.tasks))]
        self._inputs = " ".join([dataset.digest(), *digests])

    def continued(self) -> int:
        """Load the newest checkpoint; the batch to go on with."""
        state, first = self._folder.continued(
            self._inputs,
            seen="the pairs, their ground truth, the student or a critic",
            given="DATA, --student, --critic, --split and --reading",
        )
        if state is not None:
            self._steering.load_state_dict(state["steering"])
            self._optimiser.load_state_dict(state["optimiser"])
            self._scales.means = dict(state["scales"])
        return first

    def train(self, first: int) -> None:
        """Run batches ``first`` to the end; Ctrl-C or SIGTERM stops after the update at hand, with a checkpoint."""
        config, done = self._config, first
        batches = load_batches(self._dataset, config.data, first, config.batches)
        self.loop.network.train()
        with ExitStack() as stack:
            log = MetricsLog(self._folder)
            stack.callback(log.close)
            stop = stack.enter_context(signals_between_updates())
            for loaded, _ in timed(track(batches, "steer", total=config.batches - first)):
                batch = loaded.to(self._device)
                record = self._update(done, batch)
                log.append(record, {f"{task}/{n}": v for task, row in record["tasks"].items() for n, v in row.items()})
                done += 1
                if done % config.sample_every == 0 or done == config.batches:
                    self._write_samples(batch, done, log)
                if done % config.save_every == 0 or done == config.batches or stop:
                    log.flush()
                    self._save(done)
                if stop:
                    say(f"stopped at batch {done}; go on with --resume")
                    raise KeyboardInterrupt
        self.loop.network.eval()

    def _update(self, number: int, batch: Batch) -> dict[str, Any]:
        """One optimiser step; the record of the log. What is drawn depends on seed and number alone."""
        config = self._config
        rate = learning_rate(config.optimiser, number, config.batches)
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        update = update_of(
            self.loop,
            batch,
            self._scales,
            punishment=config.punishment,
            fidelity=config.fidelity,
            combination=config.combination,
            radius=config.radius,
            generator=torch.Generator().manual_seed(config.seed * _PRIME + number),
        )
        _check_finite(update.direction, number, batch)
        parameters = list(self._steering.parameters())
        put_gradient(update.direction, parameters)
        norm = torch.nn.utils.clip_grad_norm_(parameters, config.optimiser.clip_norm)
        if update.losses:
            self._optimiser.step()
        return {"batch": number, "tasks": update.losses, "lr": rate, "gradient_norm": float(norm)}

    @torch.no_grad()
    def _write_samples(self, batch: Batch, done: int, log: MetricsLog) -> None:
        """Sources, the student's own pictures and what each task makes of them."""
        self.loop.network.eval()
        first = self.loop.first_pictures(batch)
        columns: dict[str, Tensor] = {"infrared": batch.ir.expand(-1, 3, -1, -1), "visible": batch.vis, "first": first}
        columns |= {f"for {task.name}": self.loop.turn(batch, task, first).picture for task in self.loop.tasks}
        self.loop.network.train()
        grid = picture_columns({title: pictures.cpu() for title, pictures in columns.items()})
        write_picture(self._folder.samples / f"{done:07d}.png", grid)
        log.picture("samples", grid, done - 1)

    def _save(self, next_batch: int) -> None:
        state = {
            "steering": self._steering.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "scales": dict(self._scales.means),
            "next_batch": next_batch,
            "inputs": self._inputs,
        }
        self._folder.save(next_batch, state)


def _check_finite(direction: Tensor, number: int, batch: Batch) -> None:
    if not bool(torch.isfinite(direction).all()):
        raise TrainingError(
            f"a gradient is not finite at batch {number} ({', '.join(batch.names)})",
            rule="it must stay finite",
            remedy="lower --set optimiser.lr, or look at these pairs; --resume goes on from the last checkpoint",
        )
