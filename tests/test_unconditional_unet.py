"""The unconditional diffusion UNet: guided-diffusion's tensors, converted, against a slow forward under their names."""

from __future__ import annotations

import builtins
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from duskfuse.data.errors import InputError
from duskfuse.teachers import unconditional_unet
from duskfuse.teachers.unconditional_unet import checkpoint_sha256, load_unconditional_unet

diffusers = pytest.importorskip("diffusers")

PUBLISHED = {"width": 256, "multipliers": (1, 1, 2, 2, 4, 4), "layers": 2, "attends": (3, 4, 5)}
TINY = {"width": 32, "multipliers": (1, 2, 4), "layers": 1, "attends": (1,)}
"""Three levels, attention at the second (one head) and in the middle (two heads)."""
LAYOUTS = [
    TINY,
    {"width": 32, "multipliers": (1, 2, 2), "layers": 2, "attends": ()},
    {"width": 64, "multipliers": (1, 1, 2), "layers": 2, "attends": (0, 2)},
    {"width": 64, "multipliers": (1,), "layers": 1, "attends": (0,)},
]


def shapes(width: int, multipliers: tuple[int, ...], layers: int, attends: tuple[int, ...], outputs: int = 6) -> Any:
    """Names and shapes of guided-diffusion's state dict, written down from the published architecture."""
    found: dict[str, tuple[int, ...]] = {}

    def layer(name: str, *shape: int) -> None:
        found[f"{name}.weight"], found[f"{name}.bias"] = shape, shape[:1]

    def residual(name: str, inputs: int, channels: int) -> None:
        layer(f"{name}.in_layers.0", inputs)
        layer(f"{name}.in_layers.2", channels, inputs, 3, 3)
        layer(f"{name}.emb_layers.1", 2 * channels, 4 * width)
        layer(f"{name}.out_layers.0", channels)
        layer(f"{name}.out_layers.3", channels, channels, 3, 3)
        if inputs != channels:
            layer(f"{name}.skip_connection", channels, inputs, 1, 1)

    def attention(name: str, channels: int) -> None:
        layer(f"{name}.norm", channels)
        layer(f"{name}.qkv", 3 * channels, channels, 1)
        layer(f"{name}.proj_out", channels, channels, 1)

    layer("time_embed.0", 4 * width, width)
    layer("time_embed.2", 4 * width, 4 * width)
    now = width * multipliers[0]
    layer("input_blocks.0.0", now, 3, 3, 3)
    skips, block = [now], 1
    for level, multiplier in enumerate(multipliers):
        for _ in range(layers):
            residual(f"input_blocks.{block}.0", now, width * multiplier)
            now = width * multiplier
            if level in attends:
                attention(f"input_blocks.{block}.1", now)
            skips, block = [*skips, now], block + 1
        if level < len(multipliers) - 1:
            residual(f"input_blocks.{block}.0", now, now)
            skips, block = [*skips, now], block + 1
    residual("middle_block.0", now, now)
    attention("middle_block.1", now)
    residual("middle_block.2", now, now)
    block = 0
    for level, multiplier in reversed(list(enumerate(multipliers))):
        for n in range(layers + 1):
            residual(f"output_blocks.{block}.0", now + skips.pop(), width * multiplier)
            now = width * multiplier
            if level in attends:
                attention(f"output_blocks.{block}.1", now)
            if level and n == layers:
                residual(f"output_blocks.{block}.{1 + (level in attends)}", now, now)
            block += 1
    layer("out.0", now)
    layer("out.2", outputs, now, 3, 3)
    return found


def random_state(layout: dict[str, Any], outputs: int = 6) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in shapes(**layout, outputs=outputs).items():
        scale = 1 / math.sqrt(math.prod(shape[1:])) if len(shape) > 1 else 0.2
        state[name] = scale * torch.randn(shape, generator=generator) + float(len(shape) == 1 and "weight" in name)
    return state


