"""Ratios and their intervals: right where the truth is known, sharp enough to find a slowdown of 5 %."""

from itertools import combinations, product

import numpy as np
import pytest

from residuum.bench.statistics import CONFIDENCE, LEAST_ROUNDS, paired, unpaired

EXPERIMENTS = 2000
NOISE = 0.02


def rounds(random, count, slowdown=1.0):
    """Times of two contenders in the same rounds, whose machine drifts by tens of percents from round to round."""
    drift = np.exp(0.3 * random.standard_normal(count))
    first, second = np.exp(NOISE * random.standard_normal((2, count)))
    return drift * first * slowdown, drift * second


def test_identical_contenders_come_out_as_no_different_as_often_as_is_said():
    random = np.random.default_rng(0)
    found = [paired(*rounds(random, 9)) for _ in range(EXPERIMENTS)]
    inside = sum(ratio.low <= 1 <= ratio.high for ratio in found) / EXPERIMENTS
    assert CONFIDENCE - 0.01 < inside < 0.98
    assert sum(ratio.verdict.startswith("noise") for ratio in found) / EXPERIMENTS == inside


def test_a_contender_slowed_by_five_percent_is_found_slower():
    random = np.random.default_rng(1)
    found = [paired(*rounds(random, 9, 1.05)) for _ in range(EXPERIMENTS)]
    assert sum(ratio.verdict == "slower" for ratio in found) / EXPERIMENTS > 0.95
    assert np.median([ratio.value for ratio in found]) == pytest.approx(1 / 1.05, rel=0.003)
    assert sum(paired(*rounds(random, 9, 1 / 1.05)).verdict == "faster" for _ in range(100)) > 90


def test_unpaired_times_have_an_interval_that_holds_the_truth_as_often_as_is_said():
    random = np.random.default_rng(2)
    inside = 0
    for _ in range(EXPERIMENTS):
        first, second = np.exp(NOISE * random.standard_normal(8)), 1.3 * np.exp(NOISE * random.standard_normal(9))
        ratio = unpaired(first, second)
        inside += ratio.low <= 1.3 <= ratio.high
    assert CONFIDENCE - 0.01 < inside / EXPERIMENTS < 0.98


def test_the_paired_interval_is_what_the_exact_signed_rank_test_does_not_refuse():
    mine, theirs = rounds(np.random.default_rng(3), 7)
    logs = np.log(theirs) - np.log(mine)

    def refused(shift):
        ranks = np.argsort(np.argsort(abs(logs - shift))) + 1
        positive = ranks[logs > shift].sum()
        sums = [np.dot(signs, range(1, 8)) for signs in product((0, 1), repeat=7)]
        tail = min(np.mean([s <= positive for s in sums]), np.mean([s >= positive for s in sums]))
        return 2 * tail <= 1 - CONFIDENCE

    ratio = paired(mine, theirs)
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

    found = unpaired(mine, theirs)
    for end, out in ((found.low, 1 - 1e-9), (found.high, 1 + 1e-9)):
        assert refused(end * out)
        assert not refused(end / out)


def test_too_few_rounds_have_no_interval():
    times = np.linspace(1, 2, LEAST_ROUNDS)
    assert paired(times, 2 * times).value == pytest.approx(2)
    with pytest.raises(ValueError, match="too few"):
        paired(times[1:], times[1:])
