"""Measuring: each contender in a process of its own, taking turns of a few steps, round after round.

So none inherits another's allocator or caches, and what disturbs the machine for a while disturbs all of a round. The
order of turns swaps every round. Each sitting goes through all cells with new processes, since where memory happens to
lie and how the C library's heap has grown makes a difference that no number of rounds would show: a network was 9 %
slower than its twin for as long as its process lived. The first step of a sitting warms up and is not counted.
"""

import contextlib
import gc
import math
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch

from residuum.bench.contenders import REFERENCES, Cell, Precision, Step, absent, matrix_side, prepare
from residuum.bench.intervals import suffice
from residuum.bench.results import CellResult, Row, sittings_of
from residuum.cost import cost
from residuum.devices import held_memory, now
from residuum.errors import BenchError, first_line
from residuum.memory import Live
from residuum.presets import preset

TURN = 0.4  # seconds that a turn takes about; a step of more than half of that is timed by itself
FETCHED = 1.0  # seconds of a step, beyond which fetching what others pushed out of the caches no longer counts
Prepare = Callable[[str, Cell], Step]
Say = Callable[[str], None]


class ContenderError(Exception):
    """A contender that could not do its step: why, in a line."""


def _serve(pipe: Connection, threads: int, prepare: Prepare) -> None:
    """A worker's life: get ready for a cell, take turns, until there is nobody to ask."""
    torch.set_num_threads(threads)
    step: Step | None = None
    seconds, device = 0.0, torch.device("cpu")  # that a step takes about, and where
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            asked = pipe.recv()
            try:
                if asked is None:
                    assert step is not None, "a turn was asked for before the worker was ready"
                    pipe.send(_turn(step, seconds, device))
                    continue
                step = None
                gc.collect()
                name, cell, first = asked
                step = prepare(name, cell)
                memory = _memory(step, cell) if first else (None, None)
                device = torch.device(cell.device)
                begin = now(device)
                step.run()
                seconds = now(device) - begin
                pipe.send(Ready(step.precision, *memory))
            except Exception as error:
                pipe.send(ContenderError(f"{type(error).__name__}: {first_line(error)}"))


class Ready(NamedTuple):
    """What a worker says when it is ready: its precision, and the first time its memory: peak bytes of a step's
    tensors, and by how much the first step made the process grow.
    """

    precision: Precision
    peak: int | None
    grown: int | None


def _memory(step: Step, cell: Cell) -> tuple[int | None, int | None]:
    """Peak and growth, as in `Ready`, which two steps take."""
    before = held_memory(torch.device("cpu"))
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the most so far starts anew
    step.run()
    most = _most_resident()
    grown = most - before if most is not None and cell.device == "cpu" else None
    if cell.device.startswith("cuda") and cell.mode != "graph":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        there = torch.cuda.memory_allocated()
        step.passes()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - there, grown
    if cell.mode != "eager":  # a dispatcher does not see what compiled code allocates
        return None, grown
    with Live() as live:
        live.leave_out(tensor for tensor in step.tensors() if tensor.layout == torch.strided)
        step.passes()
    return live.peak, grown


