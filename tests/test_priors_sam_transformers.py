"""SAM, SAM-HQ and SAM 2 out of folders of transformers: the real classes with tiny random weights."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_sam import discs

from duskfuse.data.errors import InputError
from duskfuse.data.priors.automatic_masks import AutomaticMasks, SamSettings
from duskfuse.data.priors.sam import SamMasks
from duskfuse.data.priors.sam_transformers import TransformersNetwork, folder_sha256
from duskfuse.data.priors.sources import MaskSourceName, open_mask_source

transformers: Any = pytest.importorskip("transformers")

CPU = torch.device("cpu")
EASY = SamSettings(points_per_side=6, crop_n_layers=0, pred_iou_thresh=-99.0, stability_score_thresh=0.0)
MODELS = ("sam", "sam_hq", "sam2", *(["sam3_tracker"] if hasattr(transformers, "Sam3TrackerModel") else []))
SIDE = 64


def padded_processor() -> Any:
    return transformers.SamImageProcessor(
        size={"longest_edge": SIDE}, pad_size={"height": SIDE, "width": SIDE},
        mask_size={"longest_edge": 16}, mask_pad_size={"height": 16, "width": 16},
    )  # fmt: skip


def sam() -> tuple[Any, Any]:
    config = transformers.SamConfig(
        vision_config={
            "hidden_size": 24, "output_channels": 16, "num_hidden_layers": 2, "num_attention_heads": 3, "mlp_dim": 48,
            "image_size": SIDE, "window_size": 2, "global_attn_indexes": [1], "num_pos_feats": 8,
        },
        prompt_encoder_config={"hidden_size": 16, "image_size": SIDE, "mask_input_channels": 8},
        mask_decoder_config={"hidden_size": 16, "mlp_dim": 24, "iou_head_hidden_dim": 12},
    )  # fmt: skip
    return transformers.SamModel(config), padded_processor()


def sam_hq() -> tuple[Any, Any]:
    config = transformers.SamHQConfig(
        vision_config={
            "hidden_size": 24, "output_channels": 16, "num_hidden_layers": 2, "num_attention_heads": 3, "mlp_dim": 48,
            "image_size": SIDE, "window_size": 2, "global_attn_indexes": [1], "num_pos_feats": 8,
        },
        prompt_encoder_config={"hidden_size": 16, "image_size": SIDE, "mask_input_channels": 8},
        mask_decoder_config={"hidden_size": 16, "mlp_dim": 24, "iou_head_hidden_dim": 12, "vit_dim": 24},
    )  # fmt: skip
    return transformers.SamHQModel(config), padded_processor()


def sam2() -> tuple[Any, Any]:
    config = transformers.Sam2Config(
        vision_config={
            "backbone_config": {
                "model_type": "sam2_hiera_det_model", "hidden_size": 12, "image_size": [SIDE, SIDE],
                "blocks_per_stage": [1, 1, 2, 1], "embed_dim_per_stage": [12, 24, 48, 96],
                "num_attention_heads_per_stage": [1, 2, 4, 8], "window_size_per_stage": [4, 2, 4, 2],
                "global_attention_blocks": [3], "window_positional_embedding_background_size": [2, 2],
            },
            "backbone_channel_list": [96, 48, 24, 12], "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
            "fpn_hidden_size": 16,
        },
        prompt_encoder_config={"hidden_size": 16, "image_size": SIDE, "mask_input_channels": 8},
        mask_decoder_config={"hidden_size": 16, "mlp_dim": 24, "iou_head_hidden_dim": 12},
    )  # fmt: skip
    size = {"height": SIDE, "width": SIDE}
    return transformers.Sam2Model(config), transformers.Sam2ImageProcessor(size=size, mask_size=size)


def sam3_tracker() -> tuple[Any, Any]:
    config = transformers.Sam3TrackerConfig(
        vision_config={
            "model_type": "sam3_vision_model",
            "backbone_config": {
                "model_type": "sam3_vit_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
                "num_attention_heads": 4, "image_size": 56, "patch_size": 14, "window_size": 2,
                "global_attn_indexes": [1], "pretrain_image_size": 28,
            },
            "fpn_hidden_size": 16, "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
        },
        prompt_encoder_config={"hidden_size": 16, "image_size": 56, "patch_size": 14, "mask_input_channels": 8},
        mask_decoder_config={"hidden_size": 16, "mlp_dim": 24, "iou_head_hidden_dim": 12},
    )  # fmt: skip
    size = {"height": 56, "width": 56}
    return transformers.Sam3TrackerModel(config), transformers.Sam3ImageProcessor(size=size, mask_size=size)


MAKERS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "sam": sam,
    "sam_hq": sam_hq,
    "sam2": sam2,
    "sam3_tracker": sam3_tracker,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    for name in MODELS:
        torch.manual_seed(0)
        model, processor = MAKERS[name]()
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if "hypernetworks" in key or "upscale_conv" in key:
                    parameter.mul_(20)  # logits far from 0, so that rounding moves no pixel
        model.save_pretrained(root / name)
        processor.save_pretrained(root / name)
    return {name: root / name for name in MODELS}


@pytest.fixture
def folder(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the SAM that may be damaged."""
    return Path(shutil.copytree(folders["sam"], tmp_path / "model"))


def by_pipeline(folder: Path, picture: np.ndarray, settings: SamSettings) -> list[tuple[np.ndarray, float]]:
    """transformers' own mask generation, right for square pictures without crops; largest first."""
    from PIL import Image

    generate = transformers.pipeline("mask-generation", model=str(folder), device="cpu")
    found = generate(
        Image.fromarray(picture), points_per_batch=64, points_per_crop=settings.points_per_side,
        pred_iou_thresh=settings.pred_iou_thresh, stability_score_thresh=settings.stability_score_thresh,
    )  # fmt: skip
    masks = [(np.asarray(mask), float(score)) for mask, score in zip(found["masks"], found["scores"], strict=True)]
    return sorted((pair for pair in masks if pair[0].any()), key=lambda pair: -int(pair[0].sum()))


