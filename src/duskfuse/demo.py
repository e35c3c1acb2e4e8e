"""The verb ``demo``: the whole job on built-in scenes, in minutes on two CPU cores, ending in a report page.

Scenes → mask cache → main network and student trained alternately → scores beside the trivial rows → verified ONNX
files → timings → fused pictures. It is the shortest proof that an installation works and the best place to see what
the verbs do; its numbers come from a few minutes of training on drawn scenes and say nothing about real cameras.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from duskfuse.data.errors import InputError
from duskfuse.data.priors.cache_masks import cache_masks
from duskfuse.data.priors.sources import MaskSourceName
from duskfuse.data.progress import say
from duskfuse.data.scenes.write import write_scenes
from duskfuse.distill.distill import DistillReport, distill
from duskfuse.evaluate.evaluate import evaluate
from duskfuse.evaluate.evaluation_report import add_evaluation
from duskfuse.evaluate.report import Body, Page, note, table
from duskfuse.evaluate.scores import Evaluation
from duskfuse.evaluate.terminal_tables import terminal_tables
from duskfuse.export.bench import BenchReport, bench
from duskfuse.export.export import ExportReport, export
from duskfuse.export.fuse import fuse
from duskfuse.run_page import add_training
from duskfuse.students.zoo import DEFAULT

if TYPE_CHECKING:
    from rich.console import RenderableType

TRAIN_SCENES, HELD_OUT_SCENES = 40, 8
SIZE = (240, 320)
"""(height, width) of the scenes."""
HELD_OUT_SEED = 10_000
MARKER = "demo.json"

T = TypeVar("T")


@dataclass(frozen=True)
class DemoReport:
    """Everything the demo made."""

    out: Path
    seconds: dict[str, float]
    training: DistillReport
    evaluation: Evaluation
    exported: ExportReport
    timings: BenchReport

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return {
            "out": str(self.out),
            "report": str(self.out / "report.html"),
            "seconds": self.seconds,
            "training": self.training.to_json(),
            "evaluation": self.evaluation.to_json(),
            "export": self.exported.to_json(),
            "bench": self.timings.to_json(),
        }

    def tables(self) -> list[RenderableType]:
        """Tables for the terminal and where to look next."""
        end = f"\n{sum(self.seconds.values()):.0f} s in all. Open {self.out / 'report.html'}"
        return [*terminal_tables(self.evaluation), self.exported.table(), self.timings.table(), end]


def demo(*, out: Path = Path("demo"), overwrite: bool = False) -> DemoReport:
    """Run every verb once on drawn scenes and write ``OUT/report.html``.

    Raises ``InputError`` when ``out`` is not empty and ``overwrite`` is not given, or holds something else.
    """
    _prepare(out, overwrite)
    (out / MARKER).write_text(json.dumps({"started": time.strftime("%Y-%m-%dT%H:%M:%S%z")}) + "\n", encoding="utf-8")
    seconds: dict[str, float] = {}

    def timed(what: str, job: Callable[[], T]) -> T:
        say(f"— {what}")
        started = time.monotonic()
        result = job()
        seconds[what] = round(time.monotonic() - started, 1)
        return result

    train, held_out = out / "scenes" / "train", out / "scenes" / "held_out"
    size = f"{SIZE[1]}x{SIZE[0]}"
    cache, student = out / "cache", out / "run" / "student.safetensors"
    timed("draw scenes", lambda: write_scenes(train, count=TRAIN_SCENES, size=SIZE, seed=0))
    timed("draw held-out scenes", lambda: write_scenes(held_out, count=HELD_OUT_SCENES, size=SIZE, seed=HELD_OUT_SEED))
    timed("cache masks", lambda: cache_masks(train, source=MaskSourceName.REGIONS, cache=cache))
    training = timed("distill", lambda: distill(train, out=out / "run", recipe="demo", cache=cache))
    timed("fuse", lambda: fuse(held_out / "ir", held_out / "vis", out / "fused", model=student))
    exported = timed("export", lambda: export(student, out=out / "bundle", size=[size], calibration=train))
    models: list[str | Path] = [DEFAULT, student]
    evaluation = timed("evaluate", lambda: evaluate(held_out, model=models, out=out / "scores"))
    timings = timed("bench", lambda: bench(out / "bundle", size=size))
    report = DemoReport(out, seconds, training, evaluation, exported, timings)
    _write_page(report)
    return report


def _prepare(out: Path, overwrite: bool) -> None:
    if out.is_dir() and any(out.iterdir()):
        if not overwrite:
            raise InputError(f"{out} is not empty", remedy="say --overwrite to replace it, or name another --out")
        if not (out / MARKER).is_file():
            raise InputError(
                f"{out} holds no {MARKER}", rule="--overwrite clears demo folders only", remedy="name another --out"
            )
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)


def _write_page(report: DemoReport) -> None:
    page = Page(
        "The whole job on built-in scenes",
        lead="Drawn roads by day, night, fog and glare; a main network and a student trained for minutes on a CPU. "
        "It shows that every part works, not how good a long training is: the packaged edge, trained on real pairs, "
        "stands beside it.",
        stamp=f"{report.timings.machine['cpu']}, {report.timings.machine['cores']} cores · "
        f"{sum(report.seconds.values()):.0f} s in all",
    )
    add_evaluation(page, report.evaluation)
    add_training(page, report.out / "run")
    files = [
        [entry.file, f"{entry.bytes / 1000:.0f}", f"{entry.verification.worst_psnr_db:.1f}"]
        for entry in report.exported.files
    ]
    page.section("Exported files", table(["file", "kB", "worst picture, dB to the model"], Body(files)))
    timings = [
        [r.model, f"{r.network.median_ms:.1f}", f"{r.network.p90_ms:.1f}", f"{r.whole.median_ms:.1f}"]
        for r in report.timings.results
    ]
    header = ["model", "network median ms", "p90", "with pre- and post-processing"]
    page.section(
        f"Time per picture of {report.timings.size} on this machine",
        table(header, Body(timings)),
        note(
            "Times of ONNX Runtime on this CPU. INT8 and FP16 files are made for the device; a CPU may run them slower."
        ),
    )
    page.section("Time of each part", table(["part", "s"], Body([[k, f"{v:.1f}"] for k, v in report.seconds.items()])))
    page.write(report.out / "report.html")
