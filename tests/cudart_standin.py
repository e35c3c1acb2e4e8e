"""A CUDA runtime for machines without a GPU: real C function pointers over memory of this process.

It does what the real one does where it matters for correctness. Work on a stream waits until the stream is waited for;
device memory has addresses that the processor cannot use, and begins with NaN; copies check direction and bounds;
recorded work runs only when its graph is launched; what is not given back can be counted. Its clock is made up: a copy
takes 1 ms, the network 10 ms.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

COPY_MS, COMPUTE_MS = 1.0, 10.0
SUCCESS, INVALID_VALUE, OUT_OF_MEMORY, UNSUPPORTED_CAPTURE = 0, 1, 2, 900
_TEXTS = {INVALID_VALUE: b"invalid argument", OUT_OF_MEMORY: b"out of memory", UNSUPPORTED_CAPTURE: b"not capturable"}
_DEVICE_ADDRESSES = 1 << 56  # outside of what a process of 64 bits can use
_void, _int, _uint, _size = ctypes.c_void_p, ctypes.c_int, ctypes.c_uint, ctypes.c_size_t
_int_p, _void_pp, _size_p = (ctypes.POINTER(kind) for kind in (_int, _void, _size))

PROTOTYPES: dict[str, tuple[Any, ...]] = {
    "cudaGetDeviceCount": (_int_p,),
    "cudaGetDevice": (_int_p,),
    "cudaGetDeviceProperties": (_void, _int),
    "cudaDeviceGetAttribute": (_int_p, _int, _int),
    "cudaMemGetInfo": (_size_p, _size_p),
    "cudaHostAlloc": (_void_pp, _size, _uint),
    "cudaHostGetDevicePointer": (_void_pp, _void, _uint),
    "cudaFreeHost": (_void,),
    "cudaMalloc": (_void_pp, _size),
    "cudaFree": (_void,),
    "cudaMemcpyAsync": (_void, _void, _size, _int, _void),
    "cudaStreamCreateWithFlags": (_void_pp, _uint),
    "cudaStreamSynchronize": (_void,),
    "cudaStreamDestroy": (_void,),
    "cudaStreamBeginCapture": (_void, _int),
    "cudaStreamEndCapture": (_void, _void_pp),
    "cudaGraphInstantiateWithFlags": (_void_pp, _void, ctypes.c_ulonglong),
    "cudaGraphLaunch": (_void, _void),
    "cudaGraphDestroy": (_void,),
    "cudaGraphExecDestroy": (_void,),
    "cudaEventCreate": (_void_pp,),
    "cudaEventRecord": (_void, _void),
    "cudaEventElapsedTime": (ctypes.POINTER(ctypes.c_float), _void, _void),
    "cudaEventDestroy": (_void,),
    "cudaGetLastError": (),
}
"""As in ``cuda_runtime_api.h`` of CUDA 11.4 to 13."""

Work = Callable[[], None]


@dataclass
class _Stream:
    queue: list[Work] = field(default_factory=list)
    recording: list[Work] | None = None

    def put(self, work: Work) -> None:
        (self.queue if self.recording is None else self.recording).append(work)


@dataclass
class CudartStandIn:
    """The library; pass it as ``Cuda(library=...)``. ``calls`` counts, ``faults`` holds misuse that C would not see."""

    name: str = "Orin"
    capability: tuple[int, int] = (8, 7)
    multiprocessors: int = 8
    integrated: bool = True
    memory_mib: int = 7619
    captures: bool = True
    calls: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._host: dict[int, Any] = {}
        self._mapped: dict[int, Any] = {}
        self._device: dict[int, Any] = {}
        self._objects: dict[int, Any] = {}
        self._next = 4096
        self._now = 0.0
        for name, arguments in PROTOTYPES.items():
            kind = ctypes.CFUNCTYPE(_int, *arguments)
            setattr(self, name, kind(self._guarded(name)))
        texts = {code: ctypes.create_string_buffer(text) for code, text in _TEXTS.items()}
        self.cudaGetErrorString = ctypes.CFUNCTYPE(_void, _int)(lambda code: ctypes.addressof(texts[code]))

    def left(self) -> int:
        """How many pieces of memory, streams, events and graphs were not given back."""
        return len(self._host) + len(self._device) + len(self._objects)

    def put(self, stream: int, work: Work) -> bool:
        """Queue the work of a network; False where the stream does not exist."""
        if not isinstance(self._objects.get(stream), _Stream):
            return False
        self._objects[stream].put(lambda: self._timed(COMPUTE_MS, work))
        return True

    def recording(self, stream: int) -> bool:
        """Whether a stream is being recorded."""
        return self._objects[stream].recording is not None

    def memory(self, address: int, size: int) -> memoryview:
        """The bytes that the GPU sees at an address; raises where that is not memory of the GPU, or too little."""
        for start, block in (*self._device.items(), *self._mapped.items()):
            if start <= address and address + size <= start + len(block):
                return memoryview(block).cast("B")[address - start : address - start + size]
        raise MemoryError(f"the GPU cannot reach {size} bytes at {address:#x}")

    def _guarded(self, name: str) -> Callable[..., int]:
        """An exception cannot leave a C function: it becomes a fault and an error code."""
        function = getattr(self, "_" + name)

        def call(*arguments: Any) -> int:
            self.calls[name] += 1
            try:
                code: int | None = function(*arguments)
            except Exception as error:  # whatever it is, C sees a code
                self.faults.append(f"{name}: {error!r}")
                return INVALID_VALUE
            return code or SUCCESS

        return call

    def _timed(self, milliseconds: float, work: Work) -> None:
        self._now += milliseconds
        work()

    def _new(self, out: Any, thing: Any) -> None:
        self._next += 16
        self._objects[self._next] = thing
        out[0] = self._next

    def _run(self, works: list[Work]) -> None:
        for work in works:
            try:
                work()
            except Exception as error:  # as a real GPU: the stream reports it at the next wait
                self.faults.append(repr(error))
                raise

    def _cudaGetDeviceCount(self, count: Any) -> None:
        count[0] = 1

    def _cudaGetDevice(self, device: Any) -> None:
        device[0] = 0

    def _cudaGetDeviceProperties(self, properties: int, device: int) -> None:
        ctypes.memmove(properties, self.name.encode() + b"\0", len(self.name) + 1)

    def _cudaDeviceGetAttribute(self, value: Any, attribute: int, device: int) -> None:
        major, minor = self.capability
        value[0] = {16: self.multiprocessors, 18: int(self.integrated), 75: major, 76: minor}[attribute]

    def _cudaMemGetInfo(self, free: Any, total: Any) -> None:
        free[0] = total[0] = self.memory_mib * 2**20

    def _cudaHostAlloc(self, out: Any, size: int, flags: int) -> int | None:
        if size > self.memory_mib * 2**20:
            return OUT_OF_MEMORY
        block = (ctypes.c_ubyte * size)()
        ctypes.memset(block, 0xFF, size)
        address = ctypes.addressof(block)
        self._host[address] = block
        if flags & 2:
            self._mapped[address + _DEVICE_ADDRESSES] = block
        out[0] = address
        return None

    def _cudaHostGetDevicePointer(self, out: Any, host: int, flags: int) -> int | None:
        if host + _DEVICE_ADDRESSES not in self._mapped:
            return INVALID_VALUE
        out[0] = host + _DEVICE_ADDRESSES
        return None

    def _cudaFreeHost(self, address: int) -> None:
        del self._host[address]
        self._mapped.pop(address + _DEVICE_ADDRESSES, None)

    def _cudaMalloc(self, out: Any, size: int) -> None:
        block = (ctypes.c_ubyte * size)()
        ctypes.memset(block, 0xFF, size)
        address = ctypes.addressof(block) + 2 * _DEVICE_ADDRESSES
        self._device[address] = block
        out[0] = address

    def _cudaFree(self, address: int) -> None:
        del self._device[address]

    def _cudaMemcpyAsync(self, to: int, source: int, size: int, kind: int, stream: int) -> None:
        host, device = (source, to) if kind == 1 else (to, source)
        pinned = next(memoryview(block).cast("B") for start, block in self._host.items() if start == host)[:size]
        on_gpu = self.memory(device, size)
        goal, origin = (on_gpu, pinned) if kind == 1 else (pinned, on_gpu)

        def copy() -> None:
            goal[:] = origin

        self._objects[stream].put(lambda: self._timed(COPY_MS, copy))

    def _cudaStreamCreateWithFlags(self, out: Any, flags: int) -> None:
        self._new(out, _Stream())

    def _cudaStreamSynchronize(self, stream: int) -> None:
        works, self._objects[stream].queue = self._objects[stream].queue, []
        self._run(works)

    def _cudaStreamDestroy(self, stream: int) -> None:
        del self._objects[stream]

    def _cudaStreamBeginCapture(self, stream: int, mode: int) -> int | None:
        if not self.captures:
            return UNSUPPORTED_CAPTURE
        self._objects[stream].recording = []
        return None

    def _cudaStreamEndCapture(self, stream: int, out: Any) -> int | None:
        recorded, self._objects[stream].recording = self._objects[stream].recording, None
        if recorded is None:
            return INVALID_VALUE
        self._new(out, recorded)
        return None

    def _cudaGraphInstantiateWithFlags(self, out: Any, graph: int, flags: int) -> None:
        self._new(out, list(self._objects[graph]))

    def _cudaGraphLaunch(self, executable: int, stream: int) -> None:
        works = self._objects[executable]
        self._objects[stream].put(lambda: self._run(works))

    def _cudaGraphDestroy(self, graph: int) -> None:
        del self._objects[graph]

    def _cudaGraphExecDestroy(self, executable: int) -> None:
        del self._objects[executable]

    def _cudaEventCreate(self, out: Any) -> None:
        self._new(out, [None])

    def _cudaEventRecord(self, event: int, stream: int) -> None:
        mark = self._objects[event]
        mark[0] = None

        def reach() -> None:
            mark[0] = self._now

        self._objects[stream].put(reach)

    def _cudaEventElapsedTime(self, out: Any, first: int, last: int) -> None:
        out[0] = self._objects[last][0] - self._objects[first][0]

    def _cudaEventDestroy(self, event: int) -> None:
        del self._objects[event]

    def _cudaGetLastError(self) -> None:
        return None


def libraries() -> Iterator[CudartStandIn]:
    """An integrated GPU, as every Jetson has, and one with its own memory."""
    yield CudartStandIn()
    yield CudartStandIn(name="RTX A2000", capability=(8, 6), multiprocessors=26, integrated=False)
