"""Image files through a network, several batches at a time: some are read while others are computed."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from residuum.data.named import Arrivals
from residuum.devices import usable_cores
from residuum.errors import DataError

READERS = min(8, usable_cores())  # threads that read image files
MOST_LANES = 8
_EACH, _ALONE = 8, 32  # images of a batch, of several at once or of one

_Found = TypeVar("_Found")


def lanes_of_this_machine() -> int:
    """How many batches a CPU computes at once, each with its share of torch's threads.

    Threads that compute one batch together wait for each other at the end of every layer, and those that read images
    take turns with them: all wait for the one that was interrupted. Batches do not wait for each other.
    """
    return max(1, min(torch.get_num_threads(), MOST_LANES))


def usual_batch(lanes: int) -> int:
    """How many images are computed at a time: on a CPU few by each thread, so that feature maps stay in its cache."""
    return _EACH * lanes if lanes > 1 else _ALONE


def streamed(
    names: Iterable[str],
    read: Callable[[str], Tensor],
    compute: Callable[[list[Tensor]], list[_Found]],
    *,
    batch_size: int,
    lanes: int,
    readers: int,
) -> Generator[tuple[str, _Found | DataError]]:
    """Each name with what `compute` makes of what `read` gives, or with the `DataError` that `read` raises, in order.

    `compute` takes images of one batch and gives as many answers. It is called by `lanes` threads, which have
    `batch_size` images between them. `readers` threads read up to two batches ahead. Whatever else is raised by either
    is raised when its image is asked for. Closing it ends the threads.
    """
    lanes = min(lanes, batch_size)
    each = -(-batch_size // lanes)
    threads = torch.get_num_threads()

    def own_share() -> None:
        if lanes > 1:
            torch.set_num_threads(max(1, threads // lanes))

    arrivals = Arrivals(names, 2 * batch_size)
    waiting: deque[Future[list[tuple[str, _Found | DataError]]]] = deque()
    reading = ThreadPoolExecutor(readers, thread_name_prefix="read-images")
    computing = ThreadPoolExecutor(lanes, thread_name_prefix="compute-images", initializer=own_share)

    def attempt(name: str) -> Tensor | DataError:
        try:
            return read(name)
        except DataError as error:
            return error

    def batch(some: list[str], images: list[Future[Tensor | DataError]]) -> list[tuple[str, _Found | DataError]]:
        results = [image.result() for image in images]
        good = [result for result in results if isinstance(result, Tensor)]
        found = iter(compute(good) if good else ())
        return [(n, r if isinstance(r, DataError) else next(found)) for n, r in zip(some, results, strict=True)]

    try:
        while True:
            while len(waiting) < max(3, 2 * lanes) and not arrivals.over:
                some = arrivals.take(each, wait=not waiting)
                if not some:
                    break
                waiting.append(computing.submit(batch, some, [reading.submit(attempt, name) for name in some]))
            if waiting:
                yield from waiting.popleft().result()
            elif arrivals.over:
                if arrivals.error is not None:
                    raise arrivals.error
                return
    finally:
        arrivals.close()
        for pool in (reading, computing):
            pool.shutdown(wait=False, cancel_futures=True)
        if lanes > 1:
            torch.set_num_threads(threads)  # setting it in one thread sets it for libraries that know one number
