"""Task scores: against slow, obvious forms, cases by hand and pycocotools; and what wrong predictions are told."""

from __future__ import annotations

import csv
import io
import json
import sys
from contextlib import redirect_stdout
from math import isnan, nan
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from duskfuse.data.class_conventions import CONVENTIONS, convention_for
from duskfuse.data.class_tables import FMB_LABELS, MFNET_LABELS
from duskfuse.data.errors import InputError
from duskfuse.data.images import write_picture
from duskfuse.evaluate.segmentation import miou_interval
from duskfuse.evaluate.task_results import TaskScores
from duskfuse.evaluate.task_scores import task_scores
from duskfuse.tasks.confusion import confusion
from duskfuse.tasks.detection_scores import Boxes, average_precision
from duskfuse.tasks.saliency_scores import map_scores
from duskfuse.tasks.task_network import Task

SIZE = (24, 32)
NAMES = ["a", "b", "c", "d", "e", "f"]


def write_ids(path: Path, ids: NDArray[Any]) -> None:
    write_picture(path, ids.astype(np.uint8))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Six pairs with labels (some FMB classes and 255; bicycle is not among them) and boxes."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "set"
    for name in NAMES:
        write_picture(folder / "ir" / f"{name}.png", rng.integers(0, 256, SIZE, dtype=np.uint8))
        write_picture(folder / "vis" / f"{name}.png", rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8))
        label = rng.choice([0, 1, 2, 8, 9, 14, 255], (6, 8)).repeat(4, axis=0).repeat(4, axis=1)
        write_ids(folder / "label" / f"{name}.png", label)
        (folder / "boxes").mkdir(exist_ok=True)
        (folder / "boxes" / f"{name}.txt").write_text("0 0.25 0.25 0.25 0.25\n2 0.75 0.5 0.25 0.5\n")
    return folder


