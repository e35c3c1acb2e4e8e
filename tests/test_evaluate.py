from __future__ import annotations

import csv
import io
import json
from math import log10, nan
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from rich.console import Console

from duskfuse.data.errors import InputError
from duskfuse.data.images import read_grey_u8, read_infrared, read_visible, write_picture
from duskfuse.data.weights import ModelCard, save_weights
from duskfuse.evaluate.evaluate import evaluate
from duskfuse.evaluate.fusers import open_fuser
from duskfuse.evaluate.metrics import DEFAULT as METRICS
from duskfuse.evaluate.metrics import SourceStatistics, fusion_metrics
from duskfuse.evaluate.scores import Evaluation, Kind
from duskfuse.evaluate.terminal_tables import SHOWN, terminal_tables
from duskfuse.students.unet import UNetStudent

TRIVIAL = ["average", "maximum", "visible only", "infrared only"]
NAMES = ["a", "b", "c"]
FILES = ["metrics.json", "per_image.csv", "per_image.parquet", "report.html", "scores.jsonl", "summary.csv"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three pairs of 48 by 64 pixels, from dark to bright."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "night & day"
    for place, name in enumerate(NAMES):
        columns = np.arange(64) / 64
        vis = np.stack([columns * (90 + 70 * place)] * 48)[..., None] * [1.0, 0.8, 0.6] + rng.normal(0, 5, (48, 64, 3))
        ir = 60 + 120 * (np.hypot(*(np.indices((48, 64)) - 24)) < 9) + rng.normal(0, 4, (48, 64))
        write_picture(folder / "vis" / f"{name}.png", np.clip(vis, 0, 255).astype(np.uint8))
        write_picture(folder / "ir" / f"{name}.png", np.clip(ir, 0, 255).astype(np.uint8))
    return folder


def blend_model(path: Path, share: float = 0.25) -> Path:
    """An ONNX fusion network: share·ir + (1 − share)·vis_y."""
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = [helper.make_tensor(n, TensorProto.FLOAT, [], [v]) for n, v in (("q", share), ("t", 1 - share))]
    nodes = [
        helper.make_node("Mul", ["ir", "q"], ["x"]),
        helper.make_node("Mul", ["vis_y", "t"], ["y"]),
        helper.make_node("Add", ["x", "y"], ["fused_y"]),
    ]
    inputs, outputs = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, "h", "w"]) for name in names]
        for names in (("ir", "vis_y"), ("fused_y",))
    )
    graph = helper.make_graph(nodes, "blend", inputs, outputs, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def blended(data: Path, name: str, share: float = 0.25) -> NDArray[np.uint8]:
    y = read_visible(data / "vis" / f"{name}.png").astype(np.float64) @ [0.299, 0.587, 0.114]
    fused = share * read_infrared(data / "ir" / f"{name}.png") + (1 - share) * y
    return np.asarray(np.rint(fused * 255), dtype=np.uint8)


def write_fused(data: Path, folder: Path) -> Path:
    for name in NAMES:
        write_picture(folder / f"{name}.png", blended(data, name))
    return folder


def lines(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def printed(evaluation: Evaluation, width: int) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    for table in terminal_tables(evaluation):
        console.print(table)
    return console.export_text()


def test_scores_are_those_of_the_metrics(data: Path, tmp_path: Path):
    out = tmp_path / "out"
    fused = write_fused(data, tmp_path / "fused")
    found = evaluate(data, model=[blend_model(tmp_path / "blend.onnx")], fused={"ours": fused}, out=out)
    assert [row.name for row in found.rows] == ["blend", "ours", *TRIVIAL]
    assert [row.kind for row in found.rows] == [Kind.MODEL, Kind.FOLDER, *[Kind.TRIVIAL] * 4]
    for name in NAMES:
        ir, vis = (read_grey_u8(data / side / f"{name}.png") for side in ("ir", "vis"))
        statistics = SourceStatistics(ir, vis)
        pictures = {
            "blend": blended(data, name),
            "ours": blended(data, name),
            "average": ((ir.astype(int) + vis) // 2).astype(np.uint8),
            "maximum": np.maximum(ir, vis),
            "visible only": vis,
            "infrared only": ir,
        }
        for row in found.rows:
            expected = fusion_metrics(statistics, pictures[row.name])
            assert row.scores[name] == pytest.approx(expected, rel=1e-3 if row.name == "blend" else 1e-12, nan_ok=True)
    assert sorted(path.name for path in out.iterdir()) == FILES
    table = lines(out / "per_image.csv")
    assert [(line["pair"], line["method"]) for line in table][:7] == [
        *(("a", row.name) for row in found.rows),
        ("b", "blend"),
    ]
    assert len(table) == 18
    for line in table:
        row = next(row for row in found.rows if row.name == line["method"])
        values = {metric.name: float(line[metric.name] or nan) for metric in METRICS}
        assert values == pytest.approx(row.scores[line["pair"]], rel=0, nan_ok=True)


def test_json_is_strict_and_stamped(data: Path, tmp_path: Path):
    found = evaluate(data, model=[blend_model(tmp_path / "blend.onnx")], out=tmp_path / "out")

    def no_constants(name: str) -> Any:
        raise AssertionError(name)

    stored = json.loads((tmp_path / "out" / "metrics.json").read_text(), parse_constant=no_constants)
    assert stored == found.to_json()
    assert stored["duskfuse"]
    assert {key: stored[key] for key in ("data", "pairs", "mode", "stretched", "reference")} == {
        "data": "night & day",
        "pairs": 3,
        "mode": "definition",
        "stretched": False,
        "reference": None,
    }
    assert "8-bit" in stored["grey"]
    rows = {row["name"]: row for row in stored["rows"]}
    values = [float(line["Qabf"]) for line in lines(tmp_path / "out" / "per_image.csv") if line["method"] == "blend"]
    assert rows["blend"]["mean"]["Qabf"] == pytest.approx(np.mean(values))
    assert rows["blend"]["median"]["Qabf"] == pytest.approx(np.median(values))
    assert (rows["blend"]["min"]["Qabf"], rows["blend"]["max"]["Qabf"]) == (min(values), max(values))
    assert rows["visible only"]["mean"]["SCD"] is None
    assert rows["visible only"]["undefined"] == {"SCD": 3, "MS-SSIM": 3}  # 48 by 64 pixels have no five scales
    assert stored["metrics"]["Nabf"]["higher_is_better"] is False


def test_reference(data: Path, tmp_path: Path):
    fused = write_fused(data, tmp_path / "fused")
    models = [blend_model(tmp_path / "blend.onnx"), blend_model(tmp_path / "half.onnx", 0.5)]
    found = evaluate(data, model=models, fused={"ours": fused}, reference="ours", out=tmp_path / "out")
    column = "PSNR to ours"
    rows = {row.name: row for row in found.rows}
    expected = []
    for name in NAMES:
        difference = blended(data, name, 0.5).astype(float) - blended(data, name)
        expected.append(10 * log10(255**2 / (difference**2).mean()))
    assert rows["half"].summary(column).mean == pytest.approx(np.mean(expected), rel=1e-3)
    assert column not in rows["ours"].scores["a"]
    assert rows["average"].summary(column).mean < 60
    assert rows["blend"].summary(column).mean > 60  # the same pictures up to a rounding here and there
    assert found.better_trivial(found.metrics[-1]) == ()
    shown = tmp_path / "out" / "report.html"
    assert "PSNR to ours" in shown.read_text(encoding="utf-8")


def test_identical_pictures_are_infinite_and_counted(data: Path, tmp_path: Path):
    fused = write_fused(data, tmp_path / "fused")
    found = evaluate(data, fused={"ours": fused, "twin": fused}, reference="ours", out=tmp_path / "out")
    twin = next(row for row in found.to_json()["rows"] if row["name"] == "twin")
    assert twin["mean"]["PSNR to ours"] is None
    assert twin["identical"] == {"PSNR to ours": 3}
    assert {line["PSNR to ours"] for line in lines(tmp_path / "out" / "per_image.csv") if line["method"] == "twin"} == {
        "inf"
    }
    assert "∞" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_report_and_terminal(data: Path, tmp_path: Path):
    fused = write_fused(data, tmp_path / "fused")
    found = evaluate(
        data, model=[blend_model(tmp_path / "half.onnx", 0.5)], fused={"<b>ours": fused}, out=tmp_path / "out"
    )
    html = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "://" not in html
    assert "<b>" not in html
    assert "night &amp; day" in html
    assert 'class="n best"' in html
    for text in (*TRIVIAL, "trivial rows", "†", "– undefined", "↓", "mutual information"):
        assert text in html, text
    shown = printed(found, width=100)
    assert "<b>ours" in shown
    assert all(f"{name}↑" in shown or f"{name}↓" in shown for name in SHOWN)
    assert f"{found.rows[0].summary('VIF').mean:.3f}" in shown


def test_trivial_rows_need_no_method(data: Path, tmp_path: Path):
    found = evaluate(data, out=tmp_path / "out")
    assert [row.name for row in found.rows] == TRIVIAL
    assert found.methods == ()
    assert all(found.best(metric) == found.better_trivial(metric) == () for metric in METRICS)
    assert found.shown is not None
    assert found.shown.captions == ("infrared", "visible", "average", "maximum")


def test_best_needs_competition_and_respects_direction(data: Path, tmp_path: Path):
    fused = write_fused(data, tmp_path / "fused")
    one = evaluate(data, fused={"ours": fused}, out=tmp_path / "one")
    assert all(one.best(metric) == () for metric in METRICS)
    copied = tmp_path / "copied"
    rng = np.random.default_rng(1)
    for name in NAMES:
        write_picture(copied / f"{name}.png", rng.integers(0, 256, (48, 64), dtype=np.uint8))
    two = evaluate(data, fused={"ours": fused, "noise": copied}, out=tmp_path / "two")
    assert {metric.name: two.best(metric)[0] for metric in METRICS if metric.name in ("EN", "Nabf", "VIF")} == {
        "EN": "noise",
        "Nabf": "ours",
        "VIF": "ours",
    }


def test_models_of_one_stem_keep_apart(data: Path, tmp_path: Path):
    models = [
        blend_model(tmp_path / "run1" / "student.onnx"),
        blend_model(tmp_path / "run2" / "student.onnx", 0.5),
        blend_model(tmp_path / "other.v2.onnx"),
    ]
    found = evaluate(data, model=models, out=tmp_path / "out")
    assert [row.name for row in found.methods] == ["run1/student.onnx", "run2/student.onnx", "other.v2"]


def test_a_checkpoint_is_a_row(data: Path, tmp_path: Path):
    torch.manual_seed(0)
    student = UNetStudent()
    with torch.no_grad():
        for module in student.modules():
            if isinstance(module, torch.nn.Conv2d) and module.out_channels == 1:
                module.weight.mul_(50)  # so that the untrained output is a picture
                module.bias.fill_(0.5)
    card = ModelCard(architecture="unet", settings={}, colour="luma", version="0", training_data="none")
    path = tmp_path / "random.safetensors"
    save_weights(path, student, card)
    found = evaluate(data, model=[path], out=tmp_path / "out")
    assert found.rows[0].name == "random"
    vis = read_visible(data / "vis" / "b.png") @ np.array([0.299, 0.587, 0.114], np.float32)
    fused = open_fuser(path).fuse(read_infrared(data / "ir" / "b.png"), vis)
    statistics = SourceStatistics(*(read_grey_u8(data / side / "b.png") for side in ("ir", "vis")))
    expected = fusion_metrics(statistics, np.rint(fused * 255).astype(np.uint8))
    assert expected["SD"] > 1
    assert found.rows[0].scores["b"] == pytest.approx(expected, rel=1e-3, nan_ok=True)


def test_fused_pictures_of_nested_sets_match_by_name_or_stem(tmp_path: Path):
    rng = np.random.default_rng(0)
    folder, fused = tmp_path / "set", tmp_path / "fused"
    for split, stem in (("train", "1"), ("test", "1"), ("test", "2")):
        for side in ("ir", "vis"):
            write_picture(folder / split / side / f"{stem}.png", rng.integers(0, 256, (16, 16), dtype=np.uint8))
    for name, level in (("train__1", 10), ("test__1", 20), ("2", 30)):
        write_picture(fused / f"{name}.png", np.full((16, 16), level, np.uint8))
    found = evaluate(folder, fused={"ours": fused}, out=tmp_path / "out")
    assert set(found.rows[0].scores) == {"train__1", "test__1", "test__2"}
    (fused / "test__1.png").rename(fused / "1.png")
    with pytest.raises(InputError, match="ours: 1 missing: test__1"):
        evaluate(folder, fused={"ours": fused}, out=tmp_path / "out2")


def test_out_folder_is_protected(data: Path, tmp_path: Path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match="--overwrite"):
        evaluate(data, out=out)
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
    evaluate(data, out=out, overwrite=True)
    assert (out / "mine.txt").read_text() == "keep"
    assert (out / "report.html").is_file()
    with pytest.raises(InputError, match="is a file"):
        evaluate(data, out=out / "mine.txt")


def test_wrong_input_is_named_before_any_work(data: Path, tmp_path: Path):
    fused, out = write_fused(data, tmp_path / "fused"), tmp_path / "out"
    blend = blend_model(tmp_path / "blend.onnx")
    with pytest.raises(InputError, match=r"'ours'.*rows are: average, maximum"):
        evaluate(data, reference="ours", out=out)
    with pytest.raises(InputError, match="two rows are called 'average'"):
        evaluate(data, fused={"average": fused}, out=out)
    with pytest.raises(InputError, match="two rows are called 'blend'"):
        evaluate(data, model=[blend], fused={"blend": fused}, out=out)
    with pytest.raises(InputError, match="two rows"):
        evaluate(data, model=[blend, blend], out=out)
    with pytest.raises(InputError, match="no such folder"):
        evaluate(data, fused={"ours": tmp_path / "absent"}, out=out)
    write_picture(fused / "c.jpg", blended(data, "c"))
    with pytest.raises(InputError, match=r"c\.jpg and c\.png"):
        evaluate(data, fused={"ours": fused}, out=out)
    (fused / "c.jpg").unlink()
    write_picture(fused / "b.png", np.zeros((48, 60), np.uint8))
    with pytest.raises(InputError, match=r"b\.png is 60x48, its pair is 64x48"):
        evaluate(data, fused={"ours": fused}, out=out)
    (fused / "a.png").unlink()
    with pytest.raises(InputError, match="ours: 1 missing: a"):
        evaluate(data, fused={"ours": fused}, out=out)
    write_picture(data / "ir" / "a.png", np.zeros((40, 64), np.uint8))
    with pytest.raises(InputError, match="a: infrared is 64×40, visible is 64×48"):
        evaluate(data, out=out)
    assert not out.exists()


@pytest.mark.realdata
@pytest.mark.slow
def test_published_baselines(shared_data: Path, shared_facts: Path, tmp_path: Path):
    """Means over the 25 validation pairs, to the four digits they were recorded with."""
    golden = json.loads((shared_facts / "val_baselines.json").read_text())
    found = evaluate(shared_data / "val", out=tmp_path / "out")
    assert found.pairs == 25
    rows = {row.name: row for row in found.rows}
    for name, row in (("average", "average"), ("maximum", "maximum"), ("visible", "visible only")):
        means = {metric.name: rows[row].summary(metric.name).mean for metric in METRICS if metric.name in golden[name]}
        expected = {metric: nan if golden[name][metric] is None else golden[name][metric] for metric in means}
        assert len(means) == 14
        assert means == pytest.approx(expected, abs=5.001e-5, nan_ok=True)
