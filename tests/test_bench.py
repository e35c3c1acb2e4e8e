from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

from duskfuse.data.errors import InputError
from duskfuse.data.fuser import Colour
from duskfuse.export import bench as module
from duskfuse.export.bench import Backend, Timing, bench
from duskfuse.export.onnx_graph import DeployedStudent, build_graph, save_graph
from duskfuse.students.unet import UNetStudent


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    student = UNetStudent()
    save_graph(build_graph(DeployedStudent(student)), folder / "any.onnx")
    save_graph(build_graph(DeployedStudent(student), size=(16, 24)), folder / "fixed.onnx")
    return folder


class Sleeper:
    """A fuser that takes a known time."""

    backend = "torch"
    colour = Colour.LUMA

    def __init__(self, name: str, seconds: float, log: list[str]) -> None:
        self.name, self.seconds, self.log = name, seconds, log

    def fuse(self, ir: np.ndarray, vis_y: np.ndarray) -> np.ndarray:
        self.log.append(self.name)
        time.sleep(self.seconds)
        return np.maximum(ir, vis_y)


def test_statistics_equal_plain_ones() -> None:
    timing = Timing.of([index / 1000 for index in range(1, 102)])
    assert timing.median_ms == pytest.approx(51)
    assert timing.p90_ms == pytest.approx(91)
    assert timing.p99_ms == pytest.approx(100)
    assert timing.mean_ms == pytest.approx(51)
    assert timing.min_ms == pytest.approx(1)
    assert timing.std_ms == pytest.approx(np.std(np.arange(1, 102)))


def test_models_take_turns_and_known_times_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    monkeypatch.setattr(
        module, "_opened", lambda item, *_: [Sleeper(str(item), 0.002 if item == "fast" else 0.006, log)]
    )
    report = bench(["fast", "slow"], size="24x16", threads=1, runs=5, warmup=2)
    assert log == ["fast", "fast", "slow", "slow"] + ["fast", "slow"] * 5
    fast, slow = report.results
    assert 2 <= fast.network.min_ms < slow.network.min_ms
    assert slow.network.min_ms >= 6
    assert fast.whole.median_ms > fast.network.median_ms
    assert (fast.runs, report.warmup, report.threads, report.size) == (5, 2, 1, "24x16")


def test_time_budget_cuts_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_opened", lambda item, *_: [Sleeper(str(item), 0.01, [])])
    monkeypatch.setattr(module, "TIME_BUDGET_S", 0.05)
    assert 1 <= bench("m", size="24x16", warmup=0).results[0].runs < 20


@pytest.mark.parametrize("backend", [None, Backend.ONNXRUNTIME, Backend.TORCH])
def test_checkpoints_run_in_both_backends(checkpoint: Path, backend: Backend | None) -> None:
    report = bench(checkpoint, size="24x16", threads=1, backend=backend, runs=3, warmup=1)
    assert [result.backend for result in report.results] == [(backend or Backend.ONNXRUNTIME).value]
    assert report.results[0].model == "tiny.safetensors"
    assert json.loads(json.dumps(report.to_json()))["machine"]["cores"] >= 1
    assert report.table().row_count == 1


def test_bundles_are_timed_file_by_file(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert [r.model for r in bench(bundle, size="24x16", runs=1, warmup=0).results] == ["any.onnx", "fixed.onnx"]
    assert [r.model for r in bench(bundle, size="20x20", runs=1, warmup=0).results] == ["any.onnx"]
    assert "fixed.onnx is left out: it takes 24x16 only" in capsys.readouterr().err


def test_wrong_use(bundle: Path, checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give --size 24x16"):
        bench(bundle / "fixed.onnx", size="20x20")
    with pytest.raises(InputError, match="no file for pictures"):
        bench(tmp_path, size="20x20")
    with pytest.raises(InputError, match="WIDTHxHEIGHT"):
        bench(checkpoint, size="big")
    with pytest.raises(InputError, match="start at 1"):
        bench(checkpoint, runs=0)
    for item in (bundle, bundle / "any.onnx"):
        with pytest.raises(InputError, match="run in onnxruntime"):
            bench(item, size="24x16", backend=Backend.TORCH)