def _most_resident() -> int | None:
    """Bytes of this process in memory at most, where the system tells."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), None)


def _turn(step: Step, seconds: float, device: torch.device) -> float:
    """Seconds of a step, known to be about `seconds`. One before it fetches what others pushed out of the caches."""
    steps = max(1, min(50, math.ceil(TURN / seconds))) if seconds < TURN / 2 else 1
    if seconds < FETCHED:
        step.run()
    if device.type == "cuda":
        cuda: Any = torch.cuda
        first, last = (cuda.Event(enable_timing=True) for _ in range(2))
        cuda.synchronize()
        first.record()
        for _ in range(steps):
            step.run()
        last.record()
        cuda.synchronize()
        return float(first.elapsed_time(last)) / 1000 / steps
    begin = now(device)
    for _ in range(steps):
        step.run()
    return (now(device) - begin) / steps


class _Worker:
    """A process for one contender, started when it is first asked, and again where it died."""

    def __init__(self, threads: int, prepare: Prepare) -> None:
        self.context = multiprocessing.get_context("spawn")
        self.arguments = threads, prepare
        self.process: Any = None

    def start(self) -> None:
        """Start, without waiting for it."""
        self.pipe, there = self.context.Pipe()
        self.process = self.context.Process(target=_serve, args=(there, *self.arguments), daemon=True)
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for this process to handle: that one inherits
        try:
            self.process.start()
        finally:
            signal.signal(signal.SIGINT, before)
        there.close()

    def ask(self, question: object) -> Any:
        """The answer; raises `ContenderError` where there is none."""
        if self.process is None:
            self.start()
        try:
            self.pipe.send(question)
            answer = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            code, self.process = self.process.exitcode, None
            why = "it was killed, as happens when memory runs out" if code == -signal.SIGKILL else f"exit code {code}"
            raise ContenderError(f"its process died ({why})") from None
        if isinstance(answer, ContenderError):
            raise answer
        return answer

    def stop(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.join()


@contextlib.contextmanager
def crew(names: Sequence[str], threads: int, prepare: Prepare = prepare) -> Iterator[dict[str, _Worker]]:
    """A worker for each contender, and for each reference; they start side by side."""
    workers = {name: _Worker(threads, prepare) for name in (*names, *REFERENCES)}
    try:
        for worker in workers.values():
            worker.start()
        yield workers
    finally:
        for worker in workers.values():
            worker.stop()


class Trial:
    """One cell, measured sitting by sitting; `say` hears before each turn what it is."""

    def __init__(self, cell: Cell, names: Sequence[str], sittings: int, rounds: int, say: Say) -> None:
        self.cell, self.names, self.sittings, self.rounds, self.say = cell, names, sittings, rounds, say
        reasons = {name: absent(name, cell) for name in names}
        self.errors: dict[str, str] = {name: reason for name, reason in reasons.items() if reason}
        self.ready: dict[str, Ready] = {}
        self.times: dict[str, list[list[float]]] = {name: [] for name in (*names, *REFERENCES)}
        self.held = 0

    def sit(self, workers: dict[str, _Worker]) -> None:
        """All contenders get ready one by one, then take turns. Raises `BenchError` where the reference fails."""
        self.held += 1
        which = f"sitting {self.held} of {self.sittings}"
        for name, taken in self.times.items():
            answer = self._ask(workers, name, (name, self.cell, self.held == 1), f"gets ready, {which}")
            if answer is not None:
                self.ready.setdefault(name, answer)
                taken.append([])
        for number in range(self.rounds):
            for name in self.times if number % 2 else reversed(self.times):
                seconds = self._ask(workers, name, None, f"round {number + 1} of {self.rounds}, {which}")
                if seconds is not None:
                    self.times[name][-1].append(seconds)
        for name in REFERENCES:
            if name in self.errors:
                raise BenchError(f"the matrix product failed: {self.errors[name]}")

    def _ask(self, workers: dict[str, _Worker], name: str, question: object, doing: str) -> Any:
        """A contender's answer, or None where it is out."""
        self.say(f"{self.cell}: {name} {doing}")
        try:
            return None if name in self.errors else workers[name].ask(question)
        except ContenderError as error:
            self.errors[name] = str(error)
            return None

    def result(self) -> CellResult:
        """What was measured so far."""
        cell = self.cell
        rows = tuple(
            Row(name, (), error=self.errors[name])
            if name in self.errors
            else Row(name, sittings_of(self.times[name]), *self.ready[name])
            for name in self.names
        )
        fields = ("model", "task", "precision", "layout", "mode", "batch", "device")
        settings = {name: getattr(cell, name) for name in fields} | {"size": list(cell.size)}
        side = matrix_side(torch.device(cell.device).type)
        references = {str(precision): sittings_of(self.times[name]) for name, precision in REFERENCES.items()}
        return CellResult(str(cell), settings, step_flops(cell), rows, references, 2 * side**3)


def measure(
    cells: Sequence[Cell],
    parts: Sequence[Sequence[str]],
    sittings: int,
    rounds: int,
    threads: int,
    say: Say = lambda text: None,
    prepare: Prepare = prepare,
) -> Iterator[CellResult]:
    """The cells with the contenders that have part in each, in every sitting all of them.

    A cell's result comes after each sitting from the first that suffices for an interval, the last one complete.
    """
    trials = [Trial(cell, part, sittings, rounds, say) for cell, part in zip(cells, parts, strict=True)]
    names = list(dict.fromkeys(name for part in parts for name in part))
    for _ in range(sittings):
        with crew(names, threads, prepare) as workers:
            for trial in trials:
                trial.sit(workers)
                if suffice(trial.held, rounds):
                    yield trial.result()


def step_flops(cell: Cell) -> int:
    """Floating-point operations of one step's convolutions and matrix products, for any of the contenders."""
    parts = cost(preset(cell.model), cell.size, cell.batch, by_layer=cell.task == "train")
    return 2 * sum(part.macs + (part.backward_macs if cell.task == "train" else 0) for part in parts)
