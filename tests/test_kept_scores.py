"""Nothing that was scored is lost or scored twice: kills, extensions, changes, damage."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from math import inf, nan
from pathlib import Path

import numpy as np
import pytest

from duskfuse.data.atomic import sole
from duskfuse.data.errors import DuskfuseError, InputError
from duskfuse.data.images import read_grey_u8, write_picture
from duskfuse.data.layout import find_pairs
from duskfuse.data.pair_files import PairFiles, SourcePicture
from duskfuse.data.reading import Reading
from duskfuse.evaluate.evaluate import evaluate
from duskfuse.evaluate.kept_scores import SCORES_FILE, KeptScores, Key, Line, holds_scores
from duskfuse.evaluate.metrics import Mode
from duskfuse.evaluate.score_pairs import BYTES_PER_PIXEL, Job, Rule, Wanted, answered, score, worker_count
from duskfuse.evaluate.scores import Evaluation

METRICS = ("EN", "SD", "VIF", "Qabf", "SSIM")
SETTINGS = {"mode": "definition", "code": "1"}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen pairs of 48 by 64 pixels."""
    folder = tmp_path_factory.mktemp("data") / "pairs"
    rng = np.random.default_rng(0)
    for number in range(16):
        for side in ("ir", "vis"):
            smooth = np.cumsum(rng.normal(0, 3, (48, 64)), axis=1) + 100 + 5 * number
            write_picture(folder / side / f"{number:02}.png", np.clip(smooth, 0, 255).astype(np.uint8))
    return folder


