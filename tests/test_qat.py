"""Fine-tuning for INT8: it helps, resumes exactly, its file computes what was trained, wrong recipes are refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from duskfuse.data.errors import InputError
from duskfuse.data.scenes.write import write_scenes
from duskfuse.data.weights import ModelCard, read_card, save_weights
from duskfuse.distill.distill import distill
from duskfuse.distill.engine import Engine
from duskfuse.distill.recipe import FusionField
from duskfuse.distill.recipe_files import load_recipe
from duskfuse.export.calibration import calibration_pairs
from duskfuse.export.export import export
from duskfuse.export.tensorrt_lint import lint
from duskfuse.students.fake_quantise import QuantisedStudent
from duskfuse.students.zoo import build_student, load_student

SMALL = ("data.crop=[32, 32]", "data.batch=2", "quantise.samples=16", "save_every=4", "sample_every=100")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, count=3, size=(48, 64), seed=0)
    return folder


def tune(data: Path, out: Path, *changes: str, batches: int = 10, resume: bool = False) -> Path:
    given = [*SMALL, f"phases.0.batches={batches}", *changes]
    distill(data, out=out, recipe="qat", changes=given, init=() if resume else [Path("edge")], resume=resume)
    return out / "student.safetensors"


@pytest.fixture(scope="module")
def tuned(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tune(data, tmp_path_factory.mktemp("runs") / "whole")


def test_the_checkpoint_is_a_student_with_scales(tuned: Path) -> None:
    card = read_card(tuned)
    assert card.architecture == "edge"
    assert card.settings == {"colour": "luma"}
    network = QuantisedStudent(load_student("edge")[0])
    assert card.int8_scales.keys() == network.layers.keys()
    assert all(scale > 0 for scale in card.int8_scales.values())
    student, _ = load_student(tuned)
    ir, vis = torch.rand(1, 1, 40, 56), torch.rand(1, 1, 40, 56)
    with torch.no_grad():
        difference = (student(vis, ir).y - load_student("edge")[0](vis, ir).y).abs().mean()
    assert 0 < float(difference) < 0.02, "a little beside where it came from"


def test_training_moves_weights_and_neither_scales_nor_the_float_student(data: Path, tmp_path: Path) -> None:
    short, long = tune(data, tmp_path / "one", batches=1), tune(data, tmp_path / "ten", batches=10)
    assert read_card(short).int8_scales == read_card(long).int8_scales
    first, last = (load_student(path)[0].state_dict() for path in (short, long))
    assert any(not torch.equal(first[name], last[name]) for name in first)
    newest = [max((tmp_path / run / "checkpoints").glob("*.pt")) for run in ("one", "ten")]
    states = [torch.load(path, weights_only=True)["engine"]["networks"] for path in newest]
    before, after = (state["student"] for state in states)
    kept = [name for name in before if name.startswith("original.") or name == "student.blocks.weight"]
    assert len(kept) > 10
    assert all(torch.equal(before[name], after[name]) for name in kept)


def test_a_crashed_run_goes_on_exactly(
    data: Path, tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_step = Engine.step

    def step(self: Engine, number: int, *given: object) -> object:
        if number == 6:
            raise RuntimeError("crashed")
        return real_step(self, number, *given)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "step", step)
        with pytest.raises(RuntimeError, match="crashed"):
            tune(data, tmp_path / "crashed")
    resumed = tune(data, tmp_path / "crashed", resume=True)
    assert read_card(resumed).int8_scales == read_card(tuned).int8_scales
    whole, again = (load_student(path)[0].state_dict() for path in (tuned, resumed))
    assert all(torch.equal(whole[name], tensor) for name, tensor in again.items())
    lines = [json.loads(line) for line in (tmp_path / "crashed" / "metrics.jsonl").read_text().splitlines()]
    assert [line["batch"] for line in lines] == list(range(10))


def test_the_exported_file_computes_what_was_trained(tuned: Path, data: Path, tmp_path: Path) -> None:
    """≤ 1e-4 in 99 % of the pixels, ≤ 1/127 in all; every scale a constant, which the lint demands."""
    report = export(tuned, out=tmp_path / "b", precision=["int8"], size=["64x48"], calibration=data)
    path = tmp_path / "b" / report.files[0].file
    model = onnx.load(path)
    assert lint(model).findings == ()
    assert {"Abs", "ReduceMax"}.isdisjoint(node.op_type for node in model.graph.node)
    properties = {entry.key: entry.value for entry in model.metadata_props}
    assert properties["int8"] == "fine-tuned for its scales"
    student, card = load_student(tuned)
    network = QuantisedStudent(student).eval()
    network.quantise(card.int8_scales)
    pair = calibration_pairs(data, (48, 64), 1)[0]
    vis, ir = torch.from_numpy(pair.vis)[None, None], torch.from_numpy(pair.ir)[None, None]
    with torch.no_grad():
        wanted = network(vis, ir).y.clamp(0, 1).numpy()
    options = onnxruntime.SessionOptions()  # its optimiser moves some Q/DQ, which changes roundings
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    error = np.abs(session.run(None, pair.feeds())[0] - wanted)
    assert np.quantile(error, 0.99) <= 1e-4
    assert error.max() <= 1 / 127
    drift = json.loads((tmp_path / "b" / "int8-drift.json").read_text())[report.files[0].file]
    assert [entry["layer"] for entry in drift["layers"]] == list(network.layers)
    assert drift["int8_macs_share"] == pytest.approx(1)


@pytest.mark.slow
def test_fine_tuning_brings_a_coarse_student_nearer_to_float(data: Path, tmp_path: Path) -> None:
    """A student whose weights quantise badly: one channel of each kernel is far wider than the others."""
    torch.manual_seed(0)
    student = load_student("nano")[0]
    with torch.no_grad():
        for block in student.context:
            block.wide[0].weight[:, 0] *= 12
    start = tmp_path / "coarse.safetensors"
    save_weights(start, student, ModelCard("nano", student.settings, "luma", "0.1.0", "by hand"))
    changes = [*SMALL, "student.architecture=nano", "phases.0.batches=80", "optimisers.student.lr=0.0003"]
    distill(data, out=tmp_path / "run", recipe="qat", changes=changes, init=[start])
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    psnr = [line["psnr_to_reference"] for line in lines]
    assert np.mean(psnr[-15:]) > np.mean(psnr[:15]) + 1


def test_named_layers_stay_float_and_wrong_names_are_told(data: Path, tmp_path: Path) -> None:
    path = tune(data, tmp_path / "run", "quantise.float_layers=[heads.g, stem_ir.0]", batches=1)
    assert {"heads.g", "stem_ir.0"}.isdisjoint(read_card(path).int8_scales)
    with pytest.raises(InputError, match=r"heads\.q.*\n?.*stem_ir\.0"):
        tune(data, tmp_path / "wrong", "quantise.float_layers=[heads.q]", batches=1)


def test_what_cannot_be_is_refused(data: Path, tuned: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--init edge"):
        distill(data, out=tmp_path / "a", recipe="qat")
    with pytest.raises(InputError, match="was fine-tuned for INT8"):
        distill(data, out=tmp_path / "b", recipe="qat", init=[tuned])
    with pytest.raises(InputError, match="student_float"):
        load_recipe("qat", ["quantise=null"])
    with pytest.raises(InputError, match="float32"):
        load_recipe("qat", ["precision=bfloat16"])
    with pytest.raises(InputError, match="feature maps"):
        load_recipe("qat", ["steps.student.terms.features={weight: 1, reference: student_float}"])
    assert FusionField.STUDENT_FLOAT in load_recipe("qat").fields_used()
    assert build_student("edge", {}).settings == {"colour": "luma"}
