"""The stand-ins are strict: what passes on them uses only what a release has. And ctypes knows the real CUDA."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from cudart_standin import PROTOTYPES, CudartStandIn
from engine_files import StandInDevice, write_files
from tensorrt_api import API_FILE, RELEASES, api_of
from tensorrt_standin import Crash, TensorRT

from duskfuse.export.runtime import cuda_memory
from duskfuse.export.runtime.onnx_header import DamagedOnnxError, parse_header


def module(release: str) -> TensorRT:
    return TensorRT(release, CudartStandIn())


@pytest.mark.parametrize(
    ("release", "path"),
    [
        ("8.5", "NetworkDefinitionCreationFlag.STRONGLY_TYPED"),
        ("8.6.1", "IProgressMonitor"),
        ("8.5", "Runtime.engine_host_code_allowed"),
        ("8.5", "MemoryPoolType.TACTIC_DRAM"),
        ("8.6.1", "ParserError.node_name"),
        ("10.0.1", "ICudaEngine.num_bindings"),
        ("10.0.1", "Builder.build_engine"),
        ("10.3.0", "IExecutionContext.execute_async_v2"),
        ("10.7.0", "Builder.build_serialized_network_to_stream"),
        ("11.4.0.106", "NetworkDefinitionCreationFlag.EXPLICIT_BATCH"),
        ("11.4.0.106", "BuilderFlag.FP16"),
        ("11.4.0.106", "BuilderFlag.INT8"),
        ("11.4.0.106", "Builder.platform_has_fast_fp16"),
        ("11.4.0.106", "ICudaEngine.device_memory_size"),
    ],
)
def test_a_release_has_nothing_it_lacks(release: str, path: str) -> None:
    *classes, last = path.split(".")
    holder: Any = module(release)
    for name in classes:
        holder = getattr(holder, name)
    assert not hasattr(holder, last)


def test_the_flags_have_the_bits_of_their_release() -> None:
    for release, bits in {"8.5": {"EXPLICIT_BATCH": 0}, "10.3.0": {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1}}.items():
        flags = module(release).NetworkDefinitionCreationFlag
        assert {name: int(getattr(flags, name)) for name in bits} == bits
    assert int(module("11.4.0.106").NetworkDefinitionCreationFlag.STRONGLY_TYPED) == 0
    trt = module("8.6.1")
    builder = trt.Builder(trt.Logger())
    with pytest.raises(Crash):
        builder.create_network(1 << 7)


def raises_type_error(call: Callable[[], object]) -> bool:
    try:
        call()
    except TypeError:
        return True
    return False


@pytest.mark.parametrize("release", RELEASES)
def test_wrong_calls_are_errors(release: str) -> None:
    trt = module(release)
    builder = trt.Builder(trt.Logger())
    config = builder.create_builder_config()

    class Keeper(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            pass  # without the binding's constructor

    wrong = {
        "no argument": lambda: trt.Builder(),
        "an argument too many": lambda: builder.create_network(0, 1),
        "an unknown name": lambda: builder.create_network(flag=0),
        "a wrong type": lambda: builder.create_network("EXPLICIT_BATCH"),
        "a foreign enum": lambda: config.set_memory_pool_limit(trt.BuilderFlag.DEBUG, 1),
        "a flag as its number": lambda: config.set_flag(0),
        "an unfinished logger": lambda: trt.Builder(Keeper()),
        "a class without constructor": lambda: trt.IBuilderConfig(),
        "a path for bytes": lambda: trt.OnnxParser(builder.create_network(), trt.Logger()).parse("model.onnx"),
        "a float for a size": lambda: config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, 1e9),
    }
    assert set(wrong) == {what for what, call in wrong.items() if raises_type_error(call)}
    with pytest.raises(AttributeError):
        config.max_workspaces = 1
    with pytest.raises(AttributeError):
        builder.num_DLA_cores = 2


@pytest.mark.parametrize(
    ("release", "network_flags", "builder_flags", "precision"),
    [
        ("8.5", [], ["FP16"], "fp16"),
        ("8.5", ["EXPLICIT_BATCH"], [], "fp16"),
        ("8.6.1", ["EXPLICIT_BATCH"], ["FP16"], "int8"),
        ("10.3.0", ["STRONGLY_TYPED"], ["FP16"], "fp16"),
        ("10.13.3.9", [], [], "int8"),
    ],
)
def test_wrong_precision_flags_give_no_engine(
    release: str, network_flags: list[str], builder_flags: list[str], precision: str, files: dict[str, Path]
) -> None:
    trt = module(release)
    logger = trt.Logger()
    builder = trt.Builder(logger)
    creation = trt.NetworkDefinitionCreationFlag
    network = builder.create_network(sum(1 << int(getattr(creation, flag)) for flag in network_flags))
    config = builder.create_builder_config()
    for flag in builder_flags:
        config.set_flag(getattr(trt.BuilderFlag, flag))
    trt.OnnxParser(network, logger).parse(files[precision].read_bytes())
    assert builder.build_serialized_network(network, config) is None


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_files(tmp_path_factory.mktemp("files"))


def test_the_api_file_is_what_the_bindings_say(shared_facts: Path) -> None:
    """Every class and member of the compact file against the full listings of seven releases."""
    members = json.loads(API_FILE.read_text())["members"]
    for release in RELEASES[1:]:
        full, ours = json.loads((shared_facts / "tensorrt_api" / f"{release}.json").read_text()), api_of(release)
        assert set(ours) == set(full)
        for name in members.keys() & full.keys():
            want = set(full[name].get("members", full[name]))
            left_out = {one for one in want if one.startswith(("add_", "mark_", "unmark_", "are_", "is_debug"))}
            assert set(ours[name]) == (want - left_out if name == "INetworkDefinition" else want), (release, name)
    names = json.loads((shared_facts / "tensorrt_api_names_by_release.json").read_text())["8.5"]
    for name, ours_85 in api_of("8.5").items():
        own = {one for one, kind in ours_85.items() if kind.startswith(("(", "property", "member")) and one[0] != "_"}
        assert own <= set(names[name]), name


def test_work_waits_and_memory_is_apart() -> None:
    """The stand-in GPU shows a missing wait, a missing copy and memory that is too small."""
    library = CudartStandIn(integrated=False)
    cuda = cuda_memory.Cuda(library)
    stream, buffer = cuda_memory.Stream(cuda, 2), cuda_memory.Buffer(cuda, 4)
    buffer.host[:] = 1
    buffer.upload(4, stream)
    assert library.memory(buffer.device, 16) == b"\xff" * 16, "nothing happens before the wait"
    stream.wait()
    assert bytes(library.memory(buffer.device, 16)) == buffer.host.tobytes()
    with pytest.raises(MemoryError):
        library.memory(buffer.device, 20)
    with pytest.raises(MemoryError):
        library.memory(buffer.host.ctypes.data, 16)
    with pytest.raises(cuda_memory.CudaError):
        buffer.upload(5, stream)
    buffer.close()
    stream.close()
    assert library.left() == 0


def test_a_library_without_a_function_is_no_cuda() -> None:
    library = CudartStandIn()
    del library.cudaGraphInstantiateWithFlags
    with pytest.raises(AttributeError):
        cuda_memory.Cuda(library)


def test_the_installed_cuda_runtime_has_every_function() -> None:
    """PyTorch brings NVIDIA's library; without a GPU it answers, with an error."""
    spec = importlib.util.find_spec("nvidia")
    folders = [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec else []
    found = [path for folder in folders for path in folder.glob("**/libcudart.so.*")]
    if not found:
        pytest.skip("PyTorch was installed without CUDA")
    library = cuda_memory._declared(ctypes.CDLL(str(found[0])))
    assert all(hasattr(library, name) for name in PROTOTYPES)
    count = ctypes.c_int()
    code = library.cudaGetDeviceCount(ctypes.byref(count))
    assert not code or "CUDA error" in cuda_memory._error_text(library, code)


def test_numbers_of_cuda_are_nvidia_s() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        runtime = pytest.importorskip("cuda.bindings.runtime")
    attribute, ours = runtime.cudaDeviceAttr, cuda_memory
    assert attribute.cudaDevAttrIntegrated == ours._INTEGRATED
    assert attribute.cudaDevAttrMultiProcessorCount == ours._MULTIPROCESSORS
    assert attribute.cudaDevAttrComputeCapabilityMajor == ours._MAJOR
    assert attribute.cudaDevAttrComputeCapabilityMinor == ours._MINOR
    assert runtime.cudaHostAllocMapped == ours._MAPPED
    assert runtime.cudaStreamNonBlocking == ours._NON_BLOCKING
    assert runtime.cudaMemcpyKind.cudaMemcpyHostToDevice == ours._TO_DEVICE
    assert runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost == ours._TO_HOST
    assert runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal == ours._THREAD_LOCAL


def test_signatures_are_those_of_the_stand_in() -> None:
    """Two tables, written apart: what the runtime declares, and what the header of CUDA declares."""
    assert cuda_memory.SIGNATURES == PROTOTYPES


@pytest.mark.parametrize("name", ["fp32", "fp16", "int8", "any"])
def test_the_header_is_what_onnx_reads(files: dict[str, Path], name: str) -> None:
    model, header = onnx.load(files[name]), parse_header(files[name].read_bytes(), name)
    assert header.metadata == {entry.key: entry.value for entry in model.metadata_props}
    assert header.nodes == [(node.name, node.op_type) for node in model.graph.node]
    for ours, theirs in zip([*header.inputs, *header.outputs], [*model.graph.input, *model.graph.output], strict=True):
        dims = theirs.type.tensor_type.shape.dim
        assert ours.name == theirs.name
        assert ours.float32
        assert ours.shape == tuple(None if dim.dim_param else dim.dim_value for dim in dims)


def test_damaged_headers_are_refused(files: dict[str, Path]) -> None:
    """Cut anywhere, or random: a message, never another exception."""
    content = files["fp32"].read_bytes()
    refused = 0
    for cut in range(0, len(content), max(1, len(content) // 200)):
        try:
            parse_header(content[:cut], "cut.onnx")
        except DamagedOnnxError:
            refused += 1
    assert refused > 190
    for noise in (b"", b"\xff" * 64, b"PK\x03\x04" + bytes(60), bytes(range(256))):
        with pytest.raises(DamagedOnnxError):
            parse_header(noise, "noise.onnx")


def test_a_device_is_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    device = StandInDevice.with_release("8.5", monkeypatch)
    assert device.cuda.device == cuda_memory.Device("Orin", "8.7", 8, True, 7619)
