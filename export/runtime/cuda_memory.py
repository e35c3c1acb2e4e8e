"""Memory, streams and graphs of the CUDA runtime through ctypes: a Jetson needs no further Python package for them.

Only functions whose signature is the same in CUDA 11.4 (JetPack 5.1) to 13 are used; so ``cudaGraphInstantiate``, whose
arguments changed in CUDA 12, is left for ``cudaGraphInstantiateWithFlags``, and of ``cudaDeviceProp``, whose layout
changed, only the name at its start is read. On an integrated GPU (every Jetson) buffers are mapped: processor and GPU
use the same memory and nothing is copied. On other GPUs they are pinned on the host and copied.
"""

from __future__ import annotations

import ctypes
import ctypes.util
from typing import TYPE_CHECKING, Any, Callable, Dict, List, NamedTuple, Optional, Tuple

import numpy as np

from .errors import DeviceError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LIBRARIES = ("libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0", "libcudart.so")
_PROPERTIES_BYTES = 16384  # more than any release's cudaDeviceProp
_NAME_BYTES = 256
_MULTIPROCESSORS, _INTEGRATED, _MAJOR, _MINOR = 16, 18, 75, 76  # cudaDeviceAttr
_MAPPED = 2  # cudaHostAllocMapped
_TO_DEVICE, _TO_HOST = 1, 2  # cudaMemcpyKind
_NON_BLOCKING = 1  # cudaStreamNonBlocking
_THREAD_LOCAL = 1  # cudaStreamCaptureModeThreadLocal: other threads go on calling CUDA

_INT_OUT, _POINTER_OUT, _SIZE_OUT = (ctypes.POINTER(kind) for kind in (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t))
SIGNATURES: Dict[str, Tuple[Any, ...]] = {
    "cudaGetDeviceCount": (_INT_OUT,),
    "cudaGetDevice": (_INT_OUT,),
    "cudaGetDeviceProperties": (ctypes.c_void_p, ctypes.c_int),
    "cudaDeviceGetAttribute": (_INT_OUT, ctypes.c_int, ctypes.c_int),
    "cudaMemGetInfo": (_SIZE_OUT, _SIZE_OUT),
    "cudaHostAlloc": (_POINTER_OUT, ctypes.c_size_t, ctypes.c_uint),
    "cudaHostGetDevicePointer": (_POINTER_OUT, ctypes.c_void_p, ctypes.c_uint),
    "cudaFreeHost": (ctypes.c_void_p,),
    "cudaMalloc": (_POINTER_OUT, ctypes.c_size_t),
    "cudaFree": (ctypes.c_void_p,),
    "cudaMemcpyAsync": (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p),
    "cudaStreamCreateWithFlags": (_POINTER_OUT, ctypes.c_uint),
    "cudaStreamSynchronize": (ctypes.c_void_p,),
    "cudaStreamDestroy": (ctypes.c_void_p,),
    "cudaStreamBeginCapture": (ctypes.c_void_p, ctypes.c_int),
    "cudaStreamEndCapture": (ctypes.c_void_p, _POINTER_OUT),
    "cudaGraphInstantiateWithFlags": (_POINTER_OUT, ctypes.c_void_p, ctypes.c_ulonglong),
    "cudaGraphLaunch": (ctypes.c_void_p, ctypes.c_void_p),
    "cudaGraphDestroy": (ctypes.c_void_p,),
    "cudaGraphExecDestroy": (ctypes.c_void_p,),
    "cudaEventCreate": (_POINTER_OUT,),
    "cudaEventRecord": (ctypes.c_void_p, ctypes.c_void_p),
    "cudaEventElapsedTime": (ctypes.POINTER(ctypes.c_float), ctypes.c_void_p, ctypes.c_void_p),
    "cudaEventDestroy": (ctypes.c_void_p,),
    "cudaGetLastError": (),
}


class CudaError(DeviceError):
    """CUDA is missing or refused a call."""


