"""The folder of one store as it is on disk: what lies in it, and reading its files, whatever they turn out to be.

Everything here ends in one of three ways for the caller: bytes, `FileNotFoundError` (the file has gone, most often
merged by another process), `DamagedError` (it is no file of a cache), or a `StorageError` where the disk refuses.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from duskfuse.data.atomic import abandoned, storage_error
from duskfuse.data.priors.record_index import Place
from duskfuse.data.priors.records import FILE_BYTES, DamagedError, OtherVersionError, is_version_1, sealed_bytes

SUFFIX = ".parquet"
"""Of finished files."""
DAMAGED = ".damaged"
"""Added to the name of a file that was set aside."""

_HEAD_BYTES = 2**16
_GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ESTALE})
_NO_FILE = frozenset({errno.ELOOP, errno.ENXIO, errno.ENODEV})
"""What opening links in a circle, sockets and devices ends with."""


@dataclass(frozen=True)
class Rubbish:
    """What lies in a folder and is read by nobody."""

    leftovers: list[Path]
    """Temporary files of killed processes."""
    damaged: list[Path]
    """Files that were set aside."""


class StoreFolder:
    """Reads the folder of a store.

    Args:
        path: need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seen = False
        """Whether it was ever there."""

    def changed_ns(self) -> int | None:
        """When a name in it came, went or changed last; None where there is no folder."""
        with suppress(FileNotFoundError), self._reading():
            return self.path.stat().st_mtime_ns
        return None

    def names(self) -> set[str]:
        """Names of the finished files; none where there is no folder."""
        with suppress(FileNotFoundError), self._reading(), os.scandir(self.path) as entries:
            names = {entry.name for entry in entries if entry.name.endswith(SUFFIX) and entry.name[0] != "."}
            self.seen = True
            return names
        return set()

    def size(self, name: str) -> int:
        """Bytes of a file; 0 where it has gone."""
        with suppress(FileNotFoundError), self._reading():
            return (self.path / name).stat().st_size
        return 0

    def rubbish(self) -> Rubbish:
        """Temporary files without a writer, and files (not folders) set aside."""
        with self._reading():
            damaged = sorted(path for path in self.path.glob(f"*{DAMAGED}") if path.is_symlink() or not path.is_dir())
            return Rubbish(list(abandoned(self.path)), damaged)

    def head(self, name: str) -> tuple[bytes, int]:
        """The part of a file that its opening seal covers, and the length of the file.

        Raises:
            OtherVersionError: a file of format 1, which had no seal.
        """
        with self._open(name) as (stream, size):
            head = stream.read(_HEAD_BYTES)
            try:
                end = sealed_bytes(head)
            except DamagedError:
                stream.seek(max(0, size - _HEAD_BYTES))
                if is_version_1(stream.read(_HEAD_BYTES)):
                    raise OtherVersionError(1) from None
                raise
            return head[:end] + stream.read(max(0, min(end, size) - len(head))), size

    def read(self, place: Place) -> bytes:
        """A record, or what is left of it."""
        with self._open(place.file) as (stream, size):
            stream.seek(place.offset)
            return stream.read(size if place.length is None else place.length)

    def read_whole(self, name: str) -> bytes:
        """A whole file."""
        return self.read(Place(name, 0, None))

    @contextmanager
    def _open(self, name: str) -> Iterator[tuple[BinaryIO, int]]:
        """A file and its length; what is no plain file, such as a pipe that never answers, counts as damaged."""
        with self._reading():
            flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
            try:
                handle = os.open(self.path / name, flags)
            except OSError as error:
                if error.errno in _NO_FILE:
                    raise DamagedError("no file of a cache") from error
                raise
            try:
                status = os.fstat(handle)
                if not stat.S_ISREG(status.st_mode) or status.st_size > FILE_BYTES:
                    raise DamagedError("no file of a cache")
                with os.fdopen(handle, "rb", closefd=False) as stream:
                    yield stream, status.st_size
            finally:
                os.close(handle)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Tell a file that has gone from a disk that refuses."""
        try:
            yield
        except OSError as error:
            if error.errno in _GONE:
                raise FileNotFoundError(error.errno, "gone") from error
            raise storage_error(self.path, error) from error
