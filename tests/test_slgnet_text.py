"""What is said about scenes: files, rules, encoders, and captions of a live stream."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_clip import tiny_clip
from torch import Tensor

from duskfuse.data.errors import InputError
from duskfuse.tasks.slgnet.caption_rules import RuleCaptions, captions_of, picture_statistics
from duskfuse.tasks.slgnet.captions import PROMPT, Captions, ConstantCaptions, FileCaptions
from duskfuse.tasks.slgnet.live_text import LiveText, StaleRule
from duskfuse.tasks.slgnet.text_encoders import CachedEncoder, ClipEncoder, HashingEncoder, text_features

NIGHT = Captions("night, dim light", "empty street", "", "high thermal contrast", "me")


def pictures(light: float = 0.5, warm: float = 1.0, size: int = 64) -> tuple[Tensor, Tensor]:
    """A scene of some light and a warm square."""
    generator = torch.Generator().manual_seed(0)
    visible = (light + 0.05 * torch.randn(3, size, size, generator=generator)).clamp(0, 1)
    infrared = torch.zeros(1, size, size)
    infrared[:, 20:40, 20:40] = warm
    return visible, infrared


# --- files ---


def written(path: Path, *lines: object) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return path


def test_a_file_says_what_its_lines_say(tmp_path: Path) -> None:
    line = {
        "name": "a",
        "environment": " night, dim light ",
        "scene": "empty street",
        "thermal": "high thermal contrast",
    }
    said = FileCaptions(written(tmp_path / "c.jsonl", {**line, "source": "me"}, "", {"name": "b"}))
    assert said.captions("a", *pictures()) == NIGHT
    assert said.captions("b", *pictures()) == Captions()
    said.check(["a", "b"])
    with pytest.raises(InputError, match=r"no captions of 2 pairs, 'd' first; every pair has a line; caption them too"):
        said.check(["a", "d", "e"])


@pytest.mark.parametrize(
    ("lines", "seen"),
    [
        ([{"environment": "night"}], "line 1: name: Field required"),
        ([{"name": "a"}, {"name": "b", "weather": "rain"}], "line 2: weather: Extra inputs"),
        ([{"name": "a", "scene": 3}], "line 1: scene: Input should be a valid string"),
        ([{"name": "a"}, {"name": "a"}], "line 2: 'a' for the second time"),
        (["[1"], "line 1: line: Invalid JSON"),
        ([{"name": "a", "scene": "x" * 1001}], "line 1: scene: String should have at most 1000"),
    ],
)
def test_a_wrong_line_is_named(lines: list[object], seen: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=seen):
        FileCaptions(written(tmp_path / "c.jsonl", *lines))


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        FileCaptions(tmp_path / "none.jsonl")


def test_the_prompt_asks_for_the_four_parts() -> None:
    assert all(f'"{part}"' in PROMPT for part in ("environment", "scene", "objects", "thermal"))


# --- rules ---


def test_rules_name_the_light() -> None:
    assert "dim" in RuleCaptions().captions("a", *pictures(0.05)).environment
    assert RuleCaptions().captions("a", *pictures(0.45)).environment == "day, normal light"
    assert "over-exposed" in RuleCaptions().captions("a", *pictures(0.95)).environment


def test_rules_name_glare_fog_clutter_and_crossover() -> None:
    night, warm = pictures(0.05)
    night[:, 5:10, 5:10] = 1
    assert RuleCaptions().captions("a", night, warm).environment == "night, dim light, glare"
    assert RuleCaptions().captions("a", *pictures(0.6)).environment == "day, normal light, fog"  # flat and grey
    assert "empty" in captions_of(picture_statistics(torch.full((3, 32, 32), 0.5), warm)).scene
    noise = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(1))
    assert "crowded" in captions_of(picture_statistics(noise, warm)).scene
    assert "crossover" in RuleCaptions().captions("a", *pictures(warm=0.0)).thermal
    assert RuleCaptions().captions("a", *pictures(warm=0.3)).thermal == "moderate thermal contrast"
    said = RuleCaptions().captions("a", *pictures())
    assert said.thermal == "high thermal contrast"
    assert (said.objects, said.source) == ("", "rules")
    assert RuleCaptions().captions("b", *pictures()) == said


# --- encoders ---


def test_hashed_texts_have_unit_length_and_equal_words_are_near() -> None:
    encoder = HashingEncoder()
    night, darker, road = encoder.encode(["night, dim light", "Night with dim lights", "crowded market square"])
    torch.testing.assert_close(night.norm(), torch.tensor(1.0))
    assert float(night @ darker) > 0.5 > 0.2 > float(night @ road)
    identity = encoder.projection @ encoder.projection.T
    torch.testing.assert_close(identity, torch.eye(512), rtol=0, atol=1e-6)
    columns = {column.tobytes() for column in encoder.projection.T.contiguous().numpy()}
    assert len(columns) == 2048  # no two buckets are one


def test_hashed_texts_equal_a_slow_form_without_torch() -> None:
    """So they are the same on every machine and in every process: no seed, no hash of Python's, no factorisation."""
    buckets = [0] * 2048
    for word in ("<night>", "<dim>", "<light>"):
        pieces = [word[i : i + n] for n in (3, 4, 5) if n < len(word) for i in range(len(word) - n + 1)]
        for piece in [word, *pieces]:
            hashed = int.from_bytes(hashlib.blake2b(piece.encode(), digest_size=8).digest(), "little")
            buckets[hashed % 2048] += 1 if hashed >> 63 else -1
    filled = [(place, count) for place, count in enumerate(buckets) if count]
    rows = [
        sum((-1) ** (row * 1103 % 2048 & place).bit_count() * count for place, count in filled) for row in range(512)
    ]
    expected = torch.tensor(rows) / math.hypot(*rows)
    torch.testing.assert_close(HashingEncoder().encode(["night, dim light"])[0], expected, rtol=0, atol=1e-6)


