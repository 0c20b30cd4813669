"""Ratios of speeds with their intervals: from round to round, and from sitting to sitting.

Rounds within a sitting share its luck: where the memory lies, what else the machine does. So there are two intervals,
and the wider end of each counts. That of the rounds takes noise to have no particular shape: Hodges and Lehmann's
estimate, an exact rank test inverted. That of the sittings is Student's, on their mean log ratios.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

CONFIDENCE = 0.95
LEAST_ROUNDS, LEAST_SITTINGS = 6, 2  # of fewer, even when all say the same, no interval has that confidence
Times = Sequence[Sequence[float]]  # seconds of a step, by sitting and round


def suffice(sittings: int, rounds: int) -> bool:
    """Whether so many sittings, of so many rounds each, give an interval."""
    return sittings >= LEAST_SITTINGS and sittings * rounds >= LEAST_ROUNDS


@dataclass(frozen=True)
class Ratio:
    """How many times as fast: the estimate, and the ends of its interval."""

    value: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """`faster` or `slower` where the interval leaves 1 out, else how much noise hides a difference."""
        if self.low > 1:
            return "faster"
        if self.high < 1:
            return "slower"
        return f"noise ±{100 * self.noise:.1f}"

    @property
    def noise(self) -> float:
        """Half the width of the interval, as a share."""
        return (self.high - self.low) / 2


def paired(mine: Times, theirs: Times) -> Ratio:
    """Speed of the first over that of the second, from the times of both in the same sittings and rounds.

    The median of all averages of two rounds' log ratios; for the rounds, the interval holds what Wilcoxon's signed-rank
    test does not refuse (Hodges and Lehmann 1963). At least `LEAST_ROUNDS` rounds, `LEAST_SITTINGS` sittings.
    """
    by_sitting = [np.log(b) - np.log(a) for a, b in zip(mine, theirs, strict=True)]
    logs = np.concatenate(by_sitting)
    first, second = np.triu_indices(len(logs))
    ways = np.ones(1)  # of the ranks 1 to n to add up to each sum
    for rank in range(1, len(logs) + 1):
        ways = np.append(ways, np.zeros(rank)) + np.append(np.zeros(rank), ways)
    means = np.array([sitting.mean() for sitting in by_sitting])
    return _estimate((logs[first] + logs[second]) / 2, ways, means.var(ddof=1) / len(means), len(means) - 1)


def unpaired(mine: Times, theirs: Times) -> Ratio:
    """Speed of the first over that of the second, from times of separate runs.

    The median of all pairs' log ratios; for the rounds, the interval is that of the rank-sum test (Mann and Whitney
    1947).
    """
    logs = [[np.log(sitting) for sitting in times] for times in (mine, theirs)]
    pairs = np.concatenate(logs[1])[:, None] - np.concatenate(logs[0])[None, :]
    n, m = pairs.shape
    ways = np.zeros((m + 1, n * m + 1))  # of m values among n others to win j pairs
    ways[0, 0] = 1
    for below in range(n + 1):  # how many of the n others a value stands above
        for chosen in range(m):
            ways[chosen + 1, below:] += ways[chosen, : n * m + 1 - below]
    means = [np.array([sitting.mean() for sitting in one]) for one in logs]
    freedom = sum(len(one) - 1 for one in means)
    pooled = sum(((one - one.mean()) ** 2).sum() for one in means) / freedom
    return _estimate(pairs.ravel(), ways[m], pooled * sum(1 / len(one) for one in means), freedom)


def _estimate(differences: np.ndarray, ways: np.ndarray, variance: float, freedom: int) -> Ratio:
    """The median of the differences; those between which the statistic counted by `ways` stays likely, or Student's
    interval for sittings whose mean has this variance.
    """
    ordered = np.sort(differences)
    out = int((np.cumsum(ways) / ways.sum() <= (1 - CONFIDENCE) / 2).sum())
    if out == 0:
        raise ValueError(f"{len(differences)} differences are too few for an interval of {CONFIDENCE:.0%}")
    middle = float(np.median(ordered))
    reach = _student(freedom) * float(np.sqrt(variance))
    low, high = min(ordered[out - 1], middle - reach), max(ordered[len(ordered) - out], middle + reach)
    return Ratio(*(float(np.exp(value)) for value in (middle, low, high)))


@cache
def _student(freedom: int) -> float:
    """Within how many standard errors Student's t lies with the given confidence: t is a tangent, of density cos^n."""
    angles = np.linspace(0, np.pi / 2, 100_001)
    below = np.cumsum(np.cos(angles) ** (freedom - 1))
    return float(np.sqrt(freedom) * np.tan(np.interp(CONFIDENCE * below[-1], below, angles)))
