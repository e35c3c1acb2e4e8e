"""The benchmark as it runs on a device: known times and powers are found, failing networks cost no numbers."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from duskfuse.export.device_runs import read_run
from duskfuse.export.onnx_graph import DeployedStudent, build_graph, save_graph, set_properties
from duskfuse.export.runtime import bench as module
from duskfuse.export.runtime.__main__ import main
from duskfuse.export.runtime.device_watch import DeviceWatch
from duskfuse.export.runtime.timings import Timing
from duskfuse.students.edge import EdgeStudent


class Sleeper:
    """A network that takes a known time."""

    rgb = False
    backend = "onnxruntime"

    def __init__(self) -> None:
        self.size: tuple[int, int] | None = None
        self.metadata = {"precision": "fp16"}

    def run(self, ir: np.ndarray, vis: np.ndarray) -> np.ndarray:
        time.sleep(0.004)
        fused: np.ndarray = np.maximum(ir, vis)
        return fused


def test_statistics_equal_plain_ones_and_warn() -> None:
    values = list(range(1, 102))
    timing = Timing.of(values)
    assert (timing.count, timing.min, timing.p50, timing.p90, timing.p99, timing.max) == (101, 1, 51, 91, 100, 101)
    assert timing.std == pytest.approx(np.std(values), abs=1e-4)
    assert timing.jitter == 49
    assert timing.variation == pytest.approx(np.std(values) / 51, abs=1e-5)
    assert "vary by 57.2%" in timing.warnings()[0]
    assert Timing.of([2.0] * 100).warnings() == []
    assert "only 5 runs" in Timing.of([2.0] * 5).warnings()[0]


def test_a_known_time_and_a_known_power_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IDLE_S", 0.6)
    script = tmp_path / "tegrastats"
    script.write_text(
        "#!/bin/sh\nwhile :; do echo 'RAM 1/2MB VDD_IN 5000mW/5000mW'; sleep 0.1; done\n", encoding="utf-8"
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with DeviceWatch(tmp_path, every_s=0.1) as watch:
        result = module.measure(Sleeper(), "sleeper", (48, 64), 0.5, watch, threads=1)
    assert result.network.min >= 4
    assert result.whole is not None
    assert result.whole.p50 >= result.network.p50
    assert result.warm_up["runs"] >= module.WARM_UP_RUNS
    assert result.warm_up["seconds"] >= module.WARM_UP_S
    assert result.seconds >= 0.5
    assert result.fps == pytest.approx(result.network.count / result.seconds, rel=1e-2)
    assert result.energy_mj is not None
    per_picture = 5000 * result.seconds / result.network.count
    assert result.energy_mj["VDD_IN"]["per_picture"] == pytest.approx(per_picture, rel=1e-3)
    assert result.energy_mj["VDD_IN"]["above_idle"] == 0
    assert (result.transfers, result.flags, result.size) == ("none", {"threads": 1}, "64x48")
    assert len(result.times_ms["network"]) == result.network.count


def test_the_command_writes_what_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "IDLE_S", 0.0)
    monkeypatch.setenv("PATH", str(tmp_path))  # no tegrastats, no trtexec
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    fixed = build_graph(DeployedStudent(EdgeStudent()), size=(32, 48))
    set_properties(fixed, {"precision": "fp32"})
    save_graph(fixed, bundle / "fixed.onnx")
    out = tmp_path / "result.json"
    assert main(["bench", str(bundle), "--seconds", "0.1", "--threads", "1", "--out", str(out)]) == 0
    (result,) = read_run(out).results
    assert (result.model, result.size, result.precision, result.energy_mj) == ("fixed.onnx", "48x32", "fp32", {})
    assert main(["bench", str(bundle), "--size", "64x64", "--out", str(out)]) == 1, "nothing fits"
    assert "takes 48x32 only" in capsys.readouterr().err
    (bundle / "broken.onnx").write_bytes(b"no network")
    assert main(["bench", str(bundle), "--seconds", "0.1", "--threads", "1", "--out", str(out)]) == 1
    document = json.loads(out.read_text(encoding="utf-8"))
    assert [entry["model"] for entry in document["results"]] == ["fixed.onnx"]
    assert "broken.onnx" in document["failures"][0]["reason"]
    assert main(["bench", str(bundle), "--trtexec"]) == 1
    assert "there is no trtexec" in capsys.readouterr().err
    for wrong in ([str(tmp_path / "none")], [str(bundle), "--size", "big"], [str(bundle), "--seconds", "0"], []):
        assert main(["bench", *wrong]) == 2, wrong
