"""Losses: numbers by hand, batched forms against slow obvious loops, and the acceptance checks of SAGE §10."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from duskfuse.data.errors import InputError
from duskfuse.data.fuser import FusionOutput
from duskfuse.distill.context import Batch, BatchContext, source_patches
from duskfuse.distill.terms.contrastive import ABSOLUTE_FLOOR, DENOMINATOR_FLOOR, contrastive
from duskfuse.distill.terms.distillation import features, gradient_triplet, pixel_triplet
from duskfuse.distill.terms.fusion import gradient_max, intensity_max, sobel_magnitude, source_mse, ssim_sources
from duskfuse.tasks.encoders import FeatureEncoder, SamEncoder, filter_encoder, squeezenet_encoder


def make_batch(seed: int = 0, size: int = 24, samples: int = 2, dtype: torch.dtype = torch.float32) -> Batch:
    generator = torch.Generator().manual_seed(seed)

    def rand(channels: int) -> Tensor:
        return torch.rand(samples, channels, size, size, generator=generator, dtype=dtype)

    masks_ir, masks_vis = rand(3) > 0.5, rand(3) > 0.6
    masks_ir[0, 1], masks_vis[1, 2] = False, False
    return Batch(ir=rand(1), vis=rand(3), masks_ir=masks_ir, masks_vis=masks_vis, names=("a", "b")[:samples])


def context_of(batch: Batch, encoder: FeatureEncoder | None = None) -> BatchContext:
    return BatchContext(batch, {}, encoder)


def fused(seed: int, size: int = 24, dtype: torch.dtype = torch.float32) -> FusionOutput:
    return FusionOutput(torch.rand(2, 1, size, size, generator=torch.Generator().manual_seed(seed), dtype=dtype))


def slow_contrastive(o: Tensor, ref: Tensor, batch: Batch, encoder: FeatureEncoder) -> Tensor:
    """One mask at a time, as the equation is written."""
    numerators, denominators, apart = [], [], []
    for source, masks in ((batch.vis_y, batch.masks_vis), (batch.ir, batch.masks_ir)):
        for sample in range(len(o)):
            for mask in masks[sample]:
                if not mask.any():
                    continue
                plane = mask.to(o.dtype)
                maps = [encoder((x[sample : sample + 1] * plane).repeat(1, 3, 1, 1)) for x in (o, ref, source)]
                numerators.append(sum((a - b).norm() for a, b in zip(maps[0], maps[1], strict=True)))
                denominators.append(sum((a - b).norm() for a, b in zip(maps[0], maps[2], strict=True)))
                apart.append(float(sum((a - b).norm() for a, b in zip(maps[1], maps[2], strict=True))))
    floor = max(DENOMINATOR_FLOOR * sum(apart) / len(apart), ABSOLUTE_FLOOR)
    ratios = [
        torch.as_tensor(n) / torch.as_tensor(d).clamp_min(floor) for n, d in zip(numerators, denominators, strict=True)
    ]
    return torch.stack(ratios).sum() / len(o)


def test_sobel_magnitude_of_a_ramp_has_no_border_edge() -> None:
    ramp = torch.arange(8.0).view(1, 1, 1, 8).expand(1, 1, 6, 8)
    assert torch.allclose(sobel_magnitude(ramp)[..., 1:-1], torch.full((1, 1, 6, 6), 8.0))
    assert float(sobel_magnitude(torch.ones(1, 1, 5, 5)).abs().max()) == 0


def test_source_terms_by_hand() -> None:
    batch = Batch(
        ir=torch.full((1, 1, 12, 12), 0.8),
        vis=torch.full((1, 3, 12, 12), 0.2),
        masks_ir=torch.zeros(1, 1, 12, 12, dtype=torch.bool),
        masks_vis=torch.zeros(1, 1, 12, 12, dtype=torch.bool),
        names=("flat",),
    )
    context, half = context_of(batch), FusionOutput(torch.full((1, 1, 12, 12), 0.5))
    assert float(source_mse(half, context)) == pytest.approx(0.18, abs=1e-6)
    assert float(intensity_max(half, context)) == pytest.approx(0.3, abs=1e-6)
    assert float(gradient_max(half, context)) == pytest.approx(0, abs=1e-6)
    reference = FusionOutput(torch.full((1, 1, 12, 12), 0.6))
    assert float(pixel_triplet(half, reference, context)) == pytest.approx(5 * 0.09 + 4 * 0.01, abs=1e-6)
    assert float(gradient_triplet(half, reference, context)) == pytest.approx(0, abs=1e-5)
    same = context_of(
        Batch(ir=batch.vis[:, :1], vis=batch.vis, masks_ir=batch.masks_ir, masks_vis=batch.masks_vis, names=("s",))
    )
    assert float(ssim_sources(FusionOutput(batch.vis[:, :1]), same)) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("seed", [0, 1])
def test_batched_contrastive_equals_the_loop_in_value_and_gradient(seed: int) -> None:
    batch, encoder = make_batch(seed), filter_encoder()
    reference = fused(seed + 20)
    gradients, values = [], []
    for loss in (
        lambda o: contrastive(FusionOutput(o), reference, context_of(batch, encoder)),
        lambda o: slow_contrastive(o, reference.y, batch, encoder),
    ):
        o = fused(seed + 10).y.requires_grad_()
        value = loss(o)
        value.backward()
        values.append(float(value.detach()))
        assert o.grad is not None
        gradients.append(o.grad)
    assert values[0] == pytest.approx(values[1], rel=1e-5)
    assert torch.allclose(gradients[0], gradients[1], atol=1e-5 * float(gradients[1].abs().max()))


def test_contrastive_of_empty_masks_is_exactly_zero_with_zero_gradient() -> None:
    batch = make_batch()
    empty = torch.zeros_like(batch.masks_ir)
    batch = Batch(ir=batch.ir, vis=batch.vis, masks_ir=empty, masks_vis=empty, names=batch.names)
    o = fused(1).y.requires_grad_()
    value = contrastive(FusionOutput(o), fused(2), context_of(batch, filter_encoder()))
    value.backward()
    assert float(value.detach()) == 0
    assert o.grad is not None
    assert not o.grad.any()


def test_contrastive_is_zero_at_the_reference_grows_towards_the_source_and_stays_finite_there() -> None:
    batch, encoder = make_batch(), filter_encoder()
    reference = fused(5)
    context = context_of(batch, encoder)
    values = [
        float(contrastive(FusionOutput(torch.lerp(reference.y, batch.vis_y, amount)), reference, context))
        for amount in (0.0, 0.3, 0.6, 1.0)
    ]
    assert values[0] == pytest.approx(0, abs=1e-4)
    assert values == sorted(values)
    assert values[-1] < 20 * 1.5 * batch.masks_ir.shape[1] * 2  # at most 1/floor per region, give or take its spread


def test_contrastive_gradcheck_in_float64() -> None:
    batch, encoder = make_batch(size=10, dtype=torch.float64), filter_encoder().double()
    reference = fused(3, 10, torch.float64)
    o = fused(4, 10, torch.float64).y.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda y: contrastive(FusionOutput(y), reference, context_of(batch, encoder)),
        (o,),
        nondet_tol=1e-9,
        fast_mode=True,
    )


@pytest.mark.parametrize("term", [source_mse, intensity_max, gradient_max])
def test_source_terms_gradcheck_in_float64(term: object) -> None:
    batch = make_batch(size=8, dtype=torch.float64)
    o = fused(4, 8, torch.float64).y.requires_grad_()
    assert torch.autograd.gradcheck(lambda y: term(FusionOutput(y), context_of(batch)), (o,), fast_mode=True)  # type: ignore[operator]


def test_feature_term_is_bounded_and_scale_invariant() -> None:
    taps = tuple(torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(i)) for i in range(5))
    output, context = FusionOutput(fused(1).y, taps), context_of(make_batch())
    assert float(features(output, output, context)) == pytest.approx(0, abs=1e-5)
    scaled = FusionOutput(output.y, tuple(3.5 * tap for tap in taps))
    assert float(features(scaled, output, context)) == pytest.approx(0, abs=1e-5)
    opposite = FusionOutput(output.y, tuple(-tap for tap in taps))
    assert float(features(opposite, output, context)) == pytest.approx(10, abs=1e-4)
    zero = FusionOutput(output.y, tuple(torch.zeros_like(tap) for tap in taps))
    assert float(features(zero, zero, context)) == pytest.approx(0, abs=1e-6)


def test_feature_term_without_taps_is_an_error() -> None:
    with pytest.raises(ValueError, match="taps"):
        features(FusionOutput(fused(1).y), FusionOutput(fused(1).y), context_of(make_batch()))


def test_patches_are_source_times_mask_and_the_whole_source_in_an_empty_slot() -> None:
    batch = make_batch()
    patches = source_patches(batch.ir, batch.masks_ir)
    assert torch.equal(patches[0, 0], batch.ir[0, 0] * batch.masks_ir[0, 0])
    assert torch.equal(patches[0, 1], batch.ir[0, 0])


def test_filter_bank_shapes_and_frozen_weights() -> None:
    encoder = filter_encoder()
    maps = encoder(torch.rand(2, 3, 32, 48))
    assert [tuple(m.shape) for m in maps] == [(2, 8, 32, 48), (2, 8, 16, 24), (2, 8, 8, 12)]
    assert not any(p.requires_grad for p in encoder.parameters())
    assert torch.allclose(maps[0].mean(dim=(2, 3)), torch.zeros(2, 8), atol=1e-5)


def test_sam_encoder_on_a_tiny_real_sam_takes_any_size() -> None:
    from segment_anything.modeling import ImageEncoderViT

    torch.manual_seed(0)
    tiny = ImageEncoderViT(
        img_size=64, patch_size=16, embed_dim=24, depth=3, num_heads=2, out_chans=16, use_rel_pos=True, window_size=3
    )
    encoder = SamEncoder(tiny).freeze()
    image = torch.rand(2, 3, 50, 75, requires_grad=True)
    maps = encoder(image)
    assert [tuple(m.shape) for m in maps] == [(2, 24, 4, 5)] * 2
    sum(m.square().sum() for m in maps).backward()  # type: ignore[union-attr]
    assert image.grad is not None
    assert image.grad.abs().sum() >= 0
    assert all(p.grad is None for p in encoder.parameters())


@pytest.mark.realdata
def test_squeezenet_encoder_reads_the_imagenet_trunk(squeezenet_weights: Path) -> None:
    encoder = squeezenet_encoder(squeezenet_weights)
    assert [m.shape[1] for m in encoder(torch.rand(1, 3, 64, 64))] == [64, 128, 256]


def test_squeezenet_encoder_refuses_other_files(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(InputError, match="missing"):
        squeezenet_encoder(path)
    path.write_text("not a tensor file")
    with pytest.raises(InputError, match="safetensors"):
        squeezenet_encoder(path)
    with pytest.raises(InputError, match="no such file"):
        squeezenet_encoder(tmp_path / "absent.safetensors")
