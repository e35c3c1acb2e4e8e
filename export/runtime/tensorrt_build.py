"""Build a TensorRT engine from an exported file, on the device that will run it.

One builder for TensorRT 8.5 (JetPack 5.1) to 11: what a release can do is asked of its Python module, never read from
its version number. How precision reaches the engine is the main difference:

- The file carries its precision (fp32, fp16, or int8 as Q/DQ pairs), so a **strongly typed** network needs nothing
  else. TensorRT has this mode since 10.0, NVIDIA calls it complete from 10.12 on, and 11 knows no other.
- Older releases choose types layer by layer and want permission: ``FP16`` for a half precision file, ``INT8`` and
  ``FP16`` for a Q/DQ file (with ``INT8`` alone all other layers would run in float32).

Whether strong typing is complete is no feature a release names. Building into a stream came with 10.13, right after the
release that declared the flags superseded (10.12), so that ability stands for it. Q/DQ files keep the flags as long as
there are any: strongly typed, their float layers would stay float32.
"""

from __future__ import annotations

import argparse
import re
import sys
import threading
import time
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

from .cuda_memory import Cuda, Device
from .engine_record import EngineRecord, l4t_release, replace_file, sha256, write_record
from .errors import DeviceError, DeviceInputError
from .onnx_file import read_onnx
from .onnx_header import OnnxHeader, parse_header
from .tensorrt_module import Progress, import_tensorrt, log_keeper, progress_monitor

Size = Tuple[int, int]

WEAK_FLAGS: Dict[str, Sequence[str]] = {"fp32": (), "fp16": ("FP16",), "int8": ("INT8", "FP16")}
"""Builder flags by the precision of the file, where a release still has them."""
PROFILE_KEYS = ("profile_min", "profile_opt", "profile_max")
"""Metadata of a file for any size: the smallest, usual and largest it is for, as ``WIDTHxHEIGHT``."""
STILL_BUILDING_S = 15.0
"""Seconds between signs of life while TensorRT itself says nothing."""

_MIB = 2**20
_OUT_OF_MEMORY = re.compile(r"out ?of ?memory|insufficient memory|bad_alloc|cuda.{0,20}(error|failure)\D{0,3}2\b", re.I)


class SizeRange(NamedTuple):
    """The (height, width) that an engine for several sizes takes; it is fastest at ``usual``."""

    smallest: Size
    usual: Size
    largest: Size


class Plan(NamedTuple):
    """How one file is built by one release, as names of flags."""

    network_flags: List[str]
    builder_flags: List[str]


def build_engine(
    onnx_path: Path,
    engine_path: Optional[Path] = None,
    *,
    timing_cache: Optional[Path] = None,
    workspace_mib: Optional[int] = None,
    memory_mib: Optional[int] = None,
    sizes: Optional[SizeRange] = None,
    dla_core: Optional[int] = None,
    progress: Optional[Progress] = None,
    device: Optional[Device] = None,
) -> EngineRecord:
    """Build the engine of an exported file and write it with its record; nothing is left behind by a failure.

    Args:
        onnx_path: file of ``duskfuse export``; its metadata says its precision.
        engine_path: by default the file's name with ``.engine`` for ``.onnx``.
        timing_cache: folder for what TensorRT learns about this GPU, by default ``timing-cache`` beside the engine; a
            second build takes a fraction of the time of the first.
        workspace_mib: scratch memory of one layer, by default a quarter of the memory and at most 1024.
        memory_mib: memory of all that is tried while building (TensorRT 8.6 or newer); for modules with 4 GB.
        sizes: for a file that takes any size; by default the range that ``duskfuse export --dynamic`` wrote into it.
        dla_core: experiment: put what it can onto this deep learning accelerator, the rest onto the GPU.
        progress: is given one line at a time, with the seconds since the start.
        device: the GPU, by default the one CUDA names.

    Raises:
        DeviceInputError: the file or an option is wrong, or the parser refuses the network.
        DeviceError: no TensorRT, no GPU, or the build failed.
    """
    trt, device = import_tensorrt(), device or Cuda().device
    say = _with_time(progress or _to_stderr)
    started = time.monotonic()
    engine_path = engine_path or onnx_path.with_suffix(".engine")
    content = read_onnx(onnx_path)
    header = parse_header(content, onnx_path.name)
    sizes = sizes or _own_sizes(header, onnx_path.name)
    precision = _checked_precision(header, onnx_path.name, sizes, dla_core)
    plan = chosen_flags(trt, precision, dla=dla_core is not None)
    say(f"TensorRT {trt.__version__} on {device.name}; {onnx_path.name}, {precision}, flags: {_flag_text(plan)}")
    build = _Build(trt, say)
    network = build.parse(content, header, onnx_path.name, plan)
    config = build.config(plan)
    _limit_memory(trt, config, device, workspace_mib, memory_mib, say)
    _add_profile(build.builder, config, header, sizes)
    _use_dla(trt, build.builder, config, dla_core, say)
    cache = _TimingCache(timing_cache or engine_path.parent / "timing-cache", trt.__version__, device)
    cache.load(config, say)
    engine = build.run(network, config)
    cache.save(config)
    record = EngineRecord(
        onnx=onnx_path.name,
        onnx_sha256=sha256(content),
        engine_sha256=sha256(engine),
        tensorrt=trt.__version__,
        gpu=device.name,
        compute_capability=device.compute_capability,
        multiprocessors=device.multiprocessors,
        l4t=l4t_release(),
        precision=precision,
        network_flags=plan.network_flags,
        builder_flags=plan.builder_flags,
        sizes=None if sizes is None else [f"{width}x{height}" for height, width in sizes],
        dla_core=dla_core,
        seconds=round(time.monotonic() - started, 1),
    )
    replace_file(engine_path, engine)
    write_record(engine_path, record)
    say(f"wrote {engine_path} ({len(engine) / _MIB:.1f} MiB) and its record")
    return record


