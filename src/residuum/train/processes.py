"""What processes that train share: signals that end them, and whether another one still runs. No torch."""

import contextlib
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Stop:
    """Whether a signal to end has come. The first is kept until the step is over; a second acts at once."""

    def __init__(self) -> None:
        self.signal: int | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Catch Ctrl-C and what systems send to end a process within the block; in the main thread alone."""

        def note(number: int, frame: FrameType | None) -> None:
            self.signal = number
            signal.signal(number, before[number])

        before: dict[int, Any] = {}
        for name in ("SIGINT", "SIGTERM", "SIGBREAK"):  # the last is Windows's; not every system has each
            number = getattr(signal, name, None)
            if number is not None:
                with contextlib.suppress(ValueError, OSError):  # not the main thread
                    before[number] = signal.signal(number, note)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def has_ended(process: int) -> bool:
    """Whether the process of that number, on this machine, has ended, though its parent may not have noticed."""
    import psutil

    try:
        return bool(psutil.Process(process).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
