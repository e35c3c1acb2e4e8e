"""Building engines, on strict stand-ins of eight TensorRT releases."""

from __future__ import annotations

import argparse
import json
import sys
import threading
from pathlib import Path
from typing import Any

import onnx
import pytest
from engine_files import SIZE, StandInDevice, forge, write_files
from tensorrt_api import RELEASES

from duskfuse.export.runtime import engine_record, tensorrt_build
from duskfuse.export.runtime.engine_record import l4t_release, read_record, sha256
from duskfuse.export.runtime.errors import DeviceError, DeviceInputError
from duskfuse.export.runtime.onnx_file import LARGEST_ONNX_BYTES
from duskfuse.export.runtime.tensorrt_build import SizeRange, add_arguments, build_engine, run

RANGE = SizeRange((32, 48), SIZE, (64, 96))
WEAK = {"fp32": [], "fp16": ["FP16"], "int8": ["INT8", "FP16"]}
STRONG_FROM = RELEASES.index("10.13.3.9")


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
def oldest(monkeypatch: pytest.MonkeyPatch) -> StandInDevice:
    return StandInDevice.with_release(RELEASES[0], monkeypatch)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_every_release_builds_every_precision(
    device: StandInDevice, files: dict[str, Path], tmp_path: Path, precision: str
) -> None:
    engine = tmp_path / "made" / "nano.engine"
    record = build_engine(files[precision], engine, device=device.cuda.device, progress=lambda _: None)
    assert sorted(path.name for path in engine.parent.iterdir()) == ["nano.engine", "nano.engine.json", "timing-cache"]
    assert record == read_record(engine)
    assert record.onnx_sha256 == sha256(files[precision].read_bytes())
    assert record.engine_sha256 == sha256(engine.read_bytes())
    assert (record.tensorrt, record.gpu, record.compute_capability) == (device.trt.__version__, "Orin", "8.7")
    assert (record.multiprocessors, record.precision, record.dla_core, record.sizes) == (8, precision, None, None)
    assert not device.library.faults


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_flags_follow_what_a_release_can_do(
    device: StandInDevice, files: dict[str, Path], tmp_path: Path, precision: str
) -> None:
    record = build_engine(files[precision], tmp_path / "e", device=device.cuda.device, progress=lambda _: None)
    at, release = RELEASES.index(device.trt.__version__), device.trt.__version__
    if release.startswith("11"):
        assert (record.network_flags, record.builder_flags) == ([], [])
    elif at >= STRONG_FROM and precision != "int8":
        assert (record.network_flags, record.builder_flags) == (["EXPLICIT_BATCH", "STRONGLY_TYPED"], [])
    else:
        assert (record.network_flags, record.builder_flags) == (["EXPLICIT_BATCH"], WEAK[precision])


def test_a_range_of_sizes_becomes_a_profile(device: StandInDevice, files: dict[str, Path], tmp_path: Path) -> None:
    record = build_engine(files["any"], tmp_path / "e", device=device.cuda.device, progress=lambda _: None, sizes=RANGE)
    assert record.sizes == ["48x32", "64x48", "96x64"]
    (profile,) = device.trt._configs[-1].profiles
    assert profile.shapes == {name: [(1, 1, 32, 48), (1, 1, 48, 64), (1, 1, 64, 96)] for name in ("ir", "vis_y")}


def test_a_file_for_any_size_names_its_own_range(newest: StandInDevice, files: dict[str, Path], tmp_path: Path) -> None:
    def sizes(path: Path, given: SizeRange | None = None) -> list[str] | None:
        build = {"device": newest.cuda.device, "progress": lambda _: None, "sizes": given}
        return build_engine(path, tmp_path / "e", **build).sizes

    own = {"profile_min": "50x40", "profile_opt": "64x48", "profile_max": "90x90"}
    named = forge(files["any"], precision="fp32", **own)
    assert sizes(named) == ["50x40", "64x48", "90x90"]
    assert sizes(named, RANGE) == ["48x32", "64x48", "96x64"], "what is asked goes before"
    with pytest.raises(DeviceInputError, match=r"forged.onnx names the sizes '50x40,64,90x90'.*give --sizes"):
        sizes(forge(files["any"], precision="fp32", **own | {"profile_opt": "64"}))
    with pytest.raises(DeviceInputError, match="from small to large"):
        sizes(forge(files["any"], precision="fp32", **own | {"profile_max": "60x90"}))


def test_the_second_build_measures_nothing(device: StandInDevice, files: dict[str, Path], tmp_path: Path) -> None:
    build_engine(files["fp32"], tmp_path / "a.engine", device=device.cuda.device, progress=lambda _: None)
    assert "Conv" in device.trt._timed
    device.trt._timed.clear()
    said: list[str] = []
    build_engine(files["fp32"], tmp_path / "b.engine", device=device.cuda.device, progress=said.append)
    assert not device.trt._timed
    (cache,) = (tmp_path / "timing-cache").iterdir()
    assert cache.name == f"Orin-sm8.7-8-tensorrt{device.trt.__version__}.cache"
    assert any(cache.name in line for line in said)


