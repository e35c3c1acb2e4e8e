"""Run an engine: the network on the device, through TensorRT 8.5 to 11 alike.

Named tensors (``num_io_tensors``, ``set_tensor_address``, ``execute_async_v3``) are in all of these releases, so there
is one way through. Memory is taken once. After a first run the work is recorded as a CUDA graph, so that every further
picture costs one launch instead of one per layer; where recording is not possible it is queued layer by layer.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, NamedTuple, Optional, Tuple

import numpy as np

from .cuda_memory import Buffer, Cuda, Graph, Stream
from .engine_record import EngineRecord, ForeignEngineError, check_record, read_record, sha256
from .errors import DeviceError, DeviceInputError
from .network import COLOUR_NAMES, LUMINANCE_NAMES, TENSORRT, check_planes
from .onnx_header import parse_header
from .tensorrt_module import import_tensorrt, log_keeper

if TYPE_CHECKING:
    from numpy.typing import NDArray

Size = Tuple[int, int]
Shape = Tuple[int, ...]

_START, _UPLOADED, _COMPUTED, _DOWNLOADED = range(4)  # marks in time


class RunTiming(NamedTuple):
    """Where the time of one run went, in milliseconds."""

    upload: float
    """Planes into the GPU's memory."""
    compute: float
    """The network, measured on the GPU."""
    download: float
    """The result back, where memory is not shared."""


class EngineNetwork:
    """An engine of this device, a `Network`: float32 planes in [0, 1] in, fused planes out; one thread at a time.

    ``onnx_path`` is the file it was built from, by default ``NAME.onnx`` beside ``NAME.engine``; ``cuda`` is the GPU,
    by default the one CUDA names. Before TensorRT sees the engine, its record is compared with both files, TensorRT and
    the GPU. Raises ForeignEngineError where something differs, DeviceError where TensorRT or CUDA fail.
    """

    backend = TENSORRT

    def __init__(self, engine_path: Path, onnx_path: Optional[Path] = None, *, cuda: Optional[Cuda] = None) -> None:
        trt = import_tensorrt()
        self._cuda = cuda or Cuda()
        self.record, onnx, serialized = _verified(trt, self._cuda, engine_path, onnx_path)
        self.metadata: Dict[str, str] = parse_header(onnx, self.record.onnx).metadata
        self._log = log_keeper(trt)
        self._runtime, self._engine = _deserialised(trt, self._log, self.record, serialized)
        self._names = _contract(trt, self._engine)
        self.rgb = self._names == COLOUR_NAMES
        self._channels = {name: 3 if self.rgb and name != "ir" else 1 for name in self._names}
        height, width = tuple(self._engine.get_tensor_shape("ir"))[2:]
        self.size: Optional[Size] = None if -1 in (height, width) else (height, width)
        self.timing: Optional[RunTiming] = None
        """Of the last run."""
        self._prepared: Optional[Size] = None
        self._graph: Optional[Graph] = None
        self._context: Any = self._new_context()
        self._stream = Stream(self._cuda, marks=4)
        self._buffers = {name: Buffer(self._cuda, self._count(name, self._largest_size())) for name in self._names}
        for name, buffer in self._buffers.items():
            if not self._context.set_tensor_address(name, buffer.device):
                raise DeviceError(f"TensorRT refuses the memory for {name}: {'; '.join(self._log.errors)}")
        if self.size is not None:
            self._prepare(self.size)

    @property
    def uses_graph(self) -> bool:
        """Whether pictures of the last size are run by a recorded CUDA graph."""
        return self._graph is not None

    def run(self, ir: NDArray[np.float32], vis: NDArray[np.float32]) -> NDArray[np.float32]:
        """Fuse ``ir`` ``[H, W]`` and ``vis`` ``[H, W]`` (luminance) into ``[H, W]``, float32 in [0, 1].

        Colour networks take and give ``[3, H, W]`` RGB. The result is the network's own memory: the next run overwrites
        it, and `close` ends it. Raises DeviceInputError for another shape or a size the engine is not for.
        """
        check_planes(self, ir, vis)
        size: Size = (ir.shape[0], ir.shape[1])
        if size != self._prepared:
            self._prepare(size)
        begun = time.perf_counter()
        np.copyto(self._view(self._names[0], ir.shape), ir)
        np.copyto(self._view(self._names[1], vis.shape), vis)
        copied = (time.perf_counter() - begun) * 1000
        stream = self._stream
        stream.mark(_START)
        for name in self._names[:2]:
            self._buffers[name].upload(self._count(name, size), stream)
        stream.mark(_UPLOADED)
        if self._graph is not None:
            self._graph.launch(stream)
        else:
            self._execute()
        stream.mark(_COMPUTED)
        self._buffers[self._names[2]].download(self._count(self._names[2], size), stream)
        stream.mark(_DOWNLOADED)
        stream.wait()
        upload, compute, download = (stream.milliseconds(mark, mark + 1) for mark in range(3))
        self.timing = RunTiming(copied + upload, compute, download)
        return self._view(self._names[2], (3, *size) if self.rgb else size)

    def close(self) -> None:
        """Give memory and engine back."""
        self._forget_graph()
        self._stream.close()
        for buffer in self._buffers.values():
            buffer.close()
        self._buffers.clear()
        self._context = self._engine = self._runtime = None

    def __enter__(self) -> EngineNetwork:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _new_context(self) -> Any:
        context = self._engine.create_execution_context()
        if context is None:
            raise DeviceError(f"TensorRT gave no memory for the engine: {'; '.join(self._log.errors)}", remedy=_MEMORY)
        return context

    def _prepare(self, size: Size) -> None:
        """Set the size, run once, which does what TensorRT puts off until then, and record the work."""
        self._forget_graph()
        self._prepared = None
        if self.size is None:
            for name in self._names[:2]:
                shape = (1, self._channels[name], *size)
                if not self._fits(name, shape) or not self._context.set_input_shape(name, shape):
                    raise self._wrong_size(size)
        elif size != self.size:
            raise self._wrong_size(size)
        self._execute()
        self._stream.wait()
        self._graph = Graph.recorded(self._cuda, self._stream, self._queue)
        self._prepared = size

    def _execute(self) -> None:
        self._log.errors.clear()
        if not self._queue():
            raise DeviceError(f"TensorRT could not run the engine: {'; '.join(self._log.errors)}", remedy=_MEMORY)

    def _queue(self) -> bool:
        return bool(self._context.execute_async_v3(self._stream.handle))

    def _forget_graph(self) -> None:
        if self._graph is not None:
            self._graph.close()
            self._graph = None

    def _largest_size(self) -> Size:
        if self.size is not None:
            return self.size
        height, width = tuple(self._engine.get_tensor_profile_shape("ir", 0)[2])[2:]
        return height, width

    def _fits(self, name: str, shape: Shape) -> bool:
        least, _, most = self._engine.get_tensor_profile_shape(name, 0)
        return all(least[axis] <= side <= most[axis] for axis, side in enumerate(shape))

    def _wrong_size(self, size: Size) -> DeviceInputError:
        if self.size is not None:
            want = f"this engine takes (height, width) {self.size}"
        else:
            least, _, most = (tuple(dims)[2:] for dims in self._engine.get_tensor_profile_shape("ir", 0))
            want = f"this engine takes (height, width) from {least} to {most}"
        return DeviceInputError(f"pictures of (height, width) {size}", want, "build an engine for the camera's size")

    def _count(self, name: str, size: Size) -> int:
        return self._channels[name] * size[0] * size[1]

    def _view(self, name: str, shape: Shape) -> NDArray[np.float32]:
        view: NDArray[np.float32] = self._buffers[name].host[: int(np.prod(shape))].reshape(shape)
        return view


