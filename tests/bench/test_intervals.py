"""Ratios and their intervals: right where the truth is known, sharp enough to find a slowdown of 5 %."""

from itertools import combinations, product
from unittest.mock import patch

import numpy as np
import pytest

from residuum.bench.intervals import CONFIDENCE, LEAST_ROUNDS, _student, paired, unpaired

EXPERIMENTS = 2000
NOISE = 0.02
SHARED = pytest.mark.parametrize("luck", [0.0, 0.02], ids=["rounds alone", "sittings too"])


def sittings(random, luck, slowdown=1.0, count=3, rounds=3):
    """Times of a contender by sitting and round, of noise and of what a sitting has in common."""
    own = np.exp(luck * random.standard_normal((count, 1)))
    return slowdown * own * np.exp(NOISE * random.standard_normal((count, rounds)))


def pair(random, luck=0.0, slowdown=1.0):
    """Times of two contenders, whose machine drifts by tens of percents from round to round."""
    drift = np.exp(0.3 * random.standard_normal((3, 3)))
    return drift * sittings(random, luck, slowdown), drift * sittings(random, luck)


@SHARED
def test_identical_contenders_come_out_as_no_different_as_often_as_is_said(luck):
    random = np.random.default_rng(0)
    found = [paired(*pair(random, luck)) for _ in range(EXPERIMENTS)]
    inside = sum(ratio.low <= 1 <= ratio.high for ratio in found) / EXPERIMENTS
    assert CONFIDENCE - 0.01 < inside < 0.995
    assert sum(ratio.verdict.startswith("noise") for ratio in found) / EXPERIMENTS == inside


def test_a_contender_slowed_by_five_percent_is_found_slower():
    random = np.random.default_rng(1)
    found = [paired(*pair(random, slowdown=1.05)) for _ in range(EXPERIMENTS)]
    assert sum(ratio.verdict == "slower" for ratio in found) / EXPERIMENTS > 0.7  # at noise of 2 % in each round
    assert np.median([ratio.value for ratio in found]) == pytest.approx(1 / 1.05, rel=0.003)
    quiet = [paired(*(times**0.25 for times in pair(random, slowdown=1 / 1.05**4))) for _ in range(100)]
    assert sum(ratio.verdict == "faster" for ratio in quiet) > 98  # of 0.5 %


@SHARED
def test_unpaired_times_have_an_interval_that_holds_the_truth_as_often_as_is_said(luck):
    random = np.random.default_rng(2)
    inside = 0
    for _ in range(EXPERIMENTS):
        ratio = unpaired(sittings(random, luck), sittings(random, luck, slowdown=1.3, count=4))
        inside += ratio.low <= 1.3 <= ratio.high
    assert CONFIDENCE - 0.01 < inside / EXPERIMENTS < 0.995


def test_sittings_that_disagree_widen_the_interval():
    times = np.ones((3, 3))
    assert paired(times, times * np.array([[0.9], [1.0], [1.1]])).noise > paired(times, times + 1e-3).noise
    agreeing, disagreeing = np.array([[0.9, 1.0, 1.1]] * 3), np.array([[0.9] * 3, [1.0] * 3, [1.1] * 3])
    assert paired(times, disagreeing).noise > 1.5 * paired(times, agreeing).noise


def rounds_alone(estimate, mine, theirs):
    """The interval of the rounds: each is a sitting of its own, and Student's is made none."""
    with patch("residuum.bench.intervals._student", lambda freedom: 0.0):
        return estimate(mine[:, None], theirs[:, None])


def test_the_paired_interval_is_what_the_exact_signed_rank_test_does_not_refuse():
    random = np.random.default_rng(3)
    mine, theirs = np.exp(NOISE * random.standard_normal((2, 7)))
    logs = np.log(theirs) - np.log(mine)

    def refused(shift):
        ranks = np.argsort(np.argsort(abs(logs - shift))) + 1
        positive = ranks[logs > shift].sum()
        sums = [np.dot(signs, range(1, 8)) for signs in product((0, 1), repeat=7)]
        tail = min(np.mean([s <= positive for s in sums]), np.mean([s >= positive for s in sums]))
        return 2 * tail <= 1 - CONFIDENCE

    ratio = rounds_alone(paired, mine, theirs)
    low, high = np.log(ratio.low), np.log(ratio.high)
    for end, out in ((low, -1e-9), (high, 1e-9)):
        assert refused(end + out)
        assert not refused(end - out)


def test_the_unpaired_interval_is_what_the_exact_rank_sum_test_does_not_refuse():
    random = np.random.default_rng(4)
    mine, theirs = np.exp(random.standard_normal(5)), np.exp(random.standard_normal(6))
    sums = [sum(chosen) for chosen in combinations(range(1, 12), 5)]

    def refused(ratio):
        order = np.argsort(np.argsort(np.concatenate([np.log(mine) + np.log(ratio), np.log(theirs)]))) + 1
        ours = order[:5].sum()
        tail = min(np.mean([s <= ours for s in sums]), np.mean([s >= ours for s in sums]))
        return 2 * tail <= 1 - CONFIDENCE

    found = rounds_alone(unpaired, mine, theirs)
    for end, out in ((found.low, 1 - 1e-9), (found.high, 1 + 1e-9)):
        assert refused(end * out)
        assert not refused(end / out)


def test_students_quantiles_are_those_of_the_tables():
    for freedom, within in ((1, 12.706), (2, 4.303), (3, 3.182), (5, 2.571), (30, 2.042)):
        assert _student(freedom) == pytest.approx(within, abs=1e-3)


def test_too_few_rounds_have_no_interval():
    times = np.linspace(1, 2, LEAST_ROUNDS).reshape(2, -1)
    assert paired(times, 2 * times).value == pytest.approx(2)
    with pytest.raises(ValueError, match="too few"):
        paired(times[:, 1:], times[:, 1:])
