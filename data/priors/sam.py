"""Masks by the Segment Anything Model: its automatic generator over any checkpoint of the original architecture.

The network is built from the shapes in the checkpoint, so that ViT-B, -L, -H and distilled ones of the same layout all
load without being named. segment-anything and torchvision are imported when a checkpoint is opened, not before.
"""

from __future__ import annotations

import re
import sys
import urllib.error
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from duskfuse.data.errors import InputError
from duskfuse.data.images import file_sha256
from duskfuse.data.priors.cache import JsonValue, home
from duskfuse.data.priors.masks import KEPT_MASKS, MaskSet
from duskfuse.data.progress import say
from duskfuse.data.weights import read_state_dict

if TYPE_CHECKING:
    from segment_anything.automatic_mask_generator import SamAutomaticMaskGenerator
    from segment_anything.modeling import Sam

_DECODER_HEADS = 8
"""Attention heads of SAM's mask decoder; the one number that no tensor's shape tells."""

_RULE = "a SAM checkpoint holds the state dict of segment-anything's image encoder, prompt encoder and mask decoder"
_REMEDY = "give sam_vit_b_01ec64.pth, sam_vit_l_0b3195.pth, sam_vit_h_4b8939.pth or one of the same layout"


class SamModel(StrEnum):
    """The published checkpoints."""

    VIT_B = "vit_b"
    VIT_L = "vit_l"
    VIT_H = "vit_h"


@dataclass(frozen=True)
class _Published:
    file: str
    sha256: str

    @property
    def url(self) -> str:
        return f"https://dl.fbaipublicfiles.com/segment_anything/{self.file}"


PUBLISHED = {
    SamModel.VIT_B: _Published(
        "sam_vit_b_01ec64.pth", "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912"
    ),
    SamModel.VIT_L: _Published(
        "sam_vit_l_0b3195.pth", "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622"
    ),
    SamModel.VIT_H: _Published(
        "sam_vit_h_4b8939.pth", "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e"
    ),
}
"""Files and hashes of the published checkpoints (the digits in the file names are their MD5)."""


class SamPreset(StrEnum):
    """How densely the automatic generator asks for masks."""

    FAST = "fast"
    """1,024 points, no crops."""
    PAPER = "paper"
    """SAGE: 16,384 points on the picture and 4,096 on each of four crops."""


@dataclass(frozen=True)
class SamSettings:
    """Arguments of segment-anything's automatic mask generator."""

    points_per_side: int
    crop_n_layers: int
    crop_n_points_downscale_factor: int = 2
    pred_iou_thresh: float = 0.86
    stability_score_thresh: float = 0.92
    min_mask_region_area: int = 100


PRESETS = {
    SamPreset.FAST: SamSettings(points_per_side=32, crop_n_layers=0),
    SamPreset.PAPER: SamSettings(points_per_side=128, crop_n_layers=1),
}


class SamMasks:
    """Mask source ``sam``: the 20 largest automatic masks, on the GPU where there is one.

    Args:
        checkpoint: state dict of a SAM; see :func:`load_sam`.
        settings: one of `PRESETS`.
    """

    name = "sam"

    def __init__(self, checkpoint: Path, settings: SamSettings) -> None:
        self._settings = settings
        self._sha256 = file_sha256(checkpoint)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._generator = _generator(load_sam(checkpoint).to(device), settings)

    @property
    def settings(self) -> dict[str, JsonValue]:
        """What the masks depend on."""
        return {**asdict(self._settings), "checkpoint_sha256": self._sha256, "keep": KEPT_MASKS, "revision": 1}

    def masks(self, image_rgb: NDArray[np.uint8], /) -> MaskSet:
        """Find the masks of ``[H, W, 3]`` RGB; infrared has three equal channels."""
        records = sorted(self._generator.generate(image_rgb), key=lambda record: -record["area"])[:KEPT_MASKS]
        planes = np.array([record["segmentation"] for record in records], bool)
        return MaskSet.from_masks(
            planes.reshape(-1, *image_rgb.shape[:2]),
            predicted_iou=[record["predicted_iou"] for record in records],
            stability=[record["stability_score"] for record in records],
        )


def load_sam(checkpoint: Path) -> Sam:
    """Build the SAM that a checkpoint describes, with its weights, on the CPU, in evaluation mode.

    Raises:
        InputError: no file, not a state dict of plain tensors, or one whose keys or shapes are not SAM's.
    """
    state = read_state_dict(checkpoint, rule=_RULE, remedy=_REMEDY)
    try:
        sam = _build(state)
        sam.load_state_dict(state)
    except (KeyError, IndexError, ValueError, ZeroDivisionError, RuntimeError, AssertionError) as error:
        raise InputError(
            f"{checkpoint}: not a SAM checkpoint ({str(error).splitlines()[0][:200]})", rule=_RULE, remedy=_REMEDY
        ) from None
    return sam.eval()


