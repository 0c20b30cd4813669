"""Ratios of speeds with their intervals, from repetition to repetition.

A repetition is a set of new processes. Rounds within one share its luck: where the memory lies, how the heap has grown,
what else the machine does. So each repetition counts as one observation, the mean of its rounds' log ratios, and the
interval is Student's on these.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from residuum.errors import MissingExtraError
from residuum.extras import install

try:
    from scipy.stats import t
except ImportError:
    raise MissingExtraError(
        f"a comparison needs scipy, which is not installed; install it with: {install('bench')}"
    ) from None

CONFIDENCE = 0.95
LEAST_REPETITIONS = 2  # one alone does not show how far apart two of them are
Times = Sequence[Sequence[float]]  # seconds of a step, by repetition and round


@dataclass(frozen=True)
class Ratio:
    """How many times as fast: the estimate, and the ends of its interval of 95 %."""

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
        return f"noise ±{100 * self.noise:.1f} %"

    @property
    def noise(self) -> float:
        """Half the width of the interval, as a share."""
        return (self.high - self.low) / 2


def paired(mine: Times, theirs: Times) -> Ratio:
    """Speed of the first over that of the second, from the times of both in the same repetitions and rounds.

    Student's interval of the repetitions' mean log ratios. Raises `ValueError` for fewer than `LEAST_REPETITIONS`.
    """
    ratios = np.array([np.mean(np.log(b) - np.log(a)) for a, b in zip(mine, theirs, strict=True)])
    _enough(len(ratios))
    return _ratio(float(ratios.mean()), float(ratios.var(ddof=1)) / len(ratios), len(ratios) - 1)


def unpaired(mine: Times, theirs: Times) -> Ratio:
    """Speed of the first over that of the second, from times of separate runs, of the same spread.

    Student's interval of the difference of the repetitions' mean logarithms. Raises `ValueError` for fewer than
    `LEAST_REPETITIONS` in either.
    """
    ours, others = (np.array([np.mean(np.log(times)) for times in one]) for one in (mine, theirs))
    _enough(min(len(ours), len(others)))
    freedom = len(ours) + len(others) - 2
    squares = sum(float(((one - one.mean()) ** 2).sum()) for one in (ours, others))
    variance = squares / freedom * (1 / len(ours) + 1 / len(others))
    return _ratio(float(others.mean() - ours.mean()), variance, freedom)


def _enough(repetitions: int) -> None:
    if repetitions < LEAST_REPETITIONS:
        raise ValueError(f"{repetitions} repetition(s) give no interval; it takes {LEAST_REPETITIONS}")


def _ratio(middle: float, variance: float, freedom: int) -> Ratio:
    reach = float(t.ppf((1 + CONFIDENCE) / 2, freedom)) * variance**0.5
    return Ratio(*(float(np.exp(value)) for value in (middle, middle - reach, middle + reach)))
