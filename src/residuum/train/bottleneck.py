"""Where a run's time went, in words, and a sentence where it goes into waiting for data."""

from collections.abc import Mapping, Sequence
from typing import Any

from residuum.devices import usable_cores
from residuum.train.clock import STEP, waiting
from residuum.train.loggers import Callback, Snapshot, duration

WAITING = 0.2  # share of a step from which waiting for data is worth a sentence
LEAST_SECONDS = 5.0  # of steps before it is said; shorter ones are soon over

_WORDS = {
    "start": "starting", "data": "waiting for data", "forward": "forward", "backward": "backward", "step": "optimizer",
    "evaluate": "evaluation", "save": "saving", "other": "other",
}  # fmt: skip


def in_words(*parts: Mapping[str, float]) -> str:
    """`12 min: 3 % waiting for data, 30 % forward, ...` of seconds by phase; what rounds to nothing is left out."""
    seconds = {phase: sum(part.get(phase, 0.0) for part in parts) for phase in _WORDS}
    total = sum(seconds.values())
    shares = ((_WORDS[phase], 100 * seconds[phase] / total) for phase in _WORDS) if total else ()
    return f"{duration(total)}: {', '.join(f'{share:.0f} % {word}' for word, share in shares if share >= 0.5)}"


def of_rows(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds by phase of all these rows of `metrics.jsonl`."""
    return {phase: sum(row.get(f"seconds_{phase}", 0.0) for row in rows) for phase in _WORDS}


class WaitingForData(Callback):
    """Tells the other callbacks, once, when the loader holds up the network, and what to change.

    `workers` is None for images in memory, which the process prepares itself.
    """

    def __init__(self, others: Sequence[Callback], workers: int | None) -> None:
        self.others, self.workers, self.said = others, workers, False
        self.seconds: dict[str, float] = {}
        self.images = 0

    def look(self, snapshot: Snapshot) -> None:
        """Judge by the epoch so far."""
        if not self.said and sum(snapshot.seconds.get(phase, 0.0) for phase in STEP) >= LEAST_SECONDS:
            self._judge(snapshot.seconds, snapshot.images)

    def epoch(self, row: Mapping[str, Any], epochs: int) -> None:
        """Judge by all epochs so far."""
        for phase in STEP:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + row.get(f"seconds_{phase}", 0.0)
        self.images += round(row["images_per_second"] * row["seconds"])
        if not self.said and sum(self.seconds.values()) >= LEAST_SECONDS:
            self._judge(self.seconds, self.images)

    def _judge(self, seconds: Mapping[str, float], images: int) -> None:
        if waiting(seconds) > WAITING:
            self.said = True
            for callback in self.others:
                callback.say("waiting", held_up(seconds, images, self.workers, usable_cores()))


def held_up(seconds: Mapping[str, float], images: int, workers: int | None, cores: int) -> str:
    """A sentence: the share of waiting, what the loader gives, what the network could take, and what to change."""
    total = sum(seconds.get(phase, 0.0) for phase in STEP)
    data = seconds["data"]
    # Workers read while the network computes, and are never idle where they are waited for; else it goes by turns.
    given, could = images / (total if workers else data), images / max(total - data, 1e-9)
    share = f"{waiting(seconds):.0%} of a step is waiting for data"
    if workers:
        text = f"{share}: the loader gives {given:,.0f} images/s, and the network could take {could:,.0f}"
    else:
        text = f"{share}, by turns: the loader gives {given:,.0f} images/s, and then the network takes {could:,.0f}"
    if workers is None:
        return f"{text}; these images are in memory, and augmenting them is what takes the time"
    more = min(max(2 * workers, 2), cores)
    first = f"--workers {more} (now {workers}, for {cores} cores), or " if workers < more else ""
    return f"{text}; try {first}smaller images, which 'residuum data pack --size' makes: each is decoded whole"
