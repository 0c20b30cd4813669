"""What predictions count to: whole numbers first, every share from them. Numpy alone.

Each image counts once. Nothing here is an average of averages, so how images were batched or split over processes
changes nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
TOP = 5
THRESHOLD = 0.5  # probability from which on a class is said, where an image may be of several
BINS = 15  # of confidence, as in 1706.04599


@dataclass(frozen=True)
class Share:
    """So many of so many, with Wilson's interval (doi 10.1080/01621459.1927.10502953) of 95 %."""

    hits: int
    of: int

    @property
    def value(self) -> float:
        """The share, 0 to 1; NaN of nothing."""
        return self.hits / self.of if self.of else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """Its low and high end; all there is where nothing was counted."""
        if not self.of:
            return 0.0, 1.0
        z = NormalDist().inv_cdf(0.975)
        n, p = self.of, self.value
        middle, reach = p + z * z / (2 * n), z * ((p * (1 - p) + z * z / (4 * n)) / n) ** 0.5
        low, high = (middle - reach) / (1 + z * z / n), (middle + reach) / (1 + z * z / n)
        # At the ends the exact values are 0 and 1, which rounding misses.
        return 0.0 if self.hits == 0 else low, 1.0 if self.hits == self.of else high


@dataclass(frozen=True)
class ClassRow:
    """One class: how often it is right where it is said, and said where it is right. NaN where that is never."""

    name: str
    precision: float
    recall: float
    f1: float
    support: int
    predicted: int


@dataclass(frozen=True)
class Bin:
    """Images whose confidence lies in (low, high]: how many, how many right, their mean confidence."""

    low: float
    high: float
    count: int
    correct: int
    confidence: float


@dataclass(frozen=True)
class Counts:
    """What the predictions of a labelled set count to. `confusion` is (true class, predicted class)."""

    classes: tuple[str, ...]
    confusion: Integers
    top: Share  # of the first five classes
    loss: float  # mean cross-entropy, in nats
    bins: tuple[Bin, ...]

    @property
    def accuracy(self) -> Share:
        """Top-1: how many are right."""
        return Share(int(np.trace(self.confusion)), int(self.confusion.sum()))

    @property
    def balanced_accuracy(self) -> float:
        """The mean recall of the classes that occur."""
        return float(np.mean([row.recall for row in self.by_class() if row.support]))

    @property
    def calibration_error(self) -> float:
        """Expected calibration error, 0 to 1 (1706.04599): how far confidence is from accuracy, over the bins."""
        count = sum(b.count for b in self.bins)
        return sum(abs(b.correct - b.count * b.confidence) for b in self.bins) / count if count else float("nan")

    def by_class(self) -> Iterator[ClassRow]:
        """A row a class, in the order of labels."""
        support, predicted = self.confusion.sum(1), self.confusion.sum(0)
        for i, name in enumerate(self.classes):
            right, said, there = int(self.confusion[i, i]), int(predicted[i]), int(support[i])
            yield ClassRow(name, ratio(right, said), ratio(right, there), f1_score(right, said, there), there, said)

    def confused(self, most: int = 20) -> list[tuple[str, str, int]]:
        """The pairs of (true class, predicted class) that are mistaken most often, with how often."""
        wrong = self.confusion - np.diag(np.diag(self.confusion))
        order = np.argsort(-wrong, axis=None, kind="stable")[:most]
        pairs = ((int(i) // len(self.classes), int(i) % len(self.classes)) for i in order)
        return [(self.classes[a], self.classes[b], int(wrong[a, b])) for a, b in pairs if wrong[a, b]]


def ratio(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


def f1_score(right: int, said: int, there: int) -> float:
    """The harmonic mean of precision and recall; NaN where neither is."""
    return ratio(2 * right, said + there)


def count(classes: tuple[str, ...], labels: Integers, probabilities: Floats, losses: Floats) -> Counts:
    """Count (N, classes) probabilities against the labels (N,) of the images; `losses` is each image's own."""
    ranked = ranking(probabilities)
    first = ranked[:, 0]
    confusion = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(confusion, (labels, first), 1)
    hits = int((ranked[:, :TOP] == labels[:, None]).any(1).sum())
    confidence = probabilities[np.arange(len(labels)), first]
    return Counts(
        classes, confusion, Share(hits, len(labels)), float(losses.mean()), _bins(confidence, first == labels)
    )


def ranking(probabilities: Floats) -> Integers:
    """The classes of each image, likeliest first, (N, at most 5); of equal ones the lower label comes first."""
    return np.argsort(-probabilities, axis=1, kind="stable")[:, :TOP]


def _bins(confidence: Floats, right: NDArray[np.bool_]) -> tuple[Bin, ...]:
    edges = np.linspace(0, 1, BINS + 1)
    place = np.clip(np.digitize(confidence, edges, right=True) - 1, 0, BINS - 1)
    rows = []
    for i in range(BINS):
        inside = place == i
        n = int(inside.sum())
        mean = float(confidence[inside].mean()) if n else 0.0
        rows.append(Bin(float(edges[i]), float(edges[i + 1]), n, int(right[inside].sum()), mean))
    return tuple(rows)


@dataclass(frozen=True)
class Paired:
    """Two networks on the same images: how often both are right, one alone is, none is; McNemar's exact p."""

    both: int
    first_alone: int
    second_alone: int
    neither: int

    @property
    def difference(self) -> float:
        """The second's accuracy less the first's."""
        return (self.second_alone - self.first_alone) / (
            self.both + self.first_alone + self.second_alone + self.neither
        )

    @property
    def p(self) -> float:
        """The probability of so uneven a split of the images on which they differ, if both were equally good."""
        from residuum.extras import need

        stats = need("scipy.stats", extra="stats")
        differing = self.first_alone + self.second_alone
        return float(stats.binomtest(self.first_alone, differing).pvalue) if differing else 1.0

    @property
    def interval(self) -> tuple[float, float]:
        """Of the difference, 95 %: Newcombe's square-and-add for pairs (doi 10.1002/(SICI)1097-0258(19981130)17:22)."""
        n = self.both + self.first_alone + self.second_alone + self.neither
        first, second = Share(self.both + self.first_alone, n), Share(self.both + self.second_alone, n)
        phi = self._correlation()
        (l1, u1), (l2, u2) = second.interval, first.interval
        p1, p2 = second.value, first.value
        low = ((p1 - l1) ** 2 - 2 * phi * (p1 - l1) * (u2 - p2) + (u2 - p2) ** 2) ** 0.5
        high = ((u1 - p1) ** 2 - 2 * phi * (u1 - p1) * (p2 - l2) + (p2 - l2) ** 2) ** 0.5
        return self.difference - low, self.difference + high

    def _correlation(self) -> float:
        a, b, c, d = self.both, self.second_alone, self.first_alone, self.neither
        product = (a + b) * (c + d) * (a + c) * (b + d)
        return (a * d - b * c) / product**0.5 if product else 0.0


def pair(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> Paired:
    """Compare which images (N,) each of two networks has right."""
    sides = (first & second, first & ~second, ~first & second, ~first & ~second)
    return Paired(*(int(side.sum()) for side in sides))
