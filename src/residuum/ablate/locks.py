"""Locks on files, which the system releases when their process ends, however it ends: nothing is ever stale."""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from residuum.errors import RunError, quoted
from residuum.files import try_lock

WAIT = 60.0  # seconds that a process whose parent was killed may take to save and end
_TICK = 0.2


@contextlib.contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold the lock of a file, made where it is not; waits for a process that is about to end.

    Raises `RunError`, which says of `what` that another process has it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise RunError(f"the lock {quoted(str(path))} cannot be made: {error.strerror}") from None
    try:
        until = time.monotonic() + WAIT
        while not try_lock(lock):
            if time.monotonic() > until:
                raise RunError(f"{what} is still being trained by another process")
            time.sleep(_TICK)
        yield
    finally:
        os.close(lock)
