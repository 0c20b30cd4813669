"""Who is told how a run goes: callbacks that receive numbers and never the state, and the one that writes to a console.

Numbers are read from the device by the loop, a few times a second, whoever listens.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from residuum.errors import shortened

LINE_EVERY = 60.0  # seconds between lines where there is no terminal
LONGEST = 2000  # characters of a line; paths may be long


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
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
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
        at = f"epoch {snapshot.epoch + 1}/{snapshot.epochs}"
        numbers = (
            f"loss {snapshot.loss:.3f}, {100 * snapshot.accuracy:.1f} %, {snapshot.images_per_second:,.0f} images/s, "
            f"{duration(snapshot.seconds_left)} left"
        )
        if self.bar is not None:
            done = snapshot.epoch * snapshot.steps + snapshot.step
            self.bar.update(self.task, completed=done, description=at, numbers=numbers)
        elif time.monotonic() - self.said >= LINE_EVERY:
            self._line(f"{at}, step {snapshot.step:,} of {snapshot.steps:,}: {numbers}")

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


def duration(seconds: float) -> str:
    """Seconds as people say them: 45 s, 12 min, 3 h 20 min."""
    minutes = round(seconds / 60)
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
