"""What is done to a sample beyond crop and flip: jitter, faults of the cameras, misalignment, dead cameras.

A sample leaves in two views (see `duskfuse.distill.context.Batch`): ``ir`` and ``vis``, which everything is compared
with, and ``degraded_ir`` and ``degraded_vis``, which the student is given. Jitter of the visible picture belongs to
both views, since all targets are made of it, unless a cached teacher picture is a target. Faults, misalignment and
dead cameras are in what the student is given alone. The faults are those of the robustness sweep, drawn anew for every
sample (`duskfuse.data.camera_faults`).

Every kind of change has random numbers of its own, so that switching one on leaves the draws of the others as they
were.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from math import ceil, cos, radians, sin, tan

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from duskfuse.data.camera_faults import (
    Picture,
    add_glare,
    add_haze,
    add_normal_noise,
    add_stripes,
    add_thermal_noise,
    darken_quickly,
    overexpose,
)
from duskfuse.data.colour import luminance
from duskfuse.distill.augment_config import AugmentConfig, InfraredFaults, Misalignment, VisibleFaults
from duskfuse.distill.ground_truth import forgotten_truth

PHOTONS = 2000
"""How many white catches before the light is dimmed; as in the robustness sweep."""
ELASTIC_SPACING = 64
"""Pixels between the points that the smooth part of a misalignment moves independently."""
GLARE_RADII = (0.02, 0.15)
"""Of a lamp's light, in parts of the picture's longer side."""


class Change(IntEnum):
    """Kinds of change; the values seed their random numbers."""

    JITTER = 11
    MISALIGNMENT = 12
    INFRARED = 13
    VISIBLE = 14
    DROPOUT = 15


Draws = Callable[[Change], np.random.Generator]
"""The random numbers of one sample for a kind of change."""


def augmented(sample: dict[str, Tensor], config: AugmentConfig, draws: Draws) -> dict[str, Tensor]:
    """A cut sample with the changes of ``config``; nothing is changed in place.

    Args:
        sample: ``ir [1, H, W]``, ``vis [3, H, W]`` in [0, 1], ``masks_ir``, ``masks_vis``, perhaps ``teacher_y`` and
            ground truth.
        config: which changes, and how strong; keys of changes that are off are not added.
        draws: random numbers of this sample.
    """
    sample = dict(sample)
    vis = sample["vis"].permute(1, 2, 0).numpy()
    if config.jitter:
        vis = jittered(vis, draws(Change.JITTER), config.jitter)
        if "teacher_y" not in sample:
            sample["vis"] = _planes(vis)
    degrades_vis = config.visible.p or config.dropout or (config.jitter and "teacher_y" in sample)
    if config.misalignment.p or config.infrared.p or config.dropout:
        sample["degraded_ir"] = torch.from_numpy(_given_infrared(sample["ir"][0].numpy(), config, draws))[None]
    if degrades_vis:
        sample["degraded_vis"] = _planes(_given_visible(vis, config.visible, draws))
    if config.dropout:
        _drop_a_camera(sample, config.dropout, draws(Change.DROPOUT))
    return sample


def jittered(vis: Picture, rng: np.random.Generator, strength: float) -> Picture:
    """Visible ``[H, W, 3]`` with gamma, brightness and balance of the channels, and contrast about the mean, varied.

    Every factor and the exponent lie between 1 / (1 + strength) and 1 + strength; the channels differ by half as much.
    """
    gamma, contrast, brightness = (1 + strength) ** rng.uniform(-1, 1, 3)
    balance = (1 + strength) ** rng.uniform(-0.5, 0.5, 3)
    toned = np.power(vis, np.float32(gamma)) * (brightness * balance).astype(np.float32)
    mean = toned.mean()
    return _clipped(mean + np.float32(contrast) * (toned - mean))


def misaligned(ir: Picture, rng: np.random.Generator, config: Misalignment) -> Picture:
    """Infrared ``[H, W]`` moved by an affine map about its centre and a smooth field; reflected where nothing is."""
    height, width = ir.shape
    most = config.shift_pixels
    shifts = (config.shift * width, config.shift * height) if most is None else (most, most)
    across, down, angle, shear, grown = rng.uniform(-1, 1, 5)
    turn, slant = radians(angle * config.rotation), tan(radians(shear * config.shear))
    rotated = np.array([[cos(turn), -sin(turn)], [sin(turn), cos(turn)]]) @ np.array([[1, slant], [0, 1]])
    matrix = rotated * (1 + grown * config.scale)
    x = np.arange(width, dtype=np.float32) - np.float32((width - 1) / 2)
    y = np.arange(height, dtype=np.float32)[:, None] - np.float32((height - 1) / 2)
    field = _smooth_field(rng, (height, width), config.elastic)
    field[..., 0] += matrix[0, 0] * x + matrix[0, 1] * y + ((width - 1) / 2 + across * shifts[0])
    field[..., 1] += matrix[1, 0] * x + matrix[1, 1] * y + ((height - 1) / 2 + down * shifts[1])
    return _clipped(cv2.remap(ir, field, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101))


def _smooth_field(rng: np.random.Generator, size: tuple[int, int], most: float) -> NDArray[np.float32]:
    """``[H, W, 2]`` displacements (x, y) in pixels: those of a coarse grid, at most ``most``, bilinear in between."""
    knots = [ceil(side / ELASTIC_SPACING) for side in size]
    coarse = rng.uniform(-most, most, (*knots, 2)).astype(np.float32)
    return np.asarray(cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_LINEAR), np.float32)


def faulty_infrared(ir: Picture, rng: np.random.Generator, faults: InfraredFaults) -> Picture:
    """Infrared ``[H, W]`` with another gain and offset, stripes and noise."""
    gain, offset = rng.uniform(-1, 1, 2) * (faults.gain, faults.offset)
    stripes, noise = rng.uniform(0, 1, 2) * (faults.stripes, faults.noise)
    ir = (1 + np.float32(gain)) * ir + np.float32(offset)
    ir = add_stripes(ir, rng, deviation=stripes) if rng.random() < 0.5 else add_stripes(ir.T, rng, deviation=stripes).T
    return _clipped(add_thermal_noise(ir, rng, deviation=noise))


def faulty_visible(vis: Picture, rng: np.random.Generator, faults: VisibleFaults) -> Picture:
    """Visible ``[H, W, 3]`` with one fault of those whose strength is not 0."""
    strengths = {kind: most for kind, most in faults.model_dump(exclude={"p"}).items() if most}
    if not strengths:
        return vis
    kind = list(strengths)[rng.integers(len(strengths))]
    strength = rng.random() * strengths[kind]
    match kind:
        case "noise":
            worse = add_normal_noise(vis, rng, photons=1 / max(2 * strength, 1e-6) ** 2, deviation=strength)
        case "darkness":
            worse = darken_quickly(vis, rng, exposure=0.5**strength, photons=PHOTONS)
        case "exposure":
            worse = overexpose(vis, rng, gain=2**strength)
        case "glare":
            worse = add_glare(vis, rng, light=strength, radius=rng.uniform(*GLARE_RADII))
        case _:
            worse = add_haze(vis, rng, density=strength)
    return _clipped(worse)


def _given_infrared(ir: Picture, config: AugmentConfig, draws: Draws) -> Picture:
    """What the student's infrared camera gives: moved first, since the faults stick to the sensor."""
    if config.misalignment.p:
        rng = draws(Change.MISALIGNMENT)
        ir = misaligned(ir, rng, config.misalignment) if rng.random() < config.misalignment.p else ir
    if config.infrared.p:
        rng = draws(Change.INFRARED)
        ir = faulty_infrared(ir, rng, config.infrared) if rng.random() < config.infrared.p else ir
    return ir


