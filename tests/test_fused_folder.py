"""Folders of fused pictures as other programs leave them: everything unusual is named, nothing is mended silently."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from duskfuse.cli import app
from duskfuse.data.errors import InputError
from duskfuse.data.images import read_grey_u8, write_picture
from duskfuse.evaluate.evaluate import OnBad, evaluate
from duskfuse.evaluate.fused_folder import read_fused
from duskfuse.evaluate.scores import Evaluation, Oddity

NAMES = [f"{number:02}" for number in range(8)]
METRICS = ("EN", "SD", "AG")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Eight pairs of 24 by 32 pixels, whose values stay within 20 and 220."""
    rng = np.random.default_rng(0)
    for name in NAMES:
        for side in ("ir", "vis"):
            smooth = np.cumsum(rng.normal(0, 4, (24, 32)), axis=1) + 110
            write_picture(tmp_path / "pairs" / side / f"{name}.png", np.clip(smooth, 20, 220).astype(np.uint8))
    return tmp_path / "pairs"


@pytest.fixture
def fused(data: Path, tmp_path: Path) -> Path:
    """The maximum of both sources."""
    for name in NAMES:
        write_picture(tmp_path / "fused" / f"{name}.png", maximum(data, name))
    return tmp_path / "fused"


def maximum(data: Path, name: str) -> NDArray[np.uint8]:
    return np.maximum(*(read_grey_u8(data / side / f"{name}.png") for side in ("ir", "vis")))


def write(path: Path, picture: NDArray[np.generic]) -> None:
    """Any depth and channels, as OpenCV writes them (BGR)."""
    assert cv2.imwrite(str(path), picture)


def found(evaluation: Evaluation, row: str = "ours") -> dict[Oddity, tuple[str, ...]]:
    (chosen,) = (item for item in evaluation.rows if item.name == row)
    return {finding.oddity: finding.names for finding in chosen.findings}


def spoil(fused: Path, data: Path) -> None:
    """One bad picture of every kind, and an extra one."""
    (fused / "00.png").unlink()
    write(fused / "01.png", np.zeros((24, 30), np.uint8))
    (fused / "02.png").write_bytes((fused / "02.png").read_bytes()[:200])
    (fused / "03.png").write_bytes(b"")
    write(fused / "04.tif", maximum(data, "04"))
    (fused / "05.png").unlink()
    write(fused / "05.tif", maximum(data, "05").astype(np.float32) / 255)
    write(fused / "more.png", maximum(data, "00"))


def test_all_problems_are_listed_before_any_scoring(data: Path, fused: Path, tmp_path: Path):
    spoil(fused, data)
    other = tmp_path / "other"
    for name in NAMES[1:]:
        write_picture(other / f"{name}.png", maximum(data, name))
    with pytest.raises(InputError) as caught:
        evaluate(data, fused={"ours": fused, "theirs": other}, metrics=METRICS, out=tmp_path / "out")
    shown = str(caught.value).splitlines()
    assert shown[0].startswith("6 of 8 pairs cannot be scored")
    assert "--on-bad skip" in shown[0]
    assert sorted(text.strip() for text in shown[1:]) == sorted(
        [
            "ours: 1 missing: 00",
            "ours: 1 two pictures of one stem: 04 (04.png and 04.tif)",
            "ours: 1 of another size than the pair: 01 (01.png is 30x24, its pair is 32x24)",
            f"ours: 2 unreadable: 02, 03 ({fused / '02.png'}: the PNG file is truncated (200 bytes))",
            "ours: 1 16-bit or float with an unclear range: 05 (05.tif holds float32)",
            "theirs: 1 missing: 00",
        ]
    )
    assert not (tmp_path / "out").exists()


def test_skip_leaves_pairs_out_for_all_rows(data: Path, fused: Path, tmp_path: Path):
    spoil(fused, data)
    evaluation = evaluate(data, fused={"ours": fused}, metrics=METRICS, out=tmp_path / "out", on_bad=OnBad.SKIP)
    assert all(list(row.scores) == ["06", "07"] for row in evaluation.rows)
    assert evaluation.left_out == ("00", "01", "02", "03", "04", "05")
    assert found(evaluation)[Oddity.UNREADABLE] == ("02", "03")
    assert found(evaluation)[Oddity.EXTRA] == ("more.png",)
    stored = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert stored["left_out"] == list(evaluation.left_out)
    assert stored["pairs"] == 2
    assert {"oddity": "missing", "count": 1, "names": ["00"]} in stored["rows"][0]["findings"]
    assert "left out for all rows" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert any("left out for all rows" in note for note in evaluation.notes)
    alone = evaluate(data, metrics=METRICS, out=tmp_path / "alone")
    average = next(row for row in alone.rows if row.name == "average")
    kept = next(row for row in evaluation.rows if row.name == "average")
    assert {name: average.scores[name] for name in ("06", "07")} == dict(kept.scores)


def test_nothing_left_is_an_error_even_with_skip(data: Path, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="8 of 8 pairs cannot be scored") as caught:
        evaluate(data, fused={"ours": tmp_path / "empty"}, out=tmp_path / "out", on_bad=OnBad.SKIP)
    assert "ours: 8 missing: 00, 01, 02, 03, 04, …" in str(caught.value)
    assert "--on-bad" not in str(caught.value)


