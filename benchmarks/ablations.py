"""What each part of SAGE's training is worth: the same small budget with one part changed, scored on held-out pairs.

    python benchmarks/ablations.py DATA --val VAL --encoder-weights FILE --work FOLDER [--only NAME ...] [--seeds 2 3]

DATA needs label maps (for the ``labels`` masks and the segmentation critic). Every run is appended to the results as it
ends, and the same command goes on where it stopped; ``--table`` prints what is there. ``benchmarks/ablations.yaml`` is
the base recipe, a quarter as wide as the published main network.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from duskfuse.data.camera_faults import shift
from duskfuse.data.images import to_u8
from duskfuse.data.layout import find_pairs
from duskfuse.data.priors.cache_masks import cache_masks
from duskfuse.data.priors.sources import MaskSourceName
from duskfuse.distill.distill import distill
from duskfuse.distill.recipe import EncoderName
from duskfuse.evaluate.fusers import open_fuser
from duskfuse.evaluate.metrics import SourceStatistics, fusion_metrics
from duskfuse.evaluate.source_pictures import SourcePictures

RECIPE = Path(__file__).with_suffix(".yaml")
RESULTS = Path(__file__).parent / "results" / "ablations.jsonl"
METRICS = ("EN", "SD", "SF", "AG", "MI", "SCD", "CC", "VIF", "VIFF", "Qabf", "Nabf", "SSIM", "Qcb", "Qcv")
LOWER_IS_BETTER = frozenset({"Nabf", "Qcv"})
SHIFTS = (0, 2, 4, 8)
"""Pixels by which the infrared of a held-out pair is moved; scores are against the pair as it belongs."""
SHIFTED_METRICS = ("SSIM", "Qabf", "VIF")
SHIFTED_VARIANTS = ("base", "misaligned")


@dataclass(frozen=True)
class Variant:
    """One change of the base."""

    meaning: str
    changes: tuple[str, ...] = ()
    masks: MaskSourceName = MaskSourceName.LABELS
    encoder: EncoderName = EncoderName.SQUEEZENET
    critic: bool = False


def _without(*terms: str) -> tuple[str, ...]:
    """Weight 0 for terms of both alternating steps."""
    return tuple(f"steps.{step}.terms.{term}=0" for term in terms for step in ("student", "teacher"))


VARIANTS = {
    "base": Variant("first-order alternation, masks of labels, SqueezeNet encoder"),
    "unrolled": Variant("one-step unrolled bi-level step", ("steps.student.unroll.through=teacher",)),
    "no-pixel": Variant("without the pixel triplet", _without("pixel_triplet")),
    "no-gradient": Variant("without the gradient triplet", _without("gradient_triplet")),
    "no-contrastive": Variant("without the contrastive triplet", _without("contrastive")),
    "no-features": Variant("without the feature term", _without("features")),
    "strong-contrastive": Variant(
        "contrastive triplet ten times as heavy",
        ("steps.student.terms.contrastive=3.3333e-3", "steps.teacher.terms.contrastive=3.3333e-4"),
    ),
    "critic": Variant("with the segmentation critic", ("steps.teacher.terms.segmentation=0.3",), critic=True),
    "regions": Variant("masks of classical regions", masks=MaskSourceName.REGIONS),
    "random-crops": Variant("masks of random rectangles", masks=MaskSourceName.RANDOM_CROPS),
    "filters": Variant("encoder: the weight-free filter bank", encoder=EncoderName.FILTERS),
    "feature-masking": Variant("contrastive term with masked feature maps", ("contrastive.masking=feature",)),
    "misaligned": Variant(
        "infrared moved by up to 8 pixels in training",
        ("data.augment.misalignment.p=0.5", "data.augment.misalignment.shift_pixels=8"),
    ),
}


def main() -> None:
    """Run what is missing, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--val", type=Path)
    parser.add_argument("--encoder-weights", type=Path)
    parser.add_argument("--segmenter", type=Path)
    parser.add_argument("--work", type=Path, default=Path("ablations"))
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[2])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    if not arguments.table:
        torch.set_num_threads(arguments.threads)
        cv2.setNumThreads(1)
        _run_missing(arguments)
    print(table(_results()))


def _run_missing(arguments: argparse.Namespace) -> None:
    for seed in arguments.seeds:
        for name in arguments.only:
            if any((row["variant"], row["seed"]) == (name, seed) for row in _results()):
                continue
            row = _run(name, seed, arguments)
            RESULTS.parent.mkdir(exist_ok=True)
            with RESULTS.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(row) + "\n")


