"""TensorRT's Python module, release by release, for machines without a GPU: strict about names, real in its results.

``tensorrt_api.py`` makes the classes of each release. Behind them stands just enough behaviour to build and run: the
parser keeps the file, the builder holds it to the rules on precision that differ between releases, the engine runs it
with ONNX Runtime in the stand-in GPU's memory. Loading an engine of another release or GPU, which ends a real program,
raises `Crash`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime
from cudart_standin import CudartStandIn
from tensorrt_api import Thing, api_of, behind, constructed, strict_class

MAGIC = b"stand-in engine\n"


class Crash(BaseException):
    """Where the real library ends the whole program."""


class TensorRT(ModuleType):
    """The module of one release on one GPU; put it into ``sys.modules["tensorrt"]``.

    ``out_of_memory`` makes builds fail as on a small module, ``refused_node`` makes the parser refuse that node.
    """

    def __init__(self, release: str, cuda: CudartStandIn) -> None:
        super().__init__("tensorrt")
        self.__version__ = release
        self._cuda = cuda
        self._major = release.split(".")[0]
        self._out_of_memory = False
        self._refused_node: int | None = None
        self._timed: list[str] = []
        """Operators whose tactics were measured, not found in a timing cache."""
        self._configs: list[_IBuilderConfig] = []
        self._dla_cores = 2 if self._major in ("8", "11") else 0
        for name, members in sorted(api_of(release).items(), key=lambda item: item[0] != "ILogger"):
            setattr(self, name, strict_class(self, name, members))


class _ILogger(Thing):
    def log(self, severity: Any, msg: str) -> None:
        pass


class _Logger(_ILogger):
    def __init__(self, min_severity: Any = None) -> None:
        self.min_severity = min_severity


class _IProgressMonitor(Thing):
    pass


class _IHostMemory(Thing):
    def __init__(self, content: bytes) -> None:
        self.content, self.nbytes = content, len(content)


class _Dims(Thing):
    def __init__(self, shape: Sequence[int] = ()) -> None:
        self.shape = list(shape)


class _ITimingCache(Thing):
    def __init__(self, content: bytes) -> None:
        owner, _, entries = content.partition(b"\n")
        self.owner = owner.decode() or _owner(self.trt)
        self.entries = set(entries.decode().split())

    def serialize(self) -> Any:
        return self.made("IHostMemory", "\n".join([self.owner, *sorted(self.entries)]).encode())


class _INetworkDefinition(Thing):
    def __init__(self, flags: set[str]) -> None:
        self.creation_flags = flags
        self.model: onnx.ModelProto | None = None


class _IOptimizationProfile(Thing):
    def __init__(self) -> None:
        self.shapes: dict[str, list[tuple[int, ...]]] = {}

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        self.shapes[input] = [tuple(dims) for dims in (min, opt, max)]


class _IBuilderConfig(Thing):
    def __init__(self) -> None:
        self.set: set[str] = set()
        self.pools: dict[str, int] = {}
        self.profiles: list[_IOptimizationProfile] = []
        self.cache: Any = None
        self.progress_monitor: Any = None
        self.default_device_type: Any = None
        self.DLA_core = -1

    def set_flag(self, flag: Any) -> None:
        self.set.add(flag.name)

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        self.pools[pool.name] = pool_size

    def add_optimization_profile(self, profile: Any) -> int:
        self.profiles.append(behind(profile))
        return len(self.profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: Any) -> Any:
        return self.made("ITimingCache", bytes(serialized_timing_cache))

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        if not ignore_mismatch and behind(cache).owner != _owner(self.trt):
            return False
        self.cache = cache
        return True

    def get_timing_cache(self) -> Any:
        return self.cache


class _ParserError(Thing):
    def __init__(self, index: int, name: str, operator: str) -> None:
        self.index, self.name, self.operator = index, name, operator

    def node(self) -> int:
        return self.index

    def node_name(self) -> str:
        return self.name

    def node_operator(self) -> str:
        return self.operator

    def desc(self) -> str:
        return "Assertion failed: the operator is not supported"

    def file(self) -> str:
        return "ModelImporter.cpp"

    def func(self) -> str:
        return "parseNode"

    def line(self) -> int:
        return 831


class _OnnxParser(Thing):
    def __init__(self, network: Any, logger: Any) -> None:
        self.network, self.logger = behind(network), logger
        self.errors: list[Any] = []

    @property
    def num_errors(self) -> int:
        return len(self.errors)

    def get_error(self, index: int) -> Any:
        return self.errors[index]

    def parse(self, model: Any, path: str | None = None) -> bool:
        parsed = onnx.load_from_string(bytes(model))
        if "EXPLICIT_BATCH" not in self.network.creation_flags and self.trt._major == "8":
            self.errors.append(self.made("ParserError", -1, "", "network without an explicit batch dimension"))
        if self.trt._refused_node is not None:
            node = parsed.graph.node[self.trt._refused_node]
            self.errors.append(self.made("ParserError", self.trt._refused_node, node.name, node.op_type))
        self.network.model = None if self.errors else parsed
        return not self.errors


class _Builder(Thing):
    def __init__(self, logger: Any) -> None:
        self.logger = logger

    @property
    def num_DLA_cores(self) -> int:
        return self.trt._dla_cores

    def create_network(self, flags: int = 0) -> Any:
        bits = {1 << int(flag): flag.name for flag in self.trt.NetworkDefinitionCreationFlag}
        if flags & ~sum(bits):
            raise Crash(f"unknown bits in the flags {flags:#b}")
        return self.made("INetworkDefinition", {name for bit, name in bits.items() if flags & bit})

    def create_builder_config(self) -> Any:
        return self.made("IBuilderConfig")

    def create_optimization_profile(self) -> Any:
        return self.made("IOptimizationProfile")

    def build_serialized_network(self, network: Any, config: Any, kernel_text: Any = None) -> Any:
        net, settings = behind(network), behind(config)
        self.trt._configs.append(settings)
        if fault := self._fault(net, settings) or self._stopped(settings):
            self.logger.log(self.trt.ILogger.ERROR, fault)
            return None
        operators = {node.op_type for node in net.model.graph.node}
        known = settings.cache and behind(settings.cache).entries
        self.trt._timed += sorted(operators - (known or set()))
        if known is not None:
            known |= operators
        shapes = settings.profiles[0].shapes if settings.profiles else {}
        dla = settings.DLA_core if settings.default_device_type is self.trt.DeviceType.DLA else -1
        head = {"owner": _owner(self.trt), "shapes": shapes, "dla": dla}
        return self.made("IHostMemory", MAGIC + json.dumps(head).encode() + b"\n" + net.model.SerializeToString())

    def _fault(self, net: _INetworkDefinition, settings: _IBuilderConfig) -> str:
        """What makes a real build fail: the first that applies."""
        weak = {"FP16", "INT8", "BF16", "FP8"} & settings.set
        strong = self.trt._major == "11" or "STRONGLY_TYPED" in net.creation_flags
        if net.model is None:
            return "Error Code 4: Internal Error (Network must have at least one output)"
        operators = {node.op_type for node in net.model.graph.node}
        free = any(dim.dim_param for value in net.model.graph.input for dim in value.type.tensor_type.shape.dim)
        faults = {
            "Error Code 2: OutOfMemory (Requested size was 4294967296 bytes.)": self.trt._out_of_memory,
            f"strongly typed network with {weak}": strong and bool(weak),
            "Q/DQ layers need the INT8 flag": not strong and "QuantizeLinear" in operators and "INT8" not in weak,
            "half precision needs the FP16 flag": not strong and _has_half(net.model) and "FP16" not in weak,
            "Network has dynamic or shape inputs, but no optimization profile has been defined.": free
            and not settings.profiles,
            "a layer cannot run on DLA and GPU fallback is not enabled": settings.default_device_type is not None
            and "GPU_FALLBACK" not in settings.set,
        }
        return next((fault for fault, found in faults.items() if found), "")

    def _stopped(self, settings: _IBuilderConfig) -> str:
        """Report progress as real builds do; a monitor that answers False stops the build."""
        monitor = settings.progress_monitor
        if monitor is None:
            return ""
        if not constructed(monitor):
            raise TypeError("IProgressMonitor.__init__() must be called when overriding __init__")
        monitor.phase_start("Building Engine", None, 2)
        monitor.phase_start("Tactic Selection", "Building Engine", 3)
        going = all(monitor.step_complete("Tactic Selection", step) for step in range(3))
        monitor.phase_finish("Tactic Selection")
        monitor.phase_finish("Building Engine")
        return "" if going else "Error Code 10: build cancelled"


class _Runtime(Thing):
    def __init__(self, logger: Any) -> None:
        self.logger, self.engine_host_code_allowed, self.DLA_core = logger, False, -1

    def deserialize_cuda_engine(self, serialized_engine: Any) -> Any:
        content = bytes(serialized_engine)
        head, _, model = content[len(MAGIC) :].partition(b"\n")
        if not content.startswith(MAGIC) or json.loads(head)["owner"] != _owner(self.trt):
            raise Crash("Segmentation fault (core dumped)")
        if json.loads(head)["dla"] != self.DLA_core:
            self.logger.log(self.trt.ILogger.ERROR, "the engine is for another DLA core")
            return None
        return self.made("ICudaEngine", onnx.load_from_string(model), json.loads(head)["shapes"])


class _ICudaEngine(Thing):
    def __init__(self, model: onnx.ModelProto, shapes: dict[str, list[list[int]]]) -> None:
        self.shapes = shapes
        self.inputs = {value.name: _dims(value) for value in model.graph.input}
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self.tensors = {**self.inputs, **self._outputs()}

    def _outputs(self) -> dict[str, list[int]]:
        """Shapes of the results; TensorRT computes those of a network for one size, whatever the file says."""
        values = self.session.get_outputs()
        if any(-1 in shape for shape in self.inputs.values()):
            return {value.name: [side if isinstance(side, int) else -1 for side in value.shape] for value in values}
        zeros = {name: np.zeros(shape, np.float32) for name, shape in self.inputs.items()}
        results = self.session.run(None, zeros)
        return {value.name: list(result.shape) for value, result in zip(values, results, strict=True)}

    @property
    def num_io_tensors(self) -> int:
        return len(self.tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> Any:
        return self.trt.TensorIOMode.INPUT if name in self.inputs else self.trt.TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return self.trt.DataType.FLOAT

    def get_tensor_shape(self, name: str) -> Any:
        return self.made("Dims", self.tensors[name])

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Any]:
        return [self.made("Dims", shape) for shape in self.shapes[name]]

    def create_execution_context(self, **_: Any) -> Any:
        return self.made("IExecutionContext", self)


class _IExecutionContext(Thing):
    def __init__(self, engine: _ICudaEngine) -> None:
        self.engine_behind = engine
        self.addresses: dict[str, int] = {}
        self.sizes = {name: tuple(shape) for name, shape in engine.inputs.items() if -1 not in shape}
        self.ran = False

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.addresses[name] = memory
        return name in self.engine_behind.tensors

    def set_input_shape(self, name: str, shape: Any) -> bool:
        least, _, most = self.engine_behind.shapes[name]
        self.sizes[name], self.ran = tuple(shape), False
        return all(low <= side <= high for low, side, high in zip(least, shape, most, strict=True))

    def execute_async_v3(self, stream_handle: int) -> bool:
        everything = set(self.addresses) == set(self.engine_behind.tensors)
        sized = set(self.sizes) == set(self.engine_behind.inputs)
        if not everything or not sized or (self.trt._cuda.recording(stream_handle) and not self.ran):
            return False  # what TensorRT puts off until the first run cannot be recorded
        self.ran = True
        sizes = dict(self.sizes)
        return self.trt._cuda.put(stream_handle, lambda: self._compute(sizes))

    def _compute(self, sizes: Mapping[str, tuple[int, ...]]) -> None:
        cuda, session = self.trt._cuda, self.engine_behind.session
        feeds = {
            name: np.frombuffer(cuda.memory(self.addresses[name], 4 * int(np.prod(shape))), np.float32).reshape(shape)
            for name, shape in sizes.items()
        }
        for value, result in zip(session.get_outputs(), session.run(None, feeds), strict=True):
            cuda.memory(self.addresses[value.name], result.nbytes)[:] = (
                np.ascontiguousarray(result).view(np.uint8).data.cast("B")
            )


def _owner(trt: TensorRT) -> str:
    return f"{trt.__version__} {trt._cuda.name} {trt._cuda.capability} {trt._cuda.multiprocessors}"


def _dims(value: onnx.ValueInfoProto) -> list[int]:
    return [dim.dim_value if not dim.dim_param else -1 for dim in value.type.tensor_type.shape.dim]


def _has_half(model: onnx.ModelProto) -> bool:
    return any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in model.graph.initializer)
