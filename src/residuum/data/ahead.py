"""Reading ahead: threads that have read what comes next by the time that it is asked for. No torch."""

import itertools
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

READERS = min(8, os.cpu_count() or 1)  # threads that read image files

_Item = TypeVar("_Item")
_Read = TypeVar("_Read")


def read_ahead(
    items: Iterable[_Item], read: Callable[[_Item], _Read], ahead: int
) -> Generator[tuple[_Item, _Read], None, None]:
    """Each item with what `read` makes of it, in order, read by threads up to `ahead` before it is asked for.

    What `read` raises is raised when its item is asked for. Closing it ends the threads.
    """
    todo = iter(items)
    pending: deque[tuple[_Item, Future[_Read]]] = deque()
    pool = ThreadPoolExecutor(READERS, thread_name_prefix="read-images")
    try:
        while True:
            for item in itertools.islice(todo, ahead - len(pending)):
                pending.append((item, pool.submit(read, item)))
            if not pending:
                return
            item, result = pending.popleft()
            yield item, result.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
