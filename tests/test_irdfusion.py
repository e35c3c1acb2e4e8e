"""IRDFusion: counts, and every block in float64 against slow forms that compute everything anew in every iteration."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from duskfuse.tasks.irdfusion import (
    Guidance,
    GuidedLoop,
    IrdFusion,
    PyramidFusion,
    differential_saliency,
)
from duskfuse.tasks.mutual_relation import DifferentialGain, RelationReader
from duskfuse.tasks.token_grid import MOST_TOKENS, TokenGrid

WIDTH, HEADS, GRID = 16, 4, (5, 4)
YOLO_LEVELS = {256: (20, 20), 512: (16, 16), 1024: (10, 10)}
EXACT = 1e-11


def block(
    *, grid: tuple[int, int] = GRID, iterations: int = 4, published: bool = False, strength: float = 0.4
) -> IrdFusion:
    """A block in float64 and in use, whose weights are large enough for its attention to be uneven."""
    torch.manual_seed(3)
    made = IrdFusion(WIDTH, grid, iterations=iterations, heads=HEADS, published=published).double().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * strength)
    return made


def maps(height: int = 10, width: int = 8, *, seed: int = 0, count: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ir, vis = torch.randn(2, count, WIDTH, height, width, generator=generator, dtype=torch.float64)
    return ir, vis


def tokens(*, seed: int = 0, count: int = 20) -> tuple[Tensor, Tensor]:
    first, second = torch.randn(2, 2, count, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return first, second


def slow_gain(gain: DifferentialGain, depth: int) -> Tensor:
    q1, q2, k1, k2 = gain.vectors[0], gain.vectors[2], gain.vectors[1], gain.vectors[3]
    return (q1 @ k1).exp() - (q2 @ k2).exp() + (0.8 - 0.6 * math.exp(-0.3 * depth))


def slow_maps(reader: RelationReader, modality: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Relation maps and values of every head, one after the other."""
    mean, deviation = modality.mean(-1, keepdim=True), modality.var(-1, unbiased=False, keepdim=True)
    x = (modality - mean) / (deviation + reader.norm.eps).sqrt() * reader.norm.weight + reader.norm.bias
    query, key, value = (
        x @ layer.weight.T + (0 if layer.bias is None else layer.bias)
        for layer in (reader.query, reader.key, reader.value)
    )
    attention, values = [], []
    part = WIDTH // reader.heads
    for head in range(reader.heads):
        columns = slice(head * part, (head + 1) * part)
        scores = query[..., columns] @ key[..., columns].transpose(1, 2) / math.sqrt(part)
        attention.append(scores.exp() / scores.exp().sum(-1, keepdim=True))
        values.append(value[..., columns])
    return attention, values


def slow_mfrm(mine: RelationReader, theirs: RelationReader, own: Tensor, other: Tensor) -> Tensor:
    """F' of one modality with two products of attention and values, as the article writes it."""
    attention, values = slow_maps(mine, own)
    _, other_values = slow_maps(theirs, other)
    gain = slow_gain(mine.gain, 1)
    mixed = []
    for a, v, w in zip(attention, values, other_values, strict=True):
        mixed.append(a @ w + gain * (a @ v) if mine.lambda_on_own else a @ v + gain * (a @ w))
    return torch.cat(mixed, dim=-1) @ mine.output.weight.T + mine.output.bias


def slow_loop(loop: GuidedLoop, guidance: Guidance, moving: Tensor, held: Tensor) -> tuple[Tensor, Tensor]:
    """Everything anew in every iteration, the last update included, though nobody looks at it."""
    for k in range(loop.iterations):
        said = slow_mfrm(loop.moving, loop.held, moving, held)
        difference = slow_mfrm(loop.held, loop.moving, held, moving) - slow_gain(loop.gain, k) * said
        normed = F.layer_norm(difference, (WIDTH,), guidance.norm.weight, guidance.norm.bias, guidance.norm.eps)
        first, second = (layer for layer in guidance.network if isinstance(layer, nn.Linear))
        hidden = normed @ first.weight.T + first.bias
        hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
        moving = guidance.kept * moving + guidance.added * (hidden @ second.weight.T + second.bias)
    return said + difference, difference


