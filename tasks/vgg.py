"""VGG-16 up to relu4_3: the network through which the perceptual loss looks (Johnson et al. 2016).

Only the convolutions are built; a checkpoint of the whole classifier is read as well as one of them alone.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from duskfuse.data.errors import InputError
from duskfuse.data.weights import read_state_dict
from duskfuse.tasks.encoders import IMAGENET_MEAN, IMAGENET_STD, FeatureEncoder

_POOL = 0
_WIDTHS = (64, 64, _POOL, 128, 128, _POOL, 256, 256, 256, _POOL, 512, 512, 512)
_RULE = "the file holds the features.* weights of torchvision's vgg16"


class Vgg16Encoder(FeatureEncoder):
    """Four maps of 64, 128, 256 and 512 channels: relu1_2, relu2_2, relu3_3 and relu4_3, at strides 1, 2, 4 and 8."""

    TAPS = (3, 8, 15, 22)
    """Positions in ``features``, numbered as in torchvision."""

    def __init__(self) -> None:
        super().__init__(IMAGENET_MEAN, IMAGENET_STD)
        layers: list[nn.Module] = []
        inputs = 3
        for width in _WIDTHS:
            if width == _POOL:
                layers.append(nn.MaxPool2d(2))
            else:
                layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU()]
                inputs = width
        self.features = nn.Sequential(*layers)

    def layers(self, image: Tensor) -> list[Tensor]:
        """Maps of a normalised picture of at least 8 pixels a side."""
        maps = []
        for position, module in enumerate(self.features):
            image = module(image)
            if position in self.TAPS:
                maps.append(image)
        return maps


def vgg_encoder(weights: Path | None = None) -> FeatureEncoder:
    """VGG-16 with weights from a safetensors file or a state dict, or torchvision's own (528 MB) with their checksum.

    Raises InputError when the file is another one, and when torchvision's weights cannot be fetched.
    """
    state = _torchvision_state() if weights is None else read_state_dict(weights, rule=_RULE, remedy="give that file")
    encoder = Vgg16Encoder()
    wanted = [key for key in encoder.state_dict() if key.startswith("features.")]
    wrong = [key for key in wanted if key not in state or state[key].shape != encoder.state_dict()[key].shape]
    if wrong:
        raise InputError(
            f"{weights}: {len(wrong)} of {len(wanted)} weights are missing or of another shape, {wrong[0]} first",
            rule=_RULE,
            remedy="give that file",
        )
    encoder.load_state_dict({key: state[key] for key in wanted}, strict=False)
    return encoder.freeze()


def _torchvision_state() -> dict[str, Tensor]:
    from torchvision.models import VGG16_Weights

    try:
        state: dict[str, Tensor] = VGG16_Weights.IMAGENET1K_V1.get_state_dict(
            progress=False, check_hash=True, weights_only=True
        )
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"the VGG-16 weights could not be fetched ({error})",
            remedy="give a file: --set perceptual.weights=vgg16.safetensors",
        ) from None
    return state
