"""The segmentation critic in training: labels cut with their pair, a gradient for the owner alone, honest absence."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from duskfuse.data.class_conventions import Convention, convention_named
from duskfuse.data.class_tables import ClassTable
from duskfuse.data.colour import recombine
from duskfuse.data.errors import InputError
from duskfuse.data.fuser import FusionOutput
from duskfuse.data.images import write_picture
from duskfuse.data.layout import find_pairs
from duskfuse.data.priors.cache import PriorCache, PriorKind
from duskfuse.data.priors.cache_masks import cache_masks
from duskfuse.data.priors.masks import MaskSet
from duskfuse.data.priors.sources import MaskSourceName
from duskfuse.data.scenes.write import write_scenes
from duskfuse.data.weights import ModelCard, save_weights
from duskfuse.distill.context import Batch, BatchContext
from duskfuse.distill.dataset import TrainingPairs, load_batches
from duskfuse.distill.distill import distill
from duskfuse.distill.engine import Engine
from duskfuse.distill.ground_truth import WantedTruth
from duskfuse.distill.recipe import DataConfig, FusionField, Owner
from duskfuse.distill.recipe_files import load_recipe
from duskfuse.distill.terms import TermName
from duskfuse.distill.terms.critics import segmentation
from duskfuse.tasks.open_segmenter import ARCHITECTURE, new_segmenter, segmenter_settings
from duskfuse.tasks.segmenter import Segmenter
from duskfuse.tasks.task_network import Task
from duskfuse.tasks.trunk import Trunk
from duskfuse.teachers.main_network import MainNetwork

SCENES = convention_named("scenes-11")
ROWS, COLUMNS = 12, 18
COORDINATES = Convention(
    "coordinates", ClassTable("coordinates", tuple(f"pixel {i}" for i in range(ROWS * COLUMNS))), "every pixel a class"
)


def untrained(classes: Convention = SCENES) -> Segmenter:
    torch.manual_seed(0)
    return new_segmenter(classes).freeze()


def make_batch(label: Tensor | None, size: int = 40) -> Batch:
    generator = torch.Generator().manual_seed(0)
    ir, vis = (torch.rand(2, channels, size, size, generator=generator) for channels in (1, 3))
    masks = torch.zeros(2, 1, size, size, dtype=torch.bool)
    return Batch(ir=ir, vis=vis, masks_ir=masks, masks_vis=masks, names=("a", "b"), label=label)


def make_label(size: int = 40) -> Tensor:
    return torch.randint(11, (2, size, size), generator=torch.Generator().manual_seed(1)).to(torch.uint8)


def test_the_term_is_cross_entropy_on_the_coloured_picture() -> None:
    critic, label = untrained(), make_label()
    label[0, :7] = 255
    batch = make_batch(label)
    y = torch.rand(2, 1, 40, 40, generator=torch.Generator().manual_seed(2)).requires_grad_()
    value = segmentation(FusionOutput(y), BatchContext(batch, {}, critics={Task.SEGMENTATION: critic}))
    expected = F.cross_entropy(critic(recombine(y, batch.vis)), label.long(), ignore_index=255)
    assert torch.allclose(value, expected)
    value.backward()
    assert y.grad is not None
    assert bool(torch.isfinite(y.grad).all())
    assert bool((y.grad.flatten(1).abs().sum(dim=1) > 0).all())
    assert all(parameter.grad is None for parameter in critic.parameters())


def test_following_the_gradient_makes_the_critic_content() -> None:
    """The picture alone is moved; the segmenter sees the label's classes better and better in it."""
    critic = untrained()
    batch = make_batch(make_label())
    y = batch.vis_y.clone().requires_grad_()
    optimiser = torch.optim.Adam([y], lr=0.02)
    values = []
    for _ in range(12):
        optimiser.zero_grad()
        value = segmentation(FusionOutput(y), BatchContext(batch, {}, critics={Task.SEGMENTATION: critic}))
        value.backward()
        optimiser.step()
        values.append(float(value.detach()))
    assert values == sorted(values, reverse=True)
    assert values[-1] < values[0] - 0.003


def test_samples_without_a_label_do_not_count() -> None:
    critic, label = untrained(), make_label()
    label[1] = 255
    batch = make_batch(label)
    y = torch.rand(2, 1, 40, 40, generator=torch.Generator().manual_seed(2)).requires_grad_()
    value = segmentation(FusionOutput(y), BatchContext(batch, {}, critics={Task.SEGMENTATION: critic}))
    value.backward()
    assert y.grad is not None
    assert float(y.grad[0].abs().sum()) > 0
    assert not y.grad[1].any()
    nothing = segmentation(
        FusionOutput(y), BatchContext(make_batch(label.fill_(255)), {}, critics={Task.SEGMENTATION: critic})
    )
    assert float(nothing.detach()) == 0


