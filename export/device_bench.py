"""Measure bundles on devices over ssh: copy what is needed, build engines where asked, run, bring the numbers home.

On a device everything lies below ``~/.cache/duskfuse/bench``, in one folder per content, whose name is its digest: a
bundle that is there already is checked and not copied again, and engines that were built there stay. Results of a run
lie in a folder of their own, which is removed when they are home.
"""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from duskfuse.data.atomic import write_atomically
from duskfuse.data.errors import DuskfuseError, InputError
from duskfuse.data.progress import say
from duskfuse.export.device_runs import DeviceRun, read_document
from duskfuse.export.ssh_device import DeviceError, SshDevice, quote

REMOTE_HOME = "~/.cache/duskfuse/bench"
RUNTIME_FOLDER = "duskfuse_runtime"
SUMS = "SENT.sha256"
LARGEST_BYTES = 2 * 10**9
SPARE_BYTES = 50 * 10**6
"""Kept free on the device beside what is copied."""
PROBE_S, COPY_S, BUILD_S = 60, 1800, 3600
_RUNTIME = Path(__file__).parent / "runtime"
_ENGINES = (".engine", ".engine.json", ".plan", ".trt")
_LOCAL_NAMES = ("__pycache__",)
_PROBE = """
python=$(command -v python3) || { echo "python="; exit 0; }
"$python" -B - <<'END'
import importlib, sys
print("python=%d.%d" % sys.version_info[:2])
for name in ("numpy", "cv2", "onnxruntime", "tensorrt"):
    try:
        importlib.import_module(name)
        print("has=" + name)
    except Exception as error:  # a half-installed package can raise anything on import
        print("why_%s=%s" % (name, " ".join(str(error).split())))
END
mkdir -p HOME_FOLDER && df -Pk HOME_FOLDER | awk 'END { print "free_kb=" $4 }'
"""


@dataclass(frozen=True)
class DeviceOptions:
    """What is measured on every device."""

    size: str | None = None
    """``WIDTHxHEIGHT`` for files that take any."""
    seconds: float = 10.0
    threads: int | None = None
    build: bool = False
    """Build engines first, with the bundle's build.sh."""
    trtexec: bool = False
    clean: bool = False
    """Remove the copy of the bundle, with its engines, at the end."""


@dataclass(frozen=True)
class Failure:
    """A device that gave no numbers."""

    host: str
    reason: str


def bench_devices(
    models: Sequence[Path], hosts: Sequence[str], out: Path, options: DeviceOptions | None = None
) -> tuple[list[DeviceRun], list[Failure]]:
    """Measure bundles or ONNX files on devices, one device after the other.

    Args:
        models: bundle folders, bundle archives (``.tar.gz``) or ``.onnx`` files.
        hosts: ssh targets.
        out: folder for one JSON file per device, named by target and time.
        options: what to measure and how.

    Returns:
        What each device gave, and the devices that gave nothing, with the reason; what one gave is written before the
        next is asked.

    Raises:
        InputError: unusable models, options or targets, before any device is asked.
    """
    options = options or DeviceOptions()
    if not 0 < options.seconds <= 3600:
        raise InputError(f"{options.seconds:g} seconds", rule="more than 0 and at most an hour")
    devices = [SshDevice(host) for host in dict.fromkeys(hosts)]
    runs: list[DeviceRun] = []
    failures: list[Failure] = []
    with tempfile.TemporaryDirectory(prefix="duskfuse-bench-") as scratch:
        files = [_files_of(model, Path(scratch)) for model in models]
        for device in devices:
            try:
                for content in files:
                    runs.append(_bench_one(device, content, out, options))
            except DuskfuseError as error:
                say(f"{device.host}: {error}")
                failures.append(Failure(device.host, str(error)))
    return runs, failures


def _bench_one(device: SshDevice, files: Mapping[str, bytes], out: Path, options: DeviceOptions) -> DeviceRun:
    _check_ready(device, sum(map(len, files.values())))
    folder = f"{REMOTE_HOME}/{_digest(files)[:24]}"
    _copy(device, files, folder)
    try:
        if options.build:
            _build(device, files, folder)
        text = _run(device, folder, sum(name.endswith(".onnx") for name in files), options)
    finally:
        if options.clean:
            device.run(f"rm -rf -- {quote(folder)}", timeout_s=PROBE_S)
    document = _parsed(device, text)
    document["host"] = device.host
    name = re.sub(r"[^\w.@-]", "_", device.host)
    path = out / f"{name}-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{uuid.uuid4().hex[:4]}.json"
    run = read_document(document, path.name)
    write_atomically(path, json.dumps(document, allow_nan=False))
    say(f"{device.host}: written to {path}")
    return replace(run, path=path)