def test_bad_sources_are_listed_too(data: Path, fused: Path, tmp_path: Path):
    write_picture(data / "ir" / "01.png", np.zeros((20, 32), np.uint8))
    (data / "vis" / "02.png").write_bytes(b"no picture")
    (fused / "02.png").unlink()
    with pytest.raises(InputError) as caught:
        evaluate(data, fused={"ours": fused}, metrics=METRICS, out=tmp_path / "out")
    shown = str(caught.value)
    assert "data: 2 with unusable sources: 01, 02 (01: infrared is 32×20, visible is 32×24" in shown
    assert "ours: 1 missing: 02" in shown
    assert "ours: 1 without a pair" not in shown
    evaluation = evaluate(data, fused={"ours": fused}, metrics=METRICS, out=tmp_path / "out", on_bad=OnBad.SKIP)
    assert len(evaluation.rows[0].scores) == 6
    assert evaluation.findings[0].names == ("01", "02")


def test_grey_and_colour_alpha_and_palette_are_the_same_picture(data: Path, fused: Path, tmp_path: Path):
    """Of grey values, whatever they are stored as; only alpha is noted."""
    for name, channels in (("00", 3), ("01", 4)):
        grey = maximum(data, name)
        stored = np.repeat(grey[..., None], channels, axis=2)
        if channels == 4:
            stored[..., 3] = 77
        write(fused / f"{name}.png", stored)
    evaluation = evaluate(data, fused={"ours": fused}, metrics=METRICS, out=tmp_path / "out")
    rows = {row.name: row.scores for row in evaluation.rows}
    assert rows["ours"] == rows["maximum"]
    assert found(evaluation) == {Oddity.GREY: tuple(NAMES[2:]), Oddity.ALPHA: ("01",)}
    assert evaluation.notes == ("ours: 1 with alpha, which was dropped: 01.",)


def test_16_bit_of_full_range_is_scaled_by_257(data: Path, fused: Path, tmp_path: Path):
    for name in NAMES[:3]:
        write(fused / f"{name}.png", maximum(data, name).astype(np.uint16) * 257)
    write(fused / "03.png", np.repeat(maximum(data, "03")[..., None], 3, axis=2).astype(np.uint16) * 257 + 128)
    write(fused / "04.png", np.full((24, 32), 900, np.uint16))  # dark, but beside others that reach far
    evaluation = evaluate(data, fused={"ours": fused}, metrics=METRICS, out=tmp_path / "out")
    rows = {row.name: row.scores for row in evaluation.rows}
    for name in NAMES[:4]:
        assert rows["ours"][name] == pytest.approx(rows["maximum"][name])
    assert (rows["ours"]["04"]["SD"], read_fused(fused / "04.png").max()) == (0, 4)
    assert found(evaluation)[Oddity.DEEP] == tuple(NAMES[:5])
    assert "ours: 5 16-bit, scaled by 1/257: 00, 01, 02, 03, 04." in evaluation.notes


def test_16_bit_of_another_range_is_an_error(data: Path, fused: Path, tmp_path: Path):
    for name in NAMES:
        write(fused / f"{name}.png", maximum(data, name).astype(np.uint16) * 16)
    with pytest.raises(InputError, match="8 16-bit or float with an unclear range") as caught:
        evaluate(data, fused={"ours": fused}, metrics=METRICS, out=tmp_path / "out", on_bad=OnBad.SKIP)
    assert "no value of the folder is above 3" in str(caught.value)


def test_stretched_folders_are_recognised(data: Path, fused: Path, tmp_path: Path):
    stretched, nearly = tmp_path / "stretched", tmp_path / "nearly"
    for name in NAMES:
        picture = maximum(data, name).astype(float)
        full = np.rint((picture - picture.min()) / np.ptp(picture) * 255).astype(np.uint8)
        write_picture(stretched / f"{name}.png", np.repeat(full[..., None], 3, axis=2))
        write_picture(nearly / f"{name}.png", np.minimum(full, 254) if name == "05" else full)
    folders = {"plain": fused, "full": stretched, "nearly": nearly}
    evaluation = evaluate(data, fused=folders, metrics=METRICS, out=tmp_path / "out")
    assert {row.name: row.stretched for row in evaluation.methods} == {"plain": False, "full": True, "nearly": False}
    stored = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert (stored["stretched"], stored["look_stretched"]) == (False, ["full"])
    assert evaluation.notes[0].startswith("full looks stretched per picture")
    assert "full looks stretched per picture" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_a_full_span_says_nothing_where_the_sources_have_it(data: Path, tmp_path: Path):
    for name in NAMES:
        ir = read_grey_u8(data / "ir" / f"{name}.png")
        ir[0, :2] = 0, 255
        write_picture(data / "ir" / f"{name}.png", ir)
        write_picture(tmp_path / "fused" / f"{name}.png", ir)
    evaluation = evaluate(data, fused={"ours": tmp_path / "fused"}, metrics=METRICS, out=tmp_path / "out")
    assert not evaluation.rows[0].stretched


def test_the_command_lists_problems_and_ends_with_2(data: Path, fused: Path, tmp_path: Path):
    spoil(fused, data)
    command = ["evaluate", str(data), "--fused", f"ours={fused}", "--metrics", "en,sd", "--out", str(tmp_path / "out")]
    failed = CliRunner().invoke(app, command)
    assert failed.exit_code == 2
    assert "ours: 1 missing: 00" in failed.stderr
    assert "Traceback" not in failed.stderr
    done = CliRunner().invoke(app, [*command, "--on-bad", "skip", "--json"])
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["left_out"] == NAMES[:6]
    wrong = CliRunner().invoke(app, [*command, "--on-bad", "mend"])
    assert (wrong.exit_code, "one of error, skip" in wrong.stderr) == (2, True)
