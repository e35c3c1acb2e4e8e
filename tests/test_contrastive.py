"""The contrastive term's forms: against literal loops, on empty masks, at reference and source, and what is encoded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny_sam import tiny_sam
from torch import Tensor
from torchvision.models import squeezenet1_1

from duskfuse.data.errors import InputError
from duskfuse.data.fuser import FusionOutput
from duskfuse.data.scenes import render_scene
from duskfuse.distill.context import Batch, BatchContext
from duskfuse.distill.recipe import ContrastiveConfig
from duskfuse.distill.recipe_files import load_recipe
from duskfuse.distill.terms.contrastive import ABSOLUTE_FLOOR, DENOMINATOR_FLOOR, Masking, Norm, contrastive
from duskfuse.distill.terms.region_distance import cell_shares, squared_distances
from duskfuse.tasks import encoders
from duskfuse.tasks.encoders import FeatureEncoder, FilterBank, SamEncoder, SqueezeNetEncoder, filter_encoder

FORMS = [ContrastiveConfig(masking=masking, norm=norm) for masking in Masking for norm in Norm]


def squeezenet() -> FeatureEncoder:
    torch.manual_seed(0)
    return SqueezeNetEncoder(squeezenet1_1().features).freeze()


def sam() -> FeatureEncoder:
    return SamEncoder(tiny_sam().image_encoder).freeze()


ENCODERS = [filter_encoder, squeezenet, sam]


def batch_of(seed: int = 0, samples: int = 2, height: int = 40, width: int = 52) -> Batch:
    """Smooth pictures and rectangles, one slot empty in one sample and one slot empty in all."""
    generator = torch.Generator().manual_seed(seed)

    def smooth(channels: int) -> Tensor:
        small = torch.rand(samples, channels, 8, 10, generator=generator)
        return F.interpolate(small, (height, width), mode="bicubic").clamp(0, 1)

    masks = torch.zeros(2, samples, 3, height, width, dtype=torch.bool)
    for index in range(2 * samples * 2):
        y, x = (int(torch.randint(0, side // 2, (), generator=generator)) for side in (height, width))
        masks.flatten(0, 1)[index // 2, index % 2, y : y + height // 2, x : x + width // 3] = True
    masks[0, 0, 1] = False
    return Batch(smooth(1), smooth(3), masks[1], masks[0], tuple("abcdef"[:samples]))


def picture(seed: int, batch: Batch) -> Tensor:
    return batch_of(seed, len(batch.ir), *batch.ir.shape[2:]).ir


def loss(o: Tensor, ref: Tensor, batch: Batch, encoder: FeatureEncoder, form: ContrastiveConfig) -> Tensor:
    context = BatchContext(batch, {}, encoder, contrastive=form)
    return contrastive(FusionOutput(o), FusionOutput(ref), context)


def literal(o: Tensor, ref: Tensor, batch: Batch, encoder: FeatureEncoder, form: ContrastiveConfig) -> Tensor:
    """Mask after mask, every picture encoded anew, norms written out."""

    def distance(a: list[Tensor], b: list[Tensor]) -> Tensor:
        return torch.stack([(x - y).square().sum().sqrt() for x, y in zip(a, b, strict=True)]).sum()

    def rgb(y: Tensor) -> Tensor:
        return y.repeat(1, 3, 1, 1)

    def seen(y: Tensor, plane: Tensor) -> list[Tensor]:
        if form.masking is Masking.IMAGE:
            return encoder(rgb(y * plane))
        maps = encoder(rgb(y))
        return [m * F.adaptive_avg_pool2d(plane, m.shape[2:]).sqrt() for m in maps]

    found = []
    for source, masks in ((batch.vis_y, batch.masks_vis), (batch.ir, batch.masks_ir)):
        for slot in range(masks.shape[1]):
            planes = masks[:, slot : slot + 1].to(o.dtype)
            rows = [slice(None)] if form.norm is Norm.BATCH else [slice(i, i + 1) for i in range(len(o))]
            for row in rows:
                if planes[row].any():
                    maps = [seen(y[row], planes[row]) for y in (o, ref, source)]
                    found.append([distance(maps[0], maps[1]), distance(maps[0], maps[2]), distance(maps[1], maps[2])])
    near, far, apart = (torch.stack(values) for values in zip(*found, strict=True))
    floor = (DENOMINATOR_FLOOR * apart.mean()).clamp_min(ABSOLUTE_FLOOR)
    return (near / far.clamp_min(floor)).sum() / (1 if form.norm is Norm.BATCH else len(o))


@pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form.masking}-{form.norm}")
@pytest.mark.parametrize("make_encoder", ENCODERS)
def test_every_form_equals_its_literal_loop(make_encoder: object, form: ContrastiveConfig) -> None:
    """Value and gradient to 1e-5; for the output, and for a reference that carries a graph."""
    encoder, batch = make_encoder(), batch_of(3)  # type: ignore[operator]
    results = []
    for computed in (loss, literal):
        o, ref = picture(4, batch).requires_grad_(), picture(5, batch).requires_grad_()
        value = computed(o, ref, batch, encoder, form)
        value.backward()
        assert o.grad is not None
        assert ref.grad is not None
        results.append((float(value.detach()), o.grad, ref.grad))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
    assert results[1][0] > 0.1
    for fast, slow in zip(results[0][1:], results[1][1:], strict=True):
        assert float((fast - slow).norm()) <= 1e-5 * float(slow.norm()) + 1e-7


def test_parts_of_a_batch_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """One region at a time and all at once give the same."""
    batch, encoder = batch_of(), squeezenet()
    values = []
    for pixels in (1, 10**9):
        monkeypatch.setattr(encoders, "PART_PIXELS", pixels)
        values.append(float(loss(picture(1, batch), picture(2, batch), replace(batch), encoder, FORMS[0])))
    assert values[0] == pytest.approx(values[1], rel=1e-5)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form.masking}-{form.norm}")
def test_empty_masks_cost_exactly_nothing(form: ContrastiveConfig) -> None:
    batch = batch_of()
    empty = replace(batch, masks_ir=batch.masks_ir & False, masks_vis=batch.masks_vis & False)
    o = picture(1, batch).requires_grad_()
    value = loss(o, picture(2, batch), empty, filter_encoder(), form)
    value.backward()
    assert float(value.detach()) == 0
    assert o.grad is not None
    assert not o.grad.any()


@pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form.masking}-{form.norm}")
@pytest.mark.parametrize("make_encoder", ENCODERS)
def test_it_is_zero_at_the_reference_and_grows_towards_a_source(make_encoder: object, form: ContrastiveConfig) -> None:
    """On a built-in scene, from the brighter of the sources to the visible one; finite there, gradient included."""
    encoder, scene = make_encoder(), render_scene(5, size=(96, 128))  # type: ignore[operator]
    ir, vis = torch.tensor(scene.ir)[None, None] / 255, torch.tensor(scene.vis).permute(2, 0, 1)[None] / 255
    masks = torch.zeros(1, 2, 96, 128, dtype=torch.bool)
    masks[0, 0, 20:70, 30:90] = masks[0, 1, 50:, :60] = True
    batch = Batch(ir, vis, masks, masks, ("scene",))
    reference = torch.maximum(ir, batch.vis_y)
    values = []
    for amount in (0.0, 0.15, 0.4, 0.7, 1.0):
        o = torch.lerp(reference, batch.vis_y, amount).requires_grad_()
        value = loss(o, reference, batch, encoder, form)
        value.backward()
        assert o.grad is not None
        assert torch.isfinite(o.grad).all()
        values.append(float(value.detach()))
    assert values[0] == pytest.approx(0, abs=1e-5)
    assert values == sorted(values)
    assert 0.1 < values[-1] < 2 / DENOMINATOR_FLOOR * 4


class Counting(FilterBank):
    """The real bank, which notes how many pictures it was given, and how many of them with a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.live: list[int] = []
        self.fixed: list[int] = []

    def raw(self, image: Tensor) -> list[Tensor]:
        if not image.requires_grad:
            self.fixed.append(len(image))
        return super().raw(image)

    def layers(self, image: Tensor) -> list[Tensor]:
        if image.requires_grad:
            self.live.append(len(image))
        return super().layers(image)


