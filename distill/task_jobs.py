"""What differs between the tasks that a network is trained for: its truth, its network, its scores, its preview."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import JsonValue
from torch import Tensor

from duskfuse.data.class_conventions import (
    OBJECT_TABLES,
    Convention,
    ObjectClasses,
    check_labels,
    check_objects,
    convention_for,
    convention_named,
    object_classes,
    objects_named,
    read_counted_label,
)
from duskfuse.data.errors import InputError
from duskfuse.data.pair_files import PairFiles, read_saliency
from duskfuse.data.progress import track
from duskfuse.distill.context import Batch
from duskfuse.distill.ground_truth import WantedTruth, read_objects
from duskfuse.distill.optimisers import build_optimiser
from duskfuse.distill.recipe import OptimiserConfig
from duskfuse.distill.task_inputs import ShownPairs
from duskfuse.distill.task_preview import Rgb, map_grid, object_grid, prediction_grid
from duskfuse.distill.task_training import TaskTraining
from duskfuse.tasks import detector, open_segmenter, saliency
from duskfuse.tasks.confusion import ClassPixels, confusion, defined_mean
from duskfuse.tasks.detection_scores import AT_50, AT_75, Boxes, average_precision
from duskfuse.tasks.detection_scores import scoring_library as detection_library
from duskfuse.tasks.objects import Detections, true_objects
from duskfuse.tasks.open_task_network import AnyDetector
from duskfuse.tasks.saliency_scores import map_scores
from duskfuse.tasks.saliency_scores import scoring_library as saliency_library
from duskfuse.tasks.task_network import RGB, Task, TaskNetwork

SHOWN_CONFIDENCE = 0.3
"""Boxes less sure than this are left out of previews; the scores count them."""


class Measured(NamedTuple):
    """How well a network does on the pairs held out; nan where undefined."""

    scores: dict[str, float]
    by_class: dict[str, float]


class TaskJob(ABC):
    """One task: how a network learns it from the pairs of a run, and how it is scored."""

    task: ClassVar[Task]
    truth_name: ClassVar[str]
    """What a pair must have, in a message."""
    class_measure: ClassVar[str] = ""
    """What `Measured.by_class` holds."""
    weights_file: ClassVar[str]
    architecture: ClassVar[str]
    network: TaskNetwork[Any, Any, Any]
    wanted: WantedTruth

    @staticmethod
    @abstractmethod
    def has_truth(files: PairFiles) -> bool:
        """Whether the pair has ground truth of this task."""

    @abstractmethod
    def batch_truth(self, batch: Batch) -> Tensor:
        """What the network's loss compares with."""

    def prediction(self, batch: Batch, number: int) -> Any:
        """What the network sees in batch ``number`` of the run, with a graph."""
        return self.network(self._seen(batch))

    def optimiser(self, config: OptimiserConfig) -> torch.optim.Optimizer:
        """What moves the network."""
        return build_optimiser(config, self.network)

    def digest(self) -> str:
        """Names what else the network is made of or told, besides the pairs; empty where that is nothing."""
        return ""

    @abstractmethod
    def settings(self) -> dict[str, JsonValue]:
        """What the card says, so that the network can be built again."""

    @abstractmethod
    def measured(self, pairs: Sequence[PairFiles], shown: ShownPairs) -> Measured:
        """Scores on whole pictures."""

    @abstractmethod
    def preview(self, pairs: Sequence[PairFiles], shown: ShownPairs) -> Rgb:
        """Input, truth and prediction side by side, one pair per row."""

    def _seen(self, batch: Batch) -> Tensor:
        """Pictures of a batch with the channels that the network takes."""
        if self.network.channels == RGB:
            return batch.input_vis
        return torch.cat([batch.input_vis, batch.input_ir], dim=1)

    def _predicted(self, files: PairFiles, shown: ShownPairs) -> Any:
        """The network's prediction for a pair, a batch of one, on the device that the network is on."""
        device = next(self.network.parameters()).device
        return self.network.predict(shown.pictures(files, self.network.channels)[None].to(device))


