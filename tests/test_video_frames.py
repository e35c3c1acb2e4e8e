"""Frames of videos: every number gives its own frame, in any order, from any thread and process."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest

from duskfuse.data import video_frames
from duskfuse.data.errors import InputError
from duskfuse.data.video_frames import frame_count, frame_size, read_frame

FRAMES = 130
BITS = 8


def coded(number: int) -> np.ndarray:
    """A picture that shows its number as bright bars, and an orange field to tell RGB from BGR."""
    picture = np.full((48, 16 * BITS, 3), 40, np.uint8)
    for bit in range(BITS):
        if number >> bit & 1:
            picture[4:24, 16 * bit + 2 : 16 * bit + 14] = 220
    picture[28:44, 8:-8] = (230, 120, 20)
    return picture


def number_in(picture: np.ndarray) -> int:
    return sum(1 << bit for bit in range(BITS) if picture[14, 16 * bit + 8].mean() > 128)


@pytest.fixture(params=[("mp4v", "video.mp4"), ("VP90", "video.webm"), ("mpg2", "video.ts")], ids=lambda pair: pair[0])
def video(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """An inter-coded video; seeking in the last one, left to the container, gives wrong frames."""
    code, name = request.param
    writer = cv2.VideoWriter(str(tmp_path / name), cv2.VideoWriter.fourcc(*code), 30, (16 * BITS, 48))
    if not writer.isOpened():
        pytest.skip(f"this OpenCV writes no {code}")
    for number in range(FRAMES):
        writer.write(np.ascontiguousarray(coded(number)[..., ::-1]))
    writer.release()
    return tmp_path / name


def test_every_number_gives_its_own_frame(video: Path):
    assert frame_count(video) == FRAMES
    assert frame_size(video) == (48, 16 * BITS)
    orders = [range(FRAMES), range(FRAMES - 1, -1, -1), np.random.default_rng(0).permutation(FRAMES)]
    for order in orders:
        assert [number_in(read_frame(video, int(number))) for number in order] == list(order)
    colour = read_frame(video, 3)[36, 64].astype(int)
    assert np.abs(colour - (230, 120, 20)).max() < 25


def test_ascending_numbers_decode_each_frame_once(video: Path, monkeypatch: pytest.MonkeyPatch):
    jumps: list[int] = []
    monkeypatch.setattr(video_frames._Reader, "_jump_to", lambda reader, number: jumps.append(number))
    for number in range(0, FRAMES, 3):
        read_frame(video, number)
    assert jumps == []


def test_a_frame_that_is_not_there(video: Path, tmp_path: Path):
    for number in (FRAMES, 10 * FRAMES):
        with pytest.raises(InputError, match=rf"frame {number} cannot be decoded \(there are {FRAMES}\)"):
            read_frame(video, number)
    assert number_in(read_frame(video, 5)) == 5
    (tmp_path / "no.mp4").write_bytes(b"no video at all")
    with pytest.raises(InputError, match="cannot be opened as a video"):
        frame_count(tmp_path / "no.mp4")
    with pytest.raises(InputError, match="cannot be read"):
        frame_size(tmp_path / "absent.mp4")


def test_threads_do_not_disturb_each_other(video: Path):
    numbers = list(range(40)) * 2
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda number: number_in(read_frame(video, number)), numbers)) == numbers


def _numbers_read(video: Path, numbers: list[int]) -> list[int]:
    return [number_in(read_frame(video, number)) for number in numbers]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_reads_on_its_own(video: Path):
    assert number_in(read_frame(video, 10)) == 10
    with multiprocessing.get_context("fork").Pool(2) as pool:
        jobs = [pool.apply_async(_numbers_read, (video, [11 + shift, 60, 61, 3])) for shift in range(4)]
        assert [number_in(read_frame(video, number)) for number in range(11, 30)] == list(range(11, 30))
        assert [job.get(60) for job in jobs] == [[11 + shift, 60, 61, 3] for shift in range(4)]


def test_a_rewritten_video_is_opened_again(tmp_path: Path):
    path = tmp_path / "a.mp4"
    for first in (0, 100):
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 30, (16 * BITS, 48))
        for number in range(first, first + 5 + first // 50):
            writer.write(coded(number))
        writer.release()
        assert number_in(read_frame(path, 2)) == first + 2
