"""The verb ``distill``: train main network and student on a folder of pairs, by a recipe, into a run folder."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from duskfuse import __version__
from duskfuse.data.errors import InputError
from duskfuse.data.fuser import Colour
from duskfuse.data.images import write_picture
from duskfuse.data.layout import find_pairs
from duskfuse.data.pair_files import PairFiles
from duskfuse.data.priors.cache import PriorStore
from duskfuse.data.priors.cache_masks import open_masks
from duskfuse.data.priors.sources import MaskSourceName
from duskfuse.data.progress import say, track
from duskfuse.data.reading import Reading
from duskfuse.data.weights import ModelCard, load_weights, read_card, save_weights
from duskfuse.distill.context import Batch
from duskfuse.distill.dataset import TrainingPairs, load_batches
from duskfuse.distill.engine import Engine, StepResult, needed_owners
from duskfuse.distill.preview import preview_batch, sample_grid
from duskfuse.distill.recipe import EncoderName, FusionField, Owner, Recipe, TermName, load_recipe
from duskfuse.distill.run_folder import MetricsLog, RunFolder
from duskfuse.students.zoo import build_student
from duskfuse.tasks.encoders import FeatureEncoder, filter_encoder, sam_encoder, squeezenet_encoder
from duskfuse.teachers import denoiser, main_network
from duskfuse.teachers.denoiser import ConditionalDenoiser
from duskfuse.teachers.denoiser_sizes import denoiser_config
from duskfuse.teachers.main_network import MainNetwork
from duskfuse.teachers.teacher_images import TeacherImages, open_teacher_images


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
    split: str | None = None,
    reading: Reading | Path | None = None,
) -> DistillReport:
    """Train by ``recipe`` on the pairs of ``data`` and write everything to ``out``.

    ``changes`` are ``key.path=value`` strings; ``init`` are weight files of the networks to start
    from; ``masks`` and ``teacher`` name which cached priors to use where there are several; ``reading`` is how the
    infrared pictures are read, or a file that says it, by default the dataset's ``duskfuse.yaml``. Raises
    ``InputError`` for input that cannot be used and ``TrainingError`` when a term stops being finite.
    """
    resolved = _with_encoder(load_recipe(recipe, changes), encoder, encoder_weights)
    pairs = find_pairs(data, split=split, reading=reading)
    dataset = _open_dataset(pairs, resolved, cache, masks, teacher)
    torch.manual_seed(resolved.seed)
    engine = _build_engine(resolved, init)
    folder = RunFolder(out)
    folder.prepare(resolved, resume=resume, overwrite=overwrite)
    first = _resume(engine, folder) if resume else 0
    started = time.monotonic()
    _train(engine, dataset, folder, first)
    weights = _export_weights(engine, folder, dataset.described(data.resolve().name))
    return _report(resolved, folder, len(dataset.pairs), time.monotonic() - started, weights)


def _with_encoder(recipe: Recipe, name: EncoderName | None, weights: Path | None) -> Recipe:
    if name is None and weights is None:
        return recipe
    config = recipe.encoder.model_copy(update={"name": name or recipe.encoder.name, "weights": weights})
    return recipe.model_copy(update={"encoder": config})


def _open_dataset(
    pairs: list[PairFiles], recipe: Recipe, cache: Path | None, masks: MaskSourceName | None, teacher: str | None
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
    return TrainingPairs(pairs, recipe.data, recipe.seed, masks=mask_store, teacher=teacher_images, noise=noise)


def _build_engine(recipe: Recipe, init: Sequence[Path]) -> Engine:
    owners = needed_owners(recipe)
    networks: dict[Owner, nn.Module] = {}
    if Owner.TEACHER in owners:
        networks[Owner.TEACHER] = MainNetwork(masks=recipe.data.masks)
    if Owner.STUDENT in owners:
        networks[Owner.STUDENT] = build_student(recipe.student.architecture, recipe.student.settings)
    if Owner.DENOISER in owners:
        networks[Owner.DENOISER] = ConditionalDenoiser(
            denoiser_config(recipe.diffusion.size, recipe.diffusion.prediction)
        )
    for path in init:
        _initialise(networks, architectures(recipe), path)
    encoder = _build_encoder(recipe) if TermName.CONTRASTIVE in recipe.terms_used() else None
    return Engine(recipe, networks, encoder, torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def architectures(recipe: Recipe) -> dict[Owner, str]:
    """What the weights of each owner's network are called."""
    return {
        Owner.STUDENT: recipe.student.architecture,
        Owner.TEACHER: main_network.ARCHITECTURE,
        Owner.DENOISER: denoiser.ARCHITECTURE,
    }


