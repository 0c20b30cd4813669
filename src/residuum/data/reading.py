"""Images read by worker processes. A worker that dies ends in one sentence that names the image it was reading."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from residuum.data.decoding import read_image
from residuum.data.places import Place, shown
from residuum.data.preparing import scaled_to
from residuum.devices import usable_cores
from residuum.errors import DataError, first_line
from residuum.units import counted

TELL_EVERY = 10.0  # seconds between lines about how far reading has come
_LAST_BREATH = 2.0  # seconds in which a process that no longer answers has ended
_CHUNK = 1 << 20  # bytes that a worker hands over at once; containers often have 64 MB for all that is handed over
_WORTH_A_WORKER = 2000  # small images that are decoded in about the time in which a process starts


class Desk:
    """What each worker is reading, in memory that all processes share.

    Images lie at places, or are at hand as uint8 (N, H, W, C).
    """

    def __init__(self, places: Sequence[Place] | Tensor, workers: int) -> None:
        self.places = places
        self.slots = torch.full((max(workers, 1), 2), -1).share_memory_()  # type: ignore[no-untyped-call] # process id, number of its file

    def read(self, index: int, channels: int) -> Tensor:
        """One image, uint8 (C, H, W), noted for as long as it takes; raises `DataError`."""
        if isinstance(self.places, Tensor):
            return self.places[index].permute(2, 0, 1)
        worker = get_worker_info()
        slot = self.slots[worker.id if worker is not None else 0]
        slot[0], slot[1] = os.getpid(), index
        try:
            return read_image(self.places[index], channels)
        finally:
            slot[1] = -1

    def batches(self, loader: "DataLoader[Any]") -> Iterator[Any]:
        """What a loader gives; `DataError` where a worker dies or fails."""
        before = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
        iterator = iter(loader)
        if before is not None:
            # torch raises a worker's death wherever the main process is. Here it is found within five seconds, when
            # the next batch is waited for, and told in a sentence.
            with contextlib.suppress(ValueError):  # not the main thread: torch has set nothing either
                signal.signal(signal.SIGCHLD, before)
        while True:
            try:
                batch = next(iterator)
            except StopIteration:
                return
            except (RuntimeError, EOFError, OSError) as error:  # the last two of what a dead worker was handing over
                raise self._failure(error) from None
            yield batch

    def _failure(self, error: Exception) -> DataError:
        given_up = time.monotonic() + _LAST_BREATH
        dead: list[tuple[int, int]] = []
        while not dead and time.monotonic() < given_up:
            dead = [(process, index) for process, index in self.slots.tolist() if process >= 0 and not _runs(process)]
            time.sleep(0.05)
        if not dead:
            return DataError(f"the images cannot be read: {first_line(error)}")
        reading = [] if isinstance(self.places, Tensor) else [self.places[index] for _, index in dead if index >= 0]
        what = f"while it read {shown(reading[0])}" if reading else "between two images"
        return DataError(
            f"a worker process that reads images died {what} ({first_line(error)}); if memory ran out, take fewer "
            "--workers or a smaller batch, else look at that file"
        )


def _runs(process: int) -> bool:
    import psutil

    if process == os.getpid():
        return True
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def leave_interrupts_to_the_main_process(worker: int) -> None:
    """For a worker: Ctrl-C reaches the whole group, and the step under way needs its batch."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class _Chunks(Dataset[Any]):
    """Images brought to one size, some at a time; an item's key is where it begins and ends."""

    def __init__(self, desk: Desk, size: tuple[int, int], channels: int) -> None:
        self.desk, self.size, self.channels = desk, size, channels

    def __getitem__(self, key: tuple[int, int]) -> tuple[int, Tensor, dict[int, str]]:
        begin, end = key
        images = torch.zeros(end - begin, *self.size, self.channels, dtype=torch.uint8)
        bad = {}
        for index in range(begin, end):
            try:
                image = self.desk.read(index, self.channels)
            except DataError as error:
                bad[index] = str(error)
                continue
            if image.shape[1:] != self.size:
                image = scaled_to(image, self.size, "bilinear")
            images[index - begin] = image.permute(1, 2, 0)
        return begin, images, bad


def decoded(
    places: Sequence[Place], size: tuple[int, int], channels: int, say: Callable[[str], None], *, stop_at_bad: bool
) -> tuple[Tensor, dict[int, str]]:
    """Images, brought to one size, as uint8 (N, H, W, C), and by number what is wrong with those that are bad.

    All cores decode. `stop_at_bad` ends at the first bad one that is met.
    """
    workers = min(usable_cores(), len(places) // _WORTH_A_WORKER)
    step = max(1, _CHUNK // (size[0] * size[1] * channels))
    desk = Desk(places, workers)
    loader = DataLoader(
        _Chunks(desk, size, channels),
        batch_size=None,
        sampler=[(begin, min(begin + step, len(places))) for begin in range(0, len(places), step)],
        num_workers=workers,
        generator=torch.Generator(),  # else the global one would be drawn from
        worker_init_fn=leave_interrupts_to_the_main_process,
    )
    images = torch.empty(len(places), *size, channels, dtype=torch.uint8)
    bad: dict[int, str] = {}
    told = time.monotonic()
    if workers:
        say(f"reading {counted(len(places), 'image')} into memory")
    for begin, some, wrong in desk.batches(loader):
        images[begin : begin + len(some)] = some
        bad |= wrong
        if wrong and stop_at_bad:
            break
        if time.monotonic() - told > TELL_EVERY:
            told = time.monotonic()
            say(f"{begin + len(some):,} of {len(places):,} images are read")
    return images, bad
