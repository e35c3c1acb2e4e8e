"""Which scores an evaluation wants, computing those that are not kept yet, and putting them into rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

from duskfuse.data.errors import InputError
from duskfuse.data.pair_files import PairFiles
from duskfuse.data.progress import say, track
from duskfuse.evaluate.kept_scores import KeptScores, Key, Line
from duskfuse.evaluate.learned_similarity import LpipsWeights
from duskfuse.evaluate.methods import Method
from duskfuse.evaluate.metrics import Mode
from duskfuse.evaluate.score_pairs import Answer, Job, Picture, Wanted, answered, worker_count
from duskfuse.evaluate.scores import Row, reference_metric
from duskfuse.evaluate.source_pictures import SeenSources, SourcePictures

_TO_REFERENCE = "PSNR"


class _Missing(NamedTuple):
    """What one fused picture has no score in."""

    method: Method
    metrics: tuple[str, ...]
    to_reference: bool


_Todo = Mapping[str, Mapping[Key, _Missing]]
"""By name of pair."""


@dataclass(frozen=True)
class WantedScores:
    """All scores that are wanted: every method on every pair in every metric."""

    pairs: list[PairFiles]
    seen: Mapping[str, SeenSources]
    """By name of pair."""
    methods: list[Method]
    metrics: tuple[str, ...]
    mode: Mode
    reference: Method | None
    """The others also get their PSNR to it."""
    lpips_weights: LpipsWeights | None = None

    def compute(self, kept: KeptScores, workers: int | None) -> None:
        """Compute and keep every score that is not kept yet, in so many processes."""
        todo = {pair.name: self._missing(pair.name, kept) for pair in self.pairs}
        self._say_what_is_kept(todo, kept)
        todo = {name: missing for name, missing in todo.items() if missing}
        if not todo:
            return
        if workers is None:
            workers = worker_count(len(todo), max(prod(self.seen[name].size) for name in todo))
        answers = answered(self._jobs(todo), min(workers, len(todo)))
        for pair, found in track(answers, "Scoring pairs", total=len(todo)):
            kept.keep(list(self._lines(pair, todo[pair], found)))

    def row(self, method: Method, kept: KeptScores) -> Row:
        """The finished row of a method; all its scores must be kept."""
        scores = {}
        for pair in self.pairs:
            key = self._key(pair.name, method)
            found = kept.get(key)
            scores[pair.name] = {metric: found[metric] for metric in self.metrics}
            if self.reference is not None and self.reference is not method:
                to_reference = kept.get(self._reference_key(pair.name, key))[_TO_REFERENCE]
                scores[pair.name][reference_metric(self.reference.name).name] = to_reference
        return Row(
            method.name,
            method.kind,
            scores,
            origin=method.origin,
            sha256=method.hash_over(list(scores)),
            stretched=method.stretched,
            findings=method.findings,
        )

    def _key(self, pair: str, method: Method) -> Key:
        """What a method's scores of a pair are computed from."""
        return Key(self.seen[pair].key, method.key(pair))

    def _reference_key(self, pair: str, key: Key) -> Key:
        """The same for the PSNR of a fused picture to the reference's."""
        return Key(key.sources, f"{key.fused} to {self.reference.key(pair) if self.reference else ''}")

    def _missing(self, pair: str, kept: KeptScores) -> dict[Key, _Missing]:
        """What has to be computed of a pair; pictures that two methods have in common once."""
        found: dict[Key, _Missing] = {}
        for method in self.methods:
            key = self._key(pair, method)
            metrics = tuple(metric for metric in self.metrics if metric not in kept.get(key))
            compared = self.reference is not None and method is not self.reference
            to_reference = compared and not kept.get(self._reference_key(pair, key))
            if key in found:
                found[key] = found[key]._replace(to_reference=found[key].to_reference or to_reference)
            elif metrics or to_reference:
                found[key] = _Missing(method, metrics, to_reference)
        return found

    def _say_what_is_kept(self, todo: _Todo, kept: KeptScores) -> None:
        whole = len(self.pairs) * len(self.methods)
        missing = sum(map(len, todo.values()))
        if missing < whole:
            say(f"fused pictures that have their scores: {whole - missing} of {whole}; scored now: {missing}")
        for method in self.methods:
            mine = [(pair, key) for pair, items in todo.items() for key, item in items.items() if item.method is method]
            changed = [(key, old) for pair, key in mine if (old := kept.last(pair, method.name)) not in (None, key)]
            sources = sum(old is not None and key.sources != old.sources for key, old in changed)
            if sources:
                say(f"{method.name}: pairs whose sources or reading have changed, scored anew: {sources}")
            if len(changed) > sources:
                say(f"{method.name}: fused pictures that have changed, scored anew: {len(changed) - sources}")

    def _jobs(self, todo: _Todo) -> Iterator[Job]:
        """One per pair; models compute here, when the job is asked for."""
        for files in self.pairs:
            missing = todo.get(files.name, {})
            if not missing:
                continue
            made = _Made(SourcePictures(files))
            wanted = {
                key.fused: Wanted(made.by(item.method), item.metrics, item.to_reference)
                for key, item in missing.items()
            }
            compared = any(item.to_reference for item in missing.values())
            reference = made.by(self.reference) if compared and self.reference is not None else None
            yield Job(files, self.mode, wanted, reference, self.lpips_weights)

    def _lines(self, pair: str, missing: Mapping[Key, _Missing], found: Mapping[str, Answer]) -> Iterator[Line]:
        for key, item in missing.items():
            answer = found[key.fused]
            if answer.scores:
                yield Line(pair, item.method.name, key, answer.scores)
            if answer.to_reference is not None:
                scores = {_TO_REFERENCE: answer.to_reference}
                yield Line(pair, f"{item.method.name} to the reference", self._reference_key(pair, key), scores)


class _Made:
    """Fused pictures of one pair, each made once."""

    def __init__(self, sources: SourcePictures) -> None:
        self._sources = sources
        self._pictures: dict[str, Picture] = {}

    def by(self, method: Method) -> Picture:
        """The picture of a method; InputError, with its name and the pair's, where it cannot make one."""
        if method.name not in self._pictures:
            try:
                self._pictures[method.name] = method.picture(self._sources)
            except InputError as error:
                seen = f"{method.name} on {self._sources.files.name}: {error.seen}"
                raise InputError(seen, rule=error.rule, remedy=error.remedy) from error
        return self._pictures[method.name]
