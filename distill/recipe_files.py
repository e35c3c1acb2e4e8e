"""Reading recipes: by packaged name or from a file, with ``--set key.path=value`` changes applied and checked."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from duskfuse.data.errors import InputError
from duskfuse.distill.explain_recipe import problems
from duskfuse.distill.recipe import Recipe

RECIPE_FOLDER = "recipes"
Config = TypeVar("Config", bound=BaseModel)


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = resources.files("duskfuse.distill") / RECIPE_FOLDER
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_recipe(recipe: str | Path, changes: Iterable[str] = ()) -> Recipe:
    """Read a recipe by name or file, apply ``key.path=value`` changes and validate the result."""
    values = _read(recipe)
    for change in changes:
        apply_change(values, change)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise InputError(
            f"recipe {recipe}: {problems(error, Recipe)}",
            remedy=f"mend the file or the --set; packaged recipes: {', '.join(recipe_names())}",
        ) from None


def _read(recipe: str | Path) -> dict[str, Any]:
    if str(recipe) in recipe_names():
        text = (resources.files("duskfuse.distill") / RECIPE_FOLDER / f"{recipe}.yaml").read_text(encoding="utf-8")
    elif Path(recipe).is_file():
        text = Path(recipe).read_text(encoding="utf-8")
    else:
        raise InputError(
            f"no recipe {str(recipe)!r}",
            rule="a recipe is a packaged name or a YAML file",
            remedy=f"names: {', '.join(recipe_names())}",
        )
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"recipe {recipe} is not YAML: {error}", remedy="mend the file") from None
    if not isinstance(values, dict):
        raise InputError(
            f"recipe {recipe} holds {type(values).__name__}", rule="a recipe is a mapping of keys to values"
        )
    return values


def apply_change(values: dict[str, Any], change: str) -> None:
    """Apply one ``a.b.0.c=value``; the value is read as YAML, list items are named by their number."""
    path, separator, text = change.partition("=")
    if not separator or not path:
        raise InputError(f"--set {change!r}", rule="changes are written key.path=value", remedy="e.g. data.batch=2")
    node: Any = values
    *parents, last = path.split(".")
    for key in parents:
        node = _child(node, key, path)
    value = yaml.safe_load(text)
    if isinstance(node, list):
        node[_index(node, last, path)] = value
    else:
        node[last] = value


def with_changes(config: Config, changes: Iterable[str]) -> Config:
    """The settings with the user's ``key.path=value`` changes; InputError where one is no key or no value."""
    values = config.model_dump(mode="json")
    for change in changes:
        apply_change(values, change)
    try:
        return type(config).model_validate(values)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        keys = ", ".join(type(config).model_fields)
        raise InputError(f"--set: {wrong}", remedy=f"keys are {keys}") from None


def _child(node: Any, key: str, path: str) -> Any:
    if isinstance(node, list):
        return node[_index(node, key, path)]
    child = node.setdefault(key, {}) if isinstance(node, dict) else None
    if isinstance(child, int | float):  # a bare weight: widen it so that one of its keys can be set
        child = node[key] = {"weight": child}
    if not isinstance(child, dict | list):
        raise InputError(f"--set {path}: {key!r} holds {child!r}", rule="only mappings and lists have keys below them")
    return child


def _index(node: list[Any], key: str, path: str) -> int:
    if not key.isdigit() or int(key) >= len(node):
        raise InputError(f"--set {path}: no item {key!r}", rule=f"the list there has items 0 to {len(node) - 1}")
    return int(key)
