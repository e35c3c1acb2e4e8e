"""The critics of a run: task networks whose opinion of the fused picture is a term.

A recipe may name a critic's term although a user has no such network, or no ground truth: the term is then left out of
the run, of its log and of its resolved recipe, and the user is told so once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from duskfuse.data.class_conventions import check_labels, check_objects
from duskfuse.data.errors import InputError
from duskfuse.data.pair_files import PairFiles
from duskfuse.data.progress import say
from duskfuse.distill.ground_truth import WantedTruth
from duskfuse.distill.recipe import Recipe
from duskfuse.distill.terms import TermName
from duskfuse.tasks.detector import Detector
from duskfuse.tasks.open_task_network import AnyDetector, open_task_network, task_of
from duskfuse.tasks.segmenter import Segmenter
from duskfuse.tasks.task_network import Task, TaskNetwork

Critic = TaskNetwork[Any, Any, Any]

_KEYS = {Task.SEGMENTATION: "segmenter", Task.DETECTION: "detector", Task.SALIENCY: "salience"}
"""Where a recipe says which network judges."""
_TERMS = {
    Task.SEGMENTATION: TermName.SEGMENTATION,
    Task.DETECTION: TermName.DETECTION,
    Task.SALIENCY: TermName.SALIENCY,
}
_DIFFERENTIAL = TermName.SALIENT_GRADIENT
"""Looks at what a detector of two cameras finds different, and needs no ground truth."""
_TRUTH = {Task.SEGMENTATION: "label", Task.DETECTION: "boxes", Task.SALIENCY: "saliency"}
"""What a pair must have."""


def naming_critics(recipe: Recipe, networks: Sequence[Path], backbone: Path | None = None) -> Recipe:
    """The recipe with other critics, where some are given: which term each is for stands in its card.

    Args:
        recipe: what names others, or none.
        networks: files of task networks.
        backbone: what an SLGNet detector among them was trained around.

    Raises:
        InputError: one is no task network, two are of one task, or a backbone is of none.
    """
    given = by_task(networks)
    changes: dict[str, dict[str, Path]] = {_KEYS[task]: {"network": path} for task, path in given.items()}
    if backbone is not None:
        check_backbone(backbone, given.get(Task.DETECTION, recipe.detector.network))
        changes.setdefault(_KEYS[Task.DETECTION], {})["backbone"] = backbone
    return recipe.model_copy(
        update={key: getattr(recipe, key).model_copy(update=change) for key, change in changes.items()}
    )


def check_backbone(backbone: Path, detector: Path | None) -> None:
    """Raise InputError where a backbone is given without a detector."""
    if detector is None:
        raise InputError(
            f"--backbone {backbone} without a detector",
            rule="an SLGNet detector is opened around it",
            remedy="give the detector with --critic, or leave it away",
        )


def by_task(networks: Sequence[Path]) -> dict[Task, Path]:
    """Files of task networks by what they do; InputError where one is no task network, or two do the same."""
    given: dict[Task, Path] = {}
    for path in networks:
        task = task_of(path)
        if task in given:
            raise InputError(
                f"two critics of {task}: {given[task]} and {path}", rule="one network judges a task", remedy="give one"
            )
        given[task] = path
    return given


def with_critics(recipe: Recipe, pairs: Sequence[PairFiles]) -> tuple[Recipe, dict[Task, Critic]]:
    """The recipe that can be run on these pairs, and the frozen critics that it has use for.

    Raises:
        InputError: a critic is given and no step looks at it, it cannot be opened, or the ground truth is not of its
            classes.
    """
    critics: dict[Task, Critic] = {}
    for task in Task:
        recipe, critic = _with_critic(recipe, task, pairs)
        if critic is not None:
            critics[task] = critic.freeze()
    return recipe, critics


def truth_for(recipe: Recipe, critics: Mapping[Task, Critic]) -> WantedTruth:
    """What the samples of a run with these critics must carry; a detector's differences need no boxes."""
    if TermName.DETECTION not in recipe.terms_used():
        critics = {task: critic for task, critic in critics.items() if task is not Task.DETECTION}
    return truth_of(critics)