def _run(name: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train one variant and score its student."""
    variant, out = VARIANTS[name], arguments.work / f"{name}-{seed}"
    cache_masks(arguments.data, source=variant.masks, cache=arguments.work / "cache", workers=1)
    started = time.monotonic()
    report = distill(
        arguments.data,
        out=out,
        recipe=RECIPE,
        changes=[f"seed={seed}", *variant.changes],
        overwrite=True,
        cache=arguments.work / "cache",
        masks=variant.masks,
        encoder=variant.encoder,
        encoder_weights=arguments.encoder_weights if variant.encoder is EncoderName.SQUEEZENET else None,
        critics=[arguments.segmenter] if variant.critic and arguments.segmenter else [],
    )
    trained = time.monotonic() - started
    shifts = SHIFTS if name in SHIFTED_VARIANTS else SHIFTS[:1]
    scores = _scores(out / "student.safetensors", arguments.val, shifts)
    return {
        "variant": name,
        "seed": seed,
        "scores": scores[0],
        "shifted": {pixels: {metric: scores[pixels][metric] for metric in SHIFTED_METRICS} for pixels in shifts},
        "batches": report.batches,
        "train_s": round(trained, 1),
        "seconds_per_batch": report.seconds_per_batch,
        "machine": {"cpu": platform.machine(), "threads": arguments.threads, "load": round(os.getloadavg()[0], 1)},
    }


def _scores(student: Path, val: Path, shifts: Sequence[int]) -> dict[int, dict[str, float]]:
    """Mean of every metric over the held-out pairs by pixels of shift; all metrics where nothing is moved."""
    fuser = open_fuser(student)
    found: dict[int, list[dict[str, float]]] = {pixels: [] for pixels in shifts}
    for files in find_pairs(val):
        sources = SourcePictures(files)
        statistics = SourceStatistics(sources.ir_u8, sources.vis_u8)
        vis_y = sources.vis_u8.astype(np.float32) / 255
        for pixels in shifts:
            fused = to_u8(fuser.fuse(_shifted(sources.ir, pixels), vis_y))
            found[pixels].append(fusion_metrics(statistics, fused, SHIFTED_METRICS if pixels else METRICS))
    return {pixels: {name: fmean(row[name] for row in rows) for name in rows[0]} for pixels, rows in found.items()}


def _shifted(ir: NDArray[np.float32], pixels: int) -> NDArray[np.float32]:
    return np.ascontiguousarray(shift(ir, np.random.default_rng(0), pixels=pixels), dtype=np.float32)


def _results() -> list[dict[str, Any]]:
    if not RESULTS.exists():
        return []
    return [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: means over seeds, in how many metrics better than the base of the same seeds, and the loss by shift."""
    if not rows:
        return "no results"
    lines = [f"| variant | seeds | {' | '.join(map(_headed, METRICS))} | better than base | s |"]
    lines.append("|---" * (len(METRICS) + 4) + "|")
    lines += _score_lines(rows)
    lines += ["", f"| variant | {' | '.join(f'{m} {p} px' for m in SHIFTED_METRICS for p in SHIFTS)} |"]
    lines.append("|---" * (len(SHIFTED_METRICS) * len(SHIFTS) + 1) + "|")
    for name in _names([row for row in rows if row["variant"] in SHIFTED_VARIANTS]):
        values = [
            fmean(row["shifted"][str(pixels)][metric] for row in rows if row["variant"] == name)
            for metric in SHIFTED_METRICS
            for pixels in SHIFTS
        ]
        lines.append(f"| {name} | {' | '.join(f'{value:.3f}' for value in values)} |")
    return "\n".join(lines)


def _score_lines(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    for name in _names(rows):
        means = _means(rows, name)
        cells = [_figures(means[metric]) for metric in METRICS]
        mine = [row for row in rows if row["variant"] == name]
        seconds = fmean(row["train_s"] for row in mine)
        base = _means([row for row in rows if row["seed"] in {row["seed"] for row in mine}], "base")
        better = sum(_is_better(metric, means[metric], base[metric]) for metric in METRICS) if base else 0
        compared = "–" if name == "base" else f"{better} of {len(METRICS)}"
        yield f"| {name} | {len(mine)} | {' | '.join(cells)} | {compared} | {seconds:.0f} |"


def _names(rows: Sequence[dict[str, Any]]) -> list[str]:
    return [name for name in VARIANTS if any(row["variant"] == name for row in rows)]


def _means(rows: Sequence[dict[str, Any]], name: str) -> dict[str, float]:
    mine = [row["scores"] for row in rows if row["variant"] == name]
    return {metric: fmean(row[metric] for row in mine) for metric in METRICS} if mine else {}


def _is_better(metric: str, value: float, base: float) -> bool:
    return value < base if metric in LOWER_IS_BETTER else value > base


def _headed(metric: str) -> str:
    return f"{metric}{'↓' if metric in LOWER_IS_BETTER else '↑'}"


def _figures(value: float) -> str:
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.2f}" if abs(value) >= 10 else f"{value:.3f}"


if __name__ == "__main__":
    main()
