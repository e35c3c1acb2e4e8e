"""The parts of an evaluation's report: which pairs it holds pictures of, scales, data for the script, provenance."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from math import inf, nan
from pathlib import Path

import cv2
import numpy as np
import pytest

from duskfuse.data.images import read_grey_u8, read_visible, write_picture
from duskfuse.data.layout import find_pairs
from duskfuse.data.pair_files import PairFiles
from duskfuse.evaluate.evaluation_report import evaluation_page
from duskfuse.evaluate.methods import Method
from duskfuse.evaluate.metrics import METRICS
from duskfuse.evaluate.report_page import embedding
from duskfuse.evaluate.report_page.browser import browser
from duskfuse.evaluate.report_page.embedding import extremes, shown_pairs
from duskfuse.evaluate.report_page.panels import command, drift, speed
from duskfuse.evaluate.report_page.plot import plot, scales
from duskfuse.evaluate.report_page.shown_pairs import Detail, ShownPair, ShownPairs
from duskfuse.evaluate.report_page.summary import summary
from duskfuse.evaluate.scores import Evaluation, Kind, Row
from duskfuse.evaluate.source_pictures import SourcePictures

BY_NAME = {metric.name: metric for metric in METRICS}
EN, NABF, PSNR = BY_NAME["EN"], BY_NAME["Nabf"], BY_NAME["PSNR"]
PAIRS = 10


def row(name: str, kind: Kind, *columns: list[float]) -> Row:
    """A row of EN and Nabf."""
    scores = {f"p{place}": {"EN": en, "Nabf": nabf} for place, (en, nabf) in enumerate(zip(*columns, strict=True))}
    return Row(name, kind, scores)


def evaluation(tmp_path: Path, *rows: Row) -> Evaluation:
    return Evaluation("set", tmp_path, rows, chosen=(EN, NABF))


@pytest.fixture
def scored(tmp_path: Path) -> Evaluation:
    """Two methods on ten pairs: EN rises with the pair, Nabf falls and then rises."""
    rising = [float(place) for place in range(PAIRS)]
    valley = [abs(place - 4) / 10 for place in rising]
    return evaluation(
        tmp_path,
        row("ours", Kind.FOLDER, rising, valley),
        row("theirs", Kind.MODEL, [value / 2 for value in rising], valley[::-1]),
        row("average", Kind.TRIVIAL, [1.0] * PAIRS, [0.0] * PAIRS),
        row("maximum", Kind.TRIVIAL, [3.0] * PAIRS, [0.4] * PAIRS),
    )


@pytest.fixture
def pairs(tmp_path: Path) -> list[PairFiles]:
    """Ten noisy pairs of 240 by 700 pixels, the brighter the later."""
    rng = np.random.default_rng(0)
    for place in range(PAIRS):
        for side, level in (("ir", 120), ("vis", 20 * place + 20)):
            picture = np.clip(rng.normal(level, 12, (240, 700, 3)), 0, 255).astype(np.uint8)
            write_picture(
                tmp_path / "set" / side / f"p{place}.png", picture[..., 0].copy() if side == "ir" else picture
            )
    return find_pairs(tmp_path / "set")


def method(name: str, kind: Kind, shift: int) -> Method:
    def picture(sources: SourcePictures) -> np.ndarray:
        return np.clip(sources.ir_u8.astype(int) + shift, 0, 255).astype(np.uint8)

    return Method(name, kind, picture=picture, key=lambda pair: pair)


BRIGHTNESS = {f"p{place}": 20.0 * place + 20 for place in range(PAIRS)}


def test_pictures_are_those_of_the_pair(scored: Evaluation, pairs: list[PairFiles]):
    methods = [method("ours", Kind.FOLDER, 5), method("theirs", Kind.MODEL, -60)]
    shown = shown_pairs(replace(scored, reference="ours"), pairs, methods, BRIGHTNESS)
    assert shown.captions == ("infrared", "visible", "ours", "theirs")
    assert [pair.name for pair in shown.pairs] == list(scored.rows[0].scores)
    assert shown.count(Detail.FULL) == PAIRS
    for files, pair in zip(pairs, shown.pairs, strict=True):
        decoded = [cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) for data in pair.pictures]
        assert {picture.shape for picture in decoded} == {(219, 640, 3)}
        infrared, visible, ours, theirs = (float(cv2.cvtColor(p, cv2.COLOR_BGR2GRAY).mean()) for p in decoded)
        assert infrared == pytest.approx(read_grey_u8(files.ir.path).mean(), abs=1.5)
        assert visible == pytest.approx(255 * read_visible(files.vis.path).mean(), abs=2)
        assert ours - theirs == pytest.approx(65, abs=2)
    assert set(shown.milliseconds) == {"theirs"}  # only models are timed, without the first picture
    assert len(shown.milliseconds["theirs"]) == PAIRS - 1
    assert set(shown.similarity) == {"theirs"}
    assert all(0.3 < value < 0.99 for value in shown.similarity["theirs"])


def test_budget_goes_to_the_pairs_that_tell_most(
    scored: Evaluation, pairs: list[PairFiles], monkeypatch: pytest.MonkeyPatch
):
    methods = [method("ours", Kind.FOLDER, 5)]
    whole = shown_pairs(scored, pairs, methods, BRIGHTNESS)
    one = max(sum(map(len, pair.pictures)) for pair in whole.pairs)
    monkeypatch.setattr(embedding, "FULL_BYTES", round(5.5 * one))
    monkeypatch.setattr(embedding, "ALL_BYTES", round(6.1 * one))
    shown = shown_pairs(scored, pairs, methods, BRIGHTNESS)
    detail = {pair.name: pair.detail for pair in shown.pairs}
    assert {"p0", "p1", "p2"} <= {name for name, found in detail.items() if found is Detail.FULL}  # the darkest
    assert 0 < shown.count(Detail.SMALL) < PAIRS
    assert sum(sum(map(len, pair.pictures)) for pair in shown.pairs) < 6.1 * one + one / 2
    assert all(bool(pair.pictures) is (pair.detail is not Detail.NONE) for pair in shown.pairs)
    monkeypatch.setattr(embedding, "ALL_BYTES", 1)
    monkeypatch.setattr(embedding, "FULL_BYTES", 1)
    bare = shown_pairs(scored, pairs, methods, BRIGHTNESS)
    assert (bare.count(Detail.FULL), bare.count(Detail.NONE)) == (1, PAIRS - 1)
    text = "".join(browser(scored, bare))
    assert "1 pair of 10 are held" in text
    assert "9 pairs without pictures" in text


def test_extremes_follow_the_direction_and_leave_out_the_undefined(scored: Evaluation):
    ours = scored.rows[0]
    worst, best = extremes(scored, ours, EN)
    assert (worst[0], best[0]) == ("p0", "p9")
    worst, best = extremes(scored, ours, NABF)
    assert (worst[0], best[0]) == ("p9", "p4")
    holes = row("holes", Kind.FOLDER, [nan, 2.0, inf], [0.1, nan, nan])
    assert extremes(scored, holes, EN) == (["p1", "p2"], ["p2", "p1"])
    assert extremes(scored, holes, PSNR) == ([], [])


def test_scales_are_those_of_the_trivial_rows(scored: Evaluation, tmp_path: Path):
    en, nabf = scales(scored)
    assert [en.of(value) for value in (1.0, 3.0, 5.0)] == [0.0, 1.0, 2.0]
    assert [nabf.of(value) for value in (0.4, 0.0, 0.8)] == pytest.approx([0.0, 1.0, -1.0])
    alike = evaluation(tmp_path, *scored.methods, row("average", Kind.TRIVIAL, [1.0] * PAIRS, [nan] * PAIRS))
    assert scales(alike) == []
    assert plot(alike) == []
    marks = re.findall(r'<svg class="line" data-row="(\d)" x="([\d.]+)%"', "".join(plot(scored)))
    assert [place for place, _ in marks] == ["0", "0", "1", "1"]
    ours = [float(x) for place, x in marks if place == "0"]
    assert ours[0] > ours[1]  # EN 4.5 is beyond the best trivial row, Nabf 0.25 between the two


def test_data_of_the_script_survives_any_name(scored: Evaluation, tmp_path: Path):
    evil = '</script><!--<script>"\\&\u2028'
    rows = tuple(replace(found, name=evil) if found.name == "ours" else found for found in scored.rows)
    named = replace(scored, data=evil, rows=rows)
    pairs = tuple(ShownPair(name, 1.0, Detail.FULL, (b"abc",)) for name in rows[0].scores)
    shown = ShownPairs(("infrared", "visible", evil), pairs)
    text = "".join(browser(named, shown))
    content = json.loads(re.findall(r'id="browser-data">(.*?)</script>', text)[0])
    assert content["captions"][2] == evil
    assert content["rows"][0]["name"] == evil
    assert content["scores"][0][0] == [float(place) for place in range(PAIRS)]
    page = evaluation_page(replace(named, shown=shown)).html()
    assert page.count("</script>") == page.count("<script") == PAIRS + 2  # pictures, data and the page's own


def test_undefined_and_infinite_scores_reach_the_script(tmp_path: Path):
    only = row("ours", Kind.FOLDER, [nan, inf, 1.23456789], [0.1, 0.2, 0.3])
    shown = ShownPairs(("infrared",), tuple(ShownPair(name, 1.0) for name in only.scores))
    text = "".join(browser(evaluation(tmp_path, only), shown))
    content = json.loads(re.findall(r'id="browser-data">(.*?)</script>', text)[0])
    assert content["scores"][0][0] == [None, "inf", 1.23457]


def test_summary_says_what_copying_wins_and_what_is_shown(scored: Evaluation):
    text = "".join(summary(scored))
    assert "In 1 of 2 metrics a trivial row beats every method" in text
    assert "<dt>average</dt><dd>Nabf</dd>" in text
    assert "1 : 0" in text
    assert "theirs better: none" in text
    assert text.index(">trivial rows<") > text.index("theirs</th>")
    short = replace(scored, rows=tuple(replace(r, scores=dict(list(r.scores.items())[:3])) for r in scored.rows))
    assert "With 3 pairs, fewer than 6, no difference between methods is claimed." in "".join(summary(short))


def test_command_and_provenance_hold_no_folder_of_the_machine(scored: Evaluation, tmp_path: Path):
    rows = (
        replace(scored.rows[0], origin="/home/ada/fused of mine", sha256="1" * 64),
        replace(scored.rows[1], origin="C:\\Users\\ada\\theirs.onnx"),
        *scored.rows[2:],
    )
    made = replace(scored, rows=rows, reference="ours", left_out=("x",), split="test", out=tmp_path / "out")
    assert command(made) == (
        "duskfuse evaluate set --fused 'ours=fused of mine' --model theirs.onnx --metrics EN,Nabf --split test "
        "--reference ours --on-bad skip --out out"
    )
    html = evaluation_page(made).html()
    assert "ada" not in html
    assert str(tmp_path) not in html
    assert "1" * 64 in html


def test_panels_appear_only_with_something_to_say(scored: Evaluation):
    html = evaluation_page(scored).html()
    for title in ("Pair by pair", "Distance to the reference", "Time per picture", "Robustness", "Stability in time"):
        assert f">{title}</h2>" not in html
    shown = ShownPairs(("infrared",), (), {"theirs": (10.0, 20.0, 90.0)}, {"theirs": (0.5, 0.9)})
    assert '<td class="n">20.0</td>' in "".join(speed(shown))
    column = "PSNR to ours"
    rows = tuple(
        replace(
            r, scores={pair: {**found, column: 30.0 + place} for place, (pair, found) in enumerate(r.scores.items())}
        )
        for r in scored.rows
    )
    text = "".join(drift(replace(scored, rows=rows, reference="ours"), shown))
    assert re.findall(r"<td[^>]*>([^<]*)</td>", text) == ["34.50", "30.00", "0", "0.7000", "0.5000"]
    assert "SSIM over the 2 pairs" in text