def _check_ready(device: SshDevice, needed: int) -> None:
    """Raise DeviceError where Python, a package or room is missing on the device."""
    answer = device.run(_PROBE.replace("HOME_FOLDER", quote(REMOTE_HOME)), timeout_s=PROBE_S)
    lines = [line.partition("=") for line in answer.out.splitlines()]
    values = {name: value for name, _, value in lines}
    has = {value for name, _, value in lines if name == "has"}
    version = re.match(r"(\d+)\.(\d+)$", values.get("python", ""))
    if version is None:
        raise DeviceError(f"{device.host} has no python3", remedy="sudo apt-get install python3 there")
    if (int(version[1]), int(version[2])) < (3, 8):
        raise DeviceError(
            f"{device.host} has Python {version[0]}",
            rule="the device runtime needs 3.8 or newer",
            remedy="JetPack 5 or newer",
        )
    for module, remedy in (("numpy", "python3-numpy"), ("cv2", "python3-opencv")):
        if module not in has:
            raise DeviceError(
                f"{device.host}: Python has no {module} ({values.get(f'why_{module}')})",
                remedy=f"sudo apt-get install {remedy} there",
            )
    if not has & {"onnxruntime", "tensorrt"}:
        raise DeviceError(
            f"{device.host}: Python has neither onnxruntime nor tensorrt "
            f"({values.get('why_onnxruntime')}; {values.get('why_tensorrt')})",
            rule="one of them runs the networks",
            remedy="python3 -m pip install onnxruntime there; on a Jetson sudo apt-get install python3-libnvinfer",
        )
    free = int(values.get("free_kb") or 0) * 1024
    if answer.code or free < needed + SPARE_BYTES:
        raise DeviceError(
            f"{device.host} has {free / 1e6:.0f} MB free for {REMOTE_HOME}",
            rule=f"{(needed + SPARE_BYTES) / 1e6:.0f} MB are needed",
            remedy="make room there",
        )


def _copy(device: SshDevice, files: Mapping[str, bytes], folder: str) -> None:
    """Bring the files to the device unless they are there, and compare their checksums there in both cases."""
    if _is_whole(device, folder):
        say(f"{device.host}: the files are there already")
        return
    say(f"{device.host}: copying {sum(map(len, files.values())) / 1e6:.1f} MB")
    sums = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in sorted(files.items()))
    unfinished = f"{folder}.{uuid.uuid4().hex[:8]}.part"
    try:
        device.send_files({**files, SUMS: sums.encode()}, unfinished, timeout_s=COPY_S)
        if not _is_whole(device, unfinished):
            raise DeviceError(f"{device.host}: the copy differs from what was sent", remedy="check its disk, run again")
        move = f"rm -rf -- {quote(folder)} && mv -- {quote(unfinished)} {quote(folder)}"
        answer = device.run(move, timeout_s=PROBE_S)
        if answer.code:
            raise device.failed("moving the copy", answer)
    except DuskfuseError:
        device.run(f"rm -rf -- {quote(unfinished)}", timeout_s=PROBE_S)
        raise


def _is_whole(device: SshDevice, folder: str) -> bool:
    check = f"cd {quote(folder)} 2>/dev/null && sha256sum -c --status {SUMS} 2>/dev/null"
    return device.run(check, timeout_s=COPY_S).code == 0


def _build(device: SshDevice, files: Mapping[str, bytes], folder: str) -> None:
    if "build.sh" not in files:
        raise InputError(
            "there is no build.sh to build engines with",
            rule="it is part of a bundle",
            remedy="give a bundle written by `duskfuse export`, or leave --build away",
        )
    say(f"{device.host}: building engines (minutes on a small module)")
    started = time.monotonic()
    answer = device.run(
        f"cd {quote(folder)} && sh build.sh >&2", timeout_s=BUILD_S, on_line=lambda line: say(f"  {line}")
    )
    if answer.code:
        raise device.failed("building engines", answer)
    say(f"{device.host}: engines built in {time.monotonic() - started:.0f} s")


