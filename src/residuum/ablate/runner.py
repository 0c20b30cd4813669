"""Running a study on one machine: one parent hands out cells to worker processes, names what fails, and can be stopped.

The parent alone decides which cell is next, so no two workers can have one; a second parent is refused. Workers are
long-lived, and replaced when they die. However a study ends, the same line goes on with it, inside cells too.
"""

import contextlib
import json
import os
import platform
import queue
import signal
import subprocess
import sys
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any, Protocol

from residuum.ablate.cell import Job
from residuum.ablate.cells import (
    LOCK,
    Cell,
    Plan,
    Record,
    is_over,
    note_asked,
    refuse_other_study,
    repeats,
    settled,
    threads_of,
)
from residuum.ablate.locks import WAIT
from residuum.ablate.shared import Shared, Storage
from residuum.ablate.worker import leave_recipe
from residuum.errors import RunError, quoted, shortened
from residuum.files import try_lock
from residuum.train.processes import Stop, has_ended

_TICK = 0.2
_SEVERAL = "several"
TAKEN = "taken"
_STARTS = 3  # how often a worker may die before it is ready


@dataclass(frozen=True)
class Outcome:
    """How a call ended: cells that it finished, those that failed now or have before, the signal that stopped it."""

    finished: int = 0
    failed: tuple[Cell, ...] = ()
    stopped_by: int | None = None


class Queue(Protocol):
    """Where a parent's cells come from. `total` is how many cells are to be run, as far as that is known."""

    total: int

    @abstractmethod
    def take(self, busy: int) -> Cell | None:
        """The next cell to begin while so many are trained here, if there is one now."""

    @abstractmethod
    def back(self, cell: Cell) -> None:
        """A cell that was taken and not begun."""

    @abstractmethod
    def ended(self, cell: Cell, status: str) -> None:
        """How a cell that was taken has ended: done, diverged, failed, or stopped before its end."""

    def taken_away(self) -> Sequence[Cell]:
        """Cells that are trained here and should no longer be; none where nobody else takes them."""
        return ()

    def waits(self) -> bool:
        """Whether more may come though there is nothing now and nothing is trained here."""
        return False


class Listed(Queue):
    """Cells known from the start; those that ran out of memory come last and have the machine to themselves."""

    def __init__(self, cells: Sequence[Cell], alone: Sequence[Cell] = ()) -> None:
        self._together, self._alone = list(cells), list(alone)
        self.total = len(cells) + len(alone)

    def take(self, busy: int) -> Cell | None:
        if self._together:
            return self._together.pop(0)
        return self._alone.pop(0) if self._alone and not busy else None

    def back(self, cell: Cell) -> None:
        self._together.insert(0, cell)

    def ended(self, cell: Cell, status: str) -> None:
        pass


@dataclass
class _Worker:
    """A worker process, the cell that it trains, and since when."""

    process: subprocess.Popen[str]
    log: Path
    cell: Cell | None = None
    since: float = 0.0
    ready: bool = False
    reason: str = ""  # why it is being killed

    def give(self, cell: Cell, job: Job) -> None:
        self.cell, self.since = cell, time.monotonic()
        with contextlib.suppress(OSError):  # it has died; that is seen as such
            assert self.process.stdin is not None
            self.process.stdin.write(json.dumps(asdict(job)) + "\n")
            self.process.stdin.flush()

    def let_go(self) -> None:
        """Its input ends: it saves at its next step and ends."""
        with contextlib.suppress(OSError):
            assert self.process.stdin is not None
            self.process.stdin.close()


