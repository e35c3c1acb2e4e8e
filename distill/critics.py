"""The critics of a run: task networks whose opinion of the fused picture is a term.

A recipe may name a critic's term although a user has no such network, or no labels: the term is then left out of the
run, of its log and of its resolved recipe, and the user is told so once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from duskfuse.data.class_conventions import check_labels
from duskfuse.data.errors import InputError
from duskfuse.data.pair_files import PairFiles
from duskfuse.data.progress import say
from duskfuse.distill.recipe import Recipe
from duskfuse.distill.terms import TermName
from duskfuse.tasks.open_segmenter import open_segmenter
from duskfuse.tasks.segmenter import Segmenter

_TERM = TermName.SEGMENTATION


def naming_segmenter(recipe: Recipe, network: Path | None) -> Recipe:
    """The recipe with another segmenter, where one is given."""
    if network is None:
        return recipe
    return recipe.model_copy(update={"segmenter": recipe.segmenter.model_copy(update={"network": network})})


def with_segmenter(recipe: Recipe, pairs: Sequence[PairFiles]) -> tuple[Recipe, Segmenter | None]:
    """The recipe that can be run on these pairs, and its frozen segmenter, if it has use for one.

    Raises:
        InputError: a segmenter is given and no step looks at it, it cannot be opened, or the labels are not those of
            its classes.
    """
    config = recipe.segmenter
    if _TERM not in recipe.terms_used():
        if config.network is not None:
            raise InputError(
                f"a segmenter, and no step of the recipe {recipe.name} has the term {_TERM}",
                rule="a critic is asked by a term",
                remedy=f"say e.g. --set steps.STEP.terms.{_TERM}=0.3, or leave the segmenter away",
            )
        return recipe, None
    if config.network is None:
        say(f"term {_TERM} is left out: no --segmenter is given; `duskfuse train-task segmentation` trains one")
        return recipe.without(_TERM), None
    segmenter = open_segmenter(config.network, config.classes)
    labelled = sum(pair.label is not None for pair in pairs)
    if not labelled:
        say(f"term {_TERM} is left out: none of the {len(pairs)} pairs has a label")
        return recipe.without(_TERM), None
    check_labels(pairs, segmenter.classes)
    some = "" if labelled == len(pairs) else f"; {len(pairs) - labelled} pairs without a label do not count in it"
    say(f"term {_TERM}: {config.network}, classes {segmenter.classes.name}{some}")
    return recipe, segmenter.freeze()
