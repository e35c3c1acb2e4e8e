"""Checkpoints of SLGNet, its detector, its alignment as a fusion block, and what a tiny training shows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from duskfuse.data.class_conventions import objects_named
from duskfuse.data.errors import InputError
from duskfuse.data.weights import read_card
from duskfuse.tasks.fusion_blocks import FusionBlock, new_fusion
from duskfuse.tasks.slgnet.alignment import align
from duskfuse.tasks.slgnet.checkpoint import open_slgnet, save_adapters
from duskfuse.tasks.slgnet.detector import SlgDetector, new_slg_detector, open_slg_detector, save_slg_detector
from duskfuse.tasks.slgnet.network import SlgNet, SlgSettings
from duskfuse.tasks.slgnet.vit import FrozenVit, VitShape, weights_sha256

SHAPE = VitShape(width=24, depth=4, heads=2, hidden=48, grid=4)
SETTINGS = SlgSettings(
    heads=2, points=2, evolution_hidden=12, structure_channels=(8, 8, 8), stem=8, text_width=16, language_hidden=16
)
CLASSES = objects_named("LLVIP-1")
Module = TypeVar("Module", bound=nn.Module)


def backbone(seed: int = 0) -> FrozenVit:
    torch.manual_seed(seed)
    return FrozenVit(SHAPE)


def stirred(network: Module) -> Module:
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def rgb_and_ir(height: int = 64, width: int = 96) -> Tensor:
    return torch.rand(2, 4, height, width, generator=torch.Generator().manual_seed(1))


def text() -> Tensor:
    return torch.randn(2, 4, 16, generator=torch.Generator().manual_seed(2))


def detector() -> SlgDetector:
    return new_slg_detector(SlgNet(backbone(), SETTINGS), CLASSES, width=16)


def test_a_file_holds_the_adapters_alone_and_gives_the_same_features(tmp_path: Path) -> None:
    network = stirred(SlgNet(backbone(), replace(SETTINGS, window=5, shared_cameras=False)))
    save_adapters(tmp_path / "slgnet.safetensors", network, "random")
    reopened = open_slgnet(tmp_path / "slgnet.safetensors", backbone())
    assert reopened.settings == network.settings
    pictures = rgb_and_ir()
    assert torch.equal(
        reopened(pictures[:, :3], pictures[:, 3:], text()).guided,
        network(pictures[:, :3], pictures[:, 3:], text()).guided,
    )
    card = read_card(tmp_path / "slgnet.safetensors")
    assert card.settings["backbone_sha256"] == weights_sha256(backbone())
    numbers = sum(parameter.numel() for parameter in network.parameters())
    assert (tmp_path / "slgnet.safetensors").stat().st_size < 4 * numbers + 40_000


def test_another_backbone_is_refused(tmp_path: Path) -> None:
    save_adapters(tmp_path / "slgnet.safetensors", SlgNet(backbone(), SETTINGS), "random")
    with pytest.raises(InputError, match=r"trained on the backbone .* not on this .*; adapters fit only the frozen"):
        open_slgnet(tmp_path / "slgnet.safetensors", backbone(seed=1))
    save_slg_detector(tmp_path / "detector.safetensors", detector(), "random")
    with pytest.raises(InputError, match="trained on the backbone"):
        open_slg_detector(tmp_path / "detector.safetensors", backbone(seed=1))
    with pytest.raises(InputError, match="another architecture: 'slgdet-s'"):
        open_slgnet(tmp_path / "detector.safetensors", backbone())


@pytest.mark.parametrize("size", [(64, 96), (50, 70)])
def test_the_detector_takes_any_size_and_covers_the_picture(size: tuple[int, int]) -> None:
    network = stirred(detector())
    prediction = network(rgb_and_ir(*size), text())
    height, width = size
    cells = sum(round(height / s) * round(width / s) for s in (8, 16, 32))  # centres that lie in the picture
    assert prediction.logits.shape == (2, cells, len(CLASSES))
    assert bool((prediction.points < torch.tensor([width, height])).all())
    with pytest.raises(ValueError, match="pictures of 3 channels"):
        network(rgb_and_ir()[:, :3])


def test_the_detector_survives_the_file_without_its_backbone(tmp_path: Path) -> None:
    network = stirred(detector())
    save_slg_detector(tmp_path / "detector.safetensors", network, "random")
    reopened = open_slg_detector(tmp_path / "detector.safetensors", backbone())
    assert torch.equal(reopened(rgb_and_ir(), text()).boxes, network(rgb_and_ir(), text()).boxes)
    assert reopened.classes == CLASSES
    found, again = network.predict(rgb_and_ir()), reopened.predict(rgb_and_ir())
    assert all(torch.equal(a.corners, b.corners) for a, b in zip(found, again, strict=True))


def test_predictions_do_not_see_what_was_padded_on() -> None:
    network = stirred(detector()).network
    pictures = rgb_and_ir()
    padded = F.pad(pictures, (0, 32, 0, 64), value=0.7)
    alone = network(pictures[:, :3], pictures[:, 3:], text())
    together = network(padded[:, :3], padded[:, 3:], text(), size=(64, 96))
    torch.testing.assert_close(together.boxes, alone.boxes, rtol=0, atol=1e-4)
    torch.testing.assert_close(together.logits, alone.logits, rtol=0, atol=1e-4)


def test_the_loss_moves_everything_but_the_backbone_and_as_a_critic_only_the_picture() -> None:
    truth = torch.tensor([[[0, 8.0, 10, 40, 50]], [[0, 30.0, 4, 70, 30]]])
    network = stirred(detector()).train()
    network.loss(network(rgb_and_ir(), text()), truth).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    critic = stirred(detector()).freeze()
    pictures = rgb_and_ir().requires_grad_()
    critic.loss(critic(pictures), truth).backward()
    assert pictures.grad is not None
    assert all(float(channel.abs().sum()) > 0 for channel in pictures.grad.transpose(0, 1))
    assert all(parameter.grad is None for parameter in critic.parameters())
    with pytest.raises(InputError, match="boxes are upright"):
        critic.loss(critic(pictures), torch.zeros(2, 1, 6))


def test_the_alignment_is_a_fusion_block_of_any_two_cameras_maps() -> None:
    block = new_fusion(FusionBlock.SLGNET, (8, 16))
    maps = [torch.rand(2, 8, 12, 8), torch.rand(2, 16, 6, 4)]
    others = [torch.rand(2, 8, 12, 8), torch.rand(2, 16, 6, 4)]
    fused = block(others, maps)
    for given, visible, infrared in zip(fused, maps, others, strict=True):
        torch.testing.assert_close(given, align(visible, infrared).fused)
    assert not list(block.parameters())


# --- what a tiny training shows ---


def toy_batch(generator: torch.Generator, batch: int = 16) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """By day the visible picture holds the square and the infrared one a false one; at night it is the other way.

    Only the text tells which: pictures of day and night have the same statistics.
    """
    pictures = 0.1 * torch.rand(batch, 2, 64, 64, generator=generator)
    cells = torch.randint(4, (batch, 2, 2), generator=generator)
    night = torch.randint(2, (batch,), generator=generator)
    wanted = torch.zeros(batch, 4, 4)
    for index in range(batch):
        for camera in range(2):
            row, column = cells[index, camera].tolist()
            pictures[index, camera, 16 * row + 3 : 16 * row + 13, 16 * column + 3 : 16 * column + 13] += 0.8
        row, column = cells[index, int(night[index])].tolist()
        wanted[index, row, column] = 1
    said = torch.zeros(batch, 4, 16)
    said[torch.arange(batch), 0, night] = 1
    return pictures[:, :1].expand(-1, 3, -1, -1), pictures[:, 1:], said, wanted


def toy_loss(structure: bool, language: bool, steps: int = 120) -> float:
    """Cross-entropy of the square's cell on unseen scenes, after training the readout and what is switched on."""
    network = SlgNet(backbone(), SETTINGS).train()
    readout = nn.Conv2d(24, 1, 1)
    adapters = network.adapters
    trained = [*readout.parameters()]
    trained += [*adapters.structure.parameters(), *adapters.stages.parameters()] if structure else []
    trained += [*adapters.language.parameters()] if language else []
    optimiser = torch.optim.AdamW(trained, lr=1e-2)
    generator = torch.Generator().manual_seed(3)

    def loss(batch: int = 16) -> Tensor:
        visible, infrared, said, wanted = toy_batch(generator, batch)
        logits = readout(network(visible, infrared, said).guided)[:, 0]
        return F.cross_entropy(logits.flatten(1), wanted.flatten(1).argmax(dim=1))

    for _ in range(steps):
        optimiser.zero_grad()
        loss().backward()
        optimiser.step()
    network.eval()
    with torch.no_grad():
        return float(loss(128))


@pytest.mark.slow
def test_structure_helps_the_frozen_transformer_and_language_helps_further() -> None:
    frozen, with_structure, with_language = toy_loss(False, False), toy_loss(True, False), toy_loss(True, True)
    assert with_structure < frozen - 0.5  # it finds both squares, and cannot know which is meant
    assert with_language < with_structure - 0.3
