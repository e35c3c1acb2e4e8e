"""The command line as a user meets it: exit codes, one readable line, machine-readable results, no tracebacks."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from duskfuse.cli import app
from duskfuse.cli.verb import show
from duskfuse.data.images import read_picture, write_picture
from duskfuse.data.weights import ModelCard, save_weights
from duskfuse.students.unet import UNetStudent
from duskfuse.teachers.main_network import MainNetwork

CARD = {"settings": {}, "colour": "luma", "version": "0", "training_data": "none"}


@pytest.fixture(autouse=True)
def _progress_is_loud_again() -> object:
    yield
    from duskfuse.data.progress import set_quiet

    set_quiet(False)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "student.safetensors"
    save_weights(path, UNetStudent(), ModelCard(architecture="unet", **CARD))  # type: ignore[arg-type]
    return path


@pytest.fixture(scope="module")
def main_network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "teacher.safetensors"
    card = ModelCard(architecture="sage-main", **{**CARD, "settings": {"masks": 4}})  # type: ignore[arg-type]
    save_weights(path, MainNetwork(), card)
    return path


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Three good pairs of 40×48."""
    rng = np.random.default_rng(0)
    for name in "abc":
        write_picture(tmp_path / "pairs" / "ir" / f"{name}.png", rng.integers(0, 255, (40, 48), dtype=np.uint8))
        write_picture(tmp_path / "pairs" / "vis" / f"{name}.png", rng.integers(0, 255, (40, 48, 3), dtype=np.uint8))
    return tmp_path / "pairs"


