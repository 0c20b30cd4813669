"""What an evaluation leaves: a table in the terminal, and a folder with a page, pictures and files for other programs.

evaluation.html        the whole of it as one page
evaluation.json        every count and share
predictions.csv        an image a line: path, true class, the likeliest five with their probabilities, loss
classes.csv            a class a line: precision, recall, F1, support
confusion.csv          rows are true classes, columns predicted ones
confusion.png          the same as a picture
worst.png              the images on which the network was most wrong
"""

import csv
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from residuum.errors import DataError, shortened
from residuum.evaluation.counts import TOP, Counts, Paired, Share, ranking
from residuum.evaluation.predictions import Predictions
from residuum.files import write_text, write_whole
from residuum.report.charts import Bar, bar_chart
from residuum.report.page import Card, Page, Section, html
from residuum.report.pictures import Picture, draw_sheet, words
from residuum.report.tables import Judged, Table, print_table

SHOWN = 40  # classes in a terminal's table and on the page's chart
WORST = 24  # images on the sheet
Image = Callable[[int], NDArray[np.uint8]]  # (H, W, 3) of the image at a place


def percent(value: float) -> str:
    """A share as people write it; `-` where there is none."""
    return "-" if math.isnan(value) else f"{100 * value:.2f} %"


def interval_of(share: Share) -> str:
    """Wilson's interval, in percent."""
    low, high = share.interval
    return f"{100 * low:.2f} to {100 * high:.2f} %"


def overall(found: Predictions, counts: Counts) -> Table:
    """The figures of the whole set."""
    rows = [
        ("top-1 accuracy", percent(counts.accuracy.value), interval_of(counts.accuracy), of_all(counts.accuracy)),
        *(
            [(f"top-{TOP} accuracy", percent(counts.top.value), interval_of(counts.top), of_all(counts.top))]
            if len(counts.classes) > TOP
            else []
        ),
        ("balanced accuracy", percent(counts.balanced_accuracy), "", "mean recall of the classes"),
        ("loss", f"{counts.loss:.4f}", "", "mean cross-entropy, nats"),
        ("calibration error", percent(counts.calibration_error), "", f"expected, {len(counts.bins)} bins"),
    ]
    note = f"Intervals hold 95 % (Wilson). {found.about}"
    return Table(f"{found.source} on {found.data}", ("figure", "value", "interval", "of"), tuple(rows), note)


def of_all(share: Share) -> str:
    """How many of how many."""
    return f"{share.hits:,} of {share.of:,}"


def by_class(counts: Counts, most: int | None = None) -> Table:
    """A row a class, worst F1 first where not all are shown."""
    rows = list(counts.by_class())
    note = ""
    if most is not None and len(rows) > most:
        note = f"The {most} of {len(rows)} classes with the least F1; classes.csv has all."
        rows = sorted(rows, key=lambda row: (math.isnan(row.f1), row.f1))[:most]
    cells = tuple((r.name, percent(r.precision), percent(r.recall), percent(r.f1), f"{r.support:,}") for r in rows)
    return Table("By class", ("class", "precision", "recall", "F1", "images"), cells, note)


def mistakes(counts: Counts) -> Table:
    """The mistakes that are made most often."""
    rows = tuple((true, said, f"{n:,}") for true, said, n in counts.confused())
    return Table("Most frequent mistakes", ("true class", "predicted", "images"), rows)


def paired_table(first: Predictions, second: Predictions, pair: Paired) -> Table:
    """Two networks on the same images."""
    low, high = pair.interval
    if low > 0 or high < 0:
        verdict = Judged("better" if pair.difference > 0 else "worse", "better" if pair.difference > 0 else "worse")
    else:
        verdict = Judged("not resolved", "noise")
    rows = (
        ("both right", f"{pair.both:,}", ""),
        (f"only {first.source} right", f"{pair.first_alone:,}", ""),
        (f"only {second.source} right", f"{pair.second_alone:,}", ""),
        ("neither right", f"{pair.neither:,}", ""),
        ("difference", f"{100 * pair.difference:+.2f} points", verdict),
        ("interval", f"{100 * low:+.2f} to {100 * high:+.2f}", ""),
        ("McNemar's p", f"{pair.p:.3g}", ""),
    )
    note = f"The difference is {second.source} less {first.source}, on the same images; its interval holds 95 %."
    return Table(f"{second.source} against {first.source}", ("images", "count", "verdict"), rows, note)


