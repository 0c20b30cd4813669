"""Where the time of a run goes: waiting for data, forward and backward pass, optimizer, evaluation, saving.

A clock is a stopwatch with laps: `lap("forward")` says that what has passed since the lap before was a forward pass. On
the processor a lap reads the time. On an accelerator, which works behind the program that drives it, a lap is an event
that the device itself stamps when it gets there, and the stamps are read where the loop waits for the device anyway: no
step waits for the clock. "data" is then the time in which the device had no step to compute: it holds what the loader
could not hide, and what the device itself does to bring a batch into shape.
"""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

# What is told apart. "start" is up to the first batch of a process, which has to start its workers; "other" is what
# the loop and its callbacks do between two steps.
Phase = Literal["start", "data", "forward", "backward", "step", "evaluate", "save", "other"]
STEP: tuple[Phase, ...] = ("data", "forward", "backward", "step")  # what an ordinary step consists of
_TIMED_BY_EVENTS = ("cuda", "xpu", "mps")


class Clock:
    """Adds the seconds of each phase to `seconds`, which may hold some from before."""

    def __init__(self, device: "torch.device", seconds: dict[str, float]) -> None:
        import torch

        self.seconds = seconds
        self.total: dict[str, float] = {}  # of this clock alone
        self.laps: Counter[str] = Counter()
        self.module: Any = torch.get_device_module(device) if device.type in _TIMED_BY_EVENTS else None
        # An event is of the stream on which it is recorded, which is one of the current device where none is given.
        current = getattr(self.module, "current_stream", None)
        self.stream = (current(device),) if current is not None else ()
        self.stamped: list[tuple[Phase, Any]] = []  # events that are not read yet, in order
        self.free: list[Any] = []  # events to be used again
        self.begun = False
        self.last: Any = self._event() if self.module else time.perf_counter()

    def _event(self) -> Any:
        event = self.free.pop() if self.free else self.module.Event(enable_timing=True)
        event.record(*self.stream)
        return event

    def lap(self, phase: Phase) -> None:
        """What has passed since the last lap was this."""
        if self.module:
            self.stamped.append((phase, self._event()))
        else:
            now = time.perf_counter()
            self._add(phase, now - self.last)
            self.last = now

    def _add(self, phase: Phase, seconds: float) -> None:
        for sums in (self.seconds, self.total):
            sums[phase] = sums.get(phase, 0.0) + seconds
        self.laps[phase] += 1

    def read(self) -> None:
        """Bring `seconds` up to the last lap; on an accelerator it waits until the device is there."""
        if self.stamped:
            self.stamped[-1][1].synchronize()
        for phase, event in self.stamped:
            self._add(phase, self.last.elapsed_time(event) / 1000)
            self.free.append(self.last)
            self.last = event
        self.stamped.clear()

    def batches(self, batches: Iterable[Any]) -> Iterator[Any]:
        """The batches of a loader, the time until each has come noted down."""
        self.lap("other")
        for batch in batches:
            self.lap("data" if self.begun else "start")
            self.begun = True
            yield batch
            self.lap("other")
        self.lap("data")

    def left(self, steps: int, evaluations: int, batches: int) -> float:
        """Seconds that so many more steps and evaluations, of `batches` each, will take, saving included.

        Before the first evaluation a batch of it is taken to need what a forward pass and its data do.
        """
        a_step = {phase: self.total.get(phase, 0.0) / max(self.laps["step"], 1) for phase in (*STEP, "other")}
        evaluation = batches * (a_step["data"] + a_step["forward"])
        if self.laps["evaluate"]:
            evaluation = (self.total["evaluate"] + self.total.get("save", 0.0)) / self.laps["evaluate"]
        return steps * sum(a_step.values()) + evaluations * evaluation


def waiting(seconds: Mapping[str, float]) -> float:
    """The share of the steps' time, 0 to 1, in which they waited for data; 0 where there were none."""
    total = sum(seconds.get(phase, 0.0) for phase in STEP)
    return seconds.get("data", 0.0) / total if total else 0.0
