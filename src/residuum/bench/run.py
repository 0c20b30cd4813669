"""`residuum bench`: from its flags to a report. What is measured is saved before more is."""

import datetime
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from residuum.bench.contenders import OUT_OF_THE_BOX, REFERENCES, Contender
from residuum.bench.intervals import LEAST_REPETITIONS
from residuum.bench.machine import describe
from residuum.bench.measure import Say, measure
from residuum.bench.report import difference_table, in_words, print_report, save_pages
from residuum.bench.results import Comparison, WorkloadResult, compare
from residuum.bench.workloads import Workload
from residuum.errors import LONGEST, BenchError, quoted, shortened
from residuum.report.tables import print_table
from residuum.validation import AtLeast, check

SAY_EVERY = 60.0  # seconds between lines where there is no terminal


@dataclass(frozen=True)
class Effort:
    """How much is measured: repetitions with new processes, rounds in each, threads of the CPU (0: torch's choice)."""

    repetitions: Annotated[int, AtLeast(LEAST_REPETITIONS, 10_000)] = 3
    rounds: Annotated[int, AtLeast(1, 10_000)] = 2
    threads: Annotated[int, AtLeast(0, 10_000)] = 0

    def __post_init__(self) -> None:
        check(self)


def taking_part(workloads: Sequence[Workload], contenders: Sequence[Contender]) -> list[list[Contender]]:
    """The contenders of each workload: what runs as it likes is measured once, beside the first way of the others."""
    seen: set[tuple[str, str, int]] = set()
    parts = []
    for workload in workloads:
        key = workload.model, workload.task, workload.batch_size
        parts.append([who for who in contenders if who.name != OUT_OF_THE_BOX or key not in seen])
        seen.add(key)
    return parts


def bench(
    workloads: Sequence[Workload],
    contenders: Sequence[Contender],
    baseline: str,
    effort: Effort,
    *,
    out: Path,
    command: str,
    console: Console,
) -> Comparison:
    """Measure the workloads into `out`: `report.json` after each of them in each repetition, the pages at the end.

    Whatever ends it, what was measured is there with its pages; where nothing was, the folder is removed. Raises
    `BenchError`, before anything is measured, for a folder that exists or cannot be made.
    """
    if out.exists():
        raise BenchError(f"{quoted(str(out))} exists already; choose another --out")
    if effort.threads:
        torch.set_num_threads(effort.threads)
    parts = taking_part(workloads, contenders)
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    found = Comparison(describe(workloads[0].device), command, date, baseline)
    try:
        out.mkdir(parents=True)
    except OSError as error:
        raise BenchError(
            f"the folder {quoted(str(out))} cannot be made: {error.strerror}; choose another --out"
        ) from None
    results: dict[str, WorkloadResult] = {}
    try:
        steps = effort.repetitions * (effort.rounds + 1) * sum(len(part) + len(REFERENCES) for part in parts)
        with _progress(console, steps) as say:
            for result in measure(
                workloads, parts, effort.repetitions, effort.rounds, torch.get_num_threads(), say
            ):  # fmt: skip
                results[result.name] = result
                found = replace(found, workloads=tuple(results.values()))
                found.save(out / "report.json")
    except BaseException:
        if found.workloads:
            save_pages(found, out)
            console.print(Text(f"what was measured so far is in {shortened(str(out), LONGEST)}"), soft_wrap=True)
        else:
            shutil.rmtree(out, ignore_errors=True)
        raise
    save_pages(found, out)
    print_report(console, found)
    written = f"written: {shortened(str(out), LONGEST)}: report.html, report.md, report.json"
    console.print(Text(written), soft_wrap=True)
    return found


@contextmanager
def _progress(console: Console, steps: int) -> Iterator[Say]:
    """Says what is running: above a bar in a terminal, in a line a minute elsewhere."""
    if not console.is_terminal:
        done, said = 0, time.monotonic()

        def line(workload: str, doing: str) -> None:
            nonlocal done, said
            if time.monotonic() - said > SAY_EVERY:
                console.print(Text(f"{done / steps:4.0%}  {workload}: {doing}"))
                said = time.monotonic()
            done += 1

        yield line
        return
    columns = BarColumn(bar_width=None), TextColumn("{task.percentage:3.0f} %"), TimeElapsedColumn()
    bar = Progress(*columns, TimeRemainingColumn(), console=console, expand=True)
    task = bar.add_task("", total=steps)
    with Live(bar, console=console, transient=True, refresh_per_second=4) as live:

        def show(workload: str, doing: str) -> None:
            live.update(Group(Text(workload, "bold"), Text(doing), bar))
            bar.advance(task)

        yield show


def compare_reports(first: Path, second: Path, console: Console) -> None:
    """What became of each contender from the first report to the second; raises `BenchError`."""
    before, after = Comparison.load(first), Comparison.load(second)
    differences = list(compare(before, after))
    for name in sorted({*before.machine, *after.machine} - {"commit", "residuum"}):
        was, now = before.machine.get(name), after.machine.get(name)
        if was != now:
            console.print(Text(f"{name} differs: {was} before, {now} after", "yellow"))
    print_table(console, difference_table(differences))
    console.print(Text(in_words(differences)))
