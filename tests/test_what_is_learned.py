"""What short trainings on built-in scenes teach: the main network to look at its regions, the student to follow it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from duskfuse.data.scenes.scene import render_scene
from duskfuse.distill.context import Batch, source_patches
from duskfuse.distill.engine import Engine
from duskfuse.distill.recipe import Owner
from duskfuse.distill.recipe_files import load_recipe
from duskfuse.students.unet import UNetStudent
from duskfuse.teachers.main_network import MainNetwork

CPU = torch.device("cpu")
PRETRAINING, STUDENT_UPDATES = 60, 60
SIZE = 96, 128
"""Scenes are drawn at this size, then reduced four times, so that the smallest things are smooth."""


def scenes(seeds: range) -> Batch:
    """Scenes of all conditions, each with the masks of its four largest objects."""
    drawn = []
    for seed in seeds:
        scene = render_scene(seed, size=SIZE)
        masks = torch.zeros(4, *SIZE)
        for slot, index in enumerate(np.argsort(-scene.masks.sum((1, 2)))[:4]):
            masks[slot] = torch.from_numpy(scene.masks[index])
        ir, vis = torch.from_numpy(scene.ir)[None] / 255, torch.from_numpy(scene.vis).permute(2, 0, 1) / 255
        drawn.append([F.avg_pool2d(tensor[None], 4) for tensor in (ir, vis, masks)])
    ir, vis, masks = (torch.cat(tensors) for tensors in zip(*drawn, strict=True))
    return Batch(ir=ir, vis=vis, masks_ir=masks > 0.5, masks_vis=masks > 0.5, names=tuple(map(str, seeds)))


@dataclass(frozen=True)
class Trained:
    """Numbers on scenes that were not trained on."""

    looks_before: list[float]
    """Of the main network, see `looks`."""
    looks_after: list[float]
    distances: list[float]
    """Between student and main network, before and after."""


def looks(network: torch.nn.Module, batch: Batch) -> list[float]:
    """Mean change of the main network's picture without its regions, and with those of another scene."""
    regions = source_patches(batch.vis_y, batch.masks_vis), source_patches(batch.ir, batch.masks_ir)
    others = [tuple(torch.zeros_like(patches) for patches in regions), tuple(patches.roll(1, 0) for patches in regions)]
    network.eval()
    with torch.no_grad():
        y: Tensor = network(batch.vis_y, batch.ir, *regions).y
        return [float((network(batch.vis_y, batch.ir, *other).y - y).abs().mean()) for other in others]


@pytest.fixture(scope="module")
def trained() -> Trained:
    """The two stages in small: a main network by the recipe `default`, then a student of its pictures."""
    torch.manual_seed(0)
    main_network, student = MainNetwork(width=8), UNetStudent()
    batches, held_out = [scenes(range(start, start + 6)) for start in range(0, 36, 6)], scenes(range(100, 106))
    before = looks(main_network, held_out)
    changes = [f"phases.0.batches={PRETRAINING}", "optimisers.teacher={lr: 4.0e-3}"]
    pretraining = Engine(load_recipe("default", changes), {Owner.TEACHER: main_network}, None, CPU)
    for number in range(PRETRAINING):
        pretraining.step(number, batches[number % len(batches)])
    batches, held_out = (
        [with_picture_of(main_network, batch) for batch in batches],
        with_picture_of(main_network, held_out),
    )
    changes = [f"phases.0.batches={STUDENT_UPDATES}", "optimisers.student={lr: 2.0e-3}"]
    distillation = Engine(load_recipe("cached_teacher", changes), {Owner.STUDENT: student}, None, CPU)
    distances = [distance(student, held_out)]
    for number in range(STUDENT_UPDATES):
        distillation.step(number, batches[number % len(batches)])
    return Trained(before, looks(main_network, held_out), [*distances, distance(student, held_out)])


def with_picture_of(main_network: MainNetwork, batch: Batch) -> Batch:
    """The batch with the main network's picture in the place of a cached teacher's."""
    regions = source_patches(batch.vis_y, batch.masks_vis), source_patches(batch.ir, batch.masks_ir)
    with torch.no_grad():
        return replace(batch, teacher_y=main_network.eval()(batch.vis_y, batch.ir, *regions).y)


def distance(student: UNetStudent, batch: Batch) -> float:
    """MSE between the student's picture and the main network's."""
    assert batch.teacher_y is not None
    with torch.no_grad():
        return float(F.mse_loss(student.eval()(batch.vis_y, batch.ir).y, batch.teacher_y))


@pytest.mark.slow
def test_the_main_network_learns_to_look_at_its_regions(trained: Trained) -> None:
    """SAGE §10.16. A fresh one cannot: the zero output projections keep its attention out of the picture."""
    assert max(trained.looks_before) < 1e-5
    assert min(trained.looks_after) > 1e-3


@pytest.mark.slow
def test_the_student_comes_five_times_as_near_to_the_main_network(trained: Trained) -> None:
    """SAGE §10.17, on held-out pairs."""
    untrained, distilled = trained.distances
    assert distilled < untrained / 5