_MEMORY = "stop other programs: processor and GPU share the memory on a Jetson"


def _verified(trt: Any, cuda: Cuda, engine_path: Path, onnx_path: Optional[Path]) -> Tuple[EngineRecord, bytes, bytes]:
    """The record, the ONNX file and the engine: the very bytes that were checked, not a later state of the files."""
    record = read_record(engine_path)
    onnx_path = onnx_path or engine_path.with_suffix(".onnx")
    try:
        onnx, serialized = onnx_path.read_bytes(), engine_path.read_bytes()
    except OSError as error:
        raise ForeignEngineError(
            f"{error.filename}: {error.strerror}",
            "an engine is checked against the file it was built from",
            "copy the .onnx file beside the engine, or build again",
        ) from error
    check_record(
        record,
        engine_path,
        onnx_sha256=sha256(onnx),
        engine_sha256=sha256(serialized),
        tensorrt=trt.__version__,
        gpu=cuda.device.name,
        compute_capability=cuda.device.compute_capability,
        multiprocessors=cuda.device.multiprocessors,
    )
    return record, onnx, serialized


def _deserialised(trt: Any, log: Any, record: EngineRecord, serialized: bytes) -> Tuple[Any, Any]:
    """The runtime and the engine, in this order: the engine needs the runtime as long as it lives."""
    runtime = trt.Runtime(log)
    if hasattr(runtime, "engine_host_code_allowed"):
        runtime.engine_host_code_allowed = False  # its default; engines of this project never hold host code
    if record.dla_core is not None:
        runtime.DLA_core = record.dla_core
    engine = runtime.deserialize_cuda_engine(serialized)
    if engine is None:
        raise DeviceError(
            f"TensorRT cannot load the engine: {'; '.join(log.errors) or 'it gave no reason'}", remedy=_MEMORY
        )
    return runtime, engine


def _contract(trt: Any, engine: Any) -> Tuple[str, str, str]:
    """The names of infrared, visible and fused picture."""
    names: List[str] = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
    floats = all(engine.get_tensor_dtype(name) == trt.DataType.FLOAT for name in names)
    for ir, vis, fused in (LUMINANCE_NAMES, COLOUR_NAMES):
        if floats and sorted(inputs) == sorted((ir, vis)) and sorted(names) == sorted((ir, vis, fused)):
            return ir, vis, fused
    raise DeviceInputError(
        f"the engine's tensors are {', '.join(names)}{'' if floats else ', not all of float32'}",
        "want ir and vis_y, giving fused_y, or ir and vis, giving fused_rgb, all of float32",
        "build it from a file of `duskfuse export`",
    )