@pytest.fixture(scope="module")
def coordinates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pair and label whose every pixel says where it is, and masks that are the binary digits of the place."""
    folder = tmp_path_factory.mktemp("coordinates")
    place = np.arange(ROWS * COLUMNS, dtype=np.uint8).reshape(ROWS, COLUMNS)
    for side, picture in (("ir", place), ("label", place), ("vis", np.dstack([place, 255 - place, place]))):
        write_picture(folder / "data" / side / "a.png", picture)
    digits = np.stack([(place >> bit) & 1 for bit in range(8)]).astype(bool)
    key_ir, key_vis = find_pairs(folder / "data")[0].prior_keys()
    cache = PriorCache(folder / "cache")
    store = cache.store(PriorKind.MASKS, "digits", {"keep": 8})
    for key in (key_ir, key_vis):
        store.put(key, MaskSet.from_masks(digits))
    return folder


@pytest.mark.parametrize("crop", [(8, 10), (16, 24)])
def test_label_infrared_visible_and_masks_carry_the_same_coordinates(coordinates: Path, crop: tuple[int, int]) -> None:
    """SAGE §10.11 and §8 row 4: one draw for all. The larger crop is padded: ids by 255, pictures by their border."""
    store = PriorCache(coordinates / "cache").store(PriorKind.MASKS, "digits", {"keep": 8})
    config = DataConfig(crop=crop, batch=1, workers=0, masks=8, mask_pool=8, flip=0.5)
    dataset = TrainingPairs(
        find_pairs(coordinates / "data"), config, 3, masks=store, truth=WantedTruth(labels=COORDINATES)
    )
    seen = set()
    for batch in load_batches(dataset, config, 0, 12):
        assert batch.label is not None
        label = batch.label[0].long()
        height, width = min(crop[0], ROWS), min(crop[1], COLUMNS)
        inside = torch.zeros(crop, dtype=torch.bool)
        inside[:height, :width] = True
        assert bool((label[~inside] == 255).all())
        place = (batch.ir[0, 0] * 255).round().long()
        assert torch.equal(place[inside], label[inside])
        for channel, turned in ((0, False), (1, True), (2, False)):
            stored = (batch.vis[0, channel] * 255).round().long()
            assert torch.equal((255 - stored if turned else stored)[inside], label[inside])
        digits = {tuple(((place >> bit) & 1).bool()[inside].tolist()) for bit in range(8)}
        for planes in (batch.masks_ir[0], batch.masks_vis[0]):
            drawn = {tuple(plane[inside].tolist()) for plane in planes if plane.any()}
            assert drawn
            assert drawn <= digits
        seen.add((int(place[0, 0]), int(place[0, 1] - place[0, 0])))
    assert {step for _, step in seen} == {1, -1}, "no flip was seen"
    assert len(seen) == 2 or crop == (8, 10)


def test_ids_survive_loading(coordinates: Path) -> None:
    """SAGE §10.12: the ids of the file are those of the batch, none scaled, none mixed."""
    config = DataConfig(crop=(ROWS, COLUMNS), batch=1, workers=0)
    dataset = TrainingPairs(
        find_pairs(coordinates / "data"), config, 3, masks=None, truth=WantedTruth(labels=COORDINATES)
    )
    (batch,) = load_batches(dataset, config, 0, 1)
    assert batch.label is not None
    stored = cv2.imread(str(coordinates / "data" / "label" / "a.png"), cv2.IMREAD_UNCHANGED)
    assert batch.label.dtype == torch.uint8
    assert batch.label.unique().tolist() == np.unique(stored).tolist() == list(range(ROWS * COLUMNS))


def test_without_labels_asked_for_there_are_none(coordinates: Path) -> None:
    config = DataConfig(crop=(8, 8), batch=1, workers=0)
    dataset = TrainingPairs(find_pairs(coordinates / "data"), config, 3, masks=None)
    (batch,) = load_batches(dataset, config, 0, 1)
    assert batch.label is None


SMALL = (
    "data.crop=[32, 32]",
    "data.batch=2",
    "data.workers=0",
    "phases=[{name: all, batches: 3, cycle: [teacher]}]",
    "save_every=2",
)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "data"
    write_scenes(folder, count=4, size=(48, 64))
    cache_masks(folder, source=MaskSourceName.REGIONS, cache=folder.parent / "cache")
    return folder


@pytest.fixture(scope="module")
def critic_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("critic") / "segmenter.safetensors"
    segmenter = untrained()
    card = ModelCard(ARCHITECTURE, segmenter_settings(segmenter, Trunk.RESIDUAL), "rgb", "0.1.0", "nothing")
    save_weights(path, segmenter.network, card)
    return path


def run(data: Path, cache: Path, out: Path, segmenter: Path | None, changes: tuple[str, ...] = ()) -> list[set[str]]:
    """Names of the terms of every update."""
    distill(
        data,
        out=out,
        recipe="paper_sage",
        changes=(*SMALL, *changes),
        cache=cache,
        critics=[] if segmenter is None else [segmenter],
    )
    return [set(json.loads(line)["terms"]) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_the_paper_recipe_asks_the_critic(
    scenes: Path, critic_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    terms = run(scenes, scenes.parent / "cache", tmp_path / "run", critic_file)
    assert all("segmentation" in names for names in terms)
    assert "classes scenes-11" in capsys.readouterr().err
    recipe = load_recipe(tmp_path / "run" / "recipe.yaml")
    assert recipe.steps["teacher"].terms[TermName.SEGMENTATION].weight == 0.3
    assert recipe.segmenter.network == critic_file


def test_the_paper_recipe_runs_without_a_critic_and_says_so(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    terms = run(scenes, scenes.parent / "cache", tmp_path / "run", None)
    assert all("segmentation" not in names and names for names in terms)
    assert capsys.readouterr().err.count("segmentation is left out") == 1
    assert TermName.SEGMENTATION not in load_recipe(tmp_path / "run" / "recipe.yaml").terms_used()


def without_labels(scenes: Path, folder: Path, kept: int) -> Path:
    for side in ("ir", "vis", "label"):
        for path in sorted((scenes / side).iterdir())[: kept if side == "label" else None]:
            (folder / side).mkdir(parents=True, exist_ok=True)
            (folder / side / path.name).write_bytes(path.read_bytes())
    return folder


def test_without_labels_the_term_is_absent_and_that_is_said_once(
    scenes: Path, critic_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = without_labels(scenes, tmp_path / "data", 0)
    terms = run(data, scenes.parent / "cache", tmp_path / "run", critic_file)
    assert all("segmentation" not in names for names in terms)
    assert capsys.readouterr().err.count("none of the 4 pairs has a label") == 1


def test_pairs_without_a_label_are_passed_over(
    scenes: Path, critic_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = without_labels(scenes, tmp_path / "data", 1)
    terms = run(data, scenes.parent / "cache", tmp_path / "run", critic_file)
    assert all("segmentation" in names for names in terms)
    assert "3 pairs without a label do not count" in capsys.readouterr().err


def test_a_critic_that_nobody_asks_or_of_other_classes_is_refused(
    scenes: Path, critic_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"no step .* has the term segmentation"):
        distill(scenes, out=tmp_path / "run", recipe="demo", critics=[critic_file])
    with pytest.raises(InputError, match="FMB-15 is wanted"):
        run(scenes, scenes.parent / "cache", tmp_path / "run", critic_file, ("segmenter.classes=FMB-15",))
    only = "steps.teacher.terms={segmentation: 1}"
    with pytest.raises(InputError, match="has no term but segmentation"):
        run(scenes, scenes.parent / "cache", tmp_path / "run", None, (only,))
    assert not (tmp_path / "run").exists()


def test_the_critic_moves_the_whole_main_network_and_stays_as_it_is() -> None:
    """SAGE §10.13; after one update, for a fresh network's zero projections let no gradient through."""
    torch.manual_seed(0)
    critic, label = untrained(), make_label()
    changes = ["phases=[{name: only, batches: 1, cycle: [pretrain_teacher]}]"]
    network = MainNetwork(width=8)
    engine = Engine(
        load_recipe("paper_sage", changes),
        {Owner.TEACHER: network},
        None,
        torch.device("cpu"),
        critics={Task.SEGMENTATION: critic},
    )
    regions = torch.rand(2, 4, 40, 40) > 0.5
    batch = replace(make_batch(label), masks_ir=regions, masks_vis=regions)
    engine.step(0, batch)
    network.zero_grad(set_to_none=True)
    context = engine.context(batch, Owner.TEACHER)
    segmentation(context.field(FusionField.TEACHER), context).backward()
    pictured = {name: p for name, p in network.named_parameters() if not name.startswith("taps.")}
    still = [name for name, p in pictured.items() if p.grad is None or not p.grad.any()]
    assert still == []
    assert all(parameter.grad is None for parameter in critic.parameters())
