"""A profile of a few steps of a run: a trace to look at, and which operations take the time. It changes no number.

profile.json.gz    the trace, for https://ui.perfetto.dev or chrome://tracing
profile.txt        every operation: its own time, its share, how often it was called
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from residuum.errors import RunError
from residuum.files import write_text, write_whole
from residuum.train.loggers import Callback
from residuum.units import counted

WARM_UP = 5  # steps before the first that is profiled
SHOWN = 8  # operations that the callbacks are told
_ACTIVITIES = {"cuda": "CUDA", "xpu": "XPU"}
Batch = TypeVar("Batch")


class Profile:
    """Profiles `steps` steps, once, into a run folder.

    A step goes from when its batch is asked for to when the next one is. All are of one epoch, of so many steps, after
    `WARM_UP` others where it has so many.
    """

    def __init__(
        self, steps: int, of_epoch: int, device: torch.device, path: Path, callbacks: Sequence[Callback]
    ) -> None:
        self.left, self.device, self.path, self.callbacks = steps, device, path, callbacks
        self.warm_up = min(WARM_UP, max(of_epoch - steps, 0))

    def watched(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches, unchanged; what is done with them is looked at."""
        profiler: Any = None
        taken = 0
        try:
            while True:
                if self.left and profiler is None and self.warm_up <= 0:
                    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or it says that there is no GPU
                    profiler = torch.profiler.profile(activities=self._activities())
                    profiler.start()
                batch = next(batches, None)
                if batch is None:
                    return
                yield batch
                self.warm_up -= 1
                if profiler is not None:
                    taken += 1
                    if taken == self.left:
                        self._finish(profiler, taken)
                        profiler = None
        finally:
            if profiler is not None:
                self._finish(profiler, taken)

    def _activities(self) -> list[Any]:
        kinds = torch.profiler.ProfilerActivity
        name = _ACTIVITIES.get(self.device.type)
        return [kinds.CPU, *([getattr(kinds, name)] if name else [])]

    def _finish(self, profiler: Any, steps: int) -> None:
        self.left = 0
        if self.device.type in _ACTIVITIES:
            torch.get_device_module(self.device).synchronize()
        profiler.stop()
        if not steps:
            return
        trace, table = self.path / "profile.json.gz", self.path / "profile.txt"
        write_whole(trace, lambda partial: profiler.export_chrome_trace(str(partial)), RunError)
        lines = list(dearest(profiler, steps))
        write_text(table, "\n".join(lines) + "\n", RunError)
        for callback in self.callbacks:
            callback.say("profile", f"{counted(steps, 'step')}; trace in {trace}, table in {table}")
            for line in lines[: 1 + SHOWN]:
                callback.say("", line)


def dearest(profiler: Any, steps: int) -> Iterator[str]:
    """A heading and a line for each operation, the one that takes the most time of its own first."""
    events = profiler.key_averages()
    on_device = any(event.self_device_time_total for event in events)
    rows = [
        (event.self_device_time_total if on_device else event.self_cpu_time_total, event.count, event.key)
        for event in events
    ]
    rows = sorted((row for row in rows if row[0] > 0), reverse=True)
    total = sum(time for time, _, _ in rows)
    yield f"{'share':>6}  {'ms a step':>9}  {'calls a step':>12}  operation"
    for time, count, name in rows:
        yield f"{100 * time / total:5.1f}%  {time / 1000 / steps:9.3f}  {count / steps:12.1f}  {name}"