def test_what_is_not_said_is_zero() -> None:
    features = text_features(HashingEncoder(), [Captions(), NIGHT])
    assert features.shape == (2, 4, 512)
    assert not features[0].any()
    assert [bool(part.any()) for part in features[1]] == [True, True, False, True]
    torch.testing.assert_close(features[1, 1], HashingEncoder().encode(["empty street"])[0])


class Counting:
    """An encoder that remembers what it was asked."""

    width, identity = 3, "counting"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def encode(self, texts: Sequence[str]) -> Tensor:
        self.asked += texts
        return torch.tensor([[float(len(text)), 1, 2] for text in texts])


def test_texts_are_encoded_once_and_damaged_files_are_made_again(tmp_path: Path) -> None:
    first = Counting()
    cached = CachedEncoder(first, tmp_path)
    vectors = cached.encode(["night", "day", "night"])
    assert first.asked == ["night", "day"]
    assert torch.equal(cached.encode(["night"])[0], vectors[0])
    second = Counting()
    assert torch.equal(CachedEncoder(second, tmp_path).encode(["night", "day", "night"]), vectors)
    assert second.asked == []
    for damage in (b"", b"half a file"):
        for file in tmp_path.rglob("*.safetensors"):
            file.write_bytes(damage)
        third = Counting()
        assert torch.equal(CachedEncoder(third, tmp_path).encode(["night", "day", "night"]), vectors)
        assert third.asked == ["night", "day"]


def test_clip_comes_from_a_folder_is_frozen_and_counts_what_it_cuts(tmp_path: Path) -> None:
    encoder = ClipEncoder(tiny_clip(tmp_path / "clip"))
    vectors = encoder.encode(["night", "day", "night"])
    assert vectors.shape == (3, encoder.width) == (3, 24)
    assert not vectors.requires_grad
    torch.testing.assert_close(vectors[0], vectors[2])
    assert float((vectors[0] - vectors[1]).abs().max()) > 1e-3
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(encoder.encode(["day"])[0], vectors[1])  # whatever stands beside it
    assert encoder.cut == 0
    encoder.encode(["night and day and night and day"])
    assert encoder.cut == 1


def test_a_folder_without_clip_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no config\.json.*save_pretrained"):
        ClipEncoder(tmp_path)


# --- live use ---


class Later(Executor):
    """Answers when it is told to."""

    def __init__(self) -> None:
        self.open: list[tuple[Future[Any], Any]] = []

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.open.append((future, lambda: fn(*args, **kwargs)))
        return future

    def answer(self) -> None:
        future, work = self.open.pop(0)
        try:
            future.set_result(work())
        except ValueError as error:
            future.set_exception(error)


class Broken:
    """A source that cannot say anything."""

    def captions(self, name: str, visible: Tensor, infrared: Tensor) -> Captions:
        raise ValueError("the model is gone")


def test_the_rule_of_staleness_looks_at_age_and_at_the_picture() -> None:
    rule = StaleRule(oldest_s=30, most_change=0.15)
    day, darker, night = (picture_statistics(*pictures(light)) for light in (0.5, 0.4, 0.05))
    assert not rule.is_stale(30, day, day)
    assert rule.is_stale(30.1, day, day)
    assert not rule.is_stale(1, day, darker)
    assert rule.is_stale(1, day, night)
    assert rule.is_stale(1, night, day)


def test_a_stream_never_waits_and_asks_again_when_captions_are_old_or_the_scene_changes() -> None:
    now, later = [0.0], Later()
    live = LiveText(RuleCaptions(), HashingEncoder(), executor=later, clock=lambda: now[0])
    first = live.look("0", *pictures(0.5))
    assert (first.stale, first.age_s, bool(first.features.any())) == (True, float("inf"), False)
    live.look("1", *pictures(0.5))
    assert len(later.open) == 1  # one question at a time
    later.answer()
    now[0] = 4.0
    held = live.look("2", *pictures(0.5))
    assert (held.stale, held.age_s) == (False, 4.0)
    assert held.captions == RuleCaptions().captions("0", *pictures(0.5))
    torch.testing.assert_close(held.features, text_features(HashingEncoder(), [held.captions]))
    dark = live.look("3", *pictures(0.05))
    assert dark.stale
    assert "normal" in dark.captions.environment  # until the answer is there
    later.answer()
    now[0] = 5.0
    assert "dim" in live.look("4", *pictures(0.05)).captions.environment
    now[0] = 34.5  # the frame that was asked about is 30.5 s old
    assert live.look("5", *pictures(0.05)).stale
    assert len(later.open) == 1


def test_a_source_that_fails_leaves_what_was_said() -> None:
    now, later = [0.0], Later()
    live = LiveText(Broken(), HashingEncoder(), executor=later, clock=lambda: now[0])
    live.look("0", *pictures())
    later.answer()
    assert not live.look("1", *pictures()).features.any()
    assert str(live.last_error) == "the model is gone"
    assert len(later.open) == 1  # asked again


def test_a_thread_of_its_own_answers() -> None:
    live = LiveText(ConstantCaptions(NIGHT), HashingEncoder())
    live.look("0", *pictures())
    live._executor.shutdown(wait=True)
    assert live.look("1", *pictures()).captions == NIGHT
    live.close()