class Device(NamedTuple):
    """The GPU in use."""

    name: str
    compute_capability: str
    """``major.minor``, 8.7 on Orin."""
    multiprocessors: int
    """What tells the Orin modules apart: the name and compute capability of all of them are the same."""
    integrated: bool
    """It uses the memory of the processor."""
    memory_mib: int


class Cuda:
    """The CUDA runtime and the GPU it uses; ``library`` replaces the installed ``libcudart``.

    Raises CudaError where there is no CUDA or no GPU.
    """

    def __init__(self, library: Any = None) -> None:
        self._library = _installed_library() if library is None else _declared(library)
        self.device = self._device()

    def call(self, function: str, *arguments: Any) -> None:
        """Call a function of ``SIGNATURES``; raises CudaError with what CUDA says where it fails."""
        code = getattr(self._library, function)(*arguments)
        if code:
            raise CudaError(f"{function} failed: {_error_text(self._library, code)}")

    def forget_error(self) -> None:
        """Reset the error that CUDA remembers after a call that was allowed to fail."""
        self._library.cudaGetLastError()

    def pointer(self, function: str, *arguments: Any) -> int:
        """Call a function that writes a handle to its first argument, and return the handle."""
        made = ctypes.c_void_p()
        self.call(function, ctypes.byref(made), *arguments)
        if not made.value:
            raise CudaError(f"{function} gave nothing")
        return made.value

    def _device(self) -> Device:
        index = self._number("cudaGetDevice")
        properties = ctypes.create_string_buffer(_PROPERTIES_BYTES)
        self.call("cudaGetDeviceProperties", ctypes.cast(properties, ctypes.c_void_p), index)
        name = properties.raw[:_NAME_BYTES].split(b"\0")[0].decode(errors="replace")
        major, minor, processors, integrated = (
            self._number("cudaDeviceGetAttribute", attribute, index)
            for attribute in (_MAJOR, _MINOR, _MULTIPROCESSORS, _INTEGRATED)
        )
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self.call("cudaMemGetInfo", ctypes.byref(free), ctypes.byref(total))
        return Device(name, f"{major}.{minor}", processors, bool(integrated), total.value // 2**20)

    def _number(self, function: str, *arguments: int) -> int:
        value = ctypes.c_int()
        self.call(function, ctypes.byref(value), *arguments)
        return value.value


class Stream:
    """A queue of work on the GPU, with marks in time."""

    def __init__(self, cuda: Cuda, marks: int) -> None:
        self._cuda = cuda
        self.handle = cuda.pointer("cudaStreamCreateWithFlags", _NON_BLOCKING)
        self._events = [cuda.pointer("cudaEventCreate") for _ in range(marks)]

    def mark(self, index: int) -> None:
        """Note the time at which the work queued so far is done."""
        self._cuda.call("cudaEventRecord", self._events[index], self.handle)

    def wait(self) -> None:
        """Wait until all queued work is done."""
        self._cuda.call("cudaStreamSynchronize", self.handle)

    def milliseconds(self, first: int, last: int) -> float:
        """Time between two marks that have been reached."""
        elapsed = ctypes.c_float()
        self._cuda.call("cudaEventElapsedTime", ctypes.byref(elapsed), self._events[first], self._events[last])
        return elapsed.value

    def close(self) -> None:
        """Give the stream and its marks back."""
        for event in self._events:
            self._cuda.call("cudaEventDestroy", event)
        self._cuda.call("cudaStreamDestroy", self.handle)


class Buffer:
    """``count`` float32 numbers that the processor (``host``) and the GPU (at address ``device``) both reach."""

    def __init__(self, cuda: Cuda, count: int) -> None:
        self._cuda, self._shared = cuda, cuda.device.integrated
        size = count * np.dtype(np.float32).itemsize
        self._pinned = cuda.pointer("cudaHostAlloc", size, _MAPPED if self._shared else 0)
        try:
            self.device = (
                cuda.pointer("cudaHostGetDevicePointer", self._pinned, 0)
                if self._shared
                else cuda.pointer("cudaMalloc", size)
            )
        except CudaError:
            cuda.call("cudaFreeHost", self._pinned)
            raise
        memory = (ctypes.c_float * count).from_address(self._pinned)
        self.host: NDArray[np.float32] = np.ctypeslib.as_array(memory)

    def upload(self, count: int, stream: Stream) -> None:
        """Queue the copy of the first ``count`` numbers to the GPU; nothing where memory is shared."""
        if not self._shared:
            self._copy(self.device, self._pinned, count, _TO_DEVICE, stream)

    def download(self, count: int, stream: Stream) -> None:
        """Queue the copy of the first ``count`` numbers to the processor; nothing where memory is shared."""
        if not self._shared:
            self._copy(self._pinned, self.device, count, _TO_HOST, stream)

    def _copy(self, to: int, source: int, count: int, kind: int, stream: Stream) -> None:
        self._cuda.call("cudaMemcpyAsync", to, source, count * self.host.itemsize, kind, stream.handle)

    def close(self) -> None:
        """Give the memory back; ``host`` must not be used afterwards."""
        if not self._shared:
            self._cuda.call("cudaFree", self.device)
        self._cuda.call("cudaFreeHost", self._pinned)


class Graph:
    """Work that was queued once and can be started again with a single call."""

    def __init__(self, cuda: Cuda, executable: int) -> None:
        self._cuda, self._executable = cuda, executable

    @classmethod
    def recorded(cls, cuda: Cuda, stream: Stream, queue: Callable[[], bool]) -> Optional[Graph]:
        """Record what ``queue`` puts on the stream; None where that cannot be recorded, or ``queue`` returns False."""
        graph = ctypes.c_void_p()
        try:
            cuda.call("cudaStreamBeginCapture", stream.handle, _THREAD_LOCAL)
            try:
                queued = queue()
            finally:
                cuda.call("cudaStreamEndCapture", stream.handle, ctypes.byref(graph))
            if not queued or not graph.value:
                return None
            return cls(cuda, cuda.pointer("cudaGraphInstantiateWithFlags", graph, 0))
        except CudaError:
            cuda.forget_error()
            return None
        finally:
            if graph.value:
                cuda.call("cudaGraphDestroy", graph)

    def launch(self, stream: Stream) -> None:
        """Queue the recorded work."""
        self._cuda.call("cudaGraphLaunch", self._executable, stream.handle)

    def close(self) -> None:
        """Give the graph back."""
        self._cuda.call("cudaGraphExecDestroy", self._executable)


def _installed_library() -> Any:
    """The first installed CUDA runtime that finds a GPU: a newer one than the driver allows finds none."""
    tried: List[str] = []
    found = ctypes.util.find_library("cudart")
    for name in (*_LIBRARIES, *([found] if found else [])):
        try:
            library = _declared(ctypes.CDLL(name))
        except (OSError, AttributeError) as error:
            tried.append(f"{name}: {error}")
            continue
        count = ctypes.c_int()
        code = library.cudaGetDeviceCount(ctypes.byref(count))
        if not code and count.value:
            return library
        tried.append(f"{name}: {_error_text(library, code) if code else 'no GPU'}")
    raise CudaError(
        f"no CUDA runtime with a GPU ({'; '.join(tried)})",
        "engines are built and run on NVIDIA GPUs",
        "on a Jetson: sudo apt install nvidia-jetpack; a container is started with --runtime nvidia",
    )


def _declared(library: Any) -> Any:
    for name, arguments in SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, ctypes.c_int
    library.cudaGetErrorString.argtypes, library.cudaGetErrorString.restype = (ctypes.c_int,), ctypes.c_char_p
    return library


def _error_text(library: Any, code: int) -> str:
    text = library.cudaGetErrorString(code) or b"unknown"
    return f"{bytes(text).decode(errors='replace')} (CUDA error {code})"
