"""Detectors and saliency networks on the built-in scenes: trained, resumed, scored, opened, asked as critics."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from duskfuse.cli import app
from duskfuse.data.class_conventions import objects_named
from duskfuse.data.errors import InputError
from duskfuse.data.fuser import FusionOutput
from duskfuse.data.geometry import GeometricDraw, draw_crop
from duskfuse.data.images import read_picture, write_picture
from duskfuse.data.layout import find_pairs
from duskfuse.data.pair_files import read_pair
from duskfuse.data.scenes.kinds import BoxClass, SceneClass
from duskfuse.data.scenes.write import write_scenes
from duskfuse.data.weights import ModelCard, read_card, save_weights
from duskfuse.distill.augment_config import AugmentConfig
from duskfuse.distill.context import Batch, BatchContext
from duskfuse.distill.dataset import TrainingPairs, load_batches
from duskfuse.distill.distill import distill
from duskfuse.distill.ground_truth import LEAST_SEEN, WantedTruth, cut_objects, cut_truth, read_objects
from duskfuse.distill.recipe import DataConfig
from duskfuse.distill.recipe_files import load_recipe
from duskfuse.distill.terms import TermName
from duskfuse.distill.terms.critics import detection, saliency
from duskfuse.distill.train_task import TaskTrainingReport, train_task
from duskfuse.evaluate.network_scores import network_scores
from duskfuse.tasks.detection_head import DetectionHead
from duskfuse.tasks.detector import ARCHITECTURE, Detector, detector_settings, new_detector, open_detector
from duskfuse.tasks.detector_network import HeadKind
from duskfuse.tasks.feature_fusion import Concatenation
from duskfuse.tasks.fusion_blocks import FusionBlock
from duskfuse.tasks.objects import nothing_known, stacked_objects
from duskfuse.tasks.open_task_network import open_task_network
from duskfuse.tasks.saliency import UNKNOWN, SaliencyNetwork, new_saliency
from duskfuse.tasks.task_network import Task, TaskNetwork
from duskfuse.tasks.trunk import Trunk

SIZE = (96, 128)
CLASSES = objects_named("scenes-4")
SMALL = ("data.crop=[64, 96]", "data.batch=2", "data.workers=0", "batches=4", "save_every=2", "optimiser.warmup=1")
SALIENT = (SceneClass.PERSON, SceneClass.CAR, SceneClass.TRUCK)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six scenes with boxes, labels and saliency; the boxes of one are empty, another has no files of truth."""
    folder = tmp_path_factory.mktemp("scenes") / "scenes"
    names = write_scenes(folder, count=6, size=SIZE)
    for name in names[:-1]:
        label = read_picture(folder / "label" / f"{name}.png")
        write_picture(folder / "saliency" / f"{name}.png", (np.isin(label, SALIENT) * 255).astype(np.uint8))
    (folder / "boxes" / f"{names[-2]}.txt").write_text("")
    (folder / "boxes" / f"{names[-1]}.txt").unlink()
    return folder


def run(data: Path, out: Path, *changes: str, task: Task = Task.DETECTION, **options: object) -> TaskTrainingReport:
    classes = {"classes": "scenes-4"} if task is Task.DETECTION else {}
    return train_task(data, task=task, out=out, changes=(*SMALL, *changes), **{**classes, **options})  # type: ignore[arg-type]


