"""What a recipe's keys mean: a recipe written out whole with a comment on every key, and hints for misspelt keys.

The comments are the docstrings of the keys themselves, and those of the terms' functions.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from enum import StrEnum
from textwrap import wrap
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

Kind = TypeVar("Kind")

_WIDTH = 120
_INDENT = "  "


def annotated_yaml(recipe: BaseModel, terms: Mapping[str, str]) -> str:
    """The resolved recipe as YAML that can be run again; ``terms`` says what each term is."""
    return "\n".join(_Writer(dict(terms)).model(recipe, "")) + "\n"


def problems(error: ValidationError, model: type[BaseModel]) -> str:
    """What is wrong, key by key, with the nearest valid name where a name is unknown."""
    return "; ".join(_problem(item["loc"], item["type"], item["msg"], model) for item in error.errors())


class _Writer:
    """Writes models as YAML; what a key or a term is, is said where it first occurs."""

    def __init__(self, terms: dict[str, str]) -> None:
        self._terms = terms
        self._said: set[tuple[type[BaseModel], str]] = set()

    def model(self, model: BaseModel, indent: str) -> Iterator[str]:
        for name, field in type(model).model_fields.items():
            if (type(model), name) not in self._said:
                self._said.add((type(model), name))
                yield from _comment(meaning(field), indent)
            yield from self._entry(name, getattr(model, name), indent)

    def _entry(self, name: str, value: Any, indent: str) -> Iterator[str]:
        deeper = indent + _INDENT
        if isinstance(value, BaseModel):
            yield f"{indent}{name}:"
            yield from self.model(value, deeper)
        elif isinstance(value, Mapping) and any(isinstance(item, BaseModel) for item in value.values()):
            yield f"{indent}{name}:"
            for key, item in value.items():
                yield from self._term(key, item, deeper) if name == "terms" else self._entry(key, item, deeper)
        elif isinstance(value, list) and value and isinstance(value[0], BaseModel):
            yield f"{indent}{name}:"
            yield from (f"{deeper}- {_flow(item.model_dump(mode='json'))}" for item in value)
        else:
            yield f"{indent}{name}: {_flow(_plain(value))}"

    def _term(self, name: str, config: BaseModel, indent: str) -> Iterator[str]:
        yield from _comment(self._terms.pop(name, None), indent)
        plain = config.model_dump(mode="json", exclude_defaults=True)
        yield f"{indent}{name}: {_flow(plain['weight'] if list(plain) == ['weight'] else plain)}"


def _comment(text: str | None, indent: str) -> Iterator[str]:
    if text:
        prefix = f"{indent}# "
        yield from (prefix + line for line in wrap(" ".join(text.split()), _WIDTH - len(prefix)))


def meaning(field: FieldInfo) -> str | None:
    """The docstring of a key, or that of what it holds, and the words it may be."""
    said = field.description or next((_first_line(kind) for kind in _models(field.annotation)), None)
    words = [word.value for kind in _kinds(field.annotation, StrEnum) for word in kind]
    return " ".join(filter(None, [said, f"({' | '.join(words)})" if words else ""])) or None


def _first_line(kind: type) -> str | None:
    return kind.__doc__.strip().splitlines()[0] if kind.__doc__ else None


def _plain(value: Any) -> Any:
    if isinstance(value, StrEnum):
        return value.value
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value if isinstance(value, dict | str | int | float | bool | None) else str(value)


def _flow(value: Any) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False, allow_unicode=True)
    return text.removesuffix("\n...\n").rstrip()


def _problem(location: tuple[int | str, ...], kind: str, message: str, model: type[BaseModel]) -> str:
    path = [part for part in location if part != "[key]"]
    where = ".".join(map(str, path)) or "recipe"
    if kind == "extra_forbidden":
        return f"{where}: {_unknown(str(path[-1]), _keys_at(path[:-1], model))}"
    if kind == "enum" and "[key]" in location:
        return f"{where}: {_unknown(str(path[-1]), [word.value for word in _key_words(path[:-1], model)])}"
    return f"{where}: {message.removeprefix('Value error, ')}"


def _unknown(name: str, known: Sequence[str]) -> str:
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    return f"no such key{f', did you mean {near[0]}?' if near else ''} (known: {', '.join(known)})"


def _keys_at(path: Sequence[int | str], model: type[BaseModel]) -> list[str]:
    """Keys of the model that lies at ``path`` within ``model``."""
    return [name for kind in _models(_annotation_at(path, model)) for name in kind.model_fields]


def _key_words(path: Sequence[int | str], model: type[BaseModel]) -> list[StrEnum]:
    """Words that the keys of the mapping at ``path`` may be."""
    annotation = _annotation_at(path, model)
    return [word for kind in _kinds(get_args(annotation)[0], StrEnum) for word in kind]


def _annotation_at(path: Sequence[int | str], annotation: Any) -> Any:
    for part in path:
        models = _models(annotation) if not _is_container(annotation) else []
        if models:
            annotation = next((m.model_fields[str(part)].annotation for m in models if part in m.model_fields), None)
        else:
            annotation = get_args(_bare(annotation))[-1]
    return _bare(annotation)


def _bare(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _is_container(annotation: Any) -> bool:
    return get_origin(_bare(annotation)) in (dict, list, tuple)


def _models(annotation: Any) -> list[type[BaseModel]]:
    return _kinds(annotation, BaseModel)


def _kinds(annotation: Any, kind: type[Kind]) -> list[type[Kind]]:
    """Classes of ``kind`` that an annotation names, alone or in a union."""
    annotation = _bare(annotation)
    if get_origin(annotation) in (Union, types.UnionType):
        return [found for part in get_args(annotation) for found in _kinds(part, kind)]
    return [annotation] if isinstance(annotation, type) and issubclass(annotation, kind) else []
