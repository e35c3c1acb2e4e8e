"""Steering `edge` for segmentation and detection of built-in scenes, with ablations and a network not seen in training.

    python benchmarks/closed_loop.py --work FOLDER --out benchmarks/results/closed_loop.json

Two judges are trained on the student's own pictures of 48 scenes of 192×160 pixels, and another segmenter from another
seed, which no steering ever sees. Four steerings are trained on the same batches: all of it, without the punishment
(α = 0), with the mean of the gradients in place of CAGrad, and with what CLDyN's code calls CAGrad. Sixteen other
scenes say how each judge's loss changes against the student's own pictures, live and in the fixed form, and what
becomes of fusion metrics. Processor seconds are of one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import torch

from duskfuse.data.layout import find_pairs
from duskfuse.data.progress import say
from duskfuse.data.scenes.write import write_scenes
from duskfuse.distill.closed_loop.loop import ClosedLoop
from duskfuse.distill.closed_loop.loop_task import LoopTask, deepest_layer
from duskfuse.distill.closed_loop.measure import measured
from duskfuse.distill.closed_loop.steer import WEIGHTS_FILE, steer
from duskfuse.distill.critics import truth_of
from duskfuse.distill.train_task import train_task
from duskfuse.evaluate.evaluate import evaluate
from duskfuse.export.fuse import fuse
from duskfuse.students.steering.steering_file import load_steering
from duskfuse.students.zoo import load_student
from duskfuse.tasks.open_task_network import open_task_network
from duskfuse.tasks.task_network import Task

STUDENT = "edge"
SIZE = (160, 192)
HELD_OUT_SEED = 10_000
VARIANTS: dict[str, tuple[str, ...]] = {
    "all": (),
    "without punishment": ("punishment=0",),
    "mean of gradients": ("combination=mean",),
    "published rule": ("combination=published",),
}
METRICS = ("EN", "SD", "MI", "VIF", "Qabf", "SSIM")
CLASSES = {Task.SEGMENTATION: "scenes-11", Task.DETECTION: "scenes-4"}
SMALL = ("data.batch=4", "data.workers=0")


def judges(work: Path, batches: int) -> dict[str, Path]:
    """Task networks trained on the student's own pictures of the scenes; the other one sees them from another seed."""
    scenes = work / "train"
    fused = work / "fused"
    fuse(scenes / "ir", scenes / "vis", fused, model=STUDENT)
    found = {}
    wanted = (("segmentation", Task.SEGMENTATION, 2), ("detection", Task.DETECTION, 2), ("other", Task.SEGMENTATION, 9))
    for name, task, seed in wanted:
        changes = (*SMALL, f"batches={batches}", f"seed={seed}", "data.crop=[128, 160]", "save_every=10000")
        report = train_task(
            scenes, task=task, out=work / name, classes=CLASSES[task], shown=f"fused={fused}", changes=changes
        )
        found[name] = Path(report.weights)
    return found


def judged(steering: Path, networks: dict[str, Path], held_out: Path) -> dict[str, dict[str, float]]:
    """Mean losses of every judge on scenes not trained on; the other segmenter asks for its own features."""
    student, _ = load_student(STUDENT)
    network = load_steering(steering, student)
    found: dict[str, dict[str, float]] = {}
    for name, path in networks.items():
        judge = open_task_network(path).freeze()
        loop = ClosedLoop(network, [LoopTask(judge, deepest_layer(judge))])
        (losses,) = measured(loop, find_pairs(held_out), truth_of({judge.task: judge})).values()
        found[name] = {kind: round(value, 5) for kind, value in losses.items()}
    return found


def main() -> None:
    """Train, judge and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for scenes and runs, new or of an earlier run")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=48)
    parser.add_argument("--held-out", type=int, default=16)
    parser.add_argument("--judge-batches", type=int, default=150)
    parser.add_argument("--batches", type=int, default=60)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    train, held_out = options.work / "train", options.work / "held_out"
    if not train.is_dir():
        write_scenes(train, count=options.scenes, size=SIZE, seed=0)
        write_scenes(held_out, count=options.held_out, size=SIZE, seed=HELD_OUT_SEED)
    started = time.process_time()
    networks = judges(options.work, options.judge_batches)
    results: dict[str, Any] = {
        "settings": {"student": STUDENT, "scenes": options.scenes, "held_out": options.held_out, "size": SIZE}
        | {"judge_batches": options.judge_batches, "batches": options.batches},
        "machine": {"cpu": platform.processor(), "cores": os.cpu_count(), "torch": torch.__version__},
        "judges_seconds": round(time.process_time() - started, 1),
        "variants": {},
    }
    fused: dict[str, Path] = {}
    for number, variant in enumerate(options.variants):
        say(f"{variant}")
        started = time.process_time()
        out = options.work / f"steer-{number}"
        changes = (*SMALL, f"batches={options.batches}", "data.crop=[128, 160]", "save_every=10000", *VARIANTS[variant])
        steer(
            train,
            student=STUDENT,
            critics=[networks["segmentation"], networks["detection"]],
            out=out,
            changes=changes,
        )
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        rows = [row for line in lines for row in line["tasks"].values()]
        results["variants"][variant] = {
            "losses": judged(out / WEIGHTS_FILE, networks, held_out),
            "updates that made a task worse": sum(row["punishment"] > 0 for row in rows) / len(rows),
            "seconds": round(time.process_time() - started, 1),
        }
        if variant == "all":
            for task in ("segmentation", "detection"):
                fused[f"for {task}"] = options.work / f"for-{task}"
                fuse(
                    held_out / "ir",
                    held_out / "vis",
                    fused[f"for {task}"],
                    model=STUDENT,
                    steering=out / WEIGHTS_FILE,
                    task=task,
                )
        options.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    if fused:
        scores = evaluate(
            held_out, model=[STUDENT], fused=fused, metrics=METRICS, out=options.work / "scores", overwrite=True
        )
        means = {row.name: {m: round(row.summary(m).mean, 4) for m in METRICS} for row in scores.rows}
        results["metrics"] = {name: means[name] for name in (STUDENT, *fused)}
        options.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
