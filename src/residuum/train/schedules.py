"""How the learning rate moves through a run: plain functions of the step, as shares of the peak, from 0 to 1.

`step` counts from 0 to `total` - 1. `warmup` is the number of steps of a straight rise from `start` to the peak, which
all of them begin with; `end` is where they end. `first` is the step at which one of them begins to fall.
"""

import math
from collections.abc import Sequence


def cosine(step: int, total: int, *, warmup: int = 0, start: float = 0.0, end: float = 0.0) -> float:
    """Half a cosine from the peak down to `end` (1608.03983)."""
    if step < warmup:
        return _rise(step, warmup, start)
    return end + (1 - end) * ((1 + math.cos(math.pi * _fallen(step, total, warmup))) / 2)


def linear(step: int, total: int, *, warmup: int = 0, start: float = 0.0, end: float = 0.0) -> float:
    """A straight line from the peak down to `end`."""
    return _rise(step, warmup, start) if step < warmup else 1 - (1 - end) * _fallen(step, total, warmup)


def triangle(step: int, total: int, *, peak: int, start: float = 0.0, end: float = 0.0) -> float:
    """One cycle (1708.07120): straight up to the peak, which step `peak` has, and straight down."""
    if step < peak:
        return start + (1 - start) * step / peak
    return 1 - (1 - end) * _fallen(step, total, peak)


def steps(
    step: int,
    total: int,
    *,
    milestones: Sequence[int],
    factor: float = 0.1,
    warmup: int = 0,
    start: float = 0.0,
    end: float = 0.0,
) -> float:
    """The peak, times `factor` from each of the `milestones` on (1512.03385), never below `end`."""
    if step < warmup:
        return _rise(step, warmup, start)
    return max(factor ** sum(step >= milestone for milestone in milestones), end)


def constant(step: int, total: int, *, warmup: int = 0, start: float = 0.0) -> float:
    """The peak."""
    return _rise(step, warmup, start) if step < warmup else 1.0


def steps_of(length: float, total: int, epochs: int) -> int:
    """A length of time in steps of a run: below 1 it is a share of the run, from 1 on a number of epochs."""
    return round(length * total) if length < 1 else round(length * total / epochs)


def _rise(step: int, warmup: int, start: float) -> float:
    """The first step is above `start`, the last at the peak: none is lost at a rate of 0."""
    return start + (1 - start) * ((step + 1) / warmup)


def _fallen(step: int, total: int, first: int) -> float:
    return (step - first) / max(total - first, 1)
