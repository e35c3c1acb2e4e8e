"""Captions in live use: asked for beside the stream, held while they fit the scene, and never waited for."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from duskfuse.tasks.slgnet.adapters import CAPTIONS
from duskfuse.tasks.slgnet.caption_rules import PictureStatistics, picture_statistics
from duskfuse.tasks.slgnet.captions import Captions, CaptionSource
from duskfuse.tasks.slgnet.text_encoders import TextEncoder, text_features


@dataclass(frozen=True)
class StaleRule:
    """When what was said no longer holds."""

    oldest_s: float = 30.0
    most_change: float = 0.15
    """Of any of the picture's statistics since, see `PictureStatistics.change`."""

    def is_stale(self, age_s: float, then: PictureStatistics, now: PictureStatistics) -> bool:
        """Whether captions of that age, about pictures of those statistics, are too old for these."""
        return age_s > self.oldest_s or now.change(then) > self.most_change


class LiveWords(NamedTuple):
    """What is said about the scene at the moment."""

    features: Tensor
    """``[1, 4, width]``; zeros before the first answer."""
    captions: Captions
    age_s: float
    """Since the frame that they are about; infinite before the first answer."""
    stale: bool
    """Whether newer ones are being asked for."""


class _Said(NamedTuple):
    features: Tensor
    captions: Captions
    statistics: PictureStatistics
    seen_at: float


class LiveText:
    """Holds the newest captions of a stream. One question is open at a time; a failed one leaves the old answer.

    Args:
        source: says something about a frame; it may take seconds.
        encoder: of its texts.
        rule: when to ask again.
        executor: where questions are answered; one thread of its own by default.
        clock: seconds.
    """

    def __init__(
        self,
        source: CaptionSource,
        encoder: TextEncoder,
        rule: StaleRule | None = None,
        executor: Executor | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source, self._encoder, self._rule = source, encoder, rule or StaleRule()
        self._executor = executor or ThreadPoolExecutor(1, thread_name_prefix="captions")
        self._clock = clock
        self._said: _Said | None = None
        self._asked: Future[_Said] | None = None
        self.last_error: Exception | None = None
        """Why the newest question failed; None where it did not."""

    def look(self, name: str, visible: Tensor, infrared: Tensor) -> LiveWords:
        """What is said about the frame RGB ``[3, H, W]``, infrared ``[1, H, W]``, at once; asks for newer if stale."""
        self._take_answer()
        now, statistics, said = self._clock(), picture_statistics(visible, infrared), self._said
        stale = said is None or self._rule.is_stale(now - said.seen_at, said.statistics, statistics)
        if stale and self._asked is None:
            frame = visible.detach().clone(), infrared.detach().clone()  # a camera may fill its buffers again
            self._asked = self._executor.submit(self._ask, name, *frame, statistics, now)
        if said is None:
            return LiveWords(torch.zeros(1, CAPTIONS, self._encoder.width), Captions(), float("inf"), True)
        return LiveWords(said.features, said.captions, now - said.seen_at, stale)

    def close(self) -> None:
        """Ask nothing more; an open question is not waited for."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _ask(
        self, name: str, visible: Tensor, infrared: Tensor, statistics: PictureStatistics, seen_at: float
    ) -> _Said:
        captions = self._source.captions(name, visible, infrared)
        return _Said(text_features(self._encoder, [captions]), captions, statistics, seen_at)

    def _take_answer(self) -> None:
        if self._asked is None or not self._asked.done():
            return
        self.last_error = None
        try:
            self._said = self._asked.result()
        except Exception as error:  # whatever a source may raise: the stream goes on
            self.last_error = error
        self._asked = None
