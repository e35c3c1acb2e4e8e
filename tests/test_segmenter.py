"""Segmenters: ours and other programs' give logits of every pixel and id, as critics move nothing but the picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from duskfuse.data.class_conventions import Convention, convention_named
from duskfuse.data.errors import InputError
from duskfuse.data.weights import ModelCard, save_weights
from duskfuse.tasks.open_segmenter import ARCHITECTURE, new_segmenter, open_segmenter, segmenter_settings
from duskfuse.tasks.segmenter import NEVER, SIDE_MULTIPLE, Segmenter
from duskfuse.tasks.segmenter_network import SegmenterNetwork
from duskfuse.tasks.trunk import Trunk

FMB15, FMB14, MFNET = (convention_named(name) for name in ("FMB-15", "FMB-14", "MFNet-9"))


def pictures(height: int = 40, width: int = 56, count: int = 2) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))


def labels(classes: int, height: int = 40, width: int = 56, count: int = 2) -> Tensor:
    return torch.randint(classes, (count, height, width), generator=torch.Generator().manual_seed(1))


def save_own(path: Path, classes: Convention, trunk: Trunk = Trunk.RESIDUAL) -> Segmenter:
    torch.manual_seed(0)
    segmenter = new_segmenter(classes, trunk)
    card = ModelCard(ARCHITECTURE, segmenter_settings(segmenter, trunk), "rgb", "0.1.0", "nothing")
    save_weights(path, segmenter.network, card)
    return segmenter.eval()


@pytest.mark.parametrize("trunk", list(Trunk))
def test_the_network_is_light_and_takes_any_size_from_32(trunk: Trunk) -> None:
    segmenter = new_segmenter(MFNET, trunk).eval()
    assert 0.3e6 < sum(parameter.numel() for parameter in segmenter.parameters()) < 1e6
    for size in ((32, 32), (33, 47), (64, 41)):
        assert segmenter(pictures(*size)).shape == (2, 9, *size)


def test_own_segmenters_survive_the_file(tmp_path: Path) -> None:
    for classes, trunk in ((FMB15, Trunk.RESIDUAL), (FMB14, Trunk.SQUEEZENET)):
        saved = save_own(tmp_path / "s.safetensors", classes, trunk)
        opened = open_segmenter(tmp_path / "s.safetensors")
        assert not opened.training
        assert opened.classes is classes
        assert torch.equal(opened(pictures()), saved(pictures()))


def test_a_class_that_does_not_count_is_never_named(tmp_path: Path) -> None:
    segmenter = save_own(tmp_path / "s.safetensors", FMB14)
    logits = segmenter(pictures())
    assert logits.shape[1] == 15
    assert bool((logits[:, 0] == NEVER).all())
    assert int(segmenter.predict(pictures()).min()) > 0
    truth = labels(15)
    truth[truth == 0] = 255
    expected = F.cross_entropy(logits[:, 1:], torch.where(truth == 255, 255, truth - 1), ignore_index=255)
    assert torch.allclose(segmenter.loss(logits, truth), expected, rtol=1e-6)


def test_the_loss_is_the_mean_over_pixels_that_count() -> None:
    logits, truth = torch.randn(2, 9, 5, 7), labels(9, 5, 7)
    truth[0, :3] = 255
    segmenter = new_segmenter(MFNET)
    slow = [
        -float(logits[b, :, y, x].log_softmax(0)[truth[b, y, x]])
        for b in range(2)
        for y in range(5)
        for x in range(7)
        if truth[b, y, x] != 255
    ]
    assert float(segmenter.loss(logits, truth)) == pytest.approx(sum(slow) / len(slow), rel=1e-5)
    logits.requires_grad_()
    nothing = segmenter.loss(logits, torch.full_like(truth, 255))
    nothing.backward()
    assert float(nothing.detach()) == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_a_frozen_segmenter_moves_the_picture_and_never_itself() -> None:
    """SAGE §10.13: gradients reach the picture; no weight has one, and batch statistics stay, even if told to train."""
    segmenter = new_segmenter(MFNET).freeze()
    segmenter.train()
    before = {name: tensor.clone() for name, tensor in segmenter.state_dict().items()}
    shown = pictures().requires_grad_()
    segmenter.loss(segmenter(shown), labels(9)).backward()
    assert shown.grad is not None
    assert float(shown.grad.abs().sum()) > 0
    assert all(parameter.grad is None for parameter in segmenter.parameters())
    assert any("running_mean" in name for name in before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in segmenter.state_dict().items())


def test_gradients_are_right() -> None:
    """Through padding, normalisation, the network and the loss, in float64."""
    torch.manual_seed(0)
    segmenter = Segmenter(nn.Conv2d(3, 9, 8, 8), MFNET).double().freeze()
    truth = labels(9, 33, 37, 1)

    def loss(corner: Tensor) -> Tensor:
        shown = F.pad(corner, (30, 0, 29, 0), value=0.5)
        return segmenter.loss(segmenter(shown), truth)

    assert torch.autograd.gradcheck(loss, pictures(4, 7, 1).double().requires_grad_(), atol=1e-4)


def test_the_squeezenet_trunk_starts_from_its_weights(squeezenet_weights: Path) -> None:
    from safetensors.torch import load_file
    from torchvision.models import squeezenet1_1

    reference = squeezenet1_1()
    reference.load_state_dict(load_file(squeezenet_weights), strict=False)
    segmenter = new_segmenter(MFNET, Trunk.SQUEEZENET, squeezenet_weights)
    assert isinstance(segmenter.network, SegmenterNetwork)
    maps = pictures(64, 64)
    expected = reference.features(maps)
    for stage in segmenter.network.trunk:
        maps = stage(maps)
    assert torch.equal(maps, expected)
    with pytest.raises(InputError, match="for the trunk residual"):
        new_segmenter(MFNET, Trunk.RESIDUAL, squeezenet_weights)


def test_wrong_trunk_weights_are_refused(tmp_path: Path) -> None:
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "part.pt")
    with pytest.raises(InputError, match="torchvision's squeezenet1_1"):
        new_segmenter(MFNET, Trunk.SQUEEZENET, tmp_path / "part.pt")


def test_other_classes_than_the_files_are_refused(tmp_path: Path, checkpoint: Path) -> None:
    save_own(tmp_path / "s.safetensors", FMB15)
    assert open_segmenter(tmp_path / "s.safetensors", "fmb-15").classes is FMB15
    with pytest.raises(InputError, match=r"was trained on FMB-15, and MFNet-9 is wanted"):
        open_segmenter(tmp_path / "s.safetensors", MFNET)
    with pytest.raises(InputError, match="another architecture: 'unet'"):
        open_segmenter(checkpoint)


def smp_network(folder: Path, classes: int, activation: str | None = None) -> nn.Module:
    smp = pytest.importorskip("segmentation_models_pytorch")
    torch.manual_seed(0)
    model: nn.Module = smp.Unet(
        "mobilenet_v2",
        encoder_weights=None,
        encoder_depth=3,
        decoder_channels=(16, 8, 8),
        classes=classes,
        activation=activation,
    )
    for module in model.modules():  # statistics that are not those of a new network
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)  # type: ignore[union-attr]
    model.save_pretrained(folder)  # type: ignore[operator]
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"encoder_weights": "imagenet"}))  # must not be downloaded
    return model.eval()


def normalised(shown: Tensor) -> Tensor:
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (shown - mean.view(3, 1, 1)) / std.view(3, 1, 1)


@pytest.mark.parametrize("given_as", ["folder", "file"])
def test_smp_networks_open_and_give_their_own_logits(tmp_path: Path, given_as: str) -> None:
    model = smp_network(tmp_path, 9)
    segmenter = open_segmenter(tmp_path if given_as == "folder" else tmp_path / "model.safetensors", MFNET)
    shown = pictures(64, 96)
    assert torch.allclose(segmenter(shown), model(normalised(shown)), atol=1e-6)
    assert segmenter(pictures(41, 57)).shape == (2, 9, 41, 57)


@pytest.mark.parametrize("activation", ["softmax2d", "softmax", "logsoftmax"])
@torch.no_grad()
def test_a_softmax_at_the_end_is_taken_off(tmp_path: Path, activation: str) -> None:
    """Cross-entropy on what comes out is the NLL of the network's own probabilities (SAGE §8 row 3)."""
    smp_network(tmp_path, 9, activation)
    plain = smp_network(tmp_path / "plain", 9)
    shown, truth = pictures(64, 96), labels(9, 64, 96)
    segmenter = open_segmenter(tmp_path, MFNET)
    own = plain(normalised(shown)).softmax(dim=1)  # the same seed, so the same weights
    expected = F.nll_loss(own.log(), truth)
    assert float(segmenter.loss(segmenter(shown), truth)) == pytest.approx(float(expected), rel=1e-5)