# -- one parent --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def claimed(folder: Path, shared: bool = False) -> Iterator[int]:
    """Hold a study's lock, a file descriptor that workers inherit; raises `RunError` where another process has it.

    The system releases it when the last of parent and workers has ended, however they end. Where workers of a parent
    that was killed are still saving, it waits for them. With `shared`, others may hold it that share it too.
    """
    try:
        (folder / "cells").mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise RunError(f"the study's folder {quoted(str(folder))} cannot be made: {error.strerror}") from None
    try:
        until = time.monotonic() + WAIT
        while not try_lock(lock, shared):
            text = _holder(lock)
            other = int(text) if text.isdigit() else None
            if time.monotonic() > until or (other not in (None, os.getpid()) and not has_ended(other)):
                who = "on several machines" if text == _SEVERAL else f"by process {other or 'unknown'}"
                raise RunError(
                    f"the study in {quoted(str(folder))} is being run {who}; wait for it, or stop it, or look by "
                    "--status"
                )
            time.sleep(_TICK)
        os.ftruncate(lock, 0)
        os.lseek(lock, 0, os.SEEK_SET)
        os.write(lock, _SEVERAL.encode() if shared else str(os.getpid()).encode())
        yield lock
    finally:
        with contextlib.suppress(OSError):
            os.close(lock)


def _holder(lock: int) -> str:
    os.lseek(lock, 0, os.SEEK_SET)
    return os.read(lock, 32).decode(errors="replace")


def lock_of(plan: Plan, cell: Cell) -> Path:
    """The file that is locked while a cell is trained, where the study's own lock does not see to that."""
    return plan.folder / "locks" / cell.folder.name


# -- handing out -------------------------------------------------------------------------------------------------------


def run(
    plan: Plan,
    say: Callable[[str], None] = lambda text: None,
    block: Callable[[], None] = lambda: None,
    *,
    only: Sequence[str] = (),
    trainer: str | None = None,
    storage: Storage | None = None,
) -> Outcome:
    """Run what is missing, of variants named in `only` where that is given; failed cells once more up to `retries`.

    `say` is told of each cell that ends, `block` is called where all cells of a seed have. `trainer`, MODULE:FUNCTION,
    trains in place of `worker.train`. With a `storage`, other machines that share the folder run it too. Ctrl-C and
    SIGTERM stop it with everything saved; a second one acts at once. Raises `RunError`.
    """
    refuse_other_study(plan)
    with claimed(plan.folder, storage is not None) as lock:
        note_asked(plan)
        stop, finished = Stop(), 0

        def run_those(cells: Sequence[Cell], part: str, block: Callable[[], None]) -> int:
            if storage is None:
                parent = Parent(plan, listed(plan, cells, say), stop, say, block, lock=lock, trainer=trainer)
                return parent.run()
            shared = Shared(plan, cells, storage, say, part=part)
            try:
                parent = Parent(plan, shared, stop, say, block, lock=lock, trainer=trainer, guarded=True)
                return parent.run()
            finally:
                shared.leave()

        with stop.listening():
            if plan.choosing:
                cells = [cell for cell in plan.choosing if not only or {*only} & {*plan.whose(cell)}]
                finished = run_those(cells, "-tuning", lambda: None)
                plan = settled(plan)
            if stop.signal is None:
                cells = [cell for cell in plan.cells if not only or {*only} & {*cell.variants}]
                finished += run_those(cells, "", block)
        return Outcome(finished, failed_of(plan), stop.signal)


def failed_of(plan: Plan) -> tuple[Cell, ...]:
    """The cells that have failed, now or before, those that values are tuned by among them."""
    records = ((cell, Record.read(cell.folder)) for cell in (*plan.choosing, *plan.cells))
    return tuple(cell for cell, record in records if record is not None and record.status == "failed")


def listed(plan: Plan, cells: Sequence[Cell], say: Callable[[str], None]) -> Listed:
    """Those of the cells that are still to be run; says which have failed too often."""
    together: list[Cell] = []
    alone: list[Cell] = []
    for cell in cells:
        record = plan.begin(cell)
        if is_over(cell, record):
            continue
        if record.failures > plan.study.running.retries:
            say(f"{cell.name} has failed {record.failures} times and is not tried again: {record.reason}")
            continue
        (alone if record.alone else together).append(cell)
    return Listed(together, alone)


