"""``evaluate --task --network``: run one task network on every method's pictures, and score what it predicts.

The network sees colour: a model's luminance (and that of the average and the maximum) with the chroma of the visible
picture, rounded to 8 bit as ``duskfuse fuse`` writes it; fused pictures and the visible picture as stored; the infrared
picture as three equal channels. A detector of two cameras sees the infrared picture besides. Predictions are written
first, in the forms that ``--predictions`` takes, and then scored by the same code: a killed run goes on with the same
command, and anybody can look at them or score them again.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from duskfuse import __version__
from duskfuse.data.atomic import write_atomically
from duskfuse.data.class_conventions import OBJECT_TABLES, check_labels, convention_for, object_classes
from duskfuse.data.colour import recombine
from duskfuse.data.containers import Size
from duskfuse.data.errors import InputError
from duskfuse.data.images import to_u8, write_picture
from duskfuse.data.layout import find_pairs
from duskfuse.data.pair_files import PairFiles
from duskfuse.data.priors.pipeline import cores
from duskfuse.data.progress import say, track
from duskfuse.data.reading import Reading
from duskfuse.evaluate import network_classes, network_pictures, onnx_run, task_predictors, torch_predictors
from duskfuse.evaluate.evaluate import OnBad, check_pictures, look_at_all
from duskfuse.evaluate.fused_folder import read_fused_rgb
from duskfuse.evaluate.measurement_files import check_free
from duskfuse.evaluate.methods import Method, check_names, folders, fused_luminance, models, row_names, trivial
from duskfuse.evaluate.network_pictures import Rgb
from duskfuse.evaluate.onnx_run import NetworkInput
from duskfuse.evaluate.score_pairs import Rule, fused_grey
from duskfuse.evaluate.scores import Finding
from duskfuse.evaluate.source_pictures import SeenSources, SourcePictures
from duskfuse.evaluate.task_predictors import TaskPredictor, open_onnx_predictor
from duskfuse.evaluate.task_results import TaskScores
from duskfuse.evaluate.task_scores import check_classes, score_predictions, task_files, with_truth
from duskfuse.evaluate.torch_predictors import DetectorPredictor, SaliencyPredictor, SegmenterPredictor
from duskfuse.tasks import detection_scores, saliency_scores
from duskfuse.tasks.detection_scores import Boxes
from duskfuse.tasks.task_network import Task

_COMPUTE = (network_classes, network_pictures, onnx_run, task_predictors, torch_predictors)


def network_scores(
    data: Path,
    *,
    task: Task,
    network: Path,
    backbone: Path | None = None,
    model: Sequence[str | Path] = (),
    fused: Mapping[str, Path] | None = None,
    network_input: NetworkInput | None = None,
    classes: str | None = None,
    split: str | None = None,
    reading: Reading | Path | None = None,
    on_bad: OnBad = OnBad.ERROR,
    out: Path,
    overwrite: bool = False,
) -> TaskScores:
    """Score a task network on models, folders of fused pictures and the four trivial rows.

    Writes what :func:`duskfuse.evaluate.task_scores.task_scores` writes, and ``TASK_predictions/`` with a folder of
    predictions per row.

    Args:
        data: folder of pairs, see :func:`duskfuse.data.layout.find_pairs`; those without ground truth are left out.
        task: what the network predicts.
        network: an ONNX file, see :func:`duskfuse.evaluate.task_predictors.open_onnx_predictor`; weights of
            ``train-task``; or a segmenter's folder that :func:`duskfuse.tasks.open_segmenter.open_segmenter` opens.
        backbone: the frozen transformer that the network, an SLGNet detector, was trained around.
        model: zoo names, checkpoints and ONNX files of fusion models.
        fused: row name → folder of fused pictures, matched with the pairs by name or stem.
        network_input: values of the network's input, where its file does not say; by default 0 to 1.
        classes: name of the class convention; by default the dataset's.
        split: one split of the data only.
        reading: how the infrared pictures are read, or a file that says it; by default the dataset's ``duskfuse.yaml``.
        on_bad: what becomes of a pair with an unusable source or fused picture.
        out: folder to write to, made where missing; files of other names in it stay.
        overwrite: replace the files of an earlier run.

    Raises:
        InputError: as the scoring of predictions; also where the network or a model cannot be opened, the network is
            not one of the task or not of these classes, or a source or fused picture is unusable.
    """
    check_free(out, task_files(task), overwrite)
    check_classes(task, classes)
    check_names(row_names(model, fused or {}), reference=None)
    pairs = find_pairs(data, split=split, reading=reading)
    scored = with_truth(task, pairs, data)
    opened = _open(network, task, classes, scored, network_input, backbone)
    with ThreadPoolExecutor(cores()) as readers:
        seen, findings = look_at_all(scored, readers)
        methods = [*models(model, seen), *folders(fused or {}, pairs, seen, readers), *trivial()]
    names = {pair.name for pair in scored}
    methods = [replace(method, findings=_findings_of(names, method.findings)) for method in methods]
    bad = check_pictures(methods, findings, len(scored), on_bad)
    scored = [pair for pair in scored if pair.name not in bad]
    facts = opened.facts()
    place = out / f"{task}_predictions"
    if overwrite and place.is_dir():
        shutil.rmtree(place)
    told = [name for name, ours in facts.get("classes", {}).items() if ours is None]
    if told:
        say(f"{network.name}: classes that the data do not have count as none: {', '.join(told)}")
    predictions = {method.name: place / _folder_name(method, facts, scored, seen) for method in methods}
    _predict(opened, task, methods, scored, predictions)
    return score_predictions(
        data,
        task=task,
        predictions=predictions,
        pairs=[pair for pair in pairs if pair.name not in bad],
        scored=scored,
        out=out,
        classes=classes,
        split=split,
        network={
            **facts,
            "predictions": place.name,
            "unusable": sorted(bad),
            "pictures": {
                method.name: {
                    "kind": str(method.kind),
                    "from": method.origin or None,
                    "sha256": method.hash_over([pair.name for pair in scored]),
                    "predictions": predictions[method.name].name,
                }
                for method in methods
            },
        },
    )


def network_picture(method: Method, sources: SourcePictures) -> Rgb:
    """What a task network sees of a method's fused picture: ``[H, W, 3]`` 8-bit RGB."""
    if method.fuser is not None:
        return _coloured(fused_luminance(method.fuser, sources), sources)
    picture = method.picture(sources)
    match picture:
        case Path():
            return read_fused_rgb(picture)
        case Rule.VISIBLE:
            return to_u8(sources.vis)
        case Rule.INFRARED:
            return np.repeat(sources.ir_u8[..., None], 3, axis=2)
        case _:
            return _coloured(fused_grey(picture, sources).astype(np.float32) / np.float32(255), sources)


