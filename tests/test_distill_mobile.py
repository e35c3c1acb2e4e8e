"""The mobile student through the verbs: chosen by a recipe, trained, resumed as itself, fused with, exported, timed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from duskfuse.data.errors import InputError
from duskfuse.data.images import read_picture, write_picture
from duskfuse.data.weights import read_card
from duskfuse.distill.distill import distill
from duskfuse.evaluate.evaluate import evaluate
from duskfuse.export.bench import bench
from duskfuse.export.export import export
from duskfuse.export.fuse import fuse
from duskfuse.students.zoo import load_student

SMALL = (
    "data.crop=[32, 32]",
    "data.batch=2",
    "data.workers=0",
    "phases=[{name: a, batches: 2, cycle: [student]}]",
    "steps.student.terms={source_mse: 1}",
    "student.architecture=mobile",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    rng = np.random.default_rng(0)
    for index in range(3):
        write_picture(folder / "vis" / f"{index}.png", rng.integers(0, 256, (48, 57, 3), dtype=np.uint8))
        write_picture(folder / "ir" / f"{index}.png", rng.integers(0, 256, (48, 57), dtype=np.uint8))
    return folder


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "luma"
    distill(data, out=out, recipe="cached_teacher", changes=SMALL)
    return out / "student.safetensors"


def test_a_recipe_chooses_the_student(data: Path, trained: Path, tmp_path: Path) -> None:
    card = read_card(trained)
    assert (card.architecture, card.settings, card.colour) == ("mobile", {"colour": "luma"}, "luma")
    distill(data, out=tmp_path / "next", recipe="cached_teacher", changes=SMALL, init=[trained])
    with pytest.raises(InputError, match=r"'mobile'; 'unet' is wanted here"):
        distill(data, out=tmp_path / "other", recipe="cached_teacher", changes=SMALL[:-1], init=[trained])
    with pytest.raises(InputError, match=r"unknown student architecture 'mobil'"):
        distill(data, out=tmp_path / "x", recipe="cached_teacher", changes=(*SMALL[:-1], "student.architecture=mobil"))
    assert not (tmp_path / "x").exists()


def test_a_student_of_colours_trains_and_says_so(data: Path, tmp_path: Path) -> None:
    changes = (*SMALL, "student.settings={colour: rgb}", "sample_every=2")
    distill(data, out=tmp_path / "run", recipe="cached_teacher", changes=changes)
    assert read_card(tmp_path / "run" / "student.safetensors").colour == "rgb"
    assert (tmp_path / "run" / "samples" / "0000002.png").is_file()
    model = tmp_path / "run" / "student.safetensors"
    fuse(data / "ir", data / "vis", tmp_path / "fused", model=model)
    student, _ = load_student(model)
    ir, vis = (read_picture(data / kind / "0.png") for kind in ("ir", "vis"))
    with torch.no_grad():
        planes = (torch.from_numpy(x.reshape(48, 57, -1)).permute(2, 0, 1)[None] / 255 for x in (vis, ir))
        want = student(*planes).rgb[0].permute(1, 2, 0).numpy() * 255
    assert np.abs(read_picture(tmp_path / "fused" / "0.png") - want).max() <= 0.51
    evaluate(data, model=[model], out=tmp_path / "scores", metrics=["EN"])
    exported = export(model, out=tmp_path / "bundle", precision=["fp32"], size=["57x48"], calibration=data)
    fuse(data / "ir", data / "vis", tmp_path / "by_file", model=tmp_path / "bundle" / exported.files[0].file)
    assert np.abs(read_picture(tmp_path / "by_file" / "0.png") - want).max() <= 0.51
    (timing,) = bench(model, size="64x48", threads=1, runs=1, warmup=0).results
    assert timing.backend == "onnxruntime"


def test_the_trained_student_fuses_is_measured_exported_and_timed(data: Path, trained: Path, tmp_path: Path) -> None:
    fuse(data / "ir", data / "vis", tmp_path / "fused", model=trained)
    assert read_picture(tmp_path / "fused" / "0.png").shape == (48, 57, 3)
    scores = evaluate(data, model=[trained], out=tmp_path / "scores", metrics=["EN"])
    assert scores is not None
    report = export(trained, out=tmp_path / "bundle", precision=["fp32", "fp16"], dynamic=True, calibration=data)
    assert [entry.file for entry in report.files] == ["student-fp32.onnx", "student-fp16.onnx"]
    assert report.files[0].verification.largest_error <= 1e-4
    timings = bench(tmp_path / "bundle", size="64x48", threads=1, runs=2, warmup=1)
    assert len(timings.results) == 2