def slow_tokens(grid: TokenGrid, features: Tensor) -> Tensor:
    """Cell by cell, of maps that can be divided evenly."""
    rows, columns = grid.grid
    high, wide = features.shape[-2] // rows, features.shape[-1] // columns
    cells = []
    for row in range(rows):
        for column in range(columns):
            cell = features[..., row * high : (row + 1) * high, column * wide : (column + 1) * wide].flatten(2)
            pooled = grid.weights[0] * cell.mean(-1) + grid.weights[1] * cell.max(-1).values
            cells.append(pooled + grid.positions[0, :, row, column])
    return torch.stack(cells, dim=1)


def slow_block(made: IrdFusion, ir: Tensor, vis: Tensor) -> Tensor:
    assert made.guidance is not None
    both_ir, both_vis = slow_tokens(made.grid_ir, ir), slow_tokens(made.grid_vis, vis)
    left_vis, _ = slow_loop(made.loop_vis, made.guidance, both_vis, both_ir)
    left_ir, _ = slow_loop(made.loop_ir, made.guidance, both_ir, both_vis)
    joined = []
    for left, source in ((left_vis, vis), (left_ir, ir)):
        square = left.transpose(1, 2).reshape(len(left), WIDTH, *made.grid_vis.grid)
        joined.append(F.interpolate(square, size=source.shape[-2:], mode="bilinear") + source)
    summed = torch.einsum("oi,bihw->bohw", made.join.weight[:, :, 0, 0], torch.cat(joined, dim=1))
    return summed / (1 + (-summed).exp())


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("width", [256, 512, 1024])
def test_parameters_are_26_d_squared_and_44_as_published(width: int) -> None:
    with torch.device("meta"):
        ours, published = (IrdFusion(width, (10, 10), published=form) for form in (False, True))
    positions = 2 * 100 * width
    assert parameters(ours) - positions == 26 * width**2 + 51 * width + 6
    assert parameters(published) - positions == 44 * width**2 + 67 * width + 6


def test_parameters_at_the_levels_of_yolov5l_are_those_of_the_article() -> None:
    widths, grids = list(YOLO_LEVELS), list(YOLO_LEVELS.values())
    with torch.device("meta"):
        ours, published = (PyramidFusion(widths, grids, published=form) for form in (False, True))
    positions = sum(2 * rows * columns * width for width, (rows, columns) in YOLO_LEVELS.items())
    assert positions == 671_744
    assert parameters(ours) - positions == pytest.approx(35.8e6, abs=0.1e6)
    assert parameters(published) - positions == pytest.approx(60.6e6, abs=0.1e6)  # "+~60 M"


def test_multiplications_at_1024_channels_and_1600_tokens() -> None:
    """252.7 G, less the update of the last iteration that nobody looks at, of 340.6 G in the published code."""
    tokens, width = 1600, 1024
    with torch.device("meta"):
        made, feature = IrdFusion(width, (40, 40)).eval(), torch.empty(1, width, 40, 40)
    with FlopCounterMode(display=False) as counter:
        made(feature, feature)
    linear, attention = tokens * width**2, tokens**2 * width
    loop = (3 + 4 * 3 + 4 * 2 + 3 * 8) * linear + (1 + 4 + 4 * 2) * attention
    assert counter.get_total_flops() == 2 * (2 * loop + 2 * linear)
    assert 2 * (loop + 8 * linear) == pytest.approx(252.7e9, rel=1e-3)
    assert 2 * loop == pytest.approx(225.9e9, rel=1e-3)