def chosen_flags(trt: Any, precision: str, *, dla: bool = False) -> Plan:
    """Flags for a file of a precision, by asking the release what it has; see the head of this module."""
    creation, flags = trt.NetworkDefinitionCreationFlag, trt.BuilderFlag
    network = ["EXPLICIT_BATCH"] if hasattr(creation, "EXPLICIT_BATCH") else []
    builder = ["GPU_FALLBACK"] if dla else []
    if hasattr(flags, "FP16"):  # else the release knows strong typing only, and needs no word for it
        complete = hasattr(creation, "STRONGLY_TYPED") and hasattr(trt.Builder, "build_serialized_network_to_stream")
        if complete and precision != "int8":
            network.append("STRONGLY_TYPED")
        else:
            builder += WEAK_FLAGS[precision]
    return Plan(network, builder)


class _Build:
    """One run of TensorRT's builder; keeps what it says, and the objects that must outlive each other."""

    def __init__(self, trt: Any, say: Progress) -> None:
        self._trt, self._say = trt, say
        self._log = log_keeper(trt)
        self.builder = trt.Builder(self._log)
        self._monitor: Any = None

    def parse(self, content: bytes, header: OnnxHeader, name: str, plan: Plan) -> Any:
        """The network of a file; raises DeviceInputError with all that the parser says."""
        creation = self._trt.NetworkDefinitionCreationFlag
        bits = sum(1 << int(getattr(creation, flag)) for flag in plan.network_flags)
        network = self.builder.create_network(bits)
        parser = self._trt.OnnxParser(network, self._log)
        self._say("reading the network")
        if parser.parse(content):
            return network
        errors = [_parser_error(parser.get_error(index), header) for index in range(parser.num_errors)]
        raise DeviceInputError(
            f"TensorRT {self._trt.__version__} cannot read {name}: " + "; ".join(errors or self._log.errors),
            "a file may only hold operators that this release knows",
            "write it with `duskfuse export` of the same duskfuse release, or update JetPack",
        )

    def config(self, plan: Plan) -> Any:
        """A configuration with the flags of the plan, that reports progress where the release can."""
        config = self.builder.create_builder_config()
        for flag in plan.builder_flags:
            config.set_flag(getattr(self._trt.BuilderFlag, flag))
        if hasattr(self._trt, "IProgressMonitor"):
            self._monitor = progress_monitor(self._trt, self._say)
            config.progress_monitor = self._monitor
        return config

    def run(self, network: Any, config: Any) -> bytes:
        """Build; raises DeviceError where TensorRT gives no engine, KeyboardInterrupt where the user stopped it."""
        self._say("building, which takes minutes the first time")
        with _SignsOfLife(self._say, quiet=self._monitor is not None):
            built = self.builder.build_serialized_network(network, config)
        if self._monitor is not None and self._monitor.interrupted:
            raise KeyboardInterrupt
        if built is None:
            raise _build_failure(self._log.errors)
        return bytes(built)


