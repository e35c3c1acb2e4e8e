"""What a trained IRDFusion says: how much it differs over the picture, and AP without the difference, or without all.

    python benchmarks/irdfusion_says.py PAIRS RUN [RUN ...] [--out FILE]

A RUN is a run folder of `duskfuse train-task detection --input both --fusion irdfusion`, PAIRS the data that it was
trained on; the pairs held out are looked at. The block adds F' + D to each camera's map before both are joined. Beside
its size stands how much of a token's attention differs from the mean of all tokens': 0 where all read the same.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from duskfuse.data.layout import find_pairs
from duskfuse.distill.task_inputs import shown_pairs
from duskfuse.distill.task_jobs import DetectionJob
from duskfuse.distill.task_training import task_training
from duskfuse.distill.train_task import parted
from duskfuse.tasks.detector import open_detector
from duskfuse.tasks.irdfusion import IrdFusion, PyramidFusion
from duskfuse.tasks.mutual_relation import RelationReader
from duskfuse.tasks.task_network import Task

Said = Callable[[Tensor], Tensor]
FORMS: dict[str, Said] = {
    "as trained": lambda said: said,
    "its mean over the picture": lambda said: said.mean(dim=(2, 3), keepdim=True).expand_as(said),
    "nothing": torch.zeros_like,
}


def main() -> None:
    """Look, score and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--classes", default="MSRS-3")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    text = json.dumps([measured(run, options.pairs, options.classes) for run in options.runs], indent=1)
    if options.out is not None:
        options.out.write_text(text + "\n", encoding="utf-8")
    print(text)


def measured(run: Path, data: Path, classes: str) -> dict[str, Any]:
    """Sizes by level, and scores of every form."""
    pairs = [pair for pair in find_pairs(data) if pair.boxes is not None]
    _, held_out = parted(pairs, "file of boxes")
    job = DetectionJob(task_training(Task.DETECTION, classes, "both", None, ["fusion=irdfusion"]), pairs)
    detector = job.network = open_detector(run / "detector.safetensors")
    fusion = detector.network.fusion
    assert isinstance(fusion, PyramidFusion)
    seen: list[dict[str, float]] = []
    added, relate = IrdFusion._added, RelationReader.relate

    def looked(block: IrdFusion, maps: Tensor, said: Tensor) -> Tensor:
        level = list(fusion.blocks).index(block)
        seen.append({"level": level, **sizes(maps, said)})
        return added(block, maps, said)

    def related(reader: RelationReader, tokens: Tensor) -> Any:
        found = relate(reader, tokens)
        apart = (found.attention - found.attention.mean(dim=-2, keepdim=True)).abs().sum(dim=-1) / 2
        seen.append({"attention": float(apart.mean())})
        return found

    reader = shown_pairs("both", pairs)
    with patch.object(IrdFusion, "_added", looked), patch.object(RelationReader, "relate", related):
        job.measured(held_out, reader)
    scores = {}
    for name, form in FORMS.items():
        with patch.object(IrdFusion, "_added", lambda block, maps, said, form=form: added(block, maps, form(said))):
            found = job.measured(held_out, reader)
        scores[name] = {**found.scores, **found.by_class}
    levels = {
        str(level): means([row for row in seen if row.get("level") == level]) for level in range(len(fusion.blocks))
    }
    return {"run": run.name, **means([row for row in seen if "attention" in row]), "levels": levels, "scores": scores}


def sizes(maps: Tensor, said: Tensor) -> dict[str, float]:
    """Root mean squares of a camera's map, of what is added, and of how that differs over the picture."""
    parts = {"map": maps, "added": said, "its deviation": said - said.mean(dim=(2, 3), keepdim=True)}
    return {name: float(part.square().mean().sqrt()) for name, part in parts.items()}


def means(rows: list[dict[str, float]]) -> dict[str, float]:
    """Of every number."""
    return {name: round(sum(row[name] for row in rows) / len(rows), 4) for name in rows[0] if name != "level"}


if __name__ == "__main__":
    main()
