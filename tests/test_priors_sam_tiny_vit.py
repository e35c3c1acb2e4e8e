"""MobileSAM's checkpoint layout: its encoder by timm against a slow one written down from the layout."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_sam import discs, tiny_sam
from torch import Tensor

from duskfuse.data.errors import InputError
from duskfuse.data.priors.sam import SamMasks, SamSettings, load_sam

WIDTHS, DEPTHS, HEADS, WINDOWS, NECK = (8, 8, 16, 24), (2, 1, 2, 1), (1, 2, 4, 3), (1, 7, 6, 7), 16
"""Per stage; the published ones are (64, 128, 160, 320), (2, 2, 6, 2), (2, 4, 5, 10), (7, 7, 14, 7) and 256."""

State = dict[str, Tensor]


def mobile_state() -> State:
    """A random state dict with MobileSAM's names."""
    torch.manual_seed(0)
    state: State = {}

    def convolution(name: str, inputs: int, outputs: int, kernel: int) -> None:
        state[f"{name}.c.weight"] = torch.randn(outputs, inputs, kernel, kernel) / (inputs * kernel**2) ** 0.5
        state[f"{name}.bn.weight"], state[f"{name}.bn.bias"] = torch.rand(outputs) + 0.5, torch.randn(outputs) / 4
        state[f"{name}.bn.running_mean"], state[f"{name}.bn.running_var"] = (
            torch.randn(outputs),
            torch.rand(outputs) + 1,
        )
        state[f"{name}.bn.num_batches_tracked"] = torch.tensor(1)

    def linear(name: str, inputs: int, outputs: int) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = torch.randn(outputs, inputs) / 4, torch.randn(outputs) / 4

    def norm(name: str, width: int) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = torch.rand(width) + 0.5, torch.randn(width) / 4

    convolution("patch_embed.seq.0", 3, WIDTHS[0] // 2, 3)
    convolution("patch_embed.seq.2", WIDTHS[0] // 2, WIDTHS[0], 3)
    for stage, (width, depth) in enumerate(zip(WIDTHS, DEPTHS, strict=True)):
        for name in (f"layers.{stage}.blocks.{i}" for i in range(depth)):
            if stage == 0:
                convolution(f"{name}.conv1", width, 4 * width, 1)
                convolution(f"{name}.conv2", 1, 4 * width, 3)
                convolution(f"{name}.conv3", 4 * width, width, 1)
                continue
            state[f"{name}.attn.attention_biases"] = torch.randn(HEADS[stage], WINDOWS[stage] ** 2)
            norm(f"{name}.attn.norm", width)
            linear(f"{name}.attn.qkv", width, 3 * width)
            linear(f"{name}.attn.proj", width, width)
            norm(f"{name}.mlp.norm", width)
            linear(f"{name}.mlp.fc1", width, 4 * width)
            linear(f"{name}.mlp.fc2", 4 * width, width)
            convolution(f"{name}.local_conv", 1, width, 3)
        if stage < 3:
            convolution(f"layers.{stage}.downsample.conv1", width, WIDTHS[stage + 1], 1)
            convolution(f"layers.{stage}.downsample.conv2", 1, WIDTHS[stage + 1], 3)
            convolution(f"layers.{stage}.downsample.conv3", WIDTHS[stage + 1], WIDTHS[stage + 1], 1)
    norm("norm_head", WIDTHS[-1])
    linear("head", WIDTHS[-1], 10)
    state["neck.0.weight"] = torch.randn(NECK, WIDTHS[-1], 1, 1)
    state["neck.2.weight"] = torch.randn(NECK, NECK, 3, 3) / 12
    norm("neck.1", NECK)
    norm("neck.3", NECK)
    rest = {key: value for key, value in tiny_sam(1024).state_dict().items() if not key.startswith("image_encoder.")}
    return {**{f"image_encoder.{key}": value for key, value in state.items()}, **rest}


def encode(state: State, x: Tensor) -> Tensor:
    """MobileSAM's image encoder, window by window and head by head."""
    state = {key.removeprefix("image_encoder."): value for key, value in state.items()}

    def convolution(name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight, bn = state[f"{name}.c.weight"], f"{name}.bn"
        groups = x.shape[1] if weight.shape[1] == 1 else 1
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2, groups=groups)
        scale = state[f"{bn}.weight"] / (state[f"{bn}.running_var"] + 1e-5).sqrt()
        return (x - state[f"{bn}.running_mean"].view(-1, 1, 1)) * scale.view(-1, 1, 1) + state[f"{bn}.bias"].view(
            -1, 1, 1
        )

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)

    def attention(name: str, x: Tensor, heads: int, side: int) -> Tensor:  # x: one window [side², C]
        places = list(itertools.product(range(side), repeat=2))
        index = [[abs(a - c) * side + abs(b - d) for c, d in places] for a, b in places]
        q, k, v = linear(f"{name}.qkv", norm(f"{name}.norm", x)).view(len(x), heads, 3, -1).unbind(2)
        out = []
        for head in range(heads):
            scores = q[:, head] @ k[:, head].T / q.shape[-1] ** 0.5
            out.append((scores + state[f"{name}.attention_biases"][head][torch.tensor(index)]).softmax(-1) @ v[:, head])
        return linear(f"{name}.proj", torch.cat(out, dim=1))

    def block(name: str, x: Tensor, heads: int, side: int) -> Tensor:
        height, width = x.shape[-2:]
        padded = F.pad(x[0].permute(1, 2, 0), (0, 0, 0, -width % side, 0, -height % side))
        out = torch.empty_like(padded)
        for top, left in itertools.product(range(0, height, side), range(0, width, side)):
            window = padded[top : top + side, left : left + side]
            seen = attention(f"{name}.attn", window.reshape(side * side, -1), heads, side)
            out[top : top + side, left : left + side] = seen.view(side, side, -1)
        x = convolution(f"{name}.local_conv", x + out[:height, :width].permute(2, 0, 1))
        tokens = norm(f"{name}.mlp.norm", x.permute(0, 2, 3, 1))
        return x + linear(f"{name}.mlp.fc2", F.gelu(linear(f"{name}.mlp.fc1", tokens))).permute(0, 3, 1, 2)

    x = F.gelu(convolution("patch_embed.seq.0", x, stride=2))
    x = convolution("patch_embed.seq.2", x, stride=2)
    for stage, depth in enumerate(DEPTHS):
        for name in (f"layers.{stage}.blocks.{i}" for i in range(depth)):
            if stage == 0:
                y = F.gelu(convolution(f"{name}.conv2", F.gelu(convolution(f"{name}.conv1", x))))
                x = F.gelu(x + convolution(f"{name}.conv3", y))
            else:
                x = block(name, x, HEADS[stage], WINDOWS[stage])
        if stage < 3:
            x = F.gelu(convolution(f"layers.{stage}.downsample.conv1", x))
            x = F.gelu(convolution(f"layers.{stage}.downsample.conv2", x, stride=1 if stage == 2 else 2))
            x = convolution(f"layers.{stage}.downsample.conv3", x)
    x = norm("neck.1", F.conv2d(x, state["neck.0.weight"]).permute(0, 2, 3, 1), 1e-6).permute(0, 3, 1, 2)
    return norm("neck.3", F.conv2d(x, state["neck.2.weight"], padding=1).permute(0, 2, 3, 1), 1e-6).permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mobile") / "any_name.pt"
    torch.save(mobile_state(), path)
    return path


def test_the_encoder_is_mobile_sams(checkpoint: Path):
    pytest.importorskip("timm")
    sam = load_sam(checkpoint, mobile=True)
    assert not sam.training
    x = torch.randn(1, 3, 1024, 1024)
    with torch.no_grad():
        mine, wanted = sam.image_encoder(x), encode(mobile_state(), x)
    assert mine.shape == (1, NECK, 64, 64)
    torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-4)


