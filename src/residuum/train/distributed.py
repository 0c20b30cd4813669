"""Several processes that train one run, started by torchrun: who is who, what they tell each other, whose gradients.

Every few things that processes do together begin with an exchange, in which each says whether it has failed: an error
in one is then an error in all, at the same place. Only a step's sums have no exchange of their own: they follow the one
by which all processes found that they had a batch. A process that is gone is found by its connection, one that hangs by
the time-out.
"""

import atexit
import contextlib
import os
import socket
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import GradBucket, PrefixStore, rendezvous  # type: ignore[attr-defined]
from torch.nn.parallel import DistributedDataParallel

from residuum import errors
from residuum.errors import DeviceError, ResiduumError, RunError, first_line
from residuum.train.execution import from_torchrun, rank, world_size
from residuum.train.processes import has_ended

_Made = TypeVar("_Made")
_ROLL_CALL = 3.0  # seconds in which processes answer that still run
# What gloo and NCCL say of a peer that is gone or silent.
_LOST = ("gloo", "nccl", "connection", "timed out", "timeout", "socket", "broken pipe")


@dataclass(frozen=True)
class Team:
    """The processes of a run: this one's `rank`, and its place among those of its machine."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    names: tuple[str, ...] = ("",)  # of each process its machine and, behind a space, its number there
    store: Any = None  # key and value, of all processes
    timeout: float = 0.0

    @property
    def first(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def exchange(self, *values: int, error: ResiduumError | None = None) -> list[list[int]]:
        """The two whole numbers, or fewer, that each process gives; raises an `error` that any of them has, in all."""
        if self.world == 1:
            if error is not None:
                raise error
            return [list(values)]
        mine = torch.tensor([error is not None, *values, *[0] * (2 - len(values))], dtype=torch.int64)
        rows = [torch.empty_like(mine) for _ in range(self.world)]
        with self._all_there():
            dist.all_gather(rows, mine)
            failed = [rank for rank, row in enumerate(rows) if row[0]]
            if failed:
                told = [(type(error).__name__, str(error)) if self.rank == failed[0] else ("", "")]
                dist.broadcast_object_list(told, src=failed[0], device=torch.device("cpu"))
                if self.rank != failed[0]:
                    kind, text = told[0]
                    error = getattr(errors, kind)(text)
        if failed:
            assert error is not None
            error.speaker = 0
            raise error
        return [row[1 : 1 + len(values)].tolist() for row in rows]

    def largest(self, value: int) -> int:
        """The largest of the numbers that the processes give."""
        return max(row[0] for row in self.exchange(value))

    def of_first(self, make: Callable[[], _Made]) -> _Made:
        """What the first process makes, in all of them; what it raises is raised in all."""
        made = make() if self.first else None
        if self.world > 1:
            self.exchange()
            box = [made]
            with self._all_there():
                dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
            made = box[0]
        return made  # type: ignore[return-value]

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """The first process of each machine goes through the block before the others: it may fill a cache for them."""
        if self.local_rank:
            self.exchange()
        yield
        if not self.local_rank:
            self.exchange()

    def sum(self, values: Tensor) -> Tensor:
        """The sum over processes, in place; on the tensor's device."""
        if self.world > 1:
            with self._all_there():
                dist.all_reduce(values)
        return values

    def previous(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """What the process before this one gives, or the last one to the first; of one shape in all."""
        found = []
        with self._all_there():
            for mine in (images.contiguous(), labels.contiguous()):
                given = [torch.empty_like(mine) for _ in range(self.world)]
                dist.all_gather(given, mine)
                found.append(given[self.rank - 1])
        return found[0], found[1]

    def total(self, *values: float) -> list[float]:
        """The sums over processes, in double precision."""
        if self.world > 1:
            self.exchange()
        return self.sum(torch.tensor(values, dtype=torch.float64)).tolist()

    def batches(
        self, batches: Iterator[tuple[Tensor, Tensor]], stopped: Callable[[], bool]
    ) -> Iterator[tuple[Tensor, Tensor, int]]:
        """Batches, and how many images their step has in all processes, until one of these is `stopped`.

        Every process gets as many; raises in all what reading raises in one.
        """
        if self.world == 1:
            for images, labels in batches:
                yield images, labels, len(labels)
                if stopped():
                    return
            return
        while True:
            try:
                batch = next(batches, None)
            except ResiduumError as error:
                self.exchange(error=error)
                raise
            rows = self.exchange(int(stopped()), 0 if batch is None else len(batch[1]))
            if batch is None or any(stop for stop, _ in rows):
                return
            yield *batch, sum(count for _, count in rows)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Within the block an error of the package in one process ends all, and so does the end of one of them."""
        try:
            yield
        except ResiduumError as error:
            if self.world > 1 and error.speaker is None:
                self.exchange(error=error)
            raise
        except RuntimeError as error:
            if self._is_of_peers(error):
                raise self._lost(error) from error
            raise

    @contextmanager
    def _all_there(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if self._is_of_peers(error):
                raise self._lost(error) from error
            raise

    def _is_of_peers(self, error: RuntimeError) -> bool:
        words = str(error).lower()
        return self.world > 1 and not isinstance(error, ResiduumError) and any(word in words for word in _LOST)

    def _lost(self, error: RuntimeError) -> RunError:
        """The sentence for processes that no longer answer."""
        missing = self._missing()
        places = {rank: self._place(rank) for rank in missing}
        names = [f"{rank} (process id {number} on {host})" for rank, (host, number) in places.items()]
        who = f"process {', '.join(names)} of {self.world}" if names else f"one of {self.world} processes"
        sentence = RunError(
            f"{who} ended or did not answer within {self.timeout:g} s; the run keeps its last saved state, go on with "
            "--resume"
        )
        sentence.speaker = min(set(range(self.world)) - set(missing), default=self.rank)
        return sentence

    def _place(self, rank: int) -> tuple[str, int]:
        """The machine and the number of a process."""
        host, number = self.names[rank].rsplit(" ", 1)
        return host, int(number)

    def _missing(self) -> list[int]:
        """Ranks whose process has ended, or else those that do not answer."""
        try:
            ended = [rank for rank in range(self.world) if self._has_ended(rank)]
            if ended:
                return ended
            self.store.set(f"here/{self.rank}", "")
            until = time.monotonic() + _ROLL_CALL
            silent = list(range(self.world))
            while silent and time.monotonic() < until:
                silent = [rank for rank in silent if not self.store.check([f"here/{rank}"])]
                time.sleep(0.05)
        except RuntimeError:  # the store was in the process that is gone
            return [0] if self.rank else []
        return silent

    def _has_ended(self, rank: int) -> bool:
        host, number = self._place(rank)
        return host == socket.gethostname() and has_ended(number)


ALONE = Team()


def join(timeout: float) -> Team:
    """The processes that torchrun has started, this one among them, once all are there; `ALONE` without torchrun.

    A process that says nothing for `timeout` seconds is given up. Call it again for the same team. Raises `RunError`.
    """
    if world_size() == 1:
        return ALONE
    if _joined:
        return _joined[0]
    own, wait = rank(), timedelta(seconds=timeout)
    try:
        store, _, world = next(rendezvous("env://", own, world_size(), timeout=wait))
        store = PrefixStore(
            f"residuum/{from_torchrun('TORCHELASTIC_RESTART_COUNT', 0)}", store
        )  # which outlives a start
        store.set_timeout(wait)
        store.set(f"process/{own}", f"{socket.gethostname()} {os.getpid()}")
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        group = PrefixStore("group", store)
        dist.init_process_group(backend, store=group, rank=own, world_size=world, timeout=wait)
        names = tuple(store.get(f"process/{rank}").decode() for rank in range(world))
    except (RuntimeError, ValueError) as error:
        raise RunError(f"the {world_size()} processes do not find each other: {first_line(error)}") from None
    atexit.register(leave)
    local = from_torchrun("LOCAL_RANK", own), from_torchrun("LOCAL_WORLD_SIZE", world)
    _joined.append(Team(own, world, *local, names, store, timeout))
    return _joined[0]


_joined: list[Team] = []  # one at most, as torch has one group for a process


def leave() -> None:
    """Let the other processes go."""
    _joined.clear()
    if dist.is_initialized():
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()


def speaks(error: ResiduumError) -> bool:
    """Whether this process is the one that prints an error, of which all know after this."""
    if world_size() == 1:
        return True
    if error.speaker is None and _joined:
        try:
            _joined[0].exchange(error=error)
        except ResiduumError as told:
            error = told
    return rank() == (error.speaker or 0)


def own_device(name: str, team: Team) -> str:
    """The device of a process where the name leaves it open: the accelerators of a machine are shared out."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if team.world == 1 or accelerator is None or name not in ("auto", accelerator.type):
        return name
    if team.local_rank >= torch.accelerator.device_count():
        raise DeviceError(
            f"{team.local_world} processes are started on a machine of {torch.accelerator.device_count()} devices; "
            "start as many, or take --device cpu"
        )
    return f"{accelerator.type}:{team.local_rank}"


class Replica:
    """A network as one of several processes calls it: its gradients are summed over all of them as they come.

    That is torch's `DistributedDataParallel`, built anew when other parameters learn. Gradients are summed, not
    averaged: losses are shares of the step's. What `held` has, for each learning parameter in order, is added before.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.held: list[list[Tensor]] = []
        self.learning: list[nn.Parameter] = []
        self.ddp: DistributedDataParallel | None = None

    def __call__(self, images: Tensor) -> Tensor:
        return self._current()(images)  # type: ignore[no-any-return]

    def alone(self) -> AbstractContextManager[None]:
        """Within it gradients stay this process's own."""
        return self._current().no_sync()

    def _current(self) -> DistributedDataParallel:
        learning = [p for p in self.network.parameters() if p.requires_grad]
        if self.ddp is None or [id(p) for p in learning] != [id(p) for p in self.learning]:
            self.ddp = None  # the old one's hooks go first
            with warnings.catch_warnings():  # newer ones have another name for it
                warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
                self.ddp = DistributedDataParallel(self.network, broadcast_buffers=False, gradient_as_bucket_view=True)
            self.ddp.register_comm_hook(None, self._summed)
            self.learning = learning
        return self.ddp

    @torch.no_grad()
    def _summed(self, state: object, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        if self.held:
            place: dict[Tensor, int] = {p: number for number, p in enumerate(self.learning)}
            for p, gradient in zip(bucket.parameters(), bucket.gradients(), strict=True):
                # In memory a gradient lies as its parameter does, whose strides the bucket does not tell.
                gradient = gradient.as_strided(p.shape, p.stride(), gradient.storage_offset())  # noqa: PLW2901
                for part in reversed(self.held):
                    gradient.add_(part[place[p]])
        work = dist.all_reduce(bucket.buffer(), async_op=True)
        return work.get_future().then(lambda done: done.value()[0])
