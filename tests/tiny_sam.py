"""Small SAMs of random weights out of the real classes, and pictures for them; shared by the tests of mask sources."""

from __future__ import annotations

from functools import partial
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import Tensor, nn


def tiny_sam(
    image_size: int = 64, window: int = 2, global_blocks: tuple[int, ...] = (1,), depth: int = 2, width: int = 16
) -> Any:
    """A whole SAM whose image encoder takes ``image_size`` pixels, its relative positions random too."""
    torch.manual_seed(0)
    grid = image_size // 16
    sam = Sam(
        ImageEncoderViT(
            img_size=image_size, embed_dim=24, depth=depth, num_heads=3, mlp_ratio=2, out_chans=width,
            norm_layer=partial(nn.LayerNorm, eps=1e-6), use_rel_pos=True, window_size=window,
            global_attn_indexes=global_blocks,
        ),
        PromptEncoder(
            embed_dim=width, image_embedding_size=(grid, grid), input_image_size=(image_size, image_size),
            mask_in_chans=8,
        ),
        MaskDecoder(
            transformer_dim=width, transformer=TwoWayTransformer(depth=2, embedding_dim=width, mlp_dim=24, num_heads=8),
            iou_head_depth=3, iou_head_hidden_dim=12,
        ),
    ).eval()  # fmt: skip
    with torch.no_grad():
        for name, parameter in sam.named_parameters():
            if "rel_pos" in name:
                parameter.normal_()  # zero at initialisation, which would hide a wrong window
    return sam


class Spots(nn.Module):
    """Stands in for a trained mask decoder: spots of three sizes around the point, ragged by the picture.

    Masks of random weights nearly all span the whole picture, so that one of them is left; these are whole, cut, torn
    and pierced. The position encoding of the point tells where it is.
    """

    def forward(
        self,
        image_embeddings: Tensor,
        image_pe: Tensor,
        sparse_prompt_embeddings: Tensor,
        dense_prompt_embeddings: Tensor,
        multimask_output: bool,
    ) -> tuple[Tensor, Tensor]:
        near = torch.einsum("bc,chw->bhw", sparse_prompt_embeddings[:, 0], image_pe[0]) / (image_pe.shape[1] / 2)
        near = F.interpolate(near[:, None], scale_factor=4, mode="bilinear")
        look = F.interpolate(image_embeddings[:, :3], scale_factor=4, mode="bilinear")
        logits = 12 * (near - torch.tensor([0.6, 0.4, 0.2]).view(3, 1, 1)) + look
        score = 0.9 - 0.1 * torch.arange(3) + 0.05 * torch.sin(100 * sparse_prompt_embeddings[:, 0, :3])
        return logits, score


def spotting_sam(image_size: int = 128) -> Any:
    """A SAM that answers with `Spots`."""
    sam = tiny_sam(image_size, width=64)
    nn.init.zeros_(sam.prompt_encoder.point_embeddings[1].weight)
    nn.init.zeros_(sam.prompt_encoder.no_mask_embed.weight)
    sam.mask_decoder = Spots()
    return sam


def discs(height: int = 96, width: int = 128, seed: int = 0) -> NDArray[np.uint8]:
    """``[height, width, 3]``: discs of random colours."""
    generator = np.random.default_rng(seed)
    picture = np.full((height, width, 3), 60, np.uint8)
    for _ in range(8):
        centre = int(generator.integers(0, width)), int(generator.integers(0, height))
        colour = tuple(int(value) for value in generator.integers(0, 256, 3))
        cv2.circle(picture, centre, int(generator.integers(5, 25)), colour, -1)
    return picture
