"""Scores kept as they come: what a killed evaluation has computed, and what an extended one need not compute again.

``scores.jsonl`` has one line per fused picture, appended and synced when its pair is finished; a line that a kill cut
in two is dropped. Scores are found by what they were computed from (hashes of the sources and of the fused picture, or
of the model that made it), whatever the row is called. The first line names all else they depend on; where that has
changed, every score is computed anew.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from math import inf, isinf, isnan, nan
from pathlib import Path
from typing import Any, NamedTuple

from duskfuse.data.atomic import storage_error
from duskfuse.data.errors import InputError
from duskfuse.data.progress import say
from duskfuse.data.read_files import read_bytes

SCORES_FILE = "scores.jsonl"
_MARK, _FORMAT = "duskfuse scores", "1"
_HEAD = f'{{"{_MARK}"'.encode()
_LARGEST_FILE = 2**31


class Key(NamedTuple):
    """What the scores of one fused picture were computed from, as hashes."""

    sources: str
    fused: str


class Line(NamedTuple):
    """The scores of one fused picture."""

    pair: str
    method: str
    """Name of its row, for messages."""
    key: Key
    scores: Mapping[str, float]
    """Metric → value, nan and inf included."""


class KeptScores:
    """The scores in a folder."""

    def __init__(self, path: Path, data: str, settings: Mapping[str, str]) -> None:
        """Read what is kept, drop it where it was made with other settings, and say so.

        Args:
            path: the file; made where missing, in a folder that exists.
            data: name of what is scored.
            settings: all that scores depend on beside their pictures.

        Raises:
            InputError: the file holds the scores of other data, or is no file of scores.
        """
        self.path = path
        self._scores: dict[Key, dict[str, float]] = {}
        self._last: dict[tuple[str, str], Key] = {}
        stored = read_bytes(path, _LARGEST_FILE) if path.exists() else b""
        if not _HEAD.startswith(stored[: len(_HEAD)]):
            raise InputError(f"{path} holds no scores", rule="this name is taken for them", remedy="name another --out")
        whole = stored[: stored.rfind(b"\n") + 1]
        first, *lines = whole.splitlines() or [b""]
        if self._is_current(_json(first) or {}, {"data": data, **settings}):
            os.truncate(path, len(whole))
            self._read(lines)
        else:
            path.write_bytes(b"")
            self._append([{_MARK: _FORMAT, "data": data, **settings}])

    def _is_current(self, header: Mapping[str, Any], wanted: Mapping[str, str]) -> bool:
        if not header:
            return False
        wanted = {_MARK: _FORMAT, **wanted}
        changed = [name for name in dict.fromkeys([*wanted, *header]) if header.get(name) != wanted.get(name)]
        if "data" in changed:
            raise InputError(
                f"{self.path} holds the scores of {header.get('data')}",
                rule="a folder holds the scores of one dataset",
                remedy="name another --out, or say --overwrite to start anew",
            )
        if changed:
            said = ", ".join(f"{name} {header.get(name)} → {wanted.get(name)}" for name in changed)
            say(f"{self.path}: made with other settings ({said}), so all scores are computed anew")
        return not changed

    def _read(self, lines: Sequence[bytes]) -> None:
        read = [_line(text) for text in lines]
        for line in read:
            if line is not None:
                self._remember(line)
        if damaged := read.count(None):
            say(f"{self.path}: {damaged} damaged lines, whose scores are computed anew")

    def get(self, key: Key) -> Mapping[str, float]:
        """The scores of a fused picture by metric; empty where there are none."""
        return self._scores.get(key, {})

    def last(self, pair: str, method: str) -> Key | None:
        """What the newest scores of this pair and row were computed from."""
        return self._last.get((pair, method))

    def keep(self, lines: Sequence[Line]) -> None:
        """Write scores, and return when they are on disk."""
        for line in lines:
            self._remember(line)
        self._append([_to_json(line) for line in lines])

    def _remember(self, line: Line) -> None:
        self._scores.setdefault(line.key, {}).update(line.scores)
        self._last[line.pair, line.method] = line.key

    def _append(self, lines: Sequence[Mapping[str, Any]]) -> None:
        text = "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines)
        try:
            with self.path.open("ab") as stream:
                stream.write(text.encode())
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise storage_error(self.path, error) from error


def holds_scores(path: Path) -> bool:
    """Whether an evaluation keeps its scores there, or was killed when it had just begun to."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return _HEAD.startswith(stream.read(len(_HEAD)))


def _to_json(line: Line) -> dict[str, Any]:
    scores = {name: None if isnan(value) else "inf" if isinf(value) else value for name, value in line.scores.items()}
    return {"pair": line.pair, "method": line.method, **line.key._asdict(), "scores": scores}


def _line(text: bytes) -> Line | None:
    line = _json(text)
    try:
        if line is None:
            return None
        scores = {sys.intern(name): _number(value) for name, value in line["scores"].items()}
        return Line(str(line["pair"]), str(line["method"]), Key(str(line["sources"]), str(line["fused"])), scores)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _number(stored: object) -> float:
    if stored is None:
        return nan
    if stored == "inf":
        return inf
    if isinstance(stored, int | float) and not isinstance(stored, bool):
        return float(stored)
    raise ValueError(stored)


def _json(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:  # of decoding too
        return None
    return found if isinstance(found, dict) else None
