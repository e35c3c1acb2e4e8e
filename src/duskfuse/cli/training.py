"""The verbs that train, and the recipes they follow."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from duskfuse.cli.application import app
from duskfuse.cli.options import Backbone, Cache, Changes, Data, Json, Masks, Out, Overwrite, ReadingFile, Split
from duskfuse.cli.verb import choice, show, verb

PANEL = "Train"

Recipe = Annotated[str, typer.Option(help="Packaged name or YAML file; see `duskfuse recipes`.")]
TeacherName = Annotated[str | None, typer.Option(help="Which cached teacher to use.", show_default=False)]
Encoder = Annotated[str | None, typer.Option(help="sam, squeezenet or filters.", show_default=False)]
EncoderWeights = Annotated[Path | None, typer.Option(help="Weights of the encoder.", show_default=False)]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")]
Init = Annotated[
    list[Path] | None,
    typer.Option(help="Start from these weights, a file or a packaged student; repeatable.", show_default=False),
]
Critics = Annotated[
    list[Path] | None,
    typer.Option(
        "--critic",
        "--segmenter",
        help="Judge of the fused pictures; see train-task. Repeatable.",
        show_default=False,
    ),
]


@app.command("distill", rich_help_panel=PANEL)
def distill_command(
    data: Data,
    out: Annotated[Path, typer.Option(help="Run folder.", show_default=False)],
    recipe: Recipe = "default",
    changes: Changes = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    init: Init = None,
    cache: Cache = None,
    masks: Masks = None,
    teacher: TeacherName = None,
    encoder: Encoder = None,
    encoder_weights: EncoderWeights = None,
    critic: Critics = None,
    backbone: Backbone = None,
    split: Split = None,
    reading: ReadingFile = None,
    as_json: Json = False,
) -> None:
    """Train main network and student by a recipe."""
    with verb(as_json):
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
            masks=None if masks is None else choice(MaskSourceName, masks, "--masks"),
            teacher=teacher,
            encoder=None if encoder is None else choice(EncoderName, encoder, "--encoder"),
            encoder_weights=encoder_weights,
            critics=critic or (),
            backbone=backbone,
            split=split,
            reading=reading,
        )
        if launched().first:
            show({**report.to_json(), "page": str(write_run_page(out))}, as_json)


@app.command("find-lr", rich_help_panel=PANEL)
def find_lr_command(
    data: Data,
    owner: Annotated[str, typer.Option(help="student, teacher or denoiser.", show_default=False)],
    out: Out,
    recipe: Recipe = "default",
    changes: Changes = None,
    overwrite: Overwrite = False,
    init: Init = None,
    cache: Cache = None,
    masks: Masks = None,
    teacher: TeacherName = None,
    encoder: Encoder = None,
    encoder_weights: EncoderWeights = None,
    critic: Critics = None,
    backbone: Backbone = None,
    split: Split = None,
    reading: ReadingFile = None,
    as_json: Json = False,
) -> None:
    """Try rising learning rates on one network's step, and suggest one."""
    with verb(as_json):
        from duskfuse.data.priors.sources import MaskSourceName
        from duskfuse.distill.learning_rate_range import find_lr
        from duskfuse.distill.recipe import EncoderName, Owner

        report = find_lr(
            data,
            owner=choice(Owner, owner, "--owner"),
            out=out,
            recipe=recipe,
            changes=changes or (),
            overwrite=overwrite,
            init=init or (),
            cache=cache,
            masks=None if masks is None else choice(MaskSourceName, masks, "--masks"),
            teacher=teacher,
            encoder=None if encoder is None else choice(EncoderName, encoder, "--encoder"),
            encoder_weights=encoder_weights,
            critics=critic or (),
            backbone=backbone,
            split=split,
            reading=reading,
        )
        shown = report.to_json()
        if not as_json:
            shown = {key: value for key, value in shown.items() if not isinstance(value, list)}
        show(shown, as_json)


