"""What a study says: paired differences over seeds, their intervals, and verdicts that wait until there is enough.

A block is a seed that is complete for both sides. Differences are of the variant less the base, in the metric's own
unit; their interval is Student's. Bootstrap intervals of so few seeds would hold much less than they say.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from residuum.ablate.results import StudyResult
from residuum.evaluation.seeds import MOST, Interval, mean_of, seeds_needed
from residuum.extras import need
from residuum.units import counted

LEAST, FEW, SIGNS = (
    3,
    5,
    6,
)  # pairs: from which there is an interval, up to which they are few, from which a sign-flip p
ALPHA = 0.05
_FLIPS = 16  # pairs up to which every sign-flip is counted; beyond, so many as that gives are drawn
_LEAST_SPREAD = 1e-12  # a smaller one is rounding
_LOWER = ("loss", "error", "seconds", "memory", "macs", "parameters")
Floats = NDArray[np.float64]
Kind = Literal["identical", "better", "worse", "same", "undecided", "incomplete"]


@dataclass(frozen=True)
class Comparison:
    """A variant beside the base in one metric, over the blocks of `seeds`. What too few pairs cannot say is None."""

    # name of the variant
    variant: str
    # seeds that both have
    seeds: tuple[int, ...]
    # variant less base, seed by seed
    differences: tuple[float, ...]
    # verdict, as a word
    kind: Kind
    # smallest difference that matters, in the metric's own unit
    margin: float | None = None
    # mean of the differences
    mean: float | None = None
    # Student's, of 95 %; wider where the study has `looks`
    interval: Interval | None = None
    # of Student's paired t
    p: float | None = None
    # `p` by Holm over the study's comparisons
    adjusted: float | None = None
    # p of the sign-flip test
    flipped: float | None = None
    # how often a run of the variant is better than one of the base
    superiority: float | None = None
    # of the two variants' runs of one seed
    correlation: float | None = None
    # interval that also speaks of new images
    images: Interval | None = None
    # about how many more seeds it takes
    more: int | None = None
    # what else is to be said
    notes: tuple[str, ...] = ()


def lower_is_better(metric: str) -> bool:
    """Whether less of a metric is more."""
    return any(word in metric for word in _LOWER)


def values(result: StudyResult, metric: str) -> dict[str, dict[int, float]]:
    """A metric of each variant by seed, of the cells that are done, among the seeds that are asked for."""
    found: dict[str, dict[int, float]] = {variant.name: {} for variant in result.variants}
    for cell in sorted(result.cells, key=lambda cell: cell.seed):
        value = cell.metrics.get(metric, math.nan)
        if cell.status == "done" and cell.seed in result.seeds and math.isfinite(value):
            found[cell.variant][cell.seed] = float(value)
    return found


def level(result: StudyResult) -> float:
    """What a study may err by: 0.05, divided by the looks that were fixed beforehand."""
    return ALPHA / len({*result.looks, len(result.seeds)}) if result.looks else ALPHA


def compare(result: StudyResult, metric: str | None = None) -> tuple[Comparison, ...]:
    """Every variant beside the base, in the study's order. `metric` is the tested one where it is not given.

    Each metric is a family of its own for Holm. The margin is the tested metric's and holds for no other. Raises
    `MissingExtraError` without scipy.
    """
    metric = metric or result.metric
    by_seed, alpha = values(result, metric), level(result)
    variants = [variant.name for variant in result.variants if variant.name != result.base]
    found = [_measured(result, metric, name, by_seed, alpha) for name in variants]
    family = [one for one in found if one.kind != "identical"]  # the very same network is no hypothesis
    ranked = [1.0 if one.p is None or one.kind == "incomplete" else one.p for one in family]
    adjusted = holm(np.array(ranked))
    place = {one.variant: float(p) for one, p in zip(family, adjusted, strict=True)}
    return tuple(_judged(one, place.get(one.variant), metric, alpha) for one in found)


def _measured(
    result: StudyResult, metric: str, name: str, by_seed: Mapping[str, Mapping[int, float]], alpha: float
) -> Comparison:
    """A comparison with all but what the others and the verdict on it say: `undecided` until then."""
    mine, base = by_seed[name], by_seed[result.base]
    seeds = tuple(seed for seed in mine if seed in base)
    ours, others = np.array([mine[s] for s in seeds]), np.array([base[s] for s in seeds])
    gaps = ours - others
    notes = [f"few seeds ({len(seeds)})"] if LEAST <= len(seeds) <= FEW else []
    notes += ["extended after looking"] if result.extended and not result.looks else []
    for side, where in ((name, ""), (result.base, " in the base")):
        lost = sum(c.status == "diverged" for c in result.cells if c.variant == side and c.seed in result.seeds)
        notes += [f"{lost} of {len(result.seeds)} diverged{where}"] if lost else []
    margin = result.margin if metric == result.metric else None
    one = Comparison(name, seeds, tuple(gaps.tolist()), "undecided", margin, notes=tuple(notes))
    if seeds:
        sign = -1 if lower_is_better(metric) else 1
        wins = np.sign(sign * np.subtract.outer(np.array([*mine.values()]), np.array([*base.values()])))
        one = replace(one, mean=float(gaps.mean()), superiority=float((wins.mean() + 1) / 2))
    missing = {*result.seeds} - {*seeds}
    if missing and not (len(seeds) in result.looks and all(s not in mine and s not in base for s in missing)):
        one = replace(one, kind="incomplete", notes=(*one.notes, f"{len(seeds)} of {len(result.seeds)} blocks"))
    elif not gaps.any() and _same_weights(result, name, seeds):
        keys = {(cell.variant, cell.seed): cell.key for cell in result.cells}
        same = all(keys[name, seed] == keys[result.base, seed] for seed in seeds)
        return replace(one, kind="identical", notes=(*one.notes, *["identical configuration"] * same))
    if len(seeds) < LEAST:
        return one
    if len(seeds) >= SIGNS:
        one = replace(one, flipped=sign_flip(gaps))
    if min(np.ptp(ours), np.ptp(others)) > _LEAST_SPREAD:
        one = replace(one, correlation=float(np.corrcoef(ours, others)[0, 1]))
    if np.ptp(gaps) < _LEAST_SPREAD:  # Student's t would be sure of what may be chance: few images, few seeds
        return replace(one, p=one.flipped)
    mean, reach, p = student(gaps, 1 - alpha)
    one = replace(one, interval=(float(mean - reach), float(mean + reach)), p=float(p))
    return replace(one, images=_for_new_images(result, name, seeds, alpha) if "accuracy" in metric else None)


def _same_weights(result: StudyResult, name: str, seeds: Sequence[int]) -> bool:
    digests = {(cell.variant, cell.seed): cell.weights for cell in result.cells}
    return bool(seeds) and all(
        digests[name, seed] and digests[name, seed] == digests[result.base, seed] for seed in seeds
    )


def _judged(one: Comparison, adjusted: float | None, metric: str, alpha: float) -> Comparison:
    one = replace(one, adjusted=adjusted if one.p is not None and one.kind == "undecided" else None)
    if one.kind != "undecided" or one.mean is None:
        return one
    n = len(one.seeds)
    if one.adjusted is not None and one.adjusted < alpha:
        return replace(one, kind="better" if (one.mean < 0) == lower_is_better(metric) else "worse")
    if n < LEAST:
        return replace(one, more=LEAST - n)
    inner = mean_of(one.differences, 1 - 2 * alpha).interval  # two one-sided tests (TOST), each at alpha
    if one.margin and inner and -one.margin < inner[0] and inner[1] < one.margin:
        return replace(one, kind="same")
    spread = float(np.std(one.differences, ddof=1))
    if spread < _LEAST_SPREAD:
        return replace(one, more=max(SIGNS - n, 1))
    needed = seeds_needed(one.margin, spread, alpha) if one.margin else None
    if needed is None or needed <= n:  # the margin would have been seen: then it is the difference that was
        needed = seeds_needed(one.mean, spread, alpha)
    return replace(one, more=max(needed - n, 1) if needed else None)


def verdict(one: Comparison, scale: float = 1.0, unit: str = "") -> str:
    """A comparison's verdict in words, such as `better`; it shows the margin times `scale`, in `unit`."""
    if one.kind == "same":
        return f"same within ±{scale * (one.margin or 0):.4g}{unit}"
    if one.kind == "undecided":
        if one.more is None:
            return f"undecided: over {MOST:,} more seeds" if len(one.seeds) >= LEAST else "undecided"
        word = "at least" if len(one.seeds) < LEAST else "about"
        return f"undecided: {word} {counted(one.more, 'more seed')}"
    return one.kind


