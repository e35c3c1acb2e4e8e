"""Task scores from a network: real ONNX files whose answers are known, and what files of other kinds are told."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from duskfuse.cli import app
from duskfuse.data.class_conventions import convention_named
from duskfuse.data.class_tables import FMB_LABELS, MSRS_OBJECTS
from duskfuse.data.errors import InputError
from duskfuse.data.images import read_picture, to_u8, write_picture
from duskfuse.data.scenes.write import write_scenes
from duskfuse.data.weights import ModelCard, save_weights
from duskfuse.evaluate.evaluate import OnBad
from duskfuse.evaluate.network_scores import network_scores
from duskfuse.evaluate.onnx_run import NetworkInput
from duskfuse.evaluate.task_predictors import LEAST_CONFIDENCE, NMS_IOU, open_onnx_predictor
from duskfuse.evaluate.task_scores import task_scores
from duskfuse.export.fuse import fuse
from duskfuse.tasks.detection_scores import Boxes
from duskfuse.tasks.open_segmenter import new_segmenter, segmenter_settings
from duskfuse.tasks.task_network import Task
from duskfuse.tasks.trunk import Trunk

SIZE = (72, 88)
"""Neither side a multiple of 32."""
ROAD, PERSON = 1, 8
THRESHOLD = 0.50137
WEIGHTS = np.array([0.2, 0.5, 0.3], np.float32)
TRIVIAL = ["average", "maximum", "visible only", "infrared only"]
Shape = Sequence[int | str]
FREE: Shape = [1, 3, "H", "W"]


def network(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    outputs: dict[str, tuple[int, Shape]],
    constants: dict[str, NDArray[Any]] | None = None,
    *,
    inputs: dict[str, Shape] | None = None,
    **metadata: str,
) -> Path:
    """Write an ONNX file: one input ``x`` unless others are given; outputs by name with type and shape."""
    given = {"x": FREE} if inputs is None else inputs
    graph = helper.make_graph(
        list(nodes),
        "task",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in given.items()],
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, metadata)
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path


def bright_is_person(
    path: Path, *, classes: int = 15, road: int = ROAD, person: int = PERSON, shape: Shape = FREE, **metadata: str
) -> Path:
    """Logits ``[1,C,H,W]``: the class of a person where the weighted sum of RGB is above the threshold, else road."""
    weight, bias = np.zeros((classes, 3, 1, 1), np.float32), np.full(classes, -1e3, np.float32)
    weight[person, :, 0, 0], bias[person], bias[road] = WEIGHTS, -THRESHOLD, 0
    return network(
        path,
        [helper.make_node("Conv", ["x", "w", "b"], ["logits"])],
        {"logits": (TensorProto.FLOAT, [1, classes, *shape[2:]])},
        {"w": weight, "b": bias},
        inputs={"x": shape},
        **metadata,
    )


def constants(path: Path, shape: Shape = FREE, *, inputs: dict[str, Shape] | None = None, **values: Any) -> Path:
    """A network that always gives the same: outputs by name."""
    metadata = {name: value for name, value in values.items() if isinstance(value, str)}
    arrays = {name: value for name, value in values.items() if not isinstance(value, str)}
    return network(
        path,
        [helper.make_node("Identity", [f"{name}_value"], [name]) for name in arrays],
        {name: (helper.np_dtype_to_tensor_dtype(a.dtype), list(a.shape)) for name, a in arrays.items()},
        {f"{name}_value": value for name, value in arrays.items()},
        inputs={"x": shape} if inputs is None else inputs,
        **metadata,
    )


def dense(path: Path, last: str | None, shape: Shape = FREE, **metadata: str) -> Path:
    """A map ``[1,1,H,W]``: 4 (weighted RGB − threshold), through another operator where one is named."""
    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["found" if last is None else "sum"])]
    if last is not None:
        nodes.append(helper.make_node(last, ["sum"], ["found"]))
    return network(
        path,
        nodes,
        {"found": (TensorProto.FLOAT, [1, 1, *shape[2:]])},
        {"w": 4 * WEIGHTS.reshape(1, 3, 1, 1), "b": np.array([-4 * THRESHOLD], np.float32)},
        inputs={"x": shape},
        **metadata,
    )


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six built-in scenes; their label ids are read as those of FMB."""
    folder = tmp_path_factory.mktemp("scenes") / "scenes"
    write_scenes(folder, count=6, size=SIZE)
    return folder