@pytest.mark.parametrize("masking", Masking)
def test_only_the_output_is_encoded_with_a_graph_and_sources_once_for_a_batch(masking: Masking) -> None:
    """Masked pictures: one encoding per region; masked maps: one per picture, however many masks there are."""
    batch, encoder = batch_of(), Counting().freeze()
    assert isinstance(encoder, Counting)
    regions = int(torch.cat([batch.masks_ir, batch.masks_vis], dim=1).flatten(2).any(dim=2).sum())
    each = regions if masking is Masking.IMAGE else len(batch.ir)
    for _ in range(2):
        o = picture(1, batch).requires_grad_()
        loss(o, picture(2, batch), batch, encoder, ContrastiveConfig(masking=masking)).backward()
    assert encoder.live == [each, each]
    assert encoder.fixed == [each] * (3 if masking is Masking.IMAGE else 4)


@pytest.mark.parametrize("masking", Masking)
def test_kept_sources_give_the_value_of_fresh_ones(masking: Masking) -> None:
    batch, encoder, form = batch_of(), squeezenet(), ContrastiveConfig(masking=masking)
    first = loss(picture(8, batch), picture(9, batch), batch, encoder, form)
    assert batch.derived
    kept = loss(picture(1, batch), picture(2, batch), batch, encoder, form)
    fresh = loss(picture(1, batch), picture(2, batch), replace(batch), encoder, form)
    assert torch.equal(kept, fresh)
    assert not torch.equal(kept, first)
    other = loss(picture(1, batch), picture(2, batch), batch, filter_encoder(), form)
    assert torch.equal(other, loss(picture(1, batch), picture(2, batch), replace(batch), filter_encoder(), form))


