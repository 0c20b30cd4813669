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
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

from residuum.ablate.cells import Cell, Plan, collect, note_asked, threads_of
from residuum.ablate.results import CellResult
from residuum.ablate.worker import Job, leave_recipe
from residuum.errors import RunError, quoted, shortened
from residuum.train.processes import Stop, has_ended

LOCK = "lock"
WAIT = 60.0  # seconds that workers of a parent that was killed may take to save and end
_TICK = 0.2
_STARTS = 3  # how often a worker may die before it is ready


@dataclass(frozen=True)
class Outcome:
    """How a call ended: cells that it finished, those that failed now or have before, the signal that stopped it."""

    finished: int = 0
    failed: tuple[CellResult, ...] = ()
    stopped_by: int | None = None


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
def claimed(folder: Path) -> Iterator[int]:
    """Hold a study's lock, a file descriptor that workers inherit; raises `RunError` where another process has it.

    The system releases it when the last of parent and workers has ended, however they end. Where workers of a parent
    that was killed are still saving, it waits for them.
    """
    try:
        (folder / "cells").mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise RunError(f"the study's folder {quoted(str(folder))} cannot be made: {error.strerror}") from None
    try:
        until = time.monotonic() + WAIT
        while not _lock(lock):
            other = _holder(lock)
            if time.monotonic() > until or (other not in (None, os.getpid()) and not has_ended(other)):
                raise RunError(
                    f"the study in {quoted(str(folder))} is being run by process {other or 'unknown'}; wait for it, or "
                    "stop it, or look by --status"
                )
            time.sleep(_TICK)
        os.ftruncate(lock, 0)
        os.lseek(lock, 0, os.SEEK_SET)
        os.write(lock, str(os.getpid()).encode())
        yield lock
    finally:
        with contextlib.suppress(OSError):
            os.close(lock)


