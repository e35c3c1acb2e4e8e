"""The verb cache-teacher: teachers of every kind, records that say where a picture is from, refusals, combinations."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from typer.testing import CliRunner

from duskfuse import __version__
from duskfuse.cli import app
from duskfuse.data.errors import InputError
from duskfuse.data.images import file_sha256, read_grey_u8, write_picture
from duskfuse.data.layout import find_pairs
from duskfuse.data.priors.cache import JsonValue, PriorCache, PriorKind, PriorStore, TeacherImage, pair_key
from duskfuse.data.priors.cache_masks import cache_masks
from duskfuse.data.priors.pipeline import Engine
from duskfuse.data.priors.sources import MaskSourceName
from duskfuse.data.weights import ModelCard, save_weights
from duskfuse.distill.dataset import TrainingPairs, load_batches
from duskfuse.distill.distill import distill
from duskfuse.distill.recipe import DataConfig
from duskfuse.evaluate.quality import quality_score
from duskfuse.students.unet import UNetStudent
from duskfuse.teachers import cache_teacher as verb
from duskfuse.teachers.cache_teacher import TeacherCacheReport, TeacherWork, cache_teacher
from duskfuse.teachers.combine_teachers import BLENDED, Combination
from duskfuse.teachers.main_network import MainNetwork
from duskfuse.teachers.teacher import Crop, TeacherJob, TeacherPicture, ValueTransform
from duskfuse.teachers.teacher_images import Brightness, TeacherImages, open_teacher_images
from duskfuse.teachers.teacher_item import TeacherItem

SIZE = (70, 100)
CARD = {"settings": {}, "colour": "luma", "version": "0", "training_data": "none"}
Grey = NDArray[np.uint8]


@pytest.fixture(autouse=True)
def _progress_is_loud_again() -> object:
    yield
    from duskfuse.data.progress import set_quiet

    set_quiet(False)


def textured(seed: int) -> Grey:
    rng = np.random.default_rng(seed)
    coarse = np.kron(rng.integers(0, 190, (SIZE[0] // 10, SIZE[1] // 10)), np.ones((10, 10)))
    return np.asarray(coarse + rng.integers(0, 55, SIZE), np.uint8)


def means(data: Path) -> dict[str, Grey]:
    """The mean of both sources, by the name of the pair."""
    return {
        files.name: np.asarray((files.ir.read().astype(int) + files.vis.read()) // 2, np.uint8)
        for files in find_pairs(data)
    }


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Four grey pairs of 100×70, and the method ``mean`` inside the dataset."""
    folder = tmp_path / "data"
    for seed, name in enumerate("abcd"):
        write_picture(folder / "ir" / f"{name}.png", textured(seed))
        write_picture(folder / "vis" / f"{name}.png", textured(100 + seed))
    for name, picture in means(folder).items():
        write_picture(folder / "teacher" / "mean" / f"{name}.png", picture)
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def store_of(cache: Path, report: TeacherCacheReport) -> PriorStore:
    return PriorCache(cache).store(PriorKind.TEACHER, report.teacher, report.settings)


def records(cache: Path, report: TeacherCacheReport, data: Path) -> dict[str, tuple[Grey, TeacherItem]]:
    """Pixels and item of every pair that has a picture."""
    store, found = store_of(cache, report), {}
    for files in find_pairs(data):
        key = pair_key(*files.prior_keys())
        if key in store:
            record = store.get(key)
            assert isinstance(record, TeacherImage)
            item = TeacherItem.of(record)
            assert item is not None
            found[files.name] = record.y, item
    return found


class FixedTeacher:
    """A teacher out of a function of the two sources, with the crop and transform that it says."""

    def __init__(
        self,
        rule: Callable[[Grey, Grey], NDArray[np.float32]],
        crop: Crop = (0, 0, *SIZE),
        transform: ValueTransform = ValueTransform.IDENTITY,
        name: str = "fixed",
    ) -> None:
        self.rule, self.crop, self.transform, self.name = rule, crop, transform, name

    @property
    def settings(self) -> dict[str, JsonValue]:
        return {"crop": list(self.crop), "transform": self.transform.value}

    def fuse(self, job: TeacherJob) -> TeacherPicture:
        top, left, height, width = self.crop
        y = self.rule(job.files.ir.read(), job.files.vis.read())[top : top + height, left : left + width]
        return TeacherPicture(np.asarray(y, np.float32), self.crop, self.transform)