def test_gains_of_zero_vectors() -> None:
    gain = DifferentialGain(WIDTH).double()
    nn.init.zeros_(gain.vectors)
    assert [round(gain(depth).item(), 4) for depth in range(4)] == [0.2, 0.3555, 0.4707, 0.5561]
    reader = RelationReader(WIDTH, HEADS, 0.1)
    nn.init.zeros_(reader.gain.vectors)
    assert reader.gain(reader.DEPTH).item() == pytest.approx(0.3555, abs=5e-5)


def test_gains_stay_finite_in_half_precision() -> None:
    gain = DifferentialGain(WIDTH)
    nn.init.constant_(gain.vectors[:2].detach(), 10.0)
    value = gain.half()(0)
    assert value.dtype is torch.float32
    assert value.item() < math.exp(5) + 1
    assert torch.isfinite(torch.randn(3).half() * value).all()


@pytest.mark.parametrize("size", [(10, 8), (5, 4), (20, 12)])
@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("iterations", [2, 4])
def test_the_block_equals_the_slow_form(size: tuple[int, int], published: bool, iterations: int) -> None:
    made, (ir, vis) = block(published=published, iterations=iterations), maps(*size)
    slow = slow_block(made, ir, vis)
    assert (made(ir, vis) - slow).abs().max() <= EXACT * slow.abs().max()


def test_gradients_equal_those_of_the_slow_form() -> None:
    made, (ir, vis) = block(), maps()
    weights = list(made.parameters())
    ours, slow = (
        torch.autograd.grad(out.square().mean(), weights) for out in (made(ir, vis), slow_block(made, ir, vis))
    )
    for first, second in zip(ours, slow, strict=True):
        assert (first - second).abs().max() <= EXACT * (1 + second.abs().max())


def test_a_single_iteration_equals_the_slow_form_and_has_no_guidance() -> None:
    made, (moving, held) = block(iterations=1), tokens()
    assert made.guidance is None
    slow = slow_loop(made.loop_vis, Guidance(WIDTH, 0.0).double(), moving, held)
    for ours, theirs in zip(made.loop_vis(moving, held, None), slow, strict=True):
        assert (ours - theirs).abs().max() < EXACT


def test_relation_map_identity() -> None:
    """F'_v − βF'_t = (A_v − βλ_t A_t) V_v − (βA_t − λ_v A_v) V_t, before the output projections."""
    loop = block().loop_vis
    vis, ir = (reader.relate(features) for reader, features in zip((loop.moving, loop.held), tokens(), strict=True))
    beta, lambda_vis, lambda_ir = loop.gain(2), loop.moving.gain(1), loop.held.gain(1)
    left = loop.moving.mixed(vis, ir.values) - beta * loop.held.mixed(ir, vis.values)
    right = (vis.attention - beta * lambda_ir * ir.attention) @ vis.values - (
        beta * ir.attention - lambda_vis * vis.attention
    ) @ ir.values
    assert (left - right).abs().max() < 1e-10


def tied(*, iterations: int = 4) -> GuidedLoop:
    """A loop whose modalities share their weights, with β = 1 in its first iteration."""
    loop = block(iterations=iterations).loop_vis
    loop.held.load_state_dict(loop.moving.state_dict())
    with torch.no_grad():  # exp(0.8 + …) − exp(0) + 0.2 = 1
        loop.gain.vectors.zero_()
        loop.gain.vectors[0, 0], loop.gain.vectors[1, 0] = 1.0, math.log(1.8)
    return loop


def test_what_both_see_alike_leaves_no_difference() -> None:
    loop, (same, _) = tied(iterations=1), tokens()
    assert float(loop.gain(0)) == pytest.approx(1, abs=1e-15)
    left, difference = loop(same, same, None)
    assert difference.abs().max() <= 1e-15 * left.abs().max()
    louder = loop(3 * same + 1, 3 * same + 1, None)
    assert louder[1].abs().max() <= 1e-15 * louder[0].abs().max()


