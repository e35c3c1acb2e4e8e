"""Quantisation-aware fine-tuning: a run's student as its INT8 file computes, made ready before the first update."""

from __future__ import annotations

import torch
from torch import nn

from duskfuse.data.colour import luminance
from duskfuse.data.errors import InputError
from duskfuse.data.fuser import Colour
from duskfuse.data.progress import say
from duskfuse.distill.dataset import TrainingPairs
from duskfuse.distill.quantise_config import QuantiseConfig
from duskfuse.students.fake_quantise import QuantisedStudent
from duskfuse.students.int8 import prepare_int8
from duskfuse.students.int8_drift import Source

_TOGETHER = 8
"""Samples that the student sees at once."""
_TRIALS = 8
"""Batches that decide which layers stay float."""


def make_ready(student: nn.Module, dataset: TrainingPairs, config: QuantiseConfig) -> None:
    """Give a quantised student its scales, which a student that was loaded from a checkpoint has already.

    Raises InputError for float layers that it does not have.
    """
    assert isinstance(student, QuantisedStudent)
    if student.scales:
        return
    if unknown := set(config.float_layers or ()) - student.layers.keys():
        raise InputError(
            f"quantise.float_layers names {', '.join(sorted(unknown))}",
            rule=f"the convolutions of this student are {', '.join(student.layers)}",
            remedy="correct the names, or leave quantise.float_layers out",
        )
    student.eval()
    sources = _sources(student, dataset, config.samples)
    drift = prepare_int8(student, sources, sources[:_TRIALS], config.goal, config.float_layers)
    kept = f", float: {', '.join(drift.float_layers)}" if drift.float_layers else ""
    say(f"INT8 before fine-tuning: {drift.mean_db:.1f} dB, at worst {drift.worst_db:.1f} dB{kept}")


def _sources(student: QuantisedStudent, dataset: TrainingPairs, count: int) -> list[Source]:
    """The first samples of the run in batches, on the student's device."""
    device = next(student.parameters()).device
    batches = []
    for first in range(0, count, _TOGETHER):
        samples = [dataset[number] for number in range(first, min(first + _TOGETHER, count))]
        vis, ir = (torch.stack([sample[key] for sample in samples]).to(device) for key in ("vis", "ir"))
        batches.append((vis if student.colour == Colour.RGB else luminance(vis), ir))
    return batches
