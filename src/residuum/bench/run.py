"""`residuum bench`: from its flags to a report; what suffices for an interval is saved before more is measured."""

import datetime
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch
from benchmarks.code_size.changes import lines_to_change
from benchmarks.code_size.lines import count_lines
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from residuum.bench.contenders import (
    OUT_OF_THE_BOX,
    REFERENCES,
    Cell,
    Layout,
    Mode,
    Precision,
    Task,
    check_contenders,
    usual_contenders,
)
from residuum.bench.intervals import LEAST_ROUNDS, LEAST_SITTINGS, suffice
from residuum.bench.machine import describe
from residuum.bench.measure import measure
from residuum.bench.report import comparison, in_words, lines_sheets, print_report, print_sheet, save_report
from residuum.bench.results import CellResult, Lines, Report, compare
from residuum.devices import choose_precision
from residuum.errors import BenchError, ConfigError
from residuum.presets import preset, usual_image_size

_USUAL_LAYOUT: dict[Precision, Layout] = {"fp32": "nchw", "bf16": "channels-last"}


def contenders_of(named: Sequence[str], baseline: str) -> tuple[str, ...]:
    """Those that are named, or all that are installed; raises `BenchError` where the baseline is not among them."""
    contenders = tuple(dict.fromkeys(named)) or usual_contenders()
    check_contenders((*contenders, baseline))
    if baseline not in contenders:
        raise BenchError(f"the baseline {baseline} does not take part; add it, or take one of {', '.join(contenders)}")
    return contenders


def cells_of(
    models: Sequence[str],
    tasks: Sequence[Task],
    precisions: Sequence[Precision],
    layouts: Sequence[Layout],
    modes: Sequence[Mode],
    batches: Sequence[int],
    size: tuple[int, int] | None,
    device: torch.device,
) -> list[Cell]:
    """Every combination. Without precisions fp32, and bf16 where the device computes it; without layouts, each
    precision in the one that suits it: fp32 NCHW, bf16 channels-last.
    """
    for name in models:
        preset(name)
    if min(batches) < 1 or min(size or (1, 1)) < 1:
        raise ConfigError(f"batch-sizes is {tuple(batches)} and size {size}; all must be positive")
    if "graph" in modes and device.type != "cuda":
        raise BenchError(f"mode graph is of CUDA graphs and the device is {device}; leave it out")
    if not precisions:
        precisions = ("fp32", "bf16") if choose_precision("auto", device)[0] == "bf16" else ("fp32",)
    cells = []
    for model, batch, task, precision, mode in product(models, batches, tasks, precisions, modes):
        for layout in layouts or (_USUAL_LAYOUT[precision],):
            side = size or usual_image_size(model)
            cells.append(Cell(model, task, precision, layout, mode, batch, side, str(device)))
    return list(dict.fromkeys(cells))


def taking_part(cells: Sequence[Cell], contenders: Sequence[str]) -> list[list[str]]:
    """The contenders of each cell: what runs as it likes is measured once, beside the first way of the others."""
    seen: set[tuple[str, Task, int]] = set()
    parts = []
    for cell in cells:
        key = cell.model, cell.task, cell.batch
        parts.append([name for name in contenders if name != OUT_OF_THE_BOX or key not in seen])
        seen.add(key)
    return parts


def bench(
    cells: Sequence[Cell],
    contenders: Sequence[str],
    baseline: str,
    *,
    sittings: int,
    rounds: int,
    threads: int,
    out: Path,
    command: str,
    console: Console,
) -> Report:
    """Measure the cells and count the lines. The report in `out` is whole at any time; it is printed at the end.

    Raises `BenchError`, before anything is measured, for too few rounds and a folder that exists or cannot be made.
    """
    if not suffice(sittings, rounds):
        raise BenchError(
            f"sittings is {sittings} and rounds {rounds}; an interval of 95 % takes at least {LEAST_SITTINGS} sittings "
            f"and {LEAST_ROUNDS} rounds in all"
        )
    if out.exists():
        raise BenchError(f"{out} exists already; choose another --out")
    if threads:
        torch.set_num_threads(threads)
    parts = taking_part(cells, contenders)
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    report = Report(describe(cells[0].device), command, date, baseline)
    try:
        save_report(report, out)
        report = replace(report, lines=lines_of(contenders))
        found: dict[str, CellResult] = {}
        for result in _measured(cells, parts, sittings, rounds, console):
            found[result.name] = result
            report = replace(report, cells=tuple(found.values()))
            save_report(report, out)
    except BaseException:
        if report.cells:
            console.print(f"what was measured so far is in {out}", highlight=False, soft_wrap=True)
        else:
            shutil.rmtree(out, ignore_errors=True)
        raise
    print_report(console, report)
    console.print(f"written: {out}/report.html, report.md, report.json", highlight=False, soft_wrap=True)
    return report


def _measured(
    cells: Sequence[Cell], parts: Sequence[list[str]], sittings: int, rounds: int, console: Console
) -> Iterator[CellResult]:
    """The cells' results, under a bar that says what is running."""
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True) as bar:
        turns = sittings * (rounds + 1) * sum(len(part) + len(REFERENCES) for part in parts)
        task = bar.add_task("starting", total=turns)

        def say(text: str) -> None:
            bar.update(task, description=text, advance=1)

        yield from measure(cells, parts, sittings, rounds, torch.get_num_threads(), say)


def lines_of(contenders: Sequence[str]) -> tuple[Lines, ...]:
    """The lines of each library among the contenders."""
    libraries = list(dict.fromkeys(name.partition(":")[0] for name in contenders))
    return tuple(Lines(count_lines(name), lines_to_change(name)) for name in libraries)


def print_lines(contenders: Sequence[str], console: Console) -> None:
    """The tables of lines alone."""
    for sheet in lines_sheets(lines_of(contenders)):
        print_sheet(console, sheet)


def compare_reports(first: Path, second: Path, console: Console) -> None:
    """What became of each contender from the first report to the second; raises `BenchError`."""
    before, after = Report.load(first), Report.load(second)
    differences = list(compare(before, after))
    for name in sorted({*before.machine, *after.machine} - {"commit", "residuum"}):
        was, now = before.machine.get(name), after.machine.get(name)
        if was != now:
            console.print(f"{name} differs: {was} before, {now} after", style="yellow", highlight=False)
    print_sheet(console, comparison(differences))
    console.print(in_words(differences), highlight=False)