@pytest.fixture
def salient(tmp_path: Path) -> Path:
    """Six pairs of the layout of VT5000, a disc in each."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "VT5000"
    for name in NAMES:
        write_picture(folder / "T" / f"{name}.png", rng.integers(0, 256, SIZE, dtype=np.uint8))
        write_picture(folder / "RGB" / f"{name}.png", rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8))
        disc = np.hypot(*(np.indices(SIZE) - rng.integers(6, 18, (2, 1, 1)))) < 6
        write_ids(folder / "GT" / f"{name}.png", 255 * disc)
    return folder


def noisy_labels(data: Path, folder: Path, share: float = 0.3) -> Path:
    """The labels with some pixels replaced by any class, bicycle among them."""
    rng = np.random.default_rng(1)
    for name in NAMES:
        ids = cv2.imread(str(data / "label" / f"{name}.png"), -1)
        wrong = rng.random(SIZE) < share
        ids[wrong] = rng.integers(0, 15, SIZE)[wrong]
        ids[ids == 255] = 0
        write_ids(folder / f"{name}.png", ids)
    return folder


def run(data: Path, task: Task, predictions: dict[str, Path], **options: Any) -> TaskScores:
    return task_scores(data, task=task, predictions=predictions, out=data.parent / "out", overwrite=True, **options)


# --- segmentation ---


def test_confusion_counts_every_pixel_once():
    rng = np.random.default_rng(0)
    truth, predicted = (rng.choice([0, 1, 2, 3, 255], (9, 11)) for _ in range(2))
    expected = np.zeros((4, 5), np.int64)
    for t, p in zip(truth.ravel(), predicted.ravel(), strict=True):
        if t != 255:
            expected[t, 4 if p == 255 else p] += 1
    found = confusion(truth, predicted, 4)
    assert found.dtype == np.int64
    assert (found == expected).all()


def slow_iou(truths: list[NDArray[Any]], predictions: list[NDArray[Any]], counted: list[int]) -> dict[int, float]:
    """IoU of each class from all pixels, one by one; nan for a class without a labelled pixel."""
    pixels = [
        (int(t), int(p))
        for truth, predicted in zip(truths, predictions, strict=True)
        for t, p in zip(truth.ravel(), predicted.ravel(), strict=True)
        if t in counted
    ]
    found = {}
    for kind in counted:
        both = sum(t == kind and p == kind for t, p in pixels)
        either = sum(t == kind or p == kind for t, p in pixels)
        found[kind] = both / either if any(t == kind for t, _ in pixels) else nan
    return found


@pytest.mark.parametrize(
    ("name", "counted"),
    [
        ("FMB-15", list(range(15))),
        ("FMB-14", list(range(1, 15))),
        ("FMB-13", [number for number in range(1, 15) if FMB_LABELS.names[number] != "bicycle"]),
    ],
)
def test_miou_of_each_convention(data: Path, tmp_path: Path, name: str, counted: list[int]):
    noisy = noisy_labels(data, tmp_path / "noisy")
    row = run(data, Task.SEGMENTATION, {"noisy": noisy}, classes=name.lower()).rows[0]
    truths, predictions = (
        [cv2.imread(str(folder / f"{stem}.png"), -1) for stem in NAMES] for folder in (data / "label", noisy)
    )
    expected = slow_iou(truths, predictions, counted)
    assert [kind.name for kind in row.classes] == [FMB_LABELS.names[number] for number in counted]
    assert [kind.values["IoU"] for kind in row.classes] == pytest.approx(list(expected.values()), nan_ok=True)
    assert row.totals["mIoU"] == pytest.approx(np.nanmean(list(expected.values())))
    for stem, truth, predicted in zip(NAMES, truths, predictions, strict=True):
        single = slow_iou([truth], [predicted], counted)
        assert row.per_image[stem]["image mIoU"] == pytest.approx(np.nanmean(list(single.values())))
    interval = row.intervals["mIoU"]
    assert interval is not None
    assert interval.low < row.totals["mIoU"] < interval.high


def test_an_absent_class_is_undefined_and_named_however_often_it_is_predicted(data: Path, tmp_path: Path):
    row = run(data, Task.SEGMENTATION, {"noisy": noisy_labels(data, tmp_path / "noisy")}, classes="FMB-15").rows[0]
    bicycle = row.classes[13]
    assert isnan(bicycle.values["IoU"])
    assert bicycle.truth == 0 < bicycle.predicted
    assert "bicycle" in row.absent
    stored = json.loads((tmp_path / "out" / "segmentation.json").read_text())
    assert stored["rows"][0]["classes"]["bicycle"]["IoU"] is None
    assert "bicycle" in stored["rows"][0]["absent"]


def test_the_labels_themselves_score_one(data: Path):
    row = run(data, Task.SEGMENTATION, {"same": data / "label"}, classes="FMB-15").rows[0]
    assert set(row.totals.values()) == {1.0}
    assert row.intervals["mIoU"] == (1.0, 1.0)


def test_interval_is_that_of_resampled_matrices():
    rng = np.random.default_rng(3)
    truth = rng.integers(0, 50, (7, 3)) * (rng.random((7, 3)) < 0.6)  # a sample may miss a class
    right = (truth * rng.random((7, 3))).astype(np.int64)
    predicted = right + rng.integers(0, 20, (7, 3))
    means = []
    draws = np.random.default_rng(0).integers(7, size=(10_000, 7))
    for drawn in draws:
        t, r, p = (part[drawn].sum(axis=0) for part in (truth, right, predicted))
        means.append(np.mean([r[k] / (t[k] + p[k] - r[k]) for k in range(3) if t[k]]))
    found = miou_interval(right, truth, predicted)
    assert found == pytest.approx(np.quantile(means, [0.025, 0.975]), rel=1e-12)
    assert miou_interval(right[:5], truth[:5], predicted[:5]) is None


def test_predictions_in_the_colours_of_the_table_are_ids(data: Path, tmp_path: Path):
    noisy = noisy_labels(data, tmp_path / "noisy")
    for name in NAMES:
        ids = cv2.imread(str(noisy / f"{name}.png"), -1)
        write_picture(tmp_path / "coloured" / f"{name}.png", np.array(FMB_LABELS.colours, np.uint8)[ids])
    folders = {"ids": noisy, "coloured": tmp_path / "coloured"}
    found = run(data, Task.SEGMENTATION, folders, classes="FMB-15")
    ids, coloured = found.to_json()["rows"]
    assert ids["classes"] == coloured["classes"]
    assert [test.better for test in found.tests] == [None]


def test_the_convention_is_the_datasets_or_named():
    assert convention_for(None, [MFNET_LABELS, MFNET_LABELS]).name == "MFNet-9"
    assert convention_for(None, [FMB_LABELS]).name == "FMB-15"
    assert [len(convention.counted) for convention in CONVENTIONS] == [15, 14, 13, 9, 11, 2]
    for classes, tables in (("FMB-12", [FMB_LABELS]), (None, [None]), (None, [FMB_LABELS, MFNET_LABELS])):
        with pytest.raises(InputError, match="FMB-15, FMB-14, FMB-13, MFNet-9"):
            convention_for(classes, tables)


def test_all_that_is_wrong_with_all_folders_is_said_at_once(data: Path, tmp_path: Path):
    first, second = (noisy_labels(data, tmp_path / name) for name in ("first", "second"))
    (first / "b.png").unlink()
    write_ids(first / "stranger.png", np.zeros(SIZE))
    write_ids(second / "c.png", np.zeros((10, 12)))
    (second / "d.png").write_bytes(b"no picture")
    with pytest.raises(InputError) as caught:
        run(data, Task.SEGMENTATION, {"first": first, "second": second}, classes="FMB-15")
    for part in ("1 missing for: b", "1 without a pair: stranger.png", "c.png is 12x10, its pair 32x24", "d.png"):
        assert part in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_ids_of_another_table_are_refused(data: Path, tmp_path: Path):
    noisy = noisy_labels(data, tmp_path / "noisy")
    write_ids(noisy / "c.png", np.full(SIZE, 40))
    with pytest.raises(InputError, match=r"c\.png: 768 pixels of class 40"):
        run(data, Task.SEGMENTATION, {"noisy": noisy}, classes="FMB-15")
    with pytest.raises(InputError, match="classes of MFNet and MSRS are 0 to 8"):
        run(data, Task.SEGMENTATION, {"same": data / "label"}, classes="MFNet-9")


def test_pairs_without_label_are_left_out_and_their_predictions_forgiven(data: Path, tmp_path: Path):
    noisy = noisy_labels(data, tmp_path / "noisy")
    (data / "label" / "a.png").unlink()
    found = run(data, Task.SEGMENTATION, {"noisy": noisy}, classes="FMB-15")
    assert found.left_out == ("a",)
    assert found.pairs == tuple(NAMES[1:])


# --- detection ---


def boxes(*rows: tuple[float, ...]) -> Boxes:
    return Boxes.of(rows)


def random_scenes(seed: int) -> tuple[list[Boxes], list[Boxes]]:
    """Twelve pictures with objects of classes 0 to 3 (2 never true), found shifted, doubled, missed or invented."""
    rng = np.random.default_rng(seed)
    truths, founds = [], []
    for _ in range(12):
        truth, found = [], []
        for _ in range(rng.integers(0, 9)):
            kind, left, top = rng.choice([0, 1, 3]), rng.uniform(0, 400), rng.uniform(0, 300)
            width, height = rng.uniform(5, 200, 2)
            truth.append((kind, left, top, width, height, 1.0))
            for _ in range(rng.integers(0, 3)):
                shift = rng.normal(0, 0.1, 4) * [width, height, width, height]
                kind = kind if rng.random() < 0.9 else 2
                place = (left + shift[0], top + shift[1], max(1.0, width + shift[2]), max(1.0, height + shift[3]))
                found.append((kind, *place, round(rng.random(), 2)))  # confidences repeat
        truths.append(boxes(*truth))
        founds.append(boxes(*found))
    return truths, founds


def pycocotools_ap(truths: list[Boxes], founds: list[Boxes], kinds: list[int]) -> NDArray[np.float64]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def dataset(pictures: list[Boxes]) -> COCO:
        coco = COCO()
        listed = [(image, box) for image, found in enumerate(pictures) for box in zip(*found, strict=True)]
        coco.dataset = {
            "images": [{"id": image, "height": 512, "width": 640} for image in range(len(pictures))],
            "categories": [{"id": kind} for kind in kinds],
            "annotations": [
                {
                    "id": number,
                    "image_id": image,
                    "category_id": int(kind),
                    "bbox": list(place),
                    "area": place[2] * place[3],
                    "iscrowd": 0,
                    "score": float(confidence),
                }
                for number, (image, (kind, place, confidence)) in enumerate(listed, start=1)
            ],
        }
        coco.createIndex()
        return coco

    with redirect_stdout(io.StringIO()):
        evaluation = COCOeval(dataset(truths), dataset(founds), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    return np.where((precision < 0).any(axis=1), nan, precision.mean(axis=1))


def test_average_precision_by_hand():
    pytest.importorskip("faster_coco_eval")
    truth = [boxes((0, 10, 10, 20, 20, 1), (0, 60, 60, 20, 20, 1))]
    found = [boxes((0, 10, 10, 20, 20, 0.9), (0, 100, 10, 20, 20, 0.8), (0, 60, 60, 20, 12, 0.7))]
    ap = average_precision(truth, found, [(128, 128)], [0])[:, 0]
    # hit, miss, hit (IoU 0.6): precision 1 up to recall 0.5 (51 of 101 recalls), then 2/3
    assert ap[:3] == pytest.approx([(51 + 50 * 2 / 3) / 101] * 3)
    # above IoU 0.6 the third box misses as well: nothing beyond recall 0.5
    assert ap[3:] == pytest.approx([51 / 101] * 7)


@pytest.mark.parametrize("seed", range(4))
def test_average_precision_equals_pycocotools(seed: int):
    pytest.importorskip("faster_coco_eval")
    truths, founds = random_scenes(seed)
    kinds = [0, 1, 2, 3]
    found = average_precision(truths, founds, [(512, 640)] * len(truths), kinds)
    expected = pycocotools_ap(truths, founds, kinds)
    assert np.isnan(found[:, 2]).all()  # no object of class 2, however many were found
    assert 0 < np.nanmean(found) < 1
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def write_detections(folder: Path, **texts: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        (folder / f"{name}.txt").write_text(texts.get(name, "0 0.25 0.25 0.25 0.25 0.9\n2 0.75 0.5 0.25 0.4 0.6\n"))
    return folder


def test_coco_results_score_as_the_same_text(data: Path, tmp_path: Path):
    pytest.importorskip("faster_coco_eval")
    text = write_detections(tmp_path / "text", b="", c="1 0.5 0.5 0.5 0.5 0.3\n")
    entries = []
    for name in NAMES:
        for line in (text / f"{name}.txt").read_text().splitlines():
            kind, x, y, w, h, score = map(float, line.split())
            place = [(x - w / 2) * 32, (y - h / 2) * 24, w * 32, h * 24]
            entries.append({"image_id": name, "category_id": int(kind), "bbox": place, "score": score})
    (tmp_path / "results.json").write_text(json.dumps(entries))
    found = run(data, Task.DETECTION, {"text": text, "coco": tmp_path / "results.json"}, classes="msrs-3")
    as_text, as_coco = found.to_json()["rows"]
    assert as_text["classes"] == as_coco["classes"]
    assert found.rows[0].totals == found.rows[1].totals
    person, bicycle, car = found.rows[0].classes
    assert (person.name, person.truth, person.predicted) == ("person", 6, 4)
    assert person.values["AP50:95"] == pytest.approx(np.mean(np.arange(101) <= 66))  # 4 of 6 found, no false one
    assert isnan(bicycle.values["AP50"])
    assert (bicycle.truth, bicycle.predicted) == (0, 1)
    assert car.values["AP75"] == pytest.approx(person.values["AP75"])  # IoU 0.8
    assert found.rows[0].totals["AP75"] == pytest.approx(person.values["AP75"])  # mean over the classes that are there
    assert found.libraries.keys() == {"numpy", "faster-coco-eval"}


def test_nothing_found_scores_zero_and_classes_without_name_have_numbers(data: Path, tmp_path: Path):
    pytest.importorskip("faster_coco_eval")
    row = run(data, Task.DETECTION, {"none": write_detections(tmp_path / "none", **dict.fromkeys(NAMES, ""))}).rows[0]
    assert set(row.totals.values()) == {0.0}
    assert [kind.name for kind in row.classes] == ["class 0", "class 2"]


def test_rows_have_the_same_classes_whatever_each_has_found(data: Path, tmp_path: Path):
    pytest.importorskip("faster_coco_eval")
    more = write_detections(tmp_path / "more", b="5 0.5 0.5 0.5 0.5 0.3\n")
    found = run(data, Task.DETECTION, {"few": write_detections(tmp_path / "few"), "more": more})
    assert [[kind.name for kind in row.classes] for row in found.rows] == [["class 0", "class 2", "class 5"]] * 2
    assert [row.absent for row in found.rows] == [("class 5",)] * 2
    assert found.rows[0].totals["AP50"] == 1 > found.rows[1].totals["AP50"]
    assert len(found.tables()) == 2


def test_pictures_without_any_object_score_nothing(data: Path, tmp_path: Path):
    pytest.importorskip("faster_coco_eval")
    for path in (data / "boxes").iterdir():
        path.write_text("")
    found = run(data, Task.DETECTION, {"found": write_detections(tmp_path / "found")}, classes="MSRS-3")
    assert all(isnan(value) for value in found.rows[0].totals.values())
    nothing = write_detections(tmp_path / "nothing", **dict.fromkeys(NAMES, ""))
    assert all(isnan(value) for value in run(data, Task.DETECTION, {"nothing": nothing}).rows[0].totals.values())


@pytest.mark.parametrize("task", [Task.DETECTION, Task.SALIENCY])
def test_a_missing_library_is_named_with_its_remedy(
    data: Path, salient: Path, monkeypatch: pytest.MonkeyPatch, task: Task
):
    library = {Task.DETECTION: "faster_coco_eval", Task.SALIENCY: "py_sod_metrics"}[task]
    monkeypatch.setitem(sys.modules, library, None)
    place, folder = {Task.DETECTION: (data, data / "boxes"), Task.SALIENCY: (salient, salient / "GT")}[task]
    with pytest.raises(InputError, match=r"pip install 'duskfuse\[tasks\]'"):
        run(place, task, {"any": folder})


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("0 0.5 0.5 0.2 0.2", "confidence"),
        ("0 320 240 64 48 0.9", "from 0 to 1"),
        ("0 0.5 0.5 0.2 nan 0.9", "from 0 to 1"),
        ("0.5 0.5 0.5 0.2 0.2 0.9", "whole number"),
        ("7 0.5 0.5 0.2 0.2 0.9", "class 7"),
    ],
)
def test_malformed_detections_are_named(data: Path, tmp_path: Path, line: str, said: str):
    pytest.importorskip("faster_coco_eval")
    folder = write_detections(tmp_path / "text", d=f"{line}\n")
    with pytest.raises(InputError, match=said) as caught:
        run(data, Task.DETECTION, {"text": folder}, classes="MSRS-3")
    assert "d.txt" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not JSON"),
        ("{}", "no list"),
        ('[{"image_id": "x", "category_id": 0, "bbox": [0, 0, 1, 1], "score": 1}]', "without a pair: x"),
        ('[{"image_id": "a", "category_id": 0, "bbox": [0, 0, 1], "score": 1}]', "entry 1"),
        ('[{"image_id": "a", "category_id": 0, "bbox": [0, 0, 1, 1]}]', "entry 1"),
        ('[{"image_id": "a", "category_id": 3, "bbox": [0, 0, 1, 1], "score": 1}]', "class 3"),
        ("[7]", "entry 1"),
    ],
)
def test_malformed_coco_results_are_named(data: Path, tmp_path: Path, content: str, said: str):
    pytest.importorskip("faster_coco_eval")
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(InputError, match=said):
        run(data, Task.DETECTION, {"coco": tmp_path / "results.json"}, classes="MSRS-3")


# --- saliency ---


def slow_f(binary: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    right = int((binary & truth).sum())
    if right == 0:
        return 0.0
    precision, recall = right / int(binary.sum()), right / int(truth.sum())
    return 1.3 * precision * recall / (0.3 * precision + recall)


def slow_e(binary: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """Fan 2018: the alignment of both maps around their means, enhanced and summed over N − 1 as in its program."""
    p, t = binary - binary.mean(), truth - truth.mean()
    aligned = 2 * p * t / (p * p + t * t)
    return float((((aligned + 1) ** 2) / 4).sum() / (truth.size - 1))


def soft_map(seed: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    rng = np.random.default_rng(seed)
    distance = np.hypot(*(np.indices((20, 26)) - np.array([9, 12])[:, None, None]))
    soft = np.clip(200 - 14 * distance + rng.normal(0, 20, distance.shape), 0, 255).astype(np.uint8)
    return soft, distance < 6


@pytest.mark.parametrize("seed", range(3))
def test_saliency_scores_follow_their_definitions(seed: int):
    pytest.importorskip("py_sod_metrics")
    soft, truth = soft_map(seed)
    found = map_scores(soft, truth)
    stretched = (soft.astype(np.float64) - soft.min()) / (float(soft.max()) - soft.min())
    at_twice_mean = stretched >= min(2 * stretched.mean(), 1)
    levels = (stretched * 255).astype(np.uint8)
    curve = [slow_f(levels >= level, truth) for level in range(255, -1, -1)]
    assert found.f_curve == pytest.approx(curve, abs=1e-12)
    assert found.single["mean F"] == pytest.approx(np.mean(curve))
    assert found.single["adaptive F"] == pytest.approx(slow_f(at_twice_mean, truth))
    assert found.single["adaptive E"] == pytest.approx(slow_e(at_twice_mean, truth))
    assert found.single["MAE"] == pytest.approx(np.abs(stretched - truth).mean())
    assert 0 < found.single["S"] < map_scores(truth.astype(np.uint8) * np.uint8(255), truth).single["S"]


def test_max_f_is_of_the_mean_curve_and_an_empty_truth_leaves_f_undefined(salient: Path, tmp_path: Path):
    pytest.importorskip("py_sod_metrics")
    write_ids(salient / "GT" / "a.png", np.zeros(SIZE))
    maps = {name: np.random.default_rng(place).integers(0, 256, SIZE, np.uint8) for place, name in enumerate(NAMES)}
    for name, soft in maps.items():
        write_picture(tmp_path / "maps" / f"{name}.png", soft)
    found = run(salient, Task.SALIENCY, {"random": tmp_path / "maps", "true": salient / "GT"})
    row = found.rows[0]
    truths = {name: cv2.imread(str(salient / "GT" / f"{name}.png"), -1) > 128 for name in NAMES}
    singles = [map_scores(maps[name], truths[name]) for name in NAMES]
    assert isnan(row.per_image["a"]["adaptive F"])
    assert row.undefined == {"mean F": 1, "adaptive F": 1}
    assert row.totals["max F"] == pytest.approx(np.mean([scores.f_curve for scores in singles[1:]], axis=0).max())
    assert row.totals["max E"] == pytest.approx(np.mean([scores.e_curve for scores in singles], axis=0).max())
    assert row.totals["MAE"] == pytest.approx(np.mean([scores.single["MAE"] for scores in singles]))
    assert row.totals["S"] < 0.6 < found.rows[1].totals["S"]
    assert found.rows[1].totals["MAE"] == 0
    assert {test.better for test in found.tests if test.metric == "MAE"} <= {"true", None}


def test_maps_in_colour_or_16_bit_are_refused(salient: Path, tmp_path: Path):
    pytest.importorskip("py_sod_metrics")
    for name in NAMES:
        path = tmp_path / "maps" / f"{name}.png"
        write_picture(path, np.zeros(SIZE, np.uint8))
    cv2.imwrite(str(tmp_path / "maps" / "e.png"), np.zeros(SIZE, np.uint16))
    with pytest.raises(InputError, match=r"e\.png: uint16 with 1 channels"):
        run(salient, Task.SALIENCY, {"maps": tmp_path / "maps"})
    write_picture(tmp_path / "maps" / "e.png", np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8))
    with pytest.raises(InputError, match=r"e\.png: uint8 with 3 channels"):
        run(salient, Task.SALIENCY, {"maps": tmp_path / "maps"})


# --- the verb ---


def test_files_are_strict_complete_and_never_replaced_unasked(data: Path, tmp_path: Path):
    noisy = noisy_labels(data, tmp_path / "noisy")
    folders = {"same": data / "label", "noisy": noisy}
    found = run(data, Task.SEGMENTATION, folders, classes="FMB-14")

    def no_constants(name: str) -> Any:
        raise AssertionError(name)

    out = tmp_path / "out"
    stored = json.loads((out / "segmentation.json").read_text(), parse_constant=no_constants)
    assert stored == found.to_json()
    assert (stored["classes"], stored["pairs"], stored["task"]) == ("FMB-14", 6, "segmentation")
    assert stored["libraries"].keys() == {"numpy"}
    assert stored["tests"][0]["better"] is None or stored["tests"][0]["better"] == "same"
    with (out / "segmentation.csv").open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert len(lines) == 2 * (3 + 14 * 2)
    value = next(line["value"] for line in lines if (line["method"], line["measure"]) == ("noisy", "mIoU"))
    assert float(value) == found.rows[1].totals["mIoU"]
    with (out / "segmentation_per_image.csv").open(newline="") as stream:
        assert [line["pair"] for line in csv.DictReader(stream)] == [name for name in NAMES for _ in folders]
    assert len({row.sha256 for row in found.rows}) == 2
    with pytest.raises(InputError, match="overwrite"):
        task_scores(data, task=Task.SEGMENTATION, predictions=folders, out=out, classes="FMB-14")


def test_tables_say_which_classes_are_absent(data: Path, tmp_path: Path):
    from rich.console import Console

    found = run(data, Task.SEGMENTATION, {"noisy": noisy_labels(data, tmp_path / "noisy")}, classes="FMB-15")
    console = Console(width=160, file=io.StringIO(), record=True)
    for table in found.tables():
        console.print(table)
    text = console.export_text()
    assert "FMB-15" in text
    assert "Absent from the ground truth, in no mean: building" in text
    assert text.count("absent") == 2 * 9  # IoU and accuracy of nine classes


def test_a_dataset_without_ground_truth_says_so(data: Path, tmp_path: Path):
    for path in (data / "label").iterdir():
        path.unlink()
    pytest.importorskip("faster_coco_eval")
    with pytest.raises(InputError, match="none of 6 pairs has labels"):
        run(data, Task.SEGMENTATION, {"noisy": tmp_path}, classes="FMB-15")
    with pytest.raises(InputError, match="without predictions"):
        run(data, Task.DETECTION, {})
    with pytest.raises(InputError, match="no such folder"):
        run(data, Task.DETECTION, {"missing": tmp_path / "missing"})
    with pytest.raises(InputError, match="saliency has no classes"):
        run(data, Task.SALIENCY, {"maps": data}, classes="FMB-15")


def test_the_command_prints_json_and_refuses_options_of_the_metrics(data: Path, tmp_path: Path):
    from typer.testing import CliRunner

    from duskfuse.cli import app

    noisy = noisy_labels(data, tmp_path / "noisy")
    command = ["evaluate", str(data), "--out", str(tmp_path / "out"), "--task", "segmentation", "--json"]
    command += ["--predictions", f"noisy={noisy}", "--classes", "FMB-13"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == json.loads((tmp_path / "out" / "segmentation.json").read_text())
    for wrong in ([*command, "--model", "unet"], [*command[:4], "--classes", "FMB-13"], [*command[:5], "poetry"]):
        refused = CliRunner().invoke(app, wrong)
        assert refused.exit_code == 2
        assert "--task" in refused.output
    twice = CliRunner().invoke(app, [*command, "--overwrite", "--predictions", f"noisy={data / 'label'}"])
    assert twice.exit_code == 2
    assert "two rows" in twice.output


@pytest.mark.realdata
def test_real_boxes_score_one_against_themselves(shared_data: Path, tmp_path: Path):
    pytest.importorskip("faster_coco_eval")
    val = shared_data / "detect" / "val"
    folder = tmp_path / "exact"
    folder.mkdir()
    for path in (val / "boxes").glob("*.txt"):
        lines = (f"{line} 0.5\n" for line in path.read_text().splitlines() if line.strip())
        (folder / path.name).write_text("".join(lines))
    found = task_scores(val, task=Task.DETECTION, predictions={"exact": folder}, out=tmp_path / "out", classes="MSRS-3")
    assert set(found.rows[0].totals.values()) == {1.0}
    assert [kind.name for kind in found.rows[0].classes] == ["person", "bicycle", "car"]
