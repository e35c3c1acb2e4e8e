"""The training loop: every remaining batch goes to its step, and what came of it into the run folder.

A run may end at any moment, killed or interrupted; what was saved last goes on exactly. One loader serves the whole
run: its processes start once and work ahead of the networks.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise, repeat
from typing import Any, TypeVar

from duskfuse.data.errors import InputError, TrainingError
from duskfuse.data.images import write_picture
from duskfuse.data.progress import say, track
from duskfuse.distill.context import Batch
from duskfuse.distill.dataset import TrainingPairs, load_batches
from duskfuse.distill.engine import Engine
from duskfuse.distill.preview import preview_batch, sample_grid
from duskfuse.distill.recipe import Recipe
from duskfuse.distill.run_folder import MetricsLog, RunFolder

Waited = TypeVar("Waited")


def continue_run(engine: Engine, dataset: TrainingPairs, folder: RunFolder) -> int:
    """Load the newest sound checkpoint into the engine; the batch to go on with, 0 where nothing was saved yet."""
    if not engine.processes.first:
        engine.processes.wait()  # the first process may have to set a damaged checkpoint aside
    state = folder.load()
    if engine.processes.first:
        engine.processes.wait()
    first = 0
    if state is not None:
        _check_inputs(state, engine, dataset, folder)
        engine.load_state_dict(state["engine"])
        first = int(state["next_batch"])
    if engine.processes.first:
        folder.trim_metrics(first)
    say(f"resuming {folder.out} at batch {first}")
    return first


def train(engine: Engine, dataset: TrainingPairs, folder: RunFolder, first: int) -> None:
    """Run batches ``first`` to the end; Ctrl-C or SIGTERM stops after the update at hand, with a checkpoint.

    Only the first of several processes writes.
    """
    recipe, done = engine.recipe, first
    batches = _with_following(engine, dataset, first)
    shown = track(batches, f"distill {recipe.name}", total=recipe.total_batches - first)
    with _dead_loaders_named(), ExitStack() as stack:
        log = MetricsLog(folder) if engine.processes.first else None
        if log is not None:
            stack.callback(log.close)
            if first == 0:
                _save(engine, dataset, folder, 0)  # keeps what --init gave
        stop = stack.enter_context(signals_between_updates())
        clock = time.monotonic()
        for (batch, following), waiting in timed(shown):
            _announce(recipe, done, first)
            result = engine.step(done, batch, following)
            done += 1
            if log is not None:
                log.write(result, time.monotonic() - clock, waiting)
                if done % recipe.sample_every == 0 or done == recipe.total_batches:
                    _write_samples(engine, batch, done, folder, log)
                if done % recipe.save_every == 0 or done == recipe.total_batches:
                    log.flush()
                    _save(engine, dataset, folder, done)
            if stop:
                break
            clock = time.monotonic()
        if done < recipe.total_batches:
            if log is not None:
                log.flush()
                _save(engine, dataset, folder, done)
            say(f"stopped at batch {done}; go on with --resume")
            raise KeyboardInterrupt


def _with_following(engine: Engine, dataset: TrainingPairs, first: int) -> Iterator[tuple[Batch, Batch | None]]:
    """Every remaining batch with, in a recipe that unrolls, the one after it; the samples have no end."""
    recipe, processes = engine.recipe, engine.processes
    if recipe.unrolls:
        return pairwise(load_batches(dataset, recipe.data, first, recipe.total_batches + 1, processes))
    return zip(load_batches(dataset, recipe.data, first, recipe.total_batches, processes), repeat(None))


def timed(batches: Iterable[Waited]) -> Iterator[tuple[Waited, float]]:
    """Each batch and the seconds that were spent waiting for it."""
    iterator = iter(batches)
    while True:
        asked = time.monotonic()
        batch = next(iterator, None)
        if batch is None:
            return
        yield batch, time.monotonic() - asked


@contextmanager
def _dead_loaders_named() -> Iterator[None]:
    """Turn the death of a loading process, which PyTorch reports in the middle of anything, into an error."""
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise TrainingError(
            f"a loading process died ({str(error).splitlines()[0]})",
            rule="--resume goes on from the last checkpoint",
            remedy="where memory ran short, with a smaller data.workers",
        ) from None


@contextmanager
def signals_between_updates() -> Iterator[list[int]]:
    """A list that fills when the process is asked to stop; asked a second time, it stops at once.

    An update that is broken off half way could not be repeated exactly.
    """
    asked: list[int] = []

    def note(number: int, _: object) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    before = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, note)
        except ValueError:  # not the main thread: its signals are not this loop's matter
            break
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _announce(recipe: Recipe, batch: int, first: int) -> None:
    phase, _ = recipe.step_at(batch)
    if batch == first or recipe.step_at(batch - 1)[0] != phase:
        say(f"phase {phase} from batch {batch} of {recipe.total_batches}")


def _save(engine: Engine, dataset: TrainingPairs, folder: RunFolder, next_batch: int) -> None:
    state = {"engine": engine.state_dict(), "next_batch": next_batch}
    folder.save(next_batch, state | {"inputs": dataset.digest(), "processes": engine.processes.count})


def _check_inputs(state: dict[str, Any], engine: Engine, dataset: TrainingPairs, folder: RunFolder) -> None:
    if state["inputs"] != dataset.digest():
        raise InputError(
            f"the pairs, masks or teacher pictures differ from those of {folder.out}",
            rule="a resumed run sees what it would have seen",
            remedy="give the same DATA, --split, --masks, --teacher and --reading, or start a new run with --init",
        )
    if state["processes"] != engine.processes.count:
        say(f"{state['processes']} processes before, {engine.processes.count} now: BatchNorm and rounding differ")


def _write_samples(engine: Engine, batch: Batch, done: int, folder: RunFolder, log: MetricsLog) -> None:
    grid = sample_grid(engine.preview(preview_batch(batch)))
    write_picture(folder.samples / f"{done:07d}.png", grid)
    log.picture("samples", grid, done - 1)
