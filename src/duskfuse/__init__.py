"""duskfuse: an infrared and a visible camera become one picture, in real time, on a small device."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from duskfuse.export.fusion_model import FusionModel

__version__ = "0.1.0"


def load(model: str | Path = "edge", device: str | torch.device = "cpu") -> FusionModel:
    """Open a packaged student by name, or a student's checkpoint: ``load("edge").fuse(ir, vis)``.

    See `duskfuse.export.fusion_model`.
    """
    from duskfuse.export import fusion_model  # torch takes seconds to import

    return fusion_model.load(model, device)
