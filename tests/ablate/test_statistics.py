"""Verdicts hold what they say: coverage, error rates and power in fake studies, scipy's and statsmodels' numbers."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from residuum.ablate.statistics import compare, holm, noise, pairs_needed, sign_flip, student, verdict
from tests.ablate.fakes import cell, study

STUDIES = 2000


def draws(kind, shape, seed=0):
    """Accuracies of runs: normal around 0.9, or of 360 images at 99 %."""
    rng = np.random.default_rng(seed)
    return rng.normal(0.9, 0.002, shape) if kind == "normal" else rng.binomial(360, 0.99, shape) / 360


@pytest.mark.parametrize("n", [3, 5, 10])
@pytest.mark.parametrize(("kind", "least", "most"), [("normal", 0.935, 0.965), ("skewed", 0.92, 1.0)])
def test_the_interval_holds_the_truth_as_often_as_it_says(kind, n, least, most):
    mean, reach, _ = student(draws(kind, (STUDIES, n)) - draws(kind, (STUDIES, n), 1))
    assert least <= np.mean(np.abs(mean) <= reach) <= most


@pytest.mark.slow
def test_ten_variants_without_an_effect_are_seldom_called_better_or_worse():
    runs = draws("normal", (1000, 11, 8))  # they share the base's runs
    adjusted = holm(student(runs[:, 1:] - runs[:, :1])[2])
    assert np.mean((adjusted < 0.05).any(-1)) <= 0.06
    for one, p in zip(runs[:20], adjusted, strict=False):
        found = compare(study({str(i): row for i, row in enumerate(one)}))
        assert [c.adjusted for c in found] == pytest.approx(p)
        assert any(c.kind in ("better", "worse") for c in found) == (p < 0.05).any()


@pytest.mark.parametrize(("sd", "correlation"), [(0.003, 0.0), (0.004, 0.5), (0.006, 0.0)])
def test_the_planned_number_of_seeds_shows_the_margin_four_times_in_five(sd, correlation):
    n = pairs_needed(0.003, sd, correlation)
    rng = np.random.default_rng(2)
    block = rng.normal(0, sd * correlation**0.5, (10_000, 1, n))
    base, variant = np.moveaxis(block + rng.normal(0, sd * (1 - correlation) ** 0.5, (10_000, 2, n)), 1, 0)
    assert np.mean(student(variant + 0.003 - base)[2] < 0.05) == pytest.approx(0.8, abs=0.04)


def test_pairs_needed_are_those_of_the_noncentral_t():
    """Two-sided 5 %, 80 %: as statsmodels' TTestPower says, rounded up."""
    assert [pairs_needed(0.003, sd) for sd in (0.001, 0.003, 0.005)] == [5, 18, 46]
    assert pairs_needed(0.003, 0.003, alpha=0.005) == 31
    assert pairs_needed(0.003, 0.003, correlation=0.75) < 18


def test_same_within_the_margin_is_seldom_said_of_a_variant_at_the_margin():
    gaps = np.random.default_rng(3).normal(0.003, 0.001, (STUDIES, 10))
    mean, reach, _ = student(gaps, 0.90)
    inside = (mean - reach > -0.003) & (mean + reach < 0.003)
    assert np.mean(inside) <= 0.06
    for one, same in zip([*gaps[inside][:10], *gaps[~inside][:10]], [True] * 10 + [False] * 10, strict=True):
        found = compare(study({"base": np.full(10, 0.9), "variant": 0.9 + one}, margin=0.003))[0]
        p = stats.ttest_1samp(one, 0).pvalue
        assert (found.kind == "same") == (same and p >= 0.05)


