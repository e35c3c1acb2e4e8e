"""SAM as a mask source: the real segment-anything classes around a tiny network of random weights."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from segment_anything import SamAutomaticMaskGenerator
from tiny_sam import discs, tiny_sam

from duskfuse.data.errors import InputError
from duskfuse.data.priors import sam_checkpoint
from duskfuse.data.priors.sam import (
    PRESETS,
    PUBLISHED,
    SamMasks,
    SamModel,
    SamPreset,
    SamSettings,
    fetch_checkpoint,
    load_sam,
)
from duskfuse.data.priors.sources import MaskSourceName, open_mask_source

EASY = SamSettings(points_per_side=4, crop_n_layers=0, pred_iou_thresh=-99.0, stability_score_thresh=0.0)
"""A network of random weights thinks little of its masks."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sam") / "any_name.pth"
    torch.save(tiny_sam().state_dict(), path)
    return path


def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)


@pytest.mark.parametrize(("window", "global_blocks", "depth"), [(2, (1,), 2), (3, (0, 2), 4), (0, (), 1)])
def test_the_network_is_rebuilt_from_its_shapes(
    tmp_path: Path, window: int, global_blocks: tuple[int, ...], depth: int
):
    original = tiny_sam(window=window, global_blocks=global_blocks, depth=depth)
    torch.save(original.state_dict(), tmp_path / "sam.pth")
    rebuilt = load_sam(tmp_path / "sam.pth")
    assert not rebuilt.training
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(rebuilt.image_encoder(x), original.image_encoder(x))
    inputs = [{"image": x[0] * 255, "original_size": (64, 64), "point_coords": torch.tensor([[[9.0, 30.0]]]),
               "point_labels": torch.ones(1, 1)}]  # fmt: skip
    for key in ("low_res_logits", "iou_predictions"):
        assert torch.equal(rebuilt(inputs, True)[0][key], original(inputs, True)[0][key])


@pytest.mark.parametrize(
    ("builder", "blocks", "width", "heads", "everywhere"),
    [("vit_b", 12, 768, 12, (2, 5, 8, 11)), ("vit_h", 32, 1280, 16, (7, 15, 23, 31))],
)
def test_the_published_sizes_are_recognised(
    builder: str, blocks: int, width: int, heads: int, everywhere: tuple[int, ...]
):
    from segment_anything import sam_model_registry

    with torch.device("meta"):
        state = sam_model_registry[builder]().state_dict()
        encoder = sam_checkpoint._vit(state)
        rebuilt = sam_checkpoint._around(encoder, 64, state)
    assert {key: value.shape for key, value in rebuilt.state_dict().items()} == {k: v.shape for k, v in state.items()}
    assert (len(encoder.blocks), encoder.pos_embed.shape[-1], encoder.img_size) == (blocks, width, 1024)
    assert encoder.blocks[0].attn.num_heads == heads
    assert tuple(i for i, block in enumerate(encoder.blocks) if block.window_size == 0) == everywhere
    assert {block.window_size for block in encoder.blocks} == {0, 14}


def test_the_real_generator_makes_masks(checkpoint: Path):
    masks = SamMasks(checkpoint, EASY).masks(picture())
    assert 0 < len(masks) <= 20
    assert (masks.height, masks.width) == (48, 64)
    assert (np.diff(masks.area) <= 0).all()
    assert np.isfinite(masks.predicted_iou).all()
    assert np.isfinite(masks.stability).all()
    assert np.array_equal(masks.decode().sum((1, 2)), masks.area)
    assert SamMasks(checkpoint, EASY).masks(picture()).bits == masks.bits


@pytest.mark.parametrize("crops", [0, 1])
def test_the_outcome_is_that_of_segment_anything(crops: int, tmp_path: Path):
    """All parts real; masks of random weights are few and ragged, so that rounding may move a pixel of 1,000."""
    sam = tiny_sam(128)
    with torch.no_grad():
        for parameter in sam.mask_decoder.output_hypernetworks_mlps.parameters():
            parameter.mul_(4)  # logits of random weights are smaller than the offset of the stability score
    torch.save(sam.state_dict(), tmp_path / "sam.pth")
    settings = replace(EASY, points_per_side=12, crop_n_layers=crops, stability_score_thresh=0.5)
    records = SamAutomaticMaskGenerator(sam, **asdict(settings)).generate(discs())
    records.sort(key=lambda record: -record["area"])
    masks = SamMasks(tmp_path / "sam.pth", settings).masks(discs())
    assert len(masks) == len(records) > 0
    for mask, record in zip(masks.decode(), records, strict=True):
        wanted = record["segmentation"]
        assert (mask & wanted).sum() / (mask | wanted).sum() >= 0.999
    np.testing.assert_allclose(masks.predicted_iou, [record["predicted_iou"] for record in records], rtol=1e-4)
    np.testing.assert_allclose(masks.stability, [record["stability_score"] for record in records], atol=1e-3)