def _own_sizes(header: OnnxHeader, name: str) -> Optional[SizeRange]:
    """The range of sizes that the metadata of a file names, None where it names none."""
    texts = [header.metadata[key] for key in PROFILE_KEYS if key in header.metadata]
    if len(texts) < len(PROFILE_KEYS):
        return None
    try:
        return _sizes(",".join(texts))
    except argparse.ArgumentTypeError as error:
        raise DeviceInputError(f"{name} names the sizes {error}", remedy="give --sizes") from None


def _checked_precision(header: OnnxHeader, name: str, sizes: Optional[SizeRange], dla_core: Optional[int]) -> str:
    """The precision that a file names; raises DeviceInputError for none, and for options that do not fit the file."""
    precision = header.metadata.get("precision", "")
    if precision not in WEAK_FLAGS:
        raise DeviceInputError(
            f"{name} names the precision {precision!r}",
            f"the metadata of a file says one of {', '.join(WEAK_FLAGS)}",
            "write it with `duskfuse export`",
        )
    free = any(None in value.shape for value in header.inputs)
    if free and sizes is None:
        raise DeviceInputError(
            f"{name} takes any size",
            "an engine needs the sizes it is for",
            "export with --size of the camera (fastest), or give --sizes SMALLEST,USUAL,LARGEST",
        )
    if sizes is not None:
        _check_sizes(name, sizes, free)
    if dla_core is not None and (precision != "fp16" or free):
        raise DeviceInputError(
            f"{name} ({precision}{', any size' if free else ''}) on a DLA",
            "a DLA is given half precision and one size",
            "export --precision fp16 --size WIDTHxHEIGHT",
        )
    return precision


def _check_sizes(name: str, sizes: SizeRange, free: bool) -> None:
    if not free:
        raise DeviceInputError(f"--sizes for {name}", "the file is for one size", "leave --sizes away")
    for least, most in ((sizes.smallest, sizes.usual), (sizes.usual, sizes.largest)):
        if least[0] > most[0] or least[1] > most[1]:
            raise DeviceInputError(f"sizes {sizes}", "from small to large: SMALLEST,USUAL,LARGEST")


def _limit_memory(
    trt: Any, config: Any, device: Device, workspace_mib: Optional[int], memory_mib: Optional[int], say: Progress
) -> None:
    workspace = workspace_mib or min(1024, device.memory_mib // 4)
    if memory_mib is not None:
        workspace = min(workspace, memory_mib)
        if hasattr(trt.MemoryPoolType, "TACTIC_DRAM"):
            config.set_memory_pool_limit(trt.MemoryPoolType.TACTIC_DRAM, memory_mib * _MIB)
        else:
            say("this TensorRT limits only the workspace, not all memory of the build")
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace * _MIB)


def _add_profile(builder: Any, config: Any, header: OnnxHeader, sizes: Optional[SizeRange]) -> None:
    if sizes is None:
        return
    profile = builder.create_optimization_profile()
    for value in header.inputs:
        shapes = [(1, value.shape[1], height, width) for height, width in sizes]
        profile.set_shape(value.name, *shapes)
    config.add_optimization_profile(profile)


def _use_dla(trt: Any, builder: Any, config: Any, core: Optional[int], say: Progress) -> None:
    if core is None:
        return
    if not 0 <= core < builder.num_DLA_cores:
        raise DeviceInputError(
            f"DLA core {core}",
            f"TensorRT {trt.__version__} sees {builder.num_DLA_cores} here",
            "leave --dla away: the GPU is what is supported",
        )
    say(f"experiment: DLA core {core}, with the GPU for what it cannot do")
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = core


