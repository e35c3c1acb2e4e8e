from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from duskfuse.cli import app
from duskfuse.data import colour
from duskfuse.data.errors import InputError
from duskfuse.data.homography import homography_from
from duskfuse.data.images import ThermalRange, read_infrared, read_picture, read_visible
from duskfuse.data.progress import set_quiet
from duskfuse.data.reading import Reading
from duskfuse.export.fuse import fuse
from duskfuse.students.unet import UNetStudent

RNG = np.random.default_rng(0)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    for side in ("ir", "vis"):
        (tmp_path / side).mkdir()
    for name in ("a", "b", "c"):
        cv2.imwrite(str(tmp_path / "ir" / f"{name}.png"), RNG.integers(0, 256, (18, 22), np.uint8))
        cv2.imwrite(str(tmp_path / "vis" / f"{name}.bmp"), RNG.integers(0, 256, (18, 22, 3), np.uint8))
    return tmp_path / "ir", tmp_path / "vis"


def test_one_pair_has_the_fused_luminance_and_the_visible_chroma(
    checkpoint: Path, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    ir, vis = folders[0] / "a.png", folders[1] / "a.bmp"
    report = fuse(ir, vis, tmp_path / "deep" / "out.png", model=checkpoint)
    assert report.written == [str(tmp_path / "deep" / "out.png")]
    torch.manual_seed(0)
    student = UNetStudent().eval()
    rgb = torch.from_numpy(read_visible(vis)).permute(2, 0, 1)[None]
    with torch.inference_mode():
        y = student(colour.luminance(rgb), torch.from_numpy(read_infrared(ir))[None, None]).y
    want = colour.recombine(y, rgb)[0].permute(1, 2, 0).numpy() * 255
    got = read_picture(tmp_path / "deep" / "out.png")
    assert got.dtype == np.uint8
    assert np.abs(got - want).max() < 0.6


def test_folders_are_matched_by_stem(checkpoint: Path, folders: tuple[Path, Path], tmp_path: Path) -> None:
    report = fuse(*folders, tmp_path / "out", model=checkpoint)
    assert [Path(name).name for name in report.written] == ["a.png", "b.png", "c.png"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "b.png", "c.png"]
    assert report.to_json()["backend"] == "torch"


def test_finished_pictures_are_kept_unless_overwritten(
    checkpoint: Path, folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "b.png").write_bytes(b"earlier")
    report = fuse(*folders, out, model=checkpoint)
    assert report.kept == [str(out / "b.png")]
    assert len(report.written) == 2
    assert (out / "b.png").read_bytes() == b"earlier"
    assert "1 pictures were in" in capsys.readouterr().err
    assert len(fuse(*folders, out, model=checkpoint, overwrite=True).written) == 3
    assert read_picture(out / "b.png").shape == (18, 22, 3)


def test_bad_pairs_do_not_stop_the_others(checkpoint: Path, folders: tuple[Path, Path], tmp_path: Path) -> None:
    (folders[0] / "a.png").write_bytes(b"broken")
    cv2.imwrite(str(folders[0] / "lonely.png"), np.zeros((18, 22), np.uint8))
    cv2.imwrite(str(folders[1] / "b.png"), np.zeros((18, 22, 3), np.uint8))
    with pytest.raises(InputError) as caught:
        fuse(*folders, tmp_path / "out", model=checkpoint)
    message = str(caught.value)
    assert "3 pictures could not be fused" in message
    assert "a.png: not a picture" in message
    assert "no visible picture of the name 'lonely'" in message
    assert "'b': more than one picture" in message
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["c.png"]


def test_infrared_of_another_size(checkpoint: Path, folders: tuple[Path, Path], tmp_path: Path) -> None:
    cv2.imwrite(str(folders[0] / "a.png"), np.zeros((9, 11), np.uint8))
    pair = folders[0] / "a.png", folders[1] / "a.bmp"
    with pytest.raises(InputError, match="11×9"):
        fuse(*pair, tmp_path / "o.png", model=checkpoint)
    fuse(*pair, tmp_path / "o.png", model=checkpoint, reading=Reading(resize_ir=True))
    assert read_picture(tmp_path / "o.png").shape == (18, 22, 3)


def test_wrong_use(checkpoint: Path, folders: tuple[Path, Path], tmp_path: Path) -> None:
    ir, vis = folders
    with pytest.raises(InputError, match="two pictures or two folders"):
        fuse(ir, vis / "a.bmp", tmp_path / "out", model=checkpoint)
    with pytest.raises(InputError, match="is an input"):
        fuse(ir, vis, vis, model=checkpoint, overwrite=True)
    with pytest.raises(InputError, match="no such file"):
        fuse(ir / "none.png", vis / "none.png", tmp_path / "o.png", model=checkpoint)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no stem is both"):
        fuse(ir, tmp_path / "empty", tmp_path / "out", model=checkpoint)
    (tmp_path / "o.png").write_bytes(b"mine")
    with pytest.raises(InputError, match="--overwrite"):
        fuse(ir / "a.png", vis / "a.bmp", tmp_path / "o.png", model=checkpoint)
    with pytest.raises(InputError, match="is a folder"):
        fuse(ir / "a.png", vis / "a.bmp", tmp_path / "empty", model=checkpoint)
    with pytest.raises(InputError, match="is a file"):
        fuse(ir, vis, tmp_path / "o.png", model=checkpoint)
    assert (tmp_path / "o.png").read_bytes() == b"mine"


def deepened(folders: tuple[Path, Path], folder: Path, change: Callable[[np.ndarray], np.ndarray]) -> Path:
    """The infrared folder with other pictures of the same names."""
    folder.mkdir()
    for path in sorted(folders[0].iterdir()):
        cv2.imwrite(str(folder / path.name), change(read_picture(path)))
    return folder


def pictures(folder: Path) -> list[np.ndarray]:
    return [read_picture(path) for path in sorted(folder.iterdir())]


def test_thermal_variants_fuse_like_the_original(
    checkpoint: Path, folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """14-bit counts, black-hot, and a shifted infrared camera, each read as it is, give the picture of the original."""
    fuse(*folders, tmp_path / "plain", model=checkpoint)
    shift = homography_from(
        {"homography": [[1, 0, -4], [0, 1, -3], [0, 0, 1]], "ir_size": [30, 26], "vis_size": [22, 18]}
    )
    variants = {
        "deep": (lambda grey: grey.astype(np.uint16) * 60 + 1000, Reading(ThermalRange(1000, 16300))),
        "black": (lambda grey: 255 - grey, Reading(black_hot=True)),
        "shifted": (lambda grey: np.pad(grey, ((3, 5), (4, 4))), Reading(homography=shift)),
    }
    for name, (change, reading) in variants.items():
        ir = deepened(folders, tmp_path / f"{name}_ir", change)
        report = fuse(ir, folders[1], tmp_path / name, model=checkpoint, reading=reading)
        for one, other in zip(pictures(tmp_path / "plain"), pictures(tmp_path / name), strict=True):
            assert np.abs(one.astype(int) - other).max() <= 1, name
        assert report.thermal_range == ((1000, 16300) if name == "deep" else (0, 255))
    assert "flicker" not in capsys.readouterr().err


def test_pictures_scaled_by_themselves_are_said_once_with_a_range_for_all(
    checkpoint: Path, folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ir = deepened(folders, tmp_path / "deep", lambda grey: grey.astype(np.uint16) * 60 + int(grey[0, 0]))
    report = fuse(ir, folders[1], tmp_path / "out", model=checkpoint, reading=Reading(percentiles=(0, 100)))
    stored = np.stack(pictures(ir))
    assert report.thermal_range == (stored.min(), stored.max())
    said = capsys.readouterr().err
    assert said.count("flicker") == 1
    assert f"--thermal-range {stored.min()}:{stored.max()} scales all of these alike" in said


def command(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["fuse", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    set_quiet(False)
    return result.exit_code, result.output


def test_options_go_before_the_reading_file(checkpoint: Path, folders: tuple[Path, Path], tmp_path: Path) -> None:
    ir = deepened(folders, tmp_path / "deep", lambda grey: (255 - grey).astype(np.uint16) * 60 - 4000)
    (tmp_path / "rig.yaml").write_text("percentiles: [0, 50]\nblack_hot: true\n")
    base = ("--ir", ir / "a.png", "--vis", folders[1] / "a.bmp", "--model", checkpoint, "--overwrite", "--json")
    want = fuse(
        ir / "a.png",
        folders[1] / "a.bmp",
        tmp_path / "want.png",
        model=checkpoint,
        reading=Reading(ThermalRange(-50, 9000), black_hot=True),
    )
    out = tmp_path / "out.png"
    for options in (
        ("--thermal-range", "-50:9000", "--black-hot"),
        ("--reading", tmp_path / "rig.yaml", "--thermal-range", "-50:9000"),
    ):
        code, printed = command(*base, "--out", out, *options)
        assert code == 0, printed
        assert json.loads(printed)["thermal_range"] == list(want.thermal_range or ())
        assert np.array_equal(read_picture(out), read_picture(tmp_path / "want.png"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--thermal-range", "27000"), "two numbers, written LOW:HIGH"),
        (("--thermal-range", ""), "two numbers, written LOW:HIGH"),
        (("--thermal-range", "9:3"), "low must be below high"),
        (("--percentiles", "1:101"), "two numbers from 0 to 100"),
        (("--percentiles", "1:99", "--thermal-range", "1:9"), "give one of them"),
        (("--homography", "rig.json"), "rig.json: no such file"),
        (("--homography", "rig.json", "--resize-ir"), "no such file"),
        (("--reading", "rig.yaml"), "rig.yaml: no such file"),
    ],
)
def test_wrong_readings(folders: tuple[Path, Path], tmp_path: Path, options: tuple[str, ...], said: str) -> None:
    code, printed = command("--ir", folders[0], "--vis", folders[1], "--out", tmp_path / "out", *options)
    assert code == 2
    assert said in printed
    assert not (tmp_path / "out").exists()


def test_a_dead_camera_is_left_out_where_asked(checkpoint: Path, folders: tuple[Path, Path], tmp_path: Path) -> None:
    """Infrared of `a` is grey all over, the visible picture of `b` is black; `c` is alive."""
    cv2.imwrite(str(folders[0] / "a.png"), np.full((18, 22), 128, np.uint8))
    cv2.imwrite(str(folders[1] / "b.bmp"), np.zeros((18, 22, 3), np.uint8))
    command = ["fuse", "--ir", str(folders[0]), "--vis", str(folders[1]), "--model", str(checkpoint)]
    for out, options in (("plain", []), ("living", ["--fallback"])):
        result = CliRunner().invoke(app, [*command, "--out", str(tmp_path / out), *options])
        assert result.exit_code == 0, result.output
    plain, living = ({p.stem: cv2.imread(str(p)) for p in (tmp_path / out).iterdir()} for out in ("plain", "living"))
    assert np.array_equal(living["a"], cv2.imread(str(folders[1] / "a.bmp")))
    assert np.array_equal(living["b"], cv2.cvtColor(cv2.imread(str(folders[0] / "b.png"), 0), cv2.COLOR_GRAY2BGR))
    assert np.array_equal(living["c"], plain["c"])
    assert not np.array_equal(plain["a"], living["a"])
