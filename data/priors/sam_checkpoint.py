"""Opening a checkpoint in segment-anything's layout.

The network is built from the shapes in it, so that ViT-B, -L, -H and distilled ones all load without being named.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from duskfuse.data.errors import InputError
from duskfuse.data.priors.sam_tiny_vit import TinyVitEncoder, count_modules, is_tiny_vit, timm_names
from duskfuse.data.weights import read_state_dict

if TYPE_CHECKING:
    from segment_anything.modeling import ImageEncoderViT, Sam

_DECODER_HEADS = 8
"""Attention heads of SAM's mask decoder; the one number that no tensor's shape tells."""

_RULE = "a SAM checkpoint holds the state dict of segment-anything's image encoder, prompt encoder and mask decoder"
_REMEDY = (
    "give sam_vit_b_01ec64.pth, sam_vit_l_0b3195.pth, sam_vit_h_4b8939.pth, mobile_sam.pt or one of the same layout"
)


def load_sam(checkpoint: Path, mobile: bool = False) -> Sam:
    """Build the SAM that a checkpoint describes, with its weights, on the CPU, in evaluation mode.

    Args:
        checkpoint: file written by ``torch.save``, or a safetensors file.
        mobile: take MobileSAM's too, whose image encoder is no ViT.

    Raises:
        InputError: no file, not a state dict of plain tensors, one whose keys or shapes are not SAM's, or MobileSAM's
            without timm.
    """
    state = read_state_dict(checkpoint, rule=_RULE, remedy=_REMEDY)
    try:
        if mobile and is_tiny_vit(state):
            state = timm_names(state)
            sam = _around(TinyVitEncoder(state), TinyVitEncoder.grid, state)
        else:
            encoder = _vit(state)
            sam = _around(encoder, encoder.img_size // encoder.patch_embed.proj.kernel_size[0], state)
        sam.load_state_dict(state)
    except (KeyError, IndexError, ValueError, ZeroDivisionError, RuntimeError, AssertionError) as error:
        raise InputError(
            f"{checkpoint}: not a SAM checkpoint ({str(error).splitlines()[0][:200]})", rule=_RULE, remedy=_REMEDY
        ) from None
    return sam.eval()


def _vit(state: Mapping[str, Tensor]) -> ImageEncoderViT:
    """An image encoder of random weights, shaped as ``state``; ``KeyError`` where a telling tensor is missing."""
    from segment_anything.modeling import ImageEncoderViT

    embed_dim, _, patch, _ = state["image_encoder.patch_embed.proj.weight"].shape
    grid = state["image_encoder.pos_embed"].shape[1]
    blocks = "image_encoder.blocks"
    reach = [state[f"{blocks}.{i}.attn.rel_pos_h"].shape for i in range(count_modules(state, blocks))]
    windows = {(length + 1) // 2 for length, _ in reach} - {grid}
    return ImageEncoderViT(
        depth=len(reach),
        embed_dim=embed_dim,
        img_size=grid * patch,
        mlp_ratio=state[f"{blocks}.0.mlp.lin1.weight"].shape[0] / embed_dim,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        num_heads=embed_dim // reach[0][1],
        patch_size=patch,
        qkv_bias=True,
        use_rel_pos=True,
        global_attn_indexes=tuple(i for i, (length, _) in enumerate(reach) if (length + 1) // 2 == grid),
        window_size=windows.pop() if windows else 0,
        out_chans=state["image_encoder.neck.0.weight"].shape[0],
    )


def _around(encoder: nn.Module, grid: int, state: Mapping[str, Tensor]) -> Sam:
    """A SAM with this image encoder of ``grid`` tokens a side, the rest of random weights."""
    from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    prompt_dim = state["prompt_encoder.no_mask_embed.weight"].shape[1]
    decoder = "mask_decoder.transformer.layers"
    iou_head = "mask_decoder.iou_prediction_head.layers"
    return Sam(
        image_encoder=encoder,
        prompt_encoder=PromptEncoder(
            embed_dim=prompt_dim,
            image_embedding_size=(grid, grid),
            input_image_size=(encoder.img_size, encoder.img_size),
            mask_in_chans=state["prompt_encoder.mask_downscaling.3.weight"].shape[0],
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=state["mask_decoder.mask_tokens.weight"].shape[0] - 1,
            transformer=TwoWayTransformer(
                depth=count_modules(state, decoder),
                embedding_dim=prompt_dim,
                mlp_dim=state[f"{decoder}.0.mlp.lin1.weight"].shape[0],
                num_heads=_DECODER_HEADS,
            ),
            transformer_dim=prompt_dim,
            iou_head_depth=count_modules(state, iou_head),
            iou_head_hidden_dim=state[f"{iou_head}.0.weight"].shape[0],
        ),
    )
