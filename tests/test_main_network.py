from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from duskfuse.data.fuser import FusionOutput
from duskfuse.teachers.attention import Attention, Repository, SpatialTransformer
from duskfuse.teachers.main_network import MainNetwork
from duskfuse.teachers.spa import SpaStage, Streams
from duskfuse.teachers.tiled import fuse_tiled


def inputs(height: int, width: int, masks: int = 4, batch: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A pair and its patches: picture times nested binary masks."""
    generator = torch.Generator().manual_seed(height + width)
    vis_y, ir = torch.rand(2, batch, 1, height, width, generator=generator)
    regions = torch.rand(2, batch, masks, height, width, generator=generator) > 0.5
    return vis_y, ir, vis_y * regions[0], ir * regions[1]


def lively(module: nn.Module) -> nn.Module:
    """Let transformers act: replace the zero of every output projection."""
    torch.manual_seed(1)
    for layer in module.modules():
        if isinstance(layer, SpatialTransformer):
            nn.init.normal_(layer.proj_out.weight, std=0.1)
            nn.init.normal_(layer.proj_out.bias, std=0.1)
    return module


@pytest.fixture(scope="module")
def network() -> MainNetwork:
    torch.manual_seed(0)
    built = MainNetwork().eval()
    lively(built)
    return built


def test_live_parameters_are_those_of_the_paper() -> None:
    for compat in (False, True):
        assert sum(p.numel() for p in MainNetwork(compat=compat).parameters()) == 2_639_505


def test_a_narrow_network_costs_a_fourteenth() -> None:
    def macs(width: int) -> float:
        with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
            pair, patches = torch.empty(1, 1, 64, 64), torch.empty(1, 4, 64, 64)
            MainNetwork(width=width)(pair, pair, patches, patches)
        return counter.get_total_flops() / 2

    assert 13 < macs(64) / macs(16) < 15


def test_macs() -> None:
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        pair, patches = torch.empty(1, 1, 192, 256), torch.empty(1, 4, 192, 256)
        MainNetwork()(pair, pair, patches, patches)
    counts = {str(op): flops / 2e9 for op, flops in counter.get_flop_counts()["Global"].items()}
    attention = sum(macs for op, macs in counts.items() if "bmm" in op or "attention" in op)
    assert attention == pytest.approx(25.72, rel=1e-3)
    assert sum(counts.values()) - attention == pytest.approx(86.70, rel=1e-3)


@pytest.mark.parametrize("compat", [False, True])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (61, 83), (16, 16), (7, 5), (1, 20)])
def test_shapes_and_range(height: int, width: int, compat: bool) -> None:
    with torch.no_grad():
        out = MainNetwork(masks=3, compat=compat)(*inputs(height, width, masks=3))
    assert out.y.shape == (1, 1, height, width)
    assert out.y.min() >= 0
    assert out.y.max() <= 1
    sizes = [(max(height // s, 1), max(width // s, 1)) for s in (1, 2, 4, 2, 1)]
    assert [tuple(tap.shape) for tap in out.taps] == [(1, 32, h, w) for h, w in sizes]


def test_odd_sizes_are_continued_by_reflection(network: MainNetwork) -> None:
    pair = inputs(17, 22)
    by_hand = tuple(F.pad(x, (0, 2, 0, 3), mode="reflect") for x in pair)
    with torch.no_grad():
        torch.testing.assert_close(network(*pair).y, network(*by_hand).y[..., :17, :22])


def test_number_of_patches_is_checked() -> None:
    vis_y, ir, vis_patches, ir_patches = inputs(16, 16)
    with pytest.raises(ValueError, match="3 visible and 4 infrared patches; this main network takes 4"):
        MainNetwork()(vis_y, ir, vis_patches[:, :3], ir_patches)


def test_a_fresh_network_starts_near_mid_grey() -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        assert (MainNetwork()(*inputs(32, 32)).y - 0.5).abs().max() < 0.1


def test_compat_is_the_published_form() -> None:
    """No activation after the visible regions' encoder; LeakyReLU and clamp where the sigmoid is."""
    compat, corrected = MainNetwork(compat=True), MainNetwork()
    activations = [
        sum(isinstance(m, nn.LeakyReLU) for m in encoder.modules())
        for encoder in (compat.encode_vis, compat.encode_ir, corrected.encode_vis, corrected.encode_ir)
    ]
    assert activations == [2, 3, 3, 3]
    last_logits: list[Tensor] = []
    compat.decode_last[-1].register_forward_hook(lambda *args: last_logits.append(args[2]))
    nn.init.zeros_(compat.decode_last[-1].weight)
    for bias, want in ((0.25, 0.25), (-0.5, 0.0), (1.5, 1.0)):
        nn.init.constant_(compat.decode_last[-1].bias, bias)
        assert torch.allclose(compat(*inputs(16, 16)).y, torch.tensor(want))
    assert last_logits[2].max() == 1.5


# attention


def explicit_attention(module: Attention, tokens: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Softmax attention written out per sample and head."""
    q, k, v = tokens @ module.to_q.weight.T, keys @ module.to_k.weight.T, values @ module.to_v.weight.T
    rows = []
    for b in range(len(tokens)):
        heads = []
        for first in range(0, q.shape[-1], 32):
            part = slice(first, first + 32)
            scores = q[b, :, part] @ k[b, :, part].T / 32**0.5
            weights = scores.exp() / scores.exp().sum(1, keepdim=True)
            heads.append(weights @ v[b, :, part])
        rows.append(torch.cat(heads, 1))
    return torch.stack(rows) @ module.to_out.weight.T + module.to_out.bias


def test_attention_equals_the_explicit_softmax() -> None:
    module = Attention(64, heads=2).double()
    tokens = torch.randn(2, 7, 64, dtype=torch.float64)
    out, left = module(tokens)
    torch.testing.assert_close(out, explicit_attention(module, tokens, tokens, tokens), atol=1e-12, rtol=1e-10)
    torch.testing.assert_close(left.keys, tokens @ module.to_k.weight.T)
    torch.testing.assert_close(left.values, tokens @ module.to_v.weight.T)


def test_a_repository_is_projected_a_second_time() -> None:
    first, second = Attention(64, heads=2).double(), Attention(64, heads=2).double()
    source, tokens = torch.randn(2, 1, 5, 64, dtype=torch.float64)
    _, left = first(source)
    out, passed_on = second(tokens, left)
    keys, values = source @ first.to_k.weight.T, source @ first.to_v.weight.T
    torch.testing.assert_close(out, explicit_attention(second, tokens, keys, values), atol=1e-12, rtol=1e-10)
    torch.testing.assert_close(passed_on.keys, keys @ second.to_k.weight.T)
    torch.testing.assert_close(passed_on.values, values @ second.to_v.weight.T)


def test_transformer_gradient() -> None:
    module = SpatialTransformer(channels=4, heads=2).double()
    lively(module)
    x = torch.randn(1, 4, 2, 2, dtype=torch.float64, requires_grad=True)
    keys, values = torch.randn(2, 1, 3, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: module(x, Repository(keys, values))[0], (x,))


def test_a_fresh_transformer_returns_its_input() -> None:
    x = torch.randn(2, 64, 3, 4)
    assert torch.equal(SpatialTransformer()(x)[0], x)


# the SPA stage


def spa_without_transformers(stage: SpaStage, image: Tensor, vis: Tensor, ir: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The equations of the stage with every transformer taken out."""

    def join(module: nn.Module, a: Tensor, b: Tensor) -> Tensor:
        joined: Tensor = module(torch.cat([a, b], 1))
        return joined

    i0, v0, r0 = (F.max_pool2d(x, 4) for x in (image, vis, ir))
    r = join(stage.join_ir, r0, r0) + r0
    v = join(stage.join_vis, v0, v0) + v0
    m = join(stage.join_regions, r, v) + r + v + v0 + r0
    i = join(stage.join_image, i0, i0) + i0
    features = torch.cat([i, i0, i, m], 1)
    return F.interpolate(features, image.shape[-2:], mode="bilinear", align_corners=False), v, r


def test_zero_output_projections_equal_no_transformers() -> None:
    torch.manual_seed(0)
    network = MainNetwork().eval()
    streams = [torch.randn(2, 64, 13, 16) for _ in range(3)]
    out = network.spa(Streams(*streams))
    for got, want in zip(out, spa_without_transformers(network.spa, *streams), strict=True):
        torch.testing.assert_close(got, want)

    class Stage(nn.Module):
        def forward(self, streams: Streams) -> Streams:
            return Streams(*spa_without_transformers(network.spa, *streams))

    without = copy.copy(network)
    without._modules = network._modules | {"spa": Stage()}
    pair = inputs(32, 48)
    torch.testing.assert_close(network(*pair).y, without(*pair).y)
    lively(network)
    assert (network(*pair).y - without(*pair).y).abs().max() > 1e-6


def test_repositories_link_the_streams() -> None:
    """The region streams read the image's repository; the image reads what the mixture's transformer makes of it."""
    torch.manual_seed(0)
    stage = SpaStage()
    lively(stage)
    image, vis, ir, other = torch.randn(4, 1, 64, 16, 16)
    out = stage(Streams(image, vis, ir))
    with_other_image = stage(Streams(other, vis, ir))
    assert (out.vis - with_other_image.vis).abs().max() > 1e-4
    assert (out.ir - with_other_image.ir).abs().max() > 1e-4

    with_other_vis = stage(Streams(image, other, ir))
    assert torch.equal(out.ir, with_other_vis.ir)
    assert torch.equal(out.image[:, :192], with_other_vis.image[:, :192])  # the regions reach the mixture only
    assert (out.image[:, 192:] - with_other_vis.image[:, 192:]).abs().max() > 1e-4

    nn.init.normal_(stage.attend_mixture.attention2.to_v.weight)
    handed_on = stage(Streams(image, vis, ir))
    assert torch.equal(out.image[:, 64:192], handed_on.image[:, 64:192])
    assert (out.image[:, :64] - handed_on.image[:, :64]).abs().max() > 1e-4


# the whole network


def test_patch_slots_may_be_permuted_with_their_channels(network: MainNetwork) -> None:
    vis_y, ir, vis_patches, ir_patches = inputs(32, 32)
    order = [2, 0, 3, 1]
    permuted = copy.deepcopy(network)
    for encoder in (permuted.encode_vis, permuted.encode_ir):
        first = next(layer for layer in encoder.modules() if isinstance(layer, nn.Conv2d))
        first.weight.data = first.weight.data[:, order]
    with torch.no_grad():
        y = network(vis_y, ir, vis_patches, ir_patches).y
        permuted_y = permuted(vis_y, ir, vis_patches[:, order], ir_patches[:, order]).y
        mixed_up = network(vis_y, ir, vis_patches[:, order], ir_patches[:, order]).y
    torch.testing.assert_close(permuted_y, y, atol=1e-6, rtol=0)
    assert (mixed_up - y).abs().max() > 1e-5


def test_gradient_reaches_every_parameter_after_one_step() -> None:
    torch.manual_seed(0)
    network = MainNetwork()
    optimiser = torch.optim.Adam(network.parameters(), lr=5e-4)
    pair = inputs(32, 32)

    def without_gradient() -> list[str]:
        optimiser.zero_grad()
        out = network(*pair)
        loss = (out.y - pair[1]).square().mean() + sum(tap.square().mean() for tap in out.taps)
        loss.backward()
        return [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]

    assert len(without_gradient()) == 120  # zero output projections, as the paper's network has
    optimiser.step()
    assert without_gradient() == []


def test_bfloat16_autocast_and_channels_last(network: MainNetwork) -> None:
    pair = inputs(32, 32)
    with torch.no_grad():
        want = network(*pair).y
        moved = copy.deepcopy(network).to(memory_format=torch.channels_last)
        torch.testing.assert_close(moved(*pair).y, want, atol=1e-5, rtol=0)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = moved(*pair)
    assert out.y.dtype == torch.float32
    torch.testing.assert_close(out.y, want, atol=0.02, rtol=0)


# tiles


class OffsetByTile:
    """Adds a constant to each tile: the worst disagreement of neighbours."""

    def __init__(self, *offsets: float) -> None:
        self.offsets = list(offsets)
        self.sizes: list[tuple[int, ...]] = []

    def __call__(self, vis_y: Tensor, ir: Tensor, vis_patches: Tensor, ir_patches: Tensor) -> FusionOutput:
        assert vis_y.shape[-2:] == ir.shape[-2:] == vis_patches.shape[-2:] == ir_patches.shape[-2:]
        self.sizes.append(tuple(vis_y.shape[-2:]))
        return FusionOutput(0.5 * vis_y + 0.5 * ir + self.offsets[(len(self.sizes) - 1) % len(self.offsets)])


def test_one_tile_is_the_plain_forward(network: MainNetwork) -> None:
    pair = inputs(30, 40)
    with torch.no_grad():
        want = network(*pair).y
    assert torch.equal(fuse_tiled(network, *pair), want)
    assert torch.equal(fuse_tiled(network, *pair, tile=(30, 40), overlap=8), want)


@pytest.mark.parametrize(("height", "width"), [(50, 33), (97, 64), (20, 65), (33, 32)])
def test_tiles_cover_the_picture_once(height: int, width: int) -> None:
    pair = inputs(height, width)
    for overlap in (0, 8, 20):
        local = OffsetByTile(0.0)
        fused = fuse_tiled(local, *pair, tile=(32, 32), overlap=overlap)
        torch.testing.assert_close(fused, 0.5 * pair[0] + 0.5 * pair[1], atol=1e-6, rtol=0)
        assert set(local.sizes) == {(min(height, 32), min(width, 32))}


def test_cost_is_linear_in_the_area() -> None:
    counts = []
    for scale in (1, 2, 4):
        local = OffsetByTile(0.0)
        fuse_tiled(local, *inputs(48 * scale, 64 * scale), tile=(16, 16), overlap=0)
        counts.append(len(local.sizes))
    assert counts == [12, 48, 192]


def test_disagreeing_tiles_leave_no_seam() -> None:
    """A step of 0.2 between tiles becomes a slope of at most 0.2·π/2 per overlap; unblended, a step."""
    flat = [torch.full((1, channels, 32, 80), 0.5) for channels in (1, 1, 4, 4)]

    def steepest(overlap: int) -> float:
        fused = fuse_tiled(OffsetByTile(0.0, 0.2), *flat, tile=(32, 48), overlap=overlap)
        return float(fused.diff(dim=-1).abs().max())

    assert steepest(0) == pytest.approx(0.1, abs=1e-6)  # two tiles share 16 columns anyway: two steps of a half
    assert steepest(16) <= 0.2 * torch.pi / 2 / 16 + 1e-6


def test_network_tiles_leave_no_seam(network: MainNetwork) -> None:
    """On a smooth picture, columns at tile borders are no steeper than those elsewhere."""
    y, x = torch.meshgrid(torch.linspace(0, 1, 32), torch.linspace(0, 1, 80), indexing="ij")
    vis_y, ir = (0.3 + 0.4 * x)[None, None], (0.7 - 0.4 * y)[None, None]
    smooth = vis_y, ir, vis_y.repeat(1, 4, 1, 1), ir.repeat(1, 4, 1, 1)
    with torch.no_grad():
        away_from_frame = network(*smooth).y[..., 8:-8].diff(dim=-1).abs().max()
    seamless = fuse_tiled(network, *smooth, tile=(32, 48), overlap=16).diff(dim=-1).abs()
    hard = fuse_tiled(network, *smooth, tile=(32, 48), overlap=0).diff(dim=-1).abs()
    border = slice(30, 50)  # around the tile borders at columns 32 and 48
    assert seamless[..., border].max() < 0.5 * hard[..., border].max()
    assert seamless[..., border].max() < 5 * away_from_frame


def test_overlap_must_be_smaller_than_a_tile() -> None:
    with pytest.raises(ValueError, match="overlap of 32 pixels in tiles of 32×64"):
        fuse_tiled(OffsetByTile(0.0), *inputs(64, 64), tile=(32, 64), overlap=32)