def _run(device: SshDevice, folder: str, networks: int, options: DeviceOptions) -> str:
    """Run the benchmark on the device and bring its document home."""
    result = f"{REMOTE_HOME}/run-{uuid.uuid4().hex[:12]}"
    arguments = ["bench", ".", "--seconds", f"{options.seconds:g}", "--out", "OUT"]
    arguments += ["--size", options.size] if options.size else []
    arguments += ["--threads", str(options.threads)] if options.threads else []
    arguments += ["--trtexec"] if options.trtexec else []
    said = " ".join(quote(f"{result}/result.json") if word == "OUT" else quote(word) for word in arguments)
    # -B: nothing is written among the checked files
    script = f"umask 077; mkdir -p {quote(result)} && cd {quote(folder)} && python3 -B -m {RUNTIME_FOLDER} {said}"
    per_network = 4 * options.seconds + 120 + (BUILD_S if options.trtexec else 0)
    try:
        answer = device.run(script, timeout_s=60 + networks * per_network, on_line=lambda line: say(f"  {line}"))
        fetched = device.run(f"cat {quote(f'{result}/result.json')} 2>/dev/null", timeout_s=COPY_S)
    finally:
        device.run(f"rm -rf -- {quote(result)}", timeout_s=PROBE_S)
    if fetched.code:
        raise device.failed("measuring", answer)
    return fetched.out


def _parsed(device: SshDevice, text: str) -> dict[str, object]:
    try:
        document = json.loads(text)
    except ValueError:
        raise DeviceError(f"{device.host}: the result is no JSON: {text[:80]!r}") from None
    if not isinstance(document, dict):
        raise DeviceError(f"{device.host}: the result is no document: {text[:80]!r}")
    return document


def _digest(files: Mapping[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name, data in sorted(files.items()):
        digest.update(f"{hashlib.sha256(data).hexdigest()}  {name}\n".encode())
    return digest.hexdigest()


def _files_of(model: Path, scratch: Path) -> dict[str, bytes]:
    """What is sent for a bundle, an archive of one or a single file: never engines, which belong to one device."""
    if model.is_file() and model.suffix == ".onnx":
        files = {model.name: model.read_bytes()}
    elif model.is_file() and tarfile.is_tarfile(model):
        files = _from_archive(model)
    elif model.is_dir():
        names = sorted(path for path in model.rglob("*") if path.is_file() and not path.is_symlink())
        kept = {path: path.relative_to(model) for path in names}
        files = {
            relative.as_posix(): path.read_bytes()
            for path, relative in kept.items()
            if not relative.name.endswith(_ENGINES) and not set(relative.parts) & set(_LOCAL_NAMES)
        }
    else:
        raise InputError(
            f"{model} cannot be sent to a device",
            rule="a bundle's folder or archive, or an .onnx file",
            remedy=f"write one with `duskfuse export {model} --out bundle`",
        )
    if not any(name.endswith(".onnx") for name in files):
        raise InputError(f"{model} holds no .onnx file", remedy="name a bundle written by `duskfuse export`")
    if (whole := sum(map(len, files.values()))) > LARGEST_BYTES:
        raise InputError(f"{model} has {whole / 1e9:.1f} GB", rule=f"at most {LARGEST_BYTES / 1e9:.0f} GB are sent")
    if not any(name.startswith(f"{RUNTIME_FOLDER}/") for name in files):
        files |= {f"{RUNTIME_FOLDER}/{path.name}": path.read_bytes() for path in sorted(_RUNTIME.glob("*.py"))}
    return files


def _from_archive(path: Path) -> dict[str, bytes]:
    """The plain files of an archive, without the one folder that all lie in."""
    with tarfile.open(path) as tar:
        members = [member for member in tar.getmembers() if member.isfile()]
        if sum(member.size for member in members) > LARGEST_BYTES:
            raise InputError(f"{path} is larger than {LARGEST_BYTES / 1e9:.0f} GB when unpacked")
        names = [PurePosixPath(member.name) for member in members]
        if any(name.is_absolute() or ".." in name.parts for name in names):
            raise InputError(f"{path} names files outside itself", rule="an archive of a bundle holds one folder")
        top = len({name.parts[0] for name in names}) == 1 and all(len(name.parts) > 1 for name in names)
        found = {}
        for member, name in zip(members, names, strict=True):
            stream = tar.extractfile(member)
            if stream is not None and not name.name.endswith(_ENGINES):
                found[PurePosixPath(*name.parts[1:]).as_posix() if top else name.as_posix()] = stream.read()
    return found