def _lock(lock: int) -> bool:
    """Whether this process has the lock now."""
    try:
        import fcntl
    except ImportError:  # Windows: of one byte far behind what is written, as locked bytes cannot be read there
        import msvcrt

        try:
            os.lseek(lock, 2**20, os.SEEK_SET)
            msvcrt.locking(lock, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        except OSError:
            return False
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _holder(lock: int) -> int | None:
    os.lseek(lock, 0, os.SEEK_SET)
    text = os.read(lock, 32)
    return int(text) if text.isdigit() else None


# -- handing out -------------------------------------------------------------------------------------------------------


def run(
    plan: Plan,
    say: Callable[[str], None] = lambda text: None,
    block: Callable[[], None] = lambda: None,
    *,
    only: Sequence[str] = (),
    trainer: str | None = None,
) -> Outcome:
    """Run what is missing, of variants named in `only` where that is given; failed cells once more up to `retries`.

    `say` is told of each cell that ends, `block` is called where all cells of a seed have. `trainer`, MODULE:FUNCTION,
    trains in place of `worker.train`. Ctrl-C and SIGTERM stop it with everything saved; a second one acts at once.
    Raises `RunError`.
    """
    with claimed(plan.folder) as lock:
        note_asked(plan)
        parent = _Parent(plan, say, block, lock, trainer, only)
        with parent.stop.listening():
            parent.run()
        failed = [cell for cell in collect(plan).cells if cell.status == "failed"]
        return Outcome(parent.finished, tuple(failed), parent.stop.signal)


class _Parent:
    """The life of one call: cells to come, workers, the signal that has come."""

    def __init__(
        self,
        plan: Plan,
        say: Callable[[str], None],
        block: Callable[[], None],
        lock: int,
        trainer: str | None,
        only: Sequence[str],
    ) -> None:
        self.plan, self.say, self.block, self.lock, self.trainer = plan, say, block, lock, trainer
        self.threads = threads_of(plan.study)
        self.finished = 0
        self.stop = Stop()
        self.events: queue.Queue[tuple[_Worker, dict[str, Any] | None]] = queue.Queue()
        self.workers: list[_Worker] = []
        self.started = self.stillborn = 0
        self.together, self.alone = self._to_do(only)
        self.total = len(self.together) + len(self.alone)
        self.left = Counter(cell.seed for cell in (*self.together, *self.alone))

    def _to_do(self, only: Sequence[str]) -> tuple[list[Cell], list[Cell]]:
        """Cells that are run beside others, and those that ran out of memory and get the machine to themselves."""
        status = {(cell.key, cell.status) for cell in collect(self.plan).cells}
        together: list[Cell] = []
        alone: list[Cell] = []
        for cell in self.plan.cells:
            if (cell.key, "done") in status or (cell.key, "diverged") in status:
                continue
            if only and not set(only) & set(cell.variants):
                continue
            record = self.plan.begin(cell)
            if record.failures > self.plan.study.running.retries:
                self.say(f"{cell.name} has failed {record.failures} times and is not tried again: {record.reason}")
                continue
            (alone if record.alone else together).append(cell)
        return together, alone

    def run(self) -> None:
        try:
            while self.stop.signal is None and self._hand_out():
                self._hear()
        finally:
            self._end()

    def _hand_out(self) -> bool:
        """Give cells to workers that have none; whether there is anything to wait for."""
        busy = [worker for worker in self.workers if worker.cell is not None]
        queued = self.together or ([] if busy else self.alone)
        room = self.plan.study.running.workers if self.together else 1
        while queued and len(busy) < room:
            worker = next((w for w in self.workers if w.cell is None), None) or self._start()
            cell = queued.pop(0)
            worker.give(cell, self._job(cell))
            busy.append(worker)
        return bool(busy)

    def _job(self, cell: Cell) -> Job:
        running = self.plan.study.running
        execution = {"device": running.device, "workers": running.readers, "memory": running.memory}
        record = replace(self.plan.begin(cell), threads=self.threads, machine=platform.node())
        recipe = {**cell.recipe.to_dict(), "data.path": self._data()}
        return Job(recipe, str(cell.folder), asdict(record), execution, running.keep, self.plan.catalog.digest)

    def _data(self) -> str:
        name = self.plan.catalog.name
        return str(Path(name).expanduser().absolute()) if any(self.plan.catalog.files.values()) else name

    def _start(self) -> _Worker:
        """A new worker process, of a session of its own: Ctrl-C comes to the parent alone."""
        self.started += 1
        log = self.plan.folder / f"worker-{self.started}.log"
        env = dict(os.environ, OMP_NUM_THREADS=str(self.threads), PYTHONUNBUFFERED="1")
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
            env.pop(name, None)
        if self.trainer is not None:
            env["RESIDUUM_TRAINER"] = self.trainer
        how: dict[str, Any] = {} if os.name == "nt" else {"start_new_session": True, "pass_fds": (self.lock,)}
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
                worker.reason = f"it took longer than {self.plan.study.running.timeout}"
                worker.process.kill()

    def _take(self, worker: _Worker, told: dict[str, Any] | None) -> None:
        cell = worker.cell
        if told is None:
            if worker in self.workers:
                self.workers.remove(worker)
            if not worker.ready and self.stop.signal is None:
                self.stillborn += 1
                if self.stillborn == _STARTS or cell is None:
                    raise RunError(f"a worker cannot be started: {_death(worker)}")
                self.together.insert(0, cell)
            elif cell is not None and self.stop.signal is None:
                self.left[cell.seed] -= 1
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
        self.left[cell.seed] -= 1
        seconds = f"{time.monotonic() - worker.since:.1f} s"
        if status == "done":
            self.finished += 1
            self.say(f"{self.finished} of {self.total}  {cell.name}: done in {seconds}")
        elif status == "diverged":
            self.finished += 1
            self.say(f"{self.finished} of {self.total}  {cell.name}: diverged: {told['reason']}")
        elif status == "failed":
            self._tell_failed(cell, told["reason"])
            worker.let_go()  # what an error leaves of a process is not worked with
            self.workers.remove(worker)
        elif self.stop.signal is None:
            self._failed(cell, "its process was told to end by another one")
        if not self.left[cell.seed] and any(self.left.values()):
            self.block()

    def _failed(self, cell: Cell, reason: str, alone: bool = False) -> None:
        """Write down what a worker no longer could."""
        record = self.plan.begin(cell)
        record = replace(record, status="failed", reason=reason, failures=record.failures + 1, alone=alone)
        record.write(cell.folder)
        leave_recipe(cell.recipe.to_dict(), cell.folder)
        self._tell_failed(cell, reason)

    def _tell_failed(self, cell: Cell, reason: str) -> None:
        found = next(result for result in collect(self.plan).cells if result.key == cell.key)
        self.say(f"{cell.name}: failed: {reason}; repeat it by:  {found.command}")

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
                    worker.process.kill()
                    worker.process.wait()


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