@pytest.mark.parametrize("name", MODELS)
def test_the_outcome_on_a_square_picture_is_that_of_the_pipeline(folders: dict[str, Path], name: str):
    picture = discs(80, 80)
    settings = replace(EASY, min_mask_region_area=0)
    wanted = by_pipeline(folders[name], picture, settings)
    masks = AutomaticMasks(TransformersNetwork(folders[name], CPU), settings, keep=1000)(picture)
    assert len(masks) == len(wanted) > 0
    for mask, score, (plane, wanted_score) in zip(masks.decode(), masks.predicted_iou, wanted, strict=True):
        assert (mask & plane).sum() / (mask | plane).sum() > 0.999  # where rounding flips a logit near 0
        assert score == pytest.approx(wanted_score, abs=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_points_and_masks_are_in_the_pixels_of_the_picture(folders: dict[str, Path], name: str):
    """One point on a picture that is not square, asked the published way: processor, model, processor."""
    network, picture = TransformersNetwork(folders[name], CPU), discs(60, 90)
    class_name = {"sam": "Sam", "sam_hq": "SamHQ", "sam2": "Sam2", "sam3_tracker": "Sam3Tracker"}[name]
    processor = getattr(transformers, f"{class_name}Processor")(MAKERS[name]()[1])
    point = [70.0, 45.0]
    nested = [[point]] if name in ("sam", "sam_hq") else [[[point]]]
    inputs = processor(images=picture, input_points=nested, return_tensors="pt")
    with torch.inference_mode():
        answer = network.model(**inputs, multimask_output=True)
        shapes = {key: inputs[key] for key in ("reshaped_input_sizes",) if key in inputs}
        (wanted,) = processor.image_processor.post_process_masks(
            answer.pred_masks, inputs["original_sizes"], binarize=False, **shapes
        )
        seen = network.see(picture)
        logits, scores = seen.ask(np.array([point]))
        mine = seen.full_size(logits[0])
    torch.testing.assert_close(mine, wanted[0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(scores, answer.iou_scores[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_the_preset_of_the_paper_has_crops_with_fewer_points(folders: dict[str, Path], name: str):
    source = SamMasks(folders[name], replace(EASY, crop_n_layers=1), keep=5)
    masks = source.masks(discs())
    assert 0 < len(masks) <= 5
    assert (masks.height, masks.width) == (96, 128)
    assert np.isfinite(masks.stability).all()
    assert source.masks(discs()).bits == masks.bits


def test_a_folder_is_opened_as_the_source_sam(folders: dict[str, Path]):
    source = open_mask_source(MaskSourceName.SAM, folders["sam2"], "paper", keep=3)
    assert source.name == "sam"
    assert source.settings["folder_sha256"] == folder_sha256(folders["sam2"])
    assert (source.settings["keep"], source.settings["points_per_side"]) == (3, 128)


def test_settings_change_with_weights_and_configuration(folder: Path):
    digests = [folder_sha256(folder)]
    for name in ("model.safetensors", "preprocessor_config.json"):
        data = bytearray((folder / name).read_bytes())
        data[-2] ^= 1
        (folder / name).write_bytes(data)
        digests.append(folder_sha256(folder))
    (folder / "README.md").write_text("not what the masks depend on")
    digests.append(folder_sha256(folder))
    assert len(set(digests)) == 3
    assert digests[-1] == digests[-2]


def test_sam_2_saved_for_video_loads(folders: dict[str, Path], tmp_path: Path):
    folder = Path(shutil.copytree(folders["sam2"], tmp_path / "video"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "sam2_video"}))
    picture = discs()
    masks = SamMasks(folder, EASY).masks(picture)
    assert masks.bits == SamMasks(folders["sam2"], EASY).masks(picture).bits


def test_unusable_folders_are_refused(folder: Path, capfd: pytest.CaptureFixture[str]):
    def refused(match: str) -> None:
        with pytest.raises(InputError, match=match):
            SamMasks(folder, EASY)

    config = json.loads((folder / "config.json").read_text())
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-1000])
    refused("not a usable model folder")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    refused("pickles")
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "preprocessor_config.json").unlink()
    refused("not a usable model folder")
    padded_processor().save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "bert"}))
    refused("model_type is 'bert'")
    (folder / "config.json").write_text("{")
    refused("config.json")
    (folder / "config.json").write_text(json.dumps(config))
    SamMasks(folder, EASY)
    assert capfd.readouterr().err == ""


def test_missing_tensors_are_not_made_up(folder: Path):
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    del state["mask_decoder.iou_token.weight"]
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"mask_decoder\.iou_token\.weight"):
        SamMasks(folder, EASY)


def test_code_in_a_folder_is_not_run(folder: Path, tmp_path: Path):
    config = json.loads((folder / "config.json").read_text())
    code = f"import pathlib\npathlib.Path({str(tmp_path / 'intruded')!r}).touch()\nclass Intruder: pass\n"
    (folder / "intruder.py").write_text(code)
    config["auto_map"] = {"AutoConfig": "intruder.Intruder", "AutoModelForMaskGeneration": "intruder.Intruder"}
    (folder / "config.json").write_text(json.dumps(config))
    SamMasks(folder, EASY)
    assert not (tmp_path / "intruded").exists()


def test_without_transformers_the_extra_is_named(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError) as caught:
        SamMasks(folders["sam"], EASY)
    assert "duskfuse[transformers]" in caught.value.remedy