class Parent:
    """The life of one call: cells to come, workers, the signal that has come."""

    def __init__(
        self,
        plan: Plan,
        cells: Queue,
        stop: Stop,
        say: Callable[[str], None],
        block: Callable[[], None] = lambda: None,
        *,
        lock: int | None = None,
        trainer: str | None = None,
        guarded: bool = False,
    ) -> None:
        """`lock` is a file that workers hold open too; `guarded` cells might be trained elsewhere at the same time."""
        self.guarded = guarded or plan.study.running.processes > 1
        self.plan, self.queue, self.stop, self.say, self.block = plan, cells, stop, say, block
        self.lock, self.trainer = lock, trainer
        self.threads = threads_of(plan.study)
        self.finished = 0
        self.events: queue.Queue[tuple[_Worker, dict[str, Any] | None]] = queue.Queue()
        self.workers: list[_Worker] = []
        self.started = self.stillborn = 0

    def run(self) -> int:
        """Run cells until there are no more, or a signal comes; how many it finished."""
        try:
            while self.stop.signal is None and self._hand_out():
                self._hear()
        finally:
            self._end()
        return self.finished

    def _hand_out(self) -> bool:
        """Give cells to workers that have none; whether there is anything to wait for."""
        busy = sum(worker.cell is not None for worker in self.workers)
        while busy < self.plan.study.running.workers and (cell := self.queue.take(busy)) is not None:
            worker = next((w for w in self.workers if w.cell is None), None) or self._start()
            worker.give(cell, self._job(cell))
            busy += 1
        return bool(busy) or self.queue.waits()

    def _job(self, cell: Cell) -> Job:
        running = self.plan.study.running
        execution = {"device": running.device, "workers": running.readers, "memory": running.memory}
        if cell.choosing:
            execution["test"] = False
        record = replace(self.plan.begin(cell), threads=self.threads, machine=platform.node())
        recipe = {**cell.recipe.to_dict(), "data.path": self._data()}
        lock = str(lock_of(self.plan, cell)) if self.guarded else ""
        data, processes = self.plan.catalog.digest, running.processes
        return Job(recipe, str(cell.folder), asdict(record), execution, running.keep, data, processes, lock)

    def _data(self) -> str:
        name = self.plan.catalog.name
        return str(Path(name).expanduser().absolute()) if any(self.plan.catalog.files.values()) else name

    def _start(self) -> _Worker:
        """A new worker process, of a session of its own: Ctrl-C comes to the parent alone."""
        self.started += 1
        whose = f"{platform.node()}-{os.getpid()}-" if isinstance(self.queue, Shared) else ""
        log = self.plan.folder / f"worker-{whose}{self.started}.log"
        env = dict(os.environ, OMP_NUM_THREADS=str(self.threads), PYTHONUNBUFFERED="1")
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
            env.pop(name, None)
        if self.trainer is not None:
            env["RESIDUUM_TRAINER"] = self.trainer
        how: dict[str, Any] = (
            {}
            if os.name == "nt"
            else {"start_new_session": True, "pass_fds": () if self.lock is None else (self.lock,)}
        )
        with log.open("w", encoding="utf-8") as errors:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "residuum.ablate.worker"],  # no module of the working directory
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                encoding="utf-8",
                env=env,
                **how,
            )
        worker = _Worker(process, log)
        self.workers.append(worker)
        assert process.stdout is not None
        threading.Thread(target=self._listen, args=(worker, process.stdout), daemon=True).start()
        return worker

    def _listen(self, worker: _Worker, lines: IO[str]) -> None:
        for line in lines:
            with contextlib.suppress(ValueError):
                self.events.put((worker, json.loads(line)))
        worker.process.wait()
        self.events.put((worker, None))

    def _hear(self) -> None:
        """Wait a moment for what workers tell, and kill those that take too long."""
        with contextlib.suppress(queue.Empty):
            self._take(*self.events.get(timeout=_TICK))
        limit = self.plan.study.running.seconds
        for worker in self.workers:
            late = worker.ready and time.monotonic() - worker.since > limit if limit else False
            if late and worker.cell is not None and not worker.reason:
                self._kill(worker, f"it took longer than {self.plan.study.running.timeout}")
        gone = {cell.key for cell in self.queue.taken_away()}
        for worker in self.workers:
            if worker.cell is not None and worker.cell.key in gone and not worker.reason:
                self._kill(worker, TAKEN)

    def _take(self, worker: _Worker, told: dict[str, Any] | None) -> None:
        cell = worker.cell
        if told is None:
            if worker in self.workers:
                self.workers.remove(worker)
            if not worker.ready and self.stop.signal is None:
                self.stillborn += 1
                if self.stillborn == _STARTS or cell is None:
                    raise RunError(f"a worker cannot be started: {_death(worker)}")
                self.queue.back(cell)
            elif cell is not None and worker.reason == TAKEN:
                self.say(f"{cell.name}: taken over by another machine")
            elif cell is not None and self.stop.signal is None:
                self._failed(
                    cell, worker.reason or _death(worker), not worker.reason and worker.process.returncode == -9
                )
            worker.cell = None
            return
        status = told.get("status")
        if not worker.ready:
            worker.ready, worker.since = True, time.monotonic()
        if cell is None or status is None or worker.reason:  # it has come up, or is being killed
            return
        worker.cell = None
        seconds = f"{time.monotonic() - worker.since:.1f} s"
        if status == "done":
            self.finished += 1
            self.queue.ended(cell, status)
            self.say(f"{self.finished} of {self.queue.total}  {cell.name}: done in {seconds}")
        elif status == "diverged":
            self.finished += 1
            self.queue.ended(cell, status)
            self.say(f"{self.finished} of {self.queue.total}  {cell.name}: diverged: {told['reason']}")
        elif status == "changed":  # every other cell would say the same
            self.queue.back(cell)
            raise RunError(told["reason"])
        elif status == "failed":
            self._tell_failed(cell, told["reason"])
            worker.let_go()  # what an error leaves of a process is not worked with
            self.workers.remove(worker)
        elif self.stop.signal is None:
            self._failed(cell, "its process was told to end by another one")
        else:
            self.queue.ended(cell, status)
        if not self._waiting(cell.seed) and self._waiting():
            self.block()

    def _waiting(self, seed: int | None = None) -> bool:
        """Whether a cell of a seed, or of any, has not ended."""
        cells = (cell for cell in self.plan.cells if seed in (None, cell.seed))
        return any(self.plan.begin(cell).status == "waiting" for cell in cells)

    def _kill(self, worker: _Worker, reason: str) -> None:
        """End a worker at once, and the processes that it has started."""
        worker.reason = reason
        kill_with_children(worker.process.pid)

    def _failed(self, cell: Cell, reason: str, alone: bool = False) -> None:
        """Write down what a worker no longer could."""
        record = self.plan.begin(cell)
        record = replace(record, status="failed", reason=reason, failures=record.failures + 1, alone=alone)
        record.write(cell.folder)
        leave_recipe(cell.recipe.to_dict(), cell.folder)
        self._tell_failed(cell, reason)

    def _tell_failed(self, cell: Cell, reason: str) -> None:
        self.queue.ended(cell, "failed")
        self.say(f"{cell.name}: failed: {reason}; repeat it by:  {repeats(self.plan, cell.folder, cell.recipe)}")

    def _end(self) -> None:
        """All workers save and end; a second signal kills them, and an error here too."""
        try:
            for worker in self.workers:
                worker.let_go()
            for worker in self.workers:
                worker.process.wait()
        finally:
            for worker in self.workers:
                if worker.process.poll() is None:
                    kill_with_children(worker.process.pid)
                    worker.process.wait()


def kill_with_children(process: int) -> None:
    """SIGKILL for a process and all that it has started, or what the system has in its place."""
    import psutil

    with contextlib.suppress(psutil.Error):
        one = psutil.Process(process)
        children = one.children(recursive=True)
        one.kill()
        for child in children:
            with contextlib.suppress(psutil.Error):
                child.kill()


def _death(worker: _Worker) -> str:
    """How a process ended that did not say so itself, and the last that it printed."""
    code = worker.process.returncode
    lines = worker.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    last = f" ({shortened(lines[-1], 200)})" if lines else ""
    if code < 0:
        name = signal.Signals(-code).name
        hint = "; the system ends processes so when memory runs out" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{hint}{last}"
    return f"its process ended with code {code}{last}"
