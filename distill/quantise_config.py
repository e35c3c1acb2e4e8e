"""The key ``quantise`` of a recipe: fine-tuning a student in the arithmetic of its INT8 file."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from duskfuse.distill.augment_config import Plain
from duskfuse.students.int8 import GOAL_DB


class QuantiseConfig(Plain):
    """Fine-tuning for INT8: the student is trained as its INT8 file computes, see `duskfuse.students.fake_quantise`."""

    samples: Annotated[int, Field(ge=8)] = 1024
    """Training samples, without faults of the cameras, from which scales are taken before the first update; they then
    stay."""
    goal: Annotated[float, Field(gt=0, allow_inf_nan=False)] = GOAL_DB
    """Where no float layers are named: so many that the worst of eight batches of these samples has this PSNR in dB
    beside the float student's before training."""
    float_layers: list[str] | None = None
    """Convolutions that stay float, as int8-drift.json of an export names them; [] is none."""
