"""Measuring: each contender in a process of its own, round after round.

So none inherits another's allocator or caches, and what disturbs the machine for a while disturbs all of a round. Their
order swaps every round. Each repetition goes through all workloads with new processes, since where memory happens to
lie and how the C library's heap has grown makes a difference that no number of rounds would show: a network was 9 %
slower than its twin for as long as its process lived. The first step of a repetition warms up and is not counted.
"""

import contextlib
import gc
import math
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import torch

from residuum.bench.contenders import REFERENCES, Contender, absent
from residuum.bench.results import Row, WorkloadResult, frozen
from residuum.bench.steps import Step, matrix_side, prepare
from residuum.bench.workloads import Precision, Workload, step_flops
from residuum.devices import held_memory, now
from residuum.errors import LONGEST, BenchError, ResiduumError, first_line, shortened
from residuum.memory import Live

TIMED = 0.4  # seconds of steps, about, that give one time; a step of more than half of that is timed by itself
FETCHED = 1.0  # seconds of a step, beyond which fetching what others pushed out of the caches no longer counts
Prepare = Callable[[Contender, Workload], Step]
Answer = TypeVar("Answer")
Say = Callable[[str, str], None]  # hears, before something is done, the workload and what is done


class ContenderError(Exception):
    """A contender that could not do its step: why, in a line."""


class Ready(NamedTuple):
    """What a contender says when it is ready: its precision, floating-point operations where they are its own, and the
    first time its memory: peak bytes of a step's tensors, and by how much the first step made the process grow.
    """

    precision: Precision
    flops: int | None
    peak: int | None
    grown: int | None


class Process(Protocol):
    """Where a contender lives."""

    def get_ready(self, contender: Contender, workload: Workload, *, memory: bool) -> Ready:
        """Prepare the step of a workload and warm it up; raises `ContenderError`."""

    def time(self) -> float:
        """Seconds of a step; raises `ContenderError`."""


class Here:
    """A contender in this process: what runs within a process of its own."""

    def __init__(self, prepare: Prepare) -> None:
        self.prepare = prepare
        self.step: Step | None = None
        self.seconds, self.device = 0.0, torch.device("cpu")  # that a step takes about, and where

    def get_ready(self, contender: Contender, workload: Workload, *, memory: bool) -> Ready:
        """As in `Process`."""
        if self.step is not None:  # the workload before gives its memory back first
            self.step = None
            gc.collect()
        with _named_errors():
            self.step = step = self.prepare(contender, workload)
            peak, grown = _memory(step, workload) if memory else (None, None)
            self.device = torch.device(workload.device)
            begin = now(self.device)
            step.run()
            self.seconds = now(self.device) - begin
            return Ready(step.precision, step.flops, peak, grown)

    def time(self) -> float:
        """As in `Process`."""
        assert self.step is not None, "a time was asked for before the contender was ready"
        with _named_errors():
            return _seconds(self.step, self.seconds, self.device)


@contextlib.contextmanager
def _named_errors() -> Iterator[None]:
    try:
        yield
    except ResiduumError as error:
        raise ContenderError(str(error)) from error
    except Exception as error:
        raise ContenderError(shortened(f"{type(error).__name__}: {first_line(error)}", LONGEST)) from error


def _memory(step: Step, workload: Workload) -> tuple[int | None, int | None]:
    """Peak and growth, as in `Ready`, which two steps take."""
    before = held_memory(torch.device("cpu"))
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the most so far starts anew
    step.run()
    most = _most_resident()
    grown = most - before if most is not None and workload.device == "cpu" else None
    if workload.device.startswith("cuda") and workload.mode != "graph":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        there = torch.cuda.memory_allocated()
        step.passes()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - there, grown
    if workload.mode != "eager":  # a dispatcher does not see what compiled code allocates
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


def _seconds(step: Step, about: float, device: torch.device) -> float:
    """Seconds of a step, known to take `about` so many. One before it fetches what others pushed out of the caches."""
    steps = max(1, min(50, math.ceil(TIMED / about))) if about < TIMED / 2 else 1
    if about < FETCHED:
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


def _serve(pipe: Connection, threads: int, prepare: Prepare) -> None:
    """A process's life: do what is asked until there is nobody to ask."""
    torch.set_num_threads(threads)
    here = Here(prepare)
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            what, arguments, options = pipe.recv()
            try:
                pipe.send(getattr(here, what)(*arguments, **options))
            except ContenderError as error:
                pipe.send(error)


