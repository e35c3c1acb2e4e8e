"""The verb train-task on small real files: a segmenter that learns, exact resume, inputs, refusals, the command."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from duskfuse.cli import app
from duskfuse.data.class_conventions import convention_named, read_counted_label
from duskfuse.data.class_tables import FMB_LABELS, MSRS_OBJECTS, SCENE_LABELS, TARGET_LABELS
from duskfuse.data.colour import luminance, recombine
from duskfuse.data.errors import InputError, TrainingError
from duskfuse.data.images import read_picture, write_picture
from duskfuse.data.layout import find_pairs
from duskfuse.data.pair_files import read_pair
from duskfuse.data.weights import read_card
from duskfuse.distill.distill import distill
from duskfuse.distill.task_inputs import shown_pairs
from duskfuse.distill.task_preview import class_colours, prediction_grid
from duskfuse.distill.train_task import TaskTrainingReport, train_task
from duskfuse.tasks.confusion import ClassPixels, confusion, defined_mean
from duskfuse.tasks.open_segmenter import open_segmenter
from duskfuse.tasks.segmenter import Segmenter
from duskfuse.tasks.task_network import Task

SMALL = ("data.crop=[32, 32]", "data.batch=4", "data.workers=0", "batches=6", "save_every=2", "optimiser.warmup=1")
CONVENTION = convention_named("targets-2")


def write_targets(folder: Path, count: int = 12) -> Path:
    """Pairs whose target is hot in the infrared and cannot be seen in the visible picture, with its mask."""
    rng = np.random.default_rng(0)
    for index in range(count):
        vis, ir = rng.integers(60, 120, (48, 56, 3)), rng.integers(20, 60, (48, 56))
        label = np.zeros((48, 56), np.uint8)
        top, left = rng.integers(0, 24, 2)
        label[top : top + 20, left : left + 24] = 255
        ir[label > 0] += 150
        for side, picture in (("ir", ir), ("vis", vis), ("label", label)):
            write_picture(folder / side / f"{index:02d}.png", picture.astype(np.uint8))
    return folder


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_targets(tmp_path_factory.mktemp("targets"))


def run(data: Path, out: Path, *changes: str, **options: object) -> TaskTrainingReport:
    return train_task(
        data,
        task=Task.SEGMENTATION,
        out=out,
        classes="targets-2",
        changes=(*SMALL, *changes),
        **options,  # type: ignore[arg-type]
    )


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(targets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    run(targets, out)
    return out


def test_a_segmenter_learns_what_its_input_shows(targets: Path, tmp_path: Path) -> None:
    """Targets are in the infrared alone: IR and average find them, the visible picture cannot."""
    found = {}
    for shown in ("ir", "average", "vis"):
        report = run(targets, tmp_path / shown, "batches=40", "save_every=40", shown=shown)
        found[shown] = report.by_class["target"]
    assert min(found["ir"] or 0, found["average"] or 0) > 0.8
    assert (found["vis"] or 0) < 0.6


def test_a_run_leaves_everything_behind(targets: Path, finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert {"recipe.yaml", "environment.json", "metrics.jsonl", "segmenter.safetensors", "preview.png"} <= names
    report = json.loads((finished / "scores.json").read_text())
    card = read_card(finished / "segmenter.safetensors")
    assert card.metrics["mIoU on 1 pairs held out"] == report["scores"]["mIoU"]
    assert "11 pairs of the folder" in card.training_data
    assert card.settings["classes"] == "targets-2"
    assert (report["trained_on"], report["held_out"], report["batches"]) == (11, 1, 6)
    preview = read_picture(finished / "preview.png")
    assert preview.shape[1] == 3 * (56 + 4)


def test_the_scores_are_those_of_the_written_network(targets: Path, finished: Path) -> None:
    """mIoU of the held-out pair, counted pixel by pixel from the weights on disk."""
    segmenter = open_segmenter(finished / "segmenter.safetensors")
    report = json.loads((finished / "scores.json").read_text())
    scores = []
    for files in find_pairs(targets):
        truth = read_counted_label(files, CONVENTION)
        predicted = segmenter.predict(read_pair(files).vis[None])[0]
        ious = []
        for number in (0, 1):
            both = int(((truth == number) & (predicted == number)).sum())
            either = int(((truth == number) | (predicted == number)).sum())
            ious.append(both / either)
        scores.append(sum(ious) / 2)
    assert any(abs(score - report["scores"]["mIoU"]) < 1e-9 for score in scores)


def test_an_interrupted_run_resumes_to_the_same_curve_and_weights(
    targets: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, real, calls = tmp_path / "run", Segmenter.loss, []

    def dying(self: Segmenter, prediction: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(self, prediction, truth)

    monkeypatch.setattr(Segmenter, "loss", dying)
    with pytest.raises(KeyboardInterrupt):
        run(targets, out)
    monkeypatch.undo()
    run(targets, out, resume=True)
    assert losses(out) == losses(finished)
    first, second = (open_segmenter(folder / "segmenter.safetensors").state_dict() for folder in (finished, out))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_resumed_run_keeps_its_recipe_and_its_data(targets: Path, tmp_path: Path) -> None:
    data = write_targets(tmp_path / "data", 4)
    first = run(data, tmp_path / "run")
    assert run(data, tmp_path / "run", resume=True).scores == first.scores
    with pytest.raises(InputError, match="not empty"):
        run(data, tmp_path / "run")
    with pytest.raises(InputError, match="seed was 2, is 3"):
        run(data, tmp_path / "run", "seed=3", resume=True)
    write_picture(data / "label" / "00.png", np.zeros((48, 56), np.uint8))
    write_picture(data / "label" / "01.png", np.zeros((48, 56), np.uint8))
    with pytest.raises(InputError, match="labels or fused pictures differ"):
        run(data, tmp_path / "run", resume=True)
    run(data, tmp_path / "run", overwrite=True)


def test_a_loss_that_is_not_finite_stops_with_its_pairs(
    targets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Segmenter, "loss", lambda self, prediction, truth: prediction.sum() * float("nan"))
    with pytest.raises(TrainingError, match=r"the loss became nan at batch 0 \(\d\d, "):
        run(targets, tmp_path / "run")


def test_a_split_for_validation_is_held_out(tmp_path: Path) -> None:
    write_targets(tmp_path / "data" / "train", 5)
    write_targets(tmp_path / "data" / "val", 2)
    report = run(tmp_path / "data", tmp_path / "run")
    assert (report.trained_on, report.held_out) == (5, 2)


def test_the_network_sees_what_was_asked_for(targets: Path, tmp_path: Path) -> None:
    pairs = find_pairs(targets)
    pair = read_pair(pairs[3])
    average = (luminance(pair.vis) + pair.ir) / 2
    assert torch.equal(shown_pairs("vis", pairs)(pairs[3]).vis, pair.vis)
    assert torch.equal(shown_pairs("ir", pairs)(pairs[3]).vis, pair.ir.repeat(3, 1, 1))
    assert torch.equal(shown_pairs("average", pairs)(pairs[3]).vis, recombine(average, pair.vis))
    stored = (average[0] * 255).round().byte().numpy()
    for files in pairs:
        write_picture(tmp_path / "grey" / f"{files.name}.png", stored)
        write_picture(tmp_path / "colour" / f"{files.name}.png", np.dstack([stored] * 3))
    expected = recombine(torch.from_numpy(stored)[None] / 255, pair.vis)
    for folder in ("grey", "colour"):
        shown = shown_pairs(f"fused={tmp_path / folder}", pairs)(pairs[3])
        assert torch.allclose(shown.vis, expected, atol=1e-6)
        assert torch.equal(shown.ir, pair.ir)
    folders = [shown_pairs(f"fused={tmp_path / name}", pairs) for name in ("grey", "grey", "colour")]
    assert folders[0].digest() == folders[1].digest() != folders[2].digest()


def test_inputs_that_cannot_be_used_are_refused(targets: Path, tmp_path: Path) -> None:
    for wanted in ("fused", "vis=here", "thermal"):
        with pytest.raises(InputError, match="vis, ir, average or fused=FOLDER"):
            run(targets, tmp_path / "run", shown=wanted)
    write_picture(tmp_path / "fused" / "00.png", np.zeros((10, 10), np.uint8))
    with pytest.raises(InputError, match="no picture of 11 of 12 pairs, such as 01"):
        run(targets, tmp_path / "run", shown=f"fused={tmp_path / 'fused'}")
    (first, *_) = find_pairs(targets)
    shown = shown_pairs(f"fused={tmp_path / 'fused'}", [first])
    with pytest.raises(InputError, match="10×10, its pair 56×48"):
        shown(first)
    assert not (tmp_path / "run").exists()


def test_data_and_settings_that_cannot_be_used_are_refused(targets: Path, tmp_path: Path) -> None:
    for files in find_pairs(targets):
        write_picture(tmp_path / "bare" / "ir" / f"{files.name}.png", files.ir.read())
        write_picture(tmp_path / "bare" / "vis" / f"{files.name}.png", files.vis.read())
    with pytest.raises(InputError, match="none of 12 pairs has a label"):
        run(tmp_path / "bare", tmp_path / "run")
    with pytest.raises(InputError, match="do not say what the ids"):
        train_task(targets, task=Task.SEGMENTATION, out=tmp_path / "run")
    with pytest.raises(InputError, match="one is trained on and another held out"):
        run(write_targets(tmp_path / "single", 1), tmp_path / "run")
    for change in ("batches=0", "optimiser.speed=3", "trunk=huge", "optimiser.ema=0.9"):
        with pytest.raises(InputError, match=change.split("=")[0].replace(".", r"\.")):
            run(targets, tmp_path / "run", change)
    assert not (tmp_path / "run").exists()


def test_the_squeezenet_trunk_is_trained_from_its_weights(
    targets: Path, squeezenet_weights: Path, tmp_path: Path
) -> None:
    run(targets, tmp_path / "run", "batches=2", trunk_weights=squeezenet_weights)
    assert read_card(tmp_path / "run" / "segmenter.safetensors").settings["trunk"] == "squeezenet"


def test_the_trained_network_is_a_critic_for_distill(targets: Path, finished: Path, tmp_path: Path) -> None:
    changes = (
        "data.crop=[32, 32]",
        "data.batch=2",
        "data.workers=0",
        "steps={student: {owner: student, terms: {source_mse: 1, segmentation: 0.3}}}",
        "phases=[{name: all, batches: 2, cycle: [student]}]",
    )
    distill(targets, out=tmp_path / "run", changes=changes, critics=[finished / "segmenter.safetensors"])
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(record["terms"]["segmentation"] > 0 for record in records)


def test_the_command_prints_json_alone(targets: Path, tmp_path: Path) -> None:
    command = ["train-task", "segmentation", str(targets), "--out", str(tmp_path / "run"), "--classes", "targets-2"]
    command += ["--json", *(word for change in SMALL for word in ("--set", change))]
    result = CliRunner().invoke(app, [*command, "--input", "ir"])
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert Path(report["weights"]).is_file()
    assert list(report["by_class"]) == ["background", "target"]
    refused = CliRunner().invoke(app, [*command, "--input", "sound"])
    assert refused.exit_code == 2
    assert "vis, ir, average or fused=FOLDER" in refused.stderr
    assert CliRunner().invoke(app, ["train-task", "origami", *command[2:]]).exit_code == 2


def test_iou_of_one_matrix_is_counted_right() -> None:
    """Against sets of pixels, class by class; an absent class is in no mean."""
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(0, 4, (2, 9, 11)), rng.integers(0, 5, (2, 9, 11))
    truth[0, :2] = 255
    matrix = sum(confusion(t, p, 5) for t, p in zip(truth, predicted, strict=True))
    pixels = ClassPixels.of(np.asarray(matrix), range(5))
    expected = []
    for number in range(5):
        kept = truth != 255
        both = ((truth == number) & (predicted == number) & kept).sum()
        either = (((truth == number) | (predicted == number)) & kept).sum()
        expected.append(both / either if (truth == number).any() else np.nan)
    np.testing.assert_allclose(pixels.iou(), expected)
    assert float(defined_mean(pixels.iou())) == pytest.approx(np.nanmean(expected))


def test_previews_show_every_class_in_its_own_colour() -> None:
    for table in (FMB_LABELS, SCENE_LABELS, TARGET_LABELS, MSRS_OBJECTS):
        colours = class_colours(table)
        assert len({tuple(colour) for colour in colours[: len(table)].tolist()}) == len(table)
    label = np.array([[0, 1], [1, 255]], np.uint8)
    grid = prediction_grid([(np.zeros((2, 2, 3), np.uint8), label, 1 - label.clip(max=1))], TARGET_LABELS)
    row = grid[20:22]
    assert row[:, 6:8].tolist() == [[[0] * 3, [255] * 3], [[255] * 3, [60] * 3]]
    assert row[:, 12:14].tolist() == [[[255] * 3, [0] * 3], [[0] * 3, [0] * 3]]


@pytest.mark.realdata
def test_real_labels_train(shared_data: Path, tmp_path: Path) -> None:
    report = train_task(
        shared_data / "detect",
        task=Task.SEGMENTATION,
        out=tmp_path / "run",
        classes="MFNet-9",
        shown="average",
        split="val",
        changes=("data.crop=[64, 64]", "data.batch=2", "data.workers=0", "batches=2"),
    )
    assert (report.trained_on, report.held_out) == (54, 6)
    assert report.scores["pixel accuracy"] is not None
    assert cv2.imread(report.preview) is not None
