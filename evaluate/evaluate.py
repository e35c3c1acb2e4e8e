"""The ``evaluate`` verb: score models and folders of fused pictures, always beside the trivial rows.

Every method is scored on its 8-bit luminance: a model's output is rounded to 8 bit, a fused picture is converted to
grey. (Colouring a fused luminance keeps it, so a model and the pictures it wrote get the same scores to within
rounding.) Nothing is stretched or resized. All input is looked at before the first score, so that everything that is
wrong is said at once; scores are kept as they come, so that the same command goes on after a kill, and an evaluation
with one more method computes that method only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from difflib import get_close_matches
from enum import StrEnum
from pathlib import Path

from duskfuse.data.atomic import sole
from duskfuse.data.errors import InputError
from duskfuse.data.layout import find_pairs
from duskfuse.data.pair_files import PairFiles
from duskfuse.data.priors.pipeline import cores
from duskfuse.data.progress import say, track
from duskfuse.data.reading import Reading
from duskfuse.evaluate.evaluation_report import evaluation_page
from duskfuse.evaluate.kept_scores import SCORES_FILE, KeptScores, holds_scores
from duskfuse.evaluate.learned_similarity import find_weights
from duskfuse.evaluate.methods import Method, check_names, folders, models, row_names, trivial
from duskfuse.evaluate.metrics import ALL, DEFAULT_METRICS, METRICS, MetricInfo, Mode
from duskfuse.evaluate.report_page.embedding import shown_pairs
from duskfuse.evaluate.report_page.shown_pairs import ShownPairs
from duskfuse.evaluate.results_files import write_results
from duskfuse.evaluate.robustness import SWEPT_METRICS, robustness
from duskfuse.evaluate.score_pairs import arithmetic
from duskfuse.evaluate.scores import Evaluation, Finding, Oddity
from duskfuse.evaluate.source_pictures import SeenSources, look_at_sources
from duskfuse.evaluate.wanted_scores import WantedScores


class OnBad(StrEnum):
    """What becomes of a pair whose sources or fused pictures are unusable for some row."""

    ERROR = "error"
    """Nothing is scored, and all that is wrong is listed."""
    SKIP = "skip"
    """The pair is left out for all rows, so that their means stay comparable."""


def evaluate(
    data: Path,
    *,
    model: Sequence[str | Path] = (),
    fused: Mapping[str, Path] | None = None,
    metrics: Sequence[str] = DEFAULT_METRICS,
    mode: Mode = Mode.DEFINITION,
    lpips_weights: Path | None = None,
    split: str | None = None,
    reference: str | None = None,
    out: Path,
    reading: Reading | Path | None = None,
    on_bad: OnBad = OnBad.ERROR,
    workers: int | None = None,
    overwrite: bool = False,
    degraded: int | None = None,
) -> Evaluation:
    """Score fusion methods on all pairs of a folder; write tables, ``metrics.json`` and ``report.html``.

    The rows are the models, the folders of fused pictures, and always four trivial ones: average (rounded down),
    maximum, visible only and infrared only. In a folder that holds an earlier evaluation of the data, what it has
    scored is not computed again, unless a picture, a model, the mode or the code of the metrics has changed.

    Args:
        data: folder of pairs, see :func:`duskfuse.data.layout.find_pairs`.
        model: zoo names, checkpoints and ONNX files; a row is called by the name or the file's stem.
        fused: row name → folder of fused pictures, matched with the pairs by name or stem.
        metrics: names of :data:`duskfuse.evaluate.metrics.METRICS`; tables have them in its order.
        mode: whose arithmetic the numbers follow.
        lpips_weights: a file of AlexNet's, SqueezeNet's or VGG's weights; asks for LPIPS, too. Without one, LPIPS among
            the metrics fetches torchvision's AlexNet.
        split: only the pairs of this split.
        reference: name of a row; every other row also gets its PSNR to that row, mean over the pairs in dB.
        out: folder to write to, made where missing.
        reading: how the infrared pictures are read, or a file that says it; by default the dataset's ``duskfuse.yaml``.
        on_bad: what becomes of a pair with an unusable source or fused picture.
        workers: processes that score; by default one per core, and none beside this one for few pairs.
        degraded: that many pairs, spread evenly, are also degraded to see how robust the models are, see
            :func:`duskfuse.evaluate.robustness.robustness`.
        overwrite: start anew in a folder that is not empty: replace the files and forget the scores in it.

    Raises:
        InputError: ``out`` holds something else, a source or fused picture is unusable (all are listed), two rows have
            one name, the reference names no row, a metric is unknown, a model cannot be opened.
        StorageError: scores cannot be written.
    """
    chosen = _chosen(metrics if lpips_weights is None else [*metrics, "LPIPS"])
    if workers is not None and workers < 1:
        raise InputError(f"{workers} workers", rule="at least one process computes")
    check_names(row_names(model, fused or {}), reference)
    _check_out(out, overwrite)
    network = find_weights(lpips_weights) if any(metric.needs_weights for metric in chosen) else None
    pairs = find_pairs(data, split=split, reading=reading)
    with ThreadPoolExecutor(workers or cores()) as readers:
        seen, findings = look_at_all(pairs, readers)
        methods = [*models(model, seen), *folders(fused or {}, pairs, seen, readers), *trivial()]
    bad = check_pictures(methods, findings, len(pairs), on_bad)
    wanted = WantedScores(
        pairs=[pair for pair in pairs if pair.name not in bad],
        seen=seen,
        methods=methods,
        metrics=tuple(metric.name for metric in chosen),
        mode=mode,
        reference=next((method for method in methods if method.name == reference), None),
        lpips_weights=network,
    )
    name = data.resolve().name
    computed_by = arithmetic() | ({} if network is None else {"lpips": str(network)})
    out.mkdir(parents=True, exist_ok=True)
    with sole(out / SCORES_FILE) as mine:
        if not mine:
            raise InputError(f"another evaluation is writing to {out}", remedy="wait for it, or name another --out")
        if overwrite:
            (out / SCORES_FILE).write_bytes(b"")
        title = name if split is None else f"{name}, split {split}"
        kept = KeptScores(out / SCORES_FILE, title, {"mode": mode.value, **computed_by})
        wanted.compute(kept, workers)
        evaluation = Evaluation(
            data=name,
            out=out,
            rows=tuple(wanted.row(method, kept) for method in methods),
            chosen=chosen,
            mode=mode,
            split=split,
            reference=reference,
            left_out=tuple(sorted(bad)),
            findings=findings,
            sha256=_hash_over(wanted),
            arithmetic=computed_by,
        )
        if degraded is not None:
            swept = SWEPT_METRICS if metrics == DEFAULT_METRICS else [m.name for m in chosen if not m.needs_weights]
            found = robustness(
                data,
                model=model,
                out=out,
                limit=degraded,
                metrics=swept,
                split=split,
                reading=reading,
                workers=workers,
                overwrite=overwrite,
                leave_out=bad,
            )
            evaluation = replace(evaluation, robustness=found)
        write_results(evaluation)
        evaluation = replace(evaluation, shown=_shown(evaluation, wanted))
        evaluation_page(evaluation).write(out / "report.html")
    return evaluation


def metrics_named(text: str) -> tuple[str, ...]:
    """The metrics that a user names: ``default``, ``all``, or names between commas in any case; InputError else.

    ``all`` leaves out what needs a file that does not come with the package.
    """
    match text.strip().lower():
        case "default":
            return DEFAULT_METRICS
        case "all":
            return tuple(metric.name for metric in ALL)
    proper = {metric.name.lower(): metric.name for metric in METRICS}
    names = [word.strip() for word in text.split(",") if word.strip()]
    return tuple(metric.name for metric in _chosen([proper.get(name.lower(), name) for name in names]))


def _chosen(names: Sequence[str]) -> tuple[MetricInfo, ...]:
    known = [metric.name for metric in METRICS]
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            raise InputError(
                f"unknown metric {name!r}",
                rule=f"metrics are {', '.join(known)}; default and all name many",
                remedy=f"did you mean {near[0]}?" if near else "leave it away",
            )
    if not names:
        raise InputError("no metrics", rule="at least one is computed", remedy="leave --metrics away")
    return tuple(metric for metric in METRICS if metric.name in names)


def _check_out(out: Path, overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file", rule="results go to a folder", remedy="name another --out")
    if out.is_dir() and any(out.iterdir()) and not overwrite and not holds_scores(out / SCORES_FILE):
        raise InputError(
            f"{out} is not empty",
            rule="results never mix with what is there",
            remedy="say --overwrite to replace an earlier evaluation, or name another --out",
        )


def look_at_all(pairs: Sequence[PairFiles], readers: Executor) -> tuple[dict[str, SeenSources], tuple[Finding, ...]]:
    """Read all sources: what is known of the usable ones by name of pair, and what is wrong with the others."""
    seen: dict[str, SeenSources] = {}
    wrong: dict[str, str] = {}
    looks = readers.map(_look, pairs)
    for pair, look in zip(pairs, track(looks, "Reading pairs", total=len(pairs)), strict=True):
        if isinstance(look, SeenSources):
            seen[pair.name] = look
        else:
            wrong[pair.name] = str(look.seen)
    if not wrong:
        return seen, ()
    return seen, (Finding(Oddity.BAD_SOURCES, tuple(wrong), next(iter(wrong.values()))),)


def _look(pair: PairFiles) -> SeenSources | InputError:
    try:
        return look_at_sources(pair)
    except InputError as error:
        return error


def check_pictures(methods: Sequence[Method], findings: Sequence[Finding], pairs: int, on_bad: OnBad) -> set[str]:
    """Say what is unusual; the names of the pairs to leave out, or InputError with all that is wrong."""
    found = [("data", finding) for finding in findings]
    found += [(method.name, finding) for method in methods for finding in method.findings]
    bad = {name for _, finding in found if finding.oddity.is_bad for name in finding.names}
    if bad and (on_bad is OnBad.ERROR or len(bad) == pairs):
        choice = ", or say --on-bad skip to leave these pairs out for all rows" if len(bad) < pairs else ""
        raise InputError(
            f"{len(bad)} of {_pairs(pairs)} cannot be scored",
            rule="every row has a readable picture of each pair's size",
            remedy="\n  ".join([f"mend{choice}:", *(f"{who}: {f.text}" for who, f in found if f.oddity.is_bad)]),
        )
    for who, finding in found:
        if finding.oddity is not Oddity.GREY:
            say(f"{who}: {finding.text}")
    if bad:
        say(f"{_pairs(len(bad))} left out for all rows: {', '.join(sorted(bad))}")
    return bad


def _shown(evaluation: Evaluation, wanted: WantedScores) -> ShownPairs:
    brightness = {pair.name: wanted.seen[pair.name].brightness for pair in wanted.pairs}
    return shown_pairs(evaluation, wanted.pairs, wanted.methods, brightness)


def _hash_over(wanted: WantedScores) -> str:
    lines = (f"{pair.name} {wanted.seen[pair.name].key}\n" for pair in wanted.pairs)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _pairs(count: int) -> str:
    return "1 pair" if count == 1 else f"{count} pairs"