def reference(state: dict[str, Tensor], layout: dict[str, Any], x: Tensor, time: float) -> Tensor:
    """Guided-diffusion's network, slow and plain, under its own names."""
    width, multipliers, layers, attends = (layout[key] for key in ("width", "multipliers", "layers", "attends"))
    state = {key: tensor.to(x.dtype) for key, tensor in state.items()}

    def weights(name: str) -> tuple[Tensor, Tensor]:
        return state[f"{name}.weight"], state[f"{name}.bias"]

    def normalised(name: str, h: Tensor) -> Tensor:
        return F.group_norm(h, 32, *weights(name), eps=1e-5)

    def residual(name: str, h: Tensor, resize: Any = lambda h: h) -> Tensor:
        inner = F.conv2d(
            resize(F.silu(normalised(f"{name}.in_layers.0", h))), *weights(f"{name}.in_layers.2"), padding=1
        )
        scale, shift = F.linear(F.silu(embedding), *weights(f"{name}.emb_layers.1")).chunk(2)
        inner = normalised(f"{name}.out_layers.0", inner) * (1 + scale[:, None, None]) + shift[:, None, None]
        inner = F.conv2d(F.silu(inner), *weights(f"{name}.out_layers.3"), padding=1)
        h = resize(h)
        if f"{name}.skip_connection.weight" in state:
            h = F.conv2d(h, *weights(f"{name}.skip_connection"))
        return h + inner

    def attention(name: str, h: Tensor) -> Tensor:
        tokens = normalised(f"{name}.norm", h).flatten(2)
        fused = F.conv1d(tokens, *weights(f"{name}.qkv"))
        heads = []
        for first in range(0, fused.shape[1], 3 * 64):
            query, key, value = (fused[:, first + 64 * part :][:, :64] for part in range(3))
            weight = torch.softmax(query.transpose(1, 2) @ key / math.sqrt(64), dim=-1)  # [B, query, key]
            heads.append(value @ weight.transpose(1, 2))
        return h + F.conv1d(torch.cat(heads, dim=1), *weights(f"{name}.proj_out")).reshape(h.shape)

    def halved(h: Tensor) -> Tensor:
        return F.avg_pool2d(h, 2)

    def doubled(h: Tensor) -> Tensor:
        return h.repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2)

    angles = [time * 10000 ** (-i / (width // 2)) for i in range(width // 2)]
    waves = torch.tensor([*map(math.cos, angles), *map(math.sin, angles)], dtype=x.dtype)
    embedding = F.linear(F.silu(F.linear(waves, *weights("time_embed.0"))), *weights("time_embed.2"))

    h = F.conv2d(x, *weights("input_blocks.0.0"), padding=1)
    skips, block = [h], 1
    for level in range(len(multipliers)):
        for _ in range(layers):
            h = residual(f"input_blocks.{block}.0", h)
            if level in attends:
                h = attention(f"input_blocks.{block}.1", h)
            skips, block = [*skips, h], block + 1
        if level < len(multipliers) - 1:
            h = residual(f"input_blocks.{block}.0", h, halved)
            skips, block = [*skips, h], block + 1
    h = residual("middle_block.2", attention("middle_block.1", residual("middle_block.0", h)))
    block = 0
    for level in reversed(range(len(multipliers))):
        for n in range(layers + 1):
            h = residual(f"output_blocks.{block}.0", torch.cat([h, skips.pop()], dim=1))
            if level in attends:
                h = attention(f"output_blocks.{block}.1", h)
            if level and n == layers:
                h = residual(f"output_blocks.{block}.{1 + (level in attends)}", h, doubled)
            block += 1
    return F.conv2d(F.silu(normalised("out.0", h)), *weights("out.2"), padding=1)


def saved(folder: Path, state: dict[str, Tensor], name: str = "unet.pt") -> Path:
    path = folder / name
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_converted_network_computes_what_the_original_does(tmp_path: Path, layout: dict[str, Any]) -> None:
    state = random_state(layout)
    network = load_unconditional_unet(saved(tmp_path, state))
    assert not network.training
    step = network.size_step
    assert step == 2 ** (len(layout["multipliers"]) - 1)
    x = torch.randn(2, 3, 4 * step, 6 * step, generator=torch.Generator().manual_seed(1))
    for time in (0, 1, 517, 999):
        with torch.no_grad():
            noise = network(x, time)
        expected = reference(state, layout, x.double(), time)[:, :3]
        assert expected.std() > 0.1
        assert (noise - expected).abs().max() < 1e-5 * expected.abs().max()


def test_the_reference_sees_a_wrong_order_of_query_key_and_value(tmp_path: Path) -> None:
    """All queries before all keys before all values is what other attention code stores."""
    state = random_state(TINY)
    x = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    before = reference(state, TINY, x, 100)
    rows = torch.arange(3 * 128).reshape(2, 3, 64).transpose(0, 1).flatten()
    for kind in ("weight", "bias"):
        state[f"middle_block.1.qkv.{kind}"] = state[f"middle_block.1.qkv.{kind}"][rows]
    assert (reference(state, TINY, x, 100) - before).abs().max() > 1e-3


def test_the_published_network_has_its_published_number_of_parameters() -> None:
    wanted = shapes(**PUBLISHED)
    assert sum(math.prod(shape) for shape in wanted.values()) == 552_814_086
    state = {name: torch.empty(shape, device="meta") for name, shape in wanted.items()}
    sizes = unconditional_unet._Sizes.of(state)
    assert sizes.widths == (256, 256, 512, 512, 1024, 1024)
    assert sizes.attends == (False, False, False, True, True, True)
    with torch.device("meta"):
        network = diffusers.UNet2DModel(**sizes.config())
        network.load_state_dict(dict(unconditional_unet._renamed(state, sizes)), assign=True)
    assert sum(parameter.numel() for parameter in network.parameters()) == 552_814_086
    wrapped = unconditional_unet.UnconditionalUNet(network)
    assert wrapped.size_step == 32
    assert wrapped.multiply_adds((256, 256)) / 1e9 == pytest.approx(1119.8, abs=0.1)


def test_all_formats_hold_the_same_network(tmp_path: Path) -> None:
    state = random_state(TINY)
    paths = [saved(tmp_path, state), saved(tmp_path, state, "unet.safetensors"), tmp_path / "folder"]
    first = load_unconditional_unet(paths[0])
    first.network.save_pretrained(paths[2])
    for path in paths[1:]:
        other = load_unconditional_unet(path).state_dict()
        assert other.keys() == first.state_dict().keys()
        assert all(torch.equal(tensor, other[key]) for key, tensor in first.state_dict().items())
    hashes = {checkpoint_sha256(path) for path in paths}
    assert len(hashes) == 3
    config = paths[2] / "config.json"
    config.write_text(config.read_text().replace('"act_fn": "silu"', '"act_fn": "gelu"'))
    assert checkpoint_sha256(paths[2]) not in hashes


def test_a_network_without_learned_variance_is_taken_too(tmp_path: Path) -> None:
    state = random_state(TINY, outputs=3)
    x = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        noise = load_unconditional_unet(saved(tmp_path, state))(x, 40)
    assert torch.allclose(noise, reference(state, TINY, x, 40), atol=1e-4)


def test_half_precision_computes_in_half_and_gives_float32(tmp_path: Path) -> None:
    network = load_unconditional_unet(saved(tmp_path, random_state(TINY)))
    x = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        full, half = network(x, 200), network.bfloat16()(x, 200)
    assert half.dtype is torch.float32
    assert 0 < (full - half).abs().max() < 0.05 * full.abs().max()


def test_loading_is_silent(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    network = load_unconditional_unet(saved(tmp_path, random_state(TINY)))
    network.network.save_pretrained(tmp_path / "folder")
    capfd.readouterr()
    load_unconditional_unet(tmp_path / "folder").half()
    network.multiply_adds((8, 8))
    assert capfd.readouterr() == ("", "")


def without(state: dict[str, Tensor], *keys: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in state.items() if key not in keys}


UNUSABLE = {
    "a tensor is missing": lambda state: without(state, "middle_block.1.qkv.bias"),
    "a telling tensor is missing": lambda state: without(state, "input_blocks.1.0.in_layers.2.weight"),
    "a tensor too many": lambda state: {**state, "extra.weight": torch.ones(1)},
    "a part too many": lambda state: {**state, "middle_block.0.extra.weight": torch.ones(1)},
    "another shape": lambda state: {**state, "out.0.weight": torch.ones(7)},
    "class-conditional": lambda state: {**state, "label_emb.weight": torch.ones(1000, 128)},
    "six channels in": lambda state: {**state, "input_blocks.0.0.weight": torch.ones(32, 6, 3, 3)},
    "time narrower than the first level": lambda state: random_state({**TINY, "multipliers": (2, 4)}),
    "heads of another width": lambda state: random_state({**TINY, "width": 24}),
    "not a state dict of this kind": lambda state: {"conv.weight": torch.ones(3, 3)},
    "empty": lambda state: {},
    "four channels out": lambda state: random_state(TINY, outputs=4),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_other_state_dicts_are_refused(tmp_path: Path, case: str) -> None:
    path = saved(tmp_path, UNUSABLE[case](random_state(TINY)))
    with pytest.raises(InputError, match="guided-diffusion") as caught:
        load_unconditional_unet(path)
    assert str(path) in caught.value.seen
    assert "\n" not in str(caught.value)


def test_missing_damaged_and_broken_checkpoints_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        load_unconditional_unet(tmp_path / "none.pt")
    (tmp_path / "half.pt").write_bytes(b"PK\x03\x04 half of it")
    with pytest.raises(InputError, match="plain tensors"):
        load_unconditional_unet(tmp_path / "half.pt")
    state = random_state(TINY)
    state["out.2.bias"][1] = torch.nan
    with pytest.raises(InputError, match=r"conv_out\.bias has NaN"):
        load_unconditional_unet(saved(tmp_path, state))


def test_other_folders_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    load_unconditional_unet(saved(tmp_path, random_state(TINY))).network.save_pretrained(folder)
    config, weights = folder / "config.json", folder / "diffusion_pytorch_model.safetensors"
    good_config, good_weights = config.read_text(), weights.read_bytes()

    def refused(match: str) -> None:
        with pytest.raises(InputError, match=match):
            load_unconditional_unet(folder)
        config.write_text(good_config)
        weights.write_bytes(good_weights)

    config.write_text("{")
    refused("Expecting property name")
    config.write_text(json.dumps({**json.loads(good_config), "_class_name": "AutoencoderKL"}))
    refused("not of a UNet2DModel")
    config.write_text(json.dumps({**json.loads(good_config), "num_class_embeds": 10}))
    refused("class-conditional")
    config.write_text(json.dumps({**json.loads(good_config), "in_channels": 1}))
    refused("conv_in")
    save_file(without(load_file(weights), "conv_in.bias"), weights)
    refused("conv_in.bias is missing")
    weights.write_bytes(good_weights[:1000])
    refused("safetensors")
    config.unlink()
    refused(r"config\.json")
    weights.unlink()
    refused("diffusion_pytorch_model")
    load_unconditional_unet(folder)


def test_without_diffusers_the_remedy_is_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def none_of_diffusers(name: str, *arguments: Any, **more: Any) -> Any:
        if name == "diffusers":
            raise ImportError("No module named 'diffusers'")
        return original(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", none_of_diffusers)
    with pytest.raises(InputError, match=r"pip install 'duskfuse\[diffusion\]'"):
        load_unconditional_unet(saved(tmp_path, random_state(TINY)))
