"""SLGNet from the command line: trained around a tiny transformer, resumed, opened again, asked as a critic."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_clip import tiny_clip
from torch import Tensor
from typer.testing import CliRunner

from duskfuse.cli import app
from duskfuse.data.errors import InputError
from duskfuse.data.layout import find_pairs
from duskfuse.data.scenes.write import write_scenes
from duskfuse.data.weights import read_card
from duskfuse.distill.closed_loop.loop_task import LoopTask, deepest_layer
from duskfuse.distill.closed_loop.steer import steer
from duskfuse.distill.context import Batch
from duskfuse.distill.optimisers import set_rate
from duskfuse.distill.recipe import OptimiserConfig, OptimiserKind
from duskfuse.distill.recipe_files import load_recipe
from duskfuse.distill.slgnet_job import SlgDetectionJob
from duskfuse.distill.task_training import SlgTraining, task_training
from duskfuse.distill.train_task import train_task
from duskfuse.evaluate.torch_predictors import DetectorPredictor
from duskfuse.export.export import export
from duskfuse.export.fuse import fuse
from duskfuse.tasks.fusion_blocks import FusionBlock
from duskfuse.tasks.open_task_network import open_any_detector, open_task_network
from duskfuse.tasks.slgnet.caption_rules import RuleCaptions, every_text
from duskfuse.tasks.slgnet.detector import SlgDetector
from duskfuse.tasks.slgnet.rule_text import RuleText
from duskfuse.tasks.slgnet.text_encoders import ClipEncoder, HashingEncoder, text_features
from duskfuse.tasks.slgnet.vit import FrozenVit, VitShape, open_vit, weights_sha256
from duskfuse.tasks.task_network import Task

SIZE = (48, 64)
TINY = (
    "data.crop=[32, 48]",
    "data.batch=2",
    "data.workers=0",
    "batches=4",
    "save_every=2",
    "slgnet.width=16",
    "slgnet.adapters.heads=2",
    "slgnet.adapters.points=2",
    "slgnet.adapters.evolution_hidden=12",
    "slgnet.adapters.structure_channels=[8, 8, 8]",
    "slgnet.adapters.stem=8",
    "slgnet.adapters.language_hidden=16",
)
DISTILL = (
    "data.crop=[32, 48]",
    "data.batch=2",
    "data.workers=0",
    "steps={student: {owner: student, terms: {source_mse: 1, detection: 0.1}}}",
    "phases=[{name: all, batches: 1, cycle: [student]}]",
)
STEER = ("data.crop=[32, 48]", "data.batch=2", "data.workers=0", "batches=2", "optimiser.warmup=1")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "scenes"
    write_scenes(folder, count=4, size=SIZE)
    return folder


def transformer(path: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    vit = FrozenVit(VitShape(width=24, depth=4, heads=1, hidden=48, grid=4))
    save_file(dict(vit.named_buffers()), path)
    return path


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return transformer(tmp_path_factory.mktemp("vit") / "vit.safetensors")


@pytest.fixture(scope="module")
def captions(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("captions") / "captions.jsonl"
    lines = [{"name": pair.name, "scene": f"street {number}"} for number, pair in enumerate(find_pairs(scenes))]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def said(words: Sequence[str], *changes: str) -> list[str]:
    return [*words, "--json", *(word for change in changes for word in ("--set", change))]


def ran(words: Sequence[str], *changes: str) -> dict[str, object]:
    made = CliRunner().invoke(app, said(words, *changes))
    assert made.exit_code == 0, made.output
    return dict(json.loads(made.stdout))


def refused(words: Sequence[str], *changes: str) -> str:
    made = CliRunner().invoke(app, said(words, *changes))
    assert made.exit_code == 2, made.output
    return made.stderr


def training(scenes: Path, out: Path, backbone: Path, *more: str) -> list[str]:
    words = ["train-task", "detection", str(scenes), "--out", str(out), "--classes", "scenes-4"]
    return [*words, "--input", "both", "--fusion", "slgnet", "--backbone", str(backbone), *more]


@pytest.fixture(scope="module")
def by_rules(scenes: Path, backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "rules"
    ran(training(scenes, out, backbone), *TINY)
    return out / "detector.safetensors"


def test_a_run_leaves_adapters_that_name_their_backbone(by_rules: Path, backbone: Path) -> None:
    card, stored = read_card(by_rules), load_file(by_rules)
    assert (card.architecture, card.settings["captions"], card.settings["classes"]) == ("slgdet-s", "rules", "scenes-4")
    assert card.settings["backbone_sha256"] == weights_sha256(open_vit(backbone))
    assert not any("backbone" in name for name in stored)
    scores = json.loads((by_rules.parent / "scores.json").read_text())
    assert (scores["trained_on"], scores["held_out"], set(scores["scores"])) == (3, 1, {"AP50:95", "AP50", "AP75"})
    opened = open_task_network(by_rules, backbone=backbone)
    assert isinstance(opened, SlgDetector)
    assert scores["parameters"] == sum(parameter.numel() for parameter in opened.parameters())
    assert (by_rules.parent / "preview.png").is_file()
    recipe = (by_rules.parent / "recipe.yaml").read_text()
    assert "lr: 0.0001" in recipe
    assert "warmup: 250" in recipe


def test_an_interrupted_run_with_captions_of_a_file_resumes_exactly(
    scenes: Path,
    backbone: Path,
    captions: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    told = tmp_path / "captions.jsonl"
    told.write_text(captions.read_text())

    def run(out: Path, resume: bool = False) -> None:
        train_task(
            scenes,
            task=Task.DETECTION,
            out=out,
            classes="scenes-4",
            shown="both",
            fusion=FusionBlock.SLGNET,
            backbone=backbone,
            captions=str(told),
            changes=TINY,  # of these eight samples one is told nothing
            resume=resume,
        )

    run(tmp_path / "whole")
    real, calls = SlgDetector.loss, []

    def dying(self: SlgDetector, prediction: object, truth: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(self, prediction, truth)  # type: ignore[arg-type]

    monkeypatch.setattr(SlgDetector, "loss", dying)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut")
    monkeypatch.undo()
    told.write_text(captions.read_text().replace("street", "road"))
    with pytest.raises(InputError, match="the backbone, captions, pairs, labels or fused pictures differ"):
        run(tmp_path / "cut", resume=True)
    told.write_text(captions.read_text())
    run(tmp_path / "cut", resume=True)
    assert (tmp_path / "cut" / "metrics.jsonl").read_text() == (tmp_path / "whole" / "metrics.jsonl").read_text()
    first, second = (load_file(tmp_path / name / "detector.safetensors") for name in ("cut", "whole"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert read_card(tmp_path / "whole" / "detector.safetensors").settings["captions"] == "given"
    assert "here nothing is said about the pictures" not in capsys.readouterr().err
    predictor = DetectorPredictor(tmp_path / "whole" / "detector.safetensors", None, backbone)
    assert "here nothing is said about the pictures" in capsys.readouterr().err
    assert predictor.facts()["output"] == "boxes of scenes-4, without the captions that it had in training"


def test_clip_encodes_the_rules_once_and_is_not_needed_again(scenes: Path, backbone: Path, tmp_path: Path) -> None:
    clip, changes = tiny_clip(tmp_path / "clip"), (*TINY, "batches=1")
    words = training(scenes, tmp_path / "run", backbone, "--text-encoder", str(clip))
    assert "say --set slgnet.adapters.text_width=24" in refused(words, *changes)
    ran(words, *changes, "slgnet.adapters.text_width=24")
    opened = open_any_detector(tmp_path / "run" / "detector.safetensors", backbone)
    assert isinstance(opened, SlgDetector)
    assert opened.network.rules is not None
    torch.testing.assert_close(opened.network.rules.vectors, ClipEncoder(clip).encode(every_text()))


def test_evaluate_opens_it_around_its_backbone_alone(
    scenes: Path, by_rules: Path, backbone: Path, tmp_path: Path
) -> None:
    words = ["evaluate", str(scenes), "--task", "detection", "--network", str(by_rules), "--classes", "scenes-4"]
    words += ["--out", str(tmp_path / "scores")]
    missing = refused(words)
    assert f"adapters around the backbone {weights_sha256(open_vit(backbone))[:12]}, which is not given" in missing
    assert "and not the frozen transformer; give the transformer with --backbone FILE" in missing
    another = transformer(tmp_path / "another.safetensors", seed=1)
    assert "trained on the backbone" in refused([*words, "--backbone", str(another)])
    assert "no such file" in refused([*words, "--backbone", str(tmp_path / "absent.safetensors")])
    found = ran([*words, "--backbone", str(backbone)])
    assert "boxes of scenes-4" in json.dumps(found["network"])


def test_distill_and_steer_ask_it_as_a_critic(scenes: Path, by_rules: Path, backbone: Path, tmp_path: Path) -> None:
    words = ["distill", str(scenes), "--critic", str(by_rules)]
    ran([*words, "--out", str(tmp_path / "run"), "--backbone", str(backbone)], *DISTILL)
    (line,) = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["terms"]["detection"] > 0
    assert load_recipe(tmp_path / "run" / "recipe.yaml").detector.backbone == backbone
    assert "with --backbone FILE" in refused([*words, "--out", str(tmp_path / "x")], *DISTILL)
    bare = ["distill", str(scenes), "--out", str(tmp_path / "x"), "--backbone", str(backbone)]
    assert "without a detector" in refused(bare, *DISTILL)
    steered = tmp_path / "steered"
    report = steer(scenes, student="nano", critics=[by_rules], backbone=backbone, out=steered, changes=STEER)
    assert report.losses["detection"]["first"] > 0
    assert f"backbone: {backbone}" in (steered / "recipe.yaml").read_text()
    with pytest.raises(InputError, match="which is not given"):
        steer(scenes, student="nano", critics=[by_rules], out=tmp_path / "x", changes=STEER)
    live = {"steering": steered / "steering.safetensors", "critic": by_rules, "backbone": backbone}
    made = fuse(scenes / "ir", scenes / "vis", tmp_path / "live", model="nano", **live)
    assert len(made.written) == len(find_pairs(scenes))
    with pytest.raises(InputError, match="words about every picture"):
        export("nano", out=tmp_path / "bundle", **live)


def test_what_steers_are_the_features_after_language(by_rules: Path, backbone: Path) -> None:
    network = open_any_detector(by_rules, backbone).freeze()
    assert isinstance(network, SlgDetector)
    task = LoopTask(network, deepest_layer(network))
    pictures = torch.rand(1, 4, *SIZE, generator=torch.Generator().manual_seed(0))
    masks = torch.zeros(1, 1, *SIZE, dtype=torch.bool)
    batch = Batch(ir=pictures[:, 3:], vis=pictures[:, :3], masks_ir=masks, masks_vis=masks, names=("a",))
    rules = network.network.rules
    assert rules is not None
    text = rules(pictures[:, :3], pictures[:, 3:])
    guided = network.network.features(pictures[:, :3], pictures[:, 3:], text).guided
    torch.testing.assert_close(task.see(batch.vis, batch.ir).features, guided)


def job(scenes: Path, backbone: Path, *changes: str, captions: str = "rules") -> SlgDetectionJob:
    asked = SlgTraining(backbone=backbone, captions=captions)
    config = task_training(Task.DETECTION, "scenes-4", "both", None, ["fusion=slgnet", *TINY, *changes], asked)
    torch.manual_seed(0)
    return SlgDetectionJob(config, find_pairs(scenes))


def test_every_weight_learns_at_the_rate_of_the_article(scenes: Path, backbone: Path) -> None:
    made = job(scenes, backbone)
    optimiser = made.optimiser(OptimiserConfig(lr=1e-4, weight_decay=0.1, kind=OptimiserKind.ADAMW))
    set_rate(optimiser, 2e-4)
    rates = {id(p): (group["lr"], group["weight_decay"]) for group in optimiser.param_groups for p in group["params"]}
    named = dict(made.network.named_parameters())
    assert set(rates) == {id(parameter) for parameter in named.values()}
    assert sum(len(group["params"]) for group in optimiser.param_groups) == len(named)
    for stage in range(4):
        gain = named[f"network.features.adapters.stages.{stage}.gain"]
        assert rates[id(gain)] == (pytest.approx(2e-4 * 0.7 ** (3 - stage)), 0)
    for name in ("network.pyramid.finer.weight", "network.features.adapters.language.pool.0.weight"):
        assert rates[id(named[name])] == (2e-4, 0.1)


def test_a_file_tells_each_pair_its_own_and_some_samples_nothing(scenes: Path, backbone: Path, captions: Path) -> None:
    made = job(scenes, backbone, captions=str(captions))
    encoder = HashingEncoder()
    for number, pair in enumerate(find_pairs(scenes)):
        assert torch.equal(made._said[pair.name][1], encoder.encode([f"street {number}"])[0])
        assert not made._said[pair.name][[0, 2, 3]].any()
    heard = []

    def listening(pictures: Tensor, text: Tensor) -> None:
        heard.append(text.flatten(1).any(dim=1))

    made.network.forward = listening  # type: ignore[assignment,method-assign]
    names = (find_pairs(scenes)[0].name,) * 4
    dark, masks = torch.zeros(4, 4, 8, 8), torch.zeros(4, 1, 8, 8, dtype=torch.bool)
    batch = Batch(ir=dark[:, :1], vis=dark[:, 1:], masks_ir=masks, masks_vis=masks, names=names)
    for number in range(100):
        made.prediction(batch, number)
    assert 0.85 < float(torch.stack(heard).float().mean()) < 0.95
    captions_of_three = captions.with_name("three.jsonl")
    captions_of_three.write_text("\n".join(captions.read_text().splitlines()[:3]))
    with pytest.raises(InputError, match="no captions of 1 pairs"):
        job(scenes, backbone, captions=str(captions_of_three))


def test_rules_say_by_themselves_what_they_say_of_a_pair() -> None:
    encoder, generator = HashingEncoder(), torch.Generator().manual_seed(0)
    rules = RuleText(encoder.width)
    rules.encode(encoder)
    for light, warm in ((0.05, 0.02), (0.2, 0.3), (0.5, 1.0), (0.9, 0.5)):
        visible = (light + light * torch.randn(2, 3, 40, 56, generator=generator)).clamp(0, 1)
        infrared = warm * torch.rand(2, 1, 40, 56, generator=generator)
        wanted = text_features(
            encoder, [RuleCaptions().captions("", *pair) for pair in zip(visible, infrared, strict=True)]
        )
        made = rules(visible, infrared)
        assert torch.equal(made, wanted)
        assert made[:, [0, 1, 3]].any(dim=2).all()
        assert not made[:, 2].any(), "rules know nothing about objects"


@pytest.mark.parametrize(
    ("words", "change", "message"),
    [
        (["--input", "both", "--fusion", "concat"], "", "makes the fusion slgnet the whole SLGNet"),
        (["--input", "vis"], "", "makes the fusion slgnet the whole SLGNet"),
        (["--input", "both", "--fusion", "slgnet"], "head=detr", "SLGNet has the head dense here"),
        (["--input", "both", "--fusion", "slgnet"], "slgnet.adapters.heads=5", "12 channels of values for 5 heads"),
        (["--input", "both", "--fusion", "slgnet"], "slgnet.adapters.stages=3", "4 blocks in 3 stages"),
        (["--input", "both", "--fusion", "slgnet"], "slgnet.adapters.text_width=16", "text_width=512"),
        (["--input", "both", "--fusion", "slgnet"], "slgnet.adapters.magic=1", "Unexpected keyword argument"),
        (["--input", "both", "--fusion", "slgnet", "--trunk-weights", "x"], "", "has no other trunk"),
        (["--input", "both", "--fusion", "slgnet", "--captions", "x.jsonl"], "", "x.jsonl: cannot be read"),
    ],
)
def test_what_does_not_go_together_is_refused(
    words: list[str], change: str, message: str, scenes: Path, backbone: Path, tmp_path: Path
) -> None:
    command = ["train-task", "detection", str(scenes), "--out", str(tmp_path / "run"), "--classes", "scenes-4"]
    changes = (*TINY, change) if change else TINY
    assert message in refused([*command, "--backbone", str(backbone), *words], *changes)


def test_options_of_slgnet_need_a_backbone_and_a_detector(
    scenes: Path, backbone: Path, by_rules: Path, tmp_path: Path
) -> None:
    command = ["train-task", "detection", str(scenes), "--out", str(tmp_path / "run"), "--classes", "scenes-4"]
    assert "--captions rules without --backbone" in refused([*command, "--captions", "rules"])
    score = ["evaluate", str(scenes), "--out", str(tmp_path / "scores"), "--backbone", str(backbone)]
    assert "without --task" in refused(score)
    onnx = [*score, "--task", "detection", "--network", "x.onnx", "--classes", "scenes-4"]
    assert "an SLGNet detector is opened around it" in refused(onnx)
