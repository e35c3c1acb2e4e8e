"""Runs that stop half way: what may change, what is damaged, who else was there, and kills at random moments."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from duskfuse.data.errors import InputError, TrainingError
from duskfuse.data.scenes.write import write_scenes
from duskfuse.data.weights import read_card
from duskfuse.distill.distill import DistillReport, distill
from duskfuse.distill.engine import Engine
from duskfuse.distill.run_folder import RunFolder
from duskfuse.students.zoo import load_student

HARNESS = Path(__file__).resolve().parents[1] / "benchmarks" / "killed_anywhere_distill.py"
RECIPE = """
name: short
data: {crop: [16, 16], batch: 2, workers: 0}
optimisers: {student: {lr: 1.0e-3, ema: 0.9}}
steps: {fuse: {owner: student, terms: {source_mse: 1, gradient_max: 2}}}
phases: [{name: only, batches: 10, cycle: [fuse]}]
save_every: 3
sample_every: 5
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, count=3, size=(32, 40), seed=0)
    return folder


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "short.yaml"
    path.write_text(RECIPE)
    return path


def run(data: Path, recipe: Path, out: Path, *changes: str, resume: bool = False) -> DistillReport:
    return distill(data, out=out, recipe=recipe, changes=changes, resume=resume)


def records(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def same_weights(one: Path, other: Path) -> bool:
    first, second = (load_student(out / "student.safetensors")[0].state_dict() for out in (one, other))
    return all(torch.equal(second[name], value) for name, value in first.items())


def stop_before(monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    """End the run as a crash does: nothing is saved."""
    real_step = Engine.step

    def step(self: Engine, number: int, *given: Any) -> Any:
        if number == batch:
            raise RuntimeError("crashed")
        return real_step(self, number, *given)

    monkeypatch.setattr(Engine, "step", step)


@pytest.fixture(scope="module")
def finished(data: Path, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    run(data, recipe, out)
    return out


@pytest.fixture
def crashed(data: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that ended before batch 8, with checkpoints of batches 3 and 6."""
    with monkeypatch.context() as patch:
        stop_before(patch, 8)
        with pytest.raises(RuntimeError, match="crashed"):
            run(data, recipe, tmp_path / "crashed")
    return tmp_path / "crashed"


def assert_equals_the_whole(finished: Path, out: Path) -> None:
    assert same_weights(finished, out)
    wanted = [(r["batch"], r["loss"]) for r in records(finished)]
    assert [(r["batch"], r["loss"]) for r in records(out)] == wanted


def test_a_report_says_time_waiting_and_memory(data: Path, recipe: Path, tmp_path: Path) -> None:
    report = run(data, recipe, tmp_path / "run", "gradient_norms_every=5")
    assert 0 <= report.waiting_share < 1
    assert report.peak_memory_mib is None or report.peak_memory_mib > 50
    lines = records(tmp_path / "run")
    assert all(0 <= line["waiting_seconds"] <= line["seconds"] for line in lines)
    measured = [line["batch"] for line in lines if "term_gradient_norms" in line]
    assert measured == [0, 5]
    assert set(lines[0]["term_gradient_norms"]) == {"source_mse", "gradient_max"}


def test_the_exported_weights_are_the_average_and_the_card_says_so(finished: Path) -> None:
    state = RunFolder(finished).load()
    assert state is not None
    exported = load_student(finished / "student.safetensors")[0].state_dict()
    averaged = {k.removeprefix("module."): v for k, v in state["engine"]["averages"]["student"].items()}
    assert all(torch.equal(value, averaged[name]) for name, value in exported.items())
    assert any(not torch.equal(v, state["engine"]["networks"]["student"][k]) for k, v in exported.items())
    assert "averaged with decay 0.9" in read_card(finished / "student.safetensors").notes


def test_sample_pictures_and_scalars_reach_tensorboard(finished: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(finished / "tensorboard")).Reload()
    assert [event.step for event in events.Images("samples")] == [4, 9]
    assert {"fuse/loss", "fuse/source_mse", "share of time waiting for data"} <= set(events.Tags()["scalars"])


def test_harmless_keys_may_change_and_the_result_does_not(
    data: Path, recipe: Path, finished: Path, crashed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = ("data.workers=1", "save_every=2", "sample_every=4", "gradient_norms_every=1")
    run(data, recipe, crashed, *changes, resume=True)
    assert "data.workers was 0, is 1" in capsys.readouterr().err
    assert_equals_the_whole(finished, crashed)
    run(data, recipe, crashed, *changes, resume=True)  # a finished run has nothing to do
    assert_equals_the_whole(finished, crashed)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("data.batch=4", "data.batch was 2, is 4"),
        ("data.accumulate=2", "data.accumulate was 1, is 2"),
        ("data.crop=[16, 32]", r"data.crop was \[16, 16\], is \[16, 32\]"),
        ("seed=3", "seed was 2, is 3"),
        ("phases.0.batches=11", "phases.0.batches was 10, is 11"),
        ("steps.fuse.terms.source_mse=2", "steps.fuse.terms.source_mse.weight was 1.0, is 2.0"),
    ],
)
def test_everything_else_may_not_and_the_difference_is_named(
    data: Path, recipe: Path, crashed: Path, change: str, said: str
) -> None:
    before = {path: path.read_bytes() for path in crashed.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=said):
        run(data, recipe, crashed, change, resume=True)
    assert {path: path.read_bytes() for path in crashed.rglob("*") if path.is_file()} == before


def test_other_pairs_are_refused(recipe: Path, crashed: Path, tmp_path: Path) -> None:
    write_scenes(tmp_path / "others", count=3, size=(32, 40), seed=1)
    with pytest.raises(InputError, match="pairs, masks or teacher pictures differ"):
        run(tmp_path / "others", recipe, crashed, resume=True)


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(
    data: Path, recipe: Path, finished: Path, crashed: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    older, newest = sorted((crashed / "checkpoints").glob("*.pt"))
    assert (older.name[:7], newest.name[:7]) == ("0000003", "0000006")
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content if damage == "flipped" else content[: len(content) // 2])
    run(data, recipe, crashed, resume=True)
    said = capsys.readouterr().err
    assert "damaged and set aside" in said
    assert "at batch 3" in said
    assert_equals_the_whole(finished, crashed)


def test_nothing_but_damaged_checkpoints_is_an_error(data: Path, recipe: Path, crashed: Path) -> None:
    for path in (crashed / "checkpoints").glob("*.pt"):
        path.write_bytes(b"rust")
    for _ in range(2):  # they have been set aside by then, and are not forgotten
        with pytest.raises(InputError, match=r"every checkpoint .* is damaged"):
            run(data, recipe, crashed, resume=True)


def test_what_a_killed_run_leaves_is_mended(data: Path, recipe: Path, finished: Path, crashed: Path) -> None:
    """Half a line of metrics and a temporary file without a writer."""
    with (crashed / "metrics.jsonl").open("a") as stream:
        stream.write('{"batch": 8, "pha')
    leftover = crashed / "checkpoints" / ".0000009-0.pt.0.tmp"
    leftover.write_bytes(b"half")
    os.utime(leftover, (0, 0))
    run(data, recipe, crashed, resume=True)
    assert not leftover.exists()
    assert_equals_the_whole(finished, crashed)


def test_a_run_that_died_before_its_first_checkpoint_starts_again(
    data: Path, recipe: Path, finished: Path, crashed: Path
) -> None:
    for path in (crashed / "checkpoints").iterdir():
        path.unlink()
    run(data, recipe, crashed, resume=True)
    assert_equals_the_whole(finished, crashed)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_the_end_of_the_update(
    data: Path, recipe: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """Asked in the middle of update 4, the run ends after it and has saved it."""
    real_update = Engine._update

    def update(self: Engine, *given: Any) -> Any:
        if sum(self.steps_done.values()) == 4:
            os.kill(os.getpid(), number)
        return real_update(self, *given)

    handlers = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "_update", update)
        with pytest.raises(KeyboardInterrupt):
            run(data, recipe, tmp_path / "run")
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == handlers
    state = RunFolder(tmp_path / "run").load()
    assert state is not None
    assert state["next_batch"] == 5
    run(data, recipe, tmp_path / "run", resume=True)
    assert_equals_the_whole(finished, tmp_path / "run")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_picture_is_named_without_a_traceback(data: Path, recipe: Path, tmp_path: Path, workers: int) -> None:
    shutil.copytree(data, tmp_path / "data")
    victim = sorted((tmp_path / "data" / "ir").iterdir())[1]
    victim.write_bytes(victim.read_bytes()[:200])
    with pytest.raises(InputError) as caught:
        run(tmp_path / "data", recipe, tmp_path / "run", f"data.workers={workers}")
    assert victim.name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "Traceback" not in str(caught.value)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_a_loading_process_that_dies_is_said(
    data: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_step = Engine.step

    def step(self: Engine, number: int, *given: Any) -> Any:
        if number == 1:
            os.kill(_child(), signal.SIGKILL)
        return real_step(self, number, *given)

    monkeypatch.setattr(Engine, "step", step)
    with pytest.raises(TrainingError, match=r"a loading process died .*--resume"):
        run(data, recipe, tmp_path / "run", "data.workers=1", "phases.0.batches=40")


def _child() -> int:
    """The process that this one started last."""
    children = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == os.getpid():
                children.append(int(stat.parent.name))
    return max(children)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="kills a process group")
def test_killed_three_times_it_ends_in_the_same_bits(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    done = subprocess.run(
        [sys.executable, str(HARNESS), "--kills", "3", "--seed", "1", "--out", str(out)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert result["kills"] == 3
    assert (result["different_weights"], result["different_metrics"]) == (0, 0)
