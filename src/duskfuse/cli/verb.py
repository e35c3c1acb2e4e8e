"""What every verb does alike: errors become one message and an exit code, results JSON or tables.

Progress goes to stderr; ``--json`` prints the result on stdout and nothing else there.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import typer

EXIT_FAILED, EXIT_INTERRUPTED = 1, 130
_LISTED = 10

_debug = False


def set_debug(debug: bool) -> None:
    """Show the traceback of an error from now on, or its message only."""
    global _debug
    _debug = debug


@contextmanager
def verb(as_json: bool) -> Iterator[None]:
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


def choice(kind: Any, text: str, option: str) -> Any:
    """Return the member of an enum that a text names; raise InputError with all of them otherwise."""
    from duskfuse.data.errors import InputError

    try:
        return kind(text)
    except ValueError:
        raise InputError(f"{option} {text}", rule=f"one of {', '.join(kind)}") from None


def refuse(seen: str, *, rule: str, remedy: str = "leave it away") -> NoReturn:
    """Raise InputError for options that do not go together."""
    from duskfuse.data.errors import InputError

    raise InputError(seen, rule=rule, remedy=remedy)


def named_folders(items: list[str], option: str = "--fused") -> dict[str, Path]:
    """Read NAME=FOLDER items."""
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


def show(result: Any, as_json: bool, tables: Any = ()) -> None:
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
        console.print(f"[bold]{key.replace('_', ' ')}[/bold]: {_plain(value)}", highlight=False, soft_wrap=True)


def _plain(value: Any) -> str:
    """For people: long lists end in how many more there are, which ``--json`` has all."""
    match value:
        case None:
            return "none"
        case dict():
            return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
        case (float(), float()) if isinstance(value, tuple):
            return " to ".join(map(_plain, value))
        case list():
            shown = [_plain(item) for item in value[:_LISTED]]
            more = [f"… and {len(value) - _LISTED} more"] if len(value) > _LISTED else []
            return "\n  " + "\n  ".join([*shown, *more]) if value else "none"
        case float():
            return f"{value:.4g}"
    return str(value)