def _initialise(networks: dict[Owner, nn.Module], known: dict[Owner, str], path: Path) -> None:
    """Load one weight file into the network of its architecture."""
    architecture = read_card(path).architecture
    owner = next((owner for owner, name in known.items() if name == architecture), Owner.STUDENT)
    if owner not in networks:
        raise InputError(
            f"{path} holds a {architecture}", rule=f"this recipe trains no {owner}", remedy="leave this --init out"
        )
    load_weights(path, networks[owner], known[owner])
    say(f"{owner} starts from {path}")


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


def _resume(engine: Engine, folder: RunFolder) -> int:
    state = folder.load()
    engine.load_state_dict(state["engine"])
    first = int(state["next_batch"])
    folder.trim_metrics(first)
    say(f"resuming {folder.out} at batch {first}")
    return first


def _train(engine: Engine, dataset: TrainingPairs, folder: RunFolder, first: int) -> None:
    """Give every remaining batch to its step; Ctrl-C leaves a checkpoint to resume from."""
    recipe, log, done = engine.recipe, MetricsLog(folder), first
    batches = load_batches(dataset, recipe.data, first, recipe.total_batches)
    clock = time.monotonic()
    try:
        for batch in track(batches, f"distill {recipe.name}", total=recipe.total_batches - first):
            _announce(recipe, done, first)
            result = engine.step(done, batch)
            done += 1
            log.write(result, time.monotonic() - clock)
            if done % recipe.sample_every == 0 or done == recipe.total_batches:
                _write_samples(engine, batch, result, folder, log)
            if done % recipe.save_every == 0 or done == recipe.total_batches:
                _save(engine, folder, done)
            clock = time.monotonic()
    except KeyboardInterrupt:
        _save(engine, folder, done)
        say(f"stopped at batch {done}; go on with --resume")
        raise
    finally:
        log.close()


def _announce(recipe: Recipe, batch: int, first: int) -> None:
    phase, _ = recipe.step_at(batch)
    if batch == first or recipe.step_at(batch - 1)[0] != phase:
        say(f"phase {phase} from batch {batch} of {recipe.total_batches}")


def _save(engine: Engine, folder: RunFolder, next_batch: int) -> None:
    folder.save({"engine": engine.state_dict(), "next_batch": next_batch})


def _write_samples(engine: Engine, batch: Batch, result: StepResult, folder: RunFolder, log: MetricsLog) -> None:
    grid = sample_grid(engine.preview(preview_batch(batch)))
    write_picture(folder.samples / f"{result.batch + 1:07d}.png", grid)
    log.picture("samples", grid, result.batch)


def _export_weights(engine: Engine, folder: RunFolder, trained_on: str) -> dict[str, str]:
    """Write each trained network as safetensors with its card."""
    written = {}
    for owner in engine.optimisers:
        if not engine.steps_total[owner]:
            continue
        network = engine.shown(owner)
        card = ModelCard(
            architecture=architectures(engine.recipe)[owner],
            settings=dict(network.settings),  # type: ignore[arg-type]
            colour=Colour.RGB.value if getattr(network, "colour", None) == Colour.RGB else Colour.LUMA.value,
            version=__version__,
            training_data=trained_on,
            licence="Apache-2.0",
            metrics={},
            notes=f"recipe {engine.recipe.name}, {engine.steps_done[owner]} steps, seed {engine.recipe.seed}",
        )
        path = folder.out / f"{owner.value}.safetensors"
        save_weights(path, network, card)
        written[owner.value] = str(path)
    return written


def _report(recipe: Recipe, folder: RunFolder, pairs: int, seconds: float, weights: dict[str, str]) -> DistillReport:
    records = [json.loads(line) for line in folder.metrics.read_text(encoding="utf-8").splitlines()]
    by_step: dict[str, list[dict[str, float]]] = {}
    for record in records:
        by_step.setdefault(record["step"], []).append(record)
    medians = {step: sorted(r["seconds"] for r in rows)[len(rows) // 2] for step, rows in by_step.items()}
    losses = {step: sum(r["loss"] for r in rows[-50:]) / len(rows[-50:]) for step, rows in by_step.items()}
    return DistillReport(
        out=str(folder.out),
        recipe=recipe.name,
        pairs=pairs,
        batches=recipe.total_batches,
        seconds=round(seconds, 1),
        seconds_per_batch=medians,
        final_loss=losses,
        weights=weights,
    )