def log(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def detector_run(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "detector"
    run(scenes, out, shown="average")
    return out


@pytest.fixture(scope="module")
def saliency_run(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "saliency"
    run(scenes, out, task=Task.SALIENCY, shown="ir")
    return out


def tiny(fusion: FusionBlock | None = None, head: HeadKind = HeadKind.DENSE) -> Detector:
    torch.manual_seed(0)
    return new_detector(CLASSES, fusion=fusion, head=head)


def pictures(channels: int = 3, height: int = 70, width: int = 100) -> Tensor:
    return torch.rand(2, channels, height, width, generator=torch.Generator().manual_seed(0))


TRUTH = stacked_objects([torch.tensor([[0.0, 10, 10, 60, 50], [2, 60, 5, 99, 60]]), torch.zeros(0, 5)])


@pytest.mark.parametrize("trunk", list(Trunk))
@pytest.mark.parametrize("fusion", [None, *FusionBlock])
def test_a_detector_takes_any_size_and_covers_the_picture(trunk: Trunk, fusion: FusionBlock | None) -> None:
    detector = new_detector(CLASSES, trunk, fusion=fusion).eval()
    for height, width in ((64, 96), (70, 101)):
        with torch.no_grad():
            prediction = detector(pictures(detector.channels, height, width))
        count = sum(-(-(height - s // 2) // s) * -(-(width - s // 2) // s) for s in (8, 16, 32))
        assert prediction.logits.shape == (2, count, 4)
        assert (prediction.points < torch.tensor([width, height])).all()


def test_grey_pictures_are_colour_with_equal_channels() -> None:
    detector = tiny().eval()
    grey = pictures(1)
    torch.testing.assert_close(detector(grey).logits, detector(grey.expand(-1, 3, -1, -1)).logits)
    with pytest.raises(ValueError, match="4 channels for a detector of 3"):
        detector(pictures(4))
    with pytest.raises(ValueError, match="3 channels for a detector of 4"):
        tiny(FusionBlock.CONCAT)(pictures(3))


def test_concatenation_is_a_weighted_sum_of_both_maps() -> None:
    block = Concatenation((2, 3))
    ir, vis = ([torch.randn(1, channels, 4, 5) for channels in (2, 3)] for _ in range(2))
    for level, fused in enumerate(block(ir, vis)):
        weight = block.mix[level].weight[:, :, 0, 0]  # type: ignore[index]
        channels = len(weight)
        mixed = torch.einsum("oc,bchw->bohw", weight[:, :channels], vis[level])
        mixed += torch.einsum("oc,bchw->bohw", weight[:, channels:], ir[level])
        torch.testing.assert_close(fused, mixed * mixed.sigmoid())


@pytest.mark.parametrize("head", list(HeadKind))
@pytest.mark.parametrize("fusion", [None, *FusionBlock])
def test_detectors_survive_the_file(head: HeadKind, fusion: FusionBlock | None, tmp_path: Path) -> None:
    detector, path = tiny(fusion, head).eval(), tmp_path / "d.safetensors"
    card = ModelCard(ARCHITECTURE, detector_settings(CLASSES, Trunk.RESIDUAL, head, fusion), "rgb", "0.1.0", "nothing")
    save_weights(path, detector.network, card)
    opened = open_task_network(path)
    assert isinstance(opened, Detector)
    assert not opened.training
    assert opened.classes == CLASSES
    seen = pictures(detector.channels)
    for one, other in zip(opened.predict(seen), detector.predict(seen), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    save_weights(path, detector.network, replace(card, settings={**card.settings, "fusion": "magic"}))
    with pytest.raises(InputError, match=r"a fusion \(concat"):
        open_detector(path)


CRITICS = pytest.mark.parametrize(
    ("make", "truth"),
    [
        (lambda: tiny(), TRUTH),
        (lambda: tiny(FusionBlock.CONCAT), TRUTH),
        (lambda: tiny(head=HeadKind.DETR), TRUTH),
        (lambda: new_saliency(), (torch.rand(2, 1, 70, 100) > 0.7).float()),
    ],
)


def judged(network: TaskNetwork[object, Tensor, object], y: Tensor, truth: Tensor | None) -> Tensor:
    term = detection if network.task is Task.DETECTION else saliency
    batch = Batch(pictures(1), pictures(), *[torch.zeros(2, 1, 70, 100, dtype=torch.bool)] * 2, names=("a", "b"))
    batch = replace(batch, **{"objects" if network.task is Task.DETECTION else "salient": truth})
    return term(FusionOutput(y), BatchContext(batch, {}, critics={network.task: network}))


@CRITICS
def test_a_critic_moves_the_picture_and_stays_as_it_is(
    make: type[TaskNetwork[object, Tensor, object]], truth: Tensor
) -> None:
    critic = make().freeze()
    before = {key: value.clone() for key, value in critic.state_dict().items()}
    y = pictures(1).requires_grad_()
    judged(critic, y, truth).backward()
    assert y.grad is not None
    assert y.grad[0].abs().sum() > 0
    assert y.grad[1].abs().sum() > 0
    assert all(parameter.grad is None for parameter in critic.parameters())
    assert all(torch.equal(value, before[key]) for key, value in critic.train().state_dict().items())
    assert not critic.training


@CRITICS
def test_pictures_without_truth_give_no_gradient(
    make: type[TaskNetwork[object, Tensor, object]], truth: Tensor
) -> None:
    critic = make().freeze()
    unknown = (
        stacked_objects([nothing_known((70, 100))] * 2)
        if critic.task is Task.DETECTION
        else torch.full_like(truth, UNKNOWN)
    )
    y = pictures(1).requires_grad_()
    loss = judged(critic, y, unknown)
    loss.backward()
    assert float(loss.detach()) == 0
    assert y.grad is not None
    assert not y.grad.any()
    with pytest.raises(ValueError, match="needs a network and ground truth"):
        judged(critic, y, None)


def test_the_saliency_loss_is_its_formula() -> None:
    network = new_saliency()
    logits, truth = torch.randn(2, 1, 5, 6), (torch.rand(2, 1, 5, 6) > 0.5).float()
    truth[0, :, 2:] = UNKNOWN
    entropies, ious = [], []
    for logit, wanted in zip(logits, truth, strict=True):
        shared = either = 0.0
        for x, g in zip(logit.flatten().tolist(), wanted.flatten().tolist(), strict=True):
            if g >= 0:
                p = 1 / (1 + np.exp(-x))
                entropies.append(-np.log(p) if g else -np.log(1 - p))
                shared, either = shared + p * g, either + p + g - p * g
        ious.append(1 - (shared + 1) / (either + 1))
    assert float(network.loss(logits, truth)) == pytest.approx(np.mean(entropies) + np.mean(ious), rel=1e-5)
    nothing = network.loss(torch.full((1, 1, 4, 4), -40.0), torch.zeros(1, 1, 4, 4))
    assert float(nothing) == pytest.approx(0, abs=1e-6)


def painted(objects: Tensor, size: tuple[int, int]) -> Tensor:
    """Planes ``[N, H, W]`` that are 1 inside each box of whole pixels."""
    planes = torch.zeros(len(objects), *size)
    for plane, (_, left, top, right, bottom) in zip(planes, objects.int().tolist(), strict=True):
        plane[top:bottom, left:right] = 1
    return planes


@pytest.mark.parametrize("flip", [False, True])
def test_boxes_are_cut_as_the_pictures_are(flip: bool) -> None:
    """Against painted boxes, moved through the same crop as pixels; what is hardly seen does not count."""
    generator = torch.Generator().manual_seed(5)
    corners = torch.randint(0, 60, (30, 2, 2), generator=generator).sort(dim=1).values + torch.tensor(
        [[[0, 0], [3, 3]]]
    )
    objects = torch.cat([torch.arange(30)[:, None], corners.flatten(1)], dim=1).float()
    draw = GeometricDraw(7, 13, 40, 32, flip)
    cut = cut_objects(objects, draw, (40, 32))
    planes, whole = draw.crop(painted(objects, (64, 64))), painted(objects, (64, 64)).flatten(1).sum(dim=1)
    seen = planes.flatten(1).sum(dim=1)
    assert len(cut) == int((seen > 0).sum())
    for number, row in zip((seen > 0).nonzero()[:, 0].tolist(), cut, strict=True):
        assert torch.equal(painted(row[None], (40, 32))[0], planes[number])
        assert row[0] == (number if seen[number] >= LEAST_SEEN * whole[number] else 255)


def test_a_crop_larger_than_the_picture_does_not_count_beyond_it() -> None:
    draw = draw_crop((30, 40), (64, 64), torch.Generator().manual_seed(0), flip=0)
    cut = cut_truth({"objects": torch.tensor([[1.0, 5, 5, 20, 20]]), "salient": torch.ones(1, 30, 40)}, draw, (64, 64))
    assert cut["objects"].tolist() == [[1, 5, 5, 20, 20], [255, 40, 0, 64, 64], [255, 0, 30, 64, 64]]
    assert (cut["salient"][0, :30, :40] == 1).all()
    assert cut["salient"].sum() == 30 * 40 - (64 * 64 - 30 * 40)


def test_zoomed_boxes_stay_on_their_objects() -> None:
    draw = GeometricDraw(10, 20, 30, 60, flip=False, size=(60, 120))
    assert cut_objects(torch.tensor([[3.0, 30, 15, 50, 35]]), draw, (60, 120)).tolist() == [[3, 20, 10, 60, 50]]


def test_batches_carry_the_truth_of_their_pairs(scenes: Path) -> None:
    """Whole pictures: boxes as in the file, an empty file as no object, a missing file as nothing known."""
    pairs = find_pairs(scenes)
    config = DataConfig(crop=SIZE, batch=3, workers=0, flip=0)
    wanted = WantedTruth(objects=CLASSES, saliency=True)
    dataset = TrainingPairs(pairs, config, 0, masks=None, truth=wanted)
    seen = set()
    for batch in load_batches(dataset, config, 0, 2):
        assert batch.objects is not None
        assert batch.salient is not None
        for name, rows, salient in zip(batch.names, batch.objects, batch.salient, strict=True):
            files = next(pair for pair in pairs if pair.name == name)
            known = rows[rows[:, 0] >= 0]
            if files.boxes is None:
                assert torch.equal(known, nothing_known(SIZE))
                assert (salient == UNKNOWN).all()
            else:
                torch.testing.assert_close(known, read_objects(files, SIZE, CLASSES))
                assert torch.equal(salient, read_pair(files).saliency)  # type: ignore[arg-type]
            seen.add(name)
    assert len(seen) == 6
    others = TrainingPairs(pairs, config, 0, masks=None, truth=WantedTruth(saliency=True))
    assert others.digest() != dataset.digest()


def test_a_dead_camera_forgets_the_objects(scenes: Path) -> None:
    config = DataConfig(crop=(64, 64), workers=0, augment=AugmentConfig(dropout=0.5))
    dataset = TrainingPairs(
        find_pairs(scenes)[:2], config, 0, masks=None, truth=WantedTruth(objects=CLASSES, saliency=True)
    )
    forgotten = 0
    for number in range(20):
        sample = dataset[number]
        if "degraded_ir" in sample and not torch.equal(sample["degraded_ir"], sample["ir"]):
            assert torch.equal(sample["objects"], nothing_known((64, 64)))
            assert (sample["salient"] == UNKNOWN).all()
            forgotten += 1
    assert forgotten


def test_a_run_leaves_weights_scores_and_a_preview(scenes: Path, detector_run: Path, saliency_run: Path) -> None:
    found = json.loads((detector_run / "scores.json").read_text())
    assert (found["trained_on"], found["held_out"], found["task"], found["classes"]) == (4, 1, "detection", "scenes-4")
    assert set(found["scores"]) == {"AP50:95", "AP50", "AP75"}
    assert list(found["by_class"]) == [kind.name.lower() for kind in BoxClass]
    card = read_card(detector_run / "detector.safetensors")
    assert card.settings == {"classes": "scenes-4", "trunk": "residual", "head": "dense", "fusion": None}
    assert "seen as average" in card.training_data
    salient = json.loads((saliency_run / "scores.json").read_text())
    assert {"mean F", "S", "MAE"} <= set(salient["scores"])
    assert salient["by_class"] == {}
    for folder in (detector_run, saliency_run):
        assert read_picture(folder / "preview.png").shape[1] == 3 * (SIZE[1] + 4)


@pytest.mark.parametrize("task", [Task.DETECTION, Task.SALIENCY])
def test_an_interrupted_run_resumes_exactly(
    task: Task, scenes: Path, detector_run: Path, saliency_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished = detector_run if task is Task.DETECTION else saliency_run
    kind = Detector if task is Task.DETECTION else SaliencyNetwork
    shown = "average" if task is Task.DETECTION else "ir"
    real, calls = kind.loss, []

    def dying(self: TaskNetwork[object, Tensor, object], prediction: object, truth: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(self, prediction, truth)  # type: ignore[arg-type]

    monkeypatch.setattr(kind, "loss", dying)
    with pytest.raises(KeyboardInterrupt):
        run(scenes, tmp_path / "run", task=task, shown=shown)
    monkeypatch.undo()
    run(scenes, tmp_path / "run", task=task, shown=shown, resume=True)
    assert log(tmp_path / "run") == log(finished)
    weights = [next(folder.glob("*.safetensors")) for folder in (tmp_path / "run", finished)]
    first, second = (open_task_network(path).state_dict() for path in weights)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_two_cameras_are_trained_together_and_scored(scenes: Path, tmp_path: Path) -> None:
    run(scenes, tmp_path / "run", "batches=2", shown="both")
    detector = open_detector(tmp_path / "run" / "detector.safetensors")
    assert detector.channels == 4
    found = network_scores(
        scenes,
        task=Task.DETECTION,
        network=tmp_path / "run" / "detector.safetensors",
        classes="scenes-4",
        out=tmp_path / "scores",
    )
    assert found.network is not None
    assert found.network["output"] == "boxes of scenes-4"
    with pytest.raises(InputError, match="only a detector sees two cameras"):
        run(scenes, tmp_path / "other", task=Task.SALIENCY, shown="both")


def test_evaluate_scores_what_the_networks_find(scenes: Path, saliency_run: Path, tmp_path: Path) -> None:
    """The visible row, from predictions made here and read back, is what the network gives for the visible pictures."""
    weights = saliency_run / "saliency.safetensors"
    found = network_scores(scenes, task=Task.SALIENCY, network=weights, out=tmp_path / "scores")
    network, errors = open_task_network(weights), []
    for files in find_pairs(scenes):
        if files.saliency is not None:
            pair = read_pair(files)
            assert pair.saliency is not None
            salient = (network.predict(pair.vis[None])[0] * 255).round()
            stretched = (salient - salient.min()) / (salient.max() - salient.min())
            errors.append(float((stretched - pair.saliency).abs().mean()))
    assert found.rows[2].totals["MAE"] == pytest.approx(np.mean(errors), abs=1e-4)


def test_detection_by_heart_scores_high(tmp_path: Path) -> None:
    """Two scenes that are learned and then scored: AP50 above 0.9, of objects of at least 6 pixels a side.

    Smaller ones share a point of the finest level, 8 pixels apart, with their neighbours.
    """
    data = tmp_path / "data"
    write_scenes(data / "train", count=2, size=SIZE)
    for path in (data / "train" / "boxes").iterdir():
        rows = [line.split() for line in path.read_text().splitlines()]
        large = [row for row in rows if float(row[3]) * SIZE[1] >= 6 and float(row[4]) * SIZE[0] >= 6]
        path.write_text("".join(f"{' '.join(row)}\n" for row in large))
    shutil.copytree(data / "train", data / "val")
    report = run(
        data,
        tmp_path / "run",
        "batches=140",
        "save_every=140",
        "optimiser.lr=4e-3",
        f"data.crop=[{SIZE[0]}, {SIZE[1]}]",
        "data.flip=0",
        shown="average",
    )
    assert report.scores["AP50"] is not None
    assert report.scores["AP50"] > 0.9
    preview = cv2.imread(report.preview)
    assert preview is not None


def test_data_that_cannot_be_used_are_refused(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="what the classes of their boxes mean"):
        run(scenes, tmp_path / "run", classes=None)
    with pytest.raises(InputError, match="class 3"):
        run(scenes, tmp_path / "run", classes="MSRS-3")
    with pytest.raises(InputError, match="saliency has no classes"):
        run(scenes, tmp_path / "run", task=Task.SALIENCY, classes="scenes-4")
    bare = tmp_path / "bare"
    for files in find_pairs(scenes):
        write_picture(bare / "ir" / f"{files.name}.png", files.ir.read())
        write_picture(bare / "vis" / f"{files.name}.png", files.vis.read())
    for task, truth in ((Task.DETECTION, "file of boxes"), (Task.SALIENCY, "saliency map")):
        with pytest.raises(InputError, match=f"none of 6 pairs has a {truth}"):
            run(bare, tmp_path / "run", task=task)
    with pytest.raises(InputError, match=r"head"):
        run(scenes, tmp_path / "run", "head=tail")


STEPS = (
    "data.crop=[64, 64]",
    "data.batch=2",
    "data.workers=0",
    "steps={student: {owner: student, terms: {source_mse: 1, detection: 0.1, saliency: 0.1}}}",
    "phases=[{name: all, batches: 2, cycle: [student]}]",
)


def test_distill_asks_every_critic_that_it_is_given(
    scenes: Path, detector_run: Path, saliency_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    critics = [detector_run / "detector.safetensors", saliency_run / "saliency.safetensors"]
    distill(scenes, out=tmp_path / "run", changes=STEPS, critics=critics)
    records = [json.loads(line)["terms"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(record["detection"] > 0 and record["saliency"] > 0 for record in records)
    said = capsys.readouterr().err
    assert "classes scenes-4; 1 pairs without a file of boxes do not count in it" in said
    recipe = load_recipe(tmp_path / "run" / "recipe.yaml")
    assert (recipe.detector.network, recipe.salience.network) == tuple(critics)
    with pytest.raises(InputError, match="two critics of detection"):
        distill(scenes, out=tmp_path / "run", changes=STEPS, critics=[critics[0], critics[0]])


def test_without_a_critic_or_truth_a_term_is_absent_and_that_is_said_once(
    scenes: Path, saliency_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "bare"
    for files in find_pairs(scenes):
        write_picture(bare / "ir" / f"{files.name}.png", files.ir.read())
        write_picture(bare / "vis" / f"{files.name}.png", files.vis.read())
    distill(bare, out=tmp_path / "run", changes=STEPS, critics=[saliency_run / "saliency.safetensors"])
    said = capsys.readouterr().err
    assert said.count("detection is left out: no --critic") == 1
    assert said.count("saliency is left out: none of the 6 pairs has a saliency map") == 1
    terms = load_recipe(tmp_path / "run" / "recipe.yaml").terms_used()
    assert not terms & {TermName.DETECTION, TermName.SALIENCY}


def test_the_command_trains_a_detector(scenes: Path, tmp_path: Path) -> None:
    command = [
        "train-task",
        "detection",
        str(scenes),
        "--out",
        str(tmp_path / "run"),
        "--classes",
        "scenes-4",
        "--json",
    ]
    command += [word for change in (*SMALL, "batches=1") for word in ("--set", change)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.stderr
    assert Path(json.loads(result.stdout)["weights"]).name == "detector.safetensors"


def test_a_head_on_its_own_is_small() -> None:
    """Costs are pinned, since it is a critic beside small students."""
    assert sum(parameter.numel() for parameter in DetectionHead(48, 3).parameters()) == 86_362
    assert sum(parameter.numel() for parameter in tiny().parameters()) < 0.8e6


@pytest.mark.realdata
def test_real_boxes_train(shared_data: Path, tmp_path: Path) -> None:
    report = train_task(
        shared_data / "detect",
        task=Task.DETECTION,
        out=tmp_path / "run",
        classes="MSRS-3",
        shown="average",
        split="val",
        changes=("data.crop=[64, 96]", "data.batch=2", "data.workers=0", "batches=2"),
    )
    assert (report.trained_on, report.held_out) == (54, 6)
    assert report.scores["AP50"] is not None
    assert cv2.imread(report.preview) is not None