def print_evaluation(console: Console, found: Predictions, counts: Counts) -> None:
    """The tables in a terminal."""
    print_table(console, overall(found, counts))
    print_table(console, by_class(counts, SHOWN))
    if counts.confused():
        print_table(console, mistakes(counts))


def write_folder(folder: Path, found: Predictions, counts: Counts, image: Image, command: str) -> None:
    """Write everything that the module's first lines list into a folder that is there; raises `DataError`."""
    write_text(folder / "predictions.csv", csv_text(predictions_rows(found)), DataError)
    names = ("class", "precision", "recall", "f1", "support", "predicted")
    rows = ([safe(row.name), *list(asdict(row).values())[1:]] for row in counts.by_class())
    write_text(folder / "classes.csv", csv_text([names, *rows]), DataError)
    table = [["true \\ predicted", *map(safe, counts.classes)]]
    table += [[safe(name), *row] for name, row in zip(counts.classes, counts.confusion.tolist(), strict=True)]
    write_text(folder / "confusion.csv", csv_text(table), DataError)
    write_text(folder / "evaluation.json", json.dumps(summary(found, counts), indent=1) + "\n", DataError)
    draw_confusion(counts, folder / "confusion.png")
    draw_worst(found, image, folder / "worst.png")
    write_text(folder / "evaluation.html", html(page(found, counts, command)), DataError)


def csv_text(rows: Iterable[Sequence[Any]]) -> str:
    """Rows as the text of a CSV file."""
    file = StringIO()
    csv.writer(file, lineterminator="\n").writerows(rows)
    return file.getvalue()


def safe(text: str) -> str:
    """A name that a spreadsheet takes for a name and UTF-8 can hold."""
    clean = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return f"'{clean}" if clean.startswith(("=", "+", "-", "@")) else clean


def predictions_rows(found: Predictions) -> Iterable[Sequence[Any]]:
    """The lines of predictions.csv, its heading first."""
    count = min(TOP, len(found.classes))
    heading = [column for i in range(1, count + 1) for column in (f"class{i}", f"probability{i}")]
    yield ["image", "label", *heading, "loss"]
    for i, best in enumerate(ranking(found.probabilities)):
        said = [value for c in best for value in (safe(found.classes[c]), f"{found.probabilities[i, c]:.6g}")]
        yield [safe(found.images[i]), safe(found.classes[found.labels[i]]), *said, f"{found.losses[i]:.6g}"]


def looked_at(found: Predictions) -> dict[str, Any]:
    """What was evaluated on what, and how, as JSON says it."""
    return {
        "network": found.source,
        "data": found.data,
        "split": found.split,
        "weights_sha256": found.weights or None,
        "mirrored": found.mirrored,
        "about": found.about,
        "skipped": list(found.skipped),
    }


def summary(found: Predictions, counts: Counts) -> dict[str, Any]:
    """Everything that was counted, as JSON says it; what is no number is null."""

    def plain(value: Any) -> Any:
        return None if isinstance(value, float) and math.isnan(value) else value

    def share(value: Share) -> dict[str, Any]:
        return {"hits": value.hits, "of": value.of, "value": plain(value.value), "interval": list(value.interval)}

    return looked_at(found) | {
        "images_per_second": plain(found.images_per_second),
        "top1": share(counts.accuracy),
        f"top{TOP}": share(counts.top),
        "balanced_accuracy": plain(counts.balanced_accuracy),
        "loss": plain(counts.loss),
        "expected_calibration_error": plain(counts.calibration_error),
        "classes": [{name: plain(value) for name, value in asdict(row).items()} for row in counts.by_class()],
        "bins": [asdict(b) for b in counts.bins],
        "confusion": counts.confusion.tolist(),
    }


