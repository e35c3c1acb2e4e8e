"""What a small detector finds in one camera, in both averaged, in fused pictures, and with the features of both fused.

    python benchmarks/detection.py DATA --trunk-weights FILE --work FOLDER [--only ROW ...] [--seeds 2 3 4] [--table]

DATA holds pairs with boxes. Students fuse them at full size; then all pictures are halved, which makes an update four
times as cheap, and every row trains the same detector for as many updates on the same crops. Every training is appended
to the results as it ends, and the same command goes on where it stopped. Seeds change the weights that have no ImageNet
values to start from, and the crops.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import cv2
import torch
from halved_pairs import halve, halve_pairs

from duskfuse.data.layout import find_pairs
from duskfuse.distill.train_task import train_task
from duskfuse.export.fuse import fuse
from duskfuse.tasks.fusion_blocks import FusionBlock
from duskfuse.tasks.task_network import Task

RESULTS = Path(__file__).parent / "results" / "detection.jsonl"
STUDENTS = ("edge", "unet", "mobile")
ROWS: dict[str, tuple[str, FusionBlock | None]] = {
    "infrared": ("ir", None),
    "visible": ("vis", None),
    "average": ("average", None),
    **{f"fused by {student}": (f"fused={student}", None) for student in STUDENTS},
    "features, concatenated": ("both", FusionBlock.CONCAT),
    "features, IRDFusion": ("both", FusionBlock.IRDFUSION),
    "features, SLGNet's alignment": ("both", FusionBlock.SLGNET),
}
SCORES = ("AP50:95", "AP50", "AP75")
CROP = (224, 288)


def main() -> None:
    """Train what is missing, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--trunk-weights", type=Path)
    parser.add_argument("--work", type=Path, default=Path("detection"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--only", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[2, 3, 4])
    parser.add_argument("--batches", type=int, default=1500)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if not options.table:
        torch.set_num_threads(1)
        cv2.setNumThreads(1)
        halved = prepared(options.data, options.work)
        for seed in options.seeds:
            for row in options.only:
                if not any((done["row"], done["seed"]) == (row, seed) for done in results(options.results)):
                    append(options.results, trained(row, seed, halved, options))
    print(table(results(options.results)))


def prepared(data: Path, work: Path) -> Path:
    """The pairs at half size, with pictures fused by every student beside them; made once."""
    halved = work / "halved"
    if halved.is_dir():
        return halved
    making = work / "halved.part"
    shutil.rmtree(making, ignore_errors=True)
    pairs = find_pairs(data)
    for student in STUDENTS:
        for split in {pair.vis.path.parent.parent for pair in pairs}:
            fuse(split / "ir", split / "vis", work / "fused" / student, model=student)
        for picture in sorted((work / "fused" / student).glob("*.png")):
            halve(picture, making / "fused" / student / picture.name)
    halve_pairs(data, making / "pairs")
    making.rename(halved)
    return halved


def trained(row: str, seed: int, halved: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Train and score one detector."""
    shown, fusion = ROWS[row]
    report = train_task(
        halved / "pairs",
        task=Task.DETECTION,
        out=options.work / "runs" / f"{row}-{seed}".replace(" ", "_"),
        classes="MSRS-3",
        shown=shown.replace("=", f"={halved / 'fused'}/"),
        fusion=fusion,
        trunk_weights=options.trunk_weights,
        changes=(
            f"seed={seed}",
            f"batches={options.batches}",
            f"data.crop={list(CROP)}",
            "data.workers=0",
            "optimiser.lr=1e-3",
            "tokens=[8, 10]",
            "save_every=500",
        ),
        overwrite=True,
    )
    measured = {"scores": report.scores, "by_class": report.by_class, "seconds": round(report.seconds, 1)}
    sizes = {"batches": report.batches, "trained_on": report.trained_on, "held_out": report.held_out}
    machine = {"cpu": platform.machine(), "torch": torch.__version__, "load": round(os.getloadavg()[0], 1)}
    return {"row": row, "seed": seed, **measured, **sizes, "parameters": report.parameters, "machine": machine}


def results(path: Path) -> list[dict[str, Any]]:
    """What has been measured."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def append(path: Path, row: dict[str, Any]) -> None:
    """One line more, in one write: two processes may share the file."""
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(row) + "\n")


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: mean and standard deviation over seeds, in hundredths."""
    kinds = [*rows[0]["by_class"]] if rows else []
    heads = [*SCORES, *(f"{kind}, AP50" for kind in kinds)]
    lines = [f"| the detector sees | seeds | {' | '.join(heads)} | parameters |", "|---" * (len(heads) + 3) + "|"]
    return "\n".join([*lines, *_lines(rows, kinds)])


def _lines(rows: Sequence[dict[str, Any]], kinds: Sequence[str]) -> Iterator[str]:
    for name in ROWS:
        mine = [row for row in rows if row["row"] == name]
        if mine:
            cells = [_spread([row["scores"][score] for row in mine]) for score in SCORES]
            cells += [_spread([row["by_class"][kind] for row in mine]) for kind in kinds]
            yield f"| {name} | {len(mine)} | {' | '.join(cells)} | {mine[0]['parameters']:,} |"


def _spread(values: Sequence[float]) -> str:
    deviation = f" ± {100 * stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * fmean(values):.1f}{deviation}"


if __name__ == "__main__":
    main()
