"""The command line: one verb, one function, one command.

Every command imports what it needs inside its body, so that ``--help`` does not wait for torch. Progress goes to
stderr; ``--json`` prints the result on stdout and nothing else there.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from duskfuse import __version__

if TYPE_CHECKING:
    from duskfuse.data.reading import Reading

EXIT_FAILED, EXIT_INTERRUPTED = 1, 130

_debug = False

app = typer.Typer(
    name="duskfuse",
    help="Infrared and visible cameras fused into one picture, in real time, on a small device.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Data = Annotated[Path, typer.Argument(help="Folder of pairs in any recognised layout.", show_default=False)]
Out = Annotated[Path, typer.Option(help="Folder to write to.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout, and nothing else there.")]
Cache = Annotated[Path | None, typer.Option(help="Prior cache; default $DUSKFUSE_HOME/cache.", show_default=False)]
Store = Annotated[str | None, typer.Option(help="One store only, named by its folder.", show_default=False)]
Split = Annotated[str | None, typer.Option(help="Use one split of DATA only, e.g. train.", show_default=False)]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change one number: key.path=value; repeatable.", show_default=False),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier run of this command wrote.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and write nothing.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads; default: all cores.", show_default=False)]
EngineName = Annotated[str, typer.Option("--engine", help="Where to compute: local, or ray (a cluster).")]
Workers = Annotated[int | None, typer.Option(help="Processes that compute; default: one per core.", show_default=False)]
ReadingFile = Annotated[
    Path | None,
    typer.Option(
        "--reading", help="YAML: how infrared pictures are read; default: duskfuse.yaml in DATA.", show_default=False
    ),
]
Masks = Annotated[
    str | None, typer.Option(help="Which cached masks to use: sam, regions, labels, ….", show_default=False)
]


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    global _debug
    _debug = debug
    if version:
        print(__version__)
        raise typer.Exit


@app.command("demo")
def demo_command(
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("demo"),
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Run the whole job on built-in scenes: masks, training, export, scores, timings, a report page."""
    with _verb(as_json):
        from duskfuse.demo import demo

        report = demo(out=out, overwrite=overwrite)
        _show(report.to_json(), as_json, report.tables())


@app.command("cache-masks")
def cache_masks_command(
    data: Data,
    source: Annotated[
        str | None, typer.Option(help="sam, regions, labels or random-crops.", show_default=False)
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="SAM or MobileSAM checkpoint, or a transformers folder.", show_default=False)
    ] = None,
    preset: Annotated[str, typer.Option(help="SAM settings: fast or paper.")] = "fast",
    keep: Annotated[int, typer.Option(help="Masks of a picture at most.")] = 20,
    cache: Cache = None,
    engine: EngineName = "local",
    workers: Workers = None,
    reading: ReadingFile = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Compute region masks of every picture once and keep them."""
    with _verb(as_json):
        from duskfuse.data.priors.cache_masks import cache_masks
        from duskfuse.data.priors.pipeline import Engine
        from duskfuse.data.priors.sources import MaskSourceName

        report = cache_masks(
            data,
            source=None if source is None else _choice(MaskSourceName, source, "--source"),
            checkpoint=checkpoint,
            preset=preset,
            keep=keep,
            cache=cache,
            engine=_choice(Engine, engine, "--engine"),
            workers=workers,
            reading=reading,
            dry_run=dry_run,
        )
        _show(report.to_json(), as_json)


@app.command("cache-teacher")
def cache_teacher_command(
    data: Data,
    teacher: Annotated[
        list[str],
        typer.Option(
            help="Weights, a folder of fused pictures, or a method inside DATA (teacher/NAME); repeatable.",
            show_default=False,
        ),
    ],
    combine: Annotated[
        str | None, typer.Option(help="What becomes of several: best, or blend (of the two best).", show_default=False)
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of a diffusion teacher.", show_default=False)] = None,
    ddfm_form: Annotated[
        str, typer.Option(help="DDFM: mirrored (keeps both sources), corrected (as in the paper), or published.")
    ] = "mirrored",
    cache: Cache = None,
    masks: Masks = None,
    split: Split = None,
    limit: Annotated[int | None, typer.Option(help="Only so many pairs, spread evenly.", show_default=False)] = None,
    pictures: Annotated[
        Path | None, typer.Option(help="Also write the pictures to this folder.", show_default=False)
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="A pair without a ready picture is an error.")] = False,
    engine: EngineName = "local",
    workers: Workers = None,
    reading: ReadingFile = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Keep a slow teacher's picture of every pair, or the best of several teachers'."""
    with _verb(as_json):
        from duskfuse.data.priors.pipeline import Engine
        from duskfuse.data.priors.sources import MaskSourceName
        from duskfuse.evaluate.quality import quality_score
        from duskfuse.teachers.cache_teacher import cache_teacher
        from duskfuse.teachers.combine_teachers import Combination
        from duskfuse.teachers.ddfm import DdfmForm

        report = cache_teacher(
            data,
            teacher=teacher,
            combine=None if combine is None else _choice(Combination, combine, "--combine"),
            score=quality_score,
            steps=steps,
            ddfm_form=_choice(DdfmForm, ddfm_form, "--ddfm-form"),
            cache=cache,
            masks=None if masks is None else _choice(MaskSourceName, masks, "--masks"),
            split=split,
            limit=limit,
            pictures=pictures,
            strict=strict,
            engine=_choice(Engine, engine, "--engine"),
            workers=workers,
            reading=reading,
            dry_run=dry_run,
        )
        _show(report.to_json(), as_json)