@pytest.fixture
def salient(tmp_path: Path) -> Path:
    """Two pairs of the layout of VT5000."""
    rng = np.random.default_rng(0)
    for name in "ab":
        write_picture(tmp_path / "VT5000" / "T" / f"{name}.png", rng.integers(0, 256, SIZE, dtype=np.uint8))
        write_picture(tmp_path / "VT5000" / "RGB" / f"{name}.png", rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8))
        disc = np.hypot(*(np.indices(SIZE) - 36)) < 20
        write_picture(tmp_path / "VT5000" / "GT" / f"{name}.png", 255 * disc.astype(np.uint8))
    return tmp_path / "VT5000"


def names_of(data: Path) -> list[str]:
    return sorted(path.stem for path in (data / "ir").iterdir())


def random_rgb(seed: int = 0, size: tuple[int, int] = SIZE) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def slow_ids(rgb: NDArray[np.uint8]) -> NDArray[np.int64]:
    return np.where(rgb.astype(float) / 255 @ WEIGHTS.astype(float) > np.float32(THRESHOLD), PERSON, ROAD)


def slow_miou(truths: Sequence[NDArray[Any]], predictions: Sequence[NDArray[Any]]) -> float:
    """Mean over the classes of the labels of TP / (TP + FP + FN), from all pixels together."""
    truth, predicted = (np.concatenate([p.ravel() for p in pictures]) for pictures in (truths, predictions))
    kinds = np.unique(truth)
    return float(
        np.mean([((truth == k) & (predicted == k)).sum() / ((truth == k) | (predicted == k)).sum() for k in kinds])
    )


# --- segmentation ---


