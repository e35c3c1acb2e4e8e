"""NVIDIA's own parser and builder read every student in every precision, and refuse what our lint refuses.

TensorRT for RTX shares parser, builder and Python interface with the newest TensorRT. It shows that files parse, that
types and Q/DQ pairs hold, that a builder lowers them, and that our builder's calls are real ones. It does not show what
TensorRT 8.5 or 10.3 do, nor any speed.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from onnx import helper
from onnx_cases import ACCEPTED, REFUSED
from rtx_builder import CRASHED, build_all

from duskfuse.export.onnx_graph import DeployedStudent, Precision, build_graph, save_graph, set_properties
from duskfuse.export.quantise import with_qdq
from duskfuse.export.tensorrt_lint import Verdict, lint
from duskfuse.export.tensorrt_releases import releases
from duskfuse.students.fake_quantise import QuantisedStudent
from duskfuse.students.zoo import ModelName, build_student, load_student

pytest.importorskip("tensorrt_rtx", reason="NVIDIA's builder is installed by the extra tensorrt-rtx")
NEWEST = releases()[-1].name
SMALL, MIDDLE, CAMERA = (64, 96), (120, 160), (480, 640)
"""(height, width)."""


def write_precisions(model: str, size: tuple[int, int], folder: Path) -> dict[str, Path]:
    """The files of a student for one size; INT8 with every convolution quantised, so with the most to refuse."""
    torch.manual_seed(0)
    student = load_student(model)[0] if model in list(ModelName) else build_student(model, {}).eval()
    quantised = QuantisedStudent(student).eval()
    int8 = build_graph(DeployedStudent(quantised.deployed()), size=size)
    graphs = {
        Precision.FP32: build_graph(DeployedStudent(student), size=size),
        Precision.FP16: build_graph(DeployedStudent(student, half=True), size=size),
        Precision.INT8: with_qdq(int8, dict.fromkeys(quantised.layers, 1 / 127)),
    }
    paths = {}
    for precision, graph in graphs.items():
        set_properties(graph, {"precision": precision})
        paths[precision.value] = folder / f"{model}-{size[1]}x{size[0]}-{precision}.onnx"
        save_graph(graph, paths[precision.value])
    return paths


def all_are_built(models: list[str], sizes: list[tuple[int, int]], folder: Path) -> None:
    paths = [path for model in models for size in sizes for path in write_precisions(model, size, folder).values()]
    verdicts = build_all(paths)
    assert {path.name: verdict.get("error") for path, verdict in verdicts.items() if not verdict["built"]} == {}
    assert len(verdicts) == 3 * len(models) * len(sizes)
    for path, verdict in verdicts.items():
        assert verdict["record"]["precision"] in path.name
        assert verdict["record"]["builder_flags"] == verdict["record"]["network_flags"] == []
        assert verdict["bytes"] > path.stat().st_size / 8
        assert any("Building" in line for line in verdict["said"]), "the builder reports its progress"


def test_the_small_students_are_built(tmp_path: Path) -> None:
    all_are_built(["nano", "edge"], [SMALL, MIDDLE], tmp_path)


@pytest.mark.slow
def test_the_large_students_are_built(tmp_path: Path) -> None:
    all_are_built(["unet", "mobile"], [SMALL, MIDDLE], tmp_path)


@pytest.mark.slow
def test_the_students_are_built_for_a_camera(tmp_path: Path) -> None:
    all_are_built(["nano", "edge", "unet"], [CAMERA], tmp_path)


def test_lint_and_builder_agree_case_by_case(tmp_path: Path) -> None:
    """What the lint refuses for the newest release the builder refuses, and the other way round."""
    cases = {**REFUSED, **ACCEPTED}
    paths = {}
    for name, make in cases.items():
        model = make()
        helper.set_model_props(model, {"precision": "int8" if "Q" in str(model.graph.node) else "fp32"})
        paths[name] = tmp_path / f"{name}.onnx"
        save_graph(model, paths[name])
    verdicts = build_all(paths.values())
    lint_refuses = {name for name, make in cases.items() if lint(make()).verdicts[NEWEST] is Verdict.REFUSED}
    builder_refuses = {name for name, path in paths.items() if not verdicts[path]["built"]}
    assert builder_refuses == lint_refuses == set(REFUSED)
    assert CRASHED not in {verdicts[path].get("error") for path in paths.values()}


def test_the_parser_s_refusal_names_the_node(tmp_path: Path) -> None:
    model = REFUSED["antialias"]()
    helper.set_model_props(model, {"precision": "fp32"})
    save_graph(model, tmp_path / "a.onnx")
    (verdict,) = build_all([tmp_path / "a.onnx"]).values()
    assert "node 0 'the_Resize' (Resize)" in verdict["error"]
    assert not (tmp_path / "a.engine").exists()


def test_a_crash_is_a_verdict_and_the_rest_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker ends at the second file, as a library that crashes would make it."""
    good, bad, rest = (tmp_path / f"{name}.onnx" for name in ("good", "bad", "rest"))
    script = tmp_path / "worker.py"
    script.write_text(
        "import os, sys\n"
        "for line in sys.stdin:\n"
        "    if 'bad' in line: os.abort()\n"
        "    print('{\"built\": true}', flush=True)\n"
    )
    monkeypatch.setattr("rtx_builder.__file__", str(script))
    verdicts = build_all([good, bad, rest])
    assert [verdicts[path]["built"] for path in (good, bad, rest)] == [True, False, True]
    assert verdicts[bad]["error"] == CRASHED
