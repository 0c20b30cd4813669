"""Images that may be of several classes: what their predictions count to, the tables, and the folder of files.

A class counts as said where its probability is at least `THRESHOLD`. Every figure comes from whole numbers, but for the
average precision, which looks at the order of the probabilities alone.
"""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from residuum.errors import DataError
from residuum.evaluation.counts import THRESHOLD, Floats, Integers, Share, f1_score, ratio
from residuum.evaluation.predictions import Predictions
from residuum.evaluation.report import SHOWN, csv_text, interval_of, looked_at, of_all, percent, safe
from residuum.files import write_text
from residuum.report.page import Card, Page, Section, html
from residuum.report.tables import Table, print_table


@dataclass(frozen=True)
class LabelRow:
    """One class: its average precision, and precision, recall and F1 at the threshold. NaN where there is none."""

    name: str
    average_precision: float
    precision: float
    recall: float
    f1: float
    support: int
    predicted: int


@dataclass(frozen=True)
class SeveralCounts:
    """Of each class (classes,): images in which it is said and right, said, and there; and its average precision."""

    classes: tuple[str, ...]
    right: Integers
    said: Integers
    there: Integers
    average_precision: Floats
    exact: Share  # images of which every class is right
    loss: float  # mean binary cross-entropy of images and classes, in nats

    @property
    def mean_average_precision(self) -> float:
        """The mean over the classes that occur."""
        values = self.average_precision[~np.isnan(self.average_precision)]
        return float(values.mean()) if len(values) else float("nan")

    @property
    def micro_f1(self) -> float:
        """F1 of all classes of all images counted together."""
        return f1_score(int(self.right.sum()), int(self.said.sum()), int(self.there.sum()))

    @property
    def macro_f1(self) -> float:
        """The mean F1 of the classes that occur or are said."""
        values = [row.f1 for row in self.by_class() if not math.isnan(row.f1)]
        return sum(values) / len(values) if values else float("nan")

    def by_class(self) -> Iterator[LabelRow]:
        """A row a class, in the order of labels."""
        for i, name in enumerate(self.classes):
            right, said, there = int(self.right[i]), int(self.said[i]), int(self.there[i])
            yield LabelRow(
                name,
                float(self.average_precision[i]),
                ratio(right, said),
                ratio(right, there),
                f1_score(right, said, there),
                there,
                said,
            )


def count_several(classes: tuple[str, ...], labels: Integers, probabilities: Floats, losses: Floats) -> SeveralCounts:
    """Count probabilities (N, classes) against labels (N, classes) of zeros and ones; `losses` is each image's own."""
    there, said = labels.astype(bool), probabilities >= THRESHOLD
    precision = [average_precision(there[:, i], probabilities[:, i]) for i in range(len(classes))]
    return SeveralCounts(
        classes,
        (there & said).sum(0),
        said.sum(0),
        there.sum(0),
        np.array(precision),
        Share(int((there == said).all(1).sum()), len(labels)),
        float(losses.mean()),
    )


def average_precision(there: NDArray[np.bool_], scores: Floats) -> float:
    """The mean of the precision at each image that is of a class, as scikit-learn has it; NaN where none is.

    Images are ordered by their scores; those of one score count together.
    """
    if not there.any():
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(there[order])
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)  # of those of one score
    precision, recall = hits[last] / (last + 1), hits[last] / hits[-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


# -- what is shown and written -----------------------------------------------------------------------------------------


def figures(found: Predictions, counts: SeveralCounts) -> Table:
    """The figures of the whole set."""
    occurring = int((counts.there > 0).sum())
    rows = (
        ("mean average precision", percent(counts.mean_average_precision), "", f"of {occurring:,} classes"),
        ("micro F1", percent(counts.micro_f1), "", "classes together"),
        ("macro F1", percent(counts.macro_f1), "", "mean of classes"),
        ("all classes right", percent(counts.exact.value), interval_of(counts.exact), of_all(counts.exact)),
        ("loss", f"{counts.loss:.4f}", "", "binary cross-entropy"),
    )
    note = f"A class is said from a probability of {THRESHOLD:g} on. Intervals hold 95 % (Wilson). {found.about}"
    return Table(f"{found.source} on {found.data}", ("figure", "value", "interval", "of"), rows, note)


def class_table(counts: SeveralCounts, most: int | None = None) -> Table:
    """A row a class, least average precision first where not all are shown."""
    rows, note = list(counts.by_class()), ""
    if most is not None and len(rows) > most:
        note = f"The {most} of {len(rows)} classes with the least average precision; classes.csv has all."
        rows = sorted(rows, key=lambda row: (math.isnan(row.average_precision), row.average_precision))[:most]
    cells = tuple(
        (r.name, percent(r.average_precision), percent(r.precision), percent(r.recall), percent(r.f1), f"{r.support:,}")
        for r in rows
    )
    return Table("By class", ("class", "AP", "precision", "recall", "F1", "images"), cells, note)


def print_several(console: Console, found: Predictions, counts: SeveralCounts) -> None:
    """The tables in a terminal."""
    print_table(console, figures(found, counts))
    print_table(console, class_table(counts, SHOWN))


def write_several(folder: Path, found: Predictions, counts: SeveralCounts, command: str) -> None:
    """Write evaluation.html, evaluation.json, classes.csv and predictions.csv into a folder; raises `DataError`."""
    rows = [asdict(row) for row in counts.by_class()]
    table = [list(rows[0]), *([safe(row["name"]), *list(row.values())[1:]] for row in rows)]
    write_text(folder / "classes.csv", csv_text(table), DataError)
    write_text(folder / "predictions.csv", csv_text(_predictions(found)), DataError)
    write_text(folder / "evaluation.json", json.dumps(_summary(found, counts), indent=1) + "\n", DataError)
    cards = (
        Card("mean average precision", percent(counts.mean_average_precision), f"of {len(counts.classes)} classes"),
        Card("micro F1", percent(counts.micro_f1), "all classes of all images together"),
        Card("macro F1", percent(counts.macro_f1), "mean of the classes"),
        Card("all classes right", percent(counts.exact.value), f"{of_all(counts.exact)} images"),
    )
    page = Page(
        f"{found.source} on {found.data}", found.about, command, cards=cards,
        sections=(
            Section("Figures", tables=(figures(found, counts),)),
            Section("Classes", tables=(class_table(counts),)),
        ),
    )  # fmt: skip
    write_text(folder / "evaluation.html", html(page), DataError)


def _predictions(found: Predictions) -> Iterable[Sequence[Any]]:
    """An image a line: its classes, those that are said, its loss, and the probability of each class."""
    yield ["image", "labels", "predicted", "loss", *map(safe, found.classes)]
    for i, name in enumerate(found.images):
        chosen = (found.labels[i].astype(bool), found.probabilities[i] >= THRESHOLD)
        words = ["|".join(found.classes[c] for c in np.flatnonzero(classes)) for classes in chosen]
        yield [safe(name), *map(safe, words), f"{found.losses[i]:.6g}", *(f"{p:.6g}" for p in found.probabilities[i])]


def _summary(found: Predictions, counts: SeveralCounts) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        return None if isinstance(value, float) and math.isnan(value) else value

    return looked_at(found) | {
        "threshold": THRESHOLD,
        "mean_average_precision": plain(counts.mean_average_precision),
        "micro_f1": plain(counts.micro_f1),
        "macro_f1": plain(counts.macro_f1),
        "exact": {"hits": counts.exact.hits, "of": counts.exact.of},
        "loss": counts.loss,
        "classes": [{name: plain(value) for name, value in asdict(row).items()} for row in counts.by_class()],
    }
