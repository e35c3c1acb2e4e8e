from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from duskfuse.data import colour
from duskfuse.data.errors import InputError
from duskfuse.data.images import read_infrared, read_picture, read_visible
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
