"""How predictions and features are written: for people, as lines, CSV, JSON, JSON lines, and as arrays of numpy."""

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.text import Text

from residuum.cli.console import say, say_fields, visible
from residuum.errors import ConfigError, DataError, quoted
from residuum.files import write_whole
from residuum.inference.predict import Embedding, Prediction

Format = Literal["auto", "table", "lines", "csv", "json", "jsonl"]
ENDINGS = {".csv": "csv", ".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl"}
ARRAYS = (".npz", ".npy", ".csv")
SHOWN_EVERY = 0.5  # seconds between two looks of the progress bar


def chosen_format(asked: Format, out: Path | None, console: Console) -> str:
    """What `auto` is: by the ending of a file, a table on a terminal, lines in a pipe."""
    if asked != "auto":
        return asked
    if out is not None:
        return ENDINGS.get(out.suffix.lower(), "lines")
    return "table" if console.is_terminal else "lines"


def write_predictions(predictions: Iterable[Prediction], how: str, console: Console) -> None:
    """Write each prediction as soon as it is there, and see to it that whoever reads a pipe sees it now."""
    file = console.file
    begin, one, end = _FORMATS[how](console)
    file.write(begin)
    try:
        for prediction in predictions:
            one(prediction)
            file.flush()
    finally:
        file.write(end)  # a document that was broken off is still one


def _lines(console: Console) -> tuple[str, Callable[[Prediction], None], str]:
    def one(prediction: Prediction) -> None:
        for name, probability in prediction.classes:
            say_fields(console, prediction.path, name, f"{probability:.4f}")

    return "", one, ""


def _table(console: Console) -> tuple[str, Callable[[Prediction], None], str]:
    def one(prediction: Prediction) -> None:
        say(console, Text(visible(prediction.path, console), "bold"))
        if not prediction.classes:
            say(console, "  cannot be read" if prediction.error else "  none of the classes")
        for name, probability in prediction.classes:
            say(console, f"{100 * probability:7.1f} %  ", name)

    return "", one, ""


def _csv(console: Console) -> tuple[str, Callable[[Prediction], None], str]:
    writer = csv.writer(console.file, lineterminator="\n")

    def one(prediction: Prediction) -> None:
        for name, probability in prediction.classes:
            writer.writerow([prediction.path, name, f"{probability:.6g}", ""])
        if not prediction.classes:
            writer.writerow([prediction.path, "", "", prediction.error or ""])

    return "image,class,probability,error\n", one, ""


def _json_lines(console: Console) -> tuple[str, Callable[[Prediction], None], str]:
    return "", lambda prediction: _put(console, json.dumps(_plain(prediction)) + "\n"), ""


def _json(console: Console) -> tuple[str, Callable[[Prediction], None], str]:
    before = "\n"

    def one(prediction: Prediction) -> None:
        nonlocal before
        _put(console, before + json.dumps(_plain(prediction)))
        before = ",\n"

    return "[", one, "\n]\n"


_FORMATS = {"lines": _lines, "table": _table, "csv": _csv, "json": _json, "jsonl": _json_lines}


def _put(console: Console, text: str) -> None:
    console.file.write(text)


def _plain(prediction: Prediction) -> dict[str, Any]:
    classes = [{"class": name, "probability": float(f"{p:.6g}")} for name, p in prediction.classes]
    return {"image": prediction.path, "classes": classes, "error": prediction.error}


def write_predictions_file(predictions: Iterable[Prediction], how: str, out: Path) -> None:
    """Write predictions to a file that is whole or not there; raises `DataError` where it cannot be written."""

    def write(partial: Path) -> None:
        with partial.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            console = Console(file=file, markup=False, emoji=False, highlight=False, no_color=True)
            write_predictions(predictions, how, console)

    write_whole(out, write, DataError)


def check_features_file(path: Path) -> None:
    """Raise `ConfigError` for a file of another ending."""
    if path.suffix.lower() not in ARRAYS:
        endings = f"{', '.join(ARRAYS[:-1])} or {ARRAYS[-1]}"
        raise ConfigError(f"features go into a file that ends in {endings}, not into {quoted(str(path))}")


def write_features(embeddings: Iterable[Embedding], out: Path) -> None:
    """Write features with the images' names: arrays `images` (N,) and `features` (N, F), or a line of CSV for each.

    Images that could not be read are left out. A .npy file has the features alone, (N, F), a row for each image that
    was given; it has no names, so an image that cannot be read is an error there. Raises `DataError` where the file
    cannot be written or no image is left.
    """
    import numpy as np

    ending = out.suffix.lower()

    def readable() -> Iterator[tuple[str, Any]]:
        some = False
        for embedding in embeddings:
            if embedding.features is not None:
                some = True
                yield embedding.path, embedding.features
            elif ending == ".npy":
                raise DataError(
                    f"{embedding.error}; a .npy file has no names to say which rows are left: take .npz or .csv"
                )
        if not some:
            raise DataError("no image could be read, so that there are no features to write")

    def as_lines(partial: Path) -> None:
        with partial.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            for number, (path, features) in enumerate(readable()):
                if not number:
                    writer.writerow(["image", *(f"feature{i}" for i in range(len(features)))])
                writer.writerow([path, *(f"{value:.9g}" for value in features.tolist())])

    def as_arrays(partial: Path) -> None:
        every = list(readable())
        with partial.open("wb") as file:
            features = np.stack([f for _, f in every])
            if ending == ".npy":
                np.save(file, features)
            else:
                np.savez(file, images=np.array([p for p, _ in every]), features=features)

    write_whole(out, as_lines if ending == ".csv" else as_arrays, DataError)


class Watched:
    """Predictions on their way: standard error says which images are bad and, on a terminal, how far it has come."""

    def __init__(self, errors: Console, total: int | None, *, bar: bool) -> None:
        self.errors, self.total, self.bar = errors, total, bar
        self.seen = self.bad = 0

    def __call__(self, answers: Iterable[Any]) -> Iterator[Any]:
        with self._shown() as step:
            for answer in answers:
                self.seen += 1
                if answer.error is not None:
                    self.bad += 1
                    say(self.errors, "left out: ", answer.error)
                yield answer
                step()

    @contextmanager
    def _shown(self) -> Iterator[Callable[[], None]]:
        if not self.bar:
            yield lambda: None
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

        columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self.errors, transient=True, refresh_per_second=1 / SHOWN_EVERY) as progress:
            task = progress.add_task("images", total=self.total)
            yield lambda: progress.advance(task)
