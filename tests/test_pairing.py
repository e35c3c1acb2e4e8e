"""Pairing by time: against a brute-force nearest neighbour, under jitter, drops, stalls, deaths and recoveries."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from duskfuse.export.runtime.pairing import IR, SIDES, VIS, Pair, Pairing
from duskfuse.export.runtime.sources import Frame

PICTURE = np.zeros((1, 1), np.uint8)
SKEW, STALL = 0.02, 0.2


def frames(stamps: Iterable[float]) -> list[Frame]:
    return [Frame(stamp, PICTURE) for stamp in stamps]


def pair_files(ir: Sequence[float], vis: Sequence[float], offset: float = 0.0) -> tuple[list[Pair], Pairing]:
    """What comes out of two files, read as the pairing asks for them."""
    pairing = Pairing(SKEW, offset, STALL)
    left = {IR: iter(frames(ir)), VIS: iter(frames(vis))}
    made: list[Pair] = []
    while (side := pairing.wants()) is not None:
        frame = next(left[side], None)
        if frame is None:
            pairing.end(side)
        else:
            pairing.add(side, frame)
        made += pairing.decide()
        assert sum(len(pairing._streams[side].held) for side in SIDES) <= 8, "memory is bounded"
    return made, pairing


def pair_live(ir: Sequence[float], vis: Sequence[float], delay: float, until: float) -> tuple[list[Pair], list[float]]:
    """What comes out of two cameras whose frames arrive ``delay`` after their time, and when."""
    pairing, made, at = Pairing(SKEW, 0.0, STALL, live=True), [], []
    arrivals = sorted([(stamp + delay, IR, stamp) for stamp in ir] + [(stamp + delay, VIS, stamp) for stamp in vis])
    for tick in np.arange(0, until, 0.01):
        while arrivals and arrivals[0][0] <= tick:
            _, side, stamp = arrivals.pop(0)
            pairing.add(side, Frame(stamp, PICTURE))
        new = pairing.decide(float(tick))
        made += new
        at += [float(tick)] * len(new)
    return made, at


def expected_pairs(ir: Sequence[float], vis: Sequence[float]) -> list[tuple[float, float]]:
    """Every visible frame with its nearest infrared frame, by looking at all of them."""
    nearest = [(v, min(ir, key=lambda i: abs(i - v))) for v in vis] if ir else []
    return [(v, i) for v, i in nearest if abs(i - v) <= SKEW]


def rates(made: Sequence[Pair]) -> dict[str | None, int]:
    return {missing: sum(pair.missing == missing for pair in made) for missing in (None, IR, VIS)}


stamps = st.lists(st.integers(0, 4000), max_size=60, unique=True).map(lambda values: sorted(v / 1000 for v in values))


@settings(max_examples=200, deadline=None)
@given(stamps, stamps)
def test_files_are_paired_as_by_looking_at_all_frames(ir: list[float], vis: list[float]) -> None:
    made, pairing = pair_files(ir, vis)
    mine = {p.vis.stamp: p.ir.stamp for p in made if p.vis and p.ir}
    want = dict(expected_pairs(ir, vis))
    assert mine.keys() == want.keys()
    assert all(abs(abs(mine[v] - v) - abs(want[v] - v)) < 1e-9 for v in want), "the nearest, or one as near"
    assert [p.stamp for p in made] == sorted(p.stamp for p in made)
    seen_vis = sum(p.vis is not None for p in made) + pairing.unpaired[VIS]
    assert seen_vis == len(vis), "every visible frame is paired, alone or counted"
    used_ir = {p.ir.stamp for p in made if p.ir}
    assert len(used_ir) + pairing.unpaired[IR] == len(ir)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_jitter_and_drops_of_two_cameras(seed: int) -> None:
    """30 Hz both, a constant shift, jitter of 4 ms, 10 % of the frames lost: what is left pairs with its own."""
    rng = np.random.default_rng(seed)
    period = 1 / 30
    number = np.arange(90)
    keep = rng.random((2, 90)) > 0.1
    keep[:, [0, -1]] = True
    ir = (number * period + 0.004 + rng.uniform(-0.004, 0.004, 90))[keep[0]]
    vis = (number * period + rng.uniform(-0.004, 0.004, 90))[keep[1]]
    made, pairing = pair_files(list(ir), list(vis))
    both = keep.all(axis=0)
    pairs = [p for p in made if p.missing is None]
    of_one_number = [
        round((p.ir.stamp - 0.004) / period) == round(p.vis.stamp / period) for p in pairs if p.ir and p.vis
    ]
    assert all(of_one_number)
    assert len(pairs) == both.sum()
    assert rates(made) == {None: both.sum(), IR: 0, VIS: 0}
    assert sum(pairing.unpaired.values()) + 2 * both.sum() == keep.sum()


def test_a_slow_camera_serves_several_frames_of_a_fast_one() -> None:
    ir, vis = [k / 9 for k in range(18)], [k / 30 for k in range(58)]
    pairing = Pairing(0.06, 0.0, STALL)
    for frame in frames(ir):
        pairing.add(IR, frame)
    for frame in frames(vis):
        pairing.add(VIS, frame)
    pairing.end(IR)
    pairing.end(VIS)
    made = pairing.decide()
    assert len(made) == 58
    assert rates(made) == {None: 58, IR: 0, VIS: 0}
    assert pairing.unpaired == {IR: 0, VIS: 0}
    assert max(abs(pair.skew or 0) for pair in made) <= 1 / 18 + 1e-9


def test_an_offset_moves_infrared() -> None:
    ir, vis = [k / 10 + 0.1 for k in range(10)], [k / 10 for k in range(10)]
    made, _ = pair_files(ir, vis, offset=-0.1)
    assert rates(made) == {None: 10, IR: 0, VIS: 0}
    assert all(abs(pair.skew or 0) < 1e-9 for pair in made)
    assert len([p for p in pair_files(ir, vis)[0] if p.missing is None]) == 9


def test_a_stall_a_death_and_a_recovery_in_files() -> None:
    """Infrared is away from 1 to 2 s and dies at 3 s: those frames go on alone; a gap of one frame does not."""
    vis = [k / 20 for k in range(80)]
    ir = [t for t in vis if not 1 <= t < 2 and t < 3 and t != 0.5]
    made, pairing = pair_files(ir, vis)
    assert pairing.unpaired == {IR: 0, VIS: 1}
    assert [pair.stamp for pair in made if pair.missing == IR] == [t for t in vis if 1 <= t < 2 or t >= 3]
    assert [pair.stamp for pair in made] == [t for t in vis if t != 0.5]
    mirrored, pairing = pair_files(vis, ir)
    assert [pair.stamp for pair in mirrored if pair.missing == VIS] == [t for t in vis if 1 <= t < 2 or t >= 3]
    assert pairing.unpaired == {IR: 1, VIS: 0}
    assert [pair.stamp for pair in mirrored] == [t for t in vis if t != 0.5]


@pytest.mark.parametrize("stalled", SIDES)
def test_a_live_stall_goes_on_alone_within_the_stall_time_and_comes_back(stalled: str) -> None:
    whole = [k / 30 for k in range(90)]
    broken = [t for t in whole if not 1 <= t < 2]
    ir, vis = (broken, whole) if stalled == IR else (whole, broken)
    made, at = pair_live(ir, vis, delay=0.005, until=3.2)
    alone = [(pair.stamp, time) for pair, time in zip(made, at, strict=True) if pair.missing == stalled]
    assert 1 + STALL < alone[0][1] < 1 + STALL + 0.1
    assert 1.95 < alone[-1][0] < 2
    late = [time - pair.stamp for pair, time in zip(made, at, strict=True)]
    assert max(late) < SKEW + STALL, "a stream that stalls holds up the other for a moment only"
    assert sum(pair.missing is None for pair in made if pair.stamp >= 2) == 30
    assert all(a.stamp < b.stamp for a, b in pairwise(made))


def test_a_live_camera_that_never_comes_does_not_hold_up_the_other() -> None:
    made, at = pair_live([], [k / 30 for k in range(30)], delay=0.005, until=1.2)
    assert rates(made) == {None: 0, IR: len(made), VIS: 0}
    assert made[0].stamp < STALL + 0.1
    assert len(made) >= 22
    assert max(time - pair.stamp for pair, time in zip(made, at, strict=True) if pair.stamp > STALL) < 0.03


def test_live_pairs_are_the_nearest_and_do_not_wait_longer_than_needed() -> None:
    """Two free-running cameras: the nearest frame is taken, and one that is near enough is not waited beyond."""
    ir, vis = [k / 30 + 0.006 for k in range(60)], [k / 30 for k in range(60)]
    made, at = pair_live(ir, vis, delay=0.005, until=2.5)
    settled = [(pair, time) for pair, time in zip(made, at, strict=True) if pair.stamp > 0.2]
    assert all(pair.ir is not None and abs(pair.ir.stamp - pair.stamp - 0.006) < 1e-9 for pair, _ in settled)
    assert max(time - pair.stamp for pair, time in settled) < 0.035


def test_a_frame_that_is_not_later_than_its_predecessor_is_left_out() -> None:
    made, pairing = pair_files([0.0, 0.1, 0.1, 0.05, 0.2], [0.0, 0.1, 0.2])
    assert rates(made) == {None: 3, IR: 0, VIS: 0}
    assert pairing.unpaired == {IR: 2, VIS: 0}


def test_live_memory_is_bounded_however_wrong_the_times_are() -> None:
    pairing = Pairing(SKEW, 5.0, STALL, live=True)  # infrared is said to come from the future
    for number in range(10_000):
        pairing.add(IR, Frame(number / 30, PICTURE))
        pairing.add(VIS, Frame(number / 30, PICTURE))
        pairing.decide(number / 30)
        assert all(len(stream.held) <= 32 for stream in pairing._streams.values())