cache_app = typer.Typer(help="Look after the cached masks and teacher pictures.", no_args_is_help=True)
app.add_typer(cache_app, name="cache")


@cache_app.command("verify")
def cache_verify_command(store: Store = None, cache: Cache = None, as_json: Json = False) -> None:
    """Read every cached record; exit code 1 where damage was found."""
    with _verb(as_json):
        from duskfuse.data.priors.manage_cache import verify_cache

        report = verify_cache(cache=cache, store=store)
        _show(report.to_json(), as_json, [report.table()])
        report.raise_for_damage()


@cache_app.command("stats")
def cache_stats_command(store: Store = None, cache: Cache = None, as_json: Json = False) -> None:
    """Say what the cache holds and how large it is."""
    with _verb(as_json):
        from duskfuse.data.priors.manage_cache import cache_stats

        report = cache_stats(cache=cache, store=store)
        _show(report.to_json(), as_json, report.tables())


@cache_app.command("gc")
def cache_gc_command(
    data: Annotated[
        list[Path] | None,
        typer.Option(help="Also remove what belongs to no picture of these datasets; repeatable.", show_default=False),
    ] = None,
    store: Store = None,
    cache: Cache = None,
    reading: ReadingFile = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Remove leftovers of killed runs, damaged files and replaced records."""
    with _verb(as_json):
        from duskfuse.data.priors.manage_cache import collect_garbage

        report = collect_garbage(cache=cache, store=store, data=data or (), reading=reading, dry_run=dry_run)
        _show(report.to_json(), as_json, [report.table()])


@cache_app.command("export")
def cache_export_command(
    data: Data,
    coco: Annotated[Path, typer.Option(help="COCO file to write.", show_default=False)],
    store: Store = None,
    masks: Masks = None,
    cache: Cache = None,
    split: Split = None,
    reading: ReadingFile = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write the cached masks of a dataset as a COCO file."""
    with _verb(as_json):
        from duskfuse.data.priors.export_coco import export_coco
        from duskfuse.data.priors.sources import MaskSourceName

        report = export_coco(
            data,
            coco,
            cache=cache,
            store=store,
            source=None if masks is None else _choice(MaskSourceName, masks, "--masks"),
            split=split,
            reading=reading,
            overwrite=overwrite,
        )
        _show(report.to_json(), as_json)


@app.command("distill")
def distill_command(
    data: Data,
    out: Annotated[Path, typer.Option(help="Run folder.", show_default=False)],
    recipe: Annotated[str, typer.Option(help="Packaged name or YAML file; see `duskfuse recipes`.")] = "default",
    changes: Changes = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    overwrite: Overwrite = False,
    init: Annotated[
        list[Path] | None, typer.Option(help="Start from these weights; repeatable.", show_default=False)
    ] = None,
    cache: Cache = None,
    masks: Masks = None,
    teacher: Annotated[str | None, typer.Option(help="Which cached teacher to use.", show_default=False)] = None,
    encoder: Annotated[str | None, typer.Option(help="sam, squeezenet or filters.", show_default=False)] = None,
    encoder_weights: Annotated[Path | None, typer.Option(help="Weights of the encoder.", show_default=False)] = None,
    segmenter: Annotated[
        Path | None, typer.Option(help="Critic of the segmentation term; see train-task.", show_default=False)
    ] = None,
    split: Split = None,
    reading: ReadingFile = None,
    as_json: Json = False,
) -> None:
    """Train main network and student by a recipe."""
    with _verb(as_json):
        from duskfuse.data.priors.sources import MaskSourceName
        from duskfuse.distill.distill import distill
        from duskfuse.distill.processes import launched
        from duskfuse.distill.recipe import EncoderName
        from duskfuse.run_page import write_run_page

        report = distill(
            data,
            out=out,
            recipe=recipe,
            changes=changes or (),
            resume=resume,
            overwrite=overwrite,
            init=init or (),
            cache=cache,
            masks=None if masks is None else _choice(MaskSourceName, masks, "--masks"),
            teacher=teacher,
            encoder=None if encoder is None else _choice(EncoderName, encoder, "--encoder"),
            encoder_weights=encoder_weights,
            segmenter=segmenter,
            split=split,
            reading=reading,
        )
        if launched().first:
            _show({**report.to_json(), "page": str(write_run_page(out))}, as_json)


@app.command("find-lr")
def find_lr_command(
    data: Data,
    owner: Annotated[str, typer.Option(help="student, teacher or denoiser.", show_default=False)],
    out: Out,
    recipe: Annotated[str, typer.Option(help="Packaged name or YAML file; see `duskfuse recipes`.")] = "default",
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change one number: key.path=value; repeatable.", show_default=False),
    ] = None,
    overwrite: Overwrite = False,
    init: Annotated[
        list[Path] | None, typer.Option(help="Start from these weights; repeatable.", show_default=False)
    ] = None,
    cache: Cache = None,
    masks: Masks = None,
    teacher: Annotated[str | None, typer.Option(help="Which cached teacher to use.", show_default=False)] = None,
    encoder: Annotated[str | None, typer.Option(help="sam, squeezenet or filters.", show_default=False)] = None,
    encoder_weights: Annotated[Path | None, typer.Option(help="Weights of the encoder.", show_default=False)] = None,
    split: Split = None,
    reading: ReadingFile = None,
    as_json: Json = False,
) -> None:
    """Try rising learning rates on one network's step, and suggest one."""
    with _verb(as_json):
        from duskfuse.data.priors.sources import MaskSourceName
        from duskfuse.distill.learning_rate_range import find_lr
        from duskfuse.distill.recipe import EncoderName, Owner

        report = find_lr(
            data,
            owner=_choice(Owner, owner, "--owner"),
            out=out,
            recipe=recipe,
            changes=changes or (),
            overwrite=overwrite,
            init=init or (),
            cache=cache,
            masks=None if masks is None else _choice(MaskSourceName, masks, "--masks"),
            teacher=teacher,
            encoder=None if encoder is None else _choice(EncoderName, encoder, "--encoder"),
            encoder_weights=encoder_weights,
            split=split,
            reading=reading,
        )
        shown = report.to_json()
        if not as_json:
            shown = {key: value for key, value in shown.items() if not isinstance(value, list)}
        _show(shown, as_json)


