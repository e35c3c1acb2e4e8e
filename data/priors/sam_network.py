"""segment-anything's network for many points on one picture: its answers for less work.

Two parts of it are computed another way, equal but for the rounding of float32:

- **The encoder's attention.** The decomposed relative positions that are added to the attention matrix are sums of one
  value per query and key row and one per query and key column. Appended to queries and keys (one-hot on the side of the
  keys) they become part of the dot product, so that fused attention applies and no matrix of 4,096 × 4,096 exists.
- **The mask decoder.** For points without mask prompts all points share the picture's tokens. Projections of the 4,096
  image tokens are moved to the few tokens of a point: ``q · (W k) = (Wᵀ q) · k`` and ``W Σ a v = Σ a (W v)``.
  Up-scaling by strided transposed convolutions whose kernels do not overlap is a matrix product per pixel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

if TYPE_CHECKING:
    from segment_anything.modeling import MaskDecoder, Sam

_POINT_BYTES = 32 << 20
"""Measured on the decoder of the published checkpoints: 28 MiB."""


class SamNetwork:
    """A SAM that answers points; moves and changes the ``sam`` it is given.

    Args:
        sam: with weights, in evaluation mode.
        device: where it computes.
        encoder_dtype: precision of the image encoder (autocast); everything after it is float32.
    """

    point_bytes = _POINT_BYTES

    def __init__(self, sam: Sam, device: torch.device, encoder_dtype: torch.dtype = torch.float32) -> None:
        from segment_anything.utils.transforms import ResizeLongestSide

        self.device, self.sam, self._encoder_dtype = device, sam.to(device), encoder_dtype
        for block in getattr(sam.image_encoder, "blocks", ()):
            block.attn = FusedAttention(block.attn)
        self.resize = ResizeLongestSide(sam.image_encoder.img_size)
        self.decode = PointDecoder(sam.mask_decoder)

    def see(self, image_rgb: NDArray[np.uint8], /) -> SamPicture:
        """Encode ``[H, W, 3]`` RGB."""
        resized = torch.from_numpy(self.resize.apply_image(image_rgb)).to(self.device).permute(2, 0, 1)[None]
        lower = self._encoder_dtype != torch.float32
        with torch.autocast(self.device.type, self._encoder_dtype if lower else None, enabled=lower):
            embedding = self.sam.image_encoder(self.sam.preprocess(resized))
        inner = resized.shape[-2], resized.shape[-1]
        return SamPicture(self, embedding.float(), inner, (image_rgb.shape[0], image_rgb.shape[1]))


class SamPicture:
    """A picture encoded by SAM: ``size`` brought to ``inner``, the top left of the network's square input."""

    def __init__(self, network: SamNetwork, embedding: Tensor, inner: tuple[int, int], size: tuple[int, int]) -> None:
        self._network, self._embedding, self._inner, self._size = network, embedding, inner, size

    def ask(self, points: NDArray[np.float64], /) -> tuple[Tensor, Tensor]:
        """Answers to ``points`` ``[n, 2]`` (x, y in pixels): logits ``[n, 3, h, w]`` and predicted IoU ``[n, 3]``."""
        sam, network = self._network.sam, self._network
        inner = torch.as_tensor(network.resize.apply_coords(points, self._size), device=network.device)
        foreground = torch.ones(len(points), 1, dtype=torch.int, device=network.device)
        tokens, no_mask = sam.prompt_encoder(points=(inner[:, None], foreground), boxes=None, masks=None)
        return network.decode(self._embedding + no_mask[:1], sam.prompt_encoder.get_dense_pe(), tokens)

    def full_size(self, logits: Tensor, /) -> Tensor:
        """Bring logits ``[m, h, w]`` to the size of the picture, ``[m, H, W]``."""
        return resize_from_square(logits, self._network.sam.image_encoder.img_size, self._inner, self._size)


