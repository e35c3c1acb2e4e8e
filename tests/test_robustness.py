"""The robustness sweep: scores against the clean pair, drops, kept scores, files, errors."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from math import isnan, nan
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from rich.console import Console
from typer.testing import CliRunner

from duskfuse.cli import app
from duskfuse.data.errors import InputError
from duskfuse.data.images import grey_u8, read_infrared, read_visible, to_u8, write_picture
from duskfuse.data.progress import set_quiet
from duskfuse.evaluate import degraded_scores
from duskfuse.evaluate.degradations import CLEAN, DEGRADATIONS, Condition, Degradation
from duskfuse.evaluate.evaluate import evaluate
from duskfuse.evaluate.metrics import METRICS, SourceStatistics, fusion_metrics
from duskfuse.evaluate.report import Page
from duskfuse.evaluate.robustness import SWEPT_METRICS, Robustness, RobustnessRow, robustness
from duskfuse.evaluate.robustness_report import add_robustness, robustness_tables
from duskfuse.evaluate.score_pairs import Job
from duskfuse.evaluate.scores import Kind

NAMES = ["a", "b", "c", "d", "e"]
SOME = ("SD", "Qabf", "Nabf")
METRIC = {metric.name: metric for metric in METRICS}
CONDITIONS = [CLEAN, *(condition for degradation in DEGRADATIONS for condition in degradation.conditions)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five pairs of 48 by 64 pixels, from dark to bright."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("data") / "night & day"
    for place, name in enumerate(NAMES):
        columns = np.arange(64) / 64
        vis = np.stack([columns * (90 + 30 * place)] * 48)[..., None] * [1.0, 0.8, 0.6] + rng.normal(0, 5, (48, 64, 3))
        ir = 60 + 120 * (np.hypot(*(np.indices((48, 64)) - 24)) < 9) + rng.normal(0, 4, (48, 64))
        write_picture(folder / "vis" / f"{name}.png", np.clip(vis, 0, 255).astype(np.uint8))
        write_picture(folder / "ir" / f"{name}.png", np.clip(ir, 0, 255).astype(np.uint8))
    return folder


def blend_model(path: Path, share: float = 0.25, size: tuple[Any, Any] = ("h", "w")) -> Path:
    """An ONNX fusion network: share·ir + (1 − share)·vis_y."""
    weights = [helper.make_tensor(n, TensorProto.FLOAT, [], [v]) for n, v in (("q", share), ("t", 1 - share))]
    nodes = [
        helper.make_node("Mul", ["ir", "q"], ["x"]),
        helper.make_node("Mul", ["vis_y", "t"], ["y"]),
        helper.make_node("Add", ["x", "y"], ["fused_y"]),
    ]
    inputs, outputs = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, *size]) for name in names]
        for names in (("ir", "vis_y"), ("fused_y",))
    )
    graph = helper.make_graph(nodes, "blend", inputs, outputs, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture(scope="module")
def blend(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return blend_model(tmp_path_factory.mktemp("model") / "blend.onnx")


@pytest.fixture(scope="module")
def swept(data: Path, blend: Path, tmp_path_factory: pytest.TempPathFactory) -> Robustness:
    """One sweep over two of the pairs in the default metrics."""
    return robustness(data, model=[blend], out=tmp_path_factory.mktemp("out") / "swept", limit=2, workers=1)


def sources(data: Path, name: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    return read_infrared(data / "ir" / f"{name}.png"), read_visible(data / "vis" / f"{name}.png")


def flat(scores: Any) -> Any:
    """Scores by condition, pair and metric as one mapping, which `pytest.approx` compares."""
    if not isinstance(next(iter(scores.values())), dict):
        return scores
    return {(outer, inner): v for outer, part in scores.items() for inner, v in flat(part).items()}


def luma(vis: NDArray[np.float32]) -> NDArray[np.uint8]:
    return grey_u8(to_u8(vis))


@pytest.mark.parametrize("degradation", DEGRADATIONS, ids=lambda d: d.name)
def test_degraded_pairs_are_scored_against_the_clean_ones(degradation: Degradation, swept: Robustness, data: Path):
    severity = len(degradation.severities)
    for name in swept.pairs:
        ir, vis = sources(data, name)
        clean = SourceStatistics(to_u8(ir), luma(vis))
        worse_ir, worse_vis = degradation.apply(ir, vis, severity, name)
        fused = {
            "blend": to_u8(0.25 * worse_ir + 0.75 * (worse_vis @ np.array([0.299, 0.587, 0.114], np.float32))),
            "average": ((to_u8(worse_ir).astype(int) + luma(worse_vis)) // 2).astype(np.uint8),
            "maximum": np.maximum(to_u8(worse_ir), luma(worse_vis)),
        }
        assert [row.name for row in swept.rows] == list(fused)
        for row in swept.rows:
            expected = fusion_metrics(clean, fused[row.name], SWEPT_METRICS)
            # a value of the network on the edge of two grey levels may fall to either side
            tolerance = {"rel": 2e-3, "abs": 1e-3} if row.name == "blend" else {"rel": 1e-12}
            found = row.scores[Condition(degradation.name, severity)][name]
            assert found == pytest.approx(expected, nan_ok=True, **tolerance)


def test_clean_scores_are_those_of_an_evaluation(swept: Robustness, data: Path, blend: Path, tmp_path: Path):
    plain = evaluate(data, model=[blend], metrics=SWEPT_METRICS, out=tmp_path / "plain", workers=1)
    whole = {row.name: row.scores for row in plain.rows}
    for row in swept.rows:
        expected = {name: whole[row.name][name] for name in swept.pairs}
        assert flat(row.scores[CLEAN]) == pytest.approx(flat(expected), nan_ok=True)
        assert row.drop(METRIC["Qabf"], CLEAN) == 0
    # beside a black picture, the maximum is the other picture
    for dead, living in (("infrared black", "visible only"), ("visible black", "infrared only")):
        scores = swept.rows[2].scores[Condition(dead, 1)]
        expected = {name: whole[living][name] for name in swept.pairs}
        assert flat(scores) == pytest.approx(flat(expected), nan_ok=True)


def test_drops_are_positive_where_it_is_worse():
    scores = {
        CLEAN: {"a": {"VIF": 1.0, "Qcv": 100.0}, "b": {"VIF": 0.6, "Qcv": 300.0}, "c": {"VIF": nan, "Qcv": 1.0}},
        Condition("blur", 1): {
            "a": {"VIF": 0.7, "Qcv": 140.0},
            "b": {"VIF": 0.5, "Qcv": 320.0},
            "c": {"VIF": 0.2, "Qcv": 4.0},
        },
    }
    row = RobustnessRow("x", Kind.MODEL, scores)
    blur = Condition("blur", 1)
    assert row.drop(METRIC["VIF"], blur) == pytest.approx((0.3 + 0.1) / 2)  # c is undefined on the clean pair
    assert row.drop(METRIC["Qcv"], blur) == pytest.approx((40 + 20 + 3) / 3)  # lower is better
    assert row.mean(METRIC["VIF"], blur) == pytest.approx((0.7 + 0.5 + 0.2) / 3)
    assert row.mean(METRIC["VIF"], CLEAN) == pytest.approx(0.8)
    nothing = RobustnessRow("x", Kind.MODEL, {CLEAN: {"a": {"VIF": nan}}, blur: {"a": {"VIF": 1.0}}})
    assert isnan(nothing.drop(METRIC["VIF"], blur))


def test_mean_drop_and_curve(swept: Robustness):
    row, noise = swept.rows[0], DEGRADATIONS[2]
    drops = [row.drop(METRIC["Qabf"], condition) for condition in noise.conditions]
    assert row.mean_drop(METRIC["Qabf"], noise) == pytest.approx(np.mean(drops))
    curve = row.curve(METRIC["Qabf"], noise)
    assert [x for x, _ in curve] == [0, 1, 2, 3, 4, 5]
    assert curve[0][1] == row.mean(METRIC["Qabf"], CLEAN)
    assert [curve[0][1] - y for _, y in curve[1:]] == pytest.approx(drops)
    assert drops[4] > drops[0] > 0


def test_json_is_strict_and_complete(swept: Robustness):
    def no_constants(name: str) -> Any:
        raise AssertionError(name)

    stored = json.loads((swept.out / "robustness.json").read_text(), parse_constant=no_constants)
    assert stored == swept.to_json()
    assert stored["pairs"] == ["a", "e"]
    assert stored["pairs_found"] == 5
    assert stored["scored_against"] == "the clean sources"
    assert [d["name"] for d in stored["degradations"]] == [d.name for d in DEGRADATIONS]
    assert stored["degradations"][7]["severities"] == [{"pixels": pixels} for pixels in (1, 2, 4, 8, 16)]
    row = stored["rows"][0]
    assert (row["name"], row["kind"]) == ("blend", "model")
    worst = row["degraded"]["haze"][4]
    assert worst["severity"] == 5
    assert worst["drop"]["SSIM"] == pytest.approx(row["clean"]["SSIM"] - worst["mean"]["SSIM"])


def test_csv_holds_every_value(swept: Robustness):
    with (swept.out / "robustness.csv").open(newline="", encoding="utf-8") as stream:
        lines = list(csv.DictReader(stream))
    assert len(lines) == 2 * len(CONDITIONS) * 3
    rows = {row.name: row for row in swept.rows}
    for line in lines:
        scores = rows[line["method"]].scores[Condition(line["degradation"], int(line["severity"]))][line["pair"]]
        assert {name: float(line[name] or nan) for name in SWEPT_METRICS} == pytest.approx(scores, rel=0, nan_ok=True)


def test_page_and_terminal(swept: Robustness, tmp_path: Path):
    html = (swept.out / "robustness.html").read_text(encoding="utf-8")
    for text in (*(d.name for d in DEGRADATIONS), "exposure 0.03125, photons 2000", "pixels 16", "night &amp; day"):
        assert text in html, text
    assert "http://" not in html
    assert "https://" not in html
    curves = sum(len(degradation.severities) > 1 for degradation in DEGRADATIONS) * len(SWEPT_METRICS)
    assert html.count("<polyline") == 3 * curves
    assert html.count("<img ") == 3 + 2 * len(DEGRADATIONS)  # the clean pair, degraded pictures, what the model made
    page = Page("Other")
    add_robustness(page, swept)
    assert "Robustness" in page.html()
    console = Console(width=80, record=True, file=(tmp_path / "log").open("w"))
    for table in robustness_tables(swept):
        console.print(table)
    shown = console.export_text()
    assert "…" not in shown
    assert all(degradation.name in shown for degradation in DEGRADATIONS)
    drop = swept.rows[0].mean_drop(METRIC["Qabf"], DEGRADATIONS[0])
    assert f"{drop:.3f}".replace("-", "−") in shown


def test_pairs_are_spread_evenly_and_do_not_depend_on_each_other(
    swept: Robustness, data: Path, blend: Path, tmp_path: Path
):
    three = robustness(data, model=[blend], out=tmp_path / "three", limit=3, metrics=SOME, workers=1)
    assert three.pairs == ("a", "c", "e")
    assert [metric.name for metric in three.metrics] == list(SOME)
    for row, before in zip(three.rows, swept.rows, strict=True):
        for condition in CONDITIONS:
            for pair in ("a", "e"):
                for metric in SOME:
                    expected = before.scores[condition][pair][metric]
                    assert row.scores[condition][pair][metric] == pytest.approx(expected, nan_ok=True)


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """The jobs that a sweep computes."""
    seen: list[Job] = []
    real = degraded_scores.answered

    def answered(given: Iterator[Job], workers: int) -> Any:
        def noted() -> Iterator[Job]:
            for job in given:
                seen.append(job)
                yield job

        return real(noted(), workers)

    monkeypatch.setattr(degraded_scores, "answered", answered)
    return seen


def test_what_is_kept_is_not_computed_again(data: Path, blend: Path, tmp_path: Path, jobs: list[Job]):
    out = tmp_path / "out"
    first = robustness(data, model=[blend], out=out, limit=1, metrics=SOME, workers=1)
    assert len(jobs) == 1 + len(DEGRADATIONS)
    jobs.clear()
    again = robustness(data, model=[blend], out=out, limit=1, metrics=SOME, workers=1)
    assert jobs == []
    assert again.to_json() == first.to_json()
    more = robustness(
        data, model=[blend, blend_model(tmp_path / "half.onnx", 0.5)], out=out, limit=1, metrics=SOME, workers=1
    )
    assert {len(job.wanted) for job in jobs} == {1, 5}  # of the new model alone
    assert flat(more.rows[0].scores) == pytest.approx(flat(first.rows[0].scores), rel=0, nan_ok=True)
    jobs.clear()
    robustness(data, model=[blend], out=out, limit=1, metrics=SOME, workers=1, overwrite=True)
    assert len(jobs) == 1 + len(DEGRADATIONS)


def test_a_killed_sweep_goes_on(data: Path, tmp_path: Path, jobs: list[Job]):
    out = tmp_path / "out"
    whole = robustness(data, out=out, limit=1, metrics=("SD",), workers=1)
    path = out / "robustness_scores.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-3]) + lines[-3][:-5])  # the last three are lost, one of them in the middle
    jobs.clear()
    again = robustness(data, out=out, limit=1, metrics=("SD",), workers=1)
    assert sum(len(job.wanted) for job in jobs) == 3
    assert again.to_json() == whole.to_json()


def test_a_renamed_pair_draws_other_noise(data: Path, tmp_path: Path):
    folder, out = tmp_path / data.name, tmp_path / "out"
    for name in ("a", "z"):
        for side in ("ir", "vis"):
            (folder / side).mkdir(parents=True, exist_ok=True)
            (folder / side / f"{name}.png").write_bytes((data / side / "a.png").read_bytes())
    found = robustness(folder, out=out, limit=None, metrics=("SD",), workers=1)
    scores = found.rows[0].scores
    assert scores[CLEAN]["a"] == scores[CLEAN]["z"]
    assert scores[Condition("blur", 3)]["a"] == scores[Condition("blur", 3)]["z"]
    assert scores[Condition("noise", 3)]["a"] != scores[Condition("noise", 3)]["z"]


def test_errors_come_before_any_score(data: Path, blend: Path, tmp_path: Path):
    out = tmp_path / "out"
    with pytest.raises(InputError, match="--limit 0"):
        robustness(data, out=out, limit=0)
    with pytest.raises(InputError, match="unknown metric 'VIV'"):
        robustness(data, out=out, metrics=("VIV",))
    with pytest.raises(InputError, match="0 workers"):
        robustness(data, out=out, workers=0)
    with pytest.raises(InputError, match="two rows are called 'average'"):
        robustness(data, model=[blend_model(tmp_path / "average.onnx")], out=out)
    with pytest.raises(InputError, match=r"fixed: 5 of another size.*takes 32x32"):
        robustness(data, model=[blend_model(tmp_path / "fixed.onnx", size=(32, 32))], out=out)
    assert not out.exists()
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="file is a file"):
        robustness(data, out=tmp_path / "file")
    kept = tmp_path / "kept"
    robustness(data, out=kept, limit=1, metrics=("SD",), workers=1)
    folder = tmp_path / "other"
    for side in ("ir", "vis"):
        (folder / side).mkdir(parents=True)
        (folder / side / "a.png").write_bytes((data / side / "a.png").read_bytes())
        (folder / side / "b.png").write_bytes((data / side / "b.png").read_bytes()[:-200])
    with pytest.raises(InputError, match=r"b\.png"):
        robustness(folder, out=out)
    (folder / "ir" / "b.png").unlink()
    (folder / "vis" / "b.png").unlink()
    with pytest.raises(InputError, match="holds the scores of night & day"):
        robustness(folder, out=kept, metrics=("SD",), workers=1)
    assert not out.exists()


def test_from_the_shell(data: Path, blend: Path, tmp_path: Path):
    out = tmp_path / "out"
    code = ["evaluate", str(data), "--out", str(out), "--model", str(blend)]
    sweep = [*code, "--robustness", "--limit", "1", "--metrics", "sd,Qabf", "--workers", "1", "--json"]
    evaluated = ["metrics.json", "per_image.csv", "per_image.parquet", "report.html", "scores.jsonl", "summary.csv"]
    try:
        done = CliRunner().invoke(app, sweep)
        assert done.exit_code == 0, done.output
        found = json.loads(done.stdout)["robustness"]
        assert (found["pairs"], list(found["metrics"])) == (["a"], ["SD", "Qabf"])
        assert "infrared stripes" in (out / "report.html").read_text(encoding="utf-8")
        assert sorted(path.name for path in out.iterdir() if path.name not in evaluated) == [
            "robustness.csv",
            "robustness.html",
            "robustness.json",
            "robustness_scores.jsonl",
        ]
        for extra, said in (
            (["--video", "--reference", "blend"], "--reference with --video"),
            (["--video", "--robustness"], "--robustness with --video"),
            (["--limit", "3"], "--limit without --robustness"),
        ):
            done = CliRunner().invoke(app, [*code, *extra])
            assert done.exit_code == 2
            assert said in done.stderr
    finally:
        set_quiet(False)


def test_a_checkpoint_in_processes(data: Path, checkpoint: Path, tmp_path: Path):
    alone, many = (
        robustness(data, model=[checkpoint], out=tmp_path / str(workers), limit=1, metrics=SOME, workers=workers)
        for workers in (1, 2)
    )
    assert alone.rows[0].name == "tiny"
    for one, other in zip(alone.rows, many.rows, strict=True):
        assert flat(one.scores) == pytest.approx(flat(other.scores), rel=0, nan_ok=True)