def test_a_comparison_has_scipys_numbers():
    base, variant = draws("normal", (2, 8))
    found = compare(study({"base": base, "variant": variant}))[0]
    test = stats.ttest_rel(variant, base)
    assert found.mean == pytest.approx(np.mean(variant - base))
    assert found.p == found.adjusted == pytest.approx(test.pvalue)
    assert found.interval == pytest.approx(tuple(test.confidence_interval(0.95)))
    exact = stats.permutation_test((variant - base,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert found.flipped == pytest.approx(exact.pvalue)
    assert found.superiority == pytest.approx(stats.mannwhitneyu(variant, base).statistic / 64)
    assert found.correlation == pytest.approx(np.corrcoef(base, variant)[0, 1])


def test_holms_adjustment_steps_down():
    assert holm(np.array([0.04, 0.01, 0.03])) == pytest.approx([0.06, 0.03, 0.06])
    assert holm(np.array([0.9, 0.8])) == pytest.approx([1.0, 1.0])


@pytest.mark.slow  # it takes seconds to import
def test_holms_adjustment_is_statsmodels():
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    p = np.random.default_rng(4).uniform(0, 0.1, (20, 7))
    for row, mine in zip(p, holm(p), strict=True):
        assert mine == pytest.approx(multitest.multipletests(row, method="holm")[1])


def test_beyond_sixteen_pairs_sign_flips_are_drawn_and_the_same_each_time():
    gaps = np.random.default_rng(5).normal(0.3, 1, 24)
    assert sign_flip(gaps) == sign_flip(gaps)
    assert sign_flip(gaps) == pytest.approx(stats.ttest_1samp(gaps, 0).pvalue, abs=0.01)


def test_less_loss_is_better():
    losses = {"base": [{"test_loss": 1 + 0.01 * i} for i in range(4)]}
    losses["variant"] = [{"test_loss": 0.5 + 0.011 * i} for i in range(4)]
    found = compare(study(losses), "test_loss")[0]
    assert (found.kind, found.superiority) == ("better", 1.0)


def test_below_three_pairs_there_is_no_interval_and_up_to_five_they_are_few():
    base, variant = [0.90, 0.91, 0.905, 0.90, 0.91, 0.9], [0.95, 0.96, 0.95, 0.951, 0.949, 0.95]
    two, three, five, six = (compare(study({"base": base[:n], "variant": variant[:n]}))[0] for n in (2, 3, 5, 6))
    assert (two.interval, two.p, verdict(two)) == (None, None, "undecided: at least 1 more seed")
    assert three.interval is not None
    assert (three.kind, three.notes) == ("better", ("few seeds (3)",))
    assert (five.flipped, five.notes) == (None, ("few seeds (5)",))
    assert (six.flipped, six.notes) == (2 / 2**6, ())


def test_a_difference_without_spread_is_left_to_the_signs():
    three, six = (compare(study({"base": [0.9] * n, "variant": [0.95] * n}))[0] for n in (3, 6))
    assert (three.p, three.kind, verdict(three)) == (None, "undecided", "undecided: about 3 more seeds")
    assert (six.p, six.kind) == (2 / 2**6, "better")


def test_a_field_without_effect_is_identical_and_only_with_the_same_weights():
    same = study({"base": draws("normal", 4), "none": draws("normal", 4), "other": draws("normal", 4, 1)})
    digests = {"base": "a", "none": "a", "other": "b"}
    found = compare(replace(same, cells=tuple(replace(c, weights=digests[c.variant]) for c in same.cells)))
    assert [c.kind for c in found] == ["identical", "undecided"]
    assert set(found[0].differences) == {0.0}
    assert found[1].adjusted == found[1].p  # the very same network is no hypothesis
    by_chance = compare(replace(same, cells=tuple(replace(c, weights=c.key) for c in same.cells)))
    assert by_chance[0].kind == "undecided"


def test_variants_that_share_their_cells_are_said_to_be_one_configuration():
    same = study({"base": [0.9, 0.91, 0.92], "none": [0.9, 0.91, 0.92]})
    found = compare(replace(same, cells=tuple(replace(c, weights="a", key=f"{c.seed}") for c in same.cells)))[0]
    assert (found.kind, found.notes) == ("identical", ("few seeds (3)", "identical configuration"))


def test_undecided_says_how_many_more_seeds_would_show_the_margin():
    base, variant = draws("normal", (2, 6), 3)
    found = compare(study({"base": base, "variant": variant}, margin=0.001))[0]
    assert found.kind == "undecided"
    assert found.more == pairs_needed(0.001, np.std(variant - base, ddof=1) / 2**0.5) - 6


def test_a_block_that_lacks_a_side_is_shown_and_not_ranked():
    values = {"base": [0.8, 0.81, 0.805, 0.79], "variant": [0.9, 0.91, 0.903, None], "whole": [0.9, 0.91, 0.903, 0.9]}
    found = compare(study(values))
    assert [(c.kind, len(c.seeds)) for c in found] == [("incomplete", 3), ("better", 4)]
    assert found[0].interval is not None
    assert "3 of 4 blocks" in found[0].notes


def test_a_divergence_is_counted_and_no_mean_is_taken_over_the_rest_in_silence():
    values = {"base": [0.8, 0.81, 0.805, 0.79], "variant": [0.9, 0.91, 0.903, None]}
    whole = study(values)
    found = compare(replace(whole, cells=(*whole.cells, cell("variant", 3, status="diverged"))))[0]
    assert found.kind == "incomplete"
    assert "1 of 4 diverged" in found.notes


def test_looks_fixed_beforehand_divide_what_a_study_may_err_by():
    base = draws("normal", 8)
    gaps = np.array([1.0, 1.6, 0.2, 1.4, -0.6, 1.2, 1.8, -0.4])
    p = stats.ttest_1samp(gaps, 0).pvalue
    assert 0.025 < p < 0.05
    values = {"base": base, "variant": base + 0.001 * gaps}
    once, twice = (compare(study(values, looks=looks))[0] for looks in ((), (8, 16)))
    assert (once.kind, twice.kind) == ("better", "undecided")
    ends = stats.ttest_rel(values["variant"], base).confidence_interval(0.975)
    assert twice.interval == pytest.approx(tuple(ends))


def test_a_look_before_the_end_is_judged_only_where_it_was_fixed_beforehand():
    values = {"base": [0.80, 0.81, 0.805, *[None] * 3], "variant": [0.90, 0.91, 0.903, *[None] * 3]}
    assert compare(study(values))[0].kind == "incomplete"
    assert compare(study(values, looks=(3, 6)))[0].kind == "better"


def test_a_study_extended_after_looking_says_so():
    values = dict(zip(("base", "variant"), draws("normal", (2, 8)), strict=True))
    assert compare(study(values, extended=True))[0].notes == ("extended after looking",)


def test_the_noise_of_a_run_and_what_runs_of_a_seed_share():
    rng = np.random.default_rng(6)
    runs = 0.9 + 0.003 * rng.normal(size=(1, 4000)) + 0.004 * rng.normal(size=(3, 4000))
    found = noise(study({str(i): row for i, row in enumerate([*runs, runs[0]])}))  # the last is the first again
    assert found == pytest.approx((0.005, 9 / 25), rel=0.1)


@pytest.mark.slow
def test_the_interval_for_new_images_holds_the_truth_at_new_images():
    """Seeds and images both drawn anew: two variants as good as each other, 5 seeds, 200 images, 300 studies."""
    rng, held, narrower = np.random.default_rng(7), 0, 0
    for _ in range(300):
        hard = rng.normal(2, 1, (2, 1, 200))  # each variant finds other images hard
        right = hard + rng.normal(0, 0.3, (2, 5, 1)) + rng.normal(0, 1, (2, 5, 200)) > 0
        cells = tuple(
            cell(name, s, right[i, s].mean(), correct=tuple(right[i, s].tolist()))
            for i, name in enumerate(("base", "variant")) for s in range(5)
        )  # fmt: skip
        whole = study({"base": [None] * 5, "variant": [None] * 5}, cells=cells)
        found = compare(whole)[0]
        assert found.images[0] <= found.interval[0] < found.interval[1] <= found.images[1]
        held += found.images[0] <= 0 <= found.images[1]
        narrower += found.interval[0] <= 0 <= found.interval[1]
    assert held / 300 >= 0.93
    assert narrower < held