class _TimingCache:
    """What this TensorRT has measured on this GPU; another one's would be wrong, so the file's name holds both."""

    def __init__(self, folder: Path, release: str, device: Device) -> None:
        gpu = re.sub(r"[^A-Za-z0-9]+", "-", device.name).strip("-")
        self._path = folder / f"{gpu}-sm{device.compute_capability}-{device.multiprocessors}-tensorrt{release}.cache"

    def load(self, config: Any, say: Progress) -> None:
        """Give the configuration the cache that is there, or an empty one."""
        content = self._path.read_bytes() if self._path.is_file() else b""
        for blob in (content, b"") if content else (b"",):
            cache = config.create_timing_cache(blob)
            if cache is not None and config.set_timing_cache(cache, False):
                if blob:
                    say(f"with the timings of {self._path.name}")
                return
            say(f"{self._path.name} is of another GPU or release, or damaged: starting anew")

    def save(self, config: Any) -> None:
        """Write what the build has added."""
        cache = config.get_timing_cache()
        if cache is not None:
            replace_file(self._path, bytes(cache.serialize()))


def _parser_error(error: Any, header: OnnxHeader) -> str:
    """All that a parser error says; up to 8.6 it knows the node's number only, and the file has its name."""
    index = error.node()
    name, operator = header.nodes[index] if 0 <= index < len(header.nodes) else ("", "")
    if hasattr(error, "node_name"):
        name, operator = error.node_name() or name, error.node_operator() or operator
    return f"node {index} {name!r} ({operator}): {error.desc()} [{error.file()}:{error.line()} {error.func()}]"


def _build_failure(errors: Sequence[str]) -> DeviceError:
    said = "; ".join(errors) or "it gave no reason"
    if any(_OUT_OF_MEMORY.search(error) for error in errors):
        return DeviceError(
            f"the memory did not suffice to build: {said}",
            "on a Jetson processor and GPU share the memory",
            "stop other programs and the desktop (sudo systemctl isolate multi-user.target), add swap, "
            "or give --workspace 256 --memory 1024",
        )
    return DeviceError(f"TensorRT built no engine: {said}", remedy="check that the file passes `duskfuse export` again")


class _SignsOfLife:
    """Say every few seconds that the build goes on, for releases that report no progress."""

    def __init__(self, say: Progress, *, quiet: bool) -> None:
        self._say, self._done = say, threading.Event()
        self._thread = None if quiet else threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._done.wait(STILL_BUILDING_S):
            self._say("still building")

    def __enter__(self) -> None:
        if self._thread is not None:
            self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        if self._thread is not None:
            self._thread.join()


def _with_time(progress: Progress) -> Progress:
    started = time.monotonic()
    return lambda text: progress(f"{time.monotonic() - started:6.1f} s  {text}")


def _to_stderr(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _flag_text(plan: Plan) -> str:
    return ", ".join([*plan.network_flags, *plan.builder_flags]) or "none"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``build``."""
    parser.add_argument("onnx", type=Path, help="exported .onnx file")
    parser.add_argument("--engine", type=Path, help="file to write; by default the .onnx file's name with .engine")
    parser.add_argument("--timing-cache", type=Path, metavar="FOLDER", help="what TensorRT learns about this GPU")
    parser.add_argument("--workspace", type=_positive, metavar="MIB", help="scratch memory of one layer")
    parser.add_argument("--memory", type=_positive, metavar="MIB", help="memory of the whole build (modules with 4 GB)")
    parser.add_argument(
        "--sizes",
        type=_sizes,
        metavar="WxH,WxH,WxH",
        help="smallest, usual, largest, of a file for any size; by default those it names itself",
    )
    parser.add_argument("--dla", type=int, metavar="CORE", help="experiment: use this deep learning accelerator")


def run(args: argparse.Namespace) -> int:
    """Do ``build``; return the exit code."""
    build_engine(
        args.onnx,
        args.engine,
        timing_cache=args.timing_cache,
        workspace_mib=args.workspace,
        memory_mib=args.memory,
        sizes=args.sizes,
        dla_core=args.dla,
    )
    return 0


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r}: a whole number of MiB, at least 1")
    return int(text)


def _sizes(text: str) -> SizeRange:
    found = re.fullmatch(r"(\d+)x(\d+),(\d+)x(\d+),(\d+)x(\d+)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r}: three sizes like 320x240,640x480,1280x1024")
    sides = [int(side) for side in found.groups()]
    smallest, usual, largest = ((sides[at + 1], sides[at]) for at in (0, 2, 4))
    return SizeRange(smallest, usual, largest)
