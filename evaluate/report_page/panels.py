"""Sections that a page has only where there is something to say: how fast, how far from the reference, made of what."""

from __future__ import annotations

import os
import platform
import shlex
from collections.abc import Iterator, Sequence
from math import isfinite, nan
from pathlib import Path, PurePath, PureWindowsPath

import numpy as np

from duskfuse import __version__
from duskfuse.evaluate.metrics import ALL, DEFAULT, Mode
from duskfuse.evaluate.report import Body, Html, definitions, note, subheading, table
from duskfuse.evaluate.report_page.shown_pairs import ShownPairs
from duskfuse.evaluate.report_page.wording import counted, listed
from duskfuse.evaluate.scores import GREY, SOURCES, STATISTICS, Evaluation, Kind, reference_metric


def speed(shown: ShownPairs) -> list[Html]:
    """Milliseconds per picture of the models; empty without any."""
    if not shown.milliseconds:
        return []
    rows = []
    for name, times in shown.milliseconds.items():
        median, slow = np.percentile(times, [50, 90])
        rows.append([name, f"{median:.1f}", f"{slow:.1f}", str(len(times))])
    text = (
        f"Measured on {machine()} while the pictures of this page were made, with reading left out. "
        "For figures to compare, use duskfuse bench on the device."
    )
    return [table(["model", "median ms per picture", "90th percentile", "pictures"], Body(rows)), note(text)]


def drift(evaluation: Evaluation, shown: ShownPairs | None) -> list[Html]:
    """How far the methods are from the reference row; empty without one."""
    if evaluation.reference is None:
        return []
    column = reference_metric(evaluation.reference).name
    rows = []
    for row in evaluation.methods:
        if row.name == evaluation.reference:
            continue
        found = row.summary(column)
        psnr = [_decibels(found.mean), _decibels(found.least), str(found.identical)]
        rows.append([row.name, *psnr, *_similarities(row.name, shown)])
    if not rows:
        return []
    header = ["method", "PSNR, mean dB", "PSNR, worst pair", "identical pairs", "SSIM, mean", "SSIM, worst pair"]
    text = f"8-bit luminance beside that of {evaluation.reference}: for a quantised model, what quantising cost."
    looked_at = max((len(found) for found in shown.similarity.values()), default=0) if shown else 0
    if looked_at and looked_at < evaluation.pairs:
        text += f" SSIM over the {looked_at} pairs whose pictures this page holds."
    return [table(header, Body(rows)), note(text)]


def provenance(evaluation: Evaluation) -> list[Html]:
    """What the numbers were made of, and how to make them again."""
    parts = [definitions(_stamp(evaluation))]
    known = [row for row in evaluation.rows if row.sha256]
    if known:
        rows = [[row.name, row.kind.value, _without_folder(row.origin), row.sha256 or ""] for row in known]
        parts += [subheading("Methods"), table(["method", "kind", "given as", "SHA-256"], Body(rows))]
    return parts


def command(evaluation: Evaluation) -> str:
    """The command that gives these numbers, as far as the evaluation knows it; folders above a name are left out."""
    words = ["duskfuse", "evaluate", evaluation.data]
    for row in evaluation.methods:
        given = _without_folder(row.origin) or row.name
        words += ["--model", given] if row.kind is Kind.MODEL else ["--fused", f"{row.name}={given}"]
    if evaluation.chosen != DEFAULT:
        names = ",".join(metric.name for metric in evaluation.chosen)
        words += ["--metrics", "all" if evaluation.chosen == ALL else names]
    if evaluation.mode is not Mode.DEFINITION:
        words += ["--mode", evaluation.mode.value]
    for option, value in (("--split", evaluation.split), ("--reference", evaluation.reference)):
        words += [option, value] if value is not None else []
    words += ["--on-bad", "skip"] if evaluation.left_out else []
    return shlex.join([*words, "--out", evaluation.out.name or "out"])


def machine() -> str:
    """Processor, cores and system of this machine; its name is nobody's business."""
    return f"{_processor()}, {counted(os.cpu_count() or 1, 'core')}, {platform.system()} {platform.machine()}"


def _stamp(evaluation: Evaluation) -> Iterator[tuple[str, str]]:
    yield "command", command(evaluation)
    yield "duskfuse", __version__
    split = "" if evaluation.split is None else f", split {evaluation.split}"
    yield "data", f"{evaluation.data}{split}: {counted(evaluation.pairs)}"
    if evaluation.sha256:
        yield "SHA-256 of the sources", evaluation.sha256
    yield "pairs left out", _names(evaluation.left_out)
    yield "arithmetic", f"mode {evaluation.mode}; {SOURCES}"
    yield "grey", GREY
    stretched = [row.name for row in evaluation.rows if row.stretched]
    yield "outputs", f"not stretched here; {listed(stretched) if stretched else 'none'} came stretched per picture"
    yield "statistics", STATISTICS
    if evaluation.arithmetic:
        yield "computed by", ", ".join(f"{name} {value}" for name, value in evaluation.arithmetic.items())
    yield "machine", machine()


def _names(names: Sequence[str]) -> str:
    return f"{len(names)}: {', '.join(names)}" if names else "none"


def _without_folder(origin: str) -> str:
    """A path as a reader elsewhere may see it: a relative one as it is, of an absolute one the name.

    >>> _without_folder("/home/ada/unet.onnx"), _without_folder("runs/unet.onnx")
    ('unet.onnx', 'runs/unet.onnx')
    """
    kinds: tuple[PurePath, ...] = (PurePath(origin), PureWindowsPath(origin))
    return next((path.name for path in kinds if path.is_absolute()), origin)


def _decibels(value: float) -> str:
    return f"{value:.2f}" if isfinite(value) else "∞" if value > 0 else "–"


def _similarities(row: str, shown: ShownPairs | None) -> list[str]:
    found = [value for value in (shown.similarity.get(row, ()) if shown else ()) if value == value]
    values = (sum(found) / len(found), min(found)) if found else (nan, nan)
    return [f"{value:.4f}" if isfinite(value) else "–" for value in values]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
