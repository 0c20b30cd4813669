"""Ratios of speeds with intervals that assume no distribution: Hodges and Lehmann's estimates, exact tests inverted."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95
LEAST_ROUNDS = 6  # of fewer, even when all say the same, no interval has that confidence


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


def paired(mine: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """Speed of the first over that of the second, from the times of both in the same rounds.

    The median of all averages of two rounds' log ratios; the interval holds what Wilcoxon's signed-rank test does not
    refuse (Hodges and Lehmann 1963). At least `LEAST_ROUNDS` rounds.
    """
    logs = np.log(theirs) - np.log(mine)
    first, second = np.triu_indices(len(logs))
    ways = np.ones(1)  # of the ranks 1 to n to add up to each sum
    for rank in range(1, len(logs) + 1):
        ways = np.append(ways, np.zeros(rank)) + np.append(np.zeros(rank), ways)
    return _estimate((logs[first] + logs[second]) / 2, ways)


def unpaired(mine: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """Speed of the first over that of the second, from times of separate runs.

    The median of all pairs' log ratios; the interval is that of the rank-sum test (Mann and Whitney 1947).
    """
    pairs = np.log(theirs)[:, None] - np.log(mine)[None, :]
    n, m = pairs.shape
    ways = np.zeros((m + 1, n * m + 1))  # of m values among n others to win j pairs
    ways[0, 0] = 1
    for below in range(n + 1):  # how many of the n others a value stands above
        for chosen in range(m):
            ways[chosen + 1, below:] += ways[chosen, : n * m + 1 - below]
    return _estimate(pairs.ravel(), ways[m])


def _estimate(differences: np.ndarray, ways: np.ndarray) -> Ratio:
    """The median of the differences, and those between which the statistic counted by `ways` stays likely."""
    ordered = np.sort(differences)
    out = int((np.cumsum(ways) / ways.sum() <= (1 - CONFIDENCE) / 2).sum())
    if out == 0:
        raise ValueError(f"{len(differences)} differences are too few for an interval of {CONFIDENCE:.0%}")
    low, high = ordered[out - 1], ordered[len(ordered) - out]
    return Ratio(*(float(np.exp(value)) for value in (np.median(ordered), low, high)))
