"""The verb ``distill``: train main network and student on a folder of pairs, by a recipe, into a run folder."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from pydantic import JsonValue
from torch import nn

from duskfuse import __version__
from duskfuse.data.errors import InputError
from duskfuse.data.fuser import Colour
from duskfuse.data.layout import find_pairs
from duskfuse.data.pair_files import PairFiles
from duskfuse.data.priors.cache import PriorStore
from duskfuse.data.priors.cache_masks import open_masks
from duskfuse.data.priors.sources import MaskSourceName
from duskfuse.data.progress import say, set_quiet
from duskfuse.data.reading import Reading
from duskfuse.data.weights import ModelCard, load_weights, read_card, save_weights
from duskfuse.distill.adapters import build_adapters
from duskfuse.distill.critics import Critic, naming_critics, truth_for, with_critics
from duskfuse.distill.dataset import TrainingPairs
from duskfuse.distill.engine import Engine, needed_owners
from duskfuse.distill.perceptual_network import with_perceptual
from duskfuse.distill.processes import ALONE, Processes, joined_processes, training_device
from duskfuse.distill.quantised import make_ready
from duskfuse.distill.recipe import EncoderName, FusionField, Owner, Recipe
from duskfuse.distill.recipe_files import load_recipe
from duskfuse.distill.run_folder import RunFolder
from duskfuse.distill.terms import TermName
from duskfuse.distill.training_loop import continue_run, train
from duskfuse.students.fake_quantise import QuantisedStudent
from duskfuse.students.zoo import ModelName, build_student, weights_path
from duskfuse.tasks.encoders import FeatureEncoder, filter_encoder, sam_encoder, squeezenet_encoder
from duskfuse.tasks.task_network import Task
from duskfuse.teachers import denoiser, main_network
from duskfuse.teachers.denoiser import ConditionalDenoiser
from duskfuse.teachers.denoiser_sizes import denoiser_config
from duskfuse.teachers.main_network import MainNetwork
from duskfuse.teachers.teacher_images import TeacherImages, open_teacher_images

_SETTING_KEYS = {
    Owner.STUDENT: {"": "student.settings."},
    Owner.TEACHER: {"masks": "data.masks", "": "main_network."},
}
"""Where a recipe has the constructor arguments of a network, by their names; the empty name stands for all others."""


@dataclass(frozen=True)
class DistillReport:
    """What a run did and where its results are."""

    out: str
    recipe: str
    pairs: int
    batches: int
    seconds: float
    seconds_per_batch: dict[str, float]
    """Median seconds of one update, per step of the recipe, data loading included."""
    waiting_share: float
    """Part of the training time that went by waiting for data."""
    peak_memory_mib: float | None
    """Most memory in use: of the GPU where there is one, else of this process; None where the system does not say."""
    final_loss: dict[str, float]
    """Mean loss of each step over its last 50 updates."""
    weights: dict[str, str]
    """Written weight files, per owner."""

    def to_json(self) -> dict[str, object]:
        """Plain data for ``--json``."""
        return asdict(self)


def distill(
    data: Path,
    *,
    out: Path,
    recipe: str | Path = "default",
    changes: Sequence[str] = (),
    resume: bool = False,
    overwrite: bool = False,
    init: Sequence[Path] = (),
    cache: Path | None = None,
    masks: MaskSourceName | None = None,
    teacher: str | None = None,
    encoder: EncoderName | None = None,
    encoder_weights: Path | None = None,
    critics: Sequence[Path] = (),
    backbone: Path | None = None,
    split: str | None = None,
    reading: Reading | Path | None = None,
) -> DistillReport:
    """Train by ``recipe`` on the pairs of ``data`` and write everything to ``out``.

    ``changes`` are ``key.path=value`` strings; ``init`` are weight files of the networks to start from, or names of
    packaged students; ``masks`` and ``teacher`` name which cached priors to use where there are several; ``critics``
    are the networks of the terms segmentation, detection and saliency, and ``backbone`` is the transformer of an SLGNet
    detector among them; ``reading`` is how the infrared pictures are read, or a file that says it, by default the
    dataset's ``duskfuse.yaml``. Processes that torchrun starts share every
    batch. Raises ``InputError`` for input that cannot be used and ``TrainingError`` when a term stops being finite or
    memory does not suffice.
    """
    resolved = naming_critics(with_encoder(load_recipe(recipe, changes), encoder, encoder_weights), critics, backbone)
    init = initial_weights(init)
    with joined_processes() as processes:
        processes.check(resolved.data)
        if not processes.first:
            set_quiet(True)
        if not resume:
            check_given(resolved, init)
        resolved, perceptual = with_perceptual(resolved)
        pairs = find_pairs(data, split=split, reading=reading)
        resolved, judges = with_critics(resolved, pairs)
        dataset = open_dataset(pairs, resolved, cache, masks, teacher, judges)
        engine = build_engine(resolved, init, processes, judges, perceptual)
        folder = RunFolder(out)
        if processes.first:
            folder.prepare(resolved, resume=resume, overwrite=overwrite)
        processes.wait()
        first = continue_run(engine, dataset, folder) if resume else 0
        if resume and first == 0:
            check_given(resolved, init)  # the run was stopped before its first checkpoint
        if resolved.quantise is not None:
            make_ready(engine.networks[Owner.STUDENT], dataset, resolved.quantise)
        started = time.monotonic()
        train(engine, dataset, folder, first)
        if processes.first:
            _export_weights(engine, folder, dataset.described(data.resolve().name))
        processes.wait()
    return _report(engine, folder, len(dataset.pairs), time.monotonic() - started)


def with_encoder(recipe: Recipe, name: EncoderName | None, weights: Path | None) -> Recipe:
    """The recipe with another feature encoder, where one is given."""
    if name is None and weights is None:
        return recipe
    config = recipe.encoder.model_copy(update={"name": name or recipe.encoder.name, "weights": weights})
    return recipe.model_copy(update={"encoder": config})


def open_dataset(
    pairs: list[PairFiles],
    recipe: Recipe,
    cache: Path | None,
    masks: MaskSourceName | None,
    teacher: str | None,
    critics: Mapping[Task, Critic] | None = None,
) -> TrainingPairs:
    """Find the cached priors that the recipe needs, before anything else is done."""
    needs_masks = FusionField.TEACHER in recipe.fields_used() or FusionField.TEACHER_SG in recipe.fields_used()
    mask_store: PriorStore | None = None
    teacher_images: TeacherImages | None = None
    if needs_masks or TermName.CONTRASTIVE in recipe.terms_used():
        mask_store = open_masks(cache, {key for files in pairs for key in files.prior_keys()}, masks)
    if recipe.needs_teacher_pictures:
        pairs, teacher_images = open_teacher_images(cache, pairs, teacher, recipe.data.brightness)
    noise = FusionField.DENOISER in recipe.fields_used()
    return TrainingPairs(
        pairs,
        recipe.data,
        recipe.seed,
        masks=mask_store,
        teacher=teacher_images,
        noise=noise,
        truth=truth_for(recipe, critics or {}),
    )


def build_engine(
    recipe: Recipe,
    init: Sequence[Path],
    processes: Processes = ALONE,
    critics: Mapping[Task, Critic] | None = None,
    perceptual: FeatureEncoder | None = None,
) -> Engine:
    """Networks of the recipe with the weights of ``init``, on the training device."""
    torch.manual_seed(recipe.seed)
    owners = needed_owners(recipe)
    networks: dict[Owner, nn.Module] = {}
    if Owner.TEACHER in owners:
        networks[Owner.TEACHER] = MainNetwork(recipe.data.masks, recipe.main_network.compat, recipe.main_network.width)
    if Owner.STUDENT in owners:
        networks[Owner.STUDENT] = build_student(recipe.student.architecture, recipe.student.settings)
    if Owner.DENOISER in owners:
        networks[Owner.DENOISER] = ConditionalDenoiser(
            denoiser_config(recipe.diffusion.size, recipe.diffusion.prediction)
        )
    for path in init:
        _initialise(networks, recipe, path)
    if recipe.quantise is not None and Owner.STUDENT in networks:
        networks[Owner.STUDENT] = QuantisedStudent(networks[Owner.STUDENT])
    encoder = _build_encoder(recipe) if TermName.CONTRASTIVE in recipe.terms_used() else None
    return Engine(
        recipe,
        networks,
        encoder,
        training_device(),
        processes,
        critics,
        perceptual=perceptual,
        adapters=build_adapters(recipe, networks),
    )


def architectures(recipe: Recipe) -> dict[Owner, str]:
    """What the weights of each owner's network are called."""
    return {
        Owner.STUDENT: recipe.student.architecture,
        Owner.TEACHER: main_network.ARCHITECTURE,
        Owner.DENOISER: denoiser.ARCHITECTURE,
    }


