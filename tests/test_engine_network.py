"""Running engines, on strict stand-ins of eight TensorRT releases; what comes out is what ONNX Runtime gives."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from cudart_standin import COMPUTE_MS, COPY_MS, CudartStandIn
from engine_files import SIZE, StandInDevice, planes, write_files
from onnx import TensorProto, helper, load, save
from tensorrt_api import RELEASES
from tensorrt_standin import Crash

from duskfuse.export.runtime import tensorrt_build, tensorrt_network
from duskfuse.export.runtime.__main__ import main
from duskfuse.export.runtime.cuda_memory import Cuda, CudaError
from duskfuse.export.runtime.engine_record import ForeignEngineError, record_path
from duskfuse.export.runtime.errors import DeviceError, DeviceInputError
from duskfuse.export.runtime.fuser import EdgeFuser
from duskfuse.export.runtime.network import open_network
from duskfuse.export.runtime.tensorrt_build import SizeRange, build_engine
from duskfuse.export.runtime.tensorrt_network import EngineNetwork

RANGE = SizeRange((32, 48), SIZE, (64, 96))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_files(tmp_path_factory.mktemp("files"))


@pytest.fixture(params=RELEASES)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> StandInDevice:
    return StandInDevice.with_release(request.param, monkeypatch)


@pytest.fixture
def newest(monkeypatch: pytest.MonkeyPatch) -> StandInDevice:
    return StandInDevice.with_release(RELEASES[-1], monkeypatch)


@pytest.fixture
def discrete(monkeypatch: pytest.MonkeyPatch) -> StandInDevice:
    library = CudartStandIn("RTX A2000", (8, 6), 26, integrated=False)
    return StandInDevice.with_release(RELEASES[-1], monkeypatch, library)


def built(device: StandInDevice, onnx_path: Path, folder: Path, **arguments: Any) -> Path:
    engine = folder / "e.engine"
    build_engine(onnx_path, engine, device=device.cuda.device, progress=lambda _: None, **arguments)
    return engine


def by_onnxruntime(path: Path, ir: np.ndarray, vis: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    feeds = dict(zip(names, (ir[None, None], vis.reshape(1, -1, *ir.shape)), strict=True))
    result: np.ndarray = session.run(None, feeds)[0][0]
    return result


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_every_release_runs_every_precision(
    device: StandInDevice, files: dict[str, Path], tmp_path: Path, precision: str
) -> None:
    with EngineNetwork(built(device, files[precision], tmp_path), files[precision], cuda=device.cuda) as network:
        assert network.size == SIZE
        assert not network.rgb
        assert network.backend == "tensorrt"
        assert network.metadata["precision"] == precision
        for seed in range(3):  # the third picture shows that nothing of the second is left
            ir, vis = planes(seed=seed)
            want = by_onnxruntime(files[precision], ir, vis)[0]
            np.testing.assert_allclose(network.run(ir, vis), want, atol=1e-6)
    assert device.library.left() == 0
    assert not device.library.faults


def test_pictures_are_launched_as_one_graph(device: StandInDevice, files: dict[str, Path], tmp_path: Path) -> None:
    network = EngineNetwork(built(device, files["fp32"], tmp_path), files["fp32"], cuda=device.cuda)
    assert network.uses_graph
    device.library.calls.clear()
    network.run(*planes())
    assert device.library.calls["cudaGraphLaunch"] == 1
    assert device.library.calls["cudaHostAlloc"] + device.library.calls["cudaMalloc"] == 0, "memory is taken once"
    network.close()
    assert device.library.left() == 0


@pytest.mark.parametrize("integrated", [True, False])
def test_without_graphs_the_work_is_queued(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, integrated: bool
) -> None:
    library = CudartStandIn(integrated=integrated, captures=False)
    device = StandInDevice.with_release("10.3.0", monkeypatch, library)
    with EngineNetwork(built(device, files["fp32"], tmp_path), files["fp32"], cuda=device.cuda) as network:
        assert not network.uses_graph
        ir, vis = planes()
        np.testing.assert_allclose(network.run(ir, vis), by_onnxruntime(files["fp32"], ir, vis)[0], atol=1e-6)
    assert library.calls["cudaGraphLaunch"] == 0
    assert library.left() == 0


def test_shared_memory_is_not_copied(newest: StandInDevice, files: dict[str, Path], tmp_path: Path) -> None:
    with EngineNetwork(built(newest, files["fp32"], tmp_path), files["fp32"], cuda=newest.cuda) as network:
        network.run(*planes())
        assert network.timing is not None
        assert network.timing.compute == pytest.approx(COMPUTE_MS)
        assert network.timing.download == 0
    assert newest.library.calls["cudaMemcpyAsync"] == newest.library.calls["cudaMalloc"] == 0


def test_other_gpus_get_copies_timed_apart(discrete: StandInDevice, files: dict[str, Path], tmp_path: Path) -> None:
    with EngineNetwork(built(discrete, files["fp32"], tmp_path), files["fp32"], cuda=discrete.cuda) as network:
        ir, vis = planes()
        np.testing.assert_allclose(network.run(ir, vis), by_onnxruntime(files["fp32"], ir, vis)[0], atol=1e-6)
        assert network.timing is not None
        assert network.timing.upload >= 2 * COPY_MS
        assert network.timing.compute == pytest.approx(COMPUTE_MS)
        assert network.timing.download == pytest.approx(COPY_MS)
    assert discrete.library.left() == 0


def test_an_engine_for_several_sizes(device: StandInDevice, files: dict[str, Path], tmp_path: Path) -> None:
    engine = built(device, files["any"], tmp_path, sizes=RANGE)
    with EngineNetwork(engine, files["any"], cuda=device.cuda) as network:
        assert network.size is None
        for size in ((32, 48), (64, 96), (33, 95), (64, 96)):
            ir, vis = planes(size)
            np.testing.assert_allclose(network.run(ir, vis), by_onnxruntime(files["any"], ir, vis)[0], atol=1e-6)
            assert network.uses_graph
        with pytest.raises(DeviceInputError, match=r"from \(32, 48\) to \(64, 96\)"):
            network.run(*planes((65, 96)))
        ir, vis = planes((40, 50))
        np.testing.assert_allclose(network.run(ir, vis), by_onnxruntime(files["any"], ir, vis)[0], atol=1e-6)
    assert device.library.left() == 0
    assert not device.library.faults


def test_a_colour_network(newest: StandInDevice, tmp_path: Path) -> None:
    shapes = {"ir": [1, 1, *SIZE], "vis": [1, 3, *SIZE], "fused_rgb": [1, 3, *SIZE]}
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    graph = helper.make_graph([helper.make_node("Mul", ["ir", "vis"], ["fused_rgb"])], "g", values[:2], values[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {"precision": "fp32"})
    save(model, tmp_path / "e.onnx")
    with EngineNetwork(built(newest, tmp_path / "e.onnx", tmp_path), cuda=newest.cuda) as network:
        assert network.rgb
        ir, _ = planes()
        vis = np.stack([planes(seed=seed)[1] for seed in range(3)])
        np.testing.assert_allclose(network.run(ir, vis), ir * vis, atol=1e-6)
        with pytest.raises(DeviceInputError, match="of the same size"):
            network.run(ir, vis[0])


def test_wrong_sizes_and_planes(newest: StandInDevice, files: dict[str, Path], tmp_path: Path) -> None:
    with EngineNetwork(built(newest, files["fp32"], tmp_path), files["fp32"], cuda=newest.cuda) as network:
        with pytest.raises(DeviceInputError, match=r"\(48, 64\)"):
            network.run(*planes((64, 48)))
        with pytest.raises(DeviceInputError, match="of the same size"):
            network.run(planes()[0], planes((48, 65))[1])
        ir, vis = planes()
        strided = np.asfortranarray(ir)
        np.testing.assert_allclose(network.run(strided, vis), by_onnxruntime(files["fp32"], ir, vis)[0], atol=1e-6)


def alter_engine(engine: Path, onnx_path: Path) -> None:
    content = bytearray(engine.read_bytes())
    content[-9] ^= 1
    engine.write_bytes(content)


def alter_file(engine: Path, onnx_path: Path) -> None:
    model = load(onnx_path)
    model.producer_name = "another"
    save(model, onnx_path)


def alter_record(**fields: Any) -> Callable[[Path, Path], None]:
    def alter(engine: Path, onnx_path: Path) -> None:
        path = record_path(engine)
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    return alter


ALTERATIONS: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    "engine": (alter_engine, "the engine is"),
    "file": (alter_file, "the ONNX file is"),
    "release": (alter_record(tensorrt="8.5.2.2"), "TensorRT is 11.4.0.106, was 8.5.2.2 at the build"),
    "gpu": (alter_record(gpu="Xavier"), "the GPU is Orin, was Xavier"),
    "capability": (alter_record(compute_capability="7.2"), "compute capability is 8.7, was 7.2"),
    "module": (alter_record(multiprocessors=16), "multiprocessors is 8, was 16"),
    "no record": (lambda engine, _: record_path(engine).unlink(), "cannot be read"),
    "half a record": (lambda engine, _: record_path(engine).write_text('{"format": 1'), "cannot be read"),
    "list": (lambda engine, _: record_path(engine).write_text("[]"), "cannot be read"),
    "more fields": (alter_record(more=1), "cannot be read"),
    "next format": (alter_record(format=2), "another format"),
    "no file": (lambda _, onnx_path: onnx_path.unlink(), "No such file"),
    "no engine": (lambda engine, _: engine.unlink(), "No such file"),
}


@pytest.mark.parametrize("name", ALTERATIONS)
def test_what_is_foreign_or_altered_never_reaches_tensorrt(
    newest: StandInDevice, files: dict[str, Path], tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx_path = tmp_path / "e.onnx"
    onnx_path.write_bytes(files["fp32"].read_bytes())
    engine = built(newest, onnx_path, tmp_path)
    alter, match = ALTERATIONS[name]
    alter(engine, onnx_path)

    def reached(*_: object) -> None:
        raise Crash("TensorRT was given the engine")

    monkeypatch.setattr(newest.trt.Runtime, "deserialize_cuda_engine", reached)
    with pytest.raises(ForeignEngineError, match=match):
        EngineNetwork(engine, cuda=newest.cuda)


def test_an_engine_of_another_device_is_refused_not_loaded(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same name and compute capability, but another Orin; the stand-in ends the program if asked to load it."""
    large = StandInDevice.with_release("10.3.0", monkeypatch, CudartStandIn(multiprocessors=16))
    engine = built(large, files["fp32"], tmp_path)
    small = StandInDevice.with_release("10.3.0", monkeypatch, CudartStandIn(multiprocessors=8))
    with pytest.raises(ForeignEngineError, match=r"multiprocessors is 8, was 16.*duskfuse_runtime build fp32.onnx"):
        EngineNetwork(engine, files["fp32"], cuda=small.cuda)
    with pytest.raises(Crash):
        small.trt.Runtime(small.trt.Logger()).deserialize_cuda_engine(engine.read_bytes())


