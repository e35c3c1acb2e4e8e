"""SAM, SAM-HQ, SAM 2 and the part of SAM 3 that answers points, out of a folder saved by transformers.

Only the networks are taken from transformers. Its own mask generation is not used: in 5.23 it cannot ask fewer points
on crops than on the picture, which SAGE does, and on pictures that are not square it asks SAM 2 at wrong places (the
points are scaled as for a padded picture while the picture is stretched: on 640×480 no point falls into the lowest
quarter). It also returns no stability.

Nothing is fetched, nothing is unpickled and no code out of the folder is run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor

from duskfuse.data.errors import InputError
from duskfuse.data.images import file_sha256
from duskfuse.data.priors.sam_network import bilinear, resize_from_square

MODEL_TYPES = ("sam", "sam_hq", "sam2", "sam2_video", "sam3_tracker")
"""What may stand in ``config.json``; folders of SAM 2 say ``sam2_video`` where they track as well."""

_POINT_BYTES = 48 << 20
"""Measured on decoders of the published sizes: 32 MiB for SAM, 40 MiB for SAM 2."""
_CONFIGURATION = ("config.json", "preprocessor_config.json", "processor_config.json")
_UNREADABLE = (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError, SafetensorError)
_RULE = "a model folder of transformers holds config.json, preprocessor_config.json and *.safetensors"
_REMEDY = "download the whole repository of a SAM, SAM-HQ or SAM 2 model, such as facebook/sam-vit-base, into a folder"


class TransformersNetwork:
    """A SAM of transformers that answers points.

    Args:
        folder: where ``save_pretrained`` or a download has put it.
        device: where it computes.
        encoder_dtype: precision of the image encoder (autocast); everything after it is float32.

    Raises:
        InputError: transformers is not installed, or the folder holds no such model.
    """

    point_bytes = _POINT_BYTES

    def __init__(self, folder: Path, device: torch.device, encoder_dtype: torch.dtype = torch.float32) -> None:
        check_folder(folder)
        try:
            import transformers
        except ImportError:
            raise InputError(
                f"{folder}: a model folder of transformers, but no transformers to run it",
                rule="a folder is run by transformers",
                remedy="pip install 'duskfuse[transformers]', or give a checkpoint of segment-anything",
            ) from None
        safely = {"local_files_only": True, "trust_remote_code": False}
        library: Any = transformers
        try:
            with _quiet(library):
                self._processor = library.AutoImageProcessor.from_pretrained(folder, **safely)
                model, info = library.AutoModelForMaskGeneration.from_pretrained(
                    folder, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **safely
                )
        except _UNREADABLE as error:
            raise _unusable(folder, str(error)) from None
        if wrong := sorted([*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])]):
            raise _unusable(folder, f"{len(wrong)} tensors are missing or of another shape, such as {wrong[0]}")
        self.device, self._encoder_dtype = device, encoder_dtype
        self.model = model.eval().to(device)

    def see(self, image_rgb: NDArray[np.uint8], /) -> TransformersPicture:
        """Encode ``[H, W, 3]`` RGB."""
        inputs = self._processor(images=image_rgb, input_data_format="channels_last", return_tensors="pt")
        lower = self._encoder_dtype != torch.float32
        with torch.autocast(self.device.type, self._encoder_dtype if lower else None, enabled=lower):
            embeddings = self.model.get_image_embeddings(inputs["pixel_values"].to(self.device))
        if "reshaped_input_sizes" in inputs:
            height, width = (int(length) for length in inputs["reshaped_input_sizes"][0])
            side: int | None = self._processor.pad_size["height"]
        else:
            (height, width), side = inputs["pixel_values"].shape[-2:], None
        size = image_rgb.shape[0], image_rgb.shape[1]
        return TransformersPicture(self, _float32(embeddings), (height, width), side, size)


class TransformersPicture:
    """A picture encoded by a SAM of transformers.

    ``size`` has been brought to ``inner``: the top left of a padded square of ``side`` pixels, or where there is no
    ``side``, all of the network's input.
    """

    def __init__(
        self,
        network: TransformersNetwork,
        embeddings: Any,
        inner: tuple[int, int],
        side: int | None,
        size: tuple[int, int],
    ) -> None:
        self._network, self._inner, self._side, self._size = network, inner, side, size
        self._seen = {"image_embeddings": embeddings}
        if isinstance(embeddings, tuple):  # SAM-HQ
            self._seen = dict(zip(("image_embeddings", "intermediate_embeddings"), embeddings, strict=True))

    def ask(self, points: NDArray[np.float64], /) -> tuple[Tensor, Tensor]:
        """Answers to ``points`` ``[n, 2]`` (x, y in pixels): logits ``[n, k, h, w]`` and predicted IoU ``[n, k]``."""
        scale = self._inner[1] / self._size[1], self._inner[0] / self._size[0]
        inner = torch.as_tensor(points * scale, dtype=torch.float32, device=self._network.device)
        foreground = torch.ones(1, len(points), 1, dtype=torch.int64, device=self._network.device)
        answer = self._network.model(
            **self._seen, input_points=inner[None, :, None], input_labels=foreground, multimask_output=True
        )
        return answer.pred_masks[0].float(), answer.iou_scores[0].float()

    def full_size(self, logits: Tensor, /) -> Tensor:
        """Bring logits ``[m, h, w]`` to the size of the picture, ``[m, H, W]``."""
        if self._side is None:
            return bilinear(logits, self._size)
        return resize_from_square(logits, self._side, self._inner, self._size)


def check_folder(folder: Path) -> None:
    """Raise InputError where a folder says that it holds another model, or holds no safetensors."""
    try:
        model_type = json.loads((folder / _CONFIGURATION[0]).read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError):
        raise _unusable(folder, "config.json is missing or unreadable") from None
    if model_type not in MODEL_TYPES:
        raise _unusable(folder, f"model_type is {model_type!r}, and may be {', '.join(MODEL_TYPES)}")
    if not any(folder.glob("*.safetensors")):
        raise _unusable(folder, "no *.safetensors; weights in pickles (.bin) are not read")


def folder_sha256(folder: Path) -> str:
    """One hash of all that the model's answers depend on: its weights and its configuration."""
    paths = [folder / name for name in _CONFIGURATION if (folder / name).is_file()]
    listed = [f"{path.name}:{file_sha256(path)}" for path in (*paths, *sorted(folder.glob("*.safetensors")))]
    return hashlib.sha256("\n".join(listed).encode()).hexdigest()


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Keep transformers' progress bars and warnings off the terminal; what matters of them is checked here."""
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _float32(embeddings: Any) -> Any:
    if isinstance(embeddings, Tensor):
        return embeddings.float()
    return type(embeddings)(_float32(part) for part in embeddings)


def _unusable(folder: Path, why: str) -> InputError:
    first_line = (why.splitlines() or [""])[0][:200]
    return InputError(f"{folder}: not a usable model folder ({first_line})", rule=_RULE, remedy=_REMEDY)
