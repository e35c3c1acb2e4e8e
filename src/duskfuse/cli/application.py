"""The command itself and the options that stand before a verb."""

from __future__ import annotations

from typing import Annotated

import typer

from duskfuse import __version__
from duskfuse.cli.verb import set_debug

app = typer.Typer(
    name="duskfuse",
    help="Infrared and visible cameras fused into one picture, in real time, on a small device.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    set_debug(debug)
    if version:
        print(__version__)
        raise typer.Exit