def initial_weights(init: Sequence[Path]) -> list[Path]:
    """The files to start from, where packaged students may be given by their names."""
    return [weights_path(path.name) if str(path) in list(ModelName) and not path.exists() else path for path in init]


def check_given(recipe: Recipe, init: Sequence[Path]) -> None:
    """Refuse a recipe that looks at a network which nothing has trained."""
    given = {read_card(path).architecture for path in init}
    if recipe.quantise is not None and architectures(recipe)[Owner.STUDENT] not in given:
        raise InputError(
            f"the recipe {recipe.name} fine-tunes a student for INT8",
            rule="it starts from trained weights, and learns the pictures that they make in float",
            remedy=f"give them: --init {architectures(recipe)[Owner.STUDENT]}, or a checkpoint",
        )
    for owner in sorted(needed_owners(recipe)):
        if owner not in recipe.optimisers and architectures(recipe)[owner] not in given:
            raise InputError(
                f"the recipe {recipe.name} compares with the {owner} and does not train it",
                rule="a network that is only looked at must have been trained before",
                remedy=f"give its weights, e.g. --init {owner}.safetensors",
            )


def _initialise(networks: dict[Owner, nn.Module], recipe: Recipe, path: Path) -> None:
    """Load one weight file into the network of its architecture."""
    card, known = read_card(path), architectures(recipe)
    if card.int8_scales:
        raise InputError(
            f"{path} was fine-tuned for INT8",
            rule="its weights have the form of the exported file, in which nothing is trained from the start",
            remedy="start from the checkpoint that it was made of",
        )
    owner = next((owner for owner, name in known.items() if name == card.architecture), Owner.STUDENT)
    if owner not in networks:
        raise InputError(
            f"{path} holds a {card.architecture}", rule=f"this recipe has no {owner}", remedy="leave this --init out"
        )
    if owner in _SETTING_KEYS and card.architecture == known[owner]:
        _check_settings(path, dict(card.settings), owner, dict(networks[owner].settings))  # type: ignore[arg-type]
    load_weights(path, networks[owner], known[owner])
    say(f"{owner} starts from {path}" if recipe.owner_steps(owner) else f"{owner}: {path}, not trained any further")