def test_rows_of_scenes_score_as_a_slow_reference(scenes: Path, tmp_path: Path):
    names = names_of(scenes)
    for name in names:  # a folder in grey, and of 16 bit
        write_picture(tmp_path / "grey" / f"{name}.png", read_picture(scenes / "ir" / f"{name}.png") // 2 + 90)
    found = network_scores(
        scenes,
        task=Task.SEGMENTATION,
        network=bright_is_person(tmp_path / "net.onnx"),
        fused={"grey": tmp_path / "grey"},
        classes="FMB-15",
        out=tmp_path / "out",
    )
    assert [row.name for row in found.rows] == ["grey", *TRIVIAL]
    labels, irs, vis = ([read_picture(scenes / side / f"{n}.png") for n in names] for side in ("label", "ir", "vis"))
    pictures = {
        "grey": [np.repeat((ir // 2 + 90)[..., None], 3, axis=2) for ir in irs],
        "visible only": vis,
        "infrared only": [np.repeat(ir[..., None], 3, axis=2) for ir in irs],
    }
    by_name = {row.name: row for row in found.rows}
    for row, seen in pictures.items():
        expected = slow_miou(labels, [slow_ids(picture) for picture in seen])
        assert 0 < expected < 1
        assert by_name[row].totals["mIoU"] == pytest.approx(expected, abs=1e-12)
    stored = json.loads((tmp_path / "out" / "segmentation.json").read_text())
    assert stored["network"]["file"] == "net.onnx"
    assert stored["network"]["pictures"].keys() == by_name.keys()
    assert found.left_out == ()


def test_average_and_maximum_have_the_colour_of_the_visible_picture(scenes: Path, tmp_path: Path):
    from duskfuse.data.images import grey_u8
    from duskfuse.export.runtime.fuser import recombine  # the device's own form

    names = names_of(scenes)
    net = bright_is_person(tmp_path / "net.onnx")
    found = network_scores(scenes, task=Task.SEGMENTATION, network=net, classes="FMB-15", out=tmp_path / "out")
    for rule, row in (("average", found.rows[0]), ("maximum", found.rows[1])):
        predictions, labels = [], []
        for name in names:
            ir, vis, label = (read_picture(scenes / side / f"{name}.png") for side in ("ir", "vis", "label"))
            y = grey_u8(vis)
            fused = (ir.astype(int) + y) // 2 if rule == "average" else np.maximum(ir, y)
            rgb = recombine(fused.astype(np.float32) / 255, vis.astype(np.float32) / 255)
            predictions.append(slow_ids(to_u8(rgb)))
            labels.append(label)
        assert row.totals["mIoU"] == pytest.approx(slow_miou(labels, predictions), abs=2e-4)  # rounding of one level


def test_a_model_scores_as_the_pictures_that_it_wrote(scenes: Path, tmp_path: Path, checkpoint: Path):
    fuse(scenes / "ir", scenes / "vis", tmp_path / "fused", model=checkpoint)
    net = bright_is_person(tmp_path / "net.onnx")
    found = network_scores(
        scenes,
        task=Task.SEGMENTATION,
        network=net,
        model=[checkpoint],
        fused={"written": tmp_path / "fused"},
        classes="FMB-14",
        out=tmp_path / "out",
    )
    model, written = found.rows[:2]
    assert (model.name, written.name) == ("tiny", "written")
    assert model.totals["mIoU"] == pytest.approx(written.totals["mIoU"], abs=2e-4)
    pictures = found.to_json()["network"]["pictures"]
    assert pictures["tiny"]["sha256"] != pictures["written"]["sha256"]


def slow_bilinear(plane: NDArray[Any], size: tuple[int, int]) -> NDArray[np.float64]:
    """Pixel by pixel, corners of the pictures laid upon each other, borders repeated."""
    found = np.zeros((*size, *plane.shape[2:]))
    for row in range(size[0]):
        for column in range(size[1]):
            place = [(i + 0.5) * n / m - 0.5 for i, n, m in zip((row, column), plane.shape, size, strict=False)]
            low = [int(np.floor(p)) for p in place]
            for dr in (0, 1):
                for dc in (0, 1):
                    share = abs(1 - dr - (place[0] - low[0])) * abs(1 - dc - (place[1] - low[1]))
                    r, c = (
                        min(max(v, 0), n - 1) for v, n in zip((low[0] + dr, low[1] + dc), plane.shape, strict=False)
                    )
                    found[row, column] += share * plane[r, c]
    return found


def test_a_fixed_size_resizes_there_and_the_logits_back(tmp_path: Path):
    rgb = random_rgb(size=(20, 26))
    net = open_onnx_predictor(
        bright_is_person(tmp_path / "net.onnx", shape=[1, 3, 48, 32]), Task.SEGMENTATION, FMB_LABELS
    )
    logits = slow_bilinear(rgb / 255, (48, 32)) @ WEIGHTS - THRESHOLD
    expected = slow_bilinear(logits, (20, 26))
    clear = np.abs(expected) > 1e-5
    assert clear.mean() > 0.99
    assert (net.predict(rgb)[clear] == np.where(expected > 0, PERSON, ROAD)[clear]).all()


def test_ids_are_taken_as_they_are(tmp_path: Path):
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["logits"]),
        helper.make_node("ArgMax", ["logits"], ["ids"], axis=1, keepdims=0),
    ]
    weight, bias = np.zeros((15, 3, 1, 1), np.float32), np.full(15, -1e3, np.float32)
    weight[PERSON, :, 0, 0], bias[PERSON], bias[ROAD] = WEIGHTS, -THRESHOLD, 0
    path = network(tmp_path / "ids.onnx", nodes, {"ids": (TensorProto.INT64, [1, "H", "W"])}, {"w": weight, "b": bias})
    rgb = random_rgb()
    ids = open_onnx_predictor(path, Task.SEGMENTATION, FMB_LABELS).predict(rgb)
    assert ids.shape == SIZE
    assert (ids == slow_ids(rgb)).all()


@pytest.mark.parametrize("form", [json.dumps, lambda names: str(dict(enumerate(names)))])
def test_named_classes_are_matched_by_name(tmp_path: Path, form: Callable[[list[str]], str]):
    path = bright_is_person(tmp_path / "n.onnx", classes=3, road=0, person=2, names=form(["terrain", "Car", "person"]))
    net = open_onnx_predictor(path, Task.SEGMENTATION, FMB_LABELS)
    rgb = random_rgb()
    assert (net.predict(rgb) == np.where(slow_ids(rgb) == PERSON, PERSON, 255)).all()
    assert net.facts()["classes"] == {"terrain": None, "Car": "car", "person": "person"}


@pytest.mark.parametrize("in_metadata", [True, False])
def test_imagenet_normalisation(tmp_path: Path, in_metadata: bool):
    rgb = random_rgb()
    stated = {"input": "imagenet"} if in_metadata else {}
    path = bright_is_person(tmp_path / "net.onnx", **stated)
    option = None if in_metadata else NetworkInput.IMAGENET
    ids = open_onnx_predictor(path, Task.SEGMENTATION, FMB_LABELS, option).predict(rgb)
    values = (rgb / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    assert (ids == np.where(values @ WEIGHTS > THRESHOLD, PERSON, ROAD)).all()
    assert (ids != slow_ids(rgb)).any()


def test_a_segmenter_of_ours_scores_as_its_own_ids(scenes: Path, tmp_path: Path):
    torch.manual_seed(0)
    classes = convention_named("scenes-11")
    segmenter = new_segmenter(classes).eval()
    path = tmp_path / "seg.safetensors"
    card = ModelCard("segmenter", segmenter_settings(segmenter, Trunk.RESIDUAL), "rgb", "0.1.0", "nothing")
    save_weights(path, segmenter.network, card)
    found = network_scores(scenes, task=Task.SEGMENTATION, network=path, classes="scenes-11", out=tmp_path / "out")
    labels, predictions = [], []
    for name in names_of(scenes):
        rgb = torch.from_numpy(read_picture(scenes / "vis" / f"{name}.png")).permute(2, 0, 1)[None].float() / 255
        labels.append(read_picture(scenes / "label" / f"{name}.png"))
        predictions.append(segmenter.predict(rgb)[0].numpy())
    assert found.rows[2].totals["mIoU"] == pytest.approx(slow_miou(labels, predictions), abs=1e-12)
    with pytest.raises(InputError, match="trained on scenes-11, and FMB-15 is wanted"):
        network_scores(scenes, task=Task.SEGMENTATION, network=path, classes="FMB-15", out=tmp_path / "other")
    with pytest.raises(InputError, match="'detector' is wanted here"):
        network_scores(scenes, task=Task.DETECTION, network=path, out=tmp_path / "other")


# --- detection ---

CORNERS = np.array([[[10, 10, 30, 40], [50, 20, 200, 60], [5, 5, 5, 9], [0, 0, 20, 20]]], np.float32)


def test_boxes_scores_and_labels_score_as_the_same_text(scenes: Path, tmp_path: Path):
    pytest.importorskip("faster_coco_eval")
    labels, scores = np.array([[0, 2, 0, 1]], np.int64), np.array([[0.9, 0.8, 0.7, 0.25]], np.float32)
    net = constants(tmp_path / "net.onnx", boxes=CORNERS, scores=scores, labels=labels)
    found = network_scores(scenes, task=Task.DETECTION, network=net, out=tmp_path / "out")
    height, width = SIZE
    for name in names_of(scenes):  # the second box is cut at the right edge; the third has no area
        lines = []
        for kind, left, top, right, bottom, score in [
            (0, 10, 10, 30, 40, 0.9),
            (2, 50, 20, width, 60, 0.8),
            (1, 0, 0, 20, 20, 0.25),
        ]:
            centre = (left + right) / 2 / width, (top + bottom) / 2 / height
            lines.append(f"{kind} {centre[0]} {centre[1]} {(right - left) / width} {(bottom - top) / height} {score}\n")
        (tmp_path / "text").mkdir(exist_ok=True)
        (tmp_path / "text" / f"{name}.txt").write_text("".join(lines))
    expected = task_scores(scenes, task=Task.DETECTION, predictions={"x": tmp_path / "text"}, out=tmp_path / "by hand")
    for row in found.rows:
        assert row.totals == pytest.approx(expected.rows[0].totals, abs=1e-9, nan_ok=True)
    assert [row.name for row in found.rows] == TRIVIAL


def slow_yolo(output: NDArray[Any]) -> list[tuple[int, float, list[float]]]:
    """Class, confidence and corners after NMS class by class, best first."""
    found = []
    for anchor in output.T.astype(float):
        x, y, w, h = anchor[:4]
        corners = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
        found += [(k, c, corners) for k, c in enumerate(anchor[4:]) if c > LEAST_CONFIDENCE]
    kept: list[tuple[int, float, list[float]]] = []
    for kind, confidence, box in sorted(found, key=lambda item: -item[1]):
        overlaps = []
        for other in (b for k, _, b in kept if k == kind):
            across, down = (max(0.0, min(box[i + 2], other[i + 2]) - max(box[i], other[i])) for i in (0, 1))
            areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (box, other)]
            overlaps.append(across * down / (sum(areas) - across * down))
        if all(overlap <= NMS_IOU for overlap in overlaps):
            kept.append((kind, confidence, box))
    return kept


def test_yolo_output_is_decoded_and_moved_back_to_the_picture(tmp_path: Path):
    rng = np.random.default_rng(2)
    anchors = 60
    output = np.concatenate(
        [rng.uniform(20, 44, (2, anchors)), rng.uniform(4, 16, (2, anchors)), rng.random((3, anchors))]
    )
    output[4:][rng.random((3, anchors)) < 0.5] = 0
    output[:4, 30:40] = output[:4, :10] + rng.normal(0, 0.3, (4, 10))  # near doubles
    output[4:, 30:40] = output[4:, :10] * 0.9
    path = constants(tmp_path / "yolo.onnx", [1, 3, 64, 64], output0=output[None].astype(np.float32))
    predicted = open_onnx_predictor(path, Task.DETECTION, MSRS_OBJECTS).predict(random_rgb(size=(48, 96)))
    assert isinstance(predicted, Boxes)
    expected = slow_yolo(output.astype(np.float32))
    assert len(expected) < (output[4:] > 0).sum()  # something was suppressed
    rows = []
    for kind, confidence, corners in expected:  # 96x48 becomes 64x32, 16 rows of grey above it
        left, top, right, bottom = np.clip((np.array(corners) - [0, 16, 0, 16]) * 1.5, 0, [96, 48, 96, 48])
        if right > left and bottom > top:
            rows.append([kind, left, top, right - left, bottom - top, confidence])
    np.testing.assert_allclose(
        np.column_stack([predicted.kinds, predicted.places, predicted.confidences]), rows, atol=1e-4
    )


def test_detection_keeps_the_proportions_and_fills_up_with_grey(tmp_path: Path):
    """The confidence of one box is the mean of what the network sees."""
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Reshape", ["mean", "one"], ["flat"]),
        helper.make_node("Concat", ["place", "flat", "flat"], ["column"], axis=1),
        helper.make_node("Expand", ["column", "wide"], ["output0"]),
    ]
    path = network(
        tmp_path / "mean.onnx",
        nodes,
        {"output0": (TensorProto.FLOAT, [1, 6, 8])},
        {
            "one": np.array([1, 1, 1]),
            "place": np.array([[[32], [32], [10], [10]]], np.float32),
            "wide": np.array([1, 6, 8]),
        },
        inputs={"x": [1, 3, 64, 64]},
        names='["person", "car"]',
    )
    boxes = open_onnx_predictor(path, Task.DETECTION, MSRS_OBJECTS).predict(np.full((32, 128, 3), 255, np.uint8))
    assert isinstance(boxes, Boxes)
    assert sorted(boxes.kinds) == [0, 2]  # person and car of MSRS
    assert boxes.confidences == pytest.approx([0.25 + 0.75 * 114 / 255] * 2, abs=1e-5)


# --- saliency ---


@pytest.mark.parametrize(
    ("last", "metadata", "squashed"),
    [("Sigmoid", {}, 1), (None, {}, 1), ("Sigmoid", {"output": "logits"}, 2), ("Relu", {}, "relu")],
)
def test_maps_are_probabilities_or_logits(tmp_path: Path, last: str | None, metadata: dict[str, str], squashed: Any):
    rgb = random_rgb()
    predicted = open_onnx_predictor(dense(tmp_path / "s.onnx", last, **metadata), Task.SALIENCY, None).predict(rgb)
    found = 4 * (rgb / 255 @ WEIGHTS - THRESHOLD)
    if squashed == "relu":
        found = 1 / (1 + np.exp(-np.maximum(found, 0)))
    else:
        for _ in range(squashed):
            found = 1 / (1 + np.exp(-found))
    assert isinstance(predicted, np.ndarray)
    assert predicted.shape == SIZE
    assert np.abs(predicted - 255 * found).max() < 0.51


def test_saliency_scores_as_the_same_maps(salient: Path, tmp_path: Path):
    pytest.importorskip("py_sod_metrics")
    net = dense(tmp_path / "s.onnx", "Sigmoid")
    found = network_scores(salient, task=Task.SALIENCY, network=net, out=tmp_path / "out")
    for name in "ab":
        rgb = read_picture(salient / "RGB" / f"{name}.png")
        write_picture(tmp_path / "maps" / f"{name}.png", 1 / (1 + np.exp(-4 * (rgb / 255 @ WEIGHTS - THRESHOLD))))
    given = task_scores(salient, task=Task.SALIENCY, predictions={"m": tmp_path / "maps"}, out=tmp_path / "given")
    assert found.rows[2].name == "visible only"
    assert found.rows[2].totals == pytest.approx(given.rows[0].totals, abs=1e-3)


# --- what is wrong ---


def two_inputs(path: Path) -> Path:
    return constants(path, inputs={"x": FREE, "y": FREE}, logits=np.zeros((1, 15, 4, 4), np.float32))


@pytest.mark.parametrize(
    ("make", "task", "said"),
    [
        (lambda p: bright_is_person(p, classes=9), Task.SEGMENTATION, "has 9 classes"),
        (lambda p: bright_is_person(p, names='["road"]'), Task.SEGMENTATION, "metadata name 1"),
        (lambda p: bright_is_person(p, names=str(list("abcdefghijklmno"))), Task.SEGMENTATION, "matched by name"),
        (lambda p: bright_is_person(p, names="__import__('os')"), Task.SEGMENTATION, "names are a list"),
        (lambda p: bright_is_person(p, names='{"1": "road"}'), Task.SEGMENTATION, "by number from 0"),
        (lambda p: bright_is_person(p, input="bgr"), Task.SEGMENTATION, "one of unit, imagenet"),
        (lambda p: dense(p, None, output="maybe"), Task.SALIENCY, "probabilities or logits"),
        (lambda p: dense(p, None, output="probabilities"), Task.SALIENCY, "probabilities from -"),
        (two_inputs, Task.SEGMENTATION, "one float input"),
        (
            lambda p: constants(p, [1, 1, 8, 8], logits=np.zeros((1, 15, 4, 4), np.float32)),
            Task.SEGMENTATION,
            "[1,3,H,W]",
        ),
        (lambda p: constants(p, [1, 3, 8, "W"], logits=np.zeros((1, 15, 4, 4), np.float32)), Task.SEGMENTATION, "free"),
        (lambda p: constants(p, found=np.zeros((1, 15), np.float32)), Task.SEGMENTATION, "found tensor(float) [1,15]"),
        (lambda p: constants(p, ids=np.full((1, 96, 96), 40)), Task.SEGMENTATION, "predicts class 40"),
        (lambda p: constants(p, logits=np.full((1, 15, 4, 4), np.nan, np.float32)), Task.SEGMENTATION, "NaN"),
        (bright_is_person, Task.SALIENCY, "is not a saliency network"),
        (bright_is_person, Task.DETECTION, "is not a detection network"),
        (lambda p: constants(p, o=np.zeros((1, 300, 6), np.float32)), Task.DETECTION, "transposed, or with NMS inside"),
        (lambda p: constants(p, o=np.full((1, 7, 50), 9, np.float32)), Task.DETECTION, "confidences from 9 to 9"),
        (lambda p: constants(p, o=np.zeros((1, 84, 500), np.float32)), Task.DETECTION, "has 80 classes"),
    ],
)
def test_networks_of_other_kinds_are_refused(tmp_path: Path, make: Callable[[Path], Path], task: Task, said: str):
    table = {Task.SEGMENTATION: FMB_LABELS, Task.DETECTION: MSRS_OBJECTS, Task.SALIENCY: None}[task]
    with pytest.raises(InputError) as caught:
        open_onnx_predictor(make(tmp_path / "net.onnx"), task, table).predict(random_rgb())
    assert said in str(caught.value)
    assert caught.value.rule
    assert caught.value.remedy


def test_the_files_own_statement_holds(tmp_path: Path):
    path = bright_is_person(tmp_path / "net.onnx", input="imagenet")
    with pytest.raises(InputError, match="own statement"):
        open_onnx_predictor(path, Task.SEGMENTATION, FMB_LABELS, NetworkInput.UNIT)


# --- the verb ---


def evaluate(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)])


