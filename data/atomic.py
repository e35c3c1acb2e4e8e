"""Writing files so that they are there whole or not at all, and stay after a power cut."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from duskfuse.data.errors import StorageError

_UNFINISHED = ".tmp"
_SAFE_AGE_S = 24 * 3600.0
"""Where files cannot be locked, a temporary file that old has no writer any more."""
_NEWBORN_S = 1.0
"""A temporary file younger than this may be one that its writer has yet to lock."""

_REMEDIES = {
    errno.ENOSPC: "free some space, or choose a folder on another disk",
    errno.EDQUOT: "delete files of yours, have the quota raised, or choose another folder",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f), or choose another file system",
    errno.EROFS: "mount it writable, or choose another folder",
    errno.EACCES: "make it writable for you, or choose another folder",
    errno.EPERM: "make it writable for you, or choose another folder",
    errno.EIO: "check the disk and its connection, and run the same command again",
}


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write ``content`` (text as UTF-8) to ``path``; missing folders are made."""
    with writing_atomically(path) as stream:
        stream.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def writing_atomically(path: Path) -> Iterator[BinaryIO]:
    """A stream to what becomes ``path`` once it is complete: temporary name, sync, rename. Missing folders are made.

    While it is written the temporary file is locked, so that `abandoned` knows those of killed processes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}{_UNFINISHED}")
    try:
        with unfinished.open("xb") as stream:
            with suppress(OSError):  # file systems without locks
                _lock(stream.fileno())
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
            if os.name == "posix":  # elsewhere an open file cannot be renamed
                os.replace(unfinished, path)
        if os.name != "posix":
            os.replace(unfinished, path)
    finally:
        with suppress(OSError):
            unfinished.unlink()
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Bring to disk which names a folder holds."""
    if os.name == "posix":  # a rename is on disk only when its folder is
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def abandoned(folder: Path) -> Iterator[Path]:
    """The temporary files of `write_atomically` in a folder whose writers were killed."""
    for path in sorted(folder.glob(f".*{_UNFINISHED}")):
        with suppress(OSError):  # gone meanwhile, or of another user
            age = time.time() - path.stat().st_mtime
            if age > _NEWBORN_S and _has_no_writer(path, age):
                yield path


@contextmanager
def sole(path: Path) -> Iterator[bool]:
    """Hold the lock file ``path``, and give whether this process got it; never waits.

    The system gives the lock back when the process ends, however it ends. True where there are no locks.
    """
    handle = os.open(path, os.O_RDONLY | os.O_CREAT, 0o666)
    try:
        try:
            _lock(handle)
        except BlockingIOError:
            yield False
            return
        except OSError:  # network file systems without locks
            pass
        yield True
    finally:
        os.close(handle)


def storage_error(path: Path, error: OSError) -> StorageError:
    """What the system refused at ``path``, how much space there is, and what helps."""
    place = next((folder for folder in (path, *path.parents) if folder.is_dir()), None)
    free = ""
    if place is not None:
        with suppress(OSError):
            free = f"; {shutil.disk_usage(place).free} bytes are free there"
    return StorageError(
        f"{path}: {os.strerror(error.errno) if error.errno else error}{free}",
        rule="what was finished before is kept",
        remedy=_REMEDIES.get(error.errno or 0, "check the path, or choose another folder"),
    )


def _has_no_writer(path: Path, age: float) -> bool:
    handle = os.open(path, os.O_RDONLY)
    try:
        _lock(handle)
    except BlockingIOError:
        return False
    except OSError:
        return age > _SAFE_AGE_S
    finally:
        os.close(handle)
    return sys.platform != "win32" or age > _SAFE_AGE_S


def _lock(handle: int) -> None:
    """Lock an open file for this process, or raise BlockingIOError where another has it."""
    if sys.platform != "win32":
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