@app.command("train-task")
def train_task_command(
    task: Annotated[str, typer.Argument(help="segmentation", show_default=False)],
    data: Data,
    out: Annotated[Path, typer.Option(help="Run folder.", show_default=False)],
    classes: Annotated[
        str | None,
        typer.Option(help="What the ids of the labels mean, e.g. FMB-15; default: the dataset's.", show_default=False),
    ] = None,
    shown: Annotated[
        str, typer.Option("--input", help="What the network sees: vis, ir, average or fused=FOLDER.")
    ] = "vis",
    trunk_weights: Annotated[
        Path | None, typer.Option(help="SqueezeNet 1.1 weights for the encoder to start from.", show_default=False)
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change one number, e.g. batches=500; repeatable.", show_default=False),
    ] = None,
    split: Split = None,
    reading: ReadingFile = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Train a small task network on labelled pairs: a critic for distill, a judge for evaluate."""
    with _verb(as_json):
        from duskfuse.distill.train_task import TaskName, train_task

        report = train_task(
            data,
            task=_choice(TaskName, task, "task"),
            out=out,
            classes=classes,
            shown=shown,
            trunk_weights=trunk_weights,
            changes=changes or (),
            split=split,
            reading=reading,
            resume=resume,
            overwrite=overwrite,
        )
        _show(report.to_json(), as_json, report.tables())


@app.command("evaluate")
def evaluate_command(
    data: Data,
    out: Out,
    model: Annotated[
        list[str] | None, typer.Option(help="Zoo name, checkpoint or ONNX file; repeatable.", show_default=False)
    ] = None,
    fused: Annotated[
        list[str] | None, typer.Option(help="NAME=FOLDER of fused pictures; repeatable.", show_default=False)
    ] = None,
    metrics: Annotated[str, typer.Option(help="default, all, or names between commas, e.g. EN,SD,VIF.")] = "default",
    mode: Annotated[
        str, typer.Option(help="definition, or as in old tables: linfeng-2023, linfeng-2022.")
    ] = "definition",
    lpips_weights: Annotated[
        Path | None,
        typer.Option(help="Adds LPIPS: alexnet, squeezenet1_1 or vgg16 of torchvision.", show_default=False),
    ] = None,
    split: Split = None,
    reference: Annotated[str | None, typer.Option(help="Row to give PSNR against.", show_default=False)] = None,
    reading: ReadingFile = None,
    on_bad: Annotated[
        str, typer.Option("--on-bad", help="Pairs with a bad picture: error, or skip (for all rows).")
    ] = "error",
    workers: Workers = None,
    task: Annotated[
        str | None,
        typer.Option(help="Score a task instead: segmentation, detection or saliency.", show_default=False),
    ] = None,
    predictions: Annotated[
        list[str] | None,
        typer.Option(help="With --task: NAME=FOLDER of predictions; repeatable.", show_default=False),
    ] = None,
    network: Annotated[
        Path | None,
        typer.Option(
            help="With --task: ONNX file, or segmenter, to run on the pictures of all rows.", show_default=False
        ),
    ] = None,
    network_input: Annotated[
        str | None,
        typer.Option(
            help="Values of its input, where the file does not say: unit (0 to 1), or imagenet.", show_default=False
        ),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(help="With --task: which classes count, e.g. FMB-14; default: the dataset's.", show_default=False),
    ] = None,
    robust: Annotated[
        bool, typer.Option("--robustness", help="Score degraded pairs, too: dark, noisy, hazy, shifted, dead, …")
    ] = False,
    limit: Annotated[
        int | None, typer.Option(help="With --robustness: pairs, spread evenly; default: 12.", show_default=False)
    ] = None,
    video: Annotated[bool, typer.Option("--video", help="Measure how steady sequences of frames are instead.")] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Score models and folders of fused pictures, with the trivial rows always beside them.

    The same command goes on where a killed one stopped; with one more method it computes that method only.
    """
    with _verb(as_json):
        if limit is not None and not robust:
            _refuse("--limit without --robustness", rule="the metrics are computed on all pairs of a split")
        if video:
            given: dict[str, Any] = {"--robustness": robust, "--reference": reference, "--workers": workers}
            given |= {"--mode": mode != "definition", "--metrics": metrics != "default", "--on-bad": on_bad != "error"}
            given |= {"--predictions": predictions, "--classes": classes, "--task": task, "--network": network}
            _check_given(given | {"--network-input": network_input, "--lpips-weights": lpips_weights})
            from duskfuse.evaluate.video import video_stability
            from duskfuse.evaluate.video_report import video_table

            stability = video_stability(
                data,
                model=model or (),
                fused=_named_folders(fused or []),
                split=split,
                out=out,
                reading=reading,
                overwrite=overwrite,
            )
            _show(stability.to_json(), as_json, [video_table(stability)])
            return
        of_metrics = [reference, workers, lpips_weights, robust, (metrics, mode) != ("default", "definition")]
        of_pictures = [model, fused, reading, on_bad != "error", network_input]
        _check_task(task, network, predictions, [classes, network_input], of_pictures, of_metrics)
        if task is not None and network is not None:
            from duskfuse.evaluate.evaluate import OnBad
            from duskfuse.evaluate.network_scores import network_scores
            from duskfuse.evaluate.onnx_run import NetworkInput
            from duskfuse.evaluate.task_results import Task

            found = network_scores(
                data,
                task=_choice(Task, task, "--task"),
                network=network,
                model=model or (),
                fused=_named_folders(fused or []),
                network_input=(
                    None if network_input is None else _choice(NetworkInput, network_input, "--network-input")
                ),
                classes=classes,
                split=split,
                reading=reading,
                on_bad=_choice(OnBad, on_bad, "--on-bad"),
                out=out,
                overwrite=overwrite,
            )
            _show(found.to_json(), as_json, found.tables())
            return
        if task is not None:
            from duskfuse.evaluate.task_results import Task
            from duskfuse.evaluate.task_scores import task_scores

            found = task_scores(
                data,
                task=_choice(Task, task, "--task"),
                predictions=_named_folders(predictions or [], "--predictions"),
                out=out,
                classes=classes,
                split=split,
                overwrite=overwrite,
            )
            _show(found.to_json(), as_json, found.tables())
            return
        from duskfuse.evaluate.evaluate import OnBad, evaluate, metrics_named
        from duskfuse.evaluate.metrics import Mode
        from duskfuse.evaluate.robustness import DEFAULT_PAIRS
        from duskfuse.evaluate.robustness_report import robustness_tables
        from duskfuse.evaluate.terminal_tables import terminal_tables

        evaluation = evaluate(
            data,
            model=model or (),
            fused=_named_folders(fused or []),
            metrics=metrics_named(metrics),
            mode=_choice(Mode, mode, "--mode"),
            lpips_weights=lpips_weights,
            split=split,
            reference=reference,
            out=out,
            reading=reading,
            on_bad=_choice(OnBad, on_bad, "--on-bad"),
            workers=workers,
            overwrite=overwrite,
            degraded=(DEFAULT_PAIRS if limit is None else limit) if robust else None,
        )
        swept = [] if evaluation.robustness is None else robustness_tables(evaluation.robustness)
        _show(evaluation.to_json(), as_json, [*terminal_tables(evaluation), *swept])


@app.command("fuse")
def fuse_command(
    ir: Annotated[Path, typer.Option(help="Infrared picture or folder.", show_default=False)],
    vis: Annotated[Path, typer.Option(help="Visible picture or folder.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Picture or folder to write.", show_default=False)],
    model: Annotated[str, typer.Option(help="Zoo name, checkpoint or ONNX file.")] = "edge",
    thermal_range: Annotated[
        str | None,
        typer.Option(metavar="LOW:HIGH", help="Stored infrared values that become 0 and 1.", show_default=False),
    ] = None,
    percentiles: Annotated[
        str | None,
        typer.Option(metavar="LOW:HIGH", help="Scale each infrared picture by these, 0 to 100.", show_default=False),
    ] = None,
    black_hot: Annotated[bool, typer.Option("--black-hot", help="The infrared camera shows heat dark.")] = False,
    resize_ir: Annotated[
        bool, typer.Option("--resize-ir", help="Resize infrared pictures to the visible size.")
    ] = False,
    homography: Annotated[
        Path | None, typer.Option(help="JSON file that maps infrared to visible pixels.", show_default=False)
    ] = None,
    reading: Annotated[
        Path | None, typer.Option(help="YAML file with these settings; options go before it.", show_default=False)
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Fuse one pair, or two folders matched by name."""
    with _verb(as_json):
        from duskfuse.export.fuse import fuse

        how = _reading(reading, thermal_range, percentiles, black_hot, resize_ir, homography)
        report = fuse(ir, vis, out, model=model, overwrite=overwrite, reading=how)
        _show(report.to_json(), as_json)


@app.command("export")
def export_command(
    model: Annotated[str, typer.Argument(help="Zoo name or checkpoint.", show_default=False)],
    out: Out,
    precision: Annotated[str, typer.Option(help="Comma-separated: fp32, fp16, int8.")] = "fp32,fp16,int8",
    size: Annotated[
        list[str] | None, typer.Option(help="WIDTHxHEIGHT of a static file; repeatable.", show_default=False)
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(help="Pairs to calibrate and verify on; default: built-in scenes.", show_default=False),
    ] = None,
    reading: Annotated[
        Path | None,
        typer.Option(help="YAML: how their infrared is read; default: their duskfuse.yaml.", show_default=False),
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write verified ONNX files for the device."""
    with _verb(as_json):
        from duskfuse.export.export import export
        from duskfuse.export.onnx_graph import Precision

        precisions = [_choice(Precision, text.strip(), "--precision") for text in precision.split(",")]
        report = export(
            model,
            out=out,
            precision=precisions,
            size=size or (),
            calibration=calibration,
            reading=reading,
            overwrite=overwrite,
        )
        _show(report.to_json(), as_json, [report.table()])


@app.command("bench")
def bench_command(
    model: Annotated[list[str], typer.Argument(help="Models, ONNX files or bundles.", show_default=False)],
    size: Annotated[str, typer.Option(help="WIDTHxHEIGHT.")] = "640x480",
    threads: Threads = None,
    backend: Annotated[str | None, typer.Option(help="onnxruntime or torch.", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """Time models on this machine: batch 1, warm-up, median, p90, p99."""
    with _verb(as_json):
        from duskfuse.export.bench import Backend, bench

        chosen = None if backend is None else _choice(Backend, backend, "--backend")
        report = bench(model, size=size, threads=threads, backend=chosen)
        _show(report.to_json(), as_json, [report.table()])


@app.command("models")
def models_command(as_json: Json = False) -> None:
    """List the packaged students."""
    with _verb(as_json):
        from duskfuse.students.zoo import list_models

        _show(list_models(), as_json)


recipes_app = typer.Typer(help="The packaged recipes.", invoke_without_command=True)
app.add_typer(recipes_app, name="recipes")


@recipes_app.callback()
def recipes_command(context: typer.Context, as_json: Json = False) -> None:
    """List the packaged recipes, or explain one of them."""
    if context.invoked_subcommand is not None:
        return
    with _verb(as_json):
        from duskfuse.distill.recipe_files import load_recipe, recipe_names

        recipes = [load_recipe(name) for name in recipe_names()]
        _show(
            {
                recipe.name: [f"{p.name}: {p.batches} batches of {', '.join(p.cycle)}" for p in recipe.phases]
                for recipe in recipes
            },
            as_json,
        )


@recipes_app.command("show")
def show_recipe_command(
    recipe: Annotated[str, typer.Argument(help="Packaged name or YAML file.")],
    changes: Changes = None,
    as_json: Json = False,
) -> None:
    """Print a recipe whole, with what every key means; saved to a file it can be changed and run."""
    with _verb(as_json):
        from duskfuse.distill.explain_recipe import annotated_yaml
        from duskfuse.distill.recipe_files import load_recipe
        from duskfuse.distill.terms import TermName

        resolved = load_recipe(recipe, changes or [])
        if as_json:
            _show(resolved.model_dump(mode="json"), as_json)
        else:
            print(annotated_yaml(resolved, {term.value: term.meaning for term in TermName}), end="")


@app.command("doctor")
def doctor_command(
    host: Annotated[
        list[str] | None, typer.Option(help="Also look at this ssh target; repeatable.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what this machine has, what is missing, and what to do; exit code 1 where something should be mended."""
    with _verb(as_json):
        from duskfuse.doctor import doctor

        report = doctor(host or ())
        _show(report.to_json(), as_json, [report.table()])
        if report.problems:
            raise typer.Exit(EXIT_FAILED)


@contextmanager
def _verb(as_json: bool) -> Iterator[None]:
    """Turn errors of a verb into one message and an exit code; silence progress for ``--json``."""
    from duskfuse.data.errors import DuskfuseError
    from duskfuse.data.progress import set_quiet

    set_quiet(as_json)
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")  # a damaged picture gets our message, not the decoder's
    try:
        yield
    except DuskfuseError as error:
        _fail(error, error.exit_code)
    except KeyboardInterrupt:
        _fail(KeyboardInterrupt("interrupted; finished work is kept"), EXIT_INTERRUPTED)
    except OSError as error:
        _fail(error, EXIT_FAILED)


def _fail(error: BaseException, code: int) -> None:
    if _debug:
        traceback.print_exc()
    print(f"duskfuse: {error}", file=sys.stderr)
    raise typer.Exit(code)


def _choice(kind: Any, text: str, option: str) -> Any:
    from duskfuse.data.errors import InputError

    try:
        return kind(text)
    except ValueError:
        raise InputError(f"{option} {text}", rule=f"one of {', '.join(kind)}") from None


def _reading(
    file: Path | None,
    thermal_range: str | None,
    percentiles: str | None,
    black_hot: bool,
    resize_ir: bool,
    homography: Path | None,
) -> Reading:
    """The settings of a file, replaced by those of the options."""
    from duskfuse.data.homography import load_homography
    from duskfuse.data.images import ThermalRange
    from duskfuse.data.reading import AS_STORED, load_reading

    changes: dict[str, Any] = {}
    if thermal_range is not None or percentiles is not None:
        changes["thermal_range"] = (
            None if thermal_range is None else ThermalRange(*_span("--thermal-range", thermal_range))
        )
        changes["percentiles"] = None if percentiles is None else _span("--percentiles", percentiles)
    if black_hot:
        changes["black_hot"] = True
    if resize_ir or homography is not None:
        changes |= {"resize_ir": resize_ir, "homography": load_homography(homography) if homography else None}
    return replace(AS_STORED if file is None else load_reading(file), **changes)


def _span(option: str, text: str) -> tuple[float, float]:
    from duskfuse.data.errors import InputError

    try:
        low, high = map(float, text.split(":"))
    except ValueError:
        raise InputError(
            f"{option} {text}", rule="two numbers, written LOW:HIGH", remedy=f"e.g. {option} 0.5:99.5"
        ) from None
    return low, high


def _check_given(given: dict[str, Any]) -> None:
    """Refuse options that would change nothing beside --video."""
    idle = [option for option, value in given.items() if value]
    if idle:
        _refuse(
            f"{idle[0]} with --video",
            rule="beside --video, --model, --fused, --split, --reading and --overwrite count",
            remedy="leave it away, or use two commands",
        )


def _refuse(seen: str, *, rule: str, remedy: str = "leave it away") -> NoReturn:
    from duskfuse.data.errors import InputError

    raise InputError(seen, rule=rule, remedy=remedy)


def _check_task(
    task: str | None,
    network: Path | None,
    predictions: list[str] | None,
    of_task: list[Any],
    of_pictures: list[Any],
    of_metrics: list[Any],
) -> None:
    """Refuse options that would change nothing."""
    if task is None:
        if any([network, predictions, *of_task]):
            _refuse(
                "--predictions, --network or --classes without --task",
                rule="they belong to a task",
                remedy="say --task segmentation, detection or saliency",
            )
        return
    if any(of_metrics):
        _refuse(
            f"--task {task} with an option of the fusion metrics",
            rule="a task is not scored by --metrics, --mode, --robustness, --reference or --workers",
            remedy="score the task and the fusion metrics with two commands",
        )
    if network is None and any(of_pictures):
        _refuse(
            f"--task {task} with an option of the pictures, and no network to look at them",
            rule="without --network only --predictions, --classes, --split, --out, --overwrite and --json count",
            remedy="say --network FILE to run a task network on the pictures, or leave the option away",
        )
    if network is not None and predictions:
        _refuse(
            "--network with --predictions",
            rule="a network's predictions are made here",
            remedy="score given predictions with a command of their own",
        )


def _named_folders(items: list[str], option: str = "--fused") -> dict[str, Path]:
    from duskfuse.data.errors import InputError

    folders = {}
    for item in items:
        name, separator, folder = item.partition("=")
        if not separator or not name or not folder:
            raise InputError(f"{option} {item}", rule="written NAME=FOLDER", remedy=f"e.g. {option} sage=results/sage")
        if name in folders:
            raise InputError(
                f"{option}: two rows are called {name!r}",
                rule="every row of a table has its own name",
                remedy="name them apart",
            )
        folders[name] = Path(folder)
    return folders


def _show(result: Any, as_json: bool, tables: Any = ()) -> None:
    """Print the result: JSON on stdout, or tables (or plain keys and values) for people."""
    if as_json:
        print(json.dumps(result, indent=2, allow_nan=False, default=str))
        return
    from rich.console import Console

    console = Console()
    if tables:
        for table in tables:
            console.print(table)
        return
    for key, value in result.items():
        console.print(f"[bold]{key}[/bold]: {_plain(value)}", highlight=False, soft_wrap=True)


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    if isinstance(value, list):
        return "\n  " + "\n  ".join(map(_plain, value)) if value else "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    """Entry point of the ``duskfuse`` command."""
    app()


if __name__ == "__main__":
    main()
