"""A recipe explains itself, and a misspelt key is told the nearest valid one."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel
from typer.testing import CliRunner

from duskfuse.cli import app
from duskfuse.data.errors import InputError
from duskfuse.distill.explain_recipe import annotated_yaml, meaning
from duskfuse.distill.recipe import Recipe
from duskfuse.distill.recipe_files import load_recipe, recipe_names
from duskfuse.distill.terms import TermName

MEANINGS = {term.value: term.meaning for term in TermName}


@pytest.mark.parametrize("name", recipe_names())
def test_an_explained_recipe_is_the_recipe(name: str, tmp_path: Path):
    recipe = load_recipe(name)
    text = annotated_yaml(recipe, MEANINGS)
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    assert load_recipe(tmp_path / "mine.yaml") == recipe
    assert max(map(len, text.splitlines())) <= 160


def models(kind: type[BaseModel]) -> set[type[BaseModel]]:
    """A model and all that lie in it, whatever containers they are in."""
    found, waiting = set[type[BaseModel]](), [kind]
    while waiting:
        annotation = waiting.pop()
        if isinstance(annotation, type) and issubclass(annotation, BaseModel) and annotation not in found:
            found.add(annotation)
            waiting += [field.annotation for field in annotation.model_fields.values()]  # type: ignore[misc]
        waiting += [part for part in getattr(annotation, "__args__", ()) if part is not Ellipsis]
    return found


def test_every_key_says_what_it_is():
    assert len(models(Recipe)) > 8
    for model in models(Recipe):
        for name, field in model.model_fields.items():
            assert meaning(field), f"{model.__name__}.{name}"
    assert all(line.endswith((".", ":", "`")) for line in MEANINGS.values()), MEANINGS


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("data.crp=3", "data.crp: no such key, did you mean crop?"),
        ("data.augment.misalignment.shft=1", "did you mean shift?"),
        ("steps.student.terms.pixl_triplet=1", "did you mean pixel_triplet?"),
        ("optimisers.studnt.lr=1", "did you mean student?"),
        ("phases.0.cycel=[a]", "did you mean cycle?"),
        ("xyzzy=1", r"xyzzy: no such key \(known: name, seed"),
        ("precision=float17", "precision: Input should be 'auto'"),
    ],
)
def test_a_misspelt_key_is_told_the_nearest(change: str, said: str):
    with pytest.raises(InputError, match=said):
        load_recipe("default", [change])


def test_from_the_shell(tmp_path: Path):
    done = CliRunner().invoke(app, ["recipes", "show", "default", "--set", "data.batch=3"])
    assert done.exit_code == 0, done.output
    assert yaml.safe_load(done.stdout)["data"]["batch"] == 3
    assert "# Samples that the networks see at once" in done.stdout
    listed = CliRunner().invoke(app, ["recipes"])
    assert listed.exit_code == 0
    assert all(name in listed.stdout for name in recipe_names())
    unknown = CliRunner().invoke(app, ["recipes", "show", "defualt"])
    assert unknown.exit_code == 2
