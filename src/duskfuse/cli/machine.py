"""The verbs that look at the whole: the demonstration, and what this machine has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from duskfuse.cli.application import app
from duskfuse.cli.options import Json, Overwrite
from duskfuse.cli.verb import EXIT_FAILED, show, verb

PANEL = "This machine"


@app.command("demo", rich_help_panel=PANEL)
def demo_command(
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("demo"),
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Run the whole job on built-in scenes: masks, training, export, scores, timings, a report page."""
    with verb(as_json):
        from duskfuse.demo import demo

        report = demo(out=out, overwrite=overwrite)
        show(report.to_json(), as_json, report.tables())


@app.command("doctor", rich_help_panel=PANEL)
def doctor_command(
    host: Annotated[
        list[str] | None, typer.Option(help="Also look at this ssh target; repeatable.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what this machine has, what is missing, and what to do; exit code 1 where something should be mended."""
    with verb(as_json):
        from duskfuse.doctor import doctor

        report = doctor(host or ())
        show(report.to_json(), as_json, [report.table()])
        if report.problems:
            raise typer.Exit(EXIT_FAILED)
