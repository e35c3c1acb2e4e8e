"""Recipes are plain data that is checked before anything is computed."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from duskfuse.data.errors import InputError
from duskfuse.distill.recipe import FusionField, Owner
from duskfuse.distill.recipe_files import load_recipe, recipe_names
from duskfuse.distill.schedule import learning_rate
from duskfuse.distill.terms import TermName

MINIMAL = {
    "name": "tiny",
    "optimisers": {"student": {"lr": 1e-3}, "teacher": {"lr": 1e-3}},
    "steps": {
        "s": {"owner": "student", "terms": {"pixel_triplet": 3, "features": 0.3}},
        "t": {"owner": "teacher", "terms": {"source_mse": 1}},
    },
    "phases": [{"name": "warm", "batches": 3, "cycle": ["t"]}, {"name": "both", "batches": 5, "cycle": ["s", "t"]}],
}


def write(tmp_path: Path, values: object) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.parametrize("name", recipe_names())
def test_packaged_recipes_are_valid(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert all(recipe.owner_steps(owner) > 0 for owner in recipe.optimisers)


def test_phases_and_cycles_name_the_step_of_every_batch(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, MINIMAL))
    assert [recipe.step_at(batch)[1] for batch in range(8)] == ["t", "t", "t", "s", "t", "s", "t", "s"]
    assert recipe.owner_steps(Owner.STUDENT) == 3
    assert recipe.owner_steps(Owner.TEACHER) == 5
    assert recipe.fields_used() == {FusionField.STUDENT, FusionField.TEACHER, FusionField.TEACHER_SG}


def test_set_changes_numbers_lists_and_bare_weights(tmp_path: Path) -> None:
    changes = ["data.batch=2", "data.crop=[64, 80]", "phases.1.batches=7", "steps.s.terms.features.weight=0.5"]
    recipe = load_recipe(write(tmp_path, MINIMAL), changes)
    assert recipe.data.batch == 2
    assert recipe.data.crop == (64, 80)
    assert recipe.total_batches == 10
    assert recipe.steps["s"].terms[TermName.FEATURES].weight == 0.5


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("data.bach=2", "data.bach"),
        ("steps.s.terms.pixel=1", "pixel"),
        ("phases.0.cycle=[nothing]", "nothing"),
        ("phases.9.batches=1", "9"),
        ("data.batch", "key.path=value"),
        ("data.batch=0", "data.batch"),
        ("steps.s.terms.source_mse={weight: 1, reference: teacher_sg}", "source_mse"),
        ("steps.s.terms.pixel_triplet={weight: 1, reference: student}", "itself"),
    ],
)
def test_wrong_changes_name_the_key(tmp_path: Path, change: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        load_recipe(write(tmp_path, MINIMAL), [change])


def test_feature_loss_with_a_cached_teacher_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="feature maps"):
        load_recipe(write(tmp_path, MINIMAL), ["steps.s.terms.features={weight: 1, reference: teacher_cached}"])


def test_unknown_recipe_lists_the_names() -> None:
    with pytest.raises(InputError, match="paper_sage"):
        load_recipe("papersage")


def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="mapping"):
        load_recipe(write(tmp_path, [1, 2]))


@pytest.mark.parametrize("name", recipe_names())
def test_every_optimiser_ends_at_its_final_rate(name: str) -> None:
    """The published schedule stopped half way because it counted the other network's batches too (SAGE §6)."""
    recipe = load_recipe(name)
    for owner, config in recipe.optimisers.items():
        total = recipe.owner_steps(owner)
        rates = [learning_rate(config, step, total) for step in range(total)]
        assert rates[-1] == pytest.approx(config.final_lr)
        assert max(rates) == pytest.approx(config.lr)
        after = rates[config.warmup :]
        assert all(later <= earlier for earlier, later in pairwise(after))