def call(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    return result.exit_code, result.stdout, result.stderr


def fuse(pairs: Path, out: Path, student: Path) -> tuple[int, str, str]:
    return call("fuse", "--ir", pairs / "ir", "--vis", pairs / "vis", "--out", out, "--model", student)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def rename_text(path: Path) -> None:
    path.write_text("this is a shopping list")


def shrink(path: Path) -> None:
    write_picture(path.with_name("tmp.png"), np.zeros((8, 8), np.uint8))
    cv2.imwrite(str(path), np.zeros((1, 1), np.uint8))
    path.with_name("tmp.png").unlink()


def other_size(path: Path) -> None:
    write_picture(path, np.zeros((20, 48), np.uint8))


def nan_tiff(path: Path) -> None:
    picture = np.zeros((40, 48), np.float32)
    picture[3, 4] = np.nan
    path.unlink()
    cv2.imwrite(str(path.with_suffix(".tiff")), picture)


@pytest.mark.parametrize("damage", [truncate, rename_text, shrink, other_size, nan_tiff], ids=lambda f: f.__name__)
def test_one_bad_picture_is_named_and_the_others_are_fused(
    pairs: Path, tmp_path: Path, student: Path, damage: object
) -> None:
    damage(pairs / "ir" / "b.png")  # type: ignore[operator]
    code, _, said = fuse(pairs, tmp_path / "out", student)
    assert code == 2
    assert "b." in said
    assert sorted(p.name for p in (tmp_path / "out").glob("*.png")) == ["a.png", "c.png"]


def test_a_missing_partner_is_named(pairs: Path, tmp_path: Path, student: Path) -> None:
    (pairs / "ir" / "b.png").unlink()
    code, _, said = fuse(pairs, tmp_path / "out", student)
    assert code == 2
    assert "b" in said
    for command in (("cache-masks", pairs), ("evaluate", pairs, "--out", tmp_path / "scores", "--model", student)):
        code, _, said = call(*command)
        assert code == 2
        assert "b" in said


def test_an_all_black_infrared_picture_is_fused_without_nan(pairs: Path, tmp_path: Path, student: Path) -> None:
    write_picture(pairs / "ir" / "b.png", np.zeros((40, 48), np.uint8))
    code, _, _ = fuse(pairs, tmp_path / "out", student)
    assert code == 0
    assert read_picture(tmp_path / "out" / "b.png").shape == (40, 48, 3)


def test_an_empty_folder_is_refused(tmp_path: Path, student: Path) -> None:
    (tmp_path / "empty").mkdir()
    for command in (
        ("cache-masks", tmp_path / "empty"),
        ("distill", tmp_path / "empty", "--out", tmp_path / "run"),
        ("evaluate", tmp_path / "empty", "--out", tmp_path / "scores", "--model", student),
    ):
        code, _, said = call(*command)
        assert code == 2
        assert "empty" in said
    assert not (tmp_path / "run").exists()


def test_a_bad_picture_does_not_lose_the_masks_of_the_others(pairs: Path, tmp_path: Path) -> None:
    truncate(pairs / "vis" / "b.png")
    code, _, said = call("cache-masks", pairs, "--source", "regions", "--cache", tmp_path / "cache")
    assert code == 2
    assert "b.png" in said
    (pairs / "vis" / "b.png").unlink()
    (pairs / "ir" / "b.png").unlink()
    code, printed, _ = call("cache-masks", pairs, "--source", "regions", "--cache", tmp_path / "cache", "--json")
    assert code == 0
    assert json.loads(printed)["done"] == 0


def test_full_output_folders_are_refused_and_left_alone(pairs: Path, tmp_path: Path, student: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine.txt").write_text("keep")
    for command in (
        ("evaluate", pairs, "--out", taken, "--model", student),
        ("export", student, "--out", taken),
        ("demo", "--out", taken),
    ):
        code, _, said = call(*command)
        assert code == 2
        assert "--overwrite" in said
    code, _, said = call("demo", "--out", taken, "--overwrite")
    assert code == 2
    assert "demo folders only" in said
    assert (taken / "mine.txt").read_text() == "keep"


def test_a_checkpoint_of_another_architecture_is_refused(pairs: Path, tmp_path: Path, main_network: Path) -> None:
    for command in (
        ("export", main_network, "--out", tmp_path / "bundle"),
        ("bench", main_network),
        ("evaluate", pairs, "--out", tmp_path / "scores", "--model", main_network),
        ("fuse", "--ir", pairs / "ir", "--vis", pairs / "vis", "--out", tmp_path / "out", "--model", main_network),
    ):
        code, _, said = call(*command)
        assert code == 2
        assert "sage-main" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("fuse", "--ir", "no", "--vis", "no", "--out", "x.png", "--model", "unett"), "unet"),
        (("export", "unett", "--out", "bundle"), "unet"),
        (("export", "unet", "--out", "bundle", "--precision", "fp8"), "fp32, fp16, int8"),
        (("distill", "nowhere", "--out", "run", "--recipe", "defalt"), "default"),
        (("distill", "nowhere", "--out", "run", "--set", "data.bach=2"), "data.bach"),
        (("cache-masks", "nowhere"), "nowhere"),
        (("cache-masks", "nowhere", "--source", "sammy"), "sam, regions, labels"),
        (("evaluate", "nowhere", "--out", "scores", "--fused", "name"), "NAME=FOLDER"),
        (("bench", "unet", "--size", "640"), "WIDTHxHEIGHT"),
    ],
)
def test_wrong_words_get_the_right_ones(
    arguments: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, message = call(*arguments)
    assert code == 2
    assert said in message
    assert list(tmp_path.iterdir()) == []


def test_json_is_the_only_thing_on_stdout(pairs: Path, tmp_path: Path, student: Path) -> None:
    commands = [
        ("cache-masks", pairs, "--cache", tmp_path / "cache"),
        ("fuse", "--ir", pairs / "ir", "--vis", pairs / "vis", "--out", tmp_path / "out", "--model", student),
        ("evaluate", pairs, "--out", tmp_path / "scores", "--model", student),
        ("models",),
        ("recipes",),
        ("doctor",),
    ]
    for command in commands:
        code, printed, said = call(*command, "--json")
        assert code == 0, said
        assert isinstance(json.loads(printed), dict | list)
        assert said == ""


def test_a_real_process_returns_the_exit_codes(pairs: Path, tmp_path: Path, student: Path) -> None:
    shutil.rmtree(pairs / "vis")
    command = [
        sys.executable,
        "-m",
        "duskfuse",
        "evaluate",
        str(pairs),
        "--out",
        str(tmp_path / "s"),
        "--model",
        str(student),
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("duskfuse: ")
    assert "Traceback" not in result.stderr


def test_people_are_shown_the_first_of_a_long_list_and_ranges_as_such(capsys: pytest.CaptureFixture[str]) -> None:
    show({"made_of": [f"p{n}" for n in range(13)], "thermal_range": (0.0, 2.5), "size": (480, 640), "kept": []}, False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "made of: "
    assert lines[10:12] == ["  p9", "  … and 3 more"]
    assert lines[12:] == ["thermal range: 0 to 2.5", "size: (480, 640)", "kept: none"]
