"""Detectors with IRDFusion: trained, exported, asked as critics, and their differences as a weight of a loss."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from duskfuse.cli import app
from duskfuse.data.class_conventions import objects_named
from duskfuse.data.errors import InputError
from duskfuse.data.fuser import FusionOutput
from duskfuse.data.scenes.write import write_scenes
from duskfuse.data.weights import ModelCard, save_weights
from duskfuse.distill.context import Batch, BatchContext
from duskfuse.distill.critics import truth_for, with_critics
from duskfuse.distill.recipe import Recipe
from duskfuse.distill.recipe_files import load_recipe
from duskfuse.distill.terms import TermName
from duskfuse.distill.terms.differential import differential_saliency
from duskfuse.export.onnx_graph import fold_sizes
from duskfuse.export.tensorrt_lint import Verdict, lint
from duskfuse.tasks.detector import ARCHITECTURE, Detector, detector_settings, new_detector, open_detector
from duskfuse.tasks.detector_network import HeadKind
from duskfuse.tasks.fusion_blocks import FusionBlock
from duskfuse.tasks.irdfusion import IrdFusion, PyramidFusion
from duskfuse.tasks.objects import stacked_objects
from duskfuse.tasks.task_network import Task
from duskfuse.tasks.trunk import Trunk

CLASSES = objects_named("scenes-4")
TRUTH = stacked_objects([torch.tensor([[0.0, 10, 10, 60, 50], [2, 60, 5, 90, 60]]), torch.zeros(0, 5)])
SMALL = ("data.crop=[64, 96]", "data.batch=2", "data.workers=0", "batches=2", "optimiser.warmup=1")


def detector(head: HeadKind = HeadKind.DENSE, fusion: FusionBlock = FusionBlock.IRDFUSION) -> Detector:
    torch.manual_seed(0)
    return new_detector(CLASSES, head=head, fusion=fusion)


def pictures(height: int = 64, width: int = 96) -> Tensor:
    return torch.rand(2, 4, height, width, generator=torch.Generator().manual_seed(1))


def saved(folder: Path, fusion: FusionBlock = FusionBlock.IRDFUSION) -> Path:
    made = detector(fusion=fusion)
    settings = detector_settings(CLASSES, Trunk.RESIDUAL, HeadKind.DENSE, fusion)
    path = folder / f"{fusion}.safetensors"
    save_weights(path, made.network, ModelCard(ARCHITECTURE, settings, "rgb", "0.1.0", "nothing"))
    return path


def test_a_wide_encoder_is_narrowed_and_the_tokens_come_back_with_the_file(tmp_path: Path) -> None:
    made = new_detector(CLASSES, Trunk.SQUEEZENET, fusion=FusionBlock.IRDFUSION, tokens=(4, 5)).eval()
    fused = made.network.fusion
    assert isinstance(fused, PyramidFusion)
    assert [tuple(block.get_parameter("join.weight").shape[:2]) for block in fused.blocks] == [(64, 128), (128, 256)]
    settings = detector_settings(CLASSES, Trunk.SQUEEZENET, HeadKind.DENSE, FusionBlock.IRDFUSION, (4, 5))
    path = tmp_path / "detector.safetensors"
    save_weights(path, made.network, ModelCard(ARCHITECTURE, settings, "rgb", "0.1.0", "nothing"))
    again = open_detector(path)
    with torch.inference_mode():
        assert torch.equal(again(pictures()).boxes, made(pictures()).boxes)
    wrong = tmp_path / "wrong.safetensors"
    save_weights(wrong, made.network, ModelCard(ARCHITECTURE, {**settings, "tokens": 3}, "rgb", "0.1.0", "nothing"))
    with pytest.raises(InputError, match="tokens"):
        open_detector(wrong)


@pytest.mark.parametrize(("size", "grid"), [((16, 20), (8, 10)), ((8, 10), (8, 10))])
def test_the_block_as_an_onnx_file(size: tuple[int, int], grid: tuple[int, int], tmp_path: Path) -> None:
    """Opset 17; TensorRT 8.6 and newer take it, 8.5 has no LayerNormalization."""
    torch.manual_seed(0)
    block = IrdFusion(16, grid, heads=4).eval()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    ir, vis = torch.randn(2, 1, 16, *size)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            block,
            (ir, vis),
            tmp_path / "block.onnx",
            input_names=["ir", "vis"],
            output_names=["fused"],
            opset_version=17,
            dynamo=False,
        )
        expected = block(ir, vis).numpy()
    model = onnx.load(tmp_path / "block.onnx")
    fold_sizes(model)
    onnx.checker.check_model(model, full_check=True)
    report = lint(model)
    assert {release for release, verdict in report.verdicts.items() if verdict is not Verdict.CLEAN} == {"8.5"}
    assert all("LayerNormalization" in str(finding) for finding in report.findings)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (made,) = session.run(None, {"ir": ir.numpy(), "vis": vis.numpy()})
    assert np.abs(made - expected).max() < 1e-5 * max(1, np.abs(expected).max())


@pytest.mark.parametrize("head", list(HeadKind))
@pytest.mark.parametrize("fusion", [None, FusionBlock.CONCAT, FusionBlock.IRDFUSION])
def test_everything_learns_that_there_is(head: HeadKind, fusion: FusionBlock | None) -> None:
    """The DETR head looks at strides 16 and 32: before it there is nothing at stride 8 but a stage of the encoder."""
    torch.manual_seed(0)
    made = new_detector(CLASSES, head=head, fusion=fusion)
    torch.autograd.backward(made.loss(made(pictures()[:, : made.channels]), TRUTH))
    without = [name for name, weight in made.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert all("to_shifts" in name for name in without), without  # behind layers that start at 0
    levels = len(made.network.pyramid.lateral)
    assert levels == (1 if head is HeadKind.DETR else 2)
    if isinstance(made.network.fusion, PyramidFusion):
        assert len(made.network.fusion.blocks) == levels
        assert made.differences(pictures()).shape == (2, 1, 64, 96)


def test_with_silent_outputs_irdfusion_is_the_concatenation() -> None:
    """Same convolution, and no relation module says anything: the baseline, bit for bit."""
    ours, plain = detector().eval(), detector(fusion=FusionBlock.CONCAT).eval()
    assert isinstance(ours.network.fusion, PyramidFusion)
    shared = {key: value for key, value in ours.network.state_dict().items() if not key.startswith("fusion")}
    joins = {f"fusion.mix.{k}.weight": block.join.weight for k, block in enumerate(ours.network.fusion.blocks)}  # type: ignore[union-attr]
    plain.network.load_state_dict({**shared, **cast(dict[str, Tensor], joins)})
    for name, layer in ours.network.fusion.named_modules():
        if name.endswith(".output"):
            assert isinstance(layer, nn.Linear)
            nn.init.zeros_(layer.weight)
    with torch.no_grad():
        assert torch.equal(ours(pictures()).logits, plain(pictures()).logits)


def test_as_a_critic_the_gradient_reaches_the_picture_and_no_weight() -> None:
    critic = detector().freeze()
    before = {key: value.clone() for key, value in critic.state_dict().items()}
    fused = pictures().requires_grad_()
    torch.autograd.backward(critic.loss(critic(fused), TRUTH))
    assert fused.grad is not None
    assert fused.grad[:, :3].any()
    assert fused.grad[:, 3:].any()
    assert all(weight.grad is None for weight in critic.parameters())
    assert all(torch.equal(value, before[key]) for key, value in critic.state_dict().items())


@pytest.mark.parametrize("size", [(64, 96), (70, 101)])
def test_differences_cover_the_picture(size: tuple[int, int]) -> None:
    made = detector().eval()
    seen = made.differences(pictures(*size).requires_grad_())
    assert seen.shape == (2, 1, *size)
    assert 0 <= float(seen.min()) < float(seen.max()) <= 1
    assert not seen.requires_grad
    assert made.finds_differences
    other = detector(fusion=FusionBlock.CONCAT).eval()
    assert not other.finds_differences
    with pytest.raises(ValueError, match="without IRDFusion"):
        other.differences(pictures())


def context(critic: Detector) -> tuple[FusionOutput, BatchContext]:
    vis, ir = torch.split(pictures(), [3, 1], dim=1)
    masks = torch.zeros(2, 1, *ir.shape[-2:], dtype=torch.bool)
    batch = Batch(ir=ir, vis=vis, masks_ir=masks, masks_vis=masks, names=("a", "b"))
    fused = FusionOutput(pictures()[:, 2:3].clone().requires_grad_())
    return fused, BatchContext(batch, {}, critics={Task.DETECTION: critic})


def test_the_term_beside_its_loss_is_the_loss_weighted_by_the_saliency() -> None:
    """mean((1 + κ s) |e|) = gradient_max + κ · salient_gradient, in value and gradient, pixel by pixel."""
    critic = detector().freeze()
    fused, seen = context(critic)
    saliency = critic.differences(pictures())
    assert torch.equal(differential_saliency(seen), saliency)
    assert differential_saliency(seen) is differential_saliency(seen)
    kappa = 3.0
    both = TermName.GRADIENT_MAX.function(fused, seen) + kappa * TermName.SALIENT_GRADIENT.function(fused, seen)

    def edges(picture: Tensor) -> Tensor:
        padded = nn.functional.pad(picture, (1, 1, 1, 1), mode="replicate")
        kernel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])
        return sum((nn.functional.conv2d(padded, k[None, None]).abs() for k in (kernel, kernel.T)), torch.zeros(()))

    wanted = torch.maximum(edges(seen.batch.vis_y), edges(seen.batch.ir))
    slow = ((1 + kappa * saliency) * (edges(fused.y) - wanted).abs()).mean()
    assert float(both.detach()) == pytest.approx(float(slow.detach()), rel=1e-5)
    ours, theirs = (torch.autograd.grad(loss, fused.y)[0] for loss in (both, slow))
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
    assert all(weight.grad is None for weight in critic.parameters())


def test_the_term_without_a_detector_is_an_error_that_says_so() -> None:
    fused, seen = context(detector())
    with pytest.raises(ValueError, match="needs a detector"):
        TermName.SALIENT_GRADIENT.function(fused, BatchContext(seen.batch, {}))


def recipe(network: Path | None) -> Recipe:
    changes = ["steps.student.terms.salient_gradient=2"]
    return load_recipe("demo", changes if network is None else [*changes, f"detector.network={network}"])


def test_differences_need_no_boxes_and_are_left_out_without_a_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = [SimpleNamespace(label=None, boxes=None, saliency=None)]
    kept, critics = with_critics(recipe(saved(tmp_path)), pairs)  # type: ignore[arg-type]
    assert TermName.SALIENT_GRADIENT in kept.terms_used()
    assert critics[Task.DETECTION].training is False
    assert truth_for(kept, critics).objects is None
    capsys.readouterr()
    without, critics = with_critics(recipe(None), pairs)  # type: ignore[arg-type]
    assert TermName.SALIENT_GRADIENT not in without.terms_used()
    assert not critics
    assert "term salient_gradient is left out" in capsys.readouterr().err


def test_a_detector_of_another_fusion_has_no_differences(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--fusion irdfusion"):
        with_critics(recipe(saved(tmp_path, FusionBlock.CONCAT)), [])


def test_the_command_trains_every_fusion(tmp_path: Path) -> None:
    write_scenes(tmp_path / "scenes", count=4, size=(64, 96))
    options = [part for change in SMALL for part in ("--set", change)]
    command = ["train-task", "detection", str(tmp_path / "scenes"), "--classes", "scenes-4", "--json", *options]
    for fusion in FusionBlock:
        out = tmp_path / fusion
        done = CliRunner().invoke(app, [*command, "--out", str(out), "--input", "both", "--fusion", fusion])
        assert done.exit_code == 0, done.output
        assert json.loads((out / "scores.json").read_text())["input"] == "both"
    refused = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "no"), "--fusion", "add"])
    assert refused.exit_code == 2
    assert "--input both" in refused.output