def mean_of(ir: Grey, vis: Grey) -> NDArray[np.float32]:
    return np.asarray((ir.astype(np.float32) + vis) / 510, np.float32)


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Callable[[FixedTeacher], None]:
    """Lets ``cache_teacher`` open a teacher that lives in this test."""

    def use(teacher: FixedTeacher) -> None:
        monkeypatch.setattr(verb, "open_teacher", lambda *_, **__: lambda: teacher)

    return use


def test_a_method_is_found_by_name_and_recorded_with_its_provenance(data: Path, cache: Path) -> None:
    report = cache_teacher(data, teacher="mean", cache=cache)
    assert (report.teacher, report.pairs, report.done, report.already) == ("mean", 4, 4, 0)
    assert cache_teacher(data, teacher="mean", cache=cache).already == 4
    expected = means(data)
    for name, (y, item) in records(cache, report, data).items():
        np.testing.assert_array_equal(y, expected[name])
        assert (item.name, item.crop, item.transform) == (name, (0, 0, *SIZE), ValueTransform.UNKNOWN)
        assert item.ir == file_sha256(data / "ir" / f"{name}.png")
        assert item.vis == file_sha256(data / "vis" / f"{name}.png")
        (origin,) = item.made_from
        assert origin.source == f"mean/{name}.png"
        assert origin.sha256 == file_sha256(data / "teacher" / "mean" / f"{name}.png")
        assert item.agreement.detail > 0.95
        assert item.duskfuse == __version__
    assert json.loads(json.dumps(report.to_json()))["done"] == 4


def test_a_changed_picture_is_another_teacher(data: Path, cache: Path) -> None:
    first = cache_teacher(data, teacher="mean", cache=cache)
    write_picture(data / "teacher" / "mean" / "a.png", np.maximum(textured(0), textured(100)))
    second = cache_teacher(data, teacher="mean", cache=cache)
    assert (second.done, second.folder != first.folder) == (4, True)


def test_missing_pictures_are_counted_and_named_or_an_error(
    data: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "bd":
        (data / "teacher" / "mean" / f"{name}.png").unlink()
    with pytest.raises(InputError, match="2 of 4 pairs have no picture of mean: b, d; every pair needs one"):
        cache_teacher(data, teacher="mean", cache=cache, strict=True)
    assert not list(cache.rglob("*.parquet"))
    report = cache_teacher(data, teacher="mean", cache=cache)
    assert (report.done, report.missing) == (2, ["b", "d"])
    assert "2 of 4 pairs have no picture of mean: b, d; left out" in capsys.readouterr().err


def test_an_unknown_teacher_is_refused_and_the_methods_of_the_dataset_are_named(data: Path, cache: Path) -> None:
    with pytest.raises(InputError, match=r"sea: no such file or folder.*methods in .*: mean"):
        cache_teacher(data, teacher="sea", cache=cache)
    with pytest.raises(InputError, match="none of its 12 pictures belongs to a pair"):
        cache_teacher(data, teacher=data, cache=cache)
    (data / "nothing").mkdir()
    with pytest.raises(InputError, match="holds no pictures"):
        cache_teacher(data, teacher=data / "nothing", cache=cache)


def test_a_student_is_no_teacher(data: Path, cache: Path, tmp_path: Path) -> None:
    save_weights(tmp_path / "unet.safetensors", UNetStudent(), ModelCard("unet", **CARD))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="holds a unet"):
        cache_teacher(data, teacher=tmp_path / "unet.safetensors", cache=cache)
    with pytest.raises(InputError, match="only diffusion teachers sample"):
        cache_teacher(data, teacher="mean", cache=cache, steps=3)