def _coloured(y: NDArray[np.float32], sources: SourcePictures) -> Rgb:
    vis = torch.from_numpy(sources.vis).permute(2, 0, 1)
    return to_u8(recombine(torch.from_numpy(y)[None], vis).permute(1, 2, 0).numpy())


def _open(
    path: Path,
    task: Task,
    classes: str | None,
    scored: Sequence[PairFiles],
    network_input: NetworkInput | None,
    backbone: Path | None,
) -> TaskPredictor:
    """Open the network for the classes of the data; what scores the task must be there before anything is computed."""
    table, convention = None, None
    match task:
        case Task.SEGMENTATION:
            convention = convention_for(classes, [pair.label_classes for pair in scored])
            check_labels(scored, convention)
            table = convention.table
        case Task.DETECTION:
            detection_scores.scoring_library()
            table = OBJECT_TABLES.get(object_classes(classes, [pair.box_classes for pair in scored]).name)
        case Task.SALIENCY:
            saliency_scores.scoring_library()
    if backbone is not None and (task is not Task.DETECTION or path.suffix.lower() == ".onnx"):
        raise InputError(
            f"--backbone {backbone} for {task} by {path.name}",
            rule="an SLGNet detector is opened around it",
            remedy="leave it away",
        )
    if path.suffix.lower() == ".onnx":
        return open_onnx_predictor(path, task, table, network_input)
    if network_input is not None:
        raise InputError(
            f"--network-input {network_input} for {path}",
            rule="a network that was trained here knows how it wants its pictures",
            remedy="leave it away",
        )
    if convention is not None:
        return SegmenterPredictor(path, convention)
    return DetectorPredictor(path, table, backbone) if task is Task.DETECTION else SaliencyPredictor(path)


def _findings_of(names: set[str], findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Of what is bad, only what concerns the pairs of these names."""
    kept = []
    for finding in findings:
        concerned = tuple(name for name in finding.names if name in names)
        if not finding.oddity.is_bad:
            kept.append(finding)
        elif concerned:
            kept.append(replace(finding, names=concerned))
    return tuple(kept)


def _folder_name(
    method: Method, facts: Mapping[str, Any], scored: Sequence[PairFiles], seen: Mapping[str, SeenSources]
) -> str:
    """Name of the row's folder; it changes with all that its predictions depend on."""
    stamp = hashlib.sha256()
    for file in (__file__, *(module.__file__ for module in _COMPUTE)):
        stamp.update(Path(file or "").read_bytes())
    stamp.update(f"{__version__} {json.dumps(facts, sort_keys=True)} {method.name}\n".encode())
    for pair in scored:
        stamp.update(f"{pair.name} {seen[pair.name].key} {method.key(pair.name)}\n".encode())
    return f"{re.sub(r'[^A-Za-z0-9]+', '-', method.name)[:40].strip('-')}-{stamp.hexdigest()[:12]}"


def _predict(
    network: TaskPredictor,
    task: Task,
    methods: Sequence[Method],
    scored: Sequence[PairFiles],
    predictions: Mapping[str, Path],
) -> None:
    """Write the predictions that are not there yet, pair by pair."""
    suffix = ".txt" if task is Task.DETECTION else ".png"
    todo: list[tuple[PairFiles, list[Method]]] = []
    for pair in scored:
        missing = [method for method in methods if not (predictions[method.name] / f"{pair.name}{suffix}").exists()]
        if missing:
            todo.append((pair, missing))
    for pair, wanted in track(todo, "Running the network"):
        sources = SourcePictures(pair)
        for method in wanted:
            rgb = network_picture(method, sources)
            if isinstance(network, DetectorPredictor) and network.sees_infrared:
                rgb = np.dstack([rgb, sources.ir_u8])
            _write(predictions[method.name] / f"{pair.name}{suffix}", network.predict(rgb), pair.vis.size())


def _write(path: Path, predicted: NDArray[np.uint8] | Boxes, size: Size) -> None:
    """In the forms of ``--predictions``: a grey picture, or YOLO text with confidences."""
    if not isinstance(predicted, Boxes):
        write_picture(path, predicted)
        return
    height, width = size
    lines = []
    for kind, (left, top, across, down), confidence in zip(*predicted, strict=True):
        box = (left + across / 2) / width, (top + down / 2) / height, across / width, down / height
        lines.append(
            " ".join([str(int(kind)), *(repr(min(1.0, float(value))) for value in box), repr(float(confidence))])
        )
    write_atomically(path, "".join(f"{line}\n" for line in lines))
