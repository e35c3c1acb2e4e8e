"""Scores of degraded pairs against the clean ones: computing those that are not kept yet, and finding them again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from duskfuse.data import camera_faults
from duskfuse.data.pair_files import PairFiles
from duskfuse.data.progress import say, track
from duskfuse.evaluate import degradations
from duskfuse.evaluate.degradations import CLEAN, DEGRADATIONS, Condition, Degradation
from duskfuse.evaluate.kept_scores import KeptScores, Key, Line
from duskfuse.evaluate.methods import Method
from duskfuse.evaluate.metrics import Mode
from duskfuse.evaluate.score_pairs import Job, Wanted, answered, arithmetic, fused_grey
from duskfuse.evaluate.source_pictures import SeenSources, SourcePictures


class _Missing(NamedTuple):
    """A degraded picture that has no score in some metrics."""

    method: Method
    condition: Condition
    metrics: tuple[str, ...]


class _Step(NamedTuple):
    """One pair under one degradation: what is computed at once, with the statistics of the clean sources shared."""

    files: PairFiles
    degradation: Degradation | None
    missing: Mapping[Key, _Missing]


@dataclass(frozen=True)
class DegradedScores:
    """Every method under every condition, on every pair, in every metric."""

    pairs: Sequence[PairFiles]
    seen: Mapping[str, SeenSources]
    """By name of pair."""
    methods: Sequence[Method]
    metrics: tuple[str, ...]

    def compute(self, kept: KeptScores, workers: int) -> None:
        """Compute and keep every score that is not kept yet, in so many processes."""
        steps = [step for step in self._steps(kept) if step.missing]
        whole = len(self.pairs) * len(self.methods) * (1 + sum(len(each.severities) for each in DEGRADATIONS))
        missing = {key.fused: (key, item) for step in steps for key, item in step.missing.items()}
        if len(missing) < whole:
            say(f"{whole - len(missing)} of {whole} fused pictures have their scores, {len(missing)} are scored now")
        if not steps:
            return
        answers = answered(map(_job, steps), min(workers, len(steps)))
        for pair, found in track(answers, "Scoring degraded pairs", total=len(steps)):
            done = ((*missing[fused], answer.scores) for fused, answer in found.items())
            kept.keep([Line(pair, item.method.name, key, scores) for key, item, scores in done])

    def of(self, method: Method, kept: KeptScores) -> dict[Condition, dict[str, dict[str, float]]]:
        """Condition → name of pair → metric → value of a method; all must be kept."""
        return {
            condition: {
                files.name: _chosen(kept.get(self._key(files.name, method, condition)), self.metrics)
                for files in self.pairs
            }
            for condition in (CLEAN, *(place for each in DEGRADATIONS for place in each.conditions))
        }

    def _steps(self, kept: KeptScores) -> Iterator[_Step]:
        for files in self.pairs:
            for degradation in (None, *DEGRADATIONS):
                conditions = [CLEAN] if degradation is None else degradation.conditions
                yield _Step(files, degradation, self._missing(files.name, conditions, kept))

    def _missing(self, pair: str, conditions: Sequence[Condition], kept: KeptScores) -> dict[Key, _Missing]:
        found = {}
        for condition in conditions:
            for method in self.methods:
                key = self._key(pair, method, condition)
                metrics = tuple(metric for metric in self.metrics if metric not in kept.get(key))
                if metrics:
                    found[key] = _Missing(method, condition, metrics)
        return found

    def _key(self, pair: str, method: Method, condition: Condition) -> Key:
        """What a score is computed from; the name of the pair is in it because it seeds the random numbers."""
        made_of = "\n".join((method.key(pair), pair, condition.degradation, str(condition.severity)))
        return Key(self.seen[pair].key, hashlib.sha256(made_of.encode()).hexdigest())


def computed_by() -> dict[str, str]:
    """What computes degraded scores: hashes of the code of degradations and metrics, and versions of libraries."""
    code = Path(camera_faults.__file__).read_bytes() + Path(degradations.__file__).read_bytes()
    return {"degradations": hashlib.sha256(code).hexdigest()[:16], **arithmetic()}


def degraded(clean: SourcePictures, degradation: Degradation, severity: int) -> SourcePictures:
    """The pictures of a pair with one of them degraded."""
    worse = SourcePictures(clean.files)
    worse.ir, worse.vis = degradation.apply(clean.ir, clean.vis, severity, clean.files.name)
    return worse


def _job(step: _Step) -> Job:
    """Fuse the degraded pictures; the job names the clean files, against which they are scored."""
    clean = SourcePictures(step.files)
    sources = {CLEAN: clean}
    if step.degradation is not None:
        sources = {
            condition: degraded(clean, step.degradation, condition.severity)
            for condition in {item.condition for item in step.missing.values()}
        }
    wanted = {}
    for key, item in step.missing.items():
        given = sources[item.condition]
        wanted[key.fused] = Wanted(fused_grey(item.method.picture(given), given), item.metrics, to_reference=False)
    return Job(step.files, Mode.DEFINITION, wanted)


def _chosen(scores: Mapping[str, float], metrics: Sequence[str]) -> dict[str, float]:
    return {metric: scores[metric] for metric in metrics}