def broken(ir: Grey, vis: Grey) -> NDArray[np.float32]:
    y = mean_of(ir, vis)
    y[3, 4] = np.nan
    return y


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (broken, "1 of 7000 values are NaN or infinite"),
        (lambda ir, vis: np.full(SIZE, 0.5), "constant"),
        (lambda ir, vis: np.random.default_rng(0).random(SIZE), "its detail correlates by 0"),
        (lambda ir, vis: mean_of(ir, vis)[:40], "does not fit 100×40 pixels"),
    ],
    ids=["nan", "constant", "noise", "size"],
)
def test_useless_pictures_of_a_network_are_refused(
    data: Path,
    cache: Path,
    given: Callable[[FixedTeacher], None],
    rule: Callable[[Grey, Grey], NDArray[np.float32]],
    said: str,
) -> None:
    given(FixedTeacher(lambda ir, vis: rule(ir, vis) if ir[0, 0] == textured(1)[0, 0] else mean_of(ir, vis)))
    with pytest.raises(
        InputError, match=f"1 teacher pictures of 4 pairs could not be kept: teacher picture of b: .*{said}"
    ):
        cache_teacher(data, teacher="given", cache=cache)
    (store,) = PriorCache(cache).stores(PriorKind.TEACHER)
    assert len(store.keys()) == 3


def test_a_ready_picture_of_another_pair_is_refused(data: Path, cache: Path) -> None:
    pictures = means(data)
    write_picture(data / "teacher" / "mean" / "c.png", pictures["d"])
    with pytest.raises(InputError, match=r"teacher picture of c: its detail correlates by 0\..* of another pair"):
        cache_teacher(data, teacher="mean", cache=cache)


@pytest.mark.parametrize("crop", [(0, 0, 64, 96), (6, 4, 64, 96)], ids=["top left", "middle"])
@pytest.mark.parametrize("box", [(32, 40), (64, 96), (80, 120)], ids=["smaller", "whole", "padded"])
def test_a_cropped_teacher_trains_against_the_same_crop_of_the_sources(
    tmp_path: Path, cache: Path, given: Callable[[FixedTeacher], None], crop: Crop, box: tuple[int, int]
) -> None:
    """Acceptance check 7: coordinate images. Infrared holds twice the row, visible twice the column of each pixel."""
    rows, columns = np.indices(SIZE)
    for name in ("a", "b"):
        write_picture(tmp_path / "grid" / "ir" / f"{name}.png", np.asarray(2 * rows + (name == "b"), np.uint8))
        write_picture(tmp_path / "grid" / "vis" / f"{name}.png", np.asarray(2 * columns, np.uint8))
    given(FixedTeacher(mean_of, crop))
    cache_teacher(tmp_path / "grid", teacher="given", cache=cache)
    pairs, images = open_teacher_images(cache, find_pairs(tmp_path / "grid"))
    config = DataConfig(crop=box, batch=2, workers=0)
    seen = set()
    for batch in load_batches(TrainingPairs(pairs, config, 3, masks=None, teacher=images), config, 0, 15):
        assert batch.teacher_y is not None
        assert batch.teacher_y.shape == batch.ir.shape == (2, 1, *box)
        both = (batch.ir + batch.vis[:, :1]) / 2
        assert float((batch.teacher_y - both).abs().max()) < 0.51 / 255
        row, column = batch.ir * 255 / 2, batch.vis[:, :1] * 255 / 2
        assert float(row.min()) >= crop[0]
        assert float(row.max()) < crop[0] + crop[2]
        assert float(column.min()) >= crop[1]
        assert float(column.max()) < crop[1] + crop[3]
        seen |= {(int(row[i].min()), int(column[i].min())) for i in range(2)}
    inside = min(box[0], 64), min(box[1], 96)
    assert len(seen) > 20 if inside == (32, 40) else seen == {crop[:2]}


