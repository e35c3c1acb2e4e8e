"""Progress with an ETA on stderr: a bar on a terminal, a plain line now and then elsewhere, nothing when quiet."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

T = TypeVar("T")

LOG_EVERY_S = 15.0
_quiet = False
_said: dict[str, object] = {}


def set_quiet(quiet: bool) -> None:
    """Silence all progress (``--json``) or bring it back."""
    global _quiet
    _quiet = quiet


def say(message: str) -> None:
    """Print one line for the user on stderr, unless progress is silenced."""
    if not _quiet:
        print(message, file=sys.stderr, flush=True)


def say_once(topic: str, message: str) -> None:
    """Print ``message`` as `say` does, unless this process has said something on ``topic`` already."""
    mine = object()
    if not _quiet and _said.setdefault(topic, mine) is mine:  # one step, so that of two threads one speaks
        say(message)


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield ``items`` while showing how many are done and how long the rest will take."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    if _quiet:
        yield from items
    elif sys.stderr.isatty():
        yield from _with_bar(items, description, total)
    else:
        yield from _with_lines(items, description, total)


def _with_bar(items: Iterable[T], description: str, total: int | None) -> Iterator[T]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("eta"),
    )
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=False) as bar:
        yield from bar.track(items, total=total, description=description)


def _with_lines(items: Iterable[T], description: str, total: int | None) -> Iterator[T]:
    started = last = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - last >= LOG_EVERY_S:
            last = now
            left = f", {(now - started) / done * (total - done):.0f} s left" if total else ""
            say(f"{description}: {done}{f'/{total}' if total else ''}{left}")
