"""What is said about a pair of pictures, and where it comes from: a file made offline, rules, or one text for all.

A file is JSON lines, one pair each, as a vision-language model wrote them in answer to `PROMPT`:

    {"name": "00042", "environment": "night, light rain", "scene": "two-lane street", "objects": "people at the kerb",
     "thermal": "people much warmer than the road", "source": "Qwen2.5-VL-7B-Instruct"}

Parts that are absent or empty say nothing; they become zeros, which is no statement either way.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Protocol

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError
from torch import Tensor

from duskfuse.data.errors import InputError

PROMPT = """You see one scene twice: first in visible light, then in thermal infrared, where warm things are bright.
Answer with one JSON object of four short English phrases, each of at most 20 words:
"environment": time of day, weather, light, and what hinders the visible camera;
"scene": the kind of place and how crowded it is;
"objects": where things stand out, in which of the two pictures, and how large; do not list class names;
"thermal": how well warm things stand out from the background in the infrared picture.
Say only what can be seen. Leave a phrase empty where nothing can be said. Write nothing but the JSON object."""
"""What the model is asked offline, with both pictures."""

_RULE = "captions are JSON lines of name, environment, scene, objects, thermal and source, see duskfuse.tasks.slgnet"


@dataclass(frozen=True)
class Captions:
    """Four short texts about one pair; an empty one says nothing."""

    environment: str = ""
    scene: str = ""
    objects: str = ""
    thermal: str = ""
    source: str = ""
    """Who said so: a model's name, ``rules``, or whatever a file says."""

    @property
    def texts(self) -> tuple[str, str, str, str]:
        """The four, in the order in which the network takes them."""
        return self.environment, self.scene, self.objects, self.thermal


class CaptionSource(Protocol):
    """Says something about pairs."""

    def captions(self, name: str, visible: Tensor, infrared: Tensor) -> Captions:
        """About the pair ``name``: RGB ``[3, H, W]`` and infrared ``[1, H, W]`` in [0, 1]."""
        ...


@dataclass(frozen=True)
class ConstantCaptions:
    """The same about every pair."""

    said: Captions

    def captions(self, name: str, visible: Tensor, infrared: Tensor) -> Captions:
        """See `CaptionSource`."""
        return self.said


_Phrase = Annotated[str, StringConstraints(strip_whitespace=True, max_length=1000)]


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    name: Annotated[str, StringConstraints(min_length=1)]
    environment: _Phrase = ""
    scene: _Phrase = ""
    objects: _Phrase = ""
    thermal: _Phrase = ""
    source: _Phrase = ""


class FileCaptions:
    """Captions from a file of JSON lines; the whole file is checked when it is opened.

    Raises:
        InputError: no such file, a line of it is not what the module says, or two lines are about one pair.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._said: dict[str, Captions] = {}
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: cannot be read ({error})", rule=_RULE, remedy="check the path") from None
        for number, text in enumerate(lines, start=1):
            if text.strip():
                line = self._checked(text, number)
                self._said[line.name] = Captions(**line.model_dump(exclude={"name"}))

    def _checked(self, text: str, number: int) -> _Line:
        try:
            line = _Line.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "line"
            raise InputError(
                f"{self.path}, line {number}: {where}: {first['msg']}", rule=_RULE, remedy="correct the line"
            ) from None
        if line.name in self._said:
            raise InputError(
                f"{self.path}, line {number}: {line.name!r} for the second time",
                rule="every pair has one line",
                remedy="remove one of them",
            )
        return line

    def check(self, names: Iterable[str]) -> None:
        """Raise InputError where one of these pairs has no line: to be asked before hours of training, not within."""
        missing = [name for name in names if name not in self._said]
        if missing:
            raise InputError(
                f"{self.path}: no captions of {len(missing)} pairs, {missing[0]!r} first",
                rule="every pair has a line",
                remedy="caption them too, or write lines with a name alone, which say nothing",
            )

    def captions(self, name: str, visible: Tensor, infrared: Tensor) -> Captions:
        """See `CaptionSource`; InputError where the file does not name the pair."""
        self.check([name])
        return self._said[name]