@torch.no_grad()
def test_independent_scores_become_log_probabilities(tmp_path: Path) -> None:
    smp_network(tmp_path, 9, "sigmoid")
    plain = smp_network(tmp_path / "plain", 9)
    shown, truth = pictures(64, 96), labels(9, 64, 96)
    scores = plain(normalised(shown)).sigmoid()
    expected = F.nll_loss((scores / scores.sum(dim=1, keepdim=True)).log(), truth)
    segmenter = open_segmenter(tmp_path, MFNET)
    assert float(segmenter.loss(segmenter(shown), truth)) == pytest.approx(float(expected), rel=1e-5)


def segformer(folder: Path, names: list[str] | int) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    named = {"num_labels": names} if isinstance(names, int) else {"id2label": dict(enumerate(names))}
    config = transformers.SegformerConfig(
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 8, 16, 16],
        decoder_hidden_size=16,
        num_attention_heads=[1, 1, 2, 2],
        **named,
    )
    model: nn.Module = transformers.SegformerForSemanticSegmentation(config)
    model.save_pretrained(folder)  # type: ignore[operator]
    return model.eval()


def test_segformers_open_and_give_their_own_logits(tmp_path: Path) -> None:
    model = segformer(tmp_path, list(FMB15.table.names))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3}))
    segmenter = open_segmenter(tmp_path, "FMB-15")
    shown = pictures(64, 96)
    expected = F.interpolate(model((shown - 0.5) / 0.25).logits, size=(64, 96), mode="bilinear", align_corners=False)
    assert torch.allclose(segmenter(shown), expected, atol=1e-6)
    assert segmenter(pictures(SIDE_MULTIPLE, SIDE_MULTIPLE)).shape == (2, 15, 32, 32)