def student(gaps: Floats, confidence: float = 1 - ALPHA) -> tuple[Floats, Floats, Floats]:
    """Mean, half the interval's width, and two-sided p of paired differences (..., n), for each of the first axes."""
    t, n = need("scipy.stats", extra="stats").t, gaps.shape[-1]
    mean, error = gaps.mean(-1), np.maximum(gaps.std(-1, ddof=1), 1e-300) / math.sqrt(n)
    return mean, t.ppf((1 + confidence) / 2, n - 1) * error, 2 * t.sf(np.abs(mean) / error, n - 1)


def holm(p: Floats) -> Floats:
    """Holm's step-down adjustment of p-values (..., m) over the last axis."""
    order = np.argsort(p, axis=-1)
    steps = np.take_along_axis(p, order, -1) * np.arange(p.shape[-1], 0, -1)
    found = np.empty_like(p)
    np.put_along_axis(found, order, np.minimum(np.maximum.accumulate(steps, -1), 1), -1)
    return found


def sign_flip(gaps: Floats) -> float:
    """Two-sided p of the sign-flip test of paired differences (n,): exact up to 16 pairs, drawn with a seed beyond."""
    n = len(gaps)
    exact = n <= _FLIPS
    bits = (
        np.arange(2**n)[:, None] >> np.arange(n) & 1 if exact else np.random.default_rng(0).integers(0, 2, (2**16, n))
    )
    as_far = np.abs((2 * bits - 1) @ gaps) >= abs(gaps.sum()) - 1e-12 * np.abs(gaps).sum()
    return float(as_far.mean() if exact else (as_far.sum() + 1) / (len(bits) + 1))


