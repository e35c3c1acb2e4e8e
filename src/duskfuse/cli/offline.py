"""The verbs of the offline stage: what is computed once and kept."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from duskfuse.cli.application import app
from duskfuse.cli.options import (
    Cache,
    Data,
    DryRun,
    EngineName,
    Json,
    Masks,
    Overwrite,
    ReadingFile,
    Split,
    Store,
    Workers,
)
from duskfuse.cli.verb import choice, show, verb

PANEL = "Prepare"


@app.command("cache-masks", rich_help_panel=PANEL)
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
    with verb(as_json):
        from duskfuse.data.priors.cache_masks import cache_masks
        from duskfuse.data.priors.pipeline import Engine
        from duskfuse.data.priors.sources import MaskSourceName

        report = cache_masks(
            data,
            source=None if source is None else choice(MaskSourceName, source, "--source"),
            checkpoint=checkpoint,
            preset=preset,
            keep=keep,
            cache=cache,
            engine=choice(Engine, engine, "--engine"),
            workers=workers,
            reading=reading,
            dry_run=dry_run,
        )
        show(report.to_json(), as_json)


@app.command("cache-teacher", rich_help_panel=PANEL)
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
    with verb(as_json):
        from duskfuse.data.priors.pipeline import Engine
        from duskfuse.data.priors.sources import MaskSourceName
        from duskfuse.evaluate.quality import quality_score
        from duskfuse.teachers.cache_teacher import cache_teacher
        from duskfuse.teachers.combine_teachers import Combination
        from duskfuse.teachers.ddfm import DdfmForm

        report = cache_teacher(
            data,
            teacher=teacher,
            combine=None if combine is None else choice(Combination, combine, "--combine"),
            score=quality_score,
            steps=steps,
            ddfm_form=choice(DdfmForm, ddfm_form, "--ddfm-form"),
            cache=cache,
            masks=None if masks is None else choice(MaskSourceName, masks, "--masks"),
            split=split,
            limit=limit,
            pictures=pictures,
            strict=strict,
            engine=choice(Engine, engine, "--engine"),
            workers=workers,
            reading=reading,
            dry_run=dry_run,
        )
        show(report.to_json(), as_json)


cache_app = typer.Typer(help="Look after the cached masks and teacher pictures.", no_args_is_help=True)
app.add_typer(cache_app, name="cache", rich_help_panel=PANEL)


@cache_app.command("verify")
def cache_verify_command(store: Store = None, cache: Cache = None, as_json: Json = False) -> None:
    """Read every cached record; exit code 1 where damage was found."""
    with verb(as_json):
        from duskfuse.data.priors.manage_cache import verify_cache

        report = verify_cache(cache=cache, store=store)
        show(report.to_json(), as_json, [report.table()])
        report.raise_for_damage()


@cache_app.command("stats")
def cache_stats_command(store: Store = None, cache: Cache = None, as_json: Json = False) -> None:
    """Say what the cache holds and how large it is."""
    with verb(as_json):
        from duskfuse.data.priors.manage_cache import cache_stats

        report = cache_stats(cache=cache, store=store)
        show(report.to_json(), as_json, report.tables())


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
    with verb(as_json):
        from duskfuse.data.priors.manage_cache import collect_garbage

        report = collect_garbage(cache=cache, store=store, data=data or (), reading=reading, dry_run=dry_run)
        show(report.to_json(), as_json, [report.table()])


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
    with verb(as_json):
        from duskfuse.data.priors.export_coco import export_coco
        from duskfuse.data.priors.sources import MaskSourceName

        report = export_coco(
            data,
            coco,
            cache=cache,
            store=store,
            source=None if masks is None else choice(MaskSourceName, masks, "--masks"),
            split=split,
            reading=reading,
            overwrite=overwrite,
        )
        show(report.to_json(), as_json)