def test_crops_and_pictures_without_masks(checkpoint: Path):
    crops = SamSettings(points_per_side=4, crop_n_layers=1, pred_iou_thresh=-99.0, stability_score_thresh=0.0)
    assert len(SamMasks(checkpoint, crops).masks(picture())) > 0
    strict = SamSettings(points_per_side=4, crop_n_layers=1, pred_iou_thresh=99.0)
    nothing = SamMasks(checkpoint, strict).masks(picture())
    assert (len(nothing), nothing.height, nothing.width) == (0, 48, 64)


def test_settings_name_checkpoint_and_preset(checkpoint: Path, tmp_path: Path):
    other = tmp_path / "other.pth"
    torch.save(tiny_sam(image_size=32).state_dict(), other)
    settings = SamMasks(checkpoint, EASY).settings
    assert (settings["keep"], settings["encoder_precision"]) == (20, "float32")
    assert SamMasks(checkpoint, EASY, keep=5).settings != settings
    assert settings["checkpoint_sha256"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert settings["points_per_side"] == 4
    assert SamMasks(other, EASY).settings != settings
    paper = PRESETS[SamPreset.PAPER]
    assert (paper.points_per_side, paper.pred_iou_thresh, paper.stability_score_thresh) == (128, 0.86, 0.92)
    assert (paper.crop_n_layers, paper.crop_n_points_downscale_factor, paper.min_mask_region_area) == (1, 2, 100)


def test_opened_by_name(checkpoint: Path):
    settings = open_mask_source(MaskSourceName.SAM, checkpoint, keep=4).settings
    assert (settings["points_per_side"], settings["keep"]) == (32, 4)


def test_bad_checkpoints_are_refused(tmp_path: Path):
    path = tmp_path / "bad.pth"
    with pytest.raises(InputError, match="no such file"):
        load_sam(path)
    state = tiny_sam().state_dict()
    for content in (
        {"weight": torch.zeros(3)},
        {key: value for key, value in state.items() if key != "image_encoder.neck.1.bias"},
        {**state, "extra": torch.zeros(1)},
        {"model": state},
        [1, 2],
    ):
        torch.save(content, path)
        with pytest.raises(InputError, match=r"bad\.pth"):
            load_sam(path)
    torch.save(state, path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(InputError, match="plain tensors"):
        load_sam(path)


class Intruder:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("intruded"),))


def test_a_checkpoint_cannot_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"image_encoder": Intruder()}, tmp_path / "evil.pth")
    with pytest.raises(InputError, match="plain tensors"):
        load_sam(tmp_path / "evil.pth")
    assert not (tmp_path / "intruded").exists()


def test_a_downloaded_checkpoint_is_used_again_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DUSKFUSE_HOME", str(tmp_path))
    served = tmp_path / "served.pth"
    torch.save(tiny_sam().state_dict(), served)
    digest = hashlib.sha256(served.read_bytes()).hexdigest()
    local = type("Local", (), {"file": "sam.pth", "sha256": digest, "url": served.as_uri()})
    monkeypatch.setitem(PUBLISHED, SamModel.VIT_B, local)
    path = fetch_checkpoint(SamModel.VIT_B)
    assert path == tmp_path / "weights" / "sam.pth"
    served.unlink()
    assert fetch_checkpoint(SamModel.VIT_B) == path
    assert len(SamMasks(path, EASY).masks(picture())) > 0


def test_a_download_that_fails_or_differs_says_where_to_put_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DUSKFUSE_HOME", str(tmp_path))
    served = tmp_path / "served.pth"
    served.write_bytes(b"not the published file")
    for url in (served.as_uri(), (tmp_path / "absent").as_uri()):
        local = type("Local", (), {"file": "sam.pth", "sha256": "0" * 64, "url": url})
        monkeypatch.setitem(PUBLISHED, SamModel.VIT_B, local)
        with pytest.raises(InputError) as caught:
            fetch_checkpoint(SamModel.VIT_B)
        assert url in str(caught.value)
        assert str(tmp_path / "weights" / "sam.pth") in caught.value.remedy
        assert list((tmp_path / "weights").iterdir()) == []