class Apart:
    """A contender in a process of its own, started when it is first asked, and again where it died."""

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

    def get_ready(self, contender: Contender, workload: Workload, *, memory: bool) -> Ready:
        """As in `Process`."""
        return self._ask("get_ready", contender, workload, memory=memory)  # type: ignore[no-any-return]

    def time(self) -> float:
        """As in `Process`."""
        return self._ask("time")  # type: ignore[no-any-return]

    def _ask(self, what: str, *arguments: object, **options: object) -> Any:
        if self.process is None:
            self.start()
        try:
            self.pipe.send((what, arguments, options))
            answer = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            code, self.process = self.process.exitcode, None
            killed = code == -getattr(signal, "SIGKILL", 9)  # Windows has no such signal
            why = "it was killed, as happens when memory runs out" if killed else f"exit code {code}"
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
def apart(
    contenders: Sequence[Contender], threads: int, prepare: Prepare = prepare
) -> Iterator[Mapping[Contender, Apart]]:
    """A process for each contender; they start side by side, and end with the block.

    That of a reference starts when it is first asked: which are needed is known when contenders have said how they
    compute.
    """
    processes = {contender: Apart(threads, prepare) for contender in contenders}
    try:
        for contender, process in processes.items():
            if contender.name not in REFERENCES:
                process.start()
        yield processes
    finally:
        for process in processes.values():
            process.stop()


class Trial:
    """One workload, measured repetition by repetition."""

    def __init__(
        self, workload: Workload, contenders: Sequence[Contender], repetitions: int, rounds: int, say: Say
    ) -> None:
        self.workload, self.contenders = workload, contenders
        self.repetitions, self.rounds, self.say = repetitions, rounds, say
        self.flops = step_flops(workload)
        reasons = {contender: absent(contender, workload) for contender in contenders}
        self.errors: dict[Contender, str] = {contender: reason for contender, reason in reasons.items() if reason}
        self.ready: dict[Contender, Ready] = {}
        self.times: dict[Contender, list[list[float]]] = {who: [] for who in contenders}
        self.done = 0

    def repeat(self, processes: Mapping[Contender, Process]) -> None:
        """One repetition: all get ready one by one, then are timed in rounds.

        Raises `BenchError` where the reference fails.
        """
        self.done += 1
        which = f"repetition {self.done} of {self.repetitions}"
        for who in self.contenders:
            self._get_ready(who, processes[who], which)
        used = {self.ready[who].precision for who in self.contenders if who in self.ready}
        for who in (Contender(name) for name, kind in REFERENCES.items() if kind in used):
            self._get_ready(who, processes[who], which)
        for number in range(self.rounds):
            for who in self.times if number % 2 else reversed(self.times):
                seconds = self._ask(who, f"round {number + 1} of {self.rounds}, {which}", processes[who].time)
                if seconds is not None:
                    self.times[who][-1].append(seconds)
        for name in REFERENCES:
            if (reason := self.errors.get(Contender(name))) is not None:
                raise BenchError(f"the matrix product failed: {reason}")

    def _get_ready(self, who: Contender, process: Process, which: str) -> None:
        ready = partial(process.get_ready, who, self.workload, memory=self.done == 1)
        if (answer := self._ask(who, f"gets ready, {which}", ready)) is not None:
            self.ready.setdefault(who, answer)
            self.times.setdefault(who, []).append([])

    def _ask(self, who: Contender, doing: str, question: Callable[[], Answer]) -> Answer | None:
        """A contender's answer, or None where it is out; what it does is said before."""
        self.say(str(self.workload), f"{who.name}: {doing}")
        try:
            return None if who in self.errors else question()
        except ContenderError as error:
            self.errors[who] = str(error)
            return None

    def result(self) -> WorkloadResult:
        """What was measured so far."""
        workload = self.workload
        rows = tuple(
            Row(who.name, (), error=self.errors[who])
            if who in self.errors
            else Row(who.name, frozen(self.times[who]), *self.ready[who])
            for who in self.contenders
        )
        fields = ("model", "task", "precision", "memory_format", "mode", "batch_size", "device")
        settings = {name: getattr(workload, name) for name in fields} | {"image_size": list(workload.image_size)}
        side = matrix_side(torch.device(workload.device).type)
        measured = ((str(kind), Contender(name)) for name, kind in REFERENCES.items())
        references = {kind: frozen(self.times[who]) for kind, who in measured if who in self.times}
        return WorkloadResult(str(workload), settings, self.flops, rows, references, 2 * side**3)


def measure(
    workloads: Sequence[Workload],
    parts: Sequence[Sequence[Contender]],
    repetitions: int,
    rounds: int,
    threads: int,
    say: Say = lambda workload, doing: None,
    prepare: Prepare = prepare,
    processes: Callable[..., contextlib.AbstractContextManager[Mapping[Contender, Process]]] = apart,
) -> Iterator[WorkloadResult]:
    """The workloads with the contenders that have part in each, in every repetition all of them.

    A workload's result comes after each repetition, the last one complete. Raises `ConfigError`, before anything is
    measured, where images are too small for a network.
    """
    trials = [Trial(workload, part, repetitions, rounds, say) for workload, part in zip(workloads, parts, strict=True)]
    everyone = list(dict.fromkeys([*(who for part in parts for who in part), *map(Contender, REFERENCES)]))
    for _ in range(repetitions):
        with processes(everyone, threads, prepare) as running:
            for trial in trials:
                trial.repeat(running)
                yield trial.result()