def truth_of(networks: Mapping[Task, Critic]) -> WantedTruth:
    """What the losses of these networks compare with."""
    segmenter, detector = networks.get(Task.SEGMENTATION), networks.get(Task.DETECTION)
    return WantedTruth(
        labels=segmenter.classes if isinstance(segmenter, Segmenter) else None,
        objects=detector.classes if isinstance(detector, AnyDetector) else None,
        saliency=Task.SALIENCY in networks,
    )


def _with_critic(recipe: Recipe, task: Task, pairs: Sequence[PairFiles]) -> tuple[Recipe, Critic | None]:
    asked, network = _asked(recipe, task), getattr(recipe, _KEYS[task]).network
    if not asked:
        if network is not None:
            raise InputError(
                f"a {_KEYS[task]}, and no step of the recipe {recipe.name} has the term {_TERMS[task]}",
                rule="a critic is asked by a term",
                remedy=f"say e.g. --set steps.STEP.terms.{_TERMS[task]}=0.3, or leave the network away",
            )
        return recipe, None
    if network is None:
        for term in asked:
            say(f"term {term} is left out: no --critic for it is given; `duskfuse train-task {task}` trains one")
            recipe = recipe.without(term)
        return recipe, None
    critic = open_task_network(
        network,
        recipe.segmenter.classes if task is Task.SEGMENTATION else None,
        recipe.detector.backbone if task is Task.DETECTION else None,
    )
    if critic.task is not task:
        raise InputError(f"{network}: a network of {critic.task}", rule=f"the recipe wants one of {task}")
    if _DIFFERENTIAL in asked:
        _check_differences(network, critic)
    if _TERMS[task] in asked:
        recipe = _judging(recipe, network, critic, pairs)
    return recipe, critic if _asked(recipe, task) else None


def _asked(recipe: Recipe, task: Task) -> list[TermName]:
    """The terms of the recipe that look at a network of the task."""
    terms = [_TERMS[task], _DIFFERENTIAL] if task is Task.DETECTION else [_TERMS[task]]
    return [term for term in terms if term in recipe.terms_used()]


def _check_differences(network: Path, critic: Critic) -> None:
    if not isinstance(critic, Detector) or not critic.finds_differences:
        raise InputError(
            f"{network}: a detector without IRDFusion",
            rule=f"the term {_DIFFERENTIAL} looks at the differences that IRDFusion finds between two cameras",
            remedy="train one with `duskfuse train-task detection DATA --input both --fusion irdfusion`",
        )


def _judging(recipe: Recipe, network: Path, critic: Critic, pairs: Sequence[PairFiles]) -> Recipe:
    """The recipe with the critic's loss as a term, or without where no pair has ground truth; it is said which."""
    task = critic.task
    term, known = _TERMS[task], sum(getattr(pair, _TRUTH[task]) is not None for pair in pairs)
    if not known:
        say(f"term {term} is left out: none of the {len(pairs)} pairs has a {_NAMED[task]}")
        return recipe.without(term)
    classes = checked_classes(critic, pairs)
    some = "" if known == len(pairs) else f"; {len(pairs) - known} pairs without a {_NAMED[task]} do not count in it"
    say(f"term {term}: {network}{classes}{some}")
    return recipe


_NAMED = {Task.SEGMENTATION: "label", Task.DETECTION: "file of boxes", Task.SALIENCY: "saliency map"}


def checked_classes(critic: Critic, pairs: Sequence[PairFiles]) -> str:
    """The classes of a critic, for the message; InputError where the ground truth is of others."""
    if isinstance(critic, Segmenter):
        check_labels(pairs, critic.classes)
        return f", classes {critic.classes.name}"
    if isinstance(critic, AnyDetector):
        check_objects(pairs, critic.classes)
        return f", classes {critic.classes.name}"
    return ""
