"""Who is told how a run goes: callbacks that receive numbers and never the state, and the one that writes to a console.

Numbers are read from the device by the loop, a few times a second, whoever listens.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from residuum.errors import shortened
from residuum.train.clock import waiting

LINE_EVERY = 60.0  # seconds between lines where there is no terminal
LONGEST = 2000  # characters of a line; paths may be long
LEAST_BAR, WIDEST_BAR = 3, 24  # columns of the bar


@dataclass(frozen=True)
class Beginning:
    """What a run begins with. `lines` say it in words, a topic to its text."""

    epochs: int
    steps: int  # of an epoch
    epoch: int  # finished ones
    step: int  # of this epoch, finished ones
    lines: Mapping[str, str]


@dataclass(frozen=True)
class Snapshot:
    """A run between two steps: finished epochs and steps, means over this epoch so far, recent speed, time left."""

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    accuracy: float  # 0 to 1
    images_per_second: float
    seconds_left: float  # of the whole run
    images: int  # of this epoch so far
    val_accuracy: float | None  # after the last epoch
    seconds: Mapping[str, float]  # of this epoch so far, by phase

    @property
    def waiting(self) -> float:
        """The share of this epoch's steps, 0 to 1, in which they waited for data."""
        return waiting(self.seconds)


class Callback:
    """Is told how a run goes; does nothing with it. To be inherited from."""

    def say(self, topic: str, text: str) -> None:
        """A sentence about a topic: `reading`, `left out`, `memory`, ..."""

    def begin(self, beginning: Beginning) -> None:
        """Everything is ready, the first step is next."""

    def look(self, snapshot: Snapshot) -> None:
        """A few steps have passed: at most a few times a second."""

    def evaluating(self, split: str, batch: int, batches: int) -> None:
        """So many of a split's batches have been looked at."""

    def epoch(self, row: Mapping[str, Any], epochs: int) -> None:
        """An epoch is done: its line of `metrics.jsonl`."""

    def saved(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """The state is saved with these rows, all of `metrics.jsonl`: no resuming goes back behind them."""

    def end(self) -> None:
        """Training is over, for whatever reason."""


class ConsoleLogger(Callback):
    """Writes to a console: a live bar on a terminal; elsewhere lines, at least one a minute while there is progress."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self.bar: Progress | None = None
        self.said = time.monotonic()

    def say(self, topic: str, text: str) -> None:
        """`topic      text`, on a line of its own."""
        self._line(f"{topic:<10} {text}")

    def _line(self, text: str) -> None:
        self.console.print(shortened(text, LONGEST), highlight=False, soft_wrap=True, markup=False)
        if not self.console.is_terminal:
            self.console.file.flush()  # a pipe would hold it back
        self.said = time.monotonic()

    def begin(self, beginning: Beginning) -> None:
        """The lines, then the bar where there is a terminal."""
        for topic, text in beginning.lines.items():
            self.say(topic, text)
        if not self.console.is_terminal:
            return
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[numbers]}", style="none"),
            console=self.console,
            transient=True,
        )
        done = beginning.epoch * beginning.steps + beginning.step
        self.task = self.bar.add_task(
            f"epoch {beginning.epoch + 1}/{beginning.epochs}",
            total=beginning.epochs * beginning.steps,
            completed=done,
            numbers="",
        )
        self.bar.start()

    def look(self, snapshot: Snapshot) -> None:
        """Moves the bar, or writes a line where the last one is a minute old."""
        if self.bar is not None:
            done = snapshot.epoch * snapshot.steps + snapshot.step
            at, width, numbers = bar_line(snapshot, self.console.width)
            column = self.bar.columns[1]
            assert isinstance(column, BarColumn)
            column.bar_width = width
            self.bar.update(self.task, completed=done, description=at, numbers=numbers)
        elif time.monotonic() - self.said >= LINE_EVERY:
            at = f"epoch {snapshot.epoch + 1}/{snapshot.epochs}, step {snapshot.step:,} of {snapshot.steps:,}"
            self._line(f"{at}: {', '.join(numbers_of(snapshot))} left")

    def evaluating(self, split: str, batch: int, batches: int) -> None:
        """Says how far evaluation is."""
        text = f"looking at {split}, batch {batch:,} of {batches:,}"
        if self.bar is not None:
            self.bar.update(self.task, numbers=text)
        elif time.monotonic() - self.said >= LINE_EVERY:
            self._line(text)

    def epoch(self, row: Mapping[str, Any], epochs: int) -> None:
        """One line for a finished epoch."""
        splits = [
            f"{split} loss {row[f'{split}_loss']:.3f}, {100 * row[f'{split}_accuracy']:4.1f} %"
            for split in ("train", "val")
            if f"{split}_loss" in row
        ]
        speed = f"{row['images_per_second']:,.0f} images/s"
        self._line(f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}  {'  '.join([*splits, speed])}")

    def end(self) -> None:
        """Takes the bar away."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


def numbers_of(snapshot: Snapshot) -> list[str]:
    """Loss and train accuracy, val accuracy so far, speed, share of waiting for data, time left of the whole run."""
    return [
        f"loss {snapshot.loss:.3f}, {100 * snapshot.accuracy:.1f} %",
        *([f"val {100 * snapshot.val_accuracy:.1f} %"] if snapshot.val_accuracy is not None else []),
        f"{snapshot.images_per_second:,.0f} images/s",
        f"data {100 * snapshot.waiting:.0f} %",
        duration(snapshot.seconds_left),
    ]


def bar_line(snapshot: Snapshot, width: int) -> tuple[str, int, str]:
    """What stands left of a progress bar, the bar's width, and what stands right of it, in so many columns.

    The narrower the terminal the shorter the words; the bar takes what is left, up to 24 columns.
    """
    at = f"{snapshot.epoch + 1}/{snapshot.epochs}"
    loss, *middle, left = numbers_of(snapshot)
    short = f"loss {snapshot.loss:.2f}"
    step = f"step {snapshot.step:,}/{snapshot.steps:,}"
    abrupt = [words.replace(" images/s", "/s") for words in middle]
    for before, after in (
        (f"epoch {at}", f"{step}  {'  '.join([loss, *middle, left])} left"),
        (f"epoch {at}", f"{'  '.join([loss, *middle, left])} left"),
        (f"epoch {at}", "  ".join([short, *middle, left])),
        (f"epoch {at}", "  ".join([short, *abrupt, left])),
        (at, " ".join([short, *abrupt, left])),
        (at, " ".join([short, left])),
    ):
        room = width - len(before) - len(after) - 2  # a space between two of them
        if room >= LEAST_BAR:
            break
    return before, max(1, min(room, WIDEST_BAR)), after


def duration(seconds: float) -> str:
    """Seconds as people say them: 45 s, 12 min, 3 h 20 min."""
    minutes = round(seconds / 60)
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