def resize_from_square(logits: Tensor, side: int, inner: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Logits ``[m, h, w]`` of a square input as those of the picture in its top left, as SAM does it.

    SAM resizes to the square (``side``), cuts off the padding beyond ``inner`` and resizes to ``size``; what is only
    padding is left out here from the start.
    """
    scale = side // logits.shape[-1]
    rows, columns = (min(logits.shape[-1], -(-length // scale) + 1) for length in inner)
    square = bilinear(logits[:, :rows, :columns], (rows * scale, columns * scale))
    return bilinear(square[:, : inner[0], : inner[1]], size)


def bilinear(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize ``[m, h, w]`` to ``[m, *size]``."""
    return F.interpolate(maps[None], size, mode="bilinear", align_corners=False)[0]


class FusedAttention(nn.Module):
    """segment-anything's encoder attention with decomposed relative positions, over a square of tokens.

    Args:
        attention: the module that is replaced; its parameters are used.
    """

    def __init__(self, attention: Any) -> None:
        from segment_anything.modeling.image_encoder import get_rel_pos

        super().__init__()
        self.qkv, self.proj = attention.qkv, attention.proj
        self.heads, self.scale = int(attention.num_heads), float(attention.scale)
        side = (len(attention.rel_pos_h) + 1) // 2
        self.rows: Tensor
        self.columns: Tensor
        self.places: Tensor
        with torch.device(attention.rel_pos_h.device), torch.no_grad():
            self.register_buffer("rows", get_rel_pos(side, side, attention.rel_pos_h))
            self.register_buffer("columns", get_rel_pos(side, side, attention.rel_pos_w))
            one = torch.eye(side)
            self.register_buffer("places", torch.cat([one.repeat_interleave(side, 0), one.repeat(side, 1)], dim=1))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, S, S, C]`` to the same."""
        batch, height, width, _ = x.shape
        qkv = self.qkv(x).view(batch, height * width, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)  # [B, heads, S·S, c]
        grid = q.reshape(batch, self.heads, height, width, -1)
        row = torch.einsum("bnhwc,hkc->bnhwk", grid, self.rows).flatten(2, 3)
        column = torch.einsum("bnhwc,wkc->bnhwk", grid, self.columns).flatten(2, 3)
        q = torch.cat([q * self.scale, row, column], dim=-1)
        k = torch.cat([k, self.places.to(k).expand(batch, self.heads, -1, -1)], dim=-1)
        padded = F.pad(v, (0, k.shape[-1] - v.shape[-1]))  # fused kernels want one width
        y = F.scaled_dot_product_attention(q, k, padded, scale=1.0)[..., : v.shape[-1]]
        out: Tensor = self.proj(y.transpose(1, 2).reshape(batch, height, width, -1))
        return out


class PointDecoder:
    """SAM's mask decoder for single points on one picture.

    Shapes: B points, N tokens of each (outputs and the point), T image tokens, C channels, H heads.
    """

    def __init__(self, decoder: MaskDecoder) -> None:
        self._decoder = decoder

    def __call__(self, embedding: Tensor, position: Tensor, prompts: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``[B, 3, 4h, 4w]`` and predicted IoU ``[B, 3]``, without the answer for unambiguous prompts.

        Args:
            embedding: ``[1, C, h, w]``, the embedding for "no mask" added.
            position: dense position encoding, ``[1, C, h, w]``.
            prompts: tokens of each point, ``[B, n, C]``.
        """
        decoder, transformer = self._decoder, self._decoder.transformer
        outputs = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        point = torch.cat([outputs.expand(len(prompts), -1, -1), prompts], dim=1)  # [B, N, C]
        image, place = (maps.flatten(2).mT.contiguous() for maps in (embedding, position))  # [1, T, C]
        tokens = point
        for layer in transformer.layers:
            if layer.skip_first_layer_pe:
                tokens = layer.self_attn(q=tokens, k=tokens, v=tokens)
            else:
                q = tokens + point
                tokens = tokens + layer.self_attn(q=q, k=q, v=tokens)
            tokens = layer.norm1(tokens)
            keys = image + place
            tokens = layer.norm2(tokens + _look(layer.cross_attn_token_to_image, tokens + point, keys, image))
            tokens = layer.norm3(tokens + layer.mlp(tokens))
            image = layer.norm4(_tell(layer.cross_attn_image_to_token, image, keys, tokens + point, tokens))
        looked = _look(transformer.final_attn_token_to_image, tokens + point, image + place, image)
        tokens = transformer.norm_final_attn(tokens + looked)
        predicted_iou = decoder.iou_prediction_head(tokens[:, 0])[:, 1:]
        heads = list(decoder.output_hypernetworks_mlps)[1:]
        weights = torch.stack([head(tokens[:, 2 + i]) for i, head in enumerate(heads)], dim=-1)  # [B, c, 3]
        height, width = embedding.shape[-2:]
        return self._masks(image, weights, height, width), predicted_iou

    def _masks(self, image: Tensor, weights: Tensor, height: int, width: int) -> Tensor:
        """Logits ``[B, 3, 4h, 4w]`` of image tokens ``[B, T, C]`` and the weights of each mask ``[B, c, 3]``."""
        first, norm, activation, second, last_activation = self._decoder.output_upscaling
        image = _quadruple(first, image)
        image = activation(F.layer_norm(image, norm.weight.shape, norm.weight, norm.bias, norm.eps))
        image = last_activation(_quadruple(second, image)).flatten(1, 3)  # [B, 16 T, c]
        logits = (image @ weights).view(len(image), height, width, 2, 2, 2, 2, -1)  # y, x of each quadrupling
        return logits.permute(0, 7, 1, 3, 5, 2, 4, 6).reshape(len(image), -1, 4 * height, 4 * width)


