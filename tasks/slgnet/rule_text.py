"""What rules say about the pictures that a network is shown, as vectors that the network keeps with its weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from duskfuse.tasks.slgnet.caption_rules import captions_of, every_text, picture_statistics
from duskfuse.tasks.slgnet.text_encoders import TextEncoder


class RuleText(nn.Module):
    """From pictures to the vectors of `captions_of`: the few texts of the rules are encoded once, in the beginning.

    So a network with captions by rules needs no text encoder where it is used, and can be asked about any picture.

    Args:
        width: numbers per text.
    """

    vectors: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self._rows = {text: row for row, text in enumerate(every_text())}
        self.register_buffer("vectors", torch.zeros(len(self._rows), width))

    def encode(self, encoder: TextEncoder) -> None:
        """Make the vectors with an encoder of the same width."""
        self.vectors.copy_(encoder.encode(list(self._rows)))

    @torch.no_grad()
    def forward(self, visible: Tensor, infrared: Tensor) -> Tensor:
        """``[B, 4, width]`` of RGB ``[B, 3, H, W]`` and infrared ``[B, 1, H, W]``; zeros where nothing is said."""
        with torch.autocast(visible.device.type, enabled=False):
            pairs = zip(visible.float(), infrared.float(), strict=True)
            said = [captions_of(picture_statistics(*pair)).texts for pair in pairs]
        nothing = len(self._rows)
        rows = torch.tensor([[self._rows.get(text, nothing) for text in texts] for texts in said])
        return nn.functional.pad(self.vectors, (0, 0, 0, 1))[rows.to(self.vectors.device)]