@app.command("train-task", rich_help_panel=PANEL)
def train_task_command(
    task: Annotated[str, typer.Argument(help="segmentation, detection or saliency.", show_default=False)],
    data: Data,
    out: Annotated[Path, typer.Option(help="Run folder.", show_default=False)],
    classes: Annotated[
        str | None,
        typer.Option(help="What the ids mean, e.g. FMB-15 or MSRS-3; default: the dataset's.", show_default=False),
    ] = None,
    shown: Annotated[
        str,
        typer.Option(
            "--input", help="What the network sees: vis, ir, average or fused=FOLDER; for detection both, too."
        ),
    ] = "vis",
    fusion: Annotated[
        str | None,
        typer.Option(
            help="What joins two cameras with --input both: concat (default), add, irdfusion or slgnet.",
            show_default=False,
        ),
    ] = None,
    backbone: Annotated[
        Path | None,
        typer.Option(
            help="With --fusion slgnet: train the whole of SLGNet around this frozen ViT, in timm's names.",
            show_default=False,
        ),
    ] = None,
    captions: Annotated[
        str | None,
        typer.Option(
            metavar="rules|FILE",
            help="With --backbone: what says something about pairs, rules (default) or JSON lines.",
            show_default=False,
        ),
    ] = None,
    text_encoder: Annotated[
        Path | None,
        typer.Option(help="With --backbone: folder of CLIP's text encoder; default: hashed words.", show_default=False),
    ] = None,
    trunk_weights: Annotated[
        Path | None, typer.Option(help="SqueezeNet 1.1 weights for the encoder to start from.", show_default=False)
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change one number, e.g. batches=500; repeatable.", show_default=False),
    ] = None,
    split: Split = None,
    reading: ReadingFile = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Train a small task network on labelled pairs: a critic for distill, a judge for evaluate."""
    with verb(as_json):
        from duskfuse.distill.train_task import train_task
        from duskfuse.tasks.fusion_blocks import FusionBlock
        from duskfuse.tasks.task_network import Task

        report = train_task(
            data,
            task=choice(Task, task, "task"),
            out=out,
            classes=classes,
            shown=shown,
            fusion=None if fusion is None else choice(FusionBlock, fusion, "--fusion"),
            backbone=backbone,
            captions=captions,
            text_encoder=text_encoder,
            trunk_weights=trunk_weights,
            changes=changes or (),
            split=split,
            reading=reading,
            resume=resume,
            overwrite=overwrite,
        )
        show(report.to_json(), as_json, report.tables())


@app.command("steer", rich_help_panel=PANEL)
def steer_command(
    data: Data,
    out: Annotated[Path, typer.Option(help="Run folder.", show_default=False)],
    critic: Annotated[
        list[Path],
        typer.Option(help="Task network that judges the pictures; see train-task; repeatable.", show_default=False),
    ],
    backbone: Backbone = None,
    student: Annotated[str, typer.Option(help="Zoo name or checkpoint.")] = "edge",
    changes: Changes = None,
    split: Split = None,
    reading: ReadingFile = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Train what steers a frozen student for tasks, by what their networks see in its pictures."""
    with verb(as_json):
        from duskfuse.distill.closed_loop.steer import steer

        report = steer(
            data,
            student=student,
            critics=critic,
            out=out,
            backbone=backbone,
            changes=changes or (),
            split=split,
            reading=reading,
            resume=resume,
            overwrite=overwrite,
        )
        show(report.to_json(), as_json, report.tables())


recipes_app = typer.Typer(help="The packaged recipes.", invoke_without_command=True)
app.add_typer(recipes_app, name="recipes", rich_help_panel=PANEL)


@recipes_app.callback()
def recipes_command(context: typer.Context, as_json: Json = False) -> None:
    """List the packaged recipes, or explain one of them."""
    if context.invoked_subcommand is not None:
        return
    with verb(as_json):
        from rich.table import Table

        from duskfuse.distill.recipe_files import load_recipe, recipe_names

        recipes = [load_recipe(name) for name in recipe_names()]
        phases = {
            recipe.name: [f"{p.name}: {p.batches} batches of {', '.join(p.cycle)}" for p in recipe.phases]
            for recipe in recipes
        }
        table = Table(box=None)
        table.add_column("recipe", no_wrap=True)
        table.add_column("phases")
        for name, lines in phases.items():
            table.add_row(name, "\n".join(lines))
        show(phases, as_json, [table])


@recipes_app.command("show")
def show_recipe_command(
    recipe: Annotated[str, typer.Argument(help="Packaged name or YAML file.")],
    changes: Changes = None,
    as_json: Json = False,
) -> None:
    """Print a recipe whole, with what every key means; saved to a file it can be changed and run."""
    with verb(as_json):
        from duskfuse.distill.explain_recipe import annotated_yaml
        from duskfuse.distill.recipe_files import load_recipe
        from duskfuse.distill.terms import TermName

        resolved = load_recipe(recipe, changes or [])
        if as_json:
            show(resolved.model_dump(mode="json"), as_json)
        else:
            print(annotated_yaml(resolved, {term.value: term.meaning for term in TermName}), end="")