def _for_new_images(result: StudyResult, name: str, seeds: Sequence[int], alpha: float) -> Interval | None:
    """Interval of the difference for other images too: half the widths over seeds and over images, squared and added.

    As with the two-way bootstrap, what changes with both seed and image counts in both, which errs to the safe side;
    but a bootstrap of three seeds would be too narrow. Each of the two is Student's.
    """
    right = {(c.variant, c.seed): c.correct for c in result.cells}
    sides = [[right[side, seed] or () for seed in seeds] for side in (name, result.base)]
    counts = {len(one) for side in sides for one in side}
    if len(counts) != 1 or min(counts) < 2:
        return None
    mine, base = (np.array(side, np.float64) for side in sides)  # (seeds, images)
    gaps = mine - base
    reach = math.hypot(*(float(student(gaps.mean(1 - axis), 1 - alpha)[1]) for axis in (0, 1)))
    return float(gaps.mean() - reach), float(gaps.mean() + reach)


def noise(result: StudyResult, metric: str | None = None) -> tuple[float, float] | None:
    """The sd of one run, and the correlation of two variants' runs of one seed; None below two variants or seeds.

    Over the seeds that all variants have. Variants that are one and the same count once.
    """
    table = np.unique(complete(result, metric or result.metric)[0], axis=0)
    if min(table.shape) < 2 or not np.ptp(table, axis=1).any():
        return None
    covariance = np.cov(table)
    variance, n = float(np.diag(covariance).mean()), len(table)
    return math.sqrt(variance), float((covariance.sum() / n - variance) / (n - 1) / variance)


def complete(result: StudyResult, metric: str) -> tuple[Floats, list[int]]:
    """The metric (variants, seeds) at the seeds that every variant has."""
    by_seed = values(result, metric)
    seeds = [seed for seed in result.seeds if all(seed in mine for mine in by_seed.values())]
    return np.array([[mine[seed] for seed in seeds] for mine in by_seed.values()]).reshape(len(by_seed), -1), seeds


def pairs_needed(margin: float, sd: float, correlation: float = 0.0, alpha: float = ALPHA) -> int | None:
    """Seeds that show a difference of `margin` four times in five, where one run spreads by `sd`, or None.

    `correlation` is that of two variants' runs of one seed, and `alpha` what may be erred by. Raises
    `MissingExtraError` without scipy.
    """
    return seeds_needed(margin, sd * math.sqrt(2 * (1 - correlation)), alpha)