def test_a_timing_cache_of_another_gpu_is_not_used(
    newest: StandInDevice, files: dict[str, Path], tmp_path: Path
) -> None:
    build_engine(files["fp32"], tmp_path / "a.engine", device=newest.cuda.device, progress=lambda _: None)
    (cache,) = (tmp_path / "timing-cache").iterdir()
    cache.write_bytes(cache.read_bytes().replace(b"Orin", b"Thor"))
    newest.trt._timed.clear()
    said: list[str] = []
    build_engine(files["fp32"], tmp_path / "b.engine", device=newest.cuda.device, progress=said.append)
    assert any("starting anew" in line for line in said)
    assert "Conv" in newest.trt._timed
    assert b"Orin" in cache.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "memory_mib", "pools"),
    [
        ({}, 7619, {"WORKSPACE": 1024}),
        ({}, 3964, {"WORKSPACE": 991}),
        ({"workspace_mib": 64}, 7619, {"WORKSPACE": 64}),
        ({"memory_mib": 512}, 3964, {"WORKSPACE": 512, "TACTIC_DRAM": 512}),
    ],
)
def test_memory_is_limited(
    device: StandInDevice,
    files: dict[str, Path],
    tmp_path: Path,
    arguments: dict[str, int],
    memory_mib: int,
    pools: dict[str, int],
) -> None:
    device.cuda.device = device.cuda.device._replace(memory_mib=memory_mib)
    said: list[str] = []
    build_engine(files["fp32"], tmp_path / "e", device=device.cuda.device, progress=said.append, **arguments)
    if device.trt.__version__ == "8.5" and "memory_mib" in arguments:
        pools = {"WORKSPACE": 512}
        assert any("limits only the workspace" in line for line in said)
    assert device.trt._configs[-1].pools == {pool: mib * 2**20 for pool, mib in pools.items()}


def test_progress_is_reported_where_the_release_can(
    device: StandInDevice, files: dict[str, Path], tmp_path: Path
) -> None:
    said: list[str] = []
    build_engine(files["fp32"], tmp_path / "e", device=device.cuda.device, progress=said.append)
    reported = any("Building Engine" in line for line in said)
    assert reported == (not device.trt.__version__.startswith("8"))
    assert all(line.lstrip().split(" s  ")[0].replace(".", "").isdigit() for line in said)


def test_a_silent_release_gives_signs_of_life(
    oldest: StandInDevice, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt_build, "STILL_BUILDING_S", 0.01)
    alive, builder = threading.Event(), oldest.trt.Builder
    build = builder.build_serialized_network

    def slow(*arguments: Any) -> Any:
        assert alive.wait(10), "no sign of life"
        return build(*arguments)

    monkeypatch.setattr(builder, "build_serialized_network", slow)
    build_engine(
        files["fp32"],
        tmp_path / "e",
        device=oldest.cuda.device,
        progress=lambda line: alive.set() if "still building" in line else None,
    )


def test_an_interrupt_during_a_report_ends_the_build_cleanly(
    newest: StandInDevice, files: dict[str, Path], tmp_path: Path
) -> None:
    def impatient(line: str) -> None:
        if "Building Engine" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engine(files["fp32"], tmp_path / "e", device=newest.cuda.device, progress=impatient)
    assert not (tmp_path / "e").exists()


def test_the_parser_s_errors_name_the_node(device: StandInDevice, files: dict[str, Path], tmp_path: Path) -> None:
    device.trt._refused_node = 3
    with pytest.raises(DeviceInputError) as caught:
        build_engine(files["fp32"], tmp_path / "e", device=device.cuda.device, progress=lambda _: None)
    message = str(caught.value)
    node = onnx.load(files["fp32"]).graph.node[3]
    assert f"node 3 {node.name!r} ({node.op_type}): Assertion failed" in message
    assert device.trt.__version__ in message
    assert not list(tmp_path.iterdir())


def test_too_little_memory_has_a_remedy_and_leaves_nothing(
    device: StandInDevice, files: dict[str, Path], tmp_path: Path
) -> None:
    device.trt._out_of_memory = True
    with pytest.raises(DeviceError, match=r"did not suffice.*add swap, or give --workspace 256"):
        build_engine(files["fp32"], tmp_path / "e", device=device.cuda.device, progress=lambda _: None)
    assert not list(tmp_path.iterdir())