class SegmentationJob(TaskJob):
    """A segmenter, scored by one confusion matrix of all pixels that count."""

    task, truth_name, class_measure = Task.SEGMENTATION, "label", "IoU"
    weights_file, architecture = "segmenter.safetensors", open_segmenter.ARCHITECTURE

    def __init__(self, config: TaskTraining, pairs: Sequence[PairFiles]) -> None:
        self._config, self._classes = config, convention_named(config.classes)
        check_labels(pairs, self._classes)
        self.wanted = WantedTruth(labels=self._classes)
        self.network = self._segmenter = open_segmenter.new_segmenter(self._classes, config.trunk, config.trunk_weights)

    @staticmethod
    def has_truth(files: PairFiles) -> bool:
        """See `TaskJob.has_truth`."""
        return files.label is not None

    def batch_truth(self, batch: Batch) -> Tensor:
        """See `TaskJob.batch_truth`."""
        assert batch.label is not None
        return batch.label

    def settings(self) -> dict[str, JsonValue]:
        """See `TaskJob.settings`."""
        return open_segmenter.segmenter_settings(self._segmenter, self._config.trunk)

    def measured(self, pairs: Sequence[PairFiles], shown: ShownPairs) -> Measured:
        """See `TaskJob.measured`."""
        classes, matrix = self._classes, np.zeros((), np.int64)
        for files in track(pairs, "scoring"):
            truth = read_counted_label(files, classes).numpy()
            matrix = matrix + confusion(truth, self._ids(files, shown), len(classes.table))
        pixels = ClassPixels.of(matrix, classes.counted)
        iou, accuracy = pixels.iou(), pixels.accuracy()
        scores = {
            "mIoU": float(defined_mean(iou)),
            "mean accuracy": float(defined_mean(accuracy)),
            "pixel accuracy": pixels.pixel_accuracy(),
        }
        names = (classes.table.names[number] for number in classes.counted)
        return Measured(scores, dict(zip(names, iou.tolist(), strict=True)))

    def preview(self, pairs: Sequence[PairFiles], shown: ShownPairs) -> Rgb:
        """See `TaskJob.preview`."""
        rows = [
            (shown.picture(files), read_counted_label(files, self._classes).numpy(), self._ids(files, shown))
            for files in pairs
        ]
        return prediction_grid(rows, self._classes.table)

    def _ids(self, files: PairFiles, shown: ShownPairs) -> NDArray[np.uint8]:
        ids: NDArray[np.uint8] = self._predicted(files, shown)[0].cpu().numpy()
        return ids


class DetectionJob(TaskJob):
    """A detector, scored by COCO's average precision."""

    task, truth_name, class_measure = Task.DETECTION, "file of boxes", "AP50"
    weights_file, architecture = "detector.safetensors", detector.ARCHITECTURE

    def __init__(self, config: TaskTraining, pairs: Sequence[PairFiles]) -> None:
        detection_library()
        self._config, self._classes = config, objects_named(config.classes)
        check_objects(pairs, self._classes)
        self._fusion = config.fusion if config.input == "both" else None
        self.wanted = WantedTruth(objects=self._classes)
        self.network = self._new_network()

    def _new_network(self) -> AnyDetector:
        """The untrained detector that the recipe wants."""
        config = self._config
        return detector.new_detector(
            self._classes,
            config.trunk,
            config.trunk_weights,
            head=config.head,
            fusion=self._fusion,
            tokens=config.tokens,
        )

    @staticmethod
    def has_truth(files: PairFiles) -> bool:
        """See `TaskJob.has_truth`."""
        return files.boxes is not None

    def batch_truth(self, batch: Batch) -> Tensor:
        """See `TaskJob.batch_truth`."""
        assert batch.objects is not None
        return batch.objects

    def settings(self) -> dict[str, JsonValue]:
        """See `TaskJob.settings`."""
        return detector.detector_settings(
            self._classes, self._config.trunk, self._config.head, self._fusion, self._config.tokens
        )

    def measured(self, pairs: Sequence[PairFiles], shown: ShownPairs) -> Measured:
        """See `TaskJob.measured`."""
        sizes = [files.vis.size() for files in pairs]
        truth = [_true_boxes(read_objects(files, files.vis.size(), self._classes), self._classes) for files in pairs]
        found = [_found_boxes(self._predicted(files, shown)[0]) for files in track(pairs, "scoring")]
        ap = average_precision(truth, found, sizes, range(len(self._classes)))
        means = defined_mean(np.stack([ap.mean(axis=0), ap[AT_50], ap[AT_75]])).tolist()
        by_class = {self._classes.text(kind): float(value) for kind, value in enumerate(ap[AT_50])}
        return Measured(dict(zip(("AP50:95", "AP50", "AP75"), means, strict=True)), by_class)

    def preview(self, pairs: Sequence[PairFiles], shown: ShownPairs) -> Rgb:
        """See `TaskJob.preview`."""
        rows = []
        for files in pairs:
            found = self._predicted(files, shown)[0]
            sure = found.confidences >= SHOWN_CONFIDENCE
            boxes = Detections(*(part[sure].cpu() for part in found))
            truth = true_objects(read_objects(files, files.vis.size(), self._classes), len(self._classes))
            rows.append((shown.picture(files), truth, boxes))
        return object_grid(rows, OBJECT_TABLES[self._classes.name])


