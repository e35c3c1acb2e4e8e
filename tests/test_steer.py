"""The verb steer on small real files: what a run leaves, exact resume, refusals, pictures and files made of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from duskfuse.cli import app
from duskfuse.data.class_conventions import convention_named
from duskfuse.data.colour import luminance
from duskfuse.data.errors import InputError
from duskfuse.data.images import read_picture, write_picture
from duskfuse.data.layout import find_pairs
from duskfuse.data.pair_files import read_pair
from duskfuse.data.weights import ModelCard, read_card, save_weights
from duskfuse.distill.closed_loop.loop import update_of
from duskfuse.distill.closed_loop.steer import SteerReport, steer
from duskfuse.export.export import export
from duskfuse.export.fuse import fuse
from duskfuse.students.steering.steered import weights_digest
from duskfuse.students.steering.steering_file import load_steering, steer_for
from duskfuse.students.zoo import load_student
from duskfuse.tasks.open_segmenter import ARCHITECTURE, new_segmenter, segmenter_settings
from duskfuse.tasks.trunk import Trunk

SMALL = ("data.crop=[32, 32]", "data.batch=2", "data.workers=0", "batches=4", "save_every=2", "optimiser.warmup=1")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Targets that are hot in the infrared and cannot be seen in the visible picture, with their masks."""
    folder, rng = tmp_path_factory.mktemp("pairs"), np.random.default_rng(0)
    for index in range(5):
        vis, ir = rng.integers(60, 120, (40, 48, 3)), rng.integers(20, 60, (40, 48))
        label = np.zeros((40, 48), np.uint8)
        top, left = rng.integers(0, 20, 2)
        label[top : top + 16, left : left + 20] = 255
        ir[label > 0] += 150
        for side, picture in (("ir", ir), ("vis", vis), ("label", label)):
            write_picture(folder / side / f"{index:02d}.png", picture.astype(np.uint8))
    return folder


@pytest.fixture(scope="module")
def critic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("critic") / "segmenter.safetensors"
    segmenter = new_segmenter(convention_named("targets-2"))
    settings = segmenter_settings(segmenter, Trunk.RESIDUAL)
    save_weights(path, segmenter.network, ModelCard(ARCHITECTURE, settings, "rgb", "0.1.0", "nothing"))
    return path


def run(pairs: Path, critic: Path, out: Path, *changes: str, resume: bool = False) -> SteerReport:
    return steer(pairs, student="nano", critics=[critic], out=out, changes=(*SMALL, *changes), resume=resume)


