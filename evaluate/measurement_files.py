"""Files that a measurement beside the scores writes, next to those of others in one folder."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from math import isfinite, isnan
from pathlib import Path

from duskfuse.data.errors import InputError


def check_free(out: Path, names: Sequence[str], overwrite: bool) -> None:
    """Raise InputError where ``out`` is a file, or holds one of these files and they may not be replaced."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file", rule="results go to a folder", remedy="name another --out")
    there = [out / name for name in names if (out / name).exists()]
    if there and not overwrite:
        raise InputError(
            f"{there[0]} is there already",
            rule="results are never replaced unasked",
            remedy="say --overwrite to replace them, or name another --out",
        )


def csv_text(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table as CSV; numbers in full precision, undefined ones empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([_cell(value) for value in row] for row in rows)
    return text.getvalue()


def finite(value: float) -> float | None:
    """A number as JSON may hold it: None where it is undefined or infinite."""
    return value if isfinite(value) else None


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "" if isnan(value) else repr(value)
    return str(value)
