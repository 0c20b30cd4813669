"""Ratios and their intervals: right where the truth is known, sharp enough to find a slowdown of 5 %."""

import numpy as np
import pytest
from scipy import stats

from residuum.bench.intervals import CONFIDENCE, paired, unpaired

EXPERIMENTS = 2000
NOISE = 0.02
SHARED = pytest.mark.parametrize("luck", [0.0, 0.02], ids=["rounds alone", "repetitions too"])


def times(random, luck, slowdown=1.0, count=3, rounds=3):
    """Times of a contender by repetition and round, of noise and of what a repetition has in common."""
    own = np.exp(luck * random.standard_normal((count, 1)))
    return slowdown * own * np.exp(NOISE * random.standard_normal((count, rounds)))


def pair(random, luck=0.0, slowdown=1.0):
    """Times of two contenders, whose machine drifts by tens of percents from round to round."""
    drift = np.exp(0.3 * random.standard_normal((3, 3)))
    return drift * times(random, luck, slowdown), drift * times(random, luck)


@pytest.mark.slow
@SHARED
def test_identical_contenders_come_out_as_no_different_as_often_as_is_said(luck):
    random = np.random.default_rng(0)
    found = [paired(*pair(random, luck)) for _ in range(EXPERIMENTS)]
    inside = sum(ratio.low <= 1 <= ratio.high for ratio in found) / EXPERIMENTS
    assert CONFIDENCE - 0.01 < inside < 0.995
    assert sum(ratio.verdict.startswith("noise") for ratio in found) / EXPERIMENTS == inside


@pytest.mark.slow
def test_a_contender_slowed_by_five_percent_is_found_slower():
    random = np.random.default_rng(1)
    found = [paired(*pair(random, slowdown=1.05)) for _ in range(EXPERIMENTS)]
    assert sum(ratio.verdict == "slower" for ratio in found) / EXPERIMENTS > 0.7  # at noise of 2 % in each round
    assert np.median([ratio.value for ratio in found]) == pytest.approx(1 / 1.05, rel=0.003)
    quiet = [paired(*(seconds**0.25 for seconds in pair(random, slowdown=1 / 1.05**4))) for _ in range(100)]
    assert sum(ratio.verdict == "faster" for ratio in quiet) > 98  # of 0.5 %


@pytest.mark.slow
@SHARED
def test_unpaired_times_have_an_interval_that_holds_the_truth_as_often_as_is_said(luck):
    random = np.random.default_rng(2)
    inside = 0
    for _ in range(EXPERIMENTS):
        ratio = unpaired(times(random, luck), times(random, luck, slowdown=1.3, count=4))
        inside += ratio.low <= 1.3 <= ratio.high
    assert CONFIDENCE - 0.01 < inside / EXPERIMENTS < 0.995


def test_the_intervals_are_those_of_scipys_tests_on_the_repetitions_means():
    random = np.random.default_rng(3)
    mine, theirs = times(random, 0.02), times(random, 0.02)
    ours, others = np.log(mine).mean(1), np.log(theirs).mean(1)
    for found, test in (
        (paired(mine, theirs), stats.ttest_rel(others, ours)),
        (unpaired(mine, theirs), stats.ttest_ind(others, ours)),
    ):
        low, high = test.confidence_interval(CONFIDENCE)
        assert found.low == pytest.approx(np.exp(low))
        assert found.high == pytest.approx(np.exp(high))


def test_repetitions_that_disagree_widen_the_interval_and_rounds_that_do_so_alike_do_not():
    ones = np.ones((3, 3))
    agreeing, disagreeing = np.array([[0.9, 1.0, 1.1]] * 3), np.array([[0.9] * 3, [1.0] * 3, [1.1] * 3])
    assert paired(ones, disagreeing).noise > 0.2
    assert paired(ones, agreeing).noise == pytest.approx(0, abs=1e-9)


def test_one_repetition_has_no_interval():
    two = np.linspace(1, 2, 6).reshape(2, -1)
    assert paired(two, 2 * two).value == pytest.approx(2)
    for estimate in (paired, unpaired):
        with pytest.raises(ValueError, match="1 repetition"):
            estimate(two[:1], two[:1])
