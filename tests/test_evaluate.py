from __future__ import annotations

import csv
import hashlib
import io
import json
from math import inf, isnan, log10, nan
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow.parquet
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console

from duskfuse.data.errors import InputError
from duskfuse.data.images import read_grey_u8, read_infrared, read_visible, write_picture
from duskfuse.data.weights import ModelCard, save_weights
from duskfuse.evaluate.evaluate import evaluate, metrics_named
from duskfuse.evaluate.fusers import open_fuser
from duskfuse.evaluate.metrics import ALL as ALL_METRICS
from duskfuse.evaluate.metrics import DEFAULT as METRICS
from duskfuse.evaluate.metrics import DEFAULT_METRICS, Mode, SourceStatistics, fusion_metrics
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


def test_parquet_and_summary_hold_what_the_rows_say(data: Path, tmp_path: Path):
    fused = {"ours": write_fused(data, tmp_path / "fused"), "twin": write_fused(data, tmp_path / "twin")}
    out = tmp_path / "out"
    found = evaluate(data, fused=fused, reference="ours", metrics=["EN", "SCD", "Nabf"], out=out)
    stored = pyarrow.parquet.read_table(out / "per_image.parquet")
    assert stored.column_names == ["pair", "method", "kind", "EN", "SCD", "Nabf", "PSNR to ours"]
    table = {(line["pair"], line["method"]): line for line in stored.to_pylist()}
    for row in found.rows:
        for name, scores in row.scores.items():
            expected = {metric: None if isnan(value) else value for metric, value in scores.items()}
            line = table[name, row.name]
            assert {metric: line[metric] for metric in expected} == expected
    assert table["a", "ours"]["PSNR to ours"] is None
    assert table["a", "twin"]["PSNR to ours"] == inf
    stamp = json.loads(stored.schema.metadata[b"duskfuse"])
    assert (stamp["mode"], stamp["pairs"]) == ("definition", 3)
    summary = {(line["method"], line["metric"]): line for line in lines(out / "summary.csv")}
    assert len(summary) == 6 * 4
    en = summary["twin", "EN"]
    values = [scores["EN"] for scores in found.rows[1].scores.values()]
    assert [float(en[key]) for key in ("mean", "median", "sd", "min", "max", "rank")] == pytest.approx(
        [np.mean(values), np.median(values), np.std(values, ddof=1), min(values), max(values), 1.5]
    )
    assert (en["interval_low"], en["pairs"], en["better"]) == ("", "3", "higher")
    assert summary["twin", "Nabf"]["better"] == "lower"
    assert [summary["visible only", "SCD"][key] for key in ("mean", "rank", "pairs", "undefined")] == ["", "", "0", "3"]
    assert [summary["twin", "PSNR to ours"][key] for key in ("mean", "identical", "rank")] == ["inf", "3", ""]


def test_json_has_what_is_needed_to_compare_numbers(data: Path, tmp_path: Path):
    model, folder = blend_model(tmp_path / "blend.onnx"), write_fused(data, tmp_path / "fused")
    first = evaluate(data, model=[model], fused={"ours": folder}, out=tmp_path / "1", metrics=["EN"]).to_json()
    rows = {row["name"]: row for row in first["rows"]}
    assert rows["blend"]["sha256"] == hashlib.sha256(model.read_bytes()).hexdigest()
    assert rows["blend"]["origin"] == str(model)
    assert rows["average"]["sha256"] is None
    assert first["arithmetic"].keys() == {"code", "numpy", "opencv"}
    assert "Holm" in first["statistics"]
    again = evaluate(data, fused={"ours": folder}, out=tmp_path / "2", metrics=["EN"]).to_json()
    assert again["rows"][0]["sha256"] == rows["ours"]["sha256"]
    assert again["sources_sha256"] == first["sources_sha256"]
    write_picture(folder / "b.png", np.zeros((48, 64), np.uint8))
    write_picture(data / "ir" / "a.png", np.zeros((48, 64), np.uint8))
    other = evaluate(data, fused={"ours": folder}, out=tmp_path / "3", metrics=["EN"]).to_json()
    assert other["rows"][0]["sha256"] != rows["ours"]["sha256"]
    assert other["sources_sha256"] != first["sources_sha256"]