@pytest.fixture
def data(pairs: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    shutil.copytree(pairs, tmp_path / "pairs")
    return tmp_path / "pairs"


def fused_folder(data: Path, folder: Path, share: float = 0.5) -> Path:
    for path in sorted((data / "ir").iterdir()):
        ir, vis = (read_grey_u8(data / side / path.name).astype(float) for side in ("ir", "vis"))
        write_picture(folder / path.name, np.rint(share * ir + (1 - share) * vis).astype(np.uint8))
    return folder


def stored(out: Path) -> list[tuple[str, str]]:
    """Pair and method of every line of scores."""
    lines = [json.loads(line) for line in (out / SCORES_FILE).read_text(encoding="utf-8").splitlines()]
    return [(line["pair"], line["method"]) for line in lines[1:]]


def values(evaluation: Evaluation) -> dict[str, object]:
    return {row.name: row.scores for row in evaluation.rows}


def test_more_processes_give_the_same_numbers_in_the_same_order(pairs: Path, tmp_path: Path):
    fused = {"ours": fused_folder(pairs, tmp_path / "fused")}
    one = evaluate(pairs, fused=fused, out=tmp_path / "one", workers=1)
    three = evaluate(pairs, fused=fused, out=tmp_path / "three", workers=3)
    assert list(one.rows[0].scores) == list(three.rows[0].scores) == [f"{number:02}" for number in range(16)]
    assert repr(values(one)) == repr(values(three))
    for name in ("per_image.csv", "summary.csv"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "three" / name).read_bytes()


@pytest.mark.skipif(sys.platform != "linux", reason="signals and /proc")
@pytest.mark.parametrize(("end", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_an_evaluation_goes_on_where_it_was_ended(
    pairs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], end: signal.Signals, code: int
):
    """Its processes end with it, also when the signal is for the parent only."""
    out, fused = tmp_path / "out", fused_folder(pairs, tmp_path / "fused")
    command = [sys.executable, "-m", "duskfuse", "evaluate", pairs, "--fused", f"ours={fused}", "--out", out]
    options = ["--metrics", "all", "--workers", "2"]
    run = subprocess.Popen([*map(str, command), *options], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while not (out / SCORES_FILE).is_file() or (out / SCORES_FILE).read_bytes().count(b"\n") < 11:
        assert run.poll() is None, "finished before it could be killed"
        assert time.monotonic() < until
        time.sleep(0.01)
    children = [int(pid) for pid in Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()]
    run.send_signal(end)
    said = run.communicate(timeout=60)[1].decode()
    assert run.returncode == code
    assert "Traceback" not in said
    assert ("finished work is kept" in said) == (end is signal.SIGINT)
    kept = len(stored(out))
    assert 10 <= kept < 80
    with (out / SCORES_FILE).open("ab") as stream:
        stream.write(b'{"pair": "15", "method": "ours", "sour')  # as a kill in the middle of a write leaves it
    capfd.readouterr()
    resumed = evaluate(pairs, fused={"ours": fused}, metrics=METRICS, out=out)
    assert f"have their scores: {kept} of 80" in capfd.readouterr().err
    assert Counter(stored(out)) == Counter((pair, row.name) for pair in resumed.rows[0].scores for row in resumed.rows)
    assert repr(values(resumed)) == repr(
        values(evaluate(pairs, fused={"ours": fused}, metrics=METRICS, out=tmp_path / "anew"))
    )
    until = time.monotonic() + 20
    while any(_runs(pid) for pid in children):
        assert time.monotonic() < until, "processes outlive their parent"
        time.sleep(0.1)


def _runs(pid: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def test_one_more_method_or_metric_computes_that_only(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "out"
    first = {"ours": fused_folder(data, tmp_path / "first")}
    both = {**first, "theirs": fused_folder(data, tmp_path / "second", 0.3)}
    evaluate(data, fused=first, metrics=METRICS, out=out)
    before = stored(out)
    found = evaluate(data, fused=both, metrics=METRICS, out=out)
    assert [row.name for row in found.rows][:2] == ["ours", "theirs"]
    assert Counter(stored(out)) - Counter(before) == Counter((name, "theirs") for name in found.rows[0].scores)
    assert "have their scores: 80 of 96; scored now: 16" in capfd.readouterr().err

    asked: list[tuple[str, ...]] = []

    def spied(job: Job) -> object:
        asked.extend(wanted.metrics for wanted in job.wanted.values())
        return score(job)

    monkeypatch.setattr("duskfuse.evaluate.score_pairs.score", spied)
    more = evaluate(data, fused=both, metrics=(*METRICS, "MI"), out=out, workers=1)
    assert set(asked) == {("MI",)}
    assert len(asked) == 96
    assert [metric.name for metric in more.metrics] == ["EN", "SD", "MI", "SSIM", "VIF", "Qabf"]
    asked.clear()
    again = evaluate(data, fused=both, metrics=(*METRICS, "MI"), out=out, workers=1)
    assert asked == []
    assert repr(values(again)) == repr(values(more))
    renamed = evaluate(data, fused={"new name": tmp_path / "first"}, metrics=METRICS, out=out, workers=1)
    assert asked == []
    assert renamed.rows[0].scores == found.rows[0].scores


def test_what_has_changed_is_scored_anew_and_said(data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    out, folder = tmp_path / "out", fused_folder(data, tmp_path / "fused")
    evaluate(data, fused={"ours": folder}, metrics=METRICS, out=out)
    write_picture(folder / "03.png", np.arange(48 * 64).reshape(48, 64).astype(np.uint8))
    capfd.readouterr()
    found = evaluate(data, fused={"ours": folder}, metrics=METRICS, out=out)
    said = capfd.readouterr().err
    assert "have their scores: 79 of 80; scored now: 1\n" in said
    assert "ours: fused pictures that have changed, scored anew: 1\n" in said
    assert repr(values(found)) == repr(
        values(evaluate(data, fused={"ours": folder}, metrics=METRICS, out=tmp_path / "x"))
    )
    capfd.readouterr()
    evaluate(data, fused={"ours": folder}, metrics=METRICS, out=out, reading=Reading(black_hot=True))
    said = capfd.readouterr().err
    assert "have their scores" not in said
    assert "ours: pairs whose sources or reading have changed, scored anew: 16\n" in said
    write_picture(data / "vis" / "00.png", np.full((48, 64), 9, np.uint8))
    evaluate(data, fused={"ours": folder}, metrics=METRICS, out=out)
    said = capfd.readouterr().err
    assert "have their scores: 75 of 80" in said
    assert "average: pairs whose sources or reading have changed, scored anew: 1\n" in said


def test_another_mode_is_scored_anew_and_other_data_refused(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    evaluate(data, metrics=METRICS, out=out)
    found = evaluate(data, metrics=METRICS, out=out, mode=Mode.LINFENG_2022)
    assert "made with other settings (mode definition → linfeng-2022)" in capfd.readouterr().err
    assert len(stored(out)) == 64
    assert found.rows[0].summary("SD").mean < 20
    other = data.rename(tmp_path / "other")
    with pytest.raises(InputError, match=r"holds the scores of pairs.*--overwrite"):
        evaluate(other, metrics=METRICS, out=out)
    assert len(stored(out)) == 64
    assert evaluate(other, metrics=METRICS, out=out, overwrite=True).data == "other"


def test_overwrite_starts_anew(data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    out = tmp_path / "out"
    evaluate(data, metrics=METRICS, out=out)
    capfd.readouterr()
    evaluate(data, metrics=METRICS, out=out, overwrite=True)
    assert "have their scores" not in capfd.readouterr().err
    assert len(stored(out)) == 64


def test_two_evaluations_do_not_write_to_one_folder(data: Path, tmp_path: Path):
    out = tmp_path / "out"
    evaluate(data, metrics=["EN"], out=out)
    with sole(out / SCORES_FILE), pytest.raises(InputError, match="another evaluation is writing"):
        evaluate(data, metrics=["EN"], out=out)
    evaluate(data, metrics=["EN"], out=out)


def test_an_error_in_the_middle_keeps_what_was_scored(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "out"

    def failing(job: Job) -> object:
        if job.files.name >= "09":  # those behind it too: jobs are handed out ahead
            raise InputError("from 09 on all has gone")
        return score(job)

    monkeypatch.setattr("duskfuse.evaluate.score_pairs.score", failing)
    with pytest.raises(InputError, match="from 09 on all has gone"):
        evaluate(data, metrics=METRICS, out=out, workers=1)
    assert {pair for pair, _ in stored(out)} == {f"{number:02}" for number in range(9)}
    monkeypatch.undo()
    assert len(evaluate(data, metrics=METRICS, out=out).rows[0].scores) == 16


def test_a_process_that_dies_is_said(pairs: Path):
    files = find_pairs(pairs)
    deadly = PairFiles("deadly", _Deadly(files[0].ir.path), files[0].vis)
    jobs = [Job(pair, Mode.DEFINITION, {"a": Wanted(Rule.AVERAGE, ("EN",), False)}) for pair in [files[0], deadly]]
    with pytest.raises(DuskfuseError, match=r"died.*fewer --workers"):
        list(answered(iter(jobs), 2))


class _Deadly(SourcePicture):
    """A picture on which the process ends, as the kernel ends one when memory runs out."""

    def read(self) -> np.ndarray:
        os._exit(137)


def test_processes_fit_the_memory(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("duskfuse.data.priors.pipeline.cores", lambda: 16)
    assert worker_count(5, 640 * 480) == 1
    assert worker_count(10_000, 1) == 16
    assert worker_count(10_000, 2**62 // BYTES_PER_PIXEL) == 1


def line(pair: str, fused: str = "f", **scores: float) -> Line:
    return Line(pair, "ours", Key(f"sources of {pair}", fused), scores)


def test_numbers_survive_the_file(tmp_path: Path):
    path = tmp_path / SCORES_FILE
    kept = KeptScores(path, "data", SETTINGS)
    kept.keep([line("ä", EN=0.1 + 0.2, SCD=nan, PSNR=inf), line("b", SD=1e-17)])
    kept.keep([line("b", MI=2.0)])
    again = KeptScores(path, "data", SETTINGS)
    assert repr(again.get(Key("sources of ä", "f"))) == repr({"EN": 0.1 + 0.2, "SCD": nan, "PSNR": inf})
    assert again.get(Key("sources of b", "f")) == {"SD": 1e-17, "MI": 2.0}
    assert again.get(Key("sources of b", "g")) == {}
    assert again.last("b", "ours") == Key("sources of b", "f")


def test_every_cut_of_the_file_keeps_the_whole_lines(tmp_path: Path):
    path = tmp_path / SCORES_FILE
    kept = KeptScores(path, "data", SETTINGS)
    for pair in "abc":
        kept.keep([line(pair, EN=1.5)])
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert holds_scores(path)
        cut = KeptScores(path, "data", SETTINGS)
        assert sum(bool(cut.get(Key(f"sources of {pair}", "f"))) for pair in "abc") == max(
            0, whole[:length].count(b"\n") - 1
        )
        cut.keep([line("d", EN=2.5)])
        assert KeptScores(path, "data", SETTINGS).get(Key("sources of d", "f")) == {"EN": 2.5}


def test_damaged_lines_are_dropped_and_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    path = tmp_path / SCORES_FILE
    KeptScores(path, "data", SETTINGS).keep([line(pair, EN=1.5) for pair in "abcd"])
    lines = path.read_bytes().split(b"\n")
    lines[1], lines[2], lines[3] = b"\xff\x00\r", lines[2].replace(b"1.5", b'"1.5"'), b"[1, 2]"
    path.write_bytes(b"\n".join(lines))
    kept = KeptScores(path, "data", SETTINGS)
    assert [bool(kept.get(Key(f"sources of {pair}", "f"))) for pair in "abcd"] == [False, False, False, True]
    assert "damaged lines" in capfd.readouterr().err


def test_a_file_of_another_program_is_left_alone(data: Path, tmp_path: Path):
    out = tmp_path / "out"
    out.mkdir()
    for content in ('{"run": 1}\n', "mine"):
        (out / SCORES_FILE).write_text(content)
        assert not holds_scores(out / SCORES_FILE)
        with pytest.raises(InputError, match="not empty"):
            evaluate(data, out=out)
        with pytest.raises(InputError, match="holds no scores"):
            KeptScores(out / SCORES_FILE, "data", SETTINGS)
        assert (out / SCORES_FILE).read_text() == content
