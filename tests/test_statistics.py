from __future__ import annotations

from itertools import product
from math import inf, isnan, nan

import numpy as np
import pytest
from scipy import stats

from duskfuse.evaluate.statistics import (
    FEWEST_PAIRS,
    Interval,
    PairedTest,
    Scores,
    Summary,
    holm,
    mean_intervals,
    paired_tests,
    ranks,
    signed_rank,
    summarise,
)


def test_summary_skips_and_counts():
    found = Summary.of([1.0, nan, 4.0, inf, 7.0, 0.0])
    assert (found.mean, found.median, found.least, found.most) == (3.0, 2.5, 0.0, 7.0)
    assert found.deviation == pytest.approx(np.std([1, 4, 7, 0], ddof=1))
    assert (found.pairs, found.undefined, found.identical) == (4, 1, 1)
    assert found.interval is None
    assert Summary.of([inf, inf]).mean == inf
    assert isnan(Summary.of([nan]).mean)
    assert isnan(Summary.of([]).mean)
    assert isnan(Summary.of([2.0]).deviation)


@pytest.mark.parametrize(("pairs", "tolerance"), [(6, 0.1), (25, 0.04), (361, 0.04)])
def test_intervals_are_those_of_scipy(pairs: int, tolerance: float):
    """Two sets of 10,000 random samples: equal within a few per cent of the width, more where means are few."""
    values = np.random.default_rng(pairs).gamma(1.5, 2, pairs)
    (found,) = mean_intervals([values])
    assert found is not None
    expected = stats.bootstrap(
        (values,), np.mean, method="BCa", n_resamples=10_000, rng=np.random.default_rng(7)
    ).confidence_interval
    assert found == pytest.approx(expected, abs=tolerance * (found.high - found.low))


def test_an_interval_depends_on_its_column_alone():
    rng = np.random.default_rng(0)
    columns = [rng.normal(size=size) for size in (30, 12, 30, 5)]
    together = mean_intervals(columns)
    assert together[3] is None
    for column, interval in zip(columns, together, strict=True):
        (alone,) = mean_intervals([column])
        if interval is None:
            assert alone is None
        else:
            assert alone == pytest.approx(interval, rel=1e-12)
    assert mean_intervals([columns[0]], seed=1) != [together[0]]


def test_intervals_hold_the_mean_about_as_often_as_they_say():
    rng = np.random.default_rng(0)
    held = [low <= 1 <= high for low, high in filter(None, mean_intervals(list(rng.gamma(4, 0.25, (400, 40)))))]
    assert 0.91 < np.mean(held) < 0.98


def test_equal_scores_have_an_interval_without_width():
    assert summarise([[0.1] * 9])[0].interval == Interval(0.1, 0.1)


def test_ranks_share_places_and_follow_direction():
    assert ranks([3, 1, 2], higher_is_better=True) == [1, 3, 2]
    assert ranks([3, 1, 2], higher_is_better=False) == [3, 1, 2]
    assert ranks([2, inf, 2, 1], higher_is_better=True) == [2.5, 1, 2.5, 4]
    assert ranks([0.5, nan, 0.7], higher_is_better=True) == pytest.approx([2, nan, 1], nan_ok=True)
    assert ranks([], higher_is_better=True) == []


def exact_signed_rank(differences: list[float]) -> float:
    """All 2ⁿ signs of the ranks, as the test is defined."""
    sizes = stats.rankdata(np.abs(differences))
    seen = abs(float(np.sign(differences) @ sizes))
    sums = [
        abs(sum(sign * size for sign, size in zip(signs, sizes, strict=True)))
        for signs in product((-1, 1), repeat=len(sizes))
    ]
    return float(np.mean([total >= seen - 1e-9 for total in sums]))


@pytest.mark.parametrize("shift", [0.0, 0.4, 2.0])
def test_signed_rank_counts_all_signs(shift: float):
    differences = np.random.default_rng(3).normal(shift, 1, 10)
    assert signed_rank(differences) == pytest.approx(exact_signed_rank(list(differences)), rel=1e-9)


def test_signed_rank_claims_nothing_without_pairs_or_differences():
    assert signed_rank(np.ones(FEWEST_PAIRS - 1)) is None
    assert signed_rank(np.zeros(20)) == 1
    assert signed_rank(np.array([1.0, -1.0, 0, 0, 0, 0, 0, 0])) == pytest.approx(1)


def test_holm_by_its_definition():
    p_values = [0.012, 0.001, 0.4, 0.03, 0.012]
    order = np.argsort(p_values, kind="stable")
    expected = [0.0] * 5
    for step, place in enumerate(order):
        expected[place] = max(min(1.0, (5 - earlier) * p_values[order[earlier]]) for earlier in range(step + 1))
    assert holm(p_values) == pytest.approx(expected)
    assert holm([]) == []


def compared(metric: str, higher: bool, first: np.ndarray, second: np.ndarray) -> tuple[str, bool, list[Scores]]:
    return metric, higher, [Scores("a", list(first)), Scores("b", list(second))]


def test_paired_tests_are_corrected_together_and_follow_direction():
    rng = np.random.default_rng(0)
    base = rng.normal(size=25)
    clear, none = base + 0.5 + rng.normal(0, 0.1, 25), base + rng.normal(0, 1, 25)
    table = [
        compared("up", True, clear, base),
        compared("down", False, clear, base),
        compared("same", True, none, base),
    ]
    up, down, same = paired_tests(table)
    assert (up.better, down.better, same.better) == ("a", "b", None)
    assert up.difference == pytest.approx(float((clear - base).mean()))
    assert (up.first, up.second, up.pairs) == ("a", "b", 25)
    assert up.p == pytest.approx(float(stats.wilcoxon(clear - base).pvalue))
    assert [test.p_corrected for test in (up, down, same)] == pytest.approx(
        holm([float(test.p) for test in (up, down, same) if test.p is not None])
    )


def test_undefined_scores_are_left_out_of_a_test_pair_by_pair():
    first, second = np.arange(12.0) + 5, np.arange(12.0)
    first[0], second[1], first[2] = nan, nan, inf
    (test,) = paired_tests([compared("m", True, first, second)])
    assert test.pairs == 9
    assert test.difference == 5


def test_few_pairs_make_no_claim_and_do_not_count_in_the_correction():
    few, many = np.arange(5.0) + 1, np.arange(25.0) + 1
    padded = np.concatenate([few, np.full(20, nan)])
    first, second = paired_tests([compared("few", True, padded, 0 * padded), compared("many", True, many, 0 * many)])
    assert first == PairedTest("few", "a", "b", 5, 3.0, None, None, None)
    assert second.p_corrected == second.p
    assert second.better == "a"


def test_no_claim_where_mean_and_ranks_disagree():
    differences = np.full(40, 1.0) + np.linspace(0, 0.1, 40)
    differences[:3] = -100
    (test,) = paired_tests([compared("m", True, differences, np.zeros(40))])
    assert test.p_corrected is not None
    assert test.p_corrected < 0.05
    assert test.difference < 0
    assert test.better is None


def test_three_methods_give_three_tests_per_metric():
    rng = np.random.default_rng(0)
    methods = [Scores(name, list(rng.normal(size=8))) for name in "abc"]
    found = paired_tests([("m", True, methods), ("n", False, methods)])
    assert [(test.metric, test.first, test.second) for test in found] == [
        (metric, *two) for metric in "mn" for two in (("a", "b"), ("a", "c"), ("b", "c"))
    ]
