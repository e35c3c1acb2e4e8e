"""Unpacking the archive of a bundle: a ``.tar.gz`` of regular files only, within limits, verified before it has a name.

Modes, owners and times of the archive are not taken over. A ``.tar.gz`` can name any path, hold links and devices, and
grow a thousandfold: all of that is refused with the reason, and nothing is left behind.
"""

from __future__ import annotations

import gzip
import os
import shutil
import tarfile
import tempfile
import zlib
from pathlib import Path
from typing import IO, Optional, Set, cast

from .bundle import (
    BUNDLE_FILE,
    ENGINE_SUFFIXES,
    LARGEST_TOTAL_BYTES,
    MOST_FILES,
    SUMS_FILE,
    Bundle,
    BundleError,
    check_name,
    check_size,
    open_bundle,
)

LARGEST_ARCHIVE_BYTES = LARGEST_TOTAL_BYTES
MOST_GROWTH = 64
"""A bundle grows about twofold when it is unpacked: its networks hardly shrink, its texts do by four."""

_LARGEST_READ = 4 * 2**20  # what is asked of the archive at a time; longer is a header made to fill the memory
_CHUNK = 2**20


class _Forward:
    """A decompressed stream for `tarfile`, read forwards, in parts of bounded length, up to a limit.

    `tarfile` goes back only by the one byte with which it checks that data are there.
    """

    def __init__(self, stream: IO[bytes], limit: int) -> None:
        self._stream, self._limit = stream, limit
        self._position, self._last, self._again = 0, b"", b""

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int) -> int:
        step = offset - self._position
        if step == -1 and self._last:
            self._again, self._position = self._last, offset
        elif step < 0:
            raise BundleError("the archive leads backwards", "its files follow one another", "copy it again")
        while self._position < offset:
            if not self.read(min(offset - self._position, _CHUNK)):
                break
        return self._position

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _LARGEST_READ:
            raise BundleError("a header of the archive is too long", "a bundle's archive has short headers")
        if self._position + size > self._limit:
            raise BundleError(
                f"the archive grows to more than {self._limit} bytes",
                f"at most {MOST_GROWTH} times its size, and {LARGEST_TOTAL_BYTES} bytes",
            )
        part = self._again[:size] + self._stream.read(max(0, size - len(self._again)))
        self._again = self._again[size:]
        self._position += len(part)
        self._last = part[-1:] or self._last
        return part


def unpack(archive: Path, out: Path) -> Bundle:
    """Unpack and verify the archive of a bundle into the new folder ``out``.

    Raises BundleError where ``out`` exists, or the archive is damaged or holds what a bundle may not.
    """
    if os.path.lexists(str(out)):
        raise BundleError(f"{out} is there already", "nothing is overwritten", "give another folder")
    try:
        if archive.stat().st_size > LARGEST_ARCHIVE_BYTES:
            raise BundleError(f"{archive} is too large", f"at most {LARGEST_ARCHIVE_BYTES} bytes")
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=str(out.parent)))
    except OSError as error:
        raise BundleError(f"{archive}: {error.strerror}", remedy="check the paths") from error
    try:
        names = _extract(archive, scratch)
        bundle = open_bundle(scratch)
        _refuse_unlisted(bundle, names)
        os.chmod(str(scratch), 0o755)
        os.rename(str(scratch), str(out))
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise BundleError(
            f"{archive} is damaged ({error})", "a .tar.gz of `duskfuse export`", "copy it again"
        ) from error
    finally:
        shutil.rmtree(str(scratch), ignore_errors=True)
    return bundle._replace(folder=out)


def _extract(archive: Path, folder: Path) -> Set[str]:
    """Write the files of an archive below ``folder``; return their paths there."""
    done: Set[str] = set()
    top: Optional[str] = None
    limit = min(LARGEST_TOTAL_BYTES, MOST_GROWTH * archive.stat().st_size)
    with gzip.open(str(archive), "rb") as stream:
        forward = cast(IO[bytes], _Forward(cast(IO[bytes], stream), limit))
        with tarfile.open(fileobj=forward, mode="r:") as tar:
            for member in tar:
                name = _inner_name(member, top)
                top = member.name.split("/")[0]
                if name is None:
                    continue
                if name in done or len(done) == MOST_FILES:
                    raise BundleError(f"the archive holds {name} twice, or too many files", f"at most {MOST_FILES}")
                done.add(name)
                _write_member(tar, member, folder / name)
    if BUNDLE_FILE not in done:
        raise BundleError(
            f"the archive has no {BUNDLE_FILE}", "it is one folder written by `duskfuse export --archive`"
        )
    return done


def _inner_name(member: tarfile.TarInfo, top: Optional[str]) -> Optional[str]:
    """The path inside the bundle, None for a folder; raises BundleError for all that a bundle may not hold."""
    check_name(member.name)
    first, _, name = member.name.partition("/")
    if top not in (None, first):
        raise BundleError(f"the archive holds {member.name[:120]!r} beside {top!r}", "an archive is one folder")
    if member.type == tarfile.DIRTYPE:
        return None
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.issparse():
        raise BundleError(f"{member.name} is a {_kind(member)}", "an archive holds plain files and folders only")
    if not name:
        raise BundleError(f"the file {member.name} at the top", "an archive is one folder")
    if name.lower().endswith(ENGINE_SUFFIXES):
        raise BundleError(
            f"the archive holds the engine {name}", "an engine is machine code of one device and is never delivered"
        )
    check_size(name, member.size)
    return name


def _kind(member: tarfile.TarInfo) -> str:
    kinds = {tarfile.SYMTYPE: "symbolic link", tarfile.LNKTYPE: "hard link", tarfile.FIFOTYPE: "pipe"}
    return kinds.get(member.type, "device" if member.isdev() else "special entry")


def _write_member(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    source = tar.extractfile(member)
    assert source is not None  # a regular file has content
    with path.open("xb") as target:
        left = member.size
        while left:
            part = source.read(min(left, _CHUNK))
            if not part:
                raise BundleError(f"{member.name} ends too early", "the archive is cut off", "copy it again")
            target.write(part)
            left -= len(part)
    os.chmod(str(path), 0o755 if path.suffix == ".sh" or path.name == "run.py" else 0o644)


def _refuse_unlisted(bundle: Bundle, names: Set[str]) -> None:
    unlisted = names - set(bundle.sums) - {BUNDLE_FILE, SUMS_FILE}
    if unlisted:
        raise BundleError(f"the archive holds {min(unlisted)}, which is not listed", "all files are listed")