def downloaded_checkpoint() -> Path | None:
    """The smallest published checkpoint that is in the weights folder, None where there is none."""
    paths = (_weights_folder() / PUBLISHED[model].file for model in SamModel)
    return next((path for path in paths if path.is_file()), None)


def fetch_checkpoint(model: SamModel) -> Path:
    """Path of a published checkpoint, downloaded into ``$DUSKFUSE_HOME/weights`` unless it is there already.

    Raises:
        InputError: it cannot be downloaded, or what came is not the published file.
    """
    published = PUBLISHED[model]
    path = _weights_folder() / published.file
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    say(f"downloading {published.url} to {path}")
    try:
        torch.hub.download_url_to_file(published.url, str(path), published.sha256, progress=sys.stderr.isatty())
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        raise InputError(
            f"{published.url}: cannot be downloaded ({error})",
            rule=f"the checkpoint's sha256 is {published.sha256}",
            remedy=f"download it elsewhere and put it at {path}",
        ) from None
    return path


def _weights_folder() -> Path:
    return home() / "weights"


def _build(state: Mapping[str, Tensor]) -> Sam:
    """A SAM of random weights with the shapes of ``state``; ``KeyError`` where a telling tensor is missing."""
    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    embed_dim, _, patch, _ = state["image_encoder.patch_embed.proj.weight"].shape
    grid = state["image_encoder.pos_embed"].shape[1]
    blocks = "image_encoder.blocks"
    reach = [state[f"{blocks}.{i}.attn.rel_pos_h"].shape for i in range(_count(state, blocks))]
    windows = {(length + 1) // 2 for length, _ in reach} - {grid}
    prompt_dim = state["prompt_encoder.no_mask_embed.weight"].shape[1]
    decoder = "mask_decoder.transformer.layers"
    iou_head = "mask_decoder.iou_prediction_head.layers"
    return Sam(
        image_encoder=ImageEncoderViT(
            depth=len(reach),
            embed_dim=embed_dim,
            img_size=grid * patch,
            mlp_ratio=state[f"{blocks}.0.mlp.lin1.weight"].shape[0] / embed_dim,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            num_heads=embed_dim // reach[0][1],
            patch_size=patch,
            qkv_bias=True,
            use_rel_pos=True,
            global_attn_indexes=tuple(i for i, (length, _) in enumerate(reach) if (length + 1) // 2 == grid),
            window_size=windows.pop() if windows else 0,
            out_chans=state["image_encoder.neck.0.weight"].shape[0],
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=prompt_dim,
            image_embedding_size=(grid, grid),
            input_image_size=(grid * patch, grid * patch),
            mask_in_chans=state["prompt_encoder.mask_downscaling.3.weight"].shape[0],
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=state["mask_decoder.mask_tokens.weight"].shape[0] - 1,
            transformer=TwoWayTransformer(
                depth=_count(state, decoder),
                embedding_dim=prompt_dim,
                mlp_dim=state[f"{decoder}.0.mlp.lin1.weight"].shape[0],
                num_heads=_DECODER_HEADS,
            ),
            transformer_dim=prompt_dim,
            iou_head_depth=_count(state, iou_head),
            iou_head_hidden_dim=state[f"{iou_head}.0.weight"].shape[0],
        ),
    )


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    """How many numbered modules there are below ``prefix``."""
    numbered = re.compile(re.escape(prefix) + r"\.(\d+)\.")
    return len({found[1] for key in state if (found := numbered.match(key))})


def _generator(sam: Sam, settings: SamSettings) -> SamAutomaticMaskGenerator:
    from segment_anything.automatic_mask_generator import SamAutomaticMaskGenerator
    from segment_anything.utils.amg import MaskData

    class Generator(SamAutomaticMaskGenerator):  # type: ignore[misc]
        """segment-anything's generator without its two crashes on unusual pictures."""

        def _generate_masks(self, image: NDArray[np.uint8]) -> MaskData:
            # its batched_nms mixes CPU and GPU indices once more than 25,000 masks are found
            with self.predictor.device:
                return super()._generate_masks(image)

        def _process_crop(self, *arguments: Any) -> MaskData:
            # a crop without masks has crop boxes of shape [0] instead of [0, 4]
            found = super()._process_crop(*arguments)
            found["crop_boxes"] = found["crop_boxes"].reshape(-1, 4)
            return found

    return Generator(sam, **asdict(settings))
