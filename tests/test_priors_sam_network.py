"""The faster forms of SAM's attention, decoder and resizing against segment-anything's own."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from segment_anything import SamPredictor
from tiny_sam import discs, tiny_sam
from torch import Tensor

from duskfuse.data.priors.sam_network import FusedAttention, PointDecoder, SamNetwork, resize_from_square

CPU = torch.device("cpu")


@pytest.mark.parametrize(("window", "global_blocks"), [(2, (1,)), (3, (0,)), (0, ())])
@pytest.mark.parametrize("batch", [1, 3])
def test_fused_attention_is_attention_with_relative_positions(window: int, global_blocks: tuple[int, ...], batch: int):
    """Windows and the whole grid; in float64, so that only the order of the sums differs."""
    sam = tiny_sam(window=window, global_blocks=global_blocks).double()
    for block in sam.image_encoder.blocks:
        side = (len(block.attn.rel_pos_h) + 1) // 2
        x = torch.randn(batch, side, side, 24, dtype=torch.float64)
        torch.testing.assert_close(FusedAttention(block.attn)(x), block.attn(x), rtol=1e-10, atol=1e-12)


def original_answers(sam: Any, embedding: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    position = sam.prompt_encoder.get_dense_pe()
    logits, scores = sam.mask_decoder(embedding, position, *prompts(sam, points), multimask_output=True)
    return logits, scores


def prompts(sam: Any, points: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens of the points, and the embedding for "no mask"."""
    labels = torch.ones(len(points), 1, dtype=torch.int)
    tokens, no_mask = sam.prompt_encoder(points=(points[:, None], labels), boxes=None, masks=None)
    return tokens, no_mask


def double_positions(layer: Any) -> Any:
    """segment-anything makes coordinates float32; the rest of the comparison is in float64."""
    encode = layer._pe_encoding
    return lambda coordinates: encode(coordinates.double())


@pytest.mark.parametrize("count", [1, 7])
def test_the_decoder_of_points_is_the_mask_decoder(count: int):
    """In float64; image tokens are projected after the attention instead of before it."""
    sam = tiny_sam(width=32).double()
    for parameter in sam.mask_decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # biases too
    embedding, points = torch.randn(1, 32, 4, 4, dtype=torch.float64), 64 * torch.rand(count, 2, dtype=torch.float64)
    sam.prompt_encoder.pe_layer._pe_encoding = double_positions(sam.prompt_encoder.pe_layer)
    logits, scores = original_answers(sam, embedding, points)
    tokens, no_mask = prompts(sam, points)
    mine = PointDecoder(sam.mask_decoder)(embedding + no_mask[:1], sam.prompt_encoder.get_dense_pe(), tokens)
    torch.testing.assert_close(mine[0], logits, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(mine[1], scores, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("side", "inner", "size"),
    [(64, (48, 64), (480, 640)), (64, (64, 64), (50, 50)), (64, (64, 29), (201, 90)), (128, (1, 128), (4, 600))],
)
def test_resizing_leaves_out_only_padding(side: int, inner: tuple[int, int], size: tuple[int, int]):
    sam = tiny_sam(side)
    logits = torch.randn(5, 3, side // 4, side // 4)
    wanted = sam.postprocess_masks(logits, inner, size).flatten(0, 1)
    torch.testing.assert_close(resize_from_square(logits.flatten(0, 1), side, inner, size), wanted, rtol=0, atol=1e-5)


def test_a_whole_picture_is_answered_as_by_the_predictor():
    sam, picture = tiny_sam(128, width=32), discs(75, 111)
    points = np.random.default_rng(0).random((9, 2)) * (111, 75)
    predictor = SamPredictor(copy.deepcopy(sam))
    predictor.set_image(picture)
    inner = torch.as_tensor(predictor.transform.apply_coords(points, (75, 111)))[:, None]
    masks, scores, logits = predictor.predict_torch(inner, torch.ones(9, 1), return_logits=True)
    with torch.inference_mode():
        seen = SamNetwork(sam, CPU).see(picture)
        my_logits, my_scores = seen.ask(points)
        my_masks = seen.full_size(my_logits.flatten(0, 1))
    torch.testing.assert_close(my_logits, logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(my_scores, scores, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(my_masks.view(masks.shape), masks, rtol=1e-4, atol=1e-5)


def test_an_encoder_in_bfloat16_changes_little():
    """What a GPU computes. bfloat16 has 8 bits, so that 2 % of the embedding's norm is the tolerance."""
    sam, picture = tiny_sam(128, depth=4, global_blocks=(1, 3), width=32), discs()
    with torch.inference_mode():
        exact = SamNetwork(copy.deepcopy(sam), CPU).see(picture)
        rough = SamNetwork(sam, CPU, torch.bfloat16).see(picture)
    assert rough._embedding.dtype == torch.float32
    difference = (rough._embedding - exact._embedding).norm() / exact._embedding.norm()
    assert 0 < difference < 0.02
