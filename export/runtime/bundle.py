"""Opening a bundle, the folder that ``duskfuse export`` writes, and unpacking its archive; nothing is trusted.

Before anything of a bundle is used, every file that ``bundle.json`` lists is compared with its size and SHA-256, and
what could be loaded or run without being listed is refused. Limits are checked before anything is read. Checksums show
damage and mix-ups; they do not show who made a bundle, which takes a digest of ``bundle.json`` got another way.

Engines are machine code and never part of a bundle. One that was built here from a listed file is accepted with its
record (``NAME.engine.json``); an archive with an engine is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

from .errors import DeviceInputError
from .onnx_file import LARGEST_ONNX_BYTES, check_self_contained, read_regular

BUNDLE_FILE = "bundle.json"
SUMS_FILE = "SHA256SUMS"
BUNDLE_FORMAT = 2
LARGEST_INDEX_BYTES = 4 * 2**20
LARGEST_OTHER_BYTES = 16 * 2**20
LARGEST_TOTAL_BYTES = 2**30
MOST_FILES = 1000

ENGINE_SUFFIXES = (".engine", ".plan", ".trt")
_LOADED_SUFFIXES = (".onnx", ".py", ".pyc", ".so", ".sh", ".pth", *ENGINE_SUFFIXES)
_BYTECODE_FOLDER = "__pycache__"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME_PART = re.compile(r"(?!\.\.?$)[^/\\:\x00-\x1f\x7f\ud800-\udfff]{1,200}")


class BundleError(DeviceInputError):
    """A bundle is damaged, of another format, or holds what it may not."""


class ListedNetwork(NamedTuple):
    """One network of a bundle."""

    file: str
    precision: str
    size: Optional[Tuple[int, int]]
    """(height, width) it takes, None for any."""


class Bundle(NamedTuple):
    """A verified bundle."""

    folder: Path
    content: Dict[str, Any]
    """What ``bundle.json`` says."""
    sums: Dict[str, Tuple[str, int]]
    """SHA-256 and bytes of every listed file, by its path inside the bundle."""
    networks: List[ListedNetwork]

    def read_network(self, network: ListedNetwork) -> bytes:
        """The bytes of a network, hashed again: what is run is what was verified."""
        content = _read(self.folder, network.file, self.sums[network.file])
        check_self_contained(content, network.file)
        return content

    def engine(self, network: ListedNetwork) -> Optional[Path]:
        """The engine that was built here from a network, None before that."""
        path = (self.folder / network.file).with_suffix(".engine")
        return path if path.is_file() else None

    def choose(
        self, precision: Optional[str] = None, size: Optional[Tuple[int, int]] = None, engines: bool = False
    ) -> ListedNetwork:
        """The network of this precision for pictures of ``size`` (height, width).

        One of exactly that size is taken before one that takes any. Where no ``precision`` is given, the order is fp32,
        fp16, int8; with ``engines``, those that have an engine first, then fp16, int8, fp32.

        Raises DeviceInputError where there is none, or where several sizes would do.
        """
        fitting = [
            network
            for network in self.networks
            if precision in (None, network.precision) and (size is None or network.size in (None, size))
        ]
        if not fitting:
            there = ", ".join(network.file for network in self.networks)
            wanted = f"no {precision or 'network'} for pictures of {_size_text(size)}"
            raise DeviceInputError(wanted, f"this bundle has {there}", "export what is needed")
        if engines:
            fitting = [network for network in fitting if self.engine(network)] or fitting
        order = ("fp16", "int8", "fp32") if engines else ("fp32", "fp16", "int8")
        best = min((network.precision for network in fitting), key=order.index)
        by_size = {network.size: network for network in fitting if network.precision == best}
        if size in by_size:
            return by_size[size]
        if None not in by_size and len(by_size) > 1:
            sizes = ", ".join(sorted(_size_text(entry) for entry in by_size))
            raise DeviceInputError(f"networks for {sizes}", "each takes pictures of its size", "say which with --size")
        return by_size.get(None) or next(iter(by_size.values()))


def open_bundle(folder: Path) -> Bundle:
    """Verify a bundle's folder; raises BundleError with the reason where anything is not as it was exported."""
    if not folder.is_dir():
        raise BundleError(f"{folder} is not a folder", "a bundle is a folder written by `duskfuse export`")
    index = _plain_bytes(folder, BUNDLE_FILE, LARGEST_INDEX_BYTES)
    content = _index(index)
    sums = _checked_sums(content)
    for name, expected in sums.items():
        _read(folder, name, expected)
    bundle = Bundle(folder, content, sums, _networks(content, sums))
    for path in _everything(folder):
        _check_unlisted(bundle, path)
    for network in bundle.networks:
        bundle.read_network(network)
    _check_sums_file(bundle, index)
    return bundle