def _check_settings(path: Path, given: dict[str, JsonValue], owner: Owner, built: dict[str, JsonValue]) -> None:
    """Refuse weights of a network that was built in another way: they may load all the same and mean something else."""
    others = [name for name, value in given.items() if built.get(name) != value]
    if others:
        keys = _SETTING_KEYS[owner]
        raise InputError(
            f"{path} is a {owner} of {', '.join(f'{name} {given[name]}' for name in others)}, "
            f"the recipe builds one of {', '.join(f'{name} {built.get(name)}' for name in others)}",
            rule="weights go into a network of the same settings",
            remedy="say " + " ".join(f"--set {keys.get(name, keys[''] + name)}={given[name]}" for name in others),
        )


def _build_encoder(recipe: Recipe) -> FeatureEncoder:
    name, weights = recipe.encoder.name, recipe.encoder.weights
    if name is None:
        name = EncoderName.SQUEEZENET if weights else EncoderName.FILTERS
    if name is EncoderName.SAM:
        if weights is None:
            raise InputError("encoder sam without weights", remedy="give --encoder-weights CHECKPOINT")
        return sam_encoder(weights)
    if name is EncoderName.SQUEEZENET:
        return squeezenet_encoder(weights)
    say("feature encoder: the embedded weight-free filter bank; for semantic features give --encoder-weights")
    return filter_encoder()


def _trained(engine: Engine) -> list[Owner]:
    return [owner for owner in engine.optimisers if engine.steps_total[owner]]


def _weights_file(folder: RunFolder, owner: Owner) -> Path:
    return folder.out / f"{owner.value}.safetensors"


def _export_weights(engine: Engine, folder: RunFolder, trained_on: str) -> None:
    """Write each trained network as safetensors with its card."""
    for owner in _trained(engine):
        network = engine.shown(owner)
        scales = network.scales if isinstance(network, QuantisedStudent) else {}
        averaged = (
            f", weights averaged with decay {engine.recipe.optimisers[owner].ema}" if owner in engine.averages else ""
        )
        card = ModelCard(
            architecture=architectures(engine.recipe)[owner],
            settings=dict(network.settings),  # type: ignore[arg-type]
            colour=Colour.RGB.value if getattr(network, "colour", None) == Colour.RGB else Colour.LUMA.value,
            version=__version__,
            training_data=trained_on,
            licence="Apache-2.0",
            metrics={},
            notes=f"recipe {engine.recipe.name}, {engine.steps_done[owner]} steps, seed {engine.recipe.seed}{averaged}",
            int8_scales=scales,
        )
        written = network.deployed() if isinstance(network, QuantisedStudent) else network
        save_weights(_weights_file(folder, owner), written, card)


def _report(engine: Engine, folder: RunFolder, pairs: int, seconds: float) -> DistillReport:
    records = [json.loads(line) for line in folder.metrics.read_text(encoding="utf-8").splitlines()]
    by_step: dict[str, list[dict[str, float]]] = {}
    for record in records:
        by_step.setdefault(record["step"], []).append(record)
    return DistillReport(
        out=str(folder.out),
        recipe=engine.recipe.name,
        pairs=pairs,
        batches=engine.recipe.total_batches,
        seconds=round(seconds, 1),
        seconds_per_batch={step: statistics.median(r["seconds"] for r in rows) for step, rows in by_step.items()},
        waiting_share=sum(r["waiting_seconds"] for r in records) / sum(r["seconds"] for r in records),
        peak_memory_mib=_peak_memory_mib(engine.device),
        final_loss={step: statistics.fmean(r["loss"] for r in rows[-50:]) for step, rows in by_step.items()},
        weights={owner.value: str(_weights_file(folder, owner)) for owner in _trained(engine)},
    )


def _peak_memory_mib(device: torch.device) -> float | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
