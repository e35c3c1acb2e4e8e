"""Reading files that others wrote: regular files only, and only up to a stated size.

A named pipe would wait for ever and a device never ends, so neither is opened; a file that is larger than anything of
its kind is refused before it fills the memory.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

from duskfuse.data.errors import InputError

LARGEST_TEXT = 16 * 2**20
"""Bytes of a text file of boxes or names: some 300,000 lines."""


@contextmanager
def opened(path: Path) -> Iterator[BufferedReader]:
    """Open a regular file for reading bytes; raises InputError where it is missing, no file, or unreadable."""
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
            raise InputError(f"{path}: cannot be read ({kind})", remedy="give a regular file")
        with path.open("rb") as stream:
            yield stream
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file", remedy="check the name and the folder") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})", remedy="give a readable file") from error


def read_bytes(path: Path, most: int) -> bytes:
    """The content of a file of at most ``most`` bytes; raises InputError as `opened`, and where it is larger."""
    with opened(path) as stream:
        data = stream.read(most + 1) if path.stat().st_size <= most else None
    if data is None or len(data) > most:
        raise InputError(
            f"{path}: more than {most:,} bytes",
            rule="no file of this kind is so large",
            remedy="check that it is the right file",
        )
    return data


def read_text(path: Path, most: int = LARGEST_TEXT) -> str:
    """The text of a UTF-8 file without its byte order mark; InputError as `read_bytes`, and where it is no text."""
    try:
        return read_bytes(path, most).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: cannot be read as text ({error})", remedy="give a text file in UTF-8") from error