def test_ranks_and_tests_of_methods(tmp_path: Path):
    """Nine pairs: a sharper copy beats a blurred one in every pair, which nine pairs can show of two metrics."""
    rng = np.random.default_rng(0)
    for number in range(9):
        picture = np.clip(128 + np.cumsum(rng.normal(0, 6, (24, 32)), axis=1), 0, 255)
        write_picture(tmp_path / "set" / "ir" / f"{number}.png", picture.astype(np.uint8))
        write_picture(tmp_path / "set" / "vis" / f"{number}.png", picture[::-1].astype(np.uint8))
        for name, level in (("sharp", 1.0), ("blurred", 0.5)):
            write_picture(tmp_path / name / f"{number}.png", (128 + level * (picture - 128)).astype(np.uint8))
    folders = {name: tmp_path / name for name in ("blurred", "sharp")}
    found = evaluate(tmp_path / "set", fused=folders, metrics=["SD", "AG"], out=tmp_path / "out")
    assert found.ranks["sharp"] == {"SD": 1, "AG": 1}
    assert found.ranks["blurred"] == {"SD": 2, "AG": 2}
    assert (found.mean_rank("sharp"), found.mean_rank("blurred")) == (1, 2)
    assert found.ranks["average"]["SD"] == 4  # among the trivial rows
    assert [(test.metric, test.first, test.second, test.better) for test in found.tests] == [
        ("SD", "blurred", "sharp", "sharp"),
        ("AG", "blurred", "sharp", "sharp"),
    ]
    assert found.tests[0].p == pytest.approx(2 / 2**9)
    assert found.tests[0].p_corrected == pytest.approx(4 / 2**9)
    stored = found.to_json()
    assert stored["tests"][0]["better"] == "sharp"
    assert stored["rows"][1]["mean_rank"] == 1
    low, high = stored["rows"][1]["interval"]["SD"]
    assert low < stored["rows"][1]["mean"]["SD"] < high
    shown = printed(found, width=100)
    assert "±" in shown
    assert "SD AG" in shown
    assert "4 paired tests" not in shown
    assert "2 paired tests" in shown


def test_few_pairs_make_no_claim(data: Path, tmp_path: Path):
    fused = {name: write_fused(data, tmp_path / name) for name in ("one", "two")}
    found = evaluate(data, fused=fused, out=tmp_path / "out")
    assert all(test.p is None and test.better is None for test in found.tests)
    assert all(row.summary("EN").interval is None for row in found.rows)
    assert "Fewer than 6 pairs: no difference between methods is claimed" in printed(found, width=100)


@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_the_terminal_table_fits_its_width(data: Path, tmp_path: Path, width: int):
    names = [f"method-with-a-long-name-{number}" for number in range(4)]
    fused = {name: write_fused(data, tmp_path / name) for name in names}
    shown = printed(evaluate(data, fused=fused, reference=names[0], out=tmp_path / "out"), width=width)
    assert max(map(len, shown.splitlines())) <= width
    assert "…" not in shown
    assert all(f"{name}↑" in shown or f"{name}↓" in shown for name in SHOWN)
    assert "9 more metrics are in summary.csv" in shown.replace("\n", " ")


def test_metrics_are_named_in_any_case_and_order():
    assert metrics_named("default") == DEFAULT_METRICS
    assert metrics_named("ALL") == tuple(metric.name for metric in ALL_METRICS)
    assert metrics_named(" qabf, EN ,ms-ssim,") == ("EN", "MS-SSIM", "Qabf")
    for text, remedy in (("EN,VIFFF", "did you mean VIFF"), ("EN,brightness-of-it-all", "leave it away")):
        with pytest.raises(InputError, match=remedy):
            metrics_named(text)
    with pytest.raises(InputError, match="no metrics"):
        metrics_named(",")


def test_chosen_metrics_are_the_columns(data: Path, tmp_path: Path):
    found = evaluate(data, metrics=["FMI-pixel", "EN"], out=tmp_path / "out")
    assert [metric.name for metric in found.metrics] == ["EN", "FMI-pixel"]
    assert set(found.rows[0].scores["a"]) == {"EN", "FMI-pixel"}
    assert "FMI-pixel↑" in printed(found, width=100)
    with pytest.raises(InputError, match="unknown metric"):
        evaluate(data, metrics=["fmi"], out=tmp_path / "out")