def test_the_command_prints_json_and_refuses_what_does_not_go_together(scenes: Path, tmp_path: Path):
    net = bright_is_person(tmp_path / "net.onnx")
    (tmp_path / "no.onnx").write_bytes(b"no network")
    (tmp_path / "net.pt").write_bytes(b"")
    given = [scenes, "--out", tmp_path / "out", "--classes", "FMB-15"]
    seg = [*given, "--task", "segmentation"]
    for arguments, said in [
        ([*given, "--network", net], "--task"),
        ([*seg, "--network", tmp_path / "missing.onnx"], "is not there"),
        ([*seg, "--network", tmp_path / "no.onnx"], "cannot be opened"),
        ([*seg, "--network", tmp_path / "net.pt"], "an .onnx file, a .safetensors file"),
        ([*seg[:-1], "detection", "--classes", "MSRS-3", "--network", tmp_path / "net.pt"], "an .onnx file"),
        ([*seg, "--network", tmp_path, "--network-input", "unit"], "leave it away"),
        ([*seg, "--network", tmp_path], "segmenter"),
        ([*seg, "--network", net, "--predictions", f"x={scenes / 'label'}"], "with --predictions"),
        ([*seg, "--network", net, "--network-input", "bgr"], "one of unit, imagenet"),
        ([*seg, "--network", net, "--metrics", "EN"], "two commands"),
        ([*seg, "--network", net, "--fused", f"average={scenes / 'ir'}"], "two rows are called 'average'"),
        ([*seg, "--network", net, "--fused", f"x={scenes / 'boxes'}"], "6 missing"),
        ([*seg, "--model", "unet"], "say --network FILE"),
        ([*given, "--task", "saliency", "--network", net], "no classes"),
        ([scenes, "--out", tmp_path / "out", "--task", "saliency", "--network", net], "none of 6 pairs"),
        ([scenes, "--out", tmp_path / "out", "--task", "segmentation", "--network", net], "say --classes"),
        ([*seg, "--network", net, "--robustness"], "two commands"),
        ([scenes, "--out", tmp_path / "out", "--video", "--network", net], "--network with --video"),
    ]:
        result = evaluate(*arguments)
        assert (result.exit_code, said in result.stderr) == (2, True), result.stderr
    assert not (tmp_path / "out").exists()
    result = evaluate(*seg, "--network", net, "--json")
    assert result.exit_code == 0, result.stderr
    printed = json.loads(result.stdout)
    assert [row["name"] for row in printed["rows"]] == TRIVIAL
    assert printed["network"]["input"] == "unit"
    assert evaluate(*seg, "--network", net).exit_code == 2  # never replaced unasked
    shown = evaluate(*seg, "--network", net, "--overwrite")
    assert shown.exit_code == 0
    assert "Predicted by net.onnx" in shown.stdout
    assert "Classes: IoU" in shown.stdout  # eight columns would be cut into pieces