def test_masks_follow_the_crop_of_the_teacher(data: Path, cache: Path, given: Callable[[FixedTeacher], None]) -> None:
    """The same box of the pair is cut from masks and pictures, wherever the teacher's crop begins."""
    cache_masks(data, source=MaskSourceName.REGIONS, cache=cache)
    (masks,) = PriorCache(cache).stores(PriorKind.MASKS)
    given(FixedTeacher(mean_of, (6, 4, 64, 96)))
    cache_teacher(data, teacher="given", cache=cache)
    pairs, images = open_teacher_images(cache, find_pairs(data))
    config = DataConfig(crop=(64, 96), batch=4, workers=0, flip=0, masks=3, mask_pool=3)
    samples = TrainingPairs(pairs, config, 3, masks=masks, teacher=images)
    (batch,) = load_batches(samples, config, 0, 1)
    for name, planes in zip(batch.names, batch.masks_ir, strict=True):
        files = next(files for files in pairs if files.name == name)
        whole = masks.get(files.prior_keys()[0]).decode(range(3))[:, 6:70, 4:100]  # type: ignore[union-attr]
        assert {plane.tobytes() for plane in planes.numpy()} == {plane.tobytes() for plane in whole}


def test_brightness_is_matched_unless_a_teacher_knows_its_own(data: Path, cache: Path) -> None:
    """A stretched teacher comes out as the plain one does; trusted, both come as they are."""
    for name, picture in means(data).items():
        low, high = int(picture.min()), int(picture.max())
        stretched = np.asarray(np.rint((picture.astype(float) - low) / (high - low) * 255), np.uint8)
        write_picture(data / "teacher" / "stretched" / f"{name}.png", stretched)
    stores = [store_of(cache, cache_teacher(data, teacher=name, cache=cache)) for name in ("mean", "stretched")]
    for files in find_pairs(data):
        key = pair_key(*files.prior_keys())
        plain, stretched = (TeacherImages(store).get(key).y for store in stores)
        np.testing.assert_allclose(plain, stretched, atol=2 / 255)
        brighter = np.maximum(files.ir.read(), files.vis.read()) / 255
        assert plain.mean() == pytest.approx(brighter.mean(), abs=0.01)
        trusted = TeacherImages(stores[1], Brightness.TRUST).get(key).y
        assert (trusted.min(), trusted.max()) == (0, 1)


def test_own_networks_are_trusted(data: Path, cache: Path, given: Callable[[FixedTeacher], None]) -> None:
    given(FixedTeacher(mean_of))
    images = TeacherImages(store_of(cache, cache_teacher(data, teacher="given", cache=cache)))
    for files in find_pairs(data):
        y = images.get(pair_key(*files.prior_keys())).y
        np.testing.assert_allclose(y, mean_of(files.ir.read(), files.vis.read()), atol=0.51 / 255)