@pytest.fixture(scope="module")
def finished(pairs: Path, critic: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    run(pairs, critic, out)
    return out


def test_a_run_leaves_everything_behind_and_the_student_alone(pairs: Path, finished: Path) -> None:
    report = json.loads((finished / "scores.json").read_text())
    assert (report["trained_on"], report["held_out"], report["batches"]) == (4, 1, 4)
    assert set(report["losses"]["segmentation"]) == {"first", "live", "fixed"}
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [line["batch"] for line in lines] == [0, 1, 2, 3]
    assert set(lines[0]["tasks"]["segmentation"]) == {"first", "steered", "punishment", "departure", "scale"}
    assert lines[0]["tasks"]["segmentation"]["first"] == lines[0]["tasks"]["segmentation"]["steered"]
    assert read_picture(finished / "samples" / "0000004.png").shape[1] == 4 * (32 + 4)
    student, _ = load_student("nano")
    card = read_card(finished / "steering.safetensors")
    assert card.settings["student"] == weights_digest(student)
    assert card.settings["tasks"] == ["segmentation"]
    assert (card.settings["branches"], card.settings["punishment"]) == (4, 5.0)
    assert card.settings["taps"] == ["stem_ir", "stem_vis"]
    stored = load_file(finished / "steering.safetensors")
    assert not any(key.startswith("student") for key in stored)
    assert float(stored["need_segmentation"].abs().sum()) > 0


def test_an_interrupted_run_resumes_to_the_same_bits(
    pairs: Path, critic: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, calls = tmp_path / "run", []

    def dying(*arguments: object, **named: object) -> object:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return update_of(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr("duskfuse.distill.closed_loop.steer.update_of", dying)
    with pytest.raises(KeyboardInterrupt):
        run(pairs, critic, out)
    monkeypatch.undo()
    run(pairs, critic, out, resume=True)
    assert (out / "metrics.jsonl").read_text() == (finished / "metrics.jsonl").read_text()
    first, second = (load_file(folder / "steering.safetensors") for folder in (finished, out))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    with pytest.raises(InputError, match=r"punishment was 5\.0, is 0\.0"):
        run(pairs, critic, out, "punishment=0", resume=True)
    with pytest.raises(InputError, match="not empty"):
        run(pairs, critic, out)


def test_what_does_not_fit_is_refused(pairs: Path, critic: Path, finished: Path, tmp_path: Path) -> None:
    file, (nano, _), (edge, _) = finished / "steering.safetensors", load_student("nano"), load_student("edge")
    with pytest.raises(InputError, match="belongs to the student"):
        load_steering(file, edge)
    with pytest.raises(InputError, match="trained for segmentation"):
        steer_for(nano, file, "detection")
    with pytest.raises(InputError, match="another architecture"):
        load_steering(critic, nano)
    with pytest.raises(InputError, match="give --steering FILE"):
        fuse(pairs / "ir", pairs / "vis", tmp_path / "out", model="nano", steering=file)
    with pytest.raises(InputError, match="two critics of segmentation"):
        steer(pairs, student="nano", critics=[critic, critic], out=tmp_path / "run")
    with pytest.raises(InputError, match=r"no layer .network\.nothing."):
        run(pairs, critic, tmp_path / "run", "layers.segmentation=network.nothing")
    with pytest.raises(InputError, match="tap 'stage1'"):
        run(pairs, critic, tmp_path / "run", "taps=[stage1]")
    with pytest.raises(InputError, match="branches"):
        run(pairs, critic, tmp_path / "run", "branches=33")
    bare = tmp_path / "bare"
    for side in ("ir", "vis"):
        shutil.copytree(pairs / side, bare / side)
    with pytest.raises(InputError, match="none of 5 pairs has ground truth"):
        run(bare, critic, tmp_path / "run")


def test_a_changed_file_is_refused(finished: Path, tmp_path: Path) -> None:
    """Other numbers of branches, and settings that no file of ours has."""
    file, (nano, _) = finished / "steering.safetensors", load_student("nano")
    card = read_card(file)
    for change, said in (
        ({"branches": 3}, "is .* and should be"),
        ({"mystery": 1}, "mystery"),
        ({"taps": []}, "is unexpected"),
    ):
        settings = json.dumps({**json.loads(json.dumps(dict(card.settings))), **change})
        changed = tmp_path / "changed.safetensors"
        text = json.dumps({"architecture": "steering", "settings": json.loads(settings), "colour": "luma"})
        meta = {**json.loads(text), "version": "0", "training_data": "nothing"}
        save_file(load_file(file), changed, {"duskfuse": json.dumps(meta)})
        with pytest.raises(InputError, match=said):
            load_steering(changed, nano)


def test_pictures_are_fused_for_a_task(pairs: Path, finished: Path, tmp_path: Path) -> None:
    """The command's pictures are those of the fixed form; without --for they are the student's own."""
    file, out = finished / "steering.safetensors", tmp_path / "for"
    words = ["fuse", "--ir", str(pairs / "ir"), "--vis", str(pairs / "vis"), "--model", "nano"]
    made = CliRunner().invoke(
        app, [*words, "--out", str(out), "--steering", str(file), "--for", "segmentation", "--json"]
    )
    assert made.exit_code == 0, made.output
    assert json.loads(made.stdout)["model"] == "nano for segmentation"
    assert CliRunner().invoke(app, [*words, "--out", str(tmp_path / "own")]).exit_code == 0
    student, _ = load_student("nano")
    pair = read_pair(find_pairs(pairs)[0])
    for folder, network in ((tmp_path / "own", student), (out, steer_for(student, file, "segmentation"))):
        written = torch.from_numpy(read_picture(folder / "00.png")).permute(2, 0, 1) / 255
        with torch.no_grad():
            fused = network(luminance(pair.vis[None]), pair.ir[None]).y[0]
        torch.testing.assert_close(luminance(written), fused, atol=1 / 255, rtol=0)
    missing = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "x"), "--for", "detection"])
    assert missing.exit_code == 2


def test_the_exported_file_is_the_steered_student(finished: Path, tmp_path: Path) -> None:
    file = finished / "steering.safetensors"
    options = {"precision": ["fp32"], "size": ["48x40"]}
    report = export("nano", out=tmp_path / "bundle", steering=file, task="segmentation", **options)  # type: ignore[arg-type]
    assert report.model == "nano-segmentation"
    assert "steered for segmentation" in str(report.card["notes"])
    student, _ = load_student("nano")
    network = load_steering(file, student)
    ir, vis = torch.rand(1, 1, 40, 48), torch.rand(1, 1, 40, 48)
    with torch.no_grad():
        live = network(vis, ir, network.steering.needs("segmentation")).y.numpy()
    session = onnxruntime.InferenceSession(str(tmp_path / "bundle" / report.files[0].file))
    (fused,) = session.run(None, {"ir": ir.numpy(), "vis_y": vis.numpy()})
    np.testing.assert_allclose(fused, live, atol=1e-5)


def test_the_command_steers(pairs: Path, critic: Path, tmp_path: Path) -> None:
    words = [
        "steer",
        str(pairs),
        "--student",
        "nano",
        "--critic",
        str(critic),
        "--out",
        str(tmp_path / "run"),
        "--json",
    ]
    for change in SMALL:
        words += ["--set", change.replace("batches=4", "batches=1")]
    made = CliRunner().invoke(app, words)
    assert made.exit_code == 0, made.output
    assert json.loads(made.stdout)["batches"] == 1