def _given_visible(vis: Picture, faults: VisibleFaults, draws: Draws) -> Picture:
    if faults.p:
        rng = draws(Change.VISIBLE)
        vis = faulty_visible(vis, rng, faults) if rng.random() < faults.p else vis
    return vis


def _drop_a_camera(sample: dict[str, Tensor], p: float, rng: np.random.Generator) -> None:
    """With probability ``p`` let one camera die, and let nothing ask for what only it could see."""
    if rng.random() >= p:
        return
    if rng.random() < 0.5:
        sample["degraded_ir"] = _dead(sample["ir"], rng)
        sample["ir"] = living = luminance(sample["vis"])
    else:
        sample["degraded_vis"] = _dead(sample["vis"], rng)
        living = sample["ir"]
        sample["vis"] = living.expand(3, -1, -1)
    if "teacher_y" in sample:
        sample["teacher_y"] = living
    # The contrastive term pushes away from the sources inside the masks: there is nothing here to be pushed from.
    for masks in ("masks_ir", "masks_vis"):
        sample[masks] = torch.zeros_like(sample[masks])
    sample |= forgotten_truth(sample)


def _dead(picture: Tensor, rng: np.random.Generator) -> Tensor:
    """What a dead camera gives, each as often: black, one grey, or noise."""
    kind = rng.integers(3)
    if kind == 2:
        return torch.from_numpy(rng.random(tuple(picture.shape), dtype=np.float32))
    return torch.full_like(picture, float(rng.random()) if kind else 0.0)


def _planes(vis: Picture) -> Tensor:
    """``[H, W, 3]`` as ``[3, H, W]``."""
    return torch.from_numpy(np.ascontiguousarray(vis.transpose(2, 0, 1)))


def _clipped(picture: NDArray[np.floating]) -> Picture:
    return np.asarray(np.clip(picture, 0, 1), np.float32)
