"""Training samples: one geometric draw cuts the pair, its masks, its label and its cached teacher image together.

Where the teacher shows a part of the pair only, the draw stays within that part.

Sample ``i`` of a run depends on the seed and ``i`` alone: which pair, which crop, which flip, which masks, how it is
varied, and for the denoiser which noise at which timestep. So a resumed run sees exactly the batches that the
uninterrupted one would have seen, with any number of workers.
"""

from __future__ import annotations

import hashlib
import json
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate, get_worker_info

from duskfuse.data.errors import DuskfuseError
from duskfuse.data.geometry import GeometricDraw, draw_crop, pad_to
from duskfuse.data.pair import Pair
from duskfuse.data.pair_files import PairFiles, read_pair
from duskfuse.data.priors.cache import PriorStore, pair_key
from duskfuse.data.priors.masks import MaskSet
from duskfuse.data.reading import AS_STORED
from duskfuse.distill.augmentation import augmented
from duskfuse.distill.context import Batch
from duskfuse.distill.ground_truth import WantedTruth, cut_truth, read_truth, without_truth
from duskfuse.distill.processes import ALONE, Processes
from duskfuse.distill.recipe import DataConfig
from duskfuse.tasks.objects import stacked_objects
from duskfuse.teachers.denoiser import TRAINED_STEPS
from duskfuse.teachers.teacher_images import LoadedTeacher, TeacherImages

NO_TRUTH = WantedTruth()

MEMORY_BUDGET = 2 * 2**30
"""Bytes of decoded pictures that all loading processes together keep, so that small data sets are decoded once."""

_PREFETCHED = 4
"""Batches that each loading process has ready at most."""


class _Decoded(NamedTuple):
    """Pictures out of their files."""

    pair: Pair
    teacher: LoadedTeacher | None
    truth: dict[str, Tensor]


class TrainingPairs(Dataset[dict[str, Tensor]]):
    """Endless training samples of a list of pairs, addressed by their number in the run."""

    def __init__(
        self,
        pairs: Sequence[PairFiles],
        config: DataConfig,
        seed: int,
        *,
        masks: PriorStore | None,
        teacher: TeacherImages | None = None,
        noise: bool = False,
        truth: WantedTruth = NO_TRUTH,
        read: Callable[[PairFiles], Pair] = read_pair,
    ) -> None:
        self.pairs = list(pairs)
        self._noise = noise
        self._config, self._seed = config, seed
        self._masks, self._teacher, self._truth, self._read = masks, teacher, truth, read
        self._keys = [files.prior_keys() for files in self.pairs]
        self._kept: dict[int, _Decoded] = {}
        self._kept_bytes = 0

    def described(self, folder: str) -> str:
        """What a network saw that was trained on these, for its card; ``folder`` is the name of the dataset."""
        teacher = "" if self._teacher is None else f", teacher pictures of {self._teacher.store.source}"
        reading = self.pairs[0].reading
        read_as = "" if reading == AS_STORED else f", infrared read as {reading.canonical()}"
        return f"{len(self.pairs)} pairs of the folder {folder}{teacher}{read_as}"

    def digest(self) -> str:
        """Names everything that samples are made of besides the recipe: the pairs in their order, priors, labels."""
        stores = [store.folder.name for store in (self._masks, self._teacher and self._teacher.store) if store]
        truth = [digest for files in self.pairs for digest in self._truth.digest_of(files)]
        return hashlib.sha256(json.dumps([self._keys, stores, truth]).encode()).hexdigest()

    def position(self, number: int) -> int:
        """Which pair sample ``number`` shows: every epoch is a fresh permutation of all pairs."""
        epoch, offset = divmod(number, len(self.pairs))
        generator = torch.Generator().manual_seed(_mix(self._seed, epoch, 1))
        return int(torch.randperm(len(self.pairs), generator=generator)[offset])

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        position = self.position(number)
        pair, teacher, truth = self._decoded(position)
        generator = torch.Generator().manual_seed(_mix(self._seed, number, 2))
        key_ir, key_vis = self._keys[position]
        draw = self._draw(pair, teacher, generator)
        sample = {
            "ir": self._cut(pair.ir, draw),
            "vis": self._cut(pair.vis, draw),
            "masks_ir": self._mask_planes(key_ir, draw, generator),
            "masks_vis": self._mask_planes(key_vis, draw, generator),
            "position": torch.tensor(position),
        }
        if teacher is not None:
            top, left, _, _ = teacher.crop
            sample["teacher_y"] = self._cut(torch.from_numpy(teacher.y)[None], draw.shifted(-top, -left))
        sample |= cut_truth(truth, draw, self._config.crop)
        sample = augmented(sample, self._config.augment, lambda kind: np.random.default_rng([self._seed, number, kind]))
        if self._noise:
            generator = torch.Generator().manual_seed(_mix(self._seed, number, 3))
            sample["timestep"] = torch.randint(TRAINED_STEPS, (), generator=generator)
            sample["noise"] = torch.randn(1, *self._config.crop, generator=generator)
        return sample

    def _draw(self, pair: Pair, teacher: LoadedTeacher | None, generator: torch.Generator) -> GeometricDraw:
        """A random box within what the teacher shows, or within the whole pair."""
        top, left, height, width = (0, 0, *pair.size) if teacher is None else teacher.crop
        draw = draw_crop(
            (height, width), self._config.crop, generator, flip=self._config.flip, zoom=self._config.augment.zoom
        )
        return draw.shifted(top, left)

    def _decoded(self, position: int) -> _Decoded:
        kept = self._kept.get(position)
        if kept is not None:
            return kept
        files = self.pairs[position]
        pair = self._read(without_truth(files))
        truth = read_truth(files, pair.size, self._truth)
        teacher = None if self._teacher is None else self._teacher.get(pair_key(*self._keys[position]))
        worker = get_worker_info()
        size = 4 * (pair.ir.numel() + pair.vis.numel()) + (0 if teacher is None else teacher.y.nbytes)
        size += sum(tensor.nbytes for tensor in truth.values())
        if self._kept_bytes + size <= MEMORY_BUDGET // (worker.num_workers if worker else 1):
            self._kept[position] = _Decoded(pair, teacher, truth)
            self._kept_bytes += size
        return _Decoded(pair, teacher, truth)

    def _cut(self, picture: Tensor, draw: GeometricDraw) -> Tensor:
        return pad_to(draw.crop(picture), self._config.crop)

    def _mask_planes(self, key: str, draw: GeometricDraw, generator: torch.Generator) -> Tensor:
        """``[N, h, w]`` bool: up to N masks drawn from the largest K that touch the crop; empty slots are all False."""
        planes = torch.zeros(self._config.masks, draw.height, draw.width, dtype=torch.bool)
        if self._masks is not None:
            record = self._masks.get(key)
            assert isinstance(record, MaskSet)
            pool = record.decode(range(min(self._config.mask_pool, len(record))), window=draw.window)
            present = np.flatnonzero(pool.any(axis=(1, 2)))
            order = torch.randperm(len(present), generator=generator)[: self._config.masks]
            chosen = torch.from_numpy(pool[present[order.numpy()]])
            planes[: len(chosen)] = chosen
        return pad_to(draw.orient(planes), self._config.crop)


