"""The verb distill on small real files: a run folder, exact resume, refusals, and students that learn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from duskfuse.data.errors import InputError
from duskfuse.data.images import read_picture, write_picture
from duskfuse.data.layout import find_pairs
from duskfuse.data.pair_files import read_pair
from duskfuse.data.priors.cache_masks import cache_masks, open_masks
from duskfuse.data.priors.masks import MaskSet
from duskfuse.data.priors.sources import MaskSourceName
from duskfuse.data.weights import read_card
from duskfuse.distill.context import Batch
from duskfuse.distill.dataset import TrainingPairs, load_batches
from duskfuse.distill.distill import distill
from duskfuse.distill.recipe import DataConfig
from duskfuse.students.zoo import load_student
from duskfuse.teachers.cache_teacher import cache_teacher

SMALL = (
    "data.crop=[32, 32]",
    "data.batch=2",
    "phases.0.batches=3",
    "phases.1.batches=5",
    "phases.2.batches=1",
    "save_every=4",
    "sample_every=5",
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pairs of 48×56 with a hot square that the visible camera cannot see."""
    folder = tmp_path_factory.mktemp("pairs")
    rng = np.random.default_rng(0)
    for index in range(4):
        vis = np.clip(rng.normal(90, 12, (48, 56, 3)) + 60 * (np.arange(56) // 8 % 2)[None, :, None], 0, 255)
        ir = np.clip(rng.normal(50, 5, (48, 56)), 0, 255)
        top = int(rng.integers(4, 24))
        ir[top : top + 16, 20:36] = 220
        write_picture(folder / "vis" / f"{index}.png", vis.astype(np.uint8))
        write_picture(folder / "ir" / f"{index}.png", ir.astype(np.uint8))
    return folder


@pytest.fixture(scope="module")
def cache(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    cache_masks(dataset, source=MaskSourceName.REGIONS, cache=folder)
    return folder


def run(dataset: Path, cache: Path, out: Path, **options: object) -> list[dict[str, object]]:
    distill(dataset, out=out, recipe="demo", changes=SMALL, cache=cache, **options)  # type: ignore[arg-type]
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def losses(records: list[dict[str, object]]) -> list[tuple[object, object, object]]:
    return [(record["batch"], record["step"], record["loss"]) for record in records]


@pytest.fixture(scope="module")
def finished(dataset: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    run(dataset, cache, out)
    return out


def test_a_run_leaves_everything_behind(finished: Path) -> None:
    names = {str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file()}
    assert {"recipe.yaml", "environment.json", "metrics.jsonl"} <= names
    checkpoints = sorted(name.partition("-")[0] for name in names if name.startswith("checkpoints/"))
    assert checkpoints == ["checkpoints/0000008", "checkpoints/0000009"]
    assert {"student.safetensors", "teacher.safetensors", "samples/0000005.png", "samples/0000009.png"} <= names
    grid = read_picture(finished / "samples" / "0000009.png")
    assert grid.shape[2] == 3
    assert grid.shape[1] > 6 * 32
    records = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [record["batch"] for record in records] == list(range(9))
    assert {record["owner"] for record in records} == {"student", "teacher"}
    assert set(records[3]["terms"]) == {"pixel_triplet", "gradient_triplet", "contrastive", "features"}


def test_weights_carry_a_card_and_open_as_a_student(finished: Path) -> None:
    student, card = load_student(finished / "student.safetensors")
    assert card.architecture == "unet"
    assert "4 pairs" in card.training_data
    assert not student.training
    assert read_card(finished / "teacher.safetensors").architecture == "sage-main"


def test_the_same_seed_gives_the_same_losses(dataset: Path, cache: Path, finished: Path, tmp_path: Path) -> None:
    again = run(dataset, cache, tmp_path / "again")
    first = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert losses(again) == losses(first)


def test_an_interrupted_run_resumes_to_the_same_curve_and_weights(
    dataset: Path, cache: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from duskfuse.distill.engine import Engine

    out, real_step = tmp_path / "broken", Engine.step

    def interrupted(self: Engine, number: int, *batches: Batch) -> object:
        if number == 5:
            raise KeyboardInterrupt
        return real_step(self, number, *batches)

    monkeypatch.setattr(Engine, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(dataset, cache, out)
    monkeypatch.undo()
    resumed = run(dataset, cache, out, resume=True)
    first = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert losses(resumed) == losses(first)
    expected, got = (load_student(folder / "student.safetensors")[0].state_dict() for folder in (finished, out))
    assert all(torch.equal(got[key], value) for key, value in expected.items())


def test_an_augmented_run_is_the_same_with_any_number_of_workers(
    dataset: Path, cache: Path, finished: Path, tmp_path: Path
) -> None:
    """It learns from other samples than the plain run, and its grids show what the student was given."""
    augment = "{zoom: [0.7, 1], jitter: 0.1, infrared: {p: 1}, visible: {p: 1}, misalignment: {p: 1}, dropout: 0.2}"
    curves = []
    for workers in (0, 2):
        out = tmp_path / str(workers)
        changes = (*SMALL, f"data.augment={augment}", f"data.workers={workers}")
        distill(dataset, out=out, recipe="demo", changes=changes, cache=cache)
        curves.append(losses([json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]))
    assert curves[0] == curves[1]
    plain = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert curves[0] != losses(plain)
    columns = [read_picture(run / "samples" / "0000009.png").shape[1] for run in (finished, tmp_path / "0")]
    assert columns[1] - columns[0] == 2 * (32 + 4)


def test_a_used_folder_is_refused_and_named(dataset: Path, cache: Path, finished: Path, tmp_path: Path) -> None:
    before = (finished / "metrics.jsonl").read_bytes()
    with pytest.raises(InputError, match=r"--resume .* --overwrite"):
        run(dataset, cache, finished)
    assert (finished / "metrics.jsonl").read_bytes() == before
    other = tmp_path / "photos"
    other.mkdir()
    (other / "holiday.txt").write_text("mine")
    with pytest.raises(InputError, match="run folders only"):
        run(dataset, cache, other, overwrite=True)
    assert (other / "holiday.txt").exists()
    with pytest.raises(InputError, match="checkpoint"):
        run(dataset, cache, tmp_path / "new", resume=True)


def test_resume_with_another_recipe_is_refused(dataset: Path, cache: Path, finished: Path) -> None:
    with pytest.raises(InputError, match="keeps its recipe"):
        distill(dataset, out=finished, recipe="demo", changes=(*SMALL, "seed=9"), cache=cache, resume=True)


def test_missing_masks_name_the_command(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cache-masks"):
        run(dataset, tmp_path / "empty", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_init_of_another_architecture_is_refused(dataset: Path, cache: Path, finished: Path, tmp_path: Path) -> None:
    for files in find_pairs(dataset):
        write_picture(tmp_path / "visible" / f"{files.name}.png", files.vis.read())
    cache_teacher(dataset, teacher=tmp_path / "visible", cache=cache)
    with pytest.raises(InputError, match="has no teacher"):
        distill(
            dataset,
            out=tmp_path / "out",
            recipe="cached_teacher",
            changes=("phases.0.batches=1",),
            cache=cache,
            init=[finished / "teacher.safetensors"],
        )


def test_a_student_learns_from_a_cached_teacher(dataset: Path, cache: Path, finished: Path, tmp_path: Path) -> None:
    """MSE to a teacher drops at least five-fold on a pair it never saw (SAGE §10.17); teacher = a fixed fusion rule."""
    ready = tmp_path / "maximum"
    pairs = find_pairs(dataset)
    for files in pairs:
        ir, vis = files.ir.read(), files.vis.read()
        grey = np.rint(vis @ [0.299, 0.587, 0.114]).astype(np.uint8)
        write_picture(ready / f"{files.name}.png", np.maximum(ir, grey))
    report = cache_teacher(dataset, teacher=ready, cache=cache)
    assert (report.done, report.already) == (4, 0)
    assert cache_teacher(dataset, teacher=ready, cache=cache).already == 4
    changes = (
        "data.crop=[32, 32]",
        "data.batch=4",
        "phases.0.batches=80",
        "optimisers.student.lr=1.0e-2",
        "data.workers=0",
    )
    distill(
        dataset, out=tmp_path / "run", recipe="cached_teacher", changes=changes, cache=cache, teacher=report.teacher
    )
    errors = []
    for model in (finished / "student.safetensors", tmp_path / "run" / "student.safetensors"):
        student, _ = load_student(model)
        pair = read_pair(pairs[0])
        vis_y = (pair.vis * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0)[None, None]
        with torch.no_grad():
            errors.append(
                float((student(vis_y, pair.ir[None]).y - torch.maximum(vis_y, pair.ir[None])).square().mean())
            )
    assert errors[1] < errors[0] / 5


def test_teacher_pictures_of_another_size_or_constant_are_refused(dataset: Path, cache: Path, tmp_path: Path) -> None:
    for index, picture in enumerate([np.zeros((10, 10)), np.zeros((48, 56))] * 2):
        write_picture(tmp_path / "bad" / f"{index}.png", picture.astype(np.uint8))
    with pytest.raises(InputError, match=r"4 teacher pictures of 4 pairs .*10×10, its pair 56×48.*constant"):
        cache_teacher(dataset, teacher=tmp_path / "bad", cache=cache)


def test_a_teacher_folder_with_one_stem_twice_is_refused(dataset: Path, cache: Path, tmp_path: Path) -> None:
    for suffix in ("png", "bmp"):
        write_picture(tmp_path / "twice" / f"0.{suffix}", np.zeros((48, 56), np.uint8))
    with pytest.raises(InputError, match="a stem may occur once"):
        cache_teacher(dataset, teacher=tmp_path / "twice", cache=cache)


def test_samples_do_not_depend_on_the_number_of_workers(dataset: Path, cache: Path) -> None:
    pairs = find_pairs(dataset)
    store = open_masks(cache, {key for files in pairs for key in files.prior_keys()}, None)
    batches = []
    for workers in (0, 2):
        config = DataConfig(crop=(24, 24), batch=3, workers=workers)
        batches.append(list(load_batches(TrainingPairs(pairs, config, 5, masks=store), config, 1, 4)))
    for one, other in zip(*batches, strict=True):
        assert one.names == other.names
        assert torch.equal(one.ir, other.ir)
        assert torch.equal(one.masks_vis, other.masks_vis)


def test_an_epoch_shows_every_pair_once(dataset: Path) -> None:
    pairs = find_pairs(dataset)
    samples = TrainingPairs(pairs, DataConfig(), 5, masks=None)
    for epoch in range(3):
        assert sorted(samples.position(4 * epoch + i) for i in range(4)) == [0, 1, 2, 3]
    orders = {tuple(samples.position(4 * epoch + i) for i in range(4)) for epoch in range(12)}
    assert len(orders) > 3


def test_masks_move_with_the_crop(dataset: Path, cache: Path) -> None:
    """The hot square is bright exactly where a decoded mask of the infrared picture says so."""
    pairs = find_pairs(dataset)
    store = open_masks(cache, {key for files in pairs for key in files.prior_keys()}, None)
    record = store.get(pairs[0].prior_keys()[0])
    assert isinstance(record, MaskSet)
    config = DataConfig(crop=(40, 40), batch=1, workers=0, masks=8)
    seen = 0
    for batch in load_batches(TrainingPairs(pairs, config, 1, masks=store), config, 0, 12):
        hot = batch.ir[0, 0] > 0.7
        overlaps = [
            float((mask & hot).sum() / (mask | hot).sum().clamp_min(1)) for mask in batch.masks_ir[0] if mask.any()
        ]
        seen += max(overlaps, default=0) > 0.8
    assert seen >= 9
