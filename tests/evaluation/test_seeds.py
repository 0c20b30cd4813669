"""Means and differences over seeds: scipy's numbers, intervals that hold what they say, no verdict on too little."""

import numpy as np
import pytest
from scipy import stats

from residuum.evaluation.counts import Paired
from residuum.evaluation.seeds import difference, mean_of, over_images, seeds_needed


def test_the_mean_has_students_interval():
    values = [0.91, 0.93, 0.90, 0.95]
    found = mean_of(values)
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert (found.n, found.mean, found.sd) == (4, pytest.approx(np.mean(values)), pytest.approx(np.std(values, ddof=1)))
    assert found.interval == pytest.approx((low, high))


def test_one_seed_has_no_spread():
    assert mean_of([0.5]) == type(mean_of([0.5]))(1, 0.5, None, None)


def test_pairs_are_judged_by_their_differences():
    first = {0: 0.90, 1: 0.80, 2: 0.70, 9: 0.1}
    second = {0: 0.92, 1: 0.83, 2: 0.715, 8: 0.9}
    found = difference(first, second)
    test = stats.ttest_rel([0.92, 0.83, 0.715], [0.90, 0.80, 0.70])
    assert (found.over, found.verdict) == ("3 pairs", "higher")
    assert found.p == pytest.approx(test.pvalue)
    assert found.interval == pytest.approx(tuple(test.confidence_interval(0.95)))
    assert difference(second, first).verdict == "lower"


def test_without_common_seeds_it_is_welchs():
    first, second = {0: 0.90, 1: 0.80, 2: 0.70}, {3: 0.92, 4: 0.83, 5: 0.715, 6: 0.8}
    found = difference(first, second)
    test = stats.ttest_ind(list(second.values()), list(first.values()), equal_var=False)
    assert (found.over, found.verdict) == ("3 and 4 seeds", "not resolved")
    assert found.p == pytest.approx(test.pvalue)
    assert found.interval == pytest.approx(tuple(test.confidence_interval(0.95)))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({0: 0.5}, {0: 0.9}), ({0: 0.5}, {1: 0.9}), ({0: 0.5, 1: 0.4}, {0: 0.9}),
        ({0: 0.5, 1: 0.6}, {0: 0.5 + 0.1, 1: 0.6 + 0.1}), ({0: 0.5, 1: 0.5}, {2: 0.9, 3: 0.9}),
    ],
)  # fmt: skip
def test_what_was_seen_once_or_shows_no_spread_is_not_judged(first, second):
    found = difference(first, second)
    assert (found.interval, found.p, found.verdict) == (None, None, "not resolved")


def test_an_interval_that_holds_0_is_not_resolved_and_says_how_many_more_seeds():
    found = difference({0: 0.90, 1: 0.80, 2: 0.70}, {0: 0.91, 1: 0.79, 2: 0.72})
    assert found.verdict == "not resolved"
    assert found.interval[0] < 0 < found.interval[1]
    assert found.more == seeds_needed(found.value, float(np.std([0.01, -0.01, 0.02], ddof=1))) - 3


@pytest.mark.parametrize(("value", "spread"), [(0.01, 0.02), (0.01, 0.005), (0.002, 0.02), (0.05, 0.05)])
def test_so_many_seeds_resolve_it_four_times_in_five(value, spread):
    """By the exact power of the t test."""

    def power(n):
        shift, edge = value / spread * np.sqrt(n), stats.t.ppf(0.975, n - 1)
        return stats.nct.sf(edge, n - 1, shift)  # the other tail is nothing

    needed = seeds_needed(value, spread)
    assert power(needed) >= 0.8
    assert power(needed - 1) < 0.8


def test_nothing_and_next_to_nothing_cannot_be_resolved():
    assert seeds_needed(0.0, 0.1) is None
    assert seeds_needed(1e-6, 0.1) is None


@pytest.mark.slow
def test_intervals_hold_the_truth_as_often_as_they_say():
    generator = np.random.default_rng(0)
    for count in (3, 6):
        inside = 0
        for _ in range(200):
            one, two = generator.normal(0.9, 0.01, (2, count))
            found = difference(dict(enumerate(one)), dict(enumerate(two)))
            inside += found.interval[0] <= 0 <= found.interval[1]
        assert inside / 200 == pytest.approx(0.95, abs=0.05)


def test_two_networks_on_the_same_images_are_judged_over_these():
    found = over_images(Paired(800, 20, 60, 120))
    assert (found.over, found.verdict) == ("1,000 images", "higher")
    assert found.value == pytest.approx(0.04)