class SaliencyJob(TaskJob):
    """A saliency network, scored picture by picture."""

    task, truth_name = Task.SALIENCY, "saliency map"
    weights_file, architecture = "saliency.safetensors", saliency.ARCHITECTURE

    def __init__(self, config: TaskTraining, pairs: Sequence[PairFiles]) -> None:
        saliency_library()
        self._config = config
        self.wanted = WantedTruth(saliency=True)
        self.network = saliency.new_saliency(config.trunk, config.trunk_weights)

    @staticmethod
    def has_truth(files: PairFiles) -> bool:
        """See `TaskJob.has_truth`."""
        return files.saliency is not None

    def batch_truth(self, batch: Batch) -> Tensor:
        """See `TaskJob.batch_truth`."""
        assert batch.salient is not None
        return batch.salient

    def settings(self) -> dict[str, JsonValue]:
        """See `TaskJob.settings`."""
        return saliency.saliency_settings(self._config.trunk)

    def measured(self, pairs: Sequence[PairFiles], shown: ShownPairs) -> Measured:
        """See `TaskJob.measured`."""
        singles: list[Mapping[str, float]] = []
        for files in track(pairs, "scoring"):
            truth = _true_map(files) >= 0.5
            singles.append(map_scores(self._map(files, shown), truth).single)
        means = {name: float(defined_mean(np.array([single[name] for single in singles]))) for name in singles[0]}
        return Measured(means, {})

    def preview(self, pairs: Sequence[PairFiles], shown: ShownPairs) -> Rgb:
        """See `TaskJob.preview`."""
        rows = [
            (shown.picture(files), (_true_map(files) * 255).astype(np.uint8), self._map(files, shown))
            for files in pairs
        ]
        return map_grid(rows)

    def _map(self, files: PairFiles, shown: ShownPairs) -> NDArray[np.uint8]:
        found: NDArray[np.uint8] = (self._predicted(files, shown)[0, 0] * 255).round().byte().cpu().numpy()
        return found


JOBS: dict[Task, type[SegmentationJob | DetectionJob | SaliencyJob]] = {
    job.task: job for job in (SegmentationJob, DetectionJob, SaliencyJob)
}


def classes_for(task: Task, classes: str | None, pairs: Sequence[PairFiles]) -> str:
    """Name of the class convention: the user's, or that of the dataset; empty for saliency.

    Raises:
        InputError: there is no such convention, or nobody names one.
    """
    match task:
        case Task.SEGMENTATION:
            named: Convention | ObjectClasses = convention_for(classes, [pair.label_classes for pair in pairs])
        case Task.DETECTION:
            named = object_classes(classes, [pair.box_classes for pair in pairs])
            if named.names is None:
                raise InputError(
                    "the data do not say what the classes of their boxes mean",
                    rule="a detector has named classes",
                    remedy=f"say --classes with one of {', '.join(OBJECT_TABLES)}",
                )
        case Task.SALIENCY:
            if classes is not None:
                raise InputError(f"--classes {classes}", rule="saliency has no classes", remedy="leave it away")
            return ""
    return named.name


def check_input(config: TaskTraining, channels: int) -> None:
    """Raise InputError where a network of one picture is to see both."""
    if config.input == "both" and channels == RGB:
        raise InputError(
            f"--input both for {config.task}",
            rule="only a detector sees two cameras",
            remedy="choose vis, ir, average or fused=FOLDER",
        )


def _true_boxes(objects: Tensor, classes: ObjectClasses) -> Boxes:
    known = true_objects(objects, len(classes))
    return Boxes.of([[*row, 1.0] for row in _rows(known.kinds, known.corners)])


def _found_boxes(found: Detections) -> Boxes:
    confidences = found.confidences.tolist()
    return Boxes.of([[*row, sure] for row, sure in zip(_rows(found.kinds, found.corners), confidences, strict=True)])


def _rows(kinds: Tensor, corners: Tensor) -> list[list[float]]:
    """Class, left, top, width, height."""
    boxes = corners.double().tolist()
    return [[kind, x, y, right - x, low - y] for kind, (x, y, right, low) in zip(kinds.tolist(), boxes, strict=True)]


def _true_map(files: PairFiles) -> NDArray[np.float32]:
    assert files.saliency is not None
    salient: NDArray[np.float32] = read_saliency(files.saliency, files.vis.size())[0].numpy()
    return salient
