"""A student steered for detection, segmentation and saliency: what each task gains, and what becomes of the picture.

    python benchmarks/closed_loop.py --work FOLDER --out FILE [DATA] [--trunk-weights FILE] [--table]

DATA holds pairs in splits ``train`` and ``val`` with boxes and MFNet's label maps; saliency maps are made of the labels
of cars, people and bicycles, and all pictures are halved. Without DATA, built-in scenes with exact truth take their
place.

Judges are trained on the student's own pictures, or on what ``--judges-see`` says; one more detector, of another
seed, is never seen by a steering. The steerings are trained on the same batches: all of it, without the punishment (α
= 0), with the mean of the gradients in place of CAGrad, and with what CLDyN's code calls CAGrad; ``--fidelity`` says
how firmly all of them are held to the student's own picture. On the pairs held out, every judge scores the student's
own pictures and those of every steering: fixed (what the task needs on average, as it is exported) and live (what the
judge sees in each picture; the detector not seen in training asks with its own features).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import torch
from halved_pairs import halve_pairs

from duskfuse.data.layout import find_pairs
from duskfuse.data.scenes.kinds import BOX_CLASS_OF
from duskfuse.data.scenes.write import write_scenes
from duskfuse.distill.closed_loop.steer import WEIGHTS_FILE, steer
from duskfuse.distill.closed_loop.steer_config import SteerTraining
from duskfuse.distill.train_task import train_task
from duskfuse.evaluate.evaluate import evaluate
from duskfuse.evaluate.network_scores import network_scores
from duskfuse.export.fuse import fuse
from duskfuse.students.steering.steered import weights_digest
from duskfuse.students.zoo import load_student
from duskfuse.tasks.task_network import Task

VARIANTS: dict[str, tuple[str, ...]] = {
    "all": (),
    "without punishment": ("punishment=0",),
    "mean of gradients": ("combination=mean",),
    "published rule": ("combination=published",),
}
UNSEEN = "detection, not seen"
JUDGES = {**{task.value: (task, 2) for task in Task}, UNSEEN: (Task.DETECTION, 9)}
"""Task and seed."""
UPDATES = {Task.DETECTION: 1500, Task.SEGMENTATION: 600, Task.SALIENCY: 600}
WEIGHTS = {Task.DETECTION: "detector", Task.SEGMENTATION: "segmenter", Task.SALIENCY: "saliency"}
MEASURES = {Task.DETECTION: ("AP50", "AP50:95"), Task.SEGMENTATION: ("mIoU",), Task.SALIENCY: ("mean F", "S")}
METRICS = ("EN", "SD", "SF", "AG", "MI", "SCD", "CC", "VIF", "VIFF", "Qabf", "SSIM")
SCENE_SIZE = (240, 320)
OWN = "own"
CROP = "data.crop=[160, 192]"
SMALL = ("data.workers=0", "save_every=10000")


def main() -> None:
    """Train, judge and write the results, or print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?", help="pairs; default: built-in scenes")
    parser.add_argument("--work", type=Path, help="folder for pairs and runs, new or of an earlier run")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--student", default="edge")
    parser.add_argument("--trunk-weights", type=Path)
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--judges", nargs="+", default=list(JUDGES), choices=JUDGES)
    parser.add_argument("--judges-see", default=OWN, choices=[OWN, "vis", "ir", "average"], help="in their training")
    parser.add_argument("--judge-share", type=float, default=1.0, help="of the judges' updates")
    parser.add_argument("--batches", type=int, default=400)
    parser.add_argument("--fidelity", type=float, default=SteerTraining.model_fields["fidelity"].default)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if not options.table:
        torch.set_num_threads(1)
        cv2.setNumThreads(1)
        options.out.write_text(json.dumps(measured(options), indent=2) + "\n", encoding="utf-8")
    print(table(json.loads(options.out.read_text(encoding="utf-8"))))


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Everything; what an earlier run in the folder trained is kept."""
    work: Path = options.work
    student = options.student
    pairs = prepared(options)
    own = work / "pictures" / OWN
    for split in ("train", "val"):
        fuse(pairs / split / "ir", pairs / split / "vis", own, model=student)
    judges = {name: judge(name, pairs, own, options) for name in options.judges}
    digest = weights_digest(load_student(student)[0])
    steerings = {name: steered(name, pairs, judges, options) for name in options.variants}
    rows = {OWN: own}
    for name, steering in steerings.items():
        rows |= pictures(name, steering, pairs / "val", judges, options)
    return {
        "settings": {
            "data": options.data.name if options.data else "built-in scenes",
            "student": student,
            "updates": options.batches,
        }
        | {"pairs": len(find_pairs(pairs, split="train")), "held out": len(find_pairs(pairs, split="val"))}
        | {"judges": {name: UPDATES[JUDGES[name][0]] * options.judge_share for name in judges}}
        | {"judges see": options.judges_see, "fidelity": options.fidelity},
        "machine": {"cpu": platform.machine(), "cores": os.cpu_count(), "torch": torch.__version__},
        "student unchanged": digest == weights_digest(load_student(student)[0]),
        "steering": {name: training(steering.parent) for name, steering in steerings.items()},
        "tasks": {name: judged(name, pairs, path, rows, options) for name, path in judges.items()},
        "metrics": metrics(pairs, rows, work, options.variants[0]),
    }


def prepared(options: argparse.Namespace) -> Path:
    """Pairs with all ground truth in the splits train and val, at half size or drawn; made once."""
    work: Path = options.work
    pairs, making = work / "pairs", work / "pairs.part"
    if pairs.is_dir():
        return pairs
    if options.data is None:
        drawn = {"train": (options.scenes, 0), "val": (options.scenes // 4, 10_000)}
        for split, (count, seed) in drawn.items():
            whole = work / "drawn" / split
            size = (2 * SCENE_SIZE[0], 2 * SCENE_SIZE[1])
            write_scenes(whole, count=count, size=size, seed=seed)
        halve_pairs(work / "drawn", making, salient=[int(kind) for kind in BOX_CLASS_OF])
    else:
        halve_pairs(options.data, making)
    making.rename(pairs)
    return pairs


def judge(name: str, pairs: Path, own: Path, options: argparse.Namespace) -> Path:
    """A task network trained on the student's own pictures, or on others."""
    task, seed = JUDGES[name]
    work: Path = options.work
    out = work / "judges" / name.replace(", ", "-").replace(" ", "-")
    network = out / f"{WEIGHTS[task]}.safetensors"
    if not network.exists():
        crop = "[224, 288]" if task is Task.DETECTION else "[160, 192]"
        train_task(
            pairs,
            task=task,
            out=out,
            classes=classes_of(task, options),
            shown=f"fused={own}" if options.judges_see == OWN else options.judges_see,
            trunk_weights=options.trunk_weights,
            changes=(
                *SMALL,
                f"seed={seed}",
                f"batches={round(UPDATES[task] * options.judge_share)}",
                f"data.crop={crop}",
                "optimiser.lr=1e-3",
            ),
            overwrite=True,
        )
    return network