def test_fourteen_channels_are_the_fourteen_counted_classes(tmp_path: Path) -> None:
    model = segformer(tmp_path, 14)
    ids = open_segmenter(tmp_path, FMB14).predict(pictures(64, 96))
    raw = model(normalised(pictures(64, 96))).logits
    own = F.interpolate(raw, size=(64, 96), mode="bilinear", align_corners=False).argmax(dim=1) + 1
    assert float((ids.long() == own).float().mean()) > 0.999


def test_what_does_not_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    segformer(tmp_path / "one", 14)
    with pytest.raises(InputError, match="names 14 classes; MFNet-9 has 9"):
        open_segmenter(tmp_path / "one", MFNET)
    with pytest.raises(InputError, match="say which: FMB-15"):
        open_segmenter(tmp_path / "one")
    segformer(tmp_path / "two", ["car", "unlabelled", *MFNET.table.names[2:]])
    with pytest.raises(InputError, match="channel 0 is 'car'; there MFNet-9 has 'unlabelled'"):
        open_segmenter(tmp_path / "two", MFNET)
    (tmp_path / "two" / "model.safetensors").write_bytes(b"half")
    with pytest.raises(InputError, match="cannot be opened"):
        open_segmenter(tmp_path / "two", MFNET)
    (tmp_path / "two" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(InputError, match=r"config\.json is of bert"):
        open_segmenter(tmp_path / "two", MFNET)
    (tmp_path / "two" / "config.json").write_text('{"_model_class": "from_pretrained"}')
    pytest.importorskip("segmentation_models_pytorch")
    with pytest.raises(InputError, match="names the class 'from_pretrained'"):
        open_segmenter(tmp_path / "two", MFNET)
    monkeypatch.setitem(__import__("sys").modules, "segmentation_models_pytorch", None)
    with pytest.raises(InputError, match="pip install"):
        open_segmenter(tmp_path / "two", MFNET)
    with pytest.raises(InputError, match=r"holds no config\.json"):
        open_segmenter(tmp_path, MFNET)
    with pytest.raises(InputError, match="no such weights file"):
        open_segmenter(tmp_path / "nothing.safetensors")


def test_a_backbone_without_a_head_is_refused(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.SegformerConfig(
        depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 16, 16], num_attention_heads=[1, 1, 2, 2], num_labels=9
    )
    transformers.SegformerModel(config).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="weights are missing"):
        open_segmenter(tmp_path, MFNET)