def _index(data: bytes) -> Dict[str, Any]:
    try:
        content = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise BundleError(
            f"{BUNDLE_FILE} is not JSON ({type(error).__name__})", remedy="copy the bundle again"
        ) from error
    if not isinstance(content, dict) or "format" not in content:
        raise BundleError(f"{BUNDLE_FILE} says no format", "a bundle is written by `duskfuse export`")
    if content["format"] != BUNDLE_FORMAT:
        raise BundleError(
            f"bundle format {str(content['format'])[:20]}",
            f"this runtime reads format {BUNDLE_FORMAT}",
            "use the runtime that lies in the bundle, or export anew",
        )
    return content


def _checked_sums(content: Dict[str, Any]) -> Dict[str, Tuple[str, int]]:
    listed = content.get("checksums")
    if not isinstance(listed, dict) or not 0 < len(listed) <= MOST_FILES:
        raise BundleError(f"{BUNDLE_FILE} lists no files, or too many", f"at most {MOST_FILES} are read")
    sums: Dict[str, Tuple[str, int]] = {}
    for name, entry in listed.items():
        check_name(name)
        digest, size = (entry.get("sha256"), entry.get("bytes")) if isinstance(entry, dict) else (None, None)
        if not isinstance(digest, str) or not _SHA256.fullmatch(digest) or not isinstance(size, int):
            raise BundleError(f"{name} is listed without SHA-256 and bytes", remedy="export the bundle anew")
        if name.lower().endswith(ENGINE_SUFFIXES):
            raise BundleError(f"the bundle lists the engine {name}", *_NO_ENGINES)
        check_size(name, size)
        sums[name] = digest, size
    if sum(size for _, size in sums.values()) > LARGEST_TOTAL_BYTES:
        raise BundleError("the listed files are too large together", f"at most {LARGEST_TOTAL_BYTES} bytes")
    return sums


_NO_ENGINES = (
    "an engine is machine code of one device and is never delivered",
    "delete it, and build one here with build.sh",
)


def check_name(name: str) -> None:
    """Raise BundleError unless a path inside a bundle is relative and stays inside."""
    if not all(_NAME_PART.fullmatch(part) for part in name.split("/")):
        raise BundleError(
            f"the path {name[:120]!r}", "files lie inside the bundle: relative, without .., with / between folders"
        )


def check_size(name: str, size: int) -> None:
    """Raise BundleError where a file is larger than any of its kind."""
    largest = LARGEST_ONNX_BYTES if name.lower().endswith(".onnx") else LARGEST_OTHER_BYTES
    if not 0 <= size <= largest:
        raise BundleError(f"{name} has {size} bytes", f"a file of its kind has at most {largest}")


def sums_text(digests: Dict[str, str]) -> str:
    """What `SUMS_FILE` holds for SHA-256 digests by path, in the form of ``sha256sum -c``."""
    return "".join(f"{digests[name]}  {name}\n" for name in sorted(digests))


def _check_sums_file(bundle: Bundle, index: bytes) -> None:
    digests = {name: digest for name, (digest, _) in bundle.sums.items()}
    digests[BUNDLE_FILE] = hashlib.sha256(index).hexdigest()
    if _plain_bytes(bundle.folder, SUMS_FILE, LARGEST_INDEX_BYTES) != sums_text(digests).encode():
        raise BundleError(f"{SUMS_FILE} and {BUNDLE_FILE} differ", "both list the same files", "copy the bundle again")


def _networks(content: Dict[str, Any], sums: Dict[str, Tuple[str, int]]) -> List[ListedNetwork]:
    networks = []
    try:
        for entry in content["files"]:
            name, size = str(entry["file"]), str(entry["size"])
            sides = re.fullmatch(r"(\d{1,5})x(\d{1,5})", size)
            if name not in sums or not (sides or size == "dynamic"):
                raise ValueError(name)
            shape = (int(sides[2]), int(sides[1])) if sides else None
            networks.append(ListedNetwork(name, _precision(entry["precision"]), shape))
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{BUNDLE_FILE} describes its networks wrongly ({error})", remedy="export anew") from error
    if not networks:
        raise BundleError("the bundle has no network", remedy="export anew")
    return networks