def classes_of(task: Task, options: argparse.Namespace) -> str | None:
    """What ids mean; saliency has none."""
    if options.data is None:
        return {Task.DETECTION: "scenes-4", Task.SEGMENTATION: "scenes-11"}.get(task)
    return {Task.DETECTION: "MSRS-3", Task.SEGMENTATION: "MFNet-9"}.get(task)


def steered(name: str, pairs: Path, judges: Mapping[str, Path], options: argparse.Namespace) -> Path:
    """One steering for the three tasks."""
    work: Path = options.work
    out = work / "steerings" / name.replace(" ", "-")
    if not (out / WEIGHTS_FILE).exists():
        steer(
            pairs,
            student=options.student,
            critics=[judges[task.value] for task in Task if task.value in judges],
            out=out,
            changes=(*SMALL, f"batches={options.batches}", f"fidelity={options.fidelity}", CROP, *VARIANTS[name]),
            overwrite=True,
        )
    return out / WEIGHTS_FILE


def training(run: Path) -> dict[str, float]:
    """What a steering's training took, and the share of updates in which a task's picture became worse by steering."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    worse = [row["punishment"] > 0 for line in lines for row in json.loads(line)["tasks"].values()]
    seconds = json.loads((run / "scores.json").read_text(encoding="utf-8"))["seconds"]
    return {"seconds": seconds, "harmful": round(sum(worse) / len(worse), 4)}


def pictures(
    name: str, steering: Path, held_out: Path, judges: Mapping[str, Path], options: argparse.Namespace
) -> dict[str, Path]:
    """Folders of held-out pictures: fixed for every task, and live for every judge."""
    place = options.work / "pictures" / name.replace(" ", "-")
    found = {}
    for task in (task for task in Task if task.value in judges):
        found[f"{name}, fixed for {task}"] = place / f"fixed-{task}"
        fuse(
            held_out / "ir",
            held_out / "vis",
            place / f"fixed-{task}",
            model=options.student,
            steering=steering,
            task=task.value,
        )
    for number, (asking, path) in enumerate(judges.items()):
        found[f"{name}, live for {asking}"] = out = place / f"live-{number}"
        fuse(held_out / "ir", held_out / "vis", out, model=options.student, steering=steering, critic=path)
    return found


def judged(
    name: str, pairs: Path, network: Path, rows: Mapping[str, Path], options: argparse.Namespace
) -> dict[str, dict[str, float]]:
    """A judge's scores of the student's own pictures, of those for its task and, as controls, of the plain rows."""
    task, _ = JUDGES[name]
    ends = (OWN, f", fixed for {task}", f", live for {name}")
    asked = {row: path for row, path in rows.items() if row.endswith(ends)}
    found = network_scores(
        pairs,
        task=task,
        network=network,
        fused=asked,
        classes=classes_of(task, options),
        split="val",
        out=options.work / "scores" / name.replace(", ", "-").replace(" ", "-"),
        overwrite=True,
    )
    return {row.name: {m: round(row.totals[m], 4) for m in MEASURES[task]} for row in found.rows}


def metrics(pairs: Path, rows: Mapping[str, Path], work: Path, variant: str) -> dict[str, dict[str, float]]:
    """Fusion metrics of the first steering's pictures beside the student's own."""
    chosen = {row: path for row, path in rows.items() if row == OWN or row.startswith(f"{variant}, ")}
    found = evaluate(pairs, fused=chosen, metrics=METRICS, split="val", out=work / "metrics", overwrite=True, workers=1)
    return {row.name: {m: round(row.summary(m).mean, 4) for m in METRICS} for row in found.rows if row.name in chosen}


def table(results: dict[str, Any]) -> str:
    """Markdown: scores of every judge, and fusion metrics as percentages of the student's own."""
    lines = []
    for name, rows in results["tasks"].items():
        heads = [*rows[OWN]]
        lines += [f"| {name}: pictures | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
        for row, found in rows.items():
            lines.append(f"| {row} | {' | '.join(f'{100 * value:.1f}' for value in found.values())} |")
        lines.append("")
    own = results["metrics"][OWN]
    lines += [f"| pictures | {' | '.join(own)} |", "|---" * (len(own) + 1) + "|"]
    for row, found in results["metrics"].items():
        cells = [f"{v:.3f}" if row == OWN else f"{100 * (v / own[m] - 1):+.1f} %" for m, v in found.items()]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
