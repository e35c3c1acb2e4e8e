"""The bundle: everything that goes to the device, in one folder that runs there by itself.

ONNX files, the runtime, what starts it, where the networks come from, and the checksums of all of it: in
``bundle.json`` for the runtime, which verifies them before it uses anything, and in ``SHA256SUMS`` for
``sha256sum -c``. The archive of a bundle is the same byte for byte wherever it is written.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from duskfuse.data.atomic import write_atomically, writing_atomically
from duskfuse.data.errors import InputError
from duskfuse.export import bundle_texts
from duskfuse.export.runtime.__main__ import VERBS
from duskfuse.export.runtime.bundle import (
    BUNDLE_FILE,
    BUNDLE_FORMAT,
    SUMS_FILE,
    BundleError,
    check_name,
    open_bundle,
    sums_text,
)

RUNTIME_FOLDER = "duskfuse_runtime"
VERIFICATION_FILE = "verification.json"
CALIBRATION_FILE = "calibration.json"

_RUNTIME = Path(__file__).parent / "runtime"
_LICENCE = Path(__file__).parent / "LICENSE"
_STARTED = ("run.py", "build.sh", "bench.sh")
_EXECUTABLE, _PLAIN = 0o755, 0o644


def write_bundle(folder: Path, content: Mapping[str, Any], reports: Sequence[str] = ()) -> None:
    """Complete the ``folder`` of exported ONNX files to a bundle.

    ``content`` is what is known of them: ``model``, ``duskfuse`` (version), ``card``, ``calibration``, ``pictures`` and
    ``files``, as :class:`duskfuse.export.export.ExportReport` has them; ``reports`` are names of further files that lie
    there already. ``bundle.json`` is written last.
    """
    files = {name: text.encode() for name, text in _texts(content).items()}
    files |= {f"{RUNTIME_FOLDER}/{path.name}": path.read_bytes() for path in sorted(_RUNTIME.glob("*.py"))}
    files["LICENSE"] = _LICENCE.read_bytes()
    files["README.md"] = bundle_texts.readme(content, (*files, *reports, BUNDLE_FILE, SUMS_FILE)).encode()
    for name, data in files.items():
        write_atomically(folder / name, data)
        (folder / name).chmod(_mode(name))
    files |= {name: (folder / name).read_bytes() for name in reports}
    sums = {name: (hashlib.sha256(data).hexdigest(), len(data)) for name, data in files.items()}
    sums |= {entry["file"]: (entry["sha256"], entry["bytes"]) for entry in content["files"]}
    checksums = {name: {"sha256": sums[name][0], "bytes": sums[name][1]} for name in sorted(sums)}
    index = _json({"format": BUNDLE_FORMAT, **content, "checksums": checksums}).encode()
    digests = {BUNDLE_FILE: hashlib.sha256(index).hexdigest(), **{name: digest for name, (digest, _) in sums.items()}}
    write_atomically(folder / SUMS_FILE, sums_text(digests))
    write_atomically(folder / BUNDLE_FILE, index)


def check_model_name(name: str) -> None:
    """Raise InputError where a model's name cannot be the beginning of a file name in a bundle."""
    try:
        check_name(f"{name}.onnx")
    except BundleError as error:
        raise InputError(error.seen, rule=error.rule, remedy="rename the checkpoint") from error


def write_archive(folder: Path) -> Path:
    """Pack the files that a bundle lists into ``<folder>.tar.gz`` beside it; the same files give the same bytes.

    Raises BundleError where the bundle is not as it was written.
    """
    names = sorted({*open_bundle(folder).sums, BUNDLE_FILE, SUMS_FILE})
    path = folder.resolve().with_name(folder.resolve().name + ".tar.gz")
    with (
        writing_atomically(path) as stream,
        gzip.GzipFile("", "wb", fileobj=stream, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name in names:
            data = (folder / name).read_bytes()
            member = tarfile.TarInfo(f"{folder.resolve().name}/{name}")
            member.size, member.mode = len(data), _mode(name)  # the other fields are the same everywhere
            tar.addfile(member, io.BytesIO(data))
    return path


def forget_earlier_bundle(folder: Path) -> None:
    """Remove the files that an earlier bundle lists and engines built from them; others, the user's, stay."""
    try:
        earlier = json.loads((folder / BUNDLE_FILE).read_text(encoding="utf-8"))
        listed = [str(name) for name in earlier.get("checksums", ())]
        listed += [str(entry["file"]) for entry in earlier["files"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return
    for name in (BUNDLE_FILE, SUMS_FILE, VERIFICATION_FILE, *listed):
        try:
            check_name(name)
        except BundleError:
            continue
        path = folder / name
        if path.parent.resolve().is_relative_to(folder.resolve()):
            engine = path.with_suffix(".engine")
            outdated = (path, engine, engine.with_name(engine.name + ".json")) if path.suffix == ".onnx" else (path,)
            for old in outdated:
                old.unlink(missing_ok=True)


def _texts(content: Mapping[str, Any]) -> dict[str, str]:
    """The text files of a bundle, without its README."""
    texts = {
        "run.py": bundle_texts.RUN,
        "TRAINING_DATA.md": bundle_texts.training_data(content),
        VERIFICATION_FILE: _json({entry["file"]: entry["verification"] for entry in content["files"]}),
        CALIBRATION_FILE: _json(
            {
                "origin": content["calibration"],
                "pictures": content["pictures"],
                "float_convolutions": {entry["file"]: entry["float_convolutions"] for entry in content["files"]},
            }
        ),
    }
    scripts = {"build.sh": bundle_texts.build_script(content), "bench.sh": bundle_texts.BENCH}
    return texts | {name: text for name, text in scripts.items() if PurePosixPath(name).stem in VERBS}


def _mode(name: str) -> int:
    return _EXECUTABLE if name in _STARTED else _PLAIN


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, allow_nan=False) + "\n"