def _mix(seed: int, number: int, stream: int) -> int:
    """One well-spread seed out of three numbers."""
    return int(np.random.SeedSequence([seed, number, stream]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def load_batches(
    dataset: TrainingPairs, config: DataConfig, first: int, last: int, processes: Processes = ALONE
) -> Iterator[Batch]:
    """What this process sees of the batches number ``first`` to ``last`` (exclusive) of the run.

    One batch holds the samples of one update: ``config.batch`` times ``config.accumulate``. The loading processes live
    as long as the iterator, and work ahead of it.
    """
    samples = config.batch * config.accumulate
    loader: DataLoader[dict[str, Tensor]] = DataLoader(
        dataset,
        batch_size=samples // processes.count,
        sampler=range(first * samples + processes.rank, last * samples, processes.count),
        num_workers=config.workers,
        prefetch_factor=_PREFETCHED if config.workers else None,
        pin_memory=torch.cuda.is_available(),
        collate_fn=_collated,
        worker_init_fn=_leave_interrupts_to_the_parent,
    )
    for tensors in _without_traceback(loader):
        names = tuple(dataset.pairs[int(i)].name for i in tensors.pop("position"))
        yield Batch(names=names, **tensors)


def _collated(samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """One batch of samples; those with fewer objects than others get empty slots."""
    objects = [sample.pop("objects") for sample in samples if "objects" in sample]
    batch: dict[str, Tensor] = default_collate(samples)
    return batch | {"objects": stacked_objects(objects)} if objects else batch


def _without_traceback(loader: Iterable[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    """The same items; an error of a loading process comes with its message alone, as it does without one."""
    try:
        yield from loader
    except DuskfuseError as error:
        raise type(error)(str(error).rpartition(f"{type(error).__name__}: ")[2].strip()) from None


def _leave_interrupts_to_the_parent(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