def test_modes_are_those_of_the_metrics(data: Path, tmp_path: Path):
    ir, vis = (read_grey_u8(data / side / "b.png") for side in ("ir", "vis"))
    for mode in Mode:
        found = evaluate(data, mode=mode, out=tmp_path / mode, metrics=["SD", "SSIM", "PSNR"])
        expected = fusion_metrics(SourceStatistics(ir, vis, mode), np.maximum(ir, vis), ("SD", "PSNR", "SSIM"))
        assert next(row for row in found.rows if row.name == "maximum").scores["b"] == pytest.approx(expected)
        assert json.loads((tmp_path / mode / "metrics.json").read_text())["mode"] == mode


def test_one_split(data: Path, tmp_path: Path):
    for split, name in (("train", "a"), ("test", "b"), ("test", "c")):
        for side in ("ir", "vis"):
            write_picture(tmp_path / "set" / split / side / f"{name}.png", read_grey_u8(data / side / f"{name}.png"))
    found = evaluate(tmp_path / "set", split="test", metrics=["EN"], out=tmp_path / "out")
    assert (list(found.rows[0].scores), found.split) == (["b", "c"], "test")
    assert found.to_json()["split"] == "test"
    with pytest.raises(InputError, match="holds the scores of set, split test"):
        evaluate(tmp_path / "set", split="train", metrics=["EN"], out=tmp_path / "out")


def test_a_changed_model_is_scored_anew(data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    """Also one whose weights lie beside it: then the .onnx file itself stays the same."""
    path, out = tmp_path / "model.onnx", tmp_path / "out"
    hashes = []
    for share in (0.25, 0.5):
        model = onnx.load(blend_model(tmp_path / "whole.onnx", share))
        for tensor in model.graph.initializer:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
        options = {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 0}
        onnx.save(model, path, **options)
        found = evaluate(data, model=[path], metrics=["EN"], out=out)
        hashes.append((hashlib.sha256(path.read_bytes()).hexdigest(), found.rows[0].sha256))
        (tmp_path / "weights.bin").rename(tmp_path / f"weights of {share}.bin")
    (file, first), (same_file, second) = hashes
    assert file == same_file
    assert first != second
    assert "model: fused pictures that have changed, scored anew: 3" in capfd.readouterr().err


def test_a_model_of_one_size_is_checked_before_any_work(data: Path, tmp_path: Path):
    model = onnx.load(blend_model(tmp_path / "whole.onnx"))
    for value in (*model.graph.input, *model.graph.output):
        for place, size in ((2, 48), (3, 60)):
            value.type.tensor_type.shape.dim[place].dim_value = size
    onnx.save(model, tmp_path / "fixed.onnx")
    with pytest.raises(InputError, match=r"fixed: 3 of another size .*it takes 60x48, a is 64x48"):
        evaluate(data, model=[tmp_path / "fixed.onnx"], metrics=["EN"], out=tmp_path / "out")


def test_workers_are_at_least_one(data: Path, tmp_path: Path):
    with pytest.raises(InputError, match="0 workers"):
        evaluate(data, workers=0, out=tmp_path / "out")


@pytest.mark.realdata
@pytest.mark.slow
def test_published_baselines(shared_data: Path, shared_facts: Path, tmp_path: Path):
    """Means over the 25 validation pairs, to the four digits they were recorded with."""
    golden = json.loads((shared_facts / "val_baselines.json").read_text())
    chosen = [metric.name for metric in METRICS if metric.name in golden["average"]]
    found = evaluate(shared_data / "val", metrics=chosen, out=tmp_path / "out")
    assert found.pairs == 25
    rows = {row.name: row for row in found.rows}
    for name, row in (("average", "average"), ("maximum", "maximum"), ("visible", "visible only")):
        means = {metric: rows[row].summary(metric).mean for metric in chosen}
        expected = {metric: nan if golden[name][metric] is None else golden[name][metric] for metric in means}
        assert len(means) == 14
        assert means == pytest.approx(expected, abs=5.001e-5, nan_ok=True)