def page(found: Predictions, counts: Counts, command: str) -> Page:
    """The page of an evaluation."""
    accuracy = counts.accuracy
    cards = [
        Card("top-1 accuracy", percent(accuracy.value), f"{of_all(accuracy)} images, 95 %: {interval_of(accuracy)}"),
        Card("loss", f"{counts.loss:.3f}", "mean cross-entropy, nats"),
        Card("calibration error", percent(counts.calibration_error), "expected, of confidence against accuracy"),
    ]
    if len(counts.classes) > TOP:
        cards.insert(1, Card(f"top-{TOP} accuracy", percent(counts.top.value), f"{of_all(counts.top)} images"))
    rows = sorted((r for r in counts.by_class() if r.support), key=lambda row: row.recall)[:SHOWN]
    bars = [
        Bar(row.name, 100 * row.recall, _percents(Share(round(row.recall * row.support), row.support)),
            f"{100 * row.recall:.1f} of {row.support:,}", "#0a7cc2")
        for row in rows
    ]  # fmt: skip
    recall = bar_chart(
        "Recall by class, least first", bars, unit="recall (%)", labels="%, of images",
        description=f"Recall of {len(bars)} classes with intervals of 95 %; {rows[0].name} has the least.",
    )  # fmt: skip
    filled = [b for b in counts.bins if b.count]
    steps = [
        Bar(f"{b.low:.2f} to {b.high:.2f}", 100 * b.correct / b.count, _percents(Share(b.correct, b.count)),
            f"said {100 * b.confidence:.1f}, {b.count:,}", "#0a9a73")
        for b in filled
    ]  # fmt: skip
    calibration = bar_chart(
        "Accuracy by confidence", steps, unit="accuracy (%)", labels="mean confidence, images",
        description="Accuracy in each range of confidence; a calibrated network's bars end where it says.",
    )  # fmt: skip
    return Page(
        f"{found.source} on {found.data}", found.about, command, cards=tuple(cards),
        sections=(
            Section("Figures", tables=(overall(found, counts),)),
            Section("Classes", charts=(recall, calibration), tables=(by_class(counts), mistakes(counts))),
        ),
    )  # fmt: skip


def _percents(share: Share) -> tuple[float, float]:
    low, high = share.interval
    return 100 * low, 100 * high


def draw_confusion(counts: Counts, path: Path) -> None:
    """The confusion matrix as a picture: each row as shares of its true class; numbers where there is room."""
    from matplotlib.figure import Figure

    n = len(counts.classes)
    side = min(max(4.0, 0.5 * n + 2), 14)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    shares = counts.confusion / np.maximum(counts.confusion.sum(1, keepdims=True), 1)
    picture = axes.imshow(100 * shares, cmap="Blues", vmin=0, vmax=100)
    few = n <= 40
    if few:
        names = [shortened(name, 18).replace("$", r"\$") for name in counts.classes]
        axes.set_xticks(range(n), names, rotation=60, ha="right", rotation_mode="anchor", fontsize=8)
        axes.set_yticks(range(n), names, fontsize=8)
    if n <= 20:
        for i in range(n):
            for j in range(n):
                if counts.confusion[i, j]:
                    colour = "white" if shares[i, j] > 0.5 else "#14181f"
                    axes.text(j, i, f"{counts.confusion[i, j]}", ha="center", va="center", fontsize=7, color=colour)
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.spines[:].set_visible(False)
    figure.colorbar(picture, ax=axes, shrink=0.7, label="% of the true class")
    write_whole(path, lambda partial: figure.savefig(partial, dpi=130, bbox_inches="tight"), DataError)


def draw_worst(found: Predictions, image: Image, path: Path) -> None:
    """The wrong images with the largest loss, with what they are, what they were taken for and how surely."""
    first = found.probabilities.argmax(1)
    wrong = [int(i) for i in np.argsort(-found.losses, kind="stable") if first[i] != found.labels[i]][:WORST]
    pictures = []
    for i in wrong:
        true, said = (words(found.classes[c], 22) for c in (found.labels[i], first[i]))
        pictures.append(Picture(image(i), f"{true}\nnot {said} ({100 * found.probabilities[i, first[i]]:.0f} %)"))
    title = "the most wrong predictions" if wrong else "no prediction is wrong"
    draw_sheet(pictures, title, path, DataError, columns=6)
