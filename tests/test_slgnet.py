"""SLGNet's trained part around a tiny frozen transformer: counts, identity, gradients, sizes, checkpoints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from duskfuse.data.errors import InputError
from duskfuse.tasks.slgnet.adapters import FusionAdapter, LanguageModulation
from duskfuse.tasks.slgnet.network import SlgAdapters, SlgNet, SlgSettings, count_parameters
from duskfuse.tasks.slgnet.vit import FrozenVit, VitShape, open_vit, resampled_patches, vit_from, weights_sha256

SHAPE = VitShape(width=24, depth=4, heads=2, hidden=48, grid=4)
SETTINGS = SlgSettings(
    heads=2, points=2, evolution_hidden=12, structure_channels=(8, 8, 8), stem=8, text_width=16, language_hidden=16
)


def tiny(seed: int = 0, **settings: object) -> SlgNet:
    torch.manual_seed(seed)
    return SlgNet(FrozenVit(SHAPE), replace(SETTINGS, **settings))  # type: ignore[arg-type]


def stirred(network: SlgNet) -> SlgNet:
    """The network with every trained number moved, as after training."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return network


def pair(height: int = 64, width: int = 96, batch: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(batch, 3, height, width, generator=generator), torch.rand(
        batch, 1, height, width, generator=generator
    )


def text(batch: int = 2) -> Tensor:
    return torch.randn(batch, 4, 16, generator=torch.Generator().manual_seed(2))


def test_parameters_on_vit_b_are_pinned_and_those_of_the_article() -> None:
    """12.1 ± 0.3 M is what the article reports; 11.9 M is what its modules add up to, see the spec of each."""
    adapters, wider = SlgAdapters(), FusionAdapter(hidden=256)
    assert count_parameters(adapters.structure) == 4_677_440
    assert count_parameters(adapters.stages) == 4_595_712
    assert count_parameters(adapters.language) == 2_625_024
    assert count_parameters(adapters) == 11_898_176
    widened = count_parameters(adapters) + 3 * (count_parameters(wider) - count_parameters(adapters.stages[1]))
    assert widened == 12_193_280  # with 256 channels in the evolution


@pytest.mark.parametrize(
    ("shape", "count"),
    [
        (VitShape(), 85_798_656),
        (VitShape(patch=14, grid=37, layer_scale=True), 86_579_712),
        (VitShape(grid=37, layer_scale=True), 86_717_952),
    ],
)
def test_the_frozen_count_is_that_of_the_backbone(shape: VitShape, count: int) -> None:
    """ViT-B/16, DINOv2 B/14, and the same with patches of 16; the article's 83.9 M are of none of them."""
    one, two = (FrozenVit(replace(shape, depth=depth)).weights_count for depth in (1, 2))
    assert two - one == 7_087_872 + shape.layer_scale * 2 * 768
    assert one + 11 * (two - one) == count


def test_the_backbone_has_its_own_count_and_no_optimiser_finds_it() -> None:
    network = tiny()
    trained = {id(parameter) for parameter in network.parameters()}
    assert (
        count_parameters(network) == count_parameters(network.adapters) == sum(p.numel() for p in network.parameters())
    )
    network.train().requires_grad_(True)  # what a training loop may do to everything
    assert not list(network.backbone.parameters())
    assert not any(values.requires_grad for values in network.backbone.buffers())
    grouped = [id(parameter) for group in network.parameter_groups() for parameter in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == trained
    assert not any(name.startswith("backbone") for name in network.state_dict())


def test_rates_fall_from_the_last_adapter_to_the_first() -> None:
    network = tiny()
    rates = {
        id(p): (group["lr"], group["weight_decay"]) for group in network.parameter_groups(1e-4) for p in group["params"]
    }
    stages = network.adapters.stages
    for stage, rate in enumerate((3.43e-5, 4.9e-5, 7e-5, 1e-4)):
        assert rates[id(stages[stage].attention.out.weight)] == (pytest.approx(rate), 0.1)
        assert rates[id(stages[stage].gain)] == (pytest.approx(rate), 0.0)
    assert rates[id(network.adapters.structure.project[0].weight)] == (1e-4, 0.1)
    assert rates[id(network.adapters.structure.level_embedding)] == (1e-4, 0.0)
    assert rates[id(network.adapters.language.pool[0].bias)] == (1e-4, 0.0)


def test_untrained_it_is_the_frozen_transformer() -> None:
    network = tiny()
    visible, infrared = pair()
    plain = network.backbone((visible - network.mean) / network.std)
    for words in (None, text()):
        torch.testing.assert_close(network(visible, infrared, words).guided, plain, rtol=0, atol=1e-6)
    moved = stirred(network)(visible, infrared, text()).guided
    assert float((moved - plain).detach().abs().max()) > 0.1


def test_gradients_reach_few_tensors_in_the_first_step_and_all_in_the_second() -> None:
    network = tiny().train()
    before = weights_sha256(network.backbone)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.5)
    visible, infrared = pair()
    wanted = torch.randn(2, 24, 4, 6, generator=torch.Generator().manual_seed(3))
    moving = []
    for _ in range(2):
        optimiser.zero_grad()
        F.mse_loss(network(visible, infrared, text()).guided, wanted).backward()
        moving.append({n for n, p in network.adapters.named_parameters() if p.grad is not None and p.grad.any()})
        optimiser.step()
    last = {f"language.{part}.2.{kind}" for part in ("scale", "shift") for kind in ("weight", "bias")}
    assert moving[0] == {f"stages.{stage}.gain" for stage in range(4)} | last
    assert moving[1] == {name for name, _ in network.adapters.named_parameters()}
    assert weights_sha256(network.backbone) == before


@pytest.mark.parametrize(
    ("size", "grid", "levels"),
    [
        ((640, 640), (40, 40), [(80, 80), (40, 40), (20, 20)]),
        ((512, 640), (32, 40), [(64, 80), (32, 40), (16, 20)]),
        ((480, 640), (30, 40), [(60, 80), (30, 40), (15, 20)]),
        ((50, 70), (4, 5), [(7, 9), (4, 5), (2, 3)]),
        ((17, 16), (2, 1), [(3, 2), (2, 1), (1, 1)]),
    ],
)
def test_levels_are_exactly_an_eighth_a_sixteenth_and_a_32nd(
    size: tuple[int, int], grid: tuple[int, int], levels: list[tuple[int, int]]
) -> None:
    with torch.no_grad():
        features = tiny().eval()(*pair(*size, batch=1))
    assert features.guided.shape == (1, 24, *grid)
    assert [tuple(level.shape) for level in features.structure] == [(1, *level, 24) for level in levels]
    assert [tuple(level.fused.shape) for level in features.levels] == [(1, 8, *level) for level in levels]


def test_what_was_padded_on_changes_nothing() -> None:
    """Also the largest and least value of the alignment, the borders of Sobel and the attention to other tokens."""
    network = stirred(tiny()).eval()
    visible, infrared = pair(64, 96)
    padded = [F.pad(picture, (0, 32, 0, 64), value=0.7) for picture in (visible, infrared)]
    alone, together = network(visible, infrared, text()), network(*padded, text(), size=(64, 96))
    torch.testing.assert_close(together.guided, alone.guided, rtol=0, atol=1e-4)
    for first, second in zip(together.structure, alone.structure, strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=1e-4)


def test_structure_evolves_from_stage_to_stage_and_is_carried_on() -> None:
    network = stirred(tiny()).eval()
    seen: list[list[Tensor]] = []
    for stage in network.adapters.stages:
        stage.register_forward_pre_hook(lambda _, given: seen.append(given[2]))
    network(*pair())
    for earlier, later in ((0, 2), (1, 2), (2, 3)):
        assert all((a - b).abs().max() > 1e-3 for a, b in zip(seen[earlier], seen[later], strict=True))
    evolution = network.adapters.stages[1].evolution
    torch.testing.assert_close(seen[2][0], evolution(seen[1][0]))
    with torch.no_grad():
        for stage in network.adapters.stages[1:]:
            stage.evolution.mlp[2].weight.zero_()
            stage.evolution.mlp[2].bias.zero_()
    seen.clear()
    network(*pair())
    assert torch.equal(seen[0][0], seen[3][0])


def test_language_scales_and_shifts() -> None:
    torch.manual_seed(0)
    language = LanguageModulation(24, 16, 16)
    maps = torch.randn(2, 24, 3, 5)
    zero, shift = torch.zeros(2, 24), torch.randn(2, 24)
    assert torch.equal(language(maps, zero, zero), maps)
    assert torch.equal(language(maps, *language.parameters_of(text())), maps)  # untrained
    constant = language(maps, zero - 1, shift)
    torch.testing.assert_close(constant, shift[..., None, None].expand_as(maps))
    scale = torch.randn(2, 24)
    torch.testing.assert_close(
        language(2 * maps, scale, zero) + language(maps, scale, shift), language(3 * maps, scale, shift)
    )
    with pytest.raises(ValueError, match=r"want \[B, 4, 16\]"):
        language.parameters_of(torch.zeros(2, 4, 8))


def test_what_is_said_decides_the_modulation() -> None:
    language = stirred(tiny()).adapters.language
    first, same, other = text(), text(), text()
    other[:, 0] += 1  # the environment alone
    assert torch.equal(language.parameters_of(first)[0], language.parameters_of(same)[0])
    for ours, theirs in zip(language.parameters_of(first), language.parameters_of(other), strict=True):
        assert not torch.equal(ours, theirs)


def test_as_a_critic_it_moves_the_pictures_and_nothing_else() -> None:
    network = stirred(tiny()).eval().requires_grad_(False)
    fused, infrared = (picture.requires_grad_() for picture in pair())
    network(fused, infrared, text()).guided.square().mean().backward()
    assert fused.grad is not None
    assert infrared.grad is not None
    assert float(fused.grad.abs().sum()) > 0
    assert float(infrared.grad.abs().sum()) > 0
    assert all(parameter.grad is None for parameter in network.parameters())


def test_sparing_memory_changes_no_gradient() -> None:
    gradients = []
    for spare in (False, True):
        network = stirred(tiny()).train()
        network.spare_memory = spare
        network(*pair(), text()).guided.square().mean().backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_cameras_may_have_weights_of_their_own() -> None:
    network = tiny(shared_cameras=False)
    shared = count_parameters(tiny().adapters.structure.trunks)
    assert count_parameters(network.adapters.structure.trunks) == 2 * shared
    visible, infrared = pair()
    assert network(visible, infrared).guided.shape == (2, 24, 4, 6)
    stirred(network).eval()
    levels = network(visible, infrared).levels
    assert float((levels[0].visible_vote - tiny()(visible, infrared).levels[0].visible_vote).detach().abs().max()) > 0


def test_three_equal_infrared_channels_are_one() -> None:
    network = stirred(tiny()).eval()
    visible, infrared = pair()
    torch.testing.assert_close(
        network(visible, infrared.expand(-1, 3, -1, -1)).guided, network(visible, infrared).guided
    )


# --- the frozen transformer ---


@pytest.mark.parametrize("name", ["vit", "dinov2", "registers"])
def test_it_computes_what_timm_computes(name: str) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    options: dict[str, object] = {
        "embed_dim": 24,
        "depth": 2,
        "num_heads": 2,
        "num_classes": 0,
        "dynamic_img_size": True,
    }
    options |= {"img_size": 64, "patch_size": 16}
    if name != "vit":
        options |= {"init_values": 0.5}
    if name == "registers":
        options |= {"reg_tokens": 4, "no_embed_class": True}
    theirs = timm.models.vision_transformer.VisionTransformer(**options).eval()
    torch.nn.init.normal_(theirs.cls_token)
    ours = vit_from(theirs.state_dict(), heads=2)
    pictures = torch.randn(2, 3, 48, 80)
    expected = theirs.forward_features(pictures)[:, theirs.num_prefix_tokens :].transpose(1, 2).unflatten(2, (3, 5))
    torch.testing.assert_close(ours(pictures), expected, rtol=1e-4, atol=1e-5)
    assert ours.weights_count == sum(parameter.numel() for parameter in theirs.parameters())


def test_enlarged_patches_give_what_the_original_ones_gave() -> None:
    kernel = torch.randn(5, 3, 14, 14, generator=torch.Generator().manual_seed(0))
    patches = torch.rand(7, 3, 14, 14, generator=torch.Generator().manual_seed(1))
    larger = F.interpolate(patches, size=(16, 16), mode="bicubic", antialias=True, align_corners=False)
    expected = torch.einsum("cijk,nijk->nc", kernel, patches)
    given = torch.einsum("cijk,nijk->nc", resampled_patches(kernel, 16), larger)
    torch.testing.assert_close(given, expected, rtol=1e-3, atol=1e-3)
    assert resampled_patches(kernel, 14) is kernel


def test_weights_come_from_files_and_other_files_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    torch.manual_seed(0)
    shape = VitShape(width=24, depth=2, heads=2, hidden=48, patch=14, grid=3, registers=2, layer_scale=True)
    kept = {name: tensor.clone() for name, tensor in FrozenVit(shape).named_buffers()}
    official = {name.replace("reg_token", "register_tokens"): tensor for name, tensor in kept.items()}
    official["mask_token"] = torch.zeros(1, 24)
    save_file(official, tmp_path / "dino.safetensors")
    network = open_vit(tmp_path / "dino.safetensors", heads=2)
    assert network.shape == replace(shape, patch=16)
    assert weights_sha256(open_vit(tmp_path / "dino.safetensors", patch=14, heads=2)) == weights_sha256(
        vit_from(kept, patch=14, heads=2)
    )
    for wrong in ("norm.weight", "cls_token", "blocks.1.attn.qkv.weight"):
        save_file({name: tensor for name, tensor in kept.items() if name != wrong}, tmp_path / "half.safetensors")
        with pytest.raises(InputError, match=r"half\.safetensors.*timm"):
            open_vit(tmp_path / "half.safetensors", heads=2)
    with pytest.raises(InputError, match="no such file"):
        open_vit(tmp_path / "none.safetensors")