def test_samples_of_the_per_sample_norm_do_not_depend_on_each_other() -> None:
    """The gradient of one sample is the same with and without the other, but for the floor; not so batch-global."""
    batch, encoder = batch_of(), filter_encoder()
    alone = Batch(batch.ir[:1], batch.vis[:1], batch.masks_ir[:1], batch.masks_vis[:1], ("a",))
    ratios = {}
    for norm in Norm:
        gradients = []
        for one in (batch, alone):
            o = picture(1, batch)[: len(one.ir)].requires_grad_()
            loss(o, picture(2, batch)[: len(one.ir)], one, encoder, ContrastiveConfig(norm=norm)).backward()
            assert o.grad is not None
            gradients.append(o.grad[0] * (len(one.ir) if norm is Norm.SAMPLE else 1))
        ratios[norm] = float((gradients[0] - gradients[1]).norm() / gradients[1].norm())
    assert ratios[Norm.SAMPLE] < 1e-5
    assert ratios[Norm.BATCH] > 0.05


@pytest.mark.parametrize("channels_last", [False, True])
def test_squared_distances_gradcheck_in_float64(channels_last: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    maps, reference, source = torch.randn(3, 2, 3, 5, 4, generator=generator, dtype=torch.float64)
    if channels_last:
        maps = maps.contiguous(memory_format=torch.channels_last)
    reference, source = F.instance_norm(reference), F.instance_norm(source)

    def centred(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        return squared_distances(first, F.instance_norm(second), source)

    assert torch.autograd.gradcheck(centred, (maps.requires_grad_(), reference.requires_grad_()))


def test_the_filter_bank_has_the_gradient_of_a_convolution() -> None:
    encoder = filter_encoder().double()
    for height, width in ((17, 22), (40, 36), (9, 13)):
        image = torch.rand(2, 3, height, width, dtype=torch.float64, requires_grad=True)
        upper = [torch.randn_like(m) for m in encoder.raw(image)]
        torch.autograd.backward(encoder.raw(image), upper)
        grey = torch.nn.Parameter(((image.detach() - encoder.mean) / encoder.std).mean(dim=1, keepdim=True))
        level, slow = grey, []
        for scale in range(len(upper)):
            if scale and min(level.shape[-2:]) >= 4:
                level = F.avg_pool2d(level, 2)
            slow.append(F.conv2d(F.pad(level, [4] * 4, mode="replicate"), encoder.bank))  # type: ignore[arg-type]
        torch.autograd.backward(slow, upper)
        assert image.grad is not None
        assert grey.grad is not None
        assert torch.allclose(image.grad, grey.grad / (3 * encoder.std), rtol=1e-9, atol=1e-12)


def test_cell_shares_are_area_averages() -> None:
    masks = batch_of().masks_ir.float()
    for size in ((40, 52), (10, 13), (7, 9), (3, 50)):
        assert torch.allclose(cell_shares(masks, size), F.adaptive_avg_pool2d(masks, size).flatten(2), atol=1e-6)


def test_recipes_choose_the_form() -> None:
    assert load_recipe("default").contrastive == ContrastiveConfig(masking=Masking.IMAGE, norm=Norm.SAMPLE)
    changed = load_recipe("default", ["contrastive.masking=feature", "contrastive.norm=batch"]).contrastive
    assert (changed.masking, changed.norm) == (Masking.FEATURE, Norm.BATCH)
    with pytest.raises(InputError, match=r"contrastive\.norm"):
        load_recipe("default", ["contrastive.norm=layer"])


@pytest.fixture
def sam_state() -> dict[str, Tensor]:
    return dict(tiny_sam().state_dict())


def test_sam_encoder_takes_the_weights_under_their_prefix(tmp_path: Path, sam_state: dict[str, Tensor]) -> None:
    """Published checkpoints name the encoder ``image_encoder.``: every such weight must arrive, none stays random."""
    assert all(key.startswith(("image_encoder.", "prompt_encoder.", "mask_decoder.")) for key in sam_state)
    image, path = torch.rand(1, 3, 48, 64), tmp_path / "sam.pth"
    torch.save(sam_state, path)
    expected = sam()(image)
    torch.manual_seed(99)
    encoder = encoders.sam_encoder(path)
    assert all(torch.equal(a, b) for a, b in zip(encoder(image), expected, strict=True))
    assert not any(p.requires_grad for p in encoder.parameters())


@pytest.mark.parametrize(
    "key", ["image_encoder.blocks.1.attn.qkv.weight", "image_encoder.pos_embed", "image_encoder.patch_embed.proj.bias"]
)
def test_sam_encoder_refuses_a_checkpoint_with_a_weight_missing(
    tmp_path: Path, sam_state: dict[str, Tensor], key: str
) -> None:
    del sam_state[key]
    torch.save(sam_state, tmp_path / "sam.pth")
    with pytest.raises(InputError, match="not a SAM checkpoint"):
        encoders.sam_encoder(tmp_path / "sam.pth")


def test_sam_encoder_refuses_weights_without_their_prefix(tmp_path: Path, sam_state: dict[str, Tensor]) -> None:
    bare = {key.removeprefix("image_encoder."): value for key, value in sam_state.items()}
    torch.save(bare, tmp_path / "bare.pth")
    with pytest.raises(InputError, match="not a SAM checkpoint"):
        encoders.sam_encoder(tmp_path / "bare.pth")
