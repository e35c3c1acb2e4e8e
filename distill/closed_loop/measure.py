"""What a steering does on whole pictures: the losses of its tasks, and what a task needs on average."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from duskfuse.data.pair_files import PairFiles, read_pair
from duskfuse.data.progress import track
from duskfuse.distill.closed_loop.loop import ClosedLoop
from duskfuse.distill.context import Batch
from duskfuse.distill.ground_truth import WantedTruth, read_truth, without_truth
from duskfuse.students.steering.description import Descriptor

MOST_DESCRIBED = 32
"""Pairs, spread evenly, over which the needs of a task are averaged."""


@torch.no_grad()
def measured(loop: ClosedLoop, pairs: Sequence[PairFiles], wanted: WantedTruth) -> dict[str, dict[str, float]]:
    """By task, mean losses of first, live and fixed pictures over the pairs that have its ground truth."""
    sums = {task.name: {"first": 0.0, "live": 0.0, "fixed": 0.0} for task in loop.tasks}
    counts = dict.fromkeys(sums, 0)
    for files in track(pairs, "scoring"):
        batch = whole_batch(loop, files, wanted)
        first = loop.first_pictures(batch)
        for task in loop.tasks:
            turn = loop.turn(batch, task, first)
            fixed = task.loss(task.see(loop.fixed_pictures(batch, task.name), batch.ir).prediction, batch)
            found = {"first": float(turn.first), "live": float(turn.steered), "fixed": float(fixed)}
            if any(found.values()):  # exactly 0 where there is no ground truth
                counts[task.name] += 1
                for kind, loss in found.items():
                    sums[task.name][kind] += loss
    return {task: {kind: total / max(counts[task], 1) for kind, total in row.items()} for task, row in sums.items()}


@torch.no_grad()
def needs_on_average(loop: ClosedLoop, pairs: Sequence[PairFiles], wanted: WantedTruth) -> None:
    """Look at some pairs, and let the steering remember the mean of what each task needs in them."""
    chosen = pairs[:: -(-len(pairs) // MOST_DESCRIBED)]
    rows: dict[str, dict[str, list[Descriptor]]] = {task.name: {} for task in loop.tasks}
    for files in chosen:
        batch = whole_batch(loop, files, wanted)
        first = loop.first_pictures(batch)
        for task in loop.tasks:
            for tap, descriptor in loop.turn(batch, task, first).needs.items():
                rows[task.name].setdefault(tap, []).append(descriptor)
    for name, by_tap in rows.items():
        joined = {tap: Descriptor(*(torch.cat(parts) for parts in zip(*d, strict=True))) for tap, d in by_tap.items()}
        loop.network.steering.remember(name, joined)


def whole_batch(loop: ClosedLoop, files: PairFiles, wanted: WantedTruth) -> Batch:
    """One whole pair with its ground truth, where the networks are."""
    pair = read_pair(without_truth(files))
    truth = {name: value[None] for name, value in read_truth(files, pair.size, wanted).items()}
    no_masks = torch.zeros(1, 1, *pair.size, dtype=torch.bool)
    batch = Batch(
        ir=pair.ir[None], vis=pair.vis[None], masks_ir=no_masks, masks_vis=no_masks, names=(files.name,), **truth
    )
    return batch.to(loop.network.steering.bank.vectors.device)