def test_a_killed_run_goes_on_and_another_network_starts_anew(scenes: Path, tmp_path: Path):
    def run(net: Path, *, overwrite: bool = False) -> tuple[dict[Path, int], list[float]]:
        found = network_scores(
            scenes, task=Task.SEGMENTATION, network=net, classes="FMB-15", out=tmp_path / "out", overwrite=overwrite
        )
        files = sorted((tmp_path / "out" / "segmentation_predictions").rglob("*.png"))
        return {path: path.stat().st_mtime_ns for path in files}, [row.totals["mIoU"] for row in found.rows]

    net = bright_is_person(tmp_path / "net.onnx")
    first, scores = run(net)
    assert len(first) == 4 * 6
    lost = list(first)[5]
    lost.unlink()
    (tmp_path / "out" / "segmentation.json").unlink()
    for name in ("segmentation.csv", "segmentation_per_image.csv"):
        (tmp_path / "out" / name).unlink()
    second, again = run(net)
    assert again == scores
    assert [path for path in first if second[path] != first[path]] == [lost]
    other, changed = run(bright_is_person(tmp_path / "net.onnx", person=9), overwrite=True)
    assert not other.keys() & first.keys()
    assert len(other) == 4 * 6
    assert changed != scores


def test_pairs_without_label_or_with_bad_pictures(scenes: Path, tmp_path: Path):
    names = names_of(scenes)
    copy = tmp_path / "copy"
    for side in ("ir", "vis", "label"):
        for name in names:
            write_picture(copy / side / f"{name}.png", read_picture(scenes / side / f"{name}.png"))
            write_picture(tmp_path / "fused" / f"{name}.png", read_picture(scenes / "vis" / f"{name}.png"))
    (copy / "label" / f"{names[0]}.png").unlink()
    (tmp_path / "fused" / f"{names[0]}.png").unlink()  # not asked for
    write_picture(tmp_path / "fused" / f"{names[1]}.png", np.zeros((8, 8), np.uint8))
    net = bright_is_person(tmp_path / "net.onnx")
    options: dict[str, Any] = {
        "task": Task.SEGMENTATION,
        "network": net,
        "fused": {"f": tmp_path / "fused"},
        "classes": "FMB-15",
        "out": tmp_path / "out",
    }
    with pytest.raises(InputError, match="1 of 5 pairs cannot be scored"):
        network_scores(copy, **options)
    assert not (tmp_path / "out").exists()
    found = network_scores(copy, **options, on_bad=OnBad.SKIP)
    assert found.pairs == tuple(names[2:])
    assert found.left_out == (names[0],)
    assert found.to_json()["network"]["unusable"] == [names[1]]
    assert found.rows[0].totals == found.rows[3].totals  # the folder holds the visible pictures