def test_pictures_whose_brightness_cannot_be_matched_are_left_out_and_named(
    data: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An inverted picture has all the detail and structure, and a gain below zero."""
    inverted = 255 - means(data)["b"]
    write_picture(data / "teacher" / "mean" / "b.png", inverted)
    cache_teacher(data, teacher="mean", cache=cache)
    pairs, images = open_teacher_images(cache, find_pairs(data), "mean")
    assert [files.name for files in pairs] == ["a", "c", "d"]
    assert "1 of 4 pictures of mean left out: b: brightness would be multiplied by -" in capsys.readouterr().err
    trusting, _ = open_teacher_images(cache, find_pairs(data), "mean", Brightness.TRUST)
    assert len(trusting) == 4
    assert images.store.source == "mean"


def test_records_are_checked_when_they_are_loaded(data: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another program's record, and crops that fit neither the pixels nor the pair, are never trained on."""
    report = cache_teacher(data, teacher="mean", cache=cache)
    kept = records(cache, report, data)
    store = PriorCache(cache).store(PriorKind.TEACHER, "tampered", {})
    crops = {"a": (0, 0, *SIZE), "b": (0, 0, 60, 100), "c": (1, 0, *SIZE)}
    for files in find_pairs(data):
        y, item = kept[files.name]
        meta = {"name": "d"} if files.name == "d" else replace(item, crop=crops[files.name]).to_meta()
        store.put(pair_key(*files.prior_keys()), TeacherImage(y, meta))  # type: ignore[arg-type]
    pairs, _ = open_teacher_images(cache, find_pairs(data), "tampered")
    assert [files.name for files in pairs] == ["a"]
    said = capsys.readouterr().err
    for reason in (
        "b: 100×70 pixels are recorded as 100×60",
        "c: shows 100×70 pixels from row 1",
        "d: another version",
    ):
        assert reason in said
    with pytest.raises(InputError, match="no picture of tampered can be used"):
        open_teacher_images(cache, find_pairs(data)[1:], "tampered")
    with pytest.raises(InputError, match=r"of sage-main for these pairs.*teachers in the cache: mean, tampered"):
        open_teacher_images(cache, find_pairs(data), "sage-main")


def let_sources_through(network: MainNetwork) -> None:
    """Add a path of centre taps from both sources to the result, which becomes sigmoid(2 (vis + ir) − 2) and more."""
    layers = (*network.encode_image, *network.decode_last)
    convolutions = [next(m for m in layer.modules() if isinstance(m, torch.nn.Conv2d)) for layer in layers]
    with torch.no_grad():
        for depth, convolution in enumerate(convolutions[:-1]):
            first = 64 if depth == 2 else 0  # where the shallow features follow the deep ones
            for channel in range(2):
                convolution.weight[channel] = 0
                convolution.weight[channel, first + channel, 1, 1] = 1
        convolutions[-1].weight[0, :2, 1, 1] += 2
        convolutions[-1].bias -= 2  # type: ignore[operator]


def test_the_main_network_takes_region_masks(tmp_path: Path, cache: Path) -> None:
    """An untrained network is constant and refused; one that lets its sources through is kept, each pair its own."""
    for seed, name in enumerate("ab"):
        write_picture(tmp_path / "data" / "ir" / f"{name}.png", textured(seed)[:48, :56])
        write_picture(tmp_path / "data" / "vis" / f"{name}.png", textured(9 + seed)[:48, :56])
    torch.manual_seed(0)
    network, weights = MainNetwork(), tmp_path / "teacher.safetensors"
    card = ModelCard("sage-main", **{**CARD, "settings": {"masks": 4}})  # type: ignore[arg-type]
    save_weights(weights, network, card)
    with pytest.raises(InputError, match="cache-masks"):
        cache_teacher(tmp_path / "data", teacher=weights, cache=cache)
    cache_masks(tmp_path / "data", source=MaskSourceName.REGIONS, cache=cache)
    with pytest.raises(InputError, match="constant"):
        cache_teacher(tmp_path / "data", teacher=weights, cache=cache)
    let_sources_through(network)
    save_weights(weights, network, card)
    report = cache_teacher(tmp_path / "data", teacher=weights, cache=cache)
    assert (report.teacher, report.done) == ("sage-main", 2)
    assert report.settings["weights_sha256"] == file_sha256(weights)
    first, second = records(cache, report, tmp_path / "data").values()
    assert first[1].transform is ValueTransform.IDENTITY
    assert not np.array_equal(first[0], second[0])


def test_the_diffusion_teachers_are_told_by_their_files(data: Path, cache: Path, tmp_path: Path) -> None:
    """A card says conditional diffusion; a diffusers folder is DDFM's. Steps, seed and weights are in the settings."""
    diffusers = pytest.importorskip("diffusers")
    from duskfuse.teachers.denoiser import ARCHITECTURE, ConditionalDenoiser
    from duskfuse.teachers.denoiser_sizes import DenoiserConfig

    torch.manual_seed(0)
    denoiser = ConditionalDenoiser(DenoiserConfig(widths=(8, 16), blocks=1, patch=2))
    settings = {**CARD, "settings": denoiser.settings}
    save_weights(tmp_path / "d.safetensors", denoiser, ModelCard(ARCHITECTURE, **settings))  # type: ignore[arg-type]
    diffusers.UNet2DModel(
        out_channels=6, block_out_channels=(32, 32), layers_per_block=1, attention_head_dim=32,
        down_block_types=("ResnetDownsampleBlock2D",) * 2, up_block_types=("ResnetUpsampleBlock2D",) * 2,
        attn_norm_num_groups=32, resnet_time_scale_shift="scale_shift",
    ).save_pretrained(tmp_path / "unet")  # fmt: skip
    for teacher, name in ((tmp_path / "d.safetensors", ARCHITECTURE), (tmp_path / "unet", "ddfm")):
        expected = cache_teacher(data, teacher=teacher, cache=cache, steps=4, limit=2, dry_run=True)
        assert (expected.done, expected.seconds > 0) == (2, True)
        report = cache_teacher(data, teacher=teacher, cache=cache, steps=4, limit=2)
        assert (report.teacher, report.done, report.settings["steps"], report.settings["seed"]) == (name, 2, 4, 3407)
        assert len(str(report.settings["weights_sha256"])) == 64
        assert all(item.transform is ValueTransform.IDENTITY for _, item in records(cache, report, data).values())


def test_a_dry_run_measures_and_writes_nothing(data: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = cache_teacher(data, teacher="mean", cache=cache, dry_run=True)
    assert (report.done, report.already, report.dry_run, report.todo) == (4, 0, True, ["a", "b", "c", "d"])
    assert report.seconds > 0
    assert 1000 < report.bytes_per_pair < 50000
    assert "for 4 pairs: about" in capsys.readouterr().err
    assert not cache.exists()
    cache_teacher(data, teacher="mean", cache=cache, limit=1)
    again = cache_teacher(data, teacher="mean", cache=cache, dry_run=True)
    assert (again.done, again.already, again.todo) == (3, 1, ["b", "c", "d"])


def test_a_source_that_vanishes_in_the_middle_stops_no_other(
    data: Path, cache: Path, given: Callable[[FixedTeacher], None]
) -> None:
    def rule(ir: Grey, vis: Grey) -> NDArray[np.float32]:
        (data / "vis" / "d.png").unlink(missing_ok=True)
        return mean_of(ir, vis)

    given(FixedTeacher(rule))
    jobs = [TeacherJob(files, files.prior_keys()) for files in find_pairs(data)]
    assert len(jobs) == 4
    (data / "vis" / "b.png").write_bytes((data / "vis" / "b.png").read_bytes()[:-200])
    with pytest.raises(InputError, match=r"could not be kept: .*b\.png.*all others are cached"):
        cache_teacher(data, teacher="given", cache=cache)
    (store,) = PriorCache(cache).stores(PriorKind.TEACHER)
    done = {job.files.name for job in jobs if pair_key(*job.keys) in store}
    assert {"a", "c"} <= done
    assert "b" not in done


def test_the_work_is_pickled_without_its_model(data: Path, given: Callable[[FixedTeacher], None]) -> None:
    """Every process opens the teacher for itself, and refuses to mix pictures of other weights."""
    teacher = FixedTeacher(mean_of)
    opened = iter([teacher, FixedTeacher(mean_of, (0, 0, 64, 96))])
    work = TeacherWork(lambda: next(opened))
    elsewhere = TeacherWork.__new__(TeacherWork)
    elsewhere.__dict__.update(work.__getstate__())
    with pytest.raises(InputError, match="other settings in this process"):
        elsewhere.opened()


def test_processes_make_the_same_pictures(tmp_path: Path) -> None:
    """Enough pairs for the pool: records equal those of one process."""
    folder = tmp_path / "many"
    for seed in range(26):
        write_picture(folder / "ir" / f"{seed:02d}.png", textured(seed)[:40, :50])
        write_picture(folder / "vis" / f"{seed:02d}.png", textured(100 + seed)[:40, :50])
    for name, picture in means(folder).items():
        write_picture(folder / "teacher" / "mean" / f"{name}.png", picture)
    found = []
    for workers in (1, 2):
        cache = tmp_path / f"cache{workers}"
        report = cache_teacher(folder, teacher="mean", cache=cache, workers=workers, engine=Engine.LOCAL)
        found.append({name: (y.tobytes(), item) for name, (y, item) in records(cache, report, folder).items()})
    assert found[0] == found[1]
    assert len(found[0]) == 26


@pytest.fixture
def two(data: Path) -> Path:
    """The method ``mean`` is noisy for a and b, the method ``max`` for c and d."""
    rng = np.random.default_rng(5)
    for name, picture in means(data).items():
        noisy = np.clip(picture + rng.normal(0, 12, SIZE), 0, 255)
        brighter = np.maximum(textured("abcd".index(name)), textured(100 + "abcd".index(name)))
        write_picture(
            data / "teacher" / "mean" / f"{name}.png", np.asarray(noisy if name in "ab" else picture, np.uint8)
        )
        worse = np.clip(brighter + rng.normal(0, 12, SIZE), 0, 255)
        write_picture(
            data / "teacher" / "max" / f"{name}.png", np.asarray(worse if name in "cd" else brighter, np.uint8)
        )
    return data


def test_the_best_of_several_teachers_is_chosen_for_each_pair(two: Path, cache: Path) -> None:
    report = cache_teacher(two, teacher=["mean", "max"], combine=Combination.BEST, score=quality_score, cache=cache)
    assert (report.teacher, report.done) == ("best", 4)
    assert [ingredient.teacher for ingredient in report.ingredients] == ["mean", "max"]
    folders = [Path(ingredient.folder).name for ingredient in report.ingredients]
    assert report.shares == dict.fromkeys(folders, 0.5)
    alone = [records(cache, ingredient, two) for ingredient in report.ingredients]
    for name, (y, item) in records(cache, report, two).items():
        chosen = 1 if name in "ab" else 0
        np.testing.assert_array_equal(y, alone[chosen][name][0])
        assert [ingredient.source for ingredient in item.made_from] == folders
        assert [ingredient.weight for ingredient in item.made_from] == [1 - chosen, chosen]
        scores = [ingredient.score for ingredient in item.made_from]
        assert scores[chosen] == max(scores)  # type: ignore[type-var]
        assert item.transform is ValueTransform.UNKNOWN
    again = cache_teacher(two, teacher=["mean", "max"], combine=Combination.BEST, score=quality_score, cache=cache)
    assert (again.done, again.already) == (0, 4)


def test_a_blend_is_the_mean_of_the_two_best_in_matched_brightness(two: Path, cache: Path) -> None:
    for name, picture in means(two).items():
        noise = np.random.default_rng(1).normal(0, 25, SIZE)
        write_picture(two / "teacher" / "worst" / f"{name}.png", np.asarray(np.clip(picture + noise, 0, 255), np.uint8))
    report = cache_teacher(
        two, teacher=["worst", "mean", "max"], combine=Combination.BLEND, score=quality_score, cache=cache
    )
    seen = [TeacherImages(store_of(cache, ingredient)) for ingredient in report.ingredients]
    assert BLENDED == 2
    for files in find_pairs(two):
        y, item = records(cache, report, two)[files.name]
        assert [ingredient.weight for ingredient in item.made_from] == [0, 0.5, 0.5]
        both = [images.get(pair_key(*files.prior_keys())).y for images in seen[1:]]
        np.testing.assert_allclose(y / 255, (both[0] + both[1]) / 2, atol=0.51 / 255)
        assert item.transform is ValueTransform.IDENTITY


def test_a_teacher_without_a_picture_leaves_the_choice_to_the_others(two: Path, cache: Path) -> None:
    (two / "teacher" / "max" / "a.png").unlink()
    report = cache_teacher(two, teacher=["mean", "max"], combine=Combination.BLEND, score=quality_score, cache=cache)
    item = records(cache, report, two)["a"][1]
    assert [(Path(i.source).name.split("-")[0], i.weight) for i in item.made_from] == [("mean", 1.0)]
    assert report.done == 4


def test_cropped_and_whole_teachers_blend_on_their_common_part(two: Path, cache: Path) -> None:
    for name, picture in means(two).items():
        write_picture(two / "teacher" / "cut" / f"{name}.png", picture[:64, :96])
    report = cache_teacher(two, teacher=["cut", "max"], combine=Combination.BLEND, score=quality_score, cache=cache)
    assert {item.crop for _, item in records(cache, report, two).values()} == {(0, 0, 64, 96)}


def test_teachers_of_which_no_picture_can_be_used_say_why(two: Path, cache: Path) -> None:
    for method in ("mean", "max"):
        for name in "abcd":
            write_picture(two / "teacher" / method / f"{name}.png", np.zeros(SIZE, np.uint8))
    with pytest.raises(
        InputError, match="4 teacher pictures of 4 pairs could not be kept: teacher picture of a: it is"
    ):
        cache_teacher(two, teacher=["mean", "max"], combine=Combination.BEST, score=quality_score, cache=cache)


def test_several_teachers_need_a_combination_and_one_needs_none(data: Path, cache: Path) -> None:
    with pytest.raises(InputError, match="--combine best or --combine blend"):
        cache_teacher(data, teacher=["mean", "max"], cache=cache)
    with pytest.raises(InputError, match="with one teacher"):
        cache_teacher(data, teacher=["mean", "mean"], combine=Combination.BEST, score=quality_score, cache=cache)


def test_a_dry_run_of_a_combination_counts(two: Path, cache: Path) -> None:
    report = cache_teacher(
        two, teacher=["mean", "max"], combine=Combination.BEST, score=quality_score, cache=cache, dry_run=True
    )
    assert (report.done, report.dry_run, len(report.ingredients)) == (4, True, 2)
    assert report.seconds == pytest.approx(sum(ingredient.seconds for ingredient in report.ingredients))
    assert not cache.exists()


def test_a_student_trains_on_a_cropped_combination(two: Path, cache: Path, tmp_path: Path) -> None:
    for name, picture in means(two).items():
        write_picture(two / "teacher" / "cut" / f"{name}.png", picture[:64, :96])
    cache_teacher(two, teacher=["cut", "max"], combine=Combination.BEST, score=quality_score, cache=cache)
    changes = ("data.crop=[32, 32]", "data.batch=2", "phases.0.batches=2", "data.workers=0")
    report = distill(two, out=tmp_path / "run", recipe="cached_teacher", changes=changes, cache=cache, teacher="best")
    assert (report.pairs, report.batches) == (4, 2)
    assert np.isfinite(list(report.final_loss.values())).all()


def call(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def test_the_command_line(two: Path, cache: Path, tmp_path: Path) -> None:
    options = ("--teacher", "mean", "--teacher", "max", "--combine", "best", "--cache", cache, "--json")
    code, printed, _ = call("cache-teacher", two, *options, "--pictures", tmp_path / "look")
    assert code == 0
    assert json.loads(printed)["shares"]
    assert sorted(path.stem for path in (tmp_path / "look").iterdir()) == ["a", "b", "c", "d"]
    assert read_grey_u8(tmp_path / "look" / "a.png").shape == SIZE
    code, _, said = call("cache-teacher", two, "--teacher", "mean", "--combine", "worst", "--cache", cache)
    assert code == 2
    assert "best, blend" in said
    write_picture(two / "teacher" / "mean" / "d.png", textured(77))
    code, _, said = call("cache-teacher", two, "--teacher", "mean", "--cache", cache)
    assert code == 2
    assert "teacher picture of d: its detail" in said


def test_a_killed_command_goes_on_where_it_was(tmp_path: Path) -> None:
    """SIGKILL in the middle: what was finished stays, the same command finishes the rest, and no picture differs."""
    folder, cache = tmp_path / "many", tmp_path / "cache"
    for seed in range(40):
        write_picture(folder / "ir" / f"{seed:02d}.png", textured(seed))
        write_picture(folder / "vis" / f"{seed:02d}.png", textured(100 + seed))
    for name, picture in means(folder).items():
        write_picture(folder / "teacher" / "mean" / f"{name}.png", picture)
    command = [sys.executable, "-m", "duskfuse", "cache-teacher", str(folder), "--teacher", "mean"]
    command += ["--cache", str(cache), "--workers", "1", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ)
    while len(list(cache.rglob("item-*.parquet"))) < 5 and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = subprocess.run(command, check=True, capture_output=True, text=True)
    report = json.loads(finished.stdout)
    assert report["done"] + report["already"] == 40
    assert report["already"] >= 5
    (store,) = PriorCache(cache).stores(PriorKind.TEACHER)
    expected = means(folder)
    for files in find_pairs(folder):
        record = store.get(pair_key(*files.prior_keys()))
        assert isinstance(record, TeacherImage)
        np.testing.assert_array_equal(record.y, expected[files.name])
