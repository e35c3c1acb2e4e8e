"""Which infrared frame belongs to which visible frame, by their times; no clock, no threads.

The visible stream leads: every visible frame gets the infrared frame that is nearest in time, if it is within
``max_skew``. A slow infrared camera's frame may so serve several visible frames. A frame that finds no partner is left
out and counted. Where the other stream is silent for longer than ``stall``, or has ended, frames go on alone, and when
it comes back they are paired again. What comes out is in order of time.

To know the nearest frame one must know what may still come. Each stream therefore has a *watermark*: the time up to
which all of its frames are here. Of a file it is the newest frame; of a live stream also the clock, less the time a
frame may take to arrive, so that a stream that stalls cannot hold up the other.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Deque, Dict, List, NamedTuple, Optional

if TYPE_CHECKING:
    from .sources import Frame

IR, VIS = "ir", "vis"
SIDES = (IR, VIS)
MAX_SKEW = 0.06
"""Half the period of a thermal camera of 9 Hz, and a little more."""
STALL = 0.5

_DELIVERY = 0.05  # seconds between the time of a live frame and its arrival here, at most
_MOST_HELD = 32  # frames of a live stream that wait for a partner, whatever their times say
_NEVER = float("inf")


class Pair(NamedTuple):
    """What one fused picture is made of."""

    stamp: float
    """Seconds: the visible frame's time, or the infrared frame's where it is alone."""
    ir: Optional[Frame]
    vis: Optional[Frame]
    skew: Optional[float]
    """Infrared time less visible time, None for a frame alone."""

    @property
    def missing(self) -> Optional[str]:
        """The stream that is silent, None for a true pair."""
        return IR if self.ir is None else VIS if self.vis is None else None


class Pairing:
    """Frames in, pairs out. ``offset`` seconds are added to infrared times; ``live`` streams have a clock.

    >>> from collections import namedtuple
    >>> frame = namedtuple("frame", "stamp")
    >>> pairing = Pairing(max_skew=0.02)
    >>> for side, stamp in [(VIS, 0.0), (IR, 0.01), (VIS, 0.1), (IR, 0.15)]:
    ...     pairing.add(side, frame(stamp))
    >>> [(pair.vis.stamp, pair.ir.stamp) for pair in pairing.decide()], pairing.unpaired
    ([(0.0, 0.01)], {'ir': 0, 'vis': 1})
    """

    def __init__(
        self, max_skew: float = MAX_SKEW, offset: float = 0.0, stall: float = STALL, *, live: bool = False
    ) -> None:
        self._max_skew, self._stall, self._live = max_skew, stall, live
        self._begun = -_NEVER  # the first time of the clock: a live stream that has not begun is silent since then
        self._offsets = {IR: offset, VIS: 0.0}
        self._streams = {side: _Stream() for side in SIDES}
        self.unpaired: Dict[str, int] = dict.fromkeys(SIDES, 0)

    def add(self, side: str, frame: Frame) -> None:
        """Take a frame of ``side``; one that is not later than its predecessor counts as unpaired."""
        stream, stamp = self._streams[side], frame.stamp + self._offsets[side]
        if stamp <= stream.newest:
            self.unpaired[side] += 1
            return
        stream.take(stamp, frame)
        if self._live and len(stream.held) > _MOST_HELD:
            self._leave_out(side)

    def end(self, side: str) -> None:
        """No frame of ``side`` will come any more."""
        self._streams[side].ended = True

    def wants(self) -> Optional[str]:
        """The side of which another frame is needed to go on, after `decide`; None where both have ended."""
        ir, vis = self._streams[IR], self._streams[VIS]
        if vis.ended or (vis.held and not ir.ended):
            return None if ir.ended else IR
        return VIS

    def decide(self, now: Optional[float] = None) -> List[Pair]:
        """All pairs that are certain by now, ``now`` being the clock of live streams."""
        made: List[Pair] = []
        if now is not None and self._begun == -_NEVER:
            self._begun = now
        while self._streams[VIS].held or self._streams[IR].held:
            certain = self._next_visible(made, now) if self._streams[VIS].held else self._next_infrared(made, now)
            if not certain:
                break
        return made

    def _next_visible(self, made: List[Pair], now: Optional[float]) -> bool:
        """Decide on the oldest visible frame; False where a nearer infrared frame may still come."""
        ir, vis = self._streams[IR], self._streams[VIS]
        stamp = vis.held[0].stamp
        nearest = ir.nearest(stamp, self._max_skew)
        if not self._is_certain(stamp, nearest, now):
            if ir.held:
                self._pass_infrared(made, before=ir.held[-1].stamp, next_visible=stamp)
            return False
        self._pass_infrared(made, before=nearest.stamp if nearest else stamp, next_visible=stamp)
        frame = vis.let_go().frame
        if nearest is not None:
            nearest.used = True
            made.append(Pair(stamp, nearest.frame, frame, nearest.stamp - stamp))
        elif ir.gap_at(stamp, self._begun, self._watermark(IR, now)) > self._stall:
            made.append(Pair(stamp, None, frame, None))
        else:
            self.unpaired[VIS] += 1
        return True

    def _is_certain(self, stamp: float, nearest: Optional[_Held], now: Optional[float]) -> bool:
        ir = self._streams[IR]
        if ir.newest >= stamp or self._watermark(IR, now) >= stamp + self._max_skew or self._is_silent(IR, now):
            return True
        # Of a steady live stream no frame can be nearer than half its period: why wait for the next?
        return self._live and nearest is not None and abs(nearest.stamp - stamp) <= ir.period / 2

    def _next_infrared(self, made: List[Pair], now: Optional[float]) -> bool:
        """Let the oldest infrared frame go if no visible frame can come for it."""
        mark, stamp = self._watermark(VIS, now), self._streams[IR].held[0].stamp
        if mark <= stamp + self._max_skew and not self._is_silent(VIS, now):
            return False
        self._pass_infrared(made, before=_NEVER, next_visible=mark, most=1)
        return True

    def _pass_infrared(self, made: List[Pair], before: float, next_visible: float, most: Optional[int] = None) -> None:
        """Let infrared frames go: alone where the visible stream is silent, unpaired where it has nearer ones."""
        ir, vis = self._streams[IR], self._streams[VIS]
        silent = next_visible - max(vis.passed, self._begun) > self._stall
        while ir.held and ir.held[0].stamp < before and most != 0:
            most = None if most is None else most - 1
            held = ir.let_go()
            if silent and held.stamp > vis.passed and not held.used:
                made.append(Pair(held.stamp, held.frame, None, None))
            elif not held.used:
                self.unpaired[IR] += 1

    def _leave_out(self, side: str) -> None:
        if not self._streams[side].let_go().used:
            self.unpaired[side] += 1

    def _watermark(self, side: str, now: Optional[float]) -> float:
        stream = self._streams[side]
        if stream.ended:
            return _NEVER
        return stream.newest if now is None else max(stream.newest, now + self._offsets[side] - _DELIVERY)

    def _is_silent(self, side: str, now: Optional[float]) -> bool:
        return self._watermark(side, now) - max(self._streams[side].newest, self._begun) > self._stall


class _Held:
    """A frame that may still find a partner."""

    def __init__(self, stamp: float, frame: Frame) -> None:
        self.stamp, self.frame, self.used = stamp, frame, False


class _Stream:
    """One side: the frames held, and what is known of its times."""

    def __init__(self) -> None:
        self.held: Deque[_Held] = deque()
        self.newest = -_NEVER
        self.passed = -_NEVER  # the time of the last frame let go
        self.period = 0.0  # running mean of the time between frames
        self.ended = False

    def take(self, stamp: float, frame: Frame) -> None:
        step = stamp - self.newest
        if step < _NEVER:
            self.period = step if self.period == 0 else min(0.9 * self.period + 0.1 * step, 2 * self.period)
        self.newest = stamp
        self.held.append(_Held(stamp, frame))

    def let_go(self) -> _Held:
        held = self.held.popleft()
        self.passed = held.stamp
        return held

    def nearest(self, stamp: float, within: float) -> Optional[_Held]:
        found = min(self.held, key=lambda held: abs(held.stamp - stamp), default=None)
        return found if found is not None and abs(found.stamp - stamp) <= within else None

    def gap_at(self, stamp: float, begun: float, mark: float) -> float:
        """The time without frames around ``stamp``, from ``begun`` on, as far as it is known up to ``mark``."""
        before = max((held.stamp for held in self.held if held.stamp <= stamp), default=max(self.passed, begun))
        after = min((held.stamp for held in self.held if held.stamp > stamp), default=max(mark, stamp))
        return after - before
