"""Runs over seeds: means, and differences with their intervals. Nothing is judged that was not seen often enough."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from residuum.evaluation.counts import Paired
from residuum.extras import need
from residuum.units import counted

CONFIDENCE = 0.95
POWER = 0.8  # the chance with which so many more seeds would resolve a difference of the size that was seen
MOST = 10_000  # seeds; where it takes more, nobody will train them
_LEAST_SPREAD = 1e-9  # a smaller one is rounding
Interval = tuple[float, float]


@dataclass(frozen=True)
class Mean:
    """Of n seeds: their mean, and from two on the standard deviation of one and Student's interval of the mean."""

    # number of seeds
    n: int
    # their mean
    mean: float
    # standard deviation of one
    sd: float | None = None
    # Student's of the mean, of 95 %
    interval: Interval | None = None


def mean_of(values: Sequence[float], confidence: float = CONFIDENCE) -> Mean:
    """The mean of one value a seed, with an interval that holds so much."""
    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return Mean(n, mean)
    sd = float(np.std(values, ddof=1))
    reach = float(_stats().t.ppf((1 + confidence) / 2, n - 1)) * sd / math.sqrt(n)
    return Mean(n, mean, sd, (mean - reach, mean + reach))


@dataclass(frozen=True)
class Difference:
    """The second's mean less the first's, what it is taken over, and as far as that tells, interval and p."""

    # the second's mean less the first's
    value: float
    # what it is taken over, such as `4 seeds`
    over: str
    # of 95 %
    interval: Interval | None = None
    # two-sided
    p: float | None = None
    # about how many more seeds of both would resolve it; None where that cannot be said or is not needed
    more: int | None = None

    @property
    def verdict(self) -> Literal["higher", "lower", "not resolved"]:
        """What the interval says; nothing where it holds 0 or there is none."""
        if self.interval is None or self.interval[0] <= 0 <= self.interval[1]:
            return "not resolved"
        return "higher" if self.value > 0 else "lower"


def difference(first: Mapping[int, float], second: Mapping[int, float]) -> Difference:
    """Of two recipes, each a value by seed: over the seeds that both have where there are two, else over all.

    Pairs are judged by Student's t of their differences, others by Welch's.
    """
    common = sorted(first.keys() & second.keys())
    if len(common) >= 2 or (common and min(len(first), len(second)) < 2):
        gaps = [second[seed] - first[seed] for seed in common]
        value, over = float(np.mean(gaps)), counted(len(common), "pair")
        if len(common) < 2 or np.std(gaps) < _LEAST_SPREAD:
            return Difference(value, over)
        test = _stats().ttest_1samp(gaps, 0.0)
        spread, count = float(np.std(gaps, ddof=1)), len(common)
    else:
        ours, others = list(first.values()), list(second.values())
        value, over = float(np.mean(others) - np.mean(ours)), f"{len(ours)} and {len(others)} seeds"
        if min(len(ours), len(others)) < 2 or max(np.std(ours), np.std(others)) < _LEAST_SPREAD:
            return Difference(value, over)
        test = _stats().ttest_ind(others, ours, equal_var=False)
        spread = math.sqrt(float(np.var(ours, ddof=1) + np.var(others, ddof=1)))
        count = min(len(ours), len(others))
    ends = test.confidence_interval(CONFIDENCE)
    found = Difference(value, over, (float(ends.low), float(ends.high)), float(test.pvalue))
    if found.verdict != "not resolved":
        return found
    needed = seeds_needed(value, spread)
    return Difference(value, over, found.interval, found.p, max(needed - count, 1) if needed is not None else None)


def seeds_needed(value: float, spread: float, alpha: float = 1 - CONFIDENCE) -> int | None:
    """Pairs that it takes to resolve a difference with a chance of `POWER`, where theirs spread so; None beyond `MOST`.

    By the exact power of the two-sided t test at the level `alpha`.
    """
    stats = _stats()
    if value == 0:
        return None

    def enough(n: int) -> bool:
        shift, edge = abs(value) / spread * math.sqrt(n), float(stats.t.ppf(1 - alpha / 2, n - 1))
        if shift > edge + 40:  # certain, and beyond what scipy's noncentral t computes
            return True
        return float(stats.nct.sf(edge, n - 1, shift)) >= POWER  # the other tail is nothing at such a power

    low, high = 1, MOST
    if not enough(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def over_images(pair: Paired) -> Difference:
    """Two networks on the same images: what their recipes are worth with other seeds it does not tell."""
    images = pair.both + pair.first_alone + pair.second_alone + pair.neither
    return Difference(pair.difference, counted(images, "image"), pair.interval, pair.p)


def _stats() -> Any:
    return need("scipy.stats", extra="stats")
