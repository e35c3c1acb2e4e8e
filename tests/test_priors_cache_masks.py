"""The verb cache-masks: what it makes, what it leaves alone, what it says."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from duskfuse.data.errors import InputError
from duskfuse.data.images import file_sha256, write_picture
from duskfuse.data.priors.cache import PriorCache, PriorKind
from duskfuse.data.priors.cache_masks import cache_masks, open_masks
from duskfuse.data.priors.masks import MaskSet
from duskfuse.data.priors.regions import Regions
from duskfuse.data.priors.sources import MaskSourceName


def blobs(seed: int, height: int = 40, width: int = 56) -> np.ndarray:
    generator = np.random.default_rng(seed)
    picture = np.full((height, width), 60, np.uint8)
    for _ in range(3):
        y, x = int(generator.integers(8, height - 8)), int(generator.integers(8, width - 8))
        cv2.circle(picture, (x, y), 7, int(generator.integers(150, 255)), -1)
    return picture


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    for i in range(4):
        write_picture(folder / "ir" / f"{i}.png", blobs(i))
        write_picture(folder / "vis" / f"{i}.png", np.repeat(blobs(100 + i)[..., None], 3, axis=2))
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def keys_of(data: Path) -> set[str]:
    return {file_sha256(path) for path in [*data.glob("ir/*"), *data.glob("vis/*")]}


def test_every_picture_gets_its_own_masks(data: Path, cache: Path, capsys: pytest.CaptureFixture[str]):
    report = cache_masks(data, cache=cache)
    assert (report.pairs, report.images, report.done, report.already) == (4, 8, 8, 0)
    assert "classical regions" in capsys.readouterr().err
    store = open_masks(cache, keys_of(data), None)
    assert str(store.folder) == report.folder
    assert store.keys() == keys_of(data)
    ir = cv2.imread(str(data / "ir/2.png"), cv2.IMREAD_GRAYSCALE)
    wanted = Regions().masks(np.repeat(ir[..., None], 3, axis=2))
    seen = store.get(file_sha256(data / "ir/2.png"))
    assert isinstance(seen, MaskSet)
    assert len(seen) > 0
    assert seen.bits == wanted.bits
    assert json.loads(json.dumps(report.to_json()))["source"] == "regions"
    assert report.bytes_per_pair == pytest.approx(store.size_bytes() / 4, rel=0.01)


def test_a_second_run_does_no_work(data: Path, cache: Path, monkeypatch: pytest.MonkeyPatch):
    cache_masks(data, cache=cache)
    monkeypatch.setattr(Regions, "masks", None)  # any call would fail
    report = cache_masks(data, cache=cache)
    assert (report.done, report.already) == (0, 8)


def test_only_a_changed_picture_is_made_again(data: Path, cache: Path):
    cache_masks(data, cache=cache)
    write_picture(data / "ir/1.png", blobs(55))
    report = cache_masks(data, cache=cache)
    assert (report.done, report.already) == (1, 7)
    assert open_masks(cache, keys_of(data), None).keys() >= keys_of(data)


def test_changed_settings_make_everything_again(data: Path, cache: Path, monkeypatch: pytest.MonkeyPatch):
    first = cache_masks(data, cache=cache)
    monkeypatch.setattr(Regions, "settings", {"method": "another"})
    second = cache_masks(data, cache=cache)
    assert second.done == 8
    assert first.folder != second.folder
    assert str(open_masks(cache, keys_of(data), None).folder) == second.folder


def test_another_number_of_masks_is_another_setting(data: Path, cache: Path):
    few = cache_masks(data, cache=cache, keep=2)
    many = cache_masks(data, cache=cache)
    assert few.folder != many.folder
    stores = {store.settings["keep"]: store for store in PriorCache(cache).stores(PriorKind.MASKS)}
    longest = {keep: max(len(store.get(key)) for key in keys_of(data)) for keep, store in stores.items()}
    assert longest[2] == 2 < longest[20]


def test_random_crops_come_from_worker_processes_too(data: Path, cache: Path):
    assert cache_masks(data, source=MaskSourceName.RANDOM_CROPS, cache=cache, workers=2).done == 8


def test_a_damaged_shard_is_set_aside_and_rebuilt(data: Path, cache: Path):
    report = cache_masks(data, cache=cache)
    (shard,) = Path(report.folder).glob("*.parquet")
    shard.write_bytes(shard.read_bytes()[:300])
    again = cache_masks(data, cache=cache)
    assert (again.done, again.already) == (8, 0)
    assert (shard.parent / f"{shard.name}.damaged").exists()
    assert open_masks(cache, keys_of(data), None)


def test_one_bad_file_leaves_the_others(data: Path, cache: Path):
    (data / "vis/3.png").write_bytes((data / "vis/3.png").read_bytes()[:60])
    with pytest.raises(InputError, match=r"1 of 8 pictures.*3\.png") as caught:
        cache_masks(data, cache=cache)
    assert caught.value.exit_code == 2
    present = PriorCache(cache).stores(PriorKind.MASKS)[0].keys()
    assert present == keys_of(data) - {file_sha256(data / "vis/3.png")}
    write_picture(data / "vis/3.png", np.repeat(blobs(9)[..., None], 3, axis=2))
    assert cache_masks(data, cache=cache).done == 1


def test_an_interrupt_keeps_what_is_finished(data: Path, cache: Path, monkeypatch: pytest.MonkeyPatch):
    make, calls = Regions.masks, []

    def interrupted(self: Regions, image: np.ndarray) -> MaskSet:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return make(self, image)

    monkeypatch.setattr(Regions, "masks", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cache_masks(data, cache=cache)
    monkeypatch.setattr(Regions, "masks", make)
    report = cache_masks(data, cache=cache)
    assert (report.done, report.already) == (5, 3)


def test_a_dry_run_writes_nothing(data: Path, cache: Path, capsys: pytest.CaptureFixture[str]):
    report = cache_masks(data, cache=cache, dry_run=True)
    assert (report.done, report.already, report.dry_run) == (8, 0, True)
    assert report.seconds > 0
    assert report.bytes_per_pair > 0
    assert report.todo == [str(data / side / f"{i}.png") for i in range(3) for side in ("ir", "vis")][:5]
    said = capsys.readouterr().err
    assert "4 infrared and 4 visible" in said
    assert "hours" in said
    assert not cache.exists()
    cache_masks(data, cache=cache)
    assert cache_masks(data, cache=cache, dry_run=True).done == 0


def test_worker_processes_make_the_same_masks(data: Path, cache: Path, tmp_path: Path):
    (data / "ir/0.png").write_bytes(b"damaged")
    with pytest.raises(InputError):
        cache_masks(data, cache=cache)
    with pytest.raises(InputError, match=r"ir/0\.png"):
        cache_masks(data, cache=tmp_path / "other", workers=2)
    alone = PriorCache(cache).stores(PriorKind.MASKS)[0]
    together = PriorCache(tmp_path / "other").stores(PriorKind.MASKS)[0]
    assert alone.keys() == together.keys()
    assert len(alone.keys()) == 7
    for key in alone.keys():  # noqa: SIM118 - not a mapping
        a, b = alone.get(key), together.get(key)
        assert isinstance(a, MaskSet)
        assert isinstance(b, MaskSet)
        assert a.bits == b.bits


def test_sixteen_bit_infrared_keeps_its_contrast(data: Path, cache: Path):
    raw = (27000 + 8 * blobs(3).astype(np.uint16)).astype(np.uint16)
    cv2.imwrite(str(data / "ir/0.png"), raw)
    cache_masks(data, cache=cache)
    seen = open_masks(cache, keys_of(data), None).get(file_sha256(data / "ir/0.png"))
    assert isinstance(seen, MaskSet)
    assert len(seen) > 0


def test_label_maps_give_both_pictures_the_same_masks(data: Path, cache: Path, capsys: pytest.CaptureFixture[str]):
    for i in range(3):
        ids = np.zeros((40, 56), np.uint8)
        ids[10:30, 10 : 30 + i] = 1 + i
        write_picture(data / "label" / f"{i}.png", ids)
    report = cache_masks(data, source=MaskSourceName.LABELS, cache=cache)
    assert (report.done, report.unlabelled) == (6, ["3"])
    assert "1 of 4 pairs have no label map" in capsys.readouterr().err
    wanted = {file_sha256(data / side / f"{i}.png") for side in ("ir", "vis") for i in range(3)}
    store = open_masks(cache, wanted, MaskSourceName.LABELS)
    ir, vis = (store.get(file_sha256(data / side / "1.png")) for side in ("ir", "vis"))
    assert isinstance(ir, MaskSet)
    assert isinstance(vis, MaskSet)
    assert ir.bits == vis.bits
    assert ir.area.tolist() == [40 * 56 - 20 * 21, 20 * 21]


def test_only_the_masks_of_an_edited_label_map_are_made_again(data: Path, cache: Path):
    for i in range(4):
        ids = np.zeros((40, 56), np.uint8)
        ids[10:30, 10:30] = 1 + i
        write_picture(data / "label" / f"{i}.png", ids)
    cache_masks(data, source=MaskSourceName.LABELS, cache=cache)
    ids[:20] = 9
    write_picture(data / "label/3.png", ids)
    again = [cache_masks(data, source=MaskSourceName.LABELS, cache=cache) for _ in range(2)]
    assert [(report.done, report.already) for report in again] == [(2, 6), (0, 8)]
    masks = open_masks(cache, keys_of(data), MaskSourceName.LABELS).get(file_sha256(data / "ir/3.png"))
    assert isinstance(masks, MaskSet)
    assert masks.made_from == file_sha256(data / "label/3.png")
    assert masks.area.tolist() == [20 * 56, 20 * 56 - 10 * 20, 10 * 20]


def test_no_label_at_all_is_an_error(data: Path, cache: Path):
    with pytest.raises(InputError, match="no pair has a label map"):
        cache_masks(data, source=MaskSourceName.LABELS, cache=cache)


def test_missing_masks_name_the_command(data: Path, cache: Path):
    with pytest.raises(InputError, match=r"8 of 8 .* run duskfuse cache-masks DATA"):
        open_masks(cache, keys_of(data), None)
    cache_masks(data, cache=cache)
    with pytest.raises(InputError, match="1 of 9"):
        open_masks(cache, {*keys_of(data), "0" * 64}, None)
    with pytest.raises(InputError, match="--source sam"):
        open_masks(cache, keys_of(data), MaskSourceName.SAM)


@pytest.mark.realdata
def test_real_pairs_and_a_quick_second_run(shared_data: Path, cache: Path, tmp_path: Path):
    names = ["MSRS_train__00881N.png", "TNO__35.png"]
    for side in ("ir", "vis"):
        (tmp_path / "real" / side).mkdir(parents=True)
        for name in names:
            (tmp_path / "real" / side / name).symlink_to(shared_data / "val" / side / name)
    report = cache_masks(tmp_path / "real", cache=cache)
    assert report.done == 4
    assert 1000 < report.bytes_per_pair < 60_000
    assert cache_masks(tmp_path / "real", cache=cache).seconds < 2