def test_it_makes_masks(checkpoint: Path):
    pytest.importorskip("timm")
    easy = SamSettings(points_per_side=4, crop_n_layers=0, pred_iou_thresh=-99.0, stability_score_thresh=0.0)
    masks = SamMasks(checkpoint, easy).masks(discs())
    assert len(masks) > 0
    assert np.isfinite(masks.predicted_iou).all()


def test_other_layouts_are_refused(tmp_path: Path):
    pytest.importorskip("timm")
    state = mobile_state()
    for content in (
        {**state, "image_encoder.layers.1.extra": torch.zeros(1)},
        {key: value for key, value in state.items() if not key.startswith("image_encoder.layers.3")},
        {key: value for key, value in state.items() if key != "image_encoder.neck.2.weight"},
    ):
        torch.save(content, tmp_path / "bad.pt")
        with pytest.raises(InputError, match="not a SAM checkpoint"):
            load_sam(tmp_path / "bad.pt", mobile=True)


def test_where_a_vit_is_needed_mobile_sam_is_refused(checkpoint: Path):
    with pytest.raises(InputError, match="not a SAM checkpoint"):
        load_sam(checkpoint)


def test_without_timm_the_extra_is_named(checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "timm.models.tiny_vit", None)
    with pytest.raises(InputError) as caught:
        load_sam(checkpoint, mobile=True)
    assert "duskfuse[mobile-sam]" in caught.value.remedy