def test_a_field_added_to_both_leaves_the_difference_where_both_maps_agree() -> None:
    """Tied weights, no normalisation. Where the field moves two different maps, it cannot hold, and does not."""
    loop, (moving, held) = tied(iterations=1), tokens()
    for reader in (loop.moving, loop.held):
        setattr(reader, "norm", nn.Identity())  # noqa: B010
    field = tokens(seed=7)[0]
    uneven = loop(moving + field, held + field, None)[1] - loop(moving, held, None)[1]
    assert uneven.abs().max() > 0.1
    for reader in (loop.moving, loop.held):  # the same map for both: every place looks at all places alike
        nn.init.zeros_(reader.query.weight)
        nn.init.zeros_(reader.query.bias)
    plain, shifted = loop(moving, held, None)[1], loop(moving + field, held + field, None)[1]
    assert plain.abs().max() > 0.1
    assert (plain - shifted).abs().max() < 1e-12


def test_without_iterations_or_without_a_say_the_block_is_the_convolution() -> None:
    ir, vis = maps()
    plain, silent = block(iterations=0), block()
    assert parameters(plain) == 2 * WIDTH**2
    for loop in (silent.loop_vis, silent.loop_ir):
        for reader in (loop.moving, loop.held):
            nn.init.zeros_(reader.output.weight)
            nn.init.zeros_(reader.output.bias)
    for made in (plain, silent):
        assert torch.equal(made(ir, vis), F.silu(made.join(torch.cat([vis, ir], dim=1))))


def test_without_feedback_every_iteration_reads_the_same_tokens() -> None:
    """α = 0, μ = 1: only β differs between iterations."""
    made, (moving, held) = block(), tokens()
    assert made.guidance is not None
    with torch.no_grad():
        made.guidance.added.zero_()
        made.guidance.kept.fill_(1.0)
    said = slow_mfrm(made.loop_vis.moving, made.loop_vis.held, moving, held)
    theirs = slow_mfrm(made.loop_vis.held, made.loop_vis.moving, held, moving)
    left, difference = made.loop_vis(moving, held, made.guidance)
    assert (difference - (theirs - slow_gain(made.loop_vis.gain, 3) * said)).abs().max() < EXACT
    assert (left - difference - said).abs().max() < EXACT


def test_the_held_modality_is_projected_once() -> None:
    made, (ir, vis) = block(), maps()
    calls: dict[str, int] = {}
    for name, layer in made.named_modules():
        if isinstance(layer, nn.Linear) and name.startswith("loop_"):
            layer.register_forward_hook(lambda *_, name=name: calls.update({name: calls.get(name, 0) + 1}))
    made(ir, vis)
    for loop in ("loop_vis", "loop_ir"):
        for layer in ("query", "key", "value"):
            assert calls[f"{loop}.held.{layer}"] == 1
            assert calls[f"{loop}.moving.{layer}"] == 4
        assert calls[f"{loop}.held.output"] == calls[f"{loop}.moving.output"] == 4


def test_the_second_loop_starts_from_the_original_tokens() -> None:
    """What the visible loop did to its tokens does not reach the infrared loop."""
    made, (ir, vis) = block(), maps()
    before = made.features(ir, vis)
    with torch.no_grad():
        for parameter in made.loop_vis.parameters():
            parameter.mul_(-1.5)
    after = made.features(ir, vis)
    assert torch.equal(before.ir, after.ir)
    assert not torch.allclose(before.vis, after.vis)


def test_exchanging_modalities_and_weights_exchanges_the_results() -> None:
    made, (ir, vis) = block(), maps()
    other = block()
    exchanged = {
        key.replace("_vis", "_").replace("_ir", "_vis").replace("_.", "_ir."): value
        for key, value in made.state_dict().items()
    }
    other.load_state_dict(exchanged)
    ours, theirs = made.features(ir, vis), other.features(vis, ir)
    assert torch.equal(ours.vis, theirs.ir)
    assert torch.equal(ours.difference_ir, theirs.difference_vis)
    assert not torch.allclose(ours.vis, ours.ir)