def _quadruple(convolution: nn.ConvTranspose2d, pixels: Tensor) -> Tensor:
    """A transposed convolution of kernel 2 and stride 2 on ``[…, C]``: the four pixels of each, ``[…, 4, c]``."""
    channels = convolution.out_channels
    weight = convolution.weight.permute(2, 3, 1, 0).reshape(4 * channels, -1)
    bias = None if convolution.bias is None else convolution.bias.repeat(4)
    return F.linear(pixels, weight, bias).view(*pixels.shape[:-1], 4, channels)


def _look(attention: Any, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Tokens ``[B, N, C]`` attend to image tokens ``[B or 1, T, C]``.

    The bias of the keys' projection shifts all scores of a token alike and so has no part in the softmax.
    """
    q = _heads(attention.q_proj(queries), attention.num_heads)
    asked = (q * q.shape[-1] ** -0.5) @ _by_head(attention.k_proj, attention.num_heads)  # [B, H, N, C]
    attended = _times(asked.flatten(1, 2), keys.mT).softmax(dim=-1)  # [B, H·N, T]
    seen = _times(attended, values).view(asked.shape) @ _by_head(attention.v_proj, attention.num_heads).mT
    out: Tensor = attention.out_proj(seen.transpose(1, 2).flatten(2) + attention.v_proj.bias)
    return out


def _tell(attention: Any, image: Tensor, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """``image`` plus what image tokens ``[B or 1, T, C]`` get by attending to tokens ``[B, N, C]``."""
    heads = attention.num_heads
    k = _heads(attention.k_proj(keys), heads)  # [B, H, N, c]
    k = k * k.shape[-1] ** -0.5
    answering = k @ _by_head(attention.q_proj, heads)  # [B, H, N, C]
    constant = (k * attention.q_proj.bias.view(heads, 1, -1)).sum(dim=-1, keepdim=True)  # [B, H, N, 1]
    scores = _times(answering.flatten(1, 2), queries.mT) + constant.flatten(1, 2)  # [B, H·N, T]
    attended = scores.view(*k.shape[:3], -1).softmax(dim=2).flatten(1, 2)
    out = attention.out_proj.weight.view(-1, *k.shape[1::2]).permute(1, 2, 0)  # [H, c, C]
    told = (_heads(attention.v_proj(values), heads) @ out).flatten(1, 2)  # [B, H·N, C]
    return torch.baddbmm(image + attention.out_proj.bias, attended.mT, told)


def _times(a: Tensor, b: Tensor) -> Tensor:
    """``[B, m, k]`` times ``[B or 1, k, n]``, the shared factor not repeated."""
    return a @ (b[0] if len(b) == 1 else b)


def _heads(x: Tensor, heads: int) -> Tensor:
    """``[B, N, H·c]`` to ``[B, H, N, c]``."""
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)


def _by_head(projection: nn.Linear, heads: int) -> Tensor:
    """Weight ``[H·c, C]`` as ``[H, c, C]``."""
    return projection.weight.view(heads, -1, projection.in_features)