def test_host_code_stays_off(device: StandInDevice, files: dict[str, Path], tmp_path: Path) -> None:
    with EngineNetwork(built(device, files["fp32"], tmp_path), files["fp32"], cuda=device.cuda) as network:
        has = hasattr(network._runtime, "engine_host_code_allowed")
        assert has == (device.trt.__version__ != "8.5")
        assert not has or network._runtime.engine_host_code_allowed is False


def test_a_dla_engine_gets_its_core(files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = StandInDevice.with_release("8.6.1", monkeypatch)
    engine = built(device, files["fp16"], tmp_path, dla_core=1)
    with EngineNetwork(engine, files["fp16"], cuda=device.cuda) as network:
        assert network.record.dla_core == 1
        ir, vis = planes()
        np.testing.assert_allclose(network.run(ir, vis), by_onnxruntime(files["fp16"], ir, vis)[0], atol=1e-6)


def test_an_engine_that_is_not_a_fusion_network(newest: StandInDevice, tmp_path: Path) -> None:
    shape = [1, 1, *SIZE]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("ir", "other", "y")]
    graph = helper.make_graph([helper.make_node("Add", ["ir", "other"], ["y"])], "g", values[:2], values[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {"precision": "fp32"})
    save(model, tmp_path / "e.onnx")
    with pytest.raises(DeviceInputError, match="tensors are ir, other, y"):
        EngineNetwork(built(newest, tmp_path / "e.onnx", tmp_path), cuda=newest.cuda)


def test_failures_of_the_gpu_are_named(newest: StandInDevice, files: dict[str, Path], tmp_path: Path) -> None:
    engine = built(newest, files["fp32"], tmp_path)
    newest.library.memory_mib = 0
    with pytest.raises(CudaError, match=r"cudaHostAlloc failed: out of memory \(CUDA error 2\)"):
        EngineNetwork(engine, files["fp32"], cuda=newest.cuda)


def test_a_run_that_tensorrt_refuses_is_an_error(
    newest: StandInDevice, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = built(newest, files["fp32"], tmp_path)
    monkeypatch.setattr(newest.trt.IExecutionContext, "execute_async_v3", lambda *_: False)
    with pytest.raises(DeviceError, match="could not run the engine"):
        EngineNetwork(engine, files["fp32"], cuda=newest.cuda)


def test_the_runtime_opens_the_engine_beside_a_file(
    newest: StandInDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `fuse` and `live` do: built by the command, opened by its file's name, colours in and out."""
    path = write_files(tmp_path)["fp32"]
    monkeypatch.setattr(tensorrt_build, "Cuda", lambda: newest.cuda)
    monkeypatch.setattr(tensorrt_network, "Cuda", lambda: newest.cuda)
    assert main(["build", str(path)]) == 0
    network = open_network(path)
    assert isinstance(network, EngineNetwork)
    rng = np.random.default_rng(1)
    ir, vis = rng.integers(0, 256, SIZE, np.uint8), rng.integers(0, 256, (*SIZE, 3), np.uint8)
    by_engine = EdgeFuser(network).fuse(ir, vis)
    by_ort = EdgeFuser(open_network(path, "onnxruntime")).fuse(ir, vis)
    np.testing.assert_array_equal(by_engine, by_ort)
    assert main(["build", str(path), "--sizes", "48x32,64x48,96x64"]) == 2


def test_no_gpu_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CudaError, match=r"no CUDA runtime with a GPU .*nvidia-jetpack"):
        Cuda()
