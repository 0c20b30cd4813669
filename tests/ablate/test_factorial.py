"""Effects of a full factorial: found where they are planted, and least squares' numbers."""

from itertools import product

import numpy as np
import pytest

from residuum.ablate.factorial import effects, shapley
from residuum.ablate.results import Variant
from tests.ablate.fakes import study

CELLS = list(product("01", repeat=3))


def factorial(runs, cells=CELLS, **given):
    """A study of factors A, B, C from values (cells, seeds)."""
    names = ["".join(one) for one in cells]
    variants = tuple(
        Variant(name, dict(zip("ABC"[: len(one)], one, strict=True))) for name, one in zip(names, cells, strict=True)
    )
    return study(dict(zip(names, runs, strict=True)), variants=variants, design="factorial", **given)


def runs_of(rng, seeds=4, interaction=0.005, sd=0.002):
    """A and B are worth something together only: no main effect, an interaction."""
    signs = np.array([(1 if a == b else -1) for a, b, _ in CELLS])[:, None]
    return 0.9 + interaction / 4 * signs + rng.normal(0, 0.003, (1, seeds)) + rng.normal(0, sd, (8, seeds))


def test_a_planted_interaction_is_found_and_no_main_effect_is_made_up():
    rng, found, mains, studies = np.random.default_rng(0), 0, 0, 300
    for _ in range(studies):
        by_name = {one.name: one for one in effects(factorial(runs_of(rng)))}
        found += by_name["A x B"].p < 0.05
        mains += sum(by_name[name].p < 0.05 for name in "ABC")
    assert found / studies >= 0.8
    assert mains / studies / 3 == pytest.approx(0.05, abs=0.02)


def test_a_clear_interaction_comes_before_the_main_effects():
    found = effects(factorial(runs_of(np.random.default_rng(1), interaction=0.02)))
    assert found[0].name == "A x B"
    assert found[0].clear
    assert found[0].value == pytest.approx(0.02, abs=0.006)


@pytest.mark.parametrize("levels", [2, 3])
def test_effects_are_least_squares(levels):
    """Effect-coded columns, a term for each seed, all interactions."""
    cells = list(product([str(i) for i in range(levels)], "01"))
    runs = np.random.default_rng(2).normal(0.9, 0.01, (len(cells), 5))
    rows, y = [], runs.ravel()
    for a, b in cells:
        code = np.eye(levels)[int(a)][1:] - (a == "0")
        b_code = 1.0 if b == "1" else -1.0
        rows += [[*np.eye(5)[seed], *code, b_code, *(code * b_code)] for seed in range(5)]
    x = np.array(rows)
    coefficients = np.linalg.lstsq(x, y)[0][5:]
    alphas = coefficients[: levels - 1]
    found = {one.name: one for one in effects(factorial(runs, cells))}
    name = "A" if levels == 2 else "A 1"
    assert found[name].value == pytest.approx(alphas[0] + alphas.sum(), abs=1e-9)  # level 1 less level 0
    assert found["B"].value == pytest.approx(2 * coefficients[levels - 1], abs=1e-9)
    crossed = coefficients[levels:]
    assert found[f"{name} x B"].value == pytest.approx(2 * (crossed[0] + crossed.sum()), abs=1e-9)


@pytest.mark.slow  # statsmodels takes seconds to import
def test_effects_intervals_and_p_are_statsmodels():
    ols = pytest.importorskip("statsmodels.formula.api").ols
    runs = runs_of(np.random.default_rng(3))
    data = {"y": runs.ravel(), "seed": np.tile(np.arange(4), 8)}
    data |= {name: np.repeat([2.0 * int(one[i]) - 1 for one in CELLS], 4) for i, name in enumerate("abc")}
    fit = ols("y ~ C(seed) + a*b*c", pytest.importorskip("pandas").DataFrame(data)).fit()
    ends = fit.conf_int()
    for one in effects(factorial(runs)):
        term, times = one.name.lower().replace(" x ", ":"), 2 * len(one.of)
        assert one.value / times == pytest.approx(fit.params[term], abs=1e-9)
        assert one.p == pytest.approx(fit.pvalues[term], abs=1e-9)
        assert np.array(one.interval) / times == pytest.approx(ends.loc[term].to_numpy(), abs=1e-9)


def test_shapley_shares_add_up_to_full_less_empty():
    runs = np.random.default_rng(4).normal(0.9, 0.01, (8, 3))
    shares = shapley(factorial(runs))
    assert sum(shares.values()) == pytest.approx(runs[-1].mean() - runs[0].mean(), abs=1e-12)


def test_factors_that_only_work_together_share_what_they_bring():
    runs = np.array([[0.9 + 0.02 * (a == b == "1")] * 3 for a, b, _ in CELLS])
    assert shapley(factorial(runs)) == pytest.approx({"A": 0.01, "B": 0.01, "C": 0.0})


def test_what_is_no_full_factorial_has_no_effects():
    runs = runs_of(np.random.default_rng(5))
    assert effects(factorial(runs[:7], CELLS[:7])) == ()
    assert shapley(factorial(runs[:7], CELLS[:7])) == {}
    assert effects(study({"base": [0.9, 0.9], "variant": [0.8, 0.9]})) == ()