def _precision(value: Any) -> str:
    if value not in ("fp32", "fp16", "int8"):
        raise ValueError("precision")
    return str(value)


def _plain_bytes(folder: Path, name: str, largest: int) -> bytes:
    """Read one file of a bundle, which is a regular file of its own and not a way to another place."""
    path = folder
    for part in name.split("/"):
        path = path / part
        try:
            status = os.lstat(str(path))
        except OSError as error:
            raise BundleError(f"{name}: {error.strerror}", "no file may be missing", "copy the bundle again") from error
        if stat.S_ISLNK(status.st_mode):
            raise BundleError(f"{name} is a symbolic link", *_NO_LINKS)
    if not stat.S_ISREG(status.st_mode):
        raise BundleError(f"{name} is not a regular file", "devices, pipes and folders are not read")
    if status.st_nlink > 1:
        raise BundleError(f"{name} is a hard link", *_NO_LINKS)
    try:
        return read_regular(path, largest)
    except (OSError, DeviceInputError) as error:
        raise BundleError(f"{name}: {error}", "it must be as it was exported", "copy the bundle again") from error


_NO_LINKS = (
    "a bundle holds its files themselves, so that nothing outside can change them",
    "copy the files, not links",
)


def _read(folder: Path, name: str, expected: Tuple[str, int]) -> bytes:
    """Read a listed file; raises BundleError where it is not the one that was exported."""
    content = _plain_bytes(folder, name, expected[1])
    if len(content) != expected[1] or hashlib.sha256(content).hexdigest() != expected[0]:
        raise BundleError(f"{name} was changed", "it must be as it was exported", "copy the bundle again")
    return content


def _everything(folder: Path) -> Iterator[str]:
    """The paths inside a bundle of all files and links, Python's own bytecode left out."""
    count = 0
    for place, folders, files in os.walk(str(folder)):
        folders[:] = sorted(set(folders) - {_BYTECODE_FOLDER})
        links = [name for name in folders if os.path.islink(os.path.join(place, name))]
        for name in (*links, *files):
            count += 1
            if count > 10 * MOST_FILES:
                raise BundleError(f"{folder} holds more than {count - 1} files", "a bundle is a folder of its own")
            yield os.path.relpath(os.path.join(place, name), str(folder)).replace(os.sep, "/")


def _check_unlisted(bundle: Bundle, name: str) -> None:
    """Raise BundleError for what could be loaded or run and is not listed; other files are never read."""
    if name in bundle.sums or name in (BUNDLE_FILE, SUMS_FILE):
        return
    path = bundle.folder / name
    if path.is_symlink():
        raise BundleError(f"{name} is a symbolic link", *_NO_LINKS)
    if name.lower().endswith(ENGINE_SUFFIXES):
        _check_engine(bundle, name)
    elif name.lower().endswith(_LOADED_SUFFIXES):
        raise BundleError(f"{name} is not listed in {BUNDLE_FILE}", "nothing unlisted is run", "delete or move it")


def _check_engine(bundle: Bundle, name: str) -> None:
    """Raise BundleError unless the record of an engine says that it was made of a network of this bundle."""
    onnx = bundle.sums.get(str(Path(name).with_suffix(".onnx")).replace(os.sep, "/"))
    try:
        record = json.loads(_plain_bytes(bundle.folder, name + ".json", LARGEST_INDEX_BYTES).decode("utf-8"))
        recorded = record["onnx_sha256"], record["engine_sha256"]
    except (BundleError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(f"the engine {name} has no record", *_NO_ENGINES) from error
    digest = hashlib.sha256(_plain_bytes(bundle.folder, name, LARGEST_TOTAL_BYTES)).hexdigest()
    if onnx is None or recorded != (onnx[0], digest):
        raise BundleError(f"the engine {name} was not built from a network of this bundle", *_NO_ENGINES)


def _size_text(size: Optional[Tuple[int, int]]) -> str:
    return "any size" if size is None else f"{size[1]}x{size[0]}"