def test_the_published_form_has_its_lambda_on_the_infrareds_own_value() -> None:
    made = block(published=True)
    flags = [reader.lambda_on_own for loop in (made.loop_vis, made.loop_ir) for reader in (loop.moving, loop.held)]
    assert flags == [False, True, True, False]
    reader, (own, other) = made.loop_ir.moving, tokens()
    values = reader.relate(other).values
    relation = reader.relate(own)
    expected = relation.attention @ values + reader.gain(1) * (relation.attention @ relation.values)
    assert (reader.mixed(relation, values) - expected).abs().max() < EXACT


def test_the_published_form_resizes_otherwise_in_training() -> None:
    published, ours = block(published=True), block()
    ir, vis = maps(20, 16)
    for made, same in ((published, False), (ours, True)):
        for module in made.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        in_use, in_training = made.eval()(ir, vis), made.train()(ir, vis)
        assert torch.equal(in_use, in_training) == same


@pytest.mark.parametrize("size", [(16, 16), (8, 16), (7, 13), (3, 9), (2, 2), (1, 1)])
def test_the_result_has_the_size_of_the_maps_and_is_the_same_twice(size: tuple[int, int]) -> None:
    made, (ir, vis) = block(), maps(*size)
    fused = made(ir, vis)
    assert fused.shape == vis.shape
    assert torch.isfinite(fused).all()
    assert torch.equal(fused, made(ir, vis))
    assert made.train()(ir, vis).shape == vis.shape


def test_small_maps_keep_their_cells_and_resize_the_positions() -> None:
    grid = TokenGrid(WIDTH, (6, 6)).double()
    nn.init.normal_(grid.positions)
    feature = maps(3, 9)[0]
    made = grid(feature)
    positions = F.interpolate(grid.positions, size=(3, 6), mode="bicubic", align_corners=False)
    pooled = grid.weights[0] * F.adaptive_avg_pool2d(feature, (3, 6)) + grid.weights[1] * F.adaptive_max_pool2d(
        feature, (3, 6)
    )
    assert torch.equal(made, pooled + positions)


@pytest.mark.parametrize("size", [(13, 11), (10, 9)])
def test_no_row_or_column_is_dropped(size: tuple[int, int]) -> None:
    """Maps that cannot be divided evenly: every pixel has a gradient, at the border too."""
    grid, feature = TokenGrid(WIDTH, GRID).double(), maps(*size)[0].requires_grad_()
    grid(feature).sum().backward()
    assert feature.grad is not None
    assert (feature.grad != 0).all()


def test_grids_of_too_many_cells_and_widths_that_heads_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match=f"from 1 to {MOST_TOKENS}"):
        TokenGrid(WIDTH, (41, 40))
    with pytest.raises(ValueError, match="heads divide the channels"):
        IrdFusion(12, GRID, heads=8)


def test_an_infrared_map_of_another_size_is_resized_with_a_warning() -> None:
    made, (ir, vis) = block(), maps()
    with pytest.warns(UserWarning, match="4×5 resized to the visible one's 8×10"):
        fused = made(ir[..., ::2, ::2], vis)
    assert fused.shape == vis.shape


def test_a_camera_that_gives_nothing_leaves_finite_values_and_gradients() -> None:
    made, (_, vis) = block(), maps()
    fused = made(torch.zeros_like(vis), vis)
    fused.square().mean().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in made.parameters() if parameter.grad is not None)


