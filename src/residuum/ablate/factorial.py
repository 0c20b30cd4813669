"""Full factorials: main effects, two-way interactions, and what each factor has to do with the whole.

All are contrasts of the variants' means over the seeds that every variant has.
"""

import math
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np

from residuum.ablate.results import StudyResult
from residuum.ablate.statistics import Floats, complete, level
from residuum.evaluation.seeds import Interval
from residuum.extras import need


@dataclass(frozen=True)
class Effect:
    """What a factor changes, averaged over the others, or by how much one changes the effect of another."""

    name: str
    value: float
    interval: Interval
    p: float
    of: tuple[str, ...]  # one factor for a main effect, two for an interaction

    @property
    def clear(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.interval[0] > 0 or self.interval[1] < 0


def effects(result: StudyResult, metric: str | None = None) -> tuple[Effect, ...]:
    """Main effects and two-way interactions of a full factorial, interactions that are clear first; else none.

    Blocks are the seeds that every variant has. Each is a contrast of the variants' means, judged by the residual of
    variants and seeds: what least squares gives for all interactions with a term for each seed.
    """
    levels, table = _levels(result), complete(result, metric or result.metric)[0]
    if not levels or table.shape[1] < 2:
        return ()
    is_at = {(f, one): np.array([v.levels[f] == one for v in result.variants]) for f in levels for one in levels[f]}

    def mean(*at: tuple[str, str]) -> Floats:
        chosen = np.prod([is_at[one] for one in at], axis=0, dtype=np.float64)
        return np.asarray(chosen / chosen.sum())

    found = []
    for factor, (first, *others) in levels.items():
        for other in others:
            name = factor if others == [other] else f"{factor} {other}"
            found.append(_effect(name, mean((factor, other)) - mean((factor, first)), table, (factor,), level(result)))
    for a, b in combinations(levels, 2):
        for x, y in product(levels[a][1:], levels[b][1:]):
            name = " x ".join(f if len(levels[f]) == 2 else f"{f} {one}" for f, one in ((a, x), (b, y)))
            with_b = mean((a, x), (b, y)) - mean((a, levels[a][0]), (b, y))
            without = mean((a, x), (b, levels[b][0])) - mean((a, levels[a][0]), (b, levels[b][0]))
            found.append(_effect(name, with_b - without, table, (a, b), level(result)))
    return tuple(sorted(found, key=lambda one: -(len(one.of) == 2 and one.clear)))


def _levels(result: StudyResult) -> dict[str, list[str]]:
    """The levels of each factor, the base's first, where the variants are a full factorial of two factors or more."""
    base = next((variant for variant in result.variants if variant.name == result.base), None)
    if base is None or len(base.levels) < 2 or any(v.levels.keys() != base.levels.keys() for v in result.variants):
        return {}
    levels = {f: list(dict.fromkeys([base.levels[f], *(v.levels[f] for v in result.variants)])) for f in base.levels}
    cells = {tuple(variant.levels[f] for f in levels) for variant in result.variants}
    full = math.prod(map(len, levels.values())) == len(cells) == len(result.variants)
    return {f: found for f, found in levels.items() if len(found) > 1} if full else {}


def _effect(name: str, weights: Floats, table: Floats, of: tuple[str, ...], alpha: float) -> Effect:
    """A contrast of variants' means (variants,) over the metric (variants, seeds)."""
    t, (variants, seeds) = need("scipy.stats", extra="stats").t, table.shape
    rest = table - table.mean(0) - table.mean(1, keepdims=True) + table.mean()
    freedom = (variants - 1) * (seeds - 1)
    error = math.sqrt(float((rest**2).sum()) / freedom * float((weights**2).sum()) / seeds)
    value = float(weights @ table.mean(1))
    reach = float(t.ppf(1 - alpha / 2, freedom)) * error
    p = float(2 * t.sf(abs(value) / error, freedom)) if error else 1.0
    return Effect(name, value, (value - reach, value + reach), p, of)


def shapley(result: StudyResult, metric: str | None = None) -> dict[str, float]:
    """Shapley's share of each factor in the way from the base to every factor at its last level, of variants' means.

    The shares add up to that difference exactly. Empty where the study is no full factorial.
    """
    levels, table = _levels(result), complete(result, metric or result.metric)[0]
    if not levels or not table.size:
        return {}
    means: dict[frozenset[str], float] = {}
    for variant, mean in zip(result.variants, table.mean(1), strict=True):
        on = frozenset(f for f, found in levels.items() if variant.levels[f] == found[-1])
        if all(variant.levels[f] == found[0] for f, found in levels.items() if f not in on):
            means[on] = float(mean)
    n = len(levels)
    shares: dict[str, float] = dict.fromkeys(levels, 0.0)
    for on, mean in means.items():
        for f in levels:
            k = len(on) - (f in on)
            weight = math.factorial(k) * math.factorial(n - k - 1) / math.factorial(n)
            shares[f] += weight * mean if f in on else -weight * mean
    return shares
