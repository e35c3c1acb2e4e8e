"""The verb that scores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from duskfuse.cli.application import app
from duskfuse.cli.options import Backbone, Data, Json, Out, Overwrite, ReadingFile, Split, Workers
from duskfuse.cli.verb import choice, named_folders, refuse, show, verb

PANEL = "Judge"


@app.command("evaluate", rich_help_panel=PANEL)
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
            help="With --task: ONNX file, or weights of train-task, to run on the pictures of all rows.",
            show_default=False,
        ),
    ] = None,
    backbone: Backbone = None,
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
    with verb(as_json):
        if limit is not None and not robust:
            refuse("--limit without --robustness", rule="the metrics are computed on all pairs of a split")
        if video:
            given: dict[str, Any] = {"--robustness": robust, "--reference": reference, "--workers": workers}
            given |= {"--mode": mode != "definition", "--metrics": metrics != "default", "--on-bad": on_bad != "error"}
            given |= {"--predictions": predictions, "--classes": classes, "--task": task, "--network": network}
            given |= {"--backbone": backbone, "--network-input": network_input, "--lpips-weights": lpips_weights}
            _check_given(given)
            from duskfuse.evaluate.video import video_stability
            from duskfuse.evaluate.video_report import video_table

            stability = video_stability(
                data,
                model=model or (),
                fused=named_folders(fused or []),
                split=split,
                out=out,
                reading=reading,
                overwrite=overwrite,
            )
            show(stability.to_json(), as_json, [video_table(stability)])
            return
        of_metrics = [reference, workers, lpips_weights, robust, (metrics, mode) != ("default", "definition")]
        of_pictures = [model, fused, reading, on_bad != "error", network_input, backbone]
        _check_task(task, network, predictions, [classes, network_input, backbone], of_pictures, of_metrics)
        if task is not None and network is not None:
            from duskfuse.evaluate.evaluate import OnBad
            from duskfuse.evaluate.network_scores import network_scores
            from duskfuse.evaluate.onnx_run import NetworkInput
            from duskfuse.tasks.task_network import Task

            found = network_scores(
                data,
                task=choice(Task, task, "--task"),
                network=network,
                backbone=backbone,
                model=model or (),
                fused=named_folders(fused or []),
                network_input=(
                    None if network_input is None else choice(NetworkInput, network_input, "--network-input")
                ),
                classes=classes,
                split=split,
                reading=reading,
                on_bad=choice(OnBad, on_bad, "--on-bad"),
                out=out,
                overwrite=overwrite,
            )
            show(found.to_json(), as_json, found.tables())
            return
        if task is not None:
            from duskfuse.evaluate.task_scores import task_scores
            from duskfuse.tasks.task_network import Task

            found = task_scores(
                data,
                task=choice(Task, task, "--task"),
                predictions=named_folders(predictions or [], "--predictions"),
                out=out,
                classes=classes,
                split=split,
                overwrite=overwrite,
            )
            show(found.to_json(), as_json, found.tables())
            return
        from duskfuse.evaluate.evaluate import OnBad, evaluate, metrics_named
        from duskfuse.evaluate.metrics import Mode
        from duskfuse.evaluate.robustness import DEFAULT_PAIRS
        from duskfuse.evaluate.robustness_report import robustness_tables
        from duskfuse.evaluate.terminal_tables import terminal_tables

        evaluation = evaluate(
            data,
            model=model or (),
            fused=named_folders(fused or []),
            metrics=metrics_named(metrics),
            mode=choice(Mode, mode, "--mode"),
            lpips_weights=lpips_weights,
            split=split,
            reference=reference,
            out=out,
            reading=reading,
            on_bad=choice(OnBad, on_bad, "--on-bad"),
            workers=workers,
            overwrite=overwrite,
            degraded=(DEFAULT_PAIRS if limit is None else limit) if robust else None,
        )
        swept = [] if evaluation.robustness is None else robustness_tables(evaluation.robustness)
        show(evaluation.to_json(), as_json, [*terminal_tables(evaluation), *swept])


def _check_given(given: dict[str, Any]) -> None:
    """Refuse options that would change nothing beside --video."""
    idle = [option for option, value in given.items() if value]
    if idle:
        refuse(
            f"{idle[0]} with --video",
            rule="beside --video, --model, --fused, --split, --reading and --overwrite count",
            remedy="leave it away, or use two commands",
        )


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
            refuse(
                "--predictions, --network, --backbone or --classes without --task",
                rule="they belong to a task",
                remedy="say --task segmentation, detection or saliency",
            )
        return
    if any(of_metrics):
        refuse(
            f"--task {task} with an option of the fusion metrics",
            rule="a task is not scored by --metrics, --mode, --robustness, --reference or --workers",
            remedy="score the task and the fusion metrics with two commands",
        )
    if network is None and any(of_pictures):
        refuse(
            f"--task {task} with an option of the pictures, and no network to look at them",
            rule="without --network only --predictions, --classes, --split, --out, --overwrite and --json count",
            remedy="say --network FILE to run a task network on the pictures, or leave the option away",
        )
    if network is not None and predictions:
        refuse(
            "--network with --predictions",
            rule="a network's predictions are made here",
            remedy="score given predictions with a command of their own",
        )
