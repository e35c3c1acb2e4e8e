"""The public datasets in miniature: recognised, paired, cut and labelled as their owners meant them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from duskfuse.data.errors import InputError
from duskfuse.data.images import file_sha256, write_picture
from duskfuse.data.pair_files import Part, SourcePicture

SIZE = (24, 32)


def random_picture(seed: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*SIZE, channels), dtype=np.uint8)


def test_parts_of_a_four_channel_picture(tmp_path: Path):
    path = tmp_path / "00001D.png"
    stored = random_picture(0, channels=4)
    stored[..., 3] //= 2  # a decoder that multiplied alpha in would be found out
    cv2.imwrite(str(path), stored[..., [2, 1, 0, 3]])
    whole, colour, fourth = (SourcePicture(path, part) for part in Part)
    np.testing.assert_array_equal(colour.read(), stored[..., :3])
    np.testing.assert_array_equal(fourth.read(), stored[..., 3])
    np.testing.assert_array_equal(whole.read(), stored[..., :3])
    assert {picture.size() for picture in (whole, colour, fourth)} == {SIZE}
    assert whole.sha256() == file_sha256(path)
    assert len({whole.sha256(), colour.sha256(), fourth.sha256()}) == 3
    assert colour.stem == "00001D"
    assert "fourth channel" in str(fourth)
    write_picture(path, stored[..., :3])
    with pytest.raises(InputError, match="3 channels; an RGB-T picture"):
        fourth.read()


def test_border_is_cut_where_it_is_white_and_refused_where_it_is_not(tmp_path: Path):
    content = random_picture(1)
    framed = np.full((SIZE[0] + 40, SIZE[1] + 40, 3), 255, np.uint8)
    framed[20:-20, 20:-20] = content
    write_picture(tmp_path / "a.png", framed)
    picture = SourcePicture(tmp_path / "a.png", border=20)
    np.testing.assert_array_equal(picture.read(), content)
    assert picture.size() == SIZE
    assert picture.sha256() != SourcePicture(tmp_path / "a.png").sha256()
    framed[30, 2:8] = 0
    framed[:20, 5:40] = 90
    write_picture(tmp_path / "a.png", framed)
    with pytest.raises(InputError, match="not white within 20 pixels"):
        picture.read()


def test_a_selection_is_hashed_once_per_file_and_again_when_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import duskfuse.data.pair_files as module

    path = tmp_path / "clip.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 30, (64, 48))
    for seed in range(6):
        writer.write(cv2.resize(random_picture(seed), (64, 48)))
    writer.release()
    hashed: list[Path] = []
    monkeypatch.setattr(module, "file_sha256", lambda file: hashed.append(file) or file_sha256(file))
    frames = [SourcePicture(path, frame=number) for number in range(6)]
    first = [frame.sha256() for frame in frames]
    assert len(set(first)) == 6
    assert len(hashed) == 1
    assert (frames[2].stem, frames[2].size()) == ("clip__000003", (48, 64))
    assert frames[5].read().shape == (48, 64, 3)
    path.write_bytes(path.read_bytes() + b"\0")
    assert not set(first) & {frame.sha256() for frame in frames}
    assert len(hashed) == 2
    path.unlink()
    with pytest.raises(InputError, match="no such file"):
        frames[0].sha256()