def test_an_older_engine_stays_where_a_new_build_fails(
    newest: StandInDevice, files: dict[str, Path], tmp_path: Path
) -> None:
    build_engine(files["fp32"], tmp_path / "e", device=newest.cuda.device, progress=lambda _: None)
    before = (tmp_path / "e").read_bytes()
    newest.trt._out_of_memory = True
    with pytest.raises(DeviceError):
        build_engine(files["fp32"], tmp_path / "e", device=newest.cuda.device, progress=lambda _: None)
    assert (tmp_path / "e").read_bytes() == before
    assert read_record(tmp_path / "e").engine_sha256 == sha256(before)


def test_dla_is_an_experiment_with_half_precision_and_one_size(
    device: StandInDevice, files: dict[str, Path], tmp_path: Path
) -> None:
    said: list[str] = []
    build = {"device": device.cuda.device, "progress": said.append, "dla_core": 1}
    if device.trt.__version__.startswith("10"):
        with pytest.raises(DeviceInputError, match="DLA core 1"):
            build_engine(files["fp16"], tmp_path / "e", **build)
        return
    record = build_engine(files["fp16"], tmp_path / "e", **build)
    assert record.dla_core == 1
    assert "GPU_FALLBACK" in record.builder_flags
    assert any("experiment" in line for line in said)
    for name, arguments in (("fp32", {}), ("int8", {}), ("any", {"sizes": RANGE})):
        with pytest.raises(DeviceInputError, match="half precision and one size"):
            build_engine(files[name], tmp_path / "no", **build, **arguments)


def test_wrong_files_and_options(newest: StandInDevice, files: dict[str, Path], tmp_path: Path) -> None:
    def refused(match: str, path: Path, **arguments: Any) -> None:
        with pytest.raises(DeviceInputError, match=match):
            build_engine(path, tmp_path / "e", device=newest.cuda.device, progress=lambda _: None, **arguments)

    refused("No such file", tmp_path / "none.onnx")
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(files["fp32"].read_bytes()[:-100])
    refused("not a whole ONNX file", cut)
    model = onnx.load(files["fp32"])
    onnx.external_data_helper.convert_model_to_external_data(model, location="w.bin", size_threshold=0)
    onnx.save(model, tmp_path / "parted.onnx")
    refused("keeps weights in other files", tmp_path / "parted.onnx")
    huge = tmp_path / "huge.onnx"
    with huge.open("wb") as stream:
        stream.truncate(LARGEST_ONNX_BYTES + 1)  # a hole: no byte is written, and none is to be read
    refused("has 268435457 bytes", huge)
    refused("names the precision ''", forge(files["fp32"], size="64x48"))
    refused("names the precision 'int4'", forge(files["fp32"], precision="int4"))
    refused("takes any size; .*--sizes", files["any"])
    refused("for one size", files["fp32"], sizes=RANGE)
    refused("from small to large", files["any"], sizes=SizeRange((64, 64), (48, 96), (96, 96)))


def test_tensorrt_and_a_gpu_are_needed(files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(DeviceError, match=r"TensorRT cannot be imported.*--system-site-packages"):
        build_engine(files["fp32"], tmp_path / "e")


def test_the_release_of_jetson_linux_is_recorded(
    newest: StandInDevice, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = tmp_path / "nv_tegra_release"
    release.write_text("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n")
    monkeypatch.setattr(engine_record, "_L4T_FILE", release)
    assert l4t_release() == "36.4.3"
    record = build_engine(files["fp32"], tmp_path / "e", device=newest.cuda.device, progress=lambda _: None)
    assert record.l4t == "36.4.3"
    monkeypatch.setattr(engine_record, "_L4T_FILE", tmp_path / "none")
    assert l4t_release() is None


def test_command_line(
    newest: StandInDevice, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt_build, "Cuda", lambda: newest.cuda)
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    line = f"{files['any']} --engine {tmp_path}/x.engine --timing-cache {tmp_path}/t --workspace 100 --memory 300"
    assert run(parser.parse_args([*line.split(), "--sizes", "48x32,64x48,96x64"])) == 0
    record = json.loads((tmp_path / "x.engine.json").read_text())
    assert record["sizes"] == ["48x32", "64x48", "96x64"]
    assert newest.trt._configs[-1].pools == {"WORKSPACE": 100 * 2**20, "TACTIC_DRAM": 300 * 2**20}
    assert list((tmp_path / "t").iterdir())
    for wrong in (["--workspace", "0"], ["--memory", "much"], ["--sizes", "640x480"]):
        with pytest.raises(SystemExit):
            parser.parse_args([str(files["any"]), *wrong])


def test_the_engine_lies_beside_its_file_by_default(newest: StandInDevice, tmp_path: Path) -> None:
    files = write_files(tmp_path)
    build_engine(files["fp32"], device=newest.cuda.device, progress=lambda _: None)
    assert (tmp_path / "fp32.engine").is_file()
    assert (tmp_path / "fp32.engine.json").is_file()