@pytest.mark.parametrize("iterations", [0, 1, 2, 4, 6])
def test_every_parameter_has_a_gradient(iterations: int) -> None:
    """As it is at the start, in training; the published form's unused parts and biases of keys have none."""
    torch.manual_seed(0)
    made, (ir, vis) = IrdFusion(WIDTH, GRID, iterations=iterations, heads=HEADS).double(), maps()
    made(ir, vis).square().mean().backward()
    dead = [name for name, parameter in made.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert not dead


def test_unused_parts_of_the_published_form() -> None:
    made, (ir, vis) = block(published=True), maps()
    made(ir, vis).square().mean().backward()
    largest = {
        name: 0.0 if parameter.grad is None else float(parameter.grad.abs().max())
        for name, parameter in made.named_parameters()
    }
    dead = {name for name, value in largest.items() if value < 1e-12 * max(largest.values())}
    assert dead == {name for name in largest if name.startswith("unused") or name.endswith("key.bias")}


def test_a_pyramid_has_a_block_for_each_level() -> None:
    torch.manual_seed(0)
    pyramid = PyramidFusion((16, 32), ((4, 4), (2, 3)), heads=HEADS).eval()
    ir, vis = ([torch.randn(2, 16, 8, 12), torch.randn(2, 32, 4, 6)] for _ in range(2))
    fused = pyramid(ir, vis)
    assert [made.shape for made in fused] == [feature.shape for feature in vis]
    for made, single, *inputs in zip(fused, pyramid.blocks, ir, vis, strict=True):
        assert torch.equal(made, single(*inputs))


def test_saliency_is_between_0_and_1_and_follows_both_differences() -> None:
    made, (ir, vis) = block(), maps(10, 8)
    with_graph = made.features(ir.requires_grad_(), vis)
    saliency = differential_saliency([with_graph], (80, 64))
    assert saliency.shape == (2, 1, 80, 64)
    assert not saliency.requires_grad
    assert float(saliency.min()) >= 0
    assert 0.9 < float(saliency.amax()) <= 1
    norms = with_graph.difference_vis.norm(dim=1) + with_graph.difference_ir.norm(dim=1)
    scaled = (norms - norms.amin((1, 2), keepdim=True)) / (
        norms.amax((1, 2), keepdim=True) - norms.amin((1, 2), keepdim=True)
    )
    expected = F.interpolate(scaled[:, None], size=(80, 64), mode="bilinear")
    assert (saliency - expected).abs().max() < 1e-12
    nothing = differential_saliency([block(iterations=0).features(*maps())], (8, 8))
    assert not nothing.any()


def test_saliency_does_not_see_what_both_modalities_share() -> None:
    """Tied weights, β = 1: where both see alike there is no difference, only where one of them sees more."""
    made = block(grid=(8, 8), iterations=1, strength=0.0)
    for loop in (made.loop_vis, made.loop_ir):
        shared = tied(iterations=1)
        loop.load_state_dict(shared.state_dict())
        for reader in (loop.moving, loop.held):  # each place looks mostly at itself
            nn.init.eye_(reader.query.weight)
            nn.init.eye_(reader.key.weight)
            reader.query.weight.data.mul_(20)
    with torch.no_grad():
        made.grid_ir.load_state_dict(made.grid_vis.state_dict())
    scene = maps(8, 8, count=1)[0]
    warm = scene.clone()
    warm[..., 2:4, 5:7] += 4 * torch.randn(WIDTH, 1, 1, generator=torch.Generator().manual_seed(5)).double()
    saliency = differential_saliency([made.features(warm, scene)], (8, 8))[0, 0]
    target = torch.zeros(8, 8, dtype=torch.bool)
    target[2:4, 5:7] = True
    assert saliency[target].min() > 5 * saliency[~target].mean()


def test_training_goes_on_from_a_file_as_without_it(tmp_path: Path) -> None:
    ir, vis = (feature.float() for feature in maps())

    def trained(made: IrdFusion, steps: int) -> list[float]:
        optimiser = torch.optim.SGD(made.parameters(), lr=0.01)
        losses = []
        for _ in range(steps):
            loss = (made(ir, vis) - 1).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(float(loss))
        return losses

    first, second = block(strength=0.1).float(), block(strength=0.1).float()
    straight = trained(first, 6)
    halfway = trained(second, 3)
    save_file(second.state_dict(), tmp_path / "block.safetensors")
    again = block(strength=0.0).float()
    again.load_state_dict(load_file(tmp_path / "block.safetensors"))
    assert halfway + trained(again, 3) == straight
    assert all(later < sooner for sooner, later in pairwise(straight))
